//! What caused an error: the cause of a certain sort, and the words of all of them.

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

/// An error and what caused it, each said once: many a message has its cause's words in it already.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut told, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        let words = cause.to_string();
        if !told.contains(&words) {
            told = format!("{told}: {words}");
        }
        next = cause.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{path} cannot be read: {source}; check it")]
    struct Outer {
        path: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = Outer { path: "/x", source: std::io::Error::other("gone") };
        assert_eq!(chain(&error), "/x cannot be read: gone; check it");
        let wrapped = anyhow::Error::from(error).context("starting");
        assert_eq!(chain(wrapped.as_ref()), "starting: /x cannot be read: gone; check it");
    }
}
