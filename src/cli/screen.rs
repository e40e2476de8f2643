//! Progress of one operation on a terminal, in a log, or for a script: only news is shown.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::plain::{json, plain};
use super::show;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// One line that is drawn again and again.
    Bar,
    /// A line for each new phase and each tenth of the download.
    Lines,
    /// Each document that differs from the last as a line.
    Json,
}

impl Style {
    /// What suits the reader: JSON when asked for, a bar for people, lines for all else.
    pub fn of(json: bool, terminal: bool) -> Style {
        match (json, terminal) {
            (true, _) => Style::Json,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        }
    }
}

/// What has been shown, so that only news is.
#[derive(Debug)]
pub struct Screen {
    style: Style,
    shown: String,
    /// What needs a person, as it was last told.
    trouble: Vec<(&'static str, String)>,
    /// Length of the drawn line, to be wiped by the next.
    drawn: usize,
    speed: Speed,
}

impl Screen {
    pub fn new(style: Style) -> Screen {
        Screen { style, shown: String::new(), trouble: Vec::new(), drawn: 0, speed: Speed::default() }
    }

    /// Shows the running operation of the reported properties; `remark` is put behind it.
    pub fn draw(&mut self, reported: &Value, remark: &str, out: &mut impl Write) -> io::Result<()> {
        if self.style == Style::Json {
            let line = json(reported);
            if line != self.shown {
                writeln!(out, "{line}")?;
                self.shown = line;
            }
            return out.flush();
        }
        self.warn(reported, out)?;
        let Some(operation) = reported.pointer("/fwupdate/operation").filter(|found| !found.is_null()) else {
            return Ok(());
        };
        let phase = operation.get("phase").and_then(Value::as_str).unwrap_or("waiting");
        let mut text = format!("{phase:<11}");
        if phase == "staging" {
            let bytes = operation.get("downloadedBytes").and_then(Value::as_u64).unwrap_or(0);
            text += &show::progress(operation, self.speed.at(Instant::now(), bytes));
        }
        self.show(&format!("{}{remark}", text.trim_end()), &format!("{}{remark}", key(phase, operation)), out)
    }

    /// What needs a person, once, on lines of their own above the progress.
    fn warn(&mut self, reported: &Value, out: &mut impl Write) -> io::Result<()> {
        let trouble = show::trouble(reported);
        for (label, why) in trouble.iter().filter(|told| !self.trouble.contains(told)) {
            let end = if std::mem::take(&mut self.drawn) > 0 { "\n" } else { "" };
            writeln!(out, "{end}{label}: {why}")?;
        }
        self.trouble = trouble;
        Ok(())
    }

    /// Something else to tell; in JSON there is no place for it.
    pub fn note(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        if self.style == Style::Json { Ok(()) } else { self.show(text, text, out) }
    }

    /// The outcome, `fwupdate.last`.
    pub fn finish(&mut self, last: &Value, out: &mut impl Write) -> io::Result<()> {
        match self.style {
            Style::Json => writeln!(out, "{}", json(last))?,
            Style::Bar if self.drawn > 0 => write!(out, "\n{}", show::outcome(last))?,
            _ => write!(out, "{}", show::outcome(last))?,
        }
        out.flush()
    }

    /// Shows `text`; as lines, only when `key` is another than that of the last.
    fn show(&mut self, text: &str, key: &str, out: &mut impl Write) -> io::Result<()> {
        let text = plain(text);
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
}

/// What makes a line news: another phase, or another tenth of the download.
fn key(phase: &str, operation: &Value) -> String {
    let percent = operation.get("percent").and_then(Value::as_u64).unwrap_or(0);
    if phase == "staging" { format!("{phase} {}", percent / 10) } else { phase.to_owned() }
}

/// Over how long a speed is averaged, seconds: reports from the spot come four times a second, those by way of a hub
/// far more seldom.
const AVERAGED: f64 = 1.0;
/// A silence of so many of the usual pauses means that nothing comes any more.
const SILENCE: u32 = 5;
/// Below this no silence means anything.
const SHORTEST_SILENCE: Duration = Duration::from_secs(3);

/// Download speed, from what reports say.
#[derive(Debug, Default)]
struct Speed {
    /// The last news.
    since: Option<(Instant, u64)>,
    /// The pause before it.
    pause: Duration,
    average: Option<f64>,
}

impl Speed {
    /// Bytes a second, after `bytes` in all at `now`; `None` until a second report tells, and while nothing comes.
    fn at(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        let Some((then, before)) = self.since else {
            self.since = Some((now, bytes));
            return None;
        };
        let passed = now.saturating_duration_since(then);
        if bytes == before {
            let silent = passed > (self.pause.saturating_mul(SILENCE)).max(SHORTEST_SILENCE);
            return self.average.filter(|_| !silent).map(|average| average as u64);
        }
        let seconds = passed.as_secs_f64().max(0.05);
        let fresh = bytes.saturating_sub(before) as f64 / seconds;
        let weight = 1.0 - (-seconds / AVERAGED).exp();
        self.average = Some(self.average.map_or(fresh, |average| average + weight * (fresh - average)));
        (self.since, self.pause) = (Some((now, bytes)), passed);
        self.average.map(|average| average as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn staging(percent: u64) -> Value {
        json!({"fwupdate": {"operation": {"id": "x", "phase": "staging", "percent": percent}}})
    }

    fn drawn(style: Style, percents: &[u64]) -> String {
        let (mut out, mut screen) = (Vec::new(), Screen::new(style));
        for percent in percents {
            screen.draw(&staging(*percent), "", &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn speed_is_smoothed_when_reports_are_many() {
        let (start, mut speed) = (Instant::now(), Speed::default());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(speed.at(at(0), 0), None);
        assert_eq!(speed.at(at(250), 250), Some(1000));
        let jumped = speed.at(at(500), 2500).unwrap();
        assert!((2000..4000).contains(&jumped), "{jumped}: part of the way from 1000 to 9000");
    }

    #[test]
    fn speed_is_that_between_reports_when_they_are_few() {
        let (start, mut speed) = (Instant::now(), Speed::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(speed.at(at(0), 100), None);
        assert_eq!(speed.at(at(10), 1100), Some(100));
        assert_eq!(speed.at(at(20), 3100), Some(199));
        assert_eq!(speed.at(at(60), 3100), Some(199), "no news yet");
        assert_eq!(speed.at(at(71), 3100), None, "it stalls");
    }

    #[test]
    fn only_news_is_shown() {
        assert_eq!(drawn(Style::Lines, &[1, 2, 9, 10, 11]).lines().count(), 2);
        assert_eq!(drawn(Style::Json, &[10, 10, 20]).lines().count(), 2);
        let mut screen = Screen::new(Style::Lines);
        let mut out = Vec::new();
        for remark in ["", " (not connected)", " (not connected)"] {
            screen.draw(&staging(1), remark, &mut out).unwrap();
        }
        let told = String::from_utf8(out).unwrap();
        assert!(told.lines().count() == 2 && told.ends_with("(not connected)\n"), "{told}");
    }

    #[test]
    fn what_needs_a_person_is_told_once_and_above_all_else() {
        let mut waits = staging(1);
        waits["fwupdate"]["operation"]["waiting"] = "a fresh link".into();
        waits["fwupdate"]["agent"]["degraded"] = "no record".into();
        for style in [Style::Lines, Style::Bar] {
            let (mut out, mut screen) = (Vec::new(), Screen::new(style));
            for _ in 0..2 {
                screen.draw(&waits, "", &mut out).unwrap();
            }
            let told = String::from_utf8(out).unwrap();
            assert!(told.starts_with("DEGRADED: no record\nWAITING: a fresh link\n"), "{told}");
            assert_eq!(told.matches("WAITING").count(), 1, "{told}");
        }
    }

    #[test]
    fn what_a_report_says_does_not_drive_the_terminal() {
        for style in [Style::Bar, Style::Lines, Style::Json] {
            let evil = "staging\u{1b}[2J\u{9b}\u{202e}\u{7f}";
            let document = json!({"fwupdate": {"operation": {"id": "x", "phase": evil}}});
            let (mut out, mut screen) = (Vec::new(), Screen::new(style));
            screen.draw(&document, evil, &mut out).unwrap();
            screen.note(evil, &mut out).unwrap();
            screen.finish(&json!({ "result": evil }), &mut out).unwrap();
            let told = String::from_utf8(out).unwrap().replace('\r', "");
            assert_eq!(told, crate::cli::plain::lines(&told), "{style:?}");
        }
    }

    #[test]
    fn a_bar_wipes_what_was_longer() {
        let (mut out, mut screen) = (Vec::new(), Screen::new(Style::Bar));
        screen.note("a long line", &mut out).unwrap();
        screen.note("short", &mut out).unwrap();
        assert_eq!(out, b"\ra long line\rshort      ");
    }
}
