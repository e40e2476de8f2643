//! Doctor's list of questions: who answers each, and what a fault means for an image on trial.

use serde_json::{Value, json};

use super::subject::{Answer, Subject};
use super::{board, cloud, dead_man, medium, slots, state, trust};

/// What a fault means for an image on trial.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Nothing: it says more of the gateway or its surroundings than of the image.
    Advice,
    /// It fails the trial if the slot that armed it had no such fault.
    Compared,
    /// The same; and when nobody knows what the old slot could do, it fails the trial too, for no update could
    /// follow.
    Vital,
}

/// One of doctor's questions.
pub struct Question {
    pub name: &'static str,
    pub weight: Weight,
    /// `None`: it does not arise here.
    pub ask: fn(&Subject) -> Option<Answer>,
}

const fn question(name: &'static str, weight: Weight, ask: fn(&Subject) -> Option<Answer>) -> Question {
    Question { name, weight, ask }
}

/// All of them, in the order in which they are printed.
pub const QUESTIONS: &[Question] = &[
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

/// Asks everything: `{"findings": [{"check", "status", "message"}]}`.
pub fn document(subject: &Subject) -> Value {
    let findings: Vec<Value> = QUESTIONS
        .iter()
        .filter_map(|question| Some((question.name, (question.ask)(subject)?)))
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
