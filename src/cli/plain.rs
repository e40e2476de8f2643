//! Texts from outside, made fit for a terminal: a twin, an answer, a server's message, a file name, a manifest or a
//! journal may hold signs that move the cursor, change what was written before, or show words in another order than
//! they stand. Every text that a program prints goes through here, and JSON stays JSON: there they are escaped.

use std::fmt::Write as _;
use std::io;

use serde_json::Value;

/// Whether a terminal shows `c` as itself and in its place: no control character, no mark that changes the direction
/// or that nobody sees, no separator of lines.
fn is_harmless(c: char) -> bool {
    let hidden = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !hidden
}

/// `text` as one line of harmless signs.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if is_harmless(c) { c } else { ' ' }).collect()
}

/// As [`plain`], line by line: for text that was laid out here.
pub fn lines(text: &str) -> String {
    text.chars().map(|c| if is_harmless(c) || c == '\n' { c } else { ' ' }).collect()
}

/// A document on one line, for scripts.
pub fn json(document: &Value) -> String {
    escaped(&document.to_string())
}

/// A document over several lines.
pub fn json_lines(document: &Value) -> String {
    escaped(&format!("{document:#}\n"))
}

/// JSON without a sign that is not harmless. Such signs stand in its strings alone, where each has an escape; the
/// layout has line ends.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_harmless(c) || c == '\n' {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            write!(out, "\\u{unit:04x}").unwrap_or_default();
        }
    }
    out
}

/// A log that people read: each record is one line of harmless signs.
#[derive(Debug)]
pub struct PlainLog<W>(pub W);

impl<W: io::Write> io::Write for PlainLog<W> {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
        self.0.write_all((plain(line) + end).as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use serde_json::json;

    /// Signs that drive a terminal, in each form that one takes them.
    const EVIL: &str =
        "a\u{1b}[2J\u{9b}31m\u{7f}\u{8}\r\n\t\u{202e}b\u{2066}\u{2028}\u{2029}\u{200f}\u{feff}\u{e0041}\0";

    #[test]
    fn nothing_drives_the_terminal_and_letters_stay() {
        let shown = plain(EVIL);
        assert!(shown.chars().all(is_harmless), "{shown:?}");
        assert_eq!(plain("Größe 5 €, 北京, ok"), "Größe 5 €, 北京, ok");
        assert_eq!(lines("a\u{1b}\nb\r\n"), "a \nb \n");
    }

    #[test]
    fn json_is_escaped_and_means_the_same() {
        let document = json!({ EVIL: [EVIL, "Größe"] });
        for text in [json(&document), json_lines(&document)] {
            assert!(text.chars().all(|c| is_harmless(c) || c == '\n'), "{text:?}");
            assert!(text.contains("Größe"));
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
        }
        assert_eq!(json(&document).lines().count(), 1);
    }

    #[test]
    fn a_log_record_is_one_line() {
        let mut log = PlainLog(Vec::new());
        log.write_all(b"INFO said \x1b[2J\nERROR forged\xff\n").unwrap();
        assert_eq!(String::from_utf8(log.0).unwrap(), "INFO said  [2J ERROR forged\u{fffd}\n");
    }
}
