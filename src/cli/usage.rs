//! How a command line is read and how an error is told, alike in every program: the result goes to stdout; an error
//! goes to stderr, as one sentence, or with `--json` as one line `{"error":{"code","message"}}`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use serde_json::json;

use super::plain;

/// Exit code of a command line that cannot be understood.
pub const USAGE: u8 = 2;

/// What a program of this section of the manual makes of its command line, if there is sense in it and it asks for more
/// than help.
#[cfg_attr(not(feature = "pages"), allow(unused_variables, reason = "only pages are sorted into sections"))]
pub fn start<P: Parser>(section: &str, work: impl FnOnce(P) -> ExitCode) -> ExitCode {
    #[cfg(feature = "pages")]
    if matches!(crate::pages::write::<P>(section), Ok(true)) {
        return ExitCode::SUCCESS;
    }
    match P::try_parse() {
        Ok(args) => work(args),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A reader that went away has seen enough.
            error.print().unwrap_or_default();
            ExitCode::SUCCESS
        }
        Err(error) => {
            let wants_json = std::env::args_os().any(|word| word == "--json");
            tell(&refusal(&error.to_string(), wants_json));
            USAGE.into()
        }
    }
}

/// The words of a refused command line, which may come from anywhere.
fn refusal(why: &str, wants_json: bool) -> String {
    if !wants_json {
        return plain::lines(why.trim_end());
    }
    let words: Vec<_> = why.split_whitespace().collect();
    error_json("MalformedRequest", words.join(" ").trim_start_matches("error: "))
}

/// An error for scripts.
pub fn error_json(code: &str, message: &str) -> String {
    plain::json(&json!({"error": {"code": code, "message": message}}))
}

/// An error for people; `program` is who says it.
pub fn error_sentence(program: &str, message: &str) -> String {
    format!("{program}: {}", plain::plain(message))
}

/// Puts the result on stdout, now.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // The reader of a pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Puts a line on stderr.
pub fn tell(line: &str) {
    // Nobody is left to tell when stderr is closed too.
    drop(writeln!(io::stderr(), "{line}"));
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_refused_command_line_is_plain_and_can_be_json() {
        let why = "error: unexpected argument '\u{1b}[2J' found\n\nUsage: x\n";
        assert!(!refusal(why, false).contains('\u{1b}'));
        let told: Value = serde_json::from_str(&refusal(why, true)).unwrap();
        assert_eq!(told["error"]["code"], "MalformedRequest");
        assert_eq!(told["error"]["message"], "unexpected argument '\u{1b}[2J' found Usage: x");
    }
}
