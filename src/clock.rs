//! Time that can be trusted: deadlines on CLOCK_BOOTTIME, which runs through suspend and which nobody sets,
//! and a wall clock (`wall`) that is believed only as far as somebody keeps it right.

mod boottime;
mod kernel;
mod wall;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

pub use boottime::boottime;
pub use wall::{Clock, TimeOrigin, VOUCHED};

/// The longest time that anything is put off.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How often the kernel is asked about its clock.
const ASK: Duration = Duration::from_secs(10);

/// Returns once the kernel counts its clock as synchronised.
pub fn await_kernel() -> io::Result<()> {
    while !kernel::is_synchronised()? {
        std::thread::sleep(ASK);
    }
    Ok(())
}

/// `span` after `from`, whoever said how long it is; ten years are as good as for ever.
pub fn after(from: tokio::time::Instant, span: Duration) -> tokio::time::Instant {
    from.checked_add(span.min(LONGEST)).unwrap_or(from)
}

/// Sleeps until `deadline`, a value of [`boottime`].
pub async fn sleep_until(deadline: Duration) {
    if boottime() >= deadline {
        return;
    }
    if let Err(error) = wait_on_timer(deadline).await {
        // Without file descriptors left, tokio's clock serves; it only stands still during suspend.
        tracing::warn!("no timer on CLOCK_BOOTTIME: {error}");
        tokio::time::sleep(deadline.saturating_sub(boottime())).await;
    }
}

// tokio's successor of `new` is unsafe, for types that may close their descriptor early; this one owns its own.
#[allow(deprecated)]
async fn wait_on_timer(deadline: Duration) -> io::Result<()> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let deadline = deadline.min(boottime().saturating_add(LONGEST));
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
    let at = Expiration::OneShot(TimeSpec::from_duration(deadline));
    timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
    // A one-shot timer stays readable until it is read, so readiness is the whole answer.
    AsyncFd::new(OwnedFd::from(timer))?.readable().await?.retain_ready();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_is_the_kernels() {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = text.split(' ').next().unwrap().parse().unwrap();
        assert!((boottime().as_secs_f64() - uptime).abs() < 5.0);
    }

    #[tokio::test]
    async fn a_sleep_ends_at_its_deadline_and_not_before() {
        let deadline = boottime() + Duration::from_millis(20);
        sleep_until(deadline).await;
        assert!(boottime() >= deadline);
        sleep_until(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn a_far_deadline_does_not_end_at_once() {
        let far = wait_on_timer(boottime() + Duration::from_secs(3600));
        assert!(tokio::time::timeout(Duration::from_millis(20), far).await.is_err());
    }
}
