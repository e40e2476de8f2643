//! Doctor's list of questions: who answers each, and what a fault means for an image on trial: what the old slot could
//! do and the new one cannot is a failed check, for an image that can take no further update could only be replaced by
//! hand.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::subject::{Answer, Subject, hub_of, short};
use super::{board, cloud, dead_man, slots, state, trust};
use crate::machine::Abilities;

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

/// One of doctor's questions, and who answers it; `None`: it does not arise here.
type Question = (&'static str, Weight, fn(&Subject) -> Option<Answer>);

/// All of them, in the order in which they are printed.
const QUESTIONS: &[Question] = &[
    ("agent", Weight::Advice, |subject| subject.agent_ended.clone().map(Answer::Fault)),
    ("settings", Weight::Advice, cloud::awaited),
    ("running slot", Weight::Advice, slots::running),
    ("trial", Weight::Advice, slots::trial),
    ("boot environment", Weight::Vital, slots::environment),
    ("spare slot", Weight::Vital, slots::spare),
    ("slot sizes", Weight::Advice, slots::sizes),
    ("read-only media", Weight::Compared, slots::read_only),
    ("fallback", Weight::Advice, slots::fallback),
    ("signing keys", Weight::Vital, trust::keys),
    ("board", Weight::Vital, trust::board),
    ("security version", Weight::Vital, trust::security_version),
    ("security floor", Weight::Advice, trust::floor),
    ("downloads", Weight::Vital, trust::downloads),
    ("package host", Weight::Vital, trust::package_host),
    ("hub settings", Weight::Compared, cloud::settings),
    ("hub", Weight::Compared, cloud::session),
    ("certificate", Weight::Advice, cloud::certificate),
    ("credentials", Weight::Advice, cloud::credentials),
    ("clock", Weight::Advice, cloud::clock),
    ("state folder", Weight::Compared, state::outside),
    ("state medium", Weight::Compared, state::lasting),
    ("state access", Weight::Vital, state::access),
    ("trial record", Weight::Vital, state::same_folder),
    ("record", Weight::Advice, state::saved),
    ("reboot command", Weight::Vital, board::reboot_command),
    ("dead-man", Weight::Compared, dead_man::late_enough),
    ("hardware watchdog", Weight::Advice, board::watchdog),
    ("quarantine", Weight::Advice, state::quarantine),
];

/// What is answered of the questions that are wanted, by their names and weights.
pub fn answers(
    subject: &Subject,
    wanted: impl Fn(&str, Weight) -> bool,
) -> impl Iterator<Item = (&'static str, Weight, Answer)> {
    let asked = QUESTIONS.iter().filter(move |(name, weight, _)| wanted(name, *weight));
    asked.filter_map(|(name, weight, ask)| Some((*name, *weight, ask(subject)?)))
}

/// Asks everything: `{"findings": [{"check", "status", "message"}]}`.
pub fn document(subject: &Subject) -> Value {
    let findings: Vec<Value> = answers(subject, |_, _| true)
        .map(|(check, _, answer)| {
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

/// What the running slot can do, asked before it arms a trial.
pub fn abilities(subject: &Subject) -> Abilities {
    let settings = &subject.gateway.settings;
    let keys = subject.gateway.keys().map(|found| found.trusted).unwrap_or_default();
    Abilities {
        answers: answers(subject, is_weighty)
            .map(|(name, _, answer)| (name.to_owned(), !answer.is_fault()))
            .collect(),
        compatible: short(&settings.compatible),
        hub: settings.cloud.as_ref().map(|cloud| short(&hub_of(cloud))),
        keys: keys.ids().map(ToString::to_string).collect::<BTreeSet<String>>(),
        version: subject.gateway.os_release().version.map(|version| short(&version)),
    }
}

/// The first thing that this image lacks beside the old slot: the question's name, and a sentence.
pub fn lacking(subject: &Subject) -> Option<(String, String)> {
    let before = subject.on_trial.as_ref()?.before.as_ref().map(|before| &before.answers);
    answers(subject, is_weighty).find_map(|(name, weight, answer)| match answer {
        Answer::Fault(why) if counts(name, weight, before) => Some((name.to_owned(), why)),
        _ => None,
    })
}

fn is_weighty(_: &str, weight: Weight) -> bool {
    weight != Weight::Advice
}

/// Whether a fault of this image is its own: the old slot had none of that kind, as far as is known.
fn counts(name: &str, weight: Weight, before: Option<&BTreeMap<String, bool>>) -> bool {
    before.and_then(|answers| answers.get(name)).copied().unwrap_or(weight == Weight::Vital)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_counts_unless_the_old_slot_had_it_too() {
        let known = BTreeMap::from([("keys".to_owned(), true), ("spare".to_owned(), false)]);
        assert!(counts("keys", Weight::Compared, Some(&known)));
        assert!(!counts("spare", Weight::Vital, Some(&known)));
        // Of what the old agent did not ask, only that counts which would end updating.
        for before in [None, Some(&known)] {
            assert!(counts("new", Weight::Vital, before));
            assert!(!counts("new", Weight::Compared, before));
        }
    }
}
