//! The name of a key in a token (RFC 7512, "The PKCS #11 URI Scheme"): by which module it is reached, which token and
//! which key it is, and where the PIN stands. The PIN itself is never part of it, for settings are shown and copied.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// What every such name begins with.
pub const SCHEME: &str = "pkcs11:";
/// What programs use that are told of no module: it asks all modules of the system (p11-kit(8)).
const EVERY_MODULE: &str = "p11-kit-proxy.so";

/// A private key in a token. What is `None` may be anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyUri {
    text: String,
    pub(super) module: Option<PathBuf>,
    pub(super) pin: Option<PathBuf>,
    pub(super) token: Option<String>,
    pub(super) manufacturer: Option<String>,
    pub(super) model: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) slot: Option<u64>,
    pub(super) object: Option<String>,
    pub(super) id: Option<Vec<u8>>,
}

impl KeyUri {
    /// The shared library that speaks with the token.
    pub(super) fn module(&self) -> &Path {
        self.module.as_deref().unwrap_or(Path::new(EVERY_MODULE))
    }

    /// The file that holds the PIN.
    pub fn pin_file(&self) -> Option<&Path> {
        self.pin.as_deref()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bytes: Vec<u8> = percent_decode_str(value).collect();
        let text = || String::from_utf8(bytes.clone()).map_err(|_| format!("{name} is not UTF-8"));
        match name {
            "token" => self.token = Some(text()?),
            "manufacturer" => self.manufacturer = Some(text()?),
            "model" => self.model = Some(text()?),
            "serial" => self.serial = Some(text()?),
            "object" => self.object = Some(text()?),
            "id" => self.id = Some(bytes),
            "slot-id" => {
                self.slot = Some(text()?.parse().map_err(|_| "slot-id is not a number".to_owned())?);
            }
            "type" if value == "private" => {}
            "type" => return Err("type must be private, or left out".to_owned()),
            "module-path" => self.module = Some(file(name, &text()?)?),
            "pin-source" => self.pin = Some(file(name, &text()?)?),
            "pin-value" => {
                return Err(
                    "pin-value would show the PIN to everybody who sees the settings: put it into a \
                            file of mode 0600 and name that by pin-source"
                        .to_owned(),
                );
            }
            other => return Err(format!("{other:?} is not known here: leave it out")),
        }
        Ok(())
    }
}

/// An absolute path, or one as a `file:` URI.
fn file(name: &str, text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("file://").or(text.strip_prefix("file:")).unwrap_or(text);
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(format!("{name} must be the absolute path of a file")),
    }
}

impl FromStr for KeyUri {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyUri, String> {
        let rest = text.strip_prefix(SCHEME).ok_or("it does not begin with pkcs11:")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = KeyUri { text: text.to_owned(), ..KeyUri::default() };
        let pairs = path.split(';').chain(query.split('&')).filter(|pair| !pair.is_empty());
        let mut seen = Vec::new();
        for pair in pairs {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} has no value"))?;
            if seen.contains(&name) {
                return Err(format!("{name} stands twice"));
            }
            seen.push(name);
            uri.set(name, value)?;
        }
        match uri.object.is_some() || uri.id.is_some() {
            true => Ok(uri),
            false => Err("it names no key: add object=NAME or id=%01".to_owned()),
        }
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_decoded_and_what_is_left_out_may_be_anything() {
        let text = "pkcs11:token=My%20token;serial=0af1;id=%01%fe;object=device;type=private\
                    ?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin";
        let uri: KeyUri = text.parse().unwrap();
        assert_eq!(uri.token.as_deref(), Some("My token"));
        assert_eq!(uri.id.as_deref(), Some(&[1, 0xfe][..]));
        assert_eq!(uri.module(), Path::new("/usr/lib/softhsm/libsofthsm2.so"));
        assert_eq!(uri.pin_file(), Some(Path::new("/run/pin")));
        assert_eq!((uri.model.as_ref(), uri.slot), (None, None));
        assert_eq!(uri.to_string(), text);
        let bare: KeyUri = "pkcs11:object=x".parse().unwrap();
        assert_eq!(bare.module(), Path::new(EVERY_MODULE));
    }

    #[test]
    fn what_would_be_misread_is_refused_with_a_reason() {
        for (text, why) in [
            ("pkcs11:", "names no key"),
            ("pkcs11:token=a", "names no key"),
            ("PKCS11:object=a", "does not begin"),
            ("pkcs11:object=a;object=b", "stands twice"),
            ("pkcs11:object", "has no value"),
            ("pkcs11:object=a;type=public", "private"),
            ("pkcs11:object=a;slot-id=x", "not a number"),
            ("pkcs11:object=a;tokn=b", "\"tokn\" is not known"),
            ("pkcs11:object=%ff", "not UTF-8"),
            ("pkcs11:object=a?pin-value=1234", "pin-source"),
            ("pkcs11:object=a?pin-source=relative", "absolute"),
            ("pkcs11:object=a?module-path=lib.so", "absolute"),
        ] {
            let error = text.parse::<KeyUri>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("1234"), "{error}");
        }
    }
}
