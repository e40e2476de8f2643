//! Acts on the desired properties: what `crate::desired` decides, carried out.

use super::Agent;
use super::commands::new_id;
use crate::desired::{Action, Running, decide};
use crate::failure::{Code, Failure};
use crate::machine::{Desired, Event, Operation, without_query};

impl Agent {
    /// Deals with the newest desired section, unless it has to wait for an outcome.
    pub(super) async fn follow_desired(&mut self) {
        if self.reboot {
            return;
        }
        let Some(section) = self.section.take() else { return };
        let section = section.as_ref();
        match decide(&self.record, section, self.running(), self.gateway.clock.now()) {
            Action::Settled => {}
            Action::Wait => self.section = Some(section.cloned()),
            Action::Continue { uri, desired } => {
                self.note_desired(desired);
                self.renew_token(uri).await;
            }
            Action::Note { cancel, desired } => {
                self.make_way(cancel).await;
                self.note_desired(desired);
            }
            Action::Start { cancel, operation, desired } => {
                self.make_way(cancel).await;
                self.look();
                match self.ready() {
                    Ok(()) => self.begin_desired(*operation, desired),
                    Err(failure) => self.note_desired(section.map(|section| section.refused(&failure))),
                }
            }
        }
    }

    /// What the booted slot holds, as far as it is known.
    fn running(&self) -> Running<'_> {
        let image = self.boot.booted.and_then(|slot| self.record.slots.get(slot).image.as_ref());
        Running {
            version: image.map(|image| image.version.as_str()).or(self
                .publisher
                .view
                .booted_version
                .as_deref()),
            manifest: image.map(|image| image.manifest),
        }
    }

    fn begin_desired(&mut self, mut operation: Operation, desired: Desired) {
        if operation.id.is_empty() {
            operation.id = new_id();
        }
        tracing::info!(operation_id = operation.id.as_str(), "the desired properties ask for an update");
        self.apply(Event::Desired { desired: Some(desired), operation: Some(Box::new(operation)) });
    }

    fn note_desired(&mut self, desired: Option<Desired>) {
        if desired == self.record.desired {
            return;
        }
        if let Some(desired) = &desired {
            tracing::info!(code = desired.code.as_str(), "desired properties: {}", desired.message);
        }
        self.apply(Event::Desired { desired, operation: None });
    }

    /// The section's own operation ends, because the section changed.
    async fn make_way(&mut self, cancel: bool) {
        if cancel {
            self.stop_work().await;
            let message = "cancelled: the desired properties changed";
            self.apply(Event::Abandoned(Failure::new(Code::Cancelled, message)));
        }
    }

    async fn renew_token(&mut self, uri: String) {
        let running = self.record.phase.operation().map(|operation| operation.uri.as_str());
        let renewed = |old: &str| old != uri && without_query(old) == without_query(&uri);
        if running.is_some_and(renewed) {
            self.replace_query(uri).await;
        }
    }
}
