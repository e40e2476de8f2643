//! `--wait`: follow one operation to its outcome, also across restarts of the agent.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use fwupdate::control::{Client, ClientError};
use serde_json::Value;

use crate::run::Error;
use crate::show;

/// How long an agent that went away may take to come back.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(250);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// One line that is drawn again and again.
    Bar,
    /// A line for each new phase and each tenth of the download.
    Lines,
    /// Each status document as a line.
    Json,
}

/// What is followed, and how.
#[derive(Debug)]
pub struct Watch<'a> {
    pub socket: &'a Path,
    pub id: &'a str,
    pub style: Style,
    pub patience: Duration,
}

impl Watch<'_> {
    /// Shows progress until the operation is over; its `fwupdate.last`.
    pub fn until_done(&self, client: Client, out: &mut impl Write) -> Result<Value, Error> {
        let mut screen = Screen::new(self.style);
        let mut stream = client.watch();
        loop {
            match self.follow(stream, &mut screen, out) {
                Ok(last) => {
                    screen.finish(&last, out)?;
                    return Ok(last);
                }
                Err(Error::Client(ClientError::Unreachable { .. } | ClientError::Closed)) => {
                    screen.note("the agent restarts", out)?;
                    stream = self.reconnect();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn follow(
        &self,
        stream: Result<Client, ClientError>,
        screen: &mut Screen,
        out: &mut impl Write,
    ) -> Result<Value, Error> {
        let mut stream = stream?;
        loop {
            let document = stream.receive()?;
            let running = self.is_ours(&document, "/fwupdate/operation");
            if !running && self.is_ours(&document, "/fwupdate/last") {
                return Ok(document.pointer("/fwupdate/last").cloned().unwrap_or_default());
            }
            if !running && screen.seen {
                return Err(Error::LostTrack(self.id.to_owned()));
            }
            screen.seen |= running;
            screen.draw(&document, out)?;
        }
    }

    fn is_ours(&self, document: &Value, pointer: &str) -> bool {
        document.pointer(pointer).and_then(|o| o.get("id")).and_then(Value::as_str) == Some(self.id)
    }

    fn reconnect(&self) -> Result<Client, ClientError> {
        let since = Instant::now();
        loop {
            match Client::connect(self.socket).and_then(Client::watch) {
                Err(ClientError::Unreachable { .. }) if since.elapsed() < self.patience => {
                    std::thread::sleep(RETRY);
                }
                other => return other,
            }
        }
    }
}

/// What has been shown, so that only news is.
struct Screen {
    style: Style,
    /// Whether our operation was seen running.
    seen: bool,
    shown: String,
    /// Length of the drawn line, to be wiped by the next.
    drawn: usize,
    speed: Speed,
}

impl Screen {
    fn new(style: Style) -> Screen {
        Screen { style, seen: false, shown: String::new(), drawn: 0, speed: Speed::default() }
    }

    fn draw(&mut self, document: &Value, out: &mut impl Write) -> io::Result<()> {
        if self.style == Style::Json {
            writeln!(out, "{document}")?;
            return out.flush();
        }
        let Some(operation) = document.pointer("/fwupdate/operation").filter(|o| !o.is_null()) else {
            return Ok(());
        };
        let phase = operation.get("phase").and_then(Value::as_str).unwrap_or("waiting");
        let bytes = operation.get("downloadedBytes").and_then(Value::as_u64).unwrap_or(0);
        let speed = self.speed.at(Instant::now(), bytes);
        let mut text = format!("{phase:<11}");
        if phase == "staging" {
            text += &show::progress(operation, speed);
        }
        self.show(text.trim_end(), &key(phase, operation), out)
    }

    /// Shows `text`; as lines, only when `key` is another than that of the last.
    fn show(&mut self, text: &str, key: &str, out: &mut impl Write) -> io::Result<()> {
        match self.style {
            Style::Bar => {
                write!(out, "\r{text:<width$}", width = self.drawn)?;
                self.drawn = text.chars().count();
            }
            Style::Lines if key != self.shown => writeln!(out, "{text}")?,
            Style::Lines | Style::Json => {}
        }
        key.clone_into(&mut self.shown);
        out.flush()
    }

    fn note(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        self.show(text, text, out)
    }

    fn finish(&mut self, last: &Value, out: &mut impl Write) -> io::Result<()> {
        match self.style {
            Style::Json => writeln!(out, "{last}")?,
            Style::Bar if self.drawn > 0 => write!(out, "\n{}", show::outcome(last))?,
            _ => write!(out, "{}", show::outcome(last))?,
        }
        out.flush()
    }
}

/// What makes a line news: another phase, or another tenth of the download.
fn key(phase: &str, operation: &Value) -> String {
    let percent = operation.get("percent").and_then(Value::as_u64).unwrap_or(0);
    if phase == "staging" { format!("{phase} {}", percent / 10) } else { phase.to_owned() }
}

/// Download speed over the last few documents.
#[derive(Debug, Default)]
struct Speed {
    before: Option<(Instant, u64)>,
    average: Option<f64>,
}

impl Speed {
    /// Bytes a second, after `bytes` in all at `now`.
    fn at(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        let Some((then, old)) = self.before else {
            self.before = Some((now, bytes));
            return None;
        };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        if seconds >= 0.2 {
            let fresh = bytes.saturating_sub(old) as f64 / seconds;
            self.average = Some(self.average.map_or(fresh, |average| 0.7 * average + 0.3 * fresh));
            self.before = Some((now, bytes));
        }
        self.average.map(|average| average as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn speed_is_smoothed() {
        let (start, mut speed) = (Instant::now(), Speed::default());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(speed.at(at(0), 0), None);
        assert_eq!(speed.at(at(1000), 1000), Some(1000));
        assert_eq!(speed.at(at(1100), 9000), Some(1000), "too soon to tell");
        assert_eq!(speed.at(at(2000), 3000), Some(1300));
    }

    fn staging(percent: u64) -> Value {
        json!({"fwupdate": {"operation": {"id": "x", "phase": "staging", "percent": percent}}})
    }

    #[test]
    fn lines_are_news_only_and_a_bar_wipes_what_was_longer() {
        let mut out = Vec::new();
        let mut screen = Screen::new(Style::Lines);
        for percent in [1, 2, 9, 10, 11] {
            screen.draw(&staging(percent), &mut out).unwrap();
        }
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
        let mut out = Vec::new();
        let mut screen = Screen::new(Style::Bar);
        screen.note("a long line", &mut out).unwrap();
        screen.note("short", &mut out).unwrap();
        assert_eq!(out, b"\ra long line\rshort      ");
    }
}
