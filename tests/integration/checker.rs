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

const ARMING: usize = 3;
const ROLLING_BACK: usize = 7;

/// What is known of one operation.
#[derive(Debug, Default)]
struct Story {
    phase: usize,
    percent: u64,
    downloaded: u64,
    patches: usize,
    outcome: Option<Value>,
    /// A later outcome took its place in the twin.
    past: bool,
}

/// What the hub was told so far.
#[derive(Default)]
struct Told {
    twin: Value,
    version: Option<u64>,
    log_time: String,
    stories: BTreeMap<String, Story>,
}

/// Panics at the first report that is false or goes backwards. `patches`: the most that an operation may cost.
pub fn check(history: &[ReportedPatch], patches: Option<usize>) {
    let mut told = Told::default();
    for (position, report) in history.iter().enumerate() {
        let judged = told.hear(report, patches.is_some());
        if let Err(why) = judged {
            let Told { twin, .. } = told;
            panic!("{why} in report {position}: {}\nseen {}\ntwin {twin}", report.patch, report.seen);
        }
    }
    let running = told.twin["fwupdate"]["operation"]["id"].as_str();
    for (id, story) in &told.stories {
        assert!(patches.is_none_or(|most| story.patches <= most), "{id} cost {} patches", story.patches);
        let ended = story.outcome.is_some() || running == Some(id);
        assert!(ended, "{id} was seen running and got no outcome: {story:?}");
    }
}

impl Told {
    fn hear(&mut self, report: &ReportedPatch, undisturbed: bool) -> Result<(), String> {
        if report.replaced {
            (self.twin, self.version) = (report.patch.clone(), Some(report.version));
            return Ok(());
        }
        // The first change of a twin that was made anew.
        if report.version == 2 && self.version >= Some(2) {
            (self.twin, self.version) = (Value::Null, None);
        }
        if self.version.is_some_and(|before| report.version != before + 1) {
            return Err(format!("version {} follows {:?}", report.version, self.version));
        }
        self.version = Some(report.version);
        let before = self.twin.clone();
        merge(&mut self.twin, &report.patch);
        if undisturbed && before == self.twin {
            return Err("a patch that says nothing new".into());
        }
        if report.size >= BYTES {
            return Err(format!("{} bytes", report.size));
        }
        let time = self.twin["logTime"].as_str().unwrap_or_default();
        if time < &*self.log_time {
            return Err(format!("logTime fell from {}", self.log_time));
        }
        self.log_time = time.to_owned();
        self.outcome_stays(&before["fwupdate"]["last"])?;
        judge(&self.twin, &report.seen, &mut self.stories)
    }

    /// An outcome that a later one replaced is not told again, and none is taken back.
    fn outcome_stays(&mut self, before: &Value) -> Result<(), String> {
        let (before, now) = (before["id"].as_str(), self.twin["fwupdate"]["last"]["id"].as_str());
        if before == now {
            return Ok(());
        }
        let Some(now) = now else { return Err("an outcome was taken back".into()) };
        if self.stories.get(now).is_some_and(|story| story.past) {
            return Err(format!("the outcome of {now} is told again after a later one"));
        }
        if let Some(story) = before.and_then(|id| self.stories.get_mut(id)) {
            story.past = true;
        }
        Ok(())
    }
}

fn judge(twin: &Value, seen: &Value, stories: &mut BTreeMap<String, Story>) -> Result<(), String> {
    let (status, ours) = (twin["firmwareStatus"].as_str().unwrap_or_default(), &twin["fwupdate"]);
    let (operation, last) = (&ours["operation"], &ours["last"]);
    let newly_ended = last["id"].as_str().filter(|id| stories.get(*id).is_none_or(|s| s.outcome.is_none()));
    if newly_ended.is_some() && operation.is_null() {
        on_disk(last, seen)?;
    }
    // A record that was lost takes the ends of its operations with it, and the gateway says that.
    if last["result"] == "unknown" {
        let lost =
            stories.iter_mut().filter(|(id, story)| operation["id"] != **id && story.outcome.is_none());
        lost.for_each(|(_, story)| story.outcome = Some(last.clone()));
    }
    if let Some(id) = operation["id"].as_str() {
        let others = stories.iter().filter(|(other, _)| *other != id);
        if let Some((other, _)) = others.into_iter().find(|(_, story)| story.outcome.is_none()) {
            // Its outcome may still wait for the one before it to be acknowledged; it may not be followed by progress.
            let follows = stories.get(id).is_some_and(|story| story.patches > 0);
            if follows && last["id"].as_str() != Some(other) {
                return Err(format!("{id} and {other} run at once"));
            }
        }
        let story = stories.entry(id.to_owned()).or_default();
        running(operation, status, story)?;
    }
    if let Some(id) = last["id"].as_str() {
        ended(last, stories.entry(id.to_owned()).or_default())?;
    }
    if operation.is_null() {
        at_rest(status, last)?;
    }
    Ok(())
}

/// An outcome that is told for the first time is what the gateway's disk shows: nothing is armed, and a success is
/// committed.
fn on_disk(last: &Value, seen: &Value) -> Result<(), String> {
    if last["result"] == "committed" && (seen["trial"] != "" || seen["primary"] != seen["booted"]) {
        return Err("success was reported before it was committed".into());
    }
    if seen["trial"].as_str().is_some_and(|trial| !trial.is_empty()) {
        return Err("an end was reported while a slot is on trial".into());
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
    (story.phase, story.percent, story.downloaded) = (phase, percent, downloaded);
    story.patches += 1;
    Ok(())
}

/// An operation has one outcome.
fn ended(last: &Value, story: &mut Story) -> Result<(), String> {
    if story.outcome.as_ref().is_some_and(|before| before != last) {
        return Err(format!("the outcome contradicts {story:?}"));
    }
    if story.outcome.is_none() {
        story.patches += 1;
        let impossible = match last["result"].as_str() {
            Some("cancelled") => story.phase >= ARMING,
            Some("committed") => story.phase >= ROLLING_BACK,
            _ => false,
        };
        if impossible {
            return Err(format!("{} cannot follow {story:?}", last["result"]));
        }
    }
    // A trial that no record explains was committed all the same.
    let good = last["result"] == "committed" || last["result"] == "unknown";
    if !good && last["error"]["code"].is_null() {
        return Err("an outcome that is no success gives no reason".into());
    }
    story.outcome = Some(last.clone());
    Ok(())
}

/// Nothing runs: the status is the last outcome's.
fn at_rest(status: &str, last: &Value) -> Result<(), String> {
    let expected = match last["result"].as_str() {
        None | Some("unknown") => "standBy",
        Some("committed") => "completed",
        Some(result) => result,
    };
    if status != expected {
        return Err(format!("the status should be {expected:?}"));
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
        let (time, size) = (String::new(), patch.to_string().len());
        ReportedPatch { time, version: 1, size, patch, seen, replaced: false }
    }

    /// The same reports with the versions that a hub gives them.
    fn told(reports: impl IntoIterator<Item = ReportedPatch>) -> Vec<ReportedPatch> {
        reports.into_iter().zip(1..).map(|(report, version)| ReportedPatch { version, ..report }).collect()
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
        told([running("1", "staging", 10), running("1", "trying", 100), end])
    }

    /// A good story, and then these reports.
    fn and_then(reports: impl IntoIterator<Item = ReportedPatch>) -> Vec<ReportedPatch> {
        told(good().into_iter().chain(reports))
    }

    #[test]
    fn a_true_story_passes() {
        check(&good(), Some(3));
        check(
            &and_then([running("2", "staging", 0), ended("2", "failed", "failed", on_slot("B", ""))]),
            Some(3),
        );
    }

    #[test]
    #[should_panic(expected = "before it was committed")]
    fn success_before_the_commit_is_found() {
        check(&[ended("1", "completed", "committed", on_slot("A", "B"))], None);
    }

    #[test]
    #[should_panic(expected = "on trial")]
    fn an_end_in_the_middle_of_a_trial_is_found() {
        check(&[ended("1", "rolledBack", "rolledBack", on_slot("A", "B"))], None);
    }

    #[test]
    #[should_panic(expected = "backwards")]
    fn progress_that_goes_back_is_found() {
        check(&told([running("1", "staging", 40), running("1", "staging", 0)]), None);
    }

    #[test]
    #[should_panic(expected = "contradicts")]
    fn a_second_outcome_is_found() {
        check(&and_then([ended("1", "rolledBack", "rolledBack", on_slot("B", ""))]), None);
    }

    #[test]
    #[should_panic(expected = "runs again")]
    fn a_dead_operation_that_walks_is_found() {
        check(&and_then([running("1", "trying", 100)]), None);
    }

    #[test]
    #[should_panic(expected = "told again")]
    fn an_old_outcome_that_comes_back_is_found() {
        let two = ended("2", "failed", "failed", on_slot("B", ""));
        let one = ended("1", "completed", "committed", on_slot("B", ""));
        check(&and_then([two, one]), None);
    }

    #[test]
    #[should_panic(expected = "taken back")]
    fn an_outcome_that_vanishes_is_found() {
        check(&and_then([report(json!({"fwupdate": {"last": null}}), Value::Null)]), None);
    }

    #[test]
    #[should_panic(expected = "cannot follow")]
    fn a_cancelled_trial_is_found() {
        let end = ended("1", "cancelled", "cancelled", on_slot("A", ""));
        check(&told([running("1", "trying", 100), end]), None);
    }

    #[test]
    #[should_panic(expected = "no outcome")]
    fn an_operation_without_an_outcome_is_found() {
        let end = ended("2", "failed", "failed", on_slot("A", ""));
        check(&told([running("1", "staging", 10), end]), None);
    }

    #[test]
    #[should_panic(expected = "run at once")]
    fn two_operations_at_once_are_found() {
        check(
            &told([running("1", "staging", 10), running("2", "staging", 0), running("2", "staging", 10)]),
            None,
        );
    }

    #[test]
    #[should_panic(expected = "follows")]
    fn a_report_that_is_missing_is_found() {
        check(&[running("1", "staging", 10), running("1", "staging", 20)], None);
    }

    #[test]
    #[should_panic(expected = "says nothing new")]
    fn an_idle_patch_is_found() {
        check(&told([running("1", "staging", 10), running("1", "staging", 10)]), Some(9));
    }

    #[test]
    #[should_panic(expected = "logTime fell")]
    fn a_clock_that_goes_back_is_found() {
        let at = |time: &str| report(json!({"firmwareStatus": "standBy", "logTime": time}), Value::Null);
        check(&told([at("2026-01-02T00:00:00Z"), at("2026-01-01T00:00:00Z")]), None);
    }

    #[test]
    fn a_twin_that_went_back_by_itself_is_no_lie_of_the_gateway() {
        let older = ReportedPatch { replaced: true, ..running("1", "staging", 10) };
        let mut story = and_then([older]);
        story[3].version = 1;
        let end = ended("1", "completed", "committed", on_slot("B", ""));
        story.push(ReportedPatch { version: 2, ..end });
        check(&story, None);
    }

    #[test]
    #[should_panic(expected = "cost 3 patches")]
    fn too_many_patches_are_found() {
        check(&good(), Some(2));
    }
}
