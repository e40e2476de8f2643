//! What came is not what was signed: it is fetched again, over other connections, until it is right or others, too, bring
//! what is wrong.

use crate::stage::download::doubt::Doubt;
use crate::stage::download::remote::{Remote, RemoteKind};
use crate::stage::download::web::Web;
use crate::stage::error::StageError;

pub(in crate::stage) struct Wrong<'a> {
    remote: &'a Remote,
    doubt: Doubt,
    attempts: u32,
}

impl Drop for Wrong<'_> {
    /// What was said to be waited for is here, or will never be.
    fn drop(&mut self) {
        if self.attempts > 0 {
            self.remote.meter().wait_for(None);
        }
    }
}

impl<'a> Wrong<'a> {
    pub fn new(remote: &'a Remote) -> Wrong<'a> {
        Wrong { remote, doubt: Doubt::default(), attempts: 0 }
    }

    /// Less is wrong than before.
    pub fn is_less(&mut self) {
        self.doubt.clear();
    }

    /// Waits, and says so, before the bytes are fetched once more, over another connection; an error once that is of no
    /// use.
    pub async fn again(&mut self, error: StageError) -> Result<(), StageError> {
        let (name, meter) = (self.remote.name(), self.remote.meter());
        let RemoteKind::Http(web) = &self.remote.kind else { return Err(error) };
        let number = web.number();
        let (error, left) = match self.doubt.weigh(error, number, web.http.doubt()) {
            Err(error) => return Err(self.remote.blame(web, error).await),
            Ok(again) => again,
        };
        meter.afford(0)?;
        web.elsewhere(number);
        if !web.is_verified() {
            web.forget(matches!(error, StageError::Changed { .. }));
        }
        let pause = web.http.pause(self.attempts).min(left);
        let reason = error.to_string();
        meter.wait_for(Some(&format!("{reason}; asked again, for one answer is not final")));
        tracing::warn!(url = name, reason, pause_ms = pause.as_millis() as u64, "fetched again");
        self.attempts = self.attempts.saturating_add(1);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl Remote {
    /// Attempts what needs bytes that a signature or a digest vouches for, until they are right or others, too, bring
    /// wrong ones.
    pub async fn insist<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, StageError>
    where
        F: Future<Output = Result<T, StageError>>,
    {
        use StageError::{Bundle, Changed, Manifest, Pin};
        let mut wrong = Wrong::new(self);
        loop {
            match attempt().await {
                Err(error @ (Bundle { .. } | Manifest { .. } | Pin { .. })) => wrong.again(error).await?,
                Err(error @ Changed { .. }) if !self.is_verified() => wrong.again(error).await?,
                done => return done,
            }
        }
    }

    /// Wrong bytes are those of another bundle, if it begins otherwise by now.
    async fn blame(&self, web: &Web, error: StageError) -> StageError {
        if !web.is_verified() {
            return error;
        }
        let limit = web.http.doubt().max(web.http.download.stall_timeout);
        match tokio::time::timeout(limit, self.begins_as_before(web)).await {
            Ok(Ok((false, _))) => StageError::Changed { url: self.name().to_owned() },
            _ => error,
        }
    }
}
