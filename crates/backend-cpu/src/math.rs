//! Functions whose bits we define ourselves: a C library's differ from one machine to the next.

/// Adding and subtracting it rounds a small float to the nearest integer, ties to even; its low bits are the integer.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// e^x within 2 ulp, branch-free so that it vectorises; 0 below -104, infinite above 89. `exp(0) == 1`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Nested selects instead of min/max: their treatment of NaN is part of the bits.
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 90.0 { 90.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // x - n ln 2 in two steps: the first part has trailing zero bits, so that n times it is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    // Cephes' expf polynomial on [-ln 2 / 2, ln 2 / 2].
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors, so that results may be subnormal or infinite.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x * sigmoid(x)
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// An IEEE binary16 as f32, exactly. Plain shifts, so that a loop over it vectorises.
#[inline(always)]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let magnitude = u32::from(half & 0x7fff);
    // The exponent's bias differs by 112; the product also makes subnormals right.
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits((112 + 127) << 23)).to_bits();
    let special = magnitude << 13 | 0x7f80_0000; // infinity or NaN
    let bits = if magnitude >= 0x7c00 { special } else { finite };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

/// The nearest IEEE binary16, ties to even, held within its finite range (65504); NaN stays NaN.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let magnitude = x.abs();
    let held = if magnitude > 65504.0 { 65504.0 } else { magnitude };
    let bits = held.to_bits();
    // Normal: round away 13 bits (a carry goes into the exponent), then change the bias by 112.
    let normal = (bits.wrapping_add(0xfff + (bits >> 13 & 1)) >> 13).wrapping_sub(112 << 10);
    // Subnormal: adding 0.5 leaves steps of 2^-24, the subnormals' own.
    let subnormal = (held + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if held < 6.103_515_6e-5 { subnormal } else { normal }; // 2^-14
    let half = if x.is_nan() { 0x7e00 } else { finite };
    (half | sign) as u16
}

/// An E4M3FN byte as f32, exactly. Plain shifts, so that a loop over it vectorises.
#[inline(always)]
pub(crate) fn fp8_to_f32(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f);
    let finite = (f32::from_bits(magnitude << 20) * f32::from_bits((120 + 127) << 23)).to_bits();
    let bits = if magnitude == 0x7f { f32::NAN.to_bits() } else { finite };
    f32::from_bits(bits | u32::from(byte & 0x80) << 24)
}

/// The nearest integer, ties to even, of a value within -32768..=32767.
#[inline(always)]
pub(crate) fn round_i16(x: f32) -> i16 {
    (x + ROUND).to_bits() as u16 as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2.5e-7, "exp({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn halves_and_bytes_are_exact() {
        for bits in 0..=u16::MAX {
            let (got, want) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(got == want && got.is_sign_negative() == want.is_sign_negative() || got.is_nan() && want.is_nan());
        }
        for byte in 0..=u8::MAX {
            let (got, want) = (fp8_to_f32(byte), lingqu_tensor::quant::fp8_e4m3_to_f32(byte));
            assert!(got == want && got.is_sign_negative() == want.is_sign_negative() || got.is_nan() && want.is_nan());
        }
    }

    #[test]
    fn halves_round_as_ieee_says() {
        let check = |x: f32| {
            let want = half::f16::from_f32(x.clamp(-65504.0, 65504.0));
            assert_eq!(f32_to_f16(x), want.to_bits(), "{x:e}");
        };
        for bits in (0..=u32::MAX).step_by(30_011).filter(|&b| !f32::from_bits(b).is_nan()) {
            check(f32::from_bits(bits));
        }
        for bits in 0..0x7c00u16 {
            let (low, high) = (f16_to_f32(bits), f16_to_f32(bits + 1));
            for x in [low, (low + high) / 2.0, ((low + high) / 2.0).next_up(), ((low + high) / 2.0).next_down()] {
                check(x.min(65504.0));
                check(-x.min(65504.0));
            }
        }
        assert!(f16_to_f32(f32_to_f16(f32::NAN)).is_nan());
    }

    #[test]
    fn rounding_is_to_even() {
        for (x, want) in [(0.5, 0), (1.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126), (-32768.0, -32768), (32767.0, 32767)]
        {
            assert_eq!(round_i16(x), want, "{x}");
        }
    }
}
