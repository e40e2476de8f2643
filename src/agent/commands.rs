//! Commands from the cloud and from `fwupdatectl`: judged by the same rules, answered at once.

use serde_json::{Value, json};

use super::{Agent, doctor};
use crate::command;
use crate::control::{self, Method, Request};
use crate::failure::{Code, Failure};
use crate::fault;
use crate::hub;
use crate::machine::{Event, Extra, Hold, Last, Operation, Origin, Outcome, Phase, Plan, SlotState};
use crate::plan;
use crate::report;
use crate::slot::Slot;
use crate::uri::PackageUri;

/// What a command is answered with.
pub type Answer = Result<Value, Refusal>;

/// A refusal, and the operation that stands in the way.
#[derive(Debug)]
pub struct Refusal {
    failure: Failure,
    running: Option<String>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal { failure, running: None }
    }
}

impl Refusal {
    /// The status of a direct method's answer.
    fn status(&self) -> u16 {
        match self.failure.code {
            Code::MalformedRequest => 400,
            Code::NotFound => 404,
            Code::Busy => 409,
            Code::NotReady | Code::StateUnavailable | Code::BootloaderFailed => 503,
            Code::Internal => 500,
            _ => 412,
        }
    }

    fn body(&self) -> Value {
        let mut error = json!({ "code": self.failure.code, "message": self.failure.message });
        if let (Some(id), Some(fields)) = (&self.running, error.as_object_mut()) {
            fields.insert("operationId".into(), id.as_str().into());
        }
        json!({ "error": error })
    }
}

impl Agent {
    /// A direct method.
    pub(super) async fn method(&mut self, call: hub::MethodCall) {
        let answer = fault::caught(self.answer(&call)).await;
        let answer = self.survived(answer).await;
        let (status, body) = match answer {
            Ok(body) => (200, body),
            Err(refusal) => (refusal.status(), refusal.body()),
        };
        tracing::info!(method = call.name.as_str(), status, "direct method");
        call.respond(status, body);
    }

    async fn answer(&mut self, call: &hub::MethodCall) -> Answer {
        let payload = call.payload.as_ref();
        let payload = payload.map_err(|why| malformed(format!("the payload is no JSON: {why}")))?;
        match call.name.as_str() {
            "firmwareUpdate" => self.update(payload, Origin::Method).await,
            "firmwareStatus" => Ok(Value::Object(self.publisher.body(&self.saved))),
            "firmwareCancel" => self.cancel(payload).await,
            "firmwareApprove" => self.approve(payload, Origin::Method).await,
            "firmwareDefer" => self.defer(payload).await,
            "firmwareRollback" => self.rollback(payload, Origin::Method).await,
            "reboot" => self.plain_reboot(Origin::Method),
            other => Err(unknown(other)),
        }
    }

    /// The answer of what came to its end; what panicked is refused.
    async fn survived(&mut self, answer: Result<Answer, Failure>) -> Answer {
        match answer {
            Ok(answer) => answer,
            Err(failure) => {
                self.recover(failure.clone()).await;
                Err(failure.into())
            }
        }
    }

    /// A request of local control.
    pub(super) async fn control_call(&mut self, call: control::Call) {
        match call.request.method {
            Method::Watch => return self.add_watcher(call.reply),
            Method::Doctor => return doctor::answer(self, call.reply),
            _ => {}
        }
        let answer = fault::caught(self.answer_local(&call.request)).await;
        let answer = self.survived(answer).await;
        call.reply.send(answer.map_err(|refusal| refusal.failure)).await;
    }

    async fn answer_local(&mut self, request: &Request) -> Answer {
        let params = &request.params;
        match request.method {
            Method::Install => self.install(params).await,
            Method::Cancel => self.cancel(params).await,
            Method::Approve => self.approve(params, Origin::Local).await,
            Method::Defer => self.defer(params).await,
            Method::Rollback => self.rollback(params, Origin::Local).await,
            asks => Ok(self.told(asks).unwrap_or_default()),
        }
    }

    /// The answer to what only asks, from what is saved.
    pub(super) fn told(&self, method: Method) -> Option<Value> {
        match method {
            Method::Status => Some(self.status()),
            Method::History => Some(self.history()),
            Method::Slots => Some(self.slots()),
            _ => None,
        }
    }

    fn status(&self) -> Value {
        self.publisher.local(&self.saved)
    }

    /// `install` takes the fields of `firmwareUpdate`, or an absolute path in `file`.
    async fn install(&mut self, params: &Value) -> Answer {
        let Some(file) = params.get("file").and_then(Value::as_str) else {
            return self.update(params, Origin::Local).await;
        };
        let uri = PackageUri::of_file(file).map_err(malformed)?;
        can_be_read(file).await?;
        let mut fields = params.clone();
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("file");
            // Any https URL passes the check of the other fields; the file takes its place.
            fields.insert("fwPackageUri".into(), "https://localhost/".into());
        }
        self.look().await;
        let operation = command::update(&fields, Origin::Local, self.boot.now)?;
        self.accept(Operation { uri, ..operation }).await
    }

    async fn update(&mut self, payload: &Value, source: Origin) -> Answer {
        self.look().await;
        let operation = command::update(payload, source, self.boot.now)?;
        self.accept(operation).await
    }

    /// Starts the operation, or recognises it.
    async fn accept(&mut self, mut operation: Operation) -> Answer {
        if let Some(running) = self.record.phase.operation().cloned() {
            return self.while_running(&running, operation).await;
        }
        if let Some(answer) = self.ended(&operation.id) {
            return Ok(answer);
        }
        self.gateway.permits(&operation)?;
        self.ready().await?;
        if operation.id.is_empty() {
            operation.id = new_id();
        }
        let id = operation.id.clone();
        self.apply(Event::Requested(Box::new(operation))).await;
        match &self.unsaved {
            Some(failure) => Err(failure.clone().into()),
            None => Ok(json!({ "Response": "Firmware update started", "operationId": id })),
        }
    }

    /// A repeated call gets the state of what runs; a fresh token for the same URL is taken over.
    async fn while_running(&mut self, running: &Operation, asked: Operation) -> Answer {
        let same_id = !asked.id.is_empty() && asked.id == running.id;
        let same = same_id || (asked.id.is_empty() && command::same_request(running, &asked));
        if !same {
            let message = format!("operation {} runs; cancel it or wait for its end", running.id);
            let failure = Failure::new(Code::Busy, message);
            return Err(Refusal { failure, running: Some(running.id.clone()) });
        }
        self.renew_token(asked.uri).await;
        Ok(self.state(&running.id))
    }

    /// What a repeated call is answered with while its operation runs.
    fn state(&self, id: &str) -> Value {
        json!({
            "Response": "Firmware update is running",
            "operationId": id,
            "firmwareStatus": report::status(&self.record),
            "phase": self.record.phase.name(),
        })
    }

    /// What it is answered with when its operation ended: the first call may have timed out, and run all the same.
    fn ended(&self, id: &str) -> Option<Value> {
        let last = self.record.history.iter().find(|last| last.id == id && !id.is_empty())?;
        Some(json!({
            "Response": "Firmware update already ended", "operationId": last.id, "last": report::last(last)
        }))
    }

    /// A new token for the package of the running operation is saved, and a fetch under way starts again with it; what
    /// the slot holds is not fetched again.
    pub(super) async fn renew_token(&mut self, uri: PackageUri) {
        if !self.record.phase.can_cancel() || self.is_stopping() {
            return;
        }
        match self.record.phase.operation_mut() {
            Some(running) if running.uri != uri && running.uri.is_same_package(&uri) => running.uri = uri,
            _ => return,
        }
        self.stop_work(Event::Started).await;
    }

    /// Whether an update may start at all.
    pub(super) async fn ready(&mut self) -> Result<(), Failure> {
        self.save_again().await;
        if let Some(failure) = &self.unsaved {
            return Err(failure.clone());
        }
        if self.boot.booted.is_none() || self.boot.env.is_none() {
            let why = self.publisher.view.degraded.clone();
            let why = why.unwrap_or_else(|| "the boot environment is lost".to_owned());
            return Err(Failure::new(Code::NotReady, why));
        }
        let gateway = self.gateway.clone();
        self.aside(move || Ok(gateway.env_ready()?)).await
    }

    async fn cancel(&mut self, payload: &Value) -> Answer {
        let asked = command::operation(payload)?;
        let cancelled = |last: &&Last| last.result == Outcome::Cancelled && Some(&last.id) == asked.as_ref();
        if let Some(answer) = self.record.last().filter(cancelled).and_then(|last| self.ended(&last.id)) {
            return Ok(answer);
        }
        let id = self.meant(asked)?;
        if !self.record.phase.can_cancel() {
            let message = format!("operation {id} is past cancelling: its slot is armed");
            return Err(Refusal { failure: Failure::new(Code::Busy, message), running: Some(id) });
        }
        let ended = self.stop_work(Event::Abandoned(Failure::new(Code::Cancelled, "cancelled by command")));
        let told = match ended.await {
            true => "Firmware update cancelled",
            false => "Firmware update is being cancelled: it ends when the medium lets go of it",
        };
        Ok(json!({ "Response": told, "operationId": id }))
    }

    async fn approve(&mut self, payload: &Value, source: Origin) -> Answer {
        let asked = command::operation(payload)?;
        let allowed = self.gateway.settings.policy.cloud.approve;
        plan::may_ask(source, allowed, "approval", "approve")?;
        if let Some(answer) = asked.as_ref().and_then(|id| self.ended(id)) {
            return Ok(answer);
        }
        let id = self.meant(asked)?;
        if !self.record.phase.can_cancel() {
            return Ok(self.state(&id));
        }
        self.change_hold(id, |hold| Hold { approved: true, ..hold }).await
    }

    async fn defer(&mut self, payload: &Value) -> Answer {
        let (id, until) = command::defer(payload)?;
        let id = self.meant(id)?;
        self.change_hold(id, |hold| Hold { until: Some(until), ..hold }).await
    }

    async fn change_hold(&mut self, id: String, change: impl FnOnce(Hold) -> Hold) -> Answer {
        let Phase::Holding { hold, .. } = self.record.phase.clone() else {
            let message = format!("operation {id} is {}, not holding", self.record.phase.name());
            return Err(Failure::new(Code::NotReady, message).into());
        };
        if self.is_stopping() {
            let message = format!("operation {id} waits for a slow medium; call again");
            return Err(Refusal { failure: Failure::new(Code::Busy, message), running: Some(id) });
        }
        self.stop_work(Event::HoldChanged(change(hold))).await;
        Ok(json!({ "Response": "Hold changed", "operationId": id }))
    }

    /// The running operation, which a given id must name.
    fn meant(&self, id: Option<String>) -> Result<String, Refusal> {
        let running = self.record.phase.operation().map(|operation| operation.id.clone());
        match (running, id) {
            (Some(running), Some(id)) if running != id => {
                let message = format!("operation {running} runs, not {id}");
                Err(Refusal { failure: Failure::new(Code::Busy, message), running: Some(running) })
            }
            (Some(running), _) => Ok(running),
            (None, Some(id)) => Err(self.not_running(&id).into()),
            (None, None) => Err(Failure::new(Code::NotReady, "no operation runs").into()),
        }
    }

    /// Why nothing can be done about an operation while none runs.
    fn not_running(&self, id: &str) -> Failure {
        let message = match self.record.history.iter().any(|last| last.id == id) {
            true => format!("operation {id} has ended already"),
            false => format!("no operation runs, and none of the id {id} is known"),
        };
        Failure::new(Code::NotReady, message)
    }

    /// Back to the other proven slot, by a trial like any other.
    async fn rollback(&mut self, payload: &Value, source: Origin) -> Answer {
        let asked = command::operation(payload)?;
        if let Some(running) = self.record.phase.operation().map(|operation| operation.id.clone()) {
            if asked.as_ref() == Some(&running) {
                return Ok(self.state(&running));
            }
            let failure = Failure::new(Code::Busy, format!("operation {running} runs"));
            return Err(Refusal { failure, running: Some(running) });
        }
        if let Some(answer) = asked.as_ref().and_then(|id| self.ended(id)) {
            return Ok(answer);
        }
        let allowed = self.gateway.settings.policy.cloud.rollback;
        plan::may_ask(source, allowed, "a rollback", "rollback")?;
        self.look().await;
        self.ready().await?;
        let booted = self.boot.booted.ok_or_else(|| Failure::new(Code::NotReady, "no slot is known"))?;
        let operation = Operation {
            id: asked.unwrap_or_else(new_id),
            version: self.record.slots.get(!booted).version.clone(),
            source,
            started_at: Some(self.boot.now),
            ..Operation::default()
        };
        let id = operation.id.clone();
        let plan = self.rollback_plan(operation, !booted)?;
        self.apply(Event::RollbackRequested(Box::new(plan))).await;
        match &self.unsaved {
            Some(failure) => Err(failure.clone().into()),
            None => Ok(json!({ "Response": "Rollback started", "operationId": id })),
        }
    }

    fn rollback_plan(&self, operation: Operation, target: Slot) -> Result<Plan, Failure> {
        let info = self.record.slots.get(target);
        if info.state != SlotState::Proven {
            let message = format!("slot {target} holds nothing that was ever proven here");
            return Err(Failure::new(Code::NotPermitted, message));
        }
        let image = info.image.clone();
        let floor = self.record.floor.max(self.os.security_version);
        if image.as_ref().map_or(0, |image| image.security_version) < floor {
            let message = format!("slot {target} is below the security floor {floor}");
            return Err(Failure::new(Code::Downgrade, message));
        }
        let running = self.record.slots.get(!target).image.as_ref().map(|image| image.version.clone());
        Ok(Plan {
            operation,
            target,
            image,
            from_version: running.or_else(|| self.publisher.view.booted_version.clone()),
            tries: self.gateway.settings.bootloader.tries,
            rewrite: false,
            extra: Extra::new(),
        })
    }

    fn plain_reboot(&mut self, source: Origin) -> Answer {
        plan::may_ask(source, self.gateway.settings.policy.cloud.reboot, "a reboot", "reboot")?;
        if let Some(running) = self.record.phase.operation().map(|operation| operation.id.clone()) {
            let failure = Failure::new(Code::Busy, format!("operation {running} runs"));
            return Err(Refusal { failure, running: Some(running) });
        }
        self.reboot = true;
        Ok(json!({ "Response": "Reboot started" }))
    }

    fn history(&self) -> Value {
        json!({ "history": self.saved.history.iter().map(report::last).collect::<Vec<_>>() })
    }

    fn slots(&self) -> Value {
        json!({
            "bootedSlot": self.boot.booted.map(|slot| slot.to_string()),
            "slots": report::slots(&self.saved, &self.publisher.view),
        })
    }
}

/// Refuses a local bundle that could never be read. What is no regular file is not even opened: opening some of them
/// blocks, or does something.
async fn can_be_read(file: &str) -> Result<(), Failure> {
    let hint = "the service sees neither /home nor /root, and must be allowed to read the file";
    let unseen = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Forbidden,
        };
        Failure::new(code, format!("the agent cannot read {file} ({error}): {hint}"))
    };
    let found = tokio::fs::metadata(file).await.map_err(unseen)?;
    if !found.is_file() {
        return Err(Failure::new(
            Code::MalformedRequest,
            format!("{file} is no regular file; name a bundle"),
        ));
    }
    tokio::fs::File::open(file).await.map(drop).map_err(unseen)
}

/// An id for an operation whose caller gave none.
pub(super) fn new_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

fn malformed(message: String) -> Refusal {
    Failure::new(Code::MalformedRequest, message).into()
}

fn unknown(name: &str) -> Refusal {
    let name: String = name.chars().take(64).collect();
    let known = "firmwareUpdate, firmwareStatus, firmwareCancel, firmwareApprove, firmwareDefer, \
                 firmwareRollback, reboot";
    Failure::new(Code::NotFound, format!("unknown method {name:?}; known are {known}")).into()
}
