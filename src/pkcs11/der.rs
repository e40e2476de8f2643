//! What tokens leave to others: public keys and signatures in the shape that certificates and TLS have (X.690, DER).

use rustls::pki_types::alg_id::{ECDSA_P256, RSA_ENCRYPTION};
use rustls::sign::public_key_to_spki;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// `Ecdsa-Sig-Value` (RFC 3279) of what PKCS#11 gives: r and s, each half of it.
pub fn ecdsa_signature(halves: &[u8]) -> Vec<u8> {
    let (r, s) = halves.split_at(halves.len().div_euclid(2));
    sequence(&[integer(r), integer(s)])
}

/// `SubjectPublicKeyInfo` of an uncompressed point.
pub fn p256_key(point: &[u8]) -> Vec<u8> {
    public_key_to_spki(&ECDSA_P256, point).to_vec()
}

/// The same of an RSA key; both numbers are big-endian.
pub fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = sequence(&[integer(modulus), integer(exponent)]);
    public_key_to_spki(&RSA_ENCRYPTION, key).to_vec()
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tagged(SEQUENCE, &parts.concat())
}

/// A number that is not negative, in as few bytes as it takes.
fn integer(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let digits = number.get(zeros..).unwrap_or_default();
    let pad: &[u8] = if digits.first().is_none_or(|byte| *byte >= 0x80) { &[0] } else { &[] };
    tagged(INTEGER, &[pad, digits].concat())
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let length = length.get(zeros..).unwrap_or_default();
    let mut out = vec![tag];
    match length {
        [] => out.push(0),
        [short] if *short < 0x80 => out.push(*short),
        long => {
            // At most eight bytes hold a length.
            out.push(0x80 | u8::try_from(long.len()).unwrap_or_default());
            out.extend(long);
        }
    }
    out.extend(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_short_as_they_can_be_and_never_negative() {
        assert_eq!(integer(&[0, 0, 5]), [2, 1, 5]);
        assert_eq!(integer(&[0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0, 0]), [2, 1, 0]);
        assert_eq!(ecdsa_signature(&[0, 1, 0xff, 0]), [0x30, 8, 2, 1, 1, 2, 3, 0, 0xff, 0]);
    }

    #[test]
    fn a_key_reads_as_the_one_that_it_was_made_of() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let whole = pair.public_key_der();
        let point = &whole[whole.len() - 65..];
        assert_eq!(p256_key(point), whole);
        let modulus = [0xc5; 256];
        let key = rsa_key(&modulus, &[1, 0, 1]);
        assert_eq!(key.len(), 294);
        assert_eq!(&key[..4], [0x30, 0x82, 1, 0x22]);
    }
}
