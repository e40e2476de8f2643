//! The kinds of values that settings have: how each is read from a file, and shown in the effective settings.

use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

use super::{Window, units};

mod particular;

pub use particular::{Command, HostName, Hosts, IdScope, JsonObject, SlotDevice};

/// A kind of value.
pub trait Kind {
    /// What it is read as.
    type Value;

    /// No message may show what was found.
    const IS_SECRET: bool = false;

    /// The error says what was expected.
    fn read(found: &Value) -> Result<Self::Value, String>;

    /// As it is read again; `None`: it is not set.
    fn show(value: &Self::Value) -> Option<Value>;

    /// What counts where nothing is set; `None`: something must be.
    fn absent() -> Option<Self::Value> {
        None
    }
}

/// What may be left open.
impl<K: Kind> Kind for Option<K> {
    type Value = Option<K::Value>;

    const IS_SECRET: bool = K::IS_SECRET;

    fn read(found: &Value) -> Result<Self::Value, String> {
        K::read(found).map(Some)
    }

    fn show(value: &Self::Value) -> Option<Value> {
        value.as_ref().and_then(K::show)
    }

    fn absent() -> Option<Self::Value> {
        Some(None)
    }
}

/// A text that is not empty.
#[derive(Debug)]
pub struct Text;

impl Kind for Text {
    type Value = String;

    fn read(found: &Value) -> Result<String, String> {
        text(found).ok_or_else(|| "a text that is not empty".to_owned())
    }

    fn show(text: &String) -> Option<Value> {
        Some(text.clone().into())
    }
}

/// A text that no message may show.
#[derive(Debug)]
pub struct Hidden;

impl Kind for Hidden {
    type Value = String;

    const IS_SECRET: bool = true;

    fn read(found: &Value) -> Result<String, String> {
        Text::read(found)
    }

    fn show(_: &String) -> Option<Value> {
        Some("***".into())
    }
}

/// An absolute path.
#[derive(Debug)]
pub struct Absolute;

impl Kind for Absolute {
    type Value = PathBuf;

    fn read(found: &Value) -> Result<PathBuf, String> {
        let path = text(found).map(PathBuf::from).filter(|path| path.is_absolute());
        path.ok_or_else(|| "an absolute path".to_owned())
    }

    fn show(path: &PathBuf) -> Option<Value> {
        Some(path.display().to_string().into())
    }
}

/// True or false.
#[derive(Debug)]
pub struct Flag;

impl Kind for Flag {
    type Value = bool;

    fn read(found: &Value) -> Result<bool, String> {
        found.as_bool().ok_or_else(|| "true or false".to_owned())
    }

    fn show(flag: &bool) -> Option<Value> {
        Some((*flag).into())
    }
}

/// An integer from `MIN` to `MAX`.
#[derive(Debug)]
pub struct Number<T, const MIN: u16, const MAX: u16>(T);

impl<T: Copy + TryFrom<u16> + TryInto<i64>, const MIN: u16, const MAX: u16> Kind for Number<T, MIN, MAX> {
    type Value = T;

    fn read(found: &Value) -> Result<T, String> {
        let number = found.as_integer().and_then(|number| u16::try_from(number).ok());
        let number = number.filter(|number| (MIN..=MAX).contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| format!("an integer from {MIN} to {MAX}"))
    }

    fn show(number: &T) -> Option<Value> {
        Some((*number).try_into().unwrap_or(i64::MAX).into())
    }
}

/// Milliseconds, as bounds of a [`Span`].
pub const TICK: u64 = 10;
pub const SECOND: u64 = 1000;
pub const HOUR: u64 = 3_600_000;
pub const DAY: u64 = 86_400_000;

/// A duration from `MIN` to `MAX` milliseconds.
#[derive(Debug)]
pub struct Span<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Kind for Span<MIN, MAX> {
    type Value = Duration;

    fn read(found: &Value) -> Result<Duration, String> {
        span(found, Duration::from_millis(MIN), Duration::from_millis(MAX))
    }

    fn show(span: &Duration) -> Option<Value> {
        Some(units::show_duration(*span).into())
    }
}

/// A duration from `min` to `max`.
pub fn span(found: &Value, min: Duration, max: Duration) -> Result<Duration, String> {
    let span = match found {
        Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
        Value::String(text) => units::duration(text),
        _ => None,
    };
    span.filter(|span| (min..=max).contains(span)).ok_or_else(|| {
        let (low, high) = (units::show_duration(min), units::show_duration(max));
        format!("a duration such as \"30s\", \"5min\" or \"2d\", from {low} to {high}")
    })
}

/// A number of bytes above zero; a rate may end in `/s`.
#[derive(Debug)]
pub struct Bytes;

impl Kind for Bytes {
    type Value = u64;

    fn read(found: &Value) -> Result<u64, String> {
        let bytes = match found {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::String(text) => units::size(text.strip_suffix("/s").unwrap_or(text)),
            _ => None,
        };
        let bytes = bytes.filter(|bytes| *bytes > 0);
        bytes.ok_or_else(|| "bytes above zero: an integer, or a text such as \"512KiB\"".to_owned())
    }

    /// TOML's integers are signed; a larger one can't have been read.
    fn show(bytes: &u64) -> Option<Value> {
        Some(i64::try_from(*bytes).unwrap_or(i64::MAX).into())
    }
}

/// A list of texts that are not empty.
#[derive(Debug)]
pub struct Texts;

impl Kind for Texts {
    type Value = Vec<String>;

    fn read(found: &Value) -> Result<Vec<String>, String> {
        items(found, text).ok_or_else(|| "a list of texts that are not empty".to_owned())
    }

    fn show(texts: &Vec<String>) -> Option<Value> {
        Some(texts.clone().into())
    }
}

/// A list of daily windows.
#[derive(Debug)]
pub struct Windows;

impl Kind for Windows {
    type Value = Vec<Window>;

    fn read(found: &Value) -> Result<Vec<Window>, String> {
        items(found, |item| units::window(&text(item)?))
            .ok_or_else(|| "a list of daily UTC windows such as \"22:00-04:00\"".to_owned())
    }

    fn show(windows: &Vec<Window>) -> Option<Value> {
        Some(windows.iter().map(|window| units::show_window(*window)).collect::<Vec<_>>().into())
    }
}

fn text(found: &Value) -> Option<String> {
    match found {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        _ => None,
    }
}

fn items<T>(found: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    found.as_array()?.iter().map(read).collect()
}
