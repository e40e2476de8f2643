//! A trial proves who the device is by the device's key: an image that cannot, where the old slot could, goes back and says
//! which key and why. The key is in SoftHSM, and images bring settings of their own along.

use std::fs;

use fwupdate_hub::firmware::Slot;
use serde_json::json;

use crate::harness::{LIMIT, World};
use crate::next_update::{goes_back, image, settings};
use crate::token::{PIN, Public, SOFTHSM, Token, issue, state, world, write_pin};

const DROP_IN: &str = "fwupdate.d/60-token.toml";

/// A gateway that has a session by its token's key; its own settings, with a verdict that falls soon; and what they say of
/// the token.
async fn gateway() -> (Token, World, String, String) {
    let token = Token::softhsm("EC:prime256v1");
    let mut world = world(&token, PIN).await;
    world.switch_on().await;
    let own = settings(&world, &[]);
    let cloud = fs::read_to_string(world.gateway.dir().join(DROP_IN)).unwrap();
    (token, world, own, cloud)
}

#[tokio::test]
async fn an_image_that_cannot_use_the_devices_key_goes_back_and_names_it() {
    let (token, mut world, own, cloud) = gateway().await;
    let etc = world.gateway.root().join("etc");
    let at = |name: &str| etc.join(name).display().to_string();
    let lies = |name: &str| state(&world, name).display().to_string();
    let key = cloud.lines().find_map(|line| line.strip_prefix("key_file = ")).unwrap().to_owned();
    let stranger = issue(&Public::of(&rcgen::KeyPair::generate().unwrap().public_key_der())).pem();
    let changes = [
        (SOFTHSM.to_owned(), "/usr/lib/softhsm/gone.so".to_owned(), "module /usr/lib/softhsm/gone.so cannot"),
        (lies("pin"), at("pin"), "refuses the PIN in"),
        (lies("pin"), at("nowhere"), "cannot be read"),
        ("token=gateway".to_owned(), "token=other".to_owned(), "no token is there that pkcs11:token=other;"),
        ("object=device".to_owned(), "object=other".to_owned(), "has no private key that pkcs11:"),
        (key, format!("{:?}", at("device.key.pem")), "device.key.pem cannot be read"),
        (lies("device.pem"), at("other.pem"), "is not that of the certificate in"),
        (lies("device.pem"), at("nowhere.pem"), "nowhere.pem cannot be read"),
    ];
    for (number, (from, to, word)) in changes.iter().enumerate() {
        assert!(cloud.contains(from), "{from}");
        let changed = cloud.replace(from, to);
        let etc = [
            ("fwupdate.toml", own.as_str()),
            (DROP_IN, &changed),
            ("pin", "9999\n"),
            ("other.pem", &stranger),
        ];
        goes_back(&mut world, &format!("2.0.{number}"), &etc, "hub settings", word).await;
    }
    // The old slot goes on as if nothing had been.
    let release = world.release("3.0.0");
    assert_eq!(world.install(&release).await["result"], "committed");
    drop(token);
    world.finish_disturbed().await;
}

#[tokio::test]
async fn an_image_whose_certificate_the_hub_refuses_goes_back() {
    let (token, mut world, own, cloud) = gateway().await;
    let unknown = issue(&Public::of(&fs::read(token.public_der()).unwrap())).pem();
    let at = world.gateway.root().join("etc/device.pem").display().to_string();
    let changed = cloud.replace(&state(&world, "device.pem").display().to_string(), &at);
    let changed = format!("{changed}reconnect_longest = \"2s\"\n");
    let own = own.replace("deadline = \"2s\"", "deadline = \"20s\"");
    let etc = [("fwupdate.toml", own.as_str()), (DROP_IN, &changed), ("device.pem", &unknown)];
    goes_back(&mut world, "2.0.0", &etc, "hub", "refused the credentials of gw").await;
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_token_that_is_gone_counts_against_a_trial_if_the_old_slot_could_use_it() {
    let (mut token, mut world, own, cloud) = gateway().await;
    let etc = [("fwupdate.toml", own.as_str()), (DROP_IN, &cloud)];
    let release = image(&mut world, "2.0.0", &etc);
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    token.unplug();
    world.gateway.reboot().await.unwrap();
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.reboot().await.unwrap();
    assert_eq!(world.booted(), Slot::A);
    token.plug_in();
    let last = world.outcome(&id).await;
    assert_eq!(
        (&last["result"], &last["error"]["code"]),
        (&"rolledBack".into(), &"HealthCheckFailed".into())
    );
    let said = last["error"]["evidence"]["excerpt"].as_str().unwrap();
    assert!(said.contains(&format!("the PKCS#11 module {SOFTHSM} cannot be used")), "{last}");
    world.finish_disturbed().await;
}

#[tokio::test]
async fn a_token_that_was_gone_before_says_nothing_against_an_image() {
    let (mut token, mut world, own, cloud) = gateway().await;
    token.unplug();
    world.hub.drop_connections(None);
    world.doctor_says_of_the_hub("cannot be used").await;
    let release = image(&mut world, "2.0.0", &[("fwupdate.toml", own.as_str()), (DROP_IN, &cloud)]);
    let output = world.ctl(&["install", release.bundle.to_str().unwrap(), "--wait"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.booted(), Slot::B);
    token.plug_in();
    world.reported(|reported| reported["fwupdate"]["last"]["result"] == "committed").await;
    world.finish_disturbed().await;
}

/// The old slot reads its PIN from the same file: the trial spent the one try.
#[tokio::test]
async fn a_pin_that_was_changed_for_the_worse_before_the_reboot_goes_back() {
    let (_token, mut world, own, cloud) = gateway().await;
    let release = image(&mut world, "2.0.0", &[("fwupdate.toml", own.as_str()), (DROP_IN, &cloud)]);
    let id = world.update(json!({"fwPackageUri": release.url})).await;
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    write_pin(&world, "9999");
    world.gateway.reboot().await.unwrap();
    world.gateway.wait_reboot_requested(LIMIT).await.unwrap();
    world.gateway.reboot().await.unwrap();
    world.doctor_says_of_the_hub("refuses the PIN").await;
    write_pin(&world, PIN);
    let last = world.outcome(&id).await;
    assert!(last["error"]["message"].as_str().unwrap().contains("refuses the PIN"), "{last}");
    world.finish_disturbed().await;
}
