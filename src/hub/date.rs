//! The time, for gateways on which nothing sets the clock because a firewall lets out port 443 alone: the hub's or
//! the provisioning service's HTTPS endpoint tells it in the `Date` of an answer.
//!
//! It is believed if the server's certificate is good at the very time that it tells, and if that is not before a time
//! known to be past. Nothing else of the answer is looked at. The time dates certificates and tokens; the system's
//! clock is not set, and does not count as synchronised.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::ServerName;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::{HubError, bounded};
use super::way;
use crate::bounds::told;
use crate::clock::Clock;
use crate::config::Cloud;
use crate::reach::Memory;
use crate::tls::{Proof, Verdict};
use crate::tunnel;

/// How far two clocks that are right may differ.
const DRIFT: time::Duration = time::Duration::minutes(5);
/// For TLS and the answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of a date as RFC 9110 writes it, with room.
const DATE_LIMIT: usize = 40;

/// Asks `host` for the time, and has `clock` know it.
pub(super) async fn learn(cloud: &Cloud, host: &str, port: u16, clock: &Clock) -> Result<(), HubError> {
    let failed = |cause: String| HubError::NoTime { address: format!("{host}:{port}"), cause };
    let roots = cloud.roots.clone();
    let made = tokio::task::spawn_blocking(move || Proof::of(&roots)).await;
    let (config, proof) = made.map_err(|error| failed(error.to_string()))??;
    let (stream, _) = way::connect(cloud, host, port, &Memory::default()).await?;
    let asked = timeout(ANSWERED_WITHIN, ask(stream, Arc::new(config), host)).await;
    let head = asked.map_err(|_| failed("it does not answer".to_owned()))?.map_err(failed)?;
    let time = date(&head).ok_or_else(|| failed("its answer has no Date".to_owned()))?;
    if time.saturating_add(DRIFT) < clock.floor() {
        return Err(failed(format!("it says {}, and {} is past already", told(time), told(clock.floor()))));
    }
    if let Err(fault) = proof.holds_at(time) {
        return Err(failed(format!(
            "it says {}, at which time its certificate {}",
            told(time),
            why(&fault, clock)
        )));
    }
    clock.learn(time, host);
    tracing::warn!(
        "the clock is not synchronised: {host} says that it is {}, by which certificates and tokens go from now on",
        told(time)
    );
    Ok(())
}

/// The head of the server's answer.
async fn ask(stream: TcpStream, config: Arc<rustls::ClientConfig>, host: &str) -> Result<Vec<u8>, String> {
    let broke = |error: std::io::Error| bounded(&error.to_string());
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let mut stream = TlsConnector::from(config).connect(name, stream).await.map_err(broke)?;
    let agent = concat!("fwupdated/", env!("CARGO_PKG_VERSION"));
    let request =
        format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(broke)?;
    stream.flush().await.map_err(broke)?;
    tunnel::head(&mut stream).await.map_err(broke)
}

/// The one `Date` of an HTTP answer.
fn date(head: &[u8]) -> Option<OffsetDateTime> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n").take_while(|line| !line.is_empty());
    lines.next().filter(|line| line.starts_with("HTTP/1."))?;
    let fields = lines.filter_map(|line| line.split_once(':'));
    let mut dates =
        fields.filter(|(name, _)| name.eq_ignore_ascii_case("date")).map(|(_, value)| value.trim());
    let date = dates.next().filter(|date| date.len() <= DATE_LIMIT)?;
    if dates.next().is_some() {
        return None;
    }
    let since = httpdate::parse_http_date(date).ok()?.duration_since(UNIX_EPOCH).ok()?;
    OffsetDateTime::from_unix_timestamp(i64::try_from(since.as_secs()).ok()?).ok()
}

fn why(fault: &rustls::Error, clock: &Clock) -> String {
    match fault {
        rustls::Error::InvalidCertificate(fault) => Verdict::new(fault, clock).reason().to_owned(),
        other => format!("cannot be used ({})", bounded(&other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::TimeOrigin;
    use crate::hub::testing::{Pair, Server};
    use crate::tunnel::HEAD_LIMIT;

    /// A gateway that woke up in 1970, and whose last synchronised time is `saved`.
    fn clock(server: &Server, saved: i64) -> Clock {
        let file = server.path("clock");
        std::fs::write(&file, format!("-{} unsynchronised", OffsetDateTime::now_utc().unix_timestamp()))
            .unwrap();
        let clock = Clock::new(Some(file));
        clock.remember(saved);
        clock
    }

    /// What comes of asking a server that shows this certificate and answers so.
    async fn asked(pair: &Pair, answer: &str, saved: i64) -> (Result<(), HubError>, Clock) {
        let server = Server::with(pair, &[]).await;
        let clock = clock(&server, saved);
        let (cloud, port) = (server.cloud(), server.port());
        let serve = async { server.accept().await.answer_request(answer.as_bytes()).await };
        let (learned, ()) = tokio::join!(learn(&cloud, "localhost", port, &clock), serve);
        (learned, clock)
    }

    const NEW_YEAR: i64 = 1_893_456_000;
    const ANSWER: &str = "HTTP/1.1 404 Not Found\r\nServer: x\r\nDATE: Tue, 01 Jan 2030 00:00:00 GMT\r\n\r\n";

    #[tokio::test]
    async fn the_time_of_a_server_whose_certificate_is_good_at_that_time_counts() {
        let (learned, clock) = asked(&Pair::new("localhost", 2029), ANSWER, 0).await;
        learned.unwrap();
        let (origin, time) = clock.origin();
        assert_eq!(origin, TimeOrigin::Learned("localhost".into()));
        assert!((0..60).contains(&(time.unix_timestamp() - NEW_YEAR)), "{time}");
        assert!(!clock.synchronised() && clock.worth_saving(5) == 5);
    }

    #[tokio::test]
    async fn no_other_time_counts() {
        let good = || Pair::new("localhost", 2029);
        let dated = |date: &str| format!("HTTP/1.1 200 OK\r\nDate: {date}\r\n\r\n");
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n", "x".repeat(HEAD_LIMIT));
        let nested = dated(&"(".repeat(100_000));
        let long = dated(&format!("Tue, 01 Jan 2030 00:00:00 GMT{}", " x".repeat(99)));
        let twice = ANSWER.replace("Server: x", "Date: Tue, 01 Jan 2030 00:00:00 GMT");
        let cases = [
            (Pair::new("localhost", 2031), ANSWER.to_owned(), 0, "its certificate is not valid yet"),
            (good(), ANSWER.to_owned(), NEW_YEAR + 600, "is past already"),
            (good(), dated("Tue, 01 Jan 2019 00:00:00 GMT"), 0, "is past already"),
            (good(), dated("Fri, 31 Dec 9999 23:59:59 GMT"), 0, "its certificate is expired"),
            (Pair::new("other.example", 2029), ANSWER.to_owned(), 0, "is another host's"),
            (good(), dated("tomorrow"), 0, "no Date"),
            (good(), "HTTP/1.1 200 OK\r\n\r\n".to_owned(), 0, "no Date"),
            (good(), ANSWER.replace("HTTP/1.1", "SSH-2.0"), 0, "no Date"),
            (good(), twice, 0, "no Date"),
            (good(), long, 0, "no Date"),
            (good(), endless, 0, "has no end"),
            (good(), nested, 0, "has no end"),
            (good(), "HTTP/1.1 200 OK\r\n".to_owned(), 0, "has no end"),
        ];
        for (pair, answer, saved, said) in cases {
            let (learned, clock) = asked(&pair, &answer, saved).await;
            let error = learned.expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
            assert!(clock.wants_time());
        }
    }

    #[tokio::test]
    async fn a_foreign_authority_tells_no_time() {
        let server = Server::with(&Pair::new("localhost", 2029), &[]).await;
        let clock = clock(&server, 0);
        let mut cloud = server.cloud();
        let foreign = server.path("foreign.pem");
        std::fs::write(&foreign, Pair::new("localhost.", 2029).certificate.pem()).unwrap();
        cloud.roots = crate::config::Roots { system: false, ca_file: Some(foreign) };
        let serve = async { server.accept().await.answer_request(ANSWER.as_bytes()).await };
        let (learned, ()) = tokio::join!(learn(&cloud, "localhost", server.port(), &clock), serve);
        assert!(learned.unwrap_err().to_string().contains("authority that this gateway does not trust"));
        assert!(clock.wants_time());
    }
}
