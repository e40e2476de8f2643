//! The process that a token's module runs in: `fwupdatectl token-key`, for one question and one answer, each a line of
//! JSON. Whatever the module does there, who asks has an answer or an error in time; and the agent, which lives on, holds
//! no code for tokens.

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::key::{Description, Scheme, TokenError};
use super::refused::{self, mark};
use super::token::TokenKey;
use super::uri::KeyUri;
use crate::programs;

/// What makes `fwupdatectl` the worker.
pub const WORKER: &str = "token-key";
/// Where packages put it.
const PROGRAM: &str = "/usr/bin/fwupdatectl";
/// A TPM signs in a second, also with a key of 4096 bits.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest question or answer, bytes.
const LIMIT: u64 = 256 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    uri: String,
    /// What to sign, and how; `None`: the key is described.
    sign: Option<(Scheme, Vec<u8>)>,
    /// The mark of the PIN that was refused last.
    refused: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Description(Description),
    Signature(Vec<u8>),
    /// Why there is none, and the mark of the PIN if the token refused it.
    Error(String, Option<String>),
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
    let answer = match question.uri.parse::<KeyUri>() {
        Ok(uri) => answer(&question, &uri).unwrap_or_else(|error| {
            let refused = matches!(error, TokenError::PinRefused { .. });
            Answer::Error(error.to_string(), mark(&uri).filter(|_| refused))
        }),
        Err(why) => Answer::Error(why, None),
    };
    io::stdout().write_all(serde_json::to_string(&answer)?.as_bytes())
}

fn answer(question: &Question, uri: &KeyUri) -> Result<Answer, TokenError> {
    // What stood there would be run by the agent, and would outlive both slots.
    let module = uri.module.as_deref().and_then(|module| module.canonicalize().ok());
    if let Some(place) = module.as_deref().and_then(|module| programs::foreign(module, &[0])) {
        return Err(TokenError::Module {
            path: uri.module().display().to_string(),
            cause: format!("{} is not root's alone", place.display()),
        });
    }
    if let (Some(file), true) = (uri.pin_file(), question.refused.is_some() && question.refused == mark(uri))
    {
        return Err(TokenError::PinRefused { file: file.display().to_string() });
    }
    let key = TokenKey::open(uri)?;
    match &question.sign {
        Some((scheme, message)) => key.sign(*scheme, message).map(Answer::Signature),
        None => Ok(Answer::Description(key.description().clone())),
    }
}

fn ask(uri: &KeyUri, sign: Option<(Scheme, Vec<u8>)>) -> Result<Answer, TokenError> {
    // One at a time: a wrong PIN is spent once.
    let mut refused = refused::last();
    let question = Question { uri: uri.to_string(), sign, refused: refused.mark.clone() };
    let question = serde_json::to_string(&question);
    let answered = question.map_err(io::Error::from).and_then(|question| run(&question));
    let answer = serde_json::from_str(&answered.map_err(|error| failed(&error.to_string()))?);
    match answer.map_err(|_| failed("its module ended without an answer"))? {
        Answer::Error(why, mark) => {
            mark.into_iter().for_each(|mark| refused.keep(mark));
            Err(TokenError::Told(why))
        }
        answer => Ok(answer),
    }
}

fn run(question: &str) -> io::Result<String> {
    let mut command = Command::new(programs::beside("fwupdatectl", PROGRAM));
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
