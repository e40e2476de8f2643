//! A hub that cannot be reached for a moment is no reason to stop watching.

use std::time::{Duration, Instant};

use crate::error::Error;

/// How long the hub may be out of reach, or a twin silent about the operation that is followed.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Bridges failures to reach the hub, as long as they do not last.
#[derive(Debug)]
pub struct HubPatience {
    limit: Duration,
    /// The first failure in a row.
    since: Option<Instant>,
}

impl Default for HubPatience {
    fn default() -> HubPatience {
        HubPatience { limit: LIMIT, since: None }
    }
}

impl HubPatience {
    /// `None`: it failed, and may be tried again.
    pub fn forgive<T>(&mut self, outcome: Result<T, Error>) -> Result<Option<T>, Error> {
        match outcome {
            Ok(value) => {
                self.since = None;
                Ok(Some(value))
            }
            Err(Error::Unreachable(why)) => {
                let since = *self.since.get_or_insert_with(Instant::now);
                if since.elapsed() < self.limit { Ok(None) } else { Err(Error::Unreachable(why)) }
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
        let mut impatient = HubPatience { limit: Duration::ZERO, since: None };
        assert!(impatient.forgive(away()).is_err());
    }
}
