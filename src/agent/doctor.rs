//! `fwupdatectl doctor`: everything that would make the next update fail, found before it does.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Agent;
use crate::clock::{Clock, Origin};
use crate::config;
use crate::slot::Slot;

/// One check: its name, and what is wrong, if anything is.
struct Finding {
    check: &'static str,
    status: &'static str,
    message: String,
}

impl Finding {
    fn of<E: ToString>(check: &'static str, good: &str, result: Result<(), E>) -> Finding {
        match result {
            Ok(()) => Finding { check, status: "ok", message: good.to_owned() },
            Err(why) => Finding { check, status: "failed", message: why.to_string() },
        }
    }

    fn warn_unless(check: &'static str, good: &str, doubt: Option<String>) -> Finding {
        match doubt {
            None => Finding { check, status: "ok", message: good.to_owned() },
            Some(message) => Finding { check, status: "warning", message },
        }
    }
}

/// Examines the gateway now: `{"findings": [...]}`.
pub(super) async fn examine(agent: &mut Agent) -> Value {
    agent.look().await;
    let gateway = &agent.gateway;
    let spare = agent.boot.booted.map(|booted| !booted);
    let held = gateway.held.lock().await.target.is_some();
    let findings = [
        Finding::of("running slot", "both witnesses agree", running_slot(agent)),
        Finding::of("boot environment", "valid, and a trial can be armed", boot_environment(agent)),
        Finding::of("spare slot", "present, and not in use", spare_slot(agent, spare, held)),
        Finding::of("signing keys", "at least one key can be used", gateway.keys().map(drop)),
        Finding::of("record", "saved in both copies", agent.unsaved.clone().map_or(Ok(()), Err)),
        Finding::of("state folder", "outside both slots", state_folder(agent)),
        Finding::warn_unless("hub", "an authenticated session is open", hub(agent)),
        Finding::warn_unless("clock", "synchronised", clock_doubt(&gateway.clock)),
        Finding::warn_unless("fallback", "both slots are proven", fallback(agent)),
        Finding::warn_unless("quarantine", "empty", quarantine(agent)),
    ];
    json!({ "findings": findings.map(|finding| {
        json!({ "check": finding.check, "status": finding.status, "message": finding.message })
    }) })
}

fn running_slot(agent: &Agent) -> Result<(), String> {
    match agent.boot.booted {
        Some(_) => Ok(()),
        None => Err(agent.publisher.view.degraded.clone().unwrap_or_default()),
    }
}

fn boot_environment(agent: &Agent) -> Result<(), String> {
    agent.gateway.bootloader.read().map_err(|error| error.to_string())?;
    agent.gateway.bootloader.ready().map_err(|error| error.to_string())
}

fn spare_slot(agent: &Agent, spare: Option<Slot>, held: bool) -> Result<(), String> {
    match spare {
        Some(_) if held => Ok(()),
        Some(slot) => agent.gateway.acquire(slot).map(drop).map_err(|failure| failure.message),
        None => Err("the running slot is not known, so neither is the spare one".to_owned()),
    }
}

fn state_folder(agent: &Agent) -> Result<(), String> {
    config::outside_slots(&agent.gateway.settings.state.dir).map_or(Ok(()), Err)
}

fn hub(agent: &Agent) -> Option<String> {
    let connected = *agent.gateway.cloud.borrow();
    match &agent.gateway.settings.cloud {
        None => Some("no [cloud] is configured".to_owned()),
        Some(_) if connected => None,
        Some(_) => Some(match &agent.no_session {
            Some(reason) => format!("no session: {reason}"),
            None => "no session yet".to_owned(),
        }),
    }
}

fn clock_doubt(clock: &Clock) -> Option<String> {
    let (origin, time) = clock.origin();
    let time = shown(time);
    let why = match origin {
        Origin::Synchronised => return None,
        Origin::System => format!("the system's clock says {time}, and nobody keeps it right"),
        Origin::Learned(host) => {
            format!("{host} says that it is {time}, by which certificates and tokens go")
        }
        Origin::Saved => format!(
            "the system's clock says {}, which is past: {time} counts, which was saved earlier, and only a \
             synchronised clock corrects it, should it be wrong",
            shown(clock.system_time())
        ),
    };
    Some(format!(
        "not synchronised: {why}; windows and notBefore wait until a time service (systemd-timesyncd, chrony) sets \
         the clock"
    ))
}

fn shown(time: OffsetDateTime) -> String {
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

fn fallback(agent: &Agent) -> Option<String> {
    let env = agent.boot.env?;
    let message = "the other slot is not proven: if this one breaks, there is nothing to go back to";
    env.fallback.is_none().then(|| message.to_owned())
}

fn quarantine(agent: &Agent) -> Option<String> {
    let entries: Vec<String> = agent
        .record
        .quarantine
        .iter()
        .map(|entry| format!("{} ({})", entry.version, entry.failure.code))
        .collect();
    (!entries.is_empty()).then(|| entries.join(", "))
}
