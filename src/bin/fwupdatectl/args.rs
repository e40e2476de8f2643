//! The command line, and the request that each command becomes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand};
use fwupdate::cli::update::UpdateOptions;
use fwupdate::control::Method;
use fwupdate::failure::{Code, Failure};
use fwupdate::uri::PackageUri;
use serde_json::Value;

/// Controls the firmware update agent of this gateway.
#[derive(Debug, Parser)]
#[command(name = "fwupdatectl", version)]
pub struct Args {
    /// The agent's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/fwupdate/control.sock")]
    pub socket: PathBuf,
    /// Print JSON: the answer, or with --wait each status as one line; errors, too.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the gateway runs and what it is doing.
    Status,
    /// Install a bundle from an https URL or a local file.
    Install(Install),
    /// Cancel the running update; possible until the bootloader is armed.
    Cancel(ActArgs),
    /// Let a held update go on.
    Approve(ActArgs),
    /// Put the reboot of the running update off.
    Defer(Defer),
    /// Go back to the other proven slot.
    Rollback(ActArgs),
    /// List the updates of the past.
    History,
    /// Show both slots.
    Slots,
    /// Look for faults that would spoil an update; exit code 1 when there are any.
    Doctor(Doctor),
}

#[derive(Debug, ClapArgs)]
pub struct Doctor {
    /// The settings file of an agent that does not run, instead of /etc/fwupdate.toml and the other system layers.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct ActArgs {
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
}

#[derive(Debug, ClapArgs)]
pub struct Defer {
    /// Not before this time (RFC 3339, such as 2030-01-31T22:00:00Z).
    #[arg(long, value_name = "TIME")]
    until: String,
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Debug, ClapArgs)]
pub struct Install {
    /// URL or file of a bundle.
    #[arg(value_name = "URL or FILE")]
    source: String,
    #[command(flatten)]
    options: UpdateOptions,
    #[command(flatten)]
    follow: Follow,
}

impl Command {
    /// What the agent is asked; `folder` is where a relative file name starts.
    pub fn request(&self, folder: &Path) -> (Method, Value) {
        match self {
            Command::Status => (Method::Status, Value::Null),
            Command::Install(install) => (Method::Install, install.params(folder)),
            Command::Cancel(act) => (Method::Cancel, act.params()),
            Command::Approve(act) => (Method::Approve, act.params()),
            Command::Defer(Defer { until, act }) => {
                (Method::Defer, params([("until", Some(until)), ("operationId", act.operation_id.as_ref())]))
            }
            Command::Rollback(act) => (Method::Rollback, act.params()),
            Command::History => (Method::History, Value::Null),
            Command::Slots => (Method::Slots, Value::Null),
            Command::Doctor(_) => (Method::Doctor, Value::Null),
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

    /// Refuses what cannot be meant, before the agent is asked.
    pub fn check(&self, folder: &Path) -> Result<(), Failure> {
        match self {
            Command::Install(install) => install.check(folder),
            _ => Ok(()),
        }
    }
}

impl ActArgs {
    fn params(&self) -> Value {
        params([("operationId", self.operation_id.as_ref())])
    }
}

impl Install {
    fn check(&self, folder: &Path) -> Result<(), Failure> {
        let shown = PackageUri::from(self.source.as_str()).shown();
        let refused = |code, message| Err(Failure::new(code, message));
        if let Some((scheme, _)) = self.source.split_once("://") {
            let message =
                format!("{shown} is no https URL; a bundle that is a file is named by its path alone");
            let secure = scheme.eq_ignore_ascii_case("https");
            return if secure { Ok(()) } else { refused(Code::MalformedRequest, message) };
        }
        match std::fs::metadata(folder.join(&self.source)) {
            Ok(found) if found.is_file() => Ok(()),
            Ok(found) if found.is_dir() => {
                refused(Code::MalformedRequest, format!("{shown} is a folder; name the bundle in it"))
            }
            Ok(_) => {
                refused(Code::MalformedRequest, format!("{shown} is no regular file; copy the bundle to one"))
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            Err(error) => {
                let message = format!("there is no bundle {shown} ({error}); a URL begins with https://");
                refused(Code::NotFound, message)
            }
        }
    }

    fn params(&self, folder: &Path) -> Value {
        let mut params = self.options.fields();
        let (name, bundle) = match self.source.contains("://") {
            true => ("fwPackageUri", self.source.clone()),
            false => ("file", folder.join(&self.source).display().to_string()),
        };
        params.insert(name.to_owned(), bundle.into());
        Value::Object(params)
    }
}

/// What is given, by its names.
fn params<const N: usize>(given: [(&str, Option<&String>); N]) -> Value {
    let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.clone().into())));
    Value::Object(given.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn params(line: &str) -> Value {
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        args.command.request(Path::new("/home/me")).1
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
    fn every_command_takes_json_in_any_place_and_every_action_wait() {
        for read in ["status", "history", "slots", "doctor"] {
            for line in [format!("fwupdatectl {read} --json"), format!("fwupdatectl --json {read}")] {
                let args = Args::try_parse_from(line.split(' ')).unwrap();
                assert!(args.json && args.command.follow().is_none());
            }
        }
        for action in ["install x", "cancel", "approve", "defer --until x", "rollback"] {
            let line = format!("fwupdatectl {action} --wait --json --socket /s");
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert!(args.json && args.command.follow().is_some_and(|f| f.wait), "{action}");
        }
    }

    #[test]
    fn what_is_no_bundle_is_not_even_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("good.fwb"), "x").unwrap();
        std::fs::create_dir(folder.path().join("dir")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let check = |source: &str| {
            let args = Args::try_parse_from(["fwupdatectl", "install", source]).unwrap();
            args.command.check(folder.path()).map_err(|refused| (refused.code, refused.message))
        };
        assert_eq!(check("good.fwb"), Ok(()));
        assert_eq!(check("https://h/x.fwb?sig=s"), Ok(()));
        assert_eq!(check("HTTPS://h/x.fwb"), Ok(()));
        for (source, code, said) in [
            ("absent.fwb", Code::NotFound, "no bundle absent.fwb"),
            ("example.com/x.fwb", Code::NotFound, "a URL begins with https://"),
            ("https:/h/x.fwb", Code::NotFound, "a URL begins with https://"),
            ("", Code::MalformedRequest, "folder"),
            ("dir", Code::MalformedRequest, "dir is a folder"),
            ("fifo", Code::MalformedRequest, "no regular file"),
            ("http://me:secret@h/x", Code::MalformedRequest, "http://h/x is no https URL"),
            ("ftp://h/x", Code::MalformedRequest, "no https URL"),
            ("file:///good.fwb", Code::MalformedRequest, "by its path alone"),
            ("me:secret@h/x?sig=secret", Code::NotFound, "no bundle"),
        ] {
            let (told, message) = check(source).unwrap_err();
            assert!(told == code && message.contains(said), "{source}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
