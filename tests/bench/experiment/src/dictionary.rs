//! Dictionaries, trained by zstd's own trainer.

use zstd_sys::*;

/// So many samples at most, of so many bytes at most: what the trainer can take in.
const SAMPLES: usize = 6000;
const SAMPLE: usize = 32 << 10;

/// A dictionary of at most `size` bytes for content like `chunks`.
pub fn train(chunks: &[&[u8]], size: usize) -> Vec<u8> {
    let step = chunks.len().div_ceil(SAMPLES).max(1);
    let samples: Vec<&[u8]> =
        chunks.iter().step_by(step).map(|chunk| &chunk[..chunk.len().min(SAMPLE)]).collect();
    let lengths: Vec<usize> = samples.iter().map(|sample| sample.len()).collect();
    let (content, count) = (samples.concat(), lengths.len() as u32);
    let mut out = vec![0; size];
    let made = unsafe {
        let into = out.as_mut_ptr().cast();
        ZDICT_trainFromBuffer(into, size, content.as_ptr().cast(), lengths.as_ptr(), count)
    };
    assert!(unsafe { ZDICT_isError(made) } == 0, "zstd can't train a dictionary of {size} bytes");
    out.truncate(made);
    out
}
