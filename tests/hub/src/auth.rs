//! Shared access signatures (device and service) and certificate thumbprints.
//!
//! Format: Azure's "Control access with shared access signatures": `SharedAccessSignature sr=..&sig=..&se=..[&skn=..]`,
//! `sig` being the HMAC-SHA256 of the raw `sr`, a newline and `se`.

use data_encoding::{BASE64, HEXUPPER};
use percent_encoding::percent_decode_str;
use ring::{digest, hmac};

/// Why a token does not open the door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("there is no Authorization header")]
    Missing,
    #[error("the token is not of the form SharedAccessSignature sr=..&sig=..&se=..")]
    Malformed,
    #[error("the token expired at {0} (Unix seconds)")]
    Expired(u64),
    #[error("the token's signature fits none of the keys")]
    BadSignature,
    #[error("the token is for {token}, which does not cover {wanted}")]
    WrongResource { token: String, wanted: String },
    #[error("there is no policy {0}")]
    UnknownPolicy(String),
    #[error("a key is not base64")]
    BadKey,
}

/// A parsed token; nothing of it is trusted before [`SasToken::verify`].
#[derive(Debug, Clone)]
pub struct SasToken {
    /// `sr` exactly as it stands in the token: the signature covers these bytes.
    raw_resource: String,
    signature: Vec<u8>,
    /// Unix seconds.
    pub expiry: u64,
    pub policy: Option<String>,
}

impl SasToken {
    /// Takes the fields in any order, and `/` or `+` unescaped in `sig`.
    pub fn parse(text: &str) -> Result<SasToken, AuthError> {
        let fields = text.strip_prefix("SharedAccessSignature ").ok_or(AuthError::Malformed)?;
        let (mut resource, mut signature, mut expiry, mut policy) = (None, None, None, None);
        for field in fields.split('&') {
            let (name, value) = field.split_once('=').ok_or(AuthError::Malformed)?;
            let place = match name {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                "skn" => &mut policy,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(AuthError::Malformed);
            }
        }
        let signature = decoded(signature.ok_or(AuthError::Malformed)?)?;
        let policy = policy.filter(|name| !name.is_empty()).map(decoded).transpose()?;
        Ok(SasToken {
            raw_resource: resource.ok_or(AuthError::Malformed)?.to_owned(),
            signature: BASE64.decode(signature.as_bytes()).map_err(|_| AuthError::Malformed)?,
            expiry: expiry.and_then(|text| text.parse().ok()).ok_or(AuthError::Malformed)?,
            policy,
        })
    }

    /// Whether one of `keys` (base64) signed it and it has not expired at `now` (Unix seconds).
    pub fn verify<'a>(&self, keys: impl IntoIterator<Item = &'a str>, now: u64) -> Result<(), AuthError> {
        let message = format!("{}\n{}", self.raw_resource, self.expiry);
        let signed = keys.into_iter().any(|key| {
            let key = BASE64.decode(key.as_bytes()).map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key));
            key.is_ok_and(|key| hmac::verify(&key, message.as_bytes(), &self.signature).is_ok())
        });
        if !signed {
            return Err(AuthError::BadSignature);
        }
        if self.expiry <= now { Err(AuthError::Expired(self.expiry)) } else { Ok(()) }
    }

    /// The resource, decoded: `host/devices/id`.
    pub fn resource(&self) -> Result<String, AuthError> {
        decoded(&self.raw_resource)
    }

    /// Whether the token's resource is `wanted` or, with `as_prefix`, a prefix of it in whole path segments.
    /// Hosts are compared without regard to case.
    pub fn covers(&self, wanted: &str, as_prefix: bool) -> Result<(), AuthError> {
        let token = self.resource()?;
        let mut have = token.split('/');
        let mut want = wanted.split('/');
        let host = matches!((have.next(), want.next()), (Some(h), Some(w)) if h.eq_ignore_ascii_case(w));
        let segments = have.all(|segment| want.next() == Some(segment));
        if host && segments && (as_prefix || want.next().is_none()) {
            return Ok(());
        }
        Err(AuthError::WrongResource { token, wanted: wanted.to_owned() })
    }
}

fn decoded(text: &str) -> Result<String, AuthError> {
    Ok(percent_decode_str(text).decode_utf8().map_err(|_| AuthError::Malformed)?.into_owned())
}

/// Makes a token, as a device or a service would; for tests and for printing.
pub fn sign(resource: &str, key: &str, expiry: u64, policy: Option<&str>) -> Result<String, AuthError> {
    let resource = encoded(resource);
    let key = BASE64.decode(key.as_bytes()).map_err(|_| AuthError::BadKey)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let tag = hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    let signature = encoded(&BASE64.encode(tag.as_ref()));
    let policy = policy.map(|name| format!("&skn={}", encoded(name))).unwrap_or_default();
    Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{policy}"))
}

fn encoded(text: &str) -> String {
    const KEEP: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    percent_encoding::utf8_percent_encode(text, KEEP).to_string()
}

/// The SHA-1 and SHA-256 thumbprints of a DER certificate, upper-case hex: the hub takes either.
pub fn thumbprints(certificate: &[u8]) -> [String; 2] {
    let hex = |algorithm| HEXUPPER.encode(digest::digest(algorithm, certificate).as_ref());
    [hex(&digest::SHA1_FOR_LEGACY_USE_ONLY), hex(&digest::SHA256)]
}

/// A thumbprint as people write it (colons, lower case), as 40 or 64 upper-case hex digits.
pub fn normal_thumbprint(text: &str) -> Option<String> {
    let hex: String = text.chars().filter(|c| *c != ':' && !c.is_whitespace()).collect();
    let hex = hex.to_ascii_uppercase();
    let valid = matches!(hex.len(), 40 | 64) && hex.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then_some(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const URI: &str = "myhub.azure-devices.net/devices/dev-1";
    const TOKEN: &str = "SharedAccessSignature sr=myhub.azure-devices.net%2Fdevices%2Fdev-1&sig=l7%2Fu96NiMH3c2q8ND0vSv7AgtbSZO7bj2kWfUIF7ugw%3D&se=1700000000";

    #[test]
    fn the_vector_made_by_the_python_sdk() {
        assert_eq!(sign(URI, KEY, 1_700_000_000, None).unwrap(), TOKEN);
        let token = SasToken::parse(TOKEN).unwrap();
        assert_eq!(token.verify([KEY], 1_699_999_999), Ok(()));
        assert_eq!(token.verify([KEY], 1_700_000_000), Err(AuthError::Expired(1_700_000_000)));
        assert_eq!(token.verify(["AAAA"], 0), Err(AuthError::BadSignature));
        assert_eq!(token.verify(["AAAA", KEY], 0), Ok(()));
    }

    #[test]
    fn order_of_fields_and_a_raw_slash_do_not_matter() {
        let text = "SharedAccessSignature se=1700000000&skn=&sig=l7/u96NiMH3c2q8ND0vSv7AgtbSZO7bj2kWfUIF7ugw=&sr=myhub.azure-devices.net%2Fdevices%2Fdev-1";
        SasToken::parse(text).unwrap().verify([KEY], 0).unwrap();
    }

    #[test]
    fn the_signature_covers_the_raw_resource() {
        let lower = TOKEN.replace("net%2F", "net%2f");
        assert_eq!(SasToken::parse(&lower).unwrap().verify([KEY], 0), Err(AuthError::BadSignature));
        let later = TOKEN.replace("1700000000", "1800000000");
        assert_eq!(SasToken::parse(&later).unwrap().verify([KEY], 0), Err(AuthError::BadSignature));
    }

    #[test]
    fn malformed_tokens() {
        for text in [
            "",
            "Bearer x",
            "SharedAccessSignature ",
            "SharedAccessSignature sr=a&sig=b",
            "SharedAccessSignature sr=a&sig=%%%&se=1",
            "SharedAccessSignature sr=a&sr=b&sig=AAAA&se=1",
            "SharedAccessSignature sr=a&sig=AAAA&se=-1",
        ] {
            assert_eq!(SasToken::parse(text).unwrap_err(), AuthError::Malformed, "{text}");
        }
    }

    #[test]
    fn a_prefix_covers_whole_segments_only() {
        let token =
            |resource: &str| SasToken::parse(&sign(resource, KEY, 9, Some("device")).unwrap()).unwrap();
        assert!(token("HUB/devices/a").covers("hub/devices/a", false).is_ok());
        assert!(token("hub/devices/A").covers("hub/devices/a", false).is_err());
        assert!(token("hub").covers("hub/devices/a", true).is_ok());
        assert!(token("hub").covers("hub/devices/a", false).is_err());
        assert!(token("hub/devices/a").covers("hub/devices/ab", true).is_err());
        assert!(token("hub/devices/a/modules/m").covers("hub/devices/a", true).is_err());
    }

    #[test]
    fn thumbprints_are_read_as_people_write_them() {
        let [sha1, sha256] = thumbprints(b"abc");
        assert_eq!(sha1, "A9993E364706816ABA3E25717850C26C9CD0D89D");
        assert_eq!(sha256.len(), 64);
        assert_eq!(
            normal_thumbprint("a9:99:3e:36:47:06:81:6a:ba:3e:25:71:78:50:c2:6c:9c:d0:d8:9d"),
            Some(sha1)
        );
        assert_eq!(normal_thumbprint("a999"), None);
        assert_eq!(normal_thumbprint(&"z".repeat(40)), None);
    }
}
