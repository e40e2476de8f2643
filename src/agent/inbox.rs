//! What reaches the agent, and how it waits. Nothing that may block runs on the one thread that serves the hub, the
//! downloads and local control: it gets a thread of its own, and while the agent waits for it the watchdog is fed, and
//! whoever only asks is answered from what is saved.

use std::collections::VecDeque;
use std::future::Future;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Agent;
use crate::control::{self, Method};
use crate::failure::Failure;
use crate::fault::blocking;
use crate::hub;

/// What may wait until the agent is free; the rest stays in its channel.
const LATER: usize = 64;

/// Something that the agent has to deal with.
pub enum Incoming {
    Hub(hub::Event),
    Control(control::Call),
}

/// The agent's two sources, and what came while it could not act.
pub struct Inbox {
    events: mpsc::Receiver<hub::Event>,
    calls: mpsc::Receiver<control::Call>,
    later: VecDeque<Incoming>,
}

impl Inbox {
    pub fn new(events: mpsc::Receiver<hub::Event>, calls: mpsc::Receiver<control::Call>) -> Inbox {
        Inbox { events, calls, later: VecDeque::new() }
    }

    /// The oldest that was not dealt with.
    pub async fn next(&mut self) -> Incoming {
        match self.later.pop_front() {
            Some(incoming) => incoming,
            None => self.receive().await,
        }
    }

    /// What comes next. A channel that is closed (no hub, no socket) brings nothing any more.
    async fn receive(&mut self) -> Incoming {
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => Incoming::Hub(event),
            Some(call) = self.calls.recv() => Incoming::Control(call),
            else => std::future::pending().await,
        }
    }
}

impl Agent {
    /// Does what may block on a thread of its own.
    pub(super) async fn aside<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.meanwhile(blocking(work)).await
    }

    /// Waits for `work`, and meanwhile only answers.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let since = Instant::now();
        tokio::pin!(work);
        loop {
            let room = self.inbox.later.len() < LATER;
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.watchdog.due_for(since) => self.watchdog.feed(),
                incoming = self.inbox.receive(), if room => self.answer_or_keep(incoming),
            }
        }
    }

    fn answer_or_keep(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Hub(hub::Event::Method(call)) if call.name == "firmwareStatus" => {
                call.respond(200, Value::Object(self.publisher.body(&self.saved)));
            }
            Incoming::Control(call) => match self.told(call.request.method) {
                Some(answer) => drop(call.reply.offer(Ok(answer))),
                None if call.request.method == Method::Watch => self.add_watcher(call.reply),
                None => self.inbox.later.push_back(Incoming::Control(call)),
            },
            other => self.inbox.later.push_back(other),
        }
    }
}
