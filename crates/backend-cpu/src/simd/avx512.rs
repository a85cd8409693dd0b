//! AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::{Dots, FLOAT_ROWS, LANES, LaneSums, PANEL_ROWS, Panel, QuantRows, Tile, Unpacked, X_GROUP, X_STEP};

/// # Safety
/// `Tile::check` must have passed.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn tile(tile: Tile<'_>, sums: &mut [[f32; PANEL_ROWS]]) {
    // SAFETY: the caller's.
    unsafe {
        match (tile.scheme.group, tile.scheme.mins) {
            (16, false) => by_rows::<16, false>(tile, sums),
            (16, true) => by_rows::<16, true>(tile, sums),
            (32, false) => by_rows::<32, false>(tile, sums),
            (32, true) => by_rows::<32, true>(tile, sums),
            _ => unreachable!("groups are of 16 or 32 values"),
        }
    }
}

/// # Safety
/// `Tile::check` must have passed.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn by_rows<const GROUP: usize, const MINS: bool>(tile: Tile<'_>, sums: &mut [[f32; PANEL_ROWS]]) {
    let (mut rows, mut sums) = (tile.rows, sums);
    // SAFETY: the row numbers were checked; each call gets as many sums as rows.
    unsafe {
        while let Some((some, rest)) = rows.split_first_chunk::<8>() {
            let (sums_some, sums_rest) = sums.split_first_chunk_mut::<8>().expect("a sum for each row");
            rows_n::<8, GROUP, MINS>(&tile, some, sums_some);
            (rows, sums) = (rest, sums_rest);
        }
        while let Some((some, rest)) = rows.split_first_chunk::<4>() {
            let (sums_some, sums_rest) = sums.split_first_chunk_mut::<4>().expect("a sum for each row");
            rows_n::<4, GROUP, MINS>(&tile, some, sums_some);
            (rows, sums) = (rest, sums_rest);
        }
        for (row, sum) in rows.iter().zip(sums) {
            rows_n::<1, GROUP, MINS>(&tile, std::array::from_ref(row), std::array::from_mut(sum));
        }
    }
}

/// # Safety
/// `Tile::check` must have passed for these rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn rows_n<const N: usize, const GROUP: usize, const MINS: bool>(
    tile: &Tile<'_>,
    rows: &[u32; N],
    sums: &mut [[f32; PANEL_ROWS]; N],
) {
    let Tile { scheme, panel, x: QuantRows { cols, q, r, d, sums: x_sums }, start, len, .. } = *tile;
    let at: [usize; N] = std::array::from_fn(|i| rows[i] as usize * cols + start);
    let offset = -i32::from(scheme.offset);
    // SAFETY: `check`: the stretch lies in the panel and in each row of q, r, d and sums.
    unsafe {
        let mut acc: [__m512; N] = std::array::from_fn(|i| _mm512_loadu_ps(sums[i].as_ptr()));
        for group in 0..len / GROUP {
            let mut x_sum = [0; N];
            if MINS || offset != 0 {
                for i in 0..N {
                    let sum = x_sums.as_ptr().add((at[i] + group * GROUP) / 16);
                    x_sum[i] = if GROUP == 16 { *sum } else { *sum + *sum.add(1) };
                }
            }
            let mut high = [_mm512_setzero_si512(); N];
            let mut low: [__m512i; N] = std::array::from_fn(|i| _mm512_set1_epi32(offset * x_sum[i]));
            for quad in 0..GROUP / 4 {
                let w = _mm512_load_si512(panel.q.as_ptr().add(group * (GROUP / 4) + quad).cast());
                for i in 0..N {
                    let x = at[i] + group * GROUP + quad * 4;
                    let q = q.as_ptr().add(x).cast::<i32>().read_unaligned();
                    let r = r.as_ptr().add(x).cast::<i32>().read_unaligned();
                    high[i] = _mm512_dpbusd_epi32(high[i], w, _mm512_set1_epi32(q));
                    low[i] = _mm512_dpbusd_epi32(low[i], w, _mm512_set1_epi32(r));
                }
            }
            let w_d = _mm512_load_ps(panel.d[group].as_ptr());
            for i in 0..N {
                let x_d = *d.as_ptr().add((at[i] + group * GROUP) / X_GROUP);
                let dot = _mm512_add_epi32(_mm512_mullo_epi32(high[i], _mm512_set1_epi32(X_STEP)), low[i]);
                acc[i] = _mm512_fmadd_ps(_mm512_mul_ps(w_d, _mm512_set1_ps(x_d)), _mm512_cvtepi32_ps(dot), acc[i]);
                if MINS {
                    let w_m = _mm512_load_ps(panel.m[group].as_ptr());
                    acc[i] = _mm512_fmadd_ps(w_m, _mm512_set1_ps(x_d * x_sum[i] as f32), acc[i]);
                }
            }
        }
        for i in 0..N {
            _mm512_storeu_ps(sums[i].as_mut_ptr(), acc[i]);
        }
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn interleave(unpacked: &Unpacked, panel: &mut Panel) {
    let q = unpacked.q.as_ptr().cast::<i32>(); // [16, 64] of 4 values
    for block in 0..4 {
        // SAFETY: 16 rows of 16 words at stride 64 lie in q; 16 x 16 words in the panel's block.
        unsafe { transpose(q.add(block * 16), 64, panel.q.as_mut_ptr().cast::<i32>().add(block * 256)) };
    }
    // SAFETY: both are 16 x 16 words.
    unsafe {
        transpose(unpacked.d.as_ptr().cast(), 16, panel.d.as_mut_ptr().cast());
        transpose(unpacked.m.as_ptr().cast(), 16, panel.m.as_mut_ptr().cast());
    }
}

/// Transposes 16 x 16 words.
///
/// # Safety
/// `from` must have 16 rows of 16 words at that stride, `to` 256 words at 64 bytes' alignment.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(from: *const i32, stride: usize, to: *mut i32) {
    // SAFETY: the caller's.
    let a: [__m512i; 16] = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(from.add(i * stride).cast()) });
    // Within 128-bit lanes: pairs of rows, then fours.
    let b: [__m512i; 16] = std::array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_epi32(a[i], a[i + 1]),
        _ => _mm512_unpackhi_epi32(a[i - 1], a[i]),
    });
    // c[4 k + j]: rows 4k..4k+4, column j of each lane.
    let c: [__m512i; 16] = std::array::from_fn(|i| {
        let (k, j) = (i / 4 * 4, i % 4);
        match j % 2 {
            0 => _mm512_unpacklo_epi64(b[k + j / 2], b[k + j / 2 + 2]),
            _ => _mm512_unpackhi_epi64(b[k + j / 2], b[k + j / 2 + 2]),
        }
    });
    for j in 0..4 {
        // Lanes of four vectors to columns j, 4 + j, 8 + j, 12 + j.
        let low_01 = _mm512_shuffle_i32x4::<0x44>(c[j], c[4 + j]);
        let high_01 = _mm512_shuffle_i32x4::<0xee>(c[j], c[4 + j]);
        let low_23 = _mm512_shuffle_i32x4::<0x44>(c[8 + j], c[12 + j]);
        let high_23 = _mm512_shuffle_i32x4::<0xee>(c[8 + j], c[12 + j]);
        let columns = [
            _mm512_shuffle_i32x4::<0x88>(low_01, low_23),
            _mm512_shuffle_i32x4::<0xdd>(low_01, low_23),
            _mm512_shuffle_i32x4::<0x88>(high_01, high_23),
            _mm512_shuffle_i32x4::<0xdd>(high_01, high_23),
        ];
        for (k, column) in columns.into_iter().enumerate() {
            // SAFETY: the caller's; row `4 k + j` of 16.
            unsafe { _mm512_store_si512(to.add((4 * k + j) * 16).cast(), column) };
        }
    }
}

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
