//! The authority that issues devices' certificates: what Azure Device Registry is to DPS and IoT Hub.
//!
//! It reads a signing request as strangers' input, and takes nothing from it but the public key: name, use and
//! lifetime are its own. Its key and chain lie in the hub's folder, so that what it issued outlives a restart.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKey, PublicKeyData, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::certs::{kept_key, lasting};
use crate::{clock, disk, x509};

/// A request's largest size.
pub const REQUEST_LIMIT: usize = 8 * 1024;
/// How long a certificate lasts where no enrollment says: 30 days, in seconds.
pub const LIFETIME: u64 = 30 * 24 * 3600;

/// A request whose signature is good.
#[derive(Debug)]
pub struct Request {
    pub common_name: String,
    key: PublicKey,
}

impl Request {
    /// Reads the DER form of a PKCS #10 request and checks that its own key signed it.
    pub fn read(der: &[u8]) -> Result<Request, String> {
        let der = CertificateSigningRequestDer::from(der);
        let request = CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| format!("the CSR is no PKCS #10 request that its key signed: {error}"))?;
        let common_name = request.params.distinguished_name.get(&DnType::CommonName).and_then(text);
        let common_name = common_name.ok_or("the CSR's subject has no common name")?;
        if !fits(&request.public_key) {
            return Err("the CSR's key and signature do not go together: take P-256 or RSA with SHA-256, \
                        P-384 with SHA-384, or Ed25519"
                .to_owned());
        }
        Ok(Request { common_name, key: request.public_key })
    }
}

fn text(value: &DnValue) -> Option<String> {
    match value {
        DnValue::Utf8String(text) => Some(text.clone()),
        DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        DnValue::Ia5String(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// The key's kind is guessed from the signature's, which a P-384 key with SHA-256 defeats.
fn fits(key: &PublicKey) -> bool {
    let (bytes, kind) = (key.der_bytes(), PublicKeyData::algorithm(key));
    if *kind == rcgen::PKCS_ECDSA_P256_SHA256 {
        return bytes.len() == 65;
    }
    if *kind == rcgen::PKCS_ECDSA_P384_SHA384 {
        return bytes.len() == 97;
    }
    *kind == rcgen::PKCS_ED25519 || bytes.first() == Some(&0x30)
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    pub device: String,
    /// Hex.
    pub serial: String,
    pub not_before: String,
    pub not_after: String,
    /// The `$rid` of a renewal; none where the provisioning service issued it.
    pub request_id: Option<String>,
}

/// The authority.
#[derive(Debug)]
pub struct Authority {
    key: KeyPair,
    /// What follows a leaf: the authority's own certificate, and the one that signed it.
    chain: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Reads it from `dir`, or makes it there.
    pub fn open(dir: &Path) -> Result<Authority> {
        let key = kept_key(dir, "devices-ca")?;
        let path = dir.join("devices-ca.pem");
        if !path.exists() {
            disk::replace(&path, chain_for(&key)?.as_bytes(), false)?;
        }
        let pem = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.with_context(|| format!("{} holds no certificates", path.display()))?;
        Ok(Authority { key, chain })
    }

    /// A certificate for `device`, valid from now on; its chain in DER, the leaf first.
    pub fn issue(
        &self,
        request: &Request,
        device: &str,
        lifetime: u64,
        request_id: Option<&str>,
    ) -> Result<(Vec<Vec<u8>>, Issued)> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, device);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let serial = positive(clock::random());
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        // Not from earlier: a device counts its share of the lifetime from here.
        params.not_before = OffsetDateTime::now_utc();
        params.not_after = params.not_before + Duration::seconds(i64::try_from(lifetime)?);
        let issued = Issued {
            device: device.to_owned(),
            serial: data_encoding::HEXLOWER.encode(&serial),
            not_before: clock::shown(params.not_before),
            not_after: clock::shown(params.not_after),
            request_id: request_id.map(str::to_owned),
        };
        // Of the issuer's certificate name and key are all that matters.
        let issuer = own_params()?.self_signed(&self.key)?;
        let leaf = params.signed_by(&request.key, &issuer, &self.key)?;
        let chain = [leaf.der()].into_iter().chain(&self.chain).map(|certificate| certificate.to_vec());
        Ok((chain.collect(), issued))
    }

    /// Whether a client's certificate is one of its own, for `name`, and valid now.
    pub fn vouches(&self, chain: &[CertificateDer<'_>], name: &str) -> Result<(), String> {
        let (leaf, between) = chain.split_first().ok_or("no client certificate was sent")?;
        let own = self.chain.first().ok_or("devices-ca.pem is empty")?;
        x509::signed_by(leaf, between, own.clone())?;
        match x509::common_name(leaf) {
            Some(named) if named == name => Ok(()),
            named => Err(format!("the client certificate is for {named:?}")),
        }
    }
}

/// A serial number is a positive integer without leading zeros.
fn positive(mut bytes: [u8; 16]) -> [u8; 16] {
    let [first, ..] = &mut bytes;
    *first = *first & 0x7f | 0x40;
    bytes
}

/// The authority's certificate, signed by a root whose key is forgotten, and that root's.
fn chain_for(key: &KeyPair) -> Result<String> {
    let root_key = KeyPair::generate()?;
    let root = params("fwupdate-hub devices root", 1)?.self_signed(&root_key)?;
    let own = own_params()?.signed_by(key, &root, &root_key)?;
    Ok(own.pem() + &root.pem())
}

fn own_params() -> Result<CertificateParams> {
    params("fwupdate-hub devices", 0)
}

fn params(name: &str, below: u8) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasting(&mut params, 3650);
    Ok(params)
}
