//! Was every report true? Replays what the hub was told, patch by patch, and holds it against what the witness saw
//! on disk at that moment: the boot environment and the slot that is booted.

use std::collections::BTreeMap;

use fwupdate_hub::history::ReportedPatch;
use serde_json::Value;

/// Most patches that one undisturbed update may cost, and the bytes below which each must stay.
pub const PATCHES: usize = 20;
const BYTES: usize = 4096;

const PHASES: [&str; 8] =
    ["preparing", "staging", "holding", "arming", "rebooting", "trying", "committing", "rollingBack"];

/// What is known of one operation.
#[derive(Debug, Default)]
struct Story {
    phase: usize,
    percent: u64,
    downloaded: u64,
    patches: usize,
    outcome: Option<Value>,
}

/// Panics at the first report that is false or goes backwards. `patches`: the most that an operation may cost.
pub fn check(history: &[ReportedPatch], patches: Option<usize>) {
    let (mut twin, mut stories) = (Value::Null, BTreeMap::<String, Story>::new());
    for (position, report) in history.iter().enumerate() {
        merge(&mut twin, &report.patch);
        let at = || format!("report {position}: {}\nseen {}\ntwin {twin}", report.patch, report.seen);
        assert!(report.size < BYTES, "{} bytes in {}", report.size, at());
        if let Err(why) = judge(&twin, &report.seen, &mut stories) {
            panic!("{why} in {}", at());
        }
    }
    for (id, story) in stories {
        assert!(patches.is_none_or(|most| story.patches <= most), "{id} cost {} patches", story.patches);
    }
}

fn judge(twin: &Value, seen: &Value, stories: &mut BTreeMap<String, Story>) -> Result<(), String> {
    let (status, ours) = (twin["firmwareStatus"].as_str().unwrap_or_default(), &twin["fwupdate"]);
    let (operation, last) = (&ours["operation"], &ours["last"]);
    if let Some(id) = operation["id"].as_str() {
        let story = stories.entry(id.to_owned()).or_default();
        running(operation, status, story)?;
    }
    if let Some(id) = last["id"].as_str() {
        ended(last, stories.entry(id.to_owned()).or_default())?;
    }
    if operation.is_null() {
        at_rest(status, last, seen)?;
    }
    Ok(())
}

/// A running operation only ever goes on.
fn running(operation: &Value, status: &str, story: &mut Story) -> Result<(), String> {
    let name = operation["phase"].as_str().unwrap_or_default();
    let phase = PHASES.iter().position(|phase| *phase == name).ok_or(format!("unknown phase {name:?}"))?;
    let number = |field: &str| operation[field].as_u64().unwrap_or_default();
    let (percent, downloaded) = (number("percent"), number("downloadedBytes"));
    if story.outcome.is_some() {
        return Err("an operation that had ended runs again".into());
    }
    if phase < story.phase || percent < story.percent || downloaded < story.downloaded {
        return Err(format!("backwards: before it was {story:?}"));
    }
    let expected = if phase < 3 { "downloading" } else { "applying" };
    if status != expected {
        return Err(format!("{name} is {expected}, not {status}"));
    }
    *story = Story { phase, percent, downloaded, patches: story.patches + 1, outcome: None };
    Ok(())
}

/// An operation has one outcome.
fn ended(last: &Value, story: &mut Story) -> Result<(), String> {
    if story.outcome.as_ref().is_some_and(|before| before != last) {
        return Err(format!("the outcome contradicts {story:?}"));
    }
    if story.outcome.is_none() {
        story.patches += 1;
    }
    // A trial that no record explains was committed all the same.
    let good = last["result"] == "committed" || last["result"] == "unknown";
    if !good && last["error"]["code"].is_null() {
        return Err("an outcome that is no success gives no reason".into());
    }
    story.outcome = Some(last.clone());
    Ok(())
}

/// Nothing runs: the status is the last outcome's, and a success is on disk.
fn at_rest(status: &str, last: &Value, seen: &Value) -> Result<(), String> {
    let expected = match last["result"].as_str() {
        None | Some("unknown") => "standBy",
        Some("committed") => "completed",
        Some(result) => result,
    };
    if status != expected {
        return Err(format!("the status should be {expected:?}"));
    }
    let proven = seen["trial"] == "" && seen["primary"] == seen["booted"];
    if status == "completed" && !proven {
        return Err("success was reported before it was committed".into());
    }
    Ok(())
}

/// What the hub does with a patch: objects merge, null deletes.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in fields {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(patch: Value, seen: Value) -> ReportedPatch {
        ReportedPatch { time: String::new(), version: 1, size: patch.to_string().len(), patch, seen }
    }

    fn running(id: &str, phase: &str, percent: u64) -> ReportedPatch {
        let status = if matches!(phase, "preparing" | "staging") { "downloading" } else { "applying" };
        let operation = json!({"id": id, "phase": phase, "percent": percent});
        report(json!({"firmwareStatus": status, "fwupdate": {"operation": operation}}), Value::Null)
    }

    fn ended(id: &str, status: &str, result: &str, seen: Value) -> ReportedPatch {
        let last = json!({"id": id, "result": result, "error": {"code": "X"}});
        report(json!({"firmwareStatus": status, "fwupdate": {"operation": null, "last": last}}), seen)
    }

    fn on_slot(primary: &str, trial: &str) -> Value {
        json!({"primary": primary, "trial": trial, "booted": "B"})
    }

    fn good() -> Vec<ReportedPatch> {
        let end = ended("1", "completed", "committed", on_slot("B", ""));
        vec![running("1", "staging", 10), running("1", "trying", 100), end]
    }

    #[test]
    fn a_true_story_passes() {
        check(&good(), Some(3));
    }

    #[test]
    #[should_panic(expected = "before it was committed")]
    fn success_before_the_commit_is_found() {
        check(&[ended("1", "completed", "committed", on_slot("A", "B"))], None);
    }

    #[test]
    #[should_panic(expected = "backwards")]
    fn progress_that_goes_back_is_found() {
        check(&[running("1", "staging", 40), running("1", "staging", 0)], None);
    }

    #[test]
    #[should_panic(expected = "contradicts")]
    fn a_second_outcome_is_found() {
        let mut story = good();
        story.push(ended("1", "rolledBack", "rolledBack", on_slot("B", "")));
        check(&story, None);
    }

    #[test]
    #[should_panic(expected = "runs again")]
    fn a_dead_operation_that_walks_is_found() {
        let mut story = good();
        story.push(running("1", "trying", 100));
        check(&story, None);
    }

    #[test]
    #[should_panic(expected = "cost 3 patches")]
    fn too_many_patches_are_found() {
        check(&good(), Some(2));
    }
}
