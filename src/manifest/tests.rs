//! What `open` lets through and what it refuses.

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
};
use serde_json::{Value, json};

use super::*;
use crate::bundle::testing::{self, sign, trust};
use crate::failure::{Code, Failure};

fn manifest() -> Vec<u8> {
    testing::parts(&[7; 8192], "board", "1.0").manifest
}

fn code(error: ManifestError) -> Code {
    Failure::from(error).code
}

#[test]
fn a_signed_manifest_opens_and_knows_the_digest_of_its_exact_bytes() {
    let bytes = manifest();
    let opened = open(&bytes, &sign(&bytes, &[1]), &trust(1), 1).unwrap();
    assert_eq!(opened.digest(), Digest::of(&bytes));
    assert_eq!(format!("{:?}", opened.digest()), Digest::of(&bytes).to_string());
    assert_eq!((opened.compatible.as_str(), opened.image.size), ("board", 8192));
    let chunking = &opened.image.chunking;
    assert_eq!(chunking.group_max(), (chunking.group + chunking.max) as usize);
}

#[test]
fn without_a_valid_signature_nothing_opens() {
    let bytes = manifest();
    let empty = br#"{"signatures":[]}"#;
    // Not even when the caller asks for none.
    for (signatures, keys, required) in [
        (empty.to_vec(), trust(1), 1),
        (empty.to_vec(), trust(1), 0),
        (sign(&bytes, &[2]), trust(1), 1),
        (sign(&bytes, &[1]), TrustedKeys::default(), 0),
    ] {
        let error = open(&bytes, &signatures, &keys, required).unwrap_err();
        assert_eq!(code(error), Code::UntrustedSignature);
    }
}

#[test]
fn signatures_count_once_a_key() {
    let (bytes, mut keys) = (manifest(), trust(1));
    keys.add(testing::public(&testing::key(2))).unwrap();
    let error = open(&bytes, &sign(&bytes, &[1, 1]), &keys, 2).unwrap_err();
    assert!(matches!(error, ManifestError::Untrusted { valid: 1, required: 2, .. }), "{error}");
    open(&bytes, &sign(&bytes, &[1, 2]), &keys, 2).unwrap();
    // A stranger's signature beside enough good ones does no harm.
    open(&bytes, &sign(&bytes, &[3, 1, 2]), &keys, 2).unwrap();
}

#[test]
fn one_flipped_bit_anywhere_is_refused() {
    let bytes = manifest();
    let signatures = sign(&bytes, &[1]);
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let error = open(&flipped, &signatures, &trust(1), 1).unwrap_err();
        assert_eq!(code(error), Code::UntrustedSignature, "byte {at}");
    }
    let mut list = SignatureList::parse(&signatures).unwrap();
    for at in 0..64 {
        list.signatures[0].bytes[at] ^= 1;
        open(&bytes, &list.to_bytes().unwrap(), &trust(1), 1).unwrap_err();
        list.signatures[0].bytes[at] ^= 1;
    }
}

#[test]
fn only_signed_bytes_reach_the_parser_of_the_manifest() {
    let error = open(b"{", &sign(b"other", &[1]), &trust(1), 1).unwrap_err();
    assert_eq!(code(error), Code::UntrustedSignature);
    let error = open(b"{", &sign(b"{", &[1]), &trust(1), 1).unwrap_err();
    assert!(matches!(error, ManifestError::Json(_)), "{error}");
}

#[test]
fn caps_come_first() {
    let large = vec![b' '; MANIFEST_CAP + 1];
    let error = open(&large, &sign(&large, &[1]), &trust(1), 1).unwrap_err();
    assert!(matches!(error, ManifestError::TooLarge { member: "manifest.json", .. }));
    let error = open(&manifest(), &vec![b' '; SIGNATURES_CAP + 1], &trust(1), 1).unwrap_err();
    assert!(matches!(error, ManifestError::TooLarge { member: "manifest.sig", .. }));
    let padded = |mut bytes: Vec<u8>, size| {
        bytes.resize(size, b' ');
        bytes
    };
    let largest = padded(manifest(), MANIFEST_CAP);
    open(&largest, &padded(sign(&largest, &[1]), SIGNATURES_CAP), &trust(1), 1).unwrap();
}

#[test]
fn the_limits_are_the_published_ones() {
    assert_eq!((MANIFEST_CAP, SIGNATURES_CAP), (65_536, 16_384));
    assert_eq!((CHUNK_CAP, GROUP_CAP), (131_072, 2_097_152));
    assert_eq!((INDEX_CAP, PATCH_INDEX_CAP), (33_554_432, 2_097_152));
}

#[test]
fn signature_lists_are_strict() {
    for text in [
        "",
        "[]",
        "{}",
        r#"{"signatures":[],"x":1}"#,
        r#"{"signatures":[{"keyId":"0123456789abcdef","algorithm":"x","signature":"?"}]}"#,
        r#"{"signatures":[{"keyId":"0123456789abcdef","algorithm":"x"}]}"#,
        r#"{"signatures":[{"keyId":"0123456789ABCDEF","algorithm":"x","signature":""}]}"#,
        r#"{"signatures":[{"keyId":"0123456789abcdef","algorithm":"\u001b[2J","signature":""}]}"#,
    ] {
        let error = open(&manifest(), text.as_bytes(), &trust(1), 1).unwrap_err();
        assert_eq!(code(error), Code::MalformedBundle, "{text}");
    }
}

#[test]
fn p256_takes_der_alone_and_under_its_own_name() {
    let (bytes, random) = (manifest(), SystemRandom::new());
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = |kind| EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).unwrap();
    let (der, raw) = (pair(&ECDSA_P256_SHA256_ASN1_SIGNING), pair(&ECDSA_P256_SHA256_FIXED_SIGNING));
    let key = PublicKey::from_point(Algorithm::EcdsaP256Sha256, der.public_key().as_ref()).unwrap();
    let mut keys = TrustedKeys::default();
    keys.add(key.clone()).unwrap();
    let opens = |signature: Signature| {
        let list = SignatureList { signatures: vec![signature] };
        open(&bytes, &list.to_bytes().unwrap(), &keys, 1).is_ok()
    };
    let good = Signature::by(&key, der.sign(&random, &bytes).unwrap().as_ref().to_vec());
    assert_eq!(good.algorithm, "ecdsa-p256-sha256");
    assert!(opens(good.clone()));
    assert!(!opens(Signature { algorithm: "ed25519".into(), ..good }));
    assert!(!opens(Signature::by(&key, raw.sign(&random, &bytes).unwrap().as_ref().to_vec())));
}

/// Changes one field of a good manifest, signs the result, and returns what `open` says.
fn changed(pointer: &str, value: Value) -> Result<Manifest, ManifestError> {
    let mut json: Value = serde_json::from_slice(&manifest()).unwrap();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[name] = value;
    let bytes = serde_json::to_vec(&json).unwrap();
    open(&bytes, &sign(&bytes, &[1]), &trust(1), 1)
}

#[test]
fn every_rule_of_the_format_is_enforced() {
    for (pointer, value) in [
        ("/format", json!(0)),
        ("/format", json!(2)),
        ("/format", json!("1")),
        ("/surprise", json!(1)),
        ("/image/surprise", json!(1)),
        ("/image/chunking/surprise", json!(1)),
        ("/extensions", json!([])),
        ("/patches", json!({})),
        ("/patches", json!([{"baseSize": 4096}])),
        ("/compatible", json!("")),
        ("/compatible", json!("a b")),
        ("/compatible", json!("x".repeat(129))),
        ("/version", json!("-1")),
        ("/version", json!("1\n")),
        ("/version", json!("1/../2")),
        ("/version", json!("x".repeat(65))),
        ("/securityVersion", json!(-1)),
        ("/created", json!("yesterday")),
        ("/created", json!("1969-12-31T23:59:59Z")),
        ("/created", json!("9999-01-01T00:00:00Z")),
        ("/image/size", json!(0)),
        ("/image/size", json!(8191)),
        ("/image/sha256", json!("00")),
        ("/image/codec", json!("xz")),
        ("/image/payloadSize", json!(0)),
        ("/image/payloadSize", json!(PAYLOAD_CAP + 1)),
        ("/image/indexSize", json!(0)),
        ("/image/indexSize", json!(55)),
        ("/image/indexSize", json!(16)),
        ("/image/indexSize", json!(16 + 3 * 40)),
        ("/image/indexSize", json!(u64::MAX)),
        ("/image/chunking/algorithm", json!("")),
        ("/image/chunking/block", json!(512)),
        ("/image/chunking/min", json!(0)),
        ("/image/chunking/min", json!(6000)),
        ("/image/chunking/average", json!(0)),
        ("/image/chunking/max", json!(CHUNK_CAP + 4096)),
        ("/image/chunking/group", json!(CHUNK_CAP / 2)),
        ("/image/chunking/group", json!(CHUNK_CAP * 3)),
        ("/image/chunking/group", json!(2 * GROUP_CAP)),
    ] {
        let error = changed(pointer, value.clone()).unwrap_err();
        if let ManifestError::Field { field, .. } = error {
            assert!(
                pointer.replace('/', ".").starts_with(&format!(".{field}")),
                "{pointer} = {value}: {field}"
            );
        }
        assert_eq!(code(error), Code::MalformedBundle, "{pointer} = {value}");
    }
    let error = changed("/image/size", json!(u64::MAX - 4095)).unwrap_err();
    assert!(matches!(error, ManifestError::Field { field: "image.indexSize", .. }), "{error}");
}

#[test]
fn extensions_and_foreign_chunkings_are_left_to_others() {
    changed("/extensions", json!({"later": {"anything": [1, 2]}})).unwrap();
    changed("/image/chunking/algorithm", json!("other-1")).unwrap();
}

#[test]
fn a_newer_format_is_named_before_its_fields() {
    let bytes = br#"{"format": 2, "entirely": "different"}"#;
    let error = open(bytes, &sign(bytes, &[1]), &trust(1), 1).unwrap_err();
    assert!(matches!(error, ManifestError::Format(2)), "{error}");
}
