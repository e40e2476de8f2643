//! What a command failed with, as people and scripts are told.

use std::io;

use fwupdate::cli::usage;
use serde_json::Value;

use crate::fields::text;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    /// The hub or the gateway says no.
    #[error("{code}: {message}")]
    Refused { code: String, message: String },
    #[error("{0}")]
    Unreachable(String),
    /// It was tried, and came to nothing.
    #[error("{code}: {message}")]
    Failed { code: String, message: String },
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    pub fn failed(code: &str, message: impl Into<String>) -> Error {
        Error::Failed { code: code.to_owned(), message: message.into() }
    }

    /// The hub's answer to a request that it did not fulfil: `status` and the body of the REST reference.
    pub fn of_hub(status: u16, body: &[u8]) -> Error {
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let told = text(&answer, "/Message").unwrap_or_default();
        // Method calls nest their error as JSON within the message.
        let nested: Value = serde_json::from_str(told).unwrap_or_default();
        let number = nested.get("errorCode").and_then(Value::as_u64);
        let silent = format!("status {status}, without a reason");
        let text = text(&nested, "/message").unwrap_or(told);
        let text = if text.is_empty() { silent.as_str() } else { text };
        match (status, number) {
            (401 | 403, _) => Error::Refused {
                code: "NotPermitted".into(),
                message: format!(
                    "the hub refuses the connection string: check its policy and key, and this machine's clock ({text})"
                ),
            },
            (404, Some(404_103)) => Error::Unreachable(
                "the gateway is not connected to the hub: wait until it is, or give --connect-timeout".into(),
            ),
            (504, Some(504_101)) => Error::Unreachable(
                "the gateway did not answer in time; the method may have run: look with `fwupdate-cloud twin`".into(),
            ),
            (404, _) => Error::failed("NotFound", format!("the hub does not know it: {text}")),
            (400, _) => Error::Usage(format!("the hub finds the request malformed: {text}")),
            (409 | 412, _) => Error::Refused { code: "NotPermitted".into(), message: text.to_owned() },
            (429, _) => Error::Unreachable("the hub throttles requests: try again later".into()),
            (500.., _) => Error::Unreachable(format!("the hub cannot serve this now: try again later ({text})")),
            _ => Error::failed("Internal", format!("the hub does not do it: {text}")),
        }
    }

    /// The gateway's answer to a direct method that it did not accept.
    pub fn of_gateway(status: i64, payload: &Value) -> Error {
        let code = text(payload, "/error/code").unwrap_or("Internal").to_owned();
        let silent = || format!("the gateway answers with status {status}");
        let message = text(payload, "/error/message").map_or_else(silent, str::to_owned);
        match status {
            400 => Error::Usage(format!("{code}: {message}")),
            409 | 412 => Error::Refused { code, message },
            _ => Error::Failed { code, message },
        }
    }

    /// How an operation ended: `fwupdate.last`, which is no success.
    pub fn of_outcome(last: &Value) -> Error {
        let result = text(last, "/result").unwrap_or("unknown");
        let message = text(last, "/error/message").unwrap_or_default();
        let code = text(last, "/error/code").unwrap_or("Internal");
        Error::failed(code, format!("the update ended as {result}: {message}"))
    }

    /// What scripts see: 1 failed, 2 usage, 3 refused, 4 not reached.
    pub fn exit(&self) -> u8 {
        match self {
            Error::Failed { .. } | Error::Output(_) => 1,
            Error::Usage(_) => 2,
            Error::Refused { .. } => 3,
            Error::Unreachable(_) => 4,
        }
    }

    pub fn sentence(&self) -> String {
        usage::error_sentence("fwupdate-cloud", &self.to_string())
    }

    pub fn json(&self) -> String {
        let (code, message) = match self {
            Error::Refused { code, message } | Error::Failed { code, message } => {
                (code.as_str(), message.clone())
            }
            Error::Usage(message) => ("MalformedRequest", message.clone()),
            Error::Unreachable(message) => ("CloudUnreachable", message.clone()),
            Error::Output(_) => ("Internal", self.to_string()),
        };
        usage::error_json(code, &message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_answer_of_the_hub_has_its_exit_code() {
        let nested = |code: u32| json!({"Message": json!({"errorCode": code, "message": "why"}).to_string()});
        for (status, body, exit) in [
            (401, json!({"Message": "ErrorCode:IotHubUnauthorizedAccess;"}), 3),
            (404, nested(404_103), 4),
            (404, nested(404_001), 1),
            (504, nested(504_101), 4),
            (429, json!({}), 4),
            (503, json!("no object"), 4),
            (400, json!({"Message": "ErrorCode:ArgumentInvalid;x"}), 2),
            (418, json!(null), 1),
        ] {
            assert_eq!(Error::of_hub(status, body.to_string().as_bytes()).exit(), exit, "{status} {body}");
        }
        assert_eq!(Error::of_hub(502, b"<html>").exit(), 4);
    }

    #[test]
    fn an_answer_without_a_word_is_told_by_its_number() {
        for status in [301, 400, 401, 403, 404, 409, 412, 413, 500, 502, 504] {
            let told = Error::of_hub(status, b"").sentence();
            assert!(told.contains(&format!("status {status}")) && !told.contains("()"), "{told}");
            assert!(!told.ends_with([':', ' ']), "{told}");
        }
    }

    #[test]
    fn each_answer_of_the_gateway_has_its_exit_code() {
        let body = json!({"error": {"code": "Busy", "message": "another runs"}});
        for (status, exit) in [(400, 2), (409, 3), (412, 3), (404, 1), (503, 1)] {
            assert_eq!(Error::of_gateway(status, &body).exit(), exit, "{status}");
        }
        let json: Value = serde_json::from_str(&Error::of_gateway(409, &body).json()).unwrap();
        assert_eq!(json, body);
    }
}
