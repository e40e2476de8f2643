//! What the guides name in the code is there: the twenty questions of CONTRIBUTING.md, and docs/terms.md.

use std::fs;

use super::project;

/// The rows of a page's tables that name a file, each with what it names in which file.
fn named(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    let text = fs::read_to_string(project().join(page)).unwrap();
    let rows = text.lines().filter(|row| row.starts_with("| "));
    let of = |row: &str| {
        let (before, answer) = row.trim_end_matches([' ', '|']).rsplit_once(" | ")?;
        let words: Vec<&str> = answer.split('`').skip(1).step_by(2).collect();
        let pairs = words.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
        words.first()?.starts_with("src/").then(|| (before.to_owned(), pairs))
    };
    rows.filter_map(of).collect()
}

fn holds(file: &str, item: &str) -> bool {
    let text = fs::read_to_string(project().join(file)).unwrap_or_default();
    let begins = |rest: &str| rest.strip_prefix(item).is_some_and(|rest| !rest.starts_with(is_letter));
    let kinds = ["fn ", "struct ", "enum ", "trait ", "const "];
    kinds.iter().any(|kind| text.match_indices(kind).any(|(at, _)| begins(&text[at + kind.len()..])))
}

fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn what_the_guides_name_is_there() {
    for (page, rows) in [("CONTRIBUTING.md", 20), ("docs/terms.md", 35)] {
        let found = named(page);
        assert!(found.len() >= rows, "{page}: {}", found.len());
        for (row, answers) in found {
            assert!(!answers.is_empty(), "{page}: {row}");
            for (file, item) in answers {
                assert!(holds(&file, &item), "{page}, {row}: {item} is not in {file}");
            }
        }
    }
    assert!(holds("src/slot.rs", "Slot") && !holds("src/slot.rs", "Slo") && !holds("src/none.rs", "Slot"));
}
