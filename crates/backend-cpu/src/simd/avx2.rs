//! AVX2 with FMA.

use std::arch::x86_64::*;

use super::{CHUNK, Dots, FLOAT_ROWS, LANES, LaneSums, PANEL_ROWS, QuantRows, SMALL, Stretch, Sums, place_of};

/// # Safety
/// `Stretch::check` must have passed.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn stretch(stretch: Stretch<'_>, sums: &mut [Sums]) {
    // vpmaddubsw adds two products in 16 bits: bytes above 128 would overflow, so they are taken as signed.
    let wide = stretch.scheme.offset == 128;
    // SAFETY: the caller's.
    unsafe {
        match (stretch.scheme.block, wide) {
            (SMALL, false) => small_blocks::<false>(&stretch, sums),
            (SMALL, true) => small_blocks::<true>(&stretch, sums),
            (_, false) => large_block::<false>(&stretch, sums),
            (_, true) => large_block::<true>(&stretch, sums),
        }
    }
}

/// Sums of two products in 16 bits of 32 codes and activations; `WIDE`: of the codes less 128.
///
/// # Safety
/// 32 bytes must be at both.
#[target_feature(enable = "avx2")]
unsafe fn pairs_of_products<const WIDE: bool>(c: *const u8, x: *const i8) -> __m256i {
    // SAFETY: the caller's.
    let (c, x) = unsafe { (_mm256_loadu_si256(c.cast()), _mm256_loadu_si256(x.cast())) };
    if WIDE {
        let signed = _mm256_xor_si256(c, _mm256_set1_epi8(-128));
        return _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed));
    }
    _mm256_maddubs_epi16(c, x)
}

/// One block of 256 values with integer scales.
///
/// # Safety
/// `Stretch::check` must have passed.
#[target_feature(enable = "avx2,fma")]
unsafe fn large_block<const WIDE: bool>(stretch: &Stretch<'_>, acc: &mut [Sums]) {
    let Stretch { scheme, codes, x: QuantRows { planes, stride, v, d, sums16, sums32, .. }, start, rows, .. } =
        *stretch;
    let minus = _mm256_set1_epi16(if WIDE { 0 } else { -i16::from(scheme.offset) });
    for (&row, acc) in rows.iter().zip(acc) {
        for plane in 0..planes {
            let at = (row as usize * planes + plane) * stride + start;
            let (mut dots, mut of_min) = ([0; PANEL_ROWS], [0; PANEL_ROWS]);
            // SAFETY: `check`: the block lies in each row of v, d and sums; the codes are whole.
            let x_d = unsafe {
                let x_sums = match scheme.group {
                    16 => _mm256_loadu_si256(sums16.as_ptr().add(at / 16).cast()),
                    _ => _mm256_zextsi128_si256(_mm_loadu_si128(sums32.as_ptr().add(at / 32).cast())),
                };
                for lane in 0..PANEL_ROWS {
                    let s = codes.s[lane].as_ptr();
                    let of_offset = _mm256_mullo_epi16(_mm256_loadu_si256(s.cast()), minus);
                    let mut dot = _mm256_madd_epi16(of_offset, x_sums);
                    for i in 0..8 {
                        let (c, x) = (codes.c[lane].as_ptr().add(i * 32), v.as_ptr().add(at + place_of(i * 2)));
                        let scale = |at: usize| _mm_set1_epi16(*s.add(at / scheme.group));
                        let scales = _mm256_set_m128i(scale(i * 32 + 16), scale(i * 32));
                        dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs_of_products::<WIDE>(c, x), scales));
                    }
                    dots[lane] = add_lanes(dot);
                    if scheme.mins {
                        let m = codes.m.map(|pairs| pairs[lane]);
                        let m = _mm256_loadu_si256(m.as_ptr().cast());
                        of_min[lane] = add_lanes(_mm256_madd_epi16(m, x_sums));
                    }
                }
                *d.as_ptr().add(at / CHUNK)
            };
            for lane in 0..PANEL_ROWS {
                let sum = &mut acc[0][lane];
                *sum = (codes.d[0][lane] * x_d).mul_add(dots[lane] as f32, *sum);
                if scheme.mins {
                    *sum = (codes.min[0][lane] * x_d).mul_add(of_min[lane] as f32, *sum);
                }
            }
        }
    }
}

/// Blocks of 32 values.
///
/// # Safety
/// `Stretch::check` must have passed.
#[target_feature(enable = "avx2,fma")]
unsafe fn small_blocks<const WIDE: bool>(stretch: &Stretch<'_>, acc: &mut [Sums]) {
    let Stretch { scheme, codes, x: QuantRows { planes, stride, v, d, sums32, .. }, start, len, rows, .. } = *stretch;
    let offset = if WIDE { 0 } else { i32::from(scheme.offset) };
    let ones = _mm256_set1_epi16(1);
    for (&row, acc) in rows.iter().zip(acc) {
        for block in 0..len / SMALL {
            for plane in 0..planes {
                let at = (row as usize * planes + plane) * stride + start + block * SMALL;
                let x_sum = i32::from(sums32[at / 32]);
                let mut dots = [-offset * x_sum; PANEL_ROWS];
                for lane in 0..PANEL_ROWS {
                    // SAFETY: `check`: the block lies in each row of v; the codes are whole.
                    let pairs = unsafe {
                        let (c, x) = (codes.c[lane].as_ptr().add(block * SMALL), v.as_ptr().add(at));
                        pairs_of_products::<WIDE>(c, x)
                    };
                    dots[lane] += add_lanes(_mm256_madd_epi16(pairs, ones));
                }
                let x_d = d[at / SMALL];
                for lane in 0..PANEL_ROWS {
                    let sum = &mut acc[block % 2][lane];
                    *sum = (codes.d[block][lane] * x_d).mul_add(dots[lane] as f32, *sum);
                    if scheme.mins {
                        *sum = (codes.min[block][lane] * x_d).mul_add(x_sum as f32, *sum);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn add_lanes(a: __m256i) -> i32 {
    let a = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
    let a = _mm_add_epi32(a, _mm_shuffle_epi32::<0b01_00_11_10>(a));
    _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32::<0b10_11_00_01>(a)))
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
