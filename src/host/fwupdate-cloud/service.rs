//! IoT Hub's service REST, as far as this program needs it. Reference: "Azure IoT Hub service REST API",
//! version 2021-04-12.

use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, Read};
use std::iter::successors;
use std::path::Path;
use std::time::Duration;

use fwupdate::clock::Clock;
use fwupdate::config::{Roots, Secret};
use fwupdate::{hub, tls};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::redirect::Policy;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::error::Error;

const API_VERSION: &str = "2021-04-12";
/// How long a token is good for, seconds: one is made for each request.
const TOKEN_TTL: i64 = 300;
/// For requests that do not wait for a gateway.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read: a page of a hundred twins of 70 KB at most.
const ANSWER_LIMIT: usize = 16 << 20;
/// Most of a file that is read: far more than a configuration may have.
const TEXT_LIMIT: u64 = 1 << 20;
const CONTINUATION: &str = "x-ms-continuation";
/// A device id may hold signs that mean something in a URL.
const ID: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A hub, and the right to use it.
#[derive(Debug)]
pub struct Service {
    host: String,
    policy: String,
    key: Secret,
    http: Client,
}

/// What a direct method was answered with.
#[derive(Debug)]
pub struct MethodAnswer {
    pub status: i64,
    pub payload: Value,
}

struct HubRequest<'a> {
    method: Method,
    path: &'a str,
    body: Option<Value>,
    timeout: Duration,
    /// The token that the page before ended with.
    page: Option<&'a str>,
    if_match: Option<&'a str>,
}

impl HubRequest<'_> {
    fn new(method: Method, path: &str) -> HubRequest<'_> {
        HubRequest { method, path, body: None, timeout: TIMEOUT, page: None, if_match: None }
    }
}

/// An answer of the hub, and the token of the page that follows it.
struct Page {
    body: Value,
    next: Option<String>,
}

impl Service {
    /// `file` holds the connection string; `ca` is trusted beside the system's roots.
    pub fn open(file: &Path, ca: Option<&Path>) -> Result<Service, Error> {
        let text = read_text(file).map_err(|why| {
            Error::Usage(format!(
                "{} cannot be read ({why}): name a file with a service connection string",
                file.display()
            ))
        })?;
        let (host, policy, key) =
            parse(&text).map_err(|why| Error::Usage(format!("{}: {why}", file.display())))?;
        let http = client(ca, Policy::none())?;
        Ok(Service { host, policy, key, http })
    }

    /// The hub is the stand-in on this machine.
    pub fn is_local(&self) -> bool {
        self.host == "localhost" || self.host.starts_with("localhost:") || self.host.starts_with("127.")
    }

    pub async fn twin(&self, device: &str) -> Result<Value, Error> {
        self.send(Method::GET, &format!("twins/{}", encoded(device)), None, TIMEOUT).await
    }

    /// Invokes a direct method; the gateway's own status is in the answer.
    pub async fn invoke(
        &self,
        device: &str,
        name: &str,
        payload: Value,
        connect: Duration,
        response: Duration,
    ) -> Result<MethodAnswer, Error> {
        let body = json!({
            "methodName": name,
            "payload": payload,
            "connectTimeoutInSeconds": connect.as_secs(),
            "responseTimeoutInSeconds": response.as_secs(),
        });
        let path = format!("twins/{}/methods", encoded(device));
        let answer = self.send(Method::POST, &path, Some(body), connect + response + TIMEOUT).await?;
        let status = answer.get("status").and_then(Value::as_i64).unwrap_or(0);
        Ok(MethodAnswer { status, payload: answer.get("payload").cloned().unwrap_or_default() })
    }

    /// Orders a job: `PUT /jobs/v2/{id}`.
    pub async fn order_job(&self, id: &str, order: Value) -> Result<Value, Error> {
        self.send(Method::PUT, &format!("jobs/v2/{}", encoded(id)), Some(order), TIMEOUT).await
    }

    pub async fn job(&self, id: &str) -> Result<Value, Error> {
        self.send(Method::GET, &format!("jobs/v2/{}", encoded(id)), None, TIMEOUT).await
    }

    pub async fn cancel_job(&self, id: &str) -> Result<Value, Error> {
        self.send(Method::POST, &format!("jobs/v2/{}/cancel", encoded(id)), None, TIMEOUT).await
    }

    /// An automatic device configuration; `None`: there is none of this id.
    pub async fn configuration(&self, id: &str) -> Result<Option<Value>, Error> {
        match self.send(Method::GET, &format!("configurations/{}", encoded(id)), None, TIMEOUT).await {
            Err(Error::Failed { code, .. }) if code == "NotFound" => Ok(None),
            found => found.map(Some),
        }
    }

    pub async fn configurations(&self) -> Result<Vec<Value>, Error> {
        let all = self.send(Method::GET, "configurations", None, TIMEOUT).await?;
        Ok(all.as_array().cloned().unwrap_or_default())
    }

    /// Makes a configuration, or with the etag of one that was read changes it.
    pub async fn put_configuration(&self, id: &str, body: Value, etag: Option<&str>) -> Result<Value, Error> {
        let etag = etag.map(|etag| format!("\"{etag}\""));
        let path = format!("configurations/{}", encoded(id));
        let request =
            HubRequest { body: Some(body), if_match: etag.as_deref(), ..HubRequest::new(Method::PUT, &path) };
        Ok(self.ask(request).await?.body)
    }

    pub async fn delete_configuration(&self, id: &str) -> Result<(), Error> {
        let path = format!("configurations/{}", encoded(id));
        let request = HubRequest { if_match: Some("*"), ..HubRequest::new(Method::DELETE, &path) };
        self.ask(request).await.map(drop)
    }

    /// What the hub finds wrong with a condition and the queries of metrics.
    pub async fn test_queries(&self, body: Value) -> Result<Value, Error> {
        self.send(Method::POST, "configurations/testQueries", Some(body), TIMEOUT).await
    }

    /// All rows of a query, page by page.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>, Error> {
        let (mut rows, mut next) = (Vec::new(), None);
        loop {
            let body = Some(json!({"query": query}));
            let request =
                HubRequest { body, page: next.as_deref(), ..HubRequest::new(Method::POST, "devices/query") };
            let page = self.ask(request).await?;
            rows.extend(page.body.as_array().cloned().unwrap_or_default());
            match page.next {
                Some(token) => next = Some(token),
                None => return Ok(rows),
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        timeout: Duration,
    ) -> Result<Value, Error> {
        Ok(self.ask(HubRequest { body, timeout, ..HubRequest::new(method, path) }).await?.body)
    }

    async fn ask(
        &self,
        HubRequest { method, path, body, timeout, page, if_match }: HubRequest<'_>,
    ) -> Result<Page, Error> {
        let url = format!("https://{}/{path}?api-version={API_VERSION}", self.host);
        let expires = OffsetDateTime::now_utc().unix_timestamp() + TOKEN_TTL;
        let token = hub::service_token(&self.host, &self.policy, &self.key, expires).map_err(|_| {
            Error::Usage("the SharedAccessKey is not base64: copy the connection string again".into())
        })?;
        let mut request =
            self.http.request(method, url).timeout(timeout).header("Authorization", token.expose());
        if let Some(body) = body {
            request =
                request.header("Content-Type", "application/json; charset=utf-8").body(body.to_string());
        }
        for (name, value) in [(CONTINUATION, page), ("If-Match", if_match)] {
            request = value.into_iter().fold(request, |request, value| request.header(name, value));
        }
        let answer = request.send().await.map_err(|why| self.unreachable(&why))?;
        let status = answer.status();
        let next =
            answer.headers().get(CONTINUATION).and_then(|token| token.to_str().ok()).map(str::to_owned);
        let next = next.filter(|token| !token.is_empty());
        let body = self.read(answer).await?;
        if !status.is_success() {
            return Err(Error::of_hub(status.as_u16(), &body));
        }
        let body = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
        let body =
            body.map_err(|why| Error::failed("Internal", format!("the hub's answer is no JSON: {why}")))?;
        Ok(Page { body, next })
    }

    async fn read(&self, mut answer: reqwest::Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|why| self.unreachable(&why))? {
            body.extend_from_slice(&piece);
            if body.len() > ANSWER_LIMIT {
                return Err(Error::failed(
                    "TooLarge",
                    "the hub's answer is larger than 16 MiB: ask for less",
                ));
            }
        }
        Ok(body)
    }

    fn unreachable(&self, why: &reqwest::Error) -> Error {
        // The words around the first cause repeat the URL.
        let cause = successors(Some(why as &dyn StdError), |cause| (*cause).source()).last().unwrap_or(why);
        let host = &self.host;
        Error::Unreachable(format!("{host} cannot be reached ({cause}): check network, host name, and --ca"))
    }
}

/// Speaks https alone; `ca` is trusted beside the system's roots.
pub fn client(ca: Option<&Path>, redirects: Policy) -> Result<Client, Error> {
    let tls = tls::client_config(&Roots::with(ca.map(Path::to_owned)), None, &Clock::default())
        .map_err(|why| Error::Usage(why.to_string()))?;
    let builder = Client::builder().use_preconfigured_tls(tls).https_only(true).redirect(redirects);
    let builder = builder.user_agent(concat!("fwupdate-cloud/", env!("CARGO_PKG_VERSION")));
    builder.connect_timeout(TIMEOUT).build().map_err(|why| Error::failed("Internal", why.to_string()))
}

/// A text of the operator's: a file, or what a shell puts in its place. Some editors begin it with a byte order mark.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(TEXT_LIMIT).read_to_string(&mut text)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn encoded(id: &str) -> String {
    utf8_percent_encode(id, ID).to_string()
}

/// `HostName=...;SharedAccessKeyName=...;SharedAccessKey=...`
fn parse(text: &str) -> Result<(String, String, Secret), String> {
    let part = |name: &str| {
        let found =
            text.trim().split(';').filter_map(|part| part.split_once('=')).find(|(key, _)| *key == name);
        found.map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty())
    };
    if part("DeviceId").is_some() {
        return Err(
            "this is a device's connection string: a service's is needed, with SharedAccessKeyName".into()
        );
    }
    let need = |name: &str| part(name).ok_or_else(|| format!("{name} is missing in the connection string"));
    let host = need("HostName")?;
    if host.contains(['/', '?', '#', '@']) || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("HostName must be a host name, with a port if need be".into());
    }
    Ok((host, need("SharedAccessKeyName")?, Secret::new(need("SharedAccessKey")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_connection_string_is_read() {
        let text = "HostName=localhost:8443;SharedAccessKeyName=iothubowner;SharedAccessKey=a2V5PT0=\n";
        let (host, policy, key) = parse(text).unwrap();
        assert_eq!(
            (host.as_str(), policy.as_str(), key.expose()),
            ("localhost:8443", "iothubowner", "a2V5PT0=")
        );
    }

    #[test]
    fn what_is_no_service_connection_string_is_refused() {
        for (text, named) in [
            ("", "HostName"),
            ("HostName=h;SharedAccessKey=k", "SharedAccessKeyName"),
            ("HostName=h;SharedAccessKeyName=p", "SharedAccessKey "),
            ("HostName=h;DeviceId=d;SharedAccessKey=k", "device"),
            ("HostName=h/x;SharedAccessKeyName=p;SharedAccessKey=k", "HostName"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
    }

    #[test]
    fn an_id_cannot_leave_its_place_in_the_path() {
        assert_eq!(encoded("a/../b?c#d e"), "a%2F..%2Fb%3Fc%23d%20e");
        assert_eq!(encoded("gw-1.site_2"), "gw-1.site_2");
    }
}
