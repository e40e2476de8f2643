//! The agent's side of the control socket: who may ask, how much, and for how long.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Group, getuid};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::seats::{ClientSeat, Seats};
use super::wire::{ControlAnswer, ControlError, GROUP, Method, Request, SOCKET};
use crate::failure::{Code, Failure};
use crate::fault;

/// How long a client may take to send a line, or to take one.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the agent may take to answer.
const AGENT_PATIENCE: Duration = Duration::from_secs(120);
/// Longest line of a request, in bytes: far more than the largest `install`.
const REQUEST_LIMIT: usize = 64 * 1024;

/// Who asks, by the kernel's word (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
}

impl Peer {
    /// Root, or the user that the agent itself runs as.
    fn may_change(self) -> bool {
        self.uid == 0 || self.uid == getuid().as_raw()
    }
}

/// A permitted request on its way to the agent.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub peer: Peer,
    pub reply: Reply,
}

/// Where the answer goes: one, or for `watch` one for each change until [`Reply::send`] says false.
#[derive(Debug, Clone)]
pub struct Reply(mpsc::Sender<Result<Value, Failure>>);

impl Reply {
    /// Sends an answer; false when the client is gone.
    pub async fn send(&self, answer: Result<Value, Failure>) -> bool {
        self.0.send(answer).await.is_ok()
    }

    /// As [`Reply::send`] without waiting for a slow client: a status that it misses is followed by the next.
    pub fn offer(&self, answer: Result<Value, Failure>) -> bool {
        !matches!(self.0.try_send(answer), Err(mpsc::error::TrySendError::Closed(_)))
    }

    /// The client is gone.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Ends when the client is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// Makes `control.sock` in `run`: root and the group `fwupdate` may connect, or root alone without the group.
///
/// The socket of an agent that died is replaced; one that is served is left alone.
pub fn bind(run: &Path) -> Result<UnixListener, ControlError> {
    let path = run.join(SOCKET);
    let failed = |source| ControlError::Bind { path: path.clone(), source };
    fs::create_dir_all(run).map_err(failed)?;
    make_room(&path)?;
    // Permissions are set where nobody else can connect yet.
    let private = run.join(format!(".{SOCKET}.{}", std::process::id()));
    remove_folder(&private).map_err(failed)?;
    DirBuilder::new().mode(0o700).create(&private).map_err(failed)?;
    let listener = bind_private(&private.join("s"), &path).map_err(failed);
    remove_folder(&private).map_err(failed)?;
    listener
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn bind_private(draft: &Path, path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(draft)?;
    let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid.as_raw());
    let shared = group.is_some_and(|group| give(draft, group).is_ok());
    fs::set_permissions(draft, Permissions::from_mode(if shared { 0o660 } else { 0o600 }))?;
    fs::rename(draft, path)?;
    Ok(listener)
}

/// Hands the socket to `group`. It has it already where the agent runs in that group: its service may not chown.
fn give(socket: &Path, group: u32) -> io::Result<()> {
    if fs::metadata(socket)?.gid() == group { Ok(()) } else { chown(socket, None, Some(group)) }
}

fn make_room(path: &Path) -> Result<(), ControlError> {
    let failed = |source| ControlError::Bind { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ControlError::Obstacle { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ControlError::Taken { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// Serves clients until the agent drops the receiver of `calls`, or this future is dropped.
///
/// Whoever comes is let in, so that nobody can lock out root: who has too many connections loses an old one.
pub async fn serve(listener: &UnixListener, calls: mpsc::Sender<Call>) {
    let (mut clients, mut seats) = (JoinSet::new(), Seats::default());
    loop {
        tokio::select! {
            () = calls.closed() => return,
            Some(_) = clients.join_next() => {}
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| Ok((Peer { uid: stream.peer_cred()?.uid() }, stream))) {
                Ok((peer, stream)) => {
                    let seat = seats.take(peer.uid, peer.may_change());
                    clients.spawn(client(stream, peer, seat, calls.clone()));
                }
                Err(error) => {
                    tracing::warn!("a local client could not be accepted: {error}");
                    // Out of file descriptors, most likely: they come back, but not at once.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
        }
    }
}

async fn client(stream: UnixStream, peer: Peer, seat: ClientSeat, calls: mpsc::Sender<Call>) {
    let (reader, mut writer) = stream.into_split();
    let served = tokio::select! {
        served = fault::caught(converse(BufReader::new(reader), &mut writer, peer, &seat, &calls)) => match served {
            Ok(served) => served,
            Err(failure) => write(&mut writer, Err(failure)).await,
        },
        () = seat.lost() => Err(io::Error::new(ErrorKind::QuotaExceeded, "its user has too many connections")),
    };
    if let Err(error) = served {
        tracing::debug!(%error, uid = peer.uid, "a local client was cut off");
    }
}

async fn converse(
    mut reader: BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    peer: Peer,
    seat: &ClientSeat,
    calls: &mpsc::Sender<Call>,
) -> io::Result<()> {
    while let Some(line) = timeout(CLIENT_PATIENCE, read_line(&mut reader)).await?? {
        let Some(request) = parse(&line, peer, writer).await? else { continue };
        tracing::debug!(method = ?request.method, uid = peer.uid, "a local request");
        if request.method == Method::Watch {
            return watch(request, peer, calls, &mut reader, writer).await;
        }
        let _busy = seat.busy();
        let answer = timeout(AGENT_PATIENCE, ask(request, peer, calls)).await;
        write(writer, answer.unwrap_or_else(|_| Err(unanswered()))).await?;
    }
    Ok(())
}

/// The next line, `None` at the end.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take((REQUEST_LIMIT as u64).saturating_add(1)).read_until(b'\n', &mut line).await?;
    if line.len() > REQUEST_LIMIT {
        return Err(io::Error::new(ErrorKind::InvalidData, "a request is too long"));
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// A permitted request; otherwise `None`, and the client has been told why.
async fn parse(line: &[u8], peer: Peer, writer: &mut OwnedWriteHalf) -> io::Result<Option<Request>> {
    let failure = match serde_json::from_slice::<Request>(line) {
        Ok(request) if !request.method.changes() || peer.may_change() => return Ok(Some(request)),
        Ok(_) => Failure::new(Code::NotPermitted, "only root may change something; run it with sudo"),
        Err(error) => Failure::new(Code::MalformedRequest, format!("the request is malformed: {error}")),
    };
    write(writer, Err(failure)).await?;
    Ok(None)
}

async fn ask(request: Request, peer: Peer, calls: &mpsc::Sender<Call>) -> Result<Value, Failure> {
    let (reply, mut answers) = mpsc::channel(1);
    let call = Call { request, peer, reply: Reply(reply) };
    calls.send(call).await.map_err(|_| unanswered())?;
    answers.recv().await.unwrap_or_else(|| Err(unanswered()))
}

async fn watch(
    request: Request,
    peer: Peer,
    calls: &mpsc::Sender<Call>,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let (reply, mut answers) = mpsc::channel(4);
    if calls.send(Call { request, peer, reply: Reply(reply) }).await.is_err() {
        return write(writer, Err(unanswered())).await;
    }
    let mut byte = [0];
    loop {
        tokio::select! {
            answer = answers.recv() => match answer {
                Some(answer) => write(writer, answer).await?,
                None => return Ok(()),
            },
            // A watcher has nothing more to say: whatever comes ends it, and most often it is the end.
            end = reader.read(&mut byte) => return end.map(drop),
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, answer: Result<Value, Failure>) -> io::Result<()> {
    let answer = match answer {
        Ok(value) => ControlAnswer::Result(value),
        Err(failure) => ControlAnswer::Error(failure),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(CLIENT_PATIENCE, writer.write_all(&line)).await?
}

fn unanswered() -> Failure {
    Failure::new(Code::NotReady, "the agent did not answer; see `journalctl -u fwupdate` and try again")
}

#[cfg(test)]
mod tests;
