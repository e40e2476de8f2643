//! What a command is answered with when it is refused, as a direct method's status and body, and for local control.

use serde_json::{Value, json};

use crate::failure::{Code, Failure};

/// What a command is answered with.
pub type CallResult = Result<Value, Refusal>;

/// A refusal, and the operation that stands in the way.
#[derive(Debug)]
pub struct Refusal {
    pub failure: Failure,
    running: Option<String>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal { failure, running: None }
    }
}

impl Refusal {
    /// The operation `running` stands in the way.
    pub fn busy(running: &str, message: String) -> Refusal {
        Refusal { failure: Failure::new(Code::Busy, message), running: Some(running.to_owned()) }
    }

    pub fn malformed(message: String) -> Refusal {
        Failure::new(Code::MalformedRequest, message).into()
    }

    pub fn unknown(name: &str) -> Refusal {
        let name: String = name.chars().take(64).collect();
        let known = "firmwareUpdate, firmwareStatus, firmwareCancel, firmwareApprove, firmwareDefer, \
                     firmwareRollback, reboot";
        Failure::new(Code::NotFound, format!("unknown method {name:?}; known are {known}")).into()
    }

    /// The status of a direct method's answer.
    pub fn status(&self) -> u16 {
        match self.failure.code {
            Code::MalformedRequest => 400,
            Code::NotFound => 404,
            Code::Busy => 409,
            Code::NotReady | Code::StateUnavailable | Code::BootloaderFailed => 503,
            Code::Internal => 500,
            _ => 412,
        }
    }

    pub fn body(&self) -> Value {
        let mut error = json!({ "code": self.failure.code, "message": self.failure.message });
        if let (Some(id), Some(fields)) = (&self.running, error.as_object_mut()) {
            fields.insert("operationId".into(), id.as_str().into());
        }
        json!({ "error": error })
    }
}
