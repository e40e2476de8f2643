//! Who is connected now: one link per identity, the newest wins.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::lock;
use crate::registry::Identity;

/// Messages that may wait for a device that does not read; one more, and it is dropped.
const BACKLOG: usize = 256;

/// A message for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
}

/// The hub's hold on one connection.
#[derive(Debug, Clone)]
struct Link {
    number: u64,
    outbox: mpsc::Sender<Message>,
    closed: CancellationToken,
}

/// The connection's own end.
#[derive(Debug)]
pub struct Ticket {
    pub number: u64,
    pub inbox: mpsc::Receiver<Message>,
    /// Cancelled when the hub wants the connection gone.
    pub closed: CancellationToken,
}

/// All links.
#[derive(Debug)]
pub struct Live {
    links: Mutex<HashMap<Identity, Link>>,
    numbers: AtomicU64,
    changes: watch::Sender<()>,
}

impl Live {
    pub fn new() -> Live {
        Live { links: Mutex::default(), numbers: AtomicU64::new(1), changes: watch::Sender::new(()) }
    }

    /// A number for a new connection.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes the identity's place; an older connection is closed (log code 400027 in Azure).
    pub fn enter(&self, identity: &Identity, number: u64) -> Ticket {
        let (outbox, inbox) = mpsc::channel(BACKLOG);
        let closed = CancellationToken::new();
        let link = Link { number, outbox, closed: closed.clone() };
        if let Some(older) = lock(&self.links).insert(identity.clone(), link) {
            tracing::info!(%identity, "400027 ConnectionForcefullyClosedOnNewConnection");
            older.closed.cancel();
        }
        self.changed();
        Ticket { number, inbox, closed }
    }

    /// Gives the place up, unless a newer connection has it.
    pub fn leave(&self, identity: &Identity, number: u64) {
        let mut links = lock(&self.links);
        if links.get(identity).is_some_and(|link| link.number == number) {
            links.remove(identity);
        }
        drop(links);
        self.changed();
    }

    pub fn is_connected(&self, identity: &Identity) -> bool {
        lock(&self.links).contains_key(identity)
    }

    /// Hands a message to the connection; `false` if there is none that takes it.
    pub fn send(&self, identity: &Identity, message: Message) -> bool {
        let links = lock(&self.links);
        let Some(link) = links.get(identity) else { return false };
        let taken = link.outbox.try_send(message).is_ok();
        if !taken {
            link.closed.cancel();
        }
        taken
    }

    /// Closes the connection of `identity`, or of everyone.
    pub fn close(&self, identity: Option<&Identity>) {
        for (owner, link) in lock(&self.links).iter() {
            if identity.is_none_or(|identity| identity == owner) {
                link.closed.cancel();
            }
        }
    }

    /// Says that a link or a subscription changed.
    pub fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Wakes at every change from now on.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

impl Default for Live {
    fn default() -> Live {
        Live::new()
    }
}
