//! Rows of bytes, side by side.

use super::PANEL_ROWS;
use crate::panels::LINE_BYTES;

/// Up to 16 rows of bytes, so many bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub bytes: &'a [u8],
    pub stride: usize,
    pub count: usize,
}

impl<'a> Strided<'a> {
    /// A row and what follows.
    #[inline(always)]
    pub fn row(self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..]
    }
}

/// Lines of four bytes of each row: bytes `from + 4 i..` of row `r` to bytes `4 r..` of line `i`. There must be a
/// multiple of four lines. What is in a line for rows that are not there stays.
#[inline(always)]
pub(crate) fn interleave<'o>(
    rows: Strided<'_>,
    from: usize,
    mut out: impl ExactSizeIterator<Item = &'o mut [u8; LINE_BYTES]>,
) {
    assert!(rows.count <= PANEL_ROWS && out.len().is_multiple_of(4));
    for four in 0..out.len() / 4 {
        let mut lines: [&mut [u8; LINE_BYTES]; 4] = std::array::from_fn(|_| out.next().expect("as many as it says"));
        let start = from + four * 16;
        let whole = rows.count / 4;
        for group in 0..whole {
            let rows = std::array::from_fn(|r| rows.row(group * 4 + r)[start..].first_chunk().expect("four words"));
            for (line, words) in lines.iter_mut().zip(transposed(rows)) {
                line.as_chunks_mut().0[group] = words;
            }
        }
        for r in whole * 4..rows.count {
            for (line, word) in lines.iter_mut().zip(rows.row(r)[start..].as_chunks::<4>().0) {
                line.as_chunks_mut().0[r] = *word;
            }
        }
    }
}

/// 4 x 4 words.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(rows: [&[u8; 16]; 4]) -> [[u8; 16]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: 16 bytes are read of 16; SSE2 is there in every x86-64.
    let [a, b, c, d] = rows.map(|row| unsafe { _mm_loadu_si128(row.as_ptr().cast()) });
    // SAFETY: as above.
    let lines = unsafe {
        let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        [
            _mm_unpacklo_epi64(ab, cd),
            _mm_unpackhi_epi64(ab, cd),
            _mm_unpacklo_epi64(ab_high, cd_high),
            _mm_unpackhi_epi64(ab_high, cd_high),
        ]
    };
    // SAFETY: any bytes are bytes.
    lines.map(|line| unsafe { std::mem::transmute(line) })
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transposed(rows: [&[u8; 16]; 4]) -> [[u8; 16]; 4] {
    let mut lines = [[0; 16]; 4];
    for (r, row) in rows.into_iter().enumerate() {
        for (line, word) in lines.iter_mut().zip(row.as_chunks::<4>().0) {
            line[r * 4..r * 4 + 4].copy_from_slice(word);
        }
    }
    lines
}
