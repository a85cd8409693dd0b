//! Q4_K: 256 values in 144 bytes: f16 d, f16 dmin, 8 x (6-bit scale, 6-bit min) in 12 bytes, 128 bytes of nibbles.
//!
//! value = d * scale * q - dmin * min, scale and min per 32 values. Of each 64 values, byte `i` of their 32 holds
//! value `i` (low bits) and value `32 + i` (high bits).

use super::{f16_at, nearest, push_f16, range};

pub fn decode(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], g);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let nibbles = &block[16 + g / 2 * 32..][..32];
        for (byte, out) in nibbles.iter().zip(out) {
            *out = scale * f32::from(byte >> (g % 2 * 4) & 15) - min;
        }
    }
}

/// Scale and min of the group `g` (0..8) of 32 values, from the 12 packed bytes that Q4_K and Q5_K share: groups
/// 0..4 take the low 6 bits of bytes `g` and `4 + g`; groups 4..8 take a nibble of byte `4 + g` each (low: scale,
/// high: min) with the top 2 bits of bytes `g - 4` and `g` above it.
pub fn scale_min(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (packed[g] & 63, packed[4 + g] & 63)
    } else {
        let nibbles = packed[4 + g];
        (nibbles & 15 | packed[g - 4] >> 6 << 4, nibbles >> 4 | packed[g] >> 6 << 4)
    }
}

fn pack_scale_min(pairs: &[(u8, u8); 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for g in 0..4 {
        let (scale, min) = pairs[g];
        let (scale_4, min_4) = pairs[4 + g];
        packed[g] = scale | scale_4 >> 4 << 6;
        packed[4 + g] = min | min_4 >> 4 << 6;
        packed[8 + g] = scale_4 & 15 | min_4 << 4;
    }
    packed
}

/// Appends d, dmin and the packed scales of 256 values for quants in `0..=levels`, and gives the quants.
/// The first 16 bytes of Q4_K (15 levels) and Q5_K (31) alike.
pub fn encode_scales(values: &[f32], levels: i32, row: &mut Vec<u8>) -> [u8; 256] {
    // A minimum is never positive: it is subtracted with an unsigned factor.
    let ranges: Vec<_> = values.chunks_exact(32).map(range).map(|(low, high)| (low.min(0.0), high.max(0.0))).collect();
    let step = ranges.iter().fold(0.0, |most: f32, (low, high)| most.max((high - low) / levels as f32));
    let depth = ranges.iter().fold(0.0, |most: f32, (low, _)| most.max(-low));
    let d = push_f16(row, step / 63.0);
    let dmin = push_f16(row, depth / 63.0);
    let pairs: [(u8, u8); 8] = std::array::from_fn(|g| {
        let (low, high) = ranges[g];
        (nearest((high - low) / levels as f32, d, 0, 63) as u8, nearest(-low, dmin, 0, 63) as u8)
    });
    row.extend(pack_scale_min(&pairs));
    std::array::from_fn(|i| {
        let (scale, min) = pairs[i / 32];
        nearest(values[i] + dmin * f32::from(min), d * f32::from(scale), 0, levels) as u8
    })
}

/// The low 4 bits of 256 quants in 128 bytes; Q5_K keeps its low bits in the same order.
pub fn pack_nibbles(q: &[u8; 256]) -> impl Iterator<Item = u8> {
    (0..128).map(|b| {
        let i = b / 32 * 64 + b % 32;
        q[i] & 15 | q[i + 32] << 4
    })
}

pub fn encode(values: &[f32], row: &mut Vec<u8>) {
    let q = encode_scales(values, 15, row);
    row.extend(pack_nibbles(&q));
}
