//! A panic, provoked for real in one task of a running agent: the operation that it belongs to fails as `Internal`,
//! everything else goes on, in the same process.
//!
//! The agent is the library as `fwupdated` runs it, in a process of its own: this binary, started once more. It panics
//! wherever it logs a sentence that the file `provoke` names, on whichever thread that happens.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fwupdate::agent::{self, Exit};
use fwupdate::{config, fault};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::harness::{Setup, World};

/// What every provoked panic says; a sentence with it provokes no other.
const PROVOKED: &str = "provoked at";

/// A world whose agent panics where it is told to.
struct Breakable {
    world: World,
    provoke: PathBuf,
    agent: u32,
}

impl Breakable {
    async fn new() -> Breakable {
        let dir = tempfile::tempdir().unwrap().keep();
        let (script, provoke) = (dir.join("agent"), dir.join("provoke"));
        let program = std::env::current_exe().unwrap();
        let text = format!(
            "#!/bin/sh\nSETTINGS=$2 PROVOKE={provoke:?} exec {program:?} --ignored --exact --nocapture \
             panics::the_agent_of_these_tests\n"
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let world = World::with(Setup { agent: Some(script), ..Setup::default() }).await;
        let agent = world.gateway.agent_id().unwrap();
        Breakable { world, provoke, agent }
    }

    /// From now on what is logged with `sentence` panics.
    fn at(&self, sentence: &str) {
        fs::write(&self.provoke, sentence).unwrap();
    }

    fn no_more(&self) {
        fs::remove_file(&self.provoke).unwrap();
    }

    /// The next update is committed, and the panics were logged: each once, with its place, by one process until the
    /// reboot.
    async fn stays_well(mut self, panics: std::ops::RangeInclusive<usize>) {
        assert_eq!(self.world.gateway.agent_id(), Some(self.agent), "{}", self.world.gateway.log());
        let log = fs::read_to_string(self.world.gateway.log_path()).unwrap();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("a fault of the program at")).collect();
        assert!(panics.contains(&told.len()), "{log}");
        assert!(told.iter().all(|line| line.contains("tests/integration/panics.rs:")), "{log}");
        let release = self.world.release("3.0.0");
        let last = self.world.install(&release).await;
        assert_eq!(last["result"], "committed", "{last}");
        self.world.finish_disturbed().await;
    }
}

fn assert_failed(last: &Value) {
    assert_eq!((&last["result"], &last["error"]["code"]), (&json!("failed"), &json!("Internal")), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_an_effect_fails_its_operation() {
    let mut breakable = Breakable::new().await;
    let world = &mut breakable.world;
    fs::write(world.scratch().join("trusted/bad.pem"), "no key").unwrap();
    let release = world.release("2.0.0");
    breakable.at("a key is passed over");
    let last = breakable.world.install(&release).await;
    assert_failed(&last);
    assert!(last["error"]["message"].as_str().unwrap().contains("provoked at"), "{last}");
    breakable.no_more();
    breakable.stays_well(1..=1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_on_a_thread_of_the_staging_fails_its_operation() {
    let mut breakable = Breakable::new().await;
    let release = breakable.world.release("2.0.0");
    // What is no file cannot be read, and that is said by the thread that surveys the slot.
    fs::create_dir(breakable.world.scratch().join("gateway/state/chunks.B")).unwrap();
    breakable.at("the chunk map can't be read");
    let last = breakable.world.install(&release).await;
    assert_failed(&last);
    breakable.no_more();
    breakable.stays_well(1..=1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_a_method_is_answered_is_answered_and_leaves_no_operation_behind() {
    let mut breakable = Breakable::new().await;
    let release = breakable.world.release("2.0.0");
    breakable.at("firmware update started");
    let answer = breakable.world.call("firmwareUpdate", json!({"fwPackageUri": release.url})).await;
    assert_eq!((answer.status, &answer.payload["error"]["code"]), (500, &json!("Internal")));
    breakable.no_more();
    // What had begun has its outcome.
    breakable.world.reported(|reported| reported["fwupdate"]["last"]["error"]["code"] == "Internal").await;
    breakable.stays_well(1..=1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_over_the_desired_section_refuses_it() {
    let mut breakable = Breakable::new().await;
    let release = breakable.world.release("2.0.0");
    breakable.at("the desired properties ask for an update");
    let desired = json!({"fwupdate": {"fwPackageUri": release.url, "version": "2.0.0"}});
    breakable.world.hub.patch_desired("gw", desired).unwrap();
    breakable.world.reported(|reported| reported["fwupdate"]["desired"]["code"] == "Internal").await;
    breakable.no_more();
    breakable.stays_well(1..=1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_session_with_the_hub_costs_one_connection() {
    let mut breakable = Breakable::new().await;
    breakable.at("connected to localhost");
    breakable.world.hub.drop_connections(None);
    breakable.world.doctor_says_of_the_hub("provoked at").await;
    breakable.no_more();
    breakable.stays_well(1..=20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_over_a_local_request_is_answered() {
    let mut breakable = Breakable::new().await;
    breakable.at("a local request");
    let refused = breakable.world.ctl(&["status"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("provoked at"), "{refused:?}");
    breakable.no_more();
    breakable.world.until_shown_at_all(&["status"]).await;
    breakable.stays_well(1..=1).await;
}

#[test]
fn the_programs_unwind() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("panic = \"abort\""), "a panic of one task would end the process");
}

/// Not a test: what the gateways of these tests run.
#[test]
#[ignore = "the other tests start it"]
fn the_agent_of_these_tests() {
    let provoke = PathBuf::from(std::env::var_os("PROVOKE").unwrap());
    let plain = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    let plain = plain.with_filter(LevelFilter::INFO);
    tracing_subscriber::registry().with(plain).with(Provoker(provoke)).init();
    fault::log_panics();
    let settings = PathBuf::from(std::env::var_os("SETTINGS").unwrap());
    let settings = config::load(&config::Options::file(&settings)).unwrap().settings;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let token = stop.clone();
        tokio::spawn(async move {
            terminate.recv().await;
            token.cancel();
        });
        if agent::run(settings.clone(), stop.clone()).await.unwrap() == Exit::Reboot {
            agent::order_reboot(&settings.policy.reboot_command).await.unwrap();
            stop.cancelled().await;
        }
    });
}

struct Provoker(PathBuf);

impl<S: tracing::Subscriber> Layer<S> for Provoker {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let Ok(sentence) = fs::read_to_string(&self.0) else { return };
        let mut message = Message::default();
        event.record(&mut message);
        if message.0.contains(&sentence) && !message.0.contains(PROVOKED) {
            panic!("{PROVOKED} {sentence:?}");
        }
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
