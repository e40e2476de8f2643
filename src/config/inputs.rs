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
pub struct Inputs<'a> {
    /// Each key that is set: by which file, and to what.
    merged: BTreeMap<&'a str, (&'a str, &'a Value)>,
}

impl<'a> Inputs<'a> {
    pub fn merge(fragments: impl IntoIterator<Item = &'a Fragment>) -> Inputs<'a> {
        let values = fragments.into_iter().flat_map(|fragment| {
            let of_file = |(path, value): &'a (String, Value)| (&**path, (&*fragment.origin, value));
            fragment.values.iter().map(of_file)
        });
        Inputs { merged: values.collect() }
    }

    pub fn has(&self, path: &str) -> bool {
        self.merged.contains_key(path)
    }

    /// The file that set `path`.
    pub fn file(&self, path: &str) -> String {
        self.merged.get(path).map_or("the settings", |(file, _)| file).to_owned()
    }

    pub fn get<K: Kind>(&self, setting: &Setting<K>) -> Result<K::Value, ConfigError> {
        match self.merged.get(setting.path) {
            None => K::absent().ok_or_else(|| self.wrong(setting, "set")),
            Some((_, found)) => K::read(found).ok_or_else(|| self.wrong(setting, K::expected(found))),
        }
    }

    /// The complaint that a setting is not what was expected.
    pub fn wrong<K: Kind>(&self, setting: &Setting<K>, expected: impl Into<String>) -> ConfigError {
        let found = match self.merged.get(setting.path).map(|(_, value)| *value) {
            Some(_) if K::IS_SECRET => "a value of another kind".to_owned(),
            Some(Value::Table(_)) => "a section".to_owned(),
            Some(value) => show(value),
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
        other => other.to_string(),
    }
}
