//! One attempt at a session: a place at a hub, a connection to it, and what is said there. Everything is made anew for
//! each.

use rumqttc::MqttOptions;

use super::{Connection, SessionEnd};
use crate::clock::Clock;
use crate::config::{Cloud, Seat};
use crate::hub::dial::{self, Connect};
use crate::hub::error::{Contact, HubError};
use crate::hub::event::HubEvent;
use crate::hub::identity;
use crate::hub::relay::Relay;
use crate::hub::session::Session;
use crate::reach::Memory;

impl Connection {
    /// From looking for a hub to the end of the session there.
    pub(super) async fn session(&mut self) -> SessionEnd {
        let (options, seat, contact, relay) = match self.prepare().await {
            Ok(prepared) => prepared,
            Err(end) => return end,
        };
        let (session, eventloop) = Session::new(options, seat, contact, dial::token_life(&self.cloud));
        let end = self.converse(session, eventloop).await;
        if matches!(end, SessionEnd::Stopped) {
            relay.end().await;
        }
        end
    }

    /// Everything that the next attempt needs, made anew.
    async fn prepare(&mut self) -> Result<(MqttOptions, Seat, Contact, Relay), SessionEnd> {
        let origin = self.clock.origin().0;
        if std::mem::replace(&mut self.origin, origin.clone()) != origin {
            self.outbox.push(HubEvent::ClockChanged);
        }
        let seat = tokio::select! {
            seat = self.placement.find(&self.cloud, &self.clock) => seat.map_err(SessionEnd::Lost)?,
            () = self.shutdown.cancelled() => return Err(SessionEnd::Stopped),
            () = self.outbox.deliver(&self.events) => return Err(SessionEnd::Stopped),
        };
        let (options, contact, relay) = tokio::select! {
            dialled = dialled(&self.cloud, &seat, &self.clock, &self.memory) => dialled.map_err(SessionEnd::Lost)?,
            () = self.shutdown.cancelled() => return Err(SessionEnd::Stopped),
            () = self.outbox.deliver(&self.events) => return Err(SessionEnd::Stopped),
        };
        Ok((options, seat, contact, relay))
    }
}

async fn dialled(
    cloud: &Cloud,
    seat: &Seat,
    clock: &Clock,
    memory: &Memory,
) -> Result<(MqttOptions, Contact, Relay), HubError> {
    let token = dial::token(cloud, &identity::resource(seat), clock)?;
    let connect = Connect {
        host: identity::address(seat),
        port: cloud.port,
        client_id: identity::client_id(seat),
        user_name: identity::user_name(seat),
        password: token.map(|token| token.expose().to_owned()).unwrap_or_default(),
    };
    dial::dial(cloud, connect, clock, memory).await
}
