//! One way to cut and pack, tried on one pair of images.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Row;
use crate::chunks::{Chunk, bytes, chunks, missing};
use crate::config::{Config, Corpus, Form};
use crate::dictionary;
use crate::encoder::{Dictionary, Encoder};

pub fn run(new: &[u8], old: &[u8], sample: usize, c: &Config) -> Row {
    let (own, held) = (chunks(new, c), chunks(old, c));
    let missing = missing(&own, &held);
    let data = bytes(&own, |n| !own[n].zero);
    let lost = bytes(&own, |n| missing[n]);
    let mut trial = Trial { c, new, chunks: own, missing, dictionary: None };
    let fetched = trial.train(old, &held);
    let total = trial.total(sample);
    let scaled = |size: usize, used: usize, all: usize| match used {
        0 => 0,
        _ => (size as f64 * all as f64 / used as f64).round() as usize,
    };
    Row {
        chunks: trial.chunks.len(),
        data,
        missing: lost,
        full: scaled(total.full, total.content, data),
        delta: scaled(total.delta, total.lost, lost),
        index: 16 + 20 * trial.chunks.len(),
        dictionary: fetched,
    }
}

/// Bytes of sampled content, and what they take: of all chunks, and of the missing ones.
#[derive(Default)]
struct Total {
    content: usize,
    full: usize,
    lost: usize,
    delta: usize,
}

struct Trial<'a> {
    c: &'a Config,
    new: &'a [u8],
    chunks: Vec<Chunk>,
    missing: Vec<bool>,
    dictionary: Option<Dictionary>,
}

impl Trial<'_> {
    /// Makes the dictionary that is asked for; returns what has to be fetched of it.
    fn train(&mut self, old: &[u8], held: &[Chunk]) -> usize {
        let Some(training) = self.c.dictionary else { return 0 };
        let data = |n: &usize| !self.chunks[*n].zero;
        let own = 0..self.chunks.len();
        let of_new = |n: usize| &self.new[self.chunks[n].range.clone()];
        let corpus: Vec<&[u8]> = match training.from {
            Corpus::Old => held.iter().filter(|c| !c.zero).map(|c| &old[c.range.clone()]).collect(),
            Corpus::New => own.filter(data).map(of_new).collect(),
            Corpus::Missing => own.filter(|n| self.missing[*n]).map(of_new).collect(),
        };
        let bytes = dictionary::train(&corpus, training.size);
        let fetched = match training.from {
            Corpus::Old => 0,
            Corpus::New | Corpus::Missing => Encoder::new(19).frame(&bytes, None),
        };
        self.dictionary = Some(Dictionary::new(bytes, self.c.level));
        fetched
    }

    /// Compresses what is sampled, on two threads.
    fn total(&self, sample: usize) -> Total {
        // The same places of the image whatever the chunks are.
        let sampled = |group: &Range<usize>| {
            sample > 0 && (self.chunks[group.start].range.start >> 22) % sample == sample / 2
        };
        let groups: Vec<Range<usize>> = self.groups().into_iter().filter(sampled).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut encoder, mut total) = (Encoder::new(self.c.level), Total::default());
            while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.group(group.clone(), &mut encoder, &mut total);
            }
            total
        };
        let (a, b) = std::thread::scope(|scope| {
            let (a, b) = (scope.spawn(work), scope.spawn(work));
            (a.join().unwrap(), b.join().unwrap())
        });
        Total {
            content: a.content + b.content,
            full: a.full + b.full,
            lost: a.lost + b.lost,
            delta: a.delta + b.delta,
        }
    }

    /// Chunks by group: one ends with the chunk that reaches a multiple of GROUP.
    fn groups(&self) -> Vec<Range<usize>> {
        let number = |n: usize| self.chunks[n].range.start / self.c.group;
        let begins = |n: &usize| *n == 0 || number(*n) != number(n - 1);
        let starts: Vec<usize> = (0..self.chunks.len()).filter(begins).collect();
        let ends = starts.iter().skip(1).copied().chain([self.chunks.len()]);
        starts.iter().zip(ends).map(|(start, end)| *start..end).collect()
    }

    /// Compresses one group, and adds it up.
    fn group(&self, group: Range<usize>, encoder: &mut Encoder, total: &mut Total) {
        for (n, size) in group.clone().zip(self.sizes(&self.chunks[group], encoder)) {
            let length = self.chunks[n].range.len();
            total.full += size;
            if !self.chunks[n].zero {
                total.content += length;
            }
            if self.missing[n] {
                total.lost += length;
                total.delta += size;
            }
        }
    }

    /// What each of the group's chunks takes.
    fn sizes(&self, chunks: &[Chunk], encoder: &mut Encoder) -> Vec<usize> {
        let dictionary = self.dictionary.as_ref();
        if self.c.form == Form::Blocks {
            let lengths: Vec<usize> = chunks.iter().map(|chunk| chunk.range.len()).collect();
            let start = chunks[0].range.start;
            let content = &self.new[start..start + lengths.iter().sum::<usize>()];
            return encoder.blocks(content, &lengths, dictionary);
        }
        let frame = |chunk: &Chunk| match chunk.zero {
            true => 0,
            false => encoder.frame(&self.new[chunk.range.clone()], dictionary),
        };
        chunks.iter().map(frame).collect()
    }
}
