//! Activations laid out as the right operand of tile products, and the sums that come of them.

use super::avx512::transpose;
use super::{CHUNK, PANEL_ROWS, QuantRows};

/// Activations side by side in a tile.
pub(crate) const TILE_COLUMNS: usize = 16;

/// 64 bytes at their alignment: a row of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [i8; 64]);

/// A number for each of 16 activations.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Floats(pub [f32; TILE_COLUMNS]);

/// Two sums of values for each of 16 activations.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct SumPairs(pub [[i16; 2]; TILE_COLUMNS]);

/// Outputs of a panel for 16 activations. `[weight row, activation]`
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileSums(pub [[f32; TILE_COLUMNS]; PANEL_ROWS]);

impl TileSums {
    pub const ZERO: Self = Self([[0.0; _]; _]);
}

/// Vectors of activations (a plane of a row each) as tiles, in groups of 16. What a panel's stretch meets lies
/// together: groups follow each other within a chunk of 256 values, chunks have whole lengths.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// `[chunk, group, value / 4, vector, value % 4]`
    pub tiles: &'a [Line],
    /// `[chunk, group, block, vector]`
    pub d: &'a [Floats],
    /// Sums of 16 values, two in a pair. `[chunk, group, value / 32, vector, 2]`
    pub sums16: &'a [SumPairs],
    /// Sums of 32 values. `[chunk, group, value / 64, vector, 2]`
    pub sums32: &'a [SumPairs],
    /// Groups of all jobs, and the first and number of those meant here.
    pub all_groups: usize,
    pub first: usize,
    pub groups: usize,
    /// Values to a scale.
    pub block: usize,
    pub planes: usize,
}

impl Columns<'_> {
    /// What the unchecked loads of the kernels rely on.
    pub(super) fn check(&self, start: usize, len: usize, sums: usize) {
        let chunks = self.tiles.len() / (self.all_groups * CHUNK / 4).max(1);
        assert!(start.is_multiple_of(CHUNK) && len <= CHUNK && start / CHUNK < chunks);
        assert!(self.groups == sums * self.planes && self.first + self.groups <= self.all_groups);
        let all = chunks * self.all_groups;
        assert!(self.tiles.len() == all * (CHUNK / 4) && self.d.len() == all * (CHUNK / self.block));
        assert!(self.sums16.len() == all * (CHUNK / 32) && self.sums32.len() == all * (CHUNK / 64));
    }

    /// Number of a group in the chunk at `start`.
    pub(super) fn at(&self, start: usize, group: usize) -> usize {
        start / CHUNK * self.all_groups + self.first + group
    }
}

/// The same to be written: a chunk of one group.
pub(crate) struct Group<'a> {
    pub tiles: &'a mut [Line],
    pub d: &'a mut [Floats],
    pub sums16: &'a mut [SumPairs],
    pub sums32: &'a mut [SumPairs],
}

/// Lays out a chunk of a plane of up to 16 rows of `x`; what is beyond them becomes zeros.
///
/// # Safety
/// The machine must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn arrange(x: QuantRows<'_>, rows: &[u32], [plane, chunk]: [usize; 2], out: Group<'_>) {
    let QuantRows { block, planes, stride, v, d, sums16, sums32 } = x;
    let start = chunk * CHUNK;
    assert!(rows.len() <= TILE_COLUMNS && plane < planes && rows.iter().all(|&r| (r as usize) < x.rows()));
    assert!(start < stride && out.tiles.len() == CHUNK / 4 && out.d.len() == CHUNK / block);
    let len = (stride - start).min(CHUNK);
    let vector = |column: usize| (rows[column] as usize * planes + plane) * stride + start;
    out.d.fill(Floats([0.0; _]));
    out.sums16.fill(SumPairs([[0; _]; _]));
    out.sums32.fill(SumPairs([[0; _]; _]));
    for (tile, lines) in out.tiles.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mut held = [Line([0; 64]); TILE_COLUMNS];
        if tile * 64 < len {
            for column in 0..rows.len() {
                held[column].0.copy_from_slice(&v[vector(column) + tile * 64..][..64]);
            }
        }
        // SAFETY: both are 16 lines of 16 words.
        unsafe { transpose(held.as_ptr().cast(), 16, lines.as_mut_ptr().cast()) };
    }
    for column in 0..rows.len() {
        let at = vector(column);
        for (out, d) in out.d.iter_mut().zip(&d[at / block..][..len / block]) {
            out.0[column] = *d;
        }
        for (out, sums, of) in [(&mut *out.sums16, sums16, 16), (&mut *out.sums32, sums32, 32)] {
            for (pair, sums) in out.iter_mut().zip(sums[at / of..][..len / of].as_chunks::<2>().0) {
                pair.0[column] = *sums;
            }
        }
    }
}
