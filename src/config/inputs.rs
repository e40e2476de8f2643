//! Second stage: the merged layers, read one typed key at a time.
//!
//! Values keep the file they came from, so that a wrong one is reported by key and file.

use std::path::PathBuf;
use std::time::Duration;

use config::{Config, Map, Source, Value, ValueKind};

use super::error::ConfigError;
use super::fragments::Fragment;
use super::{Window, keys, units};

/// All layers merged, later ones winning; not validated yet.
#[derive(Debug)]
pub struct Inputs {
    root: Map<String, Value>,
}

impl Inputs {
    pub fn merge(fragments: &[Fragment]) -> Result<Inputs, ConfigError> {
        let builder = fragments.iter().cloned().fold(Config::builder(), |b, f| b.add_source(f));
        Ok(Inputs { root: builder.build()?.collect()? })
    }

    fn get(&self, path: &str) -> Option<&Value> {
        let mut names = path.split('.');
        let first = self.root.get(names.next()?);
        names.fold(first, |value, name| match &value?.kind {
            ValueKind::Table(table) => table.get(name),
            _ => None,
        })
    }

    pub fn has(&self, path: &str) -> bool {
        self.get(path).is_some()
    }

    /// The file that set `path`.
    pub fn file(&self, path: &str) -> String {
        self.get(path).and_then(Value::origin).unwrap_or("the settings").to_owned()
    }

    /// The complaint that `path` is not what was expected.
    pub fn wrong(&self, path: &str, expected: impl Into<String>) -> ConfigError {
        let found = match self.get(path).map(|v| &v.kind) {
            Some(_) if keys::SECRET.contains(&path) => "a value of another kind".to_owned(),
            Some(ValueKind::Table(_)) => "a section".to_owned(),
            Some(kind) => show(kind),
            None => "absent".to_owned(),
        };
        ConfigError::Value { key: path.to_owned(), file: self.file(path), expected: expected.into(), found }
    }

    fn parse<T>(
        &self,
        path: &str,
        expected: &str,
        parse: impl Fn(&ValueKind) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(path) else { return Ok(None) };
        parse(&value.kind).map(Some).ok_or_else(|| self.wrong(path, expected))
    }

    /// As [`Inputs::parse`], for keys that have a default.
    fn need<T>(
        &self,
        path: &str,
        expected: &str,
        parse: impl Fn(&ValueKind) -> Option<T>,
    ) -> Result<T, ConfigError> {
        self.parse(path, expected, parse)?.ok_or_else(|| self.wrong(path, expected))
    }

    /// A text that is not empty.
    pub fn text(&self, path: &str) -> Result<Option<String>, ConfigError> {
        self.parse(path, "a text that is not empty", text)
    }

    pub fn path(&self, path: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.parse(path, ABSOLUTE, absolute)
    }

    pub fn need_path(&self, path: &str) -> Result<PathBuf, ConfigError> {
        self.need(path, ABSOLUTE, absolute)
    }

    pub fn flag(&self, path: &str) -> Result<bool, ConfigError> {
        self.need(path, "true or false", |kind| match kind {
            ValueKind::Boolean(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An integer from `min` to `max`.
    pub fn number(&self, path: &str, min: u16, max: u16) -> Result<u16, ConfigError> {
        let expected = format!("an integer from {min} to {max}");
        self.need(path, &expected, |kind| match kind {
            ValueKind::I64(n) => u16::try_from(*n).ok().filter(|n| (min..=max).contains(n)),
            _ => None,
        })
    }

    /// A duration from `min` to `max`.
    pub fn span(&self, path: &str, min: Duration, max: Duration) -> Result<Duration, ConfigError> {
        let (low, high) = (units::show_duration(min), units::show_duration(max));
        let expected = format!("a duration such as \"30s\", \"5min\" or \"2d\", from {low} to {high}");
        let parse = |kind: &ValueKind| match kind {
            ValueKind::I64(n) => u64::try_from(*n).ok().map(Duration::from_secs),
            ValueKind::String(text) => units::duration(text),
            _ => None,
        };
        self.need(path, &expected, |kind| parse(kind).filter(|d| (min..=max).contains(d)))
    }

    /// A number of bytes above zero; a rate may end in `/s`.
    pub fn bytes(&self, path: &str) -> Result<Option<u64>, ConfigError> {
        self.parse(path, "bytes above zero: an integer, or a text such as \"512KiB\"", |kind| {
            match kind {
                ValueKind::I64(n) => u64::try_from(*n).ok(),
                ValueKind::String(text) => units::size(text.strip_suffix("/s").unwrap_or(text)),
                _ => None,
            }
            .filter(|n| *n > 0)
        })
    }

    pub fn texts(&self, path: &str) -> Result<Vec<String>, ConfigError> {
        self.need(path, "a list of texts that are not empty", |kind| items(kind, text))
    }

    pub fn windows(&self, path: &str) -> Result<Vec<Window>, ConfigError> {
        self.need(path, "a list of daily UTC windows such as \"22:00-04:00\"", |kind| {
            items(kind, |item| units::window(&text(item)?))
        })
    }
}

const ABSOLUTE: &str = "an absolute path";

fn text(kind: &ValueKind) -> Option<String> {
    match kind {
        ValueKind::String(text) if !text.trim().is_empty() => Some(text.clone()),
        _ => None,
    }
}

fn absolute(kind: &ValueKind) -> Option<PathBuf> {
    text(kind).map(PathBuf::from).filter(|p| p.is_absolute())
}

fn items<T>(kind: &ValueKind, parse: impl Fn(&ValueKind) -> Option<T>) -> Option<Vec<T>> {
    match kind {
        ValueKind::Array(items) => items.iter().map(|v| parse(&v.kind)).collect(),
        _ => None,
    }
}

fn show(kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            format!("[{}]", items.iter().map(|v| show(&v.kind)).collect::<Vec<_>>().join(", "))
        }
        ValueKind::Table(_) => "{..}".to_owned(),
        other => other.to_string(),
    }
}
