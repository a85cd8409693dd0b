//! Blocks of 32 values with a float each: a tile product, and floats, to each.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{Next, TOGETHER, Tile, TileScratch, Tiles, check};
use crate::panels::{LINE_BYTES, Plan, Record};
use crate::simd::groups::{SmallRows, TILE_ROWS, TileSums};
use crate::simd::records::{BYTES, HALVES, HALVES_AND_ONE, Source, TABLE, code, halves};
use crate::simd::{CHUNK, OCTET, OCTETS, PANEL_ROWS};

/// Units during which the next records are asked for.
const ASKED_IN: usize = 4;
/// Octets of all planes of a unit at most.
const STEPS_MAX: usize = OCTETS * 2;

/// A record, ready to be multiplied.
#[repr(C, align(64))]
struct Ready {
    /// `c - offset`. `[value / 4, weight row, value % 4]`
    c: [[i8; LINE_BYTES]; CHUNK / 4],
    /// `[octet, weight row]`
    d: [[f32; PANEL_ROWS]; OCTETS],
    min: [[f32; PANEL_ROWS]; OCTETS],
}

#[repr(C, align(64))]
pub(super) struct Scratch {
    ready: [Ready; TOGETHER],
    /// Of units in turn.
    dots: [[Tile<i32>; STEPS_MAX]; 2],
}

impl Scratch {
    pub const ZERO: Self = Self {
        ready: [const { Ready { c: [[0; _]; _], d: [[0.0; _]; _], min: [[0.0; _]; _] } }; _],
        dots: [[Tile([[0; _]; _]); _]; _],
    };
}

/// What `simd::run` computes, of a record of each of some panels for groups of 16 rows; the records at column 0
/// overwrite the sums. groups `[rows / 16, planes]`; sums `[panels, rows / 16]`
///
/// # Safety
/// The machine must have AMX, and AVX-512 with VNNI.
pub(crate) unsafe fn small_chunk(
    tiles: &Tiles,
    records: &[Record<'_>],
    groups: &[SmallRows],
    next: Next,
    scratch: &mut TileScratch,
    sums: &mut [TileSums],
) {
    type Fill = unsafe fn(&mut Ready, Record<'_>);
    check(records, tiles, OCTET, [groups.len(), sums.len()]);
    let Record { scheme, octets, start, .. } = records[0];
    let fill: Fill = match scheme.plan {
        Plan::Bytes => fill::<BYTES>,
        Plan::Halves => fill::<HALVES>,
        Plan::HalvesAndOne => fill::<HALVES_AND_ONE>,
        Plan::Table => fill::<TABLE>,
        plan => unreachable!("small blocks with {plan:?}"),
    };
    let scratch = &mut scratch.small;
    let of = Of { panels: records.len(), octets, fresh: start == 0 };
    // SAFETY: the caller's; checked above.
    unsafe {
        scratch.ready.iter_mut().zip(records).for_each(|(ready, record)| fill(ready, *record));
        match scheme.mins {
            false => multiply::<false>(scratch, of, groups, next, sums),
            true => multiply::<true>(scratch, of, groups, next, sums),
        }
    }
}

/// # Safety
/// A record of small blocks with codes of `PLAN`; the machine must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn fill<const PLAN: u8>(ready: &mut Ready, record: Record<'_>) {
    let Record { scheme, bytes, octets, .. } = record;
    let (source, offset) = (Source::of(record), _mm512_set1_epi8(scheme.offset as i8));
    // SAFETY: the caller's; lines are whole and at their alignment.
    unsafe {
        for o in 0..octets {
            for i in 0..8 {
                let c = _mm512_sub_epi8(code::<PLAN>(source, [o / 4, o % 4], i), offset);
                _mm512_store_si512(ready.c[o * 8 + i].as_mut_ptr().cast(), c);
            }
            let floats = |at: usize| halves(bytes.as_ptr().add(at + o * PANEL_ROWS * 2));
            _mm512_store_ps(ready.d[o].as_mut_ptr(), floats(0));
            if scheme.mins {
                _mm512_store_ps(ready.min[o].as_mut_ptr(), floats(scheme.mins_at(octets)));
            }
        }
    }
}

/// What is multiplied.
#[derive(Clone, Copy)]
struct Of {
    panels: usize,
    octets: usize,
    fresh: bool,
}

/// A unit: a record of one panel, and the planes of a group.
#[derive(Clone, Copy)]
struct Unit<'a> {
    ready: &'a Ready,
    planes: &'a [SmallRows],
}

impl Unit<'_> {
    /// The operands of the product of an octet.
    fn operands(&self, o: usize, plane: usize) -> (*const i8, *const i8) {
        (
            self.planes[plane].v.as_ptr().cast::<i8>().wrapping_add(o * OCTET),
            self.ready.c.as_ptr().cast::<i8>().wrapping_add(o * 8 * LINE_BYTES),
        )
    }
}

/// # Safety
/// As for [`small_chunk`], and what it checks; the records must be ready.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn multiply<const MINS: bool>(
    Scratch { ready, dots }: &mut Scratch,
    Of { panels, octets, fresh }: Of,
    groups: &[SmallRows],
    next: Next,
    sums: &mut [TileSums],
) {
    let (ready, of_panel, units) = (&ready[..panels], sums.len() / panels, sums.len());
    let planes = groups.len() / of_panel;
    assert!(planes <= 2);
    // Two panels at most: a shift is a division.
    let parts = |unit: usize| (unit >> (panels - 1), unit & (panels - 1));
    let unit = |number: usize| {
        let (of, panel) = parts(number.min(units - 1));
        Unit { ready: &ready[panel], planes: &groups[of * planes..(of + 1) * planes] }
    };
    let kept = if fresh { 0 } else { !0 };
    let [dots0, dots1] = dots;
    // SAFETY: tiles lie in the arguments, and are shaped for them.
    unsafe {
        let (x, w) = unit(0).operands(0, 0);
        asm!("tileloadd tmm2, [{x} + {row}*1]", "tileloadd tmm3, [{w} + {line}*1]",
            x = in(reg) x, w = in(reg) w, row = in(reg) CHUNK, line = in(reg) LINE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack));
        for number in 0..=units {
            next.ask(number, units.min(ASKED_IN));
            let (dots, before) = if number % 2 == 0 { (&mut *dots0, &*dots1) } else { (&mut *dots1, &*dots0) };
            let multiplied = (number < units).then(|| (unit(number), unit(number + 1), dots.as_mut_ptr()));
            let (of, panel) = parts(number.saturating_sub(1));
            let added = (unit(number.saturating_sub(1)), before.as_ptr(), sums[panel * of_panel + of].0.as_mut_ptr());
            match multiplied {
                Some(of) if number == 0 => steps::<true, false, MINS>(octets, of, added, kept),
                Some(of) => steps::<true, true, MINS>(octets, of, added, kept),
                None => steps::<false, true, MINS>(octets, (added.0, added.0, dots.as_mut_ptr()), added, kept),
            }
        }
    }
}

/// The products of a unit, while the floats of the one before are computed.
///
/// # Safety
/// All that is pointed at must be there, and the operands of the first product be loaded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn steps<const MULTIPLY: bool, const ADD: bool, const MINS: bool>(
    octets: usize,
    (unit, after, dots): (Unit<'_>, Unit<'_>, *mut Tile<i32>),
    (added, before, to): (Unit<'_>, *const Tile<i32>, *mut [f32; PANEL_ROWS]),
    kept: __mmask16,
) {
    let planes = unit.planes.len();
    let magic = _mm512_set1_epi32(MAGIC.to_bits() as i32);
    let mut x_sums = Spread([0.0; _]);
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); TILE_ROWS];
        if ADD {
            acc = std::array::from_fn(|row| _mm512_maskz_load_ps(kept, to.add(row).cast()));
        }
        for step in 0..octets * planes {
            let (o, plane) = (step >> (planes - 1), step & (planes - 1));
            if MULTIPLY {
                let (x, w) = match step + 1 {
                    next if next < octets * planes => unit.operands(next >> (planes - 1), next & (planes - 1)),
                    _ => after.operands(0, 0),
                };
                // The product of what is at hand, and the next one's operands. Its sums go to memory a step later.
                asm!(
                    "tdpbssd tmm0, tmm2, tmm3",
                    "tilezero tmm2", "tilezero tmm3",
                    "tileloadd tmm2, [{x} + {row}*1]",
                    "tileloadd tmm3, [{w} + {line}*1]",
                    x = in(reg) x, w = in(reg) w, row = in(reg) CHUNK, line = in(reg) LINE_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
                );
            }
            if ADD {
                let group = &added.planes[plane];
                let [w_d, w_min] =
                    [&added.ready.d, &added.ready.min].map(|of| _mm512_load_ps(of.as_ptr().add(o).cast()));
                let minus = _mm512_mul_ps(w_d, _mm512_set1_ps(-MAGIC));
                if MINS {
                    let ints = _mm512_load_si512(group.sums.as_ptr().add(o).cast());
                    _mm512_store_ps(x_sums.0.as_mut_ptr(), _mm512_cvtepi32_ps(ints));
                }
                // Read as they are wanted: lanes of a vector are slower to spread than memory.
                let x_sums = if MINS { std::hint::black_box(&x_sums) } else { &x_sums };
                let (dots, x_d) = (before.add(step), group.d.as_ptr().add(o).cast::<f32>());
                for row in 0..TILE_ROWS {
                    let dot = _mm512_load_si512((*dots).row(row).cast());
                    let raised = _mm512_castsi512_ps(_mm512_add_epi32(dot, magic));
                    let mut t = _mm512_fmadd_ps(w_d, raised, minus);
                    if MINS {
                        t = _mm512_fmadd_ps(w_min, _mm512_set1_ps(x_sums.0[row]), t);
                    }
                    acc[row] = _mm512_fmadd_ps(_mm512_set1_ps(x_d.add(row).read()), t, acc[row]);
                }
            }
            if MULTIPLY {
                asm!(
                    "tilestored [{to} + {line}*1], tmm0",
                    "tilezero tmm0",
                    to = in(reg) dots.add(step), line = in(reg) LINE_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
                );
            }
        }
        if ADD {
            (0..TILE_ROWS).for_each(|row| _mm512_store_ps(to.add(row).cast(), acc[row]));
        }
    }
}

/// An integer below 2^22 that is added to the bits of this number is added to the number, for its last bit is worth 1.
/// Times a scale of eleven bits it is exact, and so `scale * (MAGIC + i) - scale * MAGIC` is `scale * i`, rounded once:
/// that spares a conversion.
const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23

/// A number for each row.
#[repr(C, align(64))]
struct Spread([f32; TILE_ROWS]);
