//! Servers that answer badly, or lead somewhere else.

use std::fs;

use fwupdate_hub::faults::FileEffect::{self, Flip, NoRanges, Redirect, Status, Truncate};
use fwupdate_hub::faults::FileRule;

use super::{Bytes, expect, failed, fetch, goes_on};
use crate::harness::{Setup, World};

/// A gateway that may fetch from the hub and from names that end in `.254`.
async fn world() -> World {
    let mut world = World::with(Setup { on: false, ..Setup::default() }).await;
    let settings = world.gateway.dir().join("fwupdate.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let widened = text.replace("allowed_hosts = [", "allowed_hosts = [\"*.254\", ");
    assert_ne!(text, widened);
    fs::write(settings, widened).unwrap();
    world.gateway.power_on().unwrap();
    world.reported(|reported| reported["firmwareStatus"] == "standBy").await;
    world
}

fn redirect(to: &str) -> FileEffect {
    Redirect { to: to.to_owned() }
}

#[tokio::test]
async fn a_bad_answer_to_the_first_request_writes_nothing() {
    let mut world = world().await;
    let before = Bytes::of(&world.gateway);
    let good = world.release("2.0.0");
    let itself = format!("{}?sig=hush-hush", good.url);
    for (case, effect, code, word) in [
        ("200 to a range", NoRanges, "DownloadFailed", "ranges"),
        ("401", Status { status: 401 }, "Forbidden", "401"),
        ("403", Status { status: 403 }, "Forbidden", "403"),
        ("404", Status { status: 404 }, "NotFound", "404"),
        ("410", Status { status: 410 }, "NotFound", "410"),
        ("a strange status", Status { status: 418 }, "DownloadFailed", "418"),
        ("to http", redirect("http://localhost/fw?sig=hush-hush"), "NotPermitted", "https"),
        ("to a file", redirect("file:///etc/shadow"), "NotPermitted", "https"),
        ("to an unlisted host", redirect("https://example.org/fw"), "NotPermitted", "allowed_hosts"),
        ("to loopback", redirect("https://127.0.0.1/fw"), "NotPermitted", "allowed_hosts"),
        // Listed by a wildcard, which vouches for no address.
        (
            "to a link-local address",
            redirect("https://169.254.169.254/fw"),
            "NotPermitted",
            "no public address",
        ),
        ("to itself for ever", redirect(&itself), "DownloadFailed", "redirected"),
    ] {
        world.hub.faults().file(FileRule::always(&good.name, effect));
        let payload = fetch(&world, &good.name);
        expect(case, &failed(&mut world, payload).await, code, word);
        before.same(&world, case);
        world.hub.faults().clear();
    }
    goes_on(world).await;
}

#[tokio::test]
async fn a_bad_answer_later_on_leaves_the_running_slot_alone() {
    let mut world = world().await;
    let before = Bytes::of(&world.gateway);
    let good = world.release("2.0.0");
    let middle = fs::metadata(&good.bundle).unwrap().len() / 2;
    for (case, good_answers, effect, code, word) in [
        ("wrong bytes", 0, Flip { offset: middle }, "DigestMismatch", ""),
        ("200 to a later range", 2, NoRanges, "DownloadFailed", "ranges"),
        ("the token expires", 2, Status { status: 403 }, "Forbidden", "403"),
        ("the file goes away", 2, Status { status: 404 }, "NotFound", "404"),
        ("a later redirect", 2, redirect("http://localhost/fw"), "NotPermitted", "https"),
    ] {
        let faults = world.hub.faults();
        faults.reset_counts();
        // A rule that changes nothing lets so many requests pass.
        faults.file(FileRule::next(good_answers, &good.name, Truncate { length: u64::MAX }));
        faults.file(FileRule::always(&good.name, effect));
        let payload = fetch(&world, &good.name);
        expect(case, &failed(&mut world, payload).await, code, word);
        assert!(world.hub.faults().count(&good.name).requests > good_answers, "{case} was never met");
        let now = Bytes::of(&world.gateway);
        assert!(now.slots[0] == before.slots[0], "{case}: the running slot changed");
        assert_eq!(world.gateway.boot_variable("fwupdate_primary").unwrap(), "A", "{case}");
        assert_eq!(world.gateway.boot_variable("fwupdate_trial").unwrap(), "", "{case}");
        world.hub.faults().clear();
    }
    goes_on(world).await;
}
