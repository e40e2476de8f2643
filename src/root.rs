//! What root does for the agent: a few fixed verbs, asked over a socket that systemd listens on.
//!
//! The agent has a user of its own and no capability. Each connection starts `fwupdate-root@.service`, which reads one
//! verb, judges it by the settings that root owns, and acts. A verb names what is to be done and never how.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::slot::Slot;

/// Set by `fwupdate.service`: the path of the socket. Without it the agent is no such service and does all by itself.
const VARIABLE: &str = "FWUPDATE_ROOT";
/// Longest request, bytes.
const REQUEST_LIMIT: u64 = 8 * 1024;
/// Longest answer, bytes: the list of all units of any machine, and its escapes.
const ANSWER_LIMIT: u64 = 4 << 20;
/// How long root's side may take beyond the time of what it does.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest text that is handed on to a check.
const TEXT_LIMIT: usize = 512;

/// What can be asked of root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Verb {
    /// Run the integrator's check of that name, such as `required.d/10-network`.
    Check(RootCheck),
    FailedUnits,
    /// Tell whether the unit is active.
    UnitState(String),
    /// Tell what the journal says of a unit that failed or that is a health check.
    UnitStatus(String),
    /// Start `boot-complete.target`.
    BootComplete,
    Reboot,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootCheck {
    pub name: String,
    pub slot: Slot,
    pub version: String,
    pub operation: String,
}

impl RootCheck {
    /// The variables that a check finds in its environment.
    pub fn variables(&self) -> [(&'static str, String); 3] {
        [
            ("FWUPDATE_SLOT", self.slot.to_string()),
            ("FWUPDATE_VERSION", self.version.clone()),
            ("FWUPDATE_OPERATION", self.operation.clone()),
        ]
    }

    /// Whether the texts can be handed to a program of root's.
    fn is_plain(&self) -> bool {
        [&self.name, &self.version, &self.operation]
            .iter()
            .all(|text| text.len() <= TEXT_LIMIT && !text.chars().any(char::is_control))
    }
}

/// How a command ended, with the end of its output (stdout and stderr, in the order written).
#[derive(Debug)]
pub struct Finished {
    /// `None`: it ran out of time and was killed.
    pub status: Option<ExitStatus>,
    pub output: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RootAnswer {
    Finished { status: Option<i32>, output: String },
    Refused(String),
}

/// Why root did not do it.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("{0}")]
    Refused(String),
    #[error("{} gives no answer: {source}; see `systemctl status fwupdate-root.socket`", socket.display())]
    NoAnswer { socket: PathBuf, source: io::Error },
}

/// Where root is asked; `None`: nowhere, the agent is no service with a user of its own.
pub fn socket() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Asks root, and waits until it is done, which may take `limit`. Dropping the future ends what root does.
pub async fn ask(socket: &Path, verb: &Verb, limit: Duration) -> Result<Finished, RootError> {
    let no_answer = |source| RootError::NoAnswer { socket: socket.to_owned(), source };
    let answer = timeout(limit.saturating_add(PATIENCE), exchange(socket, verb));
    let answer = answer.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(no_answer)?;
    match answer {
        RootAnswer::Finished { status, output } => {
            Ok(Finished { status: status.map(ExitStatus::from_raw), output: output.into_bytes() })
        }
        RootAnswer::Refused(why) => Err(RootError::Refused(why)),
    }
}

async fn exchange(socket: &Path, verb: &Verb) -> io::Result<RootAnswer> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut line = serde_json::to_vec(verb)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer).await?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Root's side: reads the verb that comes over `stream`, lets `act` do it, and answers. What `act` does ends when the
/// agent closes the connection.
pub async fn serve<F>(stream: UnixStream, act: impl FnOnce(Verb) -> F) -> io::Result<()>
where
    F: Future<Output = Result<Finished, String>>,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let verb = timeout(PATIENCE, read(&mut reader)).await??;
    let mut byte = [0];
    let answer = match verb {
        Err(why) => RootAnswer::Refused(why),
        Ok(verb) => tokio::select! {
            done = act(verb) => match done {
                Ok(Finished { status, output }) => RootAnswer::Finished {
                    status: status.map(|status| status.into_raw()),
                    output: String::from_utf8_lossy(&output).into_owned(),
                },
                Err(why) => RootAnswer::Refused(why),
            },
            // The agent has nothing more to say: it is gone, or means no good.
            ended = reader.read(&mut byte) => return ended.map(drop),
        },
    };
    writer.write_all(&serde_json::to_vec(&answer)?).await
}

async fn read(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<Result<Verb, String>> {
    use tokio::io::AsyncBufReadExt;
    let mut line = Vec::new();
    reader.take(REQUEST_LIMIT).read_until(b'\n', &mut line).await?;
    let verb = match serde_json::from_slice(&line) {
        Ok(verb) => verb,
        Err(error) => return Ok(Err(format!("this is no verb: {error}"))),
    };
    Ok(match &verb {
        Verb::Check(check) if !check.is_plain() => {
            Err("a text of the check is too long, or no plain text".to_owned())
        }
        _ => Ok(verb),
    })
}
