//! From a query's text to what it asks for.

use std::iter::Peekable;
use std::vec::IntoIter;

use serde_json::Value;

use super::condition::{Comparison, Condition, Function, Operand};
use super::{Columns, Query, QueryError, Source};

/// Nested parentheses and NOTs; more is no honest query.
pub const DEPTH: usize = 64;

pub fn query(text: &str) -> Result<Query, QueryError> {
    let mut parser = Parser { tokens: tokens(text)?.into_iter().peekable(), depth: 0 };
    if !parser.take_word("select") {
        return Err(QueryError::NotImitated);
    }
    let most = if parser.take_word("top") { Some(parser.count()?) } else { None };
    let columns = parser.columns()?;
    let source = parser.source()?;
    let condition = if parser.take_word("where") { Some(parser.either()?) } else { None };
    let by = if parser.take_word("group") { parser.group()? } else { Vec::new() };
    match parser.tokens.next() {
        None => Ok(Query { source, columns: grouped(columns, by)?, most, condition }),
        Some(_) if condition.is_none() => Err(QueryError::NotImitated),
        Some(token) => Err(unexpected("the end", &token)),
    }
}

/// A column as it is written.
enum Column {
    Property(String, Vec<String>),
    Count(String),
}

/// With `COUNT()` every other column must be one that is grouped by.
fn grouped(columns: Option<Vec<Column>>, by: Vec<Vec<String>>) -> Result<Columns, QueryError> {
    let Some(columns) = columns else {
        return if by.is_empty() { Ok(Columns::All) } else { Err(QueryError::NotImitated) };
    };
    let (mut properties, mut counts) = (Vec::new(), Vec::new());
    for column in columns {
        match column {
            Column::Property(name, path) => properties.push((name, path)),
            Column::Count(name) => counts.push(name),
        }
    }
    if counts.is_empty() && by.is_empty() {
        return Ok(Columns::Some(properties));
    }
    match properties.iter().find(|(_, path)| !by.contains(path)) {
        Some((_, path)) => Err(QueryError::NotGrouped(path.join("."))),
        None => Ok(Columns::Counts { grouped: properties, counts, by }),
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

/// A word, or a path; `[[..]]` quotes a part of one that holds other signs.
fn word(text: &str) -> (Token, &str) {
    let plain = |text: &str| {
        text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$' | '-' | '.')))
            .unwrap_or(text.len())
    };
    let mut end = plain(text);
    while let Some(quoted) = text.get(end..).and_then(|rest| rest.strip_prefix("[[")) {
        let Some(length) = quoted.find("]]") else { break };
        end += 2 + length + 2;
        end += plain(text.get(end..).unwrap_or_default());
    }
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

    fn count(&mut self) -> Result<usize, QueryError> {
        let number = self.tokens.next_if(|token| matches!(token, Token::Literal(Value::Number(_))));
        let count = number.and_then(|token| match token {
            Token::Literal(value) => usize::try_from(value.as_u64()?).ok(),
            _ => None,
        });
        count.ok_or(QueryError::Ends("a number of rows"))
    }

    /// `None`: all.
    fn columns(&mut self) -> Result<Option<Vec<Column>>, QueryError> {
        if self.take_word("*") {
            return Ok(None);
        }
        let mut columns = Vec::new();
        loop {
            columns.push(self.column()?);
            if !self.take_word(",") {
                return Ok(Some(columns));
            }
        }
    }

    fn column(&mut self) -> Result<Column, QueryError> {
        if self.take_word("count") {
            self.expect("(")?;
            self.expect(")")?;
            self.expect("as")?;
            return Ok(Column::Count(self.word()?));
        }
        let path = path(&self.word()?);
        let name = if self.take_word("as") { self.word()? } else { path.last().cloned().unwrap_or_default() };
        Ok(Column::Property(name, path))
    }

    fn source(&mut self) -> Result<Source, QueryError> {
        self.expect("from")?;
        let sources = [
            ("devices", Source::Devices),
            ("devices.modules", Source::Modules),
            ("devices.jobs", Source::Jobs),
        ];
        let found = sources.into_iter().find(|(word, _)| self.take_word(word));
        found.map(|(_, source)| source).ok_or(QueryError::NotImitated)
    }

    fn group(&mut self) -> Result<Vec<Vec<String>>, QueryError> {
        self.expect("by")?;
        let mut by = Vec::new();
        loop {
            by.push(path(&self.word()?));
            if !self.take_word(",") {
                return Ok(by);
            }
        }
    }

    fn word(&mut self) -> Result<String, QueryError> {
        match self.tokens.next() {
            Some(Token::Word(word)) => Ok(word),
            Some(token) => Err(unexpected("a name", &token)),
            None => Err(QueryError::Ends("a name")),
        }
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
        Token::Word(word) => Ok(Operand::Path(path(&word))),
        Token::Sign(_) => Err(unexpected("a property or a value", &token)),
    }
}

/// The parts of a path; the source's own name in front of it says nothing.
fn path(word: &str) -> Vec<String> {
    let sources = ["devices.jobs.", "devices.modules.", "devices."];
    let mut rest = sources.iter().find_map(|prefix| word.strip_prefix(prefix)).unwrap_or(word);
    let mut parts = Vec::new();
    loop {
        let quoted = rest.strip_prefix("[[").and_then(|inner| inner.split_once("]]"));
        let (part, after) = match quoted {
            Some((part, after)) => (part, after.strip_prefix('.')),
            None => rest.split_once('.').map_or((rest, None), |(part, after)| (part, Some(after))),
        };
        parts.push(part.to_owned());
        match after {
            Some(after) => rest = after,
            None => return parts,
        }
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
