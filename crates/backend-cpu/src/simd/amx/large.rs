//! Blocks of 256 values with integer scales.
//!
//! The scales go into the weights before the product ([`Scaled`]), so that a block costs two tile products to 64
//! values, and floats once in 256. What minima come to is a product too, of bf16: minima have up to six bits, and sums
//! of 16 activations up to twelve, which are two numbers of up to seven each. All partial sums are integers below 2^24,
//! so the result is exact, and a float already.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::{Next, TOGETHER, Tile, TileScratch, Tiles, check};
use crate::panels::{LINE_BYTES, Record, Scales};
use crate::simd::groups::{LargeRows, TileSums};
use crate::simd::records::{BYTES8, BYTES16, FOURS, Integers, SIXES, Source, pairs, with_large};
use crate::simd::scaled::Scaled;
use crate::simd::{CHUNK, PANEL_ROWS};

/// Units during which the next records are asked for.
const ASKED_IN: usize = 4;
/// Units between a product and its floats.
const LAG: usize = 2;

/// A record, ready to be multiplied.
#[repr(C, align(64))]
struct Ready {
    weights: Scaled,
    /// bf16, each twice. `[16 columns, weight row, 2]`
    mins: [[[u16; 2]; PANEL_ROWS]; CHUNK / 16],
    d: [f32; PANEL_ROWS],
    /// The opposite of what scales minima.
    min: [f32; PANEL_ROWS],
}

/// What came of a unit.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Dots {
    /// Of the low and the high bytes of weights.
    low: Tile<i32>,
    high: Tile<i32>,
    mins: Tile<f32>,
}

#[repr(C, align(64))]
pub(super) struct Scratch {
    ready: [Ready; TOGETHER],
    /// Of units in turn.
    dots: [Dots; 2],
}

impl Scratch {
    pub const ZERO: Self = Self {
        ready: [const { Ready { weights: Scaled::ZERO, mins: [[[0; _]; _]; _], d: [0.0; _], min: [0.0; _] } }; _],
        dots: [Dots { low: Tile([[0; _]; _]), high: Tile([[0; _]; _]), mins: Tile([[0.0; _]; _]) }; _],
    };
}

/// What `simd::run` computes, of a record of each of some panels for groups of 16 rows; the records at column 0
/// overwrite the sums. groups `[rows / 16, planes]`; sums `[panels, rows / 16]`
///
/// # Safety
/// The machine must have AMX, and AVX-512 with VNNI.
pub(crate) unsafe fn large_chunk(
    tiles: &Tiles,
    records: &[Record<'_>],
    groups: &[LargeRows],
    next: Next,
    scratch: &mut TileScratch,
    sums: &mut [TileSums],
) {
    type Fill = unsafe fn(&mut Ready, Record<'_>);
    type Multiply = unsafe fn(&mut Scratch, (usize, bool), &[LargeRows], Next, &mut [TileSums]);
    check(records, tiles, CHUNK, [groups.len(), sums.len()]);
    let scheme = records[0].scheme;
    let fill: Fill = with_large!(scheme.plan, fill[]);
    let multiply: Multiply = match scheme.scales {
        Scales::Sixes => multiply::<SIXES>,
        Scales::Fours => multiply::<FOURS>,
        Scales::Bytes16 => multiply::<BYTES16>,
        Scales::Bytes8 => multiply::<BYTES8>,
        Scales::Floats => unreachable!("they are those of small blocks"),
    };
    let scratch = &mut scratch.large;
    // SAFETY: the caller's; checked above.
    unsafe {
        scratch.ready.iter_mut().zip(records).for_each(|(ready, record)| fill(ready, *record));
        multiply(scratch, (records.len(), records[0].start == 0), groups, next, sums);
    }
}

const fn has_mins(scales: u8) -> bool {
    scales < BYTES16
}

/// # Safety
/// `PLAN` and `SCALES` must be those of the record's scheme; the machine must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn fill<const PLAN: u8, const SCALES: u8>(ready: &mut Ready, record: Record<'_>) {
    let integers = Integers::of(record);
    // SAFETY: the caller's; lines are whole and at their alignment.
    unsafe {
        ready.weights.fill::<PLAN, SCALES>(Source::of(record), integers, record.scheme.offset);
        let [d, min] = integers.floats::<SCALES>();
        _mm512_store_ps(ready.d.as_mut_ptr(), d);
        if !has_mins(SCALES) {
            return;
        }
        _mm512_store_ps(ready.min.as_mut_ptr(), min);
        let each = 8 / pairs(SCALES); // lines to a minimum
        for pair in 0..pairs(SCALES) {
            let words = integers.pair::<SCALES>(pair);
            let of_pair = [_mm512_and_si512(words, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32::<16>(words)];
            for (second, m) in of_pair.into_iter().enumerate() {
                // So small an integer has its bits in the upper half of a float.
                let bits = _mm512_castps_si512(_mm512_cvtepi32_ps(m));
                let twice = _mm512_or_si512(bits, _mm512_srli_epi32::<16>(bits));
                let group = pair / 2 * 4 + pair % 2 + second * 2;
                for line in &mut ready.mins[group * each..(group + 1) * each] {
                    _mm512_store_si512(line.as_mut_ptr().cast(), twice);
                }
            }
        }
    }
}

/// Where tile instructions find what they read and write.
#[derive(Clone, Copy)]
struct Places {
    /// Of the unit at hand.
    group: *const LargeRows,
    ready: *const Ready,
    /// Of the one after it.
    next_group: *const LargeRows,
    next_ready: *const Ready,
    /// Of the one before it.
    dots: *mut Dots,
}

/// Tile instructions, as lines of assembly.
macro_rules! tiles {
    ([$($line:expr),* $(,)?], $places:expr) => {{
        let Places { group, ready, next_group, next_ready, dots } = $places;
        asm!(
            $($line,)*
            "/* {x} {w} {next_x} {next_w} {to} {row} {line} {x_sums} {mins} */",
            x = in(reg) group, w = in(reg) ready, next_x = in(reg) next_group, next_w = in(reg) next_ready,
            to = in(reg) dots, row = in(reg) CHUNK, line = in(reg) LINE_BYTES,
            x_sums = const std::mem::offset_of!(LargeRows, sums), mins = const std::mem::offset_of!(Ready, mins),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
        )
    }};
}

/// Products of the 64 columns at hand with both bytes of weights, then what else is given.
macro_rules! products {
    ($low:literal $high:literal, [$($line:expr),* $(,)?], $places:expr) => {
        // High bytes have a sign where scales have one.
        if has_mins(SCALES) {
            products!(@ "tdpbsud", $low $high, [$($line),*], $places)
        } else {
            products!(@ "tdpbssd", $low $high, [$($line),*], $places)
        }
    };
    (@ $high_product:literal, $low:literal $high:literal, [$($line:expr),*], $places:expr) => {
        tiles!([
            concat!("tdpbsud ", $low, ", tmm2, tmm3"), concat!($high_product, " ", $high, ", tmm2, tmm4"),
            "tilezero tmm2", "tilezero tmm3", "tilezero tmm4",
            $($line),*
        ], $places)
    };
}

/// Stores a tile of sums and makes it zero.
macro_rules! store {
    ($tile:literal, $at:literal, $places:expr) => {
        tiles!([concat!("tilestored [{to} + {line}*1 + ", $at, "], ", $tile), concat!("tilezero ", $tile)], $places)
    };
}

/// # Safety
/// As for [`large_chunk`], and what it checks; as many panels must be ready as said, with `SCALES`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn multiply<const SCALES: u8>(
    Scratch { ready, dots }: &mut Scratch,
    (panels, fresh): (usize, bool),
    groups: &[LargeRows],
    next: Next,
    sums: &mut [TileSums],
) {
    let ready = &ready[..panels];
    let (units, of_panel) = (groups.len() * panels, sums.len() / panels);
    let planes = groups.len() / of_panel;
    // Two panels at most: a shift is a division.
    let parts = |unit: usize| (unit >> (panels - 1), unit & (panels - 1));
    let operands = |unit: usize| {
        let (group, panel) = parts(unit.min(units - 1));
        (&raw const groups[group], &raw const ready[panel])
    };
    let places = |step: usize, dots: *mut Dots| {
        let ((group, ready), (next_group, next_ready)) = (operands(step), operands(step + 1));
        Places { group, ready, next_group, next_ready, dots }
    };
    let [dots0, dots1] = dots;
    // SAFETY: tiles lie in the arguments, and are shaped for them.
    unsafe {
        let places_of_first = places(0, dots0);
        tiles!(
            [
                "tileloadd tmm2, [{x} + {row}*1]",
                "tileloadd tmm3, [{w} + {line}*1]",
                "tileloadd tmm4, [{w} + {line}*1 + 4096]"
            ],
            places_of_first
        );
        for step in 0..units + LAG {
            next.ask(step, units.min(ASKED_IN));
            let (multiplied, stored, added) = (step < units, (1..=units).contains(&step), step >= LAG);
            let (group, panel) = parts(step.saturating_sub(LAG));
            let (of, plane) = if planes == 1 { (group, 0) } else { (group / planes, group % planes) };
            let adding = Adding {
                ready: &ready[panel],
                group: &groups[group],
                to: &raw mut sums[panel * of_panel + of],
                kept: if fresh && plane == 0 { 0 } else { !0 },
            };
            macro_rules! step {
                ($low:literal $high:literal, $low_before:literal $high_before:literal, $stored:ident, $done:ident) => {{
                    let at = places(step, $stored);
                    let floats = |rows: Range<usize>| {
                        if added {
                            add_floats::<SCALES>(rows, &adding, &*$done);
                        }
                    };
                    if multiplied {
                        products!($low $high, ["tileloadd tmm2, [{x} + {row}*1 + 64]",
                            "tileloadd tmm3, [{w} + {line}*1 + 1024]",
                            "tileloadd tmm4, [{w} + {line}*1 + 5120]"], at);
                    }
                    if stored {
                        store!($low_before, 0, at);
                    }
                    floats(0..4);
                    if multiplied {
                        products!($low $high, ["tileloadd tmm2, [{x} + {row}*1 + 128]",
                            "tileloadd tmm3, [{w} + {line}*1 + 2048]",
                            "tileloadd tmm4, [{w} + {line}*1 + 6144]"], at);
                    }
                    if stored {
                        store!($high_before, 1024, at);
                    }
                    floats(4..8);
                    if multiplied {
                        products!($low $high, ["tileloadd tmm2, [{x} + {row}*1 + 192]",
                            "tileloadd tmm3, [{w} + {line}*1 + 3072]",
                            "tileloadd tmm4, [{w} + {line}*1 + 7168]"], at);
                    }
                    if stored && has_mins(SCALES) {
                        store!("tmm7", 2048, at);
                    }
                    floats(8..12);
                    if multiplied && has_mins(SCALES) {
                        products!($low $high, ["tileloadd tmm2, [{x} + {line}*1 + {x_sums}]",
                            "tileloadd tmm3, [{w} + {line}*1 + {mins}]"], at);
                    } else if multiplied {
                        products!($low $high, ["tileloadd tmm2, [{next_x} + {row}*1]",
                            "tileloadd tmm3, [{next_w} + {line}*1]",
                            "tileloadd tmm4, [{next_w} + {line}*1 + 4096]"], at);
                    }
                    floats(12..14);
                    if multiplied && has_mins(SCALES) {
                        tiles!(["tdpbf16ps tmm7, tmm2, tmm3", "tilezero tmm2", "tilezero tmm3",
                            "tileloadd tmm2, [{next_x} + {row}*1]", "tileloadd tmm3, [{next_w} + {line}*1]",
                            "tileloadd tmm4, [{next_w} + {line}*1 + 4096]"], at);
                    }
                    floats(14..16);
                }};
            }
            if step % 2 == 0 {
                step!("tmm0" "tmm1", "tmm5" "tmm6", dots1, dots0);
            } else {
                step!("tmm5" "tmm6", "tmm0" "tmm1", dots0, dots1);
            }
        }
    }
}

/// A unit whose floats are computed.
struct Adding<'a> {
    ready: &'a Ready,
    group: &'a LargeRows,
    to: *mut TileSums,
    /// Of what is there: all or nothing.
    kept: __mmask16,
}

/// Adds what a unit's dots stand for, of some of its rows.
///
/// # Safety
/// `to` must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn add_floats<const SCALES: u8>(rows: Range<usize>, adding: &Adding<'_>, dots: &Dots) {
    let Adding { ready, group, to, kept } = *adding;
    // SAFETY: whole rows, at their alignment.
    unsafe {
        let [w_d, w_min] = [&ready.d, &ready.min].map(|of| _mm512_load_ps(of.as_ptr()));
        for row in rows {
            let load = |of: &Tile<i32>| _mm512_load_si512(of.row(row).cast());
            let dot = Scaled::sum::<SCALES>([load(&dots.low), load(&dots.high)]);
            let mut t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(dot));
            if has_mins(SCALES) {
                t = _mm512_fmadd_ps(w_min, _mm512_load_ps(dots.mins.row(row)), t);
            }
            let to = (*to).0[row].as_mut_ptr();
            let acc = _mm512_maskz_load_ps(kept, to);
            _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_set1_ps(group.d[row]), t, acc));
        }
    }
}
