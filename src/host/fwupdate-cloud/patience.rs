//! A hub that cannot be reached for a moment is no reason to stop watching.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::service::Service;

/// How long the hub may be out of reach, or a twin silent about the operation that is followed.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Between two looks: a hub answers 20 queries a minute, and each look costs two and a read of the job.
const INTERVAL: Duration = Duration::from_secs(10);
/// A hub on this machine has no such limit.
const LOCAL_INTERVAL: Duration = Duration::from_millis(500);

/// Looks again and again, and shows each `line` that is new, until what was found `is_over`.
pub async fn follow<T, F: Future<Output = Result<T, Error>>>(
    service: &Service,
    look: impl Fn() -> F,
    line: impl Fn(&T) -> String,
    is_over: impl Fn(&T) -> bool,
    out: &mut impl Write,
) -> Result<T, Error> {
    let (mut shown, mut patience) = (String::new(), HubPatience::default());
    loop {
        if let Some(found) = patience.forgive(look().await)? {
            let line = line(&found);
            if line != shown {
                writeln!(out, "{line}")?;
                out.flush()?;
                shown = line;
            }
            if is_over(&found) {
                return Ok(found);
            }
        }
        tokio::time::sleep(if service.is_local() { LOCAL_INTERVAL } else { INTERVAL }).await;
    }
}

/// Bridges failures to reach the hub, as long as they do not last.
#[derive(Debug, Default)]
struct HubPatience {
    /// The first failure in a row.
    since: Option<Instant>,
}

impl HubPatience {
    /// `None`: it failed, and may be tried again.
    fn forgive<T>(&mut self, outcome: Result<T, Error>) -> Result<Option<T>, Error> {
        match outcome {
            Ok(value) => {
                self.since = None;
                Ok(Some(value))
            }
            Err(Error::Unreachable(why)) => {
                let since = *self.since.get_or_insert_with(Instant::now);
                if since.elapsed() < LIMIT { Ok(None) } else { Err(Error::Unreachable(why)) }
            }
            Err(other) => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Result<(), Error> {
        Err(Error::Unreachable("no route".into()))
    }

    #[test]
    fn only_what_passes_is_forgiven_and_not_for_ever() {
        let mut patience = HubPatience::default();
        assert!(matches!(patience.forgive(away()), Ok(None)));
        assert!(matches!(patience.forgive(Ok(())), Ok(Some(()))));
        assert!(patience.since.is_none(), "a success begins anew");
        assert!(patience.forgive::<()>(Err(Error::failed("NotFound", "no job"))).is_err());
        let mut impatient = HubPatience { since: Instant::now().checked_sub(LIMIT) };
        assert!(impatient.forgive(away()).is_err());
    }
}
