//! Activations as the kernels read them: f32 rows padded to lanes, or int8 with a scale for each 32 or 256 values.
//!
//! One plane of int8 has a step of 1/127 of the largest value, as everybody's quantised products on CPUs have. A
//! second plane makes the step 254 times finer, at the price of a second integer product: see [`Precision`].
//!
//! [`Precision`]: crate::Precision

use crate::Precision;
use crate::isa::{Simd, per_isa};
use crate::math::round_i16;
use crate::memory::Source;
use crate::simd::{CHUNK, LANES, OCTET, QuantRows, pair_place};
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
    /// `[rows, cols padded to 16]`
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
    stride: usize,
    v: Vec<i8>,
    d: Vec<f32>,
    sums16: Vec<i16>,
    sums32: Vec<i16>,
}

impl Quantised {
    fn prepare(&mut self, simd: Simd, team: &Team, x: Source<'_>, block: usize, precision: Precision) {
        let (rows, cols) = (x.rows * x.heads, x.len);
        assert!(cols.is_multiple_of(block), "{cols} columns of a format with blocks of {block}");
        self.planes = precision.planes();
        self.stride = cols.next_multiple_of(CHUNK);
        let vectors = rows * self.planes;
        let (stride, blocks) = (self.stride, self.stride / block);
        self.v.resize(vectors * stride, 0);
        self.d.resize(vectors * blocks, 0.0);
        self.sums16.resize(vectors * (stride / 16), 0);
        self.sums32.resize(vectors * (stride / 32), 0);
        let (v, d) = (Shares::new(&mut self.v), Shares::new(&mut self.d));
        let (sums16, sums32) = (Shares::new(&mut self.sums16), Shares::new(&mut self.sums32));
        let planes = self.planes;
        team.run_if_worth(rows * cols * 2, |member, members| {
            for row in share(rows, member, members) {
                let part = |per_vector: usize| row * planes * per_vector..(row + 1) * planes * per_vector;
                // SAFETY: each row is one member's; `self` is borrowed until the team is done.
                let (v, d) = unsafe { (v.part(part(stride)), d.part(part(blocks))) };
                // SAFETY: as above.
                let sums = unsafe { [sums16.part(part(stride / 16)), sums32.part(part(stride / 32))] };
                let x = x.head(row / x.heads, row % x.heads);
                match (block, planes) {
                    (OCTET, 1) => quantise_small(simd, x, v, d, sums),
                    (OCTET, _) => quantise_small_fine(simd, x, v, d, sums),
                    (_, 1) => quantise_large(simd, x, v, d, sums),
                    _ => quantise_large_fine(simd, x, v, d, sums),
                }
            }
        });
    }

    fn rows(&self, block: usize) -> QuantRows<'_> {
        let Self { planes, stride, ref v, ref d, ref sums16, ref sums32 } = *self;
        QuantRows { block, planes, stride, v, d, sums16, sums32 }
    }
}

impl Activations {
    /// Takes in each head of each row as a row of its own (row `r * heads + h`).
    pub fn prepare(&mut self, simd: Simd, team: &Team, x: Source<'_>, wanted: Wanted, precision: Precision) {
        let (rows, cols) = (x.rows * x.heads, x.len);
        self.cols = cols;
        if wanted.floats {
            let padded = cols.next_multiple_of(LANES);
            self.floats.resize(rows * padded, 0.0);
            let floats = Shares::new(&mut self.floats);
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
        (&self.floats, self.cols.next_multiple_of(LANES))
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
    fn quantise_small(x: &[f32], v: &mut [i8], d: &mut [f32], sums: [&mut [i16]; 2]) = quantise_plain::<OCTET, 1>
}
per_isa! {
    fn quantise_small_fine(x: &[f32], v: &mut [i8], d: &mut [f32], sums: [&mut [i16]; 2]) = quantise_plain::<OCTET, 2>
}
per_isa! {
    fn quantise_large(x: &[f32], v: &mut [i8], d: &mut [f32], sums: [&mut [i16]; 2]) = quantise_plain::<CHUNK, 1>
}
per_isa! {
    fn quantise_large_fine(x: &[f32], v: &mut [i8], d: &mut [f32], sums: [&mut [i16]; 2]) = quantise_plain::<CHUNK, 2>
}

/// `x = d v`, rounded to nearest even: with one plane `d = max|x| / 127` over a block; with two, the integer
/// `max|x| / 32258` counts is `254 v0 + v1`, and `d` is 254 of those steps and one. sums of each 16 and 32 of `v`, at
/// their [`pair_place`]. v `[planes, stride]`
#[inline(always)]
fn quantise_plain<const BLOCK: usize, const PLANES: usize>(
    x: &[f32],
    v: &mut [i8],
    d: &mut [f32],
    [sums16, sums32]: [&mut [i16]; 2],
) {
    let stride = v.len() / PLANES;
    // For the padding.
    v.fill(0);
    sums16.fill(0);
    sums32.fill(0);
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
        d[b] = if PLANES == 1 { step } else { step * f32::from(PLANE_STEP) };
        if PLANES == 2 {
            d[stride / BLOCK + b] = step;
        }
        for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let at = b * BLOCK + j * 16;
            let integers = x.map(|x| round_i16(x * inverse));
            let mut planes = [integers, [0; 16]];
            if PLANES == 2 {
                // Nearest, so that the rest stays within -127..=127; at a tie both neighbours leave such a rest.
                planes[0] = integers.map(|v| round_i16(f32::from(v) * (1.0 / f32::from(PLANE_STEP))));
                planes[1] = std::array::from_fn(|i| integers[i] - planes[0][i] * PLANE_STEP);
            }
            for (plane, integers) in planes[..PLANES].iter().enumerate() {
                v[plane * stride + at..][..16].copy_from_slice(&integers.map(|v| v as i8));
                let sum = sum_of(*integers);
                sums16[pair_place((plane * stride + at) / 16)] = sum;
                sums32[pair_place((plane * stride + at) / 32)] += sum;
            }
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
                    let v = q.v;
                    for (i, &x) in x.iter().enumerate() {
                        let (row, col) = (i / cols, i % cols);
                        let at = |plane| (row * q.planes + plane) * cols + col;
                        let got: f32 = (0..q.planes).map(|p| q.d[at(p) / block] * f32::from(v[at(p)])).sum();
                        // Half a step, and what f32 loses on the way at 15 bits.
                        let step = q.d[at(q.planes - 1) / block];
                        assert!((got - x).abs() <= step * 0.51 + 1e-33, "{precision:?}: value {i} at {}", simd.isa());
                        assert!(v[at(0)] > i8::MIN, "the kernels take no -128");
                    }
                    for (sums, of) in [(q.sums16, 16), (q.sums32, 32)] {
                        assert_eq!(sums.len(), v.len() / of);
                        for (i, v) in v.chunks(of).enumerate() {
                            assert_eq!(sums[pair_place(i)], v.iter().map(|&v| i16::from(v)).sum::<i16>());
                        }
                    }
                    if let Some(first) = &first {
                        let f = first.quantised(block);
                        assert!((f.v, f.sums16, f.sums32) == (q.v, q.sums16, q.sums32) && f.d == q.d, "{}", simd.isa());
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
        assert_eq!((q.stride, q.rows()), (256, 3));
        assert!(q.v.chunks(256).all(|v| v[32..].iter().all(|&v| v == 0) && v[..32].iter().any(|&v| v != 0)));
    }
}
