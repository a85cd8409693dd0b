//! Activations laid out in groups of 16 rows, for products of many rows, and the sums that come of them.

use super::{CHUNK, OCTETS, PANEL_ROWS, QuantRows, RowChunk, pair_place};

/// Rows of activations in a group.
pub(crate) const TILE_ROWS: usize = 16;

/// A chunk of 16 rows of activations (a plane each) that meet large blocks; rows that are not there are zeros.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct LargeRows {
    pub v: [[i8; CHUNK]; TILE_ROWS],
    /// At their [`pair_place`].
    pub sums16: [[i16; 16]; TILE_ROWS],
    pub sums32: [[i16; 8]; TILE_ROWS],
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

/// A chunk of a plane of a matrix of activations, and what its values get more, bit by bit.
#[derive(Clone, Copy)]
pub(crate) struct ChunkOf<'a> {
    pub x: QuantRows<'a>,
    pub plane: usize,
    pub chunk: usize,
    pub raised: u8,
}

impl<'a> ChunkOf<'a> {
    /// Of a row.
    fn of(self, row: u32) -> &'a RowChunk {
        &self.x.chunk(self.chunk, row as usize)[self.plane]
    }

    fn arrange_values(self, rows: &[u32], v: &mut [[i8; CHUNK]; TILE_ROWS]) {
        for (i, v) in v.iter_mut().enumerate() {
            match rows.get(i) {
                Some(&row) => v.iter_mut().zip(&self.of(row).v).for_each(|(v, x)| *v = x ^ self.raised as i8),
                None => v.fill(0),
            }
        }
    }
}

impl LargeRows {
    pub const ZERO: Self = Self { v: [[0; _]; _], sums16: [[0; _]; _], sums32: [[0; _]; _], d: [0.0; _] };

    /// Takes in a chunk of a plane of up to 16 rows.
    pub fn arrange(&mut self, of: ChunkOf<'_>, rows: &[u32]) {
        of.arrange_values(rows, &mut self.v);
        for i in 0..TILE_ROWS {
            let x = rows.get(i).map_or(&RowChunk::ZERO, |&row| of.of(row));
            (self.sums16[i], self.sums32[i], self.d[i]) = (x.sums16, x.sums32, x.d[0]);
        }
    }
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
