//! The twin client over one connection: what is sent, in which order, and what each answer leads to.

use super::*;
use serde_json::json;

const INTERVAL: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

fn document(generation: u64, milestone: u64, body: Value) -> Arc<Document> {
    let Value::Object(body) = body else { panic!("a document is an object") };
    Arc::new(Document { body, generation, milestone })
}

/// A twin session with a clock of its own.
struct Scene {
    twin: Twin,
    now: Instant,
}

impl Scene {
    fn new(body: Value) -> Scene {
        let backoff = Backoff::new(SECOND, 100 * SECOND);
        let mut twin = Twin::new(0xab, INTERVAL, backoff, document(1, 1, body));
        let now = Instant::now();
        assert!(twin.poll(now).is_empty(), "nothing is sent before there is a connection");
        twin.connected();
        Scene { twin, now }
    }

    /// Connected, and the twin was read.
    fn ready(body: Value, reported: Value) -> Scene {
        let mut scene = Scene::new(body);
        let rid = scene.read();
        let answer = json!({"desired": {"$version": 1}, "reported": reported});
        let actions = scene.answer(&rid, 200, answer);
        assert!(matches!(actions[..], [TwinAction::Ready, TwinAction::Desired(_)]), "{actions:?}");
        scene
    }

    fn publish(&mut self) -> Option<(String, Value)> {
        match &self.twin.poll(self.now)[..] {
            [] => None,
            [TwinAction::Publish { topic, payload }] => {
                Some((topic.clone(), serde_json::from_slice(payload).unwrap_or(Value::Null)))
            }
            other => panic!("not one request but {other:?}"),
        }
    }

    /// Expects a request for the twin.
    fn read(&mut self) -> String {
        let (topic, _) = self.publish().expect("a request for the twin");
        topic.strip_prefix("$iothub/twin/GET/?$rid=").expect(&topic).to_owned()
    }

    /// Expects a patch.
    fn patch(&mut self) -> (String, Value) {
        let (topic, body) = self.publish().expect("a patch");
        let rid = topic.strip_prefix("$iothub/twin/PATCH/properties/reported/?$rid=").expect(&topic);
        (rid.to_owned(), body)
    }

    fn answer(&mut self, rid: &str, status: u16, body: Value) -> Vec<TwinAction> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.twin.answered(self.now, 0.5, rid, status, &body)
    }

    fn accepted(&mut self, rid: &str) -> u64 {
        match self.answer(rid, 204, Value::Null)[..] {
            [TwinAction::Acknowledged(generation)] => generation,
            ref other => panic!("no acknowledgement but {other:?}"),
        }
    }

    /// Nothing is due before `wake_at`; go there.
    fn sleep(&mut self) -> Duration {
        assert!(self.publish().is_none());
        let at = self.twin.wake_at(self.now).expect("something to wait for");
        assert!(at > self.now, "a wake-up in the past would spin");
        let slept = at - self.now;
        self.now = at - Duration::from_nanos(1);
        assert!(self.publish().is_none());
        self.now = at;
        slept
    }
}

#[test]
fn the_twin_is_read_before_anything_is_sent_and_only_the_difference_is() {
    let mut scene = Scene::ready(json!({"a": 1, "b": 2}), json!({"a": 1, "b": 1}));
    let (rid, patch) = scene.patch();
    assert_eq!(patch, json!({"b": 2}));
    assert!(!scene.twin.is_settled());
    assert_eq!(scene.accepted(&rid), 1);
    assert!(scene.twin.is_settled() && scene.twin.wake_at(scene.now).is_none());
    assert!(scene.publish().is_none());
}

#[test]
fn a_document_that_the_twin_already_holds_is_acknowledged_once_without_a_patch() {
    let mut scene = Scene::ready(json!({"a": 1}), json!({"a": 1}));
    assert!(matches!(scene.twin.poll(scene.now)[..], [TwinAction::Acknowledged(1)]));
    assert!(scene.twin.poll(scene.now).is_empty());
    scene.twin.document(document(2, 1, json!({"a": 1})));
    assert!(matches!(scene.twin.poll(scene.now)[..], [TwinAction::Acknowledged(2)]));
}

#[test]
fn one_patch_is_in_flight_and_the_newest_document_follows() {
    let mut scene = Scene::ready(json!({"n": 1}), json!({}));
    let (rid, _) = scene.patch();
    for generation in 2..=4 {
        scene.twin.document(document(generation, generation, json!({"n": generation})));
        assert!(scene.publish().is_none());
    }
    assert_eq!(scene.accepted(&rid), 1);
    let (rid, patch) = scene.patch();
    assert_eq!(patch, json!({"n": 4}));
    assert_eq!(scene.accepted(&rid), 4);
}

#[test]
fn progress_is_coalesced_and_a_milestone_is_not() {
    let mut scene = Scene::ready(json!({"n": 1}), json!({}));
    let (rid, _) = scene.patch();
    scene.accepted(&rid);
    scene.now += SECOND;
    scene.twin.document(document(2, 1, json!({"n": 2})));
    scene.twin.document(document(3, 1, json!({"n": 3})));
    assert_eq!(scene.sleep(), INTERVAL - SECOND);
    let (rid, patch) = scene.patch();
    assert_eq!(patch, json!({"n": 3}));
    scene.accepted(&rid);

    scene.twin.document(document(4, 2, json!({"n": 4})));
    let (rid, _) = scene.patch();
    scene.accepted(&rid);
    scene.twin.document(document(5, 2, json!({"n": 5})));
    assert!(scene.publish().is_none());
    scene.twin.hurry();
    assert_eq!(scene.patch().1, json!({"n": 5}));
}

#[test]
fn a_throttled_patch_waits_longer_each_time_and_then_sends_the_newest() {
    let mut scene = Scene::ready(json!({"n": 0}), json!({}));
    let mut pauses = Vec::new();
    for n in 1..=8 {
        let (rid, patch) = scene.patch();
        assert_eq!(patch, json!({"n": n - 1}));
        assert!(scene.answer(&rid, 429, Value::Null).is_empty());
        // Not even a milestone may break the pause.
        scene.twin.document(document(n, n, json!({"n": n})));
        pauses.push(scene.sleep().as_secs_f64());
    }
    assert_eq!(pauses, [1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 50.5, 50.5]);
    let (rid, _) = scene.patch();
    assert_eq!(scene.accepted(&rid), 8);
}

#[test]
fn after_a_server_error_the_twin_tells_whether_the_patch_arrived() {
    let mut scene = Scene::ready(json!({"n": 2}), json!({"n": 1}));
    let (rid, _) = scene.patch();
    assert!(scene.answer(&rid, 500, Value::Null).is_empty());
    // Back to what the twin held before: only reading it shows that it holds something else.
    scene.twin.document(document(2, 2, json!({"n": 1})));
    scene.sleep();
    let rid = scene.read();
    scene.answer(&rid, 200, json!({"desired": {"$version": 1}, "reported": {"n": 2}}));
    let (rid, patch) = scene.patch();
    assert_eq!(patch, json!({"n": 1}));
    // The read does not make a hub that fails patches look healthy.
    scene.answer(&rid, 503, Value::Null);
    assert_eq!(scene.sleep().as_secs_f64(), 2.5);
}

#[test]
fn a_rejected_document_waits_for_a_change() {
    let mut scene = Scene::ready(json!({"n": "bad"}), json!({}));
    let (rid, _) = scene.patch();
    assert!(scene.answer(&rid, 400, json!({"message": "depth"})).is_empty());
    assert!(scene.publish().is_none() && scene.twin.is_settled());
    assert!(scene.twin.wake_at(scene.now).is_none());
    scene.twin.document(document(2, 2, json!({"n": "bad"})));
    assert!(scene.publish().is_none(), "the same content is not sent again, nor acknowledged");
    scene.twin.document(document(3, 3, json!({"n": "good"})));
    let (rid, _) = scene.patch();
    assert_eq!(scene.accepted(&rid), 3);
}

#[test]
fn a_document_that_changed_while_the_old_one_was_rejected_is_sent() {
    let mut scene = Scene::ready(json!({"n": "bad"}), json!({}));
    let (rid, _) = scene.patch();
    scene.twin.document(document(2, 2, json!({"n": "good"})));
    scene.answer(&rid, 400, Value::Null);
    assert_eq!(scene.patch().1, json!({"n": "good"}));
}

#[test]
fn an_unanswered_patch_is_followed_by_a_read_and_an_unanswered_read_ends_the_connection() {
    let mut scene = Scene::ready(json!({"n": 1}), json!({}));
    let (late, _) = scene.patch();
    assert_eq!(scene.sleep(), ANSWER_WITHIN);
    let rid = scene.read();
    assert!(scene.answer(&late, 204, Value::Null).is_empty(), "a late answer counts no more");
    assert!(scene.twin.is_busy());
    assert_ne!(late, rid);
    assert_eq!(scene.sleep(), ANSWER_WITHIN);
    assert!(matches!(scene.twin.poll(scene.now)[..], [TwinAction::Lost(HubError::TwinSilent)]));
}

#[test]
fn a_new_connection_starts_with_a_read_and_forgets_what_was_in_flight() {
    let mut scene = Scene::ready(json!({"n": 1}), json!({}));
    let (old, _) = scene.patch();
    scene.twin.disconnected();
    assert!(scene.publish().is_none() && scene.twin.wake_at(scene.now).is_none());
    scene.twin.connected();
    let rid = scene.read();
    assert!(scene.answer(&old, 204, Value::Null).is_empty());
    scene.answer(&rid, 200, json!({"desired": {"$version": 1}, "reported": {"n": 1}}));
    assert!(matches!(scene.twin.poll(scene.now)[..], [TwinAction::Acknowledged(1)]));
}

#[test]
fn only_a_newer_desired_version_is_read_and_handed_out() {
    let mut scene = Scene::ready(json!({}), json!({}));
    scene.twin.poll(scene.now);
    scene.twin.announced(1);
    assert!(scene.publish().is_none());
    scene.twin.announced(3);
    let rid = scene.read();
    // Older than what was announced: handed out all the same, and read again after a pause.
    let actions = scene.answer(&rid, 200, json!({"desired": {"$version": 2}, "reported": {}}));
    assert!(matches!(&actions[..], [TwinAction::Desired(v)] if v["$version"] == 2));
    assert_eq!(scene.sleep().as_secs_f64(), 1.5);
    let rid = scene.read();
    let actions = scene.answer(&rid, 200, json!({"desired": {"$version": 3}, "reported": {}}));
    assert!(matches!(&actions[..], [TwinAction::Desired(v)] if v["$version"] == 3));
    assert!(scene.twin.is_settled());
}

#[test]
fn an_absurd_version_does_not_make_it_read_for_ever() {
    let mut scene = Scene::ready(json!({}), json!({}));
    scene.twin.poll(scene.now);
    scene.twin.announced(u64::MAX);
    for _ in 0..STALE_READS {
        let rid = scene.read();
        assert!(scene.answer(&rid, 200, json!({"desired": {"$version": 1}})).is_empty());
        scene.sleep();
    }
    let rid = scene.read();
    scene.answer(&rid, 200, json!({"desired": {"$version": 1}}));
    assert!(scene.twin.is_settled() && scene.publish().is_none());
}

#[test]
fn a_twin_that_cannot_be_had_ends_the_connection_or_is_waited_for() {
    for (status, body) in [(200, json!("x")), (200, json!({"reported": []})), (404, Value::Null)] {
        let mut scene = Scene::new(json!({}));
        let rid = scene.read();
        assert!(matches!(scene.answer(&rid, status, body)[..], [TwinAction::Lost(_)]));
    }
    let mut scene = Scene::new(json!({}));
    let rid = scene.read();
    assert!(scene.answer(&rid, 503, Value::Null).is_empty());
    scene.sleep();
    scene.read();
}
