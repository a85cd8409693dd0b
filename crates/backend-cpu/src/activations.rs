//! Activations as the kernels read them: f32 rows padded to lanes, or two planes of int8 with a scale for each 32
//! values.
//!
//! One plane alone has a step of 1/127 of the largest value: enough to move log-probabilities of small models by some
//! hundredths. The second plane makes the step 254 times finer, at the price of a second integer product.

use crate::isa::{Simd, per_isa};
use crate::math::round_i16;
use crate::memory::Source;
use crate::simd::{LANES, QuantRows, X_GROUP, X_MAX, X_STEP};
use crate::team::{Shares, Team, share};

/// What a set of weights wants of its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub floats: bool,
    pub quantised: bool,
}

impl Wanted {
    pub fn or(self, other: Self) -> Self {
        Self { floats: self.floats || other.floats, quantised: self.quantised || other.quantised }
    }
}

/// Rows of one op's input. Reused from op to op.
#[derive(Default)]
pub(crate) struct Activations {
    cols: usize,
    /// `[rows, cols padded to 16]`
    floats: Vec<f32>,
    /// `[rows, cols]`
    q: Vec<i8>,
    /// What `q` leaves. `[rows, cols]`
    r: Vec<i8>,
    /// `[rows, cols / 32]`
    d: Vec<f32>,
    /// `[rows, cols / 16]`
    sums: Vec<i32>,
    /// A row whose heads lie apart, put together.
    joined: Vec<f32>,
}

impl Activations {
    /// Takes in each head of each row as a row of its own (row `r * heads + h`).
    pub fn prepare(&mut self, simd: Simd, team: &Team, x: Source<'_>, wanted: Wanted) {
        let (rows, cols) = (x.rows * x.heads, x.len);
        self.cols = cols;
        let work = rows * cols;
        if wanted.floats {
            let padded = cols.next_multiple_of(LANES);
            self.floats.resize(rows * padded, 0.0);
            let floats = Shares::new(&mut self.floats);
            team.run_if_worth(work, |member, members| {
                for row in share(rows, member, members) {
                    // SAFETY: each row is one member's; `self` is borrowed until the team is done.
                    let out = unsafe { floats.part(row * padded..(row + 1) * padded) };
                    out[..cols].copy_from_slice(x.head(row / x.heads, row % x.heads));
                    out[cols..].fill(0.0);
                }
            });
        }
        if wanted.quantised {
            assert!(cols.is_multiple_of(X_GROUP), "{cols} columns of a block format");
            self.q.resize(rows * cols, 0);
            self.r.resize(rows * cols, 0);
            self.d.resize(rows * (cols / X_GROUP), 0.0);
            self.sums.resize(rows * (cols / 16), 0);
            let (q, r) = (Shares::new(&mut self.q), Shares::new(&mut self.r));
            let (d, sums) = (Shares::new(&mut self.d), Shares::new(&mut self.sums));
            team.run_if_worth(work * 2, |member, members| {
                for row in share(rows, member, members) {
                    let part = |per_row: usize| row * per_row..(row + 1) * per_row;
                    // SAFETY: each row is one member's; `self` is borrowed until the team is done.
                    let (q, r, d, sums) = unsafe {
                        (
                            q.part(part(cols)),
                            r.part(part(cols)),
                            d.part(part(cols / X_GROUP)),
                            sums.part(part(cols / 16)),
                        )
                    };
                    quantise(simd, x.head(row / x.heads, row % x.heads), [q, r], d, sums);
                }
            });
        }
    }

    /// Takes in whole rows, whatever their heads.
    pub fn prepare_rows(&mut self, simd: Simd, team: &Team, x: Source<'_>, wanted: Wanted) {
        let x = x.flattened();
        if x.heads == 1 {
            return self.prepare(simd, team, x, wanted);
        }
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        for row in 0..x.rows {
            (0..x.heads).for_each(|head| joined.extend_from_slice(x.head(row, head)));
        }
        self.prepare(simd, team, Source::packed(&joined, x.rows, x.width()), wanted);
        self.joined = joined;
    }

    /// The f32 rows and their stride.
    pub fn floats(&self) -> (&[f32], usize) {
        (&self.floats, self.cols.next_multiple_of(LANES))
    }

    pub fn quantised(&self) -> QuantRows<'_> {
        QuantRows { cols: self.cols, q: &self.q, r: &self.r, d: &self.d, sums: &self.sums }
    }
}

per_isa! {
    /// `x = d * v` with the integer `v = 254 q + r` and `d = max|x| / 32258` over 32 values, rounded to nearest even;
    /// `sums` of each 16 of `v`.
    pub(crate) fn quantise(x: &[f32], planes: [&mut [i8]; 2], d: &mut [f32], sums: &mut [i32]) = quantise_plain
}

#[inline(always)]
fn quantise_plain(x: &[f32], [q, r]: [&mut [i8]; 2], d: &mut [f32], sums: &mut [i32]) {
    let planes = q.as_chunks_mut::<X_GROUP>().0.iter_mut().zip(r.as_chunks_mut::<X_GROUP>().0);
    for (g, (x, (q, r))) in x.as_chunks::<X_GROUP>().0.iter().zip(planes).enumerate() {
        let mut most = [0.0f32; 8];
        for x in x.as_chunks::<8>().0 {
            for j in 0..8 {
                let a = x[j].abs();
                most[j] = if a > most[j] { a } else { most[j] };
            }
        }
        let most = most.iter().fold(0.0, |most, &a| if a > most { a } else { most });
        // A scale whose inverse is infinite stands for values too small to matter.
        let inverse = if most > 1e-33 { X_MAX / most } else { 0.0 };
        d[g] = most / X_MAX;
        let mut v = [0i16; X_GROUP];
        for i in 0..X_GROUP {
            v[i] = round_i16(x[i] * inverse);
            // Nearest, so that the rest stays within -127..=127; at a tie both neighbours leave such a rest.
            let high = round_i16(f32::from(v[i]) * (1.0 / X_STEP as f32));
            q[i] = high as i8;
            r[i] = (v[i] - high * X_STEP as i16) as i8;
        }
        for (half, v) in v.as_chunks::<16>().0.iter().enumerate() {
            sums[g * 2 + half] = v.iter().map(|&v| i32::from(v)).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing;

    impl Activations {
        fn integer(&self, i: usize) -> i32 {
            X_STEP * i32::from(self.q[i]) + i32::from(self.r[i])
        }
    }

    #[test]
    fn quantised_rows_are_close_and_the_same_everywhere() {
        let team = Team::new(2).unwrap();
        let (rows, cols) = (5, 96);
        let mut x = testing::normal(7, rows * cols);
        x[..32].fill(0.0);
        x[33] = 1e-40;
        let mut first: Option<Activations> = None;
        for simd in testing::every_simd() {
            let mut a = Activations::default();
            let wanted = Wanted { floats: true, quantised: true };
            a.prepare(simd, &team, Source::packed(&x, rows, cols), wanted);
            assert_eq!(a.floats().0, x);
            for (i, &x) in x.iter().enumerate() {
                let (d, v) = (a.d[i / 32], a.integer(i));
                // Half a step, and what f32 loses on the way at 15 bits.
                assert!((d * v as f32 - x).abs() <= d * 0.51 + 1e-33, "value {i} at {}", simd.isa());
                assert!(a.q[i] > i8::MIN && a.r[i] > i8::MIN, "the kernels take no -128");
            }
            for (i, &sum) in a.sums.iter().enumerate() {
                assert_eq!(sum, (i * 16..(i + 1) * 16).map(|i| a.integer(i)).sum::<i32>());
            }
            match &first {
                Some(f) => {
                    assert_eq!((&f.q, &f.r, &f.d, &f.sums), (&a.q, &a.r, &a.d, &a.sums), "{}", simd.isa());
                }
                None => first = Some(a),
            }
        }
        assert_eq!(testing::every_simd()[0].isa(), Isa::Portable);
    }
}
