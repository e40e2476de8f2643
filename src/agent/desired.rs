//! Acts on the desired properties: what `crate::desired` decides, carried out.

use super::commands::new_id;
use super::driver::Agent;
use crate::desired::{Action, RunningImage, Section, decide};
use crate::failure::{Code, Failure};
use crate::fault;
use crate::machine::{Desired, Event, Operation};

impl Agent {
    /// Deals with the newest desired section, unless it has to wait: for an outcome, or for a record that can be
    /// saved again.
    pub(super) async fn follow_desired(&mut self) {
        if self.reboot || self.workshop.is_stopping() || self.ledger.unsaved().is_some() {
            return;
        }
        let Some(section) = self.section.take() else { return };
        let survived = fault::caught(self.follow_section(section.as_ref())).await;
        if let Err(failure) = self.recover(survived).await {
            self.note_desired(section.as_ref().map(|section| section.refused(&failure))).await;
        }
        // What was not remembered was not dealt with.
        if self.ledger.unsaved().is_some() {
            self.section.get_or_insert(section);
        }
    }

    async fn follow_section(&mut self, section: Option<&Section>) {
        let action = decide(self.ledger.record(), section, self.running(), self.gateway.clock.now());
        let cancel = matches!(action, Action::Note { cancel: true, .. } | Action::Start { cancel: true, .. });
        let changed = Failure::new(Code::Cancelled, "cancelled: the desired properties changed");
        // The section's own operation ends first; until a slow medium lets go of it, the section waits.
        if cancel && !self.stop_work(Event::Abandoned(changed)).await {
            self.section = Some(section.cloned());
            return;
        }
        match action {
            Action::Settled => {}
            Action::Wait => self.section = Some(section.cloned()),
            Action::Continue { uri, desired } => {
                self.note_desired(desired).await;
                self.renew_token(uri).await;
            }
            Action::Note { desired, .. } => self.note_desired(desired).await,
            Action::Start { operation, desired, .. } => {
                self.look().await;
                let allowed = match self.gateway.permits(&operation) {
                    Ok(()) => self.ready().await,
                    refused => refused,
                };
                match allowed {
                    Ok(()) => self.begin_desired(*operation, desired).await,
                    Err(failure) => self.note_desired(section.map(|section| section.refused(&failure))).await,
                }
            }
        }
    }

    /// What the booted slot holds, as far as it is known.
    fn running(&self) -> RunningImage<'_> {
        let image =
            self.sight.boot.booted.and_then(|slot| self.ledger.record().slots.get(slot).image.as_ref());
        RunningImage {
            version: image.map(|image| image.version.as_str()).or(self.sight.os.version.as_deref()),
            manifest: image.map(|image| image.manifest),
        }
    }

    async fn begin_desired(&mut self, mut operation: Operation, desired: Desired) {
        if operation.id.is_empty() {
            operation.id = new_id();
        }
        tracing::info!(operation_id = operation.id.as_str(), "the desired properties ask for an update");
        self.apply(Event::Desired { desired: Some(desired), operation: Some(Box::new(operation)) }).await;
    }

    async fn note_desired(&mut self, desired: Option<Desired>) {
        if desired == self.ledger.record().desired {
            return;
        }
        if let Some(desired) = &desired {
            tracing::info!(code = desired.code.as_str(), "desired properties: {}", desired.message);
        }
        self.apply(Event::Desired { desired, operation: None }).await;
    }
}
