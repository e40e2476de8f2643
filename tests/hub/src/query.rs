//! IoT Hub's query language, as far as people ask it about devices, modules and jobs.
//!
//! `SELECT * | [TOP n] columns FROM devices | devices.modules | devices.jobs [WHERE ..] [GROUP BY ..]`, where a
//! column is a property or `COUNT() AS name`. Rules: Azure's "IoT Hub query language".

mod condition;
mod parse;

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use self::condition::{Condition, value_at};

/// What is wrong with a query's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error(
        "only `SELECT .. FROM devices`, `FROM devices.modules` and `FROM devices.jobs`, with WHERE and GROUP BY, are \
         imitated"
    )]
    NotImitated,
    #[error("the query ends where {0} is expected")]
    Ends(&'static str),
    #[error("{expected} is expected at {found:?}")]
    Unexpected { expected: &'static str, found: String },
    #[error("the string that starts with {0:?} has no closing quote")]
    OpenString(String),
    #[error("{0:?} is no number")]
    BadNumber(String),
    #[error("the function {0} is not imitated, or does not take that many arguments")]
    UnknownFunction(String),
    #[error("the condition is nested deeper than {} levels", parse::DEPTH)]
    TooDeep,
    #[error("{0} stands beside COUNT() and is not in GROUP BY")]
    NotGrouped(String),
}

/// What is queried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Devices,
    Modules,
    /// `devices.jobs`: each device's part of each job.
    Jobs,
}

/// What each row of the answer holds.
#[derive(Debug, Clone, PartialEq)]
enum Columns {
    /// `*`
    All,
    /// Name and path.
    Some(Vec<(String, Vec<String>)>),
    /// One row for each group: the grouped properties, and under these names how many rows it has.
    Counts { grouped: Vec<(String, Vec<String>)>, counts: Vec<String>, by: Vec<Vec<String>> },
}

/// A parsed query.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    source: Source,
    columns: Columns,
    /// `TOP n`
    most: Option<usize>,
    condition: Option<Condition>,
}

impl Query {
    /// Reads a whole query.
    pub fn parse(text: &str) -> Result<Query, QueryError> {
        parse::query(text)
    }

    /// Reads a condition alone, as jobs and configurations have it: `*` or nothing selects every device, and a
    /// target condition for modules begins with `FROM devices.modules WHERE`.
    pub fn of_condition(condition: &str) -> Result<Query, QueryError> {
        let condition = condition.trim();
        if matches!(condition, "*" | "") {
            return Query::parse("SELECT * FROM devices");
        }
        let from = condition.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("from "));
        let text = if from { condition.to_owned() } else { format!("FROM devices WHERE {condition}") };
        Query::parse(&format!("SELECT * {text}"))
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// The value of `x-ms-item-type`.
    pub fn item_type(&self) -> &'static str {
        match (&self.columns, self.source) {
            (Columns::All, Source::Jobs) => "DeviceJob",
            (Columns::All, _) => "Twin",
            _ => "Raw",
        }
    }

    /// Whether a twin or a row, as REST shows it, is selected.
    pub fn matches(&self, row: &Value) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(row) == Some(true))
    }

    /// The answer, from rows that are selected; each has a place by which it is ordered and pages are cut.
    pub fn answer(&self, selected: Vec<(String, Value)>) -> Vec<(String, Value)> {
        let mut rows: Vec<_> = match &self.columns {
            Columns::All => selected,
            Columns::Some(columns) => {
                selected.into_iter().map(|(place, row)| (place, project(columns, &row))).collect()
            }
            Columns::Counts { grouped, counts, by } => count(grouped, counts, by, &selected),
        };
        rows.truncate(self.most.unwrap_or(usize::MAX));
        rows
    }
}

/// A property that a row lacks is left out, as by Azure.
fn project(columns: &[(String, Vec<String>)], row: &Value) -> Value {
    let found = columns.iter().filter_map(|(name, path)| Some((name.clone(), value_at(row, path)?.clone())));
    Value::Object(found.collect())
}

fn count(
    grouped: &[(String, Vec<String>)],
    counts: &[String],
    by: &[Vec<String>],
    rows: &[(String, Value)],
) -> Vec<(String, Value)> {
    let alike = |a: &Value, b: &Value| by.iter().all(|path| value_at(a, path) == value_at(b, path));
    let mut groups: Vec<Vec<&Value>> = Vec::new();
    for (_, row) in rows {
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| alike(first, row))) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    if by.is_empty() && groups.is_empty() {
        groups.push(Vec::new());
    }
    let numbered = groups.into_iter().enumerate();
    let shown = numbered.map(|(number, group)| {
        let mut shown = group.first().map_or_else(|| json!({}), |first| project(grouped, first));
        if let Some(shown) = shown.as_object_mut() {
            shown.extend(counts.iter().map(|name| (name.clone(), group.len().into())));
        }
        (format!("{number:08}"), shown)
    });
    shown.collect()
}
