//! First stage: find the files of every layer, parse each on its own, and drop what does not belong there.
//!
//! Each file stays apart until it is checked, so that every complaint can name the file it comes from.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use config::{Map, Source, Value, ValueKind};

use super::error::{ConfigError, Warning};
use super::keys;

/// No settings file is larger; a wrong path may lead to a disk.
const FILE_LIMIT: u64 = 1 << 20;

/// Where the layers lie.
#[derive(Debug, Clone)]
pub struct Options {
    /// The image builder's file, under the integrator's; optional.
    pub vendor: Option<PathBuf>,
    /// The integrator's file.
    pub main: PathBuf,
    /// Whether it is an error that `main` is not there: so when it was named on the command line.
    pub main_required: bool,
    /// The integrator's drop-ins, read in name order.
    pub drop_ins: Option<PathBuf>,
    pub environment: Environment,
}

/// The variables of the environment that count as settings: the convention for proxies, which many programs share.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `https_proxy`, else `HTTPS_PROXY`.
    pub https_proxy: Option<String>,
    /// `no_proxy`, else `NO_PROXY`.
    pub no_proxy: Option<String>,
}

impl Environment {
    fn of_this_process() -> Environment {
        let read = |name: &str| {
            let set = |name: String| std::env::var(name).ok().filter(|value| !value.is_empty());
            set(name.to_owned()).or_else(|| set(name.to_uppercase()))
        };
        Environment { https_proxy: read("https_proxy"), no_proxy: read("no_proxy") }
    }
}

impl Options {
    /// The layers of an installed gateway.
    pub fn system() -> Options {
        Options {
            vendor: Some("/usr/lib/fwupdate/fwupdate.toml".into()),
            main: "/etc/fwupdate.toml".into(),
            main_required: false,
            drop_ins: Some("/etc/fwupdate.d".into()),
            environment: Environment::of_this_process(),
        }
    }

    /// `--config NAME.toml`: that file and the folder `NAME.d` beside it in place of all system layers; the state
    /// folder's `conf.d` still applies.
    pub fn file(path: impl Into<PathBuf>) -> Options {
        let environment = Environment::of_this_process();
        let main: PathBuf = path.into();
        let drop_ins = Some(main.with_extension("d"));
        Options { vendor: None, main, main_required: true, drop_ins, environment }
    }
}

/// Which keys a layer may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Defaults, vendor's and integrator's file: everything.
    Trusted,
    /// Drop-ins: everything but `[trust]`.
    DropIn,
    /// `<state>/conf.d`: what is this device's own, by a list.
    Device,
}

/// One parsed file.
#[derive(Debug, Clone)]
pub struct Fragment {
    pub origin: String,
    table: toml::Table,
}

impl Fragment {
    /// The built-in defaults.
    pub fn defaults() -> Result<Fragment, ConfigError> {
        Fragment::parse(Path::new("built-in defaults"), &keys::defaults_toml())
    }

    fn parse(path: &Path, text: &str) -> Result<Fragment, ConfigError> {
        // The error's own Display quotes the line, which may hold a secret.
        let table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            line: line_of(text, e.span().map_or(0, |s| s.start)),
            detail: e.message().replace('\n', ", "),
        })?;
        Ok(Fragment { origin: path.display().to_string(), table })
    }

    /// Reads and checks `path`; `None` when there is no such file.
    pub fn read(
        path: &Path,
        layer: Layer,
        warnings: &mut Vec<Warning>,
    ) -> Result<Option<Fragment>, ConfigError> {
        let Some(text) = read_text(path, FILE_LIMIT)? else { return Ok(None) };
        let mut fragment = Fragment::parse(path, &text)?;
        fragment.table = Check { file: &fragment.origin, layer, warnings }.table("", fragment.table)?;
        Ok(Some(fragment))
    }
}

impl Source for Fragment {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(values(&self.origin, &self.table))
    }
}

/// The table in the `config` crate's terms, with its file as each value's origin.
fn values(origin: &String, table: &toml::Table) -> Map<String, Value> {
    table.iter().map(|(name, value)| (name.clone(), to_value(origin, value))).collect()
}

fn to_value(origin: &String, value: &toml::Value) -> Value {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text.clone()),
        toml::Value::Integer(number) => ValueKind::I64(*number),
        toml::Value::Float(number) => ValueKind::Float(*number),
        toml::Value::Boolean(flag) => ValueKind::Boolean(*flag),
        toml::Value::Datetime(date) => ValueKind::String(date.to_string()),
        toml::Value::Array(items) => ValueKind::Array(items.iter().map(|v| to_value(origin, v)).collect()),
        toml::Value::Table(table) => ValueKind::Table(values(origin, table)),
    };
    Value::new(Some(origin), kind)
}

/// Walks one file and takes out unknown and misplaced keys, with a warning for each.
struct Check<'a> {
    file: &'a str,
    layer: Layer,
    warnings: &'a mut Vec<Warning>,
}

impl Check<'_> {
    fn table(&mut self, section: &str, table: toml::Table) -> Result<toml::Table, ConfigError> {
        let mut kept = toml::Table::new();
        for (name, value) in table {
            let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            if let Some(value) = self.entry(&path, &name, value)? {
                kept.insert(name, value);
            }
        }
        Ok(kept)
    }

    fn entry(
        &mut self,
        path: &str,
        name: &str,
        value: toml::Value,
    ) -> Result<Option<toml::Value>, ConfigError> {
        let (key, file) = (path.to_owned(), self.file.to_owned());
        if self.is_misplaced(path) {
            self.warnings.push(Warning::Misplaced { key, file });
            return Ok(None);
        }
        // A quoted "a.b" is one name in TOML and must not pass for the path a.b.
        if name.contains('.') || !(keys::is_known(path) || keys::is_section(path)) {
            self.warnings.push(unknown(path.to_owned(), file, &value));
            return Ok(None);
        }
        match value {
            toml::Value::Table(table) if keys::is_section(path) => {
                Ok(Some(toml::Value::Table(self.table(path, table)?)))
            }
            other if keys::is_section(path) => {
                let expected = format!("a section ([{path}])");
                Err(ConfigError::Value { key, file, expected, found: other.type_str().to_owned() })
            }
            other => Ok(Some(other)),
        }
    }

    fn is_misplaced(&self, path: &str) -> bool {
        match self.layer {
            Layer::Trusted => false,
            Layer::DropIn => path == "trust" || path.starts_with("trust."),
            Layer::Device => (keys::is_known(path) || keys::is_section(path)) && !keys::is_devices_own(path),
        }
    }
}

/// Names what is not known by all that was written of it: of `[slot.a]` not only the `slot`.
fn unknown(key: String, file: String, value: &toml::Value) -> Warning {
    let only = value.as_table().filter(|table| table.len() == 1).and_then(|table| table.iter().next());
    match only {
        Some((name, inner)) if inner.is_table() => unknown(format!("{key}.{name}"), file, inner),
        _ => {
            let nearest = keys::nearest(&key, value.is_table());
            Warning::UnknownKey { key, file, nearest }
        }
    }
}

/// The `*.toml` files of `dir` in name order; none when there is no such folder.
pub fn files_in(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|e| e.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    Ok(paths)
}

/// Reads a small text file; `None` when it does not exist.
pub fn read_text(path: &Path, limit: u64) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(ConfigError::TooLarge { path: path.to_owned(), limit });
    }
    let found = decode(bytes).map_err(|found| ConfigError::Encoding { path: path.to_owned(), found })?;
    Ok(Some(found))
}

/// The text of a file, which some editors begin with a byte order mark; else what it is in place of UTF-8.
fn decode(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("UTF-16".to_owned());
    }
    // Without the mark: every other byte of plain letters is zero.
    let zeros = bytes.iter().filter(|byte| **byte == 0).count();
    if zeros > 0 && zeros < bytes.len() && zeros >= bytes.len() / 3 {
        return Err("UTF-16, or torn".to_owned());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(error) => {
            let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = good.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
            Err(format!("an older encoding, such as Latin-1 or Windows-1252 (line {line})"))
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count().saturating_add(1)
}
