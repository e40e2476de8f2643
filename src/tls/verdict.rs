//! What is wrong with a certificate, in words: clock, host name, authority and purpose told apart, each with what
//! helps. The hub, the provisioning service and downloads say it alike.

use std::fmt;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::kind;
use crate::clock::{Clock, TimeOrigin};

/// Names of a certificate that a message shows, and characters of each: the other side chose them.
const NAMES: (usize, usize) = (3, 80);

/// Why a server's certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Completes "the certificate of HOST ...".
    what: String,
    /// The time that it was judged by, if that decided.
    clock: Option<String>,
    /// What helps.
    remedy: String,
}

impl Verdict {
    pub fn new(fault: &CertificateError, clock: &Clock) -> Verdict {
        use CertificateError::*;
        match fault {
            ExpiredContext { time, not_after } => Verdict::of_time(
                format!("is expired: it, or one above it, was valid until {}", date(*not_after)),
                *time,
                clock,
            ),
            NotValidYetContext { time, not_before } => Verdict::of_time(
                format!("is not valid yet: it, or one above it, is valid from {}", date(*not_before)),
                *time,
                clock,
            ),
            other => {
                let (what, remedy) = timeless(other);
                Verdict { what, clock: None, remedy: remedy.to_owned() }
            }
        }
    }

    fn of_time(what: String, judged_at: UnixTime, clock: &Clock) -> Verdict {
        let remedy = match clock.origin().0 {
            TimeOrigin::Synchronised => "have the server's certificate and its chain renewed",
            TimeOrigin::Learned(_) | TimeOrigin::System | TimeOrigin::Saved => {
                "the clock is not synchronised, so let a time service set it (fwupdatectl doctor shows what it says); \
                 if it is right, have the server's certificate and its chain renewed"
            }
        };
        Verdict { what, clock: Some(date(judged_at)), remedy: remedy.to_owned() }
    }

    /// Whether another time could change it.
    pub fn is_of_time(&self) -> bool {
        self.clock.is_some()
    }

    /// The same for every attempt that fails for the same reason.
    pub fn reason(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(clock) = &self.clock {
            write!(f, ", and this gateway's clock says {clock}")?;
        }
        write!(f, ": {}", self.remedy)
    }
}

/// What is wrong whatever the time is, and what helps.
fn timeless(fault: &CertificateError) -> (String, &'static str) {
    use CertificateError::*;
    match fault {
        NotValidForNameContext { expected, presented } => (
            format!("is another host's: it is for {} and not for {}", names(presented), expected.to_str()),
            "check the host name in the settings, and whether something on the way (a captive portal, a proxy) \
             answers in its place",
        ),
        UnknownIssuer => (
            "comes from an authority that this gateway does not trust".to_owned(),
            "add that authority's certificate to cloud.ca_file if it is yours; otherwise something on the way (a \
             captive portal, a proxy that opens TLS) answers in its place",
        ),
        InvalidPurpose | InvalidPurposeContext { .. } => (
            "is not made for servers (by its extended key usage)".to_owned(),
            "have it issued anew with the purpose serverAuth",
        ),
        BadSignature => (
            "is not signed by the authority that it names".to_owned(),
            "cloud.ca_file may hold an older certificate of that authority, or one of an RSA key of fewer than 2048 bits, \
             which is not believed: renew it",
        ),
        UnsupportedSignatureAlgorithmContext { signature_algorithm_id, .. } => (
            match kind::algorithm(signature_algorithm_id) {
                Some(name) => format!("is signed with {name}, which is not believed any more"),
                None => "is signed in a way that is not known here".to_owned(),
            },
            "have it signed with SHA-256",
        ),
        UnsupportedSignatureAlgorithmForPublicKeyContext { public_key_algorithm_id, .. } => (
            format!(
                "is signed by a key on the curve {}, which cannot be used",
                kind::algorithm(public_key_algorithm_id).unwrap_or("of a name that is not known here")
            ),
            "have it issued by an authority with an RSA key, or with one on P-256 or P-384",
        ),
        Revoked => ("is revoked".to_owned(), "have the server's certificate issued anew"),
        other => match format!("{other:?}") {
            text if text.contains("CaUsedAsEndEntity") => (
                "is an authority's own, which no server may show".to_owned(),
                "have a certificate for the server issued by that authority",
            ),
            text if text.contains("UnsupportedCertVersion") => (
                "is of X.509 version 1, which no server may show".to_owned(),
                "have it issued anew as version 3",
            ),
            text => {
                (format!("cannot be used ({})", clean(&text)), "have the server's certificate issued anew")
            }
        },
    }
}

/// Why the other side does not take our certificate, if that is what `alert` says.
pub fn own_certificate(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription::*;
    Some(match alert {
        CertificateExpired => "expired: renew it",
        CertificateRevoked => "revoked: have another one issued",
        UnknownCA => {
            "from an authority that is unknown there: register that authority, or send the whole chain"
        }
        CertificateRequired => "missing: set cloud.certificate_file and cloud.key_file",
        BadCertificate | UnsupportedCertificate | CertificateUnknown | AccessDenied => {
            "not accepted there: compare it with what is registered"
        }
        _ => return None,
    })
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("second {seconds} since 1970"))
}

/// The names as they stand in the certificate; webpki shows each as `DnsName("a.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| clean(name.split('"').nth(1).unwrap_or(name));
    let shown: Vec<String> = presented.iter().take(NAMES.0).map(bare).collect();
    match presented.len().checked_sub(NAMES.0) {
        _ if shown.is_empty() => "no name".to_owned(),
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(NAMES.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{CertificateDer, ServerName};
    use std::sync::Arc;
    use std::time::Duration;

    /// What the real verifier has against the certificate that `change` makes, shown by localhost in 2026.
    fn verdict(change: impl FnOnce(&mut rcgen::CertificateParams)) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = authority.self_signed(&key).unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2027, 1, 2);
        change(&mut params);
        let leaf = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &authority, &key).unwrap();
        judged(leaf.der(), &[], authority.der())
    }

    fn judged(
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        root: &CertificateDer<'_>,
    ) -> String {
        judged_at(UnixTime::since_unix_epoch(Duration::from_secs(1_780_000_000)), leaf, between, root)
    }

    fn judged_at(
        now: UnixTime,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        root: &CertificateDer<'_>,
    ) -> String {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.clone().into_owned()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        match verifier.verify_server_cert(leaf, between, &name, &[], now) {
            Err(rustls::Error::InvalidCertificate(fault)) => {
                Verdict::new(&fault, &Clock::new(Some("/nowhere".into()))).to_string()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clock_name_authority_and_purpose_are_told_apart_in_dates() {
        let late = verdict(|params| params.not_after = rcgen::date_time_ymd(2026, 2, 3));
        assert!(late.starts_with(
            "is expired: it, or one above it, was valid until 2026-02-03T00:00:00Z, and this gateway's clock says 2026-05-28T20:26:40Z: "
        ), "{late}");
        assert!(late.contains("clock is not synchronised"), "{late}");
        let early = verdict(|params| params.not_before = rcgen::date_time_ymd(2026, 6, 1));
        assert!(
            early.starts_with(
                "is not valid yet: it, or one above it, is valid from 2026-06-01T00:00:00Z, and"
            ),
            "{early}"
        );
        let other = verdict(|params| {
            params.subject_alt_names = vec![rcgen::SanType::DnsName("portal.example".try_into().unwrap())];
        });
        assert!(
            other.starts_with("is another host's: it is for portal.example and not for localhost: "),
            "{other}"
        );
        let purpose = verdict(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert!(
            purpose.starts_with("is not made for servers") && purpose.contains("serverAuth"),
            "{purpose}"
        );
        for text in [&other, &purpose] {
            assert!(!text.contains("clock"), "{text}");
        }
    }

    #[test]
    fn a_foreign_authority_and_one_that_serves_itself_are_told_apart() {
        let pair = |name: &str, is_ca| {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = is_ca;
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
        };
        let (one, two) = (pair("one", rcgen::IsCa::NoCa), pair("two", rcgen::IsCa::NoCa));
        let foreign = judged(one.der(), &[], two.der());
        assert!(foreign.contains("authority that this gateway does not trust"), "{foreign}");
        assert!(foreign.contains("cloud.ca_file"), "{foreign}");
        let authority = pair("own", rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        let own = judged(authority.der(), &[], authority.der());
        assert!(own.starts_with("is an authority's own, which no server may show: "), "{own}");
    }

    /// A certificate that `openssl` makes from these arguments, and that vouches for itself.
    fn by_openssl(commands: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        for command in commands {
            let mut openssl = std::process::Command::new("openssl");
            let output = openssl.current_dir(dir.path()).args(command.split(' ')).output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let read = |name: &str| super::super::pem::certificates(&dir.path().join(name)).unwrap().remove(0);
        judged_at(UnixTime::now(), &read("leaf.pem"), &[], &read("root.pem"))
    }

    #[test]
    fn old_versions_weak_signatures_and_curves_that_are_missing_are_named() {
        let root = "req -x509 -nodes -keyout root.key -out root.pem -days 9999 -subj /CN=root";
        let request = "req -new -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.req -subj /CN=localhost";
        let issue = "x509 -req -in leaf.req -CA root.pem -CAkey root.key -days 9999 -out leaf.pem";
        let rsa = format!("{root} -newkey rsa:2048");
        let first = by_openssl(&[&rsa, request, issue]);
        assert!(first.starts_with("is of X.509 version 1"), "{first}");
        let named = format!("{request} -addext subjectAltName=DNS:localhost");
        let issue = format!("{issue} -copy_extensions copy");
        let weak = by_openssl(&[&rsa, &named, &format!("{issue} -sha1")]);
        assert!(weak.starts_with("is signed with SHA-1"), "{weak}");
        let curve = format!("{root} -newkey ec -pkeyopt ec_paramgen_curve:P-521");
        let curve = by_openssl(&[&curve, &named, &issue]);
        assert!(curve.starts_with("is signed by a key on the curve P-521"), "{curve}");
        let short = by_openssl(&[&format!("{root} -newkey rsa:1024"), &named, &issue]);
        assert!(short.contains("fewer than 2048 bits"), "{short}");
    }

    #[test]
    fn what_expired_above_a_server_s_certificate_is_not_said_of_it_alone() {
        let (late, early) = (rcgen::date_time_ymd(2026, 2, 3), rcgen::date_time_ymd(2026, 6, 1));
        for (from, until, word) in [
            (rcgen::date_time_ymd(2020, 1, 1), late, "was valid until 2026-02-03"),
            (early, rcgen::date_time_ymd(2036, 1, 1), "is valid from 2026-06-01"),
        ] {
            let key = || rcgen::KeyPair::generate().unwrap();
            let ca = |name: &str| {
                let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
                params.distinguished_name.push(rcgen::DnType::CommonName, name);
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                params
            };
            let (root_key, middle_key) = (key(), key());
            let root = ca("root").self_signed(&root_key).unwrap();
            let mut middle = ca("middle");
            (middle.not_before, middle.not_after) = (from, until);
            let middle = middle.signed_by(&middle_key, &root, &root_key).unwrap();
            let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let leaf = leaf.signed_by(&key(), &middle, &middle_key).unwrap();
            let said = judged(leaf.der(), &[middle.der().clone()], root.der());
            assert!(said.contains(&format!("it, or one above it, {word}")), "{said}");
            assert!(said.contains("its chain"), "{said}");
        }
    }

    #[test]
    fn a_synchronised_clock_is_not_blamed_and_names_are_bounded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0 synchronised").unwrap();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(9));
        let fault = CertificateError::ExpiredContext { time, not_after: time };
        let verdict = Verdict::new(&fault, &Clock::new(Some(file.path().to_path_buf())));
        assert!(verdict.is_of_time());
        assert!(
            verdict.to_string().ends_with(": have the server's certificate and its chain renewed"),
            "{verdict}"
        );
        let many: Vec<String> =
            (0..9).map(|n| format!("DnsName(\"{n}\u{1b}{}\")", "x".repeat(999))).collect();
        let shown = names(&many);
        assert!(shown.ends_with(" and 6 more") && shown.len() < 300 && !shown.contains('\u{1b}'), "{shown}");
        assert_eq!(names(&[]), "no name");
        assert_eq!(
            date(UnixTime::since_unix_epoch(Duration::MAX)),
            format!("second {} since 1970", i64::MAX)
        );
    }
}
