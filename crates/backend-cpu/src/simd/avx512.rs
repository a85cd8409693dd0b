//! AVX-512 with VNNI.

use std::arch::x86_64::*;

use lingqu_tensor::Format;

use super::{
    Ahead, CHUNK, Codes, Direct, Dots, FLOAT_ROWS, LANES, LaneSums, PANEL_ROWS, QuantRows, SMALL, Stretch, Sums,
    place_of,
};

/// Weight rows of small blocks whose sums share a vector.
const HALF: usize = 8;

/// # Safety
/// `Stretch::check` must have passed.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn stretch(stretch: Stretch<'_>, sums: &mut [Sums]) {
    // SAFETY: the caller's.
    unsafe {
        match (stretch.scheme.block, stretch.scheme.offset, stretch.scheme.mins) {
            (SMALL, _, false) => small_blocks::<false>(&stretch, sums),
            (SMALL, _, true) => small_blocks::<true>(&stretch, sums),
            (_, 0, true) => by_rows::<NO_OFFSET, true>(&stretch, sums),
            (_, 0, false) => by_rows::<NO_OFFSET, false>(&stretch, sums),
            (_, 128, false) => by_rows::<WIDE, false>(&stretch, sums),
            (_, _, false) => by_rows::<OFFSET, false>(&stretch, sums),
            (_, _, true) => unreachable!("no such format has an offset and minima"),
        }
    }
}

/// How the codes of a large block are offset. `WIDE`: bytes too large for products summed in 16 bits.
const NO_OFFSET: u8 = 0;
const OFFSET: u8 = 1;
const WIDE: u8 = 2;

/// # Safety
/// `Stretch::check` must have passed.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn by_rows<const KIND: u8, const MINS: bool>(stretch: &Stretch<'_>, sums: &mut [Sums]) {
    let (pairs, rest) = stretch.rows.as_chunks::<2>();
    let (sums_pairs, sums_rest) = sums.as_chunks_mut::<2>();
    // SAFETY: the row numbers were checked.
    unsafe {
        let (mut place, from) = Place::of(stretch.codes, stretch.direct);
        for (rows, sums) in pairs.iter().zip(sums_pairs) {
            large_block::<2, KIND, MINS>(stretch, (place, from), rows, sums);
            place.ahead = None;
        }
        for (row, sums) in rest.iter().zip(sums_rest) {
            large_block::<1, KIND, MINS>(stretch, (place, from), std::array::from_ref(row), std::array::from_mut(sums));
        }
    }
}

/// For each word of codes `2 i, 2 i + 1` as the kernels take them (see [`super::place_of`]), its group; by quarters of
/// the block. The first table is for groups of 16.
pub(super) static GROUPS: [[[u16; 32]; 4]; 2] = {
    let mut groups = [[[0; 32]; 4]; 2];
    let mut sixteen = 0;
    while sixteen < 16 {
        let first = place_of(sixteen) / 2;
        let mut i = first;
        while i < first + 8 {
            groups[0][i / 32][i % 32] = sixteen as u16;
            groups[1][i / 32][i % 32] = (sixteen / 2) as u16;
            i += 1;
        }
        sixteen += 1;
    }
    groups
};

/// Where the codes of a block lie: in [`Codes`], or in stored blocks.
#[derive(Clone, Copy)]
pub(super) struct Place {
    data: *const u8,
    row_bytes: usize,
    last_row: usize,
    ahead: Option<Ahead>,
}

pub(super) const CODES: u8 = 0;
pub(super) const Q4_K: u8 = 1;
pub(super) const Q6_K: u8 = 2;

impl Place {
    /// The place, and which of the three it is.
    pub fn of(codes: &Codes, direct: Option<Direct<'_>>) -> (Self, u8) {
        match direct {
            None => (Self { data: codes.c.as_ptr().cast(), row_bytes: CHUNK, last_row: 15, ahead: None }, CODES),
            Some(Direct { format, data, row_bytes, rows, ahead }) => {
                let place = Self { data: data.as_ptr(), row_bytes, last_row: rows - 1, ahead: Some(ahead) };
                (place, if format == Format::Q4K { Q4_K } else { Q6_K })
            }
        }
    }

    /// The block of a row; that of the last for rows that are not there, whose scales are 0.
    #[inline(always)]
    pub fn block(self, row: usize) -> *const u8 {
        self.data.wrapping_add(row.min(self.last_row) * self.row_bytes)
    }

    /// Asks for what comes after this stretch, a sixteenth at a time.
    #[inline(always)]
    pub fn fetch_ahead<const FROM: u8>(self, row: usize) {
        if let Some(ahead) = self.ahead {
            match FROM {
                Q4_K => ahead.fetch::<3>(row),
                _ => ahead.fetch::<4>(row),
            }
        }
    }
}

/// Codes of a quarter of a block, in the order of [`super::place_of`].
///
/// # Safety
/// The block must be a [`Place`]'s, and `FROM` what [`Place::of`] gave.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) unsafe fn quarter<const FROM: u8>(block: *const u8, quarter: usize) -> __m512i {
    let nibble = _mm512_set1_epi8(15);
    let (half, odd) = (quarter / 2, quarter % 2);
    // SAFETY: the caller's.
    unsafe {
        match FROM {
            CODES => {
                let group = |i: usize| _mm256_loadu_si256(block.add(half * 128 + (odd + 2 * i) * 32).cast());
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(group(0)), group(1))
            }
            Q4_K => {
                let both = _mm512_loadu_si512(block.add(16 + half * 64).cast());
                _mm512_and_si512(if odd == 0 { both } else { _mm512_srli_epi16::<4>(both) }, nibble)
            }
            _ => {
                // Low nibbles of 32 bytes, then their high nibbles; the two bits wanted to bits 4 and 5.
                let low = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(half * 64 + odd * 32).cast()));
                let low = _mm512_srlv_epi64(low, _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0));
                let high = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(128 + half * 32).cast()));
                let turns = match odd {
                    0 => _mm512_set_epi64(0, 0, 0, 0, 4, 4, 4, 4),
                    _ => _mm512_set_epi64(62, 62, 62, 62, 2, 2, 2, 2),
                };
                let high = _mm512_rolv_epi64(high, turns);
                const PICK: i32 = 0xca; // a ? b : c
                let codes = _mm512_ternarylogic_epi32::<PICK>(nibble, low, high);
                _mm512_and_si512(codes, _mm512_set1_epi8(63))
            }
        }
    }
}

/// One block of 256 values with integer scales: 16 weight rows against `N` rows.
///
/// # Safety
/// `Stretch::check` must have passed for these rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn large_block<const N: usize, const KIND: u8, const MINS: bool>(
    stretch: &Stretch<'_>,
    (place, from): (Place, u8),
    rows: &[u32; N],
    acc: &mut [Sums; N],
) {
    // SAFETY: the caller's.
    unsafe {
        match from {
            CODES => large_block_of::<N, KIND, MINS, CODES>(stretch, place, rows, acc),
            Q4_K => large_block_of::<N, KIND, MINS, Q4_K>(stretch, place, rows, acc),
            _ => large_block_of::<N, KIND, MINS, Q6_K>(stretch, place, rows, acc),
        }
    }
}

/// # Safety
/// `Stretch::check` must have passed for these rows; the place must be the stretch's.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn large_block_of<const N: usize, const KIND: u8, const MINS: bool, const FROM: u8>(
    stretch: &Stretch<'_>,
    place: Place,
    rows: &[u32; N],
    acc: &mut [Sums; N],
) {
    let Stretch { scheme, codes, x: QuantRows { planes, stride, v, d, sums16, sums32, .. }, start, .. } = *stretch;
    let Codes { s, m, d: w_d, min: w_min, .. } = codes;
    let of_16 = scheme.group == 16;
    // SAFETY: `check`: the block lies in each row of v, d and sums; the codes are whole.
    unsafe {
        let groups = &GROUPS[usize::from(!of_16)];
        let groups: [__m512i; 4] = std::array::from_fn(|i| _mm512_loadu_si512(groups[i].as_ptr().cast()));
        for plane in 0..planes {
            let at: [usize; N] = std::array::from_fn(|n| (rows[n] as usize * planes + plane) * stride + start);
            let mut dots = [[_mm512_setzero_si512(); PANEL_ROWS]; N];
            for r in 0..PANEL_ROWS {
                if plane == 0 {
                    place.fetch_ahead::<FROM>(r);
                }
                let block = place.block(r);
                let s = _mm512_zextsi256_si512(_mm256_load_si256(s[r].as_ptr().cast()));
                let mut dot = [_mm512_setzero_si512(); N];
                for quarter in 0..4 {
                    let c = self::quarter::<FROM>(block, quarter);
                    let s = _mm512_permutexvar_epi16(groups[quarter], s);
                    for n in 0..N {
                        let x = v.as_ptr().add(at[n] + quarter * 64);
                        if KIND == WIDE {
                            dot[n] = wide(dot[n], c, x, s, scheme.offset);
                        } else {
                            let products = _mm512_maddubs_epi16(c, _mm512_loadu_si512(x.cast()));
                            dot[n] = _mm512_dpwssd_epi32(dot[n], products, s);
                        }
                    }
                }
                if KIND == OFFSET {
                    let minus = _mm512_mullo_epi16(s, _mm512_set1_epi16(-i16::from(scheme.offset)));
                    for n in 0..N {
                        let x_sums = _mm256_loadu_si256(sums16.as_ptr().add(at[n] / 16).cast());
                        dot[n] = _mm512_dpwssd_epi32(dot[n], minus, _mm512_zextsi256_si512(x_sums));
                    }
                }
                (0..N).for_each(|n| dots[n][r] = dot[n]);
            }
            for n in 0..N {
                let d = _mm512_set1_ps(*d.as_ptr().add(at[n] / CHUNK));
                let to = acc[n][0].as_mut_ptr();
                let [low, high] = [reduce(dots[n].as_ptr()), reduce(dots[n].as_ptr().add(8))];
                let dot = _mm512_add_epi32(
                    _mm512_shuffle_i64x2::<0b01_00_01_00>(low, high),
                    _mm512_shuffle_i64x2::<0b11_10_11_10>(low, high),
                );
                let scale = _mm512_mul_ps(_mm512_load_ps(w_d[0].as_ptr()), d);
                let mut acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), _mm512_loadu_ps(to));
                if MINS {
                    let (sums, pairs) = if of_16 { (sums16, 8) } else { (sums32, 4) };
                    let sums = sums.as_ptr().add(at[n] / scheme.group).cast::<i32>();
                    let mut of_min = _mm512_setzero_si512();
                    for (pair, m) in m[..pairs].iter().enumerate() {
                        let x_sums = _mm512_set1_epi32(sums.add(pair).read_unaligned());
                        of_min = _mm512_dpwssd_epi32(of_min, _mm512_load_si512(m.as_ptr().cast()), x_sums);
                    }
                    let scale = _mm512_mul_ps(_mm512_load_ps(w_min[0].as_ptr()), d);
                    acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(of_min), acc);
                }
                _mm512_storeu_ps(to, acc);
            }
        }
    }
}

/// Adds products of 64 codes, less their offset, whose sums by two would not fit 16 bits.
///
/// # Safety
/// 64 activations must be at `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn wide(dot: __m512i, c: __m512i, x: *const i8, s: __m512i, offset: u8) -> __m512i {
    // SAFETY: the caller's.
    let x = unsafe { _mm512_loadu_si512(x.cast()) };
    // Even bytes, then odd ones, as words.
    let low = |a: __m512i| _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a));
    let c = [_mm512_and_si512(c, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(c)];
    let x = [low(x), _mm512_srai_epi16::<8>(x)];
    let offset = _mm512_set1_epi16(offset.into());
    let w = c.map(|c| _mm512_mullo_epi16(_mm512_sub_epi16(c, offset), s));
    _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(dot, w[0], x[0]), w[1], x[1])
}

/// Blocks of 32 values, two at a time, against each row.
///
/// # Safety
/// `Stretch::check` must have passed.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn small_blocks<const MINS: bool>(stretch: &Stretch<'_>, acc: &mut [Sums]) {
    let Stretch { scheme, codes, x: QuantRows { planes, stride, v, d, sums32, .. }, start, len, rows, .. } = *stretch;
    let offset = -i32::from(scheme.offset);
    for pair in 0..len.div_ceil(64) {
        // The second block may lie beyond the stretch, where the weights' scales are anything.
        let used: __mmask16 = if pair * 64 + SMALL < len { 0xffff } else { 0x00ff };
        for first in [0, HALF] {
            // SAFETY: `check`: the pair lies in each padded row of v, d and sums; the codes are whole.
            unsafe {
                let c: [__m512i; HALF] =
                    std::array::from_fn(|r| _mm512_loadu_si512(codes.c[first + r].as_ptr().add(pair * 64).cast()));
                let w_d = two_blocks(&codes.d, pair, first);
                for (&row, acc) in rows.iter().zip(&mut *acc) {
                    let [even, odd] = acc;
                    let to = [even.as_mut_ptr().add(first), odd.as_mut_ptr().add(first)];
                    let mut acc = join(_mm256_loadu_ps(to[0]), _mm256_loadu_ps(to[1]));
                    for plane in 0..planes {
                        let at = (row as usize * planes + plane) * stride + start + pair * 64;
                        let x = _mm512_loadu_si512(v.as_ptr().add(at).cast());
                        let dots = c.map(|c| _mm512_dpbusd_epi32(_mm512_setzero_si512(), c, x));
                        let mut dots = reduce(dots.as_ptr());
                        let x_sums: [i16; 2] = *sums32.as_ptr().add(at / 32).cast();
                        let x_sums = x_sums.map(i32::from);
                        let x_sums = _mm512_mask_set1_epi32(_mm512_set1_epi32(x_sums[0]), 0xff00, x_sums[1]);
                        if offset != 0 {
                            let minus = _mm512_mullo_epi32(x_sums, _mm512_set1_epi32(offset));
                            dots = _mm512_add_epi32(dots, minus);
                        }
                        let d = d.as_ptr().add(at / SMALL);
                        let d = _mm512_mask_mov_ps(_mm512_set1_ps(*d), 0xff00, _mm512_set1_ps(*d.add(1)));
                        acc = _mm512_mask3_fmadd_ps(_mm512_mul_ps(w_d, d), _mm512_cvtepi32_ps(dots), acc, used);
                        if MINS {
                            let scale = _mm512_mul_ps(two_blocks(&codes.min, pair, first), d);
                            acc = _mm512_mask3_fmadd_ps(scale, _mm512_cvtepi32_ps(x_sums), acc, used);
                        }
                    }
                    _mm256_storeu_ps(to[0], _mm512_castps512_ps256(acc));
                    _mm256_storeu_ps(to[1], _mm512_extractf32x8_ps::<1>(acc));
                }
            }
        }
    }
}

/// Scales of 8 rows in the two blocks of a pair.
#[target_feature(enable = "avx512f,avx512dq")]
fn two_blocks(scales: &[[f32; 16]; 8], pair: usize, first: usize) -> __m512 {
    // SAFETY: 8 of 16 values; `first` is 0 or 8.
    let of = |block: usize| unsafe { _mm256_loadu_ps(scales[block][first..].as_ptr()) };
    join(of(pair * 2), of(pair * 2 + 1))
}

#[target_feature(enable = "avx512f,avx512dq")]
fn join(low: __m256, high: __m256) -> __m512 {
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
}

/// Adds up 8 vectors: the sums of their lower halves, in order, then those of their upper halves.
///
/// # Safety
/// They must be there.
#[target_feature(enable = "avx512f")]
unsafe fn reduce(a: *const __m512i) -> __m512i {
    // In each 128-bit lane: [a0, b0, a1, b1] of two vectors, then [a, b, c, d] of four.
    let two: [__m512i; 4] = std::array::from_fn(|i| {
        // SAFETY: the caller's.
        let (a, b) = unsafe { (*a.add(2 * i), *a.add(2 * i + 1)) };
        _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
    });
    let four: [__m512i; 2] = std::array::from_fn(|i| {
        let (a, b) = (two[2 * i], two[2 * i + 1]);
        _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    });
    // Lanes 0 and 1 of each, then 2 and 3.
    let [a, b] = four;
    let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
    let odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
    let sums = _mm512_add_epi32(even, odd); // [a low, a high, b low, b high]
    _mm512_shuffle_i32x4::<0b11_01_10_00>(sums, sums)
}

/// Transposes 16 x 16 words.
///
/// # Safety
/// `from` must have 16 rows of 16 words at that stride, `to` 256 words at 64 bytes' alignment.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(from: *const i32, stride: usize, to: *mut i32) {
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
