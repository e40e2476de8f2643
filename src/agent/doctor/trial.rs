//! The same questions about an image on trial: what the old slot could do and the new one cannot is a failed check,
//! for an image that can take no further update could only be replaced by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::questions::{QUESTIONS, Weight};
use super::subject::{Answer, Subject, hub_of, short};
use crate::machine::Abilities;

/// What the running slot can do, asked before it arms a trial.
pub fn abilities(subject: &Subject) -> Abilities {
    let settings = &subject.gateway.settings;
    let keys = subject.gateway.keys().map(|found| found.trusted).unwrap_or_default();
    Abilities {
        answers: answers(subject).map(|(name, _, answer)| (name.to_owned(), !answer.is_fault())).collect(),
        compatible: short(&settings.compatible),
        hub: settings.cloud.as_ref().map(|cloud| short(&hub_of(cloud))),
        keys: keys.ids().map(ToString::to_string).collect::<BTreeSet<String>>(),
        version: subject.gateway.os_release().version.map(|version| short(&version)),
    }
}

/// The first thing that this image lacks beside the old slot: the question's name, and a sentence.
pub fn lacking(subject: &Subject) -> Option<(String, String)> {
    let before = subject.on_trial.as_ref()?.before.as_ref().map(|before| &before.answers);
    answers(subject).find_map(|(name, weight, answer)| match answer {
        Answer::Fault(why) if counts(name, weight, before) => Some((name.to_owned(), why)),
        _ => None,
    })
}

/// Whether a fault of this image is its own: the old slot had none of that kind, as far as is known.
fn counts(name: &str, weight: Weight, before: Option<&BTreeMap<String, bool>>) -> bool {
    before.and_then(|answers| answers.get(name)).copied().unwrap_or(weight == Weight::Vital)
}

fn answers(subject: &Subject) -> impl Iterator<Item = (&'static str, Weight, Answer)> {
    let weighty = QUESTIONS.iter().filter(|question| question.weight != Weight::Advice);
    weighty.filter_map(|question| Some((question.name, question.weight, (question.ask)(subject)?)))
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
