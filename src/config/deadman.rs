//! The dead-man's uptime as systemd will have it: a health deadline that ends later is never reached.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::units;

const UNIT: &str = "fwupdate-deadman.timer";
/// Where units are looked for, the strongest first (systemd.unit(5)).
const FOLDERS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
/// `systemd/fwupdate-deadman.timer` as it is shipped.
const SHIPPED: Duration = Duration::from_secs(20 * 60);

/// `OnBootSec=` of the timer and its drop-ins below `root`.
pub fn uptime(root: &Path) -> Duration {
    let unit = FOLDERS.iter().map(|folder| root.join(folder).join(UNIT)).find(|path| path.exists());
    let texts = unit.into_iter().chain(drop_ins(root)).filter_map(|path| fs::read_to_string(path).ok());
    texts.fold(SHIPPED, |found, text| on_boot(&text).unwrap_or(found))
}

/// By file name, whatever their folder.
fn drop_ins(root: &Path) -> Vec<PathBuf> {
    let folders = FOLDERS.iter().map(|folder| root.join(folder).join(format!("{UNIT}.d")));
    let entries = folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    found.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    found
}

/// The last value, spaces left out: systemd writes `1h 30min`.
fn on_boot(text: &str) -> Option<Duration> {
    let values = text.lines().filter_map(|line| line.trim().strip_prefix("OnBootSec="));
    values.filter_map(|value| parse(value.trim())).next_back()
}

fn parse(text: &str) -> Option<Duration> {
    let parts = text.split_ascii_whitespace().map(|part| {
        let seconds = part.parse().ok().map(Duration::from_secs);
        seconds.or_else(|| units::duration(part))
    });
    parts.reduce(|sum, part| sum?.checked_add(part?)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_timer_says_what_is_assumed() {
        let text = include_str!("../../systemd/fwupdate-deadman.timer");
        assert_eq!(on_boot(text), Some(SHIPPED));
    }

    #[test]
    fn drop_ins_count_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(uptime(dir.path()), SHIPPED);
        for (path, text) in [
            ("usr/lib/systemd/system/fwupdate-deadman.timer", "[Timer]\nOnBootSec=30min\n"),
            (
                "etc/systemd/system/fwupdate-deadman.timer.d/20-b.conf",
                "[Timer]\nOnBootSec=\nOnBootSec=1h 30min\n",
            ),
            ("etc/systemd/system/fwupdate-deadman.timer.d/10-a.conf", "[Timer]\nOnBootSec=90\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(uptime(dir.path()), Duration::from_secs(90 * 60));
    }
}
