//! What systemd is told: ready, status, watchdog, stopping. Outside systemd all of it does nothing.

use std::future::Future;
use std::time::Duration;

use sd_notify::NotifyState;

/// How often the watchdog is fed where no driver does it.
const FEED: Duration = Duration::from_secs(5);

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

pub fn ready() {
    notify(&[NotifyState::Ready]);
}

pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// The driver's loop turns: called at each of its ticks, and by nothing else.
pub fn feed_watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// Feeds the watchdog until `work` is done: between the driver's end and the reboot.
pub async fn while_alive<T>(work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(FEED) => feed_watchdog(),
        }
    }
}
