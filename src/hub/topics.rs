//! The hub's topics: what we subscribe to, what we publish to, and how its messages are read.
//!
//! Shapes as in Microsoft's "Communicate with an IoT hub using the MQTT protocol". Request ids are opaque and
//! go back exactly as they came.

use percent_encoding::percent_decode_str;

use crate::config::Seat;

/// Everything that the agent needs to hear, and no more: the hub allows five subscriptions.
pub(super) const SUBSCRIPTIONS: [&str; 3] =
    ["$iothub/methods/POST/#", "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#"];

/// What a message from the hub is, by its topic.
#[derive(Debug, PartialEq, Eq)]
pub enum TopicMessage<'a> {
    Method { name: String, rid: &'a str },
    Response { status: u16, rid: &'a str },
    Desired { version: u64 },
}

/// `None`: no topic that the hub documents for us.
pub fn parse(topic: &str) -> Option<TopicMessage<'_>> {
    let (path, query) = topic.rsplit_once("/?")?;
    let property = |key: &str| {
        query.split('&').find_map(|pair| pair.split_once('=').filter(|(k, _)| *k == key)).map(|(_, v)| v)
    };
    let rid = || property("$rid").filter(|rid| !rid.is_empty());
    if let Some(name) = path.strip_prefix("$iothub/methods/POST/") {
        let name = percent_decode_str(name).decode_utf8().ok()?;
        return Some(TopicMessage::Method { name: name.into_owned(), rid: rid()? });
    }
    if let Some(status) = path.strip_prefix("$iothub/twin/res/") {
        return Some(TopicMessage::Response { status: status.parse().ok()?, rid: rid()? });
    }
    (path == "$iothub/twin/PATCH/properties/desired")
        .then(|| property("$version")?.parse().ok())
        .flatten()
        .map(|version| TopicMessage::Desired { version })
}

/// Whether a message is meant for an application: the agent subscribes to nothing of this kind.
pub(super) fn is_for_application(topic: &str) -> bool {
    topic.starts_with("devices/")
}

/// What the SDKs subscribe to for an application: cloud-to-device messages, or a module's inputs.
pub(super) fn of_application(seat: &Seat) -> String {
    match &seat.module_id {
        Some(module) => format!("devices/{}/modules/{module}/inputs/#", seat.device_id),
        None => format!("devices/{}/messages/devicebound/#", seat.device_id),
    }
}

/// Where a method's answer goes.
pub(super) fn method_response(status: u16, rid: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={rid}")
}

/// Asks for the whole twin.
pub(super) fn twin_get(rid: &str) -> String {
    format!("$iothub/twin/GET/?$rid={rid}")
}

/// Merges a patch into the reported properties.
pub(super) fn twin_patch(rid: &str) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_request_gives_its_name_and_an_untouched_request_id() {
        let request = parse("$iothub/methods/POST/firmwareUpdate/?$rid=a%2Fb-1").unwrap();
        assert_eq!(request, TopicMessage::Method { name: "firmwareUpdate".into(), rid: "a%2Fb-1" });
        let odd = parse("$iothub/methods/POST/my%20method%2F%3F/?$rid=1").unwrap();
        assert_eq!(odd, TopicMessage::Method { name: "my method/?".into(), rid: "1" });
        assert_eq!(method_response(200, "a%2Fb-1"), "$iothub/methods/res/200/?$rid=a%2Fb-1");
    }

    #[test]
    fn twin_messages_give_status_request_and_version() {
        let ok = parse("$iothub/twin/res/204/?$rid=7&$version=12").unwrap();
        assert_eq!(ok, TopicMessage::Response { status: 204, rid: "7" });
        let swapped = parse("$iothub/twin/res/429/?$version=12&$rid=7").unwrap();
        assert_eq!(swapped, TopicMessage::Response { status: 429, rid: "7" });
        let pushed = parse("$iothub/twin/PATCH/properties/desired/?$version=5").unwrap();
        assert_eq!(pushed, TopicMessage::Desired { version: 5 });
    }

    #[test]
    fn what_we_ask_carries_the_request_id() {
        assert_eq!(twin_get("9"), "$iothub/twin/GET/?$rid=9");
        assert_eq!(twin_patch("9"), "$iothub/twin/PATCH/properties/reported/?$rid=9");
    }

    #[test]
    fn malformed_topics_are_none() {
        for topic in [
            "",
            "/?",
            "$iothub/methods/POST/x",
            "$iothub/methods/POST/x/?",
            "$iothub/methods/POST/x/?$rid=",
            "$iothub/methods/POST/%ff/?$rid=1",
            "$iothub/twin/res/200",
            "$iothub/twin/res/many/?$rid=1",
            "$iothub/twin/res/70000/?$rid=1",
            "$iothub/twin/PATCH/properties/desired/?$version=-1",
            "$iothub/twin/PATCH/properties/desired/?$version=99999999999999999999",
            "$iothub/twin/PATCH/properties/reported/?$version=1",
            "devices/x/messages/devicebound/?$rid=1",
        ] {
            assert_eq!(parse(topic), None, "{topic}");
        }
    }
}
