//! The dead-man beside the health deadline: a verdict that would fall after the dead-man fired never falls.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::subject::{Answer, Subject};
use crate::config;

const TIMER: &str = "fwupdate-deadman.timer";
/// Where systemd looks for the timer and what overrides it, the strongest first (systemd.unit(5)).
const FOLDERS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
/// What a boot may take until the agent starts.
const BOOT: Duration = Duration::from_secs(120);

/// The verdict must fall before the dead-man reboots the trial.
pub(super) fn late_enough(subject: &Subject) -> Option<Answer> {
    let root = Path::new("/");
    if is_masked(root) {
        return Some(Answer::Doubt(format!(
            "{TIMER} is masked, so that nothing reboots a trial that nobody decides: run `systemctl unmask {TIMER}`"
        )));
    }
    let fires = uptime(root)?;
    let deadline = subject.gateway.settings.health.deadline;
    let needed = deadline.saturating_add(BOOT);
    let why = format!(
        "{TIMER} reboots a trial after {} s, and health.deadline is {} s from the agent's start: raise OnBootSec= in \
         a drop-in (docs/watchdog.md), or lower the deadline",
        fires.as_secs(),
        deadline.as_secs()
    );
    Some(Answer::of("later than the verdict", (needed <= fires).then_some(()).ok_or(why)))
}

/// systemd takes an empty file, or a link to /dev/null, for a unit that must not start.
fn is_masked(root: &Path) -> bool {
    let mut files = FOLDERS.iter().map(|folder| root.join(folder).join(TIMER));
    files.find_map(|file| fs::metadata(file).ok()).is_some_and(|found| found.len() == 0)
}

/// `OnBootSec=` of the timer with its drop-ins below `root`; `None`: it is not installed, or not understood.
fn uptime(root: &Path) -> Option<Duration> {
    let folders = FOLDERS.map(|folder| root.join(folder));
    let mut files = vec![folders.iter().map(|dir| dir.join(TIMER)).find(|file| file.exists())?];
    files.extend(drop_ins(&folders));
    let texts: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    let values: Vec<&str> = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| Some(line.trim().strip_prefix("OnBootSec=")?.trim()))
        .collect();
    // An empty value takes back those before it; of several the first to come fires.
    let since_reset = values.rsplit(|value| value.is_empty()).next().unwrap_or_default();
    since_reset.iter().filter_map(|value| config::duration(value)).min()
}

/// In the order of their names, whatever their folder; of one name, the one in the strongest folder.
fn drop_ins(folders: &[PathBuf]) -> Vec<PathBuf> {
    let entries = folders.iter().filter_map(|dir| fs::read_dir(dir.join(format!("{TIMER}.d"))).ok());
    let mut found: Vec<PathBuf> = entries.flatten().flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    found.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    found.dedup_by(|a, b| a.file_name() == b.file_name());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A machine with these files below its root.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_timer_fires_as_its_unit_and_its_drop_ins_say() {
        let shipped = include_str!("../../../systemd/fwupdate-deadman.timer");
        let unit = ("usr/lib/systemd/system/fwupdate-deadman.timer", shipped);
        let own = "etc/systemd/system/fwupdate-deadman.timer.d";
        let (later, more) = (format!("{own}/20-later.conf"), format!("{own}/30-more.conf"));
        let weaker = "lib/systemd/system/fwupdate-deadman.timer.d/20-later.conf";
        let reset = (later.as_str(), "[Timer]\nOnBootSec=\nOnBootSec=1h 30min\n");
        for (files, fires) in [
            (vec![], None),
            (vec![unit], Some(20 * MINUTE)),
            (vec![unit, (more.as_str(), "# OnBootSec=1s\nOnBootSec=300\n")], Some(5 * MINUTE)),
            (vec![unit, reset], Some(90 * MINUTE)),
            (vec![unit, reset, (weaker, "OnBootSec=1s\n")], Some(90 * MINUTE)),
            (vec![unit, reset, (more.as_str(), "OnBootSec=2h\n")], Some(90 * MINUTE)),
        ] {
            assert_eq!(uptime(machine(&files).path()), fires, "{files:?}");
            assert!(!is_masked(machine(&files).path()));
        }
        // Masked for good, for this boot, or by an empty file.
        for folder in ["etc/systemd/system", "run/systemd/system"] {
            let machine = machine(&[unit]);
            let mask = machine.path().join(folder).join(TIMER);
            fs::create_dir_all(mask.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink("/dev/null", &mask).unwrap();
            assert!(is_masked(machine.path()), "{folder}");
        }
        assert!(is_masked(machine(&[unit, ("etc/systemd/system/fwupdate-deadman.timer", "")]).path()));
    }
}
