//! What a caller sends -> `Operation`, or a refusal that names the field. Pure, and the same for direct
//! methods, desired properties and local control.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::bounds::{self, VERSION, encoded};
use crate::failure::{Code, Failure};
use crate::machine::{Operation, Origin};
use crate::uri::PackageUri;

/// Longest `operationId`, bytes.
const ID_LIMIT: usize = 128;

const FIELDS: [&str; 9] = [
    "fwPackageUri",
    "manifestSha256",
    "version",
    "operationId",
    "maxDownloadBytes",
    "allowDowngrade",
    "force",
    "notBefore",
    "deadline",
];

/// Reads the payload of `firmwareUpdate`. `operation.id` is empty when the caller gave none; `now` becomes
/// its start.
pub fn update(payload: &Value, source: Origin, now: OffsetDateTime) -> Result<Operation, Failure> {
    let fields = object(payload)?;
    known(fields, &FIELDS)?;
    let uri = text(fields, "fwPackageUri")?
        .ok_or_else(|| malformed("fwPackageUri is missing: give the https URL of a bundle"))?;
    let (not_before, deadline) = (moment(fields, "notBefore")?, moment(fields, "deadline")?);
    if let (Some(not_before), Some(deadline)) = (not_before, deadline) {
        if deadline <= not_before {
            return Err(malformed("deadline must be later than notBefore"));
        }
    }
    Ok(Operation {
        id: operation_id(fields)?.unwrap_or_default(),
        source,
        uri: PackageUri::asked(&uri).map_err(|why| malformed(format!("fwPackageUri {why}")))?,
        version: version(fields)?,
        manifest_sha256: text(fields, "manifestSha256")?
            .map(|digest| digest.parse().map_err(|why| malformed(format!("manifestSha256: {why}"))))
            .transpose()?,
        max_download_bytes: integer(fields, "maxDownloadBytes")?,
        allow_downgrade: flag(fields, "allowDowngrade")?,
        force: flag(fields, "force")?,
        not_before,
        deadline,
        started_at: Some(now),
        ..Operation::default()
    })
}

/// Reads the payload of `firmwareCancel` and `firmwareApprove`: the operation that is meant, if one is named.
pub fn operation(payload: &Value) -> Result<Option<String>, Failure> {
    if payload.is_null() || payload.as_str() == Some("") {
        return Ok(None);
    }
    let fields = object(payload)?;
    known(fields, &["operationId"])?;
    operation_id(fields)
}

/// Reads the payload of `firmwareDefer`: the operation that is meant, and until when.
pub fn defer(payload: &Value) -> Result<(Option<String>, OffsetDateTime), Failure> {
    let fields = object(payload)?;
    known(fields, &["operationId", "until"])?;
    let until =
        moment(fields, "until")?.ok_or_else(|| malformed("until is missing: give an RFC 3339 time"))?;
    Ok((operation_id(fields)?, until))
}

/// Whether two calls ask for the same thing: all but id, origin, start and the URL's query counts.
pub fn same_request(a: &Operation, b: &Operation) -> bool {
    let essence = |operation: &Operation| Operation {
        id: String::new(),
        source: Origin::Local,
        uri: PackageUri::default(),
        started_at: None,
        ..operation.clone()
    };
    essence(a) == essence(b) && a.uri.is_same_package(&b.uri)
}

/// Refuses a version that no bundle can have.
fn version(fields: &Map<String, Value>) -> Result<Option<String>, Failure> {
    let version = text(fields, "version")?;
    match &version {
        Some(version) if version.is_empty() || encoded(version) > VERSION => {
            Err(malformed(format!("version must have 1 to {VERSION} bytes, as every bundle's has")))
        }
        _ => Ok(version),
    }
}

fn operation_id(fields: &Map<String, Value>) -> Result<Option<String>, Failure> {
    let id = text(fields, "operationId")?;
    match &id {
        Some(id) if id.is_empty() || id.len() > ID_LIMIT || id.chars().any(char::is_control) => {
            Err(malformed(format!("operationId must be 1 to {ID_LIMIT} bytes without control characters")))
        }
        _ => Ok(id),
    }
}

fn object(payload: &Value) -> Result<&Map<String, Value>, Failure> {
    payload.as_object().ok_or_else(|| malformed("the payload must be a JSON object"))
}

fn known(fields: &Map<String, Value>, names: &[&str]) -> Result<(), Failure> {
    match fields.keys().find(|key| !names.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let key: String = key.chars().take(64).collect();
            Err(malformed(format!("unknown field {key:?}; known are {}", names.join(", "))))
        }
    }
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(malformed(format!("{name} must be a string"))),
    }
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(malformed(format!("{name} must be true or false"))),
    }
}

fn integer(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(malformed(format!("{name} must be a whole number of bytes"))),
        },
    }
}

fn moment(fields: &Map<String, Value>, name: &str) -> Result<Option<OffsetDateTime>, Failure> {
    let Some(text) = text(fields, name)? else { return Ok(None) };
    let moment = OffsetDateTime::parse(&text, &Rfc3339)
        .map_err(|_| malformed(format!("{name} must be an RFC 3339 time such as 2026-01-31T02:00:00Z")))?;
    let beyond = || malformed(format!("{name} must lie in the years 1970 to 9999, in UTC"));
    bounds::utc(moment).map(Some).ok_or_else(beyond)
}

fn malformed(message: impl Into<String>) -> Failure {
    Failure::new(Code::MalformedRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(payload: Value) -> Result<Operation, Failure> {
        update(&payload, Origin::Method, OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn reads_every_field() {
        let operation = read(json!({
            "fwPackageUri": "https://host/fw.fwb?sig=secret", "manifestSha256": "ab".repeat(32),
            "version": "1.5.0", "operationId": "op-1", "maxDownloadBytes": 1000, "allowDowngrade": true,
            "force": true, "notBefore": "2026-01-01T02:00:00+02:00", "deadline": "2026-01-02T00:00:00Z",
        }))
        .unwrap();
        assert_eq!(operation.id, "op-1");
        assert_eq!(operation.uri, "https://host/fw.fwb?sig=secret".into());
        assert_eq!(operation.max_download_bytes, Some(1000));
        assert!(operation.allow_downgrade && operation.force);
        assert_eq!(operation.not_before.unwrap().unix_timestamp(), 1_767_225_600);
        assert_eq!(operation.not_before.unwrap().hour(), 0);
    }

    #[test]
    fn each_malformed_payload_is_refused_and_names_its_field() {
        let uri = "https://host/fw";
        for (payload, named) in [
            (json!(null), "object"),
            (json!([]), "object"),
            (json!("text"), "object"),
            (json!({}), "fwPackageUri"),
            (json!({"fwPackageUri": 7}), "fwPackageUri"),
            (json!({"fwPackageUri": "not a url"}), "fwPackageUri"),
            (json!({"fwPackageUri": "http://host/fw"}), "https"),
            (json!({"fwPackageUri": "file:///etc/passwd"}), "https"),
            (json!({"fwPackageUri": format!("https://host/{}", "a".repeat(5000))}), "fwPackageUri"),
            (json!({"fwPackageUri": uri, "fwpackageuri": uri}), "fwpackageuri"),
            (json!({"fwPackageUri": uri, "manifestSha256": "abc"}), "manifestSha256"),
            (json!({"fwPackageUri": uri, "version": 1.5}), "version"),
            (json!({"fwPackageUri": uri, "operationId": ""}), "operationId"),
            (json!({"fwPackageUri": uri, "operationId": "x".repeat(129)}), "operationId"),
            (json!({"fwPackageUri": uri, "operationId": "a\nb"}), "operationId"),
            (json!({"fwPackageUri": uri, "maxDownloadBytes": -1}), "maxDownloadBytes"),
            (json!({"fwPackageUri": uri, "maxDownloadBytes": 1.5}), "maxDownloadBytes"),
            (json!({"fwPackageUri": uri, "allowDowngrade": "yes"}), "allowDowngrade"),
            (json!({"fwPackageUri": uri, "force": 1}), "force"),
            (json!({"fwPackageUri": uri, "notBefore": "tomorrow"}), "notBefore"),
            (json!({"fwPackageUri": uri, "deadline": 1_700_000_000}), "deadline"),
            (json!({"fwPackageUri": uri, "notBefore": "9999-12-31T23:59:59-01:00"}), "notBefore"),
            (json!({"fwPackageUri": uri, "deadline": "9999-12-31T23:59:59-23:59"}), "deadline"),
            (json!({"fwPackageUri": uri, "notBefore": "0000-01-01T00:00:00+01:00"}), "notBefore"),
            (json!({"fwPackageUri": uri, "deadline": "1969-12-31T23:59:59Z"}), "1970"),
            (json!({"fwPackageUri": uri, "version": "1".repeat(65)}), "version"),
            (json!({"fwPackageUri": uri, "version": ""}), "version"),
            (json!({"fwPackageUri": uri, "version": "\u{1}".repeat(11)}), "version"),
            (json!({"fwPackageUri": format!("https://host/{}", "\"".repeat(2050))}), "fwPackageUri"),
            (json!({"fwPackageUri": "https://host/\nfw"}), "control"),
            (json!({"fwPackageUri": "https://bücher.example/fw"}), "xn--"),
            (json!({"fwPackageUri": "https://a b/fw"}), "host name"),
            (
                json!({"fwPackageUri": uri, "notBefore": "2026-01-02T00:00:00Z",
                       "deadline": "2026-01-01T00:00:00Z"}),
                "deadline",
            ),
        ] {
            let refused = read(payload.clone()).expect_err(&payload.to_string());
            assert_eq!(refused.code, Code::MalformedRequest);
            assert!(refused.message.contains(named), "{payload}: {refused}");
        }
    }

    #[test]
    fn a_deferral_beyond_all_time_is_refused_too() {
        let refused = defer(&json!({"until": "9999-12-31T23:59:59-01:00"})).unwrap_err();
        assert!(refused.message.contains("until") && refused.message.contains("9999"), "{refused}");
        assert!(defer(&json!({"until": "9999-12-31T23:59:59Z"})).is_ok());
    }

    #[test]
    fn a_line_end_is_no_part_of_the_url() {
        assert_eq!(
            read(json!({"fwPackageUri": " https://host/fw\n"})).unwrap().uri,
            "https://host/fw".into()
        );
    }

    #[test]
    fn a_fresh_token_is_the_same_request() {
        let a = read(json!({"fwPackageUri": "https://host/fw?sig=1", "operationId": "a"})).unwrap();
        let b = read(json!({"fwPackageUri": "https://host/fw?sig=2"})).unwrap();
        let c = read(json!({"fwPackageUri": "https://host/fw?sig=1", "force": true})).unwrap();
        assert!(same_request(&a, &b));
        assert!(!same_request(&a, &c));
    }

    #[test]
    fn an_empty_payload_means_the_running_operation() {
        assert_eq!(operation(&Value::Null).unwrap(), None);
        assert_eq!(operation(&json!({"operationId": "a"})).unwrap(), Some("a".into()));
        assert!(operation(&json!({"id": "a"})).unwrap_err().message.contains("\"id\""));
        assert!(defer(&json!({})).unwrap_err().message.contains("until"));
    }
}
