//! `fwupdate-vm`: runs the packaged agent on a virtual gateway and cuts its power.
//!
//! QEMU emulates the machine: U-Boot or OVMF and GRUB with our boot scripts, Debian's kernel, systemd, and the
//! agent from its .deb. The hub is the stand-in, in this process. Everything that waits, waits for a condition.

mod disklog;
mod failures;
mod images;
mod machine;
mod powercut;
mod replay;
mod site;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
    /// Replay every write of one update to prefixes, and examine the disk after each.
    Replay {
        #[arg(long, default_value_t = 1000)]
        prefixes: usize,
        /// Use the log of the last run.
        #[arg(long)]
        again: bool,
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
        /// Append the table of the runs to this file.
        #[arg(long)]
        table: Option<PathBuf>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter("warn").with_writer(std::io::stderr).init();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fwupdate-vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let workshop = Workshop::new(&args.dir, &args.deb, args.bootloader)?;
    match args.what {
        What::Story => story::run(&workshop).await,
        What::Failures { only } => failures::run(&workshop, &only).await,
        What::Replay { prefixes, again, seed } => replay::run(&workshop, prefixes, seed, again).await,
        What::PowerCut { cuts, seed, table } => powercut::run(&workshop, cuts, seed, table.as_deref()).await,
    }
}
