//! The KV cache and causal attention over it: blocked, with an online softmax.
//!
//! The cache holds f16, rounded to nearest even and held within its finite range. Positions are taken in tiles of 32
//! and in splits of 1024, both counted from position 0 of the sequence: what a row computes depends on its own
//! position alone, never on its neighbours. Within a split the running maximum, sum and output are carried from tile
//! to tile; splits are merged in order.

use lingqu_backend::{AttentionSpec, KvEntry, KvStore, Step, View, ViewMut};

use crate::Core;
use crate::isa::{Simd, per_isa};
use crate::math::{exp, f16_to_f32, f32_to_f16};
use crate::memory::{KvCells, Source, Target};
use crate::simd::{self, Dots, FLOAT_ROWS, LANES, LaneSums};
use crate::step::StepTables;
use crate::team::Shares;
use crate::weights::padded;

/// Positions whose scores are computed together.
const TILE: usize = 32;
/// Positions after which the running sums start anew.
const SPLIT: usize = 1024;
/// Queries (rows x heads of one kv head) that share the decoding of a tile.
const QUERIES_MAX: usize = 128;
/// Queries whose dots are in flight at once.
const DOT_QUERIES: usize = 16;

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
    fn entry(&self, kv: &KvCells, layer: usize, row: usize, position: usize) -> usize {
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
    fn from_halves(halves: &[u16], out: &mut [f32]) = from_halves_plain
}

#[inline(always)]
fn from_halves_plain(halves: &[u16], out: &mut [f32]) {
    for (half, out) in halves.iter().zip(out) {
        *out = f16_to_f32(*half);
    }
}

/// Where the key and value of a kv head lie in an entry.
#[derive(Clone, Copy)]
struct EntryShape {
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    /// The value is the start of the key.
    shared: bool,
}

impl EntryShape {
    fn of(entry: KvEntry) -> Self {
        match entry {
            KvEntry::Separate { kv_heads, k_dim, v_dim } => Self { kv_heads, k_dim, v_dim, shared: false },
            KvEntry::Latent { width, v_dim } => {
                assert!(v_dim <= width, "a value longer than its latent entry");
                Self { kv_heads: 1, k_dim: width, v_dim, shared: true }
            }
        }
    }
}

/// Rows of one sequence and heads of one kv head: the queries that a member takes at once.
#[derive(Clone, Copy)]
struct Task {
    first_row: usize,
    rows: usize,
    first_head: usize,
    heads: usize,
    kv_head: usize,
}

impl Task {
    fn queries(&self) -> usize {
        self.rows * self.heads
    }

    /// Row and head of a query.
    fn query(&self, i: usize) -> (usize, usize) {
        (self.first_row + i / self.heads, self.first_head + i % self.heads)
    }
}

/// Cuts the work; how it is cut has no influence on any result.
fn tasks(tables: &StepTables, heads: usize, kv_heads: usize, members: usize) -> Vec<Task> {
    let per_kv = heads / kv_heads;
    let least = tables.sequences.len() * kv_heads;
    let heads_max = per_kv.div_ceil(members.div_ceil(least.max(1)).min(per_kv)).min(QUERIES_MAX);
    let mut tasks = Vec::new();
    for sequence in &tables.sequences {
        // Enough pieces for all members, but no more than needed.
        let pieces = sequence.rows.len().div_ceil((QUERIES_MAX / heads_max).max(1));
        let rows_max = sequence.rows.len().div_ceil(pieces.max(members.min(sequence.rows.len())));
        for first_row in sequence.rows.clone().step_by(rows_max) {
            let rows = (sequence.rows.end - first_row).min(rows_max);
            for kv_head in 0..kv_heads {
                for head in (0..per_kv).step_by(heads_max) {
                    let heads = (per_kv - head).min(heads_max);
                    tasks.push(Task { first_row, rows, first_head: kv_head * per_kv + head, heads, kv_head });
                }
            }
        }
    }
    tasks
}

/// What one member works in. Reused from op to op.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    /// `[queries, k_dim padded]`
    queries: Vec<f32>,
    /// `[32, k_dim padded]`
    keys: Vec<f32>,
    /// `[32, v_dim]`; unused where the key holds the value.
    values: Vec<f32>,
    /// `[queries, 32]`
    scores: Vec<[f32; TILE]>,
    lanes: Vec<LaneSums>,
    states: Vec<Softmax>,
    /// Outputs of the running split, not yet divided. `[queries, v_dim]`
    outputs: Vec<f32>,
    totals: Vec<Softmax>,
    /// The same over the splits before. `[queries, v_dim]`
    total_outputs: Vec<f32>,
}

/// A softmax under way.
#[derive(Clone, Copy)]
struct Softmax {
    most: f32,
    /// Of `exp(score - most)`, in lanes by position.
    sums: [f32; LANES],
}

impl Softmax {
    const EMPTY: Softmax = Softmax { most: f32::NEG_INFINITY, sums: [0.0; LANES] };
}

pub(crate) fn attention(core: &Core, step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) {
    let tables = step.storage::<StepTables>();
    let shape = EntryShape::of(kv.spec().entry);
    let (q, out) = (Source::of(q), Target::of(out));
    assert_eq!(kv.spec().block_tokens, tables.block_tokens, "positions in a block");
    assert!(q.rows == tables.tokens.len() && q.rows == out.rows && q.heads == out.heads, "rows of attention");
    assert!(q.len == shape.k_dim && out.len == shape.v_dim, "dimensions of attention");
    assert!(q.heads.is_multiple_of(shape.kv_heads), "{} heads over {} kv heads", q.heads, shape.kv_heads);
    let kv = kv.storage::<KvCells>();
    let Target { row_stride, head_stride, offset, values, .. } = out;
    let shares = Shares::new(values);
    let keys: usize = tables.positions.iter().map(|&p| p as usize + 1).sum();
    let tasks = tasks(tables, q.heads, shape.kv_heads, core.team.members());
    core.team.run_if_worth(keys * q.width(), |member, members| {
        let scratch = &mut core.worker(member).attention;
        for task in tasks.iter().skip(member).step_by(members) {
            attend(core.simd, tables, kv, spec, shape, *task, q, scratch);
            for i in 0..task.queries() {
                let (row, head) = task.query(i);
                let start = row * row_stride + offset + head * head_stride;
                // SAFETY: each row and head is in one task, and each task is one member's.
                let out = unsafe { shares.part(start..start + shape.v_dim) };
                scratch.finish(core.simd, i, tables.positions[row] as usize, shape.v_dim, out);
            }
        }
    });
}

/// All positions for the queries of one task; leaves their softmaxes and outputs in the scratch.
#[allow(clippy::too_many_arguments)] // the inside of `attention`
fn attend(
    simd: Simd,
    tables: &StepTables,
    kv: &KvCells,
    spec: AttentionSpec,
    shape: EntryShape,
    task: Task,
    q: Source<'_>,
    scratch: &mut AttentionScratch,
) {
    scratch.start(task, q, shape);
    let end = tables.positions[task.first_row + task.rows - 1] as usize + 1;
    for start in (0..end).step_by(TILE) {
        let count = (end - start).min(TILE);
        for i in 0..count {
            let entry = tables.entry(kv, spec.layer, task.first_row, start + i);
            scratch.decode(simd, &kv.cells[entry..], shape, task.kv_head, i);
        }
        scratch.score(simd, shape, task.queries(), count, spec.scale);
        for i in 0..task.queries() {
            let position = tables.positions[task.query(i).0] as usize;
            let seen = (position + 1).saturating_sub(start).min(TILE);
            if seen == 0 {
                continue;
            }
            scratch.absorb(simd, shape, i, seen);
            if (start + TILE).is_multiple_of(SPLIT) && position >= start + TILE {
                scratch.close_split(simd, i, shape.v_dim);
            }
        }
    }
}

impl AttentionScratch {
    fn start(&mut self, task: Task, q: Source<'_>, shape: EntryShape) {
        let (queries, k_stride, v_dim) = (task.queries(), padded(shape.k_dim), shape.v_dim);
        self.queries.resize(queries * k_stride, 0.0);
        for i in 0..queries {
            let (row, head) = task.query(i);
            let (values, padding) = self.queries[i * k_stride..][..k_stride].split_at_mut(shape.k_dim);
            values.copy_from_slice(q.head(row, head));
            padding.fill(0.0);
        }
        // Padding of the keys is zeroed once and stays so, as long as the shape does.
        self.keys.clear();
        self.keys.resize(TILE * k_stride, 0.0);
        self.values.resize(if shape.shared { 0 } else { TILE * v_dim }, 0.0);
        self.scores.resize(queries, [0.0; TILE]);
        self.lanes.resize(DOT_QUERIES, [[0.0; LANES]; FLOAT_ROWS]);
        self.states.clear();
        self.states.resize(queries, Softmax::EMPTY);
        self.totals.clear();
        self.totals.resize(queries, Softmax::EMPTY);
        self.outputs.clear();
        self.outputs.resize(queries * v_dim, 0.0);
        self.total_outputs.resize(queries * v_dim, 0.0);
    }

    /// Brings one position's key and value into the tile.
    fn decode(&mut self, simd: Simd, entry: &[u16], shape: EntryShape, kv_head: usize, i: usize) {
        let EntryShape { kv_heads, k_dim, v_dim, shared } = shape;
        let k_at = kv_head * k_dim;
        from_halves(simd, &entry[k_at..k_at + k_dim], &mut self.keys[i * padded(k_dim)..][..k_dim]);
        if !shared {
            let v_at = kv_heads * k_dim + kv_head * v_dim;
            from_halves(simd, &entry[v_at..v_at + v_dim], &mut self.values[i * v_dim..][..v_dim]);
        }
    }

    /// Scores of all queries against the first `count` positions of the tile (and, unused, up to 7 more).
    fn score(&mut self, simd: Simd, shape: EntryShape, queries: usize, count: usize, scale: f32) {
        let stride = padded(shape.k_dim);
        let mut rows = [0; DOT_QUERIES];
        for first in (0..queries).step_by(DOT_QUERIES) {
            let rows = &mut rows[..(queries - first).min(DOT_QUERIES)];
            rows.iter_mut().enumerate().for_each(|(i, row)| *row = (first + i) as u32);
            for at in (0..count).step_by(FLOAT_ROWS) {
                let lanes = &mut self.lanes[..rows.len()];
                lanes.fill([[0.0; LANES]; FLOAT_ROWS]);
                let (w, x) = (&self.keys[at * stride..], &self.queries[..]);
                let dots = Dots { w, w_stride: stride, x, x_stride: stride, start: 0, len: stride, rows };
                simd::dots(simd, dots, lanes);
                for (lanes, scores) in lanes.iter().zip(&mut self.scores[first..]) {
                    for (lanes, score) in lanes.iter().zip(&mut scores[at..at + FLOAT_ROWS]) {
                        *score = simd::reduce(lanes) * scale;
                    }
                }
            }
        }
    }

    /// Takes the first `seen` positions of the tile into a query's softmax and output.
    fn absorb(&mut self, simd: Simd, shape: EntryShape, i: usize, seen: usize) {
        let v_dim = shape.v_dim;
        let (values, stride) = match shape.shared {
            true => (&self.keys[..], padded(shape.k_dim)),
            false => (&self.values[..], v_dim),
        };
        let scores = &mut self.scores[i];
        let outputs = &mut self.outputs[i * v_dim..][..v_dim];
        let shrink = weigh(simd, scores, seen, &mut self.states[i]);
        add_weighted(simd, &scores[..seen], values, stride, shrink, outputs);
    }

    /// Merges a query's running split into its total, and starts a new split.
    fn close_split(&mut self, simd: Simd, i: usize, v_dim: usize) {
        let range = i * v_dim..(i + 1) * v_dim;
        let (outputs, totals) = (&mut self.outputs[range.clone()], &mut self.total_outputs[range]);
        merge(simd, &self.states[i], outputs, &mut self.totals[i], totals);
        self.states[i] = Softmax::EMPTY;
        outputs.fill(0.0);
    }

    /// Writes a query's output.
    fn finish(&mut self, simd: Simd, i: usize, position: usize, v_dim: usize, out: &mut [f32]) {
        let range = i * v_dim..(i + 1) * v_dim;
        let (mut state, mut outputs) = (&self.states[i], &self.outputs[range.clone()]);
        if position >= SPLIT {
            let totals = &mut self.total_outputs[range];
            merge(simd, state, outputs, &mut self.totals[i], totals);
            (state, outputs) = (&self.totals[i], totals);
        }
        let inverse = 1.0 / simd::reduce(&state.sums);
        for (out, value) in out.iter_mut().zip(outputs) {
            *out = value * inverse;
        }
    }
}

per_isa! {
    /// Turns the first `seen` scores into weights `exp(score - most)`; gives the factor for what came before.
    fn weigh(scores: &mut [f32; TILE], seen: usize, state: &mut Softmax) -> f32 = weigh_plain
}

#[inline(always)]
fn weigh_plain(scores: &mut [f32; TILE], seen: usize, state: &mut Softmax) -> f32 {
    let most = scores[..seen].iter().fold(state.most, |most, &score| if score > most { score } else { most });
    let shrink = exp(state.most - most);
    for j in 0..LANES {
        state.sums[j] *= shrink;
    }
    for first in (0..TILE).step_by(LANES) {
        for j in 0..LANES {
            let weight = exp(scores[first + j] - most);
            let weight = if first + j < seen { weight } else { 0.0 };
            scores[first + j] = weight;
            state.sums[j] += weight;
        }
    }
    state.most = most;
    shrink
}

per_isa! {
    /// `out = shrink * out`, then `out = fma(weight, value, out)` position by position.
    fn add_weighted(weights: &[f32], values: &[f32], stride: usize, shrink: f32, out: &mut [f32]) = add_weighted_plain
}

#[inline(always)]
fn add_weighted_plain(weights: &[f32], values: &[f32], stride: usize, shrink: f32, out: &mut [f32]) {
    const WIDE: usize = 64;
    let (wide, rest) = out.as_chunks_mut::<WIDE>();
    for (block, out) in wide.iter_mut().enumerate() {
        let mut sums: [f32; WIDE] = std::array::from_fn(|j| out[j] * shrink);
        for (i, weight) in weights.iter().enumerate() {
            let values: &[f32; WIDE] =
                values[i * stride + block * WIDE..].first_chunk().expect("a whole row of values");
            for j in 0..WIDE {
                sums[j] = weight.mul_add(values[j], sums[j]);
            }
        }
        *out = sums;
    }
    let done = wide.len() * WIDE;
    for (j, out) in rest.iter_mut().enumerate() {
        *out *= shrink;
        for (i, weight) in weights.iter().enumerate() {
            *out = weight.mul_add(values[i * stride + done + j], *out);
        }
    }
}

per_isa! {
    /// Adds a finished split to the total of those before it.
    fn merge(state: &Softmax, outputs: &[f32], total: &mut Softmax, totals: &mut [f32]) = merge_plain
}

#[inline(always)]
fn merge_plain(state: &Softmax, outputs: &[f32], total: &mut Softmax, totals: &mut [f32]) {
    if total.most == f32::NEG_INFINITY {
        *total = *state;
        return totals.copy_from_slice(outputs);
    }
    let most = if state.most > total.most { state.most } else { total.most };
    let (old, new) = (exp(total.most - most), exp(state.most - most));
    total.most = most;
    for j in 0..LANES {
        total.sums[j] = state.sums[j].mul_add(new, total.sums[j] * old);
    }
    for (total, value) in totals.iter_mut().zip(outputs) {
        *total = value.mul_add(new, *total * old);
    }
}
