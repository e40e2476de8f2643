//! `fwupdate-hub`: the local stand-in for IoT Hub and DPS as a program.

mod arguments;
mod enrollment;

use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use fwupdate_hub::registry::{Credentials, Entry, Identity};
use fwupdate_hub::setup::{device_connection_string, open_registry};
use fwupdate_hub::{Hub, Options};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use self::arguments::{folder, host, identity};

/// Says nothing of the agent: how pages are made from a command definition.
#[cfg(feature = "pages")]
#[path = "../../../src/pages.rs"]
mod pages;

/// A local stand-in for Azure IoT Hub and the Device Provisioning Service.
#[derive(Debug, Parser)]
#[command(name = "fwupdate-hub", version)]
struct Command {
    /// Print JSON where something is listed or added; errors, too.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Serve MQTT over TLS, MQTT over WebSocket, device provisioning, the service REST and files.
    Serve(Serve),
    /// Add, list or remove devices; a running hub sees it at once.
    Device {
        #[command(subcommand)]
        what: Device,
    },
    /// Say who may register at the provisioning service; a running hub sees it at once.
    Enrollment {
        #[command(subcommand)]
        what: enrollment::Action,
    },
    /// Four updates of a simulated gateway, told while they happen; the exit status is the verdict.
    Demo {
        /// Folder of fwupdated and fwupdate-bundle; without it, where this program lies.
        #[arg(long, value_name = "FOLDER", value_parser = PathBufValueParser::new().try_map(folder))]
        programs: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Serve {
    /// The hub's folder: certificates, keys, devices and their twins.
    #[arg(long, default_value = "./hub")]
    dir: PathBuf,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Another name or address by which clients reach the hub, for its certificate; the first one given stands in
    /// connection strings. May be repeated.
    #[arg(long = "name", value_name = "NAME", value_parser = host)]
    names: Vec<String>,
    /// Port for MQTT over TLS; 0 takes a free one.
    #[arg(long, default_value_t = 8883)]
    mqtt_port: u16,
    /// Port for REST, WebSocket and files; 0 takes a free one.
    #[arg(long, default_value_t = 8443)]
    https_port: u16,
    /// Folder served under /files/.
    #[arg(long, value_name = "FOLDER", value_parser = PathBufValueParser::new().try_map(folder))]
    www: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Device {
    /// Register a device (or a module, DEVICE/MODULE) and print its connection string.
    Add {
        #[arg(value_parser = identity)]
        id: Identity,
        /// Known by this SHA-1 or SHA-256 thumbprint of its certificate, instead of by a key.
        #[arg(long, value_name = "HEX", value_parser = Credentials::self_signed)]
        thumbprint: Option<Credentials>,
        #[arg(long, default_value = "./hub")]
        dir: PathBuf,
    },
    /// Print the connection string of every device.
    List {
        #[arg(long, default_value = "./hub")]
        dir: PathBuf,
    },
    /// Forget a device and its modules.
    Remove {
        #[arg(value_parser = identity)]
        id: Identity,
        #[arg(long, default_value = "./hub")]
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    #[cfg(feature = "pages")]
    if matches!(pages::write::<Command>("1"), Ok(true)) {
        return ExitCode::SUCCESS;
    }
    let Command { json, what } = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => return without_sense(&error),
    };
    start_log(default_filter(&what));
    match run(what, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            complain(&match json {
                true => json!({"error": {"code": "Internal", "message": message}}).to_string(),
                false => format!("fwupdate-hub: {message}"),
            });
            ExitCode::FAILURE
        }
    }
}

/// Help was asked for, or the command line is wrong.
fn without_sense(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that went away has seen enough.
        error.print().unwrap_or_default();
        return ExitCode::SUCCESS;
    }
    let told = error.to_string();
    if std::env::args_os().any(|word| word == "--json") {
        let message = told.split_whitespace().collect::<Vec<_>>().join(" ");
        let message = message.trim_start_matches("error: ");
        complain(&json!({"error": {"code": "MalformedRequest", "message": message}}).to_string());
    } else {
        told.trim_end().lines().for_each(complain);
    }
    ExitCode::from(2)
}

/// One line on stderr; nobody is left to tell when that is closed too.
fn complain(line: &str) {
    drop(writeln!(std::io::stderr(), "{}", line.replace(char::is_control, " ")));
}

/// To stderr; `RUST_LOG` chooses what.
fn start_log(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// The demo tells its own story.
fn default_filter(what: &What) -> &'static str {
    match what {
        What::Demo { .. } => "off",
        _ => "fwupdate_hub=info",
    }
}

fn run(what: What, json: bool) -> Result<()> {
    match what {
        What::Serve(options) => serve(options),
        What::Device { what } => tell(&device(what)?, json),
        What::Enrollment { what } => tell(&enrollment::run(what)?, json),
        What::Demo { programs } => demo(programs),
    }
}

/// Connection strings and their like, one a line, or as a list of objects.
fn tell(lines: &[String], json: bool) -> Result<()> {
    if !json {
        return lines.iter().try_for_each(|line| print(line));
    }
    let parts = |line: &String| line.split(';').filter_map(|part| part.split_once('=')).map(owned).collect();
    let objects: Vec<Value> = lines.iter().map(|line| Value::Object(parts(line))).collect();
    print(&format!("{:#}", Value::Array(objects)))
}

fn owned((name, value): (&str, &str)) -> (String, Value) {
    (name.to_owned(), value.into())
}

#[tokio::main]
async fn demo(programs: Option<PathBuf>) -> Result<()> {
    let programs = match programs {
        Some(programs) => programs,
        None => std::env::current_exe()?.parent().context("this program lies in no folder")?.to_owned(),
    };
    fwupdate_hub::demo::run(&programs).await
}

#[tokio::main]
async fn serve(options: Serve) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let Serve { dir, bind, names, mqtt_port, https_port, www } = options;
    let apart = mqtt_port != https_port || mqtt_port == 0;
    ensure!(apart, "--mqtt-port and --https-port are both {mqtt_port}; choose two ports");
    let hub = Hub::start(Options { dir, bind, names, mqtt_port, https_port, www }).await?;
    print(&format!(
        "ready: mqtt {} https {} ca {} service {} dps {}",
        hub.mqtt_addr(),
        hub.https_addr(),
        hub.ca_path().display(),
        hub.dir().join("service.txt").display(),
        hub.id_scope(),
    ))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    hub.stop().await;
    Ok(())
}

fn device(what: Device) -> Result<Vec<String>> {
    match what {
        Device::Add { id, thumbprint, dir } => {
            let (host, mut registry) = open_registry(&dir)?;
            let entry = Entry::new(id, thumbprint.unwrap_or_else(Credentials::new_keys));
            registry.create(entry.clone())?;
            Ok(vec![device_connection_string(&host, &entry)])
        }
        Device::List { dir } => {
            let (host, mut registry) = open_registry(&dir)?;
            let all = registry.list()?;
            let shown = |identity| Ok(device_connection_string(&host, registry.get(identity)?));
            all.iter().map(shown).collect()
        }
        Device::Remove { id, dir } => {
            let (_, mut registry) = open_registry(&dir)?;
            registry.remove(&id)?;
            Ok(Vec::new())
        }
    }
}

/// One line, at once: scripts wait for it.
fn print(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        // The reader of a pipe has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}
