//! Who we are to the hub and to the provisioning service: MQTT client id, user name, and the resource that a token opens.
//!
//! Behind an IoT Edge gateway only the address changes; every name below keeps the hub's own host.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::{Dps, Seat};

const API_VERSION: &str = "2021-04-12";
const DPS_API_VERSION: &str = "2019-03-31";
const CLIENT_TYPE: &str = concat!("fwupdate/", env!("CARGO_PKG_VERSION"));

/// Everything but RFC 3986's unreserved characters.
pub(super) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `device` or `device/module`.
pub(super) fn client_id(seat: &Seat) -> String {
    match &seat.module_id {
        Some(module) => format!("{}/{module}", seat.device_id),
        None => seat.device_id.clone(),
    }
}

/// The MQTT user name. Host and ids are never percent-encoded, query values are.
pub(super) fn user_name(seat: &Seat) -> String {
    let client_type = utf8_percent_encode(CLIENT_TYPE, ENCODED);
    format!("{}/{}/?api-version={API_VERSION}&DeviceClientType={client_type}", seat.host, client_id(seat))
}

/// The URI that a SAS token is made for.
pub(super) fn resource(seat: &Seat) -> String {
    format!("{}/{}", seat.host, messages(seat))
}

/// The MQTT user name towards the provisioning service; its client id is the registration id.
pub(super) fn dps_user_name(dps: &Dps) -> String {
    let client = utf8_percent_encode(CLIENT_TYPE, ENCODED);
    format!("{}/api-version={DPS_API_VERSION}&ClientVersion={client}", dps_resource(dps))
}

/// The URI that a SAS token for the provisioning service is made for.
pub(super) fn dps_resource(dps: &Dps) -> String {
    format!("{}/registrations/{}", dps.id_scope, dps.registration_id)
}

/// The same within the hub, where messages are sent to.
pub(super) fn messages(seat: &Seat) -> String {
    match &seat.module_id {
        Some(module) => format!("devices/{}/modules/{module}", seat.device_id),
        None => format!("devices/{}", seat.device_id),
    }
}

/// The host to connect to, for TCP and TLS.
pub(super) fn address(seat: &Seat) -> &str {
    seat.gateway.as_deref().unwrap_or(&seat.host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(module: Option<&str>, gateway: Option<&str>) -> Seat {
        Seat {
            host: "myhub.azure-devices.net".into(),
            gateway: gateway.map(Into::into),
            device_id: "dev-1".into(),
            module_id: module.map(Into::into),
        }
    }

    #[test]
    fn a_device_is_named_by_its_id() {
        let seat = seat(None, None);
        assert_eq!(client_id(&seat), "dev-1");
        assert_eq!(resource(&seat), "myhub.azure-devices.net/devices/dev-1");
        assert_eq!(messages(&seat), "devices/dev-1");
        assert_eq!(address(&seat), "myhub.azure-devices.net");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            user_name(&seat),
            format!(
                "myhub.azure-devices.net/dev-1/?api-version=2021-04-12&DeviceClientType=fwupdate%2F{version}"
            )
        );
    }

    #[test]
    fn a_module_behind_a_gateway_keeps_the_hubs_name() {
        let seat = seat(Some("updater"), Some("edge.local"));
        assert_eq!(client_id(&seat), "dev-1/updater");
        assert_eq!(resource(&seat), "myhub.azure-devices.net/devices/dev-1/modules/updater");
        assert_eq!(messages(&seat), "devices/dev-1/modules/updater");
        assert_eq!(address(&seat), "edge.local");
        assert!(user_name(&seat).starts_with("myhub.azure-devices.net/dev-1/updater/?api-version="));
    }
}
