//! Man pages and shell completions from the programs' own command definitions, so that they cannot differ. Only in
//! builds with the feature `pages`, which `packaging/pages.sh` makes; shipped programs do not carry this.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

/// Where the pages go; unset, the program does its usual work.
const FOLDER: &str = "FWUPDATE_PAGES";

/// Writes the pages of the program `C`, in this section of the manual, if the environment asks for them; whether
/// it did. Errors: the folder cannot be written.
pub fn write<C: CommandFactory>(section: &str) -> io::Result<bool> {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return Ok(false) };
    let mut command = C::command();
    command.build();
    let name = command.get_name().to_owned();
    let man = folder.join(format!("man{section}"));
    fs::create_dir_all(&man)?;
    page(&command, &name, section, &man)?;
    for (shell, sub, file) in [(Shell::Bash, "bash", name.clone()), (Shell::Zsh, "zsh", format!("_{name}"))] {
        fs::create_dir_all(folder.join(sub))?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut C::command(), &name, &mut script);
        fs::write(folder.join(sub).join(file), script)?;
    }
    Ok(true)
}

/// The page of `command`, and one for each command below it.
fn page(command: &Command, name: &str, section: &str, folder: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    // clap wants names that live for ever; this process writes its pages and ends.
    let forever: &'static str = name.to_owned().leak();
    let named = command.clone().name(forever).display_name(forever);
    clap_mangen::Man::new(named.disable_help_subcommand(true)).section(section).render(&mut text)?;
    fs::write(folder.join(format!("{name}.{section}")), text)?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
    {
        page(below, &format!("{name}-{}", below.get_name()), section, folder)?;
    }
    Ok(())
}
