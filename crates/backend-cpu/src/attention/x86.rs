//! The kernels of `product.rs` for AVX2 and AVX-512.
//!
//! The product keeps a block of 6 rows x 4 vectors of columns (AVX2: 2) in registers: a step of 24 fused multiply-adds
//! has 10 loads, of vectors and of a broadcast value for each row. 8 rows x 2 vectors, with 10 loads for 16, were a
//! seventh slower. It is written once for both sets; left to itself the compiler takes half vectors and spills.

/// The kernels for one set.
macro_rules! kernels {
    ($features:literal, $lanes:literal, $vectors:literal, $load:ident, $store:ident, $set1:ident, $fma:ident,
     $load_halves:ident, $half_vector:ty, $convert:ident, [$pairs_low:ident, $pairs_high:ident],
     [$fours_low:ident, $fours_high:ident]) => {
        /// Rows and vectors of columns whose sums are in registers at once.
        const ROWS: usize = 6;
        const VECTORS: usize = $vectors;
        const LANES: usize = $lanes;

        /// # Safety
        /// The machine has these features; [`Product`] has passed its check.
        #[target_feature(enable = $features)]
        pub(in super::super) unsafe fn product(
            product: Product<'_>,
            c: *mut f32,
            c_stride: usize,
            ahead: &mut Ahead<'_>,
        ) {
            const WORK: usize = Ahead::PRODUCT * VECTORS * LANES / BLOCK;
            let Product { a, from, to, b } = product;
            for col in (0..BLOCK).step_by(VECTORS * LANES) {
                for (i, a) in a.chunks(ROWS).enumerate() {
                    // SAFETY: within the rows and columns that were checked.
                    unsafe {
                        let b = b.as_ptr().cast::<f32>().add(col);
                        let c = (c.add(i * ROWS * c_stride + col), c_stride);
                        match a.len() {
                            1 => block::<1>(a, [from, to], b, c),
                            2 => block::<2>(a, [from, to], b, c),
                            3 => block::<3>(a, [from, to], b, c),
                            4 => block::<4>(a, [from, to], b, c),
                            5 => block::<5>(a, [from, to], b, c),
                            _ => block::<ROWS>(a, [from, to], b, c),
                        }
                    }
                    ahead.pass(WORK * (to - from) / BLOCK);
                }
            }
        }

        /// `Q` rows x some vectors of columns.
        ///
        /// # Safety
        /// All that it spans must be there.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn block<const Q: usize>(
            a: &[[f32; BLOCK]],
            [from, to]: [usize; 2],
            b: *const f32,
            (c, c_stride): (*mut f32, usize),
        ) {
            // SAFETY: the caller's word.
            unsafe {
                let a = a.as_ptr().cast::<f32>();
                let mut sums = [[$set1(0.0); VECTORS]; Q];
                for row in 0..Q {
                    for v in 0..VECTORS {
                        sums[row][v] = $load(c.add(row * c_stride + v * LANES));
                    }
                }
                for i in from..to {
                    let b: [_; VECTORS] = std::array::from_fn(|v| $load(b.add(i * BLOCK + v * LANES)));
                    for row in 0..Q {
                        let a = $set1(*a.add(row * BLOCK + i));
                        for v in 0..VECTORS {
                            sums[row][v] = $fma(a, b[v], sums[row][v]);
                        }
                    }
                }
                for row in 0..Q {
                    for v in 0..VECTORS {
                        $store(c.add(row * c_stride + v * LANES), sums[row][v]);
                    }
                }
            }
        }

        /// # Safety
        /// The machine has these features.
        #[target_feature(enable = $features)]
        pub(in super::super) unsafe fn decode(
            cells: &[u16],
            entries: &[usize],
            values: Range<usize>,
            out: &mut [[f32; BLOCK]],
        ) {
            for (entry, out) in entries.iter().zip(out) {
                let halves = &cells[*entry..][values.clone()];
                match halves.as_array::<BLOCK>() {
                    Some(whole) => from_halves(whole, out), // its length is known
                    None => from_halves(halves, out),
                }
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn from_halves(halves: &[u16], out: &mut [f32; BLOCK]) {
            let (halves, halves_rest) = halves.as_chunks::<LANES>();
            let (out, out_rest) = out.split_at_mut(halves.len() * LANES);
            for (halves, out) in halves.iter().zip(out.as_chunks_mut::<LANES>().0) {
                // SAFETY: as many halves and floats as a vector has.
                unsafe { $store(out.as_mut_ptr(), $convert($load_halves(halves.as_ptr().cast::<$half_vector>()))) };
            }
            for (half, out) in halves_rest.iter().zip(out_rest) {
                *out = f16_to_f32(*half);
            }
        }

        /// # Safety
        /// The machine has these features.
        #[target_feature(enable = $features)]
        pub(in super::super) unsafe fn transpose(x: &[[f32; BLOCK]; BLOCK], out: &mut [[f32; BLOCK]; BLOCK]) {
            for (block, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                for part in (0..BLOCK).step_by(LANES) {
                    // SAFETY: as many rows and columns of both as there are.
                    unsafe {
                        let x = x.as_ptr().cast::<f32>().add(part * BLOCK + block * 4);
                        // Each 128 bits have four columns of a row. Pairs of rows, then fours, are woven into columns.
                        let [a, b, c, d] = std::array::from_fn(|row| gather(x.add(row * BLOCK)));
                        let (ab_low, ab_high) = ($pairs_low(a, b), $pairs_high(a, b));
                        let (cd_low, cd_high) = ($pairs_low(c, d), $pairs_high(c, d));
                        $store(out[0].as_mut_ptr().add(part), $fours_low(ab_low, cd_low));
                        $store(out[1].as_mut_ptr().add(part), $fours_high(ab_low, cd_low));
                        $store(out[2].as_mut_ptr().add(part), $fours_low(ab_high, cd_high));
                        $store(out[3].as_mut_ptr().add(part), $fours_high(ab_high, cd_high));
                    }
                }
            }
        }
    };
}

pub(super) mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::super::ahead::Ahead;
    use super::super::product::{BLOCK, Product};
    use crate::math::f16_to_f32;

    kernels!(
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
        16,
        4,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm256_loadu_si256,
        __m256i,
        _mm512_cvtph_ps,
        [_mm512_unpacklo_ps, _mm512_unpackhi_ps],
        [fours_low, fours_high]
    );

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn fours_low(a: __m512, b: __m512) -> __m512 {
        _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn fours_high(a: __m512, b: __m512) -> __m512 {
        _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
    }

    /// Four columns of 16 rows: a quarter has the rows `row`, `row + 4`, ...
    ///
    /// # Safety
    /// The rows must be there.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn gather(x: *const f32) -> __m512 {
        // SAFETY: the caller's word.
        unsafe {
            let rows = _mm512_castps128_ps512(_mm_loadu_ps(x));
            let rows = _mm512_insertf32x4::<1>(rows, _mm_loadu_ps(x.add(4 * BLOCK)));
            let rows = _mm512_insertf32x4::<2>(rows, _mm_loadu_ps(x.add(8 * BLOCK)));
            _mm512_insertf32x4::<3>(rows, _mm_loadu_ps(x.add(12 * BLOCK)))
        }
    }
}

pub(super) mod avx2 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::super::ahead::Ahead;
    use super::super::product::{BLOCK, Product};
    use crate::math::f16_to_f32;

    kernels!(
        "avx2,fma,f16c",
        8,
        2,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm_loadu_si128,
        __m128i,
        _mm256_cvtph_ps,
        [_mm256_unpacklo_ps, _mm256_unpackhi_ps],
        [fours_low, fours_high]
    );

    #[target_feature(enable = "avx2")]
    #[inline]
    fn fours_low(a: __m256, b: __m256) -> __m256 {
        _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn fours_high(a: __m256, b: __m256) -> __m256 {
        _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)))
    }

    /// Four columns of 8 rows: a half has the rows `row`, `row + 4`.
    ///
    /// # Safety
    /// The rows must be there.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn gather(x: *const f32) -> __m256 {
        // SAFETY: the caller's word.
        unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(x)), _mm_loadu_ps(x.add(4 * BLOCK))) }
    }
}
