//! A direct method call and the way back to its caller.

use serde_json::Value;
use tokio::sync::mpsc;

/// The hub's limit for the payload of an answer.
const ANSWER_LIMIT: usize = 128 * 1024;

/// A call that waits for its answer. The hub may deliver a call twice, and gives up after the caller's
/// timeout, so handlers should be idempotent and quick.
#[derive(Debug)]
pub struct MethodCall {
    pub name: String,
    /// The JSON that came, null if the body was empty; or why it is no JSON.
    pub payload: Result<Value, String>,
    rid: String,
    replies: mpsc::UnboundedSender<MethodReply>,
}

/// An answer on its way to the hub.
#[derive(Debug)]
pub(super) struct MethodReply {
    pub rid: String,
    pub status: u16,
    pub body: Vec<u8>,
}

impl MethodCall {
    pub(super) fn new(
        name: String,
        rid: &str,
        body: &[u8],
        replies: mpsc::UnboundedSender<MethodReply>,
    ) -> Self {
        let payload = if body.iter().all(u8::is_ascii_whitespace) {
            Ok(Value::Null)
        } else {
            serde_json::from_slice(body).map_err(|error| error.to_string())
        };
        MethodCall { name, payload, rid: rid.to_owned(), replies }
    }

    /// Answers with an HTTP-like status. If the connection that brought the call is gone, so is the answer.
    pub fn respond(self, status: u16, body: Value) {
        let mut body = body.to_string().into_bytes();
        let mut status = status;
        if body.len() > ANSWER_LIMIT {
            tracing::error!(
                "the answer to {} has {} bytes, more than the hub carries",
                self.name,
                body.len()
            );
            body =
                br#"{"error":{"code":"Internal","message":"the answer is too large for the hub"}}"#.to_vec();
            status = 500;
        }
        if self.replies.send(MethodReply { rid: self.rid, status, body }).is_err() {
            tracing::debug!("the caller of {} is gone: the connection ended", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(body: &[u8]) -> (MethodCall, mpsc::UnboundedReceiver<MethodReply>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (MethodCall::new("m".into(), "7f", body, sender), receiver)
    }

    #[test]
    fn the_payload_is_json_or_null_or_the_reason_why_not() {
        assert_eq!(call(br#"{"a":1}"#).0.payload, Ok(json!({"a": 1})));
        assert_eq!(call(b"").0.payload, Ok(Value::Null));
        assert_eq!(call(b" \n").0.payload, Ok(Value::Null));
        assert!(call(b"{\"a\":").0.payload.unwrap_err().contains("EOF"));
    }

    #[test]
    fn an_answer_carries_the_request_id_and_fits_the_hub() {
        let (first, mut replies) = call(b"");
        first.respond(409, json!({"x": 1}));
        let reply = replies.try_recv().unwrap();
        assert_eq!((reply.rid.as_str(), reply.status, reply.body), ("7f", 409, br#"{"x":1}"#.to_vec()));

        let (second, mut replies) = call(b"");
        second.respond(200, Value::String("x".repeat(ANSWER_LIMIT)));
        assert_eq!(replies.try_recv().unwrap().status, 500);

        let (third, replies) = call(b"");
        drop(replies);
        third.respond(200, Value::Null);
    }
}
