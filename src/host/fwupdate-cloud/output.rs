//! What goes to stdout: made plain for a terminal, and without the passwords and tokens of package URLs.

use std::io::Write;

use fwupdate::cli::plain;
use fwupdate::uri::PackageUri;
use serde_json::Value;

use crate::args::Args;
use crate::error::Error;

/// Prints `document` with `--json`, else `text`, whose values were made plain.
pub fn print(args: &Args, document: &Value, text: &str, out: &mut impl Write) -> Result<(), Error> {
    let text = match (args.json, args.secrets) {
        (false, _) => plain::lines(text),
        (true, true) => plain::json_lines(document),
        (true, false) => plain::json_lines(&without_secrets(document.clone())),
    };
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// The document with each package URL as it may be read by everybody.
fn without_secrets(mut document: Value) -> Value {
    match &mut document {
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(uri) if name == "fwPackageUri" || name.ends_with(".fwPackageUri") => {
                        *uri = PackageUri::from(uri.as_str()).shown();
                    }
                    other => hide(other),
                }
            }
        }
        _ => {}
    }
    document
}

fn hide(value: &mut Value) {
    *value = without_secrets(value.take());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn no_package_url_shows_its_password_or_token() {
        let uri = "https://me:hush@h:8443/x.fwb?sig=hush#hush";
        let document = json!({"a": [{"fwPackageUri": uri}], "properties.desired.fwupdate": {"fwPackageUri": uri},
            "properties.desired.fwupdate.fwPackageUri": uri, "fwPackageUri": null, "other": "x?y"});
        let shown = without_secrets(document);
        assert!(!shown.to_string().contains("hush"), "{shown}");
        assert_eq!(shown["a"][0]["fwPackageUri"], "https://h:8443/x.fwb");
        assert_eq!(shown["other"], "x?y");
    }
}
