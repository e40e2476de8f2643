//! What the machine itself must be able to do: reboot, and notice that it hangs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::subject::{Answer, Subject};
use crate::health::PATH;

/// Without a reboot no image is ever tried.
pub(super) fn reboot_command(subject: &Subject) -> Option<Answer> {
    let program = subject.gateway.settings.policy.reboot_command.first()?;
    let path = std::env::var("PATH").unwrap_or_else(|_| PATH.to_owned());
    let found = if program.contains('/') {
        is_executable(Path::new(program))
    } else {
        path.split(':').any(|folder| is_executable(&PathBuf::from(folder).join(program)))
    };
    let why = format!(
        "{program} of policy.reboot_command is not there or can't be run: an update would never get to its \
         trial; correct the command, or install the program"
    );
    Some(Answer::of("the program is there", found.then_some(()).ok_or(why)))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A kernel that hangs on a trial is reset by nothing else.
pub(super) fn watchdog(subject: &Subject) -> Option<Answer> {
    let class = subject.gateway.settings.system.sys.join("class/watchdog");
    let found: Vec<PathBuf> =
        std::fs::read_dir(class).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let state = |path: &PathBuf| std::fs::read_to_string(path.join("state")).unwrap_or_default();
    let idle = found.iter().all(|path| state(path).trim() == "inactive");
    let doubt = match found.is_empty() {
        true => {
            Some("none: a kernel that hangs, on a trial too, is not reset; see docs/watchdog.md".to_owned())
        }
        false if idle => Some(
            "nothing feeds it: set RuntimeWatchdogSec= in systemd's system.conf, as docs/watchdog.md has it"
                .to_owned(),
        ),
        false => None,
    };
    Some(Answer::doubt("present", doubt))
}
