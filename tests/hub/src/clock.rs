//! Time as the hub writes it, and names that occur once.

use ring::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;
use time::macros::format_description;

/// What the hub shows for "never".
pub const NEVER: &str = "0001-01-01T00:00:00Z";

/// ISO 8601 in UTC with seven digits of a second, as twins carry it.
pub fn now() -> String {
    shown(OffsetDateTime::now_utc())
}

/// The same for another time.
pub fn shown(time: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:7]Z");
    time.format(format).unwrap_or_else(|_| NEVER.to_owned())
}

/// Unix seconds.
pub fn unix() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0)
}

/// Random bytes; the system's generator does not fail on Linux once it is seeded.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    while SystemRandom::new().fill(&mut bytes).is_err() {}
    bytes
}

/// 32 random hex digits.
pub fn unique() -> String {
    data_encoding::HEXLOWER.encode(&random::<16>())
}

/// A new symmetric key, base64 of 32 bytes.
pub fn new_key() -> String {
    data_encoding::BASE64.encode(&random::<32>())
}
