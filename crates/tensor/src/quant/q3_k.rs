//! Q3_K: 256 values in 110 bytes: 32 bytes of high bits, 64 bytes of low 2 bits, 16 x 6-bit scales in 12 bytes, f16 d.
//!
//! value = d * (scale - 32) * (q - 4), scale per 16 values. Low bits lie as in Q2_K; the high bit of value `i` is bit
//! `i / 32` of byte `i % 32`.

use super::q2_k::{group_of_16, pack};
use super::{extreme, f16_at, nearest, push_f16};

pub fn decode(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 108);
    let scales = scales(&block[96..108]);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (low, shift) = group_of_16(&block[32..96], group);
        let high = &block[group % 2 * 16..][..16];
        let scale = d * f32::from(scales[group]);
        for i in 0..16 {
            let q = low[i] >> shift & 3 | (high[i] >> (group / 2) & 1) << 2;
            out[i] = scale * (f32::from(q) - 4.0);
        }
    }
}

/// The 16 scales, less their offset 32, of the 12 packed bytes: low 4 bits in bytes 0..8 (scales 0..8 in the low
/// nibbles, 8..16 in the high ones), high 2 bits in bytes 8..12 (scale `k` at bits `k / 4 * 2` of byte `8 + k % 4`).
pub fn scales(packed: &[u8]) -> [i8; 16] {
    std::array::from_fn(|k| {
        let low = packed[k % 8] >> (k / 8 * 4) & 15;
        let high = packed[8 + k % 4] >> (k / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut packed = [0; 12];
    for (k, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        packed[k % 8] |= (scale & 15) << (k / 8 * 4);
        packed[8 + k % 4] |= scale >> 4 << (k / 4 * 2);
    }
    packed
}

pub fn encode(values: &[f32], row: &mut Vec<u8>) {
    // The extreme of 16 values maps to -4, the end that reaches farther; the extreme of the scales to -32.
    let steps: Vec<f32> = values.chunks_exact(16).map(|v| extreme(v) / -4.0).collect();
    let mut tail = Vec::with_capacity(2);
    let d = push_f16(&mut tail, extreme(&steps) / -32.0);
    let scales = std::array::from_fn(|g| nearest(steps[g], d, -32, 31) as i8);
    let q = std::array::from_fn(|i| {
        let step = d * f32::from(scales[i / 16]);
        (nearest(values[i], step, -4, 3) + 4) as u8
    });
    let mut high = [0u8; 32];
    for (i, q) in q.iter().enumerate() {
        high[i % 32] |= (q >> 2) << (i / 32);
    }
    row.extend(high);
    row.extend(pack(&q));
    row.extend(pack_scales(&scales));
    row.extend(tail);
}
