//! The agent's program: arguments, settings, logging, signals and the reboot. Everything else is the library's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fwupdate::agent::{self, Exit};
use fwupdate::boot;
use fwupdate::cause;
use fwupdate::cli::plain::{self, PlainLog};
use fwupdate::cli::{log, usage};
use fwupdate::clock;
use fwupdate::config::{self, ConfigError, Loaded, Options, Settings};
use fwupdate::failure::Code;
use fwupdate::fault;
use nix::sys::stat::fstat;
use nix::unistd::Group;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Settings that only an edit can mend: starting again does not help (sysexits.h).
const EX_CONFIG: u8 = 78;
/// How often the settings are read again while something that they name is not there or no good yet.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long a reboot that was ordered may take to stop this process, before it is ordered again.
const REBOOT_PATIENCE: Duration = Duration::from_secs(120);
/// Pause after a reboot command that failed.
const REBOOT_RETRY: Duration = Duration::from_secs(15);

/// A/B firmware updates for Linux gateways, driven by Azure IoT Hub
#[derive(Parser)]
#[command(name = "fwupdated", version)]
struct Args {
    /// Settings file to use instead of /etc/fwupdate.toml and the other system layers
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Validate the settings, print what is in effect (secrets masked), and exit
    #[arg(long)]
    check_config: bool,
    /// Print JSON with --check-config; errors, too
    #[arg(long)]
    json: bool,
    /// Look for faults that would spoil an update, print them as JSON, and exit; `fwupdatectl doctor` does it while no
    /// agent runs
    #[arg(long, conflicts_with = "check_config")]
    doctor: bool,
    /// Write what the settings add to the sandbox of fwupdate.service: units and udev's rules; and exit
    #[arg(long, hide = true, num_args = 2, value_names = ["UNITS", "RULES"], conflicts_with = "check_config")]
    generate: Option<Vec<PathBuf>>,
    /// Do as root what the agent asks for over the connection that is the standard input, and exit
    #[arg(long, hide = true, conflicts_with_all = ["check_config", "generate"])]
    root_verb: bool,
    /// Make FILE once the kernel counts its clock as synchronised, and exit
    #[arg(long, hide = true, value_name = "FILE", conflicts_with_all = ["check_config", "generate", "root_verb"])]
    await_clock: Option<PathBuf>,
}

fn main() -> ExitCode {
    fwupdate::memory::stay_small();
    usage::start("8", perform)
}

fn perform(args: Args) -> ExitCode {
    let options = args.config.as_ref().map_or_else(Options::system, Options::file);
    if args.check_config {
        return check_config(&options, args.json);
    }
    if args.doctor {
        return report(args.json, print(&plain::json_lines(&agent::examine_offline(&options))));
    }
    if let Some([units, rules]) = args.generate.as_deref() {
        return report(args.json, generate(&options, units, rules));
    }
    if let Some(mark) = &args.await_clock {
        return report(args.json, clock::await_kernel().map_err(Into::into).and_then(|()| write(mark, "")));
    }
    if args.root_verb {
        return root_verb(&options);
    }
    if let Err(error) = start_logging() {
        usage::tell(&usage::error_sentence(
            "fwupdated",
            &format!("no logging: {}", cause::chain(error.as_ref())),
        ));
        return ExitCode::FAILURE;
    }
    fault::log_panics();
    match start(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = cause::chain(error.as_ref());
            tracing::error!("{why}");
            if !tracing::enabled!(tracing::Level::ERROR) {
                // Whoever wants no log wants to know all the same why there is no agent.
                usage::tell(&usage::error_sentence("fwupdated", &why));
            }
            note_end(&options, &error);
            match error.downcast_ref::<ConfigError>().is_some_and(|error| !error.may_pass()) {
                true => ExitCode::from(EX_CONFIG),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Leaves the reason where `fwupdatectl doctor` finds it; settings that cannot be used name no other runtime folder.
fn note_end(options: &Options, error: &anyhow::Error) {
    let run = match config::load(options) {
        Ok(loaded) => loaded.settings.system.run,
        Err(_) if options.main_required => return,
        Err(_) => PathBuf::from("/run/fwupdate"),
    };
    agent::note_end(&run, Some(&cause::chain(error.as_ref())));
}

fn print(text: &str) -> anyhow::Result<()> {
    usage::print(text).context("the output cannot be written")
}

fn report(json: bool, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let why = cause::chain(error.as_ref());
    let code = if error.is::<ConfigError>() { Code::NotReady } else { Code::Internal };
    usage::tell(&match json {
        true => usage::error_json(&code.to_string(), &why),
        false => usage::error_sentence("fwupdated", &why),
    });
    ExitCode::FAILURE
}

/// What the generator asks for at boot. Settings that cannot be used leave nothing that allows anything.
fn generate(options: &Options, units: &Path, rules: &Path) -> anyhow::Result<()> {
    write(rules, "")?;
    let board = config::load_board(options)?;
    let booted = boot::named(&std::fs::read_to_string("/proc/cmdline")?);
    let fstab = std::fs::read_to_string("/etc/fstab").unwrap_or_default();
    let group = Group::from_name("fwupdate-agent").ok().flatten().map(|group| group.gid.as_raw());
    let made = agent::confine(&board, booted, &fstab, group)?;
    write(&units.join("fwupdate.service.d/50-settings.conf"), &made.service)?;
    for (unit, text) in &made.mounts {
        write(&units.join(format!("{unit}.d/50-fwupdate.conf")), text)?;
    }
    write(rules, &made.rules)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(path);
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(path, text));
    written.with_context(|| format!("{} cannot be written: check its folder", path.display()))
}

/// What `fwupdate-root@.service` runs. An agent that breaks off is no failure of a unit.
fn root_verb(options: &Options) -> ExitCode {
    let board = config::load_board(options).map_err(|error| error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Err(error) = runtime.and_then(|runtime| runtime.block_on(agent::serve_root(board))) {
        usage::tell(&usage::error_sentence("fwupdated", &format!("the agent broke off: {error}")));
    }
    ExitCode::SUCCESS
}

fn check_config(options: &Options, json: bool) -> ExitCode {
    let loaded = match config::load(options) {
        Ok(loaded) => loaded,
        Err(error) => return report(json, Err(error.into())),
    };
    let warnings = warnings(&loaded);
    let settings = config::render(&loaded.settings);
    let read = |file: &PathBuf| format!("# read {}\n", plain::plain(&file.display().to_string()));
    let printed = print(&match json {
        true => plain::json_lines(&checked(&loaded, &settings, &warnings)),
        false => loaded.sources.iter().map(read).collect::<String>() + &plain::lines(&settings),
    });
    if printed.is_err() {
        return report(json, printed);
    }
    if !json {
        warnings.iter().for_each(|(_, why)| usage::tell(&usage::error_sentence("fwupdated", why)));
    }
    match warnings.iter().any(|(fails, _)| *fails) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// What is to be said of the settings by themselves and on this machine, and whether the check fails by it.
fn warnings(loaded: &Loaded) -> Vec<(bool, String)> {
    let own = loaded.warnings.iter().map(|warning| (warning.fails_check(), warning.to_string()));
    own.chain(agent::config_doubts(loaded.settings.clone())).collect()
}

/// What `--check-config` found, for scripts.
fn checked(loaded: &Loaded, settings: &str, warnings: &[(bool, String)]) -> serde_json::Value {
    let settings: toml::Table = settings.parse().unwrap_or_default();
    let warnings: Vec<_> =
        warnings.iter().map(|(fails, why)| json!({"message": why, "failsCheck": fails})).collect();
    json!({"sources": loaded.sources, "settings": settings, "warnings": warnings})
}

/// Whether systemd connected this very program to the journal (systemd.exec(5), JOURNAL_STREAM): the variable is handed on
/// to children whose stderr leads elsewhere.
fn stderr_is_the_journal() -> bool {
    let named = |stream: String| {
        fstat(std::io::stderr()).is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
    };
    std::env::var("JOURNAL_STREAM").is_ok_and(named)
}

/// The journal with its fields when systemd started this program, plain lines otherwise.
fn start_logging() -> anyhow::Result<()> {
    let wanted = std::env::var_os("FWUPDATE_LOG");
    let (filter, complaint) = log::filter(wanted.as_deref().map(OsStr::to_string_lossy).as_deref());
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_the_journal() {
        let journal = tracing_journald::layer().context("the journal cannot be reached")?;
        registry.with(journal.with_field_prefix(None)).try_init()?;
    } else {
        let stderr = || PlainLog(std::io::stderr());
        let plain = tracing_subscriber::fmt::layer().with_target(false).with_writer(stderr);
        // Whoever reads this, a file or a person, reads plain text.
        let plain = plain.with_ansi(false);
        registry.with(plain).try_init()?;
    }
    if let Some(complaint) = complaint {
        tracing::warn!("{complaint}");
    }
    Ok(())
}

fn start(options: &Options) -> anyhow::Result<()> {
    let settings = load(options)?;
    // One thread waits; what computes or blocks has threads of its own while it does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(options, settings))
}

/// Reads the settings, and says what is to be said about them.
fn load(options: &Options) -> Result<Settings, ConfigError> {
    let Loaded { settings, warnings, sources } = config::load(options)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = config::outside_slots(&settings.state.dir) {
        tracing::warn!("{warning}");
    }
    tracing::info!("fwupdated {} starts; settings from {}", env!("CARGO_PKG_VERSION"), listed(&sources));
    agent::note_end(&settings.system.run, None);
    Ok(settings)
}

fn listed(sources: &[PathBuf]) -> String {
    let names: Vec<_> = sources.iter().map(|path| path.display().to_string()).collect();
    if names.is_empty() { "no file".to_owned() } else { names.join(", ") }
}

/// Runs the agent; again with new settings when something came that they waited for, and again after a reboot that did
/// not come about.
async fn run(options: &Options, mut settings: Settings) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    while !stop.is_cancelled() {
        let round = stop.child_token();
        let agent = agent::run(settings.clone(), round.clone());
        tokio::pin!(agent);
        let exit = tokio::select! {
            exit = &mut agent => exit?,
            renewed = renewed(options, &settings) => {
                tracing::info!("something came that the settings waited for: the agent goes on with it");
                round.cancel();
                settings = renewed;
                agent.await?
            }
        };
        if exit == Exit::Reboot {
            reboot(&settings, &stop).await;
        }
    }
    tracing::info!("fwupdated stops");
    Ok(())
}

/// Ends with other settings when something came, or went, that `settings` wait for.
async fn renewed(options: &Options, settings: &Settings) -> Settings {
    loop {
        if settings.awaited.is_empty() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        let options = options.clone();
        let found = tokio::task::spawn_blocking(move || config::load(&options)).await;
        // What an edit broke meanwhile is the next start's to say.
        let Ok(Ok(found)) = found else { continue };
        if found.settings.awaited != settings.awaited {
            for warning in found.warnings {
                tracing::warn!("{warning}");
            }
            return found.settings;
        }
    }
}

/// Orders the reboot and waits for the signal that it brings; returns when it did not come about.
async fn reboot(settings: &Settings, stop: &CancellationToken) {
    let patience = match agent::while_alive(agent::order_reboot(&settings.policy.reboot_command)).await {
        Ok(()) => REBOOT_PATIENCE,
        Err(error) => {
            tracing::error!("the reboot command failed and is tried again: {error}");
            REBOOT_RETRY
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = agent::while_alive(tokio::time::sleep(patience)) => {}
    }
}

fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        agent::stopping();
        token.cancel();
    });
    Ok(stop)
}
