//! Follows one update in a gateway's twin, through its reboots, to the outcome.

use std::io::Write;
use std::time::{Duration, Instant};

use fwupdate::cli::screen::{Screen, Style};
use serde_json::Value;

use crate::error::Error;
use crate::fields::text;
use crate::patience::LIMIT;
use crate::service::Service;

/// Between two looks at the twin: one read of a hub's hundred a second.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct DeviceWatch<'a> {
    pub service: &'a Service,
    pub device: &'a str,
    pub style: Style,
    pub start: Start,
}

/// Whether the twin must tell of the operation already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It was accepted just now, and is told soon.
    Awaited,
    /// Somebody names it.
    Found,
}

/// What a twin says of the operation that is followed.
#[derive(Debug, PartialEq)]
enum OperationState {
    Running,
    Ended(Value),
    /// It is not there (yet).
    Absent,
}

impl DeviceWatch<'_> {
    /// Shows progress until the operation is over; its `fwupdate.last`. Without `id`: the operation that runs,
    /// else the last one.
    pub async fn until_done(&self, id: Option<String>, out: &mut impl Write) -> Result<Value, Error> {
        let mut screen = Screen::new(self.style);
        let (mut id, mut seen, mut quiet) = (id, false, Instant::now());
        let mut looks = 0;
        loop {
            match self.service.twin(self.device).await {
                Err(Error::Unreachable(why)) if quiet.elapsed() < LIMIT => screen.note(&why, out)?,
                Err(error) => return Err(error),
                Ok(twin) => {
                    let reported = twin.pointer("/properties/reported").unwrap_or(&Value::Null);
                    let followed = id.get_or_insert_with(|| newest(reported)).clone();
                    match state(reported, &followed) {
                        OperationState::Ended(last) => {
                            screen.finish(&last, out)?;
                            return Ok(last);
                        }
                        OperationState::Running => {
                            (seen, quiet) = (true, Instant::now());
                            screen.draw(reported, remark(&twin), out)?;
                        }
                        OperationState::Absent if seen || quiet.elapsed() >= LIMIT => {
                            return Err(Error::failed("NotFound", lost(self.device, &followed)));
                        }
                        OperationState::Absent if followed.is_empty() => {
                            return Err(Error::failed("NotFound", nothing(self.device)));
                        }
                        // A report may be on its way: once more.
                        OperationState::Absent if self.start == Start::Found && looks > 0 => {
                            return Err(Error::failed("NotFound", unknown(self.device, &followed, reported)));
                        }
                        OperationState::Absent => looks += 1,
                    }
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// A gateway that is away reports nothing.
fn remark(twin: &Value) -> &'static str {
    match text(twin, "/connectionState") {
        Some("Disconnected") => " (not connected)",
        _ => "",
    }
}

/// The operation that runs, else the one that ended last; empty when there is none.
fn newest(reported: &Value) -> String {
    let id = text(reported, "/fwupdate/operation/id").or(text(reported, "/fwupdate/last/id"));
    id.unwrap_or_default().to_owned()
}

fn state(reported: &Value, id: &str) -> OperationState {
    let at = |place: &str| reported.pointer(place).filter(|found| text(found, "/id") == Some(id));
    match (at("/fwupdate/operation"), at("/fwupdate/last")) {
        (Some(_), _) => OperationState::Running,
        (None, Some(last)) => OperationState::Ended(last.clone()),
        (None, None) => OperationState::Absent,
    }
}

fn lost(device: &str, id: &str) -> String {
    format!(
        "the twin of {device} no longer tells of operation {id}; look with `fwupdate-cloud twin {device}`"
    )
}

fn unknown(device: &str, id: &str, reported: &Value) -> String {
    let newest = newest(reported);
    let known =
        if newest.is_empty() { "no operation".to_owned() } else { format!("operation {newest} alone") };
    format!("{device} tells of {known}, not of {id}: check the id, or leave it out")
}

fn nothing(device: &str) -> String {
    format!("{device} never reported an update: start one with `fwupdate-cloud invoke`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_operation_is_found_running_then_ended() {
        let twin = json!({"fwupdate": {"operation": {"id": "b"}, "last": {"id": "a", "result": "failed"}}});
        assert_eq!(newest(&twin), "b");
        assert_eq!(state(&twin, "b"), OperationState::Running);
        assert_eq!(state(&twin, "a"), OperationState::Ended(json!({"id": "a", "result": "failed"})));
        assert_eq!(state(&twin, "c"), OperationState::Absent);
        let rest = json!({"fwupdate": {"last": {"id": "a"}}});
        assert_eq!(newest(&rest), "a");
        assert_eq!(newest(&json!({})), "");
    }
}
