//! `fwupdate-bundle`: makes, signs, shows and checks bundles on the build host.
//!
//! This file reads the command line and turns a result into output and exit code; each command has its own
//! file. Signing lives here and not in the library: a device never carries it.

mod check;
mod content;
mod create;
mod detached;
mod encoder;
mod estimate;
mod files;
mod held;
mod keys;
mod output;
mod pack;
mod patch;
mod progress;
mod reader;
mod sequences;
mod similar;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fwupdate::cli::{plain, usage};
use fwupdate::failure::{Code, Failure};

use crate::output::{Output, Result};

/// Makes, signs, shows and checks firmware bundles.
#[derive(Debug, Parser)]
#[command(name = "fwupdate-bundle", version)]
struct Args {
    /// Print JSON; errors, too.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a signing key: release.key.pem (keep it secret) and release.pub.pem (put it on the devices).
    Keygen {
        /// Folder for the two files; made if it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[arg(long, value_enum, default_value = "ed25519")]
        algorithm: keys::KeyKind,
    },
    /// Pack and sign a file-system image.
    Create(create::CreateOptions),
    /// Show what a bundle says of itself; signatures are not checked.
    Inspect { bundle: PathBuf },
    /// Check signatures, indexes, every chunk and the whole image.
    Verify {
        bundle: PathBuf,
        /// Folder of trusted public keys (*.pem), or one such file.
        #[arg(long)]
        keys: PathBuf,
        /// Valid signatures needed, from different keys.
        #[arg(long, default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
        required: u16,
        /// An old image that the bundle has a patch from: checks that patch too. May be repeated.
        #[arg(long, value_name = "OLD.img")]
        base: Vec<PathBuf>,
    },
    /// Print the SHA-256 of manifest.json, which an HSM signs for ECDSA.
    Digest {
        bundle: PathBuf,
        /// Also write manifest.json itself here: the message that Ed25519 signs.
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
    },
    /// Add a signature: by a key that is here, or one that was made elsewhere.
    Sign {
        bundle: PathBuf,
        /// Private key in PEM, or in a token: a pkcs11: URI of a key on P-256.
        #[arg(long, value_name = "KEY", required_unless_present = "signature", conflicts_with_all = ["signature", "public_key"])]
        key: Option<PathBuf>,
        /// Ed25519: 64 bytes. ECDSA P-256: DER, or r and s as 64 bytes.
        #[arg(long, value_name = "FILE", requires = "public_key")]
        signature: Option<PathBuf>,
        #[arg(long, value_name = "PUB.pem", requires = "signature")]
        public_key: Option<PathBuf>,
    },
    /// Tell how much an update from OLD to NEW will download.
    Estimate {
        /// A bundle, or the plain image.
        old: PathBuf,
        /// A bundle.
        new: PathBuf,
    },
}

fn main() -> ExitCode {
    usage::start("1", perform)
}

fn perform(args: Args) -> ExitCode {
    if let Some(missing) = missing(&args.command) {
        tell(&Failure::new(Code::MalformedRequest, missing), args.json);
        return usage::USAGE.into();
    }
    match run(args.command).and_then(|answer| print(&answer, args.json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, args.json),
    }
}

/// What has no default, and deserves more words than its name.
fn missing(command: &Command) -> Option<&'static str> {
    match command {
        Command::Create(options) if options.security_version.is_none() => Some(
            "--security-version is missing: a number that never falls from release to release. Begin with 1, keep it, \
             and raise it with a release that closes a hole which older ones have: a gateway that committed it takes \
             none below",
        ),
        _ => None,
    }
}

fn run(command: Command) -> Result<Output> {
    match command {
        Command::Keygen { out, algorithm } => keys::generate(&out, algorithm),
        Command::Create(options) => create::create(&options),
        Command::Inspect { bundle } => check::inspect(&bundle),
        Command::Verify { bundle, keys, required, base } => {
            check::verify(&bundle, &keys, required.into(), &base)
        }
        Command::Digest { bundle, manifest } => detached::digest(&bundle, manifest.as_deref()),
        Command::Sign { bundle, signature: Some(signature), public_key: Some(public_key), .. } => {
            detached::attach(&bundle, &signature, &public_key)
        }
        Command::Sign { bundle, key, .. } => detached::sign(&bundle, &key.unwrap_or_default()),
        Command::Estimate { old, new } => estimate::estimate(&old, &new),
    }
}

fn print(answer: &Output, json: bool) -> Result<()> {
    usage::print(&match json {
        true => plain::json_lines(&answer.json),
        false => plain::lines(answer.text.trim_end()) + "\n",
    })
    .map_err(|error| Failure::new(Code::Internal, format!("the output cannot be written: {error}")))
}

/// Tells the failure and picks the exit code: 3 for what policy, signature or board forbid, else 1.
fn fail(failure: &Failure, json: bool) -> ExitCode {
    tell(failure, json);
    match failure.code {
        Code::UntrustedSignature | Code::WrongBoard | Code::NotPermitted | Code::Downgrade => {
            ExitCode::from(3)
        }
        _ => ExitCode::FAILURE,
    }
}

fn tell(failure: &Failure, json: bool) {
    usage::tell(&match json {
        true => usage::error_json(&failure.code.to_string(), &failure.message),
        false => usage::error_sentence("fwupdate-bundle", &failure.message),
    });
}
