//! What reaches the agent, and how it waits. Nothing that may block runs on the one thread that serves the hub, the
//! downloads and local control: it gets a thread of its own, and while the agent waits for it the watchdog is fed, and
//! whoever only asks is answered from what is saved.

use std::collections::VecDeque;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::systemd::Watchdog;
use crate::control;
use crate::hub;

/// What may wait until the agent is free; the rest stays in its channel.
const LATER: usize = 64;

/// Something that the agent has to deal with.
pub enum Incoming {
    Hub(hub::HubEvent),
    Control(control::Call),
}

/// The agent's two sources, and what came while it could not act.
pub struct Inbox {
    sources: Channels,
    later: VecDeque<Incoming>,
    watchdog: Watchdog,
}

impl Inbox {
    pub fn new(events: mpsc::Receiver<hub::HubEvent>, calls: mpsc::Receiver<control::Call>) -> Inbox {
        Inbox { sources: Channels { events, calls }, later: VecDeque::new(), watchdog: Watchdog::new() }
    }

    /// The oldest that was not dealt with.
    pub async fn next(&mut self) -> Incoming {
        if let Some(incoming) = self.later.pop_front() {
            return incoming;
        }
        loop {
            tokio::select! {
                biased;
                () = self.watchdog.due() => self.watchdog.feed(),
                incoming = self.sources.next() => return incoming,
            }
        }
    }

    /// Waits for `work`, and meanwhile deals only with what `answer` takes.
    pub async fn meanwhile<T>(
        &mut self,
        work: impl Future<Output = T>,
        mut answer: impl FnMut(Incoming) -> Option<Incoming>,
    ) -> T {
        let since = Instant::now();
        tokio::pin!(work);
        loop {
            let room = self.later.len() < LATER;
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.watchdog.due_for(since) => self.watchdog.feed(),
                incoming = self.sources.next(), if room => self.later.extend(answer(incoming)),
            }
        }
    }
}

struct Channels {
    events: mpsc::Receiver<hub::HubEvent>,
    calls: mpsc::Receiver<control::Call>,
}

impl Channels {
    /// What comes next. A channel that is closed (no hub, no socket) brings nothing any more.
    async fn next(&mut self) -> Incoming {
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => Incoming::Hub(event),
            Some(call) = self.calls.recv() => Incoming::Control(call),
            else => std::future::pending().await,
        }
    }
}
