//! Q2_K: 256 values in 84 bytes: 16 x (4-bit scale, 4-bit min), 64 bytes of 2-bit quants, f16 d, f16 dmin.
//!
//! value = d * scale * q - dmin * min, scale and min per 16 values. Of each half of 128 values, byte `i` of its 32
//! holds values `i`, `32 + i`, `64 + i` and `96 + i`, lowest bits first.

use super::{f16_at, nearest, push_f16, range};

pub fn decode(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[group] & 15);
        let min = dmin * f32::from(block[group] >> 4);
        let (bytes, shift) = group_of_16(&block[16..80], group);
        for (byte, out) in bytes.iter().zip(out) {
            *out = scale * f32::from(byte >> shift & 3) - min;
        }
    }
}

/// The 16 bytes that hold the 2-bit integers of a group of 16 values, and how far to shift them. Q3_K keeps its low
/// bits in the same order.
pub fn group_of_16(qs: &[u8], group: usize) -> (&[u8], usize) {
    (&qs[group / 8 * 32 + group % 2 * 16..][..16], group % 8 / 2 * 2)
}

/// 256 integers of 2 bits in 64 bytes, as [`group_of_16`] finds them.
pub fn pack(q: &[u8; 256]) -> [u8; 64] {
    let mut qs = [0; 64];
    for (i, q) in q.iter().enumerate() {
        qs[i / 128 * 32 + i % 32] |= (q & 3) << (i % 128 / 32 * 2);
    }
    qs
}

pub fn encode(values: &[f32], row: &mut Vec<u8>) {
    // A minimum is never positive: it is subtracted with an unsigned factor.
    let ranges: Vec<_> = values.chunks_exact(16).map(range).map(|(low, high)| (low.min(0.0), high.max(0.0))).collect();
    let step = ranges.iter().fold(0.0, |most: f32, (low, high)| most.max((high - low) / 3.0));
    let depth = ranges.iter().fold(0.0, |most: f32, (low, _)| most.max(-low));
    let mut tail = Vec::with_capacity(4);
    let d = push_f16(&mut tail, step / 15.0);
    let dmin = push_f16(&mut tail, depth / 15.0);
    let mut q = [0; 256];
    for (g, (low, high)) in ranges.iter().enumerate() {
        let min = nearest(-low, dmin, 0, 15);
        let scale = nearest((high - low) / 3.0, d, 0, 15);
        row.push((scale | min << 4) as u8);
        for i in g * 16..g * 16 + 16 {
            q[i] = nearest(values[i] + dmin * min as f32, d * scale as f32, 0, 3) as u8;
        }
    }
    row.extend(pack(&q));
    row.extend(tail);
}
