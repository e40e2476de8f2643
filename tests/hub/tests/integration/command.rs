//! The command `fwupdate-hub`: what it refuses, and what it says then.

use std::path::Path;
use std::process::{Command, Output};

use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::Value;

use crate::client::Site;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fwupdate-hub")).args(arguments).output().unwrap()
}

/// Ends with 2 and says this, to people and to scripts.
fn without_sense(arguments: &[&str], said: &str) {
    let plain = run(arguments);
    let told = String::from_utf8(plain.stderr).unwrap();
    assert!(told.contains(said) && plain.stdout.is_empty(), "{arguments:?}: {told}");
    assert!(!told.contains('\u{1b}'), "{told}");
    let scripts = run(&[arguments, &["--json"]].concat());
    let error: Value = serde_json::from_slice(&scripts.stderr).unwrap();
    assert_eq!(error["error"]["code"], "MalformedRequest", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains(said), "{error}");
    assert_eq!([plain.status.code(), scripts.status.code()], [Some(2); 2], "{told}");
}

#[test]
fn a_command_line_without_sense_ends_with_2_and_says_what_to_do() {
    for (arguments, said) in [
        (&["serve", "--www", "/dev/null/x"][..], "/dev/null/x is no folder"),
        (&["serve", "--mqtt-port", "99999"], "--mqtt-port"),
        (&["serve", "--dir", ""], "--dir"),
        (&["demo", "--programs", "/dev/null/x"], "/dev/null/x is no folder"),
        (&["device", "add", "x", "--thumbprint", "zz"], "hex digits"),
        (&["device", "add", "a/b/c"], "a/b/c"),
        (&["enrollment", "add", "x", "--returns", "{"], "--returns"),
        (&["enrollment", "add", "x", "--fail", ""], "--fail"),
        (&["enrollment", "add", "x", "--polls", "-1"], "'-1'"),
        (&["device", "add", "\u{1b}[2J", "more"], "unexpected argument 'more'"),
    ] {
        without_sense(arguments, said);
    }
}

#[test]
fn a_name_that_can_be_no_host_s_is_refused() {
    for name in
        ["a b", "", "host:8443", "*.example.com", "a..b", "https://host", "ü.example", &"x".repeat(64)]
    {
        // Nobody can listen on the address, should the name be taken.
        without_sense(&["serve", "--bind", "192.0.2.1", "--name", name], "is no host's name");
        without_sense(&["enrollment", "add", "x", "--assign-to", name], "is no host's name");
    }
}

#[test]
fn a_lifetime_has_a_unit_and_is_at_most_90_days() {
    for text in ["", "30", "0s", "91d", "1w", "5 d", "+5d", "-1d", "1.5h", "99999999999999999999d"] {
        without_sense(&["enrollment", "add", "x", &format!("--issues={text}")], "from 1s to 90d");
    }
}

#[test]
fn both_ports_must_differ() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let same = run(&["serve", "--dir", dir, "--mqtt-port", "9000", "--https-port", "9000"]);
    let told = String::from_utf8(same.stderr).unwrap();
    assert_eq!(told, "fwupdate-hub: --mqtt-port and --https-port are both 9000; choose two ports\n");
    assert_eq!(same.status.code(), Some(1));
}

#[tokio::test]
async fn an_enrollment_that_nobody_can_use_is_refused() {
    let site = Site::new().await;
    let add = |arguments: &[&str]| {
        let dir = site.hub.dir().to_str().unwrap();
        let output = run(&[&["enrollment", "add", "--dir", dir], arguments].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for id in ["", "a b", "a/b", "ä", "a.", "a:", &"x".repeat(129)] {
        let (code, told) = add(&["--", id]);
        assert!(code == Some(1) && told.contains("1 to 128 letters, digits"), "{id:?}: {told}");
    }
    for id in ["a b", "d/m", ""] {
        let (code, told) = add(&["gw", "--device", id]);
        assert!(code == Some(1) && told.contains("1 to 128 characters"), "{id:?}: {told}");
    }
    let pem = site.hub.dir().join("other.pem");
    std::fs::write(&pem, certificate("other").0).unwrap();
    let (code, told) = add(&["gw", "--certificate", pem.to_str().unwrap()]);
    let wanted =
        "fwupdate-hub: the certificate is for \"other\"; its common name must be the registration id, gw\n";
    assert_eq!((code, &*told), (Some(1), wanted));
    assert!(std::fs::read_dir(site.hub.dir().join("enrollments")).unwrap().next().is_none());
    assert_eq!(add(&["other", "--certificate", pem.to_str().unwrap()]).0, Some(0));
    assert_eq!(add(&["fleet", "--group", "--certificate", pem.to_str().unwrap()]).0, Some(0));
    assert_eq!(add(&["a:b_c.d-", "--issues", "90d"]).0, Some(0));
}

/// PEM of a certificate and its key.
fn certificate(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_file_that_is_no_certificate_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (pem, key) = certificate("gw");
    let request = CertificateParams::new(vec![]).unwrap().serialize_request(&KeyPair::generate().unwrap());
    let der = in_der(&pem);
    let cut: String = pem.lines().take(4).map(|line| format!("{line}\n")).collect();
    let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".to_owned();
    for (name, content, said) in [
        ("empty", Vec::new(), "is empty"),
        ("text", b"hello\n".to_vec(), "holds no certificate in PEM form"),
        ("key", key.clone().into_bytes(), "holds a private key"),
        ("both", (key + &pem).into_bytes(), "holds a private key"),
        ("request", request.unwrap().pem().unwrap().into_bytes(), "holds a signing request"),
        ("der", der, "holds a certificate in DER form; convert it with `openssl x509 -inform DER"),
        ("cut", cut.into_bytes(), "is damaged"),
        ("broken", broken.into_bytes(), "is damaged"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        without_sense(&["enrollment", "add", "gw", "--certificate", path.to_str().unwrap()], said);
    }
    for path in [folder.path(), Path::new("/dev/null/x")] {
        without_sense(&["enrollment", "add", "gw", "--certificate", path.to_str().unwrap()], "cannot read");
    }
}

/// Its DER form.
fn in_der(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    data_encoding::BASE64.decode(body.as_bytes()).unwrap()
}
