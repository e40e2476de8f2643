//! Jobs: one direct method or twin update for every device that a condition selects, at a given time.
//!
//! Rules: Azure's "Schedule jobs on multiple devices". The devices are selected when the job starts. Each job is a
//! file, so that it outlives a restart: what was not done yet is done then, and a call whose answer the restart cut
//! off is made again.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is absent")]

mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

pub use self::run::{create, resume};
use crate::error::{HubError, Kind};
use crate::{clock, disk, lock};

/// Of a job, and of one device's part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Status {
    /// A job whose time has not come.
    Scheduled,
    /// A job that is about to start.
    Queued,
    /// A device whose turn has not come.
    Pending,
    Running,
    Completed,
    Failed,
    Cancelled,
}

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    /// As it was ordered; the answer repeats it.
    order: Value,
    /// RFC 3339.
    starts: String,
    status: Status,
    created: String,
    ended: Option<String>,
    /// Empty until the job starts.
    devices: BTreeMap<String, DeviceJob>,
    #[serde(skip)]
    cancel: CancellationToken,
}

/// One device's part.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct DeviceJob {
    status: Status,
    started: Option<String>,
    ended: Option<String>,
    outcome: Option<Value>,
    error: Option<Value>,
}

/// Every job that was ever ordered.
#[derive(Debug)]
pub struct Jobs {
    folder: PathBuf,
    jobs: Mutex<BTreeMap<String, Job>>,
}

impl Jobs {
    /// Those in `dir/jobs`.
    pub fn open(dir: &Path) -> Result<Jobs> {
        let folder = dir.join("jobs");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut jobs = BTreeMap::new();
        for file in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let job = read(&path)?;
                jobs.insert(job.order["jobId"].as_str().unwrap_or_default().to_owned(), job);
            }
        }
        Ok(Jobs { folder, jobs: Mutex::new(jobs) })
    }

    /// The job as REST shows it.
    pub fn get(&self, id: &str) -> Result<Value, HubError> {
        lock(&self.jobs).get(id).map(Job::shown).ok_or_else(|| unknown(id))
    }

    /// All jobs of this type and status, by their ids.
    pub fn list(&self, kind: Option<&str>, status: Option<&str>) -> Vec<(String, Value)> {
        let jobs = lock(&self.jobs);
        let mut all: Vec<_> = jobs.iter().map(|(id, job)| (id.clone(), job.shown())).collect();
        all.retain(|(_, job)| kind.is_none_or(|kind| text(job, "type") == Some(kind)));
        all.retain(|(_, job)| status.is_none_or(|status| text(job, "status") == Some(status)));
        all
    }

    /// The rows of `devices.jobs`, ordered by job and device.
    pub fn rows(&self) -> Vec<(String, Value)> {
        let jobs = lock(&self.jobs);
        let parts = jobs.iter().flat_map(|(id, job)| job.devices.iter().map(move |part| (id, job, part)));
        parts.map(|(id, job, (device, part))| (format!("{id}/{device}"), job.row(id, device, part))).collect()
    }

    /// Nothing more is begun, and the answers of calls under way are not waited for.
    pub fn cancel(&self, id: &str) -> Result<Value, HubError> {
        let cancelled = self.with(id, |job| {
            if job.ended.is_none() {
                job.cancel.cancel();
                job.end(Status::Cancelled);
            }
            job.shown()
        });
        cancelled.ok_or_else(|| unknown(id))
    }

    /// Takes a new job in.
    fn insert(&self, id: &str, job: Job) -> Result<(), HubError> {
        let mut jobs = lock(&self.jobs);
        if jobs.contains_key(id) {
            return Err(HubError::new(Kind::JobAlreadyExists, format!("the job {id} exists")));
        }
        self.save(id, &job)?;
        jobs.insert(id.to_owned(), job);
        Ok(())
    }

    /// Changes a job that has not ended, and keeps that on disk.
    fn with<T>(&self, id: &str, change: impl FnOnce(&mut Job) -> T) -> Option<T> {
        let mut jobs = lock(&self.jobs);
        let job = jobs.get_mut(id)?;
        let outcome = change(job);
        if let Err(error) = self.save(id, job) {
            tracing::warn!(id, "the job is not kept: {error:#}");
        }
        Some(outcome)
    }

    fn save(&self, id: &str, job: &Job) -> Result<()> {
        let name = format!("{}.json", utf8_percent_encode(id, NON_ALPHANUMERIC));
        disk::replace(&self.folder.join(name), &serde_json::to_vec_pretty(job)?, true)
    }

    fn unfinished(&self) -> Vec<String> {
        let jobs = lock(&self.jobs);
        jobs.iter().filter(|(_, job)| job.ended.is_none()).map(|(id, _)| id.clone()).collect()
    }
}

impl Job {
    fn end(&mut self, status: Status) {
        let now = clock::now();
        for part in self.devices.values_mut().filter(|part| part.ended.is_none()) {
            (part.status, part.ended) = (status, Some(now.clone()));
        }
        (self.status, self.ended) = (status, Some(now));
    }

    /// When it starts, or started.
    fn begins(&self) -> OffsetDateTime {
        let read = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        read(&self.starts).max(read(&self.created))
    }

    fn shown(&self) -> Value {
        let count = |status: Status| self.devices.values().filter(|part| part.status == status).count();
        let mut shown = self.order.clone();
        if let Some(fields) = shown.as_object_mut() {
            fields.insert("createdTime".into(), self.created.clone().into());
            fields.insert("startTime".into(), self.starts.clone().into());
            fields.insert("endTime".into(), json!(self.ended));
            fields.insert("status".into(), json!(self.status));
            fields.insert(
                "deviceJobStatistics".into(),
                json!({
                    "deviceCount": self.devices.len(),
                    "failedCount": count(Status::Failed),
                    "succeededCount": count(Status::Completed),
                    "runningCount": count(Status::Running),
                    "pendingCount": count(Status::Pending),
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

impl DeviceJob {
    fn waiting() -> DeviceJob {
        DeviceJob { status: Status::Pending, started: None, ended: None, outcome: None, error: None }
    }
}

fn read(path: &Path) -> Result<Job> {
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&content)
        .with_context(|| format!("{} is no job; remove the file to forget it", path.display()))
}

fn unknown(id: &str) -> HubError {
    HubError::new(Kind::JobNotFound, format!("there is no job {id}"))
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}
