//! What of the log is written: `FWUPDATE_LOG`. A value that cannot be meant never silences the agent.

use tracing_subscriber::filter::{LevelFilter, Targets};

/// What is written unless the variable says otherwise.
const DEFAULT: &str = "info,rumqttc=warn";

/// The filter that `wanted` asks for, and what is wrong with it; what it does not speak of keeps its default.
pub fn filter(wanted: Option<&str>) -> (Targets, Option<String>) {
    let mut filter = default();
    let words = wanted.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words {
        let (target, wanted) = match word.split_once('=') {
            Some((target, wanted)) => (Some(target.trim()), wanted.trim()),
            None => (None, word),
        };
        filter = match (target, level(wanted)) {
            (None, Some(level)) => filter.with_default(level),
            (Some(target), Some(level)) if !target.is_empty() => filter.with_target(target, level),
            _ => return (default(), Some(wrong(word))),
        };
    }
    (filter, None)
}

/// An empty word would be `error`.
fn level(word: &str) -> Option<LevelFilter> {
    (!word.is_empty()).then(|| word.parse().ok()).flatten()
}

fn default() -> Targets {
    DEFAULT.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO))
}

fn wrong(word: &str) -> String {
    format!(
        "FWUPDATE_LOG says {word:?}, which is no level: use off, error, warn, info, debug or trace, or \
         target=level, ...; the log is as if it were not set"
    )
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    const AGENT: &str = "fwupdate::agent";

    #[test]
    fn what_is_asked_for_is_written_and_the_rest_keeps_its_default() {
        for (wanted, target, level, written) in [
            (None, AGENT, Level::INFO, true),
            (None, AGENT, Level::DEBUG, false),
            (None, "rumqttc", Level::INFO, false),
            (Some(""), AGENT, Level::INFO, true),
            (Some("debug"), AGENT, Level::DEBUG, true),
            (Some("DEBUG"), AGENT, Level::DEBUG, true),
            (Some("warn"), AGENT, Level::INFO, false),
            (Some("off"), AGENT, Level::ERROR, false),
            (Some("fwupdate::hub=trace"), "fwupdate::hub", Level::TRACE, true),
            (Some("fwupdate::hub=trace"), AGENT, Level::INFO, true),
            (Some(" warn , rumqttc = debug "), "rumqttc", Level::DEBUG, true),
        ] {
            let (filter, complaint) = filter(wanted);
            assert_eq!(complaint, None, "{wanted:?}");
            assert_eq!(filter.would_enable(target, &level), written, "{wanted:?} {target} {level}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_said_and_silences_nothing() {
        for wanted in ["loud", "info,loud", "fwupdate=loud", "=debug", "fwupdate=", "debug warn", "true"] {
            let (filter, complaint) = filter(Some(wanted));
            assert!(complaint.is_some_and(|text| text.contains("FWUPDATE_LOG")), "{wanted}");
            assert!(filter.would_enable(AGENT, &Level::INFO), "{wanted}");
        }
    }
}
