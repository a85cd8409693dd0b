//! How far a backend may be from the oracle, and from what the distance is measured.
//!
//! A product `w . x` is compared with `|w|_2 max|x| + max|w| |x|_2`: if each factor is off by an independent error of
//! up to a fixed share of the largest one, as by rounding to a common grid, then the error of the sum is a share of it.
//! It does not grow with the length as the worst case `sum |w||x|` does, and so a lost term still shows.
//!
//! Errors of inner products go through the rest of a feed-forward layer by its derivative, as independent errors.

use lingqu_tensor::Format;

/// Arithmetic in f32, in any order, with an `exp` good to about 1e-6.
pub const FLOAT: f64 = 1e-5;

/// Activations rounded to bf16 (2^-9 at most) or f16.
pub const HALF: f64 = 2e-3;

/// Activations rounded to int8 by blocks or rows (1/254 of the largest at most, rms 1/440, five times that for the
/// worst of many, on half of the magnitude), or weights requantised as finely.
pub const INT8: f64 = 1e-2;

/// Attention, whose query and cache may be kept in bf16 (2^-9 of each number at most, rms 2^-9.8; about five times
/// that for the worst of many). Compared with the independent errors of each cached number and score.
pub const ATTENTION: f64 = 8e-3;

/// The tolerance of a product with a weight in this format: a backend may choose activations to match.
pub fn of_format(format: Format) -> f64 {
    match format {
        Format::F32 => FLOAT,
        Format::F16 | Format::Bf16 | Format::Fp8E4M3 => HALF,
        _ => INT8,
    }
}

/// What the error of `w . x` is compared with.
pub(super) fn magnitude(w: &[f32], x: &[f64]) -> f64 {
    let (mut w_squares, mut w_largest, mut x_squares, mut x_largest) = (0.0, 0f64, 0.0, 0f64);
    for (w, x) in w.iter().zip(x) {
        let w = f64::from(*w);
        (w_squares, x_squares) = (w_squares + w * w, x_squares + x * x);
        (w_largest, x_largest) = (w_largest.max(w.abs()), x_largest.max(x.abs()));
    }
    w_squares.sqrt() * x_largest + w_largest * x_squares.sqrt()
}

pub(super) fn dot(w: &[f32], x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
}

pub(super) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}
