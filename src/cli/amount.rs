//! Amounts as people read them. One unit everywhere: bytes by powers of 1024, as images and slots are cut.

/// Bytes in the largest unit that leaves a digit before the point.
pub fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((name, shift)) => {
            let tenths = u128::from(bytes).saturating_mul(10) >> shift;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// Seconds in the two largest units.
pub fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}min {s}s"),
        (h, m, _) => format!("{h}h {m}min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_one_unit() {
        assert_eq!(
            [size(0), size(1023), size(1024), size(1_999_999), size(u64::MAX)],
            ["0 B", "1023 B", "1.0 KiB", "1.9 MiB", "16777215.9 TiB"]
        );
        assert_eq!([duration(9), duration(75), duration(7260)], ["9s", "1min 15s", "2h 1min"]);
    }
}
