//! When a server is asked for the time: while nobody keeps the clock right, and a failure suggests that it is wrong, or
//! a session has stood for a while.

use tokio::time::Instant;

use super::Connection;
use crate::clock;
use crate::config::{TimeServer, Transport};
use crate::hub::date;

impl Connection {
    /// Learns the time from a server while nobody keeps the clock right. False: it is time to stop.
    pub(super) async fn ask_the_time(&mut self) -> bool {
        let due = !self.clock.synchronised() && Instant::now() >= self.time_due;
        let Some((host, port)) = self.time_server().filter(|_| due) else { return true };
        self.time_due = clock::after(Instant::now(), self.time_pauses.next(fastrand::f64()));
        let asked = tokio::select! {
            asked = date::learn(&self.cloud, &host, port, &self.clock) => asked,
            () = self.shutdown.cancelled() => return false,
            () = self.outbox.deliver(&self.events) => return false,
        };
        if let Err(error) = asked {
            if self.logged.insert(error.reason()) {
                tracing::warn!("{error}");
            }
            self.clock.not_learned(error.to_string());
        }
        true
    }

    /// The same when a session has stood for a while, in which a time service could have set the clock: the hub may
    /// be reached by a clock that is wrong, and a download's server not.
    pub(super) fn ask_the_time_later(&mut self) {
        self.later.abort_all();
        let Some((host, port)) = self.time_server().filter(|_| self.clock.wants_time()) else { return };
        let (cloud, clock, settled) = (self.cloud.clone(), self.clock.clone(), self.settled);
        self.later.spawn(async move {
            tokio::time::sleep(settled).await;
            if !clock.wants_time() {
                return;
            }
            if let Err(error) = date::learn(&cloud, &host, port, &clock).await {
                tracing::debug!("{error}");
                clock.not_learned(error.to_string());
            }
        });
    }

    /// Who is asked for the time.
    fn time_server(&self) -> Option<(String, u16)> {
        match &self.cloud.time_server {
            TimeServer::Nobody => None,
            TimeServer::Other { host, port } => Some((host.clone(), *port)),
            TimeServer::Own => {
                let (host, port) = self.placement.host();
                let port = match self.cloud.transport {
                    Transport::WebSocket => port.unwrap_or(self.cloud.port),
                    Transport::Mqtt => Transport::WebSocket.port(),
                };
                Some((host.to_owned(), port))
            }
        }
    }
}
