//! The bytes of one copy of U-Boot's environment.
//!
//! Redundant: CRC-32 of the data in the target's byte order, a flags byte, then `name=value\0` ... `\0`; the
//! CRC covers the whole data area, padding too, but not the flags. Single: the same without flags.
//! (U-Boot, include/env_internal.h and env/common.c.)

use crate::boot::variables;
use crate::slot::BootEnv;

const CRC: usize = 4;

/// A copy whose CRC is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvCopy {
    /// Order of the copies; 0 in a single one.
    pub flags: u8,
    /// Each `name=value`, as it is.
    pub entries: Vec<Vec<u8>>,
}

impl EnvCopy {
    /// `None`: the CRC is wrong, or `area` is too short to hold an environment at all.
    pub fn parse(area: &[u8], redundant: bool) -> Option<EnvCopy> {
        let (crc, rest) = area.split_first_chunk::<CRC>()?;
        let (flags, data) = if redundant { rest.split_first()? } else { (&0, rest) };
        if data.is_empty() || crc32fast::hash(data) != u32::from_ne_bytes(*crc) {
            return None;
        }
        let entries = data.split(|byte| *byte == 0).take_while(|entry| !entry.is_empty());
        Some(EnvCopy { flags: *flags, entries: entries.map(<[u8]>::to_vec).collect() })
    }

    /// The bytes of a redundant copy of `size`; `Err` gives the bytes that would be needed.
    pub fn render(&self, size: usize) -> Result<Vec<u8>, usize> {
        let entries = self.entries.iter().map(|entry| entry.len().saturating_add(1));
        let needed = entries.fold(CRC + 2, usize::saturating_add);
        if needed > size {
            return Err(needed);
        }
        let mut data = Vec::with_capacity(size);
        for entry in &self.entries {
            data.extend_from_slice(entry);
            data.push(0);
        }
        data.resize(size.saturating_sub(CRC + 1), 0);
        let mut area = crc32fast::hash(&data).to_ne_bytes().to_vec();
        area.push(self.flags);
        area.extend(data);
        Ok(area)
    }

    /// A variable's value; empty where it is not set. Of two entries the later counts, as in U-Boot.
    pub fn get(&self, name: &str) -> String {
        let value = self.entries.iter().rev().find_map(|entry| {
            let (found, value) = split(entry);
            (found == name.as_bytes()).then_some(value)
        });
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    }

    /// The next copy: our variables replaced, all others as they are. An empty variable is left out, for
    /// U-Boot knows no difference.
    pub fn with(&self, flags: u8, env: &BootEnv) -> EnvCopy {
        let ours = |entry: &[u8]| variables::NAMES.iter().any(|name| name.as_bytes() == split(entry).0);
        let mut entries: Vec<Vec<u8>> = self.entries.iter().filter(|entry| !ours(entry)).cloned().collect();
        for (name, value) in variables::NAMES.iter().zip(variables::values(env)) {
            if !value.is_empty() {
                entries.push(format!("{name}={value}").into_bytes());
            }
        }
        EnvCopy { flags, entries }
    }
}

fn split(entry: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = entry.splitn(2, |byte| *byte == b'=');
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// Whether the second of two valid copies is the current one: the flags count up and wrap from 255 to 0;
/// equal flags mean the first (U-Boot, env/common.c, incremental flags).
pub fn second_is_newer(first: u8, second: u8) -> bool {
    match (first, second) {
        (255, 0) => true,
        (0, 255) => false,
        _ => second > first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::{Armed, Slot};

    /// `BOOT_A_LEFT=3`, `BOOT_ORDER=A B` in 0x40 bytes, as mkenvimage makes it.
    fn vector(header: [u8; 4], redundant: bool, padding: u8) -> Vec<u8> {
        let mut area = header.to_vec();
        area.extend(redundant.then_some(1));
        area.extend(b"BOOT_A_LEFT=3\0BOOT_ORDER=A B\0\0");
        area.resize(0x40, padding);
        area
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_known_vectors_are_valid_and_hold_two_variables() {
        for (header, redundant, padding) in [
            ([0x03, 0x43, 0x3f, 0x2c], false, 0x00),
            ([0x3b, 0xe0, 0xcf, 0x8e], false, 0xff),
            ([0x98, 0xf8, 0xb7, 0xe9], true, 0x00),
            ([0x44, 0xb2, 0x65, 0x7e], true, 0xff),
        ] {
            let area = vector(header, redundant, padding);
            let copy = EnvCopy::parse(&area, redundant).unwrap();
            assert_eq!(copy.entries, [b"BOOT_A_LEFT=3".to_vec(), b"BOOT_ORDER=A B".to_vec()]);
            assert_eq!(copy.get("BOOT_ORDER"), "A B");
            assert_eq!(copy.get("BOOT"), "");
            assert!(EnvCopy::parse(&area, !redundant).is_none());
            if redundant && padding == 0 {
                assert_eq!(copy.render(0x40).unwrap(), area);
            }
        }
    }

    #[test]
    fn the_newer_copy_is_found_over_the_wrap() {
        for (first, second, newer) in [
            (255, 0, true),
            (0, 255, false),
            (1, 2, true),
            (2, 1, false),
            (0, 1, true),
            (254, 255, true),
            (7, 7, false),
            (255, 255, false),
        ] {
            assert_eq!(second_is_newer(first, second), newer, "{first} {second}");
        }
    }

    #[test]
    fn every_flipped_bit_but_the_flags_is_noticed() {
        let copy = EnvCopy { flags: 1, entries: vec![b"a=b".to_vec()] };
        let area = copy.render(24).unwrap();
        for bit in (0..area.len() * 8).filter(|bit| bit / 8 != CRC) {
            let mut bad = area.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(EnvCopy::parse(&bad, true).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn other_variables_stay_and_ours_are_replaced_wherever_they_are() {
        let entries =
            ["fwupdate_tries=2", ".flags=x:sr", "fwupdate_trial=B", "odd", "fwupdate_primaryx=1", "e="];
        let old = EnvCopy { flags: 3, entries: entries.map(|entry| entry.as_bytes().to_vec()).to_vec() };
        let armed =
            BootEnv { primary: Slot::A, trial: Some(Armed { slot: Slot::B, tries: 3 }), fallback: None };
        let text = |copy: EnvCopy| {
            copy.entries.iter().map(|e| String::from_utf8_lossy(e).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            text(old.with(4, &armed)),
            [
                ".flags=x:sr",
                "odd",
                "fwupdate_primaryx=1",
                "e=",
                "fwupdate_primary=A",
                "fwupdate_trial=B",
                "fwupdate_tries=3"
            ]
        );
        let only = text(old.with(4, &BootEnv::only(Slot::B)));
        assert_eq!(only, [".flags=x:sr", "odd", "fwupdate_primaryx=1", "e=", "fwupdate_primary=B"]);
    }

    #[test]
    fn an_area_that_is_too_small_says_what_it_needs() {
        let copy = EnvCopy { flags: 0, entries: vec![b"a=b".to_vec()] };
        assert_eq!(copy.render(10).unwrap().len(), 10);
        assert_eq!(copy.render(9), Err(10));
        for area in [&b""[..], &[0; 4], &[0; 5]] {
            assert!(EnvCopy::parse(area, true).is_none());
        }
    }
}
