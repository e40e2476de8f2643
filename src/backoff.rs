//! How long to wait before the next attempt: exponential, with full jitter.
//!
//! A hub that comes back must not be met by its whole fleet in the same second. The random number is an
//! argument, so that the bounds can be tested.

use std::time::Duration;

/// The shortest pause.
const LEAST: Duration = Duration::from_secs(1);

/// The longest pause after so many attempts in vain: `first`, doubled with each of them up to `max`.
pub fn ceiling(first: Duration, attempts: u32, max: Duration) -> Duration {
    first.saturating_mul(2u32.checked_pow(attempts).unwrap_or(u32::MAX)).min(max)
}

/// Doubles the span of the next pause with each attempt until it spans `min..=max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    /// The longest first pause.
    first: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// For sessions with the hub: from 1 s to `first`, then to twice as much, up to `max`.
    pub fn of_sessions(first: Duration, max: Duration) -> Backoff {
        Backoff { min: LEAST, first: first.max(LEAST), max: max.max(LEAST), attempt: 0 }
    }

    /// The first pause is at most twice `min`.
    pub fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, first: min.saturating_mul(2), max: max.max(min), attempt: 0 }
    }

    /// The next pause; `random` is uniform in 0..1. Never shorter than the least: not even the first retry is hot.
    pub fn next(&mut self, random: f64) -> Duration {
        let ceiling = ceiling(self.first, self.attempt, self.max);
        self.attempt = self.attempt.saturating_add(1);
        let spread = ceiling.saturating_sub(self.min).mul_f64(random.clamp(0.0, 1.0));
        self.min.saturating_add(spread)
    }

    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The longest pause there is.
    pub fn longest(&self) -> Duration {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_secs(1);
    const MAX: Duration = Duration::from_secs(100);

    #[test]
    fn the_span_doubles_up_to_its_maximum() {
        let mut backoff = Backoff::new(MIN, MAX);
        let ceilings: Vec<u64> = (0..9).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(ceilings, [2, 4, 8, 16, 32, 64, 100, 100, 100]);
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_secs(), 2);
    }

    #[test]
    fn a_fleet_is_spread_from_the_first_pause_on() {
        let mut backoff = Backoff::of_sessions(30 * MIN, MAX);
        let ceilings: Vec<u64> = (0..4).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(ceilings, [30, 60, 100, 100]);
        let mut narrow = Backoff::of_sessions(Duration::ZERO, Duration::ZERO);
        assert_eq!([narrow.next(1.0), narrow.next(0.0)], [MIN, MIN]);
    }

    #[test]
    fn every_pause_lies_within_the_bounds_however_long_the_outage() {
        let mut backoff = Backoff::new(MIN, MAX);
        for attempt in 0..2000 {
            let pause = backoff.next(f64::from(attempt % 11) / 10.0);
            assert!((MIN..=MAX).contains(&pause), "{pause:?}");
        }
        backoff.attempt = u32::MAX;
        assert_eq!(backoff.next(0.0), MIN);
        assert_eq!(backoff.next(2.0), MAX);
    }
}
