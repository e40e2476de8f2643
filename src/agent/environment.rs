//! The boot environment as the agent may use it: where the bootloader reads it, and made anew only when the
//! bootloader, too, finds none.

use std::fs;
use std::path::PathBuf;

use super::gateway::{Gateway, OsRelease};
use crate::boot::{self, BootError, Detected};
use crate::clock;
use crate::device::{self, Identity};
use crate::failure::Failure;
use crate::machine::{Boot, BootId, Record, is_decided};
use crate::slot::{BootEnv, Slot};

/// In the runtime folder: the running slot is the primary. Known to `systemd/fwupdate-deadman.service`.
const PROVEN: &str = "proven";

/// What was found when the gateway was looked at.
pub struct Sight {
    pub boot: Boot,
    /// Why the running slot is not known.
    pub degraded: Option<String>,
    pub os: OsRelease,
}

impl Gateway {
    /// Looks at what runs and at what runs next; once a verdict stands by `record`, the dead-man is told. Reads media, so
    /// it may block.
    pub fn look(&self, record: &Record) -> Sight {
        let (boot, degraded) = self.boot();
        if is_decided(record, &boot) && !self.is_marked(&boot.boot_id) {
            self.mark_proven(&boot.boot_id);
        }
        Sight { boot, degraded, os: self.os_release() }
    }

    /// What is booted and what the environment says, looked up afresh. The sentence tells why the running slot is
    /// not known, or why there is no environment.
    pub fn boot(&self) -> (Boot, Option<String>) {
        let detected = self.detect();
        let found = detected.as_ref().ok();
        let boot_id = BootId(found.map(|found| found.boot_id.clone()).unwrap_or_default());
        let ambiguous = self.ambiguous();
        let unknown = match &detected {
            Ok(found) => found.reason.clone(),
            Err(failure) => Some(failure.message.clone()),
        };
        let trial = found.and_then(|found| found.trial).filter(|_| !self.is_marked(&boot_id));
        let (env, error) = match self.read_env() {
            Ok(env) => (Some(env), None),
            Err(error) => (None, Some(error)),
        };
        let rebuild = found.zip(error.as_ref()).is_some_and(|(found, error)| self.may_rebuild(found, error));
        let absent = matches!(error, Some(BootError::Lost(_) | BootError::Uninitialised(_)));
        let boot = Boot {
            // An environment that is there but cannot be used is as good as an unknown slot: touch nothing.
            booted: found
                .and_then(|found| found.slot)
                .filter(|_| ambiguous.is_none() && (error.is_none() || absent)),
            env,
            rebuild: rebuild && trial.is_none(),
            trial,
            boot_id,
            now: self.clock.now(),
            uptime: clock::boottime().as_secs(),
        };
        let unusable = error.filter(|_| !boot.rebuild).map(|error| self.explain(&error, found));
        (boot, ambiguous.or(unknown).or(unusable))
    }

    /// A slot's name that means several partitions.
    fn ambiguous(&self) -> Option<String> {
        let slots = &self.settings.slots;
        let checked = [&slots.a, &slots.b].map(|name| device::check_unique(name, &self.kernel));
        checked.into_iter().find_map(Result::err).map(|error| error.to_string())
    }

    /// What the environment says, if it is one that the bootloader can read.
    pub fn read_env(&self) -> Result<BootEnv, BootError> {
        boot::check_place(&self.settings.bootloader.kind, &self.board())?;
        self.bootloader.read()
    }

    /// Writes `env` over an environment that can be used, and reads it back.
    pub fn write_env(&self, env: &BootEnv) -> Result<(), BootError> {
        self.read_env()?;
        self.bootloader.write(env)?;
        self.compare(env)
    }

    /// Makes an environment that is lost for the bootloader too.
    pub fn rebuild_env(&self, env: &BootEnv) -> Result<(), BootError> {
        // An older one came back.
        let Err(lost) = self.read_env() else { return self.write_env(env) };
        let found = self.detect().ok();
        let allowed =
            found.as_ref().is_some_and(|found| found.trial.is_none() && self.may_rebuild(found, &lost));
        if !allowed {
            return Err(lost);
        }
        boot::check_rebuild(&self.settings.bootloader.kind, &self.board())?;
        self.bootloader.rebuild(env)?;
        self.compare(env)
    }

    /// Whether a trial could be armed: changes nothing.
    pub fn env_ready(&self) -> Result<(), BootError> {
        self.read_env()?;
        let kernel = &self.kernel;
        let places = boot::places(&self.settings.bootloader.kind)?;
        let locked = |path: &PathBuf| Identity::of(path).is_ok_and(|device| kernel.is_read_only(device));
        if let Some(path) = places.into_iter().find(locked) {
            let why = format!("{} {}", path.display(), device::READ_ONLY);
            return Err(BootError::Misplaced(format!("the boot environment's device {why}")));
        }
        self.bootloader.ready()
    }

    fn compare(&self, env: &BootEnv) -> Result<(), BootError> {
        let back = self.read_env()?;
        (back == *env).then_some(()).ok_or_else(|| BootError::NotWritten(self.env_path()))
    }

    fn env_path(&self) -> PathBuf {
        let places = boot::places(&self.settings.bootloader.kind).unwrap_or_default();
        places.into_iter().next().unwrap_or_default()
    }

    /// The bootloader found no environment either, or one without a primary as it is here.
    fn may_rebuild(&self, found: &Detected, error: &BootError) -> bool {
        match error {
            BootError::Lost(_) => found.env_lost,
            BootError::Uninitialised(_) => found.env_lost || found.env_unset,
            _ => false,
        }
    }

    /// Why an environment cannot be used, and why one that is lost is not made anew.
    fn explain(&self, error: &BootError, found: Option<&Detected>) -> String {
        let said = found.is_some_and(|found| found.env_lost);
        match error {
            BootError::Lost(place) if !said => format!(
                "no copy of the boot environment in {place} is valid, but the bootloader of this boot does not call it \
                 lost: check [bootloader] in the settings and the file that it names; nothing is changed"
            ),
            error => error.to_string(),
        }
    }

    /// Why the trial of `slot` could not be decided in this boot, if it could not: its root must be that slot, and
    /// the environment the one that the bootloader counts in.
    pub fn trial_doubt(&self, slot: Slot) -> Option<(&'static str, String)> {
        let (boot, reason) = self.boot();
        if boot.env.is_none() {
            return Some(("boot environment", reason.unwrap_or_else(|| "it is lost".to_owned())));
        }
        if boot.booted != Some(slot) {
            return Some(("running slot", reason.unwrap_or_else(|| format!("slot {slot} does not run"))));
        }
        let counted = boot.trial.is_none() || boot.shows_trial(slot);
        (!counted).then(|| {
            let message = format!(
                "the boot script tries slot {slot}, but the boot environment has no such trial: [bootloader] in the \
                 settings leads to another environment than the bootloader reads"
            );
            ("boot environment", message)
        })
    }

    /// Disarms `fwupdate-deadman.timer`, which reboots a slot on trial that has no such marker.
    fn mark_proven(&self, boot_id: &BootId) {
        let marker = self.settings.system.run.join(PROVEN);
        if let Err(error) = fs::write(&marker, &boot_id.0) {
            tracing::error!(
                "the dead-man timer is still armed and will reboot this slot if it was on trial: {} cannot be \
                 made: {error}",
                marker.display()
            );
        }
    }

    /// A verdict was reached in this boot.
    fn is_marked(&self, boot_id: &BootId) -> bool {
        let marked = fs::read_to_string(self.settings.system.run.join(PROVEN));
        marked.is_ok_and(|marked| marked == boot_id.0)
    }

    fn detect(&self) -> Result<Detected, Failure> {
        boot::booted(&self.kernel, &self.slots()).map_err(|error| super::gateway::internal(&error))
    }

    fn board(&self) -> boot::Board {
        let span_disks = self.settings.slots.span_disks;
        boot::Board { kernel: self.kernel.clone(), slots: self.slots(), span_disks }
    }
}
