//! Where a bundle is: the one place that reads a package's URL, says which URLs name one package, and decides what of
//! a URL may be shown. Its user info, query and fragment hold passwords and tokens, and are told to nobody.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use url::{ParseError, Url};

use crate::bounds::{self, URI, encoded};

/// The URL of a bundle as it was asked for: so it is saved, and so it is fetched.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct PackageUri {
    text: String,
    /// `None`: the text is no URL. Only a record that is damaged, or none of ours, has such a one.
    url: Option<Url>,
}

impl PackageUri {
    /// What the cloud asks for: an https URL. The error completes "fwPackageUri ...".
    pub fn asked(text: &str) -> Result<PackageUri, String> {
        // A line's end, as a file has it, is no part of the URL.
        let text = text.trim();
        if encoded(text) > URI {
            return Err(format!("has more than {URI} bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err("holds a control character: give the URL alone".to_owned());
        }
        let url = Url::parse(text).map_err(|why| match why {
            ParseError::IdnaError => {
                "has no host name as certificates have it: give that (xn--...)".to_owned()
            }
            why => format!("is no URL ({why})"),
        })?;
        match url.scheme() {
            "https" => Ok(PackageUri { text: text.to_owned(), url: Some(url) }),
            other => Err(format!("must be an https URL, not {other}")),
        }
    }

    /// A local file, which only local control may ask for.
    pub fn of_file(path: &str) -> Result<PackageUri, String> {
        let url =
            Url::from_file_path(Path::new(path)).map_err(|()| format!("{path} must be an absolute path"))?;
        match encoded(url.as_str()) {
            0..=URI => Ok(PackageUri { text: url.to_string(), url: Some(url) }),
            _ => Err(format!("file has more than {URI} bytes as a URL: give a shorter path")),
        }
    }

    /// What is fetched, secrets and all.
    pub fn url(&self) -> Option<&Url> {
        self.url.as_ref()
    }

    /// As logs, reports, errors and terminals may show it; also what somebody only took for a URL.
    pub fn shown(&self) -> String {
        self.url.as_ref().and_then(bare).unwrap_or_else(|| without_user(self.without_query()))
    }

    /// Whether both name the same file of the same server: a renewed token is no other firmware.
    pub fn is_same_package(&self, other: &PackageUri) -> bool {
        self.without_query() == other.without_query()
    }

    /// The text up to the query, which is what is compared, and kept of an operation that ended.
    pub fn without_query(&self) -> &str {
        self.text.split(['?', '#']).next().unwrap_or_default()
    }

    /// Cuts the end off, so that at most `limit` encoded bytes stay.
    pub fn cut(&mut self, limit: usize) {
        *self = bounds::short(&self.text, limit).into();
    }
}

impl From<String> for PackageUri {
    fn from(text: String) -> PackageUri {
        PackageUri { url: Url::parse(&text).ok(), text }
    }
}

impl From<&str> for PackageUri {
    fn from(text: &str) -> PackageUri {
        text.to_owned().into()
    }
}

impl From<PackageUri> for String {
    fn from(uri: PackageUri) -> String {
        uri.text
    }
}

impl fmt::Debug for PackageUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

/// As [`PackageUri::shown`], of a URL that a redirect leads to.
pub fn shown(url: &Url) -> String {
    // Without a host there is no place for user info; what the rest may hold is nobody's business.
    bare(url).unwrap_or_else(|| format!("{}:", url.scheme()))
}

/// `None`: it names no host.
fn bare(url: &Url) -> Option<String> {
    let mut bare = url.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    bare.set_username("").and_then(|()| bare.set_password(None)).ok()?;
    Some(bare.into())
}

/// What somebody took for a URL, without `user:password@`.
fn without_user(uri: &str) -> String {
    let host = uri.find("://").map_or(0, |at| at.saturating_add(3));
    let authority = uri.get(host..).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, rest)) if user.contains(':') => {
            let path = uri.get(host.saturating_add(authority.len())..).unwrap_or_default();
            format!("{rest}{path}")
        }
        _ => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_has_no_secrets() {
        let cases = [
            ("https://user:pw@h.example/a/b.fwb?sig=s3cret#frag", "https://h.example/a/b.fwb"),
            ("https://h.example:8443", "https://h.example:8443/"),
            ("mailto:someone@example.com?s3cret", "mailto:"),
        ];
        for (url, expected) in cases {
            assert_eq!(shown(&url.parse().unwrap()), expected);
        }
    }

    #[test]
    fn nor_has_what_somebody_took_for_one() {
        for (text, expected) in [
            ("https://user:pw@h/fw?sig=s3cret", "https://h/fw"),
            ("me:s3cret@h/x?sig=s3cret", "h/x"),
            ("https://me:s3cret@/x", "/x"),
            ("file:///var/fw.fwb", "file:///var/fw.fwb"),
            ("good.fwb", "good.fwb"),
            ("", ""),
        ] {
            let uri = PackageUri::from(text);
            assert_eq!(uri.shown(), expected);
            assert_eq!(format!("{uri:?}"), expected, "nor has a log that shows all");
            assert_eq!(String::from(uri), text, "saved as it is");
        }
    }

    #[test]
    fn a_fresh_token_names_the_same_package() {
        let uri = |text: &str| PackageUri::from(text);
        assert!(uri("https://h/fw?sig=1").is_same_package(&uri("https://h/fw?sig=2#x")));
        assert!(!uri("https://h/fw").is_same_package(&uri("https://h/fw2")));
    }

    #[test]
    fn a_file_is_named_by_its_whole_path() {
        assert_eq!(PackageUri::of_file("/a b").unwrap().shown(), "file:///a%20b");
        assert!(PackageUri::of_file("a").unwrap_err().contains("absolute"));
        assert!(PackageUri::of_file(&format!("/{}", "a".repeat(URI))).unwrap_err().contains("shorter"));
    }
}
