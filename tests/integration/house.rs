//! The rules of the house that no compiler keeps: who imports whom, that every file says what it is for, and that
//! every error code is explained to those who meet it.

mod arrows;
mod guide;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use arrows::Arrows;

/// Values and decisions.
const CORE: [&str; 12] = [
    "bounds",
    "bundle",
    "command",
    "desired",
    "failure",
    "lifecycle",
    "machine",
    "manifest",
    "plan",
    "report",
    "slot",
    "uri",
];
/// Settings, and what several edges need of the system.
const GROUND: [&str; 14] = [
    "backoff", "cause", "clock", "config", "device", "durable", "fault", "memory", "pkcs11", "programs",
    "reach", "root", "tls", "tunnel",
];
const EDGES: [&str; 6] = ["boot", "control", "health", "hub", "stage", "store"];
/// What a core without I/O and without a clock never says.
const IMPURE: [&str; 8] =
    ["tokio", "std::fs", "std::net", "std::process", "std::env", "SystemTime", "Instant", "now_utc"];

/// A file of Rust, by its path below the project's folder.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn all(folder: &str) -> Vec<Source> {
        let mut found = Vec::new();
        collect(&project().join(folder), &mut found);
        assert!(found.len() > 10, "the sources are not in {folder}");
        found
    }

    /// The top-level module that it belongs to; `None` for programs and for `lib.rs`.
    fn module(&self) -> Option<String> {
        let path = self.path.strip_prefix(project().join("src")).unwrap();
        let first = path.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
        (!["bin", "host", "lib"].contains(&first.as_str())).then_some(first)
    }

    /// The top-level modules that it names as `crate::...`.
    fn imports(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (at, prefix) in self.text.match_indices("crate::") {
            let rest = &self.text[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_heads(group)),
                None => found.extend(identifier(rest)),
            }
        }
        found
    }

    /// Without the tests below the code.
    fn product(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests {").next().unwrap()
    }

    /// Lies in one of the two layouts of tests, `x/tests.rs` with what is below it, or among their helpers.
    fn is_test(&self) -> bool {
        let of_tests = |name: &str| ["tests", "testing"].contains(&name.trim_end_matches(".rs"));
        self.path.components().any(|part| part.as_os_str().to_str().is_some_and(of_tests))
    }
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(Source { text: fs::read_to_string(&path).unwrap(), path });
        }
    }
}

fn identifier(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// The first name of each item of a `use crate::{...}` group, nested groups left aside.
fn group_heads(text: &str) -> Vec<String> {
    let (mut depth, mut item, mut heads) = (0, String::new(), Vec::new());
    for c in text.chars() {
        match (c, depth) {
            ('{', _) => depth += 1,
            ('}', 0) => break,
            ('}', _) => depth -= 1,
            (',', 0) => heads.extend(identifier(std::mem::take(&mut item).trim())),
            _ if depth == 0 => item.push(c),
            _ => {}
        }
    }
    heads.extend(identifier(item.trim()));
    heads
}

/// What a module may import beside itself; `None` for one that has no place yet.
fn allowed(module: &str) -> Option<Vec<&'static str>> {
    let settings = ["config"];
    match module {
        "report" => Some(CORE.to_vec()),
        // They know what they are given, and nothing of the agent.
        "cli" | "pages" => Some(Vec::new()),
        _ if CORE.contains(&module) => Some([&CORE[..], &settings].concat()),
        _ if GROUND.contains(&module) => Some([&CORE[..], &GROUND].concat()),
        _ if EDGES.contains(&module) => Some([&CORE[..], &GROUND].concat()),
        "agent" => Some([&CORE[..], &GROUND, &EDGES].concat()),
        _ => None,
    }
}

#[test]
fn imports_run_one_way() {
    let modules: BTreeSet<&str> = [&CORE[..], &GROUND, &EDGES, &["agent"]].concat().into_iter().collect();
    for source in Source::all("src") {
        let Some(module) = source.module() else { continue };
        let allowed = allowed(&module).unwrap_or_else(|| {
            panic!("{module} has no place: core, ground or edge? docs/architecture.md and this file say")
        });
        for import in source.imports().into_iter().filter(|name| modules.contains(name.as_str())) {
            let fine = import == module || allowed.contains(&import.as_str());
            assert!(fine, "{} may not import {import}", source.path.display());
        }
    }
}

/// What a folder of `stage` may import of the others.
const STAGE: [(&str, &[&str]); 4] = [
    ("slot", &[]),
    ("download", &[]),
    ("sources", &["download"]),
    ("apply", &["sources", "download", "slot"]),
];

#[test]
fn the_folders_of_stage_import_one_way() {
    for (from, all) in &Arrows::read().all {
        let own = stage_folder(from);
        for to in all.iter().filter_map(|to| stage_folder(to).map(|folder| (to, folder))) {
            let listed = STAGE.iter().find(|(folder, _)| Some(*folder) == own).map(|(_, allowed)| *allowed);
            // What lies beside the folders is either the story, which has all of them, or what all of them stand on.
            let allowed = match own {
                Some(own) => own == to.1 || listed.is_some_and(|allowed| allowed.contains(&to.1)),
                None => ["stage.rs", "stage/parsers.rs"].contains(&from.as_str()),
            };
            assert!(allowed, "{from} may not import {}", to.0);
        }
    }
}

fn stage_folder(file: &str) -> Option<&str> {
    let folder = file.strip_prefix("stage/")?.split(['/', '.']).next()?;
    STAGE.iter().map(|(name, _)| *name).find(|name| *name == folder)
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles: Vec<String> = Arrows::read().circles().iter().map(|circle| circle.join(" -> ")).collect();
    assert!(circles.is_empty(), "files import each other:\n{}", circles.join("\n"));
}

#[test]
fn the_core_does_no_io_and_has_no_clock() {
    let core = |source: &Source| source.module().is_some_and(|module| CORE.contains(&module.as_str()));
    for source in Source::all("src").iter().filter(|source| core(source) && !source.is_test()) {
        for word in IMPURE {
            assert!(!source.product().contains(word), "{} uses {word}", source.path.display());
        }
    }
}

/// What a gateway carries is the library and `src/bin`; what makes bundles and orders updates is in `src/host`.
#[test]
fn nothing_of_the_hosts_tools_runs_on_the_device() {
    let manifest = fs::read_to_string(project().join("Cargo.toml")).unwrap();
    let (host, _) = manifest.split_once("host = [").unwrap().1.split_once(']').unwrap();
    let own: Vec<&str> = host.split('"').filter_map(|item| item.strip_prefix("dep:")).collect();
    assert!(own.contains(&"reqwest"), "{host}");
    for source in
        Source::all("src").iter().filter(|source| !source.path.starts_with(project().join("src/host")))
    {
        for package in &own {
            assert!(
                !source.text.contains(&format!("{package}::")),
                "{} uses {package}",
                source.path.display()
            );
        }
    }
    for program in manifest.split("[[bin]]").skip(1).filter(|program| program.contains("\"src/host/")) {
        assert!(program.contains("required-features = [\"host\"]"), "{program}");
    }
}

#[test]
fn the_stand_in_shares_no_code_with_the_agent() {
    for source in Source::all("tests/hub") {
        for word in ["fwupdate::", "extern crate fwupdate;"] {
            assert!(!source.text.contains(word), "{} uses the agent's crate", source.path.display());
        }
    }
    let manifest = fs::read_to_string(project().join("tests/hub/Cargo.toml")).unwrap();
    let depends = manifest.lines().any(|line| line.split(['=', '.']).next().unwrap().trim() == "fwupdate");
    assert!(!depends, "fwupdate-hub depends on the agent's crate");
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["src", "tests"] {
        for source in Source::all(folder) {
            assert!(source.text.starts_with("//! "), "{} does not open with //!", source.path.display());
        }
    }
}

/// Most lines of a file, and of a function of the product.
const FILE: usize = 400;
const FUNCTION: usize = 60;

#[test]
fn files_and_functions_are_short() {
    for source in Source::all("src") {
        let file = source.path.strip_prefix(project().join("src")).unwrap().display().to_string();
        let lines = source.text.lines().count();
        assert!(lines <= FILE, "{file} has {lines} lines: cut it where its meaning cuts");
        for (name, lines) in functions(source.product()).filter(|_| !file.contains("test")) {
            assert!(lines <= FUNCTION, "{name} in {file} has {lines} lines: give its parts names");
        }
    }
}

/// Each function with the number of its lines, by the indentation that rustfmt gives.
fn functions(text: &str) -> impl Iterator<Item = (&str, usize)> {
    text.match_indices("fn ").filter_map(move |(at, _)| {
        let begin = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = text[begin..at].trim_start();
        let words = ["pub", "pub(super)", "pub(crate)", "const", "async", "unsafe"];
        if !before.split_whitespace().all(|word| words.contains(&word)) {
            return None;
        }
        let indent = &text[begin..at - before.len()];
        let body = &text[begin..];
        let end = body.find(&format!("\n{indent}}}\n"))?;
        let signature = body.split(['{', ';']).next().unwrap();
        let is_one = body[signature.len()..].starts_with("{\n");
        let name = text[at + 3..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
        is_one.then(|| (name, body[..end].lines().count() + 1))
    })
}

#[test]
fn the_lines_of_functions_are_counted() {
    let text = "trait T {\n    fn a();\n\n    fn b() {\n        c()\n    }\n}\n\npub async fn d() -> u8 {\n    1\n}\n";
    assert_eq!(functions(text).collect::<Vec<_>>(), [("b", 3), ("d", 3)]);
}

#[test]
fn no_arithmetic_on_what_comes_from_outside_can_panic() {
    const LINT: &str = "clippy::arithmetic_side_effects";
    let map = fs::read_to_string(project().join("src/lib.rs")).unwrap();
    assert!(
        map.contains(&format!("#![cfg_attr(not(test), deny({LINT}))]")),
        "src/lib.rs does not deny {LINT}"
    );
    for source in Source::all("src") {
        let (said, own) = (source.product().matches(LINT).count(), source.path.ends_with("src/lib.rs"));
        assert_eq!(said, usize::from(own), "{} lets arithmetic go unchecked", source.path.display());
    }
}

#[test]
fn every_error_code_is_explained() {
    let code = fs::read_to_string(project().join("src/failure.rs")).unwrap();
    let variants = code.split_once("pub enum Code {").unwrap().1.split_once("\n}").unwrap().0;
    let codes: Vec<&str> = variants
        .lines()
        .filter_map(|line| line.trim().strip_suffix(','))
        .filter(|name| name.chars().all(char::is_alphanumeric))
        .collect();
    assert!(codes.len() >= 27 && codes.contains(&"Internal"), "{codes:?}");
    let help = fs::read_to_string(project().join("docs/troubleshooting.md")).unwrap();
    for code in codes {
        assert!(help.contains(&format!("`{code}`")), "{code} is not in docs/troubleshooting.md");
    }
}

#[test]
fn groups_of_imports_are_read() {
    let text = "use crate::{hub, stage::{self, Meter}, \n store};\nuse crate::plan::plan;\n".to_owned();
    let source = Source { path: PathBuf::new(), text };
    assert_eq!(source.imports().into_iter().collect::<Vec<_>>(), ["hub", "plan", "stage", "store"]);
}
