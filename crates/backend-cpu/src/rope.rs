//! Rotary position embedding.

use lingqu_backend::{RopePairing, Step, View, ViewMut, Weight};

use crate::Core;
use crate::isa::per_isa;
use crate::memory::{Source, Target};
use crate::step::StepTables;
use crate::team::{Shares, share};
use crate::weights::Table;

pub(crate) fn rope(core: &Core, step: &Step, x: View<'_>, table: &Weight, pairing: RopePairing, out: ViewMut<'_>) {
    let positions = &step.storage::<StepTables>().positions;
    let Table(angles) = table.storage();
    let x = Source::of(x);
    let Target { rows, heads, len, row_stride, head_stride, offset, values } = Target::of(out);
    assert!(x.rows == rows && rows == positions.len() && x.heads == heads, "rows of a rotation");
    assert!(x.len == len && len == table.cols && len.is_multiple_of(2), "dimensions of a rotation");
    let out = Shares::new(values);
    core.team.run_if_worth(rows * heads * len, |member, members| {
        for row in share(rows, member, members) {
            let angles = &angles[positions[row] as usize * len..][..len];
            for head in 0..heads {
                let start = row * row_stride + offset + head * head_stride;
                // SAFETY: each row is one member's, and its heads do not overlap.
                let out = unsafe { out.part(start..start + len) };
                match pairing {
                    RopePairing::Interleaved => interleaved(core.simd, x.head(row, head), angles, out),
                    RopePairing::Half => halves(core.simd, x.head(row, head), angles, out),
                }
            }
        }
    });
}

per_isa! {
    fn interleaved(x: &[f32], angles: &[f32], out: &mut [f32]) = interleaved_plain
}

#[inline(always)]
fn interleaved_plain(x: &[f32], angles: &[f32], out: &mut [f32]) {
    let (cos, sin) = angles.split_at(angles.len() / 2);
    let pairs = x.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<2>().0);
    for ((&[a, b], out), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
        *out = [a * cos - b * sin, a * sin + b * cos];
    }
}

per_isa! {
    fn halves(x: &[f32], angles: &[f32], out: &mut [f32]) = halves_plain
}

#[inline(always)]
fn halves_plain(x: &[f32], angles: &[f32], out: &mut [f32]) {
    let half = x.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let (a, b) = x.split_at(half);
    let (out_a, out_b) = out.split_at_mut(half);
    for i in 0..half {
        out_a[i] = a[i] * cos[i] - b[i] * sin[i];
        out_b[i] = a[i] * sin[i] + b[i] * cos[i];
    }
}
