//! What queries select, and how bad ones are refused.

use serde_json::{Value, json};

use super::{Query, QueryError};

fn twin() -> Value {
    json!({
        "deviceId": "gw-1", "status": "enabled", "connectionState": "Connected",
        "tags": {"site": "Berlin", "floor": 3, "it's": 1},
        "properties": {"desired": {}, "reported": {"firmwareStatus": "failed", "fwupdate": {"operation": {"percent": 42.5}}, "on": true}},
    })
}

fn holds(condition: &str) -> bool {
    let query = Query::parse(&format!("SELECT * FROM devices WHERE {condition}"));
    query.unwrap_or_else(|error| panic!("{condition}: {error}")).matches(&twin())
}

#[test]
fn conditions_that_hold() {
    for condition in [
        "deviceId = 'gw-1'",
        "devices.deviceId = \"gw-1\"",
        "status='enabled' AND connectionState='Connected'",
        "tags.floor > 2 and tags.floor < 4 AND tags.floor >= 3 AND tags.floor <= 3",
        "tags.floor != 4",
        "tags.floor <> -4",
        "properties.reported.fwupdate.operation.percent = 42.5",
        "properties.reported.on = true",
        "tags.site IN ['Hamburg', 'Berlin']",
        "tags.site NOT IN ['Hamburg']",
        "NOT (tags.site = 'Hamburg' OR tags.floor = 4)",
        "tags.site = 'x' OR tags.site = 'Berlin' AND tags.floor = 3",
        "tags.nothing = 1 OR tags.floor = 3",
        "NOT (tags.nothing = 1 AND tags.floor = 4)",
        "is_defined(properties.reported.firmwareStatus)",
        "NOT is_defined(properties.reported.nothing)",
        "startswith(deviceId, 'gw-') AND endswith(deviceId, '1') AND contains(tags.site, 'erl')",
        "is_number(tags.floor) AND is_string(tags.site) AND is_object(tags) AND is_bool(properties.reported.on)",
    ] {
        assert!(holds(condition), "{condition}");
    }
}

#[test]
fn conditions_that_do_not() {
    for condition in [
        "deviceId = 'GW-1'",
        "tags.floor = '3'",
        "tags.nothing = 1",
        "tags.nothing != 1",
        "NOT tags.nothing = 1",
        "NOT (tags.nothing = 1 AND tags.floor = 3)",
        "NOT (tags.nothing = 1 OR tags.floor = 4)",
        "tags.site > 3",
        "tags.site IN []",
        "tags.nothing NOT IN [1]",
        "tags.site = 'Berlin' AND tags.nothing = 1",
        "(tags.site = 'x' OR tags.site = 'Berlin') AND tags.floor = 4",
    ] {
        assert!(!holds(condition), "{condition}");
    }
}

#[test]
fn a_doubled_quote_is_a_quote() {
    let query = Query::parse("select * from devices where tags.name = 'it''s'").unwrap();
    assert!(query.matches(&json!({"tags": {"name": "it's"}})));
}

#[test]
fn a_long_query_needs_no_deep_stack() {
    let long = "tags.floor = 1 OR ".repeat(100_000);
    assert!(holds(&format!("{long} tags.floor = 3")));
    let long = "tags.floor = 3 AND ".repeat(100_000);
    assert!(!holds(&format!("{long} tags.floor = 1")));
}

#[test]
fn no_condition_takes_all() {
    assert!(Query::parse("  select * FROM Devices ").unwrap().matches(&twin()));
}

#[test]
fn bad_queries_are_explained() {
    let parse = |text: &str| Query::parse(text).unwrap_err();
    assert_eq!(parse("SELECT * FROM twins"), QueryError::NotImitated);
    assert_eq!(parse("SELECT 1"), QueryError::Unexpected { expected: "a name", found: "1".into() });
    assert_eq!(parse("SELECT * FROM devices GROUP BY tags.site"), QueryError::NotImitated);
    let alone = parse("SELECT tags.site, COUNT() AS n FROM devices");
    assert_eq!(alone, QueryError::NotGrouped("tags.site".into()));
    assert_eq!(parse("SELECT * FROM devices WHERE"), QueryError::Ends("a condition"));
    assert_eq!(parse("SELECT * FROM devices WHERE a = "), QueryError::Ends("a value"));
    assert_eq!(parse("SELECT * FROM devices WHERE (a = 1"), QueryError::Ends(")"));
    assert_eq!(parse("SELECT * FROM devices WHERE a = 'x"), QueryError::OpenString("'x".into()));
    assert_eq!(parse("SELECT * FROM devices WHERE a = 1x"), QueryError::BadNumber("1x".into()));
    assert_eq!(parse("SELECT * FROM devices WHERE f(a)"), QueryError::UnknownFunction("f".into()));
    assert!(matches!(parse("SELECT * FROM devices WHERE a = 1 b"), QueryError::Unexpected { .. }));
    assert!(matches!(parse("SELECT * FROM devices WHERE é ; 1"), QueryError::Unexpected { .. }));
    let deep = format!("SELECT * FROM devices WHERE {}a = 1", "(".repeat(100_000));
    assert_eq!(parse(&deep), QueryError::TooDeep);
    let deep = format!("SELECT * FROM devices WHERE {} a = 1", "NOT ".repeat(100_000));
    assert_eq!(parse(&deep), QueryError::TooDeep);
}

fn answer(query: &str) -> Vec<Value> {
    let rows = [("a", "Berlin", json!(1)), ("b", "Paris", json!(2)), ("c", "Berlin", Value::Null)];
    let rows = rows.map(|(id, site, floor)| {
        (id.to_owned(), json!({"deviceId": id, "tags": {"site": site, "floor": floor}, "configurations": {"fw-1.x": {"status": "Applied"}}}))
    });
    let query = Query::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    let selected = rows.into_iter().filter(|(_, row)| query.matches(row)).collect();
    query.answer(selected).into_iter().map(|(_, row)| row).collect()
}

#[test]
fn columns_are_picked_named_and_counted() {
    let ids = answer("SELECT deviceId, tags.floor AS f FROM devices WHERE tags.site = 'Berlin'");
    assert_eq!(ids, [json!({"deviceId": "a", "f": 1}), json!({"deviceId": "c", "f": null})]);
    assert_eq!(answer("SELECT tags.nothing FROM devices WHERE deviceId = 'a'"), [json!({})]);
    assert_eq!(answer("SELECT TOP 2 deviceId FROM devices").len(), 2);
    assert_eq!(answer("SELECT COUNT() AS n FROM devices WHERE tags.floor > 0"), [json!({"n": 2})]);
    assert_eq!(answer("SELECT COUNT() AS n FROM devices WHERE tags.floor > 9"), [json!({"n": 0})]);
    let groups = answer("SELECT tags.site AS site, COUNT() AS n FROM devices GROUP BY tags.site");
    assert_eq!(groups, [json!({"site": "Berlin", "n": 2}), json!({"site": "Paris", "n": 1})]);
}

#[test]
fn a_part_of_a_path_may_be_quoted() {
    assert_eq!(
        answer("SELECT deviceId FROM devices WHERE configurations.[[fw-1.x]].status = 'Applied'").len(),
        3
    );
    assert!(
        answer("SELECT deviceId FROM devices WHERE configurations.[[other]].status = 'Applied'").is_empty()
    );
    assert!(Query::parse("SELECT * FROM devices WHERE configurations.[[open = 1").is_err());
}

#[test]
fn a_condition_alone_selects_devices_or_modules() {
    use super::Source;
    for (condition, source) in [
        ("*", Source::Devices),
        ("", Source::Devices),
        ("tags.site = 'Berlin'", Source::Devices),
        ("from devices.modules where moduleId = 'm'", Source::Modules),
    ] {
        assert_eq!(Query::of_condition(condition).unwrap().source(), source, "{condition}");
    }
    assert!(Query::of_condition("tags.site =").is_err());
}
