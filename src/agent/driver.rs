//! The driver: step -> save -> act -> event, and nothing else.
//!
//! What happened becomes an event, `machine::step` decides, the record is saved, then the effect is performed by a
//! task of its own while commands are still answered.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::announce;
use super::environment::Sight;
use super::gateway::Gateway;
use super::inbox::Inbox;
use super::ledger::Ledger;
use super::publish::Publisher;
use super::workshop::{Done, Workshop};
use crate::desired::Section;
use crate::failure::{Code, Failure};
use crate::fault::blocking;
use crate::machine::{Effect, Event, Phase, step};
use crate::report;

/// How often an update that is being fetched is looked at, and how often while it waits for somebody or something.
/// At rest nothing is looked at: everything that happens comes by itself.
const TICK: Duration = Duration::from_millis(250);
const WAITING_TICK: Duration = Duration::from_secs(5);
/// Received bytes that may go uncounted when the power is cut.
const SPENT_STEP: u64 = 4 << 20;
/// How long an effect that was told to stop is waited for.
const LET_GO: Duration = Duration::from_secs(2);

/// The agent's own state: what is remembered, what is under way, and what is told.
pub struct Agent {
    pub gateway: Arc<Gateway>,
    pub inbox: Inbox,
    pub ledger: Ledger,
    pub workshop: Workshop,
    pub publisher: Publisher,
    /// What the gateway looked like last.
    pub sight: Sight,
    /// The desired section that is not dealt with yet; within, `None` says that the twin holds none.
    pub section: Option<Option<Section>>,
    /// Why there is no session with the hub, while there is none.
    pub no_session: Option<String>,
    /// A reboot is due.
    pub reboot: bool,
}

impl Agent {
    /// How soon things have to be looked at again; `None`: not before something happens.
    pub fn pace(&self) -> Option<Duration> {
        let tick = if self.workshop.waiting().is_some() { WAITING_TICK } else { TICK };
        let work = (self.is_fetching() && self.workshop.is_running()).then_some(tick);
        work.into_iter().chain(self.ledger.pace()).min()
    }

    fn is_fetching(&self) -> bool {
        let phase = &self.ledger.record().phase;
        phase.can_cancel() && !matches!(phase, Phase::Holding { .. })
    }

    /// One turn: decide, save, tell, act.
    pub async fn apply(&mut self, event: Event) {
        self.look().await;
        let mut event = event;
        loop {
            let begins =
                matches!(event, Event::Requested(_) | Event::RollbackRequested(_) | Event::Desired { .. });
            let (next, effect) = step(self.ledger.record(), &self.sight.boot, event);
            let before = self.ledger.replace(next);
            match self.save().await {
                Err(failure) if begins => {
                    tracing::error!("refused: the record cannot be saved: {failure}");
                    self.ledger.replace(before);
                    return self.publish();
                }
                Err(failure) if effect.is_some() && self.ledger.record().phase.must_be_saved() => {
                    event = Event::SaveFailed(failure);
                    continue;
                }
                Err(failure) => tracing::error!("going on without a record: {failure}"),
                Ok(()) => {}
            }
            announce::change(&before, self.ledger.record());
            self.publish();
            return match effect {
                Some(Effect::Reboot) => self.reboot = true,
                Some(effect) => self.workshop.start(effect, self.ledger.record()),
                None if self.ledger.record().phase.is_idle() => self.workshop.let_go(),
                None => {}
            };
        }
    }

    /// Looks up what is booted and what the environment says now.
    pub async fn look(&mut self) {
        let (gateway, record) = (self.gateway.clone(), self.ledger.record().clone());
        match self.aside(move || Ok(gateway.look(&record))).await {
            Ok(sight) => self.sight = sight,
            Err(failure) => {
                self.sight.boot.booted = None;
                self.sight.degraded = Some(failure.message);
            }
        }
        let Sight { boot, degraded, os } = &self.sight;
        let unsaved = || self.ledger.unsaved().map(|failure| failure.message.clone());
        let degraded = degraded.clone().or_else(|| self.astray()).or_else(|| self.lost()).or_else(unsaved);
        self.publisher.see(boot.booted, os.version.clone(), degraded);
    }

    /// There is no environment, and why it was not rebuilt.
    pub fn lost(&self) -> Option<String> {
        let lost = "the boot environment is lost, for the bootloader too; the agent rebuilds it";
        self.sight.boot.env.is_none().then(|| self.workshop.not_rebuilt().unwrap_or(lost).to_owned())
    }

    /// The running slot is neither the primary nor on trial.
    fn astray(&self) -> Option<String> {
        let (booted, env) = (self.sight.boot.booted?, self.sight.boot.env?);
        let named = env.primary == booted || env.trial.is_some_and(|trial| trial.slot == booted);
        (!named && self.ledger.record().phase.is_idle()).then(|| {
            format!(
                "slot {booted} runs although {} is the primary: the bootloader could not load it; install an \
                 update to repair it",
                env.primary
            )
        })
    }

    /// Does what may block on a thread of its own.
    pub async fn aside<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (publisher, saved) = (&mut self.publisher, self.ledger.saved());
        self.inbox.meanwhile(blocking(work), |incoming| publisher.answer(incoming, saved)).await
    }

    pub async fn save(&mut self) -> Result<(), Failure> {
        let Some(draft) = self.ledger.draft() else { return Ok(()) };
        let written = self.aside(draft).await;
        self.ledger.written(&written);
        if let Err(failure) = &written {
            self.publisher.degrade(&failure.message);
        }
        written
    }

    pub async fn save_again(&mut self) {
        if self.ledger.unsaved().is_some() && self.save().await.is_ok() {
            tracing::info!("the record can be saved again");
            self.look().await;
            self.publish();
        }
    }

    pub fn publish(&mut self) {
        self.publisher.publish(self.ledger.saved());
    }

    /// The effect ended: what it led to happens now.
    pub async fn done(&mut self, done: Done) {
        self.note_progress();
        self.apply(done.event).await;
        self.publish_waiting();
    }

    /// Stops the effect under way, of which nothing counts any more; then `event` happens. `false`: the effect
    /// has not let go yet, and it happens when it does.
    pub async fn stop_work(&mut self, event: Event) -> bool {
        let again = self.workshop.is_stopping();
        let mut done = self.workshop.stop(event);
        if done.is_none() && !again {
            done = self.until_ended(LET_GO).await;
        }
        let Some(done) = done else {
            if !again {
                tracing::warn!(
                    "the medium holds on to what is to be stopped; it ends as soon as that lets go"
                );
            }
            return false;
        };
        self.done(done).await;
        true
    }

    async fn until_ended(&mut self, patience: Duration) -> Option<Done> {
        let (publisher, saved) = (&mut self.publisher, self.ledger.saved());
        let ended = timeout(patience, self.workshop.ended());
        self.inbox.meanwhile(ended, |incoming| publisher.answer(incoming, saved)).await.ok()
    }

    /// Before leaving: whatever was going on stops at a place from which it can go on.
    pub async fn rest(&mut self) {
        while self.workshop.is_running() {
            self.workshop.cancel();
            let done = self.until_ended(Duration::MAX).await;
            self.note_progress();
            if let Some(done) = done.filter(|done| done.stopped) {
                self.apply(done.event).await;
            }
        }
        if let Err(failure) = self.save().await {
            tracing::warn!("leaving without saving the record: {failure}");
        }
    }

    /// What panicked ends the operation that nobody is left to work on.
    pub async fn recover<T>(&mut self, survived: Result<T, Failure>) -> Result<T, Failure> {
        let idle = self.ledger.record().phase.is_idle();
        if let Err(failure) = &survived {
            if !self.workshop.is_running() && !self.reboot && !idle {
                self.apply(Event::Failed(failure.clone())).await;
            }
        }
        survived
    }

    pub async fn tick(&mut self) {
        self.follow_work().await;
        if self.ledger.is_due() {
            self.save_again().await;
        }
        self.publish_waiting();
        self.end_at_deadline().await;
    }

    /// While an effect runs, what it received is saved at every few MiB, and how far staging has come is told: to the hub
    /// at each step of ten percent, once that is saved, so that no restart takes it back; to watchers at each tick.
    async fn follow_work(&mut self) {
        let (record, spent) = (self.ledger.record(), self.workshop.spent());
        let staged = self.workshop.staged(record);
        let step = staged.is_some_and(|staged| report::is_step(record.progress, staged));
        let more = !record.phase.is_idle() && spent > record.downloaded.saturating_add(SPENT_STEP);
        if step || more {
            self.note_progress();
            if let Err(failure) = self.save().await {
                tracing::warn!("the progress is not saved: {failure}");
            }
        }
        let saved = self.ledger.saved();
        match staged {
            Some(_) if step => self.publish(),
            Some(staged) => self.publisher.tell_progress(staged, spent.max(saved.downloaded), saved),
            None => {}
        }
    }

    /// Tells what the effect under way waits for, when that changes.
    fn publish_waiting(&mut self) {
        if self.publisher.wait_for(self.workshop.waiting()) {
            self.publish();
        }
    }

    /// Takes how far the operation has come into the record.
    fn note_progress(&mut self) {
        let staged = self.workshop.staged(self.ledger.record());
        self.ledger.note(self.workshop.spent(), staged);
    }

    /// An update that is not staged at its deadline ends.
    async fn end_at_deadline(&mut self) {
        let operation = self.ledger.record().phase.operation().filter(|_| self.is_fetching());
        let Some(deadline) = operation.and_then(|operation| operation.deadline) else { return };
        if self.gateway.clock.synchronised() && self.gateway.clock.now() >= deadline {
            let message = "the update was not staged at its deadline; call again with a later one";
            self.stop_work(Event::Abandoned(Failure::new(Code::DeadlinePassed, message))).await;
        }
    }

    /// A clock that was set: the saved time follows it at once, so that no power cut brings an absurd one back, and a
    /// report that carries a time of the future is told anew.
    pub async fn follow_clock(&mut self) {
        if self.ledger.unsaved().is_none() && self.ledger.must_save_time() {
            let saved = self.save().await;
            saved.unwrap_or_else(|failure| tracing::warn!("the time is not saved: {failure}"));
        }
        if self.publisher.is_outdated() {
            self.publish();
        }
    }
}
