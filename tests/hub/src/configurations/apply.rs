//! Brings devices in line with the configurations that target them.
//!
//! Where several configurations name the same path, the one of the highest priority is written, and the newest of
//! equals; when it goes, the next one takes its place. From a device that stops fitting, what was written is removed
//! again; what a deleted configuration wrote stays. Azure looks every five minutes, the stand-in at once. A path is
//! written when another configuration than before has it: what a service writes there in between stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Configuration, Standing};
use crate::core::Core;
use crate::error::HubError;
use crate::query::Query;
use crate::registry::{Entry, Identity};
use crate::{clock, lock};

/// Applies configurations whenever anything changed, until the hub stops.
pub async fn keep_applied(core: Arc<Core>) {
    let mut changes = core.live.watch();
    loop {
        apply(&core);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Brings every device in line with the configurations that target it.
pub fn apply(core: &Core) {
    let pass = lock(&core.configurations.pass);
    let ranked = core.configurations.ranked();
    // Nobody ever made one: storms of connections need not look at every device.
    if ranked.is_empty() && !core.configurations.file.exists() {
        return;
    }
    // Listed anew for each pass: devices come and go, also by other processes.
    let devices = lock(&core.registry).list().unwrap_or_default();
    for identity in devices.iter().filter(|identity| identity.module.is_none()) {
        if let Err(error) = apply_to(core, identity, &ranked) {
            tracing::warn!(%identity, "configurations cannot be applied: {error}");
        }
    }
    drop(pass);
}

fn apply_to(core: &Core, identity: &Identity, ranked: &[(Configuration, Query)]) -> Result<(), HubError> {
    let mut registry = lock(&core.registry);
    let entry = registry.get(identity)?;
    if ranked.is_empty() && entry.configurations.is_empty() {
        return Ok(());
    }
    let standings = standings(core, entry, ranked);
    if standings == entry.configurations {
        return Ok(());
    }
    let patch = patch(entry, &standings, ranked);
    let notice = registry.update(identity, |entry| {
        entry.configurations = standings;
        let desired = json!({"properties": {"desired": patch}});
        let changed = patch.as_object().is_some_and(|patch| !patch.is_empty());
        Ok(if changed { entry.twin.patch(&desired, &clock::now())? } else { None })
    })?;
    core.tell(registry.get(identity)?, notice);
    core.live.changed();
    Ok(())
}

/// Which configurations target a device, and which paths each of them has.
fn standings(core: &Core, entry: &Entry, ranked: &[(Configuration, Query)]) -> BTreeMap<String, Standing> {
    let twin = core.twin_document(entry);
    let mut taken = Vec::new();
    let mut found = BTreeMap::new();
    for (one, _) in ranked.iter().filter(|(_, query)| query.matches(&twin)) {
        let free: Vec<_> = one.device_content.keys().filter(|path| !taken.contains(*path)).cloned().collect();
        taken.extend(free.iter().cloned());
        found.insert(one.id.clone(), Standing { created: one.created.clone(), paths: free });
    }
    found
}

/// What has to be merged into the desired properties for paths that change hands.
fn patch(entry: &Entry, standings: &BTreeMap<String, Standing>, ranked: &[(Configuration, Query)]) -> Value {
    let mut patch = json!({});
    for path in given_up(entry, standings, ranked) {
        let below: Vec<&str> = path.split('.').skip(2).collect();
        if at(entry, &below).is_some() {
            put_at(&mut patch, &below, Value::Null);
        }
    }
    // The lowest first: where one path lies within another, the higher priority is written last.
    for (one, _) in ranked.iter().rev() {
        let Some(standing) = standings.get(&one.id) else { continue };
        let before = entry.configurations.get(&one.id).filter(|before| before.created == standing.created);
        let had = |path: &String| before.is_some_and(|before| before.paths.contains(path));
        for path in standing.paths.iter().filter(|path| !had(path)) {
            let below: Vec<&str> = path.split('.').skip(2).collect();
            let old = at(entry, &below);
            let wanted = one.device_content.get(path).unwrap_or(&Value::Null);
            if old.unwrap_or(&Value::Null) != wanted {
                put_at(&mut patch, &below, replacing(old, wanted));
            }
        }
    }
    patch
}

/// Paths of configurations that still exist and no longer target the device, where no other one follows.
fn given_up<'a>(
    entry: &'a Entry,
    standings: &'a BTreeMap<String, Standing>,
    ranked: &[(Configuration, Query)],
) -> impl Iterator<Item = &'a String> {
    let exists = |id: &String, standing: &Standing| {
        ranked.iter().any(|(one, _)| one.id == *id && one.created == standing.created)
    };
    let before = entry.configurations.iter().filter(move |(id, standing)| exists(id, standing));
    let held = |path: &String| standings.values().any(|standing| standing.paths.contains(path));
    before.flat_map(|(_, standing)| &standing.paths).filter(move |path| !held(path))
}

/// What a device's desired properties hold at a path.
fn at<'a>(entry: &'a Entry, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let top = entry.twin.desired.properties.get(*first)?;
    rest.iter().try_fold(top, |value, part| value.get(*part))
}

/// The merge patch that makes `new` of `old`: what is not in `new` is deleted.
fn replacing(old: Option<&Value>, new: &Value) -> Value {
    let (Some(Value::Object(old)), Value::Object(new)) = (old, new) else { return new.clone() };
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let kept = new.iter().map(|(key, value)| (key.clone(), replacing(old.get(key), value)));
    Value::Object(gone.chain(kept).collect())
}

fn put_at(tree: &mut Value, path: &[&str], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        *tree = value;
        return;
    };
    if !tree.is_object() {
        *tree = json!({});
    }
    if let Some(map) = tree.as_object_mut() {
        put_at(map.entry((*first).to_owned()).or_insert(Value::Null), rest, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_not_merged() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}});
        let patch = replacing(Some(&old), &json!({"b": {"c": 3}}));
        assert_eq!(patch, json!({"a": null, "b": {"c": 3, "d": null}}));
        assert_eq!(replacing(Some(&json!(1)), &json!({"x": 1})), json!({"x": 1}));
        assert_eq!(replacing(None, &json!([1])), json!([1]));
    }
}
