//! The process that a token's module runs in: `fwupdatectl token-key`, for one question and one answer, each a line of
//! JSON. Whatever the module does there, who asks has an answer or an error in time; and the agent, which lives on, holds
//! no code for tokens.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::key::{Description, Scheme, TokenError};
use super::token::TokenKey;
use super::uri::KeyUri;

/// What makes `fwupdatectl` the worker.
pub const WORKER: &str = "token-key";
/// Where packages put it.
const PROGRAM: &str = "/usr/bin/fwupdatectl";
/// A TPM signs in a second, also with a key of 4096 bits.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest question or answer, bytes.
const LIMIT: u64 = 256 * 1024;

/// A PIN that was refused, by the key and the time at which the PIN's file was written: it is not tried again.
static REFUSED: Mutex<Option<(String, Option<SystemTime>)>> = Mutex::new(None);

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    uri: String,
    /// What to sign, and how; `None`: the key is described.
    sign: Option<(Scheme, Vec<u8>)>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Description(Description),
    Signature(Vec<u8>),
    /// Why there is none, and whether the token refused the PIN.
    Error(String, bool),
}

/// What is known of the key. Blocks.
pub fn describe(uri: &KeyUri) -> Result<Description, TokenError> {
    match ask(uri, None)? {
        Answer::Description(description) => Ok(description),
        _ => Err(failed("it answered something else")),
    }
}

/// The signature of `message` by the key. Blocks.
pub fn sign(uri: &KeyUri, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, TokenError> {
    match ask(uri, Some((scheme, message.to_vec())))? {
        Answer::Signature(signature) => Ok(signature),
        _ => Err(failed("it answered something else")),
    }
}

/// The worker's part: answers the question on the standard input.
pub fn serve() -> io::Result<()> {
    let mut question = String::new();
    io::stdin().take(LIMIT).read_to_string(&mut question)?;
    let question: Question = serde_json::from_str(&question)?;
    let answer = answer(&question).unwrap_or_else(|error| {
        Answer::Error(error.to_string(), matches!(error, TokenError::PinRefused { .. }))
    });
    io::stdout().write_all(serde_json::to_string(&answer)?.as_bytes())
}

fn answer(question: &Question) -> Result<Answer, TokenError> {
    let uri: KeyUri = question.uri.parse().map_err(|why: String| failed(&why))?;
    if let Some(place) = uri.module.as_deref().and_then(foreign) {
        return Err(TokenError::Module {
            path: uri.module().display().to_string(),
            cause: format!("{} is not root's alone", place.display()),
        });
    }
    let key = TokenKey::open(&uri)?;
    match &question.sign {
        Some((scheme, message)) => key.sign(*scheme, message).map(Answer::Signature),
        None => Ok(Answer::Description(key.description().clone())),
    }
}

/// The file or folder on the way to the module that somebody else than root can write: what stood there would be run by
/// the agent, and would outlive both slots.
fn foreign(module: &Path) -> Option<PathBuf> {
    let real = module.canonicalize().ok()?;
    let is_roots = |place: &Path| {
        let meta = place.symlink_metadata();
        meta.is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0)
    };
    real.ancestors().find(|place| !is_roots(place)).map(Path::to_path_buf)
}

fn ask(uri: &KeyUri, sign: Option<(Scheme, Vec<u8>)>) -> Result<Answer, TokenError> {
    let written = uri.pin_file().and_then(|file| file.metadata().ok()?.modified().ok());
    let pin = (uri.to_string(), written);
    let mut refused = REFUSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let (Some(file), true) = (uri.pin_file(), refused.as_ref() == Some(&pin)) {
        return Err(TokenError::PinRefused { file: file.display().to_string() });
    }
    let question = serde_json::to_string(&Question { uri: uri.to_string(), sign });
    let answered = question.map_err(io::Error::from).and_then(|question| run(&question));
    let answer = serde_json::from_str(&answered.map_err(|error| failed(&error.to_string()))?);
    match answer.map_err(|_| failed("its module ended without an answer"))? {
        Answer::Error(why, pin_refused) => {
            *refused = pin_refused.then_some(pin).or(refused.take());
            Err(TokenError::Told(why))
        }
        answer => Ok(answer),
    }
}

fn run(question: &str) -> io::Result<String> {
    // The one beside this program, else the installed one.
    let beside = std::env::current_exe().ok().map(|path| path.with_file_name("fwupdatectl"));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| PROGRAM.into());
    let mut command = Command::new(program);
    command.arg(WORKER).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut worker = command.spawn()?;
    let answered = converse(&mut worker, question);
    if answered.is_err() {
        worker.kill()?;
    }
    worker.wait()?;
    answered
}

fn converse(worker: &mut Child, question: &str) -> io::Result<String> {
    let (Some(mut input), Some(output)) = (worker.stdin.take(), worker.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    input.write_all(question.as_bytes())?;
    drop(input);
    let (done, answer) = mpsc::channel();
    thread::Builder::new().name("token".to_owned()).spawn(move || {
        let mut text = String::new();
        let read = output.take(LIMIT).read_to_string(&mut text);
        // Who asked may have given up.
        done.send(read.map(|_| text)).ok();
    })?;
    let late = || io::Error::other(format!("its module does not answer within {} s", PATIENCE.as_secs()));
    answer.recv_timeout(PATIENCE).map_err(|_| late())?
}

fn failed(cause: &str) -> TokenError {
    TokenError::Failed { cause: cause.to_owned() }
}
