//! Jobs: one direct method or twin update for every device that a condition selects, at a given time.
//!
//! Rules: Azure's "Schedule jobs on multiple devices". The devices are selected when the job starts. Jobs are kept
//! in memory: a hub that restarts has forgotten them.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is absent")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::core::{Core, Write};
use crate::error::{HubError, Kind};
use crate::methods::{self, Call};
use crate::query::Query;
use crate::registry::Identity;
use crate::{clock, lock};

/// Devices that are served at once: IoT Hub allows ten job operations a second.
const AT_ONCE: usize = 10;
const LONGEST: u64 = 48 * 3600;

/// What is done to each device.
#[derive(Debug, Clone)]
pub enum Work {
    Method(Call),
    Twin(Value),
}

#[derive(Debug)]
struct Job {
    /// As it was ordered; the answer repeats it.
    order: Value,
    condition: Query,
    work: Work,
    starts: OffsetDateTime,
    longest: Duration,
    status: &'static str,
    created: String,
    ended: Option<String>,
    devices: BTreeMap<String, DeviceJob>,
    cancel: CancellationToken,
}

/// One device's part.
#[derive(Debug, Clone)]
struct DeviceJob {
    status: &'static str,
    started: Option<String>,
    ended: Option<String>,
    outcome: Option<Value>,
    error: Option<Value>,
}

/// Every job since the hub started.
#[derive(Debug, Default)]
pub struct Jobs {
    jobs: Mutex<BTreeMap<String, Job>>,
}

impl Jobs {
    /// The job as REST shows it.
    pub fn get(&self, id: &str) -> Result<Value, HubError> {
        lock(&self.jobs).get(id).map(Job::shown).ok_or_else(|| unknown(id))
    }

    /// All jobs of this type and status, the newest first.
    pub fn list(&self, kind: Option<&str>, status: Option<&str>) -> Vec<Value> {
        let mut all: Vec<_> = lock(&self.jobs).values().map(Job::shown).collect();
        all.retain(|job| kind.is_none_or(|kind| text(job, "type") == Some(kind)));
        all.retain(|job| status.is_none_or(|status| text(job, "status") == Some(status)));
        all.sort_by(|a, b| text(b, "createdTime").cmp(&text(a, "createdTime")));
        all
    }

    /// The rows of `devices.jobs`, ordered by job and device.
    pub fn rows(&self) -> Vec<Value> {
        let jobs = lock(&self.jobs);
        jobs.iter()
            .flat_map(|(id, job)| job.devices.iter().map(|(device, part)| job.row(id, device, part)))
            .collect()
    }

    /// Nothing more is begun, and the answers of calls under way are not waited for.
    pub fn cancel(&self, id: &str) -> Result<Value, HubError> {
        let mut jobs = lock(&self.jobs);
        let job = jobs.get_mut(id).ok_or_else(|| unknown(id))?;
        if job.ended.is_none() {
            job.cancel.cancel();
            job.end("cancelled");
        }
        Ok(job.shown())
    }

    fn with<T>(&self, id: &str, change: impl FnOnce(&mut Job) -> T) -> Option<T> {
        lock(&self.jobs).get_mut(id).map(change)
    }
}

impl Job {
    fn end(&mut self, status: &'static str) {
        let now = clock::now();
        for part in self.devices.values_mut().filter(|part| part.ended.is_none()) {
            (part.status, part.ended) = (status, Some(now.clone()));
        }
        (self.status, self.ended) = (status, Some(now));
    }

    fn shown(&self) -> Value {
        let count = |status: &str| self.devices.values().filter(|part| part.status == status).count();
        let mut shown = self.order.clone();
        if let Some(fields) = shown.as_object_mut() {
            fields.insert("createdTime".into(), self.created.clone().into());
            fields.insert("startTime".into(), self.starts.format(&Rfc3339).unwrap_or_default().into());
            fields.insert("endTime".into(), json!(self.ended));
            fields.insert("status".into(), self.status.into());
            fields.insert(
                "deviceJobStatistics".into(),
                json!({
                    "deviceCount": self.devices.len(),
                    "failedCount": count("failed"),
                    "succeededCount": count("completed"),
                    "runningCount": count("running"),
                    "pendingCount": count("pending"),
                }),
            );
        }
        shown
    }

    fn row(&self, id: &str, device: &str, part: &DeviceJob) -> Value {
        let mut row = json!({
            "deviceId": device,
            "jobId": id,
            "jobType": self.order.get("type"),
            "status": part.status,
            "startTimeUtc": part.started,
            "endTimeUtc": part.ended,
            "createdDateTimeUtc": self.created,
            "lastUpdatedDateTimeUtc": part.ended.as_ref().or(part.started.as_ref()).unwrap_or(&self.created),
        });
        for (name, value) in [("outcome", &part.outcome), ("error", &part.error)] {
            if let (Some(row), Some(value)) = (row.as_object_mut(), value) {
                row.insert(name.into(), value.clone());
            }
        }
        row
    }
}

/// Takes a job up and lets it run; `work` was read from `order`, the request's body.
pub fn create(core: &Arc<Core>, id: &str, order: Value, work: Work) -> Result<Value, HubError> {
    let job = read(id, order, work)?;
    let (starts, longest, cancel) = (job.starts, job.longest, job.cancel.clone());
    let mut jobs = lock(&core.jobs.jobs);
    if jobs.contains_key(id) {
        return Err(HubError::new(Kind::JobAlreadyExists, format!("the job {id} exists")));
    }
    let shown = job.shown();
    jobs.insert(id.to_owned(), job);
    drop(jobs);
    let (running, id) = (core.clone(), id.to_owned());
    core.tasks.spawn(
        cancel
            .run_until_cancelled_owned(async move {
                let wait = starts - OffsetDateTime::now_utc();
                tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
                let status = match timeout(longest, run(&running, &id)).await {
                    Ok(Ok(())) => "completed",
                    Ok(Err(_)) | Err(_) => "failed",
                };
                running.jobs.with(&id, |job| job.end(status));
            })
            .map(drop),
    );
    Ok(shown)
}

fn read(id: &str, mut order: Value, work: Work) -> Result<Job, HubError> {
    let invalid = |message: String| HubError::new(Kind::ArgumentInvalid, message);
    let condition = text(&order, "queryCondition").unwrap_or("*").trim().to_owned();
    let query = match condition.as_str() {
        "*" | "" => "SELECT * FROM devices".to_owned(),
        condition => format!("SELECT * FROM devices WHERE {condition}"),
    };
    let starts = match text(&order, "startTime").filter(|time| !time.is_empty()) {
        None => OffsetDateTime::now_utc(),
        Some(time) => {
            OffsetDateTime::parse(time, &Rfc3339).map_err(|why| invalid(format!("startTime: {why}")))?
        }
    };
    let longest = order.get("maxExecutionTimeInSeconds").and_then(Value::as_u64).unwrap_or(3600);
    if !(1..=LONGEST).contains(&longest) {
        return Err(invalid(format!("maxExecutionTimeInSeconds must be within [1; {LONGEST}]")));
    }
    if let Some(fields) = order.as_object_mut() {
        fields.insert("jobId".into(), id.into());
        fields.insert("maxExecutionTimeInSeconds".into(), longest.into());
    }
    Ok(Job {
        condition: Query::parse(&query).map_err(|why| invalid(why.to_string()))?,
        order,
        work,
        starts,
        longest: Duration::from_secs(longest),
        status: if starts > OffsetDateTime::now_utc() { "scheduled" } else { "queued" },
        created: clock::now(),
        ended: None,
        devices: BTreeMap::new(),
        cancel: CancellationToken::new(),
    })
}

/// Selects the devices and serves them, a few at once.
async fn run(core: &Arc<Core>, id: &str) -> Result<(), HubError> {
    let Some((condition, work)) = core.jobs.with(id, |job| (job.condition.clone(), job.work.clone())) else {
        return Ok(());
    };
    let devices: Vec<String> = core.select(&condition)?;
    core.jobs.with(id, |job| {
        job.status = "running";
        let part = DeviceJob { status: "pending", started: None, ended: None, outcome: None, error: None };
        job.devices = devices.iter().map(|device| (device.clone(), part.clone())).collect();
    });
    stream::iter(devices)
        .for_each_concurrent(AT_ONCE, |device| {
            let work = work.clone();
            async move { serve(core, id, &device, work).await }
        })
        .await;
    Ok(())
}

async fn serve(core: &Core, id: &str, device: &str, work: Work) {
    let change = |change: &dyn Fn(&mut DeviceJob)| {
        core.jobs.with(id, |job| job.devices.get_mut(device).map(change));
    };
    change(&|part| (part.status, part.started) = ("running", Some(clock::now())));
    let identity = Identity::device(device);
    let done = match work {
        Work::Method(call) => methods::invoke(core, &identity, call).await.map(
            |answer| json!({"deviceMethodResponse": {"status": answer.status, "payload": answer.payload}}),
        ),
        Work::Twin(update) => core.write_twin(&identity, &update, Write::Patch, None).map(|_| json!({})),
    };
    change(&|part| {
        part.ended = Some(clock::now());
        match &done {
            Ok(outcome) => (part.status, part.outcome) = ("completed", Some(outcome.clone())),
            Err(error) => {
                let (_, code, _) = error.kind.parts();
                (part.status, part.error) =
                    ("failed", Some(json!({"code": code.to_string(), "description": error.message})));
            }
        }
    });
}

fn unknown(id: &str) -> HubError {
    HubError::new(Kind::JobNotFound, format!("there is no job {id}"))
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}
