//! One device's connection: frames in and out, keep-alive, the token's end, and the hub's wish to be rid of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use mqttbytes::v4::{self, ConnAck, Connect, ConnectReturnCode, Packet, PingResp, Publish};
use mqttbytes::{Error as MqttError, Protocol, QoS};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connect::{Accepted, authorise};
use super::provisioning::Registrar;
use super::session::{Next, Session};
use crate::clock;
use crate::core::Core;
use crate::live::{Message, Ticket};
use crate::registry::Identity;
use crate::trace::Trace;

/// A message of 256 KB with its topic and properties.
const PACKET_LIMIT: usize = 256 * 1024 + 16 * 1024;
/// How long a new connection may take to say CONNECT, and any to take what it is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The hub waits no longer than this between two packets, whatever the client asked for.
const LONGEST_SILENCE: Duration = Duration::from_secs(1767);

/// Serves a connection until either side ends it; `chain` is that of the client's certificate.
pub async fn serve<S>(core: Arc<Core>, stream: S, chain: Vec<CertificateDer<'static>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if core.faults.take(|faults| &mut faults.drop_connects) {
        return;
    }
    let trace = core.trace.clone();
    let mut wire = Wire { stream, buffer: BytesMut::new(), number: core.live.number(), trace };
    if let Err(error) = converse(&core, &mut wire, &chain).await {
        tracing::info!("connection closed: {error:#}");
    }
    // The other side may be gone already.
    drop(timeout(PATIENCE, wire.stream.shutdown()).await);
}

async fn converse<S>(core: &Arc<Core>, wire: &mut Wire<S>, chain: &[CertificateDer<'static>]) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connect = match timeout(PATIENCE, wire.read()).await.context("no CONNECT came")?? {
        Some(Packet::Connect(connect)) => connect,
        Some(other) => bail!("the first packet is {other:?}, not CONNECT"),
        None => return Ok(()),
    };
    if connect.protocol != Protocol::V4 {
        wire.refuse(ConnectReturnCode::RefusedProtocolVersion).await?;
        bail!("only MQTT 3.1.1 is spoken");
    }
    if connect.login.as_ref().is_some_and(|login| core.dps.is_addressed(&login.username)) {
        return provision(core, wire, &connect, chain).await;
    }
    let number = wire.number;
    let came = |accepted| core.history.came(&Identity::from(&*connect.client_id), number, accepted);
    if !core.faults.admits() {
        came(false);
        bail!("429 ThrottlingException: too many connects in this second");
    }
    let refused = core.faults.take(|faults| &mut faults.refuse_connects);
    let accepted = match authorise(core, &connect, chain) {
        Ok(accepted) if !refused => accepted,
        outcome => {
            came(false);
            wire.refuse(ConnectReturnCode::NotAuthorized).await?;
            bail!(
                "refused {:?}: {}",
                connect.client_id,
                outcome.err().unwrap_or_else(|| "by a fault".to_owned())
            );
        }
    };
    came(true);
    attend(core, wire, connect, accepted).await
}

/// The whole of a connection to the provisioning service.
async fn provision<S>(
    core: &Arc<Core>,
    wire: &mut Wire<S>,
    connect: &Connect,
    chain: &[CertificateDer<'static>],
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (name, password) =
        connect.login.as_ref().map_or(("", ""), |login| (&login.username, &login.password));
    let applicant = match core.dps.authorise(&connect.client_id, name, password, chain) {
        Ok(applicant) => applicant,
        Err(reason) => {
            wire.refuse(ConnectReturnCode::NotAuthorized).await?;
            bail!("the provisioning service refused {:?}: {reason}", connect.client_id);
        }
    };
    tracing::info!(registration = connect.client_id, "registers");
    let expiry = end_of_token(applicant.expiry);
    let mut registrar = Registrar::new(core.clone(), applicant);
    wire.send(&[Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))]).await?;
    let silence = longest_silence(connect.keep_alive);
    loop {
        let packet = tokio::select! {
            packet = timeout(silence, wire.read()) => packet.context("nothing was heard")??,
            () = at(expiry) => bail!("the token expired"),
        };
        match registrar.on_packet(packet.ok_or_else(|| anyhow!("the device hung up without DISCONNECT"))?) {
            Next::Send(packets) => wire.send(&packets).await?,
            Next::End => return Ok(()),
            Next::Close(reason) => bail!(reason),
        }
    }
}

/// From CONNACK to the end.
async fn attend<S>(core: &Arc<Core>, wire: &mut Wire<S>, connect: Connect, accepted: Accepted) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let identity = accepted.identity.clone();
    let (mut session, present) = Session::open(core.clone(), &accepted, connect.clean_session)?;
    // Before CONNACK, so that who hears of the connection can rely on it.
    let mut ticket = core.live.enter(&identity, wire.number);
    let visit = Leaving { core, identity: &identity, number: wire.number, orderly: AtomicBool::new(false) };
    tracing::info!(%identity, "connected");
    let silence = longest_silence(connect.keep_alive);
    let outcome = async {
        wire.send(&[Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, present))]).await?;
        exchange(core, wire, &mut session, &mut ticket, silence, end_of_token(accepted.expiry)).await
    }
    .await;
    visit.orderly.store(outcome.is_ok(), Ordering::Relaxed);
    core.live.leave(&identity, ticket.number);
    if let (Err(_), Some(will)) = (&outcome, &connect.last_will) {
        session.on_will(&will.topic, &will.message);
    }
    tracing::info!(%identity, "disconnected");
    outcome
}

/// Notes the end of a visit, also when the hub's own end cuts it short.
struct Leaving<'a> {
    core: &'a Core,
    identity: &'a Identity,
    number: u64,
    orderly: AtomicBool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.core.history.left(self.identity, self.number, self.orderly.load(Ordering::Relaxed));
    }
}

async fn exchange<S>(
    core: &Core,
    wire: &mut Wire<S>,
    session: &mut Session,
    ticket: &mut Ticket,
    silence: Duration,
    expiry: Option<Instant>,
) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut last_heard = Instant::now();
    let (mut pushes, mut answers) = (core.devicebound.watch(), core.renewals.watch());
    loop {
        if ticket.closed.is_cancelled() {
            bail!("closed by the hub");
        }
        let mut due = session.devicebound();
        due.extend(session.certificate());
        if !due.is_empty() {
            wire.send(&due).await?;
        }
        tokio::select! {
            packet = wire.read() => {
                let packet = packet?.ok_or_else(|| anyhow!("the device hung up without DISCONNECT"))?;
                last_heard = Instant::now();
                if matches!(packet, Packet::Publish(_)) {
                    sleep(core.faults.delay()).await;
                }
                match session.on_packet(packet) {
                    Next::Send(packets) => wire.send(&packets).await?,
                    Next::End => return Ok(()),
                    Next::Close(reason) => bail!(reason),
                }
            }
            Ok(()) = pushes.changed() => {}
            Ok(()) = answers.changed() => {}
            message = ticket.inbox.recv() => match message {
                Some(Message { topic, payload }) => {
                    wire.send(&[Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, payload))]).await?;
                }
                None => bail!("a newer connection took over"),
            },
            () = ticket.closed.cancelled() => bail!("closed by the hub"),
            () = sleep_until(last_heard + silence) => bail!("nothing was heard for {silence:?}"),
            () = at(expiry) => bail!("401003 IoTHubUnauthorized: the token expired"),
        }
    }
}

/// One and a half times the keep-alive; none asked for means the longest.
fn longest_silence(keep_alive: u16) -> Duration {
    match keep_alive {
        0 => LONGEST_SILENCE,
        seconds => LONGEST_SILENCE.min(Duration::from_secs(u64::from(seconds)) * 3 / 2),
    }
}

fn end_of_token(expiry: Option<u64>) -> Option<Instant> {
    let left = Duration::from_secs(expiry?.saturating_sub(clock::unix()));
    Instant::now().checked_add(left)
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// A stream of packets.
struct Wire<S> {
    stream: S,
    /// Bytes that are no whole packet yet; kept here, so that a cancelled read loses nothing.
    buffer: BytesMut,
    /// Of this connection.
    number: u64,
    trace: Arc<Trace>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// The next packet; `None` at the end of the stream.
    async fn read(&mut self) -> Result<Option<Packet>> {
        loop {
            let before = self.trace.is_on().then(|| self.buffer.clone());
            match v4::read(&mut self.buffer, PACKET_LIMIT) {
                Ok(packet) => {
                    let taken = before.as_ref().and_then(|b| b.get(..b.len() - self.buffer.len()));
                    self.trace.record(self.number, true, taken.unwrap_or_default());
                    return Ok(Some(packet));
                }
                Err(MqttError::InsufficientBytes(_)) => {}
                Err(error) => bail!("broken packet: {error:?}"),
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn send(&mut self, packets: &[Packet]) -> Result<()> {
        let mut bytes = BytesMut::new();
        for packet in packets {
            let start = bytes.len();
            encode(packet, &mut bytes).map_err(|error| anyhow!("cannot encode {packet:?}: {error:?}"))?;
            self.trace.record(self.number, false, bytes.get(start..).unwrap_or_default());
        }
        let written = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        timeout(PATIENCE, written).await.context("the device takes nothing")??;
        Ok(())
    }

    async fn refuse(&mut self, code: ConnectReturnCode) -> Result<()> {
        self.send(&[Packet::ConnAck(ConnAck::new(code, false))]).await
    }
}

fn encode(packet: &Packet, bytes: &mut BytesMut) -> Result<(), MqttError> {
    match packet {
        Packet::ConnAck(packet) => packet.write(bytes),
        Packet::Publish(packet) => packet.write(bytes),
        Packet::PubAck(packet) => packet.write(bytes),
        Packet::SubAck(packet) => packet.write(bytes),
        Packet::UnsubAck(packet) => packet.write(bytes),
        Packet::PingResp => PingResp.write(bytes),
        _ => Err(MqttError::IncorrectPacketFormat),
    }
    .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_one_and_a_half_keep_alives_and_capped() {
        assert_eq!(longest_silence(60), Duration::from_secs(90));
        assert_eq!(longest_silence(0), LONGEST_SILENCE);
        assert_eq!(longest_silence(u16::MAX), LONGEST_SILENCE);
        assert_eq!(longest_silence(1), Duration::from_millis(1500));
    }

    #[test]
    fn a_token_that_never_ends_sets_no_alarm() {
        assert_eq!(end_of_token(Some(u64::MAX)), None);
        assert_eq!(end_of_token(None), None);
    }
}
