//! Matrices as the device holds them: planes of one kind of number each, so that loads are aligned and side by side
//! (`kernels/README.md`, "Weights"). A format without a layout of its own becomes the nearest that loses nothing.

use std::borrow::Cow;

use half::{bf16, f16};
use lingqu_tensor::quant::{IQ4_VALUES, q3_k_scales};
use lingqu_tensor::{Format, HostTensor, TensorError};

use crate::codes::Codes;

/// Values that a kernel takes at once: rows of floats are padded to whole chunks.
const CHUNK: usize = 8;

/// A layout that kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    F32 = 0,
    F16 = 1,
    Bf16 = 2,
    Fp8 = 3,
    Q8_0 = 4,
    Q4K = 5,
    Q6K = 6,
    Codes = 7,
}

/// A matrix on its way to the device.
pub(crate) struct Packed<'a> {
    pub layout: Layout,
    /// Unused ones are empty.
    pub planes: [Cow<'a, [u8]>; 4],
    /// FP8, codes: what a scale covers.
    pub rows_per_scale: usize,
    pub cols_per_scale: usize,
}

impl<'a> Packed<'a> {
    fn new<const N: usize>(layout: Layout, planes: [Cow<'a, [u8]>; N]) -> Self {
        let mut planes = planes.into_iter();
        let planes = std::array::from_fn(|_| planes.next().unwrap_or_default());
        Self { layout, planes, rows_per_scale: 0, cols_per_scale: 0 }
    }

    /// # Errors
    /// FP8 without its block scales.
    pub fn of(tensor: &'a HostTensor) -> Result<Self, TensorError> {
        let data = tensor.data.as_slice();
        let floats = |layout, bytes| Self::new(layout, [padded(data, tensor, bytes)]);
        Ok(match tensor.format {
            Format::F32 => floats(Layout::F32, 4),
            Format::F16 => floats(Layout::F16, 2),
            Format::Bf16 => floats(Layout::Bf16, 2),
            Format::Fp8E4M3 => return Self::fp8(tensor),
            Format::Q8_0 => blocks_of_32(tensor, |block, q| q.copy_from_slice(&block[2..])),
            Format::Q4_0 => blocks_of_32(tensor, |block, q| {
                nibbles(&block[2..], |i, nibble| q[i] = nibble.wrapping_sub(8));
            }),
            Format::Q5_0 => blocks_of_32(tensor, |block, q| {
                let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
                nibbles(&block[6..], |i, nibble| q[i] = (nibble | ((high >> i & 1) << 4) as u8).wrapping_sub(16));
            }),
            Format::Iq4Nl => blocks_of_32(tensor, |block, q| {
                nibbles(&block[2..], |i, nibble| q[i] = IQ4_VALUES[usize::from(nibble)] as u8);
            }),
            Format::Q4K => q4_k(tensor),
            Format::Q6K => q6_k(tensor),
            Format::Q3K => q3_k(tensor),
            Format::Q4_1 | Format::Q5_1 | Format::Q2K | Format::Q5K | Format::Iq4Xs => {
                let Codes { codes, pairs, group } = Codes::of(tensor).expect("one of its formats");
                let packed = Self::new(Layout::Codes, [codes.into(), pairs.into()]);
                Self { rows_per_scale: 1, cols_per_scale: group, ..packed }
            }
        })
    }

    fn fp8(tensor: &'a HostTensor) -> Result<Self, TensorError> {
        let Some(scales) = &tensor.scales else {
            let problem = "FP8 without its block scales".into();
            return Err(TensorError { name: tensor.name.clone(), problem });
        };
        if scales.cols_per_block < CHUNK || !scales.cols_per_block.is_power_of_two() {
            return Ok(nearest_float(tensor));
        }
        let values = padded(tensor.data.as_slice(), tensor, 1);
        let planes = [values, Cow::Borrowed(scales.data.as_slice())];
        let (rows_per_scale, cols_per_scale) = (scales.rows_per_block, scales.cols_per_block);
        Ok(Self { rows_per_scale, cols_per_scale, ..Self::new(Layout::Fp8, planes) })
    }
}

/// Rows of floats with zeros up to whole chunks.
fn padded<'a>(data: &'a [u8], tensor: &HostTensor, value_bytes: usize) -> Cow<'a, [u8]> {
    if tensor.cols.is_multiple_of(CHUNK) {
        return Cow::Borrowed(data);
    }
    let (row, wide) = (tensor.cols * value_bytes, tensor.cols.next_multiple_of(CHUNK) * value_bytes);
    let mut out = vec![0; tensor.rows * wide];
    for (out, row) in out.chunks_exact_mut(wide).zip(data.chunks_exact(row)) {
        out[..row.len()].copy_from_slice(row);
    }
    Cow::Owned(out)
}

/// Values of 32 and an f16 scale: integers of 8 bits, however they are stored.
fn blocks_of_32<'a>(tensor: &HostTensor, integers: impl Fn(&[u8], &mut [u8])) -> Packed<'a> {
    let count = tensor.rows * tensor.cols / 32;
    let (mut quants, mut d) = (vec![0; count * 32], Vec::with_capacity(count * 2));
    let blocks = tensor.data.as_slice().chunks_exact(tensor.format.block_bytes());
    for (block, quants) in blocks.zip(quants.chunks_exact_mut(32)) {
        d.extend(&block[..2]);
        integers(block, quants);
    }
    Packed::new(Layout::Q8_0, [quants.into(), d.into()])
}

/// Sixteen bytes as 32 values: the low nibbles, then the high ones.
fn nibbles(bytes: &[u8], mut take: impl FnMut(usize, u8)) {
    for (i, byte) in bytes.iter().enumerate() {
        take(i, byte & 15);
        take(16 + i, byte >> 4);
    }
}

/// The 32 words of a block of 256 integers, 8 slots each, as in `kernels/README.md`, "Order of the K formats":
/// what one lane of a matrix unit takes of 32 values, and the words of 128 values side by side.
fn k_words(q: &[u8; 256]) -> impl Iterator<Item = [u8; 8]> {
    (0..32).map(|word| {
        let (tile, lane, block) = (word / 16, word % 16 / 4, word % 4);
        std::array::from_fn(|slot| q[tile * 128 + block * 32 + slot / 4 * 16 + lane * 4 + slot % 4])
    })
}

/// The low 4 bits of integers: of a word the even slots, then the odd ones.
fn push_nibbles(out: &mut Vec<u8>, q: &[u8; 256]) {
    let word = |slots: [u8; 8]| (0..8).fold(0, |word, j| word | u32::from(slots[j] & 15) << (j % 2 * 16 + j / 2 * 4));
    out.extend(k_words(q).flat_map(|slots| word(slots).to_le_bytes()));
}

/// Bits 4 and 5 of integers, in the same order.
fn push_high_bits(out: &mut Vec<u8>, q: &[u8; 256]) {
    let word = |slots: [u8; 8]| (0..8).fold(0, |word, j| word | u16::from(slots[j] >> 4) << (j % 2 * 8 + j / 2 * 2));
    out.extend(k_words(q).flat_map(|slots| word(slots).to_le_bytes()));
}

fn q4_k<'a>(tensor: &HostTensor) -> Packed<'a> {
    let blocks = tensor.data.as_slice().chunks_exact(144);
    let (mut quants, mut heads) = (Vec::with_capacity(blocks.len() * 128), Vec::with_capacity(blocks.len() * 16));
    for block in blocks {
        heads.extend(&block[..16]);
        // Each run of 64 values: the low nibbles of 32 bytes, then their high ones.
        let q = std::array::from_fn(|i| block[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15);
        push_nibbles(&mut quants, &q);
    }
    Packed::new(Layout::Q4K, [quants.into(), heads.into()])
}

/// Planes of values with 6 bits and 16 signed scales to 256.
struct SixBits {
    low: Vec<u8>,
    high: Vec<u8>,
    scales: Vec<u8>,
    d: Vec<u8>,
}

impl SixBits {
    fn new(blocks: usize) -> Self {
        let room = |bytes: usize| Vec::with_capacity(blocks * bytes);
        Self { low: room(128), high: room(64), scales: room(16), d: room(2) }
    }

    fn push(&mut self, q: &[u8; 256], d: &[u8]) {
        push_nibbles(&mut self.low, q);
        push_high_bits(&mut self.high, q);
        self.d.extend(d);
    }

    fn packed<'a>(self) -> Packed<'a> {
        Packed::new(Layout::Q6K, [self.low.into(), self.high.into(), self.scales.into(), self.d.into()])
    }
}

fn q6_k<'a>(tensor: &HostTensor) -> Packed<'a> {
    let blocks = tensor.data.as_slice().chunks_exact(210);
    let mut planes = SixBits::new(blocks.len());
    for block in blocks {
        // Of each 128 values, by quarters: low bits in nibbles of 64 bytes, high bits in pairs of bits of 32 bytes.
        let q = std::array::from_fn(|i| {
            let (half, quarter, i) = (i / 128, i % 128 / 32, i % 32);
            let low = block[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
            low | (block[128 + half * 32 + i] >> (quarter * 2) & 3) << 4
        });
        planes.push(&q, &block[208..]);
        planes.scales.extend(&block[192..208]);
    }
    planes.packed()
}

/// `d * scale * (q - 4)` with q of 3 bits is `d * scale * (q + 28 - 32)`.
fn q3_k<'a>(tensor: &HostTensor) -> Packed<'a> {
    let blocks = tensor.data.as_slice().chunks_exact(110);
    let mut planes = SixBits::new(blocks.len());
    for block in blocks {
        // Low bits: of each 128 values, by quarters, the pairs of bits of 32 bytes. High bits: of each 32 values, one
        // bit of 32 bytes.
        let q = std::array::from_fn(|i| {
            let low = block[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
            let high = block[i % 32] >> (i / 32) & 1;
            (low | high << 2) + 28
        });
        planes.push(&q, &block[108..]);
        planes.scales.extend(q3_k_scales(&block[96..108]).map(|scale| scale as u8));
    }
    planes.packed()
}

/// The values themselves, in the narrowest floats that hold all of them exactly.
fn nearest_float<'a>(tensor: &HostTensor) -> Packed<'a> {
    let values = tensor.to_f32();
    let holds = |round: fn(f32) -> f32| values.iter().all(|v| round(*v).to_bits() == v.to_bits());
    let wide = tensor.cols.next_multiple_of(CHUNK);
    let rows = || values.chunks_exact(tensor.cols.max(1));
    let plane = |value_bytes: usize, put: &dyn Fn(f32, &mut [u8])| {
        let mut out = vec![0; tensor.rows * wide * value_bytes];
        for (out, row) in out.chunks_exact_mut((wide * value_bytes).max(1)).zip(rows()) {
            out.chunks_exact_mut(value_bytes).zip(row).for_each(|(out, value)| put(*value, out));
        }
        out.into()
    };
    if holds(|v| f16::from_f32(v).to_f32()) {
        let put = |v: f32, out: &mut [u8]| out.copy_from_slice(&f16::from_f32(v).to_le_bytes());
        return Packed::new(Layout::F16, [plane(2, &put)]);
    }
    if holds(|v| bf16::from_f32(v).to_f32()) {
        let put = |v: f32, out: &mut [u8]| out.copy_from_slice(&bf16::from_f32(v).to_le_bytes());
        return Packed::new(Layout::Bf16, [plane(2, &put)]);
    }
    let put = |v: f32, out: &mut [u8]| out.copy_from_slice(&v.to_le_bytes());
    Packed::new(Layout::F32, [plane(4, &put)])
}

#[cfg(test)]
mod tests {
    use lingqu_tensor::quant::fp8_e4m3_to_f32;

    use super::*;

    /// Value (row, col) of the planes, as kernels/README.md defines them.
    fn value(packed: &Packed<'_>, cols: usize, at: [usize; 2]) -> f32 {
        let [row, col] = at;
        let wide = cols.next_multiple_of(CHUNK);
        let [a, b, c, d] = packed.planes.each_ref().map(|p| &p[..]);
        let half_at = |plane: &[u8], i: usize| [plane[2 * i], plane[2 * i + 1]];
        let word = |plane: &[u8], i: usize| [plane[4 * i], plane[4 * i + 1], plane[4 * i + 2], plane[4 * i + 3]];
        let f16_at = |plane: &[u8], i: usize| f16::from_le_bytes(half_at(plane, i)).to_f32();
        // Of the K formats: the word that holds the value, and its slot there.
        let k_word = (row * cols + col / 128 * 128) / 8 + col % 16 / 4 * 4 + col % 128 / 32;
        let slot = col % 4 + col % 32 / 16 * 4;
        let nibble = || (u32::from_le_bytes(word(a, k_word)) >> (slot % 2 * 16 + slot / 2 * 4) & 15) as f32;
        match packed.layout {
            Layout::F32 => f32::from_le_bytes(word(a, row * wide + col)),
            Layout::F16 => f16_at(a, row * wide + col),
            Layout::Bf16 => bf16::from_le_bytes(half_at(a, row * wide + col)).to_f32(),
            Layout::Fp8 => {
                let per_row = cols.div_ceil(packed.cols_per_scale);
                let scale = row / packed.rows_per_scale * per_row + col / packed.cols_per_scale;
                fp8_e4m3_to_f32(a[row * wide + col]) * f32::from_le_bytes(word(b, scale))
            }
            Layout::Q8_0 => f32::from(a[row * cols + col] as i8) * f16_at(b, (row * cols + col) / 32),
            Layout::Q4K => {
                let block = (row * cols + col) / 256;
                let head = &b[block * 16..][..16];
                let (scale, min) = lingqu_tensor::quant::k_scale_min(&head[4..], col % 256 / 32);
                f16_at(b, block * 8) * f32::from(scale) * nibble() - f16_at(b, block * 8 + 1) * f32::from(min)
            }
            Layout::Codes => {
                let pair = 2 * ((row * cols + col) / packed.cols_per_scale);
                let [scale, minimum] = [pair, pair + 1].map(|at| f32::from_le_bytes(word(b, at)));
                scale * f32::from(a[row * cols + col] as i8) - minimum
            }
            Layout::Q6K => {
                let high = u16::from_le_bytes(half_at(b, k_word)) >> (slot % 2 * 8 + slot / 2 * 2) & 3;
                let scale = f32::from(c[(row * cols + col) / 16] as i8);
                f16_at(d, (row * cols + col) / 256) * scale * (nibble() + f32::from(high) * 16.0 - 32.0)
            }
        }
    }

    fn made_up(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    #[test]
    fn every_format_keeps_every_value() {
        for format in Format::ALL {
            for (rows, cols) in [(3, 256), (2, 512), (5, 7 * format.block_values())] {
                let tensor = HostTensor::encode("w", [rows, cols], format, &made_up(rows, cols)).unwrap();
                let packed = Packed::of(&tensor).unwrap();
                let expected = tensor.to_f32();
                for (i, expected) in expected.iter().enumerate() {
                    let found = value(&packed, cols, [i / cols, i % cols]);
                    let at = (packed.layout, i / cols, i % cols);
                    assert_eq!(found, *expected, "{format} in {at:?} of [{rows}, {cols}]");
                    let is_exact = packed.layout != Layout::Codes || found.to_bits() == expected.to_bits();
                    assert!(is_exact, "the sign of zero of {format} in {at:?}");
                }
            }
        }
    }

    #[test]
    fn layouts_are_the_nearest_that_lose_nothing() {
        let check = |tensor: HostTensor, layout: Layout| {
            assert_eq!(Packed::of(&tensor).unwrap().layout, layout, "{}", tensor.format);
        };
        let encoded = |format, scale: f32| {
            let values: Vec<f32> = made_up(2, 256).iter().map(|v| v * scale).collect();
            HostTensor::encode("w", [2, 256], format, &values).unwrap()
        };
        for (format, layout) in [
            (Format::F32, Layout::F32),
            (Format::F16, Layout::F16),
            (Format::Bf16, Layout::Bf16),
            (Format::Fp8E4M3, Layout::Fp8),
            (Format::Q8_0, Layout::Q8_0),
            (Format::Q4_0, Layout::Q8_0),
            (Format::Q5_0, Layout::Q8_0),
            (Format::Iq4Nl, Layout::Q8_0),
            (Format::Q4K, Layout::Q4K),
            (Format::Q3K, Layout::Q6K),
            (Format::Q6K, Layout::Q6K),
            (Format::Q5K, Layout::Codes),
            (Format::Q2K, Layout::Codes),
            (Format::Q4_1, Layout::Codes),
            (Format::Q5_1, Layout::Codes),
            (Format::Iq4Xs, Layout::Codes),
        ] {
            check(encoded(format, 1.0), layout);
        }
        let fp8 = |block| HostTensor::fp8_from_f32("w", [4, 12], &made_up(4, 12), block);
        check(fp8(8), Layout::Fp8);
        check(fp8(6), Layout::F32); // scales that a chunk of 8 values would straddle
    }

    #[test]
    fn fp8_needs_its_scales() {
        let bare = HostTensor::new("w", [1, 8], Format::Fp8E4M3, vec![0; 8].into()).unwrap();
        assert!(Packed::of(&bare).err().unwrap().to_string().contains("block scales"));
    }

    #[test]
    fn rows_of_floats_are_padded_with_zeros() {
        let packed = HostTensor::from_f32("w", [2, 3], &[1.0; 6]);
        let packed = Packed::of(&packed).unwrap();
        let values: Vec<f32> = packed.planes[0].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(values, [1., 1., 1., 0., 0., 0., 0., 0., 1., 1., 1., 0., 0., 0., 0., 0.]);
    }
}
