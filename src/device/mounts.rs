//! The lines of mountinfo (proc(5)): what is mounted where, which mount shows a path, and what an overlay is made of.

use std::path::{Path, PathBuf};

/// One line of mountinfo, unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mounted file system (`st_dev`); major 0 where it is on no single device.
    pub major: u64,
    pub minor: u64,
    pub point: PathBuf,
    pub kind: String,
    pub source: String,
    /// Options of the file system, each unescaped.
    pub options: Vec<String>,
}

/// `major:minor` in decimal.
pub(super) fn parse_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `36 35 98:0 /inside /point rw master:1 - ext4 /dev/sda1 rw,errors=continue`: the fields before the dash
/// vary in number. A line that does not fit is skipped: it describes no mount that we could examine.
pub(super) fn parse_mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let (major, minor) = parse_number(fields.nth(2)?)?;
    let point = PathBuf::from(unescape(fields.nth(1)?));
    let mut rest = fields.skip_while(|field| *field != "-").skip(1);
    let kind = unescape(rest.next()?);
    let source = unescape(rest.next()?);
    let options = rest.next().unwrap_or("").split(',').map(unescape).collect();
    Some(Mount { major, minor, point, kind, source, options })
}

/// The kernel writes space, tab, newline, backslash and some more as three octal digits.
fn unescape(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
        });
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The mount that shows `path`: the longest mount point, and of several at one point the last, which hides
/// the others.
pub(super) fn covering(mounts: &[Mount], path: &Path) -> Option<usize> {
    let depth = |mount: &Mount| mount.point.components().count();
    let inside = mounts.iter().enumerate().filter(|(_, mount)| path.starts_with(&mount.point));
    inside.max_by_key(|(_, mount)| depth(mount)).map(|(index, _)| index)
}

/// The folders of an overlay: `lowerdir` is a list whose colons are escaped by a backslash, also written as
/// single `lowerdir+` and `datadir+` options; `upperdir` is one.
pub(super) fn layers(mount: &Mount) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for option in &mount.options {
        match option.split_once('=') {
            Some(("lowerdir", list)) => found.extend(split_layers(list)),
            Some(("lowerdir+" | "datadir+" | "upperdir", folder)) => found.push(PathBuf::from(folder)),
            _ => {}
        }
    }
    found
}

fn split_layers(list: &str) -> Vec<PathBuf> {
    let mut found = vec![String::new()];
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match (c, found.last_mut()) {
            (':', _) => found.push(String::new()),
            ('\\', Some(layer)) => layer.extend(chars.next()),
            (c, Some(layer)) => layer.push(c),
            _ => {}
        }
    }
    found.into_iter().filter(|layer| !layer.is_empty()).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_only_escapes() {
        assert_eq!(unescape("a\\040b\\134c"), "a b\\c");
        assert_eq!(unescape("\\9\\04"), "\\9\\04");
        assert_eq!(unescape("\\+12\\777"), "\\+12\\777");
    }
}
