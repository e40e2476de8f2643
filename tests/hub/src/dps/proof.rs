//! How an applicant proves that an enrollment is meant for it: by a token of its key, or of a key derived from its
//! group's, or by a certificate, its own or one that its group's authority signed.

use data_encoding::BASE64;
use ring::hmac;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject, SectionKind};

use super::{Attestation, Enrollment};
use crate::auth::{self, SasToken};
use crate::clock;
use crate::registry::Credentials;
use crate::x509::{common_name, signed_by};

/// What an applicant shows.
pub enum Proof<'a> {
    /// With the resource that it must name.
    Token(SasToken, String),
    Certificate(&'a [CertificateDer<'a>]),
}

impl Proof<'_> {
    /// What the hub will know the device by, and when the token ends; the error is for the log.
    pub fn check(&self, enrollment: &Enrollment, id: &str) -> Result<(Credentials, Option<u64>), String> {
        match (self, &enrollment.attestation) {
            (Proof::Token(token, resource), Attestation::SymmetricKey { primary_key, secondary_key }) => {
                let keys = [primary_key, secondary_key].map(|key| match enrollment.group {
                    true => derive(key, id),
                    false => Ok(key.clone()),
                });
                let [primary_key, secondary_key] = keys;
                let (primary_key, secondary_key) = (primary_key?, secondary_key?);
                let good = token.covers(resource, false).and_then(|()| {
                    token.verify([primary_key.as_str(), secondary_key.as_str()], clock::unix())
                });
                good.map_err(|error| error.to_string())?;
                Ok((Credentials::Sas { primary_key, secondary_key }, Some(token.expiry)))
            }
            (Proof::Certificate(chain), Attestation::X509 { certificate }) => {
                let (leaf, intermediates) = chain.split_first().ok_or("no client certificate was sent")?;
                let enrolled = read_certificate(certificate.as_bytes())
                    .map_err(|problem| format!("its certificate cannot be read: it {problem}"))?;
                match enrollment.group {
                    true => signed_by(leaf, intermediates, enrolled)?,
                    false if *leaf == enrolled => {}
                    false => return Err("the client certificate is another one".to_owned()),
                }
                match common_name(leaf) {
                    Some(name) if name == id => {}
                    name => return Err(format!("the certificate is for {name:?}")),
                }
                let [_, primary_thumbprint] = auth::thumbprints(leaf);
                let secondary_thumbprint = None;
                Ok((Credentials::SelfSigned { primary_thumbprint, secondary_thumbprint }, None))
            }
            (Proof::Token(..), _) => Err("it wants a certificate".to_owned()),
            (Proof::Certificate(_), _) => Err("it wants a token".to_owned()),
        }
    }
}

/// The certificate of a file in PEM form, which must hold nothing that is secret; the error says what it holds instead.
pub fn read_certificate(content: &[u8]) -> Result<CertificateDer<'static>, String> {
    const DER: &str = "holds a certificate in DER form; convert it with `openssl x509 -inform DER -in FILE`";
    let sections: Result<Vec<(SectionKind, Vec<u8>)>, _> = PemObject::pem_slice_iter(content).collect();
    let sections = sections.map_err(|error| format!("is damaged: {error}"))?;
    let holds = |wanted: fn(&SectionKind) -> bool| sections.iter().any(|(kind, _)| wanted(kind));
    if holds(|kind| {
        matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
    }) {
        return Err(
            "holds a private key, which nobody but its owner needs: give the certificate alone".to_owned()
        );
    }
    let first = sections.iter().find(|(kind, _)| *kind == SectionKind::Certificate);
    match first.map(|(_, der)| CertificateDer::from(der.clone())) {
        Some(der) if is_x509(&der) => Ok(der),
        Some(_) => Err("is damaged: its certificate is no X.509 certificate of version 3".to_owned()),
        None if holds(|kind| *kind == SectionKind::Csr) => {
            Err("holds a signing request, no certificate".to_owned())
        }
        None if is_x509(&CertificateDer::from(content)) => Err(DER.to_owned()),
        None if content.is_empty() => Err("is empty".to_owned()),
        None => Err("holds no certificate in PEM form".to_owned()),
    }
}

fn is_x509(der: &CertificateDer<'_>) -> bool {
    webpki::EndEntityCert::try_from(der).is_ok()
}

/// The key of a group's member.
pub fn derive(group_key: &str, id: &str) -> Result<String, String> {
    let key = BASE64.decode(group_key.as_bytes()).map_err(|_| "the group's key is not base64".to_owned())?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    Ok(BASE64.encode(hmac::sign(&key, id.as_bytes()).as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_s_key_as_in_microsoft_s_example() {
        let group =
            "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
        let derived = derive(group, "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6").unwrap();
        assert_eq!(derived, "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=");
    }
}
