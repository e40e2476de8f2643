//! Automatic device configurations: a part of the desired properties for every device that a condition selects.
//!
//! Rules: Azure's "Automatic device and module management". This file keeps and shows them; `apply` brings the devices
//! in line.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is absent")]

mod apply;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::apply::apply;
pub use self::apply::keep_applied;
use crate::core::{Core, match_etag};
use crate::error::{HubError, Kind};
use crate::query::{Query, Source};
use crate::{clock, disk, lock};

/// Azure's limit for a hub.
const MOST: usize = 100;
/// Azure's limit for a configuration.
const MOST_METRICS: usize = 5;

/// One configuration, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    id: String,
    schema_version: String,
    labels: Map<String, Value>,
    /// Paths below `properties.desired`, with what is written there.
    device_content: BTreeMap<String, Value>,
    target_condition: String,
    priority: i64,
    metrics: BTreeMap<String, String>,
    created: String,
    updated: String,
    revision: u32,
}

/// How one device stands towards a configuration whose target it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// When the configuration was made: another one of the same id is another one.
    created: String,
    /// The paths that it has, by priority, and that were written.
    paths: Vec<String>,
}

impl Standing {
    /// `Applied` or `Targeted`, as twins show it.
    pub fn shown(&self) -> Value {
        json!({"status": if self.paths.is_empty() { "Targeted" } else { "Applied" }})
    }
}

/// All configurations, and the file that keeps them.
#[derive(Debug)]
pub struct Configurations {
    file: PathBuf,
    kept: Mutex<BTreeMap<String, Configuration>>,
    /// One pass over the devices at a time.
    pass: Mutex<()>,
}

impl Configurations {
    /// Those in `dir/configurations.json`, if there are any.
    pub fn open(dir: &Path) -> Result<Configurations> {
        let file = dir.join("configurations.json");
        let kept = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged; remove it to forget them", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Configurations { file, kept: Mutex::new(kept), pass: Mutex::default() })
    }

    /// Changes the collection, on disk before in memory.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Configuration>) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let mut kept = lock(&self.kept);
        let mut next = kept.clone();
        let outcome = change(&mut next)?;
        disk::replace(&self.file, &serde_json::to_vec_pretty(&next).context("no JSON")?, true)?;
        *kept = next;
        Ok(outcome)
    }

    /// By falling priority; the newest of equals first.
    fn ranked(&self) -> Vec<(Configuration, Query)> {
        let mut all: Vec<_> = lock(&self.kept).values().cloned().collect();
        all.sort_by_key(|one| (Reverse(one.priority), Reverse(one.created.clone())));
        let read =
            |one: Configuration| Query::of_condition(&one.target_condition).ok().map(|query| (one, query));
        all.into_iter().filter_map(read).collect()
    }

    fn get(&self, id: &str) -> Result<Configuration, HubError> {
        lock(&self.kept).get(id).cloned().ok_or_else(|| unknown(id))
    }
}

impl Configuration {
    fn etag(&self) -> String {
        data_encoding::BASE64.encode(&self.revision.to_be_bytes())
    }

    fn targeted_query(&self) -> String {
        match self.target_condition.trim() {
            "*" | "" => "SELECT deviceId FROM devices".to_owned(),
            condition => format!("SELECT deviceId FROM devices WHERE {condition}"),
        }
    }

    /// The document of REST, with metrics as of now.
    fn shown(&self, core: &Core) -> Result<Value, HubError> {
        let applied =
            format!("SELECT deviceId FROM devices WHERE configurations.[[{}]].status = 'Applied'", self.id);
        let system = BTreeMap::from([
            ("targetedCount".to_owned(), self.targeted_query()),
            ("appliedCount".to_owned(), applied),
        ]);
        Ok(json!({
            "id": self.id,
            "schemaVersion": self.schema_version,
            "labels": self.labels,
            "content": {"deviceContent": self.device_content},
            "targetCondition": self.target_condition,
            "priority": self.priority,
            "createdTimeUtc": self.created,
            "lastUpdatedTimeUtc": self.updated,
            "systemMetrics": metrics(core, &system)?,
            "metrics": metrics(core, &self.metrics)?,
            "etag": self.etag(),
        }))
    }
}

/// A metric is the number of rows of its query.
fn metrics(core: &Core, queries: &BTreeMap<String, String>) -> Result<Value, HubError> {
    let mut results = Map::new();
    for (name, text) in queries {
        let query = Query::parse(text).map_err(|why| invalid(format!("the metric {name}: {why}")))?;
        results.insert(name.clone(), core.rows(&query)?.len().into());
    }
    Ok(json!({"results": results, "queries": queries}))
}

/// One configuration, as REST shows it.
pub fn show(core: &Core, id: &str) -> Result<Value, HubError> {
    apply(core);
    core.configurations.get(id)?.shown(core)
}

/// At most `top` of them, by name.
pub fn list(core: &Core, top: usize) -> Result<Vec<Value>, HubError> {
    apply(core);
    let all: Vec<_> = lock(&core.configurations.kept).values().cloned().collect();
    all.iter().take(top).map(|one| one.shown(core)).collect()
}

/// Makes a configuration (without If-Match), or changes all of it but its content; whether it is new.
pub fn put(core: &Core, id: &str, body: &Value, if_match: Option<&str>) -> Result<(bool, Value), HubError> {
    check_id(id)?;
    let wanted = read(id, body)?;
    let (new, stored) = core.configurations.change(|all| {
        let full = all.len() >= MOST;
        match (all.get_mut(id), if_match) {
            (Some(_), None) => {
                let message = format!("the configuration {id} exists: send If-Match to change it");
                Err(HubError::new(Kind::ConfigurationAlreadyExists, message))
            }
            (Some(kept), Some(_)) => {
                match_etag(if_match, &kept.etag())?;
                update(kept, wanted, body)?;
                Ok((false, kept.clone()))
            }
            (None, Some(etag)) if etag.trim_matches('"') != "*" => Err(unknown(id)),
            (None, _) if full => Err(invalid(format!("a hub has at most {MOST} configurations"))),
            (None, _) if wanted.device_content.is_empty() => Err(invalid("content.deviceContent is missing")),
            (None, _) => {
                all.insert(id.to_owned(), wanted.clone());
                Ok((true, wanted))
            }
        }
    })?;
    apply(core);
    Ok((new, stored.shown(core)?))
}

fn update(kept: &mut Configuration, wanted: Configuration, body: &Value) -> Result<(), HubError> {
    if !body["content"].is_null() && wanted.device_content != kept.device_content {
        return Err(invalid("the content of a configuration cannot be changed: make another one"));
    }
    let revision = kept.revision.wrapping_add(1);
    let (created, device_content) = (kept.created.clone(), std::mem::take(&mut kept.device_content));
    *kept = Configuration { created, device_content, revision, ..wanted };
    Ok(())
}

/// Forgets a configuration; where no other one takes its place, what it wrote stays.
pub fn delete(core: &Core, id: &str, if_match: Option<&str>) -> Result<(), HubError> {
    core.configurations.change(|all| {
        match_etag(if_match, &all.get(id).ok_or_else(|| unknown(id))?.etag())?;
        all.remove(id);
        Ok(())
    })?;
    apply(core);
    Ok(())
}

/// What is wrong with a target condition and metrics, as `testQueries` tells it.
pub fn test_queries(body: &Value) -> Value {
    let target = body["targetCondition"].as_str().map(target_query);
    let error = target.and_then(|read| read.err().map(|error| error.message));
    let queries = body["customMetricQueries"].as_object();
    let wrong = queries.into_iter().flatten().filter_map(|(name, query)| {
        let why = Query::parse(query.as_str().unwrap_or_default()).err()?;
        Some((name.clone(), why.to_string().into()))
    });
    json!({"targetConditionError": error, "customMetricQueryErrors": wrong.collect::<Map<_, _>>()})
}

fn read(id: &str, body: &Value) -> Result<Configuration, HubError> {
    let condition = body["targetCondition"].as_str().unwrap_or_default().trim();
    if !condition.is_empty() {
        target_query(condition)?;
    }
    let priority = match &body["priority"] {
        Value::Null => 0,
        value => value.as_i64().filter(|n| *n >= 0).ok_or_else(|| invalid("priority must be 0 or more"))?,
    };
    let now = clock::now();
    Ok(Configuration {
        id: id.to_owned(),
        schema_version: body["schemaVersion"].as_str().unwrap_or("1.0").to_owned(),
        labels: body["labels"].as_object().cloned().unwrap_or_default(),
        device_content: read_content(&body["content"])?,
        target_condition: condition.to_owned(),
        priority,
        metrics: read_metrics(&body["metrics"]["queries"])?,
        created: now.clone(),
        updated: now,
        revision: 1,
    })
}

fn target_query(condition: &str) -> Result<Query, HubError> {
    let query =
        Query::of_condition(condition).map_err(|why| invalid(format!("the target condition: {why}")))?;
    if query.source() == Source::Devices {
        return Ok(query);
    }
    let message = "fwupdate-hub does not imitate configurations for modules";
    Err(HubError::new(Kind::NotImitated, message))
}

fn read_content(content: &Value) -> Result<BTreeMap<String, Value>, HubError> {
    for other in ["modulesContent", "moduleContent"] {
        if content[other].as_object().is_some_and(|content| !content.is_empty()) {
            let message = format!("fwupdate-hub does not imitate {other}");
            return Err(HubError::new(Kind::NotImitated, message));
        }
    }
    let content = content["deviceContent"].as_object().cloned().unwrap_or_default();
    for path in content.keys() {
        let below = path.strip_prefix("properties.desired.");
        if below.is_none_or(|path| path.split('.').any(str::is_empty)) {
            let message = format!("deviceContent names {path:?}: a path is properties.desired. and more");
            return Err(invalid(message));
        }
    }
    Ok(content.into_iter().collect())
}

fn read_metrics(queries: &Value) -> Result<BTreeMap<String, String>, HubError> {
    let Some(queries) = queries.as_object() else { return Ok(BTreeMap::new()) };
    if queries.len() > MOST_METRICS {
        return Err(invalid(format!("a configuration has at most {MOST_METRICS} metrics")));
    }
    let read = |(name, query): (&String, &Value)| {
        let text = query.as_str().ok_or_else(|| invalid(format!("the metric {name} is no string")))?;
        Query::parse(text).map_err(|why| invalid(format!("the metric {name}: {why}")))?;
        Ok((name.clone(), text.to_owned()))
    };
    queries.iter().map(read).collect()
}

fn check_id(id: &str) -> Result<(), HubError> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-:+%_#*?!(),=@;$'".contains(c);
    if id.is_empty() || id.len() > 128 || !id.chars().all(good) {
        return Err(invalid(format!(
            "the id {id:?} must have 1 to 128 lower-case letters, digits or - : + % _ # * ? ! ( ) , = @ ; $ '"
        )));
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> HubError {
    HubError::new(Kind::ArgumentInvalid, message)
}

fn unknown(id: &str) -> HubError {
    HubError::new(Kind::ConfigurationNotFound, format!("there is no configuration {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_contents_are_azure_s() {
        for id in ["", "Upper", "a b", "a/b", "fw-2.0.0", &"x".repeat(129)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id("fw-2-0-0_ring1").is_ok());
        for content in [
            json!({"deviceContent": {"properties.desired": {}}}),
            json!({"deviceContent": {"properties.desired..x": 1}}),
            json!({"deviceContent": {"properties.reported.x": 1}}),
            json!({"deviceContent": {"tags.x": 1}}),
            json!({"moduleContent": {"properties.desired.x": 1}}),
        ] {
            assert!(read_content(&content).is_err(), "{content}");
        }
    }

    #[test]
    fn queries_are_tested_without_being_kept() {
        let body = json!({"targetCondition": "tags.x = ", "customMetricQueries": {"good": "SELECT deviceId FROM devices", "bad": "SELECT"}});
        let answer = test_queries(&body);
        assert!(answer["targetConditionError"].as_str().unwrap().contains("ends"), "{answer}");
        assert_eq!(
            answer["customMetricQueryErrors"].as_object().unwrap().keys().collect::<Vec<_>>(),
            ["bad"]
        );
        assert_eq!(test_queries(&json!({"targetCondition": "*"}))["targetConditionError"], Value::Null);
    }
}
