#!/usr/bin/env python3
"""Breaks the machine's rules one at a time and lets the crash explorer look for the harm.

Each break must be caught; one that is not means that the explorer would not notice that rule broken.
Prints the table of docs/testing.md. Arguments are words that the names of the breaks to try must have.
"""

import re
import subprocess
import sys

from piece import EXPLORER, Piece, environment

PIECE = Piece("rules", ["machine"])

BREAKS = [
    ("success is recorded before the commit is written", "machine/step.rs",
     "enter(record, Phase::Committing { plan: plan.clone() }, Effect::Commit(plan))",
     "committed(record, boot, &plan)"),
    ("preparing is left out: the slot is written as it is found", "machine/step.rs",
     "enter(record, Phase::Preparing { plan: plan.clone() }, Effect::Prepare(plan.clone()));",
     "enter(record, Phase::Staging { plan: plan.clone() }, Effect::Stage(plan.clone()));"),
    ("arming names the new slot primary", "machine/operation.rs",
     "BootEnv { primary: !self.target, trial: Some(trial), fallback: None }",
     "BootEnv { primary: self.target, trial: Some(trial), fallback: None }"),
    ("a trial is armed again when the agent starts in it", "machine/start.rs",
     "                trying(record, boot, plan.clone())\n", "                arm(record, boot, plan.clone(), true)\n"),
    ("the reboot is ordered again under a new boot id", "machine/start.rs",
     "Phase::Rebooting { boot_id, .. } if as_armed && boot_id == boot.boot_id => {",
     "Phase::Rebooting { .. } if plan.tries > 0 => {"),
    ("a power cut in the new slot counts as committed", "machine/start.rs",
     "            let failure = fell_back(&plan, seen.boots, trial.tries);\n            roll_back(record, boot, plan, failure)",
     "            committed(record, boot, &plan)"),
    ("a lost environment is rebuilt from what is booted, proven or not", "machine/start.rs",
     "let on_trial = mine && begun || !proven(booted) && proven(!booted);",
     "let on_trial = false && begun && mine && proven(booted);"),
    ("a new outcome takes the place of one that was not acknowledged", "machine/record.rs",
     "self.unreported = self.unreported.saturating_add(1).min(HISTORY);", "self.unreported = 1;"),
    ("cancelling works after arming", "machine/step.rs",
     "Event::Abandoned(failure) if record.phase.can_cancel()", "Event::Abandoned(failure) if !record.phase.is_idle()"),
    ("a save that fails while arming leaves the environment as it is", "machine/step.rs",
     "if record.phase.must_be_saved() { failed(", "if record.phase.must_be_saved() { ended_before_arming("),
    ("the desired section is not remembered together with its operation", "machine/step.rs",
     "    next.desired = desired;\n    (next, effect)", "    (next, effect)"),
    ("a changed section cuts short what a method began", "desired.rs",
     "let cancel = own.is_some() && record.phase.can_cancel();", "let cancel = record.phase.can_cancel();"),
    ("an outcome does not reach the section", "machine/record.rs",
     "            desired.ended(&operation.id, end.failure.as_ref());\n", "            let _ = desired;\n"),
    ("a record's word is enough to commit", "machine/start.rs",
     "(record.clone(), Some(Effect::Check(plan, first_of_boot(boot, 0, false))))",
     "(record.clone(), Some(Effect::Commit(plan)))"),
    ("a slot that the record calls proven is committed as it is", "machine/start.rs",
     "            _ => trying(&overtaken(record, boot), boot, Plan::unknown(booted)),",
     "            _ if record.slots.get(booted).state == SlotState::Proven => {\n"
     "                (record.clone(), Some(Effect::Rebuild(Plan::unknown(booted).env_committed())))\n"
     "            }\n            _ => trying(&overtaken(record, boot), boot, Plan::unknown(booted)),"),
    ("the way back is not ordered when the record of it was lost", "machine/start.rs",
     "enter(record, Phase::RollingBack { plan, failure, tried: true, rebooted }, Effect::Reboot)",
     "{ let _ = (rebooted, plan); ended_before_arming(record, boot, failure) }"),
]


def explore():
    """Runs the explorer until a search fails: (caught, what it said)."""
    for searches in EXPLORER:
        command = ["cargo", "test", "--quiet", "--profile", "explore", "--lib", "--", *searches]
        done = subprocess.run(command, cwd=PIECE.crate, env=environment(), capture_output=True, text=True, errors="replace")
        output = done.stdout + done.stderr
        if "could not compile" in output:
            sys.exit(output)
        if done.returncode:
            said = re.search(r"failed\b.*?panicked at [^\n]*\n([^\n]*)|panicked at [^\n]*\n([^\n]*)", output)
            return True, (said.group(1) or said.group(2))[:90] if said else "nothing"
    return False, "nothing"


def main():
    PIECE.lay()
    caught, said = explore()
    if caught:
        sys.exit(f"the explorer fails on the machine as it is: {said}")
    missed = 0
    print("| the rule that was broken | what the explorer said |\n|---|---|")
    wanted = [one for one in BREAKS if all(word in one[0] for word in sys.argv[1:])]
    for name, file, good, bad in wanted:
        path = PIECE.crate / "src" / file
        text = path.read_text()
        if good not in text:
            sys.exit(f"{file} no longer holds what {name!r} replaces")
        path.write_text(text.replace(good, bad, 1))
        caught, said = explore()
        missed += not caught
        print(f"| {name} | {said if caught else '**missed**'} |", flush=True)
        PIECE.lay()
    print(f"test result: {'ok' if missed == 0 else 'FAILED'}. {len(wanted) - missed} passed; {missed} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
