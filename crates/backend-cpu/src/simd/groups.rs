//! Activations laid out in groups of 16 rows, for products of many rows, and the sums that come of them.

use super::{CHUNK, OCTETS, PANEL_ROWS, QuantRows, RowChunk, pair_place};

/// Rows of activations in a group.
pub(crate) const TILE_ROWS: usize = 16;

/// A chunk of 16 rows of activations (a plane each) that meet large blocks; rows that are not there are zeros.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct LargeRows {
    pub v: [[i8; CHUNK]; TILE_ROWS],
    /// For tiles sums of 16 values, each as two numbers of bf16 (see [`bf16_parts`]); else those of 16 and of 32 values
    /// at their [`pair_place`].
    pub sums: [[u16; CHUNK / 16 * 2]; TILE_ROWS],
    pub d: [f32; TILE_ROWS],
}

/// The same for small blocks.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct SmallRows {
    pub v: [[i8; CHUNK]; TILE_ROWS],
    /// `[octet, row]`
    pub d: [[f32; TILE_ROWS]; OCTETS],
    pub sums: [[i32; TILE_ROWS]; OCTETS],
}

/// What activations that are not for tiles have more here than elsewhere.
const RAISED: i8 = i8::MIN;

/// A chunk of a plane of a matrix of activations, and what it is for.
#[derive(Clone, Copy)]
pub(crate) struct ChunkOf<'a> {
    pub x: QuantRows<'a>,
    pub plane: usize,
    pub chunk: usize,
    pub for_tiles: bool,
}

impl<'a> ChunkOf<'a> {
    /// Of a row.
    fn of(self, row: u32) -> &'a RowChunk {
        &self.x.chunk(self.chunk, row as usize)[self.plane]
    }

    fn arrange_values(self, rows: &[u32], v: &mut [[i8; CHUNK]; TILE_ROWS]) {
        let raised = if self.for_tiles { 0 } else { RAISED };
        for (i, v) in v.iter_mut().enumerate() {
            match rows.get(i) {
                Some(&row) => v.iter_mut().zip(&self.of(row).v).for_each(|(v, x)| *v = x ^ raised),
                None => v.fill(0),
            }
        }
    }
}

impl LargeRows {
    pub const ZERO: Self = Self { v: [[0; _]; _], sums: [[0; _]; _], d: [0.0; _] };

    /// Takes in a chunk of a plane of up to 16 rows.
    pub fn arrange(&mut self, of: ChunkOf<'_>, rows: &[u32]) {
        of.arrange_values(rows, &mut self.v);
        for i in 0..TILE_ROWS {
            let x = rows.get(i).map_or(&RowChunk::ZERO, |&row| of.of(row));
            self.d[i] = x.d[0];
            if of.for_tiles {
                for (group, parts) in self.sums[i].as_chunks_mut().0.iter_mut().enumerate() {
                    *parts = bf16_parts(x.sums16[pair_place(group)]);
                }
            } else {
                let both = x.sums16.iter().chain(&x.sums32);
                self.sums[i].iter_mut().zip(both).for_each(|(to, sum)| *to = sum.cast_unsigned());
            }
        }
    }

    /// The sums of so many values of a row, where they are not for tiles.
    pub fn sums_of(&self, row: usize, values: usize) -> &[u16] {
        let (sums16, sums32) = self.sums[row].split_at(CHUNK / 16);
        if values == 16 { sums16 } else { sums32 }
    }
}

/// An integer below 2^13 as the sum of two that bf16 holds exactly: a multiple of 64, and what is left.
fn bf16_parts(value: i16) -> [u16; 2] {
    let most = (value + 32) & !63;
    [most, value - most].map(|part| (f32::from(part).to_bits() >> 16) as u16)
}

impl SmallRows {
    pub const ZERO: Self = Self { v: [[0; _]; _], d: [[0.0; _]; _], sums: [[0; _]; _] };

    /// Takes in a chunk of a plane of up to 16 rows.
    pub fn arrange(&mut self, of: ChunkOf<'_>, rows: &[u32]) {
        of.arrange_values(rows, &mut self.v);
        for i in 0..TILE_ROWS {
            let x = rows.get(i).map_or(&RowChunk::ZERO, |&row| of.of(row));
            for o in 0..OCTETS {
                (self.d[o][i], self.sums[o][i]) = (x.d[o], i32::from(x.sums32[pair_place(o)]));
            }
        }
    }
}

/// Outputs of a panel for 16 rows. `[row of activations, weight row]`
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TileSums(pub [[f32; PANEL_ROWS]; TILE_ROWS]);

impl Default for TileSums {
    fn default() -> Self {
        Self::ZERO
    }
}

impl TileSums {
    pub const ZERO: Self = Self([[0.0; _]; _]);
}
