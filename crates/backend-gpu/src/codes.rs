//! Formats without a layout of their own, as codes of a byte with a scale and a minimum in f32 for each group: a value
//! is `scale * code - minimum`. The product is exact (at most 24 bits), so the value has the bits of the host's own.

use lingqu_tensor::quant::{IQ4_VALUES, k_scale_min};
use lingqu_tensor::{Format, HostTensor};

use half::f16;

/// A matrix taken apart: `codes` `[rows, cols]`; `pairs` of (scale, minimum), one for each `group` of codes.
pub(crate) struct Codes {
    pub codes: Vec<u8>,
    pub pairs: Vec<u8>,
    pub group: usize,
}

/// How a block becomes codes and pairs.
type TakeBlock = fn(&[u8], &mut Codes);

impl Codes {
    /// `None` for formats that are held otherwise.
    pub fn of(tensor: &HostTensor) -> Option<Self> {
        let (group, take): (usize, TakeBlock) = match tensor.format {
            Format::Q4_1 => (32, q4_1),
            Format::Q5_1 => (32, q5_1),
            Format::Q5K => (32, q5_k),
            Format::Q2K => (16, q2_k),
            Format::Iq4Xs => (32, iq4_xs),
            _ => return None,
        };
        let count = tensor.rows * tensor.cols;
        let mut codes = Self { codes: Vec::with_capacity(count), pairs: Vec::with_capacity(count / group * 8), group };
        tensor.data.as_slice().chunks_exact(tensor.format.block_bytes()).for_each(|block| take(block, &mut codes));
        Some(codes)
    }

    fn pair(&mut self, scale: f32, minimum: f32) {
        self.pairs.extend(scale.to_le_bytes());
        self.pairs.extend(minimum.to_le_bytes());
    }
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Sixteen bytes hold 32 values: the low nibbles, then the high ones.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (i / 16 * 4) & 15
}

fn q4_1(block: &[u8], out: &mut Codes) {
    out.pair(f16_at(block, 0), -f16_at(block, 2));
    out.codes.extend((0..32).map(|i| nibble(&block[4..], i)));
}

fn q5_1(block: &[u8], out: &mut Codes) {
    out.pair(f16_at(block, 0), -f16_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    out.codes.extend((0..32).map(|i| nibble(&block[8..], i) | ((high >> i & 1) << 4) as u8));
}

fn q5_k(block: &[u8], out: &mut Codes) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for group in 0..8 {
        let (scale, minimum) = k_scale_min(&block[4..16], group);
        out.pair(d * f32::from(scale), dmin * f32::from(minimum));
        let low = &block[48 + group / 2 * 32..][..32];
        let code = |(low, high): (&u8, &u8)| low >> (group % 2 * 4) & 15 | (high >> group & 1) << 4;
        out.codes.extend(low.iter().zip(&block[16..48]).map(code));
    }
}

fn q2_k(block: &[u8], out: &mut Codes) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (group, both) in block[..16].iter().enumerate() {
        out.pair(d * f32::from(both & 15), dmin * f32::from(both >> 4));
        // Of each 128 values, by quarters, the pairs of bits of 32 bytes.
        let bytes = &block[16 + group / 8 * 32 + group % 2 * 16..][..16];
        out.codes.extend(bytes.iter().map(|byte| byte >> (group % 8 / 2 * 2) & 3));
    }
}

fn iq4_xs(block: &[u8], out: &mut Codes) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for group in 0..8 {
        let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        let scale = (low | ((high >> (group * 2) & 3) << 4) as u8) as i8 - 32;
        out.pair(d * f32::from(scale), 0.0);
        let bytes = &block[8 + group * 16..][..16];
        out.codes.extend((0..32).map(|i| IQ4_VALUES[usize::from(nibble(bytes, i))] as u8));
    }
}
