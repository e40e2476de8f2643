//! The wall clock: the one place where certificates, tokens, windows and reports get their time from.
//!
//! A clock that somebody keeps right is believed, whatever was remembered. One that nobody keeps right may be decades
//! off in either direction (a dead battery): then the time that a server proved counts, else the latest of what the
//! system says and what is known to be past. Nothing ever counts from before the build.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

use super::boottime::boottime;
use super::kernel;

/// Seconds since 1970: a date before the first release (2025-01-01).
const FIRST_RELEASE: i64 = 1_735_689_600;
/// The lowest floor: the build's date when the builder gives one (reproducible-builds.org's SOURCE_DATE_EPOCH), but
/// some give 0 or 1980 to mean none.
const BUILD_TIME: i64 = later(option_env!("SOURCE_DATE_EPOCH"), FIRST_RELEASE);

/// systemd-timesyncd touches it once a server answered; whoever sets the clock by hand may do the same.
pub const VOUCHED: &str = "/run/systemd/timesync/synchronized";
/// Made by `fwupdate-clock.service` once the kernel counts its clock as synchronised: the agent's sandbox shuts out the
/// setting of the clock, and the question with it.
const KERNEL: &str = "/run/fwupdate-clock";
/// How far the saved time may lag behind a synchronised clock, seconds: it is worth one write a day.
const STALE: i64 = 86_400;
/// How far it may be ahead: no longer than two clocks of one system differ.
const AHEAD: i64 = 60;

const fn later(text: Option<&str>, least: i64) -> i64 {
    let Some(text) = text else { return least };
    match i64::from_str_radix(text, 10) {
        Ok(seconds) if seconds > least => seconds,
        _ => least,
    }
}

/// The wall clock of this gateway; copies are the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The file that stands in for the system's clock beside a simulated machine.
    simulated: Option<PathBuf>,
    known: Mutex<Known>,
}

/// What is known beside the system's clock.
#[derive(Debug, Default, Clone)]
struct Known {
    saved: Option<Moment>,
    /// A hub's certificate was good at this time.
    proven: Option<Moment>,
    /// Only a proven time is saved.
    wants_proof: bool,
    learned: Option<(Moment, String)>,
    /// Why no time could be learned.
    not_learned: Option<String>,
}

/// A wall-clock time, and when since boot it was.
#[derive(Debug, Clone, Copy)]
struct Moment {
    time: OffsetDateTime,
    at: Duration,
}

impl Moment {
    fn new(time: OffsetDateTime) -> Moment {
        Moment { time, at: boottime() }
    }

    /// The time that it is by now, for time passes also while the clock stands far below it.
    fn by_now(self) -> OffsetDateTime {
        let passed = time::Duration::try_from(boottime().saturating_sub(self.at)).unwrap_or_default();
        self.time.checked_add(passed).unwrap_or(self.time)
    }
}

/// Where the time comes from, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeOrigin {
    /// Somebody keeps the system's clock right.
    Synchronised,
    /// Nobody does, and this host proved the time.
    Learned(String),
    /// Nobody does, and what the system says is not known to be wrong.
    System,
    /// Nobody does, and the system's clock lies below a time that is known to be past.
    Saved,
}

impl Clock {
    /// `simulated` names a file in place of the system's clock: seconds to add to it, and `synchronised` or not.
    pub fn new(simulated: Option<PathBuf>) -> Clock {
        Clock(Arc::new(Inner { simulated, known: Mutex::default() }))
    }

    /// The time that is believed.
    pub fn now(&self) -> OffsetDateTime {
        self.origin().1
    }

    /// The time that is believed, and why.
    pub fn origin(&self) -> (TimeOrigin, OffsetDateTime) {
        let (system, synchronised) = self.system();
        let (origin, time) = judge(system, synchronised, &self.known());
        (origin, time.max(build_time()))
    }

    /// What the system's clock says, believed or not.
    pub fn system_time(&self) -> OffsetDateTime {
        self.system().0
    }

    /// Whether somebody keeps the system's clock right.
    pub fn synchronised(&self) -> bool {
        self.system().1
    }

    /// The least time that can be: the build's, or the one saved by a synchronised clock, and what passed since.
    pub fn floor(&self) -> OffsetDateTime {
        self.known().saved.map_or(OffsetDateTime::UNIX_EPOCH, Moment::by_now).max(build_time())
    }

    /// From now on a synchronised time is saved only if a hub's certificate was good at it: also a time service can be
    /// wrong, and it may not come back to correct what was saved.
    pub fn demand_proof(&self) {
        self.known().wants_proof = true;
    }

    /// A hub whose certificate is good at the time that is believed now was reached.
    pub fn prove(&self) {
        let proven = Moment::new(self.now());
        self.known().proven = Some(proven);
    }

    /// `seconds` since 1970 were read from the record: that time is past.
    pub fn remember(&self, seconds: i64) {
        self.known().saved = OffsetDateTime::from_unix_timestamp(seconds).ok().map(Moment::new);
    }

    /// What the record shall hold in place of `saved`: the time of a synchronised clock, be it earlier or, proven,
    /// later.
    pub fn worth_saving(&self, saved: i64) -> i64 {
        let (system, synchronised) = self.system();
        // A second that has begun counts, or a report made in it would carry a later time than the next boot's.
        let time = system.max(build_time()).unix_timestamp().saturating_add(1);
        if synchronised && (time <= saved || self.is_proven(time)) { time } else { saved }
    }

    fn is_proven(&self, time: i64) -> bool {
        let known = self.known();
        let reached = known.proven.map(|proven| proven.by_now().unix_timestamp().saturating_add(STALE));
        !known.wants_proof || reached.is_some_and(|reached| time <= reached)
    }

    /// Whether `saved` is so far from a synchronised clock that it should not wait for the next save.
    pub fn must_save(&self, saved: i64) -> bool {
        let ahead = saved.saturating_sub(self.worth_saving(saved));
        !(-STALE..=AHEAD).contains(&ahead)
    }

    /// `host` proved that it is `time` now.
    pub fn learn(&self, time: OffsetDateTime, host: &str) {
        let mut known = self.known();
        known.learned = Some((Moment::new(time), host.to_owned()));
        known.not_learned = None;
    }

    /// The host that told the time, while that counts.
    pub fn learned_from(&self) -> Option<String> {
        match self.origin().0 {
            TimeOrigin::Learned(host) => Some(host),
            _ => None,
        }
    }

    /// Whether a server should be asked for the time: nobody keeps the clock right, and none has told it yet.
    pub fn wants_time(&self) -> bool {
        matches!(self.origin().0, TimeOrigin::System | TimeOrigin::Saved)
    }

    /// Nobody could be asked for the time, as this sentence says.
    pub fn not_learned(&self, why: String) {
        self.known().not_learned = Some(why);
    }

    /// Why no time could be learned, if it was tried.
    pub fn why_not_learned(&self) -> Option<String> {
        self.known().not_learned.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the system's clock says, and whether somebody keeps it right.
    fn system(&self) -> (OffsetDateTime, bool) {
        let time = OffsetDateTime::now_utc();
        match &self.0.simulated {
            Some(file) => simulated(file, time),
            None => (time, is_synchronised(kernel::is_synchronised().ok(), [VOUCHED, KERNEL].map(Path::new))),
        }
    }
}

fn judge(system: OffsetDateTime, synchronised: bool, known: &Known) -> (TimeOrigin, OffsetDateTime) {
    if synchronised {
        return (TimeOrigin::Synchronised, system);
    }
    let saved = known.saved.map(Moment::by_now);
    if let Some((moment, host)) = &known.learned {
        let told = moment.by_now();
        return (TimeOrigin::Learned(host.clone()), saved.map_or(told, |saved| told.max(saved)));
    }
    let Some(saved) = saved else { return (TimeOrigin::System, system) };
    let ahead = saved > system.saturating_add(time::Duration::seconds(AHEAD));
    (if ahead { TimeOrigin::Saved } else { TimeOrigin::System }, system.max(saved))
}

/// timesyncd's mark outlives hours without a network, after which the kernel no longer vouches for its clock.
fn is_synchronised(kernel: Option<bool>, marks: [&Path; 2]) -> bool {
    let [timesync, told] = marks;
    // Root's word counts where the kernel cannot be asked.
    kernel.unwrap_or_else(|| told.exists()) || timesync.exists()
}

/// Whoever simulates a machine writes the file anew at each change; one that cannot be read changes nothing.
fn simulated(file: &Path, time: OffsetDateTime) -> (OffsetDateTime, bool) {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut words = text.split_whitespace();
    let offset = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
    let shifted = time.checked_add(time::Duration::seconds(offset)).unwrap_or(time);
    (shifted, words.next() == Some("synchronised"))
}

fn build_time() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(BUILD_TIME).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: i64 = 365 * 86_400;

    /// A clock so many seconds off, which somebody keeps right or nobody.
    struct Bench(tempfile::NamedTempFile, Clock);

    impl Bench {
        fn new(offset: i64, synchronised: bool) -> Bench {
            let file = tempfile::NamedTempFile::new().unwrap();
            let clock = Clock::new(Some(file.path().to_path_buf()));
            let bench = Bench(file, clock);
            bench.set(offset, synchronised);
            bench
        }

        fn set(&self, offset: i64, synchronised: bool) {
            let word = if synchronised { "synchronised" } else { "unsynchronised" };
            fs::write(self.0.path(), format!("{offset} {word}\n")).unwrap();
        }
    }

    fn now() -> i64 {
        OffsetDateTime::now_utc().unix_timestamp()
    }

    fn is_about(time: OffsetDateTime, seconds: i64) -> bool {
        (time.unix_timestamp() - seconds).abs() < 10
    }

    #[test]
    fn a_clock_that_nobody_sets_is_never_saved_and_one_that_is_kept_right_always() {
        let Bench(file, clock) = Bench::new(40 * YEAR, false);
        assert_eq!(clock.worth_saving(7), 7, "forty years ahead after a dead battery");
        assert!(!clock.must_save(7));
        fs::write(file.path(), "0 synchronised").unwrap();
        assert!((clock.worth_saving(7) - now()).abs() < 10);
        assert!(clock.must_save(7));
    }

    #[test]
    fn a_synchronised_clock_lowers_a_floor_of_the_far_future() {
        let bench = Bench::new(0, false);
        let clock = &bench.1;
        let absurd = now() + 40 * YEAR;
        clock.remember(absurd);
        assert_eq!(clock.origin().0, TimeOrigin::Saved);
        assert!(is_about(clock.now(), absurd), "nobody says that it is wrong");
        bench.set(0, true);
        assert_eq!(clock.origin().0, TimeOrigin::Synchronised);
        assert!(is_about(clock.now(), now()));
        assert!(clock.must_save(absurd) && (clock.worth_saving(absurd) - now()).abs() < 10);
        assert!(!clock.must_save(clock.worth_saving(absurd)));
    }

    #[test]
    fn a_time_service_is_believed_for_good_only_with_a_hub_s_certificate() {
        let bench = Bench::new(40 * YEAR, true);
        let clock = &bench.1;
        clock.demand_proof();
        assert_eq!(clock.origin().0, TimeOrigin::Synchronised);
        assert!(!clock.must_save(7) && clock.worth_saving(7) == 7, "no certificate was good then");
        bench.set(0, true);
        clock.prove();
        assert!(clock.must_save(7) && (clock.worth_saving(7) - now()).abs() < 10);
        bench.set(43_200, true);
        assert!(clock.worth_saving(7) >= now() + 43_200, "days go by in a session");
        bench.set(40 * YEAR, true);
        assert_eq!(clock.worth_saving(7), 7, "the clock jumps while the session stands");
        let later = now() + 41 * YEAR;
        assert!(clock.worth_saving(later) < later, "an earlier time needs no proof");
    }

    #[test]
    fn nothing_counts_from_before_the_build() {
        let bench = Bench::new(-100 * YEAR, true);
        let clock = &bench.1;
        assert_eq!(clock.now(), build_time());
        assert_eq!(clock.worth_saving(0), BUILD_TIME + 1);
        clock.remember(-1);
        assert_eq!(clock.floor(), build_time());
        clock.remember(i64::MIN);
        assert_eq!(clock.floor(), build_time());
        assert_eq!(later(Some("0"), 9), 9);
        assert_eq!(later(Some("17"), 9), 17);
        assert_eq!(later(Some("yesterday"), 9), 9);
    }

    #[test]
    fn a_learned_time_counts_until_the_clock_is_kept_right() {
        let bench = Bench::new(-5 * YEAR, false);
        let clock = &bench.1;
        let learned = OffsetDateTime::from_unix_timestamp(now() + YEAR).unwrap();
        clock.learn(learned, "hub.example");
        assert_eq!(clock.origin().0, TimeOrigin::Learned("hub.example".into()));
        assert!(is_about(clock.now(), learned.unix_timestamp()));
        assert!(!clock.synchronised());
        assert_eq!(clock.worth_saving(3), 3);
        bench.set(0, true);
        assert!(is_about(clock.now(), now()));
    }

    #[test]
    fn a_time_that_is_known_to_be_past_never_stands_still() {
        let floor = OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000);
        let before = boottime();
        let passed = Moment { time: floor, at: Duration::ZERO }.by_now() - floor;
        assert!(passed >= before && passed < before + Duration::from_secs(60));
        let last = time::PrimitiveDateTime::MAX.assume_utc();
        assert_eq!(Moment { time: last, at: Duration::ZERO }.by_now(), last);
    }

    #[test]
    fn the_kernel_or_timesyncd_s_mark_says_that_it_is_synchronised() {
        let dir = tempfile::tempdir().unwrap();
        let [mark, told] = ["synchronized", "told"].map(|name| dir.path().join(name));
        let is_synchronised = |kernel| is_synchronised(kernel, [&mark, &told]);
        assert!(is_synchronised(Some(true)), "any daemon");
        assert!(!is_synchronised(Some(false)), "no daemon");
        assert!(!is_synchronised(None), "the sandbox refuses the question");
        fs::write(&told, "").unwrap();
        assert!(is_synchronised(None), "root asked in its place");
        assert!(!is_synchronised(Some(false)), "what the kernel says itself is newer");
        fs::write(&mark, "").unwrap();
        assert!(is_synchronised(Some(false)) && is_synchronised(None));
    }

    #[test]
    fn a_simulated_clock_that_cannot_be_read_is_the_system_s_without_a_keeper() {
        let clock = Clock::new(Some("/nowhere/clock".into()));
        assert!(is_about(clock.now(), now()) && !clock.synchronised());
    }
}
