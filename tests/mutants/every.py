#!/usr/bin/env python3
"""Lets cargo-mutants change every operator, condition and function of the parts on which a gateway's life hangs, one
at a time. A mutant that no test notices must be explained in explained.toml: anything else is an assertion that is
missing, and fails the run.

Arguments are areas; without any, all of them. A run that was stopped goes on where it stopped, as long as the area's
code is the same; FRESH=1 begins anew.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

from piece import EXPLORER, PIECES, TESTS, Piece, environment

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = PIECES / "results"

MACHINE = Piece("machine", ["machine", "desired"])
RECORD = Piece("record", ["machine"], ["src/agent/tests.rs"])
STORE = Piece("store", ["store"])
MANIFEST = Piece("manifest", ["manifest", "bundle"])
SLOT = Piece("slot", ["stage"], inner=["buffer", "error", "progress", "slot", "workspace"])
STAGE = Piece("stage", ["stage"], whole_config=True)
BOOT = Piece("boot", ["boot"], ["tests/boot.rs"])

# Area: the files that are changed, and the tests, each with its piece and profile: they see only what those before miss.
AREAS = {
    "machine": (["src/machine/**"], [
        (MACHINE, "dev", ["--lib", "--", "--skip", "explorer"]),
        (RECORD, "explore", ["--lib", "--", "agent"]),
        *((MACHINE, "explore", ["--lib", "--", *part]) for part in EXPLORER)]),
    "store": (["src/store.rs", "src/store/**"], [(STORE, "dev", ["--lib"])]),
    "manifest": (["src/manifest.rs", "src/manifest/**"], [
        (MANIFEST, "dev", ["--lib", "--", "manifest::"]), (MANIFEST, "explore", ["--lib", "--", "bundle::"])]),
    "slot": (["src/stage/slot/**"], [
        (SLOT, "dev", ["--lib", "--", "slot::"]),
        (STAGE, "dev", ["--lib", "--", "on_faulty_media", "on_the_first_mib", "on_bad_media"])]),
    "boot": (["src/boot.rs", "src/boot/**"], [
        (BOOT, "dev", ["--lib", "--", "--skip", "damage_to_one_copy"]),
        (BOOT, "dev", ["--lib", "--", "damage_to_one_copy"]),
        (BOOT, "dev", ["--test", "boot"])]),
}

# How cargo-mutants ends when it came to the end.
MISSED, TIMED_OUT = 2, 3


def cargo(piece, *arguments, **more):
    return subprocess.run(["cargo", *arguments], cwd=piece.crate, env=environment(), text=True, **more)


def mutants(piece, globs):
    """Name of each mutant -> the text of the line that it changes."""
    command = ["mutants", "--no-config", "--list", "--json", *files(globs)]
    listed = json.loads(cargo(piece, *command, stdout=subprocess.PIPE, check=True).stdout)
    lines = {file: (piece.crate / file).read_text().splitlines() for file in {one["file"] for one in listed}}
    return {one["name"]: lines[one["file"]][one["span"]["start"]["line"] - 1].strip() for one in listed}


def files(globs):
    return [argument for glob in globs for argument in ("--file", glob)]


def judge(area, globs, piece, profile, tests, out):
    """Runs one kind of test on all mutants that no earlier one caught; not again if nothing has changed since."""
    laid = piece.lay()
    mark = digest([*map(str, sorted(laid.items())), profile, *tests])
    stamp = out / f"{piece.crate.name} {profile} {' '.join(tests)}".replace("/", "")
    if stamp.exists() and stamp.read_text() == mark:
        return
    profile = ["--profile", profile]
    print(f"== {area}: cargo test {' '.join(profile + tests)}", flush=True)
    limit = ["--timeout", str(patience(area, piece, [*profile, *tests]))]
    command = ["mutants", "--no-config", "--in-place", "--iterate", "--baseline", "skip", "--output", str(out)]
    ended = cargo(piece, *command, *limit, *profile, *files(globs), "--", *tests).returncode
    piece.lay()
    if ended not in (0, MISSED, TIMED_OUT):
        sys.exit(f"{area}: cargo-mutants ended with status {ended}")
    # Who goes round for ever was noticed, and is not to be waited for again.
    with (out / "mutants.out" / "caught.txt").open("a") as caught:
        caught.writelines(f"{name}\n" for name in sorted(names(out, ["timeout"])))
    stamp.write_text(mark)


def patience(area, piece, tests):
    """Seconds after which a mutant goes round for ever: several times what the tests take on the code as it is."""
    cargo(piece, "test", "--quiet", "--no-run", *tests)
    began = time.monotonic()
    if cargo(piece, "test", "--quiet", *tests, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"{area}: the tests fail on the code as it is")
    return 20 + 4 * round(time.monotonic() - began)


def digest(texts):
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def names(out, kinds):
    found = set()
    for kind in kinds:
        file = out / "mutants.out" / f"{kind}.txt"
        found |= set(file.read_text().splitlines()) if file.exists() else set()
    return found


def begin(area, laid, globs):
    """The folder of the area's results, empty if they are those of other code."""
    out = RESULTS / area
    changed = [glob.removesuffix("/**") for glob in globs]
    code = [path + TESTS.sub("", text).strip() for path, text in sorted(laid.items())
            if "/tests" not in path and any(path == one or path.startswith(one + "/") for one in changed)]
    mark = digest(code)
    stamp = out / "code"
    if os.environ.get("FRESH") or not stamp.exists() or stamp.read_text() != mark:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        stamp.write_text(mark)
    return out


def run(area, explained):
    """Judges the area; gives how many of its mutants were well, and those that were not."""
    globs, kinds = AREAS[area]
    first = kinds[0][0]
    out = begin(area, first.lay(), globs)
    every = mutants(first, globs)
    for piece, profile, tests in kinds:
        judge(area, globs, piece, profile, tests, out)
    unviable = names(out, ["unviable"])
    caught = names(out, ["caught", "previously_caught", "timeout"]) - unviable
    left = {name: line for name, line in every.items() if name not in caught | unviable}
    known = {name for name, line in left.items() if (re.sub(r":\d+:\d+:", ":", name), line) in explained}
    missed = sorted(set(left) - known)
    for name in missed:
        print(f"MISSED {name}\n       {every[name]}")
    print(f"{area}: {len(every)} mutants: {len(every) - len(left)} caught or not to be compiled, {len(known)} explained, "
          f"{len(missed)} missed", flush=True)
    return len(every) - len(missed), len(missed)


def main():
    if shutil.which("cargo-mutants") is None:
        sys.exit("cargo install cargo-mutants --version 27.1.0 --locked")
    unknown = set(sys.argv[1:]) - set(AREAS)
    if unknown:
        sys.exit(f"no such area: {', '.join(unknown)}; there are {', '.join(AREAS)}")
    listed = tomllib.loads((HERE / "explained.toml").read_text()).get("mutant", [])
    explained = {(one["name"], one["line"]) for one in listed}
    done = [run(area, explained) for area in sys.argv[1:] or AREAS]
    well, missed = sum(one[0] for one in done), sum(one[1] for one in done)
    print(f"test result: {'FAILED' if missed else 'ok'}. {well} passed; {missed} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
