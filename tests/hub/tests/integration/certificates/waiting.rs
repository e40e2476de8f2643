//! A certificate waits for its device: for a subscription, a connection, an acknowledgement, and the hub itself.

use mqttbytes::QoS;

use super::{
    ANSWERS, Link, Pair, RENEWING, acknowledge, answer, ask, asking, body, come_back, issued, log_in,
    publish, request, subscribe_safely,
};
use crate::client::Site;

/// A request whose certificate is held; the connection breaks after the 202.
async fn cut_off(site: &Site) -> Pair {
    let (mut client, pair) = asking(site, "gw").await;
    site.hub.faults().mqtt(|faults| {
        faults.hold_certificates = true;
        faults.cut_certificates = 1;
    });
    ask(&mut client, "1234", &body("gw", &request("gw").1)).await;
    assert_eq!(answer(&mut client, "1234").await.0, 202);
    client.expect_closed().await;
    pair
}

fn release(site: &Site) {
    site.hub.faults().mqtt(|faults| faults.hold_certificates = false);
}

async fn log_in_again(site: &Site, pair: &Pair) -> Link {
    log_in(site, "gw", RENEWING, pair).await.unwrap()
}

#[tokio::test]
async fn a_certificate_comes_after_a_cut_and_a_new_subscription() {
    let site = Site::new().await;
    let pair = cut_off(&site).await;
    release(&site);
    let mut client = log_in_again(&site, &pair).await;
    client.expect_silence().await;
    client.subscribe(ANSWERS).await;
    issued(&mut client, "1234").await;
    drop(client);
    let mut client = log_in_again(&site, &pair).await;
    client.subscribe(ANSWERS).await;
    client.expect_silence().await;
    assert_eq!(site.hub.issued("gw").len(), 2);
}

#[tokio::test]
async fn a_session_that_was_kept_needs_no_new_subscription() {
    let site = Site::new().await;
    let (mut client, pair) = asking(&site, "gw").await;
    site.hub.faults().mqtt(|faults| faults.hold_certificates = true);
    ask(&mut client, "1234", &body("gw", &request("gw").1)).await;
    assert_eq!(answer(&mut client, "1234").await.0, 202);
    drop(client);
    release(&site);
    let (mut client, present) = come_back(&site, "gw", RENEWING, &pair, false).await.unwrap();
    assert!(present);
    issued(&mut client, "1234").await;
}

#[tokio::test]
async fn nothing_is_answered_without_a_subscription() {
    let site = Site::new().await;
    let (client, pair) = asking(&site, "gw").await;
    drop(client);
    let mut client = log_in_again(&site, &pair).await;
    ask(&mut client, "1234", &body("gw", &request("gw").1)).await;
    client.expect_silence().await;
    let done = || site.hub.issued("gw").len() == 2;
    assert!(site.hub.wait_until(crate::client::PATIENCE, done).await);
    client.expect_silence().await;
    client.subscribe(ANSWERS).await;
    issued(&mut client, "1234").await;
}

#[tokio::test]
async fn with_quality_of_service_1_a_certificate_comes_until_it_is_acknowledged() {
    let site = Site::new().await;
    let (client, pair) = asking(&site, "gw").await;
    drop(client);
    let mut client = log_in_again(&site, &pair).await;
    subscribe_safely(&mut client).await;
    ask(&mut client, "1234", &body("gw", &request("gw").1)).await;
    assert_eq!(publish(&mut client).await.topic, "$iothub/credentials/res/202/?$rid=1234");
    let first = publish(&mut client).await;
    assert_eq!((first.qos, &*first.topic), (QoS::AtLeastOnce, "$iothub/credentials/res/200/?$rid=1234"));
    drop(client);

    let mut client = log_in_again(&site, &pair).await;
    subscribe_safely(&mut client).await;
    let again = publish(&mut client).await;
    assert_eq!(again.payload, first.payload);
    acknowledge(&mut client, again.pkid).await;
    drop(client);

    let mut client = log_in_again(&site, &pair).await;
    subscribe_safely(&mut client).await;
    client.expect_silence().await;
    assert_eq!(site.hub.issued("gw").len(), 2);
}

#[tokio::test]
async fn a_request_outlives_a_restart_of_the_hub() {
    let mut site = Site::new().await;
    let pair = cut_off(&site).await;
    site.hub.restart().await.unwrap();
    release(&site);
    let mut client = log_in_again(&site, &pair).await;
    client.subscribe(ANSWERS).await;
    issued(&mut client, "1234").await;
}
