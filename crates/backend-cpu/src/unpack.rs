//! From the stored bytes of 16 weight rows to what the kernels read: codes and their scales, or f32 rows.
//!
//! Layouts are those of `lingqu_tensor::quant`, which is the definition; this is the same, arranged to vectorise.

use lingqu_tensor::Format;
use lingqu_tensor::quant::{IQ4_VALUES, q3_k_scales};

use crate::isa::{Simd, per_isa};
use crate::math::{f16_to_f32, fp8_to_f32};
use crate::simd::{self, Ahead, CHUNK, Codes, Direct, PANEL_ROWS, SMALL, Scheme};

/// How the codes of a format become values, or `None` for formats of floats.
pub(crate) fn scheme(format: Format) -> Option<Scheme> {
    let (block, group, offset, mins) = match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8E4M3 => return None,
        Format::Q8_0 | Format::Iq4Nl => (SMALL, 32, 128, false),
        Format::Q4_0 => (SMALL, 32, 8, false),
        Format::Q5_0 => (SMALL, 32, 16, false),
        Format::Q4_1 | Format::Q5_1 => (SMALL, 32, 0, true),
        Format::Q2K => (CHUNK, 16, 0, true),
        Format::Q4K | Format::Q5K => (CHUNK, 32, 0, true),
        Format::Q3K => (CHUNK, 16, 4, false),
        Format::Q6K => (CHUNK, 16, 32, false),
        Format::Iq4Xs => (CHUNK, 32, 128, false),
    };
    Some(Scheme { block, group, offset, mins })
}

/// Stored rows of a matrix: `data` holds rows of `row_bytes`.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    pub format: Format,
    pub data: &'a [u8],
    pub row_bytes: usize,
}

impl<'a> StoredRows<'a> {
    /// What kernels read without unpacking, where they can: the rows from `first` on, from the block at `start`.
    fn direct(&self, simd: Simd, [first, count]: [usize; 2], start: usize, ahead: Ahead) -> Option<Direct<'a>> {
        let data = &self.data[first * self.row_bytes + self.bytes(start)..];
        Direct::new(simd, self.format, data, [self.row_bytes, count], ahead)
    }

    /// As much of the next panel as this stretch is of this one.
    fn ahead(&self, first: usize, [start, len]: [usize; 2]) -> Ahead {
        let at = (first + PANEL_ROWS) * self.row_bytes + self.bytes(start) * PANEL_ROWS;
        Ahead::new(self.data.as_ptr().wrapping_add(at), self.bytes(len))
    }

    /// Of so many values of a row.
    fn bytes(&self, values: usize) -> usize {
        values / self.format.block_values() * self.format.block_bytes()
    }

    fn part(&self, row: usize, start: usize, len: usize) -> &'a [u8] {
        &self.data[row * self.row_bytes + self.bytes(start)..][..self.bytes(len)]
    }
}

/// Makes a stretch of a panel ready for the kernels: all of it into `out`, or the scales alone where the rest is read
/// directly.
pub(crate) fn prepare<'a>(
    simd: Simd,
    rows: StoredRows<'a>,
    [first, count]: [usize; 2],
    [start, len]: [usize; 2],
    out: &mut Codes,
) -> Option<Direct<'a>> {
    let ahead = rows.ahead(first, [start, len]);
    let direct = rows.direct(simd, [first, count], start, ahead);
    match direct {
        Some(direct) => simd::scales(direct, out),
        None => unpack(simd, rows, [first, count], [start, len], ahead, out),
    }
    direct
}

per_isa! {
    /// Unpacks values `start..start + len` (at most 256, whole blocks) of `count` rows from `first` on, up to 16.
    /// Rows beyond `count` are zeroed.
    fn unpack(rows: StoredRows<'_>, of: [usize; 2], stretch: [usize; 2], ahead: Ahead, out: &mut Codes) = unpack_plain
}

#[inline(always)]
fn unpack_plain(
    rows: StoredRows<'_>,
    [first, count]: [usize; 2],
    [start, len]: [usize; 2],
    ahead: Ahead,
    out: &mut Codes,
) {
    let Codes { c, s, m, d, min } = out;
    for row in count..PANEL_ROWS {
        c[row].fill(0);
        s[row].fill(0);
        m.iter_mut().for_each(|m| m[row] = [0; 2]);
        (0..8).for_each(|block| (d[block][row], min[block][row]) = (0.0, 0.0));
    }
    // Scales as they are stored: sixteen at a time turn to f32 faster.
    let mut halves = [[[0u16; PANEL_ROWS]; 8]; 2];
    macro_rules! small_blocks {
        ($bytes:literal, $unpack:path) => {{
            for row in 0..count {
                ahead.fetch::<{ $bytes * 8 / 64 + 1 }>(row);
                let blocks = rows.part(first + row, start, len).as_chunks::<$bytes>().0;
                for (i, (block, c)) in blocks.iter().zip(c[row].as_chunks_mut::<SMALL>().0).enumerate() {
                    [halves[0][i][row], halves[1][i][row]] = $unpack(block, c);
                }
            }
            for (halves, out) in halves.iter().zip([d, min]) {
                for (halves, out) in halves.as_flattened().iter().zip(out.as_flattened_mut()) {
                    *out = f16_to_f32(*halves);
                }
            }
        }};
    }
    macro_rules! large_blocks {
        ($bytes:literal, $unpack:path) => {
            for row in 0..count {
                ahead.fetch::<{ $bytes / 64 + 1 }>(row);
                let block = rows.part(first + row, start, len).first_chunk::<$bytes>().expect("a whole block");
                let mut of_row = [0; 16];
                (d[0][row], min[0][row]) = $unpack(block, &mut c[row], &mut s[row], &mut of_row);
                m.iter_mut().zip(of_row.as_chunks::<2>().0).for_each(|(m, of_row)| m[row] = *of_row);
            }
        };
    }
    match rows.format {
        Format::Q8_0 => small_blocks!(34, q8_0),
        Format::Q4_0 => small_blocks!(18, q4_0),
        Format::Q4_1 => small_blocks!(20, q4_1),
        Format::Q5_0 => small_blocks!(22, q5_0),
        Format::Q5_1 => small_blocks!(24, q5_1),
        Format::Iq4Nl => small_blocks!(18, iq4_nl),
        Format::Q2K => large_blocks!(84, q2_k),
        Format::Q3K => large_blocks!(110, q3_k),
        Format::Q4K => large_blocks!(144, q4_k),
        Format::Q5K => large_blocks!(176, q5_k),
        Format::Q6K => large_blocks!(210, q6_k),
        Format::Iq4Xs => large_blocks!(136, iq4_xs),
        Format::F32 | Format::F16 | Format::Bf16 | Format::Fp8E4M3 => unreachable!("a format of floats"),
    }
}

#[inline(always)]
fn word(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The f16 at byte `at`.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(word(block, at))
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
fn q8_0(block: &[u8; 34], c: &mut [u8; 32]) -> [u16; 2] {
    for i in 0..32 {
        c[i] = block[2 + i] ^ 0x80;
    }
    [word(block, 0), 0]
}

#[inline(always)]
fn q4_0(block: &[u8; 18], c: &mut [u8; 32]) -> [u16; 2] {
    nibbles(&block[2..], c);
    [word(block, 0), 0]
}

#[inline(always)]
fn q4_1(block: &[u8; 20], c: &mut [u8; 32]) -> [u16; 2] {
    nibbles(&block[4..], c);
    [word(block, 0), word(block, 2)]
}

#[inline(always)]
fn q5_0(block: &[u8; 22], c: &mut [u8; 32]) -> [u16; 2] {
    nibbles(&block[6..], c);
    fifth_bits(&block[2..6], c);
    [word(block, 0), 0]
}

#[inline(always)]
fn q5_1(block: &[u8; 24], c: &mut [u8; 32]) -> [u16; 2] {
    nibbles(&block[8..], c);
    fifth_bits(&block[4..8], c);
    [word(block, 0), word(block, 2)]
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
fn iq4_nl(block: &[u8; 18], c: &mut [u8; 32]) -> [u16; 2] {
    iq4_values(&block[2..], c);
    [word(block, 0), 0]
}

/// Integers for each group of a block.
type Groups<'a> = &'a mut [i16; 16];

#[inline(always)]
fn iq4_xs(block: &[u8; 136], c: &mut [u8; 256], s: Groups<'_>, _: Groups<'_>) -> (f32, f32) {
    let high = u16::from_le_bytes([block[2], block[3]]);
    for g in 0..8 {
        let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
        let bits = i16::from(low) | ((high >> (g * 2) & 3) << 4) as i16;
        s[g] = bits - 32;
        iq4_values(&block[8 + g * 16..][..16], &mut c[g * 32..][..32]);
    }
    (half(block, 0), 0.0)
}

/// Scales and minima of Q4_K and Q5_K from the first 16 bytes.
#[inline(always)]
fn k_scales(block: &[u8], s: Groups<'_>, m: Groups<'_>) -> (f32, f32) {
    // Four bytes at a time: `k_scale_min` of lingqu_tensor is the definition.
    let four = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (low, low_min, high) = (four(4), four(8), four(12));
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    let join = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    let scales = join(low & SIX, high & FOUR | (low >> 6 & TWO) << 4);
    let mins = join(low_min & SIX, high >> 4 & FOUR | (low_min >> 6 & TWO) << 4);
    for g in 0..8 {
        s[g] = i16::from(scales[g]);
        m[g] = i16::from(mins[g]);
    }
    (half(block, 0), -half(block, 2))
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
fn q4_k(block: &[u8; 144], c: &mut [u8; 256], s: Groups<'_>, m: Groups<'_>) -> (f32, f32) {
    k_nibbles(&block[16..], c);
    k_scales(block, s, m)
}

#[inline(always)]
fn q5_k(block: &[u8; 176], c: &mut [u8; 256], s: Groups<'_>, m: Groups<'_>) -> (f32, f32) {
    k_nibbles(&block[48..], c);
    let high: &[u8; 32] = block[16..].first_chunk().expect("32 of 160 bytes");
    add_bits::<16>(high, c);
    k_scales(block, s, m)
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
fn q2_k(block: &[u8; 84], c: &mut [u8; 256], s: Groups<'_>, m: Groups<'_>) -> (f32, f32) {
    for g in 0..16 {
        s[g] = i16::from(block[g] & 15);
        m[g] = i16::from(block[g] >> 4);
    }
    pairs_of_bits(&block[16..80], c);
    (half(block, 80), -half(block, 82))
}

#[inline(always)]
fn q3_k(block: &[u8; 110], c: &mut [u8; 256], s: Groups<'_>, _: Groups<'_>) -> (f32, f32) {
    *s = q3_k_scales(&block[96..108]).map(i16::from);
    pairs_of_bits(&block[32..96], c);
    add_bits::<4>(block.first_chunk().expect("32 of 110 bytes"), c);
    (half(block, 108), 0.0)
}

#[inline(always)]
fn q6_k(block: &[u8; 210], c: &mut [u8; 256], s: Groups<'_>, _: Groups<'_>) -> (f32, f32) {
    for g in 0..16 {
        s[g] = i16::from(block[192 + g] as i8);
    }
    for (h, c) in c.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (low, high) = (&block[h * 64..][..64], &block[128 + h * 32..][..32]);
        for i in 0..32 {
            c[i] = low[i] & 15 | (high[i] & 3) << 4;
            c[32 + i] = low[32 + i] & 15 | (high[i] >> 2 & 3) << 4;
            c[64 + i] = low[i] >> 4 | (high[i] >> 4 & 3) << 4;
            c[96 + i] = low[32 + i] >> 4 | high[i] >> 6 << 4;
        }
    }
    (half(block, 208), 0.0)
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
    use crate::testing;

    /// Every format's codes against the scalar decode, on random blocks, at every instruction set.
    #[test]
    fn codes_stand_for_the_values_of_the_scalar_decode() {
        for format in Format::ALL {
            let Some(scheme) = scheme(format) else { continue };
            let (rows, cols) = (13, 512);
            let tensor = testing::weights(3, format, [rows, cols]);
            let data = tensor.data.as_slice();
            let stored = StoredRows { format, data, row_bytes: tensor.row_bytes() };
            let want = testing::decoded(&tensor);
            for simd in testing::every_simd() {
                let mut codes = Codes::boxed();
                codes.c[15].fill(9);
                let ahead = stored.ahead(0, [256, 256]);
                unpack(simd, stored, [0, rows], [256, 256], ahead, &mut codes);
                if let Some(direct) = stored.direct(simd, [0, rows], 256, ahead) {
                    codes.s[15].fill(9);
                    (codes.d[0][15], codes.min[0][15]) = (9.0, 9.0);
                    simd::scales(direct, &mut codes);
                }
                for row in 0..PANEL_ROWS {
                    for i in 0..CHUNK {
                        let (block, group) = (i / scheme.block, i / scheme.group);
                        let (s, m) = match scheme.block {
                            CHUNK => (f32::from(codes.s[row][group]), f32::from(codes.m[group / 2][row][group % 2])),
                            _ => (1.0, 1.0),
                        };
                        let c = i32::from(codes.c[row][i]) - i32::from(scheme.offset);
                        let got = codes.d[block][row] * s * c as f32;
                        let got = if scheme.mins { got + codes.min[block][row] * m } else { got };
                        let want = if row < rows { want[row * cols + 256 + i] } else { 0.0 };
                        assert!(got == want, "{format} at {}: row {row} value {i}: {got}, not {want}", simd.isa());
                    }
                }
            }
        }
    }
}
