//! One group -> one zstd frame whose blocks can be unpacked one by one, given the content before them.
//!
//! zstd finds the matches for the group as a whole, so that a chunk is compressed with all that precedes it in
//! view. They are then cut at the chunks' ends, and each chunk is encoded as a block of its own that relies on
//! no table and no repeated offset of an earlier block. What comes out is unpacked again in both ways, as a
//! whole and block by block, before anybody gets to see it.

use fwupdate::bundle::{BLOCK_HEADER, Chunk, ChunkDigest, Decoder, frame_bound, frame_header};
use fwupdate::failure::{Code, Failure};
use zstd_safe::DCtx;

use crate::output::Result;
use crate::sequences::{Sequence, Sequencer};

/// Shortest match of the format, bytes.
const MATCH_MIN: u32 = 3;

/// The chunks of one group: their content and their lengths.
#[derive(Default)]
pub struct ChunkGroup {
    pub content: Vec<u8>,
    pub lengths: Vec<u32>,
}

pub struct EncodedChunk {
    pub bytes: Vec<u8>,
    pub length: u32,
    pub digest: ChunkDigest,
}

/// Compresses groups; keep one a thread.
pub struct Encoder {
    sequencer: Sequencer,
    decoder: Decoder,
    context: DCtx<'static>,
}

impl Encoder {
    pub fn new(level: i32) -> Result<Encoder> {
        Ok(Encoder {
            sequencer: Sequencer::new(level)?,
            decoder: Decoder::default(),
            context: DCtx::create(),
        })
    }

    /// The group's blocks, in order; the first carries the header of the frame.
    pub fn encode(&mut self, group: &ChunkGroup) -> Result<Vec<EncodedChunk>> {
        let mut cutter = SequenceCutter::new(self.sequencer.sequences(&group.content)?);
        let (mut blocks, mut rest) = (Vec::with_capacity(group.lengths.len()), group.content.as_slice());
        for length in &group.lengths {
            let (content, after) = rest.split_at((*length as usize).min(rest.len()));
            let mut bytes = match blocks.is_empty() {
                true => frame_header(group.content.len() as u32).to_vec(),
                false => Vec::new(),
            };
            let sequences = independent(cutter.take(*length));
            self.block(content, &sequences, after.is_empty(), &mut bytes)?;
            blocks.push(EncodedChunk { bytes, length: *length, digest: ChunkDigest::of(content) });
            rest = after;
        }
        self.check(group, &blocks)?;
        Ok(blocks)
    }

    /// Appends the block of `content`: stored as it is if that is not longer.
    fn block(&mut self, content: &[u8], sequences: &[Sequence], last: bool, out: &mut Vec<u8>) -> Result<()> {
        let header = |kind: u32| (content.len() as u32) << 3 | kind << 1 | u32::from(last);
        let start = out.len();
        let encoded = self.sequencer.block(content, sequences);
        match (content.split_first(), encoded) {
            (Some((first, rest)), _) if rest.iter().all(|byte| byte == first) => {
                out.extend(header(1).to_le_bytes().iter().take(BLOCK_HEADER));
                out.push(*first);
            }
            (_, Ok(block)) if block.len() < content.len() + BLOCK_HEADER => {
                out.extend_from_slice(block);
                if let Some(flags) = out.get_mut(start) {
                    *flags = *flags & !1 | u8::from(last);
                }
            }
            _ => {
                out.extend(header(0).to_le_bytes().iter().take(BLOCK_HEADER));
                out.extend_from_slice(content);
            }
        }
        Ok(())
    }

    /// Unpacks what was packed, as `zstd -d` and as a device does.
    fn check(&mut self, group: &ChunkGroup, blocks: &[EncodedChunk]) -> Result<()> {
        let broken = |what: &str| {
            let message = format!("zstd made a {what} that can't be unpacked; report this as a bug");
            Failure::new(Code::Internal, message)
        };
        let frame: Vec<u8> = blocks.iter().flat_map(|block| &block.bytes).copied().collect();
        let mut out = vec![0; group.content.len()];
        let whole = self.context.decompress(out.as_mut_slice(), &frame);
        if whole != Ok(out.len()) || out != group.content {
            return Err(broken("frame"));
        }
        let mut at = 0;
        for block in blocks {
            let (history, rest) = out.split_at_mut(at);
            let chunk = Chunk {
                offset: at as u64,
                group_offset: 0,
                length: block.length,
                frame_offset: 0,
                frame_length: block.bytes.len() as u32,
                digest: block.digest,
            };
            let content = rest.get_mut(..block.length as usize).unwrap_or_default();
            content.fill(0);
            let unpacked = self.decoder.decode(&[(chunk, &block.bytes)], history, content);
            if unpacked.is_err() || block.bytes.len() as u64 > frame_bound(block.length, at == 0) {
                return Err(broken("block"));
            }
            at += block.length as usize;
        }
        Ok(())
    }
}

/// Hands out a group's sequences chunk by chunk, cutting those that reach beyond.
struct SequenceCutter {
    sequences: std::vec::IntoIter<Sequence>,
    rest: Sequence,
}

impl SequenceCutter {
    fn new(sequences: Vec<Sequence>) -> SequenceCutter {
        SequenceCutter { sequences: sequences.into_iter(), rest: Sequence::default() }
    }

    /// The sequences of the next `length` bytes; the last one has literals only.
    fn take(&mut self, length: u32) -> Vec<Sequence> {
        let (mut own, mut left, mut literals) = (Vec::new(), length, 0);
        while left > 0 {
            if self.rest.literals == 0 && self.rest.length == 0 {
                match self.sequences.next() {
                    Some(next) => self.rest = next,
                    // What no sequence covers is literals.
                    None => {
                        literals += left;
                        left = 0;
                    }
                }
                continue;
            }
            let some = self.rest.literals.min(left);
            (self.rest.literals, left, literals) = (self.rest.literals - some, left - some, literals + some);
            let some = if self.rest.literals == 0 { self.rest.length.min(left) } else { 0 };
            (self.rest.length, left) = (self.rest.length - some, left - some);
            if some >= MATCH_MIN {
                own.push(Sequence { offset: self.rest.offset, literals, length: some });
                literals = 0;
            } else {
                literals += some;
            }
            if self.rest.length < MATCH_MIN {
                // Too short a rest to be a match.
                self.rest =
                    Sequence { literals: self.rest.literals + self.rest.length, ..Sequence::default() };
            }
        }
        own.push(Sequence { literals, ..Sequence::default() });
        own
    }
}

/// Turns matches into literals that zstd would encode by the offsets that it takes to be the latest at a
/// frame's start (RFC 8878, 3.1.1.5): within the whole frame those are others.
fn independent(sequences: Vec<Sequence>) -> Vec<Sequence> {
    // The three latest offsets, and whether this block has set them.
    let mut recent = [(1, false), (4, false), (8, false)];
    let (mut result, mut literals) = (Vec::with_capacity(sequences.len()), 0);
    for mut sequence in sequences {
        sequence.literals += literals;
        literals = 0;
        let found = recent.iter().position(|(offset, _)| *offset == sequence.offset);
        let foreign = found.and_then(|at| recent.get(at)).is_some_and(|(_, own)| !own);
        if sequence.length > 0 && foreign {
            literals = sequence.literals + sequence.length;
            continue;
        }
        if sequence.length > 0 {
            recent.get_mut(..=found.unwrap_or(2)).unwrap_or_default().rotate_right(1);
            recent[0] = (sequence.offset, true);
        }
        result.push(sequence);
    }
    match result.last_mut() {
        Some(last) if last.length == 0 => last.literals += literals,
        _ => result.push(Sequence { literals, ..Sequence::default() }),
    }
    result
}
