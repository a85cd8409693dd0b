//! RMS norm and sums of rows.

use lingqu_backend::{View, ViewMut, Weight};

use crate::Core;
use crate::isa::per_isa;
use crate::memory::{Source, Target};
use crate::simd::{LANES, reduce};
use crate::team::{Shares, share};
use crate::weights::Table;

pub(crate) fn rms_norm(core: &Core, x: View<'_>, weight: &Weight, eps: f32, out: ViewMut<'_>) {
    let Table(weight) = weight.storage();
    let (x, out) = (Source::of(x), Target::of(out));
    assert!(
        x.rows == out.rows && x.heads == out.heads && x.len == out.len && x.len == weight.len(),
        "shapes of a norm"
    );
    each_head(core, x, out, |x, out| norm(core.simd, x, weight, eps, out));
}

pub(crate) fn add(core: &Core, x: View<'_>, out: ViewMut<'_>) {
    let (x, out) = (Source::of(x), Target::of(out));
    assert!(x.rows == out.rows && x.heads == out.heads && x.len == out.len, "shapes of a sum");
    each_head(core, x, out, |x, out| add_to(core.simd, x, out));
}

/// Runs `op` on each head of each row.
fn each_head(core: &Core, x: Source<'_>, out: Target<'_>, op: impl Fn(&[f32], &mut [f32]) + Sync) {
    let Target { rows, heads, len, row_stride, head_stride, offset, values } = out;
    let out = Shares::new(values);
    core.team.run_if_worth(rows * heads * len, |member, members| {
        for i in share(rows * heads, member, members) {
            let (row, head) = (i / heads, i % heads);
            let start = row * row_stride + offset + head * head_stride;
            // SAFETY: each head of a row is one member's.
            op(x.head(row, head), unsafe { out.part(start..start + len) });
        }
    });
}

per_isa! {
    /// `out = x * (1 / sqrt(mean(x^2) + eps)) * weight`; the squares are summed over 16 lanes, then as a tree.
    fn norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_plain
}

#[inline(always)]
fn norm_plain(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut lanes = [0.0f32; LANES];
    let (whole, tail) = x.as_chunks::<LANES>();
    for x in whole {
        for j in 0..LANES {
            lanes[j] = x[j].mul_add(x[j], lanes[j]);
        }
    }
    for (x, lane) in tail.iter().zip(&mut lanes) {
        *lane = x.mul_add(*x, *lane);
    }
    let inverse = 1.0 / (reduce(&lanes) / x.len() as f32 + eps).sqrt();
    for ((x, weight), out) in x.iter().zip(weight).zip(out) {
        *out = x * inverse * weight;
    }
}

per_isa! {
    fn add_to(x: &[f32], out: &mut [f32]) = add_plain
}

#[inline(always)]
fn add_plain(x: &[f32], out: &mut [f32]) {
    for (x, out) in x.iter().zip(out) {
        *out += x;
    }
}
