//! Two panels at once against groups of 16 rows, with AVX-512 and VNNI.
//!
//! Sums of four rows by two panels stay in registers: an activation that is broadcast meets two lines of weights, and a
//! line of weights four activations, six loads to eight products. Weights are unpacked once for all groups, without
//! their offset; activations come as `v + 128`, for the instruction wants one side without sign. What that adds to a
//! sum depends on the weights alone, so sums start with its opposite.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::groups::{LargeRows, SmallRows, TILE_ROWS, TileSums};
use super::records::{
    BYTES, BYTES8, BYTES16, FOURS, HALVES, HALVES_AND_ONE, Integers, SIXES, Source, TABLE, code, halves, pairs,
    with_large,
};
use super::{CHUNK, OCTET, OCTETS, PANEL_ROWS};
use crate::panels::{LINE_BYTES, Plan, Record, Scales, Scheme};

/// Rows of activations that are multiplied together.
const ROWS: usize = 4;

type Line<T> = [T; PANEL_ROWS];

/// A record of each of two panels, ready to be multiplied: each line of the one is followed by that of the other.
#[repr(C, align(64))]
pub(crate) struct Twins {
    /// `c - offset`. `[value / 4, panel, (row, value % 4)]`
    c: [[[i8; LINE_BYTES]; 2]; CHUNK / 4],
    /// Integer scales of large blocks. `[group, panel, row]`
    s: [[Line<i32>; 2]; 16],
    /// Minima of large blocks. `[pair of groups, panel, (row, 2)]`
    m: [[Line<i32>; 2]; 8],
    /// What the sums of a block start with. `[block, panel, row]`
    start: [[Line<i32>; 2]; OCTETS],
    /// `[block, panel, row]`
    d: [[Line<f32>; 2]; OCTETS],
    min: [[Line<f32>; 2]; OCTETS],
    /// What is ready, if anything is.
    scheme: Option<Scheme>,
    octets: usize,
}

impl Twins {
    pub fn boxed() -> Box<Self> {
        Box::new(Self {
            c: [[[0; _]; _]; _],
            s: [[[0; _]; _]; _],
            m: [[[0; _]; _]; _],
            start: [[[0; _]; _]; _],
            d: [[[0.0; _]; _]; _],
            min: [[[0.0; _]; _]; _],
            scheme: None,
            octets: 0,
        })
    }

    /// Makes a record of each of two panels ready.
    ///
    /// # Safety
    /// The machine must have AVX-512 with VNNI.
    pub unsafe fn fill(&mut self, records: [Record<'_>; 2]) {
        type Fill = unsafe fn(&mut Twins, usize, Record<'_>);
        let Record { scheme, octets, .. } = records[0];
        assert!(octets == OCTETS || scheme.block == OCTET);
        let fill: Fill = if scheme.block == CHUNK {
            with_large!(scheme.plan, fill_large[])
        } else {
            match scheme.plan {
                Plan::Bytes => fill_small::<BYTES>,
                Plan::Halves => fill_small::<HALVES>,
                Plan::HalvesAndOne => fill_small::<HALVES_AND_ONE>,
                Plan::Table => fill_small::<TABLE>,
                plan => unreachable!("small blocks with {plan:?}"),
            }
        };
        for (panel, record) in records.into_iter().enumerate() {
            assert!(record.scheme == scheme && record.octets == octets && (1..=OCTETS).contains(&octets));
            assert!(record.bytes.len() == scheme.record_bytes(octets));
            // SAFETY: the caller's; the record is whole and the function that of its scheme.
            unsafe { fill(self, panel, record) };
        }
        (self.scheme, self.octets) = (Some(*scheme), octets);
    }

    /// What `super::run` computes, of the records at hand for rows that are not for tiles: `count` rows, and
    /// more up to a multiple of four. `fresh`: sums are set, not added to. planes: those of the group
    ///
    /// # Safety
    /// The machine must have AVX-512 with VNNI.
    pub unsafe fn multiply_large(&self, planes: &[LargeRows], count: usize, fresh: bool, sums: [&mut TileSums; 2]) {
        type Multiply = unsafe fn(&Twins, &[LargeRows], usize, bool, [&mut TileSums; 2]);
        let scheme = self.scheme.expect("records");
        assert!(scheme.block == CHUNK && count <= TILE_ROWS);
        let multiply: Multiply = match scheme.scales {
            Scales::Sixes => multiply_large::<SIXES>,
            Scales::Fours => multiply_large::<FOURS>,
            Scales::Bytes16 => multiply_large::<BYTES16>,
            Scales::Bytes8 => multiply_large::<BYTES8>,
            Scales::Floats => unreachable!("they are those of small blocks"),
        };
        // SAFETY: the caller's; checked above.
        unsafe { multiply(self, planes, count, fresh, sums) }
    }

    /// The same for small blocks.
    ///
    /// # Safety
    /// The machine must have AVX-512 with VNNI.
    pub unsafe fn multiply_small(&self, planes: &[SmallRows], count: usize, fresh: bool, sums: [&mut TileSums; 2]) {
        let scheme = self.scheme.expect("records");
        assert!(scheme.block == OCTET && count <= TILE_ROWS);
        // SAFETY: the caller's; checked above.
        unsafe {
            match scheme.mins {
                false => multiply_small::<false>(self, planes, count, fresh, sums),
                true => multiply_small::<true>(self, planes, count, fresh, sums),
            }
        }
    }
}

/// Where sums start, given what all codes add up to: each activation is 128 too high.
#[inline]
#[target_feature(enable = "avx512f")]
fn opposite(all: __m512i) -> __m512i {
    _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(all))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<T>(to: &mut T, line: __m512i) {
    const { assert!(size_of::<T>() == LINE_BYTES) }
    // SAFETY: a line of 64 bytes.
    unsafe { _mm512_storeu_si512((&raw mut *to).cast(), line) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load<T>(from: &T) -> __m512i {
    const { assert!(size_of::<T>() == LINE_BYTES) }
    // SAFETY: a line of 64 bytes.
    unsafe { _mm512_loadu_si512((&raw const *from).cast()) }
}

impl Twins {
    /// Makes line `i` of octet `4 t + q` ready; adds its codes to `all`.
    ///
    /// # Safety
    /// The source must have that octet.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn put<const PLAN: u8>(
        &mut self,
        panel: usize,
        (source, offset): (Source, __m512i),
        [t, q, i]: [usize; 3],
        all: __m512i,
    ) -> __m512i {
        // SAFETY: the caller's.
        let c = _mm512_sub_epi8(unsafe { code::<PLAN>(source, [t, q], i) }, offset);
        store(&mut self.c[(t * 4 + q) * 8 + i][panel], c);
        _mm512_dpbusd_epi32(all, _mm512_set1_epi8(1), c)
    }
}

/// # Safety
/// A whole record with codes of `PLAN` and scales of `SCALES`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn fill_large<const PLAN: u8, const SCALES: u8>(twins: &mut Twins, panel: usize, record: Record<'_>) {
    let (source, integers) = (Source::of(record), Integers::of(record));
    let from = (source, _mm512_set1_epi8(record.scheme.offset as i8));
    let groups = pairs(SCALES) / 4; // of an octet
    let mut all = _mm512_setzero_si512();
    for t in 0..2 {
        macro_rules! octet {
            ($q:literal) => {
                for g in 0..groups {
                    let group = $q * groups + g;
                    let mut of_group = _mm512_setzero_si512();
                    // SAFETY: the caller's.
                    unsafe {
                        for i in g * 8 / groups..(g + 1) * 8 / groups {
                            of_group = twins.put::<PLAN>(panel, from, [t, $q, i], of_group);
                        }
                        let s = Integers::scale::<SCALES>(integers.line(t * groups + group / 4), group % 4);
                        store(&mut twins.s[t * groups * 4 + group][panel], s);
                        all = _mm512_add_epi32(all, _mm512_mullo_epi32(of_group, s));
                    }
                }
            };
        }
        octet!(0);
        octet!(1);
        octet!(2);
        octet!(3);
    }
    store(&mut twins.start[0][panel], opposite(all));
    // SAFETY: the caller's.
    unsafe {
        if SCALES < BYTES16 {
            (0..pairs(SCALES)).for_each(|pair| store(&mut twins.m[pair][panel], integers.pair::<SCALES>(pair)));
        }
        let [d, min] = integers.floats::<SCALES>();
        store(&mut twins.d[0][panel], _mm512_castps_si512(d));
        store(&mut twins.min[0][panel], _mm512_castps_si512(min));
    }
}

/// # Safety
/// A record of small blocks with codes of `PLAN`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn fill_small<const PLAN: u8>(twins: &mut Twins, panel: usize, record: Record<'_>) {
    let Record { scheme, bytes, octets, .. } = record;
    let from = (Source::of(record), _mm512_set1_epi8(scheme.offset as i8));
    // SAFETY: the caller's.
    unsafe {
        for o in 0..octets {
            let mut all = _mm512_setzero_si512();
            for i in 0..8 {
                all = twins.put::<PLAN>(panel, from, [o / 4, o % 4, i], all);
            }
            store(&mut twins.start[o][panel], opposite(all));
            let floats = |at: usize| _mm512_castps_si512(halves(bytes.as_ptr().add(at + o * PANEL_ROWS * 2)));
            store(&mut twins.d[o][panel], floats(0));
            if scheme.mins {
                store(&mut twins.min[o][panel], floats(scheme.mins_at(octets)));
            }
        }
    }
}

/// `[panel, row]`
type Sums<T> = [[T; ROWS]; 2];

/// Adds the dots of four lines of each panel with 16 activations of each of four rows, 256 apart.
///
/// In assembly for its order: each activation is broadcast where it is wanted.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn four_lines(dots: &mut Sums<__m512i>, c: *const i8, x: *const i8) {
    macro_rules! line {
        ($w0:literal $w1:literal, $x0:literal $x1:literal $x2:literal $x3:literal) => {
            concat!(
                "vmovdqa64 zmm28, [{c} + ",
                $w0,
                "]\n",
                "vmovdqa64 zmm29, [{c} + ",
                $w1,
                "]\n",
                "vpbroadcastd zmm30, dword ptr [{x} + ",
                $x0,
                "]\n",
                "vpbroadcastd zmm31, dword ptr [{x} + ",
                $x1,
                "]\n",
                "vpdpbusd {a0}, zmm30, zmm28\n",
                "vpdpbusd {b0}, zmm30, zmm29\n",
                "vpbroadcastd zmm30, dword ptr [{x} + ",
                $x2,
                "]\n",
                "vpdpbusd {a1}, zmm31, zmm28\n",
                "vpdpbusd {b1}, zmm31, zmm29\n",
                "vpbroadcastd zmm31, dword ptr [{x} + ",
                $x3,
                "]\n",
                "vpdpbusd {a2}, zmm30, zmm28\n",
                "vpdpbusd {b2}, zmm30, zmm29\n",
                "vpdpbusd {a3}, zmm31, zmm28\n",
                "vpdpbusd {b3}, zmm31, zmm29\n",
            )
        };
    }
    let [[a0, a1, a2, a3], [b0, b1, b2, b3]] = dots;
    // SAFETY: reads what the caller speaks of.
    unsafe {
        asm!(
            line!(0 64, 0 256 512 768),
            line!(128 192, 4 260 516 772),
            line!(256 320, 8 264 520 776),
            line!(384 448, 12 268 524 780),
            a0 = inout(zmm_reg) *a0, a1 = inout(zmm_reg) *a1, a2 = inout(zmm_reg) *a2, a3 = inout(zmm_reg) *a3,
            b0 = inout(zmm_reg) *b0, b1 = inout(zmm_reg) *b1, b2 = inout(zmm_reg) *b2, b3 = inout(zmm_reg) *b3,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            c = in(reg) c, x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}

impl Twins {
    /// Adds the dots of some lines, a multiple of four, with the activations of `ROWS` rows from `row`, a multiple of
    /// them, on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add_dots(&self, dots: &mut Sums<__m512i>, lines: Range<usize>, v: &[[i8; CHUNK]; TILE_ROWS], row: usize) {
        for line in lines.step_by(4) {
            let x = v[row][line * 4..].as_ptr();
            // SAFETY: rows and lines come by fours, and so many are there.
            unsafe { four_lines(dots, self.c[line].as_ptr().cast(), x) };
        }
    }
}

/// # Safety
/// As for [`Twins::multiply_large`], and what it checks; `SCALES` must be those of the scheme.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn multiply_large<const SCALES: u8>(
    twins: &Twins,
    planes: &[LargeRows],
    count: usize,
    fresh: bool,
    mut to: [&mut TileSums; 2],
) {
    let groups = pairs(SCALES) * 2;
    let mins = if SCALES >= BYTES16 { 0 } else { pairs(SCALES) };
    for row in (0..count).step_by(ROWS) {
        for (at, plane) in planes.iter().enumerate() {
            let mut sums: Sums<__m512i> = [0, 1].map(|panel| [load(&twins.start[0][panel]); ROWS]);
            for g in 0..groups {
                let lines = CHUNK / 4 / groups;
                let mut dots: Sums<__m512i> = [[_mm512_setzero_si512(); ROWS]; 2];
                twins.add_dots(&mut dots, g * lines..(g + 1) * lines, &plane.v, row);
                for panel in 0..2 {
                    let s = load(&twins.s[g][panel]);
                    for n in 0..ROWS {
                        sums[panel][n] = _mm512_add_epi32(sums[panel][n], _mm512_mullo_epi32(dots[panel][n], s));
                    }
                }
            }
            for (panel, to) in to.iter_mut().enumerate() {
                let [w_d, w_min] = [&twins.d, &twins.min].map(|of| _mm512_castsi512_ps(load(&of[0][panel])));
                for n in 0..ROWS {
                    let mut t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(sums[panel][n]));
                    if mins > 0 {
                        let sums = plane.sums_of(row + n, if mins == 4 { 32 } else { 16 });
                        let mut of_min = _mm512_setzero_si512();
                        for pair in 0..mins {
                            // SAFETY: a pair of sums is there.
                            let x_sums = unsafe { sums[pair * 2..].as_ptr().cast::<i32>().read_unaligned() };
                            let m = load(&twins.m[pair][panel]);
                            of_min = _mm512_dpwssd_epi32(of_min, m, _mm512_set1_epi32(x_sums));
                        }
                        t = _mm512_fmadd_ps(w_min, _mm512_cvtepi32_ps(of_min), t);
                    }
                    let to = &mut to.0[row + n];
                    let acc = if fresh && at == 0 { _mm512_setzero_si512() } else { load(to) };
                    let x_d = _mm512_set1_ps(plane.d[row + n]);
                    store(to, _mm512_castps_si512(_mm512_fmadd_ps(x_d, t, _mm512_castsi512_ps(acc))));
                }
            }
        }
    }
}

/// # Safety
/// As for [`Twins::multiply_small`], and what it checks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn multiply_small<const MINS: bool>(
    twins: &Twins,
    planes: &[SmallRows],
    count: usize,
    fresh: bool,
    mut to: [&mut TileSums; 2],
) {
    for row in (0..count).step_by(ROWS) {
        let mut acc: Sums<__m512> = [[_mm512_setzero_ps(); ROWS]; 2];
        if !fresh {
            for (acc, to) in acc.iter_mut().zip(&to) {
                *acc = std::array::from_fn(|n| _mm512_castsi512_ps(load(&to.0[row + n])));
            }
        }
        for o in 0..twins.octets {
            for plane in planes {
                let mut dots: Sums<__m512i> = [0, 1].map(|panel| [load(&twins.start[o][panel]); ROWS]);
                twins.add_dots(&mut dots, o * 8..(o + 1) * 8, &plane.v, row);
                for panel in 0..2 {
                    let [w_d, w_min] = [&twins.d, &twins.min].map(|of| _mm512_castsi512_ps(load(&of[o][panel])));
                    for n in 0..ROWS {
                        let mut t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(dots[panel][n]));
                        if MINS {
                            let x_sum = _mm512_cvtepi32_ps(_mm512_set1_epi32(plane.sums[o][row + n]));
                            t = _mm512_fmadd_ps(w_min, x_sum, t);
                        }
                        acc[panel][n] = _mm512_fmadd_ps(_mm512_set1_ps(plane.d[o][row + n]), t, acc[panel][n]);
                    }
                }
            }
        }
        for (acc, to) in acc.iter().zip(&mut to) {
            (0..ROWS).for_each(|n| store(&mut to.0[row + n], _mm512_castps_si512(acc[n])));
        }
    }
}
