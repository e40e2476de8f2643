//! The topics of Azure's "Communicate with an IoT hub using the MQTT protocol"; no others exist.

use crate::registry::Identity;

/// Filter for method requests.
pub const METHODS: &str = "$iothub/methods/POST/#";
/// Filter for answers to twin requests.
pub const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
/// Filter for changes of desired properties.
pub const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
/// The same without its wildcard.
pub const DESIRED_PREFIX: &str = "$iothub/twin/PATCH/properties/desired/";

/// Filter for answers to requests for certificates.
pub const CREDENTIALS: &str = "$iothub/credentials/res/#";
/// The one api-version that has them.
pub const CREDENTIALS_VERSION: &str = "2025-08-01-preview";

/// What a device publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming<'a> {
    TwinGet { request: &'a str },
    ReportedPatch { request: &'a str },
    MethodAnswer { status: i64, request: &'a str },
    Telemetry { properties: &'a str },
    IssueCertificate { request: &'a str },
}

/// Whether this is about certificates, of which older api-versions know nothing.
pub fn is_credentials(topic: &str) -> bool {
    topic.starts_with("$iothub/credentials/")
}

/// Reads a topic; `None` for one that the hub does not know.
pub fn parse<'a>(identity: &Identity, topic: &'a str) -> Option<Incoming<'a>> {
    if let Some(rest) = topic.strip_prefix("$iothub/twin/GET/") {
        return Some(Incoming::TwinGet { request: request_id(rest)? });
    }
    if let Some(rest) = topic.strip_prefix("$iothub/twin/PATCH/properties/reported/") {
        return Some(Incoming::ReportedPatch { request: request_id(rest)? });
    }
    if let Some(rest) = topic.strip_prefix("$iothub/methods/res/") {
        let (status, rest) = rest.split_once('/')?;
        return Some(Incoming::MethodAnswer { status: status.parse().ok()?, request: request_id(rest)? });
    }
    if let Some(rest) = topic.strip_prefix("$iothub/credentials/POST/issueCertificate/") {
        let request = request_id(rest).filter(|_| identity.module.is_none())?;
        return Some(Incoming::IssueCertificate { request });
    }
    let events = format!("{}/messages/events", identity.resource());
    let rest = topic.strip_prefix(&events)?;
    let properties = if rest.is_empty() { rest } else { rest.strip_prefix('/')? };
    Some(Incoming::Telemetry { properties: properties.trim_start_matches('?') })
}

/// Whether the hub lets a device subscribe to `filter`.
pub fn may_subscribe(identity: &Identity, filter: &str) -> bool {
    if [METHODS, TWIN_ANSWERS, DESIRED].contains(&filter) {
        return true;
    }
    let own = identity.resource();
    match identity.module {
        None => filter == CREDENTIALS || filter == format!("{own}/messages/devicebound/#"),
        Some(_) => [format!("{own}/#"), format!("{own}/inputs/#")].contains(&filter.to_owned()),
    }
}

/// `?$rid=..`, opaque and echoed as it came.
fn request_id(query: &str) -> Option<&str> {
    query.strip_prefix('?')?.split('&').find_map(|field| field.strip_prefix("$rid="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_topics_and_no_others() {
        let device = Identity::device("d");
        let module = Identity::module("d", "m");
        let read = |topic| parse(&device, topic);
        assert_eq!(read("$iothub/twin/GET/?$rid=a-1"), Some(Incoming::TwinGet { request: "a-1" }));
        assert_eq!(
            read("$iothub/twin/PATCH/properties/reported/?$version=3&$rid=2"),
            Some(Incoming::ReportedPatch { request: "2" })
        );
        assert_eq!(
            read("$iothub/methods/res/-1/?$rid=f"),
            Some(Incoming::MethodAnswer { status: -1, request: "f" })
        );
        assert_eq!(
            read("devices/d/messages/events/%24.mid=1&a=b"),
            Some(Incoming::Telemetry { properties: "%24.mid=1&a=b" })
        );
        assert_eq!(
            parse(&module, "devices/d/modules/m/messages/events/"),
            Some(Incoming::Telemetry { properties: "" })
        );
        for topic in [
            "$iothub/twin/GET/",
            "$iothub/methods/res/ok/?$rid=1",
            "devices/e/messages/events/",
            "devices/d/messages/eventsx",
            "devices/d/modules/m/messages/events/",
            "anything",
        ] {
            assert_eq!(read(topic), None, "{topic}");
        }
    }

    #[test]
    fn filters() {
        let device = Identity::device("d");
        for filter in [METHODS, TWIN_ANSWERS, DESIRED, "devices/d/messages/devicebound/#"] {
            assert!(may_subscribe(&device, filter));
        }
        for filter in ["#", "$iothub/#", "devices/e/messages/devicebound/#", "$iothub/methods/POST/+"] {
            assert!(!may_subscribe(&device, filter));
        }
    }
}
