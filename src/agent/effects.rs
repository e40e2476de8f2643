//! Acts: performs one effect through the edges and says which event it led to. Every effect may be repeated.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::doctor::{self, OnTrial, Subject};
use super::gateway::Gateway;
use crate::clock;
use crate::failure::{Code, Evidence, Failure};
use crate::health;
use crate::machine::{Effect, Event, Hold, ImageInfo, Operation, Plan, Record, Trial};
use crate::manifest::Digest;
use crate::plan::{self, Device, Now, Wait};
use crate::slot::Slot;
use crate::stage::{self, Booted, Bundle, Maps, Meter, Opening, Staging, Target, Workspace};

/// How often a hold looks at the clock again: windows are minutes, and the clock may be set meanwhile.
const HOLD_INTERVAL: Duration = Duration::from_secs(10);

/// How long a trial without a check for a session waits for the hub's word at most.
const HUBS_WORD: Duration = Duration::from_secs(60);
/// How long the slots' devices and the environment may take to appear in a trial, and how often they are looked for.
const DEVICES: Duration = Duration::from_secs(30);
const DEVICE_INTERVAL: Duration = Duration::from_millis(500);

/// What lasts from one effect of an operation to the next, and is made anew after a restart.
#[derive(Default)]
pub struct Held {
    /// The slot, exclusively, from opening to arming.
    pub target: Option<Target>,
    pub bundle: Option<Arc<Bundle>>,
}

/// One effect under way: what it needs beside the gateway.
pub struct Work {
    pub gateway: Arc<Gateway>,
    /// The record that was saved before this effect.
    pub record: Record,
    pub meter: Arc<Meter>,
    pub cancel: CancellationToken,
    pub held: Held,
}

impl Work {
    /// Performs `effect`; an error becomes the event that says so. Returns what is held on to after it, too.
    pub async fn perform(mut self, effect: Effect) -> (Event, Held) {
        let event = self.act(effect).await.unwrap_or_else(Event::Failed);
        (event, self.held)
    }

    async fn act(&mut self, effect: Effect) -> Result<Event, Failure> {
        match effect {
            Effect::Open(operation) => self.open(&operation).await,
            Effect::Prepare(plan) => self.prepare(&plan),
            Effect::Stage(plan) => self.stage(&plan).await,
            Effect::Hold(plan, hold) => self.hold(&plan, &hold).await,
            Effect::Arm { plan, verify } => self.arm(&plan, verify).await,
            Effect::Check(plan, trial) => self.check(&plan, &trial).await,
            Effect::Commit(plan) => self.commit(&plan),
            Effect::Revert(plan) => {
                Ok(self.gateway.write_env(&plan.env_before()).map(|()| Event::Reverted)?)
            }
            Effect::Rebuild(env) => Ok(self.gateway.rebuild_env(&env).map(|()| Event::Rebuilt)?),
            // The driver does this itself, by returning.
            Effect::Reboot => Ok(Event::Failed(Failure::new(Code::Internal, "a reboot is no work"))),
        }
    }

    async fn open(&mut self, operation: &Operation) -> Result<Event, Failure> {
        let gateway = &self.gateway;
        // The settings may have changed since the operation was accepted.
        gateway.permits(operation)?;
        let (boot, reason) = gateway.boot();
        let booted = boot.booted.ok_or_else(|| Failure::new(Code::NotReady, reason.unwrap_or_default()))?;
        gateway.env_ready()?;
        let target = gateway.acquire(!booted)?;
        let bundle = self.bundle(operation, operation.manifest_sha256).await?;
        let plan = self.plan(operation, &bundle, booted, &target)?;
        self.held = Held { target: Some(target), bundle: Some(bundle) };
        Ok(Event::Opened(Box::new(plan)))
    }

    /// What `bundle` leads to on this gateway, or why not.
    fn plan(
        &self,
        operation: &Operation,
        bundle: &Bundle,
        booted: Slot,
        target: &Target,
    ) -> Result<Plan, Failure> {
        let os = self.gateway.os_release();
        let known = &self.record.slots.get(booted).image;
        let device = Device {
            compatible: &self.gateway.settings.compatible,
            booted,
            booted_image: known.as_ref(),
            booted_version: os.version.as_deref(),
            floor: self
                .record
                .floor
                .max(os.security_version)
                .max(known.as_ref().map_or(0, |image| image.security_version)),
            capacity: target.capacity(),
            quarantine: &self.record.quarantine,
            tries: self.gateway.settings.bootloader.tries,
        };
        plan::plan(operation, bundle.manifest(), &device)
    }

    /// Opens the bundle anew; cancelling only stops waiting, for nothing has been changed yet.
    async fn bundle(&self, operation: &Operation, pin: Option<Digest>) -> Result<Arc<Bundle>, Failure> {
        let gateway = &self.gateway;
        let keys = gateway.keys()?;
        for why in &keys.unusable {
            tracing::warn!("a key is passed over: {why}");
        }
        let http = gateway.http()?;
        let source = gateway.source(operation)?;
        let required = gateway.settings.trust.required_signatures;
        let workspace = Workspace::on_disk(&gateway.settings.state.dir);
        let (location, http, meter, keys) = (source, &http, self.meter.clone(), &keys.trusted);
        let workspace = &workspace;
        let opening = stage::open(Opening { location, http, meter, keys, required, pin, workspace });
        Ok(Arc::new(self.unless_cancelled(opening).await??))
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let done = self.cancel.run_until_cancelled(work).await;
        done.ok_or_else(|| Failure::new(Code::Cancelled, "the operation was cancelled"))
    }

    /// The slot that this operation holds; after a restart it is taken anew.
    fn target(&mut self, slot: Slot) -> Result<Target, Failure> {
        let held = self.held.target.take();
        let target = held.map_or_else(|| self.gateway.acquire(slot), Ok)?;
        self.held.target = Some(target.clone());
        Ok(target)
    }

    fn prepare(&mut self, plan: &Plan) -> Result<Event, Failure> {
        self.target(plan.target)?;
        self.gateway.write_env(&plan.env_before())?;
        Ok(Event::Prepared)
    }

    async fn stage(&mut self, plan: &Plan) -> Result<Event, Failure> {
        let target = self.target(plan.target)?;
        let image = known_image(plan)?;
        let bundle = self.planned_bundle(plan, image, &target).await?;
        let index = self.unless_cancelled(bundle.index()).await??;
        let seed = self.gateway.device(!plan.target);
        let image = self.record.slots.get(!plan.target).image.as_ref().map(|image| image.sha256);
        let seed = Some(Booted { path: &seed, image });
        let maps = Maps { booted: self.gateway.map(!plan.target), target: self.gateway.map(plan.target) };
        let progress = &self.gateway.progress;
        let (maps, target, cancel) = (Some(&maps), &target, &self.cancel);
        stage::stage(&bundle, index, Staging { target, seed, maps, progress, cancel }).await?;
        self.held.bundle = None;
        let waits = self.wait(&plan.operation, &Hold::default()).is_some();
        Ok(Event::Staged { hold: waits.then(Hold::default) })
    }

    /// The bundle that was planned with: after a restart the same URL must still lead to the same manifest, and that to
    /// the same plan, for a record can be forged.
    async fn planned_bundle(
        &self,
        plan: &Plan,
        image: &ImageInfo,
        target: &Target,
    ) -> Result<Arc<Bundle>, Failure> {
        if let Some(bundle) = &self.held.bundle {
            return Ok(bundle.clone());
        }
        let bundle = self.bundle(&plan.operation, Some(image.manifest)).await;
        let from = self.gateway.source(&plan.operation)?;
        let bundle = bundle.map_err(|failure| match failure.code {
            Code::DigestMismatch => {
                let reason =
                    "now holds another bundle than the one this update began with; call the update again";
                Failure::new(failure.code, format!("{from} {reason}"))
            }
            _ => failure,
        })?;
        let again = self.plan(&plan.operation, &bundle, !plan.target, target)?;
        let same = again.image.as_ref() == Some(image);
        same.then_some(bundle).ok_or_else(|| {
            Failure::new(Code::Internal, "the record tells of another image than its manifest")
        })
    }

    fn wait(&self, operation: &Operation, hold: &Hold) -> Option<Wait> {
        let policy = &self.gateway.settings.policy;
        let now = Now { time: self.gateway.clock.now(), synchronised: self.gateway.clock.synchronised() };
        plan::wait(operation, hold, &policy.windows, policy.approval, now)
    }

    async fn hold(&mut self, plan: &Plan, hold: &Hold) -> Result<Event, Failure> {
        // The slot stays ours, so that nobody changes what was read back.
        self.target(plan.target)?;
        while let Some(wait) = self.wait(&plan.operation, hold) {
            tracing::debug!(%wait, "the reboot waits");
            self.unless_cancelled(tokio::time::sleep(HOLD_INTERVAL)).await?;
        }
        Ok(Event::Released)
    }

    async fn arm(&mut self, plan: &Plan, verify: bool) -> Result<Event, Failure> {
        let target = self.target(plan.target)?;
        if verify {
            let image = plan.image.as_ref().ok_or_else(|| unproven(plan.target))?;
            stage::read_back(&target, image.size, image.sha256, &self.gateway.progress, &self.cancel)?;
        }
        let failed_units = self.failed_units().await;
        let subject = Subject::new(self.gateway.clone(), self.record.clone(), true);
        let abilities = Some(doctor::abilities(&subject));
        self.gateway.write_env(&plan.env_armed())?;
        self.held.target = None;
        Ok(Event::Armed { connected: *self.gateway.cloud.borrow(), failed_units, abilities })
    }

    async fn failed_units(&self) -> Option<std::collections::BTreeSet<String>> {
        if !self.gateway.settings.health.no_new_failed_units {
            return None;
        }
        let asked = health::Systemd::default().failed_units().await;
        asked.inspect_err(|error| tracing::warn!("failed units are not known: {error}")).ok()
    }

    /// The file system with the environment may have gone since the checks.
    fn commit(&self, plan: &Plan) -> Result<Event, Failure> {
        if let Some((check, why)) = self.gateway.trial_doubt(plan.target) {
            return Err(undecided(check, &why));
        }
        self.gateway.write_env(&plan.env_committed())?;
        Ok(Event::Committed)
    }

    /// The first check of a trial: whether a verdict would reach the bootloader. Devices may come late, so it is
    /// asked for a while.
    async fn can_decide(&self, plan: &Plan) -> Result<(), Failure> {
        let patience = DEVICES.min(self.gateway.settings.health.deadline);
        let until = clock::boottime().saturating_add(patience);
        while let Some((check, why)) = self.gateway.trial_doubt(plan.target) {
            self.announce(health::CheckProgress::Failing { check: check.to_owned(), why: why.clone() });
            if clock::boottime() >= until {
                return Err(undecided(check, &why));
            }
            self.unless_cancelled(tokio::time::sleep(DEVICE_INTERVAL)).await?;
        }
        Ok(())
    }

    async fn check(&self, plan: &Plan, trial: &Trial) -> Result<Event, Failure> {
        self.can_decide(plan).await.map_err(|failure| with_attempts(failure, trial))?;
        let settings = &self.gateway.settings.health;
        let context = health::Context {
            slot: plan.target,
            version: plan.image.as_ref().map_or_else(String::new, |image| image.version.clone()),
            operation: plan.operation.id.clone(),
            baseline: self.record.failed_units.clone(),
            systemd: health::Systemd::default(),
            next_update: Some(self.next_update(plan, trial)),
        };
        // A hub that was out of reach before the update says nothing about the new slot.
        let require_cloud = settings.require_cloud && trial.connected;
        let settings = crate::config::Health { require_cloud, ..settings.clone() };
        let deadline = clock::sleep_until(Duration::from_secs(trial.since).saturating_add(settings.deadline));
        if trial.connected && !settings.require_cloud {
            self.hubs_word(&settings, trial).await?;
        }
        let cloud = self.gateway.cloud.subscribe();
        let checks = health::run(&settings, &context, cloud, deadline, |progress| self.announce(progress));
        let verdict = self.unless_cancelled(checks).await?;
        verdict.map_err(|failure| with_attempts(failure, trial))?;
        self.gateway.failing.send_replace(None);
        Ok(Event::ChecksPassed)
    }

    /// Waits until the hub said yes or no to this image, when no check asks for a session: the slot before had one. Ends
    /// well before the verdict has to fall, for a hub that cannot be reached says nothing of the image.
    async fn hubs_word(&self, settings: &crate::config::Health, trial: &Trial) -> Result<(), Failure> {
        let passed = clock::boottime().saturating_sub(Duration::from_secs(trial.since));
        let patience =
            HUBS_WORD.min(settings.deadline.saturating_sub(passed).checked_div(2).unwrap_or_default());
        let (mut cloud, mut denied) = (self.gateway.cloud.subscribe(), self.gateway.denied.subscribe());
        let heard = async {
            tokio::select! {
                _ = cloud.wait_for(|connected| *connected) => {}
                _ = denied.wait_for(Option::is_some) => {}
                () = tokio::time::sleep(patience) => {}
            }
        };
        self.unless_cancelled(heard).await
    }

    /// What doctor asks of the image on trial.
    fn next_update(&self, plan: &Plan, trial: &Trial) -> health::NextUpdate {
        let (gateway, record) = (self.gateway.clone(), self.record.clone());
        let cloud_required = gateway.settings.health.require_cloud && trial.connected;
        let on_trial = OnTrial { plan: plan.clone(), before: record.abilities.clone(), cloud_required };
        health::NextUpdate::new(move || {
            let subject = Subject::new(gateway.clone(), record.clone(), false);
            doctor::lacking(&Subject { on_trial: Some(on_trial.clone()), ..subject })
        })
    }

    /// Says which check fails, once until something else is so.
    fn announce(&self, progress: health::CheckProgress) {
        match progress {
            health::CheckProgress::Checking(check) => tracing::debug!("checking {check}"),
            health::CheckProgress::Failing { check, why } => {
                let now = Some((check.clone(), why.clone()));
                if self.gateway.failing.send_replace(now.clone()) != now {
                    tracing::warn!("the health check {check} fails: {why}");
                }
            }
            health::CheckProgress::Note { check, why } => {
                tracing::warn!("the wanted health check {check} fails: {why}");
            }
        }
    }
}

/// The new image cannot tell the bootloader of a verdict.
fn undecided(check: &str, why: &str) -> Failure {
    let message = format!("the check {check} did not pass: {why}");
    let evidence = Evidence { check: Some(check.to_owned()), ..Evidence::default() };
    Failure::new(Code::HealthCheckFailed, message).with(evidence)
}

fn with_attempts(failure: Failure, trial: &Trial) -> Failure {
    let mut evidence = failure.evidence.unwrap_or_default();
    evidence.boot_attempts = Some(trial.boots);
    Failure { evidence: Some(evidence), ..failure }
}

/// Neither the boot environment nor a digest says what the slot holds.
fn unproven(slot: Slot) -> Failure {
    let message = format!(
        "slot {slot} is not armed: the boot environment does not call it proven, and no digest tells what it must \
         hold; install an update instead"
    );
    Failure::new(Code::NotPermitted, message)
}

fn known_image(plan: &Plan) -> Result<&ImageInfo, Failure> {
    plan.image.as_ref().ok_or_else(|| Failure::new(Code::Internal, "the plan names no image"))
}
