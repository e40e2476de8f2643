//! What people are told of each setting is the rows written out: the shipped file, and the tables of
//! docs/configuration.md, of which the manual's page is made. `make settings-docs` writes both after a row changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::config::{ConfigError, Options, load, units};

/// Signs in a line of the shipped file.
const WIDTH: usize = 118;
/// Begins the tables of docs/configuration.md: `<!-- settings: SECTION ... -->`.
const MARK: &str = "<!-- settings:";

/// What a row says beside what the agent needs.
#[derive(Debug)]
pub struct Told {
    /// Lines about its section.
    pub about: &'static [&'static str],
    pub doc: &'static [&'static str],
    /// A TOML literal.
    pub example: Option<&'static str>,
    pub kind: fn() -> String,
    pub is_optional: fn() -> bool,
}

/// A kind in the words of docs/configuration.md.
pub trait Described {
    fn described() -> String;
}

macro_rules! described {
    ($($kind:ty: $words:expr;)*) => {
        $(impl Described for $kind {
            fn described() -> String {
                $words.into()
            }
        })*
    };
}

described! {
    Absolute: "path";
    KeyName: "path or pkcs11: URI";
    Bytes: "bytes";
    Command: "list of texts";
    Flag: "true or false";
    Hidden: "text";
    HostName: "text";
    Hosts: "list of texts";
    IdScope: "text";
    JsonObject: "text";
    SlotDevice: "text";
    Text: "text";
    Texts: "list of texts";
    TimeServerName: "text";
    TransportName: "text";
    Windows: "list of windows";
}

impl<K: Described> Described for Option<K> {
    fn described() -> String {
        K::described()
    }
}

impl<T, const MIN: u16, const MAX: u16> Described for Number<T, MIN, MAX> {
    fn described() -> String {
        format!("{MIN} to {MAX}")
    }
}

impl<const MIN: u64, const MAX: u64> Described for Span<MIN, MAX> {
    fn described() -> String {
        let shown = |bound| units::show_duration(Duration::from_millis(bound));
        format!("duration, {} to {}", shown(MIN), shown(MAX))
    }
}

impl Row {
    fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap()
    }

    /// In the shipped file: commented out, with its default or an example.
    fn in_file(&self) -> String {
        let value = self.default.or(self.told.example).unwrap();
        format!("{}#{} = {value}\n", comment(&without_links(&joined(self.told.doc))), self.name())
    }

    /// In docs/configuration.md.
    fn in_table(&self) -> String {
        let default = match (self.default, (self.told.is_optional)()) {
            (Some(default), _) => format!("`{default}`"),
            (None, true) => "none".to_owned(),
            (None, false) => "none, required".to_owned(),
        };
        format!("| `{}` | {} | {default} | {} |\n", self.path, (self.told.kind)(), joined(self.told.doc))
    }
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// `[words](place)` -> `words`; of the page itself nothing is left to see.
fn without_links(text: &str) -> String {
    let Some((before, rest)) = text.split_once("](") else { return text.to_owned() };
    let ((before, words), (_, after)) = (before.rsplit_once('[').unwrap(), rest.split_once(')').unwrap());
    before.to_owned() + words + &without_links(after)
}

/// `text` in lines that begin with `# `.
fn comment(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < WIDTH => line.extend([" ", word]),
            _ => lines.push(format!(" {word}")),
        }
    }
    lines.iter().filter(|line| !line.is_empty()).map(|line| format!("#{line}\n")).collect()
}

/// The shipped file, below the lines with which it begins.
fn file() -> String {
    let mut out = String::new();
    let mut section = "";
    for row in rows() {
        if row.section() != section {
            section = row.section();
            out += &format!("\n{}#[{section}]\n", comment(&joined(row.told.about)));
        }
        out += &row.in_file();
    }
    out
}

/// The table of these sections; `top` is what stands in none.
fn table(sections: &str) -> String {
    let of_sections = |row: &&Row| {
        sections
            .split_whitespace()
            .any(|name| if name == "top" { row.section().is_empty() } else { name == row.section() })
    };
    let head = "| key | type | default | meaning |\n|---|---|---|---|\n".to_owned();
    head + &rows().filter(of_sections).map(Row::in_table).collect::<String>()
}

fn project(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// Compares a file with what it should be, or writes it.
fn hold(file: &str, made: impl Fn(&str) -> String) {
    let found = fs::read_to_string(project(file)).unwrap();
    let made = made(&found);
    if std::env::var_os("FWUPDATE_WRITE").is_some() {
        fs::write(project(file), &made).unwrap();
    }
    let found = fs::read_to_string(project(file)).unwrap();
    let differs = found.lines().zip(made.lines()).find(|(found, made)| found != made);
    assert!(found == made, "{file} is not what the rows say: make settings-docs ({differs:?})");
}

#[test]
fn the_shipped_file_is_the_rows() {
    hold("config/fwupdate.toml", |found| {
        let (head, _) = found.split_once("\n\n").unwrap();
        format!("{head}\n\n{}", file())
    });
}

#[test]
fn the_tables_of_the_reference_page_are_the_rows() {
    hold("docs/configuration.md", |found| {
        let mut out = String::new();
        let mut lines = found.lines().peekable();
        while let Some(line) = lines.next() {
            out += &format!("{line}\n");
            let Some(sections) = line.strip_prefix(MARK) else { continue };
            while lines.next_if(|line| line.is_empty() || line.starts_with('|')).is_some() {}
            out += &format!("\n{}\n", table(sections.trim_end_matches("-->")));
        }
        out.trim_end().to_owned() + "\n"
    });
}

#[test]
fn every_setting_says_what_it_is_for() {
    for row in rows() {
        let doc = joined(row.told.doc);
        assert!(doc.ends_with('.') && doc.len() > 10, "{}: {doc}", row.path);
        assert!(row.default.is_some() != row.told.example.is_some(), "{}: a default or an example", row.path);
        assert!(!row.told.doc.iter().any(|line| line.contains('|')), "{} would end its cell", row.path);
    }
}

/// The line of `text` that sets `path`, commented out or not, with its value.
fn shipped(text: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(|l| l.trim_start_matches('#').trim()) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ").filter(|(k, _)| !k.contains(' ')) {
            found.push((format!("{section}{key}"), value.to_owned()));
        }
    }
    found
}

#[test]
fn the_shipped_file_is_valid_says_what_to_fill_in_and_shows_every_key_with_its_default() {
    let path = project("config/fwupdate.toml");
    let error = load(&Options::file(&path)).unwrap_err();
    assert!(
        matches!(&error, ConfigError::Missing { missing, warnings } if missing.len() == 4 && warnings.is_empty())
    );
    let shown = shipped(&fs::read_to_string(&path).unwrap());
    for key in rows() {
        let value = shown.iter().find(|(path, _)| path == key.path).map(|(_, v)| v.as_str());
        assert!(value.is_some(), "{} is not in the shipped file", key.path);
        assert!(key.default.is_none() || value == key.default, "{}: {value:?}", key.path);
    }
}

#[test]
fn the_shipped_file_with_every_key_uncommented_loads() {
    let path = project("config/fwupdate.toml");
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    for (key, value) in shipped(&fs::read_to_string(path).unwrap()) {
        // One connection string, one kind of credentials, and who has it asks no provisioning service.
        let other = ["cloud.connection_string_file", "cloud.certificate_file", "cloud.key_file"];
        let asks = key.starts_with("cloud.dps.") && key != "cloud.dps.endpoint" && key != "cloud.dps.port";
        if !other.contains(&key.as_str()) && !asks {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    let file = dir.path().join("all.toml");
    fs::write(&file, text).unwrap();
    let loaded = load(&Options::file(file)).unwrap();
    assert!(loaded.warnings.iter().all(|w| !w.fails_check()), "{:?}", loaded.warnings);
}

#[test]
fn the_reference_page_names_every_key() {
    let path = project("docs/configuration.md");
    let page = fs::read_to_string(path).unwrap();
    for name in rows().map(|row| row.path) {
        assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/configuration.md");
    }
    for key in rows() {
        let row = page.lines().find(|l| l.starts_with(&format!("| `{}` |", key.path)));
        let default = key.default.map_or_else(|| "none".to_owned(), |d| format!("`{d}`"));
        assert!(row.is_some_and(|r| r.contains(&default)), "{}: default {default} not in its row", key.path);
    }
}
