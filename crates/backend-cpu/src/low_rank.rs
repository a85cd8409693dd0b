//! What adapters add to linear layers: the two small products of each adapter as jobs like any other, over the rows
//! that it changes. So each factor is read once, however many rows share it, and the bits are those of float weights.

use lingqu_backend::{
    AdaptedFfn, AdaptedRows, BackendError, FfnWeights, LowRank, LowRankSource, RANK_MAX, View, ViewMut,
};

use crate::activations::Wanted;
use crate::linear::{Job, RowSet, gated, run_jobs};
use crate::memory::{Source, Target, grow};
use crate::team::{Shares, share};
use crate::weights::{Gated, Matrix};
use crate::{Core, OpScratch, Products, Result};

const FLOATS: Wanted = Wanted { floats: true, small: false, large: false };

/// Storage of a [`LowRank`].
struct Changes(Vec<Change>);

struct Change {
    offset: usize,
    /// `[rank, in]`
    a: Matrix,
    /// `[out, rank]`
    b: Matrix,
    scale: f32,
}

pub(crate) fn upload(sources: &[LowRankSource]) -> Result<LowRank> {
    let cols = sources.first().expect("at least one change").a.cols;
    let (mut changes, mut rank, mut rows, mut bytes) = (Vec::new(), 0, 0, 0);
    for LowRankSource { offset, a, b, scale } in sources {
        assert!(a.cols == cols && b.cols == a.rows && (1..=RANK_MAX).contains(&a.rows), "shape of '{}'", a.name);
        for factor in [a, b] {
            if !LowRankSource::FORMATS.contains(&factor.format) {
                let what = format!("'{}' in {}", factor.name, factor.format);
                return Err(BackendError::Unsupported { backend: "cpu".into(), what });
            }
        }
        (rank, rows) = (a.rows.max(rank), rows.max(offset + b.rows));
        let (a, b) = (Matrix::floats_of(a)?, Matrix::floats_of(b)?);
        bytes += a.bytes() + b.bytes();
        changes.push(Change { offset: *offset, a, b, scale: *scale });
    }
    Ok(LowRank::new([rank, rows, cols], bytes, Changes(changes)))
}

/// `out += scale * B (A x)`, with `A x` in `inner` (`[changes and their rows, largest rank]`).
fn add(
    core: &Core,
    x: Source<'_>,
    adapted: &[AdaptedRows<'_>],
    (products, inner): (&mut Products, &mut Vec<f32>),
    out: Target<'_>,
) -> Result<()> {
    let adapted = || adapted.iter().filter(|a| !a.rows.is_empty());
    let rank = adapted().map(|a| a.change.rank).max().unwrap_or(0);
    if rank == 0 {
        return Ok(());
    }
    // Each change and the first of its rows in `inner`.
    let (mut changes, mut slots) = (Vec::new(), 0);
    for AdaptedRows { rows, change } in adapted() {
        assert!(change.cols == x.width() && change.rows <= out.len, "shapes of a change");
        assert!(rows.iter().all(|row| (*row as usize) < out.rows), "rows of a change");
        for part in &change.storage::<Changes>().0 {
            changes.push((part, *rows, slots));
            slots += rows.len();
        }
    }
    products.x.prepare_rows(core.simd, &core.team, x, FLOATS, core.precision);
    let inner = grow(inner, slots * rank, 0.0);
    inner.fill(0.0); // what is beyond a smaller rank meets zeros, and must be a number
    let own = |first: usize, rows: &[u32]| RowSet::Even { first, step: 1, count: rows.len() };
    let jobs: Vec<Job<'_>> = changes
        .iter()
        .map(|&(Change { a, .. }, rows, first)| {
            let (x_rows, out_rows) = (RowSet::List(rows), own(first, rows));
            Job { matrix: a, up: None, bias: &[], x_rows, out_rows, out_offset: 0, adds: false }
        })
        .collect();
    run_jobs(core, &jobs, products, inner, rank)?;
    for &(Change { scale, .. }, rows, first) in &changes {
        inner[first * rank..][..rows.len() * rank].iter_mut().for_each(|v| *v *= scale);
    }
    products.x.prepare(core.simd, &core.team, Source::packed(inner, slots, rank), FLOATS, core.precision);
    let jobs: Vec<Job<'_>> = changes
        .iter()
        .map(|&(Change { b, offset, .. }, rows, first)| {
            let (x_rows, out_rows, out_offset) = (own(first, rows), RowSet::List(rows), out.offset + offset);
            Job { matrix: b, up: None, bias: &[], x_rows, out_rows, out_offset, adds: true }
        })
        .collect();
    run_jobs(core, &jobs, products, out.values, out.row_stride)
}

pub(crate) fn add_low_rank(core: &Core, x: View<'_>, adapted: &[AdaptedRows<'_>], out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (Source::of(x), Target::of(out).flattened());
    assert_eq!(x.rows, out.rows, "rows of a change");
    let OpScratch { products, low_rank, .. } = &mut *core.scratch();
    add(core, x, adapted, (products, low_rank), out)
}

/// As `ffn`, but gate and up are kept apart until the changes are added.
pub(crate) fn ffn(
    core: &Core,
    x: View<'_>,
    weights: &FfnWeights,
    adapted: &[AdaptedFfn<'_>],
    out: ViewMut<'_>,
) -> Result<()> {
    let (x, out) = (Source::of(x), Target::of(out).flattened());
    let (hidden, intermediate) = (weights.hidden, weights.intermediate);
    assert!(x.width() == hidden && out.len == hidden && x.rows == out.rows, "shapes of a feed-forward");
    let Gated { gate, up, down } = weights.storage();
    let rows = RowSet::Even { first: 0, step: 1, count: x.rows };
    let OpScratch { products, inner, low_rank, .. } = &mut *core.scratch();
    let changed = |which: for<'a> fn(&AdaptedFfn<'a>) -> Option<&'a LowRank>| -> Vec<AdaptedRows<'_>> {
        adapted.iter().filter_map(|a| Some(AdaptedRows { rows: a.rows, change: which(a)? })).collect()
    };

    let wanted = gate.wanted().or(up.wanted());
    products.x.prepare_rows(core.simd, &core.team, x, wanted, core.precision);
    let stride = 2 * intermediate;
    let inner = grow(inner, x.rows * stride, 0.0); // [rows, gate and up]
    let job =
        |matrix, out_offset| Job { matrix, up: None, bias: &[], x_rows: rows, out_rows: rows, out_offset, adds: false };
    run_jobs(core, &[job(gate, 0), job(up, intermediate)], products, inner, stride)?;
    let (heads, len, offset) = (1, stride, 0);
    let both = Target { values: inner, rows: x.rows, heads, len, row_stride: stride, head_stride: stride, offset };
    add(core, x, &changed(|a| a.gate_up), (products, low_rank), both)?;
    let shares = Shares::new(inner);
    core.team.run_if_worth(x.rows * intermediate, |member, members| {
        for row in share(x.rows, member, members) {
            // SAFETY: each row is one member's.
            let (gate, up) = unsafe { shares.part(row * stride..(row + 1) * stride) }.split_at_mut(intermediate);
            gated(core.simd, gate, up);
        }
    });

    let inner = Source::strided(inner, x.rows, intermediate, stride);
    products.x.prepare(core.simd, &core.team, inner, down.wanted(), core.precision);
    run_jobs(core, &[job(down, out.offset)], products, out.values, out.row_stride)?;
    add(core, inner, &changed(|a| a.down), (products, low_rank), out)
}
