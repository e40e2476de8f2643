//! One command under a leash: a time limit for its whole process group, and a cap on what is kept of its
//! output, however much it writes.

use std::collections::VecDeque;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::root::Finished;

/// Where a program without a path is looked for: by checks, and where the environment does not say.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Most bytes read after the command ended, when a child it left behind goes on writing.
const DRAIN_LIMIT: usize = 1 << 20;

/// Runs `command` in a process group of its own for at most `limit`, keeping the last `keep` bytes.
///
/// Dropping the future kills the group too.
pub async fn run(mut command: Command, limit: Duration, keep: usize) -> io::Result<Finished> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut pipe = pipe::Receiver::from_owned_fd(reader)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut group = ProcessGroup(command.spawn()?);
    // It holds the write ends, which would keep the pipe from ending.
    drop(command);
    let mut tail = Tail::new(keep);
    let status = match tokio::time::timeout(limit, attend(&mut group.0, &mut pipe, &mut tail)).await {
        Ok(status) => Some(status?),
        Err(_) => {
            group.kill();
            group.0.wait().await?;
            None
        }
    };
    tail.drain(&pipe);
    Ok(Finished { status, output: tail.bytes.into() })
}

/// Reads while the command runs; ends with the command and not with the pipe, which its children may hold.
async fn attend(child: &mut Child, pipe: &mut pipe::Receiver, tail: &mut Tail) -> io::Result<ExitStatus> {
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return status,
            ready = pipe.readable(), if open => {
                ready?;
                open = tail.read(pipe)? != Some(0);
            }
        }
    }
}

/// The command and what it started.
struct ProcessGroup(Child);

impl ProcessGroup {
    /// The id is the group's as long as the child was not waited for; after that there is none.
    fn kill(&self) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(Err(error)) = id.map(|id| killpg(Pid::from_raw(id), Signal::SIGKILL)) {
            tracing::debug!(%error, "the group of a check is gone already");
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last bytes of a stream.
struct Tail {
    keep: usize,
    bytes: VecDeque<u8>,
    buffer: Vec<u8>,
}

impl Tail {
    fn new(keep: usize) -> Tail {
        Tail { keep, bytes: VecDeque::with_capacity(keep.min(4096)), buffer: vec![0; 16 * 1024] }
    }

    /// Reads once: the count, 0 at the end, `None` when there is nothing now.
    fn read(&mut self, pipe: &pipe::Receiver) -> io::Result<Option<usize>> {
        match pipe.try_read(&mut self.buffer) {
            Ok(count) => {
                self.bytes.extend(self.buffer.iter().take(count).skip(count.saturating_sub(self.keep)));
                let excess = self.bytes.len().saturating_sub(self.keep);
                drop(self.bytes.drain(..excess));
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes what is still in the pipe.
    fn drain(&mut self, pipe: &pipe::Receiver) {
        let mut total = 0;
        while total < DRAIN_LIMIT {
            match self.read(pipe) {
                Ok(Some(count)) if count > 0 => total = total.saturating_add(count),
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn both_streams_in_order_and_the_exit_code() {
        let finished = run(shell("echo one; echo two >&2; echo three; exit 3"), LONG, 1024).await.unwrap();
        assert_eq!(finished.output, b"one\ntwo\nthree\n");
        assert_eq!(finished.status.unwrap().code(), Some(3));
    }

    #[tokio::test]
    async fn only_the_end_of_a_long_output_is_kept() {
        let finished = run(shell("seq 1 200000"), LONG, 14).await.unwrap();
        assert_eq!(finished.output, b"199999\n200000\n");
    }

    #[tokio::test]
    async fn a_flood_ends_at_the_time_limit_and_stays_small() {
        let finished = run(shell("exec yes"), Duration::from_millis(200), 1024).await.unwrap();
        assert!(finished.status.is_none());
        assert_eq!(finished.output.len(), 1024);
    }

    #[tokio::test]
    async fn a_child_left_behind_does_not_hold_the_command_up() {
        let finished = run(shell("sleep 1000 & echo $!"), LONG, 64).await.unwrap();
        assert!(finished.status.unwrap().success());
        let id: i32 = String::from_utf8(finished.output).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(id), Signal::SIGKILL).unwrap();
    }

    /// A pipe whose end shows that every process of a group is gone: each of them holds it as its fd 3.
    fn witness() -> (pipe::Receiver, std::os::fd::OwnedFd) {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (pipe::Receiver::from_owned_fd(reader).unwrap(), writer)
    }

    async fn ended(mut pipe: pipe::Receiver) {
        use tokio::io::AsyncReadExt;
        let mut rest = Vec::new();
        tokio::time::timeout(LONG, pipe.read_to_end(&mut rest)).await.expect("a process lives on").unwrap();
    }

    fn hanging(writer: &std::os::fd::OwnedFd) -> Command {
        use std::os::fd::AsRawFd;
        // The shell opens the witness by its path, for it is close-on-exec.
        shell(&format!(
            "exec 3>/proc/{}/fd/{}; sleep 1000 & echo started >&3; sleep 1000",
            std::process::id(),
            writer.as_raw_fd()
        ))
    }

    #[tokio::test]
    async fn a_hanging_command_is_killed_with_all_that_it_started() {
        let (pipe, writer) = witness();
        let finished = run(hanging(&writer), Duration::from_millis(300), 64).await.unwrap();
        assert!(finished.status.is_none());
        drop(writer);
        ended(pipe).await;
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_group() {
        let (pipe, writer) = witness();
        tokio::select! {
            finished = run(hanging(&writer), LONG, 64) => panic!("{finished:?}"),
            // What the shell wrote once its child ran.
            ready = pipe.readable() => ready.unwrap(),
        }
        drop(writer);
        ended(pipe).await;
    }
}
