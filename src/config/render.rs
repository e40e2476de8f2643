//! The effective settings as a settings file, secrets masked: what `--check-config` prints.

use toml::Table;

use super::hub::{Auth, Cloud, Dps, Place, Seat};
use super::row::insert;
use super::settings::{
    BootloaderKind, BootloaderRows, CloudRows, DpsRows, Settings, SlotA, SlotB, Top, TrustRoots,
};

/// `settings` as TOML that `load` would read, but for the device key, which shows as `***`.
pub fn render(settings: &Settings) -> String {
    let Settings { slots, bootloader, trust, download, .. } = settings;
    let mut out = Table::new();
    Top::compatible.render(&settings.compatible, &mut out);
    settings.cloud.iter().for_each(|hub| hub_of(hub, &mut out));
    // The proxy and the roots serve the downloads too, and so may stand without a hub.
    CloudRows::ca_file.render(&trust.roots.ca_file, &mut out);
    if let Some((url, except)) = download.proxy.shown() {
        insert(&mut out, CloudRows::proxy.path, url.into());
        CloudRows::no_proxy.render(&except, &mut out);
    }
    SlotA::device.render(&slots.a, &mut out);
    SlotB::device.render(&slots.b, &mut out);
    slots.render(&mut out);
    match &bootloader.kind {
        BootloaderKind::Uboot { config } => {
            insert(&mut out, BootloaderRows::kind.path, "uboot".into());
            BootloaderRows::config.render(config, &mut out);
        }
        BootloaderKind::Grub { grubenv } => {
            insert(&mut out, BootloaderRows::kind.path, "grub".into());
            BootloaderRows::grubenv.render(&Some(grubenv.clone()), &mut out);
        }
    }
    BootloaderRows::tries.render(&bootloader.tries, &mut out);
    trust.render(&mut out);
    TrustRoots::system_roots.render(&trust.roots.system, &mut out);
    download.render(&mut out);
    settings.health.render(&mut out);
    settings.policy.render(&mut out);
    settings.policy.cloud.render(&mut out);
    settings.report.render(&mut out);
    settings.state.render(&mut out);
    settings.system.render(&mut out);
    out.to_string()
}

fn hub_of(hub: &Cloud, out: &mut Table) {
    CloudRows::transport.render(&hub.transport, out);
    CloudRows::port.render(&Some(hub.port), out);
    CloudRows::keep_alive.render(&hub.keep_alive, out);
    CloudRows::token_ttl.render(&hub.token_ttl, out);
    CloudRows::reconnect_first.render(&hub.reconnect.first, out);
    CloudRows::reconnect_longest.render(&hub.reconnect.longest, out);
    CloudRows::time_server.render(&hub.time_server, out);
    match &hub.place {
        Place::Known(seat) => {
            insert(out, CloudRows::connection_string.path, connection_string(seat, &hub.auth).into())
        }
        Place::Assigned(service) => service_of(service, &hub.auth, out),
    }
    CloudRows::key_device.render(&hub.key_device, out);
    if let Auth::X509 { certificate, key } = &hub.auth {
        CloudRows::certificate_file.render(&Some(certificate.clone()), out);
        CloudRows::key_file.render(&Some(key.clone()), out);
    }
}

fn connection_string(seat: &Seat, auth: &Auth) -> String {
    let mut text = format!("HostName={};DeviceId={}", seat.host, seat.device_id);
    let parts = [("ModuleId", &seat.module_id), ("GatewayHostName", &seat.gateway)];
    for (name, value) in parts.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        text.push_str(&format!(";{name}={value}"));
    }
    text.push_str(match auth {
        Auth::SharedKey(_) => ";SharedAccessKey=***",
        Auth::X509 { .. } => ";x509=true",
    });
    text
}

/// A group's key was turned into the device's own, which is what is in effect.
fn service_of(service: &Dps, auth: &Auth, out: &mut Table) {
    DpsRows::endpoint.render(&service.endpoint, out);
    DpsRows::port.render(&Some(service.port), out);
    DpsRows::id_scope.render(&service.id_scope, out);
    DpsRows::registration_id.render(&Some(service.registration_id.clone()), out);
    DpsRows::payload.render(&service.payload, out);
    if let Auth::SharedKey(_) = auth {
        insert(out, DpsRows::symmetric_key.path, "***".into());
    }
}
