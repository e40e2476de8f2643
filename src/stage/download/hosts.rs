//! Which hosts a download may reach. A bundle's URL comes from the cloud and each redirect from a server, so
//! both are checked before a connection is made: the scheme, the name against `trust.allowed_hosts`, and the
//! addresses behind the name, so that nobody can point a gateway at its own services, or scan its networks by what
//! becomes of a call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

use crate::config::Proxy;

/// The validated `trust.allowed_hosts`; empty means any host whose addresses are public.
#[derive(Debug, Clone)]
pub struct Hosts {
    patterns: Vec<Pattern>,
    /// Addresses that are listed, alone or by `address/bits`.
    networks: Vec<IpNet>,
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
        Pattern { host: plain(name), below, port }
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
    pub fn new(allowed: &[String], proxy: Proxy) -> Hosts {
        let (networks, names): (Vec<_>, Vec<_>) = allowed.iter().partition(|text| text.contains('/'));
        let patterns: Vec<_> = names.into_iter().map(|text| Pattern::parse(text)).collect();
        let networks = networks.into_iter().filter_map(|text| text.trim().parse().ok()).collect();
        Hosts { patterns, networks, proxy }
    }

    /// Says why `url` may not be fetched. Addresses behind a name are checked when it is resolved; a proxy, if there is
    /// one for this host, resolves it itself.
    pub fn check(&self, url: &Url) -> Result<(), String> {
        if url.scheme() != "https" {
            return Err(format!("its scheme is {}, and only https is fetched", url.scheme()));
        }
        let host = url.host().ok_or("it names no host")?;
        let (name, port) = (plain(&host.to_string()), url.port_or_known_default());
        let listed = |p: &Pattern| p.names(&name) && p.port.is_none_or(|wanted| Some(wanted) == port);
        let open = self.patterns.is_empty() && self.networks.is_empty();
        if !open
            && !self.patterns.iter().any(listed)
            && !address(&host).is_some_and(|at| self.has_address(at))
        {
            return Err(format!("{name} is not in trust.allowed_hosts"));
        }
        let refused = match address(&host) {
            Some(address) => is_private(address) && !self.has_address(address),
            // The resolver lets the proxy's name lead anywhere; a download gets no part of that.
            None => self.is_proxy(&name) && self.proxy.to(&name, port.unwrap_or_default()).is_none(),
        };
        match refused && !self.names_exactly(&name) {
            true => Err(Refused { host: name }.to_string()),
            false => Ok(()),
        }
    }

    /// Resolves a name or an address as the system does, and drops the addresses that may not be reached.
    pub async fn resolve(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let name = plain(host);
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.map_err(|error| format!("its name leads to no address: {error}"))?;
        let trusted = self.names_exactly(&name) || self.is_proxy(&name);
        let usable = |at: &SocketAddr| trusted || !is_private(at.ip()) || self.has_address(at.ip());
        let addresses: Vec<SocketAddr> = found.filter(usable).collect();
        if addresses.is_empty() { Err(Refused { host: name }.into()) } else { Ok(addresses) }
    }

    /// Whether the list has this address by a block of addresses.
    fn has_address(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
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

fn address(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(IpAddr::V4(*address)),
        Host::Ipv6(address) => Some(IpAddr::V6(*address)),
    }
}

/// One spelling of a name or an address.
fn plain(host: &str) -> String {
    let name = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    name.parse::<IpAddr>().map_or(name, |address| address.to_string())
}

/// Addresses that are not of the public internet: this machine, its links and networks, groups, and what is set apart for
/// tests and documents (IANA's registries of special-purpose addresses), also when an IPv6 address wraps them.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => V4_PRIVATE.iter().any(|net| net.contains(&v4)),
        IpAddr::V6(v6) => match wrapped_v4(v6) {
            Some(v4) => is_private(IpAddr::V4(v4)),
            None => !V6_PUBLIC.contains(&v6) || V6_PRIVATE.iter().any(|net| net.contains(&v6)),
        },
    }
}

const V4_PRIVATE: [Ipv4Net; 14] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    // Groups, the reserved block above them, and broadcast.
    v4(224, 0, 0, 0, 3),
];

/// All that was ever given out (RFC 4291, 2.4): unique local, link-local, site-local, groups, loopback, local NAT64 and
/// unassigned blocks are not in it.
const V6_PUBLIC: Ipv6Net = v6(0x2000, 0, 3);

/// Set apart in it.
const V6_PRIVATE: [Ipv6Net; 5] = [
    // Teredo, and all protocol assignments beside it, the benchmark's and ORCHID's among them.
    v6(0x2001, 0, 23),
    v6(0x2001, 0xdb8, 32),
    // 6to4: its addresses wrap an IPv4 address, which a relay anywhere would unwrap.
    v6(0x2002, 0, 16),
    // The former 6bone, and the other block for documents.
    v6(0x3ffe, 0, 16),
    v6(0x3fff, 0, 20),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(first: u16, second: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0), bits)
}

/// The IPv4 address that an address means: inside `::ffff:a.b.c.d`, or NAT64's `64:ff9b::a.b.c.d` (RFC 4291, RFC 6052).
/// Every other way of wrapping is out of use, and as such no public address.
fn wrapped_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = v6.to_bits();
    let nat64 = bits >> 32 == 0x0064_ff9b_0000_0000_0000_0000;
    if nat64 { Some(Ipv4Addr::from_bits(bits as u32)) } else { v6.to_ipv4_mapped() }
}

/// A host that would have to be listed. It does not tell to which address a name led, nor whether anything is there: a
/// caller learns nothing about the networks of the gateway.
#[derive(Debug, thiserror::Error)]
#[error(
    "{host} leads to no public address; a host on this machine or its own networks must be in trust.allowed_hosts, by \
     its name or its address"
)]
pub struct Refused {
    host: String,
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
        assert!(allows(&[], "https://93.184.215.14/a.fwb"));
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
    fn private_addresses_must_be_listed() {
        // The first and the last of each block, and what lies beside it.
        let private = [
            "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 127.255.255.255",
            "169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.8 192.0.2.1 192.88.99.1",
            "192.168.0.0 192.168.255.255 198.18.0.0 198.19.255.255 198.51.100.7 203.0.113.9 224.0.0.1",
            "239.255.255.255 240.0.0.0 255.255.255.255",
            // Other spellings, which a URL parser folds.
            "2130706433 0x7f.1 0300.0250.1 10.1",
            "[::] [::1] [::127.0.0.1] [::8.8.8.8] [::ffff:127.0.0.1] [::ffff:10.0.0.1] [::ffff:0:8.8.8.8]",
            "[64:ff9b::7f00:1] [64:ff9b::192.168.1.1] [64:ff9b::100.64.0.1] [64:ff9b:1::8.8.8.8] [64:ff9b:1:ffff::1]",
            "[100::1] [2001::1] [2001:0:4136:e378:8000:63bf:3fff:fdd2] [2001:2::1] [2001:10::1] [2001:20::1]",
            "[2001:db8::1] [2002::1] [2002:808:808::1] [2002:a00:1::1] [3fff::1] [5f00::1] [4000::1] [fc00::1]",
            "[fdff:ffff::1] [fe80::1] [febf::1] [fec0::1] [feff::1] [ff02::1] [ff0e::1]",
        ];
        let private: Vec<&str> = private.iter().flat_map(|line| line.split(' ')).collect();
        for host in &private {
            assert!(!allows(&[], &format!("https://{host}/a")), "{host}");
            assert!(!allows(&["*.example.com", "*.1"], &format!("https://{host}/a")), "{host}");
            let url: Url = format!("https://{host}/a").parse().unwrap();
            assert!(allows(&[url.host_str().unwrap()], url.as_str()), "{host} is listed");
        }
        let public = "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 172.15.0.1 \
                      172.32.0.0 169.253.0.1 192.167.1.1 192.169.1.1 198.17.0.1 198.20.0.1 223.255.255.255 \
                      [2606:4700::1111] [2001:4860:4860::8888] [2a00::1] [::ffff:8.8.8.8] [64:ff9b::8.8.8.8]";
        for host in public.split(' ') {
            assert!(allows(&[], &format!("https://{host}/a")), "{host}");
        }
    }

    #[test]
    fn an_address_is_listed_alone_with_a_port_or_by_its_block() {
        assert!(allows(&["127.0.0.1"], "https://127.0.0.1:9000/a"));
        assert!(allows(&["127.0.0.1:9000"], "https://127.0.0.1:9000/a"));
        assert!(!allows(&["127.0.0.1:9000"], "https://127.0.0.1:9001/a"));
        assert!(allows(&["[::1]:9000"], "https://[::1]:9000/a"));
        assert!(allows(&["::1"], "https://[::1]/a"));
        let list = ["10.20.0.0/16", "fd00:7::/32", "files.example.com"];
        for url in ["https://10.20.255.1/a", "https://[fd00:7::9]:8443/a", "https://files.example.com/a"] {
            assert!(allows(&list, url), "{url}");
        }
        for url in
            ["https://10.21.0.1/a", "https://[fd00:8::9]/a", "https://8.8.8.8/a", "https://example.com/a"]
        {
            assert!(!allows(&list, url), "{url}");
        }
        // A wildcard lets the name pass, and the block its address.
        let hosts = Hosts::new(&["*.lan".into(), "10.20.0.0/16".into()], Proxy::default());
        assert!(hosts.check(&"https://files.lan/a".parse().unwrap()).is_ok());
        assert!(hosts.has_address("10.20.3.4".parse().unwrap()));
        assert!(!hosts.has_address("10.21.3.4".parse().unwrap()));
    }

    #[test]
    fn a_refusal_says_nothing_about_the_network() {
        let refused = |url: &str| {
            let hosts = Hosts::new(&[], Proxy::default());
            hosts.check(&url.parse().unwrap()).unwrap_err().replace(url.split('/').nth(2).unwrap(), "HOST")
        };
        let one = refused("https://192.168.1.1/a");
        for other in
            ["https://127.0.0.1/a", "https://10.0.0.7/a", "https://100.64.0.9/a", "https://198.18.0.1/a"]
        {
            assert_eq!(refused(other), one);
        }
    }

    #[tokio::test]
    async fn a_proxy_on_this_machine_is_reached_but_nothing_is_fetched_from_it() {
        let hosts = |except: &str| {
            let proxy = Proxy::new("http://localhost:3128", [except.to_owned()]).unwrap();
            Hosts::new(&[], proxy)
        };
        assert!(hosts("").resolve("localhost", 1).await.is_ok_and(|found| !found.is_empty()));
        let url = "https://LOCALHOST:8443/a".parse().unwrap();
        assert!(hosts("localhost").check(&url).is_err(), "directly");
        assert!(hosts("").check(&url).is_ok(), "whatever that name means to the proxy");
        assert!(hosts("").check(&"https://127.0.0.1/a".parse().unwrap()).is_err());
    }

    #[tokio::test]
    async fn names_that_resolve_to_local_addresses_must_be_named() {
        let resolve = async |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|s| s.to_string()).collect();
            Hosts::new(&list, Proxy::default()).resolve("localhost", 1).await.map(|found| found.len())
        };
        assert!(resolve(&[]).await.err().unwrap().is::<Refused>());
        assert!(resolve(&["*.host", "*.localhost"]).await.is_err());
        assert!(resolve(&["localhost:1234"]).await.unwrap() > 0);
        assert!(resolve(&["*.localhost", "127.0.0.0/8", "::1/128"]).await.unwrap() > 0);
    }
}
