//! Second stage: the merged layers, read one typed setting at a time.
//!
//! Values keep the file they came from, so that a wrong one is reported by key and file.

use std::collections::BTreeMap;

use toml::Value;

use super::error::ConfigError;
use super::kinds::Kind;
use super::row::Setting;

/// One file's settings.
#[derive(Debug)]
pub struct Fragment {
    /// The file.
    pub origin: String,
    /// Each key that it sets.
    pub values: Vec<(String, Value)>,
}

/// All layers merged, later ones winning; not validated yet.
#[derive(Debug)]
pub struct Inputs {
    /// By key: the value, and the file that set it.
    values: BTreeMap<String, (Value, String)>,
}

impl Inputs {
    pub fn merge<'a>(fragments: impl IntoIterator<Item = &'a Fragment>) -> Inputs {
        let entries = fragments.into_iter().flat_map(|fragment| {
            let of_file = |value: &Value| (value.clone(), fragment.origin.clone());
            fragment.values.iter().map(move |(path, value)| (path.clone(), of_file(value)))
        });
        Inputs { values: entries.collect() }
    }

    pub fn has(&self, path: &str) -> bool {
        self.values.contains_key(path)
    }

    /// The file that set `path`.
    pub fn file(&self, path: &str) -> String {
        self.values.get(path).map_or("the settings", |(_, file)| file).to_owned()
    }

    pub fn get<K: Kind>(&self, setting: &Setting<K>) -> Result<K::Value, ConfigError> {
        if !self.has(setting.path) {
            return K::absent().ok_or_else(|| self.wrong(setting, "set"));
        }
        self.get_as(setting, K::read, K::expected)
    }

    /// A setting that is read in a way of its own.
    pub fn get_as<K: Kind, T>(
        &self,
        setting: &Setting<K>,
        read: impl Fn(&Value) -> Option<T>,
        expected: impl Fn(&Value) -> String,
    ) -> Result<T, ConfigError> {
        let (found, _) = self.values.get(setting.path).ok_or_else(|| self.wrong(setting, "set"))?;
        read(found).ok_or_else(|| self.wrong(setting, expected(found)))
    }

    /// The complaint that a setting is not what was expected.
    pub fn wrong<K: Kind>(&self, setting: &Setting<K>, expected: impl Into<String>) -> ConfigError {
        let found = match self.values.get(setting.path) {
            Some(_) if K::IS_SECRET => "a value of another kind".to_owned(),
            Some((Value::Table(_), _)) => "a section".to_owned(),
            Some((value, _)) => show(value),
            None => "absent".to_owned(),
        };
        let (key, file) = (setting.path.to_owned(), self.file(setting.path));
        ConfigError::Value { key, file, expected: expected.into(), found }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
        Value::Table(_) => "{..}".to_owned(),
        Value::Float(number) => number.to_string(),
        other => other.to_string(),
    }
}
