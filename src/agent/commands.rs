//! Commands from the cloud and from `fwupdatectl`: judged by the same rules, answered at once.

use serde_json::{Value, json};

use super::doctor::{self, Live};
use super::driver::Agent;
use super::refusal::{CallResult, Refusal};
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

impl Agent {
    pub(super) async fn method(&mut self, call: hub::MethodCall) {
        let answer = fault::caught(self.answer(&call)).await;
        let answer = self.recover(answer).await.unwrap_or_else(|failure| Err(failure.into()));
        let (status, body) = match answer {
            Ok(body) => (200, body),
            Err(refusal) => (refusal.status(), refusal.body()),
        };
        tracing::info!(method = call.name.as_str(), status, "direct method");
        call.respond(status, body);
    }

    async fn answer(&mut self, call: &hub::MethodCall) -> CallResult {
        let payload = call.payload.as_ref();
        let payload = payload.map_err(|why| Refusal::malformed(format!("the payload is no JSON: {why}")))?;
        match call.name.as_str() {
            "firmwareUpdate" => self.update(payload, Origin::Method).await,
            "firmwareCancel" => self.cancel(payload).await,
            "firmwareApprove" => self.approve(payload, Origin::Method).await,
            "firmwareDefer" => self.defer(payload).await,
            "firmwareRollback" => self.rollback(payload, Origin::Method).await,
            "reboot" => self.plain_reboot(Origin::Method),
            other => Err(Refusal::unknown(other)),
        }
    }

    pub(super) async fn control_call(&mut self, call: control::Call) {
        if call.request.method == Method::Doctor {
            return self.examine(call.reply);
        }
        let answer = fault::caught(self.answer_local(&call.request)).await;
        let answer = self.recover(answer).await.unwrap_or_else(|failure| Err(failure.into()));
        call.reply.send(answer.map_err(|refusal| refusal.failure)).await;
    }

    async fn answer_local(&mut self, request: &Request) -> CallResult {
        let params = &request.params;
        match request.method {
            Method::Install => self.install(params).await,
            Method::Cancel => self.cancel(params).await,
            Method::Approve => self.approve(params, Origin::Local).await,
            Method::Defer => self.defer(params).await,
            Method::Rollback => self.rollback(params, Origin::Local).await,
            other => Err(Refusal::unknown(&format!("{other:?}"))),
        }
    }

    fn examine(&self, reply: control::Reply) {
        let unsaved = self.ledger.unsaved().map(|failure| failure.message.clone());
        let live = Live { unsaved, no_session: self.no_session.clone() };
        let (record, held) = (self.ledger.record().clone(), self.workshop.holds_slot());
        doctor::answer(self.gateway.clone(), record, held, live, reply);
    }

    /// `install` takes the fields of `firmwareUpdate`, or an absolute path in `file`.
    async fn install(&mut self, params: &Value) -> CallResult {
        let Some(file) = params.get("file").and_then(Value::as_str) else {
            return self.update(params, Origin::Local).await;
        };
        let uri = PackageUri::of_file(file).map_err(Refusal::malformed)?;
        let path = file.to_owned();
        self.aside(move || can_be_read(&path)).await?;
        let mut fields = params.clone();
        if let Some(fields) = fields.as_object_mut() {
            fields.remove("file");
            // Any https URL passes the check of the other fields; the file takes its place.
            fields.insert("fwPackageUri".into(), "https://localhost/".into());
        }
        self.look().await;
        let operation = command::update(&fields, Origin::Local, self.sight.boot.now)?;
        self.accept(Operation { uri, ..operation }).await
    }

    async fn update(&mut self, payload: &Value, source: Origin) -> CallResult {
        self.look().await;
        let operation = command::update(payload, source, self.sight.boot.now)?;
        self.accept(operation).await
    }

    /// Starts the operation, or recognises it.
    async fn accept(&mut self, mut operation: Operation) -> CallResult {
        if let Some(running) = self.ledger.record().phase.operation().cloned() {
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
        self.started("Firmware update started", &id)
    }

    /// What began was saved, or nothing began.
    fn started(&self, told: &str, id: &str) -> CallResult {
        self.ledger.unsaved().cloned().map_or(Ok(()), Err)?;
        Ok(json!({ "Response": told, "operationId": id }))
    }

    /// A repeated call gets the state of what runs; a fresh token for the same URL is taken over.
    async fn while_running(&mut self, running: &Operation, asked: Operation) -> CallResult {
        let same_id = !asked.id.is_empty() && asked.id == running.id;
        let same = same_id || (asked.id.is_empty() && command::same_request(running, &asked));
        if !same {
            let message = format!("operation {} runs; cancel it or wait for its end", running.id);
            return Err(Refusal::busy(&running.id, message));
        }
        self.renew_token(asked.uri).await;
        Ok(self.state(&running.id))
    }

    /// What a repeated call is answered with while its operation runs.
    fn state(&self, id: &str) -> Value {
        json!({
            "Response": "Firmware update is running",
            "operationId": id,
            "firmwareStatus": report::status(self.ledger.record()),
            "phase": self.ledger.record().phase.name(),
        })
    }

    /// What it is answered with when its operation ended: the first call may have timed out, and run all the same.
    fn ended(&self, id: &str) -> Option<Value> {
        let last = self.ledger.record().history.iter().find(|last| last.id == id && !id.is_empty())?;
        Some(json!({
            "Response": "Firmware update already ended", "operationId": last.id, "last": report::last(last)
        }))
    }

    /// A new token for the package of the running operation is saved, and a fetch under way starts again with it; what
    /// the slot holds is not fetched again.
    pub(super) async fn renew_token(&mut self, uri: PackageUri) {
        if self.ledger.record().phase.can_cancel()
            && !self.workshop.is_stopping()
            && self.ledger.renew_token(uri)
        {
            self.stop_work(Event::Started).await;
        }
    }

    /// Whether an update may start at all.
    pub(super) async fn ready(&mut self) -> Result<(), Failure> {
        self.save_again().await;
        self.ledger.unsaved().cloned().map_or(Ok(()), Err)?;
        if self.sight.boot.booted.is_none() || self.sight.boot.env.is_none() {
            let why = self.sight.degraded.clone().or_else(|| self.lost()).unwrap_or_default();
            return Err(Failure::new(Code::NotReady, why));
        }
        let gateway = self.gateway.clone();
        self.aside(move || Ok(gateway.env_ready()?)).await
    }

    async fn cancel(&mut self, payload: &Value) -> CallResult {
        let asked = command::operation(payload)?;
        let cancelled = |last: &&Last| last.result == Outcome::Cancelled && Some(&last.id) == asked.as_ref();
        if let Some(answer) =
            self.ledger.record().last().filter(cancelled).and_then(|last| self.ended(&last.id))
        {
            return Ok(answer);
        }
        let id = self.meant(asked)?;
        if !self.ledger.record().phase.can_cancel() {
            let message = format!("operation {id} is past cancelling: its slot is armed");
            return Err(Refusal::busy(&id, message));
        }
        let ended = self.stop_work(Event::Abandoned(Failure::new(Code::Cancelled, "cancelled by command")));
        let told = match ended.await {
            true => "Firmware update cancelled",
            false => "Firmware update is being cancelled: it ends when the medium lets go of it",
        };
        Ok(json!({ "Response": told, "operationId": id }))
    }

    async fn approve(&mut self, payload: &Value, source: Origin) -> CallResult {
        let asked = command::operation(payload)?;
        let allowed = self.gateway.settings.policy.cloud.approve;
        plan::may_ask(source, allowed, "approval", "approve")?;
        if let Some(answer) = asked.as_ref().and_then(|id| self.ended(id)) {
            return Ok(answer);
        }
        let id = self.meant(asked)?;
        if !self.ledger.record().phase.can_cancel() {
            return Ok(self.state(&id));
        }
        self.change_hold(id, |hold| Hold { approved: true, ..hold }).await
    }

    async fn defer(&mut self, payload: &Value) -> CallResult {
        let (id, until) = command::defer(payload)?;
        let id = self.meant(id)?;
        self.change_hold(id, |hold| Hold { until: Some(until), ..hold }).await
    }

    async fn change_hold(&mut self, id: String, change: impl FnOnce(Hold) -> Hold) -> CallResult {
        let Phase::Holding { hold, .. } = self.ledger.record().phase.clone() else {
            let message = format!("operation {id} is {}, not holding", self.ledger.record().phase.name());
            return Err(Failure::new(Code::NotReady, message).into());
        };
        if self.workshop.is_stopping() {
            let message = format!("operation {id} waits for a slow medium; call again");
            return Err(Refusal::busy(&id, message));
        }
        self.stop_work(Event::HoldChanged(change(hold))).await;
        Ok(json!({ "Response": "Hold changed", "operationId": id }))
    }

    fn running_id(&self) -> Option<&str> {
        self.ledger.record().phase.operation().map(|operation| operation.id.as_str())
    }

    /// Refuses what can only be done while nothing runs.
    fn idle(&self) -> Result<(), Refusal> {
        self.running_id().map_or(Ok(()), |id| Err(Refusal::busy(id, format!("operation {id} runs"))))
    }

    /// The running operation, which a given id must name.
    fn meant(&self, id: Option<String>) -> Result<String, Refusal> {
        match (self.running_id(), id) {
            (Some(running), Some(id)) if running != id => {
                Err(Refusal::busy(running, format!("operation {running} runs, not {id}")))
            }
            (Some(running), _) => Ok(running.to_owned()),
            (None, Some(id)) => Err(self.not_running(&id).into()),
            (None, None) => Err(Failure::new(Code::NotReady, "no operation runs").into()),
        }
    }

    /// Why nothing can be done about an operation while none runs.
    fn not_running(&self, id: &str) -> Failure {
        let message = match self.ledger.record().history.iter().any(|last| last.id == id) {
            true => format!("operation {id} has ended already"),
            false => format!("no operation runs, and none of the id {id} is known"),
        };
        Failure::new(Code::NotReady, message)
    }

    /// Back to the other proven slot, by a trial like any other.
    async fn rollback(&mut self, payload: &Value, source: Origin) -> CallResult {
        let asked = command::operation(payload)?;
        if let Some(id) = asked.as_ref().filter(|id| self.running_id() == Some(id.as_str())) {
            return Ok(self.state(id));
        }
        self.idle()?;
        if let Some(answer) = asked.as_ref().and_then(|id| self.ended(id)) {
            return Ok(answer);
        }
        let allowed = self.gateway.settings.policy.cloud.rollback;
        plan::may_ask(source, allowed, "a rollback", "rollback")?;
        self.look().await;
        self.ready().await?;
        let booted =
            self.sight.boot.booted.ok_or_else(|| Failure::new(Code::NotReady, "no slot is known"))?;
        let operation = Operation {
            id: asked.unwrap_or_else(new_id),
            version: self.ledger.record().slots.get(!booted).version.clone(),
            source,
            started_at: Some(self.sight.boot.now),
            ..Operation::default()
        };
        let id = operation.id.clone();
        let plan = self.rollback_plan(operation, !booted)?;
        self.apply(Event::RollbackRequested(Box::new(plan))).await;
        self.started("Rollback started", &id)
    }

    fn rollback_plan(&self, operation: Operation, target: Slot) -> Result<Plan, Failure> {
        let info = self.ledger.record().slots.get(target);
        if info.state != SlotState::Proven {
            let message = format!("slot {target} holds nothing that was ever proven here");
            return Err(Failure::new(Code::NotPermitted, message));
        }
        let image = info.image.clone();
        let floor = self.ledger.record().floor.max(self.sight.os.security_version);
        if image.as_ref().map_or(0, |image| image.security_version) < floor {
            let message = format!("slot {target} is below the security floor {floor}");
            return Err(Failure::new(Code::Downgrade, message));
        }
        let running =
            self.ledger.record().slots.get(!target).image.as_ref().map(|image| image.version.clone());
        Ok(Plan {
            operation,
            target,
            image,
            from_version: running.or_else(|| self.sight.os.version.clone()),
            tries: self.gateway.settings.bootloader.tries,
            rewrite: false,
            extra: Extra::new(),
        })
    }

    fn plain_reboot(&mut self, source: Origin) -> CallResult {
        plan::may_ask(source, self.gateway.settings.policy.cloud.reboot, "a reboot", "reboot")?;
        self.idle()?;
        self.reboot = true;
        Ok(json!({ "Response": "Reboot started" }))
    }
}

/// Refuses a local bundle that could never be read. What is no regular file is not even opened: opening some of them
/// blocks, or does something.
fn can_be_read(file: &str) -> Result<(), Failure> {
    let hint = "the service sees neither /home nor /root, and must be allowed to read the file";
    let unseen = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Forbidden,
        };
        Failure::new(code, format!("the agent cannot read {file} ({error}): {hint}"))
    };
    let found = std::fs::metadata(file).map_err(unseen)?;
    if !found.is_file() {
        return Err(Failure::new(
            Code::MalformedRequest,
            format!("{file} is no regular file; name a bundle"),
        ));
    }
    std::fs::File::open(file).map(drop).map_err(unseen)
}

/// An id for an operation whose caller gave none.
pub(super) fn new_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}
