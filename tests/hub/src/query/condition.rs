//! What a WHERE says: conditions over one row, with three values of truth.
//!
//! A missing property makes a comparison undefined, and undefined is neither true nor false: `NOT` keeps it so.

use std::cmp::Ordering;

use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// A list and no tree: the length of a query must not become the depth of a recursion.
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Compare(Operand, Comparison, Operand),
    In(Operand, Vec<Operand>),
    Function(Function, Vec<Operand>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    Path(Vec<String>),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    IsDefined,
    IsNull,
    IsBool,
    IsNumber,
    IsString,
    IsObject,
    StartsWith,
    EndsWith,
    Contains,
}

impl Condition {
    pub fn holds(&self, twin: &Value) -> Option<bool> {
        match self {
            Condition::All(conditions) => all(conditions.iter().map(|condition| condition.holds(twin))),
            Condition::Any(conditions) => {
                let refuted = conditions.iter().map(|condition| condition.holds(twin).map(|held| !held));
                all(refuted).map(|none| !none)
            }
            Condition::Not(inner) => inner.holds(twin).map(|held| !held),
            Condition::Compare(a, how, b) => compare(a.value(twin)?, *how, b.value(twin)?),
            Condition::In(needle, items) => {
                let needle = needle.value(twin)?;
                let found = |item: &Operand| {
                    item.value(twin).and_then(|item| compare(needle, Comparison::Equal, item))
                };
                Some(items.iter().any(|item| found(item) == Some(true)))
            }
            Condition::Function(function, arguments) => function.call(arguments, twin),
        }
    }
}

/// Three-valued AND: false if any is false, undefined if any is undefined, else true.
fn all(values: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut outcome = Some(true);
    for value in values {
        match value {
            Some(false) => return Some(false),
            Some(true) => {}
            None => outcome = None,
        }
    }
    outcome
}

impl Operand {
    pub fn value<'a>(&'a self, twin: &'a Value) -> Option<&'a Value> {
        match self {
            Operand::Literal(value) => Some(value),
            Operand::Path(path) => value_at(twin, path),
        }
    }
}

/// The property at this path of a row.
pub fn value_at<'a>(row: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(row, |value, key| value.get(key))
}

fn compare(a: &Value, how: Comparison, b: &Value) -> Option<bool> {
    let order = match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    match (how, order) {
        (Comparison::Equal, None) => Some(a == b),
        (Comparison::NotEqual, None) => Some(a != b),
        (_, None) => None,
        (Comparison::Equal, Some(order)) => Some(order == Ordering::Equal),
        (Comparison::NotEqual, Some(order)) => Some(order != Ordering::Equal),
        (Comparison::Less, Some(order)) => Some(order == Ordering::Less),
        (Comparison::AtMost, Some(order)) => Some(order != Ordering::Greater),
        (Comparison::Greater, Some(order)) => Some(order == Ordering::Greater),
        (Comparison::AtLeast, Some(order)) => Some(order != Ordering::Less),
    }
}

impl Function {
    /// The function of that name and its number of arguments.
    pub fn named(name: &str) -> Option<(Function, usize)> {
        Some(match name.to_ascii_lowercase().as_str() {
            "is_defined" => (Function::IsDefined, 1),
            "is_null" => (Function::IsNull, 1),
            "is_bool" => (Function::IsBool, 1),
            "is_number" => (Function::IsNumber, 1),
            "is_string" => (Function::IsString, 1),
            "is_object" => (Function::IsObject, 1),
            "startswith" | "starts_with" => (Function::StartsWith, 2),
            "endswith" | "ends_with" => (Function::EndsWith, 2),
            "contains" => (Function::Contains, 2),
            _ => return None,
        })
    }

    fn call(self, arguments: &[Operand], twin: &Value) -> Option<bool> {
        let first = arguments.first().and_then(|operand| operand.value(twin));
        let second = arguments.get(1).and_then(|operand| operand.value(twin));
        let texts = || Some((first?.as_str()?, second?.as_str()?));
        match self {
            Function::IsDefined => Some(first.is_some()),
            Function::IsNull => Some(first.is_some_and(Value::is_null)),
            Function::IsBool => Some(first.is_some_and(Value::is_boolean)),
            Function::IsNumber => Some(first.is_some_and(Value::is_number)),
            Function::IsString => Some(first.is_some_and(Value::is_string)),
            Function::IsObject => Some(first.is_some_and(Value::is_object)),
            Function::StartsWith => texts().map(|(text, part)| text.starts_with(part)),
            Function::EndsWith => texts().map(|(text, part)| text.ends_with(part)),
            Function::Contains => texts().map(|(text, part)| text.contains(part)),
        }
    }
}
