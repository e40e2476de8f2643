//! What proves who this device is: keys and connection strings in the settings, or in files that the settings name and
//! other programs write.

use std::path::{Path, PathBuf};

use super::error::{ConfigError, Warning};
use super::files::{others_can_read, read_text};
use super::hub::KeyPlace;
use super::inputs::Inputs;
use super::kinds::{Absolute, Hidden};
use super::row::Setting;
use super::settings::CloudRows as row;

/// Longest file that holds a single secret.
const SECRET_LIMIT: u64 = 8192;

/// The path of the certificate, and the place of its key.
pub fn certificate(inputs: &Inputs) -> Result<(Option<PathBuf>, Option<KeyPlace>), ConfigError> {
    Ok((inputs.get(&row::certificate_file)?, inputs.get(&row::key_file)?))
}

/// A text and the file that it stands in.
pub struct Written {
    pub file: PathBuf,
    pub text: String,
    /// The setting that names the file, if the text does not stand in the settings.
    key: Option<&'static str>,
}

impl Written {
    /// An error of its text: other programs write the files that the settings only name.
    pub fn blamed(&self, error: ConfigError) -> ConfigError {
        match &self.key {
            Some(key) => error.of(&self.file, key),
            None => error,
        }
    }
}

/// The small file that the setting `key` names and another program writes: it may not be there yet, and a cut of power
/// may leave it empty or full of zeros.
pub fn content(file: &Path, key: &str) -> Result<String, ConfigError> {
    let awaited = |problem: &str| ConfigError::Awaited {
        file: file.to_owned(),
        key: key.to_owned(),
        problem: problem.to_owned(),
    };
    let read = read_text(file, SECRET_LIMIT).map_err(|error| match error {
        ConfigError::Read { source, .. } => awaited(&format!("cannot be read ({source})")),
        other => awaited(&format!("is no good yet: {other}")),
    })?;
    let text = read.ok_or_else(|| awaited("is not there yet"))?;
    match text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).is_empty() {
        true => {
            Err(awaited("is empty or all zeros, as a cut of power leaves it; it has to be written again"))
        }
        false => Ok(text),
    }
}

/// The secret that `text` holds, or the file that `named` names. `is_secret`: others should not be able to read it.
pub fn secret(
    inputs: &Inputs,
    text: &Setting<Option<Hidden>>,
    named: &Setting<Option<Absolute>>,
    is_secret: impl Fn(&str) -> bool,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Written>, ConfigError> {
    let written = match (inputs.get(text)?, inputs.get(named)?) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(ConfigError::Conflict(format!(
                "{} in {} and {} in {} are both set; keep one",
                text.path,
                inputs.file(text.path),
                named.path,
                inputs.file(named.path)
            )));
        }
        (Some(found), None) => Written { file: inputs.file(text.path).into(), text: found, key: None },
        (None, Some(file)) => Written { text: content(&file, named.path)?, file, key: Some(named.path) },
    };
    if is_secret(&written.text) && others_can_read(&written.file) {
        warnings.push(Warning::Exposed { file: written.file.display().to_string() });
    }
    Ok(Some(written))
}
