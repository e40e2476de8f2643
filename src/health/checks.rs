//! The integrator's executables in `required.d` and `wanted.d`.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::{Context, EXCERPT_LIMIT, Failed, HealthError, PATH, command, excerpt};

/// One executable; its name is `required.d/10-network`.
#[derive(Debug)]
pub struct Check {
    pub name: String,
    path: PathBuf,
}

/// The checks of one folder in name order; none when it does not exist.
///
/// A file that can't be executed is an error: an integrator's slip must not pass for a check that passes.
/// Hidden files and editors' backups (`*~`) are not looked at.
pub fn list(dir: &Path) -> Vec<Result<Check, HealthError>> {
    let folder = |source| HealthError::Folder { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Err(folder(error))],
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let mut paths = match paths {
        Ok(paths) => paths,
        Err(error) => return vec![Err(folder(error))],
    };
    paths.retain(|path| !is_skipped(path));
    paths.sort();
    paths.into_iter().map(|path| check(dir, path)).collect()
}

fn is_skipped(path: &Path) -> bool {
    path.file_name().is_none_or(|name| {
        let name = name.to_string_lossy();
        name.starts_with('.') || name.ends_with('~')
    })
}

fn check(dir: &Path, path: PathBuf) -> Result<Check, HealthError> {
    let executable =
        std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if !executable {
        return Err(HealthError::NotExecutable { path });
    }
    let part = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Check { name: format!("{}/{}", part(dir), part(&path)), path })
}

/// Runs one check with a clean environment; it passes by exit code 0 within `limit`.
pub async fn run(check: &Check, limit: Duration, context: &Context) -> Result<(), Failed> {
    let finished = match command::run(prepare(check, limit, context), limit, EXCERPT_LIMIT).await {
        Ok(finished) => finished,
        Err(source) => {
            return Err(Failed::error(&check.name, &HealthError::Start { path: check.path.clone(), source }));
        }
    };
    let why = match finished.status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("it ended with {status}"),
        None => format!("it took longer than {} s and was killed", limit.as_secs_f32()),
    };
    Err(Failed::new(&check.name, why, excerpt(&finished.output)))
}

fn prepare(check: &Check, limit: Duration, context: &Context) -> Command {
    let slot = context.slot.to_string();
    let variables = [
        ("FWUPDATE_SLOT", slot.as_str()),
        ("FWUPDATE_VERSION", context.version.as_str()),
        ("FWUPDATE_OPERATION", context.operation.as_str()),
    ];
    let Some(systemd_run) = &context.systemd.systemd_run else {
        let mut command = Command::new(&check.path);
        command.env_clear().env("PATH", PATH).envs(variables).current_dir("/");
        return command;
    };
    in_unit(systemd_run, check, limit, &variables)
}

/// The check in a transient unit: what is forbidden to the agent does not bind the integrator's code. The unit
/// ends with the agent; killing systemd-run alone does not end it, so that it has a time limit of its own.
fn in_unit(systemd_run: &Path, check: &Check, limit: Duration, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(systemd_run);
    command
        .args(["--quiet", "--collect", "--wait", "--pipe", "--service-type=exec"])
        .arg(format!("--description=Health check {} of a firmware trial", check.name))
        .arg(format!("--property=RuntimeMaxSec={}ms", limit.as_millis()))
        .args(["--property=KillSignal=SIGKILL", "--property=WorkingDirectory=/"])
        .arg("--property=BindsTo=fwupdate.service")
        .arg(format!("--setenv=PATH={PATH}"))
        .args(variables.iter().map(|(name, value)| format!("--setenv={name}={value}")))
        .arg("--")
        .arg(&check.path);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", PATH);
    }
    command
}
