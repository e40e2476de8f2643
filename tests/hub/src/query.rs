//! `SELECT * FROM devices [WHERE ..]`: the part of IoT Hub's query language that finds devices by their twins.
//!
//! A missing property makes a comparison undefined, and undefined is neither true nor false: `NOT` keeps it so.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::vec::IntoIter;

use serde_json::Value;

/// Nested parentheses and NOTs; more is no honest query.
const DEPTH: usize = 64;

/// What is wrong with a query's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("only `SELECT * FROM devices [WHERE ..]` and `FROM devices.jobs` are imitated")]
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
    #[error("the condition is nested deeper than {DEPTH} levels")]
    TooDeep,
}

/// What is queried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Devices,
    /// `devices.jobs`: each device's part of each job.
    Jobs,
}

/// A parsed query.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    source: Source,
    condition: Option<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
enum Condition {
    /// A list and no tree: the length of a query must not become the depth of a recursion.
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Compare(Operand, Comparison, Operand),
    In(Operand, Vec<Operand>),
    Function(Function, Vec<Operand>),
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Vec<String>),
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
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

impl Query {
    pub fn parse(text: &str) -> Result<Query, QueryError> {
        let mut parser = Parser { tokens: tokens(text)?.into_iter().peekable(), depth: 0 };
        let head = ["select", "*", "from"];
        if !head.iter().all(|word| parser.take_word(word)) {
            return Err(QueryError::NotImitated);
        }
        let source = if parser.take_word("devices") {
            Source::Devices
        } else if parser.take_word("devices.jobs") {
            Source::Jobs
        } else {
            return Err(QueryError::NotImitated);
        };
        let condition = if parser.take_word("where") { Some(parser.either()?) } else { None };
        match parser.tokens.next() {
            None => Ok(Query { source, condition }),
            Some(_) if condition.is_none() => Err(QueryError::NotImitated),
            Some(token) => Err(unexpected("the end", &token)),
        }
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// Whether a twin or a row, as REST shows it, is selected.
    pub fn matches(&self, twin: &Value) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(twin) == Some(true))
    }
}

impl Condition {
    fn holds(&self, twin: &Value) -> Option<bool> {
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
    fn value<'a>(&'a self, twin: &'a Value) -> Option<&'a Value> {
        match self {
            Operand::Literal(value) => Some(value),
            Operand::Path(path) => path.iter().try_fold(twin, |value, key| value.get(key)),
        }
    }
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
    fn named(name: &str) -> Option<(Function, usize)> {
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

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A keyword, or a path with its dots.
    Word(String),
    Literal(Value),
    Sign(&'static str),
}

const SIGNS: [&str; 14] = ["!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", "[", "]", ",", "*", "."];

fn tokens(text: &str) -> Result<Vec<Token>, QueryError> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, left) = match first {
            '\'' | '"' => string(rest, first)?,
            '0'..='9' | '-' => number(rest)?,
            c if c.is_alphanumeric() || matches!(c, '_' | '$') => word(rest),
            _ => sign(rest)?,
        };
        found.push(token);
        rest = left.trim_start();
    }
    Ok(found)
}

/// A quote inside a string is doubled.
fn string(text: &str, quote: char) -> Result<(Token, &str), QueryError> {
    let mut value = String::new();
    let mut rest = text.get(1..).unwrap_or_default();
    loop {
        let Some((piece, after)) = rest.split_once(quote) else {
            return Err(QueryError::OpenString(text.chars().take(20).collect()));
        };
        value.push_str(piece);
        match after.strip_prefix(quote) {
            Some(more) => {
                value.push(quote);
                rest = more;
            }
            None => return Ok((Token::Literal(Value::String(value)), after)),
        }
    }
}

fn number(text: &str) -> Result<(Token, &str), QueryError> {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+')))
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let value: serde_json::Number = digits.parse().map_err(|_| QueryError::BadNumber(digits.to_owned()))?;
    Ok((Token::Literal(Value::Number(value)), rest))
}

fn word(text: &str) -> (Token, &str) {
    let end = text
        .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$' | '-' | '.')))
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let token = match word.to_ascii_lowercase().as_str() {
        "true" => Token::Literal(Value::Bool(true)),
        "false" => Token::Literal(Value::Bool(false)),
        "null" => Token::Literal(Value::Null),
        _ => Token::Word(word.to_owned()),
    };
    (token, rest)
}

fn sign(text: &str) -> Result<(Token, &str), QueryError> {
    let found = SIGNS.iter().find_map(|sign| text.strip_prefix(sign).map(|rest| (Token::Sign(sign), rest)));
    found.ok_or_else(|| QueryError::Unexpected {
        expected: "a condition",
        found: text.chars().take(20).collect(),
    })
}

struct Parser {
    tokens: Peekable<IntoIter<Token>>,
    depth: usize,
}

impl Parser {
    fn take_word(&mut self, wanted: &str) -> bool {
        self.tokens
            .next_if(|token| match token {
                Token::Word(word) => word.eq_ignore_ascii_case(wanted),
                Token::Sign(sign) => *sign == wanted,
                Token::Literal(_) => false,
            })
            .is_some()
    }

    fn expect(&mut self, wanted: &'static str) -> Result<(), QueryError> {
        if self.take_word(wanted) {
            return Ok(());
        }
        Err(self.tokens.peek().map_or(QueryError::Ends(wanted), |token| unexpected(wanted, token)))
    }

    fn either(&mut self) -> Result<Condition, QueryError> {
        self.chain("or", Condition::Any, Parser::both)
    }

    fn both(&mut self) -> Result<Condition, QueryError> {
        self.chain("and", Condition::All, Parser::single)
    }

    /// One part, or several with `word` between them.
    fn chain(
        &mut self,
        word: &str,
        join: fn(Vec<Condition>) -> Condition,
        part: fn(&mut Parser) -> Result<Condition, QueryError>,
    ) -> Result<Condition, QueryError> {
        let first = part(self)?;
        let mut parts = vec![first];
        while self.take_word(word) {
            parts.push(part(self)?);
        }
        Ok(join(parts))
    }

    fn single(&mut self) -> Result<Condition, QueryError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(QueryError::TooDeep);
        }
        let condition = if self.take_word("not") {
            Condition::Not(Box::new(self.single()?))
        } else if self.take_word("(") {
            let inner = self.either()?;
            self.expect(")")?;
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(condition)
    }

    fn test(&mut self) -> Result<Condition, QueryError> {
        let left = match self.tokens.next() {
            Some(Token::Word(name)) if self.tokens.peek() == Some(&Token::Sign("(")) => {
                return self.function(&name);
            }
            Some(token) => operand(token)?,
            None => return Err(QueryError::Ends("a condition")),
        };
        if self.take_word("not") {
            self.expect("in")?;
            return Ok(Condition::Not(Box::new(Condition::In(left, self.operands("[", "]")?))));
        }
        if self.take_word("in") {
            return Ok(Condition::In(left, self.operands("[", "]")?));
        }
        let how = self.comparison()?;
        let right = self.tokens.next().ok_or(QueryError::Ends("a value"))?;
        Ok(Condition::Compare(left, how, operand(right)?))
    }

    fn function(&mut self, name: &str) -> Result<Condition, QueryError> {
        let arguments = self.operands("(", ")")?;
        match Function::named(name) {
            Some((function, count)) if arguments.len() == count => {
                Ok(Condition::Function(function, arguments))
            }
            _ => Err(QueryError::UnknownFunction(name.to_owned())),
        }
    }

    fn comparison(&mut self) -> Result<Comparison, QueryError> {
        Ok(match self.tokens.next() {
            Some(Token::Sign("=")) => Comparison::Equal,
            Some(Token::Sign("!=" | "<>")) => Comparison::NotEqual,
            Some(Token::Sign("<")) => Comparison::Less,
            Some(Token::Sign("<=")) => Comparison::AtMost,
            Some(Token::Sign(">")) => Comparison::Greater,
            Some(Token::Sign(">=")) => Comparison::AtLeast,
            Some(token) => return Err(unexpected("a comparison", &token)),
            None => return Err(QueryError::Ends("a comparison")),
        })
    }

    fn operands(&mut self, open: &'static str, close: &'static str) -> Result<Vec<Operand>, QueryError> {
        self.expect(open)?;
        let mut found = Vec::new();
        if self.take_word(close) {
            return Ok(found);
        }
        loop {
            found.push(operand(self.tokens.next().ok_or(QueryError::Ends("a value"))?)?);
            if self.take_word(close) {
                return Ok(found);
            }
            self.expect(",")?;
        }
    }
}

fn operand(token: Token) -> Result<Operand, QueryError> {
    match token {
        Token::Literal(value) => Ok(Operand::Literal(value)),
        Token::Word(path) => {
            let path = ["devices.jobs.", "devices."]
                .iter()
                .find_map(|prefix| path.strip_prefix(prefix))
                .unwrap_or(&path);
            Ok(Operand::Path(path.split('.').map(str::to_owned).collect()))
        }
        Token::Sign(_) => Err(unexpected("a property or a value", &token)),
    }
}

fn unexpected(expected: &'static str, token: &Token) -> QueryError {
    let found = match token {
        Token::Word(word) => word.clone(),
        Token::Literal(value) => value.to_string(),
        Token::Sign(sign) => (*sign).to_owned(),
    };
    QueryError::Unexpected { expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        assert_eq!(parse("SELECT deviceId FROM devices"), QueryError::NotImitated);
        assert_eq!(parse("SELECT * FROM devices.modules"), QueryError::NotImitated);
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
}
