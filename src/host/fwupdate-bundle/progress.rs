//! One line on a terminal that says how far we are; nothing at all elsewhere.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use fwupdate::cli::amount::size;

pub struct ProgressLine {
    what: &'static str,
    total: u64,
    drawn: Option<Instant>,
    terminal: bool,
}

impl ProgressLine {
    /// For work on `total` bytes.
    pub fn new(what: &'static str, total: u64) -> ProgressLine {
        ProgressLine { what, total, drawn: None, terminal: stderr().is_terminal() }
    }

    /// Draws, but no more than ten times a second.
    pub fn at(&mut self, done: u64) {
        let fresh = self.drawn.is_some_and(|drawn| drawn.elapsed() < Duration::from_millis(100));
        if !self.terminal || fresh {
            return;
        }
        self.drawn = Some(Instant::now());
        let percent = u128::from(done) * 100 / u128::from(self.total.max(1));
        eprint!("\r{} {percent:3} % of {}", self.what, size(self.total));
        // A terminal that went away is no reason to stop.
        stderr().flush().unwrap_or_default();
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
