//! Pairs of troubles over whole updates: an odd server, a clock that jumps, an address that swallows, a medium that is
//! full or slow, a restart. Whatever the pair, the update ends committed, or refused for a reason that one of the two
//! really is, and the gateway takes the next one.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fwupdate_hub::faults::{FileEffect, FileRule};
use fwupdate_hub::firmware::Environment;
use fwupdate_hub::gateway::Bootloader;
use fwupdate_hub::methods::Call;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until};

use crate::devices::{self, Mount};
use crate::harness::{DEVICE, LIMIT, Release, Setup, Spec, World};
use crate::lease::Lease;

/// Pairs, unless `FWUPDATE_PAIRS` names another number; `make sweep` runs 300.
const PAIRS: usize = 16;
/// Gateways at a time: most of their time is waiting.
const GATEWAYS: u64 = 4;
/// Every trouble passes, so patience is long; what a server says for good is believed after
/// longer than an odd one goes on.
const SETTINGS: &str = "[download]\nrate_limit = \"2MiB\"\nstall_timeout = \"1s\"\nfinal_after = \"8s\"\n\
                        [bootloader]\ntries = 9\n[health]\ndeadline = \"1min\"\n";
const YEAR: i64 = 365 * 24 * 3600;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq)]
enum Trouble {
    /// The server does this to so many requests.
    Odd(FileEffect, u64),
    /// The server does this to every request until the update has ended.
    Wrong(FileEffect),
    /// The clock is so many seconds off, and does or does not count as right.
    Clock(i64, bool),
    /// The hub's address takes connections and says nothing.
    Swallow,
    /// The state folder has no room.
    Full,
    /// The state folder cannot be written.
    ReadOnly,
    /// A write to the boot environment takes as long as the trouble lasts.
    Slow,
    Crash,
    PowerCut,
    Restart,
}

impl Trouble {
    fn any(random: &mut fastrand::Rng) -> Trouble {
        let times = random.u64(1..4);
        let status = [400, 403, 404, 408, 416, 429, 500, 502, 503][random.usize(..9)];
        match random.u8(..16) {
            0 | 1 => Trouble::Odd(FileEffect::Status { status }, times),
            2 => Trouble::Odd(FileEffect::Drop { after: random.u64(..200_000) }, times),
            3 => Trouble::Odd(FileEffect::Stall { after: random.u64(..200_000) }, times),
            4 => Trouble::Odd(FileEffect::NoRanges, times),
            5 => Trouble::Wrong(FileEffect::Status { status: [403, 404][random.usize(..2)] }),
            6 => Trouble::Wrong(FileEffect::Flip { offset: random.u64(20_000..200_000) }),
            7 | 8 => Trouble::Clock(random.i64(-50..50) * YEAR, random.bool()),
            9 => Trouble::Swallow,
            10 => Trouble::Full,
            11 => Trouble::ReadOnly,
            12 => Trouble::Slow,
            13 => Trouble::Crash,
            14 => Trouble::PowerCut,
            _ => Trouble::Restart,
        }
    }

    /// Codes that are true while this goes on; all others are lies.
    fn reasons(&self) -> &'static [&'static str] {
        match self {
            Trouble::Wrong(FileEffect::Status { status: 403 }) => &["Forbidden"],
            Trouble::Wrong(FileEffect::Status { .. }) => &["NotFound"],
            // Where the byte lies decides what it breaks.
            Trouble::Wrong(_) => &["DigestMismatch", "MalformedBundle", "UntrustedSignature"],
            Trouble::Full | Trouble::ReadOnly => &["StateUnavailable"],
            // Cuts of power can use up the tries of a trial.
            Trouble::Crash | Trouble::PowerCut | Trouble::Restart => &["BootloaderFellBack"],
            Trouble::Clock(..) | Trouble::Odd(..) | Trouble::Swallow | Trouble::Slow => &[],
        }
    }
}

#[test]
fn pairs_of_troubles_end_committed_or_refused_for_a_true_reason() {
    if !devices::root("pairs_of_troubles_end_committed_or_refused_for_a_true_reason") {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FWUPDATE_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let pairs = number("FWUPDATE_PAIRS").map_or(PAIRS, |pairs| usize::try_from(pairs).unwrap());
    println!("FWUPDATE_SEED={seed} FWUPDATE_PAIRS={pairs}");
    let (left, tally) = (AtomicUsize::new(pairs), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for gateway in 0..GATEWAYS {
            let (left, tally) = (&left, &tally);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let random = fastrand::Rng::with_seed(seed.wrapping_mul(GATEWAYS).wrapping_add(gateway));
                runtime.block_on(sweep(random, left, tally));
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    println!("how the updates ended: {tally:#?}");
    assert_eq!(tally.values().sum::<usize>(), pairs);
    assert!(tally.get("committed").is_some_and(|count| *count > 0), "no update was ever committed");
}

/// One gateway, updated again and again while pairs are left.
async fn sweep(random: fastrand::Rng, left: &AtomicUsize, tally: &Mutex<BTreeMap<String, usize>>) {
    let setup = Setup { settings: SETTINGS.into(), relay: true, on: false, ..Setup::default() };
    let mut world = World::with(setup).await;
    let state = Mount::ram("1m", &world.gateway.dir().join("state"));
    world.switch_on().await;
    // The trial is long enough to be hit.
    world.gateway.add_check("20-slow", "#!/bin/sh\nexec sleep 0.4\n").unwrap();
    let releases = ["2.0.0", "3.0.0", "4.0.0"]
        .map(|version| world.make(Spec { version, size: 4 << 20, noise: 1 << 20, ..Spec::default() }));
    let swallower = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut sweep = Sweep { world, state, swallower, random, tally };
    for round in 0.. {
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            break;
        }
        sweep.update(&releases[round % releases.len()], &format!("round-{round}")).await;
    }
    sweep.world.finish_with_a_clock_that_jumped().await;
}

struct Sweep<'a> {
    world: World,
    state: Mount,
    /// Accepts nobody: the kernel completes connections to it, and nobody ever answers.
    swallower: TcpListener,
    random: fastrand::Rng,
    tally: &'a Mutex<BTreeMap<String, usize>>,
}

impl Sweep<'_> {
    async fn update(&mut self, release: &Release, id: &str) {
        let pair = [Trouble::any(&mut self.random), Trouble::any(&mut self.random)];
        let story = format!("{id}: {pair:?}");
        println!("{story}");
        let payload =
            json!({"fwPackageUri": release.url, "operationId": id, "force": true, "allowDowngrade": true});
        self.call(&payload).await;
        let mut lease = None;
        for trouble in &pair {
            let pause = Duration::from_millis(self.random.u64(..1500));
            self.live(id, pause).await;
            self.begin(trouble, &release.name, &mut lease).await;
        }
        let lasts = Duration::from_millis(self.random.u64(500..3000));
        self.live(id, lasts).await;
        drop(lease);
        self.lift().await;
        let last = self.world.outcome(id).await;
        self.world.hub.faults().clear();
        self.judge(&story, &pair, &last);
        let (booted, primary) = (self.world.booted(), self.world.gateway.boot_variable("fwupdate_primary"));
        assert_eq!(primary.unwrap(), format!("{booted:?}"), "{story}");
        assert_eq!(self.world.gateway.boot_variable("fwupdate_trial").unwrap(), "", "{story}");
    }

    /// Calls until somebody answers, as a cloud would: what went to a connection that was dead is asked again.
    async fn call(&self, payload: &Value) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let call = Call { connect_timeout: LIMIT, ..Call::new("firmwareUpdate", Some(payload.clone())) };
            match self.world.hub.invoke(DEVICE, call).await {
                Ok(answer) if answer.status == 200 => return,
                other => assert!(Instant::now() < deadline, "{other:?}\n{}", self.world.gateway.log()),
            }
        }
    }

    fn judge(&self, story: &str, pair: &[Trouble; 2], last: &Value) {
        let result = last["result"].as_str().unwrap();
        let mut ended = result.to_owned();
        if result != "committed" {
            let code = last["error"]["code"].as_str().unwrap();
            let told = format!("{story}: {last}\n{}", self.world.gateway.log());
            assert!(pair.iter().any(|trouble| trouble.reasons().contains(&code)), "a lie: {told}");
            assert!(last["error"]["message"].as_str().is_some_and(|why| why.len() > 10), "no reason: {told}");
            ended = format!("{result} {code}");
        }
        *self.tally.lock().unwrap().entry(ended).or_default() += 1;
    }

    async fn begin(&mut self, trouble: &Trouble, bundle: &str, lease: &mut Option<Lease>) {
        let faults = self.world.hub.faults();
        match trouble {
            Trouble::Odd(effect, times) => faults.file(FileRule::next(*times, bundle, effect.clone())),
            Trouble::Wrong(effect) => faults.file(FileRule::always(bundle, effect.clone())),
            Trouble::Clock(offset, right) => self.world.gateway.set_clock(*offset, *right).unwrap(),
            Trouble::Swallow => {
                let address = self.swallower.local_addr().unwrap();
                self.world.relay.as_ref().unwrap().turn(address);
                self.world.hub.drop_connections(None);
            }
            Trouble::Full => self.fill(),
            // Not in the middle of a write: the kernel refuses that.
            Trouble::ReadOnly => {
                while !self.state.try_remount("ro") {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            Trouble::Slow if lease.is_none() => *lease = Some(Lease::on(&environment(&self.world)).await),
            Trouble::Slow => {}
            Trouble::Crash => {
                self.world.gateway.kill().await.unwrap();
                self.world.gateway.start_agent().unwrap();
            }
            Trouble::PowerCut => {
                self.world.gateway.power_cycle().await.unwrap();
            }
            Trouble::Restart => {
                // A stop waits for the medium, up to systemd's minute.
                *lease = None;
                self.world.gateway.stop_agent().await.unwrap();
                self.world.gateway.start_agent().unwrap();
            }
        }
    }

    /// Everything is as it should be again, but for what the server does for good.
    async fn lift(&mut self) {
        self.world.gateway.set_clock(0, true).unwrap();
        self.world.relay.as_ref().unwrap().turn(self.world.hub.mqtt_addr());
        self.state.remount("rw");
        let filler = self.state.path().join("filler");
        if filler.exists() {
            fs::remove_file(filler).unwrap();
        }
    }

    fn fill(&self) {
        // As much as fits.
        if let Ok(file) = fs::File::create(self.state.path().join("filler")) {
            let written = std::io::copy(&mut std::io::repeat(1), &mut &file);
            assert!(written.is_err(), "the state folder has no end");
        }
    }

    /// Lets the update go on for a while, or until it has ended.
    async fn live(&mut self, id: &str, pause: Duration) {
        let until = Instant::now() + pause;
        let ended = |twin: &Value| twin["fwupdate"]["last"]["id"] == id;
        tokio::select! {
            ended = self.world.gateway.run_until(&self.world.hub, LIMIT, ended) => {
                ended.unwrap_or_else(|error| panic!("{error:#}"));
            }
            () = sleep_until(until) => {}
        }
        // The pause may end in the middle of a reboot.
        if self.world.gateway.agent_id().is_none() {
            self.world.gateway.power_on().unwrap();
        }
    }
}

/// The file that holds the boot environment.
fn environment(world: &World) -> PathBuf {
    match &world.gateway.machine().environment {
        Environment::Uboot { config } => config.with_file_name("uboot.env"),
        Environment::Grub { grubenv } => grubenv.clone(),
    }
}

#[tokio::test]
async fn a_boot_environment_that_somebody_reads_under_a_lease_is_waited_for() {
    for bootloader in [Bootloader::Uboot, Bootloader::Grub] {
        let mut world = World::with(Setup { bootloader, ..Setup::default() }).await;
        let release = world.release("2.0.0");
        let lease = Lease::on(&environment(&world)).await;
        let id = world.update(json!({"fwPackageUri": release.url})).await;
        world.phase("preparing").await;
        drop(lease);
        assert_eq!(world.outcome(&id).await["result"], "committed");
        world.finish().await;
    }
}
