//! Which hosts a download may reach. A bundle's URL comes from the cloud and each redirect from a server, so
//! both are checked before a connection is made: the scheme, the name against `trust.allowed_hosts`, and the
//! addresses behind the name, so that nobody can point a gateway at its own services.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::config::Proxy;

/// The validated `trust.allowed_hosts`; empty means any host whose addresses are neither loopback,
/// link-local nor unspecified.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    patterns: Vec<Pattern>,
    /// May stand on this very machine, and is no place to download from.
    proxy: Proxy,
}

#[derive(Debug, Clone)]
struct Pattern {
    host: String,
    /// `*.suffix`: any name below `host`.
    below: bool,
    port: Option<u16>,
}

impl Pattern {
    fn parse(text: &str) -> Pattern {
        let text = text.trim().to_ascii_lowercase();
        let (name, port) = split_port(&text);
        let (name, below) = name.strip_prefix("*.").map_or((name, false), |suffix| (suffix, true));
        let name = name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        Pattern { host: name.to_owned(), below, port }
    }

    fn names(&self, host: &str) -> bool {
        match self.below {
            true => host.strip_suffix(&self.host).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            false => host == self.host,
        }
    }
}

/// Splits `host:port`; an IPv6 address without brackets has no port.
fn split_port(text: &str) -> (&str, Option<u16>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}

impl Hosts {
    pub(super) fn new(allowed: &[String], proxy: Proxy) -> Hosts {
        Hosts { patterns: allowed.iter().map(|text| Pattern::parse(text)).collect(), proxy }
    }

    /// Says why `url` may not be fetched. Addresses behind a name are checked when it is resolved; a proxy, if there is
    /// one for this host, resolves it itself.
    pub(super) fn check(&self, url: &Url) -> Result<(), String> {
        if url.scheme() != "https" {
            return Err(format!("its scheme is {}, and only https is fetched", url.scheme()));
        }
        let host = url.host().ok_or("it names no host")?;
        let (name, port) = (plain(&host), url.port_or_known_default());
        let listed = |p: &Pattern| p.names(&name) && p.port.is_none_or(|wanted| Some(wanted) == port);
        if !self.patterns.is_empty() && !self.patterns.iter().any(listed) {
            return Err(format!("{name} is not in trust.allowed_hosts"));
        }
        let address = match host {
            // The resolver lets the proxy's name lead anywhere; a download gets no part of that.
            Host::Domain(_) if self.is_proxy(&name) && !self.names_exactly(&name) => {
                let tunnelled = self.proxy.to(&name, port.unwrap_or_default()).is_some();
                return if tunnelled { Ok(()) } else { Err(Refused { host: name }.to_string()) };
            }
            Host::Domain(_) => return Ok(()),
            Host::Ipv4(address) => IpAddr::V4(address),
            Host::Ipv6(address) => IpAddr::V6(address),
        };
        if is_local(address) && !self.names_exactly(&name) {
            return Err(Refused { host: name }.to_string());
        }
        Ok(())
    }

    fn is_proxy(&self, host: &str) -> bool {
        self.proxy.host().is_some_and(|proxy| proxy.trim_end_matches('.').eq_ignore_ascii_case(host))
    }

    /// Whether the list names this very host; a wildcard does not vouch for the addresses below it, for
    /// whoever runs that zone may point a name anywhere.
    fn names_exactly(&self, host: &str) -> bool {
        self.patterns.iter().any(|pattern| !pattern.below && pattern.host == host)
    }
}

fn plain(host: &Host<&str>) -> String {
    match host {
        Host::Domain(name) => name.trim_end_matches('.').to_ascii_lowercase(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

/// Addresses that mean this machine or its own link: loopback, link-local, unspecified and `0.0.0.0/8`, also
/// when an IPv6 address wraps them.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_broadcast() || v4.octets().first() == Some(&0)
        }
        IpAddr::V6(v6) => {
            let wrapped = wrapped_v4(v6).is_some_and(|v4| is_local(IpAddr::V4(v4)));
            wrapped || v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local()
        }
    }
}

/// The IPv4 address inside `::a.b.c.d`, `::ffff:a.b.c.d` or NAT64's `64:ff9b::a.b.c.d` (RFC 4291, RFC 6052).
fn wrapped_v4(v6: Ipv6Addr) -> Option<std::net::Ipv4Addr> {
    let bits = v6.to_bits();
    let nat64 = bits >> 32 == 0x0064_ff9b_0000_0000_0000_0000;
    if nat64 {
        return Some(std::net::Ipv4Addr::from_bits(bits as u32));
    }
    v6.to_ipv4()
}

/// A name led nowhere but to addresses that must be listed to be reached.
#[derive(Debug, thiserror::Error)]
#[error("{host} leads to a loopback or link-local address, which trust.allowed_hosts must name to allow it")]
pub(super) struct Refused {
    host: String,
}

/// Resolves names as the system does and drops the addresses that may not be reached.
pub(super) struct Resolver(pub(super) Arc<Hosts>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let hosts = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().trim_end_matches('.').to_ascii_lowercase();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let trusted = hosts.names_exactly(&host) || hosts.is_proxy(&host);
            let usable = |at: &SocketAddr| trusted || !is_local(at.ip());
            let addresses: Vec<SocketAddr> = found.filter(usable).collect();
            if addresses.is_empty() {
                return Err(Refused { host }.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(list: &[&str], url: &str) -> bool {
        let list: Vec<String> = list.iter().map(|s| s.to_string()).collect();
        Hosts::new(&list, Proxy::default()).check(&url.parse().unwrap()).is_ok()
    }

    #[test]
    fn an_empty_list_allows_public_hosts_over_https_only() {
        assert!(allows(&[], "https://files.example.com/a.fwb"));
        assert!(allows(&[], "https://10.1.2.3/a.fwb"));
        for url in ["http://files.example.com/a", "ftp://files.example.com/a", "file:///a"] {
            assert!(!allows(&[], url), "{url}");
        }
    }

    #[test]
    fn patterns_match_name_port_and_suffix() {
        assert!(allows(&["Files.Example.com"], "https://files.example.com:8443/a"));
        assert!(allows(&["files.example.com:8443"], "https://files.example.com:8443/a"));
        assert!(!allows(&["files.example.com:8443"], "https://files.example.com/a"));
        assert!(allows(&["files.example.com:443"], "https://files.example.com./a"));
        assert!(allows(&["*.example.com"], "https://a.b.example.com/a"));
        for url in ["https://example.com/a", "https://evilexample.com/a", "https://example.com.evil.org/a"] {
            assert!(!allows(&["*.example.com"], url), "{url}");
        }
    }

    #[test]
    fn local_addresses_must_be_named() {
        let local = [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:169.254.1.1]",
            "[64:ff9b::7f00:1]",
            // Other spellings of 127.0.0.1, which a URL parser folds.
            "2130706433",
            "0x7f.1",
        ];
        for host in local {
            assert!(!allows(&[], &format!("https://{host}/a")), "{host}");
            assert!(!allows(&["*.example.com"], &format!("https://{host}/a")), "{host}");
        }
        assert!(allows(&["127.0.0.1"], "https://127.0.0.1:9000/a"));
        assert!(allows(&["127.0.0.1:9000"], "https://127.0.0.1:9000/a"));
        assert!(!allows(&["127.0.0.1:9000"], "https://127.0.0.1:9001/a"));
        assert!(allows(&["[::1]:9000"], "https://[::1]:9000/a"));
        assert!(allows(&["::1"], "https://[::1]/a"));
    }

    #[tokio::test]
    async fn a_proxy_on_this_machine_is_reached_but_nothing_is_fetched_from_it() {
        let hosts = |except: &str| {
            let proxy = Proxy::new("http://localhost:3128", [except.to_owned()]).unwrap();
            Arc::new(Hosts::new(&[], proxy))
        };
        let resolver = Resolver(hosts(""));
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_ok_and(|found| found.count() > 0));
        let url = "https://LOCALHOST:8443/a".parse().unwrap();
        assert!(hosts("localhost").check(&url).is_err(), "directly");
        assert!(hosts("").check(&url).is_ok(), "whatever that name means to the proxy");
        assert!(hosts("").check(&"https://127.0.0.1/a".parse().unwrap()).is_err());
    }

    #[tokio::test]
    async fn names_that_resolve_to_local_addresses_must_be_named() {
        let resolve = async |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|s| s.to_string()).collect();
            let resolver = Resolver(Arc::new(Hosts::new(&list, Proxy::default())));
            resolver.resolve("localhost".parse().unwrap()).await.map(|found| found.count())
        };
        assert!(resolve(&[]).await.err().unwrap().is::<Refused>());
        assert!(resolve(&["*.host", "*.localhost"]).await.is_err());
        assert!(resolve(&["localhost:1234"]).await.unwrap() > 0);
    }
}
