//! What the manifest says of patches: the old images that the bundle has a shorter way from.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::rules::{BLOCK, ManifestError, PAYLOAD_CAP, ensure};

/// Most old images that one bundle may know.
pub const PATCHES_CAP: usize = 8;
/// Most bytes that the index of one patch may have: a device holds it in memory.
pub const PATCH_INDEX_CAP: u64 = 2 * 1024 * 1024;
/// Largest old image: its blocks have 32-bit numbers.
const BASE_CAP: u64 = (u32::MAX as u64) * (BLOCK as u64);

/// One old image (the base), and the two members that lead from it to the new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Patch {
    /// Bytes of the old image; a multiple of 4096.
    pub base_size: u64,
    pub base_sha256: Digest,
    /// Size in bytes and digest of the member `patch-N.index`, N counted from 1.
    pub index_size: u64,
    pub index_sha256: Digest,
    /// Bytes of the member `patch-N.zst`.
    pub payload_size: u64,
}

pub(super) fn validate(patches: &[Patch]) -> Result<(), ManifestError> {
    ensure(patches.len() <= PATCHES_CAP, "patches", || format!("the limit is {PATCHES_CAP} old images"))?;
    for (number, patch) in patches.iter().enumerate() {
        let whole = patch.base_size > 0 && patch.base_size.checked_rem(u64::from(BLOCK)) == Some(0);
        ensure(whole && patch.base_size <= BASE_CAP, "patches.baseSize", || {
            format!("{} is no multiple of {BLOCK} from 1 to {BASE_CAP}", patch.base_size)
        })?;
        let before = patches.get(..number).unwrap_or_default();
        let new = before.iter().all(|other| other.base_sha256 != patch.base_sha256);
        ensure(new, "patches.baseSha256", || format!("{} is named twice", patch.base_sha256))?;
        ensure((1..=PATCH_INDEX_CAP).contains(&patch.index_size), "patches.indexSize", || {
            format!("it must lie in 1 to {PATCH_INDEX_CAP}")
        })?;
        ensure((1..=PAYLOAD_CAP).contains(&patch.payload_size), "patches.payloadSize", || {
            format!("it must lie in 1 to {PAYLOAD_CAP}")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(number: u8) -> Patch {
        let digest = Digest::of(&[number]);
        Patch { base_size: 8192, base_sha256: digest, index_size: 40, index_sha256: digest, payload_size: 10 }
    }

    #[test]
    fn every_rule_is_enforced() {
        let list = |count| (0..count).map(patch).collect::<Vec<_>>();
        validate(&list(8)).unwrap();
        validate(&[]).unwrap();
        assert!(validate(&list(9)).is_err());
        assert!(validate(&[patch(0), patch(1), patch(0)]).is_err());
        let second = patch(1);
        for bad in [
            Patch { base_size: 0, ..second.clone() },
            Patch { base_size: 8191, ..second.clone() },
            Patch { base_size: u64::MAX - 4095, ..second.clone() },
            Patch { base_size: BASE_CAP + 4096, ..second.clone() },
            Patch { index_size: 0, ..second.clone() },
            Patch { index_size: PATCH_INDEX_CAP + 1, ..second.clone() },
            Patch { payload_size: 0, ..second.clone() },
            Patch { payload_size: PAYLOAD_CAP + 1, ..second.clone() },
        ] {
            assert!(validate(&[patch(0), bad.clone()]).is_err(), "{bad:?}");
        }
        validate(&[Patch { base_size: BASE_CAP, ..second }]).unwrap();
    }

    #[test]
    fn unknown_fields_are_refused() {
        let mut json = serde_json::to_value(patch(0)).unwrap();
        assert_eq!(serde_json::from_value::<Patch>(json.clone()).unwrap(), patch(0));
        json["surprise"] = 1.into();
        assert!(serde_json::from_value::<Patch>(json).is_err());
    }
}
