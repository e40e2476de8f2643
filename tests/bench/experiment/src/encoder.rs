//! How long chunks become, as frames of their own and as blocks of their group's frame.

use std::ptr::null;

use zstd_sys::*;

/// Bytes of the header of a group's frame, and of a block.
const FRAME_HEADER: usize = 9;
const BLOCK_HEADER: usize = 3;
const MATCH_MIN: u32 = 3;
const NONE: ZSTD_Sequence = ZSTD_Sequence { offset: 0, litLength: 0, matchLength: 0, rep: 0 };

/// A trained dictionary: its bytes, and zstd's form of it for one level.
pub struct Dictionary {
    pub bytes: Vec<u8>,
    digested: *mut ZSTD_CDict,
}

// It is only read once it is made.
unsafe impl Sync for Dictionary {}

impl Dictionary {
    pub fn new(bytes: Vec<u8>, level: i32) -> Dictionary {
        let digested = unsafe { ZSTD_createCDict(bytes.as_ptr().cast(), bytes.len(), level) };
        assert!(!digested.is_null());
        Dictionary { bytes, digested }
    }
}

impl Drop for Dictionary {
    fn drop(&mut self) {
        unsafe { ZSTD_freeCDict(self.digested) };
    }
}

pub struct Encoder {
    context: *mut ZSTD_CCtx,
    level: i32,
    out: Vec<u8>,
    raw: Vec<ZSTD_Sequence>,
}

impl Drop for Encoder {
    fn drop(&mut self) {
        unsafe { ZSTD_freeCCtx(self.context) };
    }
}

impl Encoder {
    pub fn new(level: i32) -> Encoder {
        Encoder { context: unsafe { ZSTD_createCCtx() }, level, out: Vec::new(), raw: Vec::new() }
    }

    /// The length of `content` as one frame.
    pub fn frame(&mut self, content: &[u8], dictionary: Option<&Dictionary>) -> usize {
        self.reset(content.len());
        let digested = dictionary.map_or(null(), |dictionary| dictionary.digested.cast_const());
        checked(unsafe { ZSTD_CCtx_refCDict(self.context, digested) });
        let (out, size) = (self.out.as_mut_ptr().cast(), self.out.len());
        checked(unsafe { ZSTD_compress2(self.context, out, size, content.as_ptr().cast(), content.len()) })
    }

    /// The length of each chunk of `group` as a block that relies on the content before it, which begins with
    /// `dictionary`, but on no table and no repeated offset. The first one has the frame's header.
    pub fn blocks(&mut self, group: &[u8], lengths: &[usize], dictionary: Option<&Dictionary>) -> Vec<usize> {
        let before = dictionary.map_or(&[][..], |dictionary| &dictionary.bytes);
        let mut cutter =
            Cutter { sequences: self.sequences(&[before, group].concat()).into_iter(), rest: NONE };
        cutter.take(before.len() as u32);
        let (mut sizes, mut rest) = (Vec::with_capacity(lengths.len()), group);
        for length in lengths {
            let (content, after) = rest.split_at(*length);
            let sequences = independent(cutter.take(*length as u32));
            let header = if sizes.is_empty() { FRAME_HEADER } else { 0 };
            sizes.push(header + self.block(content, &sequences));
            rest = after;
        }
        sizes
    }

    fn sequences(&mut self, content: &[u8]) -> Vec<ZSTD_Sequence> {
        self.reset(0);
        self.raw.resize(unsafe { ZSTD_sequenceBound(content.len()) }, NONE);
        let (raw, room) = (self.raw.as_mut_ptr(), self.raw.len());
        let count = checked(unsafe {
            ZSTD_generateSequences(self.context, raw, room, content.as_ptr().cast(), content.len())
        });
        self.raw[..count].to_vec()
    }

    fn block(&mut self, content: &[u8], sequences: &[ZSTD_Sequence]) -> usize {
        if content.iter().all(|byte| *byte == content[0]) {
            return BLOCK_HEADER + 1;
        }
        self.reset(content.len());
        self.set(ZSTD_cParameter::ZSTD_c_experimentalParam11, 1); // explicit ends of blocks
        self.set(ZSTD_cParameter::ZSTD_c_experimentalParam19, 1); // repeated offsets where they pay
        self.set(ZSTD_cParameter::ZSTD_c_minMatch, MATCH_MIN as i32);
        let (out, room) = (self.out.as_mut_ptr(), self.out.len());
        let (from, length) = (content.as_ptr().cast(), content.len());
        let size = checked(unsafe {
            let (list, count) = (sequences.as_ptr(), sequences.len());
            ZSTD_compressSequences(self.context, out.cast(), room, list, count, from, length)
        });
        let header = checked(unsafe { ZSTD_frameHeaderSize(out.cast(), size) });
        (size - header).min(content.len() + BLOCK_HEADER)
    }

    fn reset(&mut self, length: usize) {
        let directive = ZSTD_ResetDirective::ZSTD_reset_session_and_parameters;
        checked(unsafe { ZSTD_CCtx_reset(self.context, directive) });
        self.set(ZSTD_cParameter::ZSTD_c_compressionLevel, self.level);
        self.out.resize(unsafe { ZSTD_compressBound(length) }, 0);
    }

    fn set(&self, parameter: ZSTD_cParameter, value: i32) {
        checked(unsafe { ZSTD_CCtx_setParameter(self.context, parameter, value) });
    }
}

fn checked(code: usize) -> usize {
    assert!(unsafe { ZSTD_isError(code) } == 0, "zstd: error {}", code.wrapping_neg());
    code
}

/// Hands out sequences chunk by chunk, cutting those that reach beyond, as `fwupdate-bundle` does.
struct Cutter {
    sequences: std::vec::IntoIter<ZSTD_Sequence>,
    rest: ZSTD_Sequence,
}

impl Cutter {
    /// The sequences of the next `length` bytes; the last one has literals only.
    fn take(&mut self, length: u32) -> Vec<ZSTD_Sequence> {
        let (mut own, mut left, mut literals) = (Vec::new(), length, 0);
        while left > 0 {
            let rest = &mut self.rest;
            if rest.litLength == 0 && rest.matchLength == 0 {
                *rest = self.sequences.next().expect("sequences that cover the content");
                continue;
            }
            let some = rest.litLength.min(left);
            (rest.litLength, left, literals) = (rest.litLength - some, left - some, literals + some);
            let some = if rest.litLength == 0 { rest.matchLength.min(left) } else { 0 };
            (rest.matchLength, left) = (rest.matchLength - some, left - some);
            if some >= MATCH_MIN {
                own.push(ZSTD_Sequence {
                    offset: rest.offset,
                    litLength: literals,
                    matchLength: some,
                    rep: 0,
                });
                literals = 0;
            } else {
                literals += some;
            }
            if rest.matchLength < MATCH_MIN {
                // Too short a rest to be a match.
                *rest = ZSTD_Sequence { litLength: rest.litLength + rest.matchLength, ..NONE };
            }
        }
        own.push(ZSTD_Sequence { litLength: literals, ..NONE });
        own
    }
}

/// Turns matches into literals that zstd would encode by a frame's first three repeated offsets.
fn independent(sequences: Vec<ZSTD_Sequence>) -> Vec<ZSTD_Sequence> {
    let mut recent = [(1, false), (4, false), (8, false)];
    let (mut result, mut literals) = (Vec::with_capacity(sequences.len()), 0);
    for mut sequence in sequences {
        sequence.litLength += literals;
        literals = 0;
        let found = recent.iter().position(|(offset, _)| *offset == sequence.offset);
        if sequence.matchLength > 0 && found.is_some_and(|at| !recent[at].1) {
            literals = sequence.litLength + sequence.matchLength;
            continue;
        }
        if sequence.matchLength > 0 {
            recent[..=found.unwrap_or(2)].rotate_right(1);
            recent[0] = (sequence.offset, true);
        }
        result.push(sequence);
    }
    result.last_mut().expect("the chunk's last literals").litLength += literals;
    result
}
