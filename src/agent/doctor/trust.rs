//! What may be installed: keys, board, security version and hosts, as this image's settings have them.

use super::subject::{Answer, Subject, short};
use crate::stage::BundleSource;

/// Enough different keys that can be used; one file that can't be is named, and passed over.
pub(super) fn keys(subject: &Subject) -> Option<Answer> {
    let settings = &subject.gateway.settings.trust;
    let found = match subject.gateway.keys() {
        Ok(found) => found,
        Err(failure) => return Some(Answer::Fault(failure.message)),
    };
    let (usable, needed) = (found.trusted.len(), settings.required_signatures);
    let passed_over = found.unusable.join("; ");
    if usable < needed {
        let why = format!(
            "trust.required_signatures is {needed}, and {} holds {usable} different key(s) that can be used: \
             no bundle can be accepted",
            settings.keys.display()
        );
        let more = if passed_over.is_empty() { String::new() } else { format!(" ({passed_over})") };
        return Some(Answer::Fault(why + &more));
    }
    if !passed_over.is_empty() {
        return Some(Answer::Doubt(format!("{passed_over}; it is passed over")));
    }
    let before = subject.on_trial.as_ref().and_then(|on_trial| on_trial.before.as_ref());
    let ids: Vec<String> = found.trusted.ids().map(ToString::to_string).collect();
    let strange = before.is_some_and(|b| !b.keys.is_empty() && !ids.iter().any(|id| b.keys.contains(id)));
    let doubt = "this image trusts none of the keys that the old slot trusted: the next bundle must be signed \
                 by another key";
    let good = format!("{usable} key(s) can be used, {needed} must sign");
    Some(Answer::doubt(&good, strange.then(|| doubt.to_owned())))
}

/// The bundle was made for the board that the old slot named.
pub(super) fn board(subject: &Subject) -> Option<Answer> {
    let before = &subject.on_trial.as_ref()?.before.as_ref()?.compatible;
    let now = &subject.gateway.settings.compatible;
    let same = short(now) == *before;
    let why = format!(
        "this image says compatible = {now:?}, and its own bundle was made for {before:?}: bundles for this \
         board would be refused as WrongBoard; correct `compatible` in the image"
    );
    Some(Answer::of("the board is the one that the bundle was made for", same.then_some(()).ok_or(why)))
}

/// A floor above the image's own number would refuse whatever is numbered like it.
pub(super) fn security_version(subject: &Subject) -> Option<Answer> {
    let signed = subject.on_trial.as_ref()?.plan.image.as_ref()?.security_version;
    let claimed = subject.gateway.os_release().security_version;
    let why = format!(
        "this image's os-release says FWUPDATE_SECURITY_VERSION={claimed}, and its bundle has {signed}: \
         bundles numbered like it would be refused as Downgrade; give both the same number"
    );
    Some(Answer::of("not above the bundle's own", (claimed <= signed).then_some(()).ok_or(why)))
}

/// Below the floor nothing is installed, for good: one that no image here accounts for would end updating.
pub(super) fn floor(subject: &Subject) -> Option<Answer> {
    let (record, dir) = (&subject.record, subject.gateway.settings.state.dir.display());
    let images = [&record.slots.a.image, &record.slots.b.image].into_iter().flatten();
    let numbers = images.map(|image| image.security_version);
    let os = subject.gateway.os_release();
    if let Some(text) = os.misread {
        return Some(Answer::Fault(format!(
            "os-release says FWUPDATE_SECURITY_VERSION={}, which is no whole number and counts as none: correct it in \
             the image",
            short(&text)
        )));
    }
    let known = numbers.chain([os.security_version]).max().unwrap_or_default();
    let floor = record.floor;
    let why = format!(
        "the record says that nothing below security version {floor} may be installed, and neither slot's image has that \
         number: give releases --security-version {floor} or a higher one; if you never made such a release, the \
         record was damaged or forged, so find out who writes to {dir}, stop the agent, delete record.0 and record.1 \
         there (history and quarantine go with them), and start it again"
    );
    let good = format!("{}: releases need --security-version {0} or a higher one", known.max(floor));
    Some(Answer::of(&good, (floor <= known).then_some(()).ok_or(why)))
}

pub(super) fn downloads(subject: &Subject) -> Option<Answer> {
    let http = subject.gateway.http();
    Some(Answer::of("the download settings can be used", http.map(drop).map_err(|failure| failure.message)))
}

/// The server that this image came from would be asked again.
pub(super) fn package_host(subject: &Subject) -> Option<Answer> {
    let operation = &subject.on_trial.as_ref()?.plan.operation;
    let Ok(BundleSource::Http(url)) = subject.gateway.source(operation) else { return None };
    // What is wrong with the settings as a whole is said by `downloads`.
    let http = subject.gateway.http().ok()?;
    let refused = |why: String| {
        format!(
            "this image refuses the server that its own bundle came from: {why}; correct trust.allowed_hosts"
        )
    };
    Some(Answer::of("the server of this image's bundle is allowed", http.allows(&url).map_err(refused)))
}
