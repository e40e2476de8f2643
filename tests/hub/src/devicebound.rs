//! Cloud-to-device messages: each waits in its device's queue until the device acknowledged it.
//!
//! A message that was sent and not acknowledged is locked, in Azure for a minute; here until its device connects again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::watch;

use crate::lock;
use crate::registry::Identity;

/// A message as a service sends it. Azure's own properties begin with `$.`, as `$.mid` and `$.ct`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Letter {
    pub body: String,
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

impl Letter {
    /// The end of its topic: the properties in the manner of a URL's query, those of Azure first.
    pub fn bag(&self, resource: &str) -> String {
        let to = ("$.to".to_owned(), format!("/{resource}/messages/devicebound"));
        let all: BTreeMap<_, _> = self.properties.clone().into_iter().chain([to]).collect();
        let escaped = |text| utf8_percent_encode(text, NON_ALPHANUMERIC_BUT_MARKS).to_string();
        let pairs = all.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
        pairs.collect::<Vec<_>>().join("&")
    }
}

const NON_ALPHANUMERIC_BUT_MARKS: &percent_encoding::AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A message under way has the number of its packet.
#[derive(Debug)]
struct Waiting {
    letter: Letter,
    packet: Option<u16>,
}

/// All queues; they do not outlive the hub.
#[derive(Debug)]
pub struct Devicebound {
    queues: Mutex<HashMap<Identity, Vec<Waiting>>>,
    pushes: watch::Sender<()>,
}

impl Default for Devicebound {
    fn default() -> Devicebound {
        Devicebound { queues: Mutex::default(), pushes: watch::Sender::new(()) }
    }
}

impl Devicebound {
    pub fn push(&self, identity: &Identity, letter: Letter) {
        lock(&self.queues).entry(identity.clone()).or_default().push(Waiting { letter, packet: None });
        self.pushes.send_replace(());
    }

    /// Wakes at every message from now on.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.pushes.subscribe()
    }

    /// Those that are not under way are from now on, each with a number.
    pub fn due(&self, identity: &Identity) -> Vec<(u16, Letter)> {
        let mut queues = lock(&self.queues);
        let Some(queue) = queues.get_mut(identity) else { return Vec::new() };
        let mut last = queue.iter().filter_map(|waiting| waiting.packet).max().unwrap_or(0);
        let mut due = Vec::new();
        for waiting in queue.iter_mut().filter(|waiting| waiting.packet.is_none()) {
            last += 1;
            waiting.packet = Some(last);
            due.push((last, waiting.letter.clone()));
        }
        due
    }

    /// The device has it.
    pub fn complete(&self, identity: &Identity, packet: u16) {
        if let Some(queue) = lock(&self.queues).get_mut(identity) {
            queue.retain(|waiting| waiting.packet != Some(packet));
        }
    }

    /// What was under way and not acknowledged is sent again.
    pub fn release(&self, identity: &Identity) {
        for waiting in lock(&self.queues).get_mut(identity).into_iter().flatten() {
            waiting.packet = None;
        }
    }

    /// How many wait, under way or not.
    pub fn waiting(&self, identity: &Identity) -> usize {
        lock(&self.queues).get(identity).map_or(0, Vec::len)
    }
}
