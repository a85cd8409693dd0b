//! From the stored bytes of 16 weight rows to what the kernels read: a panel of integers, or f32 rows.
//!
//! Layouts are those of `lingqu_tensor::quant`, which is the definition; this is the same, arranged to vectorise.

use lingqu_tensor::Format;
use lingqu_tensor::quant::{IQ4_VALUES, q3_k_scales};

use crate::isa::per_isa;
use crate::math::{f16_to_f32, fp8_to_f32};
use crate::simd::{CHUNK, PANEL_ROWS, Scheme, Unpacked};

/// How the integers of a format become values, or `None` for formats of floats.
pub(crate) fn scheme(format: Format) -> Option<Scheme> {
    let (group, offset, mins) = match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8E4M3 => return None,
        Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs => (32, 128, false),
        Format::Q4_0 => (32, 8, false),
        Format::Q5_0 => (32, 16, false),
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => (32, 0, true),
        Format::Q2K => (16, 0, true),
        Format::Q3K => (16, 4, false),
        Format::Q6K => (16, 32, false),
    };
    Some(Scheme { group, offset, mins })
}

/// A row's block: integers, and the scale and minimum of each group.
type Block<'a, const N: usize> = (&'a mut [u8; N], &'a mut [f32], &'a mut [f32]);

/// Stored rows of a matrix: `data` holds rows of `row_bytes`.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    pub format: Format,
    pub data: &'a [u8],
    pub row_bytes: usize,
}

impl<'a> StoredRows<'a> {
    fn part(&self, row: usize, start: usize, len: usize) -> &'a [u8] {
        let (values, bytes) = (self.format.block_values(), self.format.block_bytes());
        &self.data[row * self.row_bytes + start / values * bytes..][..len / values * bytes]
    }
}

per_isa! {
    /// Unpacks values `start..start + len` (at most 256, whole blocks) of the rows from `first` on, up to 16 of them.
    /// Rows beyond `count` are zeroed.
    pub(crate) fn unpack(rows: StoredRows<'_>, first: usize, count: usize, start: usize, len: usize, out: &mut Unpacked)
        = unpack_plain
}

#[inline(always)]
fn unpack_plain(rows: StoredRows<'_>, first: usize, count: usize, start: usize, len: usize, out: &mut Unpacked) {
    for row in count..PANEL_ROWS {
        out.q[row].fill(0);
        out.d[row].fill(0.0);
        out.m[row].fill(0.0);
    }
    macro_rules! each_block {
        ($values:literal, $bytes:literal, $unpack:path) => {
            for row in 0..count {
                let blocks = rows.part(first + row, start, len).as_chunks::<$bytes>().0;
                let q = out.q[row].as_chunks_mut::<$values>().0;
                let groups = 16 * $values / CHUNK;
                let groups = if $values == 32 { 1 } else { groups };
                let d = out.d[row].chunks_exact_mut(groups);
                let m = out.m[row].chunks_exact_mut(groups);
                for (((block, q), d), m) in blocks.iter().zip(q).zip(d).zip(m) {
                    $unpack(block, (q, d, m));
                }
            }
        };
    }
    match rows.format {
        Format::Q8_0 => each_block!(32, 34, q8_0),
        Format::Q4_0 => each_block!(32, 18, q4_0),
        Format::Q4_1 => each_block!(32, 20, q4_1),
        Format::Q5_0 => each_block!(32, 22, q5_0),
        Format::Q5_1 => each_block!(32, 24, q5_1),
        Format::Iq4Nl => each_block!(32, 18, iq4_nl),
        Format::Q2K => each_block!(256, 84, q2_k),
        Format::Q3K => each_block!(256, 110, q3_k),
        Format::Q4K => each_block!(256, 144, q4_k),
        Format::Q5K => each_block!(256, 176, q5_k),
        Format::Q6K => each_block!(256, 210, q6_k),
        Format::Iq4Xs => each_block!(256, 136, iq4_xs),
        Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8E4M3 => unreachable!("a format of floats"),
    }
}

/// The f16 at byte `at`.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Low and high nibbles of 16 bytes.
#[inline(always)]
fn nibbles(bytes: &[u8], q: &mut [u8; 32]) {
    let bytes: &[u8; 16] = bytes.first_chunk().expect("16 bytes of nibbles");
    q[..16].copy_from_slice(&bytes.map(|byte| byte & 15));
    q[16..].copy_from_slice(&bytes.map(|byte| byte >> 4));
}

/// Adds bit `i` of `bits` to value `i` as its fifth.
#[inline(always)]
fn fifth_bits(bits: &[u8], q: &mut [u8; 32]) {
    // Eight bits to eight bytes at once: a copy of the byte in each, of which byte `i` keeps bit `i`.
    for (byte, q) in bits.iter().zip(q.as_chunks_mut::<8>().0) {
        let bits = u64::from(*byte).wrapping_mul(0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let ones = (bits.wrapping_add(0x7f7f_7f7f_7f7f_7f7f) | bits) >> 7 & 0x0101_0101_0101_0101;
        *q = (u64::from_le_bytes(*q) | ones << 4).to_le_bytes();
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], (q, d, _): Block<'_, 32>) {
    d[0] = half(block, 0);
    for i in 0..32 {
        q[i] = block[2 + i] ^ 0x80;
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18], (q, d, _): Block<'_, 32>) {
    d[0] = half(block, 0);
    nibbles(&block[2..], q);
}

#[inline(always)]
fn q4_1(block: &[u8; 20], (q, d, m): Block<'_, 32>) {
    (d[0], m[0]) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], q);
}

#[inline(always)]
fn q5_0(block: &[u8; 22], (q, d, _): Block<'_, 32>) {
    d[0] = half(block, 0);
    nibbles(&block[6..], q);
    fifth_bits(&block[2..6], q);
}

#[inline(always)]
fn q5_1(block: &[u8; 24], (q, d, m): Block<'_, 32>) {
    (d[0], m[0]) = (half(block, 0), half(block, 2));
    nibbles(&block[8..], q);
    fifth_bits(&block[4..8], q);
}

/// The table of IQ4, plus 128.
const IQ4_OFFSET: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = IQ4_VALUES[i] as u8 ^ 0x80;
        i += 1;
    }
    table
};

#[inline(always)]
fn iq4_values(bytes: &[u8], q: &mut [u8]) {
    for i in 0..16 {
        q[i] = IQ4_OFFSET[usize::from(bytes[i] & 15)];
        q[16 + i] = IQ4_OFFSET[usize::from(bytes[i] >> 4)];
    }
}

#[inline(always)]
fn iq4_nl(block: &[u8; 18], (q, d, _): Block<'_, 32>) {
    d[0] = half(block, 0);
    iq4_values(&block[2..], q);
}

#[inline(always)]
fn iq4_xs(block: &[u8; 136], (q, d, _): Block<'_, 256>) {
    let scale = half(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for g in 0..8 {
        let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
        let bits = i32::from(low) | i32::from(high >> (g * 2) & 3) << 4;
        d[g] = scale * (bits - 32) as f32;
        iq4_values(&block[8 + g * 16..][..16], &mut q[g * 32..][..32]);
    }
}

/// Scales and minima of Q4_K and Q5_K from the first 16 bytes.
#[inline(always)]
fn k_scales(block: &[u8], d: &mut [f32], m: &mut [f32]) {
    let (scale, min) = (half(block, 0), half(block, 2));
    // Four bytes at a time: `k_scale_min` of lingqu_tensor is the definition.
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (low, low_min, high) = (word(4), word(8), word(12));
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    let scales = [low & SIX, high & FOUR | (low >> 6 & TWO) << 4].map(u32::to_le_bytes);
    let mins = [low_min & SIX, high >> 4 & FOUR | (low_min >> 6 & TWO) << 4].map(u32::to_le_bytes);
    for g in 0..8 {
        d[g] = scale * f32::from(scales[g / 4][g % 4]);
        m[g] = -(min * f32::from(mins[g / 4][g % 4]));
    }
}

#[inline(always)]
fn k_nibbles(bytes: &[u8], q: &mut [u8; 256]) {
    for (bytes, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<64>().0) {
        let (low, high) = (bytes.map(|byte| byte & 15), bytes.map(|byte| byte >> 4));
        q[..32].copy_from_slice(&low);
        q[32..].copy_from_slice(&high);
    }
}

#[inline(always)]
fn q4_k(block: &[u8; 144], (q, d, m): Block<'_, 256>) {
    k_scales(block, d, m);
    k_nibbles(&block[16..], q);
}

#[inline(always)]
fn q5_k(block: &[u8; 176], (q, d, m): Block<'_, 256>) {
    k_scales(block, d, m);
    k_nibbles(&block[48..], q);
    let high: &[u8; 32] = block[16..].first_chunk().expect("32 of 160 bytes");
    add_bits::<16>(high, q);
}

/// Adds `VALUE` where value `i` has its bit: bit `i / 32` of byte `i % 32`.
#[inline(always)]
fn add_bits<const VALUE: u8>(bits: &[u8; 32], q: &mut [u8; 256]) {
    for (g, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let mask = 1u8 << g;
        // A comparison vectorises; bytes cannot be shifted.
        let added = bits.map(|bits| if bits & mask == 0 { 0 } else { VALUE });
        for i in 0..32 {
            q[i] |= added[i];
        }
    }
}

/// The low two bits of Q2_K and Q3_K: 64 bytes.
#[inline(always)]
fn pairs_of_bits(bytes: &[u8], q: &mut [u8; 256]) {
    for (bytes, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<128>().0) {
        // The shifts are written out: only shifts by constants vectorise.
        q[..32].copy_from_slice(&bytes.map(|byte| byte & 3));
        q[32..64].copy_from_slice(&bytes.map(|byte| byte >> 2 & 3));
        q[64..96].copy_from_slice(&bytes.map(|byte| byte >> 4 & 3));
        q[96..].copy_from_slice(&bytes.map(|byte| byte >> 6));
    }
}

#[inline(always)]
fn q2_k(block: &[u8; 84], (q, d, m): Block<'_, 256>) {
    let (scale, min) = (half(block, 80), half(block, 82));
    for g in 0..16 {
        d[g] = scale * f32::from(block[g] & 15);
        m[g] = -(min * f32::from(block[g] >> 4));
    }
    pairs_of_bits(&block[16..80], q);
}

#[inline(always)]
fn q3_k(block: &[u8; 110], (q, d, _): Block<'_, 256>) {
    let scale = half(block, 108);
    let scales = q3_k_scales(&block[96..108]);
    for g in 0..16 {
        d[g] = scale * f32::from(scales[g]);
    }
    pairs_of_bits(&block[32..96], q);
    add_bits::<4>(block.first_chunk().expect("32 of 110 bytes"), q);
}

#[inline(always)]
fn q6_k(block: &[u8; 210], (q, d, _): Block<'_, 256>) {
    let scale = half(block, 208);
    for g in 0..16 {
        d[g] = scale * f32::from(block[192 + g] as i8);
    }
    for (h, q) in q.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (low, high) = (&block[h * 64..][..64], &block[128 + h * 32..][..32]);
        for i in 0..32 {
            q[i] = low[i] & 15 | (high[i] & 3) << 4;
            q[32 + i] = low[32 + i] & 15 | (high[i] >> 2 & 3) << 4;
            q[64 + i] = low[i] >> 4 | (high[i] >> 4 & 3) << 4;
            q[96 + i] = low[32 + i] >> 4 | high[i] >> 6 << 4;
        }
    }
}

per_isa! {
    /// Decodes values `start..start + out.len()` of a row of floats. FP8 comes without its scales.
    pub(crate) fn floats(rows: StoredRows<'_>, row: usize, start: usize, out: &mut [f32]) = floats_plain
}

#[inline(always)]
fn floats_plain(rows: StoredRows<'_>, row: usize, start: usize, out: &mut [f32]) {
    let bytes = rows.part(row, start, out.len());
    match rows.format {
        Format::F32 => {
            for (b, out) in bytes.as_chunks().0.iter().zip(out) {
                *out = f32::from_le_bytes(*b);
            }
        }
        Format::F16 => {
            for (b, out) in bytes.as_chunks().0.iter().zip(out) {
                *out = f16_to_f32(u16::from_le_bytes(*b));
            }
        }
        Format::Bf16 => {
            for (b, out) in bytes.as_chunks().0.iter().zip(out) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Format::Fp8E4M3 => {
            for (b, out) in bytes.iter().zip(out) {
                *out = fp8_to_f32(*b);
            }
        }
        _ => unreachable!("a block format"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{self, Panel};
    use crate::testing;

    /// Every format's panel against the scalar decode, on random blocks, at every instruction set.
    #[test]
    fn panels_hold_the_values_of_the_scalar_decode() {
        for format in Format::ALL {
            let Some(scheme) = scheme(format) else { continue };
            let (rows, cols) = (13, 512);
            let tensor = testing::weights(3, format, [rows, cols]);
            let data = tensor.data.as_slice();
            let stored = StoredRows { format, data, row_bytes: tensor.row_bytes() };
            let want = testing::decoded(&tensor);
            for simd in testing::every_simd() {
                let mut unpacked: Box<Unpacked> = testing::zeroed();
                let mut panel: Box<Panel> = testing::zeroed();
                unpacked.q[15].fill(9);
                unpack(simd, stored, 0, rows, 256, 256, &mut unpacked);
                simd::interleave(simd, &unpacked, &mut panel);
                for row in 0..PANEL_ROWS {
                    for i in 0..CHUNK {
                        let q = i32::from(panel.q[i / 4][row][i % 4]) - i32::from(scheme.offset);
                        let (d, m) = (panel.d[i / scheme.group][row], panel.m[i / scheme.group][row]);
                        let got = if scheme.mins { d * q as f32 + m } else { d * q as f32 };
                        let want = if row < rows { want[row * cols + 256 + i] } else { 0.0 };
                        assert!(got == want, "{format} at {}: row {row} value {i}: {got}, not {want}", simd.isa());
                    }
                }
            }
        }
    }
}
