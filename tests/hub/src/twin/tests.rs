//! The rules of twins, each by a small document.

use super::*;

const T1: &str = "2026-01-01T00:00:00.0000000Z";
const T2: &str = "2026-01-02T00:00:00.0000000Z";

#[test]
fn objects_merge_null_deletes_arrays_replace() {
    let mut twin = Twin::new(T1);
    twin.patch_reported(&json!({"a": {"b": 1, "c": 2}, "list": [1, 2]}), T1).unwrap();
    let version = twin.patch_reported(&json!({"a": {"b": null, "d": {"e": true}}, "list": [3]}), T2).unwrap();
    assert_eq!(version, 3);
    let expected = json!({"a": {"c": 2, "d": {"e": true}}, "list": [3], "$version": 3});
    assert_eq!(twin.for_device()["reported"], expected);
}

#[test]
fn a_scalar_becomes_an_object_and_the_other_way_round() {
    let mut twin = Twin::new(T1);
    twin.patch_reported(&json!({"a": 1, "b": {"c": 1}}), T1).unwrap();
    twin.patch_reported(&json!({"a": {"x": 1}, "b": "text"}), T2).unwrap();
    assert_eq!(twin.for_device()["reported"], json!({"a": {"x": 1}, "b": "text", "$version": 3}));
    assert_eq!(twin.properties()["reported"]["$metadata"]["b"], json!({"$lastUpdated": T2}));
}

#[test]
fn metadata_mirrors_the_tree_and_keeps_older_times() {
    let mut twin = Twin::new(T1);
    twin.patch_reported(&json!({"a": {"b": 1, "c": 2}}), T1).unwrap();
    twin.patch_reported(&json!({"a": {"b": 5}}), T2).unwrap();
    let metadata = &twin.properties()["reported"]["$metadata"];
    assert_eq!(metadata["$lastUpdated"], T2);
    assert_eq!(metadata["a"]["$lastUpdated"], T2);
    assert_eq!(metadata["a"]["b"]["$lastUpdated"], T2);
    assert_eq!(metadata["a"]["c"]["$lastUpdated"], T1);
    twin.patch_reported(&json!({"a": null}), T2).unwrap();
    assert!(twin.properties()["reported"]["$metadata"].get("a").is_none());
}

#[test]
fn the_device_is_told_the_patch_with_its_nulls() {
    let mut twin = Twin::new(T1);
    let body = json!({"properties": {"desired": {"a": 1, "b": null}}, "tags": {"site": "x"}});
    let notice = twin.patch(&body, T1).unwrap().unwrap();
    assert_eq!(notice, json!({"a": 1, "b": null, "$version": 2}));
    assert_eq!(twin.properties()["desired"]["$metadata"]["a"]["$lastUpdatedVersion"], 2);
    assert_eq!(twin.tags["site"], "x");
}

#[test]
fn only_tags_means_no_notice_but_a_new_etag() {
    let mut twin = Twin::new(T1);
    let before = twin.etag();
    assert_eq!(before, "AAAAAAAAAAE=");
    assert_eq!(twin.patch(&json!({"tags": {"a": 1}}), T1).unwrap(), None);
    assert_ne!(twin.etag(), before);
    assert_eq!(twin.desired.version, 1);
}

#[test]
fn replace_forgets_what_it_does_not_name() {
    let mut twin = Twin::new(T1);
    twin.patch(&json!({"properties": {"desired": {"a": 1, "b": 2}}}), T1).unwrap();
    let whole = json!({"properties": {"desired": {"b": 3, "$metadata": {}, "$version": 9}}});
    assert_eq!(twin.replace(&whole, T2).unwrap().unwrap(), json!({"b": 3, "$version": 3}));
    assert_eq!(twin.for_device()["desired"], json!({"b": 3, "$version": 3}));
}

#[test]
fn limits_refuse_the_whole_update() {
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({"k": inner}));
    let cases = [
        json!({"a": "x".repeat(4097)}),
        json!({"a.b": 1}),
        json!({"a": {"$b": 1}}),
        json!({"a b": 1}),
        json!({"": 1}),
        json!({"k".repeat(1025): 1}),
        json!({"n": 4_503_599_627_370_496_i64}),
        json!({"n": -4_503_599_627_370_497_i64}),
        json!({"n": u64::MAX}),
        json!({"n": [null]}),
        nested(12),
        json!([1]),
    ];
    for case in cases {
        let mut twin = Twin::new(T1);
        twin.patch_reported(&case, T1).expect_err(&case.to_string());
        assert_eq!(twin.reported.version, 1);
        assert!(twin.reported.properties.is_empty());
    }
    Twin::new(T1).patch_reported(&nested(11), T1).unwrap();
    let edge =
        json!({"s": "x".repeat(4096), "n": 4_503_599_627_370_495_i64, "m": -4_503_599_627_370_496_i64});
    Twin::new(T1).patch_reported(&edge, T1).unwrap();
}

#[test]
fn size_counts_the_merged_section() {
    let mut twin = Twin::new(T1);
    let value = "x".repeat(4094);
    for key in 'a'..='h' {
        twin.patch_reported(&json!({format!("k{key}"): value}), T1).unwrap();
    }
    let error = twin.patch_reported(&json!({"z": true}), T1).unwrap_err();
    assert_eq!(error, TwinError::TooLarge { section: "reported", size: 32768 + 5, limit: 32768 });
    twin.patch_reported(&json!({"ka": null, "z": true}), T1).unwrap();
}

#[test]
fn patches_cannot_nest_deeper_step_by_step() {
    let mut twin = Twin::new(T1);
    assert!(matches!(
        twin.patch(&json!({"tags": (0..12).fold(json!(1), |inner, _| json!({"k": inner}))}), T1),
        Err(TwinError::TooDeep { .. })
    ));
    assert_eq!(twin.version, 1);
}
