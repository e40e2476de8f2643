//! Manifest x device x policy -> `Plan` or refusal; and what the reboot waits for. Pure: the agent gathers
//! the facts, this file judges.

mod version;
mod wait;

use std::cmp::Ordering;

use crate::bounds;
use crate::config::Policy;
use crate::failure::{Code, Failure};
use crate::machine::{Extra, ImageInfo, Operation, Origin, Plan, Quarantined};
use crate::manifest::Manifest;
use crate::slot::Slot;

pub use wait::{Now, Wait, download_wait, wait};

/// The facts about this gateway that a plan depends on.
#[derive(Debug, Clone)]
pub struct Device<'a> {
    pub compatible: &'a str,
    pub booted: Slot,
    /// What runs, as far as it is known.
    pub booted_image: Option<&'a ImageInfo>,
    /// What the running system calls itself, when no image is known.
    pub booted_version: Option<&'a str>,
    /// The highest security version among the record and the booted image's own metadata.
    pub floor: u64,
    /// Bytes of the target slot.
    pub capacity: u64,
    pub quarantine: &'a [Quarantined],
    pub tries: u8,
}

/// Plans the installation of `manifest`, or says why not.
pub fn plan(operation: &Operation, manifest: &Manifest, device: &Device<'_>) -> Result<Plan, Failure> {
    let image = image_info(manifest);
    right_board(manifest, device)?;
    expected_version(operation, &image)?;
    above_floor(&image, device)?;
    not_quarantined(operation, &image, device)?;
    newer(operation, &image, device)?;
    fits(&image, device)?;
    Ok(Plan {
        operation: operation.clone(),
        target: !device.booted,
        from_version: device
            .booted_image
            .map(|booted| booted.version.clone())
            .or(device.booted_version.map(str::to_owned)),
        image: Some(image),
        tries: device.tries,
        rewrite: true,
        extra: Extra::new(),
    })
}

/// Whether whoever asked may ask for this; `budget` is the gateway's own, bytes.
pub fn permitted(operation: &Operation, policy: &Policy, budget: Option<u64>) -> Result<(), Failure> {
    let may = policy.cloud;
    let above = budget.is_some_and(|own| operation.max_download_bytes.is_some_and(|asked| asked > own));
    let overrides = operation.deadline.is_some() && !policy.windows.is_empty();
    for (asked, allowed, what, setting) in [
        (operation.allow_downgrade, may.downgrade, "allowDowngrade", "downgrade"),
        (operation.force, may.force, "force", "force"),
        (above, may.budget, "maxDownloadBytes above download.max_bytes", "budget"),
        (overrides, may.deadline, "a deadline that ends policy.windows", "deadline"),
    ] {
        may_ask(operation.source, !asked || allowed, what, setting)?;
    }
    Ok(())
}

/// Refuses what `policy.cloud.<setting>` denies to the cloud. Local control may: who has root needs no leave.
pub fn may_ask(source: Origin, allowed: bool, what: &str, setting: &str) -> Result<(), Failure> {
    if allowed || source == Origin::Local {
        return Ok(());
    }
    let message = format!(
        "policy.cloud.{setting} is false on this gateway: the cloud may not ask for {what}; use fwupdatectl there, or \
         change the setting"
    );
    Err(Failure::new(Code::NotPermitted, message))
}

fn image_info(manifest: &Manifest) -> ImageInfo {
    ImageInfo {
        version: manifest.version.clone(),
        security_version: manifest.security_version,
        created: manifest.created,
        manifest: manifest.digest(),
        sha256: manifest.image.sha256,
        size: manifest.image.size,
    }
}

fn right_board(manifest: &Manifest, device: &Device<'_>) -> Result<(), Failure> {
    let theirs = &manifest.compatible;
    if theirs == device.compatible {
        return Ok(());
    }
    let message = format!("the bundle is for `{theirs}`, this board is `{}`", device.compatible);
    Err(Failure::new(Code::WrongBoard, message))
}

fn expected_version(operation: &Operation, image: &ImageInfo) -> Result<(), Failure> {
    match &operation.version {
        Some(expected) if *expected != image.version => {
            let message = format!("the call expects version {expected}, the bundle holds {}", image.version);
            Err(Failure::new(Code::VersionMismatch, message))
        }
        _ => Ok(()),
    }
}

/// No flag goes below the floor.
fn above_floor(image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    if image.security_version >= device.floor {
        return Ok(());
    }
    let message = format!(
        "security version {} is below this gateway's floor {}, which no flag lowers; build the bundle with \
         --security-version {} or higher (fwupdatectl doctor says where the floor comes from)",
        image.security_version, device.floor, device.floor
    );
    Err(Failure::new(Code::Downgrade, message))
}

fn not_quarantined(operation: &Operation, image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    let entry = device.quarantine.iter().find(|entry| entry.refused && entry.sha256 == image.sha256);
    let Some(entry) = entry.filter(|_| !operation.force) else { return Ok(()) };
    let message = format!(
        "this image failed here before ({}): release a fixed one, or call again with force",
        entry.failure
    );
    let refused = Failure::new(Code::Quarantined, message);
    Err(Failure { evidence: entry.failure.evidence.clone(), ..refused })
}

fn newer(operation: &Operation, image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    let booted_version = device.booted_image.map(|booted| booted.version.as_str()).or(device.booted_version);
    let Some(booted_version) = booted_version else { return Ok(()) };
    let same_image = device.booted_image.is_some_and(|booted| booted.sha256 == image.sha256);
    if same_image {
        let message = format!("version {booted_version} with this very image runs already; force repeats it");
        return if operation.force { Ok(()) } else { Err(Failure::new(Code::AlreadyInstalled, message)) };
    }
    let older = match version::compare(&image.version, booted_version) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => device.booted_image.is_some_and(|booted| image.created <= booted.created),
    };
    if !older || operation.allow_downgrade {
        return Ok(());
    }
    let message = format!(
        "version {} (created {}) is not newer than {booted_version}, which runs; call with allowDowngrade to \
         go back",
        image.version,
        bounds::told(image.created)
    );
    Err(Failure::new(Code::Downgrade, message))
}

fn fits(image: &ImageInfo, device: &Device<'_>) -> Result<(), Failure> {
    if image.size <= device.capacity {
        return Ok(());
    }
    let message = format!("the image has {} bytes, the slot only {}", image.size, device.capacity);
    Err(Failure::new(Code::TooLarge, message))
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::config::{Allowed, Window};

    #[test]
    fn the_cloud_may_ask_for_what_the_settings_let_it() {
        let all = Allowed {
            downgrade: true,
            force: true,
            budget: true,
            deadline: true,
            approve: true,
            rollback: true,
            reboot: true,
        };
        let policy = |cloud| Policy {
            windows: vec![Window { start: 22 * 60, end: 4 * 60 }],
            approval: false,
            cloud,
            reboot_command: Vec::new(),
        };
        let asks = |change: fn(&mut Operation)| {
            let mut operation = Operation { source: Origin::Desired, ..Operation::default() };
            change(&mut operation);
            operation
        };
        for (name, denied, operation) in [
            ("downgrade", Allowed { downgrade: false, ..all }, asks(|asked| asked.allow_downgrade = true)),
            ("force", Allowed { force: false, ..all }, asks(|asked| asked.force = true)),
            ("budget", Allowed { budget: false, ..all }, asks(|asked| asked.max_download_bytes = Some(1001))),
            (
                "deadline",
                Allowed { deadline: false, ..all },
                asks(|asked| asked.deadline = Some(OffsetDateTime::UNIX_EPOCH)),
            ),
        ] {
            let refused = permitted(&operation, &policy(denied), Some(1000)).unwrap_err();
            assert_eq!(refused.code, Code::NotPermitted);
            assert!(refused.message.contains(&format!("policy.cloud.{name}")), "{refused}");
            permitted(&operation, &policy(all), Some(1000)).unwrap();
            let local = Operation { source: Origin::Local, ..operation };
            permitted(&local, &policy(denied), Some(1000)).unwrap();
        }
        let modest = asks(|asked| asked.max_download_bytes = Some(1000));
        permitted(&modest, &policy(Allowed { budget: false, ..all }), Some(1000)).unwrap();
        let dated = asks(|asked| asked.deadline = Some(OffsetDateTime::UNIX_EPOCH));
        let open = Policy { windows: Vec::new(), ..policy(Allowed { deadline: false, ..all }) };
        permitted(&dated, &open, None).unwrap();
    }
}
