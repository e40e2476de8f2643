//! JSON merge patches (RFC 7396): what has to be sent so that the twin says what the document says.

use serde_json::{Map, Value};

type Object = Map<String, Value>;

/// The merge patch that turns `reported` into `document`; empty when nothing differs.
///
/// The root is shared with other programs on the device: only keys that `document` names are touched. Below
/// them everything is ours, so what `document` lacks is deleted. A null in `document` means "absent".
pub fn difference(document: &Object, reported: &Object) -> Object {
    document
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), changed(value, reported.get(key))?)))
        .collect()
}

fn changed(wanted: &Value, held: Option<&Value>) -> Option<Value> {
    match (wanted, held) {
        (Value::Null, held) => held.map(|_| Value::Null),
        (Value::Object(wanted), Some(Value::Object(held))) => {
            let mut patch = difference(wanted, held);
            let gone = held.keys().filter(|key| !wanted.contains_key(*key) && !key.starts_with('$'));
            patch.extend(gone.map(|key| (key.clone(), Value::Null)));
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (wanted, held) => {
            let wanted = without_nulls(wanted);
            (held != Some(&wanted)).then_some(wanted)
        }
    }
}

/// A null inside an object deletes; where there is nothing to delete it has no place.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key.clone(), without_nulls(value)))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// Applies a merge patch: objects merge, null deletes, all else replaces.
pub fn merge(target: &mut Object, patch: &Object) {
    for (key, change) in patch {
        match (change, target.get_mut(key)) {
            (Value::Null, _) => drop(target.remove(key)),
            (Value::Object(change), Some(Value::Object(held))) => merge(held, change),
            (change, _) => drop(target.insert(key.clone(), without_nulls(change))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("not an object: {other}"),
        }
    }

    /// The patch, after checking that it does what it is for.
    fn patch(document: Value, reported: Value) -> Value {
        let (document, mut reported) = (object(document), object(reported));
        let patch = difference(&document, &reported);
        merge(&mut reported, &patch);
        assert!(difference(&document, &reported).is_empty(), "the patch leaves a difference");
        Value::Object(patch)
    }

    #[test]
    fn only_what_differs_is_sent() {
        let sent = patch(
            json!({"firmwareStatus": "applying", "logTime": "t", "fwupdate": {"agent": {"version": "1"}, "n": 2}}),
            json!({"firmwareStatus": "standBy", "logTime": "t", "fwupdate": {"agent": {"version": "1"}, "n": 1}}),
        );
        assert_eq!(sent, json!({"firmwareStatus": "applying", "fwupdate": {"n": 2}}));
        assert_eq!(patch(json!({"a": [1], "b": {}}), json!({"a": [1], "b": {}})), json!({}));
    }

    #[test]
    fn keys_of_other_programs_and_metadata_are_left_alone() {
        let sent = patch(
            json!({"fwupdate": {"a": 1}}),
            json!({"telemetry": {"x": 1}, "$version": 4, "fwupdate": {"a": 1, "$lastUpdated": "t"}}),
        );
        assert_eq!(sent, json!({}));
    }

    #[test]
    fn what_no_longer_holds_is_deleted() {
        let sent = patch(
            json!({"lastFirmwareUpdate": null, "downloadComplete": null, "fwupdate": {"last": {"id": "1", "error": null}}}),
            json!({"lastFirmwareUpdate": "t", "fwupdate": {"operation": {"id": "2"}, "last": {"id": "1", "error": {"code": "x"}}}}),
        );
        assert_eq!(
            sent,
            json!({"lastFirmwareUpdate": null, "fwupdate": {"operation": null, "last": {"error": null}}})
        );
    }

    #[test]
    fn a_new_twin_is_made_whole_without_nulls() {
        let sent = patch(json!({"a": null, "fwupdate": {"x": {"y": null, "z": 1}}}), json!({"$version": 1}));
        assert_eq!(sent, json!({"fwupdate": {"x": {"z": 1}}}));
    }

    #[test]
    fn a_changed_type_replaces_and_arrays_are_sent_whole() {
        let sent =
            patch(json!({"a": {"b": 1}, "c": 1, "d": [1, 2]}), json!({"a": 1, "c": {"x": 1}, "d": [1, 3]}));
        assert_eq!(sent, json!({"a": {"b": 1}, "c": 1, "d": [1, 2]}));
    }
}
