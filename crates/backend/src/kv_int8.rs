//! How keys and values are rounded to 8 bits: the same on every backend, so that caches hold the same numbers.

use half::f16;

/// Values of a head that share a scale. The last run of a head may be shorter.
pub const KV_GROUP: usize = 64;

/// Rounds up to [`KV_GROUP`] values to `codes * scale`; returns the scale. It is a half, chosen so that the largest
/// magnitude becomes 127; codes are the nearest whole numbers, ties to even. A NaN makes the scale NaN; what is beyond
/// the largest half times 127 is held there.
pub fn round_group(values: &[f32], codes: &mut [i8]) -> f16 {
    assert!(values.len() <= KV_GROUP && values.len() == codes.len(), "a group and its codes");
    let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    if values.iter().any(|value| value.is_nan()) {
        codes.fill(1);
        return f16::NAN;
    }
    let scale = f16::from_f32((most / 127.0).min(f16::MAX.to_f32()));
    let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    for (value, code) in values.iter().zip(codes) {
        *code = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_rounded_within_half_a_step() {
        for len in [1, 7, 63, 64] {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37 % 64) as f32 - 31.0) * 0.173).collect();
            let mut codes = vec![0; len];
            let scale = round_group(&values, &mut codes).to_f32();
            let most = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (value, code) in values.iter().zip(&codes) {
                let off = (value - f32::from(*code) * scale).abs();
                // Half a step, and at the edge what rounding the scale to a half costs.
                assert!(off <= 0.5 * scale + most * 5e-4, "{value} became {code} * {scale}");
            }
            assert!(codes.iter().any(|code| code.unsigned_abs() >= 126));
        }
    }

    #[test]
    fn edges_have_a_meaning() {
        let round = |values: &[f32]| {
            let mut codes = vec![9; values.len()];
            (round_group(values, &mut codes), codes)
        };
        assert_eq!(round(&[0.0, -0.0]), (f16::ZERO, vec![0, 0]));
        assert_eq!(round(&[]), (f16::ZERO, vec![]));
        assert!(round(&[1.0, f32::NAN]).0.is_nan());
        assert_eq!(round(&[f32::INFINITY, -1e30, 1.0]), (f16::MAX, vec![127, -127, 0]));
        let (scale, codes) = round(&[1e-30, 2e-30]); // below the smallest half
        assert_eq!((scale, codes), (f16::ZERO, vec![0, 0]));
    }
}
