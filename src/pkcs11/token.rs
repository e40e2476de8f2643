//! A session with the token that holds a key. What is done here is done by the token's own library: it may take its time,
//! hang, or crash.

use std::ffi::c_ulong;
use std::fs;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use sha2::{Digest, Sha256};

use super::der;
use super::key::{Description, KeyKind, Scheme, TokenError};
use super::uri::KeyUri;

/// The curve's name as DER, which is what tokens call it.
const P256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
/// What a point is wrapped in, as an `OCTET STRING`: its tag and length.
const WRAPPED_POINT: &[u8] = b"\x04\x41";
/// What stands before a SHA-256 digest in a PKCS#1 signature (RFC 8017, 9.2).
const DIGEST_INFO: &[u8] = b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20";
/// Bytes of the salt of a PSS signature: those of the digest, as TLS wants it.
const SALT: c_ulong = 32;

/// A private key, and the session in which it can be used.
#[derive(Debug)]
pub struct TokenKey {
    session: Session,
    key: ObjectHandle,
    description: Description,
}

impl TokenKey {
    /// Finds the token, logs in, and finds the key.
    pub fn open(uri: &KeyUri) -> Result<TokenKey, TokenError> {
        let module = load(uri)?;
        let slot = slot(&module, uri)?;
        let session = module.open_ro_session(slot).map_err(failed)?;
        let token = module.get_token_info(slot).map_err(failed)?;
        log_in(&session, &token, uri)?;
        let key = find(&session, ObjectClass::PRIVATE_KEY, uri)?;
        let description = describe(&module, slot, &session, key, uri)?;
        Ok(TokenKey { session, key, description })
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The signature of `message`.
    pub fn sign(&self, scheme: Scheme, message: &[u8]) -> Result<Vec<u8>, TokenError> {
        let digest = Sha256::digest(message);
        let sign = |mechanism, data: &[u8]| self.session.sign(&mechanism, self.key, data).map_err(failed);
        match scheme {
            Scheme::Ecdsa => sign(Mechanism::Ecdsa, &digest).map(|halves| der::ecdsa_signature(&halves)),
            Scheme::RsaPss => sign(Mechanism::RsaPkcsPss(pss()), &digest),
            Scheme::RsaPkcs1 => sign(Mechanism::RsaPkcs, &[DIGEST_INFO, &digest].concat()),
        }
    }
}

fn load(uri: &KeyUri) -> Result<Pkcs11, TokenError> {
    let broken = |error: Error| TokenError::Module {
        path: uri.module().display().to_string(),
        cause: error.to_string(),
    };
    let module = Pkcs11::new(uri.module()).map_err(broken)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(module),
        Err(error) => Err(broken(error)),
    }
}

fn slot(module: &Pkcs11, uri: &KeyUri) -> Result<Slot, TokenError> {
    let mut found = Vec::new();
    for slot in module.get_slots_with_token().map_err(failed)? {
        // One that is just unplugged is as good as none.
        if module.get_token_info(slot).is_ok_and(|token| is_meant(uri, slot, &token)) {
            found.push(slot);
        }
    }
    one(&found, uri, "tokens").and_then(|slot| slot.ok_or(TokenError::NoToken { uri: uri.to_string() }))
}

fn is_meant(uri: &KeyUri, slot: Slot, token: &TokenInfo) -> bool {
    let is = |wanted: &Option<String>, found: &str| {
        wanted.as_ref().is_none_or(|wanted| wanted.trim_end() == found.trim_end())
    };
    token.token_initialized()
        && is(&uri.token, token.label())
        && is(&uri.manufacturer, token.manufacturer_id())
        && is(&uri.model, token.model())
        && is(&uri.serial, token.serial_number())
        && uri.slot.is_none_or(|id| id == slot.id())
}

/// The only one; `None`: there is none.
fn one<T: Copy>(found: &[T], uri: &KeyUri, what: &str) -> Result<Option<T>, TokenError> {
    match found {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(TokenError::Ambiguous { uri: uri.to_string(), what: what.to_owned() }),
    }
}

/// A wrong PIN is spent once: who tries it again and again locks the token.
fn log_in(session: &Session, token: &TokenInfo, uri: &KeyUri) -> Result<(), TokenError> {
    let Some(file) = &uri.pin else { return Ok(()) };
    if token.user_pin_final_try() || token.user_pin_locked() {
        return Err(TokenError::PinGuarded);
    }
    let name = || file.display().to_string();
    let pin = fs::read_to_string(file)
        .map_err(|error| TokenError::PinFile { file: name(), cause: error.to_string() })?;
    let pin = AuthPin::new(pin.trim_end_matches(['\r', '\n']).into());
    match session.login(UserType::User, Some(&pin)) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid, _)) => {
            Err(TokenError::PinRefused { file: name() })
        }
        Err(Error::Pkcs11(RvError::PinLocked, _)) => Err(TokenError::PinGuarded),
        Err(error) => Err(failed(error)),
    }
}

fn find(session: &Session, class: ObjectClass, uri: &KeyUri) -> Result<ObjectHandle, TokenError> {
    let mut wanted = vec![Attribute::Class(class)];
    wanted.extend(uri.object.as_ref().map(|name| Attribute::Label(name.clone().into_bytes())));
    wanted.extend(uri.id.as_ref().map(|id| Attribute::Id(id.clone())));
    let found = session.find_objects(&wanted).map_err(failed)?;
    one(&found, uri, "keys").and_then(|key| key.ok_or(TokenError::NoKey { uri: uri.to_string() }))
}

fn describe(
    module: &Pkcs11,
    slot: Slot,
    session: &Session,
    key: ObjectHandle,
    uri: &KeyUri,
) -> Result<Description, TokenError> {
    let unknown = || TokenError::Kind { uri: uri.to_string() };
    let public = find(session, ObjectClass::PUBLIC_KEY, uri).ok();
    let told = |of| bytes(session, key, of).or_else(|| bytes(session, public?, of));
    match session.get_attributes(key, &[AttributeType::KeyType]).map_err(failed)?.as_slice() {
        [Attribute::KeyType(KeyType::EC)] => {
            if told(AttributeType::EcParams).is_none_or(|params| params != P256) {
                return Err(unknown());
            }
            let point = told(AttributeType::EcPoint);
            let public_key = point.and_then(|point| Some(der::p256_key(point.strip_prefix(WRAPPED_POINT)?)));
            Ok(Description { kind: KeyKind::P256, public_key })
        }
        [Attribute::KeyType(KeyType::RSA)] => {
            let ways = module.get_mechanism_list(slot).map_err(failed)?;
            let kind = KeyKind::Rsa { pss: ways.contains(&MechanismType::RSA_PKCS_PSS) };
            let parts = told(AttributeType::Modulus).zip(told(AttributeType::PublicExponent));
            let public_key = parts.map(|(modulus, exponent)| der::rsa_key(&modulus, &exponent));
            Ok(Description { kind, public_key })
        }
        _ => Err(unknown()),
    }
}

/// An attribute that is bytes; `None`: it is not there, or not told.
fn bytes(session: &Session, of: ObjectHandle, which: AttributeType) -> Option<Vec<u8>> {
    match session.get_attributes(of, &[which]).ok()?.into_iter().next()? {
        Attribute::EcParams(bytes)
        | Attribute::EcPoint(bytes)
        | Attribute::Modulus(bytes)
        | Attribute::PublicExponent(bytes) => Some(bytes),
        _ => None,
    }
}

fn pss() -> PkcsPssParams {
    PkcsPssParams { hash_alg: MechanismType::SHA256, mgf: PkcsMgfType::MGF1_SHA256, s_len: SALT.into() }
}

fn failed(error: Error) -> TokenError {
    TokenError::Failed { cause: error.to_string() }
}
