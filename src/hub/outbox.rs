//! Events that wait until the agent takes them, so that a busy agent never stops the keep-alive.
//!
//! It stays small whatever the hub sends: newer desired properties and acknowledgements replace older ones,
//! and the number of waiting calls is limited.

use std::collections::VecDeque;
use std::mem::discriminant;

use tokio::sync::mpsc;

use super::event::HubEvent;
use super::method::MethodCall;

/// Calls that may wait; the caller of one more is told to come back.
const CALLS: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<HubEvent>,
}

impl Outbox {
    pub fn push(&mut self, event: HubEvent) {
        let sort = |event: &HubEvent| match event {
            // Only the last state of the connection is of interest.
            HubEvent::Disconnected { .. } => discriminant(&HubEvent::Connected),
            other => discriminant(other),
        };
        if !matches!(event, HubEvent::Method(_)) {
            self.waiting.retain(|waiting| sort(waiting) != sort(&event));
        }
        self.waiting.push_back(event);
    }

    /// Queues a call, or gives it back if too many wait.
    pub fn push_call(&mut self, call: MethodCall) -> Result<(), MethodCall> {
        let calls = self.waiting.iter().filter(|waiting| matches!(waiting, HubEvent::Method(_))).count();
        if calls >= CALLS {
            return Err(call);
        }
        self.push(HubEvent::Method(call));
        Ok(())
    }

    /// Hands events to the agent for ever; returns only when the agent is gone. Nothing is lost when this is
    /// cancelled.
    pub async fn deliver(&mut self, events: &mpsc::Sender<HubEvent>) {
        while !self.waiting.is_empty() {
            let Ok(permit) = events.reserve().await else { return };
            if let Some(event) = self.waiting.pop_front() {
                permit.send(event);
            }
        }
        events.closed().await;
    }

    /// Hands over what fits without waiting.
    pub fn deliver_now(&mut self, events: &mpsc::Sender<HubEvent>) {
        while let Ok(permit) = events.try_reserve() {
            let Some(event) = self.waiting.pop_front() else { return };
            permit.send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call() -> MethodCall {
        MethodCall::new("m".into(), "1", b"", mpsc::unbounded_channel().0)
    }

    #[test]
    fn newer_news_replaces_older_and_calls_are_limited() {
        let mut outbox = Outbox::default();
        for version in 0..100 {
            outbox.push(HubEvent::Desired(json!({"$version": version})));
            outbox.push(HubEvent::Acknowledged { generation: version });
            outbox.push(HubEvent::Connected);
            outbox.push(HubEvent::Disconnected { reason: "r".into(), denied: false });
        }
        let refused = (0..100).filter(|_| outbox.push_call(call()).is_err()).count();
        assert_eq!(refused, 100 - CALLS);
        assert_eq!(outbox.waiting.len(), 3 + CALLS);
        assert!(matches!(outbox.waiting.front(), Some(HubEvent::Desired(v)) if v["$version"] == 99));
    }

    #[tokio::test]
    async fn a_cancelled_delivery_loses_nothing_and_keeps_the_order() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut outbox = Outbox::default();
        outbox.push(HubEvent::Connected);
        outbox.push(HubEvent::Acknowledged { generation: 4 });
        tokio::select! {
            biased;
            () = outbox.deliver(&sender) => panic!("the agent is there"),
            () = std::future::ready(()) => {}
        }
        assert!(matches!(receiver.recv().await, Some(HubEvent::Connected)));
        outbox.deliver_now(&sender);
        assert!(matches!(receiver.recv().await, Some(HubEvent::Acknowledged { generation: 4 })));
        drop(receiver);
        outbox.deliver(&sender).await;
    }
}
