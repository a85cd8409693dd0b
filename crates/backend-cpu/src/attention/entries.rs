//! Entries of the cache: how they are written, where they are, and what is in them.

use std::ops::Range;

use lingqu_backend::{KvEntry, KvStore, Step, View};

use crate::Core;
use crate::isa::per_isa;
use crate::math::f32_to_f16;
use crate::memory::{KvCells, Source};
use crate::step::StepTables;

use super::product::BLOCK;

pub(crate) fn kv_append(core: &Core, step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) {
    let tables = step.storage::<StepTables>();
    let entry = kv.spec().entry;
    assert_eq!(kv.spec().block_tokens, tables.block_tokens, "positions in a block");
    let (k, v) = (Source::of(k), v.map(Source::of));
    let fits = match (entry, &v) {
        (KvEntry::Latent { width, .. }, None) => k.width() == width,
        (KvEntry::Separate { kv_heads, k_dim, v_dim }, Some(v)) => {
            [k.heads, k.len, v.heads, v.len, v.rows] == [kv_heads, k_dim, kv_heads, v_dim, k.rows]
        }
        _ => false,
    };
    assert!(fits && k.rows == tables.tokens.len(), "shapes of keys and values for {entry:?}");
    let kv = kv.storage_mut::<KvCells>();
    for row in 0..k.rows {
        let mut at = tables.entry(kv, layer, row, tables.positions[row] as usize);
        for source in [Some(&k), v.as_ref()].into_iter().flatten() {
            for head in 0..source.heads {
                to_halves(core.simd, source.head(row, head), &mut kv.cells[at..at + source.len]);
                at += source.len;
            }
        }
    }
}

impl StepTables {
    /// Where the cache has `position` of the sequence that `row` belongs to.
    pub fn entry(&self, kv: &KvCells, layer: usize, row: usize, position: usize) -> usize {
        let sequence = &self.sequences[self.sequence_of[row] as usize];
        kv.entry(layer, sequence.blocks[position / self.block_tokens], position % self.block_tokens)
    }
}

per_isa! {
    fn to_halves(values: &[f32], out: &mut [u16]) = to_halves_plain
}

#[inline(always)]
fn to_halves_plain(values: &[f32], out: &mut [u16]) {
    for (value, out) in values.iter().zip(out) {
        *out = f32_to_f16(*value);
    }
}

/// Where the key and value of a kv head lie in an entry.
#[derive(Clone, Copy)]
pub(super) struct EntryShape {
    pub kv_heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
    /// The value is the start of the key.
    pub shared: bool,
}

impl EntryShape {
    pub fn of(entry: KvEntry) -> Self {
        match entry {
            KvEntry::Separate { kv_heads, k_dim, v_dim } => Self { kv_heads, k_dim, v_dim, shared: false },
            KvEntry::Latent { width, v_dim } => {
                assert!(v_dim <= width, "a value longer than its latent entry");
                Self { kv_heads: 1, k_dim: width, v_dim, shared: true }
            }
        }
    }

    /// Where the keys and the values of some kv heads are in an entry.
    pub fn places(&self, first_kv: usize, count: usize) -> [Range<usize>; 2] {
        let EntryShape { kv_heads, k_dim, v_dim, shared } = *self;
        let (key, value) = (first_kv * k_dim, kv_heads * k_dim + first_kv * v_dim);
        [key..key + count * k_dim, if shared { 0..v_dim } else { value..value + count * v_dim }]
    }

    /// Blocks of a key.
    pub fn k_blocks(&self) -> usize {
        self.k_dim.div_ceil(BLOCK)
    }

    /// Blocks of a value.
    pub fn v_blocks(&self) -> usize {
        self.v_dim.div_ceil(BLOCK)
    }

    /// Between outputs: not a power of two, or the stores of one row would hold up the loads of the next.
    pub fn out_stride(&self) -> usize {
        self.v_blocks() * BLOCK + 16
    }
}
