//! An image as the record and a plan name it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::manifest::Digest;

/// Fields of a newer agent's record, kept as they are.
pub type Extra = BTreeMap<String, Value>;

/// An image as its manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    pub version: String,
    pub security_version: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub created: OffsetDateTime,
    /// Digest of the manifest and of the image; bytes of the image.
    pub manifest: Digest,
    pub sha256: Digest,
    pub size: u64,
}
