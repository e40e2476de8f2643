//! Runs jobs: each waits for its time, selects its devices, and serves them a few at once.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is absent")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{DeviceJob, Job, Status, text};
use crate::clock;
use crate::core::{Core, Write};
use crate::error::{HubError, Kind};
use crate::methods::{self, Call};
use crate::query::Query;
use crate::registry::Identity;

/// Devices that are served at once: IoT Hub allows ten job operations a second.
const AT_ONCE: usize = 10;
const LONGEST: u64 = 48 * 3600;
/// How long a device may take to come back to a hub that restarted in the middle of a job.
const RETURN: Duration = Duration::from_secs(60);

/// What is done to each device.
#[derive(Debug, Clone)]
enum Work {
    Method(Call),
    Twin(Value),
}

/// What an order asks for.
#[derive(Debug, Clone)]
struct Task {
    condition: Query,
    work: Work,
    longest: Duration,
}

/// Takes a job up and lets it run; `order` is the request's body.
pub fn create(core: &Arc<Core>, id: &str, order: Value) -> Result<Value, HubError> {
    let job = read(id, order)?;
    let (shown, cancel) = (job.shown(), job.cancel.clone());
    core.jobs.insert(id, job)?;
    spawn(core, id, cancel);
    Ok(shown)
}

/// Goes on with every job that the last run of the hub left unfinished.
pub fn resume(core: &Arc<Core>) {
    for id in core.jobs.unfinished() {
        if let Some(cancel) = core.jobs.with(&id, |job| job.cancel.clone()) {
            spawn(core, &id, cancel);
        }
    }
}

fn spawn(core: &Arc<Core>, id: &str, cancel: CancellationToken) {
    let (running, id) = (core.clone(), id.to_owned());
    let task = async move {
        if let Err(error) = perform(&running, &id).await {
            tracing::warn!(id, "the job failed: {error}");
            running.jobs.with(&id, |job| job.end(Status::Failed));
        }
    };
    core.tasks.spawn(cancel.run_until_cancelled_owned(task).map(drop));
}

async fn perform(core: &Arc<Core>, id: &str) -> Result<(), HubError> {
    let Some((begins, task)) = core.jobs.with(id, |job| (job.begins(), Task::read(&job.order))) else {
        return Ok(());
    };
    let task = task?;
    let wait = begins - OffsetDateTime::now_utc();
    tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
    let left = begins + task.longest - OffsetDateTime::now_utc();
    let served = timeout(Duration::try_from(left).unwrap_or_default(), serve_all(core, id, &task)).await;
    let status = if matches!(served, Ok(Ok(()))) { Status::Completed } else { Status::Failed };
    core.jobs.with(id, |job| job.end(status));
    Ok(())
}

fn read(id: &str, mut order: Value) -> Result<Job, HubError> {
    let Task { longest, .. } = Task::read(&order)?;
    let now = OffsetDateTime::now_utc();
    let starts = match text(&order, "startTime").filter(|time| !time.is_empty()) {
        None => now,
        Some(time) => {
            OffsetDateTime::parse(time, &Rfc3339).map_err(|why| invalid(format!("startTime: {why}")))?
        }
    };
    if let Some(fields) = order.as_object_mut() {
        fields.insert("jobId".into(), id.into());
        fields.insert("maxExecutionTimeInSeconds".into(), longest.as_secs().into());
    }
    Ok(Job {
        order,
        starts: starts.format(&Rfc3339).unwrap_or_default(),
        status: if starts > now { Status::Scheduled } else { Status::Queued },
        created: clock::now(),
        ended: None,
        devices: BTreeMap::new(),
        cancel: CancellationToken::new(),
    })
}

impl Task {
    fn read(order: &Value) -> Result<Task, HubError> {
        let condition = Query::of_condition(text(order, "queryCondition").unwrap_or("*"));
        let work = match text(order, "type") {
            Some("scheduleDeviceMethod") => Work::Method(Call::read(&order["cloudToDeviceMethod"])?),
            Some("scheduleUpdateTwin") => Work::Twin(twin_update(&order["updateTwin"])),
            _ => return Err(invalid("type must be scheduleDeviceMethod or scheduleUpdateTwin")),
        };
        let longest = order["maxExecutionTimeInSeconds"].as_u64().unwrap_or(3600);
        if !order["maxExecutionTimeInSeconds"].is_null() && !(1..=LONGEST).contains(&longest) {
            return Err(invalid(format!("maxExecutionTimeInSeconds must be within [1; {LONGEST}]")));
        }
        let condition = condition.map_err(|why| invalid(why.to_string()))?;
        Ok(Task { condition, work, longest: Duration::from_secs(longest) })
    }
}

/// Tags and desired properties of a whole twin document; the rest of it is not a service's to write.
fn twin_update(twin: &Value) -> Value {
    let parts = ["tags", "properties"].into_iter();
    let given = parts.filter(|part| !twin[part].is_null()).map(|part| (part.to_owned(), twin[part].clone()));
    given.collect::<Map<_, _>>().into()
}

/// Selects the devices, unless an earlier run did, and serves those that have not had their turn.
async fn serve_all(core: &Core, id: &str, task: &Task) -> Result<(), HubError> {
    let mut task = task.clone();
    let selected: Vec<String> = core.rows(&task.condition)?.into_iter().map(|(device, _)| device).collect();
    let begun = core.jobs.with(id, |job| {
        if job.status != Status::Running {
            job.devices = selected.into_iter().map(|device| (device, DeviceJob::waiting())).collect();
        } else if let Work::Method(call) = &mut task.work {
            call.connect_timeout = call.connect_timeout.max(RETURN);
        }
        job.status = Status::Running;
        let waiting = job.devices.iter().filter(|(_, part)| part.ended.is_none());
        waiting.map(|(device, _)| device.clone()).collect::<Vec<_>>()
    });
    let work = &task.work;
    stream::iter(begun.unwrap_or_default())
        .for_each_concurrent(AT_ONCE, |device| async move { serve(core, id, &device, work).await })
        .await;
    Ok(())
}

async fn serve(core: &Core, id: &str, device: &str, work: &Work) {
    let change = |change: &dyn Fn(&mut DeviceJob)| {
        core.jobs.with(id, |job| job.devices.get_mut(device).map(change));
    };
    change(&|part| (part.status, part.started) = (Status::Running, Some(clock::now())));
    let identity = Identity::device(device);
    let done = match work {
        Work::Method(call) => methods::invoke(core, &identity, call.clone()).await.map(
            |answer| json!({"deviceMethodResponse": {"status": answer.status, "payload": answer.payload}}),
        ),
        Work::Twin(update) => core.write_twin(&identity, update, Write::Patch, None).map(|_| json!({})),
    };
    change(&|part| {
        part.ended = Some(clock::now());
        match &done {
            Ok(outcome) => (part.status, part.outcome) = (Status::Completed, Some(outcome.clone())),
            Err(error) => {
                let (_, code, _) = error.kind.parts();
                let told = json!({"code": code.to_string(), "description": error.message});
                (part.status, part.error) = (Status::Failed, Some(told));
            }
        }
    });
}

fn invalid(message: impl Into<String>) -> HubError {
    HubError::new(Kind::ArgumentInvalid, message)
}
