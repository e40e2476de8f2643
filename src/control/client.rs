//! The client's side of the control socket, blocking: what `fwupdatectl` uses.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::wire::{ControlAnswer, LINE_LIMIT, Method, Request};
use crate::failure::Failure;

/// Longer than the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(150);

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the agent cannot be reached at {}: {source}; is fwupdate.service running?", path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("you may not use {}; join the group fwupdate to read, become root to change", path.display())]
    Denied { path: PathBuf },
    #[error("the agent closed the connection; see `journalctl -u fwupdate`")]
    Closed,
    #[error("the agent's answer is not understood: {0}; do fwupdatectl and fwupdated have the same version?")]
    Garbled(String),
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: path.to_owned() },
            _ => ClientError::Unreachable { path: path.to_owned(), source },
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Client { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// Asks, and waits for the one answer.
    pub fn call(&mut self, method: Method, params: Value) -> Result<Value, ClientError> {
        self.send(&Request { method, params })?;
        self.receive()
    }

    /// Starts a stream of status documents; [`Client::receive`] gives them, for as long as they come.
    pub fn watch(mut self) -> Result<Client, ClientError> {
        self.send(&Request { method: Method::Watch, params: Value::Null })?;
        let unlimited = self.stream.get_ref().set_read_timeout(None);
        unlimited.map_err(|source| self.unreachable(source))?;
        Ok(self)
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(|e| ClientError::Garbled(e.to_string()))?;
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        sent.map_err(|source| self.unreachable(source))
    }

    /// The next answer.
    pub fn receive(&mut self) -> Result<Value, ClientError> {
        let mut line = Vec::new();
        let read = self.stream.by_ref().take(LINE_LIMIT as u64).read_until(b'\n', &mut line);
        read.map_err(|source| self.unreachable(source))?;
        if line.is_empty() {
            return Err(ClientError::Closed);
        }
        match serde_json::from_slice(&line).map_err(|e| ClientError::Garbled(e.to_string()))? {
            ControlAnswer::Result(value) => Ok(value),
            ControlAnswer::Error(failure) => Err(failure.into()),
        }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable { path: self.path.clone(), source }
    }
}
