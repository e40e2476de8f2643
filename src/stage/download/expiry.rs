//! When a link stops being good, by what it says itself: then only a fresh one helps.

use std::time::SystemTime;

use hyper::header::{self, HeaderMap, HeaderName};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use url::Url;

use crate::clock::Clock;

/// When the link `url` expired, if it names such a time and the server's clock (ours, if it tells none) is past it:
/// `se` of an Azure SAS token, which may end in a day or a minute; `X-Amz-Date` and `X-Amz-Expires` of
/// AWS Signature Version 4, `X-Goog-` of Google's; `Expires` beside a `Signature`, in Unix seconds, of CloudFront, of
/// Google's CDN and of S3's older links.
pub fn expired(url: &Url, headers: &HeaderMap, clock: &Clock) -> Option<OffsetDateTime> {
    let query = |key: &str| {
        url.query_pairs()
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value.into_owned())
    };
    let signed_for = |vendor: &str| {
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        let date = PrimitiveDateTime::parse(&query(&format!("X-{vendor}-Date"))?, format).ok()?;
        let seconds = query(&format!("X-{vendor}-Expires"))?.parse::<u32>().ok()?;
        date.assume_utc().checked_add(time::Duration::seconds(seconds.into()))
    };
    let azure = query("se").and_then(|text| {
        let forms = [format!("{text}T00:00:00Z"), text.replace('Z', ":00Z"), text];
        forms.iter().find_map(|form| OffsetDateTime::parse(form, &Rfc3339).ok())
    });
    let plain = || {
        query("Signature")?;
        OffsetDateTime::from_unix_timestamp(query("Expires")?.parse().ok()?).ok()
    };
    let end = azure.or_else(|| signed_for("Amz")).or_else(|| signed_for("Goog")).or_else(plain)?;
    let now = date(headers, header::DATE).map_or_else(|| clock.now(), OffsetDateTime::from);
    (now >= end).then_some(end)
}

/// The time in a header, as HTTP writes it.
pub fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn only_a_link_whose_own_time_is_over_has_expired() {
        // Thirty years behind, and nobody keeps it right.
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "-946080000 unsynchronised").unwrap();
        let clock = Clock::new(Some(file.path().to_path_buf()));
        let at = |query: &str, date: Option<&str>| {
            let url = format!("https://h.example/b.fwb?{query}").parse().unwrap();
            let date = date.map(|date| (header::DATE, HeaderValue::from_str(date).unwrap()));
            expired(&url, &date.into_iter().collect(), &clock)
        };
        let noon = Some("Tue, 15 Nov 1994 12:00:00 GMT");
        for over in [
            "sv=2022-11-02&se=1994-11-15T11%3A59%3A59Z&sp=r&sig=x",
            "X-Amz-Date=19941115T110000Z&X-Amz-Expires=3600&X-Amz-Signature=x",
            "X-Goog-Date=19941115T110000Z&X-Goog-Expires=60",
            "se=1994-11-15T12%3A00Z",
            "se=1994-11-15",
            "Expires=784900799&Signature=x&Key-Pair-Id=K",
        ] {
            assert!(at(over, noon).is_some(), "{over}");
        }
        for good in [
            "se=1994-11-15T12%3A00%3A01Z&sig=x",
            "X-Amz-Date=19941115T110000Z&X-Amz-Expires=3601",
            "X-Amz-Date=19941115T110000Z",
            "X-Amz-Date=99991231T235959Z&X-Amz-Expires=4294967295",
            "se=9999-12-31T23%3A59%3A59-23%3A59",
            "se=tomorrow",
            "se=1994-11-15T12%3A01Z",
            "se=1994-11-16",
            "Expires=784900801&Signature=x",
            "Expires=784900799",
            "Expires=99999999999999999999&Signature=x",
            "Expires=soon&Signature=x",
            "",
        ] {
            assert_eq!(at(good, noon), None, "{good}");
        }
        // Without the server's clock ours decides, as far as it is believed.
        assert_eq!(at("se=1999-01-01", None), Some(time::macros::datetime!(1999-01-01 0:00 UTC)));
        let nested = format!("{}Sun, 06 Nov 1994 08:49:37 GMT{}", "(".repeat(30_000), ")".repeat(30_000));
        assert_eq!(at("se=1999-01-01", Some(nested.as_str())), at("se=1999-01-01", None));
        let told = time::macros::datetime!(2040-01-01 0:00 UTC);
        assert_eq!(at("se=2039-12-31", None), None);
        clock.learn(told, "hub.example");
        assert!(at("se=2039-12-31", None).is_some());
        assert!(at("se=1994-11-15T11%3A59%3A59Z", None).is_some());
        assert!(at("se=1994-11-15T11%3A59%3A59Z", Some("yesterday")).is_some());
        assert_eq!(at("se=9994-11-15T11%3A59%3A59Z", None), None);
    }
}
