//! Second stage: the merged layers, read one typed setting at a time.
//!
//! Values keep the file they came from, so that a wrong one is reported by key and file.

use config::{Config, Map, Source, Value, ValueKind};

use super::error::ConfigError;
use super::kinds::Kind;
use super::row::Setting;

/// One file's settings.
#[derive(Debug, Clone)]
pub struct Fragment {
    /// The file.
    pub origin: String,
    /// Each key that it sets.
    pub values: Vec<(String, toml::Value)>,
}

impl Source for Fragment {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.values.iter().map(|(path, value)| (path.clone(), of_file(&self.origin, value))).collect())
    }
}

/// A value of `file`.
fn of_file(file: &String, value: &toml::Value) -> Value {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text.clone()),
        toml::Value::Integer(number) => ValueKind::I64(*number),
        toml::Value::Float(number) => ValueKind::Float(*number),
        toml::Value::Boolean(flag) => ValueKind::Boolean(*flag),
        toml::Value::Datetime(date) => ValueKind::String(date.to_string()),
        toml::Value::Array(items) => ValueKind::Array(items.iter().map(|item| of_file(file, item)).collect()),
        toml::Value::Table(table) => {
            ValueKind::Table(table.iter().map(|(name, value)| (name.clone(), of_file(file, value))).collect())
        }
    };
    Value::new(Some(file), kind)
}

/// All layers merged, later ones winning; not validated yet.
#[derive(Debug)]
pub struct Inputs {
    merged: Map<String, Value>,
}

impl Inputs {
    pub fn merge<'a>(fragments: impl IntoIterator<Item = &'a Fragment>) -> Result<Inputs, ConfigError> {
        let layers =
            fragments.into_iter().fold(Config::builder(), |below, file| below.add_source(file.clone()));
        Ok(Inputs { merged: layers.build()?.collect()? })
    }

    fn find(&self, path: &str) -> Option<&Value> {
        let mut names = path.split('.');
        let first = self.merged.get(names.next()?);
        names.fold(first, |found, name| match &found?.kind {
            ValueKind::Table(section) => section.get(name),
            _ => None,
        })
    }

    pub fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// The file that set `path`.
    pub fn file(&self, path: &str) -> String {
        self.find(path).and_then(Value::origin).unwrap_or("the settings").to_owned()
    }

    pub fn get<K: Kind>(&self, setting: &Setting<K>) -> Result<K::Value, ConfigError> {
        match self.find(setting.path).map(|value| &value.kind) {
            None => K::absent().ok_or_else(|| self.wrong(setting, "set")),
            Some(found) => K::read(found).ok_or_else(|| self.wrong(setting, K::expected(found))),
        }
    }

    /// The complaint that a setting is not what was expected.
    pub fn wrong<K: Kind>(&self, setting: &Setting<K>, expected: impl Into<String>) -> ConfigError {
        let found = match self.find(setting.path).map(|value| &value.kind) {
            Some(_) if K::IS_SECRET => "a value of another kind".to_owned(),
            Some(ValueKind::Table(_)) => "a section".to_owned(),
            Some(kind) => show(kind),
            None => "absent".to_owned(),
        };
        let (key, file) = (setting.path.to_owned(), self.file(setting.path));
        ConfigError::Value { key, file, expected: expected.into(), found }
    }
}

fn show(kind: &ValueKind) -> String {
    match kind {
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            format!("[{}]", items.iter().map(|item| show(&item.kind)).collect::<Vec<_>>().join(", "))
        }
        ValueKind::Table(_) => "{..}".to_owned(),
        other => other.to_string(),
    }
}
