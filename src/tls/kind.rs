//! What a certificate or a private key is, read from its own bytes: what the TLS library or Azure cannot use is named
//! as what it is, and not as "unsupported".
//!
//! Formats: RFC 5280 (certificates), 5208 (PKCS#8), 8017 (RSA keys), 5915 (elliptic curves).

use rustls::pki_types::PrivateKeyDer;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// Signed with by the TLS library, in bits.
const RSA_BITS: [usize; 3] = [2048, 3072, 4096];

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;
const OCTETS: u8 = 0x04;
const BITS: u8 = 0x03;
const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
/// `[0]`: a certificate's version, and the curve of a key by itself.
const EXPLICIT_0: u8 = 0xa0;

/// Contents of object identifiers, and what people call them.
const NAMES: &[(&[u8], &str)] = &[
    (RSA, "RSA"),
    (CURVE, "an elliptic curve"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a], "RSASSA-PSS"),
    (&[0x2b, 0x65, 0x70], "Ed25519"),
    (&[0x2b, 0x65, 0x71], "Ed448"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01], "DSA"),
    (P256, "P-256"),
    (P384, "P-384"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x23], "P-521"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x21], "P-224"),
    (&[0x2b, 0x81, 0x04, 0x00, 0x0a], "secp256k1"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04], "MD5"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05], "SHA-1"),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01], "SHA-1"),
];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const CURVE: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// DER, read from the front.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    fn next(&mut self) -> Option<(u8, Der<'a>)> {
        let (tag, rest) = self.0.split_first()?;
        let (length, rest) = rest.split_first()?;
        let (length, rest) = match length.checked_sub(0x80) {
            None => (usize::from(*length), rest),
            Some(digits) => {
                let (digits, rest) = rest.split_at_checked(usize::from(digits))?;
                let add = |sum: usize, digit: &u8| sum.checked_mul(256)?.checked_add(usize::from(*digit));
                (digits.iter().try_fold(0, add)?, rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, Der(content)))
    }

    /// The content of the next element, which must be of this kind.
    fn take(&mut self, tag: u8) -> Option<Der<'a>> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    /// What an algorithm or a curve with this identifier is called.
    fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(id, _)| *id == self.0).map(|(_, name)| *name)
    }
}

/// What of the algorithm of a signature or a key, as it stands in a certificate, is worth telling.
pub fn algorithm(identifier: &[u8]) -> Option<&'static str> {
    let mut identifier = Der(identifier);
    let object = identifier.take(OBJECT)?;
    match object.0 == CURVE {
        true => identifier.take(OBJECT)?.name(),
        false => object.name(),
    }
}

/// Why this certificate cannot be a device's, if that can be told; completes "PATH ...".
pub fn fault_of_certificate(der: &[u8]) -> Option<String> {
    let mut body = Der(der).take(SEQUENCE)?.take(SEQUENCE)?;
    let version = Der(body.0).take(EXPLICIT_0).and_then(|mut version| version.take(INTEGER));
    if version.is_none_or(|version| version.0 != [2]) {
        return Some(
            "holds a certificate of X.509 version 1, which cannot be used: have it issued as version 3 (`openssl x509 \
             -req` does so with -extfile)"
                .to_owned(),
        );
    }
    // Version, serial number, signature, issuer, validity, subject.
    for _ in 0..6 {
        body.next()?;
    }
    let mut key = body.take(SEQUENCE)?;
    let (identifier, mut bits) = (key.take(SEQUENCE)?, key.take(BITS)?);
    // How many bits of its last octet are unused.
    bits.0 = bits.0.split_first()?.1;
    fault(identifier, bits.take(SEQUENCE)).map(|what| format!("holds a certificate for {what}"))
}

/// Whom a certificate names, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The subject's common name.
    pub name: Option<String>,
    pub not_after: OffsetDateTime,
}

/// `None`: it is no certificate.
pub fn holder(der: &[u8]) -> Option<Holder> {
    let mut body = Der(der).take(SEQUENCE)?.take(SEQUENCE)?;
    // Version (which those of version 1 lack), serial number, signature, issuer.
    let before = if Der(body.0).take(EXPLICIT_0).is_some() { 4 } else { 3 };
    for _ in 0..before {
        body.next()?;
    }
    let mut validity = body.take(SEQUENCE)?;
    validity.next()?;
    let not_after = moment(validity.next()?)?;
    Some(Holder { name: common_name(body.take(SEQUENCE)?), not_after })
}

fn common_name(mut subject: Der<'_>) -> Option<String> {
    while let Some(mut set) = subject.take(SET) {
        let mut attribute = set.take(SEQUENCE)?;
        if attribute.take(OBJECT)?.0 == COMMON_NAME {
            return String::from_utf8(attribute.next()?.1.0.to_vec()).ok();
        }
    }
    None
}

/// A `UTCTime`, whose years are those from 1950 to 2049, or a `GeneralizedTime`.
fn moment((tag, text): (u8, Der<'_>)) -> Option<OffsetDateTime> {
    let text = std::str::from_utf8(text.0).ok()?;
    let century = match tag {
        UTC_TIME if *text >= *"5" => "19",
        UTC_TIME => "20",
        _ => "",
    };
    let format = format_description!("[year][month][day][hour][minute][second]Z");
    PrimitiveDateTime::parse(&format!("{century}{text}"), format).ok().map(PrimitiveDateTime::assume_utc)
}

/// Why this private key cannot be used, if that can be told; completes "PATH ...".
pub fn fault_of_key(key: &PrivateKeyDer<'_>) -> Option<String> {
    let mut body = Der(key.secret_der()).take(SEQUENCE)?;
    // The version.
    body.take(INTEGER)?;
    let what = match key {
        PrivateKeyDer::Pkcs1(_) => fault_of_rsa(body.take(INTEGER)?),
        PrivateKeyDer::Sec1(_) => {
            body.take(OCTETS)?;
            fault_of_curve(body.take(EXPLICIT_0)?)
        }
        _ => {
            let identifier = body.take(SEQUENCE)?;
            let mut inner = body.take(OCTETS)?.take(SEQUENCE);
            // Its version.
            inner.iter_mut().for_each(|inner| _ = inner.take(INTEGER));
            fault(identifier, inner)
        }
    };
    what.map(|what| format!("holds {what}"))
}

/// `modulus`: where an RSA key's stands first.
fn fault(mut identifier: Der<'_>, modulus: Option<Der<'_>>) -> Option<String> {
    let object = identifier.take(OBJECT)?;
    match object.0 {
        RSA => fault_of_rsa(modulus?.take(INTEGER)?),
        CURVE => fault_of_curve(identifier),
        _ => {
            let name = object.name().unwrap_or("an algorithm that is not known here");
            Some(format!(
                "a key of {name}, which cannot be used with Azure: use RSA, or the curve P-256 or P-384"
            ))
        }
    }
}

fn fault_of_rsa(modulus: Der<'_>) -> Option<String> {
    let digits = modulus.0.iter().skip_while(|digit| **digit == 0);
    let (length, first) = (digits.clone().count(), digits.clone().next()?);
    let bits = length.saturating_mul(8).saturating_sub(first.leading_zeros() as usize);
    (!RSA_BITS.contains(&bits))
        .then(|| format!("an RSA key of {bits} bits, which cannot be used: make one of 2048, 3072 or 4096"))
}

/// `parameters` of an elliptic curve: its name, or all of it.
fn fault_of_curve(mut parameters: Der<'_>) -> Option<String> {
    match parameters.next()? {
        (OBJECT, Der(P256 | P384)) => None,
        (OBJECT, curve) => Some(format!(
            "a key on the curve {}, which cannot be used: use P-256 or P-384",
            curve.name().unwrap_or("of a name that is not known here")
        )),
        _ => Some(
            "a key whose curve is written out instead of named; convert it with `openssl ec -param_enc named_curve`, \
             or make a new one"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests;
