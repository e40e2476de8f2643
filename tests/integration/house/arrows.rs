//! Which file of `src` imports which: `use` statements and paths in the code, of what is no test. A path leads to the
//! deepest module that it names, so what is taken from a module's own file by way of its parent is an arrow to the
//! parent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Source, project};

/// Arrows between files, named by their paths below `src`.
pub struct Arrows {
    pub all: BTreeMap<String, BTreeSet<String>>,
}

/// The files of one crate by the paths of their modules (`stage::slot`, nothing for the root).
struct Crate {
    files: BTreeMap<String, Source>,
}

impl Arrows {
    /// Of the library and of each program.
    pub fn read() -> Arrows {
        let mut crates: BTreeMap<PathBuf, Vec<Source>> = BTreeMap::new();
        for source in Source::all("src") {
            crates.entry(root_of(&source.path)).or_default().push(source);
        }
        let mut all = BTreeMap::new();
        for (root, sources) in crates {
            let files = sources.into_iter().map(|source| (module_of(&root, &source.path), source)).collect();
            Crate { files }.arrows(&mut all);
        }
        Arrows { all }
    }

    /// One way from a file back to it, for each circle that is found.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let mut left: BTreeSet<&str> = self.all.keys().map(String::as_str).collect();
        let mut circles = Vec::new();
        while let Some(first) = left.pop_first() {
            if let Some(way) = self.way(first, first, &left) {
                circles.push(way);
            }
        }
        circles
    }

    /// The shortest way through `among`.
    fn way(&self, from: &str, to: &str, among: &BTreeSet<&str>) -> Option<Vec<String>> {
        let mut ways: Vec<Vec<String>> = vec![vec![from.to_owned()]];
        let mut seen = BTreeSet::new();
        let mut next = 0;
        while let Some(way) = ways.get(next).cloned() {
            next += 1;
            for file in self.all.get(way.last().unwrap()).into_iter().flatten() {
                if file == to {
                    return Some([way, vec![to.to_owned()]].concat());
                }
                if among.contains(file.as_str()) && seen.insert(file.clone()) {
                    ways.push([way.clone(), vec![file.clone()]].concat());
                }
            }
        }
        None
    }
}

impl Crate {
    fn arrows(&self, all: &mut BTreeMap<String, BTreeSet<String>>) {
        let tests = self.tests();
        let is_product = |module: &str| !tests.iter().any(|test| within(module, test));
        for (module, source) in self.files.iter().filter(|(module, _)| is_product(module)) {
            let text = plain(source.product());
            let paths = uses(&text).into_iter().chain(inline(&text));
            let found = paths.filter_map(|path| self.resolve(module, &path));
            let found = found.filter(|to| to != module && is_product(to)).map(|to| shown(&self.files[&to]));
            all.entry(shown(source)).or_default().extend(found);
        }
    }

    /// Modules that only tests have.
    fn tests(&self) -> BTreeSet<String> {
        let mut tests = BTreeSet::new();
        for (module, source) in &self.files {
            for (at, mark) in source.text.match_indices("#[cfg(test)]\n") {
                let line = source.text[at + mark.len()..].lines().next().unwrap();
                let name = line.rsplit_once("mod ").and_then(|(_, name)| name.strip_suffix(';'));
                tests.extend(name.map(|name| joined(module, name)));
            }
        }
        tests
    }

    /// The module that a path in `module` leads to.
    fn resolve(&self, module: &str, path: &str) -> Option<String> {
        let mut segments = path.split("::").peekable();
        let mut at = match *segments.peek()? {
            "crate" => String::new(),
            "self" | "super" => module.to_owned(),
            first if self.files.contains_key(&joined(module, first)) => module.to_owned(),
            _ => return None,
        };
        for segment in segments {
            match segment {
                "crate" | "self" => {}
                "super" => at = at.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned()),
                name if self.files.contains_key(&joined(&at, name)) => at = joined(&at, name),
                _ => break,
            }
        }
        Some(at)
    }
}

fn joined(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

fn within(module: &str, parent: &str) -> bool {
    module.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// The folder of the crate that a file belongs to; a program of one file is its own.
fn root_of(path: &Path) -> PathBuf {
    let src = project().join("src");
    let programs = ["bin", "host"].map(|folder| src.join(folder));
    let own = programs.iter().find_map(|folder| Some((folder, path.strip_prefix(folder).ok()?)));
    own.map_or(src, |(folder, below)| folder.join(below.components().next().unwrap()))
}

fn module_of(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap().with_extension("");
    let names: Vec<&str> = below.components().map(|name| name.as_os_str().to_str().unwrap()).collect();
    match names.as_slice() {
        ["lib"] | ["main"] => String::new(),
        names => names.join("::"),
    }
}

fn shown(source: &Source) -> String {
    source.path.strip_prefix(project().join("src")).unwrap().to_str().unwrap().to_owned()
}

/// Without comments.
fn plain(text: &str) -> String {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    // How far something may be seen is no import.
    code.map(|line| line.replace("pub(in crate::", "pub(in ") + "\n").collect()
}

/// The paths of all `use` statements, groups taken apart.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for statement in text.split(';') {
        let Some((before, tree)) = statement.rsplit_once("use ") else { continue };
        if before.is_empty() || before.ends_with(['\n', ' ']) || before.ends_with(')') {
            found.extend(expand(&tree.split_whitespace().collect::<String>()));
        }
    }
    found
}

/// `a::{b, c::{d, e}}` -> `a::b`, `a::c::d`, `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let Some((head, group)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let group = group.strip_suffix('}').unwrap_or(group);
    let (mut depth, mut item, mut items) = (0, String::new(), Vec::new());
    for c in group.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match c {
            ',' if depth == 0 => items.push(std::mem::take(&mut item)),
            _ => item.push(c),
        }
    }
    items.push(item);
    items.iter().flat_map(|item| expand(item)).map(|item| format!("{head}{item}")).collect()
}

/// Paths in the code itself.
fn inline(text: &str) -> Vec<String> {
    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !is_path(c)).filter(|word| word.contains("::"));
    // What ends so is the head of a group.
    words.filter(|word| !word.ends_with("::")).map(str::to_owned).collect()
}

#[test]
fn paths_are_read_as_the_compiler_reads_them() {
    assert_eq!(expand("a::{b,c::{d,e},f}"), ["a::b", "a::c::d", "a::c::e", "a::f"]);
    assert_eq!(uses("use crate::a;\npub use b::{\n c, d};"), ["crate::a", "b::c", "b::d"]);
    assert_eq!(inline("fn f() { crate::a::g(super::B::C) }"), ["crate::a::g", "super::B::C"]);
    let source = |path: &str| Source { path: path.into(), text: String::new() };
    let files = ["", "a", "a::b", "c"].map(|module| (module.to_owned(), source(module))).into();
    let all = Crate { files };
    let resolved =
        [("a", "b::X"), ("a::b", "super::Y"), ("a::b", "super::super::c::Z"), ("c", "crate::a::b")]
            .map(|(module, path)| all.resolve(module, path).unwrap());
    assert_eq!(resolved, ["a::b", "a", "c", "a::b"]);
    assert_eq!(all.resolve("c", "std::fs"), None);
    let arrows = |list: &[(&str, &str)]| {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in list {
            all.entry((*from).into()).or_default().insert((*to).into());
        }
        Arrows { all }
    };
    assert!(arrows(&[("a", "b"), ("a", "c"), ("b", "c")]).circles().is_empty());
    assert_eq!(arrows(&[("a", "b"), ("b", "c"), ("c", "b")]).circles(), [["b", "c", "b"]]);
}
