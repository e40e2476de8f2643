//! The two functions of libzstd that have no safe wrapper: content -> matches, and matches -> one block. The
//! only module of this program that may use `unsafe`; each call says why it is sound.
//!
//! Both belong to libzstd's experimental interface. `Encoder` unpacks what comes out before it uses it, so a
//! change there can't do more harm than an error.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use fwupdate::failure::{Code, Failure};
use zstd_safe::zstd_sys::{
    ZSTD_CCtx, ZSTD_CCtx_reset, ZSTD_CCtx_setParameter, ZSTD_ResetDirective, ZSTD_Sequence, ZSTD_cParameter,
    ZSTD_compressBound, ZSTD_compressSequences, ZSTD_createCCtx, ZSTD_frameHeaderSize, ZSTD_freeCCtx,
    ZSTD_generateSequences, ZSTD_isError, ZSTD_sequenceBound,
};

use crate::output::Result;

/// `literals` bytes as they are, then `length` bytes from `offset` bytes back; `length` may be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sequence {
    pub offset: u32,
    pub literals: u32,
    pub length: u32,
}

pub struct Sequencer {
    context: NonNull<ZSTD_CCtx>,
    level: i32,
    raw: Vec<ZSTD_Sequence>,
    out: Vec<u8>,
}

// SAFETY: a context belongs to its owner alone and is not bound to a thread.
unsafe impl Send for Sequencer {}

impl Drop for Sequencer {
    fn drop(&mut self) {
        // SAFETY: it was created by `new` and nobody else has it.
        unsafe { ZSTD_freeCCtx(self.context.as_ptr()) };
    }
}

impl Sequencer {
    pub fn new(level: i32) -> Result<Sequencer> {
        // SAFETY: no arguments; null is the only failure.
        let context = NonNull::new(unsafe { ZSTD_createCCtx() });
        let context = context.ok_or_else(|| Failure::new(Code::Internal, "zstd: out of memory"))?;
        Ok(Sequencer { context, level, raw: Vec::new(), out: Vec::new() })
    }

    /// Finds the matches of `content`: sequences that cover it from its start; what they leave is literals.
    pub fn sequences(&mut self, content: &[u8]) -> Result<Vec<Sequence>> {
        self.reset()?;
        // SAFETY: plain arithmetic.
        let bound = unsafe { ZSTD_sequenceBound(content.len()) };
        self.raw.resize(bound, raw(Sequence::default()));
        // SAFETY: the output has room for `bound` sequences, the input is `content`, and neither is kept.
        let found = unsafe {
            let context = self.context.as_ptr();
            ZSTD_generateSequences(
                context,
                self.raw.as_mut_ptr(),
                bound,
                content.as_ptr().cast(),
                content.len(),
            )
        };
        let count = checked(found)?;
        let sequence = |raw: &ZSTD_Sequence| Sequence {
            offset: raw.offset,
            literals: raw.litLength,
            length: raw.matchLength,
        };
        Ok(self.raw.iter().take(count).map(sequence).collect())
    }

    /// Encodes `content` by these sequences, which must cover it and end with literals only, as one block.
    pub fn block(&mut self, content: &[u8], sequences: &[Sequence]) -> Result<&[u8]> {
        let covered: u64 = sequences.iter().map(|s| u64::from(s.literals) + u64::from(s.length)).sum();
        let ends = sequences.last().is_some_and(|last| last.length == 0);
        if covered != content.len() as u64 || !ends {
            return Err(Failure::new(Code::Internal, "zstd: the sequences do not cover the chunk"));
        }
        self.reset()?;
        // Explicit ends of blocks, and repeated offsets where they pay.
        self.set(ZSTD_cParameter::ZSTD_c_experimentalParam11, 1)?;
        self.set(ZSTD_cParameter::ZSTD_c_experimentalParam19, 1)?;
        self.set(ZSTD_cParameter::ZSTD_c_minMatch, 3)?;
        self.raw.clear();
        self.raw.extend(sequences.iter().copied().map(raw));
        // SAFETY: plain arithmetic.
        self.out.resize(unsafe { ZSTD_compressBound(content.len()) }, 0);
        // SAFETY: lengths go with their buffers, nothing is kept, and the sequences cover `content` exactly,
        // so that no literal is read from beyond it. Matches are not followed when they are encoded.
        let size = unsafe {
            ZSTD_compressSequences(
                self.context.as_ptr(),
                self.out.as_mut_ptr().cast(),
                self.out.len(),
                self.raw.as_ptr(),
                self.raw.len(),
                content.as_ptr().cast(),
                content.len(),
            )
        };
        let frame = self.out.get(..checked(size)?).unwrap_or_default();
        // SAFETY: reads no more than `frame.len()` bytes.
        let header = checked(unsafe { ZSTD_frameHeaderSize(frame.as_ptr().cast(), frame.len()) })?;
        Ok(frame.get(header..).unwrap_or_default())
    }

    /// Begins anew, with the level alone set.
    fn reset(&mut self) -> Result<()> {
        let directive = ZSTD_ResetDirective::ZSTD_reset_session_and_parameters;
        // SAFETY: the context is alive and no other thread uses it.
        checked(unsafe { ZSTD_CCtx_reset(self.context.as_ptr(), directive) })?;
        self.set(ZSTD_cParameter::ZSTD_c_compressionLevel, self.level)
    }

    fn set(&mut self, parameter: ZSTD_cParameter, value: i32) -> Result<()> {
        // SAFETY: the context is alive and no other thread uses it.
        checked(unsafe { ZSTD_CCtx_setParameter(self.context.as_ptr(), parameter, value) }).map(drop)
    }
}

fn raw(sequence: Sequence) -> ZSTD_Sequence {
    let Sequence { offset, literals, length } = sequence;
    ZSTD_Sequence { offset, litLength: literals, matchLength: length, rep: 0 }
}

fn checked(code: usize) -> Result<usize> {
    // SAFETY: plain arithmetic.
    match unsafe { ZSTD_isError(code) } {
        0 => Ok(code),
        _ => Err(Failure::new(Code::Internal, format!("zstd: {}", zstd_safe::get_error_name(code)))),
    }
}
