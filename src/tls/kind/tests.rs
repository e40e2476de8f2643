//! Certificates and keys as `openssl` makes them, by the way that the hub's connection takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use time::macros::datetime;

use crate::clock::Clock;
use crate::config::{KeyPlace, Roots};
use crate::tls::{Holder, client_config, holder};

fn openssl(dir: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    let output = command.current_dir(dir).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder with `ca.pem`, and `key.pem` and `cert.pem` as these commands make them.
fn made(commands: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let authority = rcgen::generate_simple_self_signed(vec!["ca".into()]).unwrap();
    fs::write(dir.path().join("ca.pem"), authority.cert.pem()).unwrap();
    commands.iter().for_each(|command| openssl(dir.path(), command));
    dir
}

const CERTIFICATE: &str = "req -x509 -key key.pem -out cert.pem -days 30 -subj /CN=gw";

/// What is said of the pair.
fn said(dir: &tempfile::TempDir) -> Result<(), String> {
    let [ca, certificate, key]: [PathBuf; 3] =
        ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.path().join(name));
    let roots = Roots { system: false, ca_file: Some(ca) };
    match client_config(&roots, Some((&certificate, &KeyPlace::File(key))), &Clock::default()) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string().replace(&format!("{}/", dir.path().display()), "")),
    }
}

#[test]
fn a_certificate_tells_whom_it_names_and_until_when() {
    for (end, not_after) in [
        ("20491231235959Z", datetime!(2049-12-31 23:59:59 UTC)),
        ("20500101000000Z", datetime!(2050-01-01 0:00 UTC)),
        ("99991231235959Z", datetime!(9999-12-31 23:59:59 UTC)),
    ] {
        let dir = made(&["ecparam -name prime256v1 -genkey -noout -out key.pem"]);
        openssl(dir.path(), "req -new -key key.pem -out request.pem -subj /O=Acme/CN=gw-7");
        let times = format!("-startdate 20200101000000Z -enddate {end}");
        fs::write(dir.path().join("index.txt"), "").unwrap();
        fs::write(dir.path().join("ca.cnf"), AUTHORITY).unwrap();
        let sign = format!(
            "ca -batch -selfsign -config ca.cnf -in request.pem -keyfile key.pem -out cert.pem {times}"
        );
        openssl(dir.path(), &sign);
        let found = holder(&dir.path().join("cert.pem")).unwrap();
        assert_eq!(found, Holder { name: Some("gw-7".to_owned()), not_after });
    }
}

const AUTHORITY: &str = "[ca]\ndefault_ca = own\n[own]\nnew_certs_dir = .\ndatabase = index.txt\nrand_serial = yes\n\
                         default_md = sha256\npolicy = any\n[any]\norganizationName = optional\ncommonName = supplied\n";

#[test]
fn keys_that_can_be_used_are_used_in_each_of_their_forms() {
    for commands in [
        &["genrsa -out key.pem 2048"][..],
        &["genrsa -traditional -out key.pem 3072"],
        &["genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"],
        &["ecparam -name secp384r1 -genkey -out key.pem"],
    ] {
        assert_eq!(said(&made(&[commands, &[CERTIFICATE]].concat())), Ok(()), "{commands:?}");
    }
}

#[test]
fn keys_that_cannot_be_used_are_named_as_what_they_are() {
    for (command, what) in [
        ("genrsa -out key.pem 1024", "an RSA key of 1024 bits"),
        ("genrsa -traditional -out key.pem 2056", "an RSA key of 2056 bits"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out key.pem", "a key on the curve P-521"),
        ("ecparam -name secp521r1 -genkey -noout -out key.pem", "a key on the curve P-521"),
        ("ecparam -name secp256k1 -genkey -out key.pem", "a key on the curve secp256k1"),
        (
            "ecparam -name prime256v1 -param_enc explicit -genkey -noout -out key.pem",
            "a key whose curve is written out",
        ),
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit -out key.pem",
            "a key whose curve is written out",
        ),
        ("genpkey -algorithm ED25519 -out key.pem", "a key of Ed25519, which cannot be used with Azure"),
        ("genpkey -algorithm ED448 -out key.pem", "a key of Ed448"),
        ("genpkey -algorithm RSA-PSS -out key.pem", "a key of RSASSA-PSS"),
    ] {
        let dir = made(&[command, CERTIFICATE]);
        let by_certificate = said(&dir).unwrap_err();
        assert!(
            by_certificate.starts_with(&format!("cert.pem holds a certificate for {what}")),
            "{command}: {by_certificate}"
        );
        openssl(dir.path(), "req -x509 -newkey rsa:2048 -nodes -keyout other.pem -out cert.pem -subj /CN=gw");
        let by_key = said(&dir).unwrap_err();
        assert!(by_key.starts_with(&format!("key.pem holds {what}")), "{command}: {by_key}");
    }
}

#[test]
fn a_version_1_certificate_is_named_as_one() {
    let dir = made(&[
        "genrsa -out key.pem 2048",
        "req -new -key key.pem -out request.pem -subj /CN=gw",
        "x509 -req -in request.pem -signkey key.pem -out cert.pem",
    ]);
    let error = said(&dir).unwrap_err();
    assert!(error.starts_with("cert.pem holds a certificate of X.509 version 1"), "{error}");
}

#[test]
fn files_without_a_key_and_strangers_are_told_apart() {
    let dir = made(&["genrsa -out key.pem 2048", CERTIFICATE]);
    openssl(dir.path(), "pkcs8 -topk8 -in key.pem -passout pass:x -out encrypted.pem");
    openssl(dir.path(), "rsa -traditional -aes128 -in key.pem -passout pass:x -out older.pem");
    openssl(dir.path(), "genrsa -out stranger.pem 2048");
    openssl(dir.path(), "pkey -in key.pem -outform DER -out der.pem");
    openssl(dir.path(), "pkey -in key.pem -pubout -out public.pem");
    for (name, words) in [
        ("encrypted.pem", "holds an encrypted private key"),
        ("older.pem", "holds an encrypted private key"),
        ("stranger.pem", "the key in key.pem is not that of the certificate in cert.pem"),
        ("der.pem", "holds no private key that can be used but no PEM"),
        ("public.pem", "but PUBLIC KEY: it must be PEM"),
        ("cert.pem", "but CERTIFICATE: it must be PEM"),
    ] {
        fs::copy(dir.path().join(name), dir.path().join("key.pem")).unwrap();
        let error = said(&dir).unwrap_err();
        assert!(error.contains(words), "{name}: {error}");
    }
}

#[test]
fn damaged_bytes_are_no_reason_to_say_anything() {
    let dir = made(&["genrsa -out key.pem 2048", CERTIFICATE]);
    let certificates = crate::tls::pem::certificates(&dir.path().join("cert.pem")).unwrap();
    let whole = certificates[0].as_ref();
    for length in 0..whole.len() {
        assert_eq!(super::fault_of_certificate(&whole[..length]), None, "{length}");
    }
    assert_eq!(super::fault_of_certificate(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    assert_eq!(super::fault_of_certificate(&[0x30, 0xff]), None);
}
