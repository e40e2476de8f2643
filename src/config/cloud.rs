//! The section `[cloud]`: by which way the hub is reached, and as whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::connection::{self, ConnectionString};
use super::credentials::{Written, certificate, secret};
use super::dps;
use super::error::{ConfigError, Warning};
use super::files::others_can_read;
use super::fragments::Environment;
use super::hub::{Auth, Cloud, Place, Reconnect, Roots, Seat, Transport};
use super::inputs::Inputs;
use super::kinds::{DAY, expected_span};
use super::proxy::Proxy;
use super::settings::{CloudRows as row, TrustRoots};

/// `None`: neither a connection string nor the provisioning service is set.
pub fn cloud(
    inputs: &Inputs,
    proxy: &Proxy,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Cloud>, ConfigError> {
    let transport = inputs.get(&row::transport)?;
    let is_secret = |text: &str| text.contains("SharedAccessKey=");
    let text = secret(inputs, &row::connection_string, &row::connection_string_file, is_secret, warnings)?;
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
    if matches!((&auth, transport), (Auth::X509 { .. }, Transport::WebSocket)) {
        return Err(ConfigError::Conflict(format!(
            "{} in {} is \"websocket\", where Azure asks for a certificate by a renegotiation of TLS, which this agent \
             does not do; with certificates leave it at \"mqtt\" (port 8883), or log in with a key",
            row::transport.path,
            inputs.file(row::transport.path)
        )));
    }
    let secrets = secrets(&auth, warnings);
    Ok(Some(Cloud {
        place,
        auth,
        secrets,
        key_device: inputs.get(&row::key_device)?,
        transport,
        port: inputs.get(&row::port)?.unwrap_or(transport.port()),
        proxy: proxy.clone(),
        roots: roots(inputs)?,
        keep_alive: inputs.get(&row::keep_alive)?,
        token_ttl: inputs.get(&row::token_ttl)?,
        reconnect: reconnect(inputs)?,
        time_server: inputs.get(&row::time_server)?,
    }))
}

/// Who is trusted. `cloud.ca_file` counts without a hub too: downloads go by it.
pub fn roots(inputs: &Inputs) -> Result<Roots, ConfigError> {
    let roots = Roots { system: inputs.get(&TrustRoots::system_roots)?, ca_file: inputs.get(&row::ca_file)? };
    if !roots.system && roots.ca_file.is_none() {
        let expected = "true, or cloud.ca_file set: without either no server would be trusted";
        return Err(inputs.wrong(&TrustRoots::system_roots, expected));
    }
    Ok(roots)
}

/// The files that keep somebody else from being this device.
fn secrets(auth: &Auth, warnings: &mut Vec<Warning>) -> Vec<PathBuf> {
    if let Auth::X509 { key, .. } = auth {
        if let Some(file) = key.secret().filter(|file| others_can_read(file)) {
            warnings.push(Warning::Exposed { file: file.display().to_string() });
        }
    }
    let exposed = warnings.iter().filter_map(|warning| match warning {
        Warning::Exposed { file } => Some(PathBuf::from(file)),
        _ => None,
    });
    exposed.collect()
}

fn reconnect(inputs: &Inputs) -> Result<Reconnect, ConfigError> {
    let (first, longest) = (inputs.get(&row::reconnect_first)?, inputs.get(&row::reconnect_longest)?);
    if longest < first {
        let expected = expected_span(first, Duration::from_millis(DAY));
        return Err(inputs.wrong(&row::reconnect_longest, expected));
    }
    Ok(Reconnect { first, longest })
}

/// The configured proxy, else the environment's; `"none"` shuts out both.
pub fn proxy(
    inputs: &Inputs,
    environment: &Environment,
    warnings: &mut Vec<Warning>,
) -> Result<Proxy, ConfigError> {
    let except = inputs.get(&row::no_proxy)?;
    let Some(url) = inputs.get(&row::proxy)? else {
        if !except.is_empty() {
            let file = inputs.file(row::no_proxy.path);
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
    let file = inputs.file(row::proxy.path);
    let proxy = Proxy::new(&url, except)
        .map_err(|problem| ConfigError::Conflict(format!("cloud.proxy in {file} {problem}")))?;
    if proxy.login().is_some() && others_can_read(Path::new(&file)) {
        warnings.push(Warning::Exposed { file });
    }
    Ok(proxy)
}

/// Without a place at a hub, the credentials for it are a mistake and not "no cloud".
fn no_place(inputs: &Inputs) -> Result<Option<Cloud>, ConfigError> {
    for path in [row::certificate_file.path, row::key_file.path] {
        if inputs.has(path) {
            return Err(ConfigError::Conflict(format!(
                "{path} in {} has no connection string beside it; add cloud.connection_string or [cloud.dps]",
                inputs.file(path)
            )));
        }
    }
    Ok(None)
}

fn known(inputs: &Inputs, secret: &Written) -> Result<(Place, Auth), ConfigError> {
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
