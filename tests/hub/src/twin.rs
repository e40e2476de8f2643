//! A device twin as a value: merging, versions, metadata, etags and limits.
//!
//! Pure, so that the rules of Azure's "Understand and use device twins" can be tested without a server.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Desired and reported properties may each take this many bytes, counted as the hub counts them.
pub const SECTION_LIMIT: usize = 32 * 1024;
/// Tags may take this many bytes.
pub const TAGS_LIMIT: usize = 8 * 1024;
const DEPTH_LIMIT: usize = 10;
const KEY_LIMIT: usize = 1024;
const STRING_LIMIT: usize = 4096;
const INTEGER_MIN: i64 = -4_503_599_627_370_496;
const INTEGER_MAX: i64 = 4_503_599_627_370_495;

/// Why an update of a twin is refused; nothing of it is applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TwinError {
    #[error("{0} must be a JSON object")]
    NotAnObject(&'static str),
    #[error("{section} would take {size} bytes; the limit is {limit}")]
    TooLarge { section: &'static str, size: usize, limit: usize },
    #[error("{path} is nested deeper than {DEPTH_LIMIT} levels")]
    TooDeep { path: String },
    #[error(
        "the key {key:?} in {path} is empty, longer than {KEY_LIMIT} bytes, or holds '.', '$', a space or a control character"
    )]
    BadKey { path: String, key: String },
    #[error("the string {path} takes {size} bytes; the limit is {STRING_LIMIT}")]
    LongString { path: String, size: usize },
    #[error("the number {path} is outside {INTEGER_MIN}..={INTEGER_MAX}")]
    BadNumber { path: String },
    #[error("the array {path} holds a null")]
    NullInArray { path: String },
}

/// Desired or reported properties.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Section {
    pub properties: Map<String, Value>,
    /// Mirrors `properties`; `$lastUpdated` at every level.
    pub metadata: Map<String, Value>,
    pub version: u64,
}

/// What the hub keeps about a device beside its identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Twin {
    pub tags: Map<String, Value>,
    pub desired: Section,
    pub reported: Section,
    /// Rises with every change of any part.
    pub version: u64,
}

impl Twin {
    /// The empty twin of an identity created at `now` (ISO 8601).
    pub fn new(now: &str) -> Twin {
        Twin { tags: Map::new(), desired: Section::new(now), reported: Section::new(now), version: 1 }
    }

    /// The etag of the twin's document, without quotes: base64 of a counter, as the hub shows it.
    pub fn etag(&self) -> String {
        data_encoding::BASE64.encode(&self.version.to_be_bytes())
    }

    /// Merges a device's patch; returns the new `$version` of the reported properties.
    pub fn patch_reported(&mut self, patch: &Value, now: &str) -> Result<u64, TwinError> {
        self.reported.merge("reported", patch, now, false)?;
        self.version += 1;
        Ok(self.reported.version)
    }

    /// Merges the service's `tags` and `properties.desired`; returns what subscribed devices are sent, if anything.
    pub fn patch(&mut self, body: &Value, now: &str) -> Result<Option<Value>, TwinError> {
        let mut next = self.clone();
        if let Some(tags) = body.get("tags") {
            let patch = tags.as_object().ok_or(TwinError::NotAnObject("tags"))?;
            check_tree("tags", patch)?;
            merge(&mut next.tags, patch);
            check_size("tags", &next.tags, TAGS_LIMIT)?;
        }
        let notice = match desired_of(body)? {
            Some(patch) => Some(next.desired.merge("desired", patch, now, true)?),
            None => None,
        };
        next.version += 1;
        *self = next;
        Ok(notice)
    }

    /// Replaces tags and desired properties (REST `PUT`); a part that is absent stays.
    pub fn replace(&mut self, body: &Value, now: &str) -> Result<Option<Value>, TwinError> {
        let mut next = self.clone();
        if let Some(tags) = body.get("tags") {
            let tags = tags.as_object().ok_or(TwinError::NotAnObject("tags"))?;
            check_tree("tags", tags)?;
            next.tags = Map::new();
            merge(&mut next.tags, tags);
            check_size("tags", &next.tags, TAGS_LIMIT)?;
        }
        let notice = match desired_of(body)? {
            Some(whole) => Some(next.desired.replace("desired", whole, now)?),
            None => None,
        };
        next.version += 1;
        *self = next;
        Ok(notice)
    }

    /// The document that a device gets: no wrapper, no tags, no metadata.
    pub fn for_device(&self) -> Value {
        json!({"desired": self.desired.with_version(), "reported": self.reported.with_version()})
    }

    /// The `properties` of the document that a service gets.
    pub fn properties(&self) -> Value {
        json!({"desired": self.desired.with_metadata(), "reported": self.reported.with_metadata()})
    }
}

impl Section {
    fn new(now: &str) -> Section {
        let metadata = Map::from_iter([("$lastUpdated".to_owned(), json!(now))]);
        Section { properties: Map::new(), metadata, version: 1 }
    }

    /// Merges `patch` wholly or not at all; returns the patch as a device is told it, with its `$version`.
    fn merge(
        &mut self,
        name: &'static str,
        patch: &Value,
        now: &str,
        versions: bool,
    ) -> Result<Value, TwinError> {
        let patch = own_properties(name, patch)?;
        check_tree(name, &patch)?;
        let mut next = self.properties.clone();
        merge(&mut next, &patch);
        check_size(name, &next, SECTION_LIMIT)?;
        check_depth(name, &next)?;
        self.properties = next;
        self.version += 1;
        stamp(&mut self.metadata, &patch, now, versions.then_some(self.version));
        Ok(noticed(patch, self.version))
    }

    fn replace(&mut self, name: &'static str, whole: &Value, now: &str) -> Result<Value, TwinError> {
        let whole = own_properties(name, whole)?;
        check_tree(name, &whole)?;
        let mut next = Map::new();
        merge(&mut next, &whole);
        check_size(name, &next, SECTION_LIMIT)?;
        self.properties = next;
        self.version += 1;
        self.metadata = Map::new();
        stamp(&mut self.metadata, &self.properties, now, Some(self.version));
        Ok(noticed(whole, self.version))
    }

    fn with_version(&self) -> Value {
        noticed(self.properties.clone(), self.version)
    }

    fn with_metadata(&self) -> Value {
        let mut document = self.properties.clone();
        document.insert("$metadata".into(), Value::Object(self.metadata.clone()));
        document.insert("$version".into(), json!(self.version));
        Value::Object(document)
    }
}

fn noticed(mut properties: Map<String, Value>, version: u64) -> Value {
    properties.insert("$version".into(), json!(version));
    Value::Object(properties)
}

fn desired_of(body: &Value) -> Result<Option<&Value>, TwinError> {
    match body.get("properties") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(properties)) => Ok(properties.get("desired").filter(|desired| !desired.is_null())),
        Some(_) => Err(TwinError::NotAnObject("properties")),
    }
}

/// A twin that was read and sent back carries `$version` and `$metadata`; the hub overlooks both.
fn own_properties(name: &'static str, patch: &Value) -> Result<Map<String, Value>, TwinError> {
    let patch = patch.as_object().ok_or(TwinError::NotAnObject(name))?;
    let own = |(key, _): &(&String, &Value)| *key != "$version" && *key != "$metadata";
    Ok(patch.iter().filter(own).map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// RFC 7396: objects merge, null deletes, all else (arrays too) replaces.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(inner) => {
                let slot = target.entry(key.clone()).or_insert_with(|| json!({}));
                if !slot.is_object() {
                    *slot = json!({});
                }
                if let Value::Object(map) = slot {
                    merge(map, inner);
                }
            }
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

/// Brings `metadata` in line with a merge of `patch`.
fn stamp(metadata: &mut Map<String, Value>, patch: &Map<String, Value>, now: &str, version: Option<u64>) {
    metadata.insert("$lastUpdated".into(), json!(now));
    if let Some(version) = version {
        metadata.insert("$lastUpdatedVersion".into(), json!(version));
    }
    for (key, value) in patch {
        if value.is_null() {
            metadata.remove(key);
            continue;
        }
        let slot = metadata.entry(key.clone()).or_insert_with(|| json!({}));
        let empty = Map::new();
        let inner = value.as_object();
        if let Value::Object(map) = slot {
            if inner.is_none() {
                map.clear();
            }
            stamp(map, inner.unwrap_or(&empty), now, version);
        }
    }
}

/// Keys, strings, numbers and depth of an update.
fn check_tree(name: &'static str, update: &Map<String, Value>) -> Result<(), TwinError> {
    check_depth(name, update)?;
    update.iter().try_for_each(|(key, value)| {
        check_key(name, key)?;
        check_value(&format!("{name}.{key}"), value)
    })
}

fn check_key(path: &str, key: &str) -> Result<(), TwinError> {
    let bad = |c: char| c.is_control() || matches!(c, '.' | '$' | ' ');
    if key.is_empty() || key.len() > KEY_LIMIT || key.contains(bad) {
        let key = key.chars().take(64).collect();
        return Err(TwinError::BadKey { path: path.to_owned(), key });
    }
    Ok(())
}

fn check_value(path: &str, value: &Value) -> Result<(), TwinError> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(text) if text.len() > STRING_LIMIT => {
            Err(TwinError::LongString { path: path.to_owned(), size: text.len() })
        }
        Value::String(_) => Ok(()),
        Value::Number(number) => {
            let whole = number.is_i64() || number.is_u64();
            let fits = number.as_i64().is_some_and(|n| (INTEGER_MIN..=INTEGER_MAX).contains(&n));
            if whole && !fits { Err(TwinError::BadNumber { path: path.to_owned() }) } else { Ok(()) }
        }
        Value::Array(items) => items.iter().try_for_each(|item| match item {
            Value::Null => Err(TwinError::NullInArray { path: path.to_owned() }),
            item => check_value(path, item),
        }),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            check_key(path, key)?;
            check_value(&format!("{path}.{key}"), value)
        }),
    }
}

fn check_depth(name: &'static str, map: &Map<String, Value>) -> Result<(), TwinError> {
    map.iter().try_for_each(|(key, value)| depth_below(&format!("{name}.{key}"), value, DEPTH_LIMIT))
}

fn depth_below(path: &str, value: &Value, left: usize) -> Result<(), TwinError> {
    let deeper = || left.checked_sub(1).ok_or_else(|| TwinError::TooDeep { path: path.to_owned() });
    match value {
        Value::Object(map) => {
            let left = deeper()?;
            map.iter().try_for_each(|(key, value)| depth_below(&format!("{path}.{key}"), value, left))
        }
        Value::Array(items) => {
            let left = deeper()?;
            items.iter().try_for_each(|item| depth_below(path, item, left))
        }
        _ => Ok(()),
    }
}

fn check_size(section: &'static str, map: &Map<String, Value>, limit: usize) -> Result<(), TwinError> {
    let size = size_of_map(map);
    if size > limit { Err(TwinError::TooLarge { section, size, limit }) } else { Ok(()) }
}

fn size_of_map(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + size_of(value)).sum()
}

/// As Azure documents it: strings by their UTF-8 bytes, numbers 8, booleans 4.
fn size_of(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size_of).sum(),
        Value::Object(map) => size_of_map(map),
    }
}

#[cfg(test)]
mod tests;
