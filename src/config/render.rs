//! The effective settings as a settings file, secrets masked: what `--check-config` prints.

use toml::Table;

use super::row::insert;
use super::settings as row;
use super::{Auth, BootloaderKind, Cloud, Dps, Place, Seat, Settings};

/// `settings` as TOML that `load` would read, but for the device key, which shows as `***`.
pub fn render(settings: &Settings) -> String {
    let Settings { slots, bootloader, trust, download, .. } = settings;
    let mut out = Table::new();
    row::board::compatible.render(&settings.compatible, &mut out);
    settings.cloud.iter().for_each(|hub| hub_of(hub, &mut out));
    // The proxy and the roots serve the downloads too, and so may stand without a hub.
    row::cloud::ca_file.render(&trust.roots.ca_file, &mut out);
    if let Some((url, except)) = download.proxy.shown() {
        insert(&mut out, row::cloud::proxy.path, url.into());
        row::cloud::no_proxy.render(&except, &mut out);
    }
    row::slot_a::device.render(&slots.a, &mut out);
    row::slot_b::device.render(&slots.b, &mut out);
    slots.render(&mut out);
    match &bootloader.kind {
        BootloaderKind::Uboot { config } => {
            insert(&mut out, row::bootloader::kind.path, "uboot".into());
            row::bootloader::config.render(config, &mut out);
        }
        BootloaderKind::Grub { grubenv } => {
            insert(&mut out, row::bootloader::kind.path, "grub".into());
            row::bootloader::grubenv.render(&Some(grubenv.clone()), &mut out);
        }
    }
    row::bootloader::tries.render(&bootloader.tries, &mut out);
    trust.render(&mut out);
    row::trust_roots::system_roots.render(&trust.roots.system, &mut out);
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
    row::cloud::transport.render(&hub.transport, out);
    row::cloud::port.render(&Some(hub.port), out);
    row::cloud::keep_alive.render(&hub.keep_alive, out);
    row::cloud::token_ttl.render(&hub.token_ttl, out);
    row::cloud::reconnect_first.render(&hub.reconnect.first, out);
    row::cloud::reconnect_longest.render(&hub.reconnect.longest, out);
    row::cloud::time_server.render(&hub.time_server, out);
    match &hub.place {
        Place::Known(seat) => {
            insert(out, row::cloud::connection_string.path, connection_string(seat, &hub.auth).into())
        }
        Place::Assigned(service) => service_of(service, &hub.auth, out),
    }
    if let Auth::X509 { certificate, key } = &hub.auth {
        row::cloud::certificate_file.render(&Some(certificate.clone()), out);
        row::cloud::key_file.render(&Some(key.clone()), out);
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
    row::dps::endpoint.render(&service.endpoint, out);
    row::dps::port.render(&Some(service.port), out);
    row::dps::id_scope.render(&service.id_scope, out);
    row::dps::registration_id.render(&Some(service.registration_id.clone()), out);
    row::dps::payload.render(&service.payload, out);
    if let Auth::SharedKey(_) = auth {
        insert(out, row::dps::symmetric_key.path, "***".into());
    }
}
