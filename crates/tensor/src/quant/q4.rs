//! Q4_0 and Q4_1: 32 values of 4 bits. Byte `i` of the 16 holds value `i` (low bits) and value `16 + i` (high bits).
//!
//! Q4_0, 18 bytes: f16 d, nibbles; value = d * (q - 8). Q4_1, 20 bytes: f16 d, f16 m, nibbles; value = d * q + m.

use super::{extreme, f16_at, nearest, push_f16, range};

pub fn decode_q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = d * (f32::from(byte & 15) - 8.0);
        out[16 + i] = d * (f32::from(byte >> 4) - 8.0);
    }
}

pub fn decode_q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[16 + i] = d * f32::from(byte >> 4) + m;
    }
}

pub fn encode_q4_0(values: &[f32], row: &mut Vec<u8>) {
    // The extreme maps to -8, the end that reaches farther.
    let d = push_f16(row, extreme(values) / -8.0);
    let q = |v| (nearest(v, d, -8, 7) + 8) as u8;
    row.extend((0..16).map(|i| q(values[i]) | q(values[16 + i]) << 4));
}

pub fn encode_q4_1(values: &[f32], row: &mut Vec<u8>) {
    let (low, high) = range(values);
    let d = push_f16(row, (high - low) / 15.0);
    let m = push_f16(row, low);
    let q = |v: f32| nearest(v - m, d, 0, 15) as u8;
    row.extend((0..16).map(|i| q(values[i]) | q(values[16 + i]) << 4));
}
