//! Scales and minima of K-quants as they are stored, for kernels that read the codes there too. AVX-512.

use std::arch::x86_64::*;

use lingqu_tensor::Format;

use super::{Codes, Direct, PANEL_ROWS};

/// Scales and minima of stored blocks: see [`super::scales`].
///
/// # Safety
/// A [`Direct`] exists.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
pub(super) unsafe fn scales(direct: Direct<'_>, codes: &mut Codes) {
    let here: __mmask16 = ((1u32 << direct.rows) - 1) as __mmask16;
    // SAFETY: `Direct`: whole blocks.
    unsafe {
        match direct.format {
            Format::Q6K => scales_q6_k(direct, here, codes),
            _ => scales_q4_k(direct, here, codes),
        }
    }
}

/// A row's block; that of the last row for those beyond.
fn block_of(direct: Direct<'_>, row: usize) -> *const u8 {
    direct.data.as_ptr().wrapping_add(row.min(direct.rows - 1) * direct.row_bytes)
}

/// # Safety
/// As for [`scales`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
unsafe fn scales_q6_k(direct: Direct<'_>, here: __mmask16, codes: &mut Codes) {
    let mut d = [0u16; PANEL_ROWS];
    for row in 0..PANEL_ROWS {
        let block = block_of(direct, row);
        // SAFETY: `Direct`: a whole block.
        unsafe {
            let s = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(192).cast()));
            let s = if row < direct.rows { s } else { _mm256_setzero_si256() };
            _mm256_store_si256(codes.s[row].as_mut_ptr().cast(), s);
            d[row] = block.add(208).cast::<u16>().read_unaligned();
        }
    }
    // SAFETY: 16 halves, 16 floats.
    unsafe {
        let d = _mm512_cvtph_ps(_mm256_loadu_si256(d.as_ptr().cast()));
        _mm512_store_ps(codes.d[0].as_mut_ptr(), _mm512_maskz_mov_ps(here, d));
    }
}

/// # Safety
/// As for [`scales`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
unsafe fn scales_q4_k(direct: Direct<'_>, here: __mmask16, codes: &mut Codes) {
    // SAFETY: `Direct`: whole blocks.
    unsafe {
        // The first 16 bytes of each block: d, min, and 12 bytes of 6-bit integers. Four rows to a vector.
        let heads: [__m512i; 4] = std::array::from_fn(|four| {
            let head = |i: usize| _mm_loadu_si128(block_of(direct, four * 4 + i).cast());
            let (low, high) = (_mm256_set_m128i(head(1), head(0)), _mm256_set_m128i(head(3), head(2)));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        });
        let bytes = |a: [i8; 16]| _mm512_broadcast_i32x4(_mm_loadu_si128(a.as_ptr().cast()));
        // `k_scale_min` of lingqu_tensor is the definition: low parts of scales 0-3, 4-7, minima 0-3, 4-7 ...
        let low_at = bytes([4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15]);
        let low_shift = _mm512_broadcast_i32x4(_mm_set_epi32(4, 0, 0, 0));
        let low_mask = _mm512_broadcast_i32x4(_mm_set_epi32(0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f));
        // ... and the high two bits of the second halves.
        let high_at = bytes([-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11]);
        let high_mask = _mm512_set1_epi8(0x30);
        let mut of_mins = [_mm512_setzero_si512(); 4];
        for (four, head) in heads.iter().enumerate() {
            let low = _mm512_srlv_epi32(_mm512_shuffle_epi8(*head, low_at), low_shift);
            let high = _mm512_srli_epi16::<2>(_mm512_shuffle_epi8(*head, high_at));
            let integers = _mm512_or_si512(_mm512_and_si512(low, low_mask), _mm512_and_si512(high, high_mask));
            for i in 0..4 {
                let of_row = match i {
                    0 => _mm512_extracti32x4_epi32::<0>(integers),
                    1 => _mm512_extracti32x4_epi32::<1>(integers),
                    2 => _mm512_extracti32x4_epi32::<2>(integers),
                    _ => _mm512_extracti32x4_epi32::<3>(integers),
                };
                let row = four * 4 + i;
                let s = if row < direct.rows { of_row } else { _mm_setzero_si128() };
                _mm_store_si128(codes.s[row].as_mut_ptr().cast(), _mm_cvtepu8_epi16(s));
            }
            // Minima as words: four rows of four pairs.
            let to_low = _mm512_set_epi64(0, 0, 0, 0, 7, 5, 3, 1);
            let of_rows = _mm512_castsi512_si256(_mm512_permutexvar_epi64(to_low, integers));
            of_mins[four] = _mm512_cvtepu8_epi16(of_rows);
        }
        // [four, row, pair] to [pair, four, row], by words of a pair.
        for pair in 0..4 {
            let at = |base: i32| {
                let i = pair + base;
                _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 28 + i, 24 + i, 20 + i, 16 + i, 12 + i, 8 + i, 4 + i, i)
            };
            let halves: [__m256i; 2] = std::array::from_fn(|half| {
                let picked = _mm512_permutex2var_epi32(of_mins[2 * half], at(0), of_mins[2 * half + 1]);
                _mm512_castsi512_si256(picked)
            });
            let all = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
            let all = _mm512_maskz_mov_epi32(here, all);
            _mm512_store_si512(codes.m[pair as usize].as_mut_ptr().cast(), all);
        }
        // d and min: the first word of each row's four.
        let first = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 28, 24, 20, 16, 12, 8, 4, 0);
        let halves: [__m256i; 2] = std::array::from_fn(|half| {
            _mm512_castsi512_si256(_mm512_permutex2var_epi32(heads[2 * half], first, heads[2 * half + 1]))
        });
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
        let d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
        let min = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(both)));
        _mm512_store_ps(codes.d[0].as_mut_ptr(), _mm512_maskz_mov_ps(here, d));
        let min = _mm512_sub_ps(_mm512_setzero_ps(), min);
        _mm512_store_ps(codes.min[0].as_mut_ptr(), _mm512_maskz_mov_ps(here, min));
    }
}
