//! IQ4_NL and IQ4_XS: 4-bit indices into a fixed table of 16 unevenly spaced integers.
//!
//! IQ4_NL, 18 bytes, 32 values: f16 d, nibbles as in Q4_0; value = d * table[q].
//! IQ4_XS, 136 bytes, 256 values: f16 d, u16 scale bits 4..6, 4 bytes of scale bits 0..4, then 8 x 16 bytes of
//! nibbles, each as in Q4_0; value = d * (scale - 32) * table[q], scale per 32 values.

use super::{extreme, f16_at, push_f16};

/// The table, ascending.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 values of 16 bytes at scale `d`.
fn decode_32(d: f32, nibbles: &[u8], out: &mut [f32]) {
    for (i, byte) in nibbles.iter().enumerate() {
        out[i] = d * f32::from(IQ4_VALUES[usize::from(byte & 15)]);
        out[16 + i] = d * f32::from(IQ4_VALUES[usize::from(byte >> 4)]);
    }
}

fn encode_32(values: &[f32], d: f32, row: &mut Vec<u8>) {
    let q = |value: f32| {
        let target = if d == 0.0 { 0.0 } else { value / d };
        let distance = |q: &u8| (f32::from(IQ4_VALUES[usize::from(*q)]) - target).abs();
        (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("sixteen values")
    };
    row.extend((0..16).map(|i| q(values[i]) | q(values[16 + i]) << 4));
}

pub fn decode_nl(block: &[u8], out: &mut [f32]) {
    decode_32(f16_at(block, 0), &block[2..], out);
}

pub fn decode_xs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
        let scale = (low | ((high >> (g * 2) & 3) << 4) as u8) as i8 - 32;
        decode_32(d * f32::from(scale), &block[8 + g * 16..][..16], out);
    }
}

pub fn encode_nl(values: &[f32], row: &mut Vec<u8>) {
    let d = push_f16(row, extreme(values) / f32::from(IQ4_VALUES[0]));
    encode_32(values, d, row);
}

pub fn encode_xs(values: &[f32], row: &mut Vec<u8>) {
    // The extreme of 32 values maps to -127, the end that reaches farther; the extreme of the scales to -32.
    let steps: Vec<f32> = values.chunks_exact(32).map(|v| extreme(v) / f32::from(IQ4_VALUES[0])).collect();
    let d = push_f16(row, extreme(&steps) / -32.0);
    let scales: [i32; 8] = std::array::from_fn(|g| super::nearest(steps[g], d, -32, 31));
    let bits = scales.map(|s| (s + 32) as u16);
    let high = bits.iter().enumerate().fold(0, |high, (g, s)| high | s >> 4 << (g * 2));
    row.extend(high.to_le_bytes());
    row.extend((0..4).map(|b| (bits[b * 2] & 15 | bits[b * 2 + 1] << 4 & 0xf0) as u8));
    for (g, values) in values.chunks_exact(32).enumerate() {
        encode_32(values, d * scales[g] as f32, row);
    }
}
