//! The agent's side of a connection, for tests.

use rumqttc::mqttbytes::v4::Packet;
use serde_json::{Value, json};

use super::*;
use crate::hub::testing::{Peer, soon};

pub fn document(generation: u64, body: Value) -> Arc<Document> {
    let Value::Object(body) = body else { panic!("a document is an object") };
    Arc::new(Document { body, generation, milestone: generation })
}

pub fn twin(desired: Value, reported: Value) -> Value {
    json!({"desired": desired, "reported": reported})
}

/// The agent's side.
pub struct Agent {
    pub documents: watch::Sender<Arc<Document>>,
    pub events: mpsc::Receiver<HubEvent>,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<()>,
}

impl Agent {
    pub fn start(cloud: Cloud, body: Value) -> Agent {
        Agent::at(cloud, body, Clock::default(), 16)
    }

    pub fn at(cloud: Cloud, body: Value, clock: Clock, capacity: usize) -> Agent {
        let (watch, documents) = watch::channel(document(1, body));
        let (events, inbox) = mpsc::channel(capacity);
        let shutdown = CancellationToken::new();
        let (_, telemetry) = mpsc::channel(1);
        let (interval, stop) = (Duration::from_secs(3600), shutdown.clone());
        let parts = Parts { cloud, interval, clock, documents, events, telemetry, shutdown: stop };
        let mut connection = Connection::new(parts);
        connection.backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(20));
        connection.settled = Duration::ZERO;
        let task = tokio::spawn(connection.run());
        Agent { documents: watch, events: inbox, shutdown, task }
    }

    pub async fn event(&mut self) -> HubEvent {
        soon(self.events.recv()).await.expect("the driver ended")
    }

    pub async fn connected(&mut self) {
        let event = self.event().await;
        assert!(matches!(event, HubEvent::Connected), "{event:?}");
    }

    pub async fn desired(&mut self) -> Value {
        match self.event().await {
            HubEvent::Desired(desired) => desired,
            other => panic!("no desired properties but {other:?}"),
        }
    }

    pub async fn acknowledged(&mut self) -> u64 {
        match self.event().await {
            HubEvent::Acknowledged { generation } => generation,
            other => panic!("no acknowledgement but {other:?}"),
        }
    }

    pub async fn disconnected(&mut self) -> String {
        match self.event().await {
            HubEvent::Disconnected { reason, .. } => reason,
            other => panic!("no disconnection but {other:?}"),
        }
    }

    pub async fn call(&mut self) -> MethodCall {
        match self.event().await {
            HubEvent::Method(call) => call,
            other => panic!("no call but {other:?}"),
        }
    }

    /// Stops the driver and reads what the hub still gets.
    pub async fn stop(self, mut hub: Peer) {
        self.shutdown.cancel();
        assert_eq!(hub.read().await, Some(Packet::Disconnect));
        soon(self.task).await.unwrap();
        assert_eq!(hub.read().await, None);
    }
}
