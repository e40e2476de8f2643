//! Keys and signatures: ours, openssl's, and those of keys that we never see.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::desk::{Desk, create, desk, flip, image, signed};

#[test]
fn keygen_makes_keys_that_openssl_reads_and_never_overwrites_one() {
    for algorithm in ["ed25519", "p256"] {
        let desk = Desk::new();
        desk.good(&format!("keygen --out a/b --algorithm {algorithm}"));
        desk.must("openssl pkey -in a/b/release.key.pem -pubout -out public.pem");
        assert_eq!(desk.read("public.pem"), desk.read("a/b/release.pub.pem"));
        let mode = fs::metadata(desk.path("a/b/release.key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = desk.read("a/b/release.key.pem");
        fs::remove_file(desk.path("a/b/release.pub.pem")).unwrap();
        assert!(desk.bad("keygen --out a/b", 1).contains("exists already"));
        assert_eq!(desk.read("a/b/release.key.pem"), key);
        assert!(!desk.path("a/b/release.pub.pem").exists());
    }
}

/// How openssl checks `signature` over `manifest.json` with the key in `public.pem`.
fn openssl_verifies(desk: &Desk, algorithm: &str) -> bool {
    desk.runs(match algorithm {
        "ed25519" => {
            "openssl pkeyutl -verify -rawin -pubin -inkey public.pem -in manifest.json -sigfile signature"
        }
        _ => "openssl dgst -sha256 -verify public.pem -signature signature manifest.json",
    })
}

#[test]
fn openssl_agrees_about_our_signatures() {
    for algorithm in ["ed25519", "p256"] {
        let desk = Desk::new();
        desk.good(&format!("keygen --out keys --algorithm {algorithm}"));
        desk.write("image", &image(1, 20));
        desk.good(&signed("image", "out.fwb"));
        desk.write("public.pem", &desk.read("keys/release.pub.pem"));
        desk.write("manifest.json", &desk.member("out.fwb", "manifest.json"));
        desk.write("signature", &desk.signature("out.fwb", 0));
        assert!(openssl_verifies(&desk, algorithm));
        desk.good("verify out.fwb --keys keys");

        let version = 512 + desk.read("manifest.json").windows(5).position(|part| part == b"1.2.3").unwrap();
        flip(&desk.path("manifest.json"), version - 512);
        flip(&desk.path("out.fwb"), version);
        assert_eq!(desk.member("out.fwb", "manifest.json"), desk.read("manifest.json"));
        assert!(!openssl_verifies(&desk, algorithm));
        desk.bad("verify out.fwb --keys keys", 3);
    }
}

/// r and s of a DER signature as 64 bytes, as a key vault gives them.
fn raw(der: &[u8]) -> Vec<u8> {
    let number = |at: usize| {
        let digits = &der[at + 2..at + 2 + der[at + 1] as usize];
        let digits = &digits[digits.iter().take_while(|byte| **byte == 0).count()..];
        [vec![0; 32 - digits.len()], digits.to_vec()].concat()
    };
    [number(2), number(4 + der[3] as usize)].concat()
}

#[test]
fn a_key_that_we_never_see_signs_by_openssl() {
    for (algorithm, genpkey, sign) in [
        ("ed25519", "ed25519", "pkeyutl -sign -rawin -inkey hsm/key -in manifest.json -out signature"),
        (
            "p256",
            "EC -pkeyopt ec_paramgen_curve:P-256",
            "dgst -sha256 -sign hsm/key -out signature manifest.json",
        ),
    ] {
        let desk = desk(20);
        fs::create_dir(desk.path("hsm")).unwrap();
        desk.must(&format!("openssl genpkey -algorithm {genpkey} -out hsm/key"));
        desk.must("openssl pkey -in hsm/key -pubout -out hsm/public.pem");
        desk.good(&(create("image", "out.fwb") + " --unsigned"));
        assert!(desk.bad("verify out.fwb --keys hsm", 3).contains("0 of 1 valid"));

        let digest = desk.good("digest out.fwb --manifest manifest.json");
        let sum = String::from_utf8(desk.command("sha256sum", ["manifest.json"]).stdout).unwrap();
        assert_eq!(digest.trim(), &sum[..64]);
        desk.must(&format!("openssl {sign}"));
        let unsigned = desk.read("out.fwb");
        let mut forged = desk.read("signature");
        *forged.last_mut().unwrap() ^= 1;
        desk.write("forged", &forged);
        desk.bad("sign out.fwb --signature forged --public-key hsm/public.pem", 3);
        desk.bad("sign out.fwb --signature signature --public-key keys/release.pub.pem", 3);
        assert!(desk.read("out.fwb") == unsigned);

        desk.good("sign out.fwb --signature signature --public-key hsm/public.pem");
        desk.good("verify out.fwb --keys hsm");
        if algorithm == "p256" {
            let once = desk.read("out.fwb");
            desk.write("raw", &raw(&desk.read("signature")));
            desk.good("sign out.fwb --signature raw --public-key hsm/public.pem");
            assert!(desk.read("out.fwb") == once, "the same signature, replaced and in the same form");
        }
    }
}

#[test]
fn keys_that_openssl_made_sign_directly_and_two_sign_side_by_side() {
    let desk = desk(20);
    fs::create_dir(desk.path("more")).unwrap();
    desk.must("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out other.key");
    desk.must("openssl pkey -in other.key -pubout -out more/other.pem");
    desk.good(&(signed("image", "out.fwb") + " --key other.key"));
    desk.bad("verify out.fwb --keys keys/release.pub.pem --required 2", 3);
    desk.good("verify out.fwb --keys more");
    fs::copy(desk.path("keys/release.pub.pem"), desk.path("more/release.pem")).unwrap();
    desk.good("verify out.fwb --keys more --required 2");
    let message = desk.bad(&(signed("image", "twice.fwb") + " --key keys/release.key.pem"), 1);
    assert!(message.contains("given twice"), "{message}");
}

#[test]
fn keys_from_another_systems_editor_are_read() {
    let desk = desk(20);
    for name in ["key", "pub"] {
        let pem = String::from_utf8(desk.read(&format!("keys/release.{name}.pem"))).unwrap();
        desk.write(&format!("{name}.pem"), format!("\u{feff}{}", pem.replace('\n', "\r\n")).as_bytes());
    }
    desk.good(&(create("image", "out.fwb") + " --key key.pem"));
    desk.good("verify out.fwb --keys pub.pem");
}
