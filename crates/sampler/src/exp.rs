//! The exponential function in plain arithmetic: the same bits on every machine, and several at once where the compiler
//! vectorises it. System libraries differ in the last bit.

/// `e^x` for `x <= 0`, within one unit in the last place or so; 0 below -708 and for -inf. NaN is not expected.
#[inline]
pub(crate) fn exp_nonpositive(x: f64) -> f64 {
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    // ln 2 in two parts: the first has zeros at its end, so that k * LN2_HIGH is exact for small whole k.
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// Adding and subtracting this rounds to a whole number (1.5 * 2^52).
    const ROUND: f64 = 6_755_399_441_055_744.0;

    let clamped = if x > -708.0 { x } else { -708.0 };
    let shifted = clamped * LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = (clamped - k * LN2_HIGH) - k * LN2_LOW;
    // Taylor's series on |r| <= ln(2)/2: the first term left out is below 3e-18.
    let mut sum = 1.0 / 6_227_020_800.0;
    for inverse in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * r + inverse;
    }
    // 2^k, by its exponent bits; k is whole and in -1022..=0. The low bits of `shifted` hold k.
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x > -708.0 { sum * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_library() {
        let mut x = -707.9;
        while x <= 0.0 {
            let (own, library) = (exp_nonpositive(x), f64::exp(x));
            assert!((own - library).abs() <= library * 4.5e-16, "{x}: {own:e} {library:e}");
            x += 0.003_7;
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        for x in [-708.0, -745.2, -1e300, f64::NEG_INFINITY] {
            assert_eq!(exp_nonpositive(x), 0.0, "{x}");
        }
        assert!(exp_nonpositive(-1e-9) < 1.0);
    }
}
