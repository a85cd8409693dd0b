//! Activations as the kernels read them: f32 rows padded to lanes, or int8 with a scale for each 32 values.

use crate::isa::{Simd, per_isa};
use crate::math::round_i8;
use crate::memory::Source;
use crate::simd::{LANES, QuantRows, X_GROUP};
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
            self.d.resize(rows * (cols / X_GROUP), 0.0);
            self.sums.resize(rows * (cols / 16), 0);
            let (q, d, sums) = (Shares::new(&mut self.q), Shares::new(&mut self.d), Shares::new(&mut self.sums));
            team.run_if_worth(work * 2, |member, members| {
                for row in share(rows, member, members) {
                    let part = |per_row: usize| row * per_row..(row + 1) * per_row;
                    // SAFETY: each row is one member's; `self` is borrowed until the team is done.
                    let (q, d, sums) =
                        unsafe { (q.part(part(cols)), d.part(part(cols / X_GROUP)), sums.part(part(cols / 16))) };
                    quantise(simd, x.head(row / x.heads, row % x.heads), q, d, sums);
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
        QuantRows { cols: self.cols, q: &self.q, d: &self.d, sums: &self.sums }
    }
}

per_isa! {
    /// `x = d * q` with `d = max|x| / 127` over 32 values, rounded to nearest even; `sums` of each 16 of `q`.
    pub(crate) fn quantise(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i32]) = quantise_plain
}

#[inline(always)]
fn quantise_plain(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i32]) {
    let groups = x.as_chunks::<X_GROUP>().0.iter().zip(q.as_chunks_mut::<X_GROUP>().0);
    for (g, (x, q)) in groups.enumerate() {
        let mut most = [0.0f32; 8];
        for x in x.as_chunks::<8>().0 {
            for j in 0..8 {
                let a = x[j].abs();
                most[j] = if a > most[j] { a } else { most[j] };
            }
        }
        let most = most.iter().fold(0.0, |most, &a| if a > most { a } else { most });
        // A scale whose inverse is infinite stands for values too small to matter.
        let inverse = if most > 1e-36 { 127.0 / most } else { 0.0 };
        d[g] = most / 127.0;
        for i in 0..X_GROUP {
            q[i] = round_i8(x[i] * inverse);
        }
        for (half, q) in q.as_chunks::<16>().0.iter().enumerate() {
            sums[g * 2 + half] = q.iter().map(|&q| i32::from(q)).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::testing;

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
                let d = a.d[i / 32];
                assert!((d * f32::from(a.q[i]) - x).abs() <= d * 0.5001 + 1e-37, "value {i} at {}", simd.isa());
            }
            for (i, &sum) in a.sums.iter().enumerate() {
                assert_eq!(sum, a.q[i * 16..][..16].iter().map(|&q| i32::from(q)).sum::<i32>());
            }
            match &first {
                Some(f) => assert_eq!((&f.q, &f.d, &f.sums), (&a.q, &a.d, &a.sums), "{}", simd.isa()),
                None => first = Some(a),
            }
        }
        assert_eq!(testing::every_simd()[0].isa(), Isa::Portable);
    }
}
