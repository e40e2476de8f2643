//! The places in a configuration, a twin and an answer that matter here, and how they are named in queries.

use serde_json::Value;

/// Where a configuration writes.
pub const SECTION: &str = "properties.desired.fwupdate";
/// Where gateways tell what became of it.
pub const REPORTED: &str = "properties.reported.fwupdate";

/// A string of the query language.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The section that a configuration writes.
pub fn update(configuration: &Value) -> Option<&Value> {
    configuration.get("content")?.get("deviceContent")?.get(SECTION)
}

pub fn text<'a>(document: &'a Value, pointer: &str) -> Option<&'a str> {
    document.pointer(pointer).and_then(Value::as_str)
}
