//! The integrator's executables in `required.d` and `wanted.d`.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::process::Command;

use super::command::{self, PATH};
use super::context::Context;
use super::failed::{EXCERPT_LIMIT, Failed, HealthError, excerpt};
use crate::programs;
use crate::root::{self, Finished, Verb};

/// Below `health.checks_dir`: checks that must pass, and checks whose failures are only logged.
pub const REQUIRED: &str = "required.d";
pub const WANTED: &str = "wanted.d";

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
    let request = root::RootCheck {
        name: check.name.clone(),
        slot: context.slot,
        version: context.version.clone(),
        operation: context.operation.clone(),
    };
    let finished = match &context.systemd.root {
        Some(socket) => root::ask(socket, &Verb::Check(request), limit).await.map_err(HealthError::from),
        None => start(check, limit, &request).await,
    };
    let finished = finished.map_err(|error| Failed::error(&check.name, &error))?;
    let why = match finished.status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("it ended with {status}"),
        None => format!("it took longer than {} s and was killed", limit.as_secs_f32()),
    };
    Err(Failed::new(&check.name, why, excerpt(&finished.output)))
}

/// Runs it as a child of this process.
pub async fn start(
    check: &Check,
    limit: Duration,
    request: &root::RootCheck,
) -> Result<Finished, HealthError> {
    let mut command = Command::new(&check.path);
    command.env_clear().env("PATH", PATH).envs(request.variables()).current_dir("/");
    let started = command::run(command, limit, EXCERPT_LIMIT).await;
    started.map_err(|source| HealthError::Start { path: check.path.clone(), source })
}

/// The check of that name: a file in one of the two folders that nobody but root can have made or changed.
pub fn of_root(dir: &Path, name: &str) -> Result<Check, HealthError> {
    let refused = |why: &str| HealthError::Refused(format!("{name:?} {why}"));
    let (folder, file) = name.split_once('/').ok_or_else(|| refused("is no check"))?;
    let plain = !file.is_empty() && !file.starts_with('.') && !file.ends_with('~') && !file.contains('/');
    if !plain || ![REQUIRED, WANTED].contains(&folder) {
        return Err(refused("is no check"));
    }
    let path = dir.join(folder).join(file);
    let real = path.canonicalize().map_err(|source| HealthError::Folder { path, source })?;
    if let Some(place) = programs::foreign(&real, &[0, geteuid().as_raw()]) {
        return Err(refused(&format!(
            "is not run: others than root can change {0}; run `chown root {0}` and `chmod go-w {0}`",
            place.display()
        )));
    }
    check(&dir.join(folder), real).map(|check| Check { name: name.to_owned(), ..check })
}
