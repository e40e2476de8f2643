//! The section `[cloud]`: by which way the hub is reached, and as whom.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::connection::{self, ConnectionString};
use super::error::{ConfigError, Warning};
use super::fragments::{self, Environment};
use super::inputs::Inputs;
use super::load::{DAY, SECOND};
use super::{Auth, Cloud, Place, Proxy, Reconnect, Roots, Seat, TimeServer, Transport, dps};

/// IoT Hub waits 1.5 times the keep-alive, but no longer than 1767 s.
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(1177);
/// Where HTTPS is spoken.
const HTTPS: u16 = 443;
/// Longest file that holds a single secret.
const SECRET_LIMIT: u64 = 8192;

/// `None`: neither a connection string nor the provisioning service is set.
pub fn cloud(
    inputs: &Inputs,
    proxy: &Proxy,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Cloud>, ConfigError> {
    let transport = transport(inputs)?;
    let text = secret(inputs, "cloud.connection_string", |text| text.contains("SharedAccessKey="), warnings)?;
    let (place, auth) = match (text, dps::is_set(inputs)) {
        (Some(secret), None) => known(inputs, &secret).map_err(|error| secret.blamed(error))?,
        (None, Some(_)) => dps::dps(inputs, transport, warnings)?,
        (Some(secret), Some(key)) => {
            return Err(ConfigError::Conflict(format!(
                "{key} in {} and the connection string in {} are both set; keep one of them",
                inputs.file(key),
                secret.file.display()
            )));
        }
        (None, None) => return no_place(inputs),
    };
    let secrets = secrets(&auth, warnings);
    Ok(Some(Cloud {
        place,
        auth,
        secrets,
        transport,
        port: port(inputs, "cloud.port", transport)?,
        proxy: proxy.clone(),
        roots: roots(inputs)?,
        keep_alive: inputs.span("cloud.keep_alive", SECOND.saturating_mul(5), KEEP_ALIVE_LIMIT)?,
        token_ttl: inputs.span("cloud.token_ttl", SECOND.saturating_mul(3), DAY.saturating_mul(365))?,
        reconnect: reconnect(inputs)?,
        time_server: time_server(inputs)?,
    }))
}

/// Who is trusted. `cloud.ca_file` counts without a hub too: downloads go by it.
pub fn roots(inputs: &Inputs) -> Result<Roots, ConfigError> {
    let roots = Roots { system: inputs.flag("trust.system_roots")?, ca_file: inputs.path("cloud.ca_file")? };
    if !roots.system && roots.ca_file.is_none() {
        let expected = "true, or cloud.ca_file set: without either no server would be trusted";
        return Err(inputs.wrong("trust.system_roots", expected));
    }
    Ok(roots)
}

/// The files that keep somebody else from being this device.
fn secrets(auth: &Auth, warnings: &mut Vec<Warning>) -> Vec<PathBuf> {
    if let Auth::X509 { key, .. } = auth {
        if others_can_read(key) {
            warnings.push(Warning::Exposed { file: key.display().to_string() });
        }
    }
    let exposed = warnings.iter().filter_map(|warning| match warning {
        Warning::Exposed { file } => Some(PathBuf::from(file)),
        _ => None,
    });
    exposed.collect()
}

fn reconnect(inputs: &Inputs) -> Result<Reconnect, ConfigError> {
    let first = inputs.span("cloud.reconnect_first", SECOND, DAY)?;
    Ok(Reconnect { first, longest: inputs.span("cloud.reconnect_longest", first, DAY)? })
}

fn time_server(inputs: &Inputs) -> Result<TimeServer, ConfigError> {
    let wrong = || inputs.wrong("cloud.time_server", "\"auto\", \"none\", \"host\" or \"host:port\"");
    let text = inputs.text("cloud.time_server")?.unwrap_or_default();
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?),
        None => (text.as_str(), HTTPS),
    };
    match host {
        "auto" if port == HTTPS => Ok(TimeServer::Own),
        "none" if port == HTTPS => Ok(TimeServer::Nobody),
        host if connection::is_host(host) && !matches!(host, "auto" | "none") => {
            Ok(TimeServer::Other { host: host.to_owned(), port })
        }
        _ => Err(wrong()),
    }
}

fn transport(inputs: &Inputs) -> Result<Transport, ConfigError> {
    match inputs.text("cloud.transport")?.as_deref() {
        Some("mqtt") => Ok(Transport::Mqtt),
        Some("websocket") => Ok(Transport::WebSocket),
        _ => Err(inputs.wrong("cloud.transport", "\"mqtt\" or \"websocket\"")),
    }
}

/// The port at `path`, else that of the transport.
pub fn port(inputs: &Inputs, path: &str, transport: Transport) -> Result<u16, ConfigError> {
    if inputs.has(path) { inputs.number(path, 1, u16::MAX) } else { Ok(transport.port()) }
}

/// The configured proxy, else the environment's; `"none"` shuts out both.
pub fn proxy(
    inputs: &Inputs,
    environment: &Environment,
    warnings: &mut Vec<Warning>,
) -> Result<Proxy, ConfigError> {
    let except = inputs.texts("cloud.no_proxy")?;
    let Some(url) = inputs.text("cloud.proxy")? else {
        if !except.is_empty() {
            let file = inputs.file("cloud.no_proxy");
            return Err(ConfigError::Conflict(format!(
                "cloud.no_proxy in {file} has no cloud.proxy beside it; for a proxy of the environment, set NO_PROXY"
            )));
        }
        let except = environment.no_proxy.iter().flat_map(|list| list.split(',')).map(str::to_owned);
        let Some(url) = &environment.https_proxy else { return Ok(Proxy::default()) };
        // The environment is shared by many programs, of which some can use what this one can't.
        return Ok(Proxy::new(url, except).unwrap_or_else(|problem| {
            let why = format!("the proxy in the environment variable HTTPS_PROXY {problem}");
            warnings.push(Warning::Variable { why });
            Proxy::default()
        }));
    };
    if url == "none" {
        return Ok(Proxy::default());
    }
    let file = inputs.file("cloud.proxy");
    let proxy = Proxy::new(&url, except)
        .map_err(|problem| ConfigError::Conflict(format!("cloud.proxy in {file} {problem}")))?;
    if proxy.login().is_some() && others_can_read(Path::new(&file)) {
        warnings.push(Warning::Exposed { file });
    }
    Ok(proxy)
}

/// Without a place at a hub, the credentials for it are a mistake and not "no cloud".
fn no_place(inputs: &Inputs) -> Result<Option<Cloud>, ConfigError> {
    for path in ["cloud.certificate_file", "cloud.key_file"] {
        if inputs.has(path) {
            return Err(ConfigError::Conflict(format!(
                "{path} in {} has no connection string beside it; add cloud.connection_string or [cloud.dps]",
                inputs.file(path)
            )));
        }
    }
    Ok(None)
}

fn known(inputs: &Inputs, secret: &Secret) -> Result<(Place, Auth), ConfigError> {
    let file = || secret.file.display().to_string();
    let parsed = connection::parse(&secret.text)
        .map_err(|problem| ConfigError::ConnectionString { file: file(), problem })?;
    let auth = auth(inputs, &parsed)?;
    let ConnectionString { host, gateway, device_id, module_id, .. } = parsed;
    Ok((Place::Known(Seat { host, gateway, device_id, module_id }), auth))
}

fn auth(inputs: &Inputs, parsed: &ConnectionString) -> Result<Auth, ConfigError> {
    match (&parsed.key, certificate(inputs)?) {
        (Some(secret), (None, None)) => Ok(Auth::SharedKey(secret.clone())),
        (None, (Some(certificate), Some(key))) => Ok(Auth::X509 { certificate, key }),
        (Some(_), _) => Err(ConfigError::Conflict(
            "the connection string has a SharedAccessKey, but cloud.certificate_file or cloud.key_file is set; \
             keep one way to log in (x509=true in the connection string means certificates)"
                .to_owned(),
        )),
        (None, _) => Err(ConfigError::Conflict(
            "the connection string says x509=true; set both cloud.certificate_file and cloud.key_file".to_owned(),
        )),
    }
}

/// The paths of certificate and key.
pub fn certificate(inputs: &Inputs) -> Result<(Option<PathBuf>, Option<PathBuf>), ConfigError> {
    Ok((inputs.path("cloud.certificate_file")?, inputs.path("cloud.key_file")?))
}

/// A text and the file that it stands in.
pub struct Secret {
    pub file: PathBuf,
    pub text: String,
    /// The setting that names the file, if the text does not stand in the settings.
    key: Option<String>,
}

impl Secret {
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
    let read = fragments::read_text(file, SECRET_LIMIT).map_err(|error| match error {
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

/// The text of `path`, or of the file that `{path}_file` names, and the file that it stands in. `is_secret`: others
/// should not be able to read it.
pub fn secret(
    inputs: &Inputs,
    path: &str,
    is_secret: impl Fn(&str) -> bool,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Secret>, ConfigError> {
    let file_path = format!("{path}_file");
    let (file, text, key) = match (inputs.text(path)?, inputs.path(&file_path)?) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(ConfigError::Conflict(format!(
                "{path} in {} and {file_path} in {} are both set; keep one",
                inputs.file(path),
                inputs.file(&file_path)
            )));
        }
        (Some(text), None) => (PathBuf::from(inputs.file(path)), text, None),
        (None, Some(file)) => {
            let text = content(&file, &file_path)?;
            (file, text, Some(file_path))
        }
    };
    if is_secret(&text) && others_can_read(&file) {
        warnings.push(Warning::Exposed { file: file.display().to_string() });
    }
    Ok(Some(Secret { file, text, key }))
}

/// Whether the file itself lets everybody read it.
pub fn others_can_read(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}
