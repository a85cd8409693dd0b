//! Matrix products: the weight rows are cut into panels of 16 outputs, panels are shared among the team, and each
//! panel is unpacked once for up to 128 rows of activations.
//!
//! A thread never shares an output with another: the dimension that is summed over is not split.

use lingqu_backend::{View, ViewMut, Weight};

use crate::Core;
use crate::activations::{Activations, Wanted};
use crate::isa::Simd;
use crate::math::silu;
use crate::memory::{Source, Target};
use crate::simd::{self as kernels, CHUNK, Dots, FLOAT_ROWS, LANES, LaneSums, PANEL_ROWS, Panel, Tile, Unpacked};
use crate::team::Shares;
use crate::unpack;
use crate::weights::{Heads, Linear, Matrix, padded};

/// Rows of activations that meet a panel while it is unpacked.
const ROWS_MAX: usize = 128;
/// The same for floats, whose partial sums are wider.
const FLOAT_TILE_ROWS: usize = 32;

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
    fn count(&self) -> usize {
        match self {
            RowSet::Even { count, .. } => *count,
            RowSet::List(rows) => rows.len(),
        }
    }

    fn get(&self, i: usize) -> usize {
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
}

impl Job<'_> {
    fn panels(&self) -> usize {
        self.matrix.rows().div_ceil(PANEL_ROWS)
    }

    /// What a panel costs, in units of one row of activations times one value of the weights' rows.
    fn panel_cost(&self) -> usize {
        const UNPACKING_ROWS: usize = 6;
        let matrices = 1 + usize::from(self.up.is_some());
        (UNPACKING_ROWS + self.x_rows.count()) * self.matrix.cols().max(1) * matrices
    }
}

/// What one member of the team unpacks into.
pub(crate) struct PanelScratch {
    unpacked: Box<Unpacked>,
    panel: Box<Panel>,
    /// `[8, 256]`
    floats: Vec<f32>,
    lanes: Vec<LaneSums>,
    sums: [Vec<[f32; PANEL_ROWS]>; 2],
}

impl PanelScratch {
    pub fn new() -> Self {
        let rows = || vec![[0.0; PANEL_ROWS]; ROWS_MAX];
        Self {
            unpacked: Box::new(Unpacked { q: [[0; _]; _], d: [[0.0; _]; _], m: [[0.0; _]; _] }),
            panel: Box::new(Panel { q: [[[0; _]; _]; _], d: [[0.0; _]; _], m: [[0.0; _]; _] }),
            floats: vec![0.0; FLOAT_ROWS * CHUNK],
            lanes: vec![[[0.0; LANES]; FLOAT_ROWS]; FLOAT_TILE_ROWS],
            sums: [rows(), rows()],
        }
    }
}

/// Runs jobs over the same activations and output matrix `[.., out_stride]`, shared among the team by cost. The
/// outputs of different jobs must not overlap.
pub(crate) fn run_jobs(core: &Core, jobs: &[Job<'_>], x: &Activations, out: &mut [f32], out_stride: usize) {
    let total: usize = jobs.iter().map(|job| job.panels() * job.panel_cost()).sum();
    let out = Shares::new(out);
    core.team.run_if_worth(total / 4, |member, members| {
        let (low, high) = (share_of(total, member, members), share_of(total, member + 1, members));
        let mut worker = core.worker(member);
        let mut base = 0;
        for job in jobs {
            // A panel is the member's in whose share its cost begins.
            let (panels, cost) = (job.panels(), job.panel_cost());
            let first = low.saturating_sub(base).div_ceil(cost).min(panels);
            let last = high.saturating_sub(base).div_ceil(cost).min(panels);
            base += panels * cost;
            for start in (0..job.x_rows.count()).step_by(ROWS_MAX) {
                let count = (job.x_rows.count() - start).min(ROWS_MAX);
                for panel in first..last {
                    run_panel(core, job, panel, [start, count], x, &mut worker.panels, out, out_stride);
                }
            }
        }
    });
}

fn share_of(total: usize, member: usize, members: usize) -> usize {
    (total as u128 * member as u128 / members as u128) as usize
}

/// One panel of a job for `count` of its rows from `start` on.
#[allow(clippy::too_many_arguments)] // the inside of `run_jobs`
fn run_panel(
    core: &Core,
    job: &Job<'_>,
    panel: usize,
    [start, count]: [usize; 2],
    x: &Activations,
    scratch: &mut PanelScratch,
    out: Shares<f32>,
    out_stride: usize,
) {
    let mut rows = [0; ROWS_MAX];
    for (i, row) in rows[..count].iter_mut().enumerate() {
        *row = job.x_rows.get(start + i) as u32;
    }
    let inputs = Inputs { simd: core.simd, x, rows: &rows[..count] };
    let [mut sums, mut gated] = std::mem::take(&mut scratch.sums);
    panel_dots(inputs, job.matrix, panel, scratch, &mut sums[..count]);
    if let Some(up) = job.up {
        panel_dots(inputs, up, panel, scratch, &mut gated[..count]);
        for (gate, up) in sums[..count].iter_mut().zip(&gated[..count]) {
            for lane in 0..PANEL_ROWS {
                gate[lane] = silu(gate[lane]) * up[lane];
            }
        }
    }
    let first = panel * PANEL_ROWS;
    let width = (job.matrix.rows() - first).min(PANEL_ROWS);
    for (i, sums) in sums[..count].iter().enumerate() {
        let at = job.out_rows.get(start + i) * out_stride + job.out_offset + first;
        // SAFETY: these outputs are this panel's, and the panel is this member's alone.
        let out = unsafe { out.part(at..at + width) };
        out.copy_from_slice(&sums[..width]);
        if !job.bias.is_empty() {
            out.iter_mut().zip(&job.bias[first..]).for_each(|(out, bias)| *out += bias);
        }
    }
    scratch.sums = [sums, gated];
}

/// Rows of activations that meet a panel.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    simd: Simd,
    x: &'a Activations,
    rows: &'a [u32],
}

/// The dots of a panel's weight rows with some rows. sums `[rows, 16]`
fn panel_dots(
    inputs: Inputs<'_>,
    matrix: &Matrix,
    panel: usize,
    scratch: &mut PanelScratch,
    sums: &mut [[f32; PANEL_ROWS]],
) {
    let Inputs { simd, x, rows } = inputs;
    let first = panel * PANEL_ROWS;
    match matrix.scheme {
        None => {
            for half in 0..2 {
                float_dots(inputs, matrix, [first, half], scratch, sums);
            }
        }
        Some(scheme) => {
            sums.fill([0.0; PANEL_ROWS]);
            let count = (matrix.rows() - first).min(PANEL_ROWS);
            let stored = matrix.stored();
            for start in (0..matrix.cols()).step_by(CHUNK) {
                let len = (matrix.cols() - start).min(CHUNK);
                unpack::unpack(simd, stored, first, count, start, len, &mut scratch.unpacked);
                kernels::interleave(simd, &scratch.unpacked, &mut scratch.panel);
                let tile = Tile { scheme, panel: &scratch.panel, x: x.quantised(), start, len, rows };
                kernels::tile(simd, tile, sums);
            }
        }
    }
}

/// Half a panel (8 weight rows) of floats.
fn float_dots(
    inputs: Inputs<'_>,
    matrix: &Matrix,
    [first, half]: [usize; 2],
    scratch: &mut PanelScratch,
    sums: &mut [[f32; PANEL_ROWS]],
) {
    let Inputs { simd, x, rows } = inputs;
    let first = first + half * FLOAT_ROWS;
    let count = matrix.rows().saturating_sub(first).min(FLOAT_ROWS);
    let stored = matrix.stored();
    let (x, x_stride) = x.floats();
    let floats = &mut scratch.floats;
    floats[count * CHUNK..].fill(0.0);
    for (rows, sums) in rows.chunks(FLOAT_TILE_ROWS).zip(sums.chunks_mut(FLOAT_TILE_ROWS)) {
        let lanes = &mut scratch.lanes[..rows.len()];
        lanes.fill([[0.0; LANES]; FLOAT_ROWS]);
        for start in (0..matrix.cols()).step_by(CHUNK) {
            let len = (matrix.cols() - start).min(CHUNK);
            for (i, w) in floats.chunks_exact_mut(CHUNK).take(count).enumerate() {
                unpack::floats(simd, stored, first + i, start, &mut w[..len]);
                matrix.scale_floats(first + i, start, &mut w[..len]);
                w[len..padded(len)].fill(0.0);
            }
            let dots = Dots { w: floats, w_stride: CHUNK, x, x_stride, start, len: padded(len), rows };
            kernels::dots(simd, dots, lanes);
        }
        for (lanes, sums) in lanes.iter().zip(sums) {
            for (i, lanes) in lanes.iter().enumerate() {
                sums[half * FLOAT_ROWS + i] = kernels::reduce(lanes);
            }
        }
    }
}

pub(crate) fn linear(core: &Core, x: View<'_>, weight: &Weight, out: ViewMut<'_>) {
    let (x, out) = (Source::of(x), Target::of(out).flattened());
    let layer = weight.storage::<Linear>();
    assert!(x.width() == weight.cols && out.len == weight.rows && x.rows == out.rows, "shapes of a linear layer");
    let scratch = &mut *core.scratch();
    let wanted = layer.parts.iter().fold(Wanted::default(), |wanted, part| wanted.or(part.wanted()));
    scratch.x.prepare_rows(core.simd, &core.team, x, wanted);
    let mut first = 0;
    let jobs: Vec<Job<'_>> = layer
        .parts
        .iter()
        .map(|matrix| {
            let rows = RowSet::Even { first: 0, step: 1, count: x.rows };
            let bias = if layer.bias.is_empty() { &[][..] } else { &layer.bias[first..][..matrix.rows()] };
            let out_offset = out.offset + first;
            first += matrix.rows();
            Job { matrix, up: None, bias, x_rows: rows, out_rows: rows, out_offset }
        })
        .collect();
    run_jobs(core, &jobs, &scratch.x, out.values, out.row_stride);
}

pub(crate) fn linear_heads(core: &Core, x: View<'_>, weight: &Weight, out: ViewMut<'_>) {
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
    scratch.x.prepare(core.simd, &core.team, x, wanted);
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
        })
        .collect();
    run_jobs(core, &jobs, &scratch.x, out.values, out.row_stride);
}
