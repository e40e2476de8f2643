//! Root's side of the health checks: what the agent asked for, by the settings that root owns.

use super::checks;
use super::failed::HealthError;
use super::systemd::{BOOT_COMPLETE, Systemd};
use crate::config::Health;
use crate::root::{Finished, Verb};

/// Does what `verb` says, if it is about checks or units.
pub async fn perform(verb: Verb, settings: &Health, systemd: &Systemd) -> Result<Finished, HealthError> {
    match verb {
        Verb::Check(request) => {
            let check = checks::of_root(&settings.checks_dir, &request.name)?;
            checks::start(&check, settings.check_timeout, &request).await
        }
        Verb::UnitState(unit) if !is_unit(&unit) => Err(refused(&unit, "is no unit")),
        // The journal of any other unit is none of the agent's business.
        Verb::UnitStatus(unit) if !is_check(&unit, settings, systemd).await => {
            Err(refused(&unit, "has not failed, and is no health check"))
        }
        Verb::Reboot => Err(HealthError::Refused("a reboot is no health check".to_owned())),
        other => systemd.ask(other).await,
    }
}

async fn is_check(unit: &str, settings: &Health, systemd: &Systemd) -> bool {
    is_unit(unit)
        && (unit == BOOT_COMPLETE
            || settings.units.iter().any(|known| known == unit)
            || systemd.failed_units().await.is_ok_and(|units| units.contains(unit)))
}

/// systemd.unit(5): no patterns, and nothing that could pass for an option.
fn is_unit(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    !name.is_empty() && name.len() <= 255 && !name.starts_with('-') && name.bytes().all(plain)
}

fn refused(unit: &str, why: &str) -> HealthError {
    HealthError::Refused(format!("{unit:?} {why}"))
}
