//! Q8_0: 32 values in 34 bytes: f16 scale, 32 x i8. value = d * q.

use super::{extreme, f16_at, nearest, push_f16};

pub fn decode(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (q, out) in block[2..].iter().zip(out) {
        *out = d * f32::from(*q as i8);
    }
}

pub fn encode(values: &[f32], row: &mut Vec<u8>) {
    let d = push_f16(row, extreme(values).abs() / 127.0);
    row.extend(values.iter().map(|&v| nearest(v, d, -127, 127) as i8 as u8));
}
