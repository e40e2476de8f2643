//! What systemd is told: ready, status, watchdog, stopping. Outside systemd all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

/// How long a medium may keep the agent waiting before the watchdog takes it for dead.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The process is going to end. Not said before a reboot: systemd would then not signal it when it stops it.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Fed at half of the time that systemd gives, by whoever keeps the agent going and by nothing else.
pub struct Watchdog {
    every: Option<Duration>,
    at: Instant,
}

impl Watchdog {
    pub fn new() -> Watchdog {
        Watchdog { every: asked_for().map(|limit| limit.checked_div(2).unwrap_or(limit)), at: Instant::now() }
    }

    /// Ends when it is time to feed it; never, where nobody asks for it.
    pub async fn due(&self) {
        match self.every {
            Some(_) => tokio::time::sleep_until(self.at).await,
            None => std::future::pending().await,
        }
    }

    /// The same while a medium has been waited for `since` then: for ever means that the agent is dead.
    pub async fn due_for(&self, since: Instant) {
        match since.elapsed() < LONGEST_WAIT {
            true => self.due().await,
            false => std::future::pending().await,
        }
    }

    pub fn feed(&mut self) {
        notify(&[NotifyState::Watchdog]);
        self.at = crate::clock::after(Instant::now(), self.every.unwrap_or_default());
    }
}

/// As sd_watchdog_enabled(3): the time within which this process has to be heard of.
fn asked_for() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|limit| ours && *limit > 0).map(Duration::from_micros)
}

/// Feeds the watchdog until `work` is done: between the driver's end and the reboot.
pub async fn while_alive<T>(work: impl Future<Output = T>) -> T {
    let mut watchdog = Watchdog::new();
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = watchdog.due() => watchdog.feed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn while_a_medium_does_not_answer_the_watchdog_is_fed_for_five_minutes_and_no_longer() {
        let every = Duration::from_secs(30);
        let mut watchdog = Watchdog { every: Some(every), at: Instant::now() };
        let (since, mut fed) = (Instant::now(), Vec::new());
        let medium = tokio::time::sleep(LONGEST_WAIT * 10);
        tokio::pin!(medium);
        loop {
            tokio::select! {
                () = &mut medium => break,
                () = watchdog.due_for(since) => {
                    watchdog.feed();
                    fed.push(since.elapsed());
                }
            }
        }
        let expected: Vec<Duration> = (0..=10).map(|times| every * times).collect();
        assert_eq!(fed, expected);
        // It answered: what comes next is waited for anew.
        tokio::time::timeout(every, watchdog.due_for(Instant::now())).await.unwrap();
    }
}
