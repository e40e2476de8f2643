//! Values with a unit as people write them in settings: durations, sizes, daily windows.

use std::time::Duration;

/// Minutes after midnight UTC; a window may wrap around midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub start: u16,
    pub end: u16,
}

/// Parses `30s`, `5min`, `2d`, `1h 30min`; units `ms`, `s`, `min`, `h`, `d`. A bare number is seconds.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(after.len());
        let (unit, tail) = after.split_at_checked(end)?;
        total = total.checked_add(times(number, unit)?)?;
        rest = tail.trim_start();
    }
    Some(total)
}

fn times(number: u64, unit: &str) -> Option<Duration> {
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "" | "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(number.checked_mul(seconds)?))
}

/// Parses `512KiB`, `2 MiB`, `1GB`; units `B`, `kB`/`KB`, `MB`, `GB` (1000) and `KiB`, `MiB`, `GiB` (1024).
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text.trim())?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

/// Parses `22:00-04:00`, a daily window in UTC. Start and end must differ.
pub fn window(text: &str) -> Option<Window> {
    let (start, end) = text.split_once('-')?;
    let window = Window { start: minutes(start)?, end: minutes(end)? };
    (window.start != window.end).then_some(window)
}

fn minutes(clock: &str) -> Option<u16> {
    let (h, m) = clock.trim().split_once(':')?;
    if h.len() != 2 || m.len() != 2 || !(h.bytes().chain(m.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (h, m): (u16, u16) = (h.parse().ok()?, m.parse().ok()?);
    (h < 24 && m < 60).then_some(h.saturating_mul(60).saturating_add(m))
}

/// A duration in the spelling that [`duration`] reads, in the largest whole unit.
pub fn show_duration(value: Duration) -> String {
    let ms = value.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    match units.iter().find(|(size, _)| ms >= *size && ms.checked_rem(*size) == Some(0)) {
        Some((size, name)) => format!("{}{name}", ms.checked_div(*size).unwrap_or(ms)),
        None => format!("{ms}ms"),
    }
}

/// A window in the spelling that [`window`] reads.
pub fn show_window(window: Window) -> String {
    let clock = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
    format!("{}-{}", clock(window.start), clock(window.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let secs = Duration::from_secs;
        let good =
            [("30s", 30), ("5min", 300), ("2d", 172_800), ("1h 30min", 5400), ("1h30min", 5400), ("7", 7)];
        for (text, expected) in good {
            assert_eq!(duration(text), Some(secs(expected)), "{text}");
        }
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        for bad in
            ["", "s", "-5s", "5 parsecs", "5m", "1.5h", "99999999999999999999s", "18446744073709551615d", "é"]
        {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_shown_as_they_are_read() {
        for text in ["30s", "5min", "2d", "90min", "250ms", "1h"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        assert_eq!(duration(&show_duration(Duration::ZERO)), Some(Duration::ZERO));
    }

    #[test]
    fn sizes() {
        let good =
            [("512KiB", 524_288), ("2 MiB", 2_097_152), ("1GB", 1_000_000_000), ("5", 5), ("5 kB", 5000)];
        for (text, expected) in good {
            assert_eq!(size(text), Some(expected), "{text}");
        }
        for bad in ["", "KiB", "-1", "1.5MiB", "5 XB", "99999999999999GiB"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn windows() {
        assert_eq!(window("22:00-04:00"), Some(Window { start: 1320, end: 240 }));
        assert_eq!(window("00:00 - 23:59"), Some(Window { start: 0, end: 1439 }));
        for bad in ["", "22:00", "24:00-01:00", "1:00-2:00", "01:00-01:00", "01:60-02:00", "+1:00-02:00"] {
            assert_eq!(window(bad), None, "{bad}");
        }
        assert_eq!(show_window(Window { start: 1320, end: 240 }), "22:00-04:00");
    }
}
