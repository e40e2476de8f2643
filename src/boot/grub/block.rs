//! The bytes of an environment block: a signature line, `name=value` lines in which `\` escapes itself and a
//! newline, comment lines that start with `#`, and `#` up to the end.

use crate::boot::variables;
use crate::slot::BootEnv;

pub const SIZE: usize = 1024;
pub const SECTOR: usize = 512;

const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// Bytes that our lines always take: a comment of `#` fills up, so that nothing behind them moves when a
/// trial begins or ends.
const OURS: usize = 76;

/// The lines of a valid block, each with its newline, raw.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Block {
    lines: Vec<Vec<u8>>,
}

pub fn has_signature(bytes: &[u8]) -> bool {
    bytes.starts_with(SIGNATURE)
}

/// Whether another's variable can be read in bytes that are no block; ours would be set anew.
pub fn has_text(bytes: &[u8]) -> bool {
    let is_variable = |line: &[u8]| {
        let end = line.iter().position(|byte| *byte == b'=').unwrap_or_default();
        let name = line.get(..end).unwrap_or_default();
        let theirs = name.len() > 1 && !name.starts_with(variables::PREFIX.as_bytes());
        theirs && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    };
    bytes.split(|byte| *byte == b'\n').any(is_variable)
}

impl Block {
    /// `None`: GRUB could not read the block, or could not save to it.
    pub fn parse(bytes: &[u8]) -> Option<Block> {
        if bytes.len() != SIZE {
            return None;
        }
        let mut rest = bytes.strip_prefix(SIGNATURE)?;
        while let Some(shorter) = rest.strip_suffix(b"#") {
            rest = shorter;
        }
        let mut lines = Vec::new();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at_checked(line_length(rest)?)?;
            lines.push(line.to_vec());
            rest = tail;
        }
        Some(Block { lines })
    }

    /// A variable's value, unescaped; empty where it is not set. Of two lines the later counts, as in GRUB.
    pub fn get(&self, name: &str) -> String {
        let value = self.lines.iter().rev().find_map(|line| {
            let rest = line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            rest.strip_suffix(b"\n")
        });
        let mut out = Vec::new();
        let mut bytes = value.unwrap_or_default().iter();
        while let Some(byte) = bytes.next() {
            out.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The whole block with our variables first and all other lines behind them as they are; `Err` gives the
    /// bytes that would be needed.
    pub fn render(&self, env: &BootEnv) -> Result<Vec<u8>, usize> {
        let mut out = SIGNATURE.to_vec();
        for (name, value) in variables::NAMES.iter().zip(variables::values(env)) {
            out.extend_from_slice(format!("{name}={value}\n").as_bytes());
        }
        out.resize(SIGNATURE.len().saturating_add(OURS).saturating_sub(1), b'#');
        out.push(b'\n');
        for line in self.lines.iter().filter(|line| !is_ours(line)) {
            out.extend_from_slice(line);
        }
        if out.len() > SIZE {
            return Err(out.len());
        }
        out.resize(SIZE, b'#');
        Ok(out)
    }
}

/// Our variables, and comments of nothing but `#`.
fn is_ours(line: &[u8]) -> bool {
    let ours = |name: &&str| line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    variables::NAMES.iter().any(ours) || line.iter().all(|byte| matches!(byte, b'#' | b'\n'))
}

/// Length of the first line with its newline, which a backslash hides; `None`: there is no end.
fn line_length(bytes: &[u8]) -> Option<usize> {
    let mut escaped = false;
    let end = bytes.iter().position(|byte| {
        let end = *byte == b'\n' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        end
    });
    end.map(|index| index.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::{Armed, Slot};

    fn block(text: &str) -> Vec<u8> {
        let mut bytes = [SIGNATURE, text.as_bytes()].concat();
        bytes.resize(SIZE, b'#');
        bytes
    }

    #[test]
    fn values_are_unescaped_and_the_last_counts() {
        let block = Block::parse(&block("# a=0\na=1\na=x\\\\y\\\nz\nb=\n")).unwrap();
        assert_eq!(block.get("a"), "x\\y\nz");
        assert_eq!(block.get("b"), "");
        assert_eq!(block.get("c"), "");
    }

    #[test]
    fn other_lines_stay_where_they_are_whatever_ours_hold() {
        let old = Block::parse(&block("# note\nx=1\\\n2\nfwupdate_trial=A\ny=fwupdate_trial=\n")).unwrap();
        let armed =
            BootEnv { primary: Slot::A, trial: Some(Armed { slot: Slot::B, tries: 9 }), fallback: None };
        for env in [BootEnv::only(Slot::B), armed] {
            let bytes = old.render(&env).unwrap();
            assert!(bytes[SIGNATURE.len() + OURS..].starts_with(b"# note\nx=1\\\n2\ny=fwupdate_trial=\n##"));
            assert_eq!(Block::parse(&bytes).unwrap().render(&env).unwrap(), bytes);
        }
    }

    #[test]
    fn what_grub_could_not_save_to_is_no_block() {
        let good = block("a=1\n");
        assert!(Block::parse(&good).is_some());
        assert!(Block::parse(&good[..SIZE - 1]).is_none());
        assert!(Block::parse(&[]).is_none());
        assert!(Block::parse(&[0; SIZE]).is_none());
        assert!(Block::parse(&block("a=1")).is_none(), "no newline before the fill");
        assert!(Block::parse(&block("a=1\\\n")).is_none(), "the last newline is hidden");
    }

    #[test]
    fn a_full_block_says_what_it_needs() {
        let line = format!("a={}\n", "x".repeat(SIZE - SIGNATURE.len() - OURS - 3));
        let fits = Block::parse(&block(&line)).unwrap();
        assert_eq!(fits.render(&BootEnv::only(Slot::A)).unwrap().len(), SIZE);
        let longer = Block { lines: vec![format!("x{line}").into_bytes()] };
        assert_eq!(longer.render(&BootEnv::only(Slot::A)), Err(SIZE + 1));
    }
}
