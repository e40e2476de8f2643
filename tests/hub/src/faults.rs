//! What can be made to go wrong, while the hub runs, and counters of what it served.
//!
//! Every fault is exact: it counts requests and bytes and never rolls dice, so that a test that fails fails again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::lock;

/// Requests kept in the log of served ranges.
const KEPT: usize = 100_000;

/// Faults of the MQTT side; the counts are used up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MqttFaults {
    /// This many CONNECTs are answered with 5 (not authorised).
    pub refuse_connects: u64,
    /// This many TCP connections are closed before a byte is answered, as by a hub that is starting.
    pub drop_connects: u64,
    /// This many QoS 1 publishes are handled but not acknowledged.
    pub lose_pubacks: u64,
    /// This many reported patches are applied but not answered.
    pub lose_patch_answers: u64,
    /// This many reported patches are applied, and the connection breaks before the answer is out.
    pub cut_patch_answers: u64,
    /// This many reported patches are answered twice.
    pub repeat_patch_answers: u64,
    /// This many method calls are delivered twice, with the same request id.
    pub repeat_methods: u64,
    /// This many connections break before the acknowledgement of a cloud-to-device message has come.
    pub cut_messages: u64,
    /// This many reported patches are refused with 429 and not applied.
    pub throttle_patches: u64,
    /// This many requests to the provisioning service are refused with 429.
    pub throttle_registrations: u64,
    /// This many requests for a certificate are refused with 429002, or with 503001, and not taken.
    pub throttle_certificates: u64,
    pub unavailable_certificates: u64,
    /// This many are answered with 202, and then with 500001.
    pub fail_certificates: u64,
    /// This many certificates are issued and never sent.
    pub lose_certificates: u64,
    /// This many connections break right after the 202.
    pub cut_certificates: u64,
    /// Every certificate is issued this much after its 202.
    pub delay_certificates_ms: u64,
    /// None is issued until this is off again.
    pub hold_certificates: bool,
    /// `retryAfter` of 429002, 503001 and 500001, in seconds, instead of 1, 5 and 300.
    pub retry_certificates_after: Option<u64>,
    /// Every publish of a device is handled this much later.
    pub delay_ms: u64,
    /// No more CONNECTs than this are served in a second, evenly spread; on others the connection is closed.
    /// Absent: no limit.
    pub connects_per_second: Option<u64>,
}

/// What happens to a request of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum FileEffect {
    /// The connection is cut after this many bytes of a body.
    Drop { after: u64 },
    /// Nothing more comes after this many bytes of a body; the connection stays open.
    Stall { after: u64 },
    /// The same, until the rule is gone: then the rest comes.
    Hold { after: u64 },
    /// This status instead of the file.
    Status { status: u16 },
    /// The byte at this offset of the file is served with all its bits flipped.
    Flip { offset: u64 },
    /// The file ends here, as after an upload that broke off.
    Truncate { length: u64 },
    /// Range headers are overlooked: 200 and the whole file.
    NoRanges,
    /// 302 to this URL.
    Redirect { to: String },
}

/// A fault of the file server. Rules are tried in order; the first that fires is applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileRule {
    /// Path below `/files/`, or `*` for all.
    pub path: String,
    #[serde(flatten)]
    pub effect: FileEffect,
    /// Fires this often, then no more; absent: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// Fires on this share of the requests (0 to 1), evenly spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    #[serde(skip)]
    credit: f64,
}

impl FileRule {
    /// A rule that always fires.
    pub fn always(path: impl Into<String>, effect: FileEffect) -> FileRule {
        FileRule { path: path.into(), effect, times: None, fraction: None, credit: 0.0 }
    }

    /// A rule for the next `times` requests.
    pub fn next(times: u64, path: impl Into<String>, effect: FileEffect) -> FileRule {
        FileRule { times: Some(times), ..FileRule::always(path, effect) }
    }

    /// A rule for a share of the requests.
    pub fn share(fraction: f64, path: impl Into<String>, effect: FileEffect) -> FileRule {
        FileRule { fraction: Some(fraction), ..FileRule::always(path, effect) }
    }

    fn fires(&mut self, path: &str) -> bool {
        if self.path != "*" && self.path != path || self.times == Some(0) {
            return false;
        }
        if let Some(fraction) = self.fraction {
            self.credit += fraction.clamp(0.0, 1.0);
            if self.credit < 1.0 - 1e-9 {
                return false;
            }
            self.credit -= 1.0;
        }
        self.times = self.times.map(|left| left - 1);
        true
    }
}

/// Both sides' faults, as the admin REST shows and takes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultSet {
    pub mqtt: MqttFaults,
    pub files: Vec<FileRule>,
}

/// Requests and bytes of one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathCount {
    pub requests: u64,
    /// Bytes of bodies handed to the connection.
    pub body_bytes: u64,
}

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Served {
    pub path: String,
    pub status: u16,
    /// First byte of the file in the body, and the number of bytes promised.
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug, Default)]
struct Counters {
    paths: BTreeMap<String, PathCount>,
    log: VecDeque<Served>,
}

/// Switches and counters; all methods may be called at any time.
#[derive(Debug, Default)]
pub struct Faults {
    set: watch::Sender<FaultSet>,
    counters: watch::Sender<Counters>,
    /// When the next CONNECT may be served.
    next_connect: Mutex<Option<Instant>>,
    /// Bodies that are held now.
    held: watch::Sender<u64>,
}

impl Faults {
    pub fn get(&self) -> FaultSet {
        self.set.borrow().clone()
    }

    /// Replaces all faults.
    pub fn put(&self, set: FaultSet) {
        self.set.send_replace(set);
    }

    /// Everything works again.
    pub fn clear(&self) {
        self.put(FaultSet::default());
    }

    /// Changes the MQTT faults.
    pub fn mqtt(&self, change: impl FnOnce(&mut MqttFaults)) {
        self.set.send_modify(|set| change(&mut set.mqtt));
    }

    /// Adds a rule behind the others.
    pub fn file(&self, rule: FileRule) {
        self.set.send_modify(|set| set.files.push(rule));
    }

    /// Removes all rules for files.
    pub fn clear_files(&self) {
        self.set.send_modify(|set| set.files.clear());
    }

    /// Uses up one of a count.
    pub fn take(&self, count: impl FnOnce(&mut MqttFaults) -> &mut u64) -> bool {
        self.set.send_if_modified(|set| {
            let left = count(&mut set.mqtt);
            let any = *left > 0;
            *left = left.saturating_sub(1);
            any
        })
    }

    /// Whether the limit of connects lets this one through.
    pub fn admits(&self) -> bool {
        let Some(most) = self.set.borrow().mqtt.connects_per_second else { return true };
        let Some(share) = Duration::from_secs(1).checked_div(u32::try_from(most).unwrap_or(u32::MAX)) else {
            return false;
        };
        let (now, mut next) = (Instant::now(), lock(&self.next_connect));
        let free = next.is_none_or(|next| next <= now);
        if free {
            *next = Some(next.unwrap_or(now).max(now - share) + share);
        }
        free
    }

    /// Waits until a MQTT fault is used up; `left` says how much of it is left.
    pub async fn used_up(&self, left: impl Fn(&MqttFaults) -> u64) {
        let mut set = self.set.subscribe();
        // The sender lives as long as `self`.
        drop(set.wait_for(|set| left(&set.mqtt) == 0).await);
    }

    /// Waits until a body is held.
    pub async fn holding(&self) {
        drop(self.held.subscribe().wait_for(|held| *held > 0).await);
    }

    /// Returns when no rule holds this path any more.
    pub async fn released(&self, path: &str) {
        self.held.send_modify(|held| *held += 1);
        let _leaving = Leaving(&self.held);
        let holds = |rule: &FileRule| {
            (rule.path == "*" || rule.path == path) && matches!(rule.effect, FileEffect::Hold { .. })
        };
        let mut set = self.set.subscribe();
        drop(set.wait_for(|set| !set.files.iter().any(holds)).await);
    }

    /// Waits as long as a certificate is delayed or held.
    pub async fn before_certificate(&self) {
        let delay = self.set.borrow().mqtt.delay_certificates_ms;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let mut set = self.set.subscribe();
        drop(set.wait_for(|set| !set.mqtt.hold_certificates).await);
    }

    pub fn retry_certificates_after(&self) -> Option<u64> {
        self.set.borrow().mqtt.retry_certificates_after
    }

    pub fn delay(&self) -> Duration {
        Duration::from_millis(self.set.borrow().mqtt.delay_ms)
    }

    /// The effect on this request of a file, if any.
    pub fn on_file(&self, path: &str) -> Option<FileEffect> {
        let mut effect = None;
        self.set.send_if_modified(|set| {
            effect = set.files.iter_mut().find_map(|rule| rule.fires(path).then(|| rule.effect.clone()));
            effect.is_some()
        });
        effect
    }

    pub fn served(&self, served: Served) {
        self.counters.send_modify(|counters| {
            counters.paths.entry(served.path.clone()).or_default().requests += 1;
            if counters.log.len() == KEPT {
                counters.log.pop_front();
            }
            counters.log.push_back(served);
        });
    }

    /// Waits until such an answer was given, since the start or the last reset.
    pub async fn answered(&self, wanted: impl Fn(&Served) -> bool) {
        let mut counters = self.counters.subscribe();
        // The sender lives as long as `self`.
        drop(counters.wait_for(|counters| counters.log.iter().any(&wanted)).await);
    }

    pub fn sent(&self, path: &str, bytes: u64) {
        let add = |counters: &mut Counters| {
            counters.paths.entry(path.to_owned()).or_default().body_bytes += bytes;
        };
        self.counters.send_modify(add);
    }

    /// Requests and bytes by path below `/files/`.
    pub fn counts(&self) -> BTreeMap<String, PathCount> {
        self.counters.borrow().paths.clone()
    }

    /// Of one path; zeros if it was never asked for.
    pub fn count(&self, path: &str) -> PathCount {
        self.counters.borrow().paths.get(path).copied().unwrap_or_default()
    }

    /// Every request of a file since the start or the last reset.
    pub fn log(&self) -> Vec<Served> {
        self.counters.borrow().log.iter().cloned().collect()
    }

    pub fn reset_counts(&self) {
        self.counters.send_replace(Counters::default());
    }
}

/// A held body is released, or nobody waits for it any more.
struct Leaving<'a>(&'a watch::Sender<u64>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connects_are_limited_evenly() {
        let faults = Faults::default();
        assert!((0..100).all(|_| faults.admits()));
        faults.mqtt(|mqtt| mqtt.connects_per_second = Some(1));
        assert_eq!([faults.admits(), faults.admits()], [true, false]);
        faults.mqtt(|mqtt| mqtt.connects_per_second = Some(0));
        assert!(!faults.admits());
    }

    const BAD: FileEffect = FileEffect::Status { status: 503 };

    #[test]
    fn rules_count_down_and_name_their_path() {
        let faults = Faults::default();
        faults.file(FileRule::next(2, "a", BAD));
        let hits = ["a", "b", "a", "a"].map(|path| faults.on_file(path).is_some());
        assert_eq!(hits, [true, false, true, false]);
    }

    #[test]
    fn a_share_is_spread_evenly() {
        let faults = Faults::default();
        faults.file(FileRule::share(0.3, "*", BAD));
        let hits = (0..10).filter(|_| faults.on_file("x").is_some()).count();
        assert_eq!(hits, 3);
        faults.clear();
        assert_eq!(faults.on_file("x"), None);
    }

    #[test]
    fn the_admin_form_round_trips() {
        let text = r#"{"mqtt":{"loseNextIsUnknown":1}}"#;
        assert!(serde_json::from_str::<FaultSet>(text).is_err());
        let text = r#"{"files":[{"path":"*","do":"drop","after":10,"times":1}]}"#;
        let set: FaultSet = serde_json::from_str(text).unwrap();
        assert_eq!(set.files, [FileRule::next(1, "*", FileEffect::Drop { after: 10 })]);
        let again: FaultSet = serde_json::from_value(serde_json::to_value(&set).unwrap()).unwrap();
        assert_eq!(again, set);
    }
}
