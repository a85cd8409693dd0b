//! AVX2 with FMA. A lane is a weight row; activations are broadcast.

use std::arch::x86_64::*;

use super::{CHUNK, Codes, Dots, FLOAT_ROWS, LANES, LaneSums, OCTET, QuantRows, Run, Sums, pair_place};
use crate::panels::Record;

/// # Safety
/// `Run::check` must have passed; `codes` must hold the record.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn record(run: Run<'_>, record: Record<'_>, codes: &Codes, sums: &mut [Sums]) {
    // vpmaddubsw adds two products in 16 bits: bytes above 128 would overflow, so they are taken as signed.
    let wide = record.scheme.offset == 128;
    for (&row, acc) in run.rows.iter().zip(sums) {
        // SAFETY: the caller's.
        unsafe {
            match (record.scheme.block, wide) {
                (CHUNK, false) => large::<false>(run.x, record, codes, row, acc),
                (CHUNK, true) => large::<true>(run.x, record, codes, row, acc),
                (_, false) => small::<false>(run.x, record, codes, row, acc),
                (_, true) => small::<true>(run.x, record, codes, row, acc),
            }
        }
    }
}

/// Dots of `lines` lines of codes from `first` on (`WIDE`: of the codes less 128), for 8 rows from `lane` on.
///
/// # Safety
/// As many activations as the lines have columns must be at `x`; the lines must be there and even in number.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn line_dots<const WIDE: bool>(codes: &Codes, [first, lines]: [usize; 2], lane: usize, x: *const i8) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let mut dots = _mm256_setzero_si256();
    for i in (0..lines).step_by(2) {
        let products = |i: usize| {
            // SAFETY: the caller's.
            let (c, x) = unsafe {
                let c = _mm256_load_si256(codes.c[first + i].as_ptr().add(lane * 4).cast());
                (c, _mm256_set1_epi32(x.add(i * 4).cast::<i32>().read_unaligned()))
            };
            if WIDE {
                let signed = _mm256_xor_si256(c, _mm256_set1_epi8(-128));
                return _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed));
            }
            _mm256_maddubs_epi16(c, x)
        };
        if WIDE {
            // 128 * 127 twice is all that 16 bits hold.
            let two = _mm256_add_epi32(_mm256_madd_epi16(products(i), ones), _mm256_madd_epi16(products(i + 1), ones));
            dots = _mm256_add_epi32(dots, two);
        } else {
            // 63 * 127 four times.
            let two = _mm256_add_epi16(products(i), products(i + 1));
            dots = _mm256_add_epi32(dots, _mm256_madd_epi16(two, ones));
        }
    }
    dots
}

/// One block of 256 values with integer scales.
///
/// # Safety
/// As for [`record`].
#[target_feature(enable = "avx2,fma")]
unsafe fn large<const WIDE: bool>(x: QuantRows<'_>, record: Record<'_>, codes: &Codes, row: u32, acc: &mut Sums) {
    let QuantRows { planes, stride, v, d, sums16, sums32, .. } = x;
    let Record { scheme, start, .. } = record;
    let offset = if WIDE { 0 } else { i32::from(scheme.offset) };
    for plane in 0..planes {
        let at = (row as usize * planes + plane) * stride + start;
        let sums = if scheme.group == 16 { &sums16[at / 16..] } else { &sums32[at / 32..] };
        let x_d = _mm256_set1_ps(d[at / CHUNK]);
        for lane in [0, 8] {
            let (mut i, mut j) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            // SAFETY: `check`: the block lies in each row of v; the codes are whole.
            unsafe {
                let load = |from: *const i32| _mm256_loadu_si256(from.cast());
                for group in 0..CHUNK / scheme.group {
                    let lines = scheme.group / 4;
                    let x = v.as_ptr().add(at + group * scheme.group);
                    let mut dot = line_dots::<WIDE>(codes, [group * lines, lines], lane, x);
                    if offset != 0 {
                        let minus = _mm256_set1_epi32(offset * i32::from(sums[pair_place(group)]));
                        dot = _mm256_sub_epi32(dot, minus);
                    }
                    let s = load(codes.s[group].as_ptr().add(lane));
                    i = _mm256_add_epi32(i, _mm256_mullo_epi32(dot, s));
                }
                let mut t = _mm256_mul_ps(_mm256_loadu_ps(codes.d[0].as_ptr().add(lane)), _mm256_cvtepi32_ps(i));
                if scheme.mins {
                    for (pair, sums) in sums[..CHUNK / scheme.group].as_chunks::<2>().0.iter().enumerate() {
                        let m = load(codes.m[pair].as_ptr().add(lane).cast());
                        let x_sums = _mm256_set1_epi32(sums.as_ptr().cast::<i32>().read_unaligned());
                        j = _mm256_add_epi32(j, _mm256_madd_epi16(m, x_sums));
                    }
                    let min = _mm256_loadu_ps(codes.min[0].as_ptr().add(lane));
                    t = _mm256_fmadd_ps(min, _mm256_cvtepi32_ps(j), t);
                }
                let to = acc.as_mut_ptr().add(lane);
                _mm256_storeu_ps(to, _mm256_fmadd_ps(x_d, t, _mm256_loadu_ps(to)));
            }
        }
    }
}

/// Blocks of 32 values.
///
/// # Safety
/// As for [`record`].
#[target_feature(enable = "avx2,fma")]
unsafe fn small<const WIDE: bool>(x: QuantRows<'_>, record: Record<'_>, codes: &Codes, row: u32, acc: &mut Sums) {
    let QuantRows { planes, stride, v, d, sums32, .. } = x;
    let Record { scheme, octets, start, .. } = record;
    let offset = if WIDE { 0 } else { i32::from(scheme.offset) };
    for o in 0..octets {
        for plane in 0..planes {
            let at = (row as usize * planes + plane) * stride + start + o * OCTET;
            let x_sum = i32::from(sums32[(at - o * OCTET) / OCTET + pair_place(o)]);
            let x_d = _mm256_set1_ps(d[at / OCTET]);
            for lane in [0, 8] {
                // SAFETY: `check`: the block lies in each row of v; the codes are whole.
                unsafe {
                    let dot = line_dots::<WIDE>(codes, [o * 8, 8], lane, v.as_ptr().add(at));
                    let dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(offset * x_sum));
                    let w_d = _mm256_loadu_ps(codes.d[o].as_ptr().add(lane));
                    let mut t = _mm256_mul_ps(w_d, _mm256_cvtepi32_ps(dot));
                    if scheme.mins {
                        let min = _mm256_loadu_ps(codes.min[o].as_ptr().add(lane));
                        t = _mm256_fmadd_ps(min, _mm256_set1_ps(x_sum as f32), t);
                    }
                    let to = acc.as_mut_ptr().add(lane);
                    _mm256_storeu_ps(to, _mm256_fmadd_ps(x_d, t, _mm256_loadu_ps(to)));
                }
            }
        }
    }
}

/// Two vectors of 8 lanes.
type Pair<T> = [T; 2];

/// # Safety
/// `Dots::check` must have passed.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots(dots: Dots<'_>, sums: &mut [LaneSums]) {
    let (mut rows, mut sums) = (dots.rows, sums);
    // SAFETY: the row numbers were checked; each call gets as many sums as rows.
    unsafe {
        while let Some((some, rest)) = rows.split_first_chunk::<2>() {
            let (sums_some, sums_rest) = sums.split_first_chunk_mut::<2>().expect("sums for each row");
            dots_n::<2, 2>(&dots, some, sums_some);
            (rows, sums) = (rest, sums_rest);
        }
        for (row, sums) in rows.iter().zip(sums) {
            dots_n::<1, 4>(&dots, std::array::from_ref(row), std::array::from_mut(sums));
        }
    }
}

/// `W` weight rows at a time against `N` rows.
///
/// # Safety
/// `Dots::check` must have passed for these rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn dots_n<const N: usize, const W: usize>(dots: &Dots<'_>, rows: &[u32; N], sums: &mut [LaneSums; N]) {
    let Dots { w, w_stride, x, x_stride, start, len, .. } = *dots;
    // SAFETY: `check`: the stretch lies in each row of w and x.
    unsafe {
        let x: [*const f32; N] = std::array::from_fn(|i| x.as_ptr().add(rows[i] as usize * x_stride + start));
        for first in (0..FLOAT_ROWS).step_by(W) {
            let w = w.as_ptr().add(first * w_stride);
            let mut acc: [[Pair<__m256>; W]; N] = std::array::from_fn(|i| {
                std::array::from_fn(|k| {
                    std::array::from_fn(|h| _mm256_loadu_ps(sums[i][first + k].as_ptr().add(h * 8)))
                })
            });
            for at in (0..len).step_by(LANES) {
                for h in 0..2 {
                    let x: [__m256; N] = std::array::from_fn(|i| _mm256_loadu_ps(x[i].add(at + h * 8)));
                    for k in 0..W {
                        let w = _mm256_loadu_ps(w.add(k * w_stride + at + h * 8));
                        for i in 0..N {
                            acc[i][k][h] = _mm256_fmadd_ps(w, x[i], acc[i][k][h]);
                        }
                    }
                }
            }
            for i in 0..N {
                for k in 0..W {
                    for h in 0..2 {
                        _mm256_storeu_ps(sums[i][first + k].as_mut_ptr().add(h * 8), acc[i][k][h]);
                    }
                }
            }
        }
    }
}
