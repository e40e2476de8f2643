//! What a reboot and a download wait for: approval, a synchronised clock, a time or a window.

use std::fmt;

use time::{OffsetDateTime, Time};

use crate::bounds;
use crate::config::Window;
use crate::machine::{Hold, Operation};

/// What a reboot still waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    Approval,
    /// A synchronised clock: without one neither a time nor a window means anything.
    Clock,
    /// This moment (`notBefore`, `firmwareDefer`, or the next window's start).
    Until(OffsetDateTime),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Approval => f.write_str("for approval"),
            Wait::Clock => f.write_str("for a synchronised clock"),
            Wait::Until(time) => write!(f, "until {}", bounds::told(*time)),
        }
    }
}

/// The facts that decide whether the reboot may happen now.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub time: OffsetDateTime,
    pub synchronised: bool,
}

/// `None`: reboot now. At the operation's deadline windows no longer count; approval and deferral do.
pub fn wait(
    operation: &Operation,
    hold: &Hold,
    windows: &[Window],
    approval: bool,
    now: Now,
) -> Option<Wait> {
    if approval && !hold.approved {
        return Some(Wait::Approval);
    }
    let overdue = now.synchronised && operation.deadline.is_some_and(|deadline| now.time >= deadline);
    let windows = if overdue { &[] } else { windows };
    let earliest = [operation.not_before, hold.until].into_iter().flatten().max();
    if (earliest.is_some() || !windows.is_empty()) && !now.synchronised {
        return Some(Wait::Clock);
    }
    let from = earliest.map_or(now.time, |earliest| earliest.max(now.time));
    let opens = next_open(windows, from);
    let opens = operation.deadline.map_or(opens, |deadline| opens.min(deadline.max(from)));
    (opens > now.time).then_some(Wait::Until(opens))
}

/// What a download waits for outside its windows; `None`: it may go on.
pub fn download_wait(windows: &[Window], now: Now) -> Option<Wait> {
    if windows.is_empty() {
        return None;
    }
    if !now.synchronised {
        return Some(Wait::Clock);
    }
    let opens = next_open(windows, now.time);
    (opens > now.time).then_some(Wait::Until(opens))
}

/// The first moment from `from` on that lies in a window.
fn next_open(windows: &[Window], from: OffsetDateTime) -> OffsetDateTime {
    let minute = u16::from(from.hour()).saturating_mul(60).saturating_add(u16::from(from.minute()));
    if windows.is_empty() || windows.iter().any(|window| contains(window, minute)) {
        return from;
    }
    let midnight = from.replace_time(Time::MIDNIGHT);
    let minutes_until = |window: &Window| {
        let start = i64::from(window.start);
        if window.start > minute { start } else { start.saturating_add(24 * 60) }
    };
    let soonest = windows.iter().map(minutes_until).min().unwrap_or(0);
    midnight.saturating_add(time::Duration::minutes(soonest))
}

fn contains(window: &Window, minute: u16) -> bool {
    if window.start <= window.end {
        (window.start..window.end).contains(&minute)
    } else {
        minute >= window.start || minute < window.end
    }
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::*;

    fn at(text: &str) -> OffsetDateTime {
        OffsetDateTime::parse(text, &Rfc3339).unwrap()
    }

    fn now(text: &str) -> Now {
        Now { time: at(text), synchronised: true }
    }

    const NIGHT: Window = Window { start: 22 * 60, end: 4 * 60 };

    #[test]
    fn nothing_asked_for_reboots_at_once_even_with_a_wrong_clock() {
        let unsynchronised = Now { synchronised: false, ..now("1970-01-01T00:00:00Z") };
        assert_eq!(wait(&Operation::default(), &Hold::default(), &[], false, unsynchronised), None);
    }

    #[test]
    fn a_window_holds_the_reboot_until_it_opens() {
        let wait = |time| wait(&Operation::default(), &Hold::default(), &[NIGHT], false, now(time));
        assert_eq!(wait("2026-01-01T12:30:00Z"), Some(Wait::Until(at("2026-01-01T22:00:00Z"))));
        assert_eq!(wait("2026-01-01T23:30:00Z"), None);
        assert_eq!(wait("2026-01-01T03:59:59Z"), None);
        assert_eq!(wait("2026-01-01T04:00:00Z"), Some(Wait::Until(at("2026-01-01T22:00:00Z"))));
    }

    #[test]
    fn a_window_waits_for_a_synchronised_clock() {
        let unsynchronised = Now { synchronised: false, ..now("2026-01-01T23:30:00Z") };
        let found = wait(&Operation::default(), &Hold::default(), &[NIGHT], false, unsynchronised);
        assert_eq!(found, Some(Wait::Clock));
    }

    #[test]
    fn not_before_and_window_both_count_and_the_deadline_ends_windows() {
        let mut operation =
            Operation { not_before: Some(at("2026-01-02T12:00:00Z")), ..Operation::default() };
        let hold = Hold::default();
        let waits = |operation: &Operation, time| wait(operation, &hold, &[NIGHT], false, now(time));
        let noon = "2026-01-01T12:00:00Z";
        assert_eq!(waits(&operation, noon), Some(Wait::Until(at("2026-01-02T22:00:00Z"))));
        operation.deadline = Some(at("2026-01-02T13:00:00Z"));
        assert_eq!(waits(&operation, noon), Some(Wait::Until(at("2026-01-02T13:00:00Z"))));
        assert_eq!(waits(&operation, "2026-01-02T13:00:00Z"), None);
    }

    #[test]
    fn no_time_is_too_late_for_a_window() {
        let late = at("9999-12-31T23:30:00Z");
        let noon = Window { start: 12 * 60, end: 13 * 60 };
        let forever = Operation { not_before: Some(late), ..Operation::default() };
        for (operation, until, time) in [
            (&forever, None, "2026-01-01T12:30:00Z"),
            (&Operation::default(), Some(late), "2026-01-01T12:30:00Z"),
            (&Operation { deadline: Some(late), ..forever.clone() }, Some(late), "9999-12-31T23:40:00Z"),
            (&Operation { deadline: Some(late), ..Operation::default() }, None, "9999-12-31T23:20:00Z"),
            (&Operation::default(), None, "9999-12-31T23:59:59Z"),
        ] {
            let hold = Hold { approved: true, until };
            let found = wait(operation, &hold, &[noon], true, now(time));
            assert!(found.is_none() || matches!(found, Some(Wait::Until(when)) if when >= late), "{found:?}");
        }
        let found = download_wait(&[noon], now("9999-12-31T23:59:59Z"));
        assert!(matches!(found, Some(Wait::Until(_))), "{found:?}");
    }

    #[test]
    fn approval_and_deferral_outlast_the_deadline() {
        let operation = Operation { deadline: Some(at("2026-01-01T00:00:00Z")), ..Operation::default() };
        let noon = now("2026-01-01T12:00:00Z");
        assert_eq!(wait(&operation, &Hold::default(), &[], true, noon), Some(Wait::Approval));
        let until = at("2026-01-03T00:00:00Z");
        let deferred = Hold { approved: true, until: Some(until) };
        assert_eq!(wait(&operation, &deferred, &[], true, noon), Some(Wait::Until(until)));
    }

    #[test]
    fn a_download_waits_for_the_next_of_its_windows() {
        let noon = Window { start: 12 * 60, end: 13 * 60 };
        let wait = |windows: &[Window], text: &str| download_wait(windows, now(text));
        assert_eq!(wait(&[], "2026-03-01T08:00:00Z"), None);
        for open in
            ["2026-03-01T12:00:00Z", "2026-03-01T12:59:59Z", "2026-03-01T22:00:00Z", "2026-03-01T03:59:59Z"]
        {
            assert_eq!(wait(&[NIGHT, noon], open), None, "{open}");
        }
        let cases = [("04:00:00", "2026-03-01T12:00:00Z"), ("13:00:00", "2026-03-01T22:00:00Z")];
        for (time, opens) in cases {
            let expected = Some(Wait::Until(at(opens)));
            assert_eq!(wait(&[NIGHT, noon], &format!("2026-03-01T{time}Z")), expected, "{time}");
        }
        assert_eq!(wait(&[noon], "2026-03-01T13:00:00Z"), Some(Wait::Until(at("2026-03-02T12:00:00Z"))));
        let unknown = Now { synchronised: false, ..now("2026-03-01T12:30:00Z") };
        assert_eq!(download_wait(&[noon], unknown), Some(Wait::Clock));
        assert_eq!(download_wait(&[], unknown), None);
    }
}
