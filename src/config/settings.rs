//! Every setting, a row each: its name, kind and bounds, default, and what people are told of it. The shipped file
//! `config/fwupdate.toml` and the tables of docs/configuration.md are made from these rows; `tests` says how.

use std::path::PathBuf;

use toml::Table;

use super::error::ConfigError;
use super::hub::{Cloud, Roots};
use super::inputs::Inputs;
use super::kinds::*;
use super::proxy::Proxy;
use super::row::{Layer, Row, Setting, first, rows, section, values};

/// Everything that an integrator can decide, validated.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The board's name; a bundle's manifest must carry the same one.
    pub compatible: String,
    /// `None`: no hub is configured; only local control works.
    pub cloud: Option<Cloud>,
    pub slots: SlotSettings,
    pub bootloader: BootloaderSettings,
    pub trust: Trust,
    pub download: Download,
    pub health: Health,
    pub policy: Policy,
    pub report: Report,
    pub state: State,
    pub system: System,
    /// What is set and does not count now, a sentence each: the agent goes on without it and looks again.
    pub awaited: Vec<String>,
}

/// Which boot environment is used, and how many boots a trial gets.
#[derive(Debug, Clone)]
pub struct BootloaderSettings {
    pub kind: BootloaderKind,
    /// Boot attempts of a trial, 1 to 9.
    pub tries: u8,
}

#[derive(Debug, Clone)]
pub enum BootloaderKind {
    /// `fw_env.config` in libubootenv's format.
    Uboot { config: PathBuf },
    /// A preallocated grubenv of 1024 bytes.
    Grub { grubenv: PathBuf },
}

/// All rows, in the order of the docs.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    let board = [
        Top::ROWS,
        CloudRows::ROWS,
        DpsRows::ROWS,
        SlotSettings::ROWS,
        SlotA::ROWS,
        SlotB::ROWS,
        BootloaderRows::ROWS,
    ];
    let update = [Trust::ROWS, TrustRoots::ROWS, Download::ROWS, Health::ROWS, Policy::ROWS, Allowed::ROWS];
    let rest = [Report::ROWS, State::ROWS, System::ROWS];
    board.into_iter().chain(update).chain(rest).flatten()
}

section! {
    rows Top = "", DropIn {
        /// The board's name. A bundle made for another board is refused (`WrongBoard`).
        compatible: Text as "my-board";
    }
}

section! {
    /// The hub. Without a connection string or [cloud.dps] only local control (`fwupdatectl`) works.
    rows CloudRows = "cloud.", Device {
        /// The device's or module's connection string; anyone who can read this file can then act as this device. It
        /// has `HostName`, `DeviceId`, and `SharedAccessKey` or `x509=true`; optionally `ModuleId` and
        /// `GatewayHostName`.
        connection_string: Option<Hidden> as
            "HostName=myhub.azure-devices.net;DeviceId=gateway-1;SharedAccessKey=Zm9yLWV4YW1wbGU=";
        /// Better: a file of mode 0600 that holds it, outside both slots. It belongs to the user `fwupdate`, or is a
        /// [credential](hardening.md#credentials) of the service.
        connection_string_file: Option<Absolute> as "/var/lib/fwupdate/connection-string";
        /// With `x509=true` in the connection string, or with `[cloud.dps]`: the device's certificate chain, PEM. Read
        /// again at each connect.
        certificate_file: Option<Absolute> as "/var/lib/fwupdate/device.cert.pem";
        /// The private key of that certificate: a PEM file, read again at each connect, or a key that stays in a
        /// token, by its URI (`"pkcs11:token=gateway;object=device?pin-source=/run/credentials/fwupdate.service/pin"`).
        /// More in [keys-in-hardware.md](keys-in-hardware.md).
        key_file: Option<KeyName> as "/var/lib/fwupdate/device.key.pem";
        /// The device of that token, if it has one: the agent's sandbox opens this one and no other.
        key_device: Option<Absolute> as "/dev/tpmrm0", DropIn;
        /// TCP port of the hub: 8883, or 443 with `"websocket"`, unless set.
        port: Option<Number<u16, 1, { u16::MAX }>> as 8883;
        /// PEM roots to trust beside the system's own, for the hub and for downloads (which need no hub). In their
        /// place with `trust.system_roots` false.
        ca_file: Option<Absolute> as "/etc/fwupdate/ca.pem", DropIn;
        /// How often a silent connection is proven alive; at most 1177s, longer costs less data. The hub waits 1.5
        /// times as long, at most 1767 s.
        keep_alive: Span<{ 5 * SECOND }, { 1177 * SECOND }> = "4min";
        /// Life of an access token; shorter limits what a stolen one is worth. It is renewed before it ends, by a new
        /// connection.
        token_ttl: Span<{ 3 * SECOND }, { 365 * DAY }> = "1h";
        /// The longest first pause after a lost session. Large fleets want wide ones. It is drawn at random from 1 s to
        /// this; the span doubles with each attempt.
        reconnect_first: Span<SECOND, DAY> = "10s";
        /// The longest pause of all, at least `reconnect_first`. See [fleet.md](fleet.md#when-the-hub-was-away).
        reconnect_longest: Span<SECOND, DAY> = "5min";
        /// Who tells the time by HTTPS while nothing sets the clock: `"auto"` (the hub, or before it is known the
        /// provisioning service), `"none"`, `"host"` or `"host:port"`. It counts for certificates and tokens alone.
        /// The port is 443 unless another is given. More in
        /// [Where nothing sets the clock](#where-nothing-sets-the-clock).
        time_server: TimeServerName = "auto";
        /// `"mqtt"` (MQTT over TLS), or `"websocket"` (the same over port 443, where firewalls allow nothing else; with keys
        /// alone, for Azure asks for certificates there by a renegotiation, which the agent does not do).
        transport: TransportName = "mqtt";
        /// An HTTP proxy (CONNECT) for the hub, the provisioning service and downloads; otherwise `HTTPS_PROXY` of the
        /// environment counts. `"none"`: no proxy. It is `"http://[user:password@]host[:port]"`, with user and password
        /// percent-encoded.
        proxy: Option<Hidden> as "http://proxy.example:3128";
        /// Beside `cloud.proxy`: names, addresses and networks that are reached without it. A name with all names below
        /// it (`"example.com"`, also with `:port`), an address, a network (`"10.0.0.0/8"`), or `"*"`.
        no_proxy: Texts = [];
    }
}

section! {
    /// Instead of a connection string: the Device Provisioning Service assigns the hub. The proof of identity is one of
    /// symmetric_key, group_key, or certificate_file and key_file above.
    rows DpsRows = "cloud.dps.", Device {
        /// The service instance's ID scope.
        id_scope: IdScope as "0ne00000000";
        /// This gateway's name in its enrollment; with a certificate, the certificate's common name. At most 128
        /// letters, digits and `-._:`. This or the file is required.
        registration_id: Option<Text> as "gateway-1";
        /// Or a file whose first line it is, so that one image fits all: a serial number.
        registration_id_file: Option<Absolute> as "/proc/device-tree/serial-number";
        /// The key of this gateway in base64: of an individual enrollment, or derived beforehand from a group's.
        symmetric_key: Option<Hidden> as "Zm9yLWV4YW1wbGU=";
        /// Better: a file of mode 0600 that holds it.
        symmetric_key_file: Option<Absolute> as "/var/lib/fwupdate/dps-key";
        /// The key of the enrollment group in base64, from which the gateway's own is derived (HMAC-SHA256 of the
        /// registration id). Whoever reads it can be any gateway of the group: derive beforehand where you can.
        group_key: Option<Hidden> as "Zm9yLWV4YW1wbGU=";
        /// Or a file of mode 0600 that holds it.
        group_key_file: Option<Absolute> as "/var/lib/fwupdate/dps-group-key";
        /// A JSON object of at most 64 KiB for a custom allocation policy.
        payload: Option<JsonObject> as "{\"site\": \"Berlin\"}";
        /// The service's host name.
        endpoint: HostName = "global.azure-devices-provisioning.net";
        /// TCP port of the service: 8883, or 443 with `"websocket"`, unless set.
        port: Option<Number<u16, 1, { u16::MAX }>> as 8883;
    }
}

section! {
    /// The two slots: a block device, PARTLABEL=NAME, PARTUUID=ID, or a regular file.
    struct SlotSettings(a: String, b: String) = "slots.", DropIn {
        /// Slots and boot environment may be on several disks, as this board is built so. Without it that is refused:
        /// labels that two disks share would lead an update to the wrong one.
        span_disks: Flag = false;
    }
}

section! {
    rows SlotA = "slots.a.", DropIn {
        /// Slot A. Partition labels survive a reordering of disks, device names do not. The path of a block device or
        /// regular file, `PARTLABEL=NAME` or `PARTUUID=ID`. Not `UUID=` or `LABEL=`: these are the file system's, both
        /// slots may have the same, and an update changes them.
        device: SlotDevice as "PARTLABEL=rootfs-a";
    }
}

section! {
    rows SlotB = "slots.b.", DropIn {
        /// Slot B, another device than slot A.
        device: SlotDevice as "PARTLABEL=rootfs-b";
    }
}

section! {
    rows BootloaderRows = "bootloader.", DropIn {
        /// Which one starts the board: `"uboot"` or `"grub"`.
        kind: Text as "uboot";
        /// For `uboot`: where its environment lies, in the format of `fw_setenv`; two lines, for it must be redundant.
        config: Absolute = "/etc/fw_env.config";
        /// For `grub`: the preallocated environment block of 1024 bytes that its `grub.cfg` reads.
        grubenv: Option<Absolute> as "/boot/efi/fwupdate/grubenv";
        /// Boot attempts of a new image, 1 to 9; power cuts use them up too.
        tries: Number<u8, 1, 9> = 3;
    }
}

section! {
    /// Read from /usr/lib/fwupdate/fwupdate.toml and from this file only.
    struct Trust(roots: Roots) = "trust.", Trusted {
        /// Folder of the public keys (`*.pem`) whose signatures count: Ed25519 or ECDSA P-256.
        keys: Absolute = "/etc/fwupdate/keys";
        /// Signatures from different keys that a bundle needs; 2 means that no single key can release.
        required_signatures: Number<usize, 1, 16> = 1;
        /// Hosts that a download and its redirects may use: `"host"`, `"host:port"`, `"*.suffix"`, `"address/bits"`.
        /// Empty: any public host; an address on this machine, its own networks or otherwise not public must be listed.
        allowed_hosts: Hosts = [];
    }
}

// Read into `Roots`, beside cloud.ca_file.
section! {
    rows TrustRoots = "trust.", Trusted {
        /// `false`: of all roots those of `cloud.ca_file` alone are trusted, by the hub's connection and by downloads.
        system_roots: Flag = true;
    }
}

section! {
    struct Download(proxy: Proxy) = "download.", DropIn {
        /// How long an update waits for servers that bring nothing, or less than `min_rate`, before it fails.
        patience: Span<SECOND, { 30 * DAY }> = "1h";
        /// A transfer that brings nothing for so long, or less than `min_rate`, is broken off and retried.
        stall_timeout: Span<SECOND, HOUR> = "30s";
        /// Bytes per second: what brings less counts as nothing. Half of `rate_limit` if that is less.
        min_rate: Bytes = 100;
        /// How long a refusal (404, 403, no ranges, wrong bytes, another manifest) is asked about again, over other
        /// connections, before it is final. At most half of `patience`.
        final_after: Span<TICK, DAY> = "3min";
        /// Bytes per second; leaves room for the gateway's own work. Unlimited unless set.
        rate_limit: Option<Bytes> as "512KiB", Device;
        /// Most bytes that one update may download unless the call says otherwise. Unlimited unless set.
        max_bytes: Option<Bytes> as "2GiB", Device;
        /// Daily windows in UTC in which images may be fetched, such as `"22:00-06:00"`, for links that cost by day.
        /// Empty: any time.
        windows: Windows = [], Device;
    }
}

section! {
    struct Health() = "health.", DropIn {
        /// Time that a new image has to pass all checks before it is rolled back. It runs from the agent's start until
        /// the verdict, whatever the wall clock does.
        deadline: Span<SECOND, DAY> = "10min";
        /// systemd units that must be active: what makes this gateway a gateway.
        units: Texts = [];
        /// Whether a unit that failed only since the update counts against it. Needs systemd.
        no_new_failed_units: Flag = true;
        /// Executables in its `required.d` must exit with 0, those in `wanted.d` should. Failures in `wanted.d` are
        /// only logged. No such folder: no checks.
        checks_dir: Absolute = "/etc/fwupdate/checks";
        /// A check that takes longer is killed, with all that it started, and counts as failed.
        check_timeout: Span<SECOND, DAY> = "1min";
        /// Pause before failed checks are run again, until the deadline.
        retry_interval: Span<TICK, HOUR> = "5s";
        /// Whether the new image must reach the hub: one that can't could never be updated again. If not, the hub's
        /// word is waited for all the same, for a minute at most, and a refusal of what was accepted in the old slot is
        /// a failed check.
        require_cloud: Flag = true;
    }
}

section! {
    struct Policy(cloud: Allowed) = "policy.", DropIn {
        /// Daily windows in UTC in which the reboot may happen, such as `"22:00-04:00"`. Empty: any time.
        windows: Windows = [], Device;
        /// Whether the reboot waits for `firmwareApprove` or `fwupdatectl approve`.
        approval: Flag = false;
        /// The program that reboots the gateway, and its arguments.
        reboot_command: Command = ["systemctl", "reboot"];
    }
}

section! {
    /// What commands of the cloud may ask for; `fwupdatectl` always may. No switch lets anybody pass a signature.
    #[derive(Copy)]
    struct Allowed() = "policy.cloud.", DropIn {
        /// `allowDowngrade`: a version that is not newer.
        downgrade: Flag = true;
        /// `force`: an image that failed here before, or the one that runs.
        force: Flag = true;
        /// A `maxDownloadBytes` above `download.max_bytes`.
        budget: Flag = true;
        /// A `deadline` where `policy.windows` are set: from then on they no longer count.
        deadline: Flag = true;
        /// `firmwareApprove`; `false` leaves approval to whoever stands at the gateway.
        approve: Flag = true;
        /// `firmwareRollback`.
        rollback: Flag = true;
        /// The method `reboot`.
        reboot: Flag = true;
    }
}

section! {
    struct Report() = "report.", DropIn {
        /// Least time between two progress reports within one phase; each one is a message on the hub's bill.
        interval: Span<SECOND, HOUR> = "5s";
        /// Whether each step of an update is also sent as a device-to-cloud message, which the hub can route. See
        /// [interface.md](interface.md#telemetry).
        telemetry: Flag = true;
    }
}

section! {
    struct State() = "state.", DropIn {
        /// The agent's memory. Must lie outside both slots, so that it outlives an update. Start-up and `fwupdatectl
        /// doctor` check that. Give it room for 1 MiB and 1 % of an image's data: with less, an update takes more
        /// memory, or a scan of the booted slot.
        dir: Absolute = "/var/lib/fwupdate";
    }
}

section! {
    /// Where the kernel speaks; changed only to run the agent beside a simulated machine.
    struct System() = "system.", DropIn {
        /// The process file system.
        proc: Absolute = "/proc";
        /// The device file system.
        sys: Absolute = "/sys";
        /// Runtime folder of the control socket `control.sock`.
        run: Absolute = "/run/fwupdate";
        /// os-release(5) of the running system: `IMAGE_VERSION` (else `VERSION_ID`) names it in reports,
        /// `FWUPDATE_SECURITY_VERSION` is the floor that it brings along.
        os_release: Absolute = "/etc/os-release";
        /// A file in place of the clock: seconds to add to the machine's own, and `synchronised` or `unsynchronised`.
        /// Unset, the kernel says whether its clock is synchronised.
        clock: Option<Absolute> as "/run/simulated/clock";
    }
}

#[cfg(test)]
pub(super) mod tests;
