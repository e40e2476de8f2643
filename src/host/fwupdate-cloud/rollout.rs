//! One update for many gateways: an IoT Hub job calls firmwareUpdate on each, and their twins tell the rest.
//!
//! The job's id is every gateway's operation id, so that one query finds them all, and a gateway that is called
//! twice starts once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use fwupdate::cli::plain::{self, plain};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::Rollout;
use crate::error::Error;
use crate::fields::{REPORTED, text};
use crate::patience;
use crate::service::Service;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stand {
    Waiting,
    /// It runs, and is in this phase.
    Running(String),
    Committed,
    /// It refused, could not be reached, or failed: with the code.
    Failed(String),
}

#[derive(Debug, Default)]
struct Summary {
    stands: BTreeMap<String, Stand>,
}

pub fn order(id: &str, rollout: &Rollout, mut payload: Map<String, Value>) -> Value {
    payload.insert("operationId".into(), id.into());
    json!({
        "jobId": id,
        "type": "scheduleDeviceMethod",
        "cloudToDeviceMethod": {
            "methodName": "firmwareUpdate",
            "payload": payload,
            "responseTimeoutInSeconds": 30,
            "connectTimeoutInSeconds": rollout.connect_timeout,
        },
        "queryCondition": condition(&rollout.query),
        "startTime": rollout.start.clone().unwrap_or_else(now),
        "maxExecutionTimeInSeconds": rollout.max_seconds,
    })
}

/// Jobs have a time at which they start.
pub fn now() -> String {
    OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .ok()
        .and_then(|now| now.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// A whole query is taken, too: jobs want its condition alone.
pub fn condition(query: &str) -> &str {
    let query = query.trim();
    let head = "select * from devices where ";
    match query.get(..head.len()) {
        Some(start) if start.eq_ignore_ascii_case(head) => query.get(head.len()..).unwrap_or(query).trim(),
        _ => query,
    }
}

/// Follows the job to its end, then its gateways to theirs. An error when any of them did not commit.
pub async fn follow(service: &Service, id: &str, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let line = |(status, summary): &(String, Summary)| summary.told(status, json);
    let is_over = |(status, summary): &(String, Summary)| is_over(status) && summary.is_over();
    let (status, summary) = patience::follow(service, || look(service, id), line, is_over, out).await?;
    summary.verdict(&status, json, out)
}

/// Shows how the job and its gateways stand now.
pub async fn show(service: &Service, id: &str, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let (status, summary) = look(service, id).await?;
    writeln!(out, "{}", summary.told(&status, json))?;
    Ok(out.flush()?)
}

/// The status of the job, and what is known of its gateways.
async fn look(service: &Service, id: &str) -> Result<(String, Summary), Error> {
    let job = service.job(id).await?;
    let status = text(&job, "/status").unwrap_or("unknown").to_owned();
    let parts = format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{id}'");
    let (rows, twins) = (service.query(&parts).await?, service.query(&of_operation(id)).await?);
    Ok((status, Summary::of(&rows, &twins, id)))
}

fn of_operation(id: &str) -> String {
    format!("SELECT * FROM devices WHERE {REPORTED}.operation.id = '{id}' OR {REPORTED}.last.id = '{id}'")
}

fn is_over(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "cancelled")
}

impl Summary {
    fn of(rows: &[Value], twins: &[Value], id: &str) -> Summary {
        let stand = |row| Some((text(row, "/deviceId")?.to_owned(), called(row)));
        let mut stands: BTreeMap<_, _> = rows.iter().filter_map(stand).collect();
        for twin in twins {
            if let (Some(device), Some(stand)) = (text(twin, "/deviceId"), reported(twin, id)) {
                stands.insert(device.to_owned(), stand);
            }
        }
        Summary { stands }
    }

    fn is_over(&self) -> bool {
        self.stands.values().all(|stand| matches!(stand, Stand::Committed | Stand::Failed(_)))
    }

    fn count(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for stand in self.stands.values() {
            *counts.entry(stand.name()).or_insert(0) += 1;
        }
        counts
    }

    fn line(&self, status: &str) -> String {
        let counts: Vec<_> =
            self.count().into_iter().map(|(name, count)| format!("{count} {name}")).collect();
        format!("job {status}, {} gateways: {}", self.stands.len(), counts.join(", "))
    }

    fn told(&self, status: &str, json: bool) -> String {
        if json { plain::json(&self.json(status)) } else { plain(&self.line(status)) }
    }

    fn json(&self, status: &str) -> Value {
        json!({"job": status, "gateways": self.stands.len(), "counts": self.count()})
    }

    fn verdict(&self, status: &str, json: bool, out: &mut impl Write) -> Result<(), Error> {
        let failed = self.stands.iter().filter_map(|(device, stand)| match stand {
            Stand::Failed(code) => Some((device, code)),
            _ => None,
        });
        let failed: Vec<_> = failed.collect();
        if !json {
            for (device, code) in &failed {
                writeln!(out, "{}", plain(&format!("{device}: {code}")))?;
            }
        }
        let codes: BTreeSet<_> = failed.iter().map(|(_, code)| code.as_str()).collect();
        match (failed.len(), status, self.stands.len()) {
            (_, _, 0) => {
                Err(Error::failed("NotFound", "the query selects no gateway: see `az iot hub query`"))
            }
            (0, "completed", _) => Ok(()),
            (0, _, _) => Err(Error::failed("Cancelled", format!("the job ended as {status}"))),
            (n, _, all) => {
                let codes: Vec<_> = codes.into_iter().collect();
                Err(Error::failed(
                    "Internal",
                    format!("{n} of {all} gateways did not commit: {}", codes.join(", ")),
                ))
            }
        }
    }
}

impl Stand {
    fn name(&self) -> String {
        match self {
            Stand::Waiting => "waiting".into(),
            Stand::Running(phase) => phase.clone(),
            Stand::Committed => "committed".into(),
            Stand::Failed(_) => "failed".into(),
        }
    }
}

/// What the job knows of a gateway: `devices.jobs`.
fn called(row: &Value) -> Stand {
    let code = |pointer: &str| text(row, pointer).map(str::to_owned);
    let status = row.pointer("/outcome/deviceMethodResponse/status").and_then(Value::as_i64);
    match (text(row, "/status"), status) {
        (_, Some(200)) => Stand::Running("accepted".into()),
        (_, Some(status)) => {
            let told = code("/outcome/deviceMethodResponse/payload/error/code");
            Stand::Failed(told.unwrap_or_else(|| format!("status {status}")))
        }
        (Some(ended @ ("failed" | "cancelled")), None) => {
            Stand::Failed(code("/error/code").unwrap_or_else(|| ended.to_owned()))
        }
        _ => Stand::Waiting,
    }
}

/// What the gateway itself reports of the operation.
fn reported(twin: &Value, id: &str) -> Option<Stand> {
    let told = twin.pointer("/properties/reported/fwupdate")?;
    if text(told, "/operation/id") == Some(id) {
        let phase = text(told, "/operation/phase").unwrap_or("running");
        return Some(Stand::Running(phase.to_owned()));
    }
    (text(told, "/last/id") == Some(id)).then(|| match text(told, "/last/result") {
        Some("committed") => Stand::Committed,
        result => {
            let code = text(told, "/last/error/code").or(result);
            Stand::Failed(code.unwrap_or("unknown").to_owned())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: &str, status: &str, answer: Value) -> Value {
        json!({"deviceId": device, "status": status, "outcome": {"deviceMethodResponse": answer}})
    }

    fn twin(device: &str, fwupdate: Value) -> Value {
        json!({"deviceId": device, "properties": {"reported": {"fwupdate": fwupdate}}})
    }

    #[test]
    fn the_twin_knows_more_than_the_job() {
        let rows = [
            row("a", "completed", json!({"status": 200})),
            row("b", "completed", json!({"status": 200})),
            row("c", "completed", json!({"status": 409, "payload": {"error": {"code": "Busy"}}})),
            json!({"deviceId": "d", "status": "failed", "error": {"code": "404103"}}),
            json!({"deviceId": "e", "status": "pending"}),
        ];
        let twins = [
            twin("a", json!({"last": {"id": "j", "result": "committed"}})),
            twin("b", json!({"operation": {"id": "j", "phase": "staging"}, "last": {"id": "old"}})),
        ];
        let summary = Summary::of(&rows, &twins, "j");
        let expected = "job running, 5 gateways: 1 committed, 2 failed, 1 staging, 1 waiting";
        assert_eq!(summary.line("running"), expected);
        assert!(!summary.is_over());
        assert_eq!(summary.stands["c"], Stand::Failed("Busy".into()));
        assert_eq!(summary.stands["d"], Stand::Failed("404103".into()));
    }

    #[test]
    fn the_verdict_is_good_only_when_all_committed() {
        let over = |result: &str| {
            let twins = [twin("a", json!({"last": {"id": "j", "result": result}}))];
            let summary = Summary::of(&[row("a", "completed", json!({"status": 200}))], &twins, "j");
            assert!(summary.is_over());
            summary.verdict("completed", true, &mut Vec::new())
        };
        assert!(over("committed").is_ok());
        assert_eq!(over("rolledBack").unwrap_err().exit(), 1);
        assert!(
            Summary::default().verdict("completed", true, &mut Vec::new()).is_err(),
            "nobody was selected"
        );
    }

    #[test]
    fn a_whole_query_becomes_its_condition() {
        assert_eq!(condition("SELECT * FROM devices WHERE tags.ring = 'x'"), "tags.ring = 'x'");
        assert_eq!(condition(" tags.ring = 'x' "), "tags.ring = 'x'");
        assert_eq!(condition("*"), "*");
    }
}
