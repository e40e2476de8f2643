//! Missing frames -> few range requests. Neighbours are joined, and so are frames with a gap between them that
//! is cheaper to fetch than another request. The device makes these requests and `estimate` counts them, so that
//! what it predicts is what will be fetched.

use std::ops::Range;

use super::chunk::Chunk;
use super::index::Index;
use super::layout::Layout;

/// A gap of so many bytes costs less than the headers and the round trip of a request of its own.
pub const GAP: u64 = 768;
/// Longest request, bytes: what a lost connection or an expired link may interrupt.
pub const LONGEST: u64 = 1 << 19;

/// One request: a byte range of the bundle, and the chunks whose frames it is made for, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub span: Range<u64>,
    pub chunks: Vec<u32>,
}

/// The requests for all chunks that are `missing`, by position; made one at a time.
pub fn runs<'a>(
    index: &'a Index,
    layout: &'a Layout,
    mut missing: impl FnMut(usize, &Chunk) -> bool + 'a,
) -> impl Iterator<Item = Run> + 'a {
    let frame = move |(position, chunk): (usize, Chunk)| {
        missing(position, &chunk).then(|| (position as u32, layout.frame(&chunk)))
    };
    let frames = index.iter().enumerate().filter_map(frame);
    join(frames).map(|(span, chunks)| Run { span, chunks })
}

/// Joins neighbours of ascending spans to requests, made one at a time.
pub fn join<T>(spans: impl Iterator<Item = (T, Range<u64>)>) -> impl Iterator<Item = (Range<u64>, Vec<T>)> {
    let mut spans = spans.peekable();
    std::iter::from_fn(move || {
        let (first, mut whole) = spans.next()?;
        let mut parts = vec![first];
        let joins = |whole: &Range<u64>, span: &Range<u64>| {
            span.start.saturating_sub(whole.end) <= GAP && span.end.saturating_sub(whole.start) <= LONGEST
        };
        while let Some((part, span)) = spans.next_if(|(_, span)| joins(&whole, span)) {
            whole.end = span.end;
            parts.push(part);
        }
        Some((whole, parts))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::testing;
    use crate::manifest::Body;

    #[test]
    fn neighbours_are_joined_and_every_missing_frame_is_covered_once() {
        // Noise, so that frames are as long as their chunks, with some that compress to almost nothing.
        let mut random = fastrand::Rng::with_seed(1);
        let mut image = vec![0u8; 12 << 20];
        image.iter_mut().for_each(|byte| *byte = random.u8(..));
        image[3 << 20..7 << 20].fill(7);
        let parts = testing::parts(&image, "board", "1");
        let body = Body::parse(&parts.manifest).unwrap();
        let index = Index::parse(parts.index, &body.image).unwrap();
        let layout = Layout::new(4096, &body);
        let count = index.len();
        let whole: Vec<Run> = runs(&index, &layout, |_, _| true).collect();
        assert!((16..=20).contains(&whole.len()), "{}", whole.len());
        assert_eq!(
            whole.iter().map(|run| run.span.end - run.span.start).sum::<u64>(),
            body.image.payload_size
        );

        let parts: Vec<Run> = runs(&index, &layout, |n, _| n % 3 == 0).collect();
        let chunks: Vec<u32> = parts.iter().flat_map(|run| run.chunks.clone()).collect();
        let wanted: Vec<u32> = (0..count).filter(|n| n % 3 == 0).map(|n| n as u32).collect();
        assert_eq!(chunks, wanted);
        for run in &parts {
            assert!(run.span.end - run.span.start <= LONGEST);
            for pair in run.chunks.windows(2) {
                let [before, after] =
                    [pair[0], pair[1]].map(|n| layout.frame(&index.get(n as usize).unwrap()));
                assert!(after.start - before.end <= GAP);
            }
        }
        // The gaps between noise chunks are too long to fetch, those between the others are not.
        assert!(parts.len() > 10 && parts.len() < chunks.len());
    }
}
