//! Kill -9 at random instants over whole updates: as a crash of the agent, and as a power cut. Whatever the instant,
//! the update ends committed or cleanly refused, no report is ever false, and no verified byte is fetched twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fwupdate::bundle::{self, Chunk, ChunkDigest, GAP, Index, Layout};
use fwupdate::machine::Record;
use fwupdate::manifest::Body;
use fwupdate::stage::GUARD;
use fwupdate_hub::firmware::{Outcome, Slot};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::harness::{DEVICE, LIMIT, Release, Setup, Spec, World};

/// Instants, unless `FWUPDATE_KILLS` names another number.
const KILLS: usize = 200;
/// Gateways at a time: most of their time is waiting.
const GATEWAYS: u64 = 6;
/// Kills that one update suffers before it is left alone.
const KILLS_AN_UPDATE: usize = 5;
/// Longest pauses before a kill, milliseconds: some come in quick succession, some late in an update's life.
const PAUSES: [u64; 3] = [150, 800, 3000];
/// Staging takes half a second, and the verdict has time on a busy machine.
const SETTINGS: &str =
    "[download]\nrate_limit = \"4MiB\"\n[bootloader]\ntries = 5\n[health]\ndeadline = \"1min\"\n";

#[test]
fn two_hundred_kills_and_not_one_false_word() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FWUPDATE_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let kills = number("FWUPDATE_KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap());
    println!("FWUPDATE_SEED={seed} FWUPDATE_KILLS={kills}");
    let (left, tally) = (AtomicUsize::new(kills), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for gateway in 0..GATEWAYS {
            let (left, tally) = (&left, &tally);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let random = fastrand::Rng::with_seed(seed + gateway);
                runtime.block_on(sweep(random, left, tally));
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    println!("killed, and how the updates ended: {tally:#?}");
    let killed: usize =
        tally.iter().filter(|(what, _)| what.starts_with("killed")).map(|(_, count)| count).sum();
    assert!(killed >= kills, "only {killed} kills");
    assert!(tally.get("ended committed").is_some_and(|count| *count > 0), "no update was ever committed");
}

/// One gateway, updated again and again while kills are left.
async fn sweep(random: fastrand::Rng, left: &AtomicUsize, tally: &Mutex<BTreeMap<String, usize>>) {
    let mut world = World::with(Setup { settings: SETTINGS.into(), ..Setup::default() }).await;
    // The trial is long enough to be hit.
    world.gateway.add_check("20-slow", "#!/bin/sh\nexec sleep 0.4\n").unwrap();
    // Three in turn: neither slot ever holds the one that is installed next.
    let releases = ["2.0.0", "3.0.0", "4.0.0"]
        .map(|version| world.make(Spec { version, size: 4 << 20, noise: 2 << 20, ..Spec::default() }));
    let mut sweep = Sweep { world, random, left, tally };
    for round in 0.. {
        if left.load(Ordering::Relaxed) == 0 {
            break;
        }
        sweep.update(&releases[round % releases.len()], &format!("round-{round}")).await;
    }
    sweep.world.finish_disturbed().await;
}

struct Sweep<'a> {
    world: World,
    random: fastrand::Rng,
    left: &'a AtomicUsize,
    tally: &'a Mutex<BTreeMap<String, usize>>,
}

impl Sweep<'_> {
    async fn update(&mut self, release: &Release, id: &str) {
        let (old, target) = match self.world.booted() {
            Slot::A => (Slot::A, Slot::B),
            Slot::B => (Slot::B, Slot::A),
        };
        let before = fs::read(self.world.gateway.slot(old)).unwrap();
        let mut held = Held::new(release);
        // What an update that used up its tries leaves behind must not stop the next round.
        let payload =
            json!({"fwPackageUri": release.url, "operationId": id, "force": true, "allowDowngrade": true});
        self.world.update(payload).await;
        for _ in 0..KILLS_AN_UPDATE {
            let most = PAUSES[self.random.usize(..PAUSES.len())];
            let pause = Duration::from_millis(self.random.u64(..most));
            if !self.live(id, pause).await {
                break;
            }
            if self.random.u8(..8) == 0 {
                self.restart().await;
            } else if self.take_one() {
                self.kill(target, &mut held).await;
            }
        }
        let last = self.world.outcome(id).await;
        held.check(&self.world);
        self.count(&format!("ended {}", last["result"].as_str().unwrap()));
        if last["result"] == "committed" {
            assert_eq!(self.world.booted(), target);
            assert!(self.world.holds(target, release), "{id}: the slot does not hold {}", release.version);
        } else {
            // The kills used up the tries of the trial: the only clean refusal there is.
            assert_eq!(
                last["error"]["code"],
                "BootloaderFellBack",
                "{id}: {last}\n{}",
                self.world.gateway.log()
            );
            assert_eq!(self.world.booted(), old);
        }
        let untouched = fs::read(self.world.gateway.slot(old)).unwrap() == before;
        assert!(untouched, "{id}: the running slot was written");
        let booted = format!("{:?}", self.world.booted());
        assert_eq!(self.world.gateway.boot_variable("fwupdate_primary").unwrap(), booted, "{id}");
        assert_eq!(self.world.gateway.boot_variable("fwupdate_trial").unwrap(), "", "{id}");
    }

    /// Lets the update go on for a while; false when it ended before.
    async fn live(&mut self, id: &str, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let ended = |twin: &Value| twin["fwupdate"]["last"]["id"] == id;
        tokio::select! {
            ended = self.world.gateway.run_until(&self.world.hub, LIMIT, ended) => {
                ended.unwrap_or_else(|error| panic!("{error:#}"));
                false
            }
            () = sleep_until(until) => true,
        }
    }

    /// One of the kills that all gateways share.
    fn take_one(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    async fn kill(&mut self, target: Slot, held: &mut Held) {
        self.world.kill().await;
        held.check(&self.world);
        held.look(&self.world, target);
        let (phase, power) = (self.saved_phase(), self.random.bool());
        self.count(&format!("killed in {phase}, {}", if power { "power cut" } else { "crash" }));
        if power {
            let outcome = self.world.gateway.power_on().unwrap();
            assert!(matches!(outcome, Outcome::Booted { environment_lost: false, .. }), "{outcome:?}");
        } else {
            self.world.gateway.start_agent().unwrap();
        }
    }

    /// `systemctl restart`: not a kill, but as safe.
    async fn restart(&mut self) {
        self.world.gateway.stop_agent().await.unwrap();
        self.count(&format!("restarted in {}", self.saved_phase()));
        self.world.gateway.start_agent().unwrap();
    }

    /// What the newest copy of the record that the agent left says. Read without the store's lock, which a program
    /// that another thread starts just now would hold on to.
    fn saved_phase(&self) -> &'static str {
        let copy = |name: &str| fs::read_to_string(self.world.gateway.dir().join("state").join(name)).ok();
        let newest = ["record.0", "record.1"].into_iter().filter_map(copy).filter_map(|text| {
            let (head, body) = text.split_once('\n')?;
            let sequence: u64 = head.split_once("seq=")?.1.split(' ').next()?.parse().ok()?;
            let record = serde_json::Deserializer::from_str(body).into_iter::<Record>().next()?.ok()?;
            Some((sequence, record.phase.name()))
        });
        newest.max().map_or("nothing yet", |(_, phase)| phase)
    }

    fn count(&self, what: &str) {
        *self.tally.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }
}

/// The groups of chunks that the target held, verified, at the last kill: nobody may fetch them again.
struct Held {
    name: String,
    index: Index,
    layout: Layout,
    chunks: Vec<Chunk>,
    /// Requests that the server had answered by then.
    served: usize,
}

impl Held {
    fn new(release: &Release) -> Held {
        let bytes = fs::read(&release.bundle).unwrap();
        let head = bundle::head(&bytes).unwrap();
        let body = Body::parse(head.manifest).unwrap();
        let layout = head.layout(&body).unwrap();
        let span = layout.index_span();
        let span = &bytes[usize::try_from(span.start).unwrap()..usize::try_from(span.end).unwrap()];
        let index = Index::parse(layout.index(span).unwrap().to_vec(), &body.image).unwrap();
        Held { name: release.name.clone(), index, layout, chunks: Vec::new(), served: usize::MAX }
    }

    /// Reads the target while nobody writes it. The first MiB is withheld until the end, so it says nothing.
    fn look(&mut self, world: &World, target: Slot) {
        let slot = fs::read(world.gateway.slot(target)).unwrap();
        let there = |chunk: &Chunk| {
            let start = usize::try_from(chunk.offset).unwrap();
            ChunkDigest::of(&slot[start..start + chunk.length as usize]) == chunk.digest
        };
        let (held, missing): (Vec<Chunk>, Vec<Chunk>) =
            self.index.iter().filter(|chunk| !self.index.is_zero(chunk)).partition(there);
        // A group is unpacked from its start: one that was cut in the middle is fetched as far as it is needed.
        let torn: BTreeSet<u64> = missing.iter().map(|chunk| chunk.group_offset).collect();
        let whole = |chunk: &Chunk| chunk.group_offset >= GUARD && !torn.contains(&chunk.group_offset);
        self.chunks = held.into_iter().filter(whole).collect();
        self.served = world.hub.faults().log().len();
    }

    /// No request since then covers a frame of theirs, unless it is as small as the gaps between frames may be.
    fn check(&self, world: &World) {
        for request in
            world.hub.faults().log().iter().skip(self.served).filter(|request| request.path == self.name)
        {
            let asked = request.offset..request.offset + request.length;
            let again = self.chunks.iter().map(|chunk| self.layout.frame(chunk)).find(|frame| {
                frame.end - frame.start > GAP && frame.start < asked.end && asked.start < frame.end
            });
            assert_eq!(
                again,
                None,
                "{DEVICE} asked for {asked:?} although it had this\n{}",
                world.gateway.log()
            );
        }
    }
}
