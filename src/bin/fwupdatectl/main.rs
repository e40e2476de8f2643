//! `fwupdatectl`: what an engineer at the gateway asks of the agent, and orders it to do.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 the agent cannot be reached. Errors are one sentence on
//! stderr, or `{"error":{"code","message"}}` with `--json`.

mod args;
mod error;
mod offline;
mod run;
mod wait;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use fwupdate::cli::usage;
use fwupdate::pkcs11;

fn main() -> ExitCode {
    // What the agent asks, and nobody else.
    if std::env::args_os().nth(1).is_some_and(|word| word == pkcs11::WORKER) {
        return if pkcs11::serve().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    usage::start("8", perform)
}

fn perform(args: args::Args) -> ExitCode {
    let mut stdout = std::io::stdout();
    match run::run(&args, &mut stdout).and_then(|code| Ok(stdout.flush().map(|()| code)?)) {
        Ok(code) => code.into(),
        // The reader of a pipe has seen enough.
        Err(error::Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            usage::tell(&if args.json { error.json() } else { error.sentence() });
            error.exit().into()
        }
    }
}
