//! What doctor's questions are asked about, and what they find.

use std::sync::Arc;

use crate::agent::gateway::Gateway;
use crate::bounds;
use crate::config::{Cloud, Place};
use crate::machine::{Abilities, Boot, Plan, Record};

/// What a question found. A sentence says what is so, and what to do about it if it is not well.
pub enum Answer {
    Well(String),
    /// Updates still work.
    Doubt(String),
    Fault(String),
}

impl Answer {
    /// Well, with this sentence, unless there is a fault.
    pub fn of<E: ToString>(good: &str, result: Result<(), E>) -> Answer {
        match result {
            Ok(()) => Answer::Well(good.to_owned()),
            Err(why) => Answer::Fault(why.to_string()),
        }
    }

    pub fn doubt(good: &str, doubt: Option<String>) -> Answer {
        doubt.map_or_else(|| Answer::Well(good.to_owned()), Answer::Doubt)
    }

    pub fn is_fault(&self) -> bool {
        matches!(self, Answer::Fault(_))
    }
}

/// What the questions are asked about. They read files and devices, so they block.
pub struct Subject {
    pub gateway: Arc<Gateway>,
    pub record: Record,
    pub boot: Boot,
    /// Why the running slot is not known or no update can start.
    pub degraded: Option<String>,
    /// The spare slot is held by the update that runs.
    pub held: bool,
    /// The image on trial, when it is what the questions are about.
    pub on_trial: Option<OnTrial>,
    /// What only the running agent knows.
    pub live: Option<Live>,
    /// Why no agent runs, if none does.
    pub agent_ended: Option<String>,
}

/// What the running agent knows beside its record.
pub struct Live {
    /// Why the record could not be saved.
    pub unsaved: Option<String>,
    /// Why there is no session with the hub.
    pub no_session: Option<String>,
}

impl Subject {
    /// The gateway as it is now.
    pub fn new(gateway: Arc<Gateway>, record: Record, held: bool) -> Subject {
        let (boot, degraded) = gateway.boot();
        Subject { gateway, record, boot, degraded, held, on_trial: None, live: None, agent_ended: None }
    }

    pub fn booted_on_trial(&self) -> bool {
        let trial = self.boot.env.and_then(|env| env.trial);
        trial.is_some_and(|trial| Some(trial.slot) == self.boot.booted)
    }
}

/// An image on trial, and the slot that armed it.
#[derive(Clone)]
pub struct OnTrial {
    pub plan: Plan,
    /// What the old slot could do; `None`: its agent did not say.
    pub before: Option<Abilities>,
    /// A session with the hub is among the health checks.
    pub cloud_required: bool,
}

/// Who the gateway is at its hub, or to the service that assigns one.
pub fn hub_of(cloud: &Cloud) -> String {
    match &cloud.place {
        Place::Known(seat) => {
            let module = seat.module_id.as_ref().map(|module| format!("/{module}")).unwrap_or_default();
            format!("{}{module} at {}", seat.device_id, seat.host)
        }
        Place::Assigned(dps) => format!("{} in {} at {}", dps.registration_id, dps.id_scope, dps.endpoint),
    }
}

/// As much of a text as the record keeps of it.
pub fn short(text: &str) -> String {
    bounds::short(text, bounds::ID)
}
