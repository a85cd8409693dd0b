//! From stored blocks to records: four bytes at a time, as they are.

use lingqu_tensor::Format;
use lingqu_tensor::quant::q3_k_scales;

use super::repack::Stacked;
use super::{LINE_BYTES, Scales, Scheme};
use crate::isa::Simd;
use crate::simd::{self, CHUNK, OCTET, OCTETS, PANEL_ROWS};

/// Up to 16 stored rows to a panel, which is zeros. Whether all scales are numbers.
pub(super) fn panel(simd: Simd, of: &Stacked, rows: &[u8], out: &mut [u8]) -> bool {
    let Stacked { ref tensor, scheme, .. } = *of;
    let (format, cols, row_bytes) = (tensor.format, tensor.cols, tensor.row_bytes());
    let (block_values, block_bytes) = (format.block_values(), format.block_bytes());
    let (mut at, mut finite) = (0, true);
    for start in (0..cols).step_by(CHUNK) {
        let octets = (cols - start).min(CHUNK) / OCTET;
        let record = &mut out[at..at + scheme.record_bytes(octets)];
        at += record.len();
        let blocks = octets * OCTET / block_values;
        for block in 0..blocks {
            let from = (start / block_values + block) * block_bytes;
            let mut stored = [&[][..]; PANEL_ROWS];
            let count = rows.len() / row_bytes;
            for (stored, row) in stored.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                *stored = &row[from..from + block_bytes];
            }
            let blocks = Blocks { simd, stored: &stored[..count], record, scheme: &scheme, octets };
            finite &= match scheme.scales {
                Scales::Floats => blocks.pack_small(format, block),
                _ => blocks.pack_large(format),
            };
        }
    }
    finite
}

/// A block of each row, and the record that they go to.
struct Blocks<'a> {
    simd: Simd,
    stored: &'a [&'a [u8]],
    record: &'a mut [u8],
    scheme: &'a Scheme,
    octets: usize,
}

impl<'a> Blocks<'a> {
    /// The bytes `from..from + 4 lines` of each block, to the lines from `first` on.
    fn lines(&mut self, [from, lines]: [usize; 2], first: usize) {
        let parts = self.parts(from, lines);
        let out = &mut self.record.as_chunks_mut::<LINE_BYTES>().0[first..first + lines];
        simd::interleave(self.simd, &parts[..self.stored.len()], out);
    }

    /// The same of the eight lines of an octet, to every other line from `first` on.
    fn every_other_line(&mut self, from: usize, first: usize) {
        let mut made = [[0; LINE_BYTES]; OCTET / 4];
        let parts = self.parts(from, made.len());
        simd::interleave(self.simd, &parts[..self.stored.len()], &mut made);
        let out = &mut self.record.as_chunks_mut::<LINE_BYTES>().0[first..];
        out.iter_mut().step_by(2).zip(&made).for_each(|(out, line)| *out = *line);
    }

    /// The bytes `from..from + 4 lines` of each block.
    fn parts(&self, from: usize, lines: usize) -> [&'a [u8]; PANEL_ROWS] {
        let mut parts = [&[][..]; PANEL_ROWS];
        for (part, stored) in parts.iter_mut().zip(self.stored) {
            *part = &stored[from..from + lines * 4];
        }
        parts
    }

    /// The same of what a function makes of a block.
    fn made<const N: usize>(&mut self, first: usize, make: impl Fn(&[u8]) -> [u8; N]) {
        let mut made = [[0; N]; PANEL_ROWS];
        let mut parts = [&[][..]; PANEL_ROWS];
        for (made, stored) in made.iter_mut().zip(self.stored) {
            *made = make(stored);
        }
        parts.iter_mut().zip(&made).for_each(|(part, made)| *part = made);
        let out = &mut self.record.as_chunks_mut::<LINE_BYTES>().0[first..first + N / 4];
        simd::interleave(self.simd, &parts[..self.stored.len()], out);
    }

    /// The f16 at byte `from` of each block, to those from byte `at` on. Whether all are numbers.
    fn halves(&mut self, from: usize, at: usize) -> bool {
        let mut finite = true;
        for (stored, out) in self.stored.iter().zip(self.record[at..].as_chunks_mut::<2>().0) {
            *out = [stored[from], stored[from + 1]];
            finite &= u16::from_le_bytes(*out) & 0x7c00 != 0x7c00;
        }
        finite
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
                self.made(codes + 5 * o, |block| by_bytes([block[2], block[3], block[4], block[5]]));
            }
            Format::Q5_1 => {
                self.lines([8, 4], codes + 5 * o + 1);
                self.made(codes + 5 * o, |block| by_bytes([block[4], block[5], block[6], block[7]]));
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
                self.made(0, |block| sixes(&block[4..16]));
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
                self.made(0, |block| q3_k_scales(&block[96..108]).map(|s| s as u8));
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
                self.made(0, iq4_xs_scales);
                (0, None)
            }
            _ => unreachable!("a format of small blocks or of floats"),
        };
        let mins_finite = min.is_none_or(|min| self.halves(min, floats + PANEL_ROWS * 2));
        self.halves(d, floats) && mins_finite
    }
}

/// A bit for each of 32 values: of value `4 i + b` to bit `i` of byte `b`.
fn by_bytes(bits: [u8; 4]) -> [u8; 4] {
    // Bits by fours to bits by bytes: the nibbles' bits, transposed as 8 x 4.
    let bits = u32::from_le_bytes(bits);
    std::array::from_fn(|b| {
        let every_fourth = bits >> b & 0x1111_1111;
        // Bits 0, 4, ... 28 together: by twos, fours and eight.
        let twos = (every_fourth | every_fourth >> 3) & 0x0303_0303;
        let fours = (twos | twos >> 6) & 0x000f_000f;
        (fours | fours >> 12) as u8
    })
}

fn iq4_xs_scales(block: &[u8]) -> [u8; 8] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    std::array::from_fn(|g| {
        let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
        (low | ((high >> (g * 2) & 3) << 4) as u8).wrapping_sub(32)
    })
}

/// The 12 bytes of scales and minima of Q4_K and Q5_K as [`Scales::Sixes`] has them; `k_scale_min` of lingqu_tensor is
/// the definition.
fn sixes(stored: &[u8]) -> [u8; 12] {
    let (low, low_min, both) = (&stored[..4], &stored[4..8], &stored[8..]);
    let mut out = [0; 12];
    for j in 0..4 {
        let min = both[j] >> 4 | low_min[j] >> 6 << 4;
        out[j] = low[j] & 63 | (min & 3) << 6;
        out[4 + j] = both[j] & 15 | low[j] >> 6 << 4 | (min >> 2 & 3) << 6;
        out[8 + j] = low_min[j] & 63 | (min >> 4) << 6;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_small_blocks_go_to_bytes() {
        for bits in [0u32, u32::MAX, 0x8000_0001, 0x1234_5678, 0xdead_beef] {
            let bytes = by_bytes(bits.to_le_bytes());
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
