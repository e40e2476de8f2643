//! Root's side of the agent (`fwupdated --root-verb`, started by `fwupdate-root@.service`): does the one thing that the
//! agent asked for over this connection, by the settings in `/usr/lib` and `/etc` alone.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Connection;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Command;

use crate::config::RootSettings;
use crate::health::{self, Systemd};
use crate::root::{self, Finished, Verb};

/// How long the reboot command may take to give the order.
const REBOOT_LIMIT: Duration = Duration::from_secs(60);

/// Serves the connection that is this program's standard input; `board` may say why there are no settings.
pub async fn serve_root(board: Result<RootSettings, String>) -> io::Result<()> {
    let connection = Connection::from(io::stdin().as_fd().try_clone_to_owned()?);
    connection.set_nonblocking(true)?;
    root::serve(UnixStream::from_std(connection)?, |verb| act(board, verb)).await
}

async fn act(board: Result<RootSettings, String>, verb: Verb) -> Result<Finished, String> {
    let board = board?;
    // Root asks by itself and not root again.
    let systemd = Systemd { root: None, ..Systemd::default() };
    match verb {
        Verb::Reboot => reboot(&board.reboot_command).await.map_err(|error| error.to_string()),
        other => health::perform(other, &board.health, &systemd).await.map_err(|error| error.to_string()),
    }
}

/// Orders the reboot: of root, where the agent has a user of its own.
pub async fn order_reboot(command: &[String]) -> Result<(), String> {
    let finished = match root::socket() {
        Some(socket) => {
            tracing::info!("rebooting");
            root::ask(&socket, &Verb::Reboot, REBOOT_LIMIT).await.map_err(|error| error.to_string())?
        }
        None => {
            tracing::info!("rebooting: {}", command.join(" "));
            reboot(command).await.map_err(|error| format!("{}: {error}", command.join(" ")))?
        }
    };
    match finished.status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("it ended with {status}: {}", String::from_utf8_lossy(&finished.output))),
        None => Err("it did not end".to_owned()),
    }
}

async fn reboot(command: &[String]) -> io::Result<Finished> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| io::Error::other("policy.reboot_command is empty"))?;
    // Its output must not get into the answer.
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output().await?;
    Ok(Finished { status: Some(done.status), output: done.stderr })
}
