//! Q5_0 and Q5_1: 32 values of 5 bits. The low 4 bits lie as in Q4_0; bit `i` of the u32 `qh` is value `i`'s fifth.
//!
//! Q5_0, 22 bytes: f16 d, u32 qh, nibbles; value = d * (q - 16).
//! Q5_1, 24 bytes: f16 d, f16 m, u32 qh, nibbles; value = d * q + m.

use super::{extreme, f16_at, nearest, push_f16, range};

/// The 5-bit integers of `qh` and its nibbles, 20 bytes together.
fn quants(bytes: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut q = [0; 32];
    for (i, byte) in bytes[4..].iter().enumerate() {
        q[i] = byte & 15 | ((high >> i & 1) << 4) as u8;
        q[16 + i] = byte >> 4 | ((high >> (16 + i) & 1) << 4) as u8;
    }
    q
}

fn push_quants(row: &mut Vec<u8>, q: [u8; 32]) {
    let high = q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4) << i);
    row.extend(high.to_le_bytes());
    row.extend((0..16).map(|i| q[i] & 15 | q[16 + i] << 4));
}

pub fn decode_q5_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (q, out) in quants(&block[2..]).into_iter().zip(out) {
        *out = d * (f32::from(q) - 16.0);
    }
}

pub fn decode_q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (q, out) in quants(&block[4..]).into_iter().zip(out) {
        *out = d * f32::from(q) + m;
    }
}

pub fn encode_q5_0(values: &[f32], row: &mut Vec<u8>) {
    let d = push_f16(row, extreme(values) / -16.0);
    push_quants(row, std::array::from_fn(|i| (nearest(values[i], d, -16, 15) + 16) as u8));
}

pub fn encode_q5_1(values: &[f32], row: &mut Vec<u8>) {
    let (low, high) = range(values);
    let d = push_f16(row, (high - low) / 31.0);
    let m = push_f16(row, low);
    push_quants(row, std::array::from_fn(|i| nearest(values[i] - m, d, 0, 31) as u8));
}
