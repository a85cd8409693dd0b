//! AVX-512 with VNNI. A lane is a weight row; activations are broadcast.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::{MaybeUninit, offset_of};

use super::records::{BYTES16, Integers, Source, code, halves, pairs};
use super::steps::{self, Ahead, Step, kernels};
use super::{CHUNK, Dots, FLOAT_ROWS, LANES, LaneSums, OCTET, OCTETS, PANEL_ROWS, RowChunk, Run, Sums, pair_place};
use crate::panels::Record;

/// # Safety
/// `Run::check` must have passed.
pub(super) unsafe fn run(run: Run<'_>, sums: &mut [Sums]) {
    let kernels = kernels!(&run.panels.scheme, large, small, eight: true);
    // SAFETY: the caller's; these are the kernels of the scheme.
    unsafe { steps::run(run, kernels, sums) };
}

/// Adds the dots of a line of codes with four activations of each row, `4 I` of octet `o`.
///
/// In assembly because a compiler that sees the broadcasts makes all of an octet's at once and, with more of them than
/// registers, writes each to the stack and reads it again: prompts took more than twice as long.
///
/// # Safety
/// The activations must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot<const N: usize, const I: usize>(dots: &mut [__m512i; N], c: __m512i, x: [*const RowChunk; N], o: usize) {
    const { assert!(offset_of!(RowChunk, v) == 0) }
    for n in 0..N {
        // SAFETY: it reads the four activations that the caller speaks of.
        unsafe {
            asm!(
                "vpdpbusd {dot}, {c}, dword ptr [{x} + {octet} + {at}]{{1to16}}",
                dot = inout(zmm_reg) dots[n],
                c = in(zmm_reg) c,
                x = in(reg) x[n],
                octet = in(reg) o * OCTET,
                at = const I * 4,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }
}

/// [`dot`] of some lines of an octet, whose codes `$code` gives by the line's number.
macro_rules! dot_lines {
    ($dots:expr, $x:expr, $o:expr, $code:expr, [$($i:literal)*]) => {
        {
            $( dot::<_, $i>($dots, $code($i), $x, $o); )*
        }
    };
}

/// Adds the dots of minima, or of what else there is of each two groups, with a row's sums of groups `2 P` and
/// `2 P + 1` at their places: of 16 values or of 32.
///
/// In assembly because a compiler makes two instructions of the one.
///
/// # Safety
/// The chunks must be there.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_pair<const N: usize, const SIXTEENS: bool, const P: usize>(
    dots: &mut [__m512i; N],
    m: __m512i,
    x: [*const RowChunk; N],
) {
    for n in 0..N {
        // SAFETY: it reads these two sums.
        unsafe {
            asm!(
                "vpdpwssd {dot}, {m}, dword ptr [{x} + {at}]{{1to16}}",
                dot = inout(zmm_reg) dots[n],
                m = in(zmm_reg) m,
                x = in(reg) x[n],
                at = const if SIXTEENS { offset_of!(RowChunk, sums16) } else { offset_of!(RowChunk, sums32) } + P * 4,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    }
}

/// Blocks of 256 values against `N` rows.
///
/// # Safety
/// `Run::check` must have passed for the step and these `N` rows; `PLAN` and `SCALES` must be those of its source and
/// its scheme.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn large<const N: usize, const ASK: bool, const PLAN: u8, const SCALES: u8>(
    step: &Step<'_>,
    rows: &[u32],
    acc: &mut [Sums],
    ahead: &mut Ahead,
) {
    let Step { x: of_x, record, records, next } = *step;
    let rows: &[u32; N] = rows.first_chunk().expect("as many rows");
    let offset_bits = _mm_cvtsi32_si128(record.scheme.offset.trailing_zeros() as i32);
    let (mut codes, mut integers) = (Source::of(record), Integers::of(record));
    let mut x = of_x.pointers(record.start / CHUNK, rows);
    // SAFETY: the caller's: the chunks are there for each row; the records are whole.
    unsafe {
        for number in 0..records {
            let acc: &mut [Sums; N] = acc[number * next.sums..].first_chunk_mut().expect("sums for each row");
            for plane in 0..of_x.planes {
                let x = x.map(|x| x.add(plane));
                let (mut sums, mut source) = ([_mm512_setzero_si512(); N], codes);
                for t in 0..2 {
                    octet::<N, ASK, PLAN, SCALES, 0>((&mut source, integers), x, t, &mut sums, ahead);
                    octet::<N, ASK, PLAN, SCALES, 1>((&mut source, integers), x, t, &mut sums, ahead);
                    octet::<N, ASK, PLAN, SCALES, 2>((&mut source, integers), x, t, &mut sums, ahead);
                    octet::<N, ASK, PLAN, SCALES, 3>((&mut source, integers), x, t, &mut sums, ahead);
                }
                let mut of_pairs = [_mm512_setzero_si512(); N];
                macro_rules! dot_pairs {
                    ($sixteens:literal, [$($pair:literal)*]) => {{
                        $( dot_pair::<N, $sixteens, $pair>(&mut of_pairs, integers.pair::<SCALES>($pair), x); )*
                    }};
                }
                match pairs(SCALES) {
                    8 => dot_pairs!(true, [0 1 2 3 4 5 6 7]),
                    _ => dot_pairs!(false, [0 1 2 3]),
                }
                let [w_d, w_min] = integers.floats::<SCALES>();
                for n in 0..N {
                    let t = if SCALES >= BYTES16 {
                        let minus = _mm512_sll_epi32(of_pairs[n], offset_bits);
                        _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[n], minus)))
                    } else {
                        let t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(sums[n]));
                        _mm512_fmadd_ps(w_min, _mm512_cvtepi32_ps(of_pairs[n]), t)
                    };
                    let out = _mm512_fmadd_ps(_mm512_set1_ps((*x[n]).d[0]), t, _mm512_loadu_ps(acc[n].as_ptr()));
                    _mm512_storeu_ps(acc[n].as_mut_ptr(), out);
                }
            }
            (codes, integers) = (codes.after(next.bytes), integers.after(next.bytes));
            x = x.map(|x| x.wrapping_add(next.chunks));
        }
    }
}

/// Octet `4 t + Q` of a large block.
///
/// # Safety
/// As for [`large`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn octet<const N: usize, const ASK: bool, const PLAN: u8, const SCALES: u8, const Q: usize>(
    (source, integers): (&mut Source, Integers),
    x: [*const RowChunk; N],
    t: usize,
    sums: &mut [__m512i; N],
    ahead: &mut Ahead,
) {
    let groups = pairs(SCALES) / 4; // of an octet
    let o = t * 4 + Q;
    if ASK {
        ahead.octet();
    }
    // SAFETY: the caller's.
    unsafe {
        for g in 0..groups {
            let mut dots = [_mm512_setzero_si512(); N];
            let code = |i| code::<PLAN>(*source, [t, Q], i);
            match (groups, g) {
                (1, _) => dot_lines!(&mut dots, x, o, code, [0 1 2 3 4 5 6 7]),
                (_, 0) => dot_lines!(&mut dots, x, o, code, [0 1 2 3]),
                _ => dot_lines!(&mut dots, x, o, code, [4 5 6 7]),
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
unsafe fn small<const N: usize, const ASK: bool, const PLAN: u8, const MINS: bool>(
    step: &Step<'_>,
    rows: &[u32],
    acc: &mut [Sums],
    ahead: &mut Ahead,
) {
    let Step { x: of_x, record: Record { scheme, bytes, octets, start }, records, next } = *step;
    let rows: &[u32; N] = rows.first_chunk().expect("as many rows");
    let (mut codes, mins) = (Source::of(step.record), scheme.mins_at(octets));
    let mut floats = bytes.as_ptr();
    let mut x = of_x.pointers(start / CHUNK, rows);
    // SAFETY: the caller's: the chunks are there for each row; the records are whole.
    unsafe {
        let offset = _mm256_set1_epi32(-i32::from(scheme.offset));
        let mut x_sums = [[MaybeUninit::uninit(); N]; 2];
        for number in 0..records {
            if number == 0 || next.chunks > 0 {
                for plane in 0..of_x.planes {
                    for n in 0..N {
                        x_sums[plane][n].write(of_octets::<MINS>(&(*x[n].add(plane)).sums32, offset));
                    }
                }
            }
            let acc: &mut [Sums; N] = acc[number * next.sums..].first_chunk_mut().expect("sums for each row");
            let mut sums: [__m512; N] = std::array::from_fn(|n| _mm512_loadu_ps(acc[n].as_ptr()));
            for o in 0..octets {
                if ASK {
                    ahead.octet();
                }
                let w_d = halves(floats.add(o * PANEL_ROWS * 2));
                for plane in 0..of_x.planes {
                    let x = x.map(|x| x.add(plane));
                    let x_sums = x_sums[plane].each_ref().map(|sums| sums.assume_init_ref());
                    let mut dots = match MINS {
                        false => x_sums.map(|sums| _mm512_set1_epi32(word(sums, o))),
                        true => [_mm512_setzero_si512(); N],
                    };
                    let code = |i| code::<PLAN>(codes, [o / 4, o % 4], i);
                    dot_lines!(&mut dots, x, o, code, [0 1 2 3 4 5 6 7]);
                    for n in 0..N {
                        let mut t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(dots[n]));
                        if MINS {
                            let min = halves(floats.add(mins + o * PANEL_ROWS * 2));
                            t = _mm512_fmadd_ps(min, _mm512_set1_ps(word(x_sums[n], o)), t);
                        }
                        sums[n] = _mm512_fmadd_ps(_mm512_set1_ps(*(*x[n]).d.as_ptr().add(o)), t, sums[n]);
                    }
                }
            }
            for n in 0..N {
                _mm512_storeu_ps(acc[n].as_mut_ptr(), sums[n]);
            }
            (codes, floats) = (codes.after(next.bytes), floats.wrapping_add(next.bytes));
            x = x.map(|x| x.wrapping_add(next.chunks));
        }
    }
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
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn of_octets<const MINS: bool>(sums: &[i16; OCTETS], offset: __m256i) -> __m256i {
    // SAFETY: the places and the sums are eight each.
    let (places, sums) =
        unsafe { (_mm256_loadu_si256(const { &PLACES }.as_ptr().cast()), _mm_loadu_si128(sums.as_ptr().cast())) };
    let sums = _mm256_permutexvar_epi32(places, _mm256_cvtepi16_epi32(sums));
    match MINS {
        false => _mm256_mullo_epi32(sums, offset),
        true => _mm256_castps_si256(_mm256_cvtepi32_ps(sums)),
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
