//! Manifest x device x policy -> `Plan` or refusal; and what the reboot waits for. Pure: the agent gathers
//! the facts, this file judges.

use std::cmp::Ordering;
use std::fmt;

use time::{OffsetDateTime, Time};

use crate::config::{Policy, Window};
use crate::failure::{Code, Failure};
use crate::machine::{Extra, Hold, ImageInfo, Operation, Origin, Plan, Quarantined};
use crate::manifest::Manifest;
use crate::slot::Slot;

/// The facts about this gateway that a plan depends on.
#[derive(Debug, Clone)]
pub struct Device<'a> {
    pub compatible: &'a str,
    pub booted: Slot,
    /// What runs, as far as it is known.
    pub booted_image: Option<&'a ImageInfo>,
    /// What the running system calls itself, when no image is known.
    pub booted_version: Option<&'a str>,
    /// The highest security version among the record and the booted image's own metadata.
    pub floor: u64,
    /// Bytes of the target slot.
    pub capacity: u64,
    pub quarantine: &'a [Quarantined],
    pub tries: u8,
}

/// Plans the installation of `manifest`, or says why not.
pub fn plan(operation: &Operation, manifest: &Manifest, device: &Device<'_>) -> Result<Plan, Failure> {
    let image = image_info(manifest);
    right_board(manifest, device)?;
    expected_version(operation, &image)?;
    above_floor(&image, device)?;
    not_quarantined(operation, &image, device)?;
    newer(operation, &image, device)?;
    fits(&image, device)?;
    Ok(Plan {
        operation: operation.clone(),
        target: !device.booted,
        from_version: device
            .booted_image
            .map(|booted| booted.version.clone())
            .or(device.booted_version.map(str::to_owned)),
        image: Some(image),
        tries: device.tries,
        rewrite: true,
        extra: Extra::new(),
    })
}

/// Whether whoever asked may ask for this; `budget` is the gateway's own, bytes.
pub fn permitted(operation: &Operation, policy: &Policy, budget: Option<u64>) -> Result<(), Failure> {
    let may = policy.cloud;
    let above = budget.is_some_and(|own| operation.max_download_bytes.is_some_and(|asked| asked > own));
    let overrides = operation.deadline.is_some() && !policy.windows.is_empty();
    for (asked, allowed, what, setting) in [
        (operation.allow_downgrade, may.downgrade, "allowDowngrade", "downgrade"),
        (operation.force, may.force, "force", "force"),
        (above, may.budget, "maxDownloadBytes above download.max_bytes", "budget"),
        (overrides, may.deadline, "a deadline that ends policy.windows", "deadline"),
    ] {
        may_ask(operation.source, !asked || allowed, what, setting)?;
    }
    Ok(())
}

/// Refuses what `policy.cloud.<setting>` denies to the cloud. Local control may: who has root needs no leave.
pub fn may_ask(source: Origin, allowed: bool, what: &str, setting: &str) -> Result<(), Failure> {
    if allowed || source == Origin::Local {
        return Ok(());
    }
    let message = format!(
        "policy.cloud.{setting} is false on this gateway: the cloud may not ask for {what}; use fwupdatectl there, or \
         change the setting"
    );
    Err(Failure::new(Code::NotPermitted, message))
}

fn image_info(manifest: &Manifest) -> ImageInfo {
    let body = manifest.body();
    ImageInfo {
        version: body.version.clone(),
        security_version: body.security_version,
        created: body.created,
        manifest: manifest.digest(),
        sha256: body.image.sha256,
        size: body.image.size,
    }
}

fn right_board(manifest: &Manifest, device: &Device<'_>) -> Result<(), Failure> {
    let theirs = &manifest.body().compatible;
    if theirs == device.compatible {
        return Ok(());
    }
    let message = format!("the bundle is for `{theirs}`, this board is `{}`", device.compatible);
    Err(Failure::new(Code::WrongBoard, message))
}

fn expected_version(operation: &Operation, image: &ImageInfo) -> Result<(), Failure> {
    match &operation.version {
        Some(expected) if *expected != image.version => {
            let message = format!("the call expects version {expected}, the bundle holds {}", image.version);
            Err(Failure::new(Code::VersionMismatch, message))
        }
        _ => Ok(()),
    }
}

/// No flag goes below the floor.
fn above_floor(image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    if image.security_version >= device.floor {
        return Ok(());
    }
    let message = format!(
        "security version {} is below this gateway's floor {}, which no flag lowers; build the bundle with \
         --security-version {} or higher",
        image.security_version, device.floor, device.floor
    );
    Err(Failure::new(Code::Downgrade, message))
}

fn not_quarantined(operation: &Operation, image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    let entry = device.quarantine.iter().find(|entry| entry.refused && entry.sha256 == image.sha256);
    let Some(entry) = entry.filter(|_| !operation.force) else { return Ok(()) };
    let message = format!(
        "this image failed here before ({}): release a fixed one, or call again with force",
        entry.failure
    );
    let refused = Failure::new(Code::Quarantined, message);
    Err(Failure { evidence: entry.failure.evidence.clone(), ..refused })
}

fn newer(operation: &Operation, image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    let booted_version = device.booted_image.map(|booted| booted.version.as_str()).or(device.booted_version);
    let Some(booted_version) = booted_version else { return Ok(()) };
    let same_image = device.booted_image.is_some_and(|booted| booted.sha256 == image.sha256);
    if same_image {
        let message = format!("version {booted_version} with this very image runs already; force repeats it");
        return if operation.force { Ok(()) } else { Err(Failure::new(Code::AlreadyInstalled, message)) };
    }
    let older = match compare_versions(&image.version, booted_version) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => device.booted_image.is_some_and(|booted| image.created <= booted.created),
    };
    if !older || operation.allow_downgrade {
        return Ok(());
    }
    let message = format!(
        "version {} (created {}) is not newer than {booted_version}, which runs; call with allowDowngrade to \
         go back",
        image.version,
        crate::report::told(image.created)
    );
    Err(Failure::new(Code::Downgrade, message))
}

fn fits(image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    if image.size <= device.capacity {
        return Ok(());
    }
    let message = format!("the image has {} bytes, the slot only {}", image.size, device.capacity);
    Err(Failure::new(Code::TooLarge, message))
}

/// Orders versions as people read them: runs of digits by value, the rest by character, so that 1.10 is
/// newer than 1.9; `~` sorts before everything, even the end (1.0~rc1 is older than 1.0), as in Debian.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (text_a, rest_a) = split_at(a, |c| c.is_ascii_digit());
        let (text_b, rest_b) = split_at(b, |c| c.is_ascii_digit());
        let (digits_a, next_a) = split_at(rest_a, |c| !c.is_ascii_digit());
        let (digits_b, next_b) = split_at(rest_b, |c| !c.is_ascii_digit());
        let order = compare_text(text_a, text_b).then_with(|| compare_digits(digits_a, digits_b));
        if order != Ordering::Equal || (next_a.is_empty() && next_b.is_empty()) {
            return order;
        }
        (a, b) = (next_a, next_b);
    }
}

fn split_at(text: &str, at: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(at).unwrap_or(text.len()))
}

fn compare_digits(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn compare_text(a: &str, b: &str) -> Ordering {
    let weigh = |text: &str| -> Vec<i32> {
        let weight = |c: char| if c == '~' { -1 } else { c as i32 };
        text.chars().map(weight).chain([0]).collect()
    };
    weigh(a).cmp(&weigh(b))
}

/// What a reboot still waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    Approval,
    /// A synchronised clock: without one neither a time nor a window means anything.
    Clock,
    /// This moment (`notBefore`, `firmwareDefer`, or the next window's start).
    Until(OffsetDateTime),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Approval => f.write_str("for approval"),
            Wait::Clock => f.write_str("for a synchronised clock"),
            Wait::Until(time) => write!(f, "until {}", crate::report::told(*time)),
        }
    }
}

/// The facts that decide whether the reboot may happen now.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub time: OffsetDateTime,
    pub synchronised: bool,
}

/// `None`: reboot now. At the operation's deadline windows no longer count; approval and deferral do.
pub fn wait(
    operation: &Operation,
    hold: &Hold,
    windows: &[Window],
    approval: bool,
    now: Now,
) -> Option<Wait> {
    if approval && !hold.approved {
        return Some(Wait::Approval);
    }
    let overdue = now.synchronised && operation.deadline.is_some_and(|deadline| now.time >= deadline);
    let windows = if overdue { &[] } else { windows };
    let earliest = [operation.not_before, hold.until].into_iter().flatten().max();
    if (earliest.is_some() || !windows.is_empty()) && !now.synchronised {
        return Some(Wait::Clock);
    }
    let from = earliest.map_or(now.time, |earliest| earliest.max(now.time));
    let opens = next_open(windows, from);
    let opens = operation.deadline.map_or(opens, |deadline| opens.min(deadline.max(from)));
    (opens > now.time).then_some(Wait::Until(opens))
}

/// What a download waits for outside its windows; `None`: it may go on.
pub fn download_wait(windows: &[Window], now: Now) -> Option<Wait> {
    if windows.is_empty() {
        return None;
    }
    if !now.synchronised {
        return Some(Wait::Clock);
    }
    let opens = next_open(windows, now.time);
    (opens > now.time).then_some(Wait::Until(opens))
}

/// The first moment from `from` on that lies in a window.
fn next_open(windows: &[Window], from: OffsetDateTime) -> OffsetDateTime {
    let minute = u16::from(from.hour()).saturating_mul(60).saturating_add(u16::from(from.minute()));
    if windows.is_empty() || windows.iter().any(|window| contains(window, minute)) {
        return from;
    }
    let midnight = from.replace_time(Time::MIDNIGHT);
    let minutes_until = |window: &Window| {
        let start = i64::from(window.start);
        if window.start > minute { start } else { start.saturating_add(24 * 60) }
    };
    let soonest = windows.iter().map(minutes_until).min().unwrap_or(0);
    midnight.saturating_add(time::Duration::minutes(soonest))
}

fn contains(window: &Window, minute: u16) -> bool {
    if window.start <= window.end {
        (window.start..window.end).contains(&minute)
    } else {
        minute >= window.start || minute < window.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Allowed;
    use time::format_description::well_known::Rfc3339;

    fn at(text: &str) -> OffsetDateTime {
        OffsetDateTime::parse(text, &Rfc3339).unwrap()
    }

    fn now(text: &str) -> Now {
        Now { time: at(text), synchronised: true }
    }

    const NIGHT: Window = Window { start: 22 * 60, end: 4 * 60 };

    #[test]
    fn versions_are_ordered_as_people_read_them() {
        for (older, newer) in [
            ("1.9", "1.10"),
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0.1"),
            ("1.0", "1.0a"),
            ("2024.09", "2024.10"),
            ("v1", "v2"),
            ("1.02", "1.3"),
        ] {
            assert_eq!(compare_versions(older, newer), Ordering::Less, "{older} < {newer}");
            assert_eq!(compare_versions(newer, older), Ordering::Greater, "{newer} > {older}");
        }
        assert_eq!(compare_versions("1.0", "1.00"), Ordering::Equal);
        assert_eq!(compare_versions("", ""), Ordering::Equal);
    }

    #[test]
    fn nothing_asked_for_reboots_at_once_even_with_a_wrong_clock() {
        let unsynchronised = Now { synchronised: false, ..now("1970-01-01T00:00:00Z") };
        assert_eq!(wait(&Operation::default(), &Hold::default(), &[], false, unsynchronised), None);
    }

    #[test]
    fn a_window_holds_the_reboot_until_it_opens() {
        let wait = |time| wait(&Operation::default(), &Hold::default(), &[NIGHT], false, now(time));
        assert_eq!(wait("2026-01-01T12:30:00Z"), Some(Wait::Until(at("2026-01-01T22:00:00Z"))));
        assert_eq!(wait("2026-01-01T23:30:00Z"), None);
        assert_eq!(wait("2026-01-01T03:59:59Z"), None);
        assert_eq!(wait("2026-01-01T04:00:00Z"), Some(Wait::Until(at("2026-01-01T22:00:00Z"))));
    }

    #[test]
    fn a_window_waits_for_a_synchronised_clock() {
        let unsynchronised = Now { synchronised: false, ..now("2026-01-01T23:30:00Z") };
        let found = wait(&Operation::default(), &Hold::default(), &[NIGHT], false, unsynchronised);
        assert_eq!(found, Some(Wait::Clock));
    }

    #[test]
    fn not_before_and_window_both_count_and_the_deadline_ends_windows() {
        let mut operation =
            Operation { not_before: Some(at("2026-01-02T12:00:00Z")), ..Operation::default() };
        let hold = Hold::default();
        let waits = |operation: &Operation, time| wait(operation, &hold, &[NIGHT], false, now(time));
        let noon = "2026-01-01T12:00:00Z";
        assert_eq!(waits(&operation, noon), Some(Wait::Until(at("2026-01-02T22:00:00Z"))));
        operation.deadline = Some(at("2026-01-02T13:00:00Z"));
        assert_eq!(waits(&operation, noon), Some(Wait::Until(at("2026-01-02T13:00:00Z"))));
        assert_eq!(waits(&operation, "2026-01-02T13:00:00Z"), None);
    }

    #[test]
    fn the_cloud_may_ask_for_what_the_settings_let_it() {
        let all = Allowed {
            downgrade: true,
            force: true,
            budget: true,
            deadline: true,
            approve: true,
            rollback: true,
            reboot: true,
        };
        let policy =
            |cloud| Policy { windows: vec![NIGHT], approval: false, cloud, reboot_command: Vec::new() };
        let asks = |change: fn(&mut Operation)| {
            let mut operation = Operation { source: Origin::Desired, ..Operation::default() };
            change(&mut operation);
            operation
        };
        for (name, denied, operation) in [
            ("downgrade", Allowed { downgrade: false, ..all }, asks(|asked| asked.allow_downgrade = true)),
            ("force", Allowed { force: false, ..all }, asks(|asked| asked.force = true)),
            ("budget", Allowed { budget: false, ..all }, asks(|asked| asked.max_download_bytes = Some(1001))),
            (
                "deadline",
                Allowed { deadline: false, ..all },
                asks(|asked| asked.deadline = Some(at("2026-01-01T00:00:00Z"))),
            ),
        ] {
            let refused = permitted(&operation, &policy(denied), Some(1000)).unwrap_err();
            assert_eq!(refused.code, Code::NotPermitted);
            assert!(refused.message.contains(&format!("policy.cloud.{name}")), "{refused}");
            permitted(&operation, &policy(all), Some(1000)).unwrap();
            let local = Operation { source: Origin::Local, ..operation };
            permitted(&local, &policy(denied), Some(1000)).unwrap();
        }
        let modest = asks(|asked| asked.max_download_bytes = Some(1000));
        permitted(&modest, &policy(Allowed { budget: false, ..all }), Some(1000)).unwrap();
        let dated = asks(|asked| asked.deadline = Some(at("2026-01-01T00:00:00Z")));
        let open = Policy { windows: Vec::new(), ..policy(Allowed { deadline: false, ..all }) };
        permitted(&dated, &open, None).unwrap();
    }

    #[test]
    fn no_time_is_too_late_for_a_window() {
        let late = at("9999-12-31T23:30:00Z");
        let noon = Window { start: 12 * 60, end: 13 * 60 };
        let forever = Operation { not_before: Some(late), ..Operation::default() };
        for (operation, until, time) in [
            (&forever, None, "2026-01-01T12:30:00Z"),
            (&Operation::default(), Some(late), "2026-01-01T12:30:00Z"),
            (&Operation { deadline: Some(late), ..forever.clone() }, Some(late), "9999-12-31T23:40:00Z"),
            (&Operation { deadline: Some(late), ..Operation::default() }, None, "9999-12-31T23:20:00Z"),
            (&Operation::default(), None, "9999-12-31T23:59:59Z"),
        ] {
            let hold = Hold { approved: true, until };
            let found = wait(operation, &hold, &[noon], true, now(time));
            assert!(found.is_none() || matches!(found, Some(Wait::Until(when)) if when >= late), "{found:?}");
        }
        let found = download_wait(&[noon], now("9999-12-31T23:59:59Z"));
        assert!(matches!(found, Some(Wait::Until(_))), "{found:?}");
    }

    #[test]
    fn approval_and_deferral_outlast_the_deadline() {
        let operation = Operation { deadline: Some(at("2026-01-01T00:00:00Z")), ..Operation::default() };
        let noon = now("2026-01-01T12:00:00Z");
        assert_eq!(wait(&operation, &Hold::default(), &[], true, noon), Some(Wait::Approval));
        let until = at("2026-01-03T00:00:00Z");
        let deferred = Hold { approved: true, until: Some(until) };
        assert_eq!(wait(&operation, &deferred, &[], true, noon), Some(Wait::Until(until)));
    }

    #[test]
    fn a_download_waits_for_the_next_of_its_windows() {
        let noon = Window { start: 12 * 60, end: 13 * 60 };
        let wait = |windows: &[Window], text: &str| download_wait(windows, now(text));
        assert_eq!(wait(&[], "2026-03-01T08:00:00Z"), None);
        for open in
            ["2026-03-01T12:00:00Z", "2026-03-01T12:59:59Z", "2026-03-01T22:00:00Z", "2026-03-01T03:59:59Z"]
        {
            assert_eq!(wait(&[NIGHT, noon], open), None, "{open}");
        }
        let cases = [("04:00:00", "2026-03-01T12:00:00Z"), ("13:00:00", "2026-03-01T22:00:00Z")];
        for (time, opens) in cases {
            let expected = Some(Wait::Until(at(opens)));
            assert_eq!(wait(&[NIGHT, noon], &format!("2026-03-01T{time}Z")), expected, "{time}");
        }
        assert_eq!(wait(&[noon], "2026-03-01T13:00:00Z"), Some(Wait::Until(at("2026-03-02T12:00:00Z"))));
        let unknown = Now { synchronised: false, ..now("2026-03-01T12:30:00Z") };
        assert_eq!(download_wait(&[noon], unknown), Some(Wait::Clock));
        assert_eq!(download_wait(&[], unknown), None);
    }
}
