//! The same questions about an image on trial: what the old slot could do and the new one cannot is a failed check,
//! for an image that can take no further update could only be replaced by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, QUESTIONS, Subject, Weight};
use crate::bounds;
use crate::config::{Cloud, Place};
use crate::machine::{Abilities, Plan};

/// An image on trial, and the slot that armed it.
#[derive(Clone)]
pub(in crate::agent) struct OnTrial {
    pub plan: Plan,
    /// What the old slot could do; `None`: its agent did not say.
    pub before: Option<Abilities>,
    /// A session with the hub is among the health checks.
    pub cloud_required: bool,
}

/// What the running slot can do, asked before it arms a trial.
pub(in crate::agent) fn abilities(subject: &Subject) -> Abilities {
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
pub(in crate::agent) fn lacking(subject: &Subject) -> Option<(String, String)> {
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

/// Who the gateway is at its hub, or to the service that assigns one.
pub(super) fn hub_of(cloud: &Cloud) -> String {
    match &cloud.place {
        Place::Known(seat) => {
            let module = seat.module_id.as_ref().map(|module| format!("/{module}")).unwrap_or_default();
            format!("{}{module} at {}", seat.device_id, seat.host)
        }
        Place::Assigned(dps) => format!("{} in {} at {}", dps.registration_id, dps.id_scope, dps.endpoint),
    }
}

/// As much of a text as the record keeps of it.
pub(super) fn short(text: &str) -> String {
    bounds::short(text, bounds::ID)
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
