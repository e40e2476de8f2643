//! Live counts of a configuration, by what the gateways themselves report, until each has its outcome.

use std::collections::BTreeMap;
use std::io::Write;

use fwupdate::cli::plain::{self, plain};
use serde_json::{Value, json};

use crate::error::Error;
use crate::fields::{REPORTED, quoted, text, update};
use crate::patience;
use crate::rollout::condition;
use crate::service::Service;

#[derive(Debug, PartialEq, Eq)]
struct Counts {
    targeted: u64,
    /// By the code of `fwupdate.desired`.
    codes: BTreeMap<String, u64>,
}

/// The version by which a configuration can be watched.
pub fn watched(found: &Value) -> Result<&str, Error> {
    update(found).and_then(|update| text(update, "/version")).ok_or_else(|| {
        let id = text(found, "/id").unwrap_or_default();
        Error::Usage(format!("{id} names no version of firmware, so there is nothing to watch"))
    })
}

/// Shows live counts until every gateway has its outcome. An error when any of them did not commit.
pub async fn follow(service: &Service, found: &Value, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let (id, version) = (text(found, "/id").unwrap_or_default(), watched(found)?);
    let target = text(found, "/targetCondition").map_or("*", condition);
    let line = |counts: &Counts| if json { plain::json(&counts.json(id)) } else { plain(&counts.line(id)) };
    let ask = || Counts::ask(service, target, version);
    patience::follow(service, ask, line, Counts::is_over, out).await?.verdict(id)
}

impl Counts {
    /// Two queries: a hub answers 20 a minute.
    async fn ask(service: &Service, target: &str, version: &str) -> Result<Counts, Error> {
        let fits = if matches!(target, "*" | "") {
            "is_defined(deviceId)".to_owned()
        } else {
            format!("({target})")
        };
        let code = format!("{REPORTED}.desired.code");
        let all = service.query(&format!("SELECT COUNT() AS n FROM devices WHERE {fits}")).await?;
        let by_code = service
            .query(&format!(
                "SELECT {code} AS code, COUNT() AS n FROM devices WHERE {fits} AND {REPORTED}.desired.version = {} \
                 GROUP BY {code}",
                quoted(version)
            ))
            .await?;
        Ok(Counts::of(&all, &by_code))
    }

    fn of(all: &[Value], by_code: &[Value]) -> Counts {
        let number = |row: &Value| row.get("n").and_then(Value::as_u64).unwrap_or(0);
        let code = |row: &Value| (text(row, "/code").unwrap_or("unknown").to_owned(), number(row));
        Counts { targeted: all.first().map_or(0, number), codes: by_code.iter().map(code).collect() }
    }

    fn count(&self, codes: &[&str]) -> u64 {
        codes.iter().filter_map(|code| self.codes.get(*code)).sum()
    }

    fn committed(&self) -> u64 {
        self.count(&["Committed", "AlreadyInstalled"])
    }

    fn waiting(&self) -> u64 {
        self.targeted.saturating_sub(self.codes.values().sum())
    }

    /// Codes that are neither success nor under way.
    fn others(&self) -> impl Iterator<Item = (&String, &u64)> {
        let known = ["Committed", "AlreadyInstalled", "Accepted"];
        self.codes.iter().filter(move |(code, _)| !known.contains(&code.as_str()))
    }

    fn is_over(&self) -> bool {
        self.waiting() == 0 && self.count(&["Accepted"]) == 0
    }

    fn line(&self, id: &str) -> String {
        let named = [
            ("committed", self.committed()),
            ("running", self.count(&["Accepted"])),
            ("waiting", self.waiting()),
        ];
        let others = self.others().map(|(code, n)| (code.as_str(), *n));
        let counts: Vec<_> = named.into_iter().chain(others).filter(|(_, n)| *n > 0).collect();
        let counts: Vec<_> = counts.into_iter().map(|(name, n)| format!("{n} {name}")).collect();
        format!("{id}, {} gateways: {}", self.targeted, counts.join(", "))
    }

    fn json(&self, id: &str) -> Value {
        json!({"configuration": id, "gateways": self.targeted, "waiting": self.waiting(), "codes": self.codes})
    }

    fn verdict(&self, id: &str) -> Result<(), Error> {
        let others: Vec<_> = self.others().map(|(code, n)| format!("{n} {code}")).collect();
        if self.targeted == 0 {
            return Err(Error::failed("NotFound", format!("no gateway fits the condition of {id}")));
        }
        if others.is_empty() {
            return Ok(());
        }
        let message = format!("not all of {} gateways committed: {}", self.targeted, others.join(", "));
        Err(Error::failed("Internal", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_tell_when_it_is_over_and_how() {
        let rows = |codes: &[(&str, u64)]| {
            codes.iter().map(|(code, n)| json!({"code": code, "n": n})).collect::<Vec<_>>()
        };
        let all = [json!({"n": 5})];
        let counts = Counts::of(
            &all,
            &rows(&[("Committed", 1), ("AlreadyInstalled", 1), ("Accepted", 1), ("NotFound", 1)]),
        );
        assert_eq!(counts.line("fw"), "fw, 5 gateways: 2 committed, 1 running, 1 waiting, 1 NotFound");
        assert!(!counts.is_over());
        let counts = Counts::of(&all, &rows(&[("Committed", 4), ("HealthCheckFailed", 1)]));
        assert!(counts.is_over());
        assert!(counts.verdict("fw").unwrap_err().to_string().contains("1 HealthCheckFailed"));
        assert!(Counts::of(&all, &rows(&[("Committed", 5)])).verdict("fw").is_ok());
        assert!(Counts::of(&[], &[]).verdict("fw").is_err(), "nobody fits");
    }
}
