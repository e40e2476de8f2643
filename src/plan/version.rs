//! The order of versions: which of two is the newer one.

use std::cmp::Ordering;

/// Orders versions as people read them: runs of digits by value, the rest by character, so that 1.10 is
/// newer than 1.9; `~` sorts before everything, even the end (1.0~rc1 is older than 1.0), as in Debian.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (text_a, rest_a) = split_at(a, |c| c.is_ascii_digit());
        let (text_b, rest_b) = split_at(b, |c| c.is_ascii_digit());
        let (digits_a, next_a) = split_at(rest_a, |c| !c.is_ascii_digit());
        let (digits_b, next_b) = split_at(rest_b, |c| !c.is_ascii_digit());
        let order = compare_text(text_a, text_b).then_with(|| compare_digits(digits_a, digits_b));
        if order != Ordering::Equal || (next_a.is_empty() && next_b.is_empty()) {
            return order;
        }
        (a, b) = (next_a, next_b);
    }
}

fn split_at(text: &str, at: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(at).unwrap_or(text.len()))
}

fn compare_digits(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn compare_text(a: &str, b: &str) -> Ordering {
    let weigh = |text: &str| -> Vec<i32> {
        let weight = |c: char| if c == '~' { -1 } else { c as i32 };
        text.chars().map(weight).chain([0]).collect()
    };
    weigh(a).cmp(&weigh(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_people_read_them() {
        for (older, newer) in [
            ("1.9", "1.10"),
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0.1"),
            ("1.0", "1.0a"),
            ("2024.09", "2024.10"),
            ("v1", "v2"),
            ("1.02", "1.3"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} < {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} > {older}");
        }
        assert_eq!(compare("1.0", "1.00"), Ordering::Equal);
        assert_eq!(compare("", ""), Ordering::Equal);
    }
}
