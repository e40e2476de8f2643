//! Time that can be trusted: deadlines on CLOCK_BOOTTIME, which runs through suspend and which nobody sets,
//! and a wall clock that never falls below what is known to be past.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::clock_gettime;
use time::OffsetDateTime;
use tokio::io::unix::AsyncFd;

/// The lowest floor of the wall clock, in seconds since 1970: the build's date when the builder gives one
/// (reproducible-builds.org's SOURCE_DATE_EPOCH), else a date before the first release (2025-01-01).
const BUILD_TIME: i64 = match option_env!("SOURCE_DATE_EPOCH") {
    Some(text) => match i64::from_str_radix(text, 10) {
        Ok(seconds) => seconds,
        Err(_) => FIRST_RELEASE,
    },
    None => FIRST_RELEASE,
};
const FIRST_RELEASE: i64 = 1_735_689_600;

/// systemd-timesyncd's runtime folder; it touches `synchronized` in it once a server answered.
const TIMESYNC: &str = "/run/systemd/timesync";

/// Time since boot, suspend included.
pub fn boottime() -> Duration {
    // Linux has had this clock since 2.6.39: the call has no way to fail.
    clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Sleeps until `deadline`, a value of [`boottime`].
pub async fn sleep_until(deadline: Duration) {
    if boottime() >= deadline {
        return;
    }
    if let Err(error) = wait_on_timer(deadline).await {
        // Without file descriptors left, tokio's clock serves; it only stands still during suspend.
        tracing::warn!(%error, "no timer on CLOCK_BOOTTIME");
        tokio::time::sleep(deadline.saturating_sub(boottime())).await;
    }
}

/// `TimerFd` with the trait that [`AsyncFd`] asks for.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

// tokio's successor of `new` is unsafe, for types that may close their descriptor early; `Timer` owns its own.
#[allow(deprecated)]
async fn wait_on_timer(deadline: Duration) -> io::Result<()> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
    let at = Expiration::OneShot(TimeSpec::from_duration(deadline));
    timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
    // A one-shot timer stays readable until it is read, so readiness is the whole answer.
    AsyncFd::new(Timer(timer))?.readable().await?.retain_ready();
    Ok(())
}

/// The wall clock, never below the build's date nor `floor`, the last time that was saved.
pub fn now(floor: OffsetDateTime) -> OffsetDateTime {
    OffsetDateTime::now_utc().max(build_time()).max(floor)
}

/// Whether the wall clock was set by a time server, as far as can be known.
pub fn synchronised() -> bool {
    is_synchronised(Path::new(TIMESYNC), OffsetDateTime::now_utc())
}

/// systemd-timesyncd, where it runs, gives the answer; elsewhere a clock past the build's date must do, for
/// a gateway without a battery-backed clock wakes before it.
fn is_synchronised(timesync: &Path, now: OffsetDateTime) -> bool {
    timesync.join("synchronized").exists() || (!timesync.exists() && now > build_time())
}

fn build_time() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(BUILD_TIME).unwrap_or(OffsetDateTime::UNIX_EPOCH)
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

    #[test]
    fn the_wall_clock_has_two_floors() {
        let future = OffsetDateTime::now_utc() + Duration::from_secs(86_400);
        assert_eq!(now(future), future);
        assert!(now(OffsetDateTime::UNIX_EPOCH) >= build_time());
    }

    #[test]
    fn synchronised_is_what_timesyncd_says_or_a_clock_past_the_build() {
        let dir = tempfile::tempdir().unwrap();
        let (timesync, late) = (dir.path().join("timesync"), build_time() + Duration::from_secs(1));
        assert!(is_synchronised(&timesync, late));
        assert!(!is_synchronised(&timesync, OffsetDateTime::UNIX_EPOCH));
        std::fs::create_dir(&timesync).unwrap();
        assert!(!is_synchronised(&timesync, late), "timesyncd runs and has not said so");
        std::fs::write(timesync.join("synchronized"), "").unwrap();
        assert!(is_synchronised(&timesync, late));
    }
}
