//! A panic is a fault of the program itself. It is logged once, with its place, and whoever asked for the work that it
//! ended is answered with `Internal`; nothing else ends by it.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use futures_util::FutureExt;
use tokio::task::JoinError;

use crate::failure::{Code, Failure};

/// From now on each panic is one entry in the log.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!("a fault of the program at {place}: {}", message(panic.payload()));
    }));
}

/// What `work` leads to, or what it panicked with. Locks in this program outlive a panic, and what `work` had changed
/// by then stays changed.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| failure(message(&*panic)))
}

/// Runs what blocks on a thread that may.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(of_task)?
}

/// Why a task ended that did not come to its end.
pub fn of_task(error: JoinError) -> Failure {
    match error.try_into_panic() {
        Ok(panic) => failure(message(&*panic)),
        Err(error) => failure(&error.to_string()),
    }
}

fn failure(why: &str) -> Failure {
    let message = format!("a fault of the program ended this: {why}; please report it, with its log");
    Failure::new(Code::Internal, message)
}

/// The words of a panic.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason is known")
}
