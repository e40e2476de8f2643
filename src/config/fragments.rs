//! First stage: find the files of every layer, parse each on its own, and drop what does not belong there.
//!
//! Each file stays apart until it is checked, so that every complaint can name the file it comes from.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, Warning};
use super::files::read_text;
use super::inputs::Fragment;
use super::names;
use super::row::Layer;
use super::settings::rows;

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

/// The built-in defaults.
pub fn defaults() -> Result<Fragment, ConfigError> {
    let text: String = rows().filter_map(|row| Some(format!("{} = {}\n", row.path, row.default?))).collect();
    parse(Path::new("built-in defaults"), &text, Layer::Trusted, &mut Vec::new())
}

/// Reads and checks `path`; `None` when there is no such file.
pub fn read(path: &Path, layer: Layer, warnings: &mut Vec<Warning>) -> Result<Option<Fragment>, ConfigError> {
    let text = read_text(path, FILE_LIMIT)?;
    text.map(|text| parse(path, &text, layer, warnings)).transpose()
}

fn parse(
    path: &Path,
    text: &str,
    layer: Layer,
    warnings: &mut Vec<Warning>,
) -> Result<Fragment, ConfigError> {
    let table: Table = text.parse().map_err(|error| syntax(path, text, &error))?;
    let origin = path.display().to_string();
    let mut check = FragmentCheck { file: &origin, layer, warnings, kept: Vec::new() };
    check.table("", table)?;
    Ok(Fragment { values: check.kept, origin })
}
/// The error's own Display quotes the line, which may hold a secret; a key is none.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let span = error.span().unwrap_or_default();
    let line = line_of(text, span.start);
    let key = text.get(span).filter(|_| error.message() == "duplicate key").unwrap_or_default();
    let detail = format!("{} {key}", error.message().replace('\n', ", ")).trim_end().to_owned();
    ConfigError::Syntax { path: path.to_owned(), line, detail }
}

/// Walks one file and keeps what is known and may stand there, with a warning for everything else.
struct FragmentCheck<'a> {
    file: &'a str,
    layer: Layer,
    warnings: &'a mut Vec<Warning>,
    kept: Vec<(String, Value)>,
}

impl FragmentCheck<'_> {
    fn table(&mut self, section: &str, table: Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            self.entry(path, &name, value)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: String, name: &str, value: Value) -> Result<(), ConfigError> {
        let file = self.file.to_owned();
        match value {
            _ if names::is_misplaced(&path, self.layer) => {
                self.warnings.push(Warning::Misplaced { key: path, file });
            }
            // A quoted "a.b" is one name in TOML and must not pass for the path a.b.
            value if name.contains('.') => {
                let written = format!("{}{name:?}", path.strip_suffix(name).unwrap_or_default());
                self.warnings.push(unknown(written, file, &value));
            }
            value if names::at(&path).next().is_none() => {
                self.warnings.push(unknown(path, file, &value));
            }
            Value::Table(table) if names::is_section(&path) => self.table(&path, table)?,
            other if names::is_section(&path) => {
                let (expected, found) = (format!("a section ([{path}])"), other.type_str().to_owned());
                return Err(ConfigError::Value { key: path, file, expected, found });
            }
            value => self.kept.push((path, value)),
        }
        Ok(())
    }
}

/// Names what is not known by all that was written of it: of `[slot.a]` not only the `slot`.
fn unknown(key: String, file: String, value: &Value) -> Warning {
    let only = value.as_table().filter(|table| table.len() == 1).and_then(|table| table.iter().next());
    match only {
        Some((name, inner)) if inner.is_table() => unknown(format!("{key}.{name}"), file, inner),
        _ => {
            let nearest = names::nearest(&key, value.is_table());
            Warning::UnknownKey { key, file, nearest }
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count().saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_toml_that_sets_every_key_with_a_default() {
        let found = defaults().unwrap().values;
        let value = |path: &str| found.iter().find(|(key, _)| key == path).map(|(_, value)| value).unwrap();
        assert_eq!(value("bootloader.tries").as_integer(), Some(3));
        assert_eq!(value("trust.keys").as_str(), Some("/etc/fwupdate/keys"));
        assert_eq!(found.len(), rows().filter(|row| row.default.is_some()).count());
    }
}
