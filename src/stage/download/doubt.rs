//! When a download gives up. What one server says once may be the word of one bad node of a pool, of a portal on the
//! way, or of a name that leads astray for a minute: it is final only when other connections bring it for a while
//! (`Doubt`). What brings nothing is waited out for as long as `download.patience` (`Patience`), and what trickles
//! brings nothing (`Flow`).

use std::mem::Discriminant;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::stage::error::StageError;

/// What is said against an update, and since when.
#[derive(Debug, Default)]
pub struct Doubt {
    said: Option<Said>,
}

#[derive(Debug)]
struct Said {
    what: Discriminant<StageError>,
    since: Instant,
    /// The client whose connections said it first.
    line: u64,
    /// Others said it too.
    repeated: bool,
}

impl Doubt {
    /// What the connections of client `line` say. Final is what was said for `long` enough, and not by them alone; else it
    /// is to be asked again, over another connection, and may be final after the time that is returned with it.
    pub fn weigh(
        &mut self,
        error: StageError,
        line: u64,
        long: Duration,
    ) -> Result<(StageError, Duration), StageError> {
        let (what, since) = (std::mem::discriminant(&error), Instant::now());
        let said = match &mut self.said {
            Some(said) if said.what == what => said,
            said => said.insert(Said { what, since, line, repeated: false }),
        };
        said.repeated |= said.line != line;
        let left = long.saturating_sub(said.since.elapsed());
        if said.repeated && left.is_zero() { Err(error) } else { Ok((error, left)) }
    }

    pub fn clear(&mut self) {
        self.said = None;
    }
}

/// How much longer is waited for a server. The time runs while somebody waits for the network and is earned back by
/// what comes, at the lowest speed that is put up with: so a download of N bytes waits no longer than the patience and
/// N at that speed, however it is dosed.
#[derive(Debug)]
pub struct Patience {
    full: Duration,
    /// Bytes a second, above zero.
    least: u64,
    left: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    time: Duration,
    /// Those who wait now.
    waiting: usize,
    since: Instant,
}

impl Left {
    fn settle(&mut self) {
        let now = Instant::now();
        if self.waiting > 0 {
            self.time = self.time.saturating_sub(now.duration_since(self.since));
        }
        self.since = now;
    }
}

impl Patience {
    pub fn new(full: Duration, least: u64) -> Patience {
        let left = Mutex::new(Left { time: full, waiting: 0, since: Instant::now() });
        Patience { full, least: least.max(1), left }
    }

    fn settled(&self) -> MutexGuard<'_, Left> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.settle();
        left
    }

    /// The time runs while this lives.
    pub fn wait(&self) -> Waiting<'_> {
        let mut left = self.settled();
        left.waiting = left.waiting.saturating_add(1);
        drop(left);
        Waiting(self)
    }

    pub fn earn(&self, bytes: u64) {
        let mut left = self.settled();
        let earned = u128::from(bytes).saturating_mul(1000).checked_div(u128::from(self.least));
        let earned = earned.and_then(|ms| ms.try_into().ok()).map_or(Duration::MAX, Duration::from_millis);
        left.time = left.time.saturating_add(earned).min(self.full);
    }

    pub fn refill(&self) {
        self.settled().time = self.full;
    }

    #[cfg(test)]
    pub fn use_up(&self) {
        self.settled().time = Duration::ZERO;
    }

    pub fn left(&self) -> Duration {
        self.settled().time
    }

    /// A hundredth is as good as nothing: what trickles in would earn back a moment for ever.
    pub fn is_over(&self) -> bool {
        self.left().saturating_mul(100) < self.full
    }
}

pub struct Waiting<'a>(&'a Patience);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut left = self.0.settled();
        left.waiting = left.waiting.saturating_sub(1);
    }
}

/// Whether one answer comes fast enough, over a sliding time of two halves.
#[derive(Debug, Default)]
pub struct Flow {
    before: Option<(Duration, u64)>,
    now: (Duration, u64),
}

impl Flow {
    /// `bytes` came after they were `awaited`. What too little came in how long, if it is less than `least` bytes a
    /// second; told once two times `half` is over.
    pub fn add(
        &mut self,
        awaited: Duration,
        bytes: u64,
        half: Duration,
        least: u64,
    ) -> Option<(Duration, u64)> {
        self.now = (self.now.0.saturating_add(awaited), self.now.1.saturating_add(bytes));
        if self.now.0 < half {
            return None;
        }
        let now = std::mem::take(&mut self.now);
        let before = self.before.replace(now)?;
        let (time, came) = (before.0.saturating_add(now.0), before.1.saturating_add(now.1));
        (u128::from(came) * 1000 < u128::from(least).saturating_mul(time.as_millis())).then_some((time, came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn gone() -> StageError {
        StageError::NotFound { url: "u".into(), reason: "404".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_final_when_others_repeat_it_for_long_enough() {
        let mut doubt = Doubt::default();
        let again = |verdict: Result<_, _>| verdict.is_ok();
        assert!(again(doubt.weigh(gone(), 0, MINUTE)));
        tokio::time::advance(2 * MINUTE).await;
        assert!(again(doubt.weigh(gone(), 0, MINUTE)), "one connection alone");
        assert!(matches!(doubt.weigh(gone(), 1, MINUTE), Err(StageError::NotFound { .. })));

        // Something else, or a good answer in between, begins anew.
        let forbidden = StageError::Forbidden { url: "u".into(), status: 403 };
        assert!(again(doubt.weigh(forbidden, 2, MINUTE)));
        let Ok((_, left)) = doubt.weigh(gone(), 3, MINUTE) else { panic!() };
        assert_eq!(left, MINUTE);
        tokio::time::advance(2 * MINUTE).await;
        doubt.clear();
        assert!(again(doubt.weigh(gone(), 4, MINUTE)));
        tokio::time::advance(MINUTE / 2).await;
        let Ok((_, left)) = doubt.weigh(gone(), 5, MINUTE) else { panic!() };
        assert_eq!(left, MINUTE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_is_used_up_by_waiting_and_earned_back_by_bytes() {
        let patience = Patience::new(MINUTE, 100);
        tokio::time::advance(2 * MINUTE).await;
        assert_eq!(patience.left(), MINUTE, "nobody waited");
        let (one, two) = (patience.wait(), patience.wait());
        tokio::time::advance(MINUTE / 2).await;
        drop(one);
        assert_eq!(patience.left(), MINUTE / 2, "together they waited once");
        patience.earn(1000);
        assert_eq!(patience.left(), MINUTE / 2 + Duration::from_secs(10));
        drop(two);
        tokio::time::advance(MINUTE).await;
        assert_eq!(patience.left(), MINUTE / 2 + Duration::from_secs(10));
        patience.earn(u64::MAX);
        assert_eq!(patience.left(), MINUTE);

        // A byte in five seconds earns a hundredth of a second.
        let _waiting = patience.wait();
        let mut bytes = 0;
        while !patience.is_over() {
            tokio::time::advance(Duration::from_secs(5)).await;
            patience.earn(1);
            bytes += 1;
        }
        assert!((12..=13).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_flow_is_judged_over_two_halves() {
        let half = Duration::from_secs(15);
        let mut flow = Flow::default();
        let mut told = None;
        for second in 1..=60 {
            if let Some(slow) = flow.add(Duration::from_secs(1), 1, half, 100) {
                told = Some((second, slow));
                break;
            }
        }
        assert_eq!(told, Some((30, (2 * half, 30))));
        let mut flow = Flow::default();
        // Bursts make up for silence, as long as they come often enough.
        for second in 0..600 {
            let bytes = if second % 10 == 0 { 1000 } else { 0 };
            assert_eq!(flow.add(Duration::from_secs(1), bytes, half, 50), None, "{second}");
        }
        // A burst at first does not pay for a trickle later.
        let mut flow = Flow::default();
        flow.add(half, 1 << 30, half, 100);
        assert_eq!(flow.add(half, 1, half, 100), None);
        assert!(flow.add(half, 1, half, 100).is_some());
    }
}
