//! The fault table: each fault of the way to the hub, in each phase of an update. Whatever happens, the update goes
//! on, the twin tells each phase when the way is free again, and the story that the hub recorded is legal.

use std::fmt::Write;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::harness::{DEVICE, LIMIT, World};
use crate::stops::{ID, Stop, Walk};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    LostAcknowledgement,
    LostPuback,
    RepeatedAnswer,
    RepeatedMethod,
    Delay,
    Throttle,
    Refusal,
    Drop,
    ExpiredToken,
    RenewedToken,
    Restart,
    FailOver,
    SecondController,
}

const FAULTS: [(Fault, &str); 13] = [
    (Fault::LostAcknowledgement, "the report is applied, the connection breaks before its answer"),
    (Fault::LostPuback, "a publish is handled and not acknowledged"),
    (Fault::RepeatedAnswer, "the answer to a report comes twice"),
    (Fault::RepeatedMethod, "the call is repeated, and delivered twice"),
    (Fault::Delay, "the hub handles each publish 150 ms late"),
    (Fault::Throttle, "a report is refused with 429"),
    (Fault::Refusal, "the connection breaks, the next CONNECT is refused with 5"),
    (Fault::Drop, "the hub drops every connection"),
    (Fault::ExpiredToken, "the token expires; the hub closes, and takes only a new one"),
    (Fault::RenewedToken, "the agent renews its token of 3 s"),
    (Fault::Restart, "the hub restarts"),
    (Fault::FailOver, "the hub fails over: another address, and the twin as it was a phase ago"),
    (Fault::SecondController, "a second controller calls every method, and fwupdatectl another update"),
];

impl Fault {
    /// Where it cannot be: nobody is there to be called, or nothing runs that stands in the way.
    fn applies(self, stop: Stop) -> bool {
        match self {
            Fault::RepeatedMethod | Fault::RenewedToken => stop.is_awake(),
            Fault::SecondController => stop.is_awake() && stop != Stop::Ended,
            _ => true,
        }
    }

    /// Of `[cloud]`.
    fn settings(self) -> &'static str {
        match self {
            Fault::RenewedToken => "token_ttl = \"3s\"\n",
            _ => "",
        }
    }

    /// What goes wrong while the phase is entered.
    fn on_the_way(self, world: &World) {
        world.hub.faults().mqtt(|faults| match self {
            Fault::LostAcknowledgement => faults.cut_patch_answers = 1,
            Fault::LostPuback => faults.lose_pubacks = 1,
            Fault::RepeatedAnswer => faults.repeat_patch_answers = 1,
            Fault::RepeatedMethod => faults.repeat_methods = 1,
            Fault::Delay => faults.delay_ms = 150,
            Fault::Throttle => faults.throttle_patches = 1,
            _ => {}
        });
    }

    /// What goes wrong once it is reached; returns when the way is free again.
    async fn strike(self, walk: &mut Walk, stop: Stop, copies: &Copies) {
        let accepted = accepted(&walk.world);
        match self {
            Fault::Refusal => {
                walk.world.hub.faults().mqtt(|faults| faults.refuse_connects = 1);
                walk.world.hub.drop_connections(None);
            }
            Fault::Drop => walk.world.hub.drop_connections(None),
            Fault::ExpiredToken => walk.world.hub.expire_token(DEVICE).unwrap(),
            Fault::RenewedToken => {}
            Fault::Restart => walk.world.hub.restart().await.unwrap(),
            Fault::FailOver => {
                walk.world.hub.fail_over(vec![copies.clone().unwrap()]).await.unwrap();
                walk.world.relay.as_ref().unwrap().turn(walk.world.hub.mqtt_addr());
            }
            Fault::RepeatedMethod => {
                let again = json!({"fwPackageUri": walk.release.url, "operationId": ID});
                let answer = walk.ask("firmwareUpdate", again).await;
                assert_eq!((answer.status, &answer.payload["operationId"]), (200, &ID.into()), "{stop:?}");
                return;
            }
            Fault::SecondController => return interfere(walk).await,
            _ => return,
        }
        if stop.is_awake() {
            assert!(walk.world.hub.wait_accepted(DEVICE, accepted + 1, LIMIT).await, "{self:?} in {stop:?}");
        }
    }
}

/// The device as it was a phase ago.
type Copies = Option<fwupdate_hub::registry::Entry>;

fn accepted(world: &World) -> usize {
    world.hub.visits(DEVICE).iter().filter(|visit| visit.accepted).count()
}

/// Everything that another operator may try meanwhile is refused and names what runs.
async fn interfere(walk: &mut Walk) {
    let other = json!({"fwPackageUri": walk.world.hub.files_url("other.fwb"), "operationId": "other"});
    let calls = [
        ("firmwareUpdate", other),
        ("firmwareRollback", json!({"operationId": "other"})),
        ("firmwareCancel", json!({"operationId": "other"})),
        ("firmwareApprove", json!({"operationId": "other"})),
        ("reboot", json!({})),
    ];
    let calls = calls.map(|(method, payload)| walk.ask(method, payload));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!((answer.status, &answer.payload["error"]["operationId"]), (409, &ID.into()));
    }
    let bundle = walk.release.bundle.display().to_string();
    let output = walk.world.ctl(&["install", &bundle]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Busy"), "{said}");
}

/// One update with the fault in every phase that it has.
async fn story(fault: Fault, good: bool) -> Vec<(Stop, bool)> {
    let mut walk = Walk::new(good, fault == Fault::FailOver, fault.settings()).await;
    let mut struck = Vec::new();
    for stop in walk.stops() {
        let copy = Some(walk.world.hub.copy(DEVICE).unwrap());
        let applies = fault.applies(stop);
        if applies {
            fault.on_the_way(&walk.world);
        }
        walk.enter(stop).await;
        if applies {
            fault.strike(&mut walk, stop, &copy).await;
        }
        // The way is free: the gateway answers, from the same place.
        walk.told(stop).await;
        if stop.is_awake() {
            let answer = walk.ask("firmwareStatus", json!({})).await;
            let (told, twin) = (&answer.payload["fwupdate"]["operation"]["phase"], walk.world.twin());
            assert_eq!(told, &twin["fwupdate"]["operation"]["phase"], "{fault:?} in {stop:?}: {twin}");
        }
        struck.push((stop, applies));
    }
    let hub = &walk.world.hub;
    let last = &hub.twin(DEVICE).unwrap()["properties"]["reported"]["fwupdate"]["last"];
    assert_eq!((&last["id"], &last["result"]), (&ID.into(), &walk.result().into()), "{fault:?}: {last}");
    let left = hub.faults().get().mqtt;
    let unused =
        [left.cut_patch_answers, left.repeat_patch_answers, left.throttle_patches, left.refuse_connects];
    assert_eq!(unused, [0; 4], "{fault:?} did not happen");
    let visits = hub.visits(DEVICE);
    let orderly = visits.iter().filter(|visit| visit.orderly).count();
    assert!(fault != Fault::RenewedToken || orderly > 2, "no token was renewed: {visits:?}");
    walk.world.finish_disturbed().await;
    struck
}

/// The table of docs/testing.md.
fn table(struck: &[(Fault, Vec<(Stop, bool)>)]) -> String {
    let mut text = "| fault |".to_owned();
    for stop in Stop::ALL {
        write!(text, " {stop:?} |").unwrap();
    }
    writeln!(text, "\n|---|{}", "---|".repeat(Stop::ALL.len())).unwrap();
    for (fault, name) in FAULTS {
        write!(text, "| {name} |").unwrap();
        for stop in Stop::ALL {
            let held = struck.iter().any(|(who, stops)| *who == fault && stops.contains(&(stop, true)));
            write!(text, " {} |", if held { "held" } else { "–" }).unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
fn each_fault_in_each_phase() {
    // All at once: most of their time is waiting.
    let struck = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (fault, good) in FAULTS.iter().flat_map(|(fault, _)| [(*fault, true), (*fault, false)]) {
            let struck = &struck;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let started = std::time::Instant::now();
                let stops = runtime.block_on(story(fault, good));
                println!("{fault:?}, {} image: {:.1?}", if good { "good" } else { "bad" }, started.elapsed());
                struck.lock().unwrap().push((fault, stops));
            });
        }
    });
    let table = table(&struck.into_inner().unwrap());
    println!("{table}");
    let documented = include_str!("../../docs/testing.md");
    assert!(documented.contains(&table), "docs/testing.md does not hold this table");
}

/// The rest of a lost acknowledgement: the connection stays, and only time tells.
#[tokio::test]
async fn an_answer_that_never_comes_is_not_waited_for_for_ever() {
    let mut walk = Walk::new(true, false, "").await;
    walk.enter(Stop::Opening).await;
    walk.world.hub.faults().mqtt(|faults| faults.lose_patch_answers = 1);
    let before = accepted(&walk.world);
    for stop in walk.stops().into_iter().filter(|stop| (Stop::Preparing..=Stop::Holding).contains(stop)) {
        walk.enter(stop).await;
    }
    assert_eq!(accepted(&walk.world), before, "the connection was given up");
    assert_eq!(walk.world.hub.faults().get().mqtt.lose_patch_answers, 0);
    for stop in [Stop::Arming, Stop::Rebooting, Stop::Trying, Stop::Committing, Stop::Ended] {
        walk.enter(stop).await;
    }
    walk.world.finish_disturbed().await;
}

/// Two controllers, a desired section and a person at the gateway, all at the same moment.
#[tokio::test]
async fn of_many_who_ask_at_once_one_gets_its_way_and_the_others_are_told() {
    let mut world = World::new().await;
    let (two, three) = (world.release("2.0.0"), world.release("3.0.0"));
    let call = |id: &str| {
        let payload = json!({"fwPackageUri": two.url, "operationId": id});
        let call = fwupdate_hub::methods::Call::new("firmwareUpdate", Some(payload));
        world.hub.invoke(DEVICE, call)
    };
    let desired = json!({"fwupdate": {"fwPackageUri": three.url, "version": "3.0.0", "operationId": "wish"}});
    let (one, other, wish) =
        tokio::join!(call("one"), call("other"), async { world.hub.patch_desired(DEVICE, desired) });
    wish.unwrap();
    let mut statuses = [one.unwrap().status, other.unwrap().status];
    statuses.sort_unstable();
    assert!(statuses == [200, 409] || statuses == [409, 409], "{statuses:?}");
    // The section comes first or waits for the outcome; either way it is what stands in the end.
    let settled = |twin: &Value| {
        twin["fwupdate"]["last"]["id"] == "wish" && twin["fwupdate"]["desired"]["code"] == "Committed"
    };
    timeout(LIMIT, world.reported(settled)).await.unwrap();
    world.finish().await;
}
