//! AVX-512 with VNNI. A lane is a weight row; activations are broadcast.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::records::{BYTES16, Integers, Source, code, halves, pairs};
use super::steps::{self, Step, kernels};
use super::{CHUNK, Dots, FLOAT_ROWS, LANES, LaneSums, OCTET, OCTETS, PANEL_ROWS, QuantRows, Run, Sums, pair_place};
use crate::panels::Record;

/// # Safety
/// `Run::check` must have passed.
pub(super) unsafe fn run(run: Run<'_>, sums: &mut [Sums]) {
    let kernels = kernels!(&run.panels.scheme, large, small, eight: true);
    // SAFETY: the caller's; these are the kernels of the scheme.
    unsafe { steps::run(run, kernels, sums) };
}

/// Adds the dots of a line of codes with four activations of each row, `4 I` from where `x` points.
///
/// In assembly because a compiler that sees the broadcasts makes all of an octet's at once and, with more of them than
/// registers, writes each to the stack and reads it again: prompts took more than twice as long.
///
/// # Safety
/// The activations must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot<const N: usize, const I: usize>(dots: &mut [__m512i; N], c: __m512i, x: [*const i8; N]) {
    for n in 0..N {
        // SAFETY: it reads the four activations that the caller speaks of.
        unsafe {
            asm!(
                "vpdpbusd {dot}, {c}, dword ptr [{x} + {at}]{{1to16}}",
                dot = inout(zmm_reg) dots[n],
                c = in(zmm_reg) c,
                x = in(reg) x[n],
                at = const I * 4,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }
}

/// [`dot`] of some lines of an octet, whose codes `$code` gives by the line's number.
macro_rules! dot_lines {
    ($dots:expr, $x:expr, $code:expr, [$($i:literal)*]) => {
        {
            $( dot::<_, $i>($dots, $code($i), $x); )*
        }
    };
}

/// Blocks of 256 values against `N` rows.
///
/// # Safety
/// `Run::check` must have passed for the step and these `N` rows; `PLAN` and `SCALES` must be those of its source and
/// its scheme.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn large<const N: usize, const PLAN: u8, const SCALES: u8>(step: &Step<'_>, rows: &[u32], acc: &mut [Sums]) {
    let Step { x: QuantRows { planes, stride, v, d, sums16, sums32, .. }, record, records, .. } = *step;
    let rows: &[u32; N] = rows.first_chunk().expect("as many rows");
    let acc: &mut [Sums; N] = acc.first_chunk_mut().expect("sums for each row");
    let (codes, scales, record_bytes) = (Source::of(record), Integers::of(record), record.bytes.len());
    let offset_bits = _mm_cvtsi32_si128(record.scheme.offset.trailing_zeros() as i32);
    // SAFETY: the caller's: the blocks lie in each row of v, d and sums; the records are whole.
    unsafe {
        let mut out: [__m512; N] = std::array::from_fn(|n| _mm512_loadu_ps(acc[n].as_ptr()));
        for number in 0..records {
            let (mut source, integers) = (codes.after(number * record_bytes), scales.after(number * record_bytes));
            let start = record.start + number * CHUNK;
            for plane in 0..planes {
                let at: [usize; N] = std::array::from_fn(|n| (rows[n] as usize * planes + plane) * stride + start);
                let x: [*const i8; N] = at.map(|at| v.as_ptr().add(at));
                let mut sums = [_mm512_setzero_si512(); N];
                for t in 0..2 {
                    octet::<N, PLAN, SCALES, 0>(step, (&mut source, integers), x, t, &mut sums);
                    octet::<N, PLAN, SCALES, 1>(step, (&mut source, integers), x, t, &mut sums);
                    octet::<N, PLAN, SCALES, 2>(step, (&mut source, integers), x, t, &mut sums);
                    octet::<N, PLAN, SCALES, 3>(step, (&mut source, integers), x, t, &mut sums);
                }
                let (group_sums, group) = if pairs(SCALES) == 8 { (sums16, 16) } else { (sums32, 32) };
                let x_sums: [*const i32; N] = at.map(|at| group_sums.as_ptr().add(at / group).cast());
                let mut of_pairs = [_mm512_setzero_si512(); N];
                for pair in 0..pairs(SCALES) {
                    let m = integers.pair::<SCALES>(pair);
                    for n in 0..N {
                        let x_sums = _mm512_set1_epi32(x_sums[n].add(pair).read_unaligned());
                        of_pairs[n] = _mm512_dpwssd_epi32(of_pairs[n], m, x_sums);
                    }
                }
                let [w_d, w_min] = integers.floats::<SCALES>();
                for n in 0..N {
                    let x_d = _mm512_set1_ps(*d.as_ptr().add(at[n] / CHUNK));
                    let t = if SCALES >= BYTES16 {
                        let minus = _mm512_sll_epi32(of_pairs[n], offset_bits);
                        _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[n], minus)))
                    } else {
                        let t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(sums[n]));
                        _mm512_fmadd_ps(w_min, _mm512_cvtepi32_ps(of_pairs[n]), t)
                    };
                    out[n] = _mm512_fmadd_ps(x_d, t, out[n]);
                }
            }
        }
        for n in 0..N {
            _mm512_storeu_ps(acc[n].as_mut_ptr(), out[n]);
        }
    }
}

/// Octet `4 t + Q` of a large block.
///
/// # Safety
/// As for [`large`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn octet<const N: usize, const PLAN: u8, const SCALES: u8, const Q: usize>(
    step: &Step<'_>,
    (source, integers): (&mut Source, Integers),
    x: [*const i8; N],
    t: usize,
    sums: &mut [__m512i; N],
) {
    let groups = pairs(SCALES) / 4; // of an octet
    step.fetch_ahead(t * 4 + Q);
    // SAFETY: the caller's.
    unsafe {
        for g in 0..groups {
            let mut dots = [_mm512_setzero_si512(); N];
            let x = x.map(|x| x.add((t * 4 + Q) * OCTET));
            let code = |i| code::<PLAN>(*source, [t, Q], i);
            match (groups, g) {
                (1, _) => dot_lines!(&mut dots, x, code, [0 1 2 3 4 5 6 7]),
                (_, 0) => dot_lines!(&mut dots, x, code, [0 1 2 3]),
                _ => dot_lines!(&mut dots, x, code, [4 5 6 7]),
            }
            let group = Q * groups + g; // of those of these four octets
            let s = Integers::scale::<SCALES>(integers.line(t * groups + group / 4), group % 4);
            for n in 0..N {
                sums[n] = _mm512_add_epi32(sums[n], _mm512_mullo_epi32(dots[n], s));
            }
        }
        // With many rows the compiler would begin further octets before it is done with this one, and write to the
        // stack what has no register then: the next octet's codes wait for these sums, as it sees it.
        for sum in sums.iter_mut().filter(|_| N > 4) {
            asm!(
                "/* {} {} */",
                inout(reg) source.0,
                inout(zmm_reg) *sum,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
    }
}

/// Blocks of 32 values against `N` rows.
///
/// # Safety
/// `Run::check` must have passed for the step and these `N` rows; `PLAN` must be that of its source.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn small<const N: usize, const PLAN: u8, const MINS: bool>(step: &Step<'_>, rows: &[u32], acc: &mut [Sums]) {
    let Step { x: QuantRows { planes, stride, v, d, sums32, .. }, record, records, .. } = *step;
    let Record { scheme, bytes, octets, start } = record;
    let rows: &[u32; N] = rows.first_chunk().expect("as many rows");
    let acc: &mut [Sums; N] = acc.first_chunk_mut().expect("sums for each row");
    let (codes, mins) = (Source::of(record), scheme.mins_at(octets));
    // SAFETY: the caller's: the blocks lie in each row of v, d and sums; the records are whole.
    unsafe {
        let offset = _mm256_set1_epi32(-i32::from(scheme.offset));
        let mut sums: [__m512; N] = std::array::from_fn(|n| _mm512_loadu_ps(acc[n].as_ptr()));
        let mut of_x = [[MaybeUninit::uninit(); N]; 2];
        for number in 0..records {
            let (bytes, source) = (bytes.as_ptr().add(number * bytes.len()), codes.after(number * bytes.len()));
            for plane in 0..planes {
                for n in 0..N {
                    let at = (rows[n] as usize * planes + plane) * stride + start + number * CHUNK;
                    of_x[plane][n].write(OfRow {
                        v: v.as_ptr().add(at),
                        d: _mm256_loadu_ps(d.as_ptr().add(at / OCTET)),
                        sums: of_octets::<MINS>(sums32.as_ptr().add(at / OCTET), offset),
                    });
                }
            }
            for o in 0..octets {
                step.fetch_ahead(o);
                let w_d = halves(bytes.add(o * PANEL_ROWS * 2));
                for plane in 0..planes {
                    let of_x = of_x[plane].each_ref().map(|of| of.assume_init_ref());
                    let mut dots = match MINS {
                        false => of_x.map(|of| _mm512_set1_epi32(word(&of.sums, o))),
                        true => [_mm512_setzero_si512(); N],
                    };
                    let x = of_x.map(|of| of.v.add(o * OCTET));
                    let code = |i| code::<PLAN>(source, [o / 4, o % 4], i);
                    dot_lines!(&mut dots, x, code, [0 1 2 3 4 5 6 7]);
                    for n in 0..N {
                        let mut t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(dots[n]));
                        if MINS {
                            let min = halves(bytes.add(mins + o * PANEL_ROWS * 2));
                            t = _mm512_fmadd_ps(min, _mm512_set1_ps(word(&of_x[n].sums, o)), t);
                        }
                        sums[n] = _mm512_fmadd_ps(_mm512_set1_ps(word(&of_x[n].d, o)), t, sums[n]);
                    }
                }
            }
        }
        for n in 0..N {
            _mm512_storeu_ps(acc[n].as_mut_ptr(), sums[n]);
        }
    }
}

/// What small blocks want to know of a row in a record.
#[derive(Clone, Copy)]
struct OfRow {
    v: *const i8,
    /// Of each octet, from here on.
    d: __m256,
    /// See [`of_octets`].
    sums: __m256i,
}

/// One of the eight words of a vector of 256 bits, from memory, so that it can be broadcast from there.
///
/// # Safety
/// `V` must be such a vector, `T` have 32 bits that may be any, and `i` be below 8.
#[inline(always)]
unsafe fn word<V, T: Copy>(vector: &V, i: usize) -> T {
    const { assert!(size_of::<V>() == 32 && size_of::<T>() == 4) }
    // SAFETY: the caller's.
    unsafe { *(&raw const *vector).cast::<T>().add(i) }
}

/// Of each octet in order, what dots start with for codes with an offset; where there are minima, the sum as a float.
///
/// # Safety
/// The sums of a whole record must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn of_octets<const MINS: bool>(sums: *const i16, offset: __m256i) -> __m256i {
    // SAFETY: the caller's; the places are eight words.
    unsafe {
        let places = _mm256_loadu_si256(const { &PLACES }.as_ptr().cast());
        let sums = _mm256_permutexvar_epi32(places, _mm256_cvtepi16_epi32(_mm_loadu_si128(sums.cast())));
        match MINS {
            false => _mm256_mullo_epi32(sums, offset),
            true => _mm256_castps_si256(_mm256_cvtepi32_ps(sums)),
        }
    }
}

/// The [`pair_place`] of each octet.
const PLACES: [i32; OCTETS] = {
    let mut places = [0; OCTETS];
    let mut o = 0;
    while o < OCTETS {
        places[o] = pair_place(o) as i32;
        o += 1;
    }
    places
};

/// # Safety
/// `Dots::check` must have passed.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn dots(dots: Dots<'_>, sums: &mut [LaneSums]) {
    let (mut rows, mut sums) = (dots.rows, sums);
    // SAFETY: the row numbers were checked; each call gets as many sums as rows.
    unsafe {
        while let Some((some, rest)) = rows.split_first_chunk::<4>() {
            let (sums_some, sums_rest) = sums.split_first_chunk_mut::<4>().expect("sums for each row");
            dots_n::<4, 4>(&dots, some, sums_some);
            (rows, sums) = (rest, sums_rest);
        }
        for (row, sums) in rows.iter().zip(sums) {
            dots_n::<1, FLOAT_ROWS>(&dots, std::array::from_ref(row), std::array::from_mut(sums));
        }
    }
}

/// `W` weight rows at a time against `N` rows.
///
/// # Safety
/// `Dots::check` must have passed for these rows.
#[target_feature(enable = "avx512f")]
unsafe fn dots_n<const N: usize, const W: usize>(dots: &Dots<'_>, rows: &[u32; N], sums: &mut [LaneSums; N]) {
    let Dots { w, w_stride, x, x_stride, start, len, .. } = *dots;
    // SAFETY: `check`: the stretch lies in each row of w and x.
    unsafe {
        let x: [*const f32; N] = std::array::from_fn(|i| x.as_ptr().add(rows[i] as usize * x_stride + start));
        for first in (0..FLOAT_ROWS).step_by(W) {
            let w = w.as_ptr().add(first * w_stride);
            let mut acc: [[__m512; W]; N] =
                std::array::from_fn(|i| std::array::from_fn(|k| _mm512_loadu_ps(sums[i][first + k].as_ptr())));
            for at in (0..len).step_by(LANES) {
                let x: [__m512; N] = std::array::from_fn(|i| _mm512_loadu_ps(x[i].add(at)));
                for k in 0..W {
                    let w = _mm512_loadu_ps(w.add(k * w_stride + at));
                    for i in 0..N {
                        acc[i][k] = _mm512_fmadd_ps(w, x[i], acc[i][k]);
                    }
                }
            }
            for i in 0..N {
                for k in 0..W {
                    _mm512_storeu_ps(sums[i][first + k].as_mut_ptr(), acc[i][k]);
                }
            }
        }
    }
}
