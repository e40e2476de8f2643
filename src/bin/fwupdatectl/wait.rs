//! `--wait`: follow one operation to its outcome, also across restarts of the agent.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use fwupdate::cli::screen::{Screen, Style};
use fwupdate::control::{Client, ClientError, Method};
use serde_json::Value;

use crate::error::Error;

/// How long an agent that went away may take to come back.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Before each attempt to reach it: one that takes connections and closes them is not asked without a pause.
const RETRY: Duration = Duration::from_millis(250);

/// What is followed, and how.
#[derive(Debug)]
pub struct OperationWatch<'a> {
    pub socket: &'a Path,
    pub id: &'a str,
    pub style: Style,
    pub patience: Duration,
}

impl OperationWatch<'_> {
    /// Shows progress until the operation is over; its `fwupdate.last`.
    pub fn until_done(&self, client: Client, out: &mut impl Write) -> Result<Value, Error> {
        let mut screen = Screen::new(self.style);
        let mut stream = client.watch()?;
        loop {
            match self.follow(stream, &mut screen, out) {
                Ok(last) => {
                    screen.finish(&last, out)?;
                    return Ok(last);
                }
                Err(Error::Client(ClientError::Unreachable { .. } | ClientError::Closed)) => {
                    screen.note("the agent restarts", out)?;
                    stream = self.reconnect()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn follow(&self, mut stream: Client, screen: &mut Screen, out: &mut impl Write) -> Result<Value, Error> {
        loop {
            let document = stream.receive()?;
            let running = self.is_ours(&document, "/fwupdate/operation");
            if !running && self.is_ours(&document, "/fwupdate/last") {
                return Ok(document.pointer("/fwupdate/last").cloned().unwrap_or_default());
            }
            if !running {
                return self.of_history();
            }
            screen.draw(&document, "", out)?;
        }
    }

    /// The outcome of an operation that neither runs nor was the last: another one followed it already, or it never
    /// was.
    fn of_history(&self) -> Result<Value, Error> {
        let answer = Client::connect(self.socket)?.call(Method::History, Value::Null)?;
        let all = answer.get("history").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let ours = |last: &&Value| last.get("id").and_then(Value::as_str) == Some(self.id);
        all.iter().find(ours).cloned().ok_or_else(|| Error::LostTrack(self.id.to_owned()))
    }

    fn is_ours(&self, document: &Value, pointer: &str) -> bool {
        document.pointer(pointer).and_then(|o| o.get("id")).and_then(Value::as_str) == Some(self.id)
    }

    fn reconnect(&self) -> Result<Client, ClientError> {
        let since = Instant::now();
        loop {
            std::thread::sleep(RETRY);
            match Client::connect(self.socket).and_then(Client::watch) {
                Err(ClientError::Unreachable { .. }) if since.elapsed() < self.patience => {}
                other => return other,
            }
        }
    }
}
