//! The KV cache and causal attention over it: blocked, with an online softmax.
//!
//! The cache holds f16, rounded to nearest even and held within its finite range, or 8 bits (`kv_int8` of the seam);
//! all else is f32. Positions are taken
//! in tiles of 64 and in splits of 256, both counted from position 0 of the sequence: what a row computes depends on
//! its own position alone, never on its neighbours.
//! - A score is one chain of fused multiply-adds over the values of query and key, in order, then times the scale.
//! - A tile at a time, weights `exp(score - most)` with the running maximum `most` are summed in 16 lanes by position;
//!   where a tile moves the maximum, sums and outputs before it are multiplied by `exp(old - new)`.
//! - An output is one chain of `fma(weight, value, output)` over the positions of a split.
//! - Splits are merged in order (`softmax.rs`); at the end the lanes are added as a tree and the output is multiplied
//!   by one over that.
//!
//! Keys are transposed tile by tile, so that both sums have positions or values in lanes and no lanes are added up.
//! `tasks.rs` cuts the work, `entries.rs` writes the cache, `product.rs` has the kernel that takes most of the time,
//! `x86.rs` its form by hand; `ahead.rs` asks for what comes next.

mod ahead;
mod entries;
mod product;
mod softmax;
mod tasks;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};

use lingqu_backend::{AttentionSpec, KvStore, Step, View, ViewMut};

use crate::Core;
use crate::isa::Simd;
use crate::memory::{KvCells, Source, Target};
use crate::simd::{self, LANES};
use crate::step::StepTables;
use crate::team::{Shares, share};

use ahead::Ahead;
use entries::EntryShape;
pub(crate) use entries::kv_append;
use product::{BLOCK, Product, decode, transpose};
use softmax::{Running, Softmax, TOGETHER, merge, weigh};
use tasks::{Group, Plan, Task};

/// Positions whose scores are computed together.
const TILE: usize = BLOCK;
/// Positions after which the running sums start anew.
const SPLIT: usize = 256;

/// What one member works in. Reused from op to op.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// In chunks of 64 values, as the keys are transposed. `[chunks, queries, 64]`
    queries: Aligned,
    /// Some values of a tile's keys or values. `[64, 64]`
    tile: Aligned,
    /// Those of the keys, transposed. `[64, 64]`
    turned: Aligned,
    /// `[queries, 64]`
    scores: Aligned,
    /// Where the entries of this tile and of the next start.
    entries: [Vec<usize>; 2],
    states: Vec<Softmax>,
    /// Outputs of the running split, not yet divided. `[queries, v_dim padded]`
    outputs: Aligned,
    totals: Vec<Softmax>,
    /// The same over the splits before. `[queries, v_dim]`
    total_outputs: Aligned,
    /// Splits that wait to be merged; member 0's are everybody's. `[splits, queries of their group]` for some groups
    partials: Partials,
}

/// Floats from a cache line's start on: vectors across two lines take twice as long to load.
#[derive(Default)]
struct Aligned(Vec<f32>);

impl Aligned {
    /// At least `len` values; what is in them is anything.
    fn hold(&mut self, len: usize) {
        if self.len() < len {
            self.0.resize(len + LANES, 0.0);
        }
    }

    fn start(&self) -> usize {
        self.0.as_ptr().align_offset(64).min(self.0.len())
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0[self.start()..]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        let start = self.start();
        &mut self.0[start..]
    }
}

/// 64 x 64 values of a scratch.
fn block_of(values: &mut [f32]) -> &mut [[f32; BLOCK]; BLOCK] {
    values.as_chunks_mut().0.first_chunk_mut().expect("a block of values")
}

#[derive(Default)]
struct Partials {
    states: Vec<Softmax>,
    /// `[.., v_dim]`
    outputs: Vec<f32>,
}

/// One call, for all members.
struct Attend<'a> {
    simd: Simd,
    tables: &'a StepTables,
    kv: &'a KvCells,
    spec: AttentionSpec,
    shape: EntryShape,
    q: Source<'a>,
    out: Shares<f32>,
    /// Between rows and heads of the output, and where it starts.
    out_strides: [usize; 3],
    partial_states: Shares<Softmax>,
    partial_outputs: Shares<f32>,
}

pub(crate) fn attention(core: &Core, step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) {
    let tables = step.storage::<StepTables>();
    let shape = EntryShape::of(kv.spec());
    let (q, out) = (Source::of(q), Target::of(out));
    assert_eq!(kv.spec().block_tokens, tables.block_tokens, "positions in a block");
    assert!(q.rows == tables.tokens.len() && q.rows == out.rows && q.heads == out.heads, "rows of attention");
    assert!(q.len == shape.k_dim && out.len == shape.v_dim, "dimensions of attention");
    assert!(q.heads.is_multiple_of(shape.kv_heads), "{} heads over {} kv heads", q.heads, shape.kv_heads);
    let members = core.team.members();
    let Plan { groups, tasks, partials: waiting } = tasks::plan(tables, q.heads, shape.kv_heads, shape.v_dim, members);
    let mut partials = std::mem::take(&mut core.worker(0).attention.partials);
    partials.states.resize(waiting.max(partials.states.len()), Softmax::EMPTY);
    partials.outputs.resize((waiting * shape.v_dim).max(partials.outputs.len()), 0.0);
    let attend = Attend {
        simd: core.simd,
        tables,
        kv: kv.storage::<KvCells>(),
        spec,
        shape,
        q,
        out_strides: [out.row_stride, out.head_stride, out.offset],
        out: Shares::new(out.values),
        partial_states: Shares::new(&mut partials.states),
        partial_outputs: Shares::new(&mut partials.outputs),
    };
    let keys: usize = tables.positions.iter().map(|&p| p as usize + 1).sum();
    let next = AtomicUsize::new(0);
    core.team.run_if_worth(keys * q.width(), |member, _| {
        let scratch = &mut core.worker(member).attention;
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            attend.task(&groups[task.group], *task, scratch);
        }
    });
    if waiting > 0 {
        let queries = |group: &Group| group.partials.map_or(0, |_| group.queries());
        let total: usize = groups.iter().map(queries).sum();
        core.team.run_if_worth(waiting * shape.v_dim, |member, members| {
            let mine = share(total, member, members);
            let scratch = &mut core.worker(member).attention;
            let mut at = 0;
            for group in &groups {
                let end = at + queries(group);
                (mine.start.max(at)..mine.end.min(end)).for_each(|i| attend.merge_splits(group, i - at, scratch));
                at = end;
            }
        });
    }
    core.worker(0).attention.partials = partials;
}

impl Attend<'_> {
    /// The queries of a group over some splits: writes their outputs, or what waits to be merged.
    fn task(&self, group: &Group, task: Task, scratch: &mut AttentionScratch) {
        let (v_dim, out_stride) = (self.shape.v_dim, self.shape.out_stride());
        let end = (task.splits[1] * SPLIT).min(group.end());
        scratch.start(group, self.q, self.shape);
        self.find(group, task.splits[0] * SPLIT, end, &mut scratch.entries[1]);
        for split in task.splits[0]..task.splits[1] {
            let start = split * SPLIT;
            // Queries of rows before the split see nothing of it.
            let seeing = (0..group.kv_heads).map(|kv| group.seeing(kv, start));
            for queries in seeing.clone() {
                scratch.states[queries.clone()].fill(Softmax::EMPTY);
                scratch.outputs[queries.start * out_stride..queries.end * out_stride].fill(0.0);
            }
            for tile in (start..(start + SPLIT).min(end)).step_by(TILE) {
                self.tile(group, tile, end, scratch);
            }
            for i in seeing.flatten() {
                let Some(partials) = group.partials else {
                    scratch.close_split(self.simd, i, self.shape);
                    continue;
                };
                let at = partials + split * group.queries() + i;
                // SAFETY: this split of this query is this task's alone.
                let (state, outputs) = unsafe {
                    (self.partial_states.part(at..at + 1), self.partial_outputs.part(at * v_dim..(at + 1) * v_dim))
                };
                state[0] = scratch.states[i];
                outputs.copy_from_slice(&scratch.outputs[i * out_stride..][..v_dim]);
            }
        }
        if group.partials.is_none() {
            for i in 0..group.queries() {
                self.write(group, i, &scratch.totals[i], &scratch.total_outputs[i * v_dim..][..v_dim]);
            }
        }
    }

    /// Where the entries of a tile start.
    fn find(&self, group: &Group, tile: usize, end: usize, entries: &mut Vec<usize>) {
        entries.clear();
        let positions = tile..end.min(tile + TILE);
        entries.extend(positions.map(|p| self.tables.entry(self.kv, self.spec.layer, group.first_row, p)));
    }

    /// One tile for all queries that see any of it, kv head by kv head.
    fn tile(&self, group: &Group, tile: usize, end: usize, scratch: &mut AttentionScratch) {
        scratch.entries.swap(0, 1);
        self.find(group, tile + TILE, end, &mut scratch.entries[1]);
        let next = std::mem::take(&mut scratch.entries[1]);
        let mut ahead = Ahead::new(&self.kv.cells, &next, self.shape, group);
        for kv in 0..group.kv_heads {
            let queries = group.seeing(kv, tile);
            scratch.score(self, group.first_kv + kv, queries.clone(), &mut ahead);
            self.weigh(group, tile, queries.clone(), scratch);
            scratch.add_values(self, [tile, kv], group, &mut ahead);
        }
        scratch.entries[1] = next;
    }

    /// Positions of a tile that a query sees.
    fn seen(&self, group: &Group, tile: usize, query: usize) -> usize {
        (group.position_of(query) + 1).saturating_sub(tile).min(TILE)
    }

    /// The scores of a tile become weights.
    fn weigh(&self, group: &Group, tile: usize, queries: Range<usize>, scratch: &mut AttentionScratch) {
        let out_stride = self.shape.out_stride();
        for first in queries.clone().step_by(TOGETHER) {
            let end = (first + TOGETHER).min(queries.end);
            let seen = std::array::from_fn(|i| self.seen(group, tile, first + i));
            let running = Running {
                states: &mut scratch.states[first..end],
                outputs: &mut scratch.outputs[first * out_stride..end * out_stride],
                out_stride,
            };
            weigh(self.simd, &mut scratch.scores.as_chunks_mut().0[first..end], &seen, self.spec.scale, running);
        }
    }

    /// Merges the splits of a query that were computed apart.
    fn merge_splits(&self, group: &Group, i: usize, scratch: &mut AttentionScratch) {
        let v_dim = self.shape.v_dim;
        let mut total = Softmax::EMPTY;
        scratch.total_outputs.hold(v_dim);
        let totals = &mut scratch.total_outputs[..v_dim];
        for split in 0..=group.position_of(i) / SPLIT {
            let at = group.partials.expect("splits that wait") + split * group.queries() + i;
            // SAFETY: each query is merged by one member, after all tasks have ended.
            let (state, outputs) = unsafe {
                (self.partial_states.part(at..at + 1), self.partial_outputs.part(at * v_dim..(at + 1) * v_dim))
            };
            merge(self.simd, &state[0], outputs, &mut total, totals);
        }
        self.write(group, i, &total, totals);
    }

    fn write(&self, group: &Group, i: usize, state: &Softmax, outputs: &[f32]) {
        let ([row_stride, head_stride, offset], (row, head)) = (self.out_strides, group.query(i));
        let start = row * row_stride + head * head_stride + offset;
        // SAFETY: each row and head is in one group, whose outputs one task or one merge writes.
        let out = unsafe { self.out.part(start..start + self.shape.v_dim) };
        let inverse = 1.0 / simd::reduce(&state.sums);
        for (out, value) in out.iter_mut().zip(outputs) {
            *out = value * inverse;
        }
    }
}

impl AttentionScratch {
    fn start(&mut self, group: &Group, q: Source<'_>, shape: EntryShape) {
        let queries = group.queries();
        self.queries.hold(queries * shape.k_blocks() * BLOCK);
        for i in 0..queries {
            let (row, head) = group.query(i);
            for (chunk, values) in q.head(row, head).chunks(BLOCK).enumerate() {
                self.queries[(chunk * queries + i) * BLOCK..][..values.len()].copy_from_slice(values);
            }
        }
        self.tile.hold(BLOCK * TILE);
        self.turned.hold(BLOCK * TILE);
        self.scores.hold(queries * TILE);
        self.states.resize(queries, Softmax::EMPTY);
        self.outputs.hold(queries * shape.out_stride());
        self.totals.clear();
        self.totals.resize(queries, Softmax::EMPTY);
        self.total_outputs.hold(queries * shape.v_dim);
    }

    /// Scores of some queries against the whole tile, not yet scaled; what lies beyond the sequence is left over from
    /// before and not looked at.
    fn score(&mut self, of: &Attend<'_>, kv_head: usize, queries: Range<usize>, ahead: &mut Ahead<'_>) {
        let scores = &mut self.scores[queries.start * TILE..queries.end * TILE];
        scores.fill(0.0);
        let (all, [key, _]) = (self.states.len(), of.shape.places(kv_head, 1));
        for (i, block) in of.shape.blocks(key.start, of.shape.k_dim).enumerate() {
            let tile = block_of(&mut self.tile);
            decode(of.simd, &of.kv.cells, &self.entries[0], block, tile);
            ahead.pass(Ahead::DECODING);
            let turned = block_of(&mut self.turned);
            transpose(of.simd, tile, turned);
            ahead.pass(Ahead::TURNING);
            let a = &self.queries.as_chunks().0[i * all..][queries.clone()];
            Product { a, from: 0, to: block.len, b: turned }.add_to(of.simd, scores, TILE, ahead);
        }
    }

    /// Adds the values of the tile of one of the group's kv heads, weighted, to the outputs of the queries that see
    /// them.
    fn add_values(&mut self, of: &Attend<'_>, [tile, kv]: [usize; 2], group: &Group, ahead: &mut Ahead<'_>) {
        let (queries, [_, value]) = (group.seeing(kv, tile), of.shape.places(group.first_kv + kv, 1));
        let (seen, out_stride) = (|query| of.seen(group, tile, query), of.shape.out_stride());
        for (i, block) in of.shape.blocks(value.start, of.shape.v_dim).enumerate() {
            let b = block_of(&mut self.tile);
            decode(of.simd, &of.kv.cells, &self.entries[0], block, b);
            ahead.pass(Ahead::DECODING);
            let (scores, outputs) = (self.scores.as_chunks().0, &mut self.outputs);
            let mut add = |queries: Range<usize>, from: usize, to: usize| {
                let c = &mut outputs[queries.start * out_stride + i * BLOCK..];
                Product { a: &scores[queries], from, to, b }.add_to(of.simd, c, out_stride, ahead);
            };
            if seen(queries.start) == TILE {
                add(queries.clone(), 0, TILE);
                continue;
            }
            // Rows end within the tile: as many as fill the kernel, as far as all of them see, then each alone.
            let together = 6_usize.div_ceil(group.heads) * group.heads;
            for first in queries.clone().step_by(together) {
                let end = (first + together).min(queries.end);
                let common = seen(first);
                add(first..end, 0, common);
                for row in (first..end).step_by(group.heads).skip(1) {
                    add(row..row + group.heads, common, seen(row));
                }
            }
        }
    }

    /// Merges a query's running split into its total.
    fn close_split(&mut self, simd: Simd, i: usize, shape: EntryShape) {
        let (v_dim, out_stride) = (shape.v_dim, shape.out_stride());
        let (outputs, totals) =
            (&self.outputs[i * out_stride..][..v_dim], &mut self.total_outputs[i * v_dim..][..v_dim]);
        merge(simd, &self.states[i], outputs, &mut self.totals[i], totals);
    }
}
