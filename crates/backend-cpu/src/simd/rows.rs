//! Rows of quantised activations as kernels read them.

use super::{CHUNK, OCTET, OCTETS};

/// Where the sum of a group lies among those of a row: of each four groups 0, 2, 1, 3, for bytes of four groups turn to
/// words of groups 0 and 2 by a mask, and to those of 1 and 3 by a shift.
pub(crate) const fn pair_place(group: usize) -> usize {
    group / 4 * 4 + [0, 2, 1, 3][group % 4]
}

/// 256 values of a row, of one plane, and all that a kernel asks of them: a row then costs it one register.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct RowChunk {
    /// Each in -127..=127.
    pub v: [i8; CHUNK],
    /// The scale of each octet, or that of all in first place.
    pub d: [f32; OCTETS],
    /// Sums of 32 values, at their [`pair_place`].
    pub sums32: [i16; CHUNK / 32],
    /// Sums of 16 values, alike.
    pub sums16: [i16; CHUNK / 16],
}

impl RowChunk {
    pub const ZERO: Self = Self { v: [0; _], d: [0.0; _], sums32: [0; _], sums16: [0; _] };
}

/// Rows of quantised activations: `x = sum over planes of d * v`.
#[derive(Clone, Copy)]
pub(crate) struct QuantRows<'a> {
    /// Values that share a scale: 32 or 256.
    pub block: usize,
    /// 1 or 2.
    pub planes: usize,
    pub rows: usize,
    /// What a row has not of its last chunk is zero. `[chunks, rows, planes]`
    pub chunks: &'a [RowChunk],
}

impl<'a> QuantRows<'a> {
    /// Chunks of a row.
    pub fn count(self) -> usize {
        self.chunks.len() / (self.rows * self.planes).max(1)
    }

    /// The planes of a chunk of a row.
    pub fn chunk(self, chunk: usize, row: usize) -> &'a [RowChunk] {
        &self.chunks[(chunk * self.rows + row) * self.planes..][..self.planes]
    }

    /// Where those of some rows lie, one plane after the other; the next chunk's lie [`Self::to_next`] further.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn pointers<const N: usize>(self, chunk: usize, rows: &[u32; N]) -> [*const RowChunk; N] {
        rows.map(|row| self.chunks.as_ptr().wrapping_add((chunk * self.rows + row as usize) * self.planes))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn to_next(self) -> usize {
        self.rows * self.planes
    }

    pub fn check(self) {
        assert!((self.block == OCTET || self.block == CHUNK) && (1..=2).contains(&self.planes));
        assert!(self.chunks.len() == self.count() * self.rows * self.planes);
    }
}
