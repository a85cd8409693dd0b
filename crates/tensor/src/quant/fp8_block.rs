//! OCP FP8 E4M3FN with one f32 scale per block of rows x columns (DeepSeek-V3's release, `weight_scale_inv`).
//!
//! A value is sign, 4 exponent bits (bias 7), 3 mantissa bits. There is no infinity; 0x7f and 0xff are NaN; the
//! largest finite value is 448, the smallest 2^-9. (OCP 8-bit Floating Point Specification 1.0, table 1.)

/// Largest finite magnitude.
const MAX: f32 = 448.0;

/// Every E4M3FN value by its byte.
static VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        values[byte] = value(byte as u8);
        byte += 1;
    }
    values
};

const fn value(byte: u8) -> f32 {
    let exponent = (byte >> 3 & 15) as i32;
    let mantissa = (byte & 7) as f32;
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0, // subnormal: mantissa / 8 * 2^-6
        _ => (1.0 + mantissa / 8.0) * f32::from_bits(((exponent - 7 + 127) as u32) << 23),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The value of one E4M3FN byte; NaN for 0x7f and 0xff.
pub fn fp8_e4m3_to_f32(byte: u8) -> f32 {
    VALUES[byte as usize]
}

/// The nearest E4M3FN value, ties to even; beyond 448 it saturates (PyTorch would give NaN); NaN stays NaN.
pub fn fp8_e4m3_from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= MAX {
        return sign | 0x7e;
    }
    // Steps are 2^-9 below the smallest normal (2^-6), else 2^(exponent - 3); both are powers of two: exact.
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    let exponent = exponent.max(-6);
    let step = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    // 0..=16 steps; 16 carries into the exponent, and in the lowest binade 8 is the smallest normal: both by addition.
    let steps = (magnitude / step).round_ties_even() as i32;
    let code = (exponent + 6) * 8 + steps;
    sign | code as u8
}

pub fn decode(bytes: &[u8], out: &mut [f32]) {
    for (b, out) in bytes.iter().zip(out) {
        *out = fp8_e4m3_to_f32(*b);
    }
}

/// An FP8 matrix as its two tensors.
#[derive(Clone, Debug)]
pub struct Fp8Blocks {
    /// `[rows, cols]`
    pub data: Vec<u8>,
    /// `[ceil(rows / block), ceil(cols / block)]`: value = fp8 * scale.
    pub scales: Vec<f32>,
}

/// Encodes a matrix `[rows, cols]` with one scale per `block` x `block` tile (DeepSeek-V3: 128), each chosen so that
/// the tile's largest magnitude becomes 448.
pub fn encode_fp8_blocks(values: &[f32], [rows, cols]: [usize; 2], block: usize) -> Fp8Blocks {
    assert_eq!(values.len(), rows * cols, "values fit the shape");
    let mut data = vec![0; rows * cols];
    let mut scales = Vec::with_capacity(rows.div_ceil(block) * cols.div_ceil(block));
    for top in (0..rows).step_by(block) {
        for left in (0..cols).step_by(block) {
            let tile =
                || (top..rows.min(top + block)).flat_map(|r| (left..cols.min(left + block)).map(move |c| r * cols + c));
            let largest = tile().fold(0.0, |most: f32, i| most.max(values[i].abs()));
            let scale = if largest == 0.0 { 1.0 } else { largest / MAX };
            tile().for_each(|i| data[i] = fp8_e4m3_from_f32(values[i] / scale));
            scales.push(scale);
        }
    }
    Fp8Blocks { data, scales }
}
