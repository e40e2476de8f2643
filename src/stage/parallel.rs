//! Work on the parts of something long, in a thread for each.

use std::ops::Range;

use crate::stage::error::StageError;

/// `0..count` in `parts` ranges of nearly the same length.
pub fn split(count: u64, parts: usize) -> Vec<Range<u64>> {
    let length = count.div_ceil(parts.max(1) as u64).max(1);
    (0..count).step_by(length as usize).map(|start| start..start.saturating_add(length).min(count)).collect()
}

/// Runs `work` on each part in a thread of its own, and returns what it returned, in order.
pub fn in_parallel<P: Send, T: Send>(
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> T + Sync,
) -> Result<Vec<T>, StageError> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| {
            thread.join().map_err(|_| StageError::Thread("one of several panicked".into()))
        };
        // All are joined, also after an error.
        let done: Vec<_> = threads.into_iter().map(join).collect();
        done.into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for (count, parts) in [(0, 2), (1, 4), (7, 2), (8, 4), (9, 0)] {
            let covered: Vec<u64> = split(count, parts).into_iter().flatten().collect();
            assert_eq!(covered, (0..count).collect::<Vec<u64>>());
        }
    }
}
