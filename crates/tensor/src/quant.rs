//! Scalar decode of each format: the definition that every kernel is tested against.
//!
//! One file per family, each opening with its block layout (facts from ggml's `ggml-common.h`; the order of the
//! float operations follows ggml's and gguf-py's dequantisation, so that values agree bit for bit). The encoders are
//! for tests and made-up models: they round to the nearest step of a scale taken from the block's extremes, without
//! the error-weighted searches of llama.cpp's `quantize`, so files made for quality should come from there.

mod floats;
mod fp8_block;
mod iq4;
mod q2_k;
mod q3_k;
mod q4;
mod q4_k;
mod q5;
mod q5_k;
mod q6_k;
mod q8_0;

use half::f16;

pub use fp8_block::{Fp8Blocks, encode_fp8_blocks, fp8_e4m3_from_f32, fp8_e4m3_to_f32};
pub use iq4::IQ4_VALUES;
pub use q3_k::scales as q3_k_scales;
pub use q4_k::scale_min as k_scale_min;

use crate::format::Format;

/// Decodes one block: `block` holds `format.block_bytes()` bytes, `out` takes `format.block_values()` values.
/// FP8 values come without their block scales. Panics on other lengths: sizes are checked when a tensor is made.
pub fn decode_block(format: Format, block: &[u8], out: &mut [f32]) {
    assert_eq!(block.len(), format.block_bytes(), "bytes of one {format} block");
    assert_eq!(out.len(), format.block_values(), "values of one {format} block");
    decode_blocks(format, block, out);
}

/// Decodes consecutive blocks; `out.len()` must be a whole number of blocks and `blocks` just their bytes.
/// FP8 values come without their block scales.
pub fn decode_blocks(format: Format, blocks: &[u8], out: &mut [f32]) {
    assert_eq!(format.row_bytes(out.len()), Some(blocks.len()), "{} values of {format}", out.len());
    let decode = match format {
        Format::F32 => return floats::decode_f32(blocks, out),
        Format::F16 => return floats::decode_f16(blocks, out),
        Format::Bf16 => return floats::decode_bf16(blocks, out),
        Format::Fp8E4M3 => return fp8_block::decode(blocks, out),
        Format::Q8_0 => q8_0::decode,
        Format::Q4_0 => q4::decode_q4_0,
        Format::Q4_1 => q4::decode_q4_1,
        Format::Q5_0 => q5::decode_q5_0,
        Format::Q5_1 => q5::decode_q5_1,
        Format::Q2K => q2_k::decode,
        Format::Q3K => q3_k::decode,
        Format::Q4K => q4_k::decode,
        Format::Q5K => q5_k::decode,
        Format::Q6K => q6_k::decode,
        Format::Iq4Nl => iq4::decode_nl,
        Format::Iq4Xs => iq4::decode_xs,
    };
    let blocks = blocks.chunks_exact(format.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(format.block_values())) {
        decode(block, out);
    }
}

/// Encodes a row by simple rounding (see the module text), or `None` where the row is not whole blocks.
/// FP8 is `None` too: its scales span rows, see [`encode_fp8_blocks`].
pub fn encode_row(format: Format, values: &[f32]) -> Option<Vec<u8>> {
    let bytes = format.row_bytes(values.len())?;
    let mut row = Vec::with_capacity(bytes);
    let encode = match format {
        Format::F32 => floats::encode_f32,
        Format::F16 => floats::encode_f16,
        Format::Bf16 => floats::encode_bf16,
        Format::Fp8E4M3 => return None,
        Format::Q8_0 => q8_0::encode,
        Format::Q4_0 => q4::encode_q4_0,
        Format::Q4_1 => q4::encode_q4_1,
        Format::Q5_0 => q5::encode_q5_0,
        Format::Q5_1 => q5::encode_q5_1,
        Format::Q2K => q2_k::encode,
        Format::Q3K => q3_k::encode,
        Format::Q4K => q4_k::encode,
        Format::Q5K => q5_k::encode,
        Format::Q6K => q6_k::encode,
        Format::Iq4Nl => iq4::encode_nl,
        Format::Iq4Xs => iq4::encode_xs,
    };
    for block in values.chunks_exact(format.block_values()) {
        encode(block, &mut row);
    }
    debug_assert_eq!(row.len(), bytes);
    Some(row)
}

/// Where in a block its f16 scales and minima lie; empty for formats without.
pub(crate) const fn scale_offsets(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8E4M3 => &[],
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl | Format::Iq4Xs => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
    }
}

/// The f16 at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Appends `value` as f16 and returns what it became, so that the encoder divides by the scale as stored.
fn push_f16(row: &mut Vec<u8>, value: f32) -> f32 {
    let stored = f16::from_f32(value);
    row.extend(stored.to_le_bytes());
    stored.to_f32()
}

/// `value / step` to the nearest integer in `low..=high`; 0 (clamped) where the step is 0.
fn nearest(value: f32, step: f32, low: i32, high: i32) -> i32 {
    let steps = if step == 0.0 { 0.0 } else { value / step };
    (steps.round() as i32).clamp(low, high)
}

/// The value of largest magnitude, with its sign.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, &v| if v.abs() > most.abs() { v } else { most })
}

/// Smallest and largest value.
fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

#[cfg(test)]
mod tests;
