//! Everything that would make the next update fail, found before it does: one list of questions, asked by
//! `fwupdatectl doctor` with the agent and without it, and by a trial about the image that is to be committed.

mod board;
mod cloud;
mod dead_man;
mod offline;
mod questions;
mod slots;
mod state;
mod subject;
mod trust;

use std::sync::Arc;

use tokio::sync::Mutex;

use super::gateway::Gateway;
use crate::control::Reply;
use crate::fault;
use crate::machine::Record;

pub use self::offline::{examine as examine_offline, note_end};
pub use self::questions::{abilities, lacking};
use self::questions::{answers, document};
use self::subject::Answer;
pub use self::subject::{Live, OnTrial, Subject};

/// What `--check-config` asks beyond the settings themselves: of the machine that they are checked on.
const OF_SETTINGS: [&str; 5] = ["slot sizes", "read-only media", "hub settings", "state medium", "dead-man"];

/// The faults and doubts that settings have on this machine, before any agent runs; true for a fault.
pub fn config_doubts(settings: crate::config::Settings) -> Vec<(bool, String)> {
    let subject = Subject::new(Arc::new(Gateway::new(settings)), Record::default(), false);
    let answers = answers(&subject, |name, _| OF_SETTINGS.contains(&name));
    let doubts = answers.filter_map(|(name, _, answer)| match answer {
        Answer::Well(_) => None,
        Answer::Doubt(why) => Some((false, format!("{name}: {why}"))),
        Answer::Fault(why) => Some((true, format!("{name}: {why}"))),
    });
    doubts.collect()
}

/// One examination at a time: whoever may read may ask for any number of them.
static TURN: Mutex<()> = Mutex::const_new(());

/// Examines the gateway and answers `reply`, beside whatever else the agent does, unless the client leaves before it is
/// its turn. `held`: the running operation holds the spare slot.
pub(super) fn answer(gateway: Arc<Gateway>, record: Record, held: bool, live: Live, reply: Reply) {
    tokio::spawn(async move {
        let _turn = tokio::select! {
            turn = TURN.lock() => turn,
            () = reply.closed() => return,
        };
        let asked = fault::blocking(move || {
            let subject = Subject::new(gateway, record, held);
            Ok(document(&Subject { live: Some(live), ..subject }))
        });
        reply.send(asked.await).await;
    });
}
