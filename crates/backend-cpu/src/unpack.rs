//! Records to codes and their scales, and stored floats to f32 rows.
//!
//! Layouts of floats are those of `lingqu_tensor::quant`, which is the definition; this is the same, arranged to
//! vectorise.

use lingqu_tensor::Format;

use crate::isa::per_isa;
use crate::math::{f16_to_f32, fp8_to_f32};
use crate::panels::{Further, IQ4_OFFSET, LINE_BYTES, Plan, Record, Scales};
use crate::simd::{Codes, OCTETS, PANEL_ROWS};

/// Stored rows of a matrix: `data` holds rows of `row_bytes`.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    pub format: Format,
    pub data: &'a [u8],
    pub row_bytes: usize,
}

impl<'a> StoredRows<'a> {
    fn part(&self, row: usize, start: usize, len: usize) -> &'a [u8] {
        let bytes = |values: usize| values / self.format.block_values() * self.format.block_bytes();
        &self.data[row * self.row_bytes + bytes(start)..][..bytes(len)]
    }
}

type Line = [u8; LINE_BYTES];

per_isa! {
    /// Unpacks a record.
    pub(crate) fn record(record: Record<'_>, out: &mut Codes) = record_plain
}

#[inline(always)]
fn record_plain(record: Record<'_>, out: &mut Codes) {
    codes_plain(record, &mut out.c);
    scales_plain(record, out);
}

#[inline(always)]
fn codes_plain(Record { scheme, bytes, octets, .. }: Record<'_>, out: &mut [Line; 64]) {
    let (lines, _) = bytes[scheme.codes_at(octets)..].as_chunks::<LINE_BYTES>();
    // A plan at a time, for the shifts to be constants; eight bytes at once, which have no shifts of their own.
    macro_rules! octets {
        ($($plan:ident)*) => {
            match scheme.plan {
                $(Plan::$plan => for (o, out) in out.as_chunks_mut::<8>().0[..octets].iter_mut().enumerate() {
                    for (i, out) in out.iter_mut().enumerate() {
                        let codes = line_plain(Plan::$plan, lines, o, i).map(u64::to_le_bytes);
                        *out.as_chunks_mut::<8>().0.first_chunk_mut().expect("a line") = codes;
                    }
                },)*
            }
        };
    }
    octets!(Bytes Halves HalvesAndOne Table Nibbles NibblesAndOne NibblesAndTwo Pairs PairsAndOne);
}

#[inline(always)]
fn line_plain(plan: Plan, lines: &[Line], o: usize, i: usize) -> [u64; 8] {
    let (line, from) = plan.low(o, i);
    let low = bits(words(&lines[line]), from, plan.low_mask());
    match plan.further(o, i) {
        Some(Further { line, from, to, mask }) => with(low, to, bits(words(&lines[line]), from, mask >> to)),
        None if plan == Plan::Table => {
            low.map(|at| u64::from_le_bytes(at.to_le_bytes().map(|at| IQ4_OFFSET[usize::from(at)])))
        }
        None => low,
    }
}

#[inline(always)]
fn words(line: &Line) -> [u64; 8] {
    let words: &[[u8; 8]; 8] = line.as_chunks().0.first_chunk().expect("a line");
    words.map(u64::from_le_bytes)
}

/// In each byte the bits from `from` on, as `mask` says.
#[inline(always)]
fn bits(words: [u64; 8], from: usize, mask: u8) -> [u64; 8] {
    words.map(|word| (word >> from) & (u64::from(mask) * 0x0101_0101_0101_0101))
}

#[inline(always)]
fn with(low: [u64; 8], at: usize, high: [u64; 8]) -> [u64; 8] {
    std::array::from_fn(|i| low[i] | high[i] << at)
}

#[inline(always)]
fn scales_plain(Record { scheme, bytes, octets, .. }: Record<'_>, out: &mut Codes) {
    let halves = |at: usize, out: &mut [f32; PANEL_ROWS], sign: f32| {
        for (half, out) in bytes[at..].as_chunks().0.iter().zip(out) {
            *out = sign * f16_to_f32(u16::from_le_bytes(*half));
        }
    };
    if scheme.scales == Scales::Floats {
        for o in 0..octets {
            halves(o * PANEL_ROWS * 2, &mut out.d[o], 1.0);
            if scheme.mins {
                halves(scheme.mins_at(octets) + o * PANEL_ROWS * 2, &mut out.min[o], 1.0);
            }
        }
        return;
    }
    let integers: &[[[u8; 4]; PANEL_ROWS]] = bytes.as_chunks().0.as_chunks().0; // [line, row, 4]
    let lines = scheme.integer_lines();
    halves(lines * LINE_BYTES, &mut out.d[0], 1.0);
    if scheme.mins {
        halves(lines * LINE_BYTES + PANEL_ROWS * 2, &mut out.min[0], -1.0);
    }
    for group in 0..OCTETS * 32 / scheme.group {
        let (line, byte) = (group / 4, group % 4);
        let place = crate::simd::pair_place(group);
        for row in 0..PANEL_ROWS {
            let (s, m) = match scheme.scales {
                Scales::Sixes => {
                    let of = |line: usize| integers[line][row][byte];
                    let high = of(0) >> 6 | of(1) >> 6 << 2 | of(2) >> 6 << 4;
                    (i32::from(of(line) & 63), i16::from(if line == 0 { of(2) & 63 } else { high }))
                }
                Scales::Fours => {
                    let both = integers[line][row][byte];
                    (i32::from(both & 15), i16::from(both >> 4))
                }
                Scales::Bytes16 | Scales::Bytes8 => (i32::from(integers[line][row][byte] as i8), 0),
                Scales::Floats => unreachable!("they have no integers"),
            };
            out.s[group][row] = s;
            out.m[place / 2][row][place % 2] = m;
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
    use crate::panels::Panels;
    use crate::region::Regions;
    use crate::simd::{CHUNK, pair_place};
    use crate::team::Team;
    use crate::testing;
    use crate::weights::Packer;

    /// Every format's records against the scalar decode, on random blocks, at every instruction set.
    #[test]
    fn records_stand_for_the_values_of_the_scalar_decode() {
        let (team, regions) = (&Team::new(2).unwrap(), &Regions::default());
        for format in Format::ALL {
            let Some(scheme) = crate::panels::scheme(format) else { continue };
            let (rows, cols) = (29, if scheme.block == CHUNK { 512 } else { 256 + 96 });
            let tensor = testing::weights(3, format, [rows, cols]);
            let want = testing::decoded(&tensor);
            let panels = &Panels::pack(Packer { team, regions, later: None }, &[&tensor, &tensor]).unwrap()[1];
            for simd in testing::every_simd() {
                for (panel, start) in [(0, 0), (0, 256), (1, 0), (1, 256)] {
                    let octets = (cols - start).min(CHUNK) / 32;
                    let of = panels.record(panel, start / CHUNK);
                    assert_eq!((of.octets, of.start), (octets, start));
                    let mut codes = Codes::boxed();
                    record(simd, of, &mut codes);
                    for row in 0..PANEL_ROWS {
                        for i in 0..octets * 32 {
                            let c = i32::from(codes.c[i / 4][row * 4 + i % 4]) - i32::from(scheme.offset);
                            let (block, group) = (i / scheme.block, i % scheme.block / scheme.group);
                            let place = pair_place(group);
                            let (s, m) = match scheme.block {
                                CHUNK => (codes.s[group][row], codes.m[place / 2][row][place % 2]),
                                _ => (1, 1),
                            };
                            let value = codes.d[block][row] * s as f32 * c as f32;
                            let min = if scheme.mins { codes.min[block][row] * f32::from(m) } else { 0.0 };
                            let got = value + min;
                            let row = panel * PANEL_ROWS + row;
                            let want = if row < rows { want[row * cols + start + i] } else { 0.0 };
                            let error = (got - want).abs();
                            let allowed = 1e-6 * (value.abs() + min.abs());
                            let isa = simd.isa();
                            assert!(
                                error <= allowed,
                                "{format} row {row} value {}: {got} for {want} at {isa}",
                                start + i
                            );
                        }
                    }
                }
            }
        }
    }
}
