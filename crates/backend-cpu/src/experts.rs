//! Gated feed-forward layers: one for all rows, or routed experts with the rows grouped by expert.

use lingqu_backend::{ExpertWeights, FfnWeights, Routing, View, ViewMut};

use crate::activations::Wanted;
use crate::isa::per_isa;
use crate::linear::{Job, RowSet, run_jobs};
use crate::memory::{Routed, Source, Target, grow};
use crate::team::{Shares, share};
use crate::weights::{Experts, Gated};
use crate::{Core, Result};

pub(crate) fn ffn(core: &Core, x: View<'_>, weights: &FfnWeights, out: ViewMut<'_>) -> Result<()> {
    let (x, out) = (Source::of(x), Target::of(out).flattened());
    assert!(x.width() == weights.hidden && out.len == weights.hidden && x.rows == out.rows, "shapes of a feed-forward");
    let gated = weights.storage::<Gated>();
    let rows = RowSet::Even { first: 0, step: 1, count: x.rows };
    let scratch = &mut *core.scratch();
    scratch.products.x.prepare_rows(
        core.simd,
        &core.team,
        x,
        gated.gate.wanted().or(gated.up.wanted()),
        core.precision,
    );
    let inner = x.rows * weights.intermediate;
    grow(&mut scratch.inner, inner, 0.0);
    let job = Job {
        matrix: &gated.gate,
        up: Some(&gated.up),
        bias: &[],
        x_rows: rows,
        out_rows: rows,
        out_offset: 0,
        adds: false,
    };
    run_jobs(core, &[job], &mut scratch.products, &mut scratch.inner[..inner], weights.intermediate)?;
    let inner = Source::packed(&scratch.inner[..inner], x.rows, weights.intermediate);
    scratch.products.x.prepare(core.simd, &core.team, inner, gated.down.wanted(), core.precision);
    let down = &gated.down;
    let job =
        Job { matrix: down, up: None, bias: &[], x_rows: rows, out_rows: rows, out_offset: out.offset, adds: false };
    run_jobs(core, &[job], &mut scratch.products, out.values, out.row_stride)
}

/// Slots of a routing in the order of their experts.
#[derive(Default)]
pub(crate) struct Grouped {
    /// Slot numbers (`row * top_k + slot`), expert by expert, ascending within one.
    slots: Vec<u32>,
    /// Their rows.
    rows: Vec<u32>,
    /// Where each expert's slots start; one more for the end.
    starts: Vec<usize>,
}

impl Grouped {
    fn group(&mut self, experts: &[u32], top_k: usize, count: usize) {
        self.starts.clear();
        self.starts.resize(count + 1, 0);
        for &expert in experts {
            assert!((expert as usize) < count, "expert {expert} of {count}");
            self.starts[expert as usize + 1] += 1;
        }
        (0..count).for_each(|e| self.starts[e + 1] += self.starts[e]);
        self.slots.resize(experts.len(), 0);
        self.rows.resize(experts.len(), 0);
        // Filling moves each start to its end, which is the next one's start: shifted back below.
        for (slot, &expert) in experts.iter().enumerate() {
            let at = self.starts[expert as usize];
            self.slots[at] = slot as u32;
            self.rows[at] = (slot / top_k) as u32;
            self.starts[expert as usize] += 1;
        }
        self.starts.copy_within(..count, 1);
        self.starts[0] = 0;
    }

    fn of(&self, expert: usize) -> std::ops::Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }
}

pub(crate) fn experts(
    core: &Core,
    x: View<'_>,
    routing: &Routing,
    weights: &ExpertWeights,
    out: ViewMut<'_>,
) -> Result<()> {
    let (x, out) = (Source::of(x), Target::of(out).flattened());
    let (hidden, intermediate, top_k) = (weights.hidden, weights.intermediate, routing.top_k());
    assert!(x.width() == hidden && out.len == hidden, "shapes of experts");
    assert!(x.rows == out.rows && x.rows == routing.rows(), "rows of experts");
    let Experts(all) = weights.storage();
    let routed = routing.storage::<Routed>();
    let slots = x.rows * top_k;
    let scratch = &mut *core.scratch();
    let grouped = &mut scratch.grouped;
    grouped.group(&routed.experts[..slots], top_k, all.len());
    let active: Vec<usize> = (0..all.len()).filter(|&e| !grouped.of(e).is_empty()).collect();
    let wanted =
        |of: fn(&Gated) -> Wanted| active.iter().map(|&e| of(&all[e])).reduce(|a, b| a.or(b)).unwrap_or_default();

    scratch.products.x.prepare_rows(
        core.simd,
        &core.team,
        x,
        wanted(|e| e.gate.wanted().or(e.up.wanted())),
        core.precision,
    );
    let inner = grow(&mut scratch.inner, slots * intermediate, 0.0); // [slots, intermediate]
    let gate_up = active.iter().map(|&e| Job {
        matrix: &all[e].gate,
        up: Some(&all[e].up),
        bias: &[],
        x_rows: RowSet::List(&grouped.rows[grouped.of(e)]),
        out_rows: RowSet::List(&grouped.slots[grouped.of(e)]),
        out_offset: 0,
        adds: false,
    });
    run_jobs(core, &gate_up.collect::<Vec<_>>(), &mut scratch.products, inner, intermediate)?;

    let of_inner = Source::packed(inner, slots, intermediate);
    scratch.products.x.prepare(core.simd, &core.team, of_inner, wanted(|e| e.down.wanted()), core.precision);
    let outer = grow(&mut scratch.outer, slots * hidden, 0.0); // [slots, hidden]
    let down = active.iter().map(|&e| Job {
        matrix: &all[e].down,
        up: None,
        bias: &[],
        x_rows: RowSet::List(&grouped.slots[grouped.of(e)]),
        out_rows: RowSet::List(&grouped.slots[grouped.of(e)]),
        out_offset: 0,
        adds: false,
    });
    run_jobs(core, &down.collect::<Vec<_>>(), &mut scratch.products, outer, hidden)?;
    sum_slots(core, Source::packed(outer, slots, hidden), &routed.weights[..slots], out);
    Ok(())
}

pub(crate) fn combine(core: &Core, y: View<'_>, routing: &Routing, out: ViewMut<'_>) {
    let (y, out) = (Source::of(y).flattened(), Target::of(out).flattened());
    let slots = out.rows * routing.top_k();
    assert!(y.heads == 1 && y.len == out.len && y.rows == slots && routing.rows() == out.rows, "shapes of a combine");
    sum_slots(core, y, &routing.storage::<Routed>().weights[..slots], out);
}

/// `out[r] = fma(weight, y, ..)` over the slots of row `r` in order, from 0.
fn sum_slots(core: &Core, y: Source<'_>, weights: &[f32], out: Target<'_>) {
    let Target { rows, len, row_stride, offset, .. } = out;
    let top_k = weights.len().checked_div(rows).unwrap_or(0);
    let shares = Shares::new(out.values);
    core.team.run_if_worth(weights.len() * len, |member, members| {
        for row in share(rows, member, members) {
            // SAFETY: each row is one member's.
            let out = unsafe { shares.part(row * row_stride + offset..row * row_stride + offset + len) };
            out.fill(0.0);
            for slot in row * top_k..(row + 1) * top_k {
                add_scaled(core.simd, y.head(slot, 0), weights[slot], out);
            }
        }
    });
}

per_isa! {
    /// `out = fma(weight, y, out)`
    fn add_scaled(y: &[f32], weight: f32, out: &mut [f32]) = add_scaled_plain
}

#[inline(always)]
fn add_scaled_plain(y: &[f32], weight: f32, out: &mut [f32]) {
    for (y, out) in y.iter().zip(out) {
        *out = weight.mul_add(*y, *out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_grouped_in_order() {
        let mut grouped = Grouped::default();
        grouped.group(&[2, 0, 0, 2, 3, 0], 2, 5);
        let slots = |e| grouped.slots[grouped.of(e)].to_vec();
        assert_eq!(
            [slots(0), slots(1), slots(2), slots(3), slots(4)],
            [vec![1, 2, 5], vec![], vec![0, 3], vec![4], vec![]]
        );
        assert_eq!(grouped.rows, [0, 1, 2, 0, 1, 2]);
    }
}
