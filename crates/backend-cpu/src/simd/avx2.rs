//! AVX2 with FMA.

use std::arch::x86_64::*;

use super::{Dots, FLOAT_ROWS, LANES, LaneSums, PANEL_ROWS, Panel, QuantRows, Tile, Unpacked, X_GROUP, X_STEP};

/// # Safety
/// `Tile::check` must have passed.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tile(tile: Tile<'_>, sums: &mut [[f32; PANEL_ROWS]]) {
    // vpmaddubsw adds two products in 16 bits: bytes above 128 would overflow, so they are taken as signed.
    let wide = tile.scheme.offset == 128;
    // SAFETY: the caller's.
    unsafe {
        match (tile.scheme.group, tile.scheme.mins, wide) {
            (16, false, false) => by_rows::<16, false, false>(tile, sums),
            (16, true, false) => by_rows::<16, true, false>(tile, sums),
            (32, false, false) => by_rows::<32, false, false>(tile, sums),
            (32, true, false) => by_rows::<32, true, false>(tile, sums),
            (32, false, true) => by_rows::<32, false, true>(tile, sums),
            _ => unreachable!("no format has such groups"),
        }
    }
}

/// # Safety
/// `Tile::check` must have passed.
#[target_feature(enable = "avx2,fma")]
unsafe fn by_rows<const GROUP: usize, const MINS: bool, const WIDE: bool>(
    tile: Tile<'_>,
    sums: &mut [[f32; PANEL_ROWS]],
) {
    let (mut rows, mut sums) = (tile.rows, sums);
    // SAFETY: the row numbers were checked; each call gets as many sums as rows.
    unsafe {
        while let Some((some, rest)) = rows.split_first_chunk::<2>() {
            let (sums_some, sums_rest) = sums.split_first_chunk_mut::<2>().expect("a sum for each row");
            rows_n::<2, GROUP, MINS, WIDE>(&tile, some, sums_some);
            (rows, sums) = (rest, sums_rest);
        }
        for (row, sum) in rows.iter().zip(sums) {
            rows_n::<1, GROUP, MINS, WIDE>(&tile, std::array::from_ref(row), std::array::from_mut(sum));
        }
    }
}

/// Two vectors of 8 lanes for the 16 rows of a panel.
type Pair<T> = [T; 2];

/// # Safety
/// `Tile::check` must have passed for these rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_n<const N: usize, const GROUP: usize, const MINS: bool, const WIDE: bool>(
    tile: &Tile<'_>,
    rows: &[u32; N],
    sums: &mut [[f32; PANEL_ROWS]; N],
) {
    let Tile { scheme, panel, x: QuantRows { cols, q, r, d, sums: x_sums }, start, len, .. } = *tile;
    let at: [usize; N] = std::array::from_fn(|i| rows[i] as usize * cols + start);
    let offset = if WIDE { 0 } else { -i32::from(scheme.offset) };
    let ones = _mm256_set1_epi16(1);
    let flip = _mm256_set1_epi8(-128);
    // SAFETY: `check`: the stretch lies in the panel and in each row of q, r, d and sums.
    unsafe {
        let mut acc: [Pair<__m256>; N] =
            std::array::from_fn(|i| std::array::from_fn(|h| _mm256_loadu_ps(sums[i].as_ptr().add(h * 8))));
        for group in 0..len / GROUP {
            let mut x_sum = [0; N];
            if MINS || offset != 0 {
                for i in 0..N {
                    let sum = x_sums.as_ptr().add((at[i] + group * GROUP) / 16);
                    x_sum[i] = if GROUP == 16 { *sum } else { *sum + *sum.add(1) };
                }
            }
            let mut high = [[_mm256_setzero_si256(); 2]; N];
            let mut low: [Pair<__m256i>; N] = std::array::from_fn(|i| [_mm256_set1_epi32(offset * x_sum[i]); 2]);
            for quad in 0..GROUP / 4 {
                let w = panel.q.as_ptr().add(group * (GROUP / 4) + quad).cast::<__m256i>();
                for h in 0..2 {
                    let mut w = _mm256_load_si256(w.add(h));
                    let signed = _mm256_xor_si256(w, flip);
                    if WIDE {
                        w = _mm256_abs_epi8(signed);
                    }
                    for i in 0..N {
                        let x = at[i] + group * GROUP + quad * 4;
                        for (plane, dot) in [(q, &mut high[i][h]), (r, &mut low[i][h])] {
                            let mut x = _mm256_set1_epi32(plane.as_ptr().add(x).cast::<i32>().read_unaligned());
                            if WIDE {
                                x = _mm256_sign_epi8(x, signed);
                            }
                            let products = _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones);
                            *dot = _mm256_add_epi32(*dot, products);
                        }
                    }
                }
            }
            for i in 0..N {
                let x_d = *d.as_ptr().add((at[i] + group * GROUP) / X_GROUP);
                for h in 0..2 {
                    let steps = _mm256_mullo_epi32(high[i][h], _mm256_set1_epi32(X_STEP));
                    let dot = _mm256_add_epi32(steps, low[i][h]);
                    let w_d = _mm256_mul_ps(_mm256_load_ps(panel.d[group].as_ptr().add(h * 8)), _mm256_set1_ps(x_d));
                    acc[i][h] = _mm256_fmadd_ps(w_d, _mm256_cvtepi32_ps(dot), acc[i][h]);
                    if MINS {
                        let w_m = _mm256_load_ps(panel.m[group].as_ptr().add(h * 8));
                        acc[i][h] = _mm256_fmadd_ps(w_m, _mm256_set1_ps(x_d * x_sum[i] as f32), acc[i][h]);
                    }
                }
            }
        }
        for i in 0..N {
            for h in 0..2 {
                _mm256_storeu_ps(sums[i].as_mut_ptr().add(h * 8), acc[i][h]);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn interleave(unpacked: &Unpacked, panel: &mut Panel) {
    let q = unpacked.q.as_ptr().cast::<i32>(); // [16, 64] of 4 values
    let (d, m) = (unpacked.d.as_ptr().cast(), unpacked.m.as_ptr().cast());
    let to = panel.q.as_mut_ptr().cast::<i32>();
    for top in [0, 8] {
        for left in (0..64).step_by(8) {
            // SAFETY: 8 rows of 8 words at these strides lie in q and in the panel.
            unsafe { transpose(q.add(top * 64 + left), 64, to.add(left * 16 + top)) };
        }
        for left in [0, 8] {
            // SAFETY: both are 16 x 16 words.
            unsafe {
                transpose(words_at(d, top, left), 16, panel.d.as_mut_ptr().cast::<i32>().add(left * 16 + top));
                transpose(words_at(m, top, left), 16, panel.m.as_mut_ptr().cast::<i32>().add(left * 16 + top));
            }
        }
    }
}

/// Word `(top, left)` of 16 x 16.
///
/// # Safety
/// As for pointer addition.
unsafe fn words_at(from: *const i32, top: usize, left: usize) -> *const i32 {
    // SAFETY: the caller's.
    unsafe { from.add(top * 16 + left) }
}

/// Transposes 8 x 8 words into rows of stride 16.
///
/// # Safety
/// `from` must have 8 rows of 8 words at that stride, `to` 8 rows at stride 16.
#[target_feature(enable = "avx2")]
unsafe fn transpose(from: *const i32, stride: usize, to: *mut i32) {
    // SAFETY: the caller's.
    let a: [__m256i; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_si256(from.add(i * stride).cast()) });
    let b: [__m256i; 8] = std::array::from_fn(|i| match i % 2 {
        0 => _mm256_unpacklo_epi32(a[i], a[i + 1]),
        _ => _mm256_unpackhi_epi32(a[i - 1], a[i]),
    });
    // c[4 k + j]: rows 4k..4k+4, column j of each 128-bit lane.
    let c: [__m256i; 8] = std::array::from_fn(|i| {
        let (k, j) = (i / 4 * 4, i % 4);
        match j % 2 {
            0 => _mm256_unpacklo_epi64(b[k + j / 2], b[k + j / 2 + 2]),
            _ => _mm256_unpackhi_epi64(b[k + j / 2], b[k + j / 2 + 2]),
        }
    });
    for j in 0..4 {
        let low = _mm256_permute2x128_si256::<0x20>(c[j], c[4 + j]);
        let high = _mm256_permute2x128_si256::<0x31>(c[j], c[4 + j]);
        // SAFETY: the caller's.
        unsafe {
            _mm256_storeu_si256(to.add(j * 16).cast(), low);
            _mm256_storeu_si256(to.add((4 + j) * 16).cast(), high);
        }
    }
}

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
