//! `fwupdate-vm`: runs the packaged agent on a virtual gateway and cuts its power.
//!
//! QEMU emulates the machine: U-Boot or OVMF and GRUB with our boot scripts, Debian's kernel, systemd, and the
//! agent from its .deb. The hub is the stand-in, in this process. Everything that waits, waits for a condition.

mod chip;
mod disklog;
mod environment;
mod examine;
mod failures;
mod images;
mod machine;
mod powercut;
mod replay;
mod sandbox;
mod site;
mod story;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use images::{Bootloader, Workshop};

/// A virtual gateway with real firmware, bootloader, kernel and systemd.
#[derive(Debug, Parser)]
struct Args {
    /// Where images are made and kept.
    #[arg(long, global = true, default_value = "target/vm")]
    dir: PathBuf,
    /// The agent's package.
    #[arg(long, global = true, default_value = "target/debian/fwupdate-agent.deb")]
    deb: PathBuf,
    #[arg(long, global = true, value_enum, default_value = "uboot")]
    bootloader: Bootloader,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Update A to B to A, each with another root and another kernel.
    Story,
    /// Updates that must end in the old slot, and say why.
    Failures {
        /// Only those whose name holds this text.
        #[arg(default_value = "")]
        only: String,
    },
    /// A boot environment that is torn, lost or cannot be written; a proven slot without kernel.
    Environment,
    /// Try, from inside the agent's sandbox, what a process that was taken over would try.
    Sandbox,
    /// Log in by a key in a TPM, also after an update, and try from inside the sandbox which devices it opens.
    Token,
    /// Replay every write of one update to prefixes, and examine the disk after each.
    Replay {
        #[arg(long, default_value_t = 1000)]
        prefixes: usize,
        /// How many of the examined disks are booted.
        #[arg(long, default_value_t = 6)]
        boots: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Cut the power at random instants over whole updates.
    PowerCut {
        #[arg(long, default_value_t = 6)]
        cuts: usize,
        /// The first run's seed; each further run counts up.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Put the table of the results into this file, between this bootloader's markers.
        #[arg(long)]
        table: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).init();
    // An interrupted run takes its machine with it: the future that owns it is dropped.
    let ended = tokio::select! {
        ended = run(Args::parse()) => ended,
        signal = interrupted() => Err(signal.map_or_else(Into::into, |()| anyhow::anyhow!("interrupted"))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fwupdate-vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupt = tokio::signal::ctrl_c() => interrupt,
        _ = terminate.recv() => Ok(()),
    }
}

async fn run(args: Args) -> Result<()> {
    let workshop = Workshop::new(&args.dir, &args.deb, args.bootloader)?;
    match args.what {
        What::Story => story::run(&workshop).await,
        What::Failures { only } => failures::run(&workshop, &only).await,
        What::Sandbox => sandbox::run(&workshop).await,
        What::Token => token::run(&workshop).await,
        What::Environment => environment::run(&workshop).await,
        What::Replay { prefixes, boots, seed } => replay::run(&workshop, prefixes, boots, seed).await,
        What::PowerCut { cuts, seed, table } => powercut::run(&workshop, cuts, seed, table.as_deref()).await,
    }
}
