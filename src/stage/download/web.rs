//! One attempt at one range over HTTPS: the request with its guards and its redirects.

use std::error::Error;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::header;
use hyper_util::client::legacy::Error as ClientError;
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::cause;
use crate::clock::after;
use crate::manifest::Digest;
use crate::reach::Memory;
use crate::stage::download::answer::{Content, HttpAnswer, Trouble, Version, judge, passing};
use crate::stage::download::budget::Meter;
use crate::stage::download::connect::{self, BoxError, HttpClient};
use crate::stage::download::doubt::Patience;
use crate::stage::download::hosts::Refused;
use crate::stage::download::http::Http;
use crate::stage::download::route::Route;
use crate::stage::error::StageError;
use crate::tls::Verdict;
use crate::uri::shown;

/// Hops that are followed.
const REDIRECTS: usize = 5;

/// A URL, and what is known of the file behind it.
pub struct Web {
    pub http: Http,
    url: Url,
    meter: Arc<Meter>,
    /// Addresses whose answers were of no use lately.
    memory: Memory,
    /// Connections, all of one network.
    line: Mutex<Connections>,
    seen: Mutex<Seen>,
    pub patience: Patience,
    /// Bytes a second that a server must bring.
    pub least: u64,
    /// Held while somebody finds out whether a changed file still is the same bundle.
    pub renewal: tokio::sync::Mutex<()>,
    pub renewals: AtomicU32,
    /// Length and digest of the bundle's first bytes, once they were verified.
    pub head: Mutex<Option<(u64, Digest)>>,
    /// The size of the bundle by its signed manifest, which outranks what servers say.
    pub size: OnceLock<u64>,
}

impl fmt::Debug for Web {
    /// The URL may carry a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}

/// A client whose connections are alive as far as is known.
#[derive(Clone)]
struct Connections {
    client: HttpClient,
    number: u64,
    /// How the latest answer came.
    route: Option<Route>,
}

/// What identifies the file that the first answer was about.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub generation: u32,
    pub known: Option<Version>,
    /// The servers behind this name tell versions apart where there is only one: digests alone decide.
    pub unguarded: bool,
}

/// A range as it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub start: u64,
    pub end: u64,
    /// Whether it must be of the version that was seen first.
    pub guarded: bool,
}

impl Web {
    pub fn new(http: Http, url: Url, meter: Arc<Meter>) -> Web {
        let (seen, head) = (Mutex::default(), Mutex::default());
        let memory = Memory::default();
        let client = connect::client(&http, meter.clone(), memory.clone());
        let line = Mutex::new(Connections { client, number: 0, route: None });
        let least = meter.least(http.download.min_rate);
        let patience = Patience::new(http.download.patience, least);
        let (renewal, renewals, size) = Default::default();
        Web { http, url, meter, memory, line, seen, patience, least, renewal, renewals, head, size }
    }

    /// How the latest answer came.
    pub fn route(&self) -> Option<Route> {
        self.line().route
    }

    /// The number of the client that is asked now.
    pub fn number(&self) -> u64 {
        self.line().number
    }

    fn line(&self) -> MutexGuard<'_, Connections> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what a connection that goes the way `before` should bring: until the stall timeout, or until it is
    /// silent and a new one would go another way. Then no connection is used any more that the old network may have left behind.
    pub async fn patiently<T>(
        &self,
        before: Option<Route>,
        coming: impl Future<Output = T>,
    ) -> Result<T, Trouble> {
        let stall = self.http.download.stall_timeout;
        let (give_up, mut coming) = (after(Instant::now(), stall), pin!(coming));
        let mut moved = false;
        loop {
            let look = give_up.min(after(Instant::now(), self.http.look));
            if let Ok(done) = timeout_at(look, &mut coming).await {
                return Ok(done);
            }
            // Twice, for what has arrived before the move may not have been read yet.
            if moved {
                self.replace(|line| line.route == before);
                return Err(passing("the gateway has moved to another network"));
            }
            moved = before.is_some_and(|route| route.moved());
            if Instant::now() >= give_up {
                return Err(passing(format!("nothing came for {} s", stall.as_secs_f32())));
            }
        }
    }

    /// Goes on over connections that are none of those of client `number`, and to another address if there is one.
    pub fn elsewhere(&self, number: u64) {
        let line = self.line();
        let route = line.route.filter(|_| line.number == number);
        drop(line);
        self.memory.judge(route.map(|route| route.remote), false);
        self.replace(|line| line.number == number);
    }

    /// Whoever notices first makes a new client for all.
    fn replace(&self, old: impl Fn(&Connections) -> bool) {
        let mut line = self.line();
        if old(&line) {
            let client = connect::client(&self.http, self.meter.clone(), self.memory.clone());
            let number = line.number.wrapping_add(1);
            *line = Connections { client, number, route: None };
        }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins anew with whatever version there is; nothing of the bundle was verified yet.
    pub fn forget(&self, unguarded: bool) {
        let seen = self.seen();
        let (generation, unguarded) = (seen.generation.wrapping_add(1), seen.unguarded || unguarded);
        self.set_seen(Seen { generation, known: None, unguarded });
    }

    /// The bundle's first bytes were verified.
    pub fn is_verified(&self) -> bool {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub fn set_seen(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Asks for a range, follows redirects, and returns an answer whose body begins at its start.
    pub async fn ask(&self, wanted: Wanted) -> Result<(HttpAnswer, Content), Trouble> {
        let seen = self.seen();
        let mut url = self.url.clone();
        for hop in 0..=REDIRECTS {
            let shown = shown(&url);
            if let Err(reason) = self.http.hosts.check(&url) {
                let denied = StageError::NotPermitted { url: shown, reason };
                // What we were called with stays what it is; where a server leads to may be another place next time.
                return Err(if hop == 0 { Trouble::Final(denied) } else { Trouble::Doubtful(denied) });
            }
            let answer = self.send(&url, &seen, wanted).await?;
            if !answer.status().is_redirection() {
                return self.accept(answer, &seen, &shown, wanted);
            }
            let to = redirected(&url, &answer);
            answer.refuse();
            url = to?;
        }
        let reason = format!("it was redirected more than {REDIRECTS} times");
        Err(Trouble::Doubtful(StageError::Download { url: shown(&self.url), reason }))
    }

    async fn send(&self, url: &Url, seen: &Seen, wanted: Wanted) -> Result<HttpAnswer, Trouble> {
        let asked = self.line().clone();
        let request = request(url, seen, wanted).map_err(|error| {
            Trouble::Final(StageError::Download { url: shown(url), reason: error.to_string() })
        })?;
        let response = self.patiently(asked.route, asked.client.request(request)).await?;
        let response = response.map_err(|error| self.connect_trouble(url, seen, &error))?;
        let answer = HttpAnswer::new(response, self.meter.clone());
        let mut line = self.line();
        if line.number == asked.number {
            line.route = answer.count().and_then(|count| count.remote).and_then(Route::to);
        }
        drop(line);
        Ok(answer)
    }

    /// A connection that failed is tried again, unless it never may or, for all that is known, never can succeed.
    fn connect_trouble(&self, url: &Url, seen: &Seen, error: &ClientError) -> Trouble {
        if let Some(refused) = cause::find::<Refused>(error) {
            let reason = refused.to_string();
            return Trouble::Doubtful(StageError::NotPermitted { url: shown(url), reason });
        }
        // Once the server was known good, a foreign certificate is a portal on the way that will go away.
        if let Some(rustls::Error::InvalidCertificate(fault)) = cause::find::<rustls::Error>(error) {
            let verdict = Verdict::new(fault, &self.http.clock);
            let reason = format!("its certificate {verdict}");
            return match seen.known.is_none() && !verdict.is_of_time() {
                true => Trouble::Doubtful(StageError::Download { url: shown(url), reason }),
                false => passing(reason),
            };
        }
        match self.http.proxy(url) {
            Some(proxy) => passing(format!("through the proxy {proxy}: {}", reasons(error))),
            None => passing(reasons(error)),
        }
    }

    /// What an answer that leads nowhere else brings.
    fn accept(
        &self,
        answer: HttpAnswer,
        seen: &Seen,
        shown: &str,
        wanted: Wanted,
    ) -> Result<(HttpAnswer, Content), Trouble> {
        let guarded = wanted.guarded && !seen.unguarded;
        let changed = Trouble::Changed(seen.generation);
        if guarded && answer.status() == hyper::StatusCode::PRECONDITION_FAILED {
            answer.refuse();
            return Err(changed);
        }
        let part = match judge(&answer, (&self.url, &self.http.clock), shown, wanted.start, wanted.end) {
            Ok(part) => part,
            Err(trouble) => {
                answer.judge(false);
                answer.refuse();
                // Kept alive, the connection would lead to the same busy node again.
                if matches!(trouble, Trouble::Passing { .. }) {
                    self.elsewhere(self.number());
                }
                return Err(trouble);
            }
        };
        match &seen.known {
            Some(known) if guarded && !known.is(&part.version) => {
                answer.refuse();
                return Err(changed);
            }
            None if wanted.guarded => {
                self.set_seen(Seen { known: Some(part.version.clone()), ..seen.clone() });
            }
            _ => {}
        }
        answer.judge(true);
        Ok((answer, part))
    }
}

fn request(url: &Url, seen: &Seen, wanted: Wanted) -> Result<Request<Empty<Bytes>>, BoxError> {
    let mut plain = url.clone();
    plain.set_fragment(None);
    // A URL that had a host has a place for these.
    plain.set_username("").and_then(|()| plain.set_password(None)).ok();
    let mut request = Request::get(plain.as_str())
        .header(header::USER_AGENT, concat!("fwupdated/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::RANGE, format!("bytes={}-{}", wanted.start, wanted.end.saturating_sub(1)));
    if !url.username().is_empty() || url.password().is_some() {
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = connect::basic(&decoded(url.username()), &decoded(url.password().unwrap_or_default()))?;
        request = request.header(header::AUTHORIZATION, login);
    }
    let guard = seen.known.as_ref().filter(|_| wanted.guarded && !seen.unguarded);
    if let Some((name, value)) = guard.and_then(Version::condition) {
        request = request.header(name, value);
    }
    Ok(request.body(Empty::new())?)
}

fn redirected(from: &Url, answer: &HttpAnswer) -> Result<Url, Trouble> {
    // Some write other letters than ASCII's without encoding them, as browsers understand.
    let location =
        answer.headers().get(header::LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    location.and_then(|text| from.join(text).ok()).ok_or_else(|| {
        let reason = format!("the server answered {} without a usable Location", answer.code());
        Trouble::Doubtful(StageError::Download { url: shown(from), reason })
    })
}

/// Why a connection broke: the words of the library around it say nothing more.
pub fn reasons(error: &(dyn Error + 'static)) -> String {
    cause::chain(error.source().unwrap_or(error))
}

/// How long a server's wish for a pause is heeded: one answer must not stop an update for a day.
pub const LONGEST_WISH: Duration = Duration::from_secs(300);
