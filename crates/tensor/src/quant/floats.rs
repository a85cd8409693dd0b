//! F32, IEEE binary16 (F16) and bfloat16 (BF16), little-endian.

use half::{bf16, f16};

pub fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = f32::from_le_bytes(*b);
    }
}

pub fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = f16::from_le_bytes(*b).to_f32();
    }
}

pub fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = bf16::from_le_bytes(*b).to_f32();
    }
}

pub fn encode_f32(values: &[f32], row: &mut Vec<u8>) {
    row.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

pub fn encode_f16(values: &[f32], row: &mut Vec<u8>) {
    row.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
}

pub fn encode_bf16(values: &[f32], row: &mut Vec<u8>) {
    row.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
}
