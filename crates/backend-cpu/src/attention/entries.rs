//! Entries of the cache: how they are written, where they are, and what is in them.

use std::ops::Range;

use lingqu_backend::kv_int8::{KV_GROUP, round_group};
use lingqu_backend::{KvEntry, KvPrecision, KvSpec, KvStore, Step, View};

use crate::Core;
use crate::isa::per_isa;
use crate::math::f32_to_f16;
use crate::memory::{KvCells, Source, group_cells, head_cells};
use crate::step::StepTables;

use super::product::BLOCK;

pub(crate) fn kv_append(core: &Core, step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) {
    let tables = step.storage::<StepTables>();
    let KvSpec { entry, precision, .. } = *kv.spec();
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
                let cells = &mut kv.cells[at..at + head_cells(source.len, precision)];
                match precision {
                    KvPrecision::Full => to_halves(core.simd, source.head(row, head), cells),
                    KvPrecision::Int8 => to_bytes(core.simd, source.head(row, head), cells),
                }
                at += cells.len();
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

per_isa! {
    fn to_bytes(values: &[f32], out: &mut [u16]) = to_bytes_plain
}

#[inline(always)]
fn to_bytes_plain(values: &[f32], out: &mut [u16]) {
    for (values, out) in values.chunks(KV_GROUP).zip(out.chunks_mut(group_cells(KV_GROUP))) {
        let mut codes = [0; KV_GROUP];
        out[0] = round_group(values, &mut codes[..values.len()]).to_bits();
        for (pair, out) in codes.as_chunks::<2>().0.iter().zip(&mut out[1..]) {
            *out = u16::from_ne_bytes(pair.map(|code| code as u8));
        }
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
    pub precision: KvPrecision,
}

/// Up to 64 values of a head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Where it begins in an entry.
    pub cell: usize,
    pub len: usize,
    pub precision: KvPrecision,
}

// Where one scale ends, the other begins.
const _: () = assert!(KV_GROUP == BLOCK);

impl EntryShape {
    pub fn of(spec: &KvSpec) -> Self {
        let KvSpec { entry, precision, .. } = *spec;
        match entry {
            KvEntry::Separate { kv_heads, k_dim, v_dim } => Self { kv_heads, k_dim, v_dim, shared: false, precision },
            KvEntry::Latent { width, v_dim } => {
                assert!(v_dim <= width, "a value longer than its latent entry");
                Self { kv_heads: 1, k_dim: width, v_dim, shared: true, precision }
            }
        }
    }

    /// The cells of the keys and of the values of some kv heads in an entry.
    pub fn places(&self, first_kv: usize, count: usize) -> [Range<usize>; 2] {
        let EntryShape { kv_heads, k_dim, v_dim, shared, precision } = *self;
        let (k_cells, v_cells) = (head_cells(k_dim, precision), head_cells(v_dim, precision));
        let (key, value) = (first_kv * k_cells, kv_heads * k_cells + first_kv * v_cells);
        [key..key + count * k_cells, if shared { 0..v_cells } else { value..value + count * v_cells }]
    }

    /// The blocks of a head of `dim` values whose cells begin at `start`.
    pub fn blocks(&self, start: usize, dim: usize) -> impl Iterator<Item = Block> + use<> {
        let precision = self.precision;
        let cells = head_cells(BLOCK, precision);
        let values = move |block: usize| (dim - block * BLOCK).min(BLOCK);
        (0..dim.div_ceil(BLOCK)).map(move |i| Block { cell: start + i * cells, len: values(i), precision })
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
