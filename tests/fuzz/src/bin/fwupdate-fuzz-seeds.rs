//! Writes the seeds of every target to `FOLDER/TARGET/seed-N` and prints the targets' names, one a line.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("usage: fwupdate-fuzz-seeds FOLDER")?);
    for target in fwupdate_fuzz::TARGETS {
        let corpus = folder.join(target.name);
        fs::create_dir_all(&corpus).with_context(|| corpus.display().to_string())?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(corpus.join(format!("seed-{number}")), seed)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}
