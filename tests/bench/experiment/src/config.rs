//! What an experiment is asked to try, as one word.

/// `MIN/AVERAGE/MAX/GROUP/FORM/LEVEL`, sizes in KiB; FORM is `frame`, `blocks` or `unit`, the first two with
/// `+old:KIB`, `+new:KIB` or `+missing:KIB` for a dictionary. A seventh part `bytes` cuts at any byte instead of
/// between blocks of 4 KiB, which is no form of a bundle.
pub struct Config {
    pub name: String,
    pub min: usize,
    pub average: usize,
    pub max: usize,
    pub group: usize,
    pub form: Form,
    pub dictionary: Option<Training>,
    pub level: i32,
    pub bytes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A chunk is a frame of its own.
    Frame,
    /// A chunk is a block of its group's frame, as in a bundle.
    Blocks,
    /// The block method: 4 KiB are compared, GROUP is fetched.
    Unit,
}

#[derive(Clone, Copy)]
pub struct Training {
    pub from: Corpus,
    /// Bytes of the dictionary at most.
    pub size: usize,
}

/// Whose chunks a dictionary is made from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Corpus {
    /// The old image's: a device has it already.
    Old,
    /// The new image's: it has to be fetched.
    New,
    /// Those of the new image that the old one lacks: it has to be fetched.
    Missing,
}

impl Config {
    pub fn parse(name: &str) -> Config {
        let part: Vec<&str> = name.split('/').collect();
        let (part, bytes) = match part.split_last() {
            Some((&"bytes", part)) => (part, true),
            _ => (part.as_slice(), false),
        };
        let [min, average, max, group, form, level] = *part else { panic!("{name}: six parts") };
        let (form, dictionary) = match form.split_once('+') {
            Some((form, dictionary)) => (form, Some(training(dictionary))),
            None => (form, None),
        };
        let form = match form {
            "frame" => Form::Frame,
            "blocks" => Form::Blocks,
            "unit" => Form::Unit,
            _ => panic!("{name}: frame, blocks or unit"),
        };
        Config {
            name: name.into(),
            min: kib(min),
            average: kib(average),
            max: kib(max),
            group: kib(group),
            form,
            dictionary,
            level: level.parse().expect("a level"),
            bytes,
        }
    }
}

fn training(text: &str) -> Training {
    let (from, size) = text.split_once(':').expect("CORPUS:KIB");
    let from = match from {
        "old" => Corpus::Old,
        "new" => Corpus::New,
        "missing" => Corpus::Missing,
        _ => panic!("{text}: old, new or missing"),
    };
    Training { from, size: kib(size) }
}

fn kib(text: &str) -> usize {
    text.parse::<usize>().expect("a size in KiB") * 1024
}
