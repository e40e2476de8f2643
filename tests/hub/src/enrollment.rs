//! `fwupdate-hub enrollment`: who may register at the provisioning service, and what comes of it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::{NonEmptyStringValueParser, PathBufValueParser, TypedValueParser};
use clap::{Args, Subcommand};
use fwupdate_hub::dps::{Attestation, Dps, Enrollment};
use fwupdate_hub::setup::open_dps;
use serde_json::Value;

use crate::arguments::{certificate, host, lifetime};

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Enrol a device by its registration id (or a group by its name) and print what the device needs.
    Add {
        id: String,
        /// A group: its key, or its authority, is good for any registration id.
        #[arg(long)]
        group: bool,
        /// Known by this certificate (PEM), or for a group by the authority that signs its certificates; else by a key.
        #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(certificate))]
        certificate: Option<String>,
        #[command(flatten)]
        result: Outcome,
        #[arg(long, default_value = "./hub")]
        dir: PathBuf,
    },
    /// Change what comes of registrations; what is not given goes back to its default.
    Set {
        id: String,
        #[command(flatten)]
        result: Outcome,
        #[arg(long, default_value = "./hub")]
        dir: PathBuf,
    },
    /// Print all enrollments.
    List {
        #[arg(long, default_value = "./hub")]
        dir: PathBuf,
    },
    Remove {
        id: String,
        #[arg(long, default_value = "./hub")]
        dir: PathBuf,
    },
}

/// What comes of a registration.
#[derive(Debug, Args)]
pub struct Outcome {
    /// Device id; else the registration id.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Assign this hub instead of this one.
    #[arg(long, value_name = "HOST", value_parser = host)]
    assign_to: Option<String>,
    /// Answer "assigning" this often first.
    #[arg(long, default_value_t = 1)]
    polls: u32,
    /// Answer "disabled".
    #[arg(long)]
    disabled: bool,
    /// Answer "failed", with this message.
    #[arg(long, value_name = "MESSAGE", value_parser = NonEmptyStringValueParser::new())]
    fail: Option<String>,
    /// Hand this JSON to the device, as a custom allocation policy would.
    #[arg(long, value_name = "JSON", value_parser = json)]
    returns: Option<Value>,
    /// Answer a signing request with a certificate that lasts so long (60s, 12h, 30d), by which the device then logs in.
    #[arg(long, value_name = "LIFETIME", value_parser = lifetime)]
    issues: Option<u64>,
}

fn json(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text)
}

/// Performs it; the lines are printed by the caller.
pub fn run(action: Action) -> Result<Vec<String>> {
    match action {
        Action::Add { id, group, certificate, result, dir } => {
            let attestation = match certificate {
                None => Attestation::new_keys(),
                Some(certificate) => Attestation::X509 { certificate },
            };
            let dps = open_dps(&dir)?;
            if dps.get(&id).is_ok() {
                bail!("{id} is enrolled already; remove it first, or change it with `enrollment set`");
            }
            let mut enrollment = Enrollment::individual(&id, attestation);
            enrollment.group = group;
            let enrollment = result.apply(enrollment);
            dps.enroll(&enrollment)?;
            Ok(vec![shown(&dps, &enrollment)])
        }
        Action::Set { id, result, dir } => {
            let dps = open_dps(&dir)?;
            dps.enroll(&result.apply(dps.get(&id)?))?;
            Ok(Vec::new())
        }
        Action::List { dir } => {
            let dps = open_dps(&dir)?;
            Ok(dps.list()?.iter().map(|enrollment| shown(&dps, enrollment)).collect())
        }
        Action::Remove { id, dir } => open_dps(&dir)?.remove(&id).map(|()| Vec::new()),
    }
}

impl Outcome {
    fn apply(self, enrollment: Enrollment) -> Enrollment {
        Enrollment {
            device_id: self.device,
            assign_to: self.assign_to,
            polls: self.polls,
            disabled: self.disabled,
            failure: self.fail,
            returns: self.returns,
            issues: self.issues,
            ..enrollment
        }
    }
}

/// In the manner of a connection string.
fn shown(dps: &Dps, enrollment: &Enrollment) -> String {
    let name = if enrollment.group { "GroupId" } else { "RegistrationId" };
    let key = match &enrollment.attestation {
        Attestation::SymmetricKey { primary_key, .. } if enrollment.group => {
            format!(";GroupKey={primary_key}")
        }
        Attestation::SymmetricKey { primary_key, .. } => format!(";SymmetricKey={primary_key}"),
        Attestation::X509 { .. } => ";x509=true".to_owned(),
    };
    format!("IdScope={};{name}={}{key}", dps.id_scope, enrollment.id)
}
