//! The names of keys and sections: which are known, which a layer may set, and what a misspelt one most likely meant.

use super::row::{Layer, Row};
use super::settings::rows;

/// The rows of the key or section `path`; none: it is not known.
pub fn at(path: &str) -> impl Iterator<Item = &'static Row> {
    rows().filter(move |row| {
        row.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Whether `path` is a section: something below it is a key.
pub fn is_section(path: &str) -> bool {
    at(path).any(|row| row.path != path)
}

/// Whether `path` is known and `layer` may set nothing of it.
pub fn is_misplaced(path: &str, layer: Layer) -> bool {
    let mut found = at(path).peekable();
    found.peek().is_some() && found.all(|row| row.layer < layer)
}

/// What `path` most likely meant, if anything is near: a section for a table, else a key.
pub fn nearest(path: &str, is_table: bool) -> Option<&'static str> {
    let path = normal(path);
    let names: Vec<&str> = match is_table {
        true => sections().collect(),
        false => rows().map(|row| row.path).chain(sections()).collect(),
    };
    let (distance, name) = names.into_iter().map(|name| (unlikeness(&path, name), name)).min()?;
    (distance <= (path.len() / 2).clamp(2, 3)).then_some(name)
}

/// As people and other programs write names.
fn normal(path: &str) -> String {
    path.chars().take(128).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Every section, the outer ones, too.
fn sections() -> impl Iterator<Item = &'static str> {
    rows().flat_map(|row| row.path.match_indices('.').filter_map(|(end, _)| row.path.get(..end)))
}

/// How far apart two paths are, in signs to change; a right name in a wrong section counts as near.
fn unlikeness(path: &str, name: &'static str) -> usize {
    fn last(path: &str) -> &str {
        path.rsplit('.').next().unwrap_or(path)
    }
    let whole = strsim::damerau_levenshtein(path, name);
    match strsim::damerau_levenshtein(last(path), last(name)) {
        // One sign is no name to go by: the slots are called a and b.
        0 if last(path).len() > 1 => whole.min(2),
        1 if last(path).len() > 4 => whole.min(3),
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_a_typo_away_or_the_same_word_elsewhere() {
        for (written, meant) in [
            ("compatable", "compatible"),
            ("Compatible", "compatible"),
            ("bootloader.trys", "bootloader.tries"),
            ("bootloader.tires", "bootloader.tries"),
            ("tries", "bootloader.tries"),
            ("health.tries", "bootloader.tries"),
            ("cloud.keep-alive", "cloud.keep_alive"),
            ("cloud.conection_string_file", "cloud.connection_string_file"),
            ("slot.a.device", "slots.a.device"),
            ("slots.b.devise", "slots.b.device"),
            ("policy.aproval", "policy.approval"),
        ] {
            assert_eq!(nearest(written, false), Some(meant), "{written}");
        }
        assert_eq!(nearest("something.else.entirely", false), None);
        assert_eq!(nearest("x", false), None);
    }

    #[test]
    fn the_nearest_section_is_a_section() {
        for (written, meant) in [
            ("helth", "health"),
            ("slot", "slots"),
            ("slot.a", "slots.a"),
            ("slots_b", "slots.b"),
            ("slots.A", "slots.a"),
            ("dps", "cloud.dps"),
            ("cloud.dsp", "cloud.dps"),
            ("Bootloader", "bootloader"),
            ("boot_loader", "bootloader"),
            ("downloads", "download"),
        ] {
            assert_eq!(nearest(written, true), Some(meant), "{written}");
        }
        assert_eq!(nearest("slots.c", true), Some("slots.a"), "as near as b");
        assert_eq!(nearest("webserver", true), None);
    }

    #[test]
    fn sections_and_keys_are_told_apart() {
        assert!(is_section("slots") && is_section("slots.a") && !is_section("slots.a.device"));
        assert!(at("slots.a.device").count() == 1 && at("slot").count() == 0);
        assert!(!is_section("slot"));
    }
}
