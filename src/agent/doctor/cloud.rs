//! The way to the hub: settings, session, credentials and the clock that certificates are judged by.

use time::Duration;

use super::subject::{Answer, Subject, hub_of, short};
use crate::bounds::told;
use crate::clock::{Clock, TimeOrigin, VOUCHED};
use crate::config::{Auth, KeyPlace};
use crate::tls;

/// A certificate that ends so soon should be renewed.
const SOON: Duration = Duration::days(14);

const OPEN: &str = "an authenticated session is open";

/// What is set and does not count yet: a credential that is not there, a damaged file of the device's own layer.
pub(super) fn awaited(subject: &Subject) -> Option<Answer> {
    let awaited = &subject.gateway.settings.awaited;
    Some(match awaited.is_empty() {
        true => Answer::Well("all that is set counts".to_owned()),
        false => Answer::Fault(awaited.join("; ")),
    })
}

/// What the settings say of the hub can be used, and an image on trial is no one else than the old slot was.
pub(super) fn settings(subject: &Subject) -> Option<Answer> {
    let before = subject.on_trial.as_ref().and_then(|on_trial| on_trial.before.as_ref()?.hub.clone());
    let Some(cloud) = &subject.gateway.settings.cloud else {
        let awaited = subject.gateway.settings.awaited.join("; ");
        let lacks = if awaited.is_empty() { "it has no [cloud]".to_owned() } else { awaited };
        let why = format!(
            "the old slot was {} at its hub, and this image could not be reached there: {lacks}; what outlives \
             both slots (credentials, conf.d) belongs into the state folder",
            before?
        );
        return Some(Answer::Fault(why));
    };
    if let Auth::X509 { certificate, key } = &cloud.auth {
        if let Err(error) = tls::client_config(&cloud.roots, Some((certificate, key)), &subject.gateway.clock)
        {
            return Some(Answer::Fault(error.to_string()));
        }
    }
    let now = hub_of(cloud);
    // The health check for a session is going to decide.
    let proven = *subject.gateway.cloud.borrow()
        || subject.on_trial.as_ref().is_some_and(|trial| trial.cloud_required);
    match before.filter(|before| short(&now) != *before && !proven) {
        Some(before) => Some(Answer::Fault(format!(
            "the old slot was {before} at its hub, and this image is {now} and has no session; correct [cloud] \
             in the image, or keep it in the state folder's conf.d"
        ))),
        None => Some(Answer::Well("they can be used".to_owned())),
    }
}

/// Asked of a trial too: the hub has the last word on who this gateway is. Where nobody answers, nothing is known.
pub(super) fn session(subject: &Subject) -> Option<Answer> {
    let connected = *subject.gateway.cloud.borrow();
    let Some(live) = &subject.live else {
        let open = || Answer::Well(OPEN.to_owned());
        return denied(subject).map(Answer::Fault).or_else(|| connected.then(open));
    };
    let doubt = match &subject.gateway.settings.cloud {
        None => Some(match subject.gateway.settings.awaited.first() {
            Some(awaited) => format!("no session: {awaited}"),
            None => "no [cloud] is configured".to_owned(),
        }),
        Some(_) if connected => None,
        Some(_) => Some(match &live.no_session {
            Some(reason) => format!("no session: {reason}"),
            None => "no session yet".to_owned(),
        }),
    };
    Some(Answer::doubt(OPEN, doubt))
}

/// Why the hub refuses this image.
fn denied(subject: &Subject) -> Option<String> {
    let why = subject.gateway.denial()?;
    Some(format!("{why}; the old slot had a session: what outlives both slots belongs into the state folder"))
}

/// Who this device is by its certificate, until when, and where the key is.
pub(super) fn certificate(subject: &Subject) -> Option<Answer> {
    let Auth::X509 { certificate, key } = &subject.gateway.settings.cloud.as_ref()?.auth else { return None };
    // Why it cannot be read is said of the settings.
    let holder = tls::holder(certificate).ok()?;
    let (end, now) = (holder.not_after, subject.gateway.clock.now());
    let place = match key {
        KeyPlace::File(file) => format!("in the file {}", file.display()),
        KeyPlace::Token(uri) => format!("in the token {uri}"),
    };
    let name = holder.name.unwrap_or_else(|| "nobody by name".to_owned());
    let until = told(end);
    let doubt = match now.checked_add(SOON) {
        _ if end <= now => Some(format!("it is expired since {until}: put another into its place")),
        Some(soon) if end < soon => {
            Some(format!("it ends at {until}: renew it, or this gateway loses its hub"))
        }
        _ => None,
    };
    Some(Answer::doubt(&format!("for {name}, until {until}; its key is {place}"), doubt))
}

/// Secrets that everybody on the gateway can read.
pub(super) fn credentials(subject: &Subject) -> Option<Answer> {
    let cloud = subject.gateway.settings.cloud.as_ref()?;
    let exposed: Vec<String> = cloud.exposed().iter().map(|path| path.display().to_string()).collect();
    let doubt = format!(
        "everybody can read {}, and so be this gateway at the hub: run `chmod 0600` on it",
        exposed.join(", ")
    );
    Some(Answer::doubt("no secret can be read by everybody", (!exposed.is_empty()).then_some(doubt)))
}

pub(super) fn clock(subject: &Subject) -> Option<Answer> {
    Some(Answer::doubt("synchronised", clock_doubt(&subject.gateway.clock)))
}

fn clock_doubt(clock: &Clock) -> Option<String> {
    let (origin, time) = clock.origin();
    let time = told(time);
    let why = match origin {
        TimeOrigin::Synchronised => return None,
        TimeOrigin::System => format!("the system's clock says {time}, and nobody keeps it right"),
        TimeOrigin::Learned(host) => {
            format!("{host} says that it is {time}, by which certificates and tokens go")
        }
        TimeOrigin::Saved => format!(
            "the system's clock says {}, which is past: {time} counts, which was saved earlier",
            told(clock.system_time())
        ),
    };
    let asked = clock.why_not_learned().map(|why| format!("; {why}")).unwrap_or_default();
    Some(format!(
        "not synchronised: {why}{asked}; windows and notBefore wait until a time service (systemd-timesyncd, chrony) sets \
         the clock, or, for this boot, whoever knows the time: `date -s \"YYYY-MM-DD hh:mm\" && install -D /dev/null \
         {VOUCHED}`"
    ))
}
