//! A storm: many agents' connections in one process, by the agent's own code, against a hub that fails over, restarts
//! and throttles. All come back, and their first tries are spread as the back-off promises.
//!
//! `FWUPDATE_STORM` is the number of agents (`make storm`: 1,000). The agents share a thread with a seeded generator;
//! the hub has a thread of its own.

use std::sync::Arc;
use std::time::Duration;

use fwupdate::clock::Clock;
use fwupdate::config::{Auth, Cloud, Place, Proxy, Reconnect, Roots, Seat, Secret, TimeServer, Transport};
use fwupdate::hub::{self, Document, Parts};
use fwupdate_hub::{Hub, Options};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::relay::Relay;

const AGENTS: usize = 100;
const SEED: u64 = 4;
/// No wave takes longer.
const LIMIT: Duration = Duration::from_secs(600);
const LEAST: Duration = Duration::from_secs(1);

/// In a process of its own: it needs many open files and a generator that nobody else draws from; and no system
/// roots, which each connection reads anew, as each gateway must, but here one machine does for all.
#[test]
#[ignore = "make storm: it needs a machine that has time to be punctual"]
fn a_fleet_gets_through_a_storm() {
    let no_roots = tempfile::NamedTempFile::new().unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["storm::in_this_process", "--exact", "--ignored", "--nocapture"]);
    command.env("SSL_CERT_FILE", no_roots.path()).env_remove("SSL_CERT_DIR");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "the storm did not take place");
}

#[test]
#[ignore = "run by the test above"]
fn in_this_process() {
    let agents = std::env::var("FWUPDATE_STORM").map_or(AGENTS, |text| text.parse().unwrap());
    // Each agent has three sockets, its way through the relay two, and the hub one.
    let files = u64::try_from(agents).unwrap() * 7 + 500;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= files, "{files} open files are needed: raise the hard limit (ulimit -Hn)");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(files), hard).unwrap();
    let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    fastrand::seed(SEED);
    clients.block_on(storm(agents, &servers));
    servers.shutdown_background();
}

async fn storm(agents: usize, servers: &tokio::runtime::Runtime) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::ephemeral(dir.path());
    let mut hub = servers.spawn(Hub::start(options)).await.unwrap().unwrap();
    let target = hub.mqtt_addr();
    let relay = servers.spawn(Relay::to(target)).await.unwrap();
    // Thirty handshakes in a second leave this machine time to be punctual.
    let first = Duration::from_secs(4.max(agents as u64 / 30));
    let fleet = Fleet::start(agents, &hub, relay.port(), first);
    fleet.all_back(&hub, 1).await;
    let ids = &fleet.ids;

    let (mut hub, new) = servers
        .spawn(async move {
            hub.fail_over(Vec::new()).await.unwrap();
            let new = hub.mqtt_addr();
            (hub, new)
        })
        .await
        .unwrap();
    relay.turn(new);
    fleet.all_back(&hub, 2).await;
    follows_the_law("failover", &relay, fleet.dropped(&hub), agents, first);

    let hub = servers
        .spawn(async move {
            hub.restart().await.unwrap();
            hub
        })
        .await
        .unwrap();
    fleet.all_back(&hub, 3).await;
    // No session held long enough to show that the way is free: the span is twice as wide.
    follows_the_law("restart", &relay, fleet.dropped(&hub), agents, first * 2);

    let share = (agents as f64 / (first * 4).as_secs_f64()).ceil() as u64;
    hub.faults().mqtt(|faults| faults.connects_per_second = Some(share));
    let dropped = Instant::now();
    hub.drop_connections(None);
    fleet.all_back(&hub, 4).await;
    let most = relay.accepted(dropped).len();
    println!(
        "throttled to {share}/s: {most} connects until all {agents} were back, {:.1?}",
        dropped.elapsed()
    );
    let refused = ids.iter().flat_map(|id| hub.visits(id)).filter(|visit| !visit.accepted).count();
    assert!(refused > 0, "nobody was throttled");

    // Each report is put off once, and told all the same.
    hub.faults().mqtt(|faults| faults.throttle_patches = agents as u64);
    fleet.tell(2);
    for id in ids {
        let told = hub.wait_reported(id, LIMIT, |reported| reported["told"] == 2).await;
        assert!(told.is_some(), "{id} did not tell");
    }
    assert_eq!(hub.faults().get().mqtt.throttle_patches, 0);
    fleet.stop().await;
    servers.spawn(hub.stop()).await.unwrap();
}

struct Fleet {
    ids: Vec<String>,
    documents: watch::Sender<Arc<Document>>,
    shutdown: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

fn document(told: u64) -> Arc<Document> {
    let body = json!({"told": told}).as_object().unwrap().clone();
    Arc::new(Document { body, generation: told, milestone: told })
}

impl Fleet {
    /// Every agent's connection, with one document for all.
    fn start(agents: usize, hub: &Hub, port: u16, first: Duration) -> Fleet {
        let (documents, watched) = watch::channel(document(1));
        let shutdown = CancellationToken::new();
        let ids: Vec<String> = (0..agents).map(|number| format!("gw-{number}")).collect();
        let tasks = ids.iter().map(|id| {
            let text = hub.add_device(id).unwrap();
            let key = text.split_once("SharedAccessKey=").unwrap().1;
            let cloud = Cloud {
                secrets: Vec::new(),
                key_device: None,
                place: Place::Known(Seat {
                    host: hub.host().to_owned(),
                    gateway: None,
                    device_id: id.clone(),
                    module_id: None,
                }),
                transport: Transport::Mqtt,
                port,
                proxy: Proxy::default(),
                auth: Auth::SharedKey(Secret::new(key)),
                roots: Roots::with(Some(hub.ca_path())),
                keep_alive: Duration::from_secs(240),
                token_ttl: Duration::from_secs(3600),
                reconnect: Reconnect { first, longest: LIMIT },
                time_server: TimeServer::Nobody,
            };
            let (events, mut inbox) = mpsc::channel(16);
            tokio::spawn(async move { while inbox.recv().await.is_some() {} });
            let interval = Duration::from_secs(1);
            let (_, telemetry) = mpsc::channel(1);
            let (clock, documents, shutdown) = (Clock::default(), watched.clone(), shutdown.clone());
            tokio::spawn(hub::run(Parts { cloud, interval, clock, documents, events, telemetry, shutdown }))
        });
        let tasks = tasks.collect();
        Fleet { ids, documents, shutdown, tasks }
    }

    fn tell(&self, told: u64) {
        self.documents.send_replace(document(told));
    }

    /// Waits until each has had that many sessions, and the last one of each stands.
    async fn all_back(&self, hub: &Hub, sessions: usize) {
        for id in &self.ids {
            assert!(hub.wait_accepted(id, sessions, LIMIT).await, "{id} did not come back");
            assert!(hub.wait_connected(id, true, LIMIT).await, "{id} did not stay");
        }
    }

    /// When the hub ended the sessions before the last ones.
    fn dropped(&self, hub: &Hub) -> Instant {
        let ends = self.ids.iter().filter_map(|id| hub.visits(id).iter().rev().find_map(|visit| visit.ended));
        Instant::from_std(ends.min().unwrap())
    }

    async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

/// The first tries after all sessions were lost are spread evenly from a second to `most` (Kolmogorov-Smirnov).
fn follows_the_law(wave: &str, relay: &Relay, dropped: Instant, agents: usize, most: Duration) {
    let mut tries: Vec<f64> = relay
        .accepted(dropped)
        .iter()
        .map(|at| (at.duration_since(dropped).as_secs_f64() - 1.0) / (most - LEAST).as_secs_f64())
        .collect();
    tries.sort_by(f64::total_cmp);
    assert_eq!(tries.len(), agents, "{wave}: one try each");
    let n = agents as f64;
    let distance = tries.iter().enumerate().map(|(rank, u)| {
        let even = u.clamp(0.0, 1.0);
        (even - rank as f64 / n).abs().max((even - (rank + 1) as f64 / n).abs())
    });
    let distance = distance.fold(0.0, f64::max);
    // Chance exceeds the first term once in ten thousand; a busy machine adds the second. Half a span is 0.5.
    let allowed = 2.225 / n.sqrt() + 0.1;
    println!(
        "{wave}: {agents} came back within {most:?}, {distance:.3} from full jitter (at most {allowed:.3})"
    );
    assert!(distance < allowed, "{wave}: {distance:.3} from full jitter; {tries:.2?}");
}
