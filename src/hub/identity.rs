//! Who we are to the hub: MQTT client id, user name, and the resource that a token opens.
//!
//! Behind an IoT Edge gateway only the address changes; every name below keeps the hub's own host.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::Cloud;

const API_VERSION: &str = "2021-04-12";
const CLIENT_TYPE: &str = concat!("fwupdate/", env!("CARGO_PKG_VERSION"));

/// Everything but RFC 3986's unreserved characters.
pub(super) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `device` or `device/module`.
pub(super) fn client_id(cloud: &Cloud) -> String {
    match &cloud.module_id {
        Some(module) => format!("{}/{module}", cloud.device_id),
        None => cloud.device_id.clone(),
    }
}

/// The MQTT user name. Host and ids are never percent-encoded, query values are.
pub(super) fn user_name(cloud: &Cloud) -> String {
    let client_type = utf8_percent_encode(CLIENT_TYPE, ENCODED);
    format!("{}/{}/?api-version={API_VERSION}&DeviceClientType={client_type}", cloud.host, client_id(cloud))
}

/// The URI that a SAS token is made for.
pub(super) fn resource(cloud: &Cloud) -> String {
    match &cloud.module_id {
        Some(module) => format!("{}/devices/{}/modules/{module}", cloud.host, cloud.device_id),
        None => format!("{}/devices/{}", cloud.host, cloud.device_id),
    }
}

/// The host to connect to, for TCP and TLS.
pub(super) fn address(cloud: &Cloud) -> &str {
    cloud.gateway.as_deref().unwrap_or(&cloud.host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Auth, Secret};
    use std::time::Duration;

    fn cloud(module: Option<&str>, gateway: Option<&str>) -> Cloud {
        Cloud {
            host: "myhub.azure-devices.net".into(),
            gateway: gateway.map(Into::into),
            port: 8883,
            device_id: "dev-1".into(),
            module_id: module.map(Into::into),
            auth: Auth::SharedKey(Secret::new("a2V5")),
            ca_file: None,
            keep_alive: Duration::from_secs(60),
            token_ttl: Duration::from_secs(3600),
            reconnect: crate::config::Reconnect {
                first: Duration::from_secs(1),
                longest: Duration::from_secs(1),
            },
        }
    }

    #[test]
    fn a_device_is_named_by_its_id() {
        let cloud = cloud(None, None);
        assert_eq!(client_id(&cloud), "dev-1");
        assert_eq!(resource(&cloud), "myhub.azure-devices.net/devices/dev-1");
        assert_eq!(address(&cloud), "myhub.azure-devices.net");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            user_name(&cloud),
            format!(
                "myhub.azure-devices.net/dev-1/?api-version=2021-04-12&DeviceClientType=fwupdate%2F{version}"
            )
        );
    }

    #[test]
    fn a_module_behind_a_gateway_keeps_the_hubs_name() {
        let cloud = cloud(Some("updater"), Some("edge.local"));
        assert_eq!(client_id(&cloud), "dev-1/updater");
        assert_eq!(resource(&cloud), "myhub.azure-devices.net/devices/dev-1/modules/updater");
        assert_eq!(address(&cloud), "edge.local");
        assert!(user_name(&cloud).starts_with("myhub.azure-devices.net/dev-1/updater/?api-version="));
    }
}
