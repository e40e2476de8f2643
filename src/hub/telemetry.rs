//! Device-to-cloud messages, one after the other: the next is sent when the hub has acknowledged the last.
//!
//! They wait in a channel of their own while there is no session, and a message that was cut off is sent again: at
//! least once, as long as the process lives. Reports of the twin never wait for them.

use percent_encoding::utf8_percent_encode;
use serde_json::Value;
use tokio::sync::mpsc;

use super::identity::ENCODED;

/// One message for the back end, as JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The same for each copy of a message, so that a receiver can tell it came twice; at most 128 characters.
    pub id: String,
    /// What it belongs to.
    pub correlation: String,
    /// Application properties, by which the hub's routes select.
    pub properties: Vec<(&'static str, String)>,
    pub body: Value,
}

impl Message {
    /// The topic `devices/{id}/messages/events/` and the properties in it. `$.ct` and `$.ce` make the body readable
    /// to routes.
    pub(super) fn topic(&self, resource: &str) -> String {
        let system = [
            ("$.mid", self.id.as_str()),
            ("$.cid", self.correlation.as_str()),
            ("$.ct", "application/json"),
            ("$.ce", "utf-8"),
        ];
        let own = self.properties.iter().map(|(key, value)| (*key, value.as_str()));
        let encoded = |text| utf8_percent_encode(text, ENCODED);
        let pairs: Vec<_> = system
            .into_iter()
            .chain(own)
            .map(|(key, value)| format!("{}={}", encoded(key), encoded(value)))
            .collect();
        format!("{resource}/messages/events/{}", pairs.join("&"))
    }
}

/// What waits for the hub.
#[derive(Debug)]
pub(super) struct Telemetry {
    waiting: mpsc::Receiver<Message>,
    closed: bool,
    next: Option<Message>,
    in_flight: bool,
}

impl Telemetry {
    pub fn new(waiting: mpsc::Receiver<Message>) -> Telemetry {
        Telemetry { waiting, closed: false, next: None, in_flight: false }
    }

    /// The message to send now; it counts as sent.
    pub fn take(&mut self) -> Option<&Message> {
        if self.in_flight {
            return None;
        }
        self.next = self.next.take().or_else(|| self.waiting.try_recv().ok());
        self.in_flight = self.next.is_some();
        self.next.as_ref()
    }

    /// Waits until there is a message to send; for ever, if none will come. Nothing is lost when it is cancelled.
    pub async fn filled(&mut self) {
        if self.next.is_some() || self.closed {
            std::future::pending::<()>().await;
        }
        self.next = self.waiting.recv().await;
        self.closed = self.next.is_none();
    }

    pub fn acknowledged(&mut self) {
        self.next = None;
        self.in_flight = false;
    }

    /// Whether the message under way arrived is not known: it is sent again.
    pub fn disconnected(&mut self) {
        self.in_flight = false;
    }

    pub fn is_empty(&self) -> bool {
        self.next.is_none() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(id: &str) -> Message {
        let properties = vec![("event", "rolled back & co".to_owned())];
        Message { id: id.into(), correlation: "op/1".into(), properties, body: json!({}) }
    }

    #[test]
    fn properties_are_encoded_so_that_routes_can_read_them() {
        let topic = "devices/gw/messages/events/%24.mid=m&%24.cid=op%2F1&%24.ct=application%2Fjson&%24.ce=utf-8\
                     &event=rolled%20back%20%26%20co";
        assert_eq!(message("m").topic("devices/gw"), topic);
    }

    #[tokio::test]
    async fn one_at_a_time_and_again_after_a_lost_connection() {
        let (sender, receiver) = mpsc::channel(4);
        let mut telemetry = Telemetry::new(receiver);
        assert_eq!(telemetry.take(), None);
        for id in ["1", "2"] {
            sender.try_send(message(id)).unwrap();
        }
        telemetry.filled().await;
        assert_eq!(telemetry.take().unwrap().id, "1");
        assert_eq!(telemetry.take(), None, "the first is under way");
        telemetry.disconnected();
        assert_eq!(telemetry.take().unwrap().id, "1");
        telemetry.acknowledged();
        assert_eq!(telemetry.take().unwrap().id, "2");
        assert!(!telemetry.is_empty());
        telemetry.acknowledged();
        assert!(telemetry.is_empty());
    }
}
