//! Activations as the kernels read them: f32 rows padded to lanes, or int8 with a scale for each 32 or 256 values.
//!
//! One plane of int8 has a step of 1/127 of the largest value, as everybody's quantised products on CPUs have. A
//! second plane makes the step 254 times finer, at the price of a second integer product: see [`Precision`].
//!
//! [`Precision`]: crate::Precision

use crate::Precision;
use crate::isa::{Simd, per_isa};
use crate::math::round_i16;
use crate::memory::{Source, grow};
use crate::simd::{CHUNK, LANES, OCTET, QuantRows, RowChunk, pair_place};
use crate::team::{Shares, Team, share};

/// What a step of the first of two planes is worth, in steps of the second. 254 and not 256: both planes then stay
/// within -127..=127, whose signs AVX2 can turn.
const PLANE_STEP: i16 = 254;

/// What a set of weights wants of its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub floats: bool,
    /// Integers with a scale for each 32 values.
    pub small: bool,
    /// Integers with a scale for each 256 values.
    pub large: bool,
}

impl Wanted {
    pub fn or(self, other: Self) -> Self {
        Self { floats: self.floats || other.floats, small: self.small || other.small, large: self.large || other.large }
    }
}

/// Rows of one op's input. Reused from op to op.
#[derive(Default)]
pub(crate) struct Activations {
    cols: usize,
    rows: usize,
    /// `[rows, cols padded to 16]`, and what is left of other ops
    floats: Vec<f32>,
    small: Quantised,
    large: Quantised,
    /// A row whose heads lie apart, put together.
    joined: Vec<f32>,
}

/// See [`QuantRows`].
#[derive(Default)]
struct Quantised {
    planes: usize,
    rows: usize,
    /// Chunks of a row.
    count: usize,
    /// Those of all rows, and what is left of other ops.
    chunks: Vec<RowChunk>,
}

impl Quantised {
    fn prepare(&mut self, simd: Simd, team: &Team, x: Source<'_>, block: usize, precision: Precision) {
        let (rows, cols, planes) = (x.rows * x.heads, x.len, precision.planes());
        assert!(cols.is_multiple_of(block), "{cols} columns of a format with blocks of {block}");
        (self.planes, self.rows) = (planes, rows);
        self.count = cols.div_ceil(CHUNK);
        let chunks = Shares::new(grow(&mut self.chunks, self.count * rows * planes, RowChunk::ZERO));
        let quantise = match (block, planes) {
            (OCTET, 1) => quantise_small,
            (OCTET, _) => quantise_small_fine,
            (_, 1) => quantise_large,
            _ => quantise_large_fine,
        };
        team.run_if_worth(rows * cols * 2, |member, members| {
            for row in share(rows, member, members) {
                let x = x.head(row / x.heads, row % x.heads);
                for (chunk, x) in x.chunks(CHUNK).enumerate() {
                    let at = (chunk * rows + row) * planes;
                    // SAFETY: each row is one member's; `self` is borrowed until the team is done.
                    quantise(simd, x, unsafe { chunks.part(at..at + planes) });
                }
            }
        });
    }

    fn rows(&self, block: usize) -> QuantRows<'_> {
        let Self { planes, rows, count, ref chunks } = *self;
        QuantRows { block, planes, rows, chunks: &chunks[..count * rows * planes] }
    }
}

impl Activations {
    /// Takes in each head of each row as a row of its own (row `r * heads + h`).
    pub fn prepare(&mut self, simd: Simd, team: &Team, x: Source<'_>, wanted: Wanted, precision: Precision) {
        let (rows, cols) = (x.rows * x.heads, x.len);
        (self.rows, self.cols) = (rows, cols);
        if wanted.floats {
            let padded = cols.next_multiple_of(LANES);
            let floats = Shares::new(grow(&mut self.floats, rows * padded, 0.0));
            team.run_if_worth(rows * cols, |member, members| {
                for row in share(rows, member, members) {
                    // SAFETY: each row is one member's; `self` is borrowed until the team is done.
                    let out = unsafe { floats.part(row * padded..(row + 1) * padded) };
                    out[..cols].copy_from_slice(x.head(row / x.heads, row % x.heads));
                    out[cols..].fill(0.0);
                }
            });
        }
        if wanted.small {
            self.small.prepare(simd, team, x, OCTET, precision);
        }
        if wanted.large {
            self.large.prepare(simd, team, x, CHUNK, precision);
        }
    }

    /// Takes in whole rows, whatever their heads.
    pub fn prepare_rows(&mut self, simd: Simd, team: &Team, x: Source<'_>, wanted: Wanted, precision: Precision) {
        let x = x.flattened();
        if x.heads == 1 {
            return self.prepare(simd, team, x, wanted, precision);
        }
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        for row in 0..x.rows {
            (0..x.heads).for_each(|head| joined.extend_from_slice(x.head(row, head)));
        }
        self.prepare(simd, team, Source::packed(&joined, x.rows, x.width()), wanted, precision);
        self.joined = joined;
    }

    /// The f32 rows and their stride.
    pub fn floats(&self) -> (&[f32], usize) {
        let stride = self.cols.next_multiple_of(LANES);
        (&self.floats[..self.rows * stride], stride)
    }

    /// The rows with a scale for each `block` values.
    pub fn quantised(&self, block: usize) -> QuantRows<'_> {
        match block {
            OCTET => self.small.rows(block),
            _ => self.large.rows(block),
        }
    }
}

per_isa! {
    fn quantise_small(x: &[f32], planes: &mut [RowChunk]) = quantise_plain::<OCTET, 1>
}
per_isa! {
    fn quantise_small_fine(x: &[f32], planes: &mut [RowChunk]) = quantise_plain::<OCTET, 2>
}
per_isa! {
    fn quantise_large(x: &[f32], planes: &mut [RowChunk]) = quantise_plain::<CHUNK, 1>
}
per_isa! {
    fn quantise_large_fine(x: &[f32], planes: &mut [RowChunk]) = quantise_plain::<CHUNK, 2>
}

/// `x = d v`, rounded to nearest even: with one plane `d = max|x| / 127` over a block; with two, the integer
/// `max|x| / 32258` counts is `254 v0 + v1`, and `d` is 254 of those steps and one. x: up to 256 values
#[inline(always)]
fn quantise_plain<const BLOCK: usize, const PLANES: usize>(x: &[f32], planes: &mut [RowChunk]) {
    let planes: &mut [RowChunk; PLANES] = planes.try_into().expect("as many planes");
    if x.len() < CHUNK {
        planes.fill(RowChunk::ZERO);
    }
    for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let mut most = [0.0f32; 16];
        for x in x.as_chunks::<16>().0 {
            for j in 0..16 {
                let a = x[j].abs();
                most[j] = if a > most[j] { a } else { most[j] };
            }
        }
        let most = most.iter().fold(0.0, |most, &a| if a > most { a } else { most });
        let steps = if PLANES == 1 { 127.0 } else { 127.0 * f32::from(PLANE_STEP) };
        // A scale whose inverse is infinite stands for values too small to matter.
        let inverse = if most > 1e-33 { steps / most } else { 0.0 };
        let step = most / steps;
        planes[0].d[b] = if PLANES == 1 { step } else { step * f32::from(PLANE_STEP) };
        if PLANES == 2 {
            planes[1].d[b] = step;
        }
        for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let octet = b * (BLOCK / OCTET) + j;
            let mut sums = [0; PLANES];
            for half in 0..2 {
                let sixteen = octet * 2 + half;
                let integers: [i16; 16] = std::array::from_fn(|i| round_i16(x[half * 16 + i] * inverse));
                let mut of_planes = [integers, [0; 16]];
                if PLANES == 2 {
                    // Nearest, so that the rest stays within -127..=127; at a tie both neighbours leave such a rest.
                    of_planes[0] = integers.map(|v| round_i16(f32::from(v) * (1.0 / f32::from(PLANE_STEP))));
                    of_planes[1] = std::array::from_fn(|i| integers[i] - of_planes[0][i] * PLANE_STEP);
                }
                for (p, plane) in planes.iter_mut().enumerate() {
                    plane.v[sixteen * 16..][..16].copy_from_slice(&of_planes[p].map(|v| v as i8));
                    let sum = sum_of(of_planes[p]);
                    plane.sums16[pair_place(sixteen)] = sum;
                    sums[p] += sum;
                }
            }
            (0..PLANES).for_each(|p| planes[p].sums32[pair_place(octet)] = sums[p]);
        }
    }
}

/// As a tree, which vectorises.
#[inline(always)]
fn sum_of(v: [i16; 16]) -> i16 {
    let a: [i16; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
    let b: [i16; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
    (b[0] + b[2]) + (b[1] + b[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing;

    #[test]
    fn quantised_rows_are_close_and_the_same_everywhere() {
        let team = Team::new(2).unwrap();
        let (rows, cols) = (5, 512);
        let mut x = testing::normal(7, rows * cols);
        x[..256].fill(0.0);
        x[257] = 1e-40;
        for precision in [Precision::Int8, Precision::Int16] {
            let mut first: Option<Activations> = None;
            for simd in testing::every_simd() {
                let mut a = Activations::default();
                let wanted = Wanted { floats: true, small: true, large: true };
                a.prepare(simd, &team, Source::packed(&x, rows, cols), wanted, precision);
                assert_eq!(a.floats().0, x);
                for block in [OCTET, CHUNK] {
                    let q = a.quantised(block);
                    for (i, &x) in x.iter().enumerate() {
                        let (row, col) = (i / cols, i % cols);
                        let planes = q.chunk(col / CHUNK, row);
                        let d = |plane: usize| planes[plane].d[col % CHUNK / block];
                        let got: f32 = (0..q.planes).map(|p| d(p) * f32::from(planes[p].v[col % CHUNK])).sum();
                        // Half a step, and what f32 loses on the way at 15 bits.
                        let step = d(q.planes - 1);
                        assert!((got - x).abs() <= step * 0.51 + 1e-33, "{precision:?}: value {i} at {}", simd.isa());
                    }
                    for chunk in q.chunks {
                        assert!(chunk.v.iter().all(|&v| v > i8::MIN), "the kernels take no -128");
                        for (sums, of) in [(&chunk.sums16[..], 16), (&chunk.sums32, 32)] {
                            for (i, v) in chunk.v.chunks(of).enumerate() {
                                assert_eq!(sums[pair_place(i)], v.iter().map(|&v| i16::from(v)).sum::<i16>());
                            }
                        }
                    }
                    if let Some(first) = &first {
                        assert!(first.quantised(block).chunks == q.chunks, "{}", simd.isa());
                    }
                }
                first.get_or_insert(a);
            }
        }
        assert_eq!(testing::every_simd()[0].isa(), Isa::Portable);
    }

    #[test]
    fn padding_is_zero() {
        let (team, simd) = (Team::new(1).unwrap(), testing::every_simd()[0]);
        let mut a = Activations::default();
        let wanted = Wanted { small: true, ..Default::default() };
        for cols in [64, 32] {
            let x = testing::normal(1, 3 * cols);
            a.prepare(simd, &team, Source::packed(&x, 3, cols), wanted, Precision::Int16);
        }
        let q = a.quantised(OCTET);
        assert_eq!((q.count(), q.rows, q.planes), (1, 3, 2));
        assert!(q.chunks.iter().all(|c| c.v[32..].iter().all(|&v| v == 0) && c.v[..32].iter().any(|&v| v != 0)));
        assert!(q.chunks.iter().all(|c| c.d[1..] == [0.0; 7] && c.sums32[1..] == [0; 7] && c.sums16[4..] == [0; 12]));
    }
}
