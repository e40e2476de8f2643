//! Clocks that are wrong, and clocks that are set: the whole agent on a gateway whose battery died.

use std::fs;
use std::time::Duration;

use fwupdate::store::Store;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::harness::{LIMIT, Setup, World};

/// The stand-in hub's HTTPS port is not 443.
fn ask_the_hub(world: &World) {
    let port = world.hub.https_addr().port();
    let settings = format!("[cloud]\ntime_server = \"localhost:{port}\"\n");
    world.gateway.configure("60-time", &settings).unwrap();
}

const YEAR: i64 = 365 * 86_400;
const HOUR: i64 = 3600;

/// A gateway that is off, and whose clock is so many seconds wrong and set by nobody.
async fn world(offset: i64) -> World {
    let world = World::with(Setup { on: false, ..Setup::default() }).await;
    world.gateway.set_clock(offset, false).unwrap();
    world
}

/// The time in the newest copy of the record, beside an agent that may run.
fn saved(world: &World) -> Option<i64> {
    let copies = ["record.0", "record.1"].map(|name| {
        let text = fs::read_to_string(world.gateway.dir().join("state").join(name)).ok()?;
        let (head, body) = text.split_once('\n')?;
        let sequence: u64 = head.split_once("seq=")?.1.split(' ').next()?.parse().ok()?;
        let record: Value = serde_json::from_str(body).ok()?;
        Some((sequence, record["synchronisedTime"].as_i64()?))
    });
    copies.into_iter().flatten().max().map(|(_, time)| time)
}

async fn until_saved(world: &World, wanted: impl Fn(i64) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !saved(world).is_some_and(&wanted) {
        assert!(Instant::now() < deadline, "{:?}\n{}", saved(world), world.gateway.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Puts a time into the record: as a synchronised clock, or as an early release, which saved whatever the clock said.
fn leave_behind(world: &World, field: &str, time: i64) {
    let mut store = Store::open(&world.gateway.dir().join("state")).unwrap();
    let mut record = store.load::<Value>().unwrap().unwrap_or_else(|| json!({}));
    record[field] = json!(time);
    (0..2).for_each(|_| store.save(&record).unwrap());
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn is_now(time: i64) -> bool {
    (time - now()).abs() < HOUR
}

#[tokio::test]
async fn a_gateway_that_once_started_forty_years_ahead_is_well_once_its_clock_is_set() {
    let mut world = world(40 * YEAR).await;
    world.gateway.power_on().unwrap();
    world.doctor_says_of_the_hub("valid until").await;
    world.doctor_says("clock", "not synchronised").await;
    world.gateway.reboot().await.unwrap();
    world.doctor_says_of_the_hub("valid until").await;
    assert!(saved(&world).is_none_or(|time| time < now()), "{:?}", saved(&world));

    world.gateway.set_clock(0, true).unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    world.doctor_says("clock", "synchronised").await;
    until_saved(&world, is_now).await;
    // The next boot finds the battery dead again: what was saved while the clock was right counts.
    world.gateway.set_clock(-40 * YEAR, false).unwrap();
    world.power_cut().await;
    world.doctor_says("clock", "saved earlier").await;
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_floor_in_the_far_future_is_lowered_by_a_synchronised_clock() {
    let mut world = world(0).await;
    let absurd = now() + 40 * YEAR;
    leave_behind(&world, "synchronisedTime", absurd);
    world.gateway.power_on().unwrap();
    let year = OffsetDateTime::from_unix_timestamp(absurd).unwrap().year();
    world.doctor_says("clock", &format!("{year}-")).await;
    world.doctor_says("clock", "`date -s \"YYYY-MM-DD hh:mm\" && install -D /dev/null /run/systemd/").await;
    world.doctor_says_of_the_hub("valid until").await;
    assert_eq!(saved(&world), Some(absurd), "nobody says yet that it is wrong");

    world.gateway.set_clock(0, true).unwrap();
    until_saved(&world, is_now).await;
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    // No power cut brings it back, with whatever clock.
    world.gateway.set_clock(0, false).unwrap();
    world.power_cut().await;
    let id = world.update(json!({"fwPackageUri": world.hub.files_url("none.fwb")})).await;
    world.outcome(&id).await;
    assert!(saved(&world).is_some_and(is_now));
    world.finish_disturbed().await;
}

#[tokio::test]
async fn no_clock_ends_the_agent() {
    let mut world = world(0).await;
    world.gateway.set_clock(0, true).unwrap();
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    let last = time::macros::datetime!(9999-12-31 23:59:50 UTC).unix_timestamp() - now();
    for offset in [i64::MAX, i64::MIN, last, last + 20, -now(), -now() - 20, -3000 * YEAR] {
        for kept in [true, false] {
            world.gateway.set_clock(offset, kept).unwrap();
            assert!(world.ctl(&["status"]).await.status.success(), "{offset}");
            // The record is saved in that time.
            world.ctl(&["install", &world.hub.files_url("none.fwb")]).await;
            world.crash().await;
            world.until_shown_at_all(&["status"]).await;
        }
    }
    world.gateway.set_clock(0, true).unwrap();
    world.power_cut().await;
    until_saved(&world, is_now).await;
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    world.finish_with_a_clock_that_jumped().await;
}

#[tokio::test]
async fn what_an_early_release_saved_is_no_floor() {
    let mut world = world(-50 * YEAR).await;
    ask_the_hub(&world);
    leave_behind(&world, "wallClock", now() + 40 * YEAR);
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["fwupdate"]["agent"]["clock"] == "localhost").await;
    world.doctor_says("hub", "session is open").await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_time_service_that_is_wrong_once_leaves_no_floor() {
    let mut world = world(40 * YEAR).await;
    ask_the_hub(&world);
    world.gateway.set_clock(40 * YEAR, true).unwrap();
    world.gateway.power_on().unwrap();
    world.doctor_says_of_the_hub("certificate and its chain renewed").await;
    // The record is saved in that time.
    let url = world.hub.files_url("none.fwb");
    assert!(world.ctl(&["install", &url]).await.status.success());
    assert!(saved(&world).is_some_and(|time| time < now()), "{:?}", saved(&world));
    world.gateway.set_clock(40 * YEAR, false).unwrap();
    world.power_cut().await;
    world.reported(|reported| reported["fwupdate"]["agent"]["clock"] == "localhost").await;
    world.doctor_says("hub", "session is open").await;
    world.finish_with_a_clock_that_jumped().await;
}

/// Connects, installs and says whose time counts, with a clock that is so many seconds wrong and set by nobody.
async fn goes_by_the_hub_s_time(offset: i64) {
    let mut world = world(offset).await;
    ask_the_hub(&world);
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["fwupdate"]["agent"]["clock"] == "localhost").await;
    world.doctor_says("clock", "localhost says that it is").await;
    world.doctor_says("hub", "session is open").await;
    let release = world.release("2.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    let told = world.twin()["logTime"].as_str().unwrap().to_owned();
    let told = OffsetDateTime::parse(&told, &time::format_description::well_known::Rfc3339).unwrap();
    assert!(is_now(told.unix_timestamp()), "{told}");
    assert!(saved(&world).is_none_or(|time| time < now() - YEAR), "a time that nobody keeps right was saved");

    // The clock is set after all.
    world.gateway.set_clock(0, true).unwrap();
    world.crash().await;
    world.reported(|reported| reported["fwupdate"]["agent"].get("clock").is_none()).await;
    until_saved(&world, is_now).await;
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert_eq!(log.matches("certificates and tokens go from now on").count(), 2, "once in each boot: {log}");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_clock_that_nobody_sets_and_that_is_decades_behind_is_made_up_for_by_the_hub_s_time() {
    goes_by_the_hub_s_time(-50 * YEAR).await;
}

#[tokio::test]
async fn a_clock_that_nobody_sets_and_that_is_decades_ahead_is_made_up_for_by_the_hub_s_time() {
    goes_by_the_hub_s_time(40 * YEAR).await;
}

#[tokio::test]
async fn nobody_is_asked_for_the_time_if_the_setting_says_so_or_the_clock_is_synchronised() {
    let mut world = world(-50 * YEAR).await;
    world.gateway.configure("60-time", "[cloud]\ntime_server = \"none\"\n").unwrap();
    world.gateway.power_on().unwrap();
    world.doctor_says_of_the_hub("is not valid yet").await;
    world.gateway.shut_down().await.unwrap();
    // A synchronised clock is believed even where it is wrong: then certificates say so.
    ask_the_hub(&world);
    world.gateway.set_clock(40 * YEAR, true).unwrap();
    world.gateway.power_on().unwrap();
    world.doctor_says_of_the_hub("certificate and its chain renewed").await;
    let log = fs::read_to_string(world.gateway.log_path()).unwrap();
    assert!(!log.contains("go from now on"), "{log}");
    world.gateway.set_clock(0, true).unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    world.finish_disturbed().await;
}
