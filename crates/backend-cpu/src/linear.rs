//! Matrix products: the weight rows are cut into panels of 16 outputs, panels are shared among the team, and each
//! panel meets up to 128 rows of activations at a time, or more where they meet it as tiles (`tiles.rs`).
//!
//! A thread never shares an output with another: the dimension that is summed over is not split.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use lingqu_backend::{View, ViewMut, Weight};

use crate::activations::{Activations, Wanted};
use crate::isa::{Simd, is_amd, per_isa};
use crate::math::silu;
use crate::memory::{Source, Target};
use crate::panels::Panels;
use crate::region::Region;
use crate::simd::{
    self as kernels, CHUNK, Codes, Dots, FLOAT_ROWS, IN_TURN_ROWS_MAX, LANES, LaneSums, PANEL_ROWS, Run, STREAMS, Sums,
    reduce,
};
use crate::team::Shares;
use crate::tiles::{self, Arranged};
use crate::unpack;
use crate::weights::{Heads, Linear, Matrix, Stored, padded};
use crate::{Core, Products, Result};

/// Rows of activations that meet a panel before the next one is read.
const ROWS_MAX: usize = 128;
/// The same for floats, whose partial sums are wider.
const FLOAT_TILE_ROWS: usize = 32;

/// Rows up to which panels are read side by side: a product waits for memory, or would without that.
const STREAMED_ROWS_MAX: usize = 23;
/// Panels of one stream that are read by one call: what comes before and after the kernel took 6% of a step.
const IN_TURN: usize = 16;
const _: () = assert!(STREAMS.is_multiple_of(tiles::TOGETHER), "pieces are cut at multiples of both");

/// Bytes of panels that are repacked for the moment at once: a part of a usual second-level cache.
const PENDING_BYTES: usize = 256 << 10;

/// What a piece of work should cost at least, in cycles or so: much more than taking it.
const PIECE_COST: usize = 16_000;

/// Some rows of a matrix of activations or outputs.
#[derive(Clone, Copy)]
pub(crate) enum RowSet<'a> {
    /// `first`, `first + step`, ...
    Even {
        first: usize,
        step: usize,
        count: usize,
    },
    List(&'a [u32]),
}

impl RowSet<'_> {
    pub fn count(&self) -> usize {
        match self {
            RowSet::Even { count, .. } => *count,
            RowSet::List(rows) => rows.len(),
        }
    }

    pub fn get(&self, i: usize) -> usize {
        match self {
            RowSet::Even { first, step, .. } => first + i * step,
            RowSet::List(rows) => rows[i] as usize,
        }
    }
}

/// One matrix against some rows: `out = W x (+ bias)`, or gated: `out = silu(W x) * (up x)`.
pub(crate) struct Job<'a> {
    pub matrix: &'a Matrix,
    pub up: Option<&'a Matrix>,
    /// Of the matrix's outputs, or empty.
    pub bias: &'a [f32],
    /// Rows of the activations.
    pub x_rows: RowSet<'a>,
    /// Rows of the output, as many.
    pub out_rows: RowSet<'a>,
    /// Where in a row of the output the matrix's outputs start.
    pub out_offset: usize,
    /// Adds to what is there, instead of taking its place.
    pub adds: bool,
}

impl Job<'_> {
    pub fn panels(&self) -> usize {
        self.matrix.rows().div_ceil(PANEL_ROWS)
    }

    /// What a panel costs, in cycles or so.
    fn panel_cost(&self, tiled: bool) -> usize {
        let matrices = 1 + usize::from(self.up.is_some());
        let rows = self.x_rows.count();
        let per_chunk = if tiled { 650 + 16 * rows.next_multiple_of(tiles::GROUP_ROWS) } else { 350 + 100 * rows };
        per_chunk * self.matrix.cols().div_ceil(CHUNK).max(1) * matrices
    }
}

/// The matrix of outputs, of which each panel writes its own part.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    values: Shares<f32>,
    stride: usize,
}

impl Output {
    /// Writes the outputs of some panels for row `i` of its job, with their biases. values: of each panel
    ///
    /// # Safety
    /// The panels must be the caller's alone.
    pub unsafe fn write<'a>(
        &self,
        job: &Job<'_>,
        panels: Range<usize>,
        i: usize,
        values: impl Iterator<Item = &'a [f32; PANEL_ROWS]>,
    ) {
        let [first, end] = [panels.start, panels.end].map(|panel| (panel * PANEL_ROWS).min(job.matrix.rows()));
        let at = job.out_rows.get(i) * self.stride + job.out_offset + first;
        // SAFETY: these outputs are the panels'.
        let out = unsafe { self.values.part(at..at + end - first) };
        for (out, values) in out.chunks_mut(PANEL_ROWS).zip(values) {
            match out.first_chunk_mut::<PANEL_ROWS>() {
                _ if job.adds => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
                Some(out) => *out = *values,
                None => out.copy_from_slice(&values[..out.len()]),
            }
        }
        if !job.bias.is_empty() {
            out.iter_mut().zip(&job.bias[first..]).for_each(|(out, bias)| *out += bias);
        }
    }
}

/// What one member of the team unpacks into.
pub(crate) struct PanelScratch {
    pub codes: Box<Codes>,
    /// `[8, 256]`
    floats: Vec<f32>,
    lanes: Vec<LaneSums>,
    sums: [Vec<Sums>; 2],
    pub tiles: tiles::Scratch,
    /// Of panels that are repacked for the moment.
    pending: [Option<Arc<Region>>; 2],
}

impl PanelScratch {
    pub fn new() -> Self {
        let rows =
            || vec![[0.0; PANEL_ROWS]; ROWS_MAX.max(STREAMS * STREAMED_ROWS_MAX).max(IN_TURN * IN_TURN_ROWS_MAX)];
        Self {
            codes: Codes::boxed(),
            floats: vec![0.0; FLOAT_ROWS * CHUNK],
            lanes: vec![[[0.0; LANES]; FLOAT_ROWS]; FLOAT_TILE_ROWS],
            sums: [rows(), rows()],
            tiles: Default::default(),
            pending: Default::default(),
        }
    }
}

/// Runs jobs over the same activations and output matrix `[.., out_stride]`, shared among the team by cost. The
/// outputs of different jobs must not overlap.
///
/// # Errors
/// As [`Matrix::part`], for weights that are not repacked yet.
pub(crate) fn run_jobs(
    core: &Core,
    jobs: &[Job<'_>],
    products: &mut Products,
    out: &mut [f32],
    out_stride: usize,
) -> Result<()> {
    let Products { x, arranged } = products;
    arranged.prepare(core, jobs, x);
    let (x, arranged) = (&*x, &*arranged);
    let cost_of = |(i, job): (usize, &Job<'_>)| job.panel_cost(arranged.has(i));
    let total: usize = jobs.iter().enumerate().map(|(i, job)| job.panels() * cost_of((i, job))).sum();
    let out = Output { values: Shares::new(out), stride: out_stride };
    let ends = pieces(total, core.team.members());
    let (next, failed) = (AtomicUsize::new(0), OnceLock::new());
    // A value there is worth some cycles.
    core.team.run_if_worth(total / 4, |member, _| {
        let scratch = &mut core.worker(member).panels;
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            let Some(&high) = ends.get(piece) else { return };
            let low = if piece == 0 { 0 } else { ends[piece - 1] };
            let mut base = 0;
            for (i, job) in jobs.iter().enumerate() {
                // A panel is in the piece in whose share its cost begins.
                let (panels, cost) = (job.panels(), cost_of((i, job)));
                let at = |cost_before: usize| {
                    cost_before.saturating_sub(base).div_ceil(cost).next_multiple_of(STREAMS).min(panels)
                };
                let (first, last) = (at(low), at(high));
                base += panels * cost;
                if let Err(error) = run_panels(core, job, first..last, (x, arranged, i), scratch, out) {
                    _ = failed.set(error); // one will do
                }
            }
        }
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// Some panels of job `i`: those of a matrix that is not repacked yet are, some at a time, for the moment.
fn run_panels(
    core: &Core,
    job: &Job<'_>,
    panels: Range<usize>,
    inputs: (&Activations, &Arranged, usize),
    scratch: &mut PanelScratch,
    out: Output,
) -> Result<()> {
    let pending = [Some(job.matrix), job.up].into_iter().flatten().filter(|m| m.is_pending(&panels));
    let Some(panel_bytes) = pending.filter_map(Matrix::panels).map(Panels::panel_bytes).max() else {
        run_packed_panels(core, job, panels, inputs, scratch, out);
        return Ok(());
    };
    let at_once = (PENDING_BYTES / panel_bytes).max(1).next_multiple_of(STREAMS);
    for first in panels.clone().step_by(at_once) {
        let some = first..panels.end.min(first + at_once);
        let mut memory = std::mem::take(&mut scratch.pending);
        let [of_matrix, of_up] = &mut memory;
        let part = |matrix: &Matrix, memory| matrix.part(core.packer(), some.clone(), memory);
        let matrix = part(job.matrix, of_matrix)?;
        let up = job.up.map_or(Ok(None), |up| part(up, of_up))?;
        let of_some = Job { matrix: matrix.as_ref().unwrap_or(job.matrix), up: up.as_ref().or(job.up), ..*job };
        run_packed_panels(core, &of_some, some, inputs, scratch, out);
        drop((matrix, up));
        scratch.pending = memory;
    }
    Ok(())
}

fn run_packed_panels(
    core: &Core,
    job: &Job<'_>,
    panels: Range<usize>,
    (x, arranged, i): (&Activations, &Arranged, usize),
    scratch: &mut PanelScratch,
    out: Output,
) {
    if arranged.has(i) {
        return tiles::run_panels(core, job, (arranged, i), panels, scratch, out);
    }
    for start in (0..job.x_rows.count()).step_by(ROWS_MAX) {
        let count = (job.x_rows.count() - start).min(ROWS_MAX);
        let (at_once, in_turn) = match count {
            ..=IN_TURN_ROWS_MAX if is_amd() => (IN_TURN, true),
            ..=STREAMED_ROWS_MAX => (STREAMS, false),
            _ => (1, true),
        };
        for first in panels.clone().step_by(at_once) {
            let some = first..panels.end.min(first + at_once);
            run_some_panels(core, job, (some, in_turn), [start, count], x, scratch, out);
        }
    }
}

/// Where the pieces end that work of this cost is cut into. They are taken as they come, for a member whose core is
/// shared with others falls behind, and get smaller, so that all members end at about the same time.
fn pieces(total: usize, members: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while at < total {
        at += ((total - at) / (2 * members)).max(PIECE_COST).min(total - at);
        ends.push(at);
    }
    ends
}

/// Panels of a job, side by side, for `count` of its rows from `start` on.
#[allow(clippy::too_many_arguments)] // the inside of `run_jobs`
fn run_some_panels(
    core: &Core,
    job: &Job<'_>,
    (panels, in_turn): (Range<usize>, bool),
    [start, count]: [usize; 2],
    x: &Activations,
    scratch: &mut PanelScratch,
    out: Output,
) {
    let mut rows = [0; ROWS_MAX];
    for (i, row) in rows[..count].iter_mut().enumerate() {
        *row = job.x_rows.get(start + i) as u32;
    }
    let inputs = Inputs { simd: core.simd, x, rows: &rows[..count], in_turn };
    let [mut sums, mut of_up] = std::mem::take(&mut scratch.sums);
    let all = panels.len() * count;
    panel_dots(inputs, job.matrix, panels.clone(), scratch, &mut sums[..all]);
    if let Some(up) = job.up {
        panel_dots(inputs, up, panels.clone(), scratch, &mut of_up[..all]);
        gated(core.simd, sums[..all].as_flattened_mut(), of_up[..all].as_flattened());
    }
    for i in 0..count {
        // SAFETY: a panel is in one piece of work, and a piece is one member's.
        unsafe { out.write(job, panels.clone(), start + i, sums[i..all].iter().step_by(count)) };
    }
    scratch.sums = [sums, of_up];
}

per_isa! {
    /// `gate = silu(gate) * up`
    pub(crate) fn gated(gate: &mut [f32], up: &[f32]) = gated_plain
}

#[inline(always)]
fn gated_plain(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = silu(*gate) * up;
    }
}

/// Rows of activations that meet a panel.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    simd: Simd,
    x: &'a Activations,
    rows: &'a [u32],
    /// Whether panels are read one after the other, not side by side.
    in_turn: bool,
}

/// The dots of panels' weight rows with some rows. sums `[panels, rows]`
fn panel_dots(inputs: Inputs<'_>, matrix: &Matrix, which: Range<usize>, scratch: &mut PanelScratch, sums: &mut [Sums]) {
    let Inputs { simd, x, rows, in_turn } = inputs;
    let Some(panels) = matrix.panels() else {
        let stored = matrix.floats().expect("floats, where there are no blocks");
        for (panel, sums) in which.zip(sums.chunks_exact_mut(rows.len())) {
            for half in 0..2 {
                let first = panel * PANEL_ROWS + half * FLOAT_ROWS;
                let count = matrix.rows().saturating_sub(first).min(FLOAT_ROWS);
                float_dots(inputs, (stored, matrix.cols()), [first, count], scratch, (&mut *sums, half * FLOAT_ROWS));
            }
        }
        return;
    };
    let x = x.quantised(panels.scheme.block);
    let run = Run { panels, first: which.start, count: which.len(), in_turn, x, rows };
    kernels::run(simd, run, &mut scratch.codes, sums);
}

/// Half a panel (8 weight rows) of floats.
fn float_dots(
    inputs: Inputs<'_>,
    (stored, cols): (&Stored, usize),
    [first, count]: [usize; 2],
    scratch: &mut PanelScratch,
    (sums, at): (&mut [Sums], usize),
) {
    let Inputs { simd, x, rows, .. } = inputs;
    let stored_rows = stored.rows();
    let (x, x_stride) = x.floats();
    let floats = &mut scratch.floats;
    floats[count * CHUNK..].fill(0.0);
    for (rows, sums) in rows.chunks(FLOAT_TILE_ROWS).zip(sums.chunks_mut(FLOAT_TILE_ROWS)) {
        let lanes = &mut scratch.lanes[..rows.len()];
        lanes.fill([[0.0; LANES]; FLOAT_ROWS]);
        for start in (0..cols).step_by(CHUNK) {
            let len = (cols - start).min(CHUNK);
            for (i, w) in floats.chunks_exact_mut(CHUNK).take(count).enumerate() {
                unpack::floats(simd, stored_rows, first + i, start, &mut w[..len]);
                stored.scale_floats(first + i, start, &mut w[..len]);
                w[len..padded(len)].fill(0.0);
            }
            let dots = Dots { w: floats, w_stride: CHUNK, x, x_stride, start, len: padded(len), rows };
            kernels::dots(simd, dots, lanes);
        }
        for (lanes, sums) in lanes.iter().zip(sums) {
            for (i, lanes) in lanes.iter().enumerate() {
                sums[at + i] = reduce(lanes);
            }
        }
    }
}

pub(crate) fn linear(core: &Core, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (Source::of(x), Target::of(out).flattened());
    let layer = weight.storage::<Linear>();
    assert!(x.width() == weight.cols && out.len == weight.rows && x.rows == out.rows, "shapes of a linear layer");
    let scratch = &mut *core.scratch();
    let wanted = layer.parts.iter().fold(Wanted::default(), |wanted, part| wanted.or(part.wanted()));
    scratch.products.x.prepare_rows(core.simd, &core.team, x, wanted, core.precision);
    let mut first = 0;
    let jobs: Vec<Job<'_>> = layer
        .parts
        .iter()
        .map(|matrix| {
            let rows = RowSet::Even { first: 0, step: 1, count: x.rows };
            let bias = if layer.bias.is_empty() { &[][..] } else { &layer.bias[first..][..matrix.rows()] };
            let out_offset = out.offset + first;
            first += matrix.rows();
            Job { matrix, up: None, bias, x_rows: rows, out_rows: rows, out_offset, adds: false }
        })
        .collect();
    run_jobs(core, &jobs, &mut scratch.products, out.values, out.row_stride)
}

pub(crate) fn linear_heads(core: &Core, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (Source::of(x), Target::of(out));
    let Heads(heads) = weight.storage();
    let shapes = [x.heads, out.heads, x.len, out.len, out.rows];
    assert_eq!(
        shapes,
        [heads.len(), heads.len(), weight.cols, weight.rows, x.rows],
        "shapes of a linear layer of heads"
    );
    let scratch = &mut *core.scratch();
    let wanted = heads.iter().fold(Wanted::default(), |wanted, head| wanted.or(head.wanted()));
    scratch.products.x.prepare(core.simd, &core.team, x, wanted, core.precision);
    let jobs: Vec<Job<'_>> = heads
        .iter()
        .enumerate()
        .map(|(head, matrix)| Job {
            matrix,
            up: None,
            bias: &[],
            x_rows: RowSet::Even { first: head, step: x.heads, count: x.rows },
            out_rows: RowSet::Even { first: 0, step: 1, count: x.rows },
            out_offset: out.offset + head * out.head_stride,
            adds: false,
        })
        .collect();
    run_jobs(core, &jobs, &mut scratch.products, out.values, out.row_stride)
}
