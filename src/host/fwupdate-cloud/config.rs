//! Automatic device configurations: the hub itself tells every gateway that fits, also those that come later.
//!
//! What a gateway made of it stands in its `fwupdate.desired`, by which metrics and live counts are kept.
//! Reference: "Automatic device and module management", REST version 2021-04-12.

mod counts;

use std::io::Write;
use std::path::Path;

use fwupdate::cli::plain::plain;
use fwupdate::uri::PackageUri;
use serde_json::{Map, Value, json};

use self::counts::{follow, watched};
use crate::args::{Apply, Args, Config};
use crate::error::Error;
use crate::fields::{REPORTED, SECTION, quoted, text, update};
use crate::output::print;
use crate::pin;
use crate::rollout::condition;
use crate::service::{Service, read_text};

pub async fn perform(
    args: &Args,
    service: &Service,
    asked: &Config,
    out: &mut impl Write,
) -> Result<(), Error> {
    match asked {
        Config::Apply(asked) => apply(args, service, asked, out).await,
        Config::Show { id, watch: true } => follow(service, &read(service, id).await?, args.json, out).await,
        Config::Show { id, watch: false } => {
            let found = read(service, id).await?;
            print(args, &found, &shown(&found), out)
        }
        Config::List => {
            let all = service.configurations().await?;
            let lines: String = all.iter().map(line).collect();
            let lines = if lines.is_empty() { "No configuration.\n" } else { &lines };
            print(args, &Value::Array(all), lines, out)
        }
        Config::Delete { id, cancel } => delete(args, service, id, *cancel, out).await,
    }
}

async fn read(service: &Service, id: &str) -> Result<Value, Error> {
    let missing = || {
        Error::failed("NotFound", format!("there is no configuration {id}: see `fwupdate-cloud config list`"))
    };
    service.configuration(id).await?.ok_or_else(missing)
}

async fn apply(args: &Args, service: &Service, asked: &Apply, out: &mut impl Write) -> Result<(), Error> {
    let mut wanted = wanted(asked)?;
    if asked.watch {
        watched(&wanted)?;
    }
    let id = text(&wanted, "/id").unwrap_or_default().to_owned();
    let told = service
        .test_queries(json!({
            "targetCondition": wanted.get("targetCondition"),
            "customMetricQueries": wanted.pointer("/metrics/queries"),
        }))
        .await?;
    refuse_wrong(&told)?;
    let kept = service.configuration(&id).await?;
    match &kept {
        // It was made without a pin, and cannot be given one.
        Some(kept) if content(kept) == content(&wanted) => {}
        Some(kept) => {
            pin(args, asked, &mut wanted).await?;
            refuse_other_content(&id, kept, &wanted)?;
        }
        None => pin(args, asked, &mut wanted).await?,
    }
    let etag = kept.as_ref().and_then(|kept| text(kept, "/etag"));
    let applied = service.put_configuration(&id, wanted, etag).await?;
    let verb = if kept.is_some() { "changed" } else { "made" };
    if asked.watch {
        return follow(service, &applied, args.json, out).await;
    }
    let told = format!("Configuration {} is {verb}; the hub tells each gateway that fits.\n", plain(&id));
    print(args, &applied, &told, out)
}

/// Pins the bundle that the section names.
async fn pin(args: &Args, asked: &Apply, wanted: &mut Value) -> Result<(), Error> {
    let section = wanted.pointer_mut("/content/deviceContent").and_then(|content| content.get_mut(SECTION));
    match section {
        Some(Value::Object(update)) => pin::add(args, &asked.pinning, update).await,
        None | Some(Value::Null) => Ok(()),
        Some(_) => {
            Err(Error::Usage(format!("{SECTION} must be an object with the fields of firmwareUpdate")))
        }
    }
}

/// The document that the hub shall hold.
fn wanted(asked: &Apply) -> Result<Value, Error> {
    let mut wanted = match (&asked.file, &asked.id, &asked.query, &asked.uri) {
        (Some(file), ..) => from_file(file)?,
        (None, Some(id), Some(query), Some(uri)) => from_arguments(id, query, uri, asked)?,
        _ => return Err(Error::Usage("name a FILE, or --id, --query, --uri and --version".into())),
    };
    let version = update(&wanted).and_then(|update| text(update, "/version")).map(str::to_owned);
    let has_metrics = wanted.pointer("/metrics/queries").is_some_and(|queries| !queries.is_null());
    if let (Some(version), false, Some(fields)) = (version, has_metrics, wanted.as_object_mut()) {
        fields.insert("metrics".into(), json!({"queries": metrics(&version)}));
    }
    Ok(wanted)
}

fn from_file(file: &Path) -> Result<Value, Error> {
    let wrong = |why: String| Error::Usage(format!("{}: {why}", file.display()));
    let content = read_text(file).map_err(|why| wrong(format!("it cannot be read ({why})")))?;
    let document: Value =
        serde_json::from_str(&content).map_err(|why| wrong(format!("it is no JSON: {why}")))?;
    if text(&document, "/id").is_none() {
        return Err(wrong("a configuration has an \"id\"".into()));
    }
    // What the hub adds when it is asked, and does not take back.
    let own = ["id", "content", "targetCondition", "priority", "labels", "metrics", "schemaVersion"];
    let mut fields = document.as_object().cloned().unwrap_or_default();
    fields.retain(|name, value| own.contains(&name.as_str()) && !value.is_null());
    if let Some(metrics) = fields.get_mut("metrics").and_then(Value::as_object_mut) {
        metrics.remove("results");
    }
    Ok(Value::Object(fields))
}

fn from_arguments(id: &str, query: &str, uri: &str, asked: &Apply) -> Result<Value, Error> {
    let mut update = asked.options.fields();
    if !update.contains_key("version") {
        let message = "give --version, too: gateways that run it already then do nothing";
        return Err(Error::Usage(message.into()));
    }
    update.insert("fwPackageUri".into(), uri.into());
    let label = |label: &String| {
        let (key, value) = label.split_once('=')?;
        Some((key.to_owned(), Value::from(value)))
    };
    let labels: Option<Map<_, _>> = asked.labels.iter().map(label).collect();
    let labels = labels.ok_or_else(|| Error::Usage("a --label is KEY=VALUE".into()))?;
    Ok(json!({
        "id": id,
        "content": {"deviceContent": {SECTION: update}},
        "targetCondition": condition(query),
        "priority": asked.priority,
        "labels": labels,
    }))
}

/// What success and failure are, as queries that the hub counts by itself.
fn metrics(version: &str) -> Value {
    let version = quoted(version);
    let told = format!("SELECT deviceId FROM devices WHERE {REPORTED}.desired.version = {version}");
    let code = format!("{REPORTED}.desired.code");
    let other = ["Accepted", "Committed", "AlreadyInstalled", "Superseded"];
    let other: Vec<_> = other.iter().map(|known| format!("{code} != '{known}'")).collect();
    let back = format!("{REPORTED}.last.result = 'rolledBack' AND {REPORTED}.last.toVersion = {version}");
    json!({
        "committed": format!("{told} AND ({code} = 'Committed' OR {code} = 'AlreadyInstalled')"),
        "running": format!("{told} AND {code} = 'Accepted'"),
        "failed": format!("{told} AND {}", other.join(" AND ")),
        "rolledBack": format!("{told} AND {back}"),
    })
}

fn refuse_wrong(told: &Value) -> Result<(), Error> {
    if let Some(why) = text(told, "/targetConditionError").filter(|why| !why.is_empty()) {
        return Err(Error::Usage(format!("the hub does not take the condition: {why}")));
    }
    let wrong = told.get("customMetricQueryErrors").and_then(Value::as_object);
    match wrong.and_then(|wrong| wrong.iter().next()) {
        None => Ok(()),
        Some((name, why)) => Err(Error::Usage(format!(
            "the hub does not take the metric {name}: {}",
            why.as_str().unwrap_or("?")
        ))),
    }
}

/// IoT Hub never changes a content.
fn refuse_other_content(id: &str, kept: &Value, wanted: &Value) -> Result<(), Error> {
    if content(kept) == content(wanted) {
        return Ok(());
    }
    let message = format!(
        "the hub does not change the content of a configuration, and {id} has another one: choose another id with a \
         higher priority, and delete {id} afterwards"
    );
    Err(Error::Refused { code: "NotPermitted".into(), message })
}

fn content(document: &Value) -> Option<&Value> {
    document.pointer("/content/deviceContent")
}

async fn delete(
    args: &Args,
    service: &Service,
    id: &str,
    cancel: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let found = read(service, id).await?;
    let version = update(&found).and_then(|update| text(update, "/version"));
    let job = match (cancel, version) {
        (false, _) => None,
        (true, Some(version)) => Some(taking_back(version)),
        (true, None) => {
            let message =
                format!("{id} names no version, so --cancel cannot tell whom it told: set fwupdate to null");
            return Err(Error::Usage(message));
        }
    };
    service.delete_configuration(id).await?;
    let job = match job {
        None => Value::Null,
        Some(order) => {
            let job = format!("fwupdate-cancel-{:016x}", fastrand::u64(..));
            service.order_job(&job, order).await?;
            Value::from(job)
        }
    };
    let then = job.as_str().map(|job| format!(" Job {job} takes the update back from those it told."));
    let told = format!("Configuration {} is deleted.{}\n", plain(id), then.unwrap_or_default());
    print(args, &json!({"deleted": id, "job": job}), &told, out)
}

/// A job that clears the section where it names this version.
fn taking_back(version: &str) -> Value {
    json!({
        "type": "scheduleUpdateTwin",
        "updateTwin": {"etag": "*", "properties": {"desired": {"fwupdate": null}}},
        "queryCondition": format!("{SECTION}.version = {}", quoted(version)),
        "startTime": crate::rollout::now(),
        "maxExecutionTimeInSeconds": 3600,
    })
}

/// One configuration as a line of the list.
fn line(one: &Value) -> String {
    let version = update(one).and_then(|update| text(update, "/version")).unwrap_or("-");
    let line = format!(
        "{:<24} {:<10} priority {}, {} of {} told, for {}",
        text(one, "/id").unwrap_or("-"),
        version,
        one.get("priority").unwrap_or(&Value::Null),
        metric(one, "/systemMetrics/results/appliedCount"),
        metric(one, "/systemMetrics/results/targetedCount"),
        text(one, "/targetCondition").filter(|condition| !condition.is_empty()).unwrap_or("nobody"),
    );
    plain(&line) + "\n"
}

fn metric(one: &Value, pointer: &str) -> String {
    one.pointer(pointer).and_then(Value::as_u64).map_or_else(|| "?".into(), |n| n.to_string())
}

/// One configuration in full; metrics are as old as the hub's last count.
fn shown(one: &Value) -> String {
    let mut lines = vec![
        ("Id", text(one, "/id").unwrap_or("-").to_owned()),
        ("For", text(one, "/targetCondition").unwrap_or("-").to_owned()),
        ("Priority", one.get("priority").map(Value::to_string).unwrap_or_default()),
        ("Made", text(one, "/createdTimeUtc").unwrap_or("-").to_owned()),
        ("Targeted", metric(one, "/systemMetrics/results/targetedCount")),
        ("Applied", metric(one, "/systemMetrics/results/appliedCount")),
    ];
    if let Some(update) = update(one) {
        lines.push(("Version", text(update, "/version").unwrap_or("-").to_owned()));
        let uri = text(update, "/fwPackageUri").unwrap_or("-");
        lines.push(("From", PackageUri::from(uri).shown()));
        lines.push(("Manifest", text(update, "/manifestSha256").unwrap_or("not pinned").to_owned()));
    }
    let mut out: String =
        lines.into_iter().map(|(label, value)| format!("{label:<12}{}\n", plain(&value))).collect();
    for (group, label) in [("/labels", "Label"), ("/metrics/results", "Metric")] {
        for (name, value) in one.pointer(group).and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            out += &format!("{label:<12}{}\n", plain(&format!("{name} = {value}")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;
    use crate::args::Command;

    fn document(line: &str) -> Result<Value, Error> {
        let args =
            Args::try_parse_from(["fwupdate-cloud", "config", "apply"].into_iter().chain(line.split(' ')))
                .map_err(|why| Error::Usage(why.to_string()))?;
        let Command::Config(Config::Apply(apply)) = args.command else { panic!("{args:?}") };
        wanted(&apply)
    }

    #[test]
    fn arguments_become_a_configuration_with_metrics() {
        let line = "--id fw-2 --query * --uri https://h/2.fwb --version 2.0.0 --priority 7 --label a=b=c";
        let wanted = document(line).unwrap();
        let update = json!({"fwPackageUri": "https://h/2.fwb", "version": "2.0.0"});
        assert_eq!(wanted["content"], json!({"deviceContent": {"properties.desired.fwupdate": update}}));
        assert_eq!(
            (&wanted["id"], &wanted["targetCondition"], &wanted["priority"], &wanted["labels"]),
            (&json!("fw-2"), &json!("*"), &json!(7), &json!({"a": "b=c"}))
        );
        let names: Vec<_> = wanted["metrics"]["queries"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["committed", "failed", "rolledBack", "running"]);
        assert!(wanted["metrics"]["queries"]["running"].as_str().unwrap().contains("version = '2.0.0' AND"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (line, named) in [
            ("--id fw --query * --uri https://h/2.fwb", "--version"),
            ("--id fw --query *", "--uri"),
            ("--query * --uri https://h/2 --version 2", "--id"),
            ("file.json --id fw", "--id"),
            ("/nonexistent.json", "/nonexistent.json"),
            ("--id fw --query * --uri https://h/2 --version 2 --label x", "KEY=VALUE"),
        ] {
            let why = document(line).unwrap_err().to_string();
            assert!(why.contains(named), "{line}: {why}");
        }
    }

    #[test]
    fn a_file_may_be_what_the_hub_showed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.json");
        let shown = json!({"id": "fw", "etag": "x", "createdTimeUtc": "now", "systemMetrics": {}, "labels": null,
            "content": {"deviceContent": {}}, "metrics": {"queries": {"m": "SELECT"}, "results": {"m": 1}}});
        fs::write(&file, shown.to_string()).unwrap();
        let wanted = document(file.to_str().unwrap()).unwrap();
        let expected =
            json!({"id": "fw", "content": {"deviceContent": {}}, "metrics": {"queries": {"m": "SELECT"}}});
        assert_eq!(wanted, expected);
    }

    #[test]
    fn a_quote_cannot_leave_its_string() {
        assert!(
            metrics("2' OR '1' = '1")["running"].as_str().unwrap().contains("= '2'' OR ''1'' = ''1' AND")
        );
    }

    #[test]
    fn another_content_needs_another_configuration() {
        let with = |version: &str| json!({"content": {"deviceContent": {SECTION: {"version": version}}}});
        assert!(refuse_other_content("fw", &with("1"), &with("1")).is_ok());
        assert_eq!(refuse_other_content("fw", &with("1"), &with("2")).unwrap_err().exit(), 3);
    }
}
