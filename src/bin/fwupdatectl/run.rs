//! One command from request to exit code.

use std::io::{self, IsTerminal, Write};

use fwupdate::cli::screen::{Screen, Style};
use fwupdate::cli::{plain, show};
use fwupdate::control::{Client, ClientError};
use fwupdate::failure::{Code, Failure};
use serde_json::Value;

use crate::args::{Args, Command, Follow};
use crate::error::Error;
use crate::{offline, wait};

/// Does what `args` say; the exit code when that was no error.
pub fn run(args: &Args, out: &mut impl Write) -> Result<u8, Error> {
    // Of a folder that is gone no relative name leads anywhere, and all else works.
    let folder = std::env::current_dir().unwrap_or_default();
    args.command.check(&folder).map_err(ClientError::Refused)?;
    let mut client = match Client::connect(&args.socket) {
        Err(error @ ClientError::Unreachable { .. }) => return unreachable(args, error, out),
        connected => connected?,
    };
    let (method, params) = args.command.request(&folder);
    let answer = client.call(method, params)?;
    match args.command.follow() {
        Some(follow) => act(args, follow, client, &answer, out),
        None => read(&args.command, args.json, &answer, out),
    }
}

/// Without the agent, doctor asks its questions all the same; nothing else can be done.
fn unreachable(args: &Args, error: ClientError, out: &mut impl Write) -> Result<u8, Error> {
    match &args.command {
        Command::Doctor(doctor) => match offline::examine(doctor.config.as_deref()) {
            Some(found) => read(&args.command, args.json, &found, out),
            None => Err(error.into()),
        },
        _ => Err(error.into()),
    }
}

fn read(command: &Command, json: bool, answer: &Value, out: &mut impl Write) -> Result<u8, Error> {
    let text = match command {
        _ if json => plain::json_lines(answer),
        Command::History => show::history(answer),
        Command::Slots => show::slots(answer),
        Command::Doctor(_) => show::doctor(answer),
        _ => show::status(answer),
    };
    out.write_all(text.as_bytes())?;
    Ok(u8::from(matches!(command, Command::Doctor(_)) && !show::is_well(answer)))
}

fn act(
    args: &Args,
    follow: &Follow,
    client: Client,
    answer: &Value,
    out: &mut impl Write,
) -> Result<u8, Error> {
    let style = Style::of(args.json, io::stdout().is_terminal());
    let wanted = if matches!(args.command, Command::Cancel(_)) { "cancelled" } else { "committed" };
    if let Some(last) = answer.get("last") {
        // The operation of this id ended before the call, which began nothing.
        Screen::new(style).finish(last, out)?;
        return verdict(last, wanted);
    }
    let id = answer.get("operationId").and_then(Value::as_str);
    if !follow.wait {
        let name = id.map(|id| format!(" (operation {})", plain::plain(id))).unwrap_or_default();
        let text = if args.json { plain::json_lines(answer) } else { format!("Accepted{name}.\n") };
        out.write_all(text.as_bytes())?;
        return Ok(0);
    }
    let id = id.ok_or(Error::NothingToWaitFor)?;
    let watch = wait::OperationWatch { socket: &args.socket, id, style, patience: wait::PATIENCE };
    verdict(&watch.until_done(client, out)?, wanted)
}

/// Success when the operation came to what was wanted.
fn verdict(last: &Value, wanted: &str) -> Result<u8, Error> {
    let result = last.get("result").and_then(Value::as_str).unwrap_or("unknown");
    if result == wanted {
        return Ok(0);
    }
    let failure = last.get("error").and_then(|e| serde_json::from_value::<Failure>(e.clone()).ok());
    Err(Error::Outcome(failure.unwrap_or_else(|| {
        let code = if result == "cancelled" { Code::Cancelled } else { Code::Internal };
        Failure::new(code, format!("the update ended as {result}; see `fwupdatectl history`"))
    })))
}

#[cfg(test)]
mod tests;
