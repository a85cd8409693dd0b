//! The bytes on the wire: a head of fixed length, then the message.
//!
//! ```text
//! 0   magic     "LQFB"
//! 4   version   u16   all numbers little-endian
//! 6   kind      u16   what the message is, to those who talk; from 0xff00 on the handshake's
//! 8   epoch     u64
//! 16  sequence  u64
//! 24  length    u32   bytes of the message
//! 28  checksum  u32   CRC-32 of the message
//! 32  checksum  u32   CRC-32 of bytes 0..32: a damaged length is seen before it is believed
//! ```

use crate::{FabricError, Result};

pub(crate) const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"LQFB";

/// Bytes that a frame adds to its message.
pub const HEAD_BYTES: usize = 36;

/// The longest message: 512 rows of DeepSeek-R1, each from 8 experts, in f32, with room to spare.
pub const FRAME_BYTES_MAX: usize = 256 << 20;

/// The largest kind that is free for those who talk.
pub const KIND_MAX: u16 = 0xfeff;

/// What a message is and which it is. The fabric carries it and does not look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// At most [`KIND_MAX`].
    pub kind: u16,
    /// Of the connection: whoever was fenced answers under an epoch that is over.
    pub epoch: u64,
    /// A reply bears the number of what it answers.
    pub sequence: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub tag: Tag,
    pub length: usize,
    pub checksum: u32,
}

impl Head {
    /// Of a message in parts.
    pub fn of(tag: Tag, parts: &[&[u8]]) -> Result<Self> {
        let length = parts.iter().map(|part| part.len()).sum();
        bounded(length, FRAME_BYTES_MAX)?;
        let mut checksum = crc32fast::Hasher::new();
        parts.iter().for_each(|part| checksum.update(part));
        Ok(Self { tag, length, checksum: checksum.finalize() })
    }

    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        let Tag { kind, epoch, sequence } = self.tag;
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[28..32].copy_from_slice(&self.checksum.to_le_bytes());
        let own = crc32fast::hash(&bytes[..32]);
        bytes[32..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Checks all that a head alone can show, the length against `bytes_max` among it.
    pub fn decode(bytes: &[u8; HEAD_BYTES], bytes_max: usize) -> Result<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if bytes[..4] != MAGIC {
            return Err(FabricError::Corrupt("it does not open with the magic bytes"));
        }
        if crc32fast::hash(&bytes[..32]) != u32_at(32) {
            return Err(FabricError::Corrupt("its head has another checksum"));
        }
        if u16_at(4) != VERSION {
            return Err(FabricError::Version { found: u16_at(4), expected: VERSION });
        }
        let length = u32_at(24) as usize;
        bounded(length, bytes_max.min(FRAME_BYTES_MAX))?;
        let tag = Tag { kind: u16_at(6), epoch: u64_at(8), sequence: u64_at(16) };
        Ok(Self { tag, length, checksum: u32_at(28) })
    }

    pub fn check(&self, message: &[u8]) -> Result<()> {
        match crc32fast::hash(message) == self.checksum {
            true => Ok(()),
            false => Err(FabricError::Corrupt("its message has another checksum")),
        }
    }
}

fn bounded(bytes: usize, bytes_max: usize) -> Result<()> {
    if bytes > bytes_max { Err(FabricError::TooLong { bytes, bytes_max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: Tag = Tag { kind: 7, epoch: 1 << 40, sequence: u64::MAX };

    #[test]
    fn heads_come_back_as_they_were() {
        let head = Head::of(TAG, &[b"twelve ", b"", b"bytes"]).expect("short");
        assert_eq!(head.length, 12);
        assert_eq!(Head::decode(&head.encode(), 12).expect("sound"), head);
        assert!(head.check(b"twelve bytes").is_ok());
        assert!(head.check(b"twelve bytez").is_err());
        let long = Head::decode(&head.encode(), 11).expect_err("too long");
        assert!(matches!(long, FabricError::TooLong { bytes: 12, bytes_max: 11 }), "{long}");
    }

    #[test]
    fn every_flipped_bit_of_a_head_is_seen() {
        let sound = Head::of(TAG, &[b"message"]).expect("short").encode();
        for bit in 0..HEAD_BYTES * 8 {
            let mut bytes = sound;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = Head::decode(&bytes, 100).expect_err("a flipped bit");
            assert!(matches!(error, FabricError::Corrupt(_)), "bit {bit}: {error}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = Head::of(TAG, &[]).expect("short").encode();
        bytes[4] = 9;
        let own = crc32fast::hash(&bytes[..32]);
        bytes[32..].copy_from_slice(&own.to_le_bytes());
        let error = Head::decode(&bytes, 100).expect_err("version 9");
        assert!(matches!(error, FabricError::Version { found: 9, expected: VERSION }), "{error}");
    }
}
