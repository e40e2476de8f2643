//! The Device Provisioning Service: enrollments, who may register by them, and what is assigned.
//!
//! It stands beside the hub on the same ports, since the SDKs let nobody choose another; who names the ID scope in the
//! MQTT user name talks to it. Enrollments are files of their own, like devices, so that `fwupdate-hub enrollment`
//! works while `serve` runs.

mod proof;
mod state;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, ensure};
use data_encoding::HEXLOWER;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::digest;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::proof::Proof;
pub use self::proof::{derive, read_certificate};
pub use self::state::state;
use crate::auth::SasToken;
use crate::registry::{Credentials, Identity};
use crate::x509::common_name;
use crate::{clock, disk, lock};

/// The api-versions in which a registration may carry a signing request.
const ISSUING_VERSIONS: [&str; 2] = ["2025-07-01-preview", "2026-11-02-preview"];

/// How an applicant proves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Attestation {
    #[serde(rename_all = "camelCase")]
    SymmetricKey { primary_key: String, secondary_key: String },
    /// PEM: an individual's own certificate, or the authority that signs a group's.
    X509 { certificate: String },
}

impl Attestation {
    pub fn new_keys() -> Attestation {
        Attestation::SymmetricKey { primary_key: clock::new_key(), secondary_key: clock::new_key() }
    }
}

/// Who may register, and what comes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrollment {
    /// The registration id, or the group's name.
    pub id: String,
    pub group: bool,
    pub attestation: Attestation,
    pub disabled: bool,
    /// Another device id than the registration id.
    pub device_id: Option<String>,
    /// Another hub than this one; the device must be registered there by other means.
    pub assign_to: Option<String>,
    /// How often the answer is "assigning" before there is a result.
    pub polls: u32,
    /// The result is "failed", with this message.
    pub failure: Option<String>,
    /// What a custom allocation policy hands to the device.
    pub returns: Option<Value>,
    /// A signing request is answered with a certificate that lasts so many seconds, and the device proves itself to the
    /// hub by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issues: Option<u64>,
}

impl Enrollment {
    pub fn individual(id: &str, attestation: Attestation) -> Enrollment {
        Enrollment {
            id: id.to_owned(),
            group: false,
            attestation,
            disabled: false,
            device_id: None,
            assign_to: None,
            polls: 1,
            failure: None,
            returns: None,
            issues: None,
        }
    }

    pub fn group(id: &str, attestation: Attestation) -> Enrollment {
        Enrollment { group: true, ..Enrollment::individual(id, attestation) }
    }

    /// Whether anybody could register by it: Azure's rules for names, and for a device's own certificate.
    fn check(&self) -> Result<()> {
        let (id, good) = (&self.id, |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c));
        let named = (1..=128).contains(&id.len()) && id.chars().all(good) && !id.ends_with(['.', '_', ':']);
        ensure!(
            named,
            "{id:?} must have 1 to 128 letters, digits, - . _ and :, with a letter, digit or - at its end"
        );
        if let Some(device) = &self.device_id {
            Identity::device(device).check()?;
        }
        if let Attestation::X509 { certificate } = &self.attestation {
            let leaf = read_certificate(certificate.as_bytes())
                .map_err(|p| anyhow!("the certificate of {id} {p}"))?;
            let name = common_name(&leaf).unwrap_or_default();
            let fits = self.group || name == *id;
            ensure!(
                fits,
                "the certificate is for {name:?}; its common name must be the registration id, {id}"
            );
        }
        Ok(())
    }
}

/// One registration, as it came to its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    pub registration_id: String,
    pub enrollment: String,
    /// The custom allocation payload.
    pub payload: Option<Value>,
    /// `assigned`, `failed` or `disabled`.
    pub status: &'static str,
    pub assigned_hub: Option<String>,
    pub device_id: Option<String>,
    pub time: String,
}

/// An applicant that proved itself.
#[derive(Debug, Clone)]
pub struct Applicant {
    pub registration_id: String,
    enrollment: Enrollment,
    /// What the hub will know the device by.
    credentials: Credentials,
    /// Unix seconds; `None` with a certificate.
    pub expiry: Option<u64>,
    /// Its api-version knows of signing requests.
    pub may_ask: bool,
}

/// What an applicant asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// For a custom allocation policy.
    pub payload: Option<Value>,
    /// A signing request in DER.
    pub csr: Option<Vec<u8>>,
}

/// A registration under way.
#[derive(Debug)]
struct Operation {
    applicant: Applicant,
    request: Request,
    polls_left: u32,
    created: String,
    /// The end, which does not change when it is asked for again.
    end: Option<Value>,
}

/// The service's state.
#[derive(Debug)]
pub struct Dps {
    pub id_scope: String,
    /// The hub that it assigns by itself.
    host: String,
    folder: PathBuf,
    operations: Mutex<HashMap<String, Operation>>,
    registrations: Mutex<Vec<Registration>>,
}

impl Dps {
    /// The enrollments of `dir/enrollments`, made if need be.
    pub fn open(dir: &Path, host: &str, service_key: &str) -> Result<Dps> {
        let folder = dir.join("enrollments");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let (id_scope, host) = (id_scope(service_key), host.to_owned());
        Ok(Dps { id_scope, host, folder, operations: Mutex::default(), registrations: Mutex::default() })
    }

    /// Adds an enrollment, or replaces it.
    pub fn enroll(&self, enrollment: &Enrollment) -> Result<()> {
        enrollment.check()?;
        disk::replace(&self.path(&enrollment.id), &serde_json::to_vec_pretty(enrollment)?, true)
    }

    pub fn remove(&self, id: &str) -> Result<()> {
        std::fs::remove_file(self.path(id)).with_context(|| format!("there is no enrollment {id}"))
    }

    pub fn get(&self, id: &str) -> Result<Enrollment> {
        read(&self.path(id)).with_context(|| format!("there is no enrollment {id}"))
    }

    /// All of them, by name.
    pub fn list(&self) -> Result<Vec<Enrollment>> {
        let files = std::fs::read_dir(&self.folder)
            .with_context(|| format!("cannot read {}", self.folder.display()))?;
        let mut paths: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        paths.iter().map(|path| read(path)).collect()
    }

    /// Every registration that came to an end, in order.
    pub fn registrations(&self) -> Vec<Registration> {
        lock(&self.registrations).clone()
    }

    fn path(&self, id: &str) -> PathBuf {
        const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
        self.folder.join(format!("{}.json", utf8_percent_encode(id, ESCAPED)))
    }

    /// Whether a user name is meant for the service.
    pub fn is_addressed(&self, user_name: &str) -> bool {
        user_name.split('/').next() == Some(&*self.id_scope)
    }

    /// Finds the enrollment that the applicant belongs to. `chain` is that of the client certificate. The error is for
    /// the log.
    pub fn authorise(
        &self,
        client_id: &str,
        user_name: &str,
        password: &str,
        chain: &[CertificateDer<'_>],
    ) -> Result<Applicant, String> {
        let (id, version) = read_user_name(user_name)
            .ok_or("the user name is not {idScope}/registrations/{registrationId}/api-version=..")?;
        if client_id != id {
            return Err(format!("the client id {client_id:?} is not the registration id {id}"));
        }
        let all = self.list().map_err(|error| format!("{error:#}"))?;
        // As in Azure an individual enrollment outranks all groups.
        let individual: Vec<&Enrollment> = all.iter().filter(|e| !e.group && e.id == id).collect();
        let candidates =
            if individual.is_empty() { all.iter().filter(|e| e.group).collect() } else { individual };
        let proof = if password.is_empty() {
            Proof::Certificate(chain)
        } else {
            let resource = format!("{}/registrations/{id}", self.id_scope);
            Proof::Token(SasToken::parse(password).map_err(|error| error.to_string())?, resource)
        };
        let mut reasons = Vec::new();
        for enrollment in candidates {
            match proof.check(enrollment, id) {
                Ok((credentials, expiry)) => {
                    let (registration_id, enrollment) = (id.to_owned(), enrollment.clone());
                    let may_ask = ISSUING_VERSIONS.contains(&version);
                    return Ok(Applicant { registration_id, enrollment, credentials, expiry, may_ask });
                }
                Err(reason) => reasons.push(format!("{}: {reason}", enrollment.id)),
            }
        }
        let reasons = if reasons.is_empty() { "there is none".to_owned() } else { reasons.join("; ") };
        Err(format!("{id} belongs to no enrollment ({reasons})"))
    }

    /// Takes a registration; the answer's body.
    pub fn register(&self, applicant: &Applicant, request: Request) -> Value {
        let operation_id = format!("4.{}.{}", &self.id_scope, clock::unique());
        let operation = Operation {
            applicant: applicant.clone(),
            request,
            polls_left: applicant.enrollment.polls,
            created: clock::now(),
            end: None,
        };
        lock(&self.operations).insert(operation_id.clone(), operation);
        json!({"operationId": operation_id, "status": "assigning"})
    }
}

/// Looks like Azure's, and stays the same as long as the hub's key does.
pub fn id_scope(service_key: &str) -> String {
    let hash = digest::digest(&digest::SHA256, service_key.as_bytes());
    format!("0ne{}", HEXLOWER.encode(hash.as_ref()).chars().take(8).collect::<String>().to_uppercase())
}

fn read(path: &Path) -> Result<Enrollment> {
    let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&content).with_context(|| format!("{} is no enrollment", path.display()))
}

/// Registration id and version of `{idScope}/registrations/{registrationId}/api-version=..`
fn read_user_name(name: &str) -> Option<(&str, &str)> {
    let mut parts = name.split('/');
    parts.next()?;
    (parts.next()? == "registrations").then_some(())?;
    let id = parts.next().filter(|id| !id.is_empty())?;
    let version = parts.next()?.strip_prefix("api-version=")?;
    Some((id, version.split('&').next().unwrap_or(version)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth;

    #[test]
    fn user_names() {
        assert_eq!(
            read_user_name("0ne1/registrations/gw-1/api-version=2019-03-31&ClientVersion=x"),
            Some(("gw-1", "2019-03-31"))
        );
        for name in
            ["0ne1/registrations/gw-1", "0ne1/registrations//api-version=1", "0ne1/devices/x/api-version=1"]
        {
            assert_eq!(read_user_name(name), None, "{name}");
        }
    }

    #[test]
    fn an_individual_enrollment_outranks_the_groups() {
        let dir = tempfile::tempdir().unwrap();
        let dps = Dps::open(dir.path(), "localhost", "key").unwrap();
        let group = Enrollment::group("fleet", Attestation::new_keys());
        dps.enroll(&group).unwrap();
        let Attestation::SymmetricKey { primary_key, .. } = &group.attestation else { panic!("no key") };
        let key = derive(primary_key, "gw-1").unwrap();
        let resource = format!("{}/registrations/gw-1", dps.id_scope);
        let token = auth::sign(&resource, &key, u64::MAX, Some("registration")).unwrap();
        let name = format!("{resource}/api-version=2019-03-31");
        let found = dps.authorise("gw-1", &name, &token, &[]).unwrap();
        assert_eq!(found.enrollment.id, "fleet");
        assert!(dps.authorise("gw-2", &name, &token, &[]).is_err());

        dps.enroll(&Enrollment::individual("gw-1", Attestation::new_keys())).unwrap();
        let reason = dps.authorise("gw-1", &name, &token, &[]).unwrap_err();
        assert!(reason.contains("gw-1: the token's signature"), "{reason}");
        dps.remove("gw-1").unwrap();
        assert!(dps.authorise("gw-1", &name, &token, &[]).is_ok());
    }
}
