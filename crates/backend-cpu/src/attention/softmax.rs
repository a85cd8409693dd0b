//! A softmax that takes its scores tile by tile, and the merge of two that saw different splits.

use crate::isa::per_isa;
use crate::math::exp;
use crate::simd::LANES;

use super::TILE;

/// A softmax under way.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Softmax {
    /// Of `exp(score - most)`, in lanes by position.
    pub sums: [f32; LANES],
    pub most: f32,
}

impl Softmax {
    pub const EMPTY: Softmax = Softmax { most: f32::NEG_INFINITY, sums: [0.0; LANES] };
}

/// Queries whose tiles are weighed together.
pub(super) const TOGETHER: usize = 16;

/// Where some queries are: what a tile's scores are taken into.
pub(super) struct Running<'a> {
    /// `[queries]`
    pub states: &'a mut [Softmax],
    /// `[queries, out_stride]`
    pub outputs: &'a mut [f32],
    pub out_stride: usize,
}

per_isa! {
    /// Takes the scores of at most 16 queries, of each the first `seen` of the tile, into their softmaxes: these
    /// become weights `exp(scale * score - most)`, and where `most` has moved, outputs shrink with the sums.
    /// scores `[queries, 64]`
    pub(super) fn weigh(
        scores: &mut [[f32; TILE]],
        seen: &[usize; TOGETHER],
        scale: f32,
        running: Running<'_>,
    ) = weigh_plain
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a } // not `max`: its treatment of NaN is part of the bits
}

// Step by step for all queries, not query by query: each step has a chain of its own to wait for.
#[inline(always)]
fn weigh_plain(scores: &mut [[f32; TILE]], seen: &[usize; TOGETHER], scale: f32, running: Running<'_>) {
    let Running { states, outputs, out_stride } = running;
    let mut shrinks = [0.0; TOGETHER];
    for (((scores, state), seen), shrink) in scores.iter_mut().zip(&mut *states).zip(seen).zip(&mut shrinks) {
        scores.iter_mut().for_each(|score| *score *= scale);
        if *seen < TILE {
            scores[*seen..].fill(f32::NEG_INFINITY);
        }
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in scores.as_chunks::<LANES>().0 {
            lanes = std::array::from_fn(|j| larger(lanes[j], chunk[j]));
        }
        for half in [8, 4, 2, 1] {
            lanes = std::array::from_fn(|j| larger(lanes[j], lanes[(j + half) % LANES]));
        }
        let most = larger(state.most, lanes[0]);
        *shrink = state.most - most;
        state.most = most;
    }
    shrinks.iter_mut().for_each(|shrink| *shrink = exp(*shrink));
    for ((state, shrink), outputs) in states.iter_mut().zip(shrinks).zip(outputs.chunks_mut(out_stride)) {
        if shrink != 1.0 {
            state.sums.iter_mut().for_each(|sum| *sum *= shrink);
            outputs.iter_mut().for_each(|output| *output *= shrink);
        }
    }
    for ((scores, state), seen) in scores.iter_mut().zip(states).zip(seen) {
        let (chunks, _) = scores[..seen.next_multiple_of(LANES)].as_chunks_mut::<LANES>();
        let (whole, most) = (seen / LANES, state.most);
        for (i, chunk) in chunks.iter_mut().enumerate() {
            if i == whole {
                // The weights of what is not seen are 0. Not by `exp`: results below the normal floats are slow.
                chunk[seen % LANES..].fill(most);
            }
            *chunk = std::array::from_fn(|j| exp(chunk[j] - most));
            if i == whole {
                chunk[seen % LANES..].fill(0.0);
            }
            state.sums = std::array::from_fn(|j| state.sums[j] + chunk[j]);
        }
    }
}

per_isa! {
    /// Adds a finished split to the total of those before it.
    pub(super) fn merge(state: &Softmax, outputs: &[f32], total: &mut Softmax, totals: &mut [f32]) = merge_plain
}

#[inline(always)]
fn merge_plain(state: &Softmax, outputs: &[f32], total: &mut Softmax, totals: &mut [f32]) {
    if total.most == f32::NEG_INFINITY {
        *total = *state;
        return totals.copy_from_slice(outputs);
    }
    let most = larger(total.most, state.most);
    let (old, new) = (exp(total.most - most), exp(state.most - most));
    total.most = most;
    for j in 0..LANES {
        total.sums[j] = state.sums[j].mul_add(new, total.sums[j] * old);
    }
    for (total, value) in totals.iter_mut().zip(outputs) {
        *total = value.mul_add(new, *total * old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{every_simd, normal};

    /// Three tiles for some queries, then a merge with itself.
    #[test]
    fn weights_and_merges_have_the_same_bits_on_all_sets() {
        let seen: [usize; TOGETHER] = std::array::from_fn(|i| [1, 15, 16, 17, 48, 63, 64][i % 7]);
        for queries in [1, 5, TOGETHER] {
            let mut first: Option<Vec<u32>> = None;
            for simd in every_simd() {
                let (mut states, mut outputs) = (vec![Softmax::EMPTY; queries], normal(1, queries * 48));
                let mut all = Vec::new();
                for tile in 0..3 {
                    let mut scores = normal(2 + tile, queries * TILE);
                    let tiles = scores.as_chunks_mut().0;
                    let running = Running { states: &mut states, outputs: &mut outputs, out_stride: 48 };
                    weigh(simd, tiles, &seen, 3.0, running);
                    for (tile, seen) in tiles.iter().zip(seen) {
                        assert!(tile[..seen].iter().all(|weight| (0.0..=1.0).contains(weight)));
                        all.extend_from_slice(&tile[..seen]);
                    }
                }
                let (mut total, mut totals) = (Softmax::EMPTY, vec![0.0; 48]);
                for (state, outputs) in states.iter().zip(outputs.chunks(48)) {
                    merge(simd, state, outputs, &mut total, &mut totals);
                    all.extend(state.sums.iter().chain([&state.most]).chain(outputs));
                }
                all.extend(total.sums.iter().chain([&total.most]).chain(&totals));
                let bits: Vec<u32> = all.iter().map(|value| value.to_bits()).collect();
                assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{queries} queries on {simd:?}");
            }
        }
    }
}
