//! Q5_K: 256 values in 176 bytes: Q4_K's f16 d, f16 dmin and 12 bytes of scales, 32 bytes of high bits, 128 of nibbles.
//!
//! value = d * scale * q - dmin * min. Nibbles lie as in Q4_K; the fifth bit of value `i` is bit `i / 32` of byte
//! `i % 32` of the high bits.

use super::f16_at;
use super::q4_k::{encode_scales, pack_nibbles, scale_min};

pub fn decode(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let high = &block[16..48];
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], g);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let nibbles = &block[48 + g / 2 * 32..][..32];
        for i in 0..32 {
            let q = nibbles[i] >> (g % 2 * 4) & 15 | (high[i] >> g & 1) << 4;
            out[i] = scale * f32::from(q) - min;
        }
    }
}

pub fn encode(values: &[f32], row: &mut Vec<u8>) {
    let q = encode_scales(values, 31, row);
    let mut high = [0u8; 32];
    for (i, q) in q.iter().enumerate() {
        high[i % 32] |= (q >> 4) << (i / 32);
    }
    row.extend(high);
    row.extend(pack_nibbles(&q));
}
