//! The command line, and the request that each command becomes.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand};
use fwupdate::cli::update::Options;
use fwupdate::control::Method;
use serde_json::{Map, Value};

/// Controls the firmware update agent of this gateway.
#[derive(Debug, Parser)]
#[command(name = "fwupdatectl", version)]
pub struct Args {
    /// The agent's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/fwupdate/control.sock")]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the gateway runs and what it is doing.
    Status(Read),
    /// Install a bundle from an https URL or a local file.
    Install(Install),
    /// Cancel the running update; possible until the bootloader is armed.
    Cancel(Act),
    /// Let a held update go on.
    Approve(Act),
    /// Put the reboot of the running update off.
    Defer(Defer),
    /// Go back to the other proven slot.
    Rollback(Act),
    /// List the updates of the past.
    History(Read),
    /// Show both slots.
    Slots(Read),
    /// Look for faults that would spoil an update; exit code 1 when there are any.
    Doctor(Doctor),
}

#[derive(Debug, ClapArgs)]
pub struct Read {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Doctor {
    #[command(flatten)]
    pub read: Read,
    /// The settings file of an agent that does not run, instead of /etc/fwupdate.toml and the other system layers.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct Act {
    /// Only if this is the running operation.
    #[arg(long, value_name = "ID")]
    operation_id: Option<String>,
    #[command(flatten)]
    pub follow: Follow,
}

/// What every action has.
#[derive(Debug, ClapArgs)]
pub struct Follow {
    /// Show progress until the outcome is known; the exit code is the outcome's.
    #[arg(long)]
    pub wait: bool,
    /// Print JSON: the answer, or with --wait each status as one line.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Defer {
    /// Not before this time (RFC 3339, such as 2030-01-31T22:00:00Z).
    #[arg(long, value_name = "TIME")]
    until: String,
    #[command(flatten)]
    act: Act,
}

#[derive(Debug, ClapArgs)]
pub struct Install {
    /// URL or file of a bundle.
    #[arg(value_name = "URL or FILE")]
    source: String,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    follow: Follow,
}

impl Args {
    pub fn json(&self) -> bool {
        match self.command.read() {
            Some(read) => read.json,
            None => self.command.follow().is_some_and(|follow| follow.json),
        }
    }
}

impl Command {
    pub fn method(&self) -> Method {
        match self {
            Command::Status(_) => Method::Status,
            Command::Install(_) => Method::Install,
            Command::Cancel(_) => Method::Cancel,
            Command::Approve(_) => Method::Approve,
            Command::Defer(_) => Method::Defer,
            Command::Rollback(_) => Method::Rollback,
            Command::History(_) => Method::History,
            Command::Slots(_) => Method::Slots,
            Command::Doctor(_) => Method::Doctor,
        }
    }

    fn read(&self) -> Option<&Read> {
        match self {
            Command::Status(read) | Command::History(read) | Command::Slots(read) => Some(read),
            Command::Doctor(doctor) => Some(&doctor.read),
            _ => None,
        }
    }

    /// How an action is followed; `None` for commands that only read.
    pub fn follow(&self) -> Option<&Follow> {
        match self {
            Command::Install(install) => Some(&install.follow),
            Command::Defer(defer) => Some(&defer.act.follow),
            Command::Cancel(act) | Command::Approve(act) | Command::Rollback(act) => Some(&act.follow),
            _ => None,
        }
    }

    /// The request's params; `folder` is where a relative file name starts.
    pub fn params(&self, folder: &Path) -> Value {
        let mut params = Map::new();
        match self {
            Command::Install(install) => install.params(folder, &mut params),
            Command::Defer(defer) => {
                put(&mut params, "until", Some(&defer.until));
                put(&mut params, "operationId", defer.act.operation_id.as_ref());
            }
            Command::Cancel(act) | Command::Approve(act) | Command::Rollback(act) => {
                put(&mut params, "operationId", act.operation_id.as_ref());
            }
            _ => return Value::Null,
        }
        Value::Object(params)
    }
}

impl Install {
    fn params(&self, folder: &Path, params: &mut Map<String, Value>) {
        if self.source.contains("://") {
            put(params, "fwPackageUri", Some(&self.source));
        } else {
            let path = folder.join(&self.source);
            put(params, "file", Some(&path.display().to_string()));
        }
        params.extend(self.options.fields());
    }
}

fn put(params: &mut Map<String, Value>, name: &str, value: Option<&String>) {
    params.extend(value.map(|value| (name.to_owned(), value.clone().into())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn params(line: &str) -> Value {
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        args.command.params(Path::new("/home/me"))
    }

    #[test]
    fn install_becomes_a_firmware_update_payload() {
        let line =
            "fwupdatectl install https://h/x.fwb --version 1.5.0 --max-download-bytes 5 --force --wait";
        let expected = json!({"fwPackageUri": "https://h/x.fwb", "version": "1.5.0", "maxDownloadBytes": 5, "force": true});
        assert_eq!(params(line), expected);
        assert_eq!(params("fwupdatectl install x.fwb"), json!({"file": "/home/me/x.fwb"}));
        assert_eq!(params("fwupdatectl install /tmp/x.fwb"), json!({"file": "/tmp/x.fwb"}));
    }

    #[test]
    fn the_other_actions_carry_what_they_are_given() {
        assert_eq!(params("fwupdatectl cancel"), json!({}));
        assert_eq!(params("fwupdatectl approve --operation-id 7"), json!({"operationId": "7"}));
        let defer = params("fwupdatectl defer --until 2030-01-01T00:00:00Z");
        assert_eq!(defer, json!({"until": "2030-01-01T00:00:00Z"}));
        assert_eq!(params("fwupdatectl status"), Value::Null);
    }

    #[test]
    fn every_read_takes_json_and_every_action_wait() {
        for read in ["status", "history", "slots", "doctor"] {
            let args = Args::try_parse_from(["fwupdatectl", read, "--json"]).unwrap();
            assert!(args.json() && args.command.follow().is_none());
        }
        for action in ["install x", "cancel", "approve", "defer --until x", "rollback"] {
            let line = format!("fwupdatectl {action} --wait --json --socket /s");
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert!(args.json() && args.command.follow().is_some_and(|f| f.wait), "{action}");
        }
    }
}
