//! Acts on the desired properties: what `crate::desired` decides, carried out.

use super::Agent;
use super::commands::new_id;
use crate::desired::{Action, RunningImage, Section, decide};
use crate::failure::{Code, Failure};
use crate::fault;
use crate::machine::{Desired, Event, Operation};

impl Agent {
    /// Deals with the newest desired section, unless it has to wait: for an outcome, or for a record that can be
    /// saved again.
    pub(super) async fn follow_desired(&mut self) {
        if self.reboot || self.is_stopping() || self.unsaved.is_some() {
            return;
        }
        let Some(section) = self.section.take() else { return };
        if let Err(failure) = fault::caught(self.follow_section(section.as_ref())).await {
            self.recover(failure.clone()).await;
            self.note_desired(section.as_ref().map(|section| section.refused(&failure))).await;
        }
        // What was not remembered was not dealt with.
        if self.unsaved.is_some() {
            self.section.get_or_insert(section);
        }
    }

    async fn follow_section(&mut self, section: Option<&Section>) {
        match decide(&self.record, section, self.running(), self.gateway.clock.now()) {
            Action::Settled => {}
            Action::Wait => self.section = Some(section.cloned()),
            Action::Continue { uri, desired } => {
                self.note_desired(desired).await;
                self.renew_token(uri).await;
            }
            Action::Note { cancel, desired } => {
                if !self.make_way(cancel).await {
                    self.section = Some(section.cloned());
                    return;
                }
                self.note_desired(desired).await;
            }
            Action::Start { cancel, operation, desired } => {
                if !self.make_way(cancel).await {
                    self.section = Some(section.cloned());
                    return;
                }
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
        let image = self.boot.booted.and_then(|slot| self.record.slots.get(slot).image.as_ref());
        RunningImage {
            version: image.map(|image| image.version.as_str()).or(self
                .publisher
                .view
                .booted_version
                .as_deref()),
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
        if desired == self.record.desired {
            return;
        }
        if let Some(desired) = &desired {
            tracing::info!(code = desired.code.as_str(), "desired properties: {}", desired.message);
        }
        self.apply(Event::Desired { desired, operation: None }).await;
    }

    /// The section's own operation ends, because the section changed. `false`: it has not let go yet.
    async fn make_way(&mut self, cancel: bool) -> bool {
        if !cancel {
            return true;
        }
        let message = "cancelled: the desired properties changed";
        self.stop_work(Event::Abandoned(Failure::new(Code::Cancelled, message))).await
    }
}
