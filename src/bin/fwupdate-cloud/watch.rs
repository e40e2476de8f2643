//! Follows one update in a gateway's twin, through its reboots, to the outcome.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Error;
use crate::service::Service;
use crate::show;

/// Between two looks at the twin: one read of a hub's hundred a second.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the hub may be out of reach, or the twin silent about the operation, before that is an error.
const PATIENCE: Duration = Duration::from_secs(120);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// One line that is drawn again and again.
    Bar,
    /// A line for each news.
    Lines,
    /// The reported properties as a line, whenever they changed.
    Json,
}

/// What is followed, and how.
#[derive(Debug)]
pub struct Watch<'a> {
    pub service: &'a Service,
    pub device: &'a str,
    pub style: Style,
}

/// What a twin says of the operation that is followed.
#[derive(Debug, PartialEq)]
enum State {
    Running,
    Ended(Value),
    /// It is not there (yet).
    Absent,
}

impl Watch<'_> {
    /// Shows progress until the operation is over; its `fwupdate.last`. Without `id`: the operation that runs,
    /// else the last one.
    pub async fn until_done(&self, id: Option<String>, out: &mut impl Write) -> Result<Value, Error> {
        let mut screen = Screen::new(self.style);
        let (mut id, mut seen, mut quiet) = (id, false, Instant::now());
        loop {
            match self.service.twin(self.device).await {
                Err(Error::Unreachable(why)) if quiet.elapsed() < PATIENCE => screen.note(&why, out)?,
                Err(error) => return Err(error),
                Ok(twin) => {
                    let reported = twin.pointer("/properties/reported").unwrap_or(&Value::Null);
                    let followed = id.get_or_insert_with(|| newest(reported)).clone();
                    match state(reported, &followed) {
                        State::Ended(last) => {
                            screen.finish(&last, out)?;
                            return Ok(last);
                        }
                        State::Running => {
                            (seen, quiet) = (true, Instant::now());
                            screen.draw(&twin, reported, out)?;
                        }
                        State::Absent if seen || quiet.elapsed() >= PATIENCE => {
                            return Err(lost(self.device, &followed));
                        }
                        State::Absent if followed.is_empty() => return Err(nothing(self.device)),
                        State::Absent => {}
                    }
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// The operation that runs, else the one that ended last; empty when there is none.
fn newest(reported: &Value) -> String {
    let id = |place: &str| reported.pointer(place).and_then(Value::as_str).map(str::to_owned);
    id("/fwupdate/operation/id").or_else(|| id("/fwupdate/last/id")).unwrap_or_default()
}

fn state(reported: &Value, id: &str) -> State {
    let at = |place: &str| {
        reported.pointer(place).filter(|found| found.get("id").and_then(Value::as_str) == Some(id))
    };
    match (at("/fwupdate/operation"), at("/fwupdate/last")) {
        (Some(_), _) => State::Running,
        (None, Some(last)) => State::Ended(last.clone()),
        (None, None) => State::Absent,
    }
}

fn lost(device: &str, id: &str) -> Error {
    let message = format!(
        "the twin of {device} no longer tells of operation {id}; look with `fwupdate-cloud twin {device}`"
    );
    Error::failed("NotFound", message)
}

fn nothing(device: &str) -> Error {
    Error::failed(
        "NotFound",
        format!("{device} never reported an update: start one with `fwupdate-cloud invoke`"),
    )
}

/// What has been shown, so that only news is.
struct Screen {
    style: Style,
    shown: String,
    /// Length of the drawn line, to be wiped by the next.
    drawn: usize,
    speed: Speed,
}

impl Screen {
    fn new(style: Style) -> Screen {
        Screen { style, shown: String::new(), drawn: 0, speed: Speed::default() }
    }

    fn draw(&mut self, twin: &Value, reported: &Value, out: &mut impl Write) -> io::Result<()> {
        if self.style == Style::Json {
            let line = reported.to_string();
            if line != self.shown {
                writeln!(out, "{line}")?;
                self.shown = line;
            }
            return out.flush();
        }
        let Some(operation) = reported.pointer("/fwupdate/operation") else { return Ok(()) };
        let phase = operation.get("phase").and_then(Value::as_str).unwrap_or("waiting");
        let mut text = format!("{phase:<11}");
        if phase == "staging" {
            let bytes = operation.get("downloadedBytes").and_then(Value::as_u64).unwrap_or(0);
            text += &show::progress(operation, self.speed.at(Instant::now(), bytes));
        }
        if twin.get("connectionState").and_then(Value::as_str) == Some("Disconnected") {
            text += " (not connected)";
        }
        self.show(text.trim_end(), out)
    }

    fn show(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        match self.style {
            Style::Bar => {
                write!(out, "\r{text:<width$}", width = self.drawn)?;
                self.drawn = text.chars().count();
            }
            Style::Lines if text != self.shown => writeln!(out, "{text}")?,
            Style::Lines | Style::Json => {}
        }
        text.clone_into(&mut self.shown);
        out.flush()
    }

    /// Something else to tell; in JSON there is no place for it.
    fn note(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        if self.style == Style::Json { Ok(()) } else { self.show(text, out) }
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

/// Download speed between the last two reports: a gateway reports far more seldom than this program looks.
#[derive(Debug, Default)]
struct Speed {
    since: Option<(Instant, u64)>,
    last: Option<u64>,
}

impl Speed {
    /// Bytes a second, after `bytes` in all at `now`; `None` until a second report tells.
    fn at(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        match self.since {
            Some((_, before)) if bytes == before => {}
            Some((then, before)) => {
                let seconds = now.saturating_duration_since(then).as_secs_f64().max(0.1);
                self.last = Some((bytes.saturating_sub(before) as f64 / seconds) as u64);
                self.since = Some((now, bytes));
            }
            None => self.since = Some((now, bytes)),
        }
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_operation_is_found_running_then_ended() {
        let twin = json!({"fwupdate": {"operation": {"id": "b"}, "last": {"id": "a", "result": "failed"}}});
        assert_eq!(newest(&twin), "b");
        assert_eq!(state(&twin, "b"), State::Running);
        assert_eq!(state(&twin, "a"), State::Ended(json!({"id": "a", "result": "failed"})));
        assert_eq!(state(&twin, "c"), State::Absent);
        let rest = json!({"fwupdate": {"last": {"id": "a"}}});
        assert_eq!(newest(&rest), "a");
        assert_eq!(newest(&json!({})), "");
    }

    #[test]
    fn speed_is_that_between_reports() {
        let (start, mut speed) = (Instant::now(), Speed::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(speed.at(at(0), 100), None);
        assert_eq!(speed.at(at(5), 100), None, "no news");
        assert_eq!(speed.at(at(10), 1100), Some(100));
        assert_eq!(speed.at(at(11), 1100), Some(100), "what it was, until there is news");
    }

    #[test]
    fn lines_are_news_only_and_json_is_one_document_a_line() {
        let reported = |percent: u64| json!({"fwupdate": {"operation": {"id": "x", "phase": "staging", "percent": percent}}});
        for (style, lines) in [(Style::Lines, 2), (Style::Json, 2)] {
            let (mut out, mut screen) = (Vec::new(), Screen::new(style));
            for percent in [10, 10, 20] {
                screen.draw(&json!({}), &reported(percent), &mut out).unwrap();
            }
            assert_eq!(String::from_utf8(out).unwrap().lines().count(), lines, "{style:?}");
        }
        let (mut out, mut screen) = (Vec::new(), Screen::new(Style::Lines));
        screen.draw(&json!({"connectionState": "Disconnected"}), &reported(1), &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("not connected"));
    }
}
