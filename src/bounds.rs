//! How long what comes from outside may be: bytes of texts as JSON holds them, and times that every part of the
//! agent can write and compare. A text is short only when its encoding is: a control character takes six bytes.

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// An operation's id.
pub const ID: usize = 256;
/// A version: no bundle's is longer.
pub const VERSION: usize = 64;
/// A URL with its query.
pub const URI: usize = 4096;
/// A URL that is only told: in the history and in the report.
pub const TOLD_URI: usize = 512;
/// A sentence that says what went wrong.
pub const MESSAGE: usize = 1024;
/// The end of a check's output.
pub const EXCERPT: usize = 1024;
/// The name of a check.
pub const CHECK: usize = 128;
/// A word of our own vocabulary, or the kernel's id of a boot.
pub const WORD: usize = 64;
/// The greatest number that IoT Hub takes in a twin: 2^52 - 1.
pub const NUMBER: u64 = (1 << 52) - 1;
/// The years of a time, UTC: what RFC 3339 can say and a gateway can mean.
pub const YEARS: std::ops::RangeInclusive<i32> = 1970..=9999;

/// Stands where a text was cut.
const CUT: char = '…';

/// Bytes of `text` between the quotes of a JSON string.
pub fn encoded(text: &str) -> usize {
    text.chars().map(encoded_char).fold(0, usize::saturating_add)
}

fn encoded_char(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => c.len_utf8(),
    }
}

/// Cuts the end off, so that at most `limit` encoded bytes stay.
pub fn cut(text: &mut String, limit: usize) {
    if encoded(text) > limit {
        let kept = fitting(text.chars(), limit);
        *text = text.chars().take(kept).chain([CUT]).collect();
    }
}

/// Cuts the beginning off: of an output the end tells most.
pub fn cut_front(text: &mut String, limit: usize) {
    if encoded(text) > limit {
        let kept = fitting(text.chars().rev(), limit);
        let dropped = text.chars().count().saturating_sub(kept);
        *text = [CUT].into_iter().chain(text.chars().skip(dropped)).collect();
    }
}

/// How many of `chars` fit into `limit` beside the mark of the cut.
fn fitting(chars: impl Iterator<Item = char>, limit: usize) -> usize {
    let room = limit.saturating_sub(CUT.len_utf8());
    let grown = chars.scan(0_usize, |used, c| {
        *used = used.saturating_add(encoded_char(c));
        Some(*used)
    });
    grown.take_while(|used| *used <= room).count()
}

/// `text` cut to `limit` encoded bytes.
pub fn short(text: &str, limit: usize) -> String {
    let mut text = text.to_owned();
    cut(&mut text, limit);
    text
}

/// The same moment in UTC; `None`: it is beyond [`YEARS`].
pub fn utc(moment: OffsetDateTime) -> Option<OffsetDateTime> {
    moment.checked_to_offset(UtcOffset::UTC).filter(|utc| YEARS.contains(&utc.year()))
}

/// A time as people and programs are told it: RFC 3339 in UTC with whole seconds.
pub fn told(time: OffsetDateTime) -> String {
    moment(Some(time)).as_str().unwrap_or("an unknown time").to_owned()
}

/// The same as JSON; null if there is no time, or none that RFC 3339 can say.
pub fn moment(time: Option<OffsetDateTime>) -> Value {
    let seconds = time.and_then(|time| time.replace_nanosecond(0).ok());
    seconds.and_then(|time| time.format(&Rfc3339).ok()).map_or(Value::Null, Value::String)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_long_as_its_json() {
        for text in ["", "plain", "\"\\\n\r\t\u{8}\u{c}", "\0\u{1b}\u{1f}", "\u{7f}äß…𝄞", "/'"] {
            assert_eq!(encoded(text) + 2, serde_json::to_string(text).unwrap().len(), "{text:?}");
        }
    }

    #[test]
    fn what_is_cut_fits_and_stays_as_it_is() {
        for text in ["x".repeat(100), "\0".repeat(100), "ä\"".repeat(50), "𝄞".repeat(30)] {
            for limit in [0, 1, 3, 4, 10, 64, 99] {
                let (mut end, mut front) = (text.clone(), text.clone());
                cut(&mut end, limit);
                cut_front(&mut front, limit);
                for cut in [&end, &front] {
                    assert!(encoded(cut) <= limit.max(CUT.len_utf8()), "{limit}: {cut:?}");
                }
                assert_eq!((short(&end, limit.max(3)), &end), (end.clone(), &end));
                assert!(text.starts_with(end.trim_end_matches(CUT)));
                assert!(text.ends_with(front.trim_start_matches(CUT)));
            }
        }
        assert_eq!((short("fits", 4), short("fits not", 7)), ("fits".into(), "fits…".into()));
    }

    #[test]
    fn times_are_in_utc_or_none() {
        let parse = |text: &str| utc(OffsetDateTime::parse(text, &Rfc3339).unwrap());
        assert_eq!(parse("2026-01-01T02:00:00+02:00").unwrap().hour(), 0);
        assert!(parse("9999-12-31T23:59:59Z").is_some());
        for beyond in [
            "9999-12-31T23:59:59-01:00",
            "0000-01-01T00:00:00+01:00",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
        ] {
            assert_eq!(parse(beyond), None, "{beyond}");
        }
    }
}
