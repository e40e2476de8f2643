//! Everything that would make the next update fail, found before it does: one list of questions, asked by
//! `fwupdatectl doctor` with the agent and without it, and by a trial about the image that is to be committed.

mod board;
mod cloud;
mod dead_man;
mod medium;
mod offline;
mod slots;
mod state;
mod trial;
mod trust;

use std::sync::Arc;

use serde_json::{Value, json};

use super::Agent;
use super::gateway::Gateway;
use crate::control::Reply;
use crate::fault;
use crate::machine::{Boot, Record};

pub use self::offline::{examine as examine_offline, note_end};
pub(super) use self::trial::{OnTrial, abilities, lacking};

/// What a question found. A sentence says what is so, and what to do about it if it is not well.
enum Answer {
    Well(String),
    /// Updates still work.
    Doubt(String),
    Fault(String),
}

impl Answer {
    /// Well, with this sentence, unless there is a fault.
    fn of<E: ToString>(good: &str, result: Result<(), E>) -> Answer {
        match result {
            Ok(()) => Answer::Well(good.to_owned()),
            Err(why) => Answer::Fault(why.to_string()),
        }
    }

    fn doubt(good: &str, doubt: Option<String>) -> Answer {
        doubt.map_or_else(|| Answer::Well(good.to_owned()), Answer::Doubt)
    }

    fn is_fault(&self) -> bool {
        matches!(self, Answer::Fault(_))
    }
}

/// What a fault means for an image on trial.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Nothing: it says more of the gateway or its surroundings than of the image.
    Advice,
    /// It fails the trial if the slot that armed it had no such fault.
    Compared,
    /// The same; and when nobody knows what the old slot could do, it fails the trial too, for no update could
    /// follow.
    Vital,
}

/// One of doctor's questions.
struct Question {
    name: &'static str,
    weight: Weight,
    /// `None`: it does not arise here.
    ask: fn(&Subject) -> Option<Answer>,
}

const fn question(name: &'static str, weight: Weight, ask: fn(&Subject) -> Option<Answer>) -> Question {
    Question { name, weight, ask }
}

/// All of them, in the order in which they are printed.
const QUESTIONS: &[Question] = &[
    question("agent", Weight::Advice, |subject| subject.agent_ended.clone().map(Answer::Fault)),
    question("settings", Weight::Advice, cloud::awaited),
    question("running slot", Weight::Advice, slots::running),
    question("trial", Weight::Advice, slots::trial),
    question("boot environment", Weight::Vital, slots::environment),
    question("spare slot", Weight::Vital, slots::spare),
    question("slot sizes", Weight::Advice, medium::sizes),
    question("read-only media", Weight::Compared, medium::read_only),
    question("fallback", Weight::Advice, slots::fallback),
    question("signing keys", Weight::Vital, trust::keys),
    question("board", Weight::Vital, trust::board),
    question("security version", Weight::Vital, trust::security_version),
    question("downloads", Weight::Vital, trust::downloads),
    question("package host", Weight::Vital, trust::package_host),
    question("hub settings", Weight::Compared, cloud::settings),
    question("hub", Weight::Compared, cloud::session),
    question("credentials", Weight::Advice, cloud::credentials),
    question("clock", Weight::Advice, cloud::clock),
    question("state folder", Weight::Compared, state::outside),
    question("state medium", Weight::Compared, medium::lasting),
    question("state access", Weight::Vital, state::access),
    question("trial record", Weight::Vital, state::same_folder),
    question("record", Weight::Advice, state::saved),
    question("reboot command", Weight::Vital, board::reboot_command),
    question("dead-man", Weight::Compared, dead_man::late_enough),
    question("hardware watchdog", Weight::Advice, board::watchdog),
    question("quarantine", Weight::Advice, state::quarantine),
];

/// What `--check-config` asks beyond the settings themselves: of the machine that they are checked on.
const OF_SETTINGS: [&str; 4] = ["slot sizes", "read-only media", "state medium", "dead-man"];

/// The faults and doubts that settings have on this machine, before any agent runs; true for a fault.
pub fn config_doubts(settings: crate::config::Settings) -> Vec<(bool, String)> {
    let subject = Subject::new(Arc::new(Gateway::new(settings)), Record::default());
    let asked = QUESTIONS.iter().filter(|question| OF_SETTINGS.contains(&question.name));
    let answers = asked.filter_map(|question| Some((question.name, (question.ask)(&subject)?)));
    let doubts = answers.filter_map(|(name, answer)| match answer {
        Answer::Well(_) => None,
        Answer::Doubt(why) => Some((false, format!("{name}: {why}"))),
        Answer::Fault(why) => Some((true, format!("{name}: {why}"))),
    });
    doubts.collect()
}

/// What the questions are asked about. They read files and devices, so they block.
pub(super) struct Subject {
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
pub(super) struct Live {
    /// Why the record could not be saved.
    pub unsaved: Option<String>,
    /// Why there is no session with the hub.
    pub no_session: Option<String>,
}

impl Subject {
    /// The gateway as it is now.
    pub fn new(gateway: Arc<Gateway>, record: Record) -> Subject {
        let (boot, degraded) = gateway.boot();
        let held = gateway.held.try_lock().map_or(true, |held| held.target.is_some());
        Subject { gateway, record, boot, degraded, held, on_trial: None, live: None, agent_ended: None }
    }

    fn booted_on_trial(&self) -> bool {
        let trial = self.boot.env.and_then(|env| env.trial);
        trial.is_some_and(|trial| Some(trial.slot) == self.boot.booted)
    }

    /// Asks everything: `{"findings": [{"check", "status", "message"}]}`.
    fn document(&self) -> Value {
        let findings: Vec<Value> = QUESTIONS
            .iter()
            .filter_map(|question| Some((question.name, (question.ask)(self)?)))
            .map(|(check, answer)| {
                let (status, message) = match answer {
                    Answer::Well(message) => ("ok", message),
                    Answer::Doubt(message) => ("warning", message),
                    Answer::Fault(message) => ("failed", message),
                };
                json!({ "check": check, "status": status, "message": message })
            })
            .collect();
        json!({ "findings": findings })
    }
}

/// Examines the gateway now and answers `reply`, beside whatever else the agent does.
pub(super) fn answer(agent: &Agent, reply: Reply) {
    let live = Live {
        unsaved: agent.unsaved.as_ref().map(|failure| failure.message.clone()),
        no_session: agent.no_session.clone(),
    };
    let (gateway, record) = (agent.gateway.clone(), agent.record.clone());
    tokio::spawn(async move {
        let asked = fault::blocking(move || {
            let subject = Subject::new(gateway, record);
            Ok(Subject { live: Some(live), ..subject }.document())
        });
        reply.send(asked.await).await
    });
}
