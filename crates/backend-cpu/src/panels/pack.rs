//! From stored blocks to records: four bytes at a time, as they are.

use std::array::from_fn;

use lingqu_tensor::Format;
use lingqu_tensor::quant::q3_k_scales;

use super::repack::Stacked;
use super::{LINE_BYTES, Scales, Scheme};
use crate::simd::{CHUNK, OCTET, OCTETS, PANEL_ROWS, Strided, interleave};

/// Up to 16 stored rows to a panel, of which what belongs to rows that are not there need not be zeros. Whether all
/// scales are numbers.
pub(super) fn panel(of: &Stacked, rows: &[u8], out: &mut [u8]) -> bool {
    let Stacked { ref tensor, scheme, .. } = *of;
    let (format, cols, row_bytes) = (tensor.format, tensor.cols, tensor.row_bytes());
    let (block_values, block_bytes) = (format.block_values(), format.block_bytes());
    let (mut at, mut finite) = (0, true);
    for start in (0..cols).step_by(CHUNK) {
        let octets = (cols - start).min(CHUNK) / OCTET;
        let record = &mut out[at..at + scheme.record_bytes(octets)];
        at += record.len();
        for block in 0..octets * OCTET / block_values {
            let from = (start / block_values + block) * block_bytes;
            let stored = Strided { bytes: &rows[from..], stride: row_bytes, count: rows.len() / row_bytes };
            let blocks = Blocks { stored, record, scheme: &scheme, octets };
            finite &= match scheme.scales {
                Scales::Floats => blocks.pack_small(format, block),
                _ => blocks.pack_large(format),
            };
        }
    }
    finite
}

/// A word of each row.
type Words = [u32; PANEL_ROWS];

/// A block of each row, and the record that they go to.
struct Blocks<'a> {
    stored: Strided<'a>,
    record: &'a mut [u8],
    scheme: &'a Scheme,
    octets: usize,
}

impl Blocks<'_> {
    /// The bytes `from..from + 4 lines` of each block, to the lines from `first` on.
    fn lines(&mut self, [from, lines]: [usize; 2], first: usize) {
        let out = &mut self.record.as_chunks_mut::<LINE_BYTES>().0[first..first + lines];
        interleave(self.stored, from, out.iter_mut());
    }

    /// The same of the eight lines of an octet, to every other line from `first` on.
    fn every_other_line(&mut self, from: usize, first: usize) {
        let out = &mut self.record.as_chunks_mut::<LINE_BYTES>().0[first..];
        interleave(self.stored, from, out.iter_mut().step_by(2).take(OCTET / 4));
    }

    /// What a function makes of the `N` words from byte `from` on of each block, to as many lines from `first` on.
    fn made<const N: usize, const M: usize>(
        &mut self,
        from: usize,
        first: usize,
        make: impl Fn([Words; N]) -> [Words; M],
    ) {
        let mut words = [[0; PANEL_ROWS]; N];
        for row in 0..self.stored.count {
            let (four, _) = self.stored.row(row)[from..from + N * 4].as_chunks();
            words.iter_mut().zip(four).for_each(|(words, four)| words[row] = u32::from_le_bytes(*four));
        }
        let made = make(words);
        let out = &mut self.record.as_chunks_mut::<4>().0[first * PANEL_ROWS..][..M * PANEL_ROWS];
        out.iter_mut().zip(made.as_flattened()).for_each(|(out, word)| *out = word.to_le_bytes());
    }

    /// The same of what a function makes of a block.
    fn made_of_blocks<const M: usize>(&mut self, first: usize, make: impl Fn(&[u8]) -> [u8; M]) {
        let lines = self.record[first * LINE_BYTES..][..M * PANEL_ROWS].as_chunks_mut::<LINE_BYTES>().0;
        for row in 0..self.stored.count {
            let made = make(self.stored.row(row));
            for (line, four) in lines.iter_mut().zip(made.as_chunks::<4>().0) {
                line.as_chunks_mut::<4>().0[row] = *four;
            }
        }
    }

    /// The f16 at byte `from` of each block, to those from byte `at` on. Whether all are numbers.
    fn halves(&mut self, from: usize, at: usize) -> bool {
        let mut halves = [0; PANEL_ROWS];
        for (row, half) in halves[..self.stored.count].iter_mut().enumerate() {
            let stored = self.stored.row(row);
            *half = u16::from_le_bytes([stored[from], stored[from + 1]]);
        }
        let out = &mut self.record[at..at + PANEL_ROWS * 2];
        out.as_chunks_mut().0.iter_mut().zip(halves).for_each(|(out, half)| *out = half.to_le_bytes());
        halves.iter().fold(true, |finite, half| finite & (half & 0x7c00 != 0x7c00))
    }

    /// Octet `o`: a block of 32 values.
    fn pack_small(mut self, format: Format, o: usize) -> bool {
        let codes = self.scheme.codes_at(self.octets) / LINE_BYTES;
        let per_octet = o * PANEL_ROWS * 2;
        let mut finite = self.halves(0, per_octet);
        if self.scheme.mins {
            finite &= self.halves(2, self.scheme.mins_at(self.octets) + per_octet);
        }
        match format {
            Format::Q8_0 => {
                self.lines([2, 8], codes + 8 * o);
                let lines = &mut self.record[(codes + 8 * o) * LINE_BYTES..][..8 * LINE_BYTES];
                lines.iter_mut().for_each(|code| *code ^= 0x80);
            }
            Format::Q4_0 | Format::Iq4Nl => self.lines([2, 4], codes + 4 * o),
            Format::Q4_1 => self.lines([4, 4], codes + 4 * o),
            Format::Q5_0 => {
                self.lines([6, 4], codes + 5 * o + 1);
                self.made(2, codes + 5 * o, |[bits]| [by_bytes(bits)]);
            }
            Format::Q5_1 => {
                self.lines([8, 4], codes + 5 * o + 1);
                self.made(4, codes + 5 * o, |[bits]| [by_bytes(bits)]);
            }
            _ => unreachable!("a format of large blocks or of floats"),
        }
        finite
    }

    /// A block of 256 values.
    fn pack_large(mut self, format: Format) -> bool {
        let codes = self.scheme.codes_at(OCTETS) / LINE_BYTES;
        let floats = self.scheme.integer_lines() * LINE_BYTES;
        let (d, min) = match format {
            Format::Q4K | Format::Q5K => {
                if format == Format::Q4K {
                    self.lines([16, 32], codes);
                } else {
                    self.every_other_line(16, codes);
                    self.every_other_line(48, codes + 1);
                    self.lines([80, 24], codes + 16);
                }
                self.made(4, 0, sixes);
                (0, Some(2))
            }
            Format::Q2K => {
                self.lines([0, 4], 0);
                self.lines([16, 16], codes);
                (80, Some(82))
            }
            Format::Q3K => {
                self.every_other_line(0, codes);
                self.every_other_line(32, codes + 1);
                self.lines([64, 8], codes + 16);
                self.made_of_blocks(0, |block| q3_k_scales(&block[96..108]).map(|s| s as u8));
                (108, None)
            }
            Format::Q6K => {
                for t in 0..2 {
                    self.every_other_line(128 + 32 * t, codes + 24 * t);
                    self.every_other_line(64 * t, codes + 24 * t + 1);
                    self.lines([64 * t + 32, 8], codes + 24 * t + 16);
                }
                self.lines([192, 4], 0);
                (208, None)
            }
            Format::Iq4Xs => {
                self.lines([8, 32], codes);
                self.made_of_blocks(0, iq4_xs_scales);
                (0, None)
            }
            _ => unreachable!("a format of small blocks or of floats"),
        };
        let mins_finite = min.is_none_or(|min| self.halves(min, floats + PANEL_ROWS * 2));
        self.halves(d, floats) && mins_finite
    }
}

/// A bit for each of 32 values: of value `4 i + b` to bit `i` of byte `b`.
fn by_bytes(bits: Words) -> Words {
    // The number of a bit has five bits itself; those of `b`, the last two, come to the front. Each step swaps two of
    // the five: the first has bits whose numbers have 1 at the 2's and 0 at the 16's change places with those 14 on.
    const STEPS: [(u32, u32); 4] = [(14, 0x0000_cccc), (7, 0x00aa_00aa), (2, 0x0c0c_0c0c), (1, 0x2222_2222)];
    STEPS.into_iter().fold(bits, |bits, (distance, first)| {
        bits.map(|bits| {
            let differ = (bits ^ bits >> distance) & first;
            bits ^ differ ^ differ << distance
        })
    })
}

fn iq4_xs_scales(block: &[u8]) -> [u8; 8] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    from_fn(|g| {
        let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
        (low | ((high >> (g * 2) & 3) << 4) as u8).wrapping_sub(32)
    })
}

/// The 12 bytes of scales and minima of Q4_K and Q5_K as [`Scales::Sixes`] has them, four at a time; `k_scale_min` of
/// lingqu_tensor is the definition.
fn sixes([low, low_min, both]: [Words; 3]) -> [Words; 3] {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    let min: Words = from_fn(|r| both[r] >> 4 & FOUR | (low_min[r] >> 6 & TWO) << 4);
    [
        from_fn(|r| low[r] & SIX | (min[r] & TWO) << 6),
        from_fn(|r| both[r] & FOUR | (low[r] >> 6 & TWO) << 4 | (min[r] >> 2 & TWO) << 6),
        from_fn(|r| low_min[r] & SIX | (min[r] >> 4 & TWO) << 6),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_small_blocks_go_to_bytes() {
        for bits in [0u32, u32::MAX, 0x8000_0001, 0x1234_5678, 0xdead_beef] {
            let bytes = by_bytes([bits; PANEL_ROWS])[3].to_le_bytes();
            for value in 0..32 {
                assert_eq!(
                    bytes[value % 4] >> (value / 4) & 1,
                    (bits >> value & 1) as u8,
                    "value {value} of {bits:#x}"
                );
            }
        }
    }
}
