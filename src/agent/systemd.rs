//! What systemd is told: ready, status, watchdog, stopping. Outside systemd all of it does nothing.

use sd_notify::NotifyState;

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
