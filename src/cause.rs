//! What caused an error, for those who tell its sort and not its words.

use std::error::Error;
use std::io;

/// An error of type `E`: `error` itself or one of its causes.
pub fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(inner) = next {
        if let Some(found) = inner.downcast_ref() {
            return Some(found);
        }
        // An `io::Error` hides what it wraps from `source`.
        let wrapped = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or(inner.source());
    }
    None
}
