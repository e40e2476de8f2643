//! Where the gateway belongs: as the connection string says, or as the provisioning service assigned it.
//!
//! What was assigned is remembered on disk, so that a reboot costs no registration and an outage of the service does
//! not matter to gateways that have a place. It is asked again when the hub refuses the gateway or cannot be reached
//! for long, with pauses of its own: a fleet that is refused must not become a storm on the service.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::HubError;
use super::{identity, provision};
use crate::backoff::Backoff;
use crate::clock::{self, Clock};
use crate::config::{Cloud, Dps, Place, Seat, open_regular};
use crate::durable;
use crate::reach::Memory;

/// Failures in a row after which the hub may have been replaced.
const FAILURES: u32 = 10;
/// Between two registrations that led to nothing.
const PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// No cache is larger.
const CACHE_LIMIT: u64 = 16 * 1024;

pub(super) enum Placement {
    Known(Seat),
    Assigned(Box<Assigned>),
}

impl Placement {
    pub fn new(place: &Place) -> Placement {
        match place {
            Place::Known(seat) => Placement::Known(seat.clone()),
            Place::Assigned(dps) => Placement::Assigned(Box::new(Assigned::new(dps.clone()))),
        }
    }

    /// The seat to try next. Asks the service if there is none, or if the one there is has come into doubt; when the
    /// service cannot help, a seat in doubt is better than none.
    pub async fn find(&mut self, cloud: &Cloud, clock: &Clock) -> Result<Seat, HubError> {
        match self {
            Placement::Known(seat) => Ok(seat.clone()),
            Placement::Assigned(assigned) => assigned.find(cloud, clock).await,
        }
    }

    /// The host that is called next, and its port for WebSocket unless that is the hub's.
    pub fn host(&self) -> (&str, Option<u16>) {
        match self {
            Placement::Known(seat) => (identity::address(seat), None),
            Placement::Assigned(assigned) => match &assigned.seat {
                Some(seat) => (identity::address(seat), None),
                None => (&assigned.dps.endpoint, Some(assigned.dps.port)),
            },
        }
    }

    /// How long to wait at least before `find` is worth calling.
    pub fn patience(&self) -> Duration {
        match self {
            Placement::Assigned(assigned) if assigned.seat.is_none() => assigned.wait_left(),
            _ => Duration::ZERO,
        }
    }

    /// There is no session, for this reason.
    pub fn failed(&mut self, error: &HubError) {
        if let Placement::Assigned(assigned) = self {
            assigned.failures = assigned.failures.saturating_add(1);
            assigned.doubted |= error.is_refusal() || assigned.failures >= FAILURES;
        }
    }

    /// There is a session: the place is right.
    pub fn reached(&mut self) {
        if let Placement::Assigned(assigned) = self {
            assigned.looked_into();
        }
    }

    /// A session held for long: the next doubt is a new one.
    pub fn held(&mut self) {
        if let Placement::Assigned(assigned) = self {
            assigned.not_before = None;
            assigned.backoff.reset();
        }
    }
}

/// A seat that the service assigns.
pub(super) struct Assigned {
    dps: Dps,
    /// The file was looked at.
    recalled: bool,
    seat: Option<Seat>,
    /// Failures of the hub in a row.
    failures: u32,
    /// The seat is in doubt.
    doubted: bool,
    backoff: Backoff,
    /// The service is not asked sooner.
    not_before: Option<Instant>,
    memory: Memory,
}

impl Assigned {
    fn new(dps: Dps) -> Assigned {
        let backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let (recalled, seat, failures, doubted, not_before, memory) = Default::default();
        Assigned { dps, recalled, seat, failures, doubted, backoff, not_before, memory }
    }

    async fn find(&mut self, cloud: &Cloud, clock: &Clock) -> Result<Seat, HubError> {
        self.recall().await;
        let ask = self.doubted && self.wait_left().is_zero();
        if let Some(seat) = self.seat.as_ref().filter(|_| !ask) {
            return Ok(seat.clone());
        }
        tracing::debug!("asking the provisioning service {} for a place", self.dps.endpoint);
        match (provision::register(cloud, &self.dps, clock, &self.memory).await, &self.seat) {
            (Ok(seat), known) => {
                tracing::info!("assigned to {} as {}", seat.host, seat.device_id);
                // Only an answer to a doubt can have been in vain.
                if known.is_some() {
                    self.wait();
                }
                let (dps, new) = (self.dps.clone(), seat.clone());
                aside(move || remember(&dps, &new)).await;
                self.looked_into();
                self.seat = Some(seat.clone());
                Ok(seat)
            }
            (Err(error), Some(seat)) => {
                tracing::warn!("no new place: {error}; going on with {}", seat.host);
                let seat = seat.clone();
                self.looked_into();
                self.wait();
                Ok(seat)
            }
            (Err(error), None) => {
                // A network that is down is no load on the service.
                if error.is_refusal() {
                    self.wait();
                }
                Err(error)
            }
        }
    }

    /// Looks once for what was assigned before.
    async fn recall(&mut self) {
        if !self.recalled {
            let dps = self.dps.clone();
            self.seat = aside(move || recall(&dps)).await.flatten();
            self.recalled = true;
        }
    }

    /// No doubt is left.
    fn looked_into(&mut self) {
        self.doubted = false;
        self.failures = 0;
    }

    /// The next doubt is not looked into before a pause.
    fn wait(&mut self) {
        self.not_before = Some(clock::after(Instant::now(), self.backoff.next(fastrand::f64())));
    }

    fn wait_left(&self) -> Duration {
        self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }
}

/// What the file says. It counts only for the registration that it was made for.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Cache {
    endpoint: String,
    id_scope: String,
    registration_id: String,
    assigned_hub: String,
    device_id: String,
}

impl Cache {
    fn new(dps: &Dps, seat: &Seat) -> Cache {
        Cache {
            endpoint: dps.endpoint.clone(),
            id_scope: dps.id_scope.clone(),
            registration_id: dps.registration_id.clone(),
            assigned_hub: seat.host.clone(),
            device_id: seat.device_id.clone(),
        }
    }

    fn seat(&self) -> Seat {
        let (host, device_id) = (self.assigned_hub.clone(), self.device_id.clone());
        Seat { host, gateway: None, device_id, module_id: None }
    }
}

/// Does what may wait for a medium on a thread of its own.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.inspect_err(|error| tracing::error!(%error, "the assigned place is not remembered")).ok()
}

/// What was assigned before; whatever is wrong with the file, the service can be asked again.
fn recall(dps: &Dps) -> Option<Seat> {
    let mut text = String::new();
    open_regular(&dps.cache).ok()?.take(CACHE_LIMIT).read_to_string(&mut text).ok()?;
    let cache: Cache = serde_json::from_str(&text).ok()?;
    let seat = cache.seat();
    (seat.is_plausible() && cache == Cache::new(dps, &seat)).then_some(seat)
}

fn remember(dps: &Dps, seat: &Seat) {
    let text = serde_json::to_string_pretty(&Cache::new(dps, seat)).map_err(io::Error::from);
    if let Err(error) = text.and_then(|text| replace(&dps.cache, &text)) {
        tracing::warn!(
            "{} cannot be written ({error}): the next start asks the service again",
            dps.cache.display()
        );
    }
}

/// The old content or the new, whenever the power fails.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut draft = durable::draft(path)?;
    draft.write_all(text.as_bytes())?;
    durable::put(&draft, path)
}

#[cfg(test)]
mod tests;
