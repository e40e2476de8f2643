//! Where a bundle is, and the rules for fetching it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::backoff;
use crate::clock::Clock;
use crate::config::Download;
use crate::stage::download::hosts::Hosts;
use crate::stage::download::windows::Gate;
use crate::uri::shown;

/// Pauses between attempts: drawn between nothing and a bound that starts here, doubles, and ends there.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A connection that is silent for so long may be one of a network that the gateway has left.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub enum BundleSource {
    Http(Url),
    File(PathBuf),
}

impl fmt::Display for BundleSource {
    /// Without query and user info.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BundleSource::Http(url) => f.write_str(&shown(url)),
            BundleSource::File(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Debug for BundleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The rules for fetching; made once.
#[derive(Clone)]
pub struct Http {
    pub(in crate::stage) tls: Arc<rustls::ClientConfig>,
    pub(in crate::stage) hosts: Arc<Hosts>,
    pub(in crate::stage) download: Download,
    pub(in crate::stage) gate: Gate,
    /// By which certificates were judged.
    pub(in crate::stage) clock: Clock,
    pub(in crate::stage) first_pause: Duration,
    pub(in crate::stage) look: Duration,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("hosts", &self.hosts)
            .field("download", &self.download)
            .finish_non_exhaustive()
    }
}

impl Http {
    /// `tls` says whom to trust as a server; `allowed_hosts` is `trust.allowed_hosts`.
    pub fn new(tls: rustls::ClientConfig, allowed_hosts: &[String], download: Download) -> Http {
        let hosts = Arc::new(Hosts::new(allowed_hosts, download.proxy.clone()));
        let (tls, clock) = (Arc::new(tls), Clock::default());
        let gate = Gate::new(download.windows.clone(), clock.clone());
        Http { tls, hosts, download, gate, clock, first_pause: FIRST_PAUSE, look: LOOK }
    }

    /// The same by another clock than the system's: windows open and close with it.
    pub fn on(mut self, clock: Clock) -> Http {
        self.gate = Gate::new(self.download.windows.clone(), clock.clone());
        self.clock = clock;
        self
    }

    /// Says why `url` may not be fetched, as far as its name tells.
    pub fn allows(&self, url: &Url) -> Result<(), String> {
        self.hosts.check(url)
    }

    /// The address of the proxy on the way to `url`, if there is one: for messages.
    pub(in crate::stage) fn proxy(&self, url: &Url) -> Option<String> {
        let via = self.download.proxy.to(url.host_str()?, url.port_or_known_default()?)?;
        Some(via.address())
    }

    /// How long an answer is doubted: at most half of the patience, so that it is told for what it is.
    pub(in crate::stage) fn doubt(&self) -> Duration {
        self.download.final_after.min(self.download.patience.checked_div(2).unwrap_or_default())
    }

    /// A pause before the attempt after so many in vain.
    pub(in crate::stage) fn pause(&self, attempts: u32) -> Duration {
        backoff::ceiling(self.first_pause, attempts, LONGEST_PAUSE).mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_source_has_no_secrets() {
        let source = BundleSource::Http("https://h.example/b?sig=s3cret".parse().unwrap());
        assert!(!format!("{source} {source:?}").contains("s3cret"));
    }
}
