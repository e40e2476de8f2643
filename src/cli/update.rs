//! The options of `firmwareUpdate` on a command line, and the fields that they become.

use clap::Args;
use serde_json::{Map, Value};

/// Every field but the bundle's URL.
#[derive(Debug, Clone, Args)]
pub struct UpdateOptions {
    /// Fail unless the bundle has this version.
    #[arg(long)]
    version: Option<String>,
    /// Fail unless the manifest has this SHA-256.
    #[arg(long, value_name = "HEX")]
    manifest_sha256: Option<String>,
    /// Name the operation; the same id never starts twice.
    #[arg(long, value_name = "ID")]
    operation_id: Option<String>,
    /// Fail before more bytes than this are downloaded.
    #[arg(long, value_name = "BYTES")]
    max_download_bytes: Option<u64>,
    /// Accept an older version; the security floor still holds.
    #[arg(long)]
    allow_downgrade: bool,
    /// Ignore quarantine and "already installed".
    #[arg(long)]
    force: bool,
    /// Reboot no earlier (RFC 3339).
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Reboot by then regardless of windows (RFC 3339).
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
}

impl UpdateOptions {
    /// The caller's id for the operation.
    pub fn operation_id(&self) -> Option<&str> {
        self.operation_id.as_deref()
    }

    /// What was given, by the names of docs/interface.md.
    pub fn fields(&self) -> Map<String, Value> {
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let given = [
            ("version", text(&self.version)),
            ("manifestSha256", text(&self.manifest_sha256)),
            ("operationId", text(&self.operation_id)),
            ("maxDownloadBytes", self.max_download_bytes.map(Value::from)),
            ("allowDowngrade", self.allow_downgrade.then_some(true.into())),
            ("force", self.force.then_some(true.into())),
            ("notBefore", text(&self.not_before)),
            ("deadline", text(&self.deadline)),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        options: UpdateOptions,
    }

    #[test]
    fn only_what_is_given_becomes_a_field() {
        let fields = |line: &str| {
            let words = std::iter::once("x").chain(line.split_whitespace());
            Value::Object(Program::try_parse_from(words).unwrap().options.fields())
        };
        assert_eq!(fields(""), json!({}));
        let all = "--version 2 --manifest-sha256 ab --operation-id o --max-download-bytes 5 --allow-downgrade --force \
                   --not-before a --deadline b";
        let expected = json!({
            "version": "2", "manifestSha256": "ab", "operationId": "o", "maxDownloadBytes": 5,
            "allowDowngrade": true, "force": true, "notBefore": "a", "deadline": "b",
        });
        assert_eq!(fields(all), expected);
    }
}
