//! Q6_K: 256 values in 210 bytes: 128 bytes of low 4 bits, 64 bytes of high 2 bits, 16 x i8 scales, f16 d.
//!
//! value = d * scale * (q - 32), scale per 16 values. Of each half of 128 values, with `i` in 0..32: the low bits of
//! values `i`, `32 + i`, `64 + i`, `96 + i` are the low nibbles of bytes `i`, `32 + i`, then their high nibbles; the
//! high bits are the four pairs of bits of byte `i`, lowest first.

use super::{extreme, f16_at, nearest, push_f16};

pub fn decode(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let at = Place::of(group * 16);
        let low = &block[at.low_byte..][..16];
        let high = &block[128 + at.high_byte..][..16];
        let scale = d * f32::from(block[192 + group] as i8);
        for i in 0..16 {
            let q = low[i] >> at.low_shift & 15 | (high[i] >> at.high_shift & 3) << 4;
            out[i] = scale * (f32::from(q) - 32.0);
        }
    }
}

/// Where the bits of a value lie.
struct Place {
    low_byte: usize,
    low_shift: usize,
    high_byte: usize,
    high_shift: usize,
}

impl Place {
    fn of(i: usize) -> Self {
        let (half, quarter) = (i / 128, i % 128 / 32);
        Self {
            low_byte: half * 64 + quarter % 2 * 32 + i % 32,
            low_shift: quarter / 2 * 4,
            high_byte: half * 32 + i % 32,
            high_shift: quarter * 2,
        }
    }
}

pub fn encode(values: &[f32], row: &mut Vec<u8>) {
    // The extreme of 16 values maps to -32, the end that reaches farther; the extreme of the scales to -128.
    let steps: Vec<f32> = values.chunks_exact(16).map(|v| extreme(v) / -32.0).collect();
    let mut tail = Vec::with_capacity(2);
    let d = push_f16(&mut tail, extreme(&steps) / -128.0);
    let scales: [i8; 16] = std::array::from_fn(|g| nearest(steps[g], d, -128, 127) as i8);
    let mut bits = [0u8; 192];
    for (i, &value) in values.iter().enumerate() {
        let q = (nearest(value, d * f32::from(scales[i / 16]), -32, 31) + 32) as u8;
        let at = Place::of(i);
        bits[at.low_byte] |= (q & 15) << at.low_shift;
        bits[128 + at.high_byte] |= q >> 4 << at.high_shift;
    }
    row.extend(bits);
    row.extend(scales.map(|s| s as u8));
    row.extend(tail);
}
