//! Is the new image well? Rounds of checks until all of them pass in one round, or the deadline falls.
//!
//! A gateway needs a while after boot, so a check that fails is asked again; the last failure is the evidence.

mod checks;
mod command;
mod context;
mod failed;
mod privileged;
mod systemd;

use std::future::Future;

use tokio::sync::watch;

use crate::config::Health;
use crate::failure::{Code, Failure};

pub use command::PATH;
pub use context::{Context, NextUpdate};
pub use failed::HealthError;
use failed::{Failed, excerpt};
pub use privileged::perform;
use systemd::BOOT_COMPLETE;
pub use systemd::Systemd;

/// What is happening, for the journal and the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckProgress {
    /// A check starts.
    Checking(String),
    /// A required check did not pass this time.
    Failing { check: String, why: String },
    /// Worth keeping, but no reason to roll back.
    Note { check: String, why: String },
}

/// Runs all checks of `settings`, again and again, until all pass in one round or `deadline` is over.
///
/// `cloud` is true once a hub session authenticated since this boot; `deadline` is a sleep, best on
/// CLOCK_BOOTTIME. Errors: `HealthCheckFailed` with the evidence of the last check that failed, or
/// `CloudUnreachable` when everything else passed. Whatever runs when this returns is killed.
pub async fn run(
    settings: &Health,
    context: &Context,
    cloud: watch::Receiver<bool>,
    deadline: impl Future<Output = ()>,
    mut progress: impl FnMut(CheckProgress) + Send,
) -> Result<(), Failure> {
    let (last, current, passed, told) = Default::default();
    let progress = &mut progress;
    let mut trial = TrialRun { settings, context, cloud, progress, last, current, passed, told };
    tokio::select! {
        biased;
        () = trial.rounds() => {}
        () = deadline => {}
    }
    if trial.passed {
        return Ok(());
    }
    let running = trial.current.take().unwrap_or_default();
    let failed = trial.last.take();
    Err(failed.unwrap_or_else(|| Failed::new(running, "it was still running", String::new())).into())
}

/// The state of one [`run`].
struct TrialRun<'a> {
    settings: &'a Health,
    context: &'a Context,
    cloud: watch::Receiver<bool>,
    progress: &'a mut (dyn FnMut(CheckProgress) + Send),
    /// The latest required check that failed: the evidence when the deadline falls.
    last: Option<Failed>,
    /// The check that runs now.
    current: Option<String>,
    /// All that is required passed in one round: nothing that is only wanted can change that.
    passed: bool,
    /// Whether it was said that new failures can't be told from old ones.
    told: bool,
}

impl TrialRun<'_> {
    /// Returns once a round passed and what is wanted was run.
    async fn rounds(&mut self) {
        loop {
            let result = self.round().await;
            let Err(failed) = result else { break };
            let (check, why) = (failed.check.clone(), failed.why.clone());
            self.last = Some(failed);
            (self.progress)(CheckProgress::Failing { check, why });
            if self.pause().await {
                break;
            }
        }
        self.passed = true;
        self.wanted().await;
    }

    /// Waits for the next round; true when only the cloud was missing and it came.
    async fn pause(&mut self) -> bool {
        let pause = tokio::time::sleep(self.settings.retry_interval);
        if self.last.as_ref().is_none_or(|failed| failed.code != Code::CloudUnreachable) {
            pause.await;
            return false;
        }
        tokio::select! {
            // An agent that stops has dropped the sender: no session can come any more.
            Ok(_) = self.cloud.wait_for(|connected| *connected) => true,
            () = pause => false,
        }
    }

    /// All required checks once, the cheap ones first; stops at the first that fails.
    async fn round(&mut self) -> Result<(), Failed> {
        self.next_update().await?;
        for unit in &self.settings.units {
            self.unit(unit).await?;
        }
        if self.context.systemd.root.is_some() {
            self.boot_complete().await?;
        }
        if self.settings.no_new_failed_units {
            self.no_new_failures().await?;
        }
        for check in checks::list(&self.settings.checks_dir.join(checks::REQUIRED)) {
            let check = check.map_err(|error| Failed::error(checks::REQUIRED, &error))?;
            self.start(&check.name);
            checks::run(&check, self.settings.check_timeout, self.context).await?;
        }
        if self.settings.require_cloud && !*self.cloud.borrow() {
            return Err(Failed::no_cloud());
        }
        Ok(())
    }

    /// An image that could never be replaced is not well, whatever else it can do.
    async fn next_update(&mut self) -> Result<(), Failed> {
        const CHECK: &str = "next-update";
        let Some(NextUpdate(ask)) = self.context.next_update.clone() else { return Ok(()) };
        self.start(CHECK);
        let lacking = tokio::task::spawn_blocking(move || ask()).await;
        match lacking.map_err(|error| Failed::new(CHECK, error.to_string(), String::new()))? {
            None => Ok(()),
            Some((name, why)) => {
                let evidence = excerpt(why.as_bytes());
                Err(Failed::new(format!("{CHECK}: {name}"), why, evidence))
            }
        }
    }

    async fn unit(&mut self, unit: &str) -> Result<(), Failed> {
        self.start(unit);
        let systemd = &self.context.systemd;
        match systemd.not_active(unit).await {
            Ok(None) => Ok(()),
            Ok(Some(state)) => Err(Failed::new(unit, format!("it is {state}"), systemd.status(unit).await)),
            Err(error) => Err(Failed::error(unit, &error)),
        }
    }

    /// Units that must have run before `boot-complete.target` are health checks too (bootup(7)): starting it runs
    /// those that have not succeeded yet.
    async fn boot_complete(&mut self) -> Result<(), Failed> {
        self.start(BOOT_COMPLETE);
        let systemd = &self.context.systemd;
        let error = |error| Failed::error(BOOT_COMPLETE, &error);
        systemd.boot_complete().await.map_err(error)?;
        let Some(state) = systemd.not_active(BOOT_COMPLETE).await.map_err(error)? else { return Ok(()) };
        let units = systemd.failed_units().await.map_err(error)?;
        let Some(first) = units.first() else {
            return Err(Failed::new(
                BOOT_COMPLETE,
                format!("it is {state}"),
                systemd.status(BOOT_COMPLETE).await,
            ));
        };
        let names: Vec<&str> = units.iter().map(String::as_str).collect();
        let why = format!("it is {state}; failed units: {}", names.join(", "));
        Err(Failed::new(BOOT_COMPLETE, why, systemd.status(first).await))
    }

    async fn no_new_failures(&mut self) -> Result<(), Failed> {
        const CHECK: &str = "failed-units";
        self.start(CHECK);
        let systemd = &self.context.systemd;
        let failed = systemd.failed_units().await.map_err(|error| Failed::error(CHECK, &error))?;
        let Some(baseline) = &self.context.baseline else {
            if !std::mem::replace(&mut self.told, true) {
                self.note(
                    CHECK,
                    "not judged: which units had failed before the update is not known".to_owned(),
                );
            }
            return Ok(());
        };
        let new: Vec<&str> = failed.difference(baseline).map(String::as_str).collect();
        let Some(first) = new.first() else { return Ok(()) };
        let why = format!("units failed that were well before the update: {}", new.join(", "));
        Err(Failed::new(CHECK, why, systemd.status(first).await))
    }

    /// What is only wanted runs once, when all that is required has passed.
    async fn wanted(&mut self) {
        for check in checks::list(&self.settings.checks_dir.join(checks::WANTED)) {
            let result = match check {
                Ok(check) => {
                    self.start(&check.name);
                    checks::run(&check, self.settings.check_timeout, self.context).await
                }
                Err(error) => Err(Failed::error(checks::WANTED, &error)),
            };
            if let Err(failed) = result {
                self.note(&failed.check, failed.why);
            }
        }
    }

    fn start(&mut self, check: &str) {
        self.current = Some(check.to_owned());
        (self.progress)(CheckProgress::Checking(check.to_owned()));
    }

    fn note(&mut self, check: &str, why: String) {
        (self.progress)(CheckProgress::Note { check: check.to_owned(), why });
    }
}

#[cfg(test)]
mod tests;
