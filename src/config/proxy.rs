//! HTTP proxies: which connections go through one (by CONNECT), and the conventions of `HTTPS_PROXY` and `NO_PROXY`.
//!
//! There is no standard for `NO_PROXY`; these are the rules that curl, Go and Python have in common.

use std::net::IpAddr;

use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use url::Url;

use super::secret::Secret;

/// The rule for all connections that leave the gateway. The default is no proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    via: Option<Via>,
    except: Vec<Exception>,
}

/// A proxy to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// User and password for Basic authentication.
    pub login: Option<(Secret, Secret)>,
}

/// Where the proxy is passed by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    Everything,
    /// A name and all below it; only this port, if there is one.
    Name {
        name: String,
        port: Option<u16>,
    },
    Network(IpNet),
}

impl Proxy {
    /// `url` is `http://[user:password@]host[:port]`. An exception is `*`, a name (which covers what is below it), an
    /// address or `address/bits`; names may have a port. The error completes "the proxy ..." and shows no login.
    pub fn new(url: &str, except: impl IntoIterator<Item = String>) -> Result<Proxy, String> {
        let via = parse(url.trim())?;
        let texts = except.into_iter().map(|text| text.trim().to_ascii_lowercase());
        let except = texts.filter(|text| !text.is_empty()).map(|text| exception(&text)).collect();
        Ok(Proxy { via: Some(via), except })
    }

    /// The proxy for a connection to `host`; `None`: connect directly.
    pub fn to(&self, host: &str, port: u16) -> Option<&Via> {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let direct = self.except.iter().any(|exception| exception.covers(&host, port));
        self.via.as_ref().filter(|_| !direct)
    }

    /// The proxy's own host, which the agent has to be able to reach.
    pub fn host(&self) -> Option<&str> {
        self.via.as_ref().map(|via| via.host.as_str())
    }

    /// User and password of the proxy.
    pub fn login(&self) -> Option<&(Secret, Secret)> {
        self.via.as_ref()?.login.as_ref()
    }

    /// The URL with its login masked, and the exceptions: as settings show them.
    pub fn shown(&self) -> Option<(String, Vec<String>)> {
        let via = self.via.as_ref()?;
        let login = if via.login.is_some() { "***:***@" } else { "" };
        let url = format!("http://{login}{}", via.address());
        Some((url, self.except.iter().map(Exception::shown).collect()))
    }
}

impl Via {
    /// `host:port`, for messages and URLs.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

fn parse(text: &str) -> Result<Via, String> {
    // The convention allows a bare `host:port`.
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&text).map_err(|error| format!("is no URL ({error}); write http://host:port"))?;
    if url.scheme() != "http" {
        return Err(format!("has scheme {}; only http:// proxies can be used", url.scheme()));
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
        return Err("names no host; write http://host:port".to_owned());
    };
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("has more than host and port; write http://host:port".to_owned());
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(Secret::new);
    let login = match (url.username(), url.password()) {
        ("", None) => None,
        (user, password) => match (decoded(user), decoded(password.unwrap_or_default())) {
            (Ok(user), Ok(password)) => Some((user, password)),
            _ => return Err("has a login that is not UTF-8; percent-encode it".to_owned()),
        },
    };
    let port = url.port_or_known_default().unwrap_or(80);
    Ok(Via { host: host.trim_matches(['[', ']']).to_owned(), port, login })
}

fn exception(text: &str) -> Exception {
    if text == "*" {
        return Exception::Everything;
    }
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
        let alone = IpNet::from(address);
        let network = bits.parse().ok().and_then(|bits| IpNet::new(address, bits).ok());
        return Exception::Network(network.unwrap_or(alone));
    }
    let (name, port) = match text.rsplit_once(':').map(|(name, port)| (name, port.parse().ok())) {
        Some((name, Some(port))) => (name, Some(port)),
        _ => (text, None),
    };
    let name = name.trim_start_matches('*').trim_matches('.').to_owned();
    Exception::Name { name, port }
}

impl Exception {
    fn covers(&self, host: &str, at: u16) -> bool {
        match self {
            Exception::Everything => true,
            Exception::Name { name, port } => {
                let below =
                    host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
                below && port.is_none_or(|port| port == at)
            }
            Exception::Network(network) => host.parse::<IpAddr>().is_ok_and(|host| network.contains(&host)),
        }
    }

    fn shown(&self) -> String {
        match self {
            Exception::Everything => "*".to_owned(),
            Exception::Name { name, port: Some(port) } => format!("{name}:{port}"),
            Exception::Name { name, port: None } => name.clone(),
            Exception::Network(network) => network.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(except: &str) -> Proxy {
        Proxy::new("http://proxy:3128", except.split(',').map(str::to_owned)).unwrap()
    }

    #[test]
    fn a_url_with_or_without_scheme_port_and_login() {
        let via = |text: &str| Proxy::new(text, []).unwrap().via.unwrap();
        assert_eq!(
            (via("http://p:3128").address(), via("p:3128/").address()),
            ("p:3128".into(), "p:3128".into())
        );
        assert_eq!(via("http://p").port, 80);
        assert_eq!(via("http://[::1]:8").address(), "[::1]:8");
        let (user, password) = via("http://me:p%40ss@p:1").login.unwrap();
        assert_eq!((user.expose(), password.expose()), ("me", "p@ss"));
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_showing_its_login() {
        for text in
            ["https://me:secret@p", "socks5://me:secret@p:1", "http://me:secret@p/path", "http://me:secret@"]
        {
            let problem = Proxy::new(text, []).unwrap_err();
            assert!(!problem.contains("secret"), "{problem}");
        }
        let proxy = Proxy::new("http://me:secret@p:1", []).unwrap();
        assert!(!format!("{proxy:?} {:?}", proxy.shown()).contains("secret"));
    }

    #[test]
    fn names_cover_what_is_below_them() {
        for except in ["example.com", ".example.com", "*.example.com", "EXAMPLE.com.", " example.com "] {
            let proxy = proxy(except);
            assert!(proxy.to("a.Example.com", 443).is_none(), "{except}");
            assert!(proxy.to("example.com.", 443).is_none(), "{except}");
            assert!(proxy.to("notexample.com", 443).is_some(), "{except}");
        }
        assert!(proxy("a:8883").to("a", 8883).is_none() && proxy("a:8883").to("a", 443).is_some());
        assert!(proxy("*").to("anything", 1).is_none());
        assert!(proxy("").to("anything", 1).is_some());
    }

    #[test]
    fn addresses_are_matched_by_their_first_bits() {
        let proxy = proxy("10.0.0.0/8,192.168.1.7,fd00::/8");
        for host in ["10.9.9.9", "192.168.1.7", "[fd12::1]"] {
            assert!(proxy.to(host, 443).is_none(), "{host}");
        }
        for host in ["11.0.0.1", "192.168.1.8", "fe80::1", "10.example.com"] {
            assert!(proxy.to(host, 443).is_some(), "{host}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        let proxy = proxy("a.b:1,10.0.0.0/8,*,c");
        let (url, except) = proxy.shown().unwrap();
        assert_eq!(Proxy::new(&url, except).unwrap(), proxy);
    }
}
