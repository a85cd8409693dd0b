//! A record's codes times their integer scales, as the two bytes that tile products read.
//!
//! `s (c - offset)` has 13 bits and a sign: `256 high + low`. Where scales have six bits and codes five without offset,
//! it is `8 high + low`, the products of the code with either half of the scale: one multiplication serves two codes.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::CHUNK;
use super::records::{BYTES16, Integers, Source, code, pairs};
use crate::panels::LINE_BYTES;

/// `[value / 4, weight row, value % 4]` each. `low` has no sign; `high` has one if scales have.
#[repr(C, align(64))]
pub(super) struct Scaled {
    pub low: [[u8; LINE_BYTES]; CHUNK / 4],
    pub high: [[u8; LINE_BYTES]; CHUNK / 4],
}

/// Lines of weights that share a scale, lines of octet `4 t + q`.
struct Lines {
    source: Source,
    octet: [usize; 2],
    of_octet: Range<usize>,
}

impl Scaled {
    pub const ZERO: Self = Self { low: [[0; _]; _], high: [[0; _]; _] };

    /// # Safety
    /// `PLAN` and `SCALES` must be those of source and scheme, whose offset this is.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub unsafe fn fill<const PLAN: u8, const SCALES: u8>(&mut self, source: Source, integers: Integers, offset: u8) {
        let groups = pairs(SCALES) / 4; // of an octet
        for t in 0..2 {
            macro_rules! octet {
                ($q:literal) => {
                    for g in 0..groups {
                        let group = $q * groups + g;
                        let of_octet = g * 8 / groups..(g + 1) * 8 / groups;
                        let lines = Lines { source, octet: [t, $q], of_octet };
                        // SAFETY: the caller's.
                        unsafe {
                            let s = Integers::scale::<SCALES>(integers.line(t * groups + group / 4), group % 4);
                            if SCALES < BYTES16 {
                                self.by_halves::<PLAN>(lines, s);
                            } else {
                                self.by_bytes::<PLAN>(lines, s, offset);
                            }
                        }
                    }
                };
            }
            octet!(0);
            octet!(1);
            octet!(2);
            octet!(3);
        }
    }

    /// Scales below 64, codes below 32. s: a word of 32 bits for each row
    ///
    /// # Safety
    /// The source must have these lines, of plan `PLAN`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn by_halves<const PLAN: u8>(&mut self, lines: Lines, s: __m512i) {
        let words = _mm512_or_si512(s, _mm512_slli_epi32::<16>(s));
        let low_s = _mm512_and_si512(words, _mm512_set1_epi16(7));
        let high_s = _mm512_srli_epi16::<3>(words);
        let [t, q] = lines.octet;
        for i in lines.of_octet {
            // SAFETY: the caller's.
            let c = unsafe { code::<PLAN>(lines.source, [t, q], i) };
            // Two codes to a word: 31 times 7 stays within its byte, so neither carries into the other.
            self.put((t * 4 + q) * 8 + i, [_mm512_mullo_epi16(c, low_s), _mm512_mullo_epi16(c, high_s)]);
        }
    }

    /// Scales of eight bits with a sign. s: a word of 32 bits for each row
    ///
    /// # Safety
    /// The source must have these lines, of plan `PLAN`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn by_bytes<const PLAN: u8>(&mut self, lines: Lines, s: __m512i, offset: u8) {
        /// Of the second where the first has a bit, else of the third.
        const PICK: i32 = 0xca;
        let bytes = _mm512_set1_epi16(0xff);
        let byte = _mm512_and_si512(s, _mm512_set1_epi32(0xff));
        let even_s = _mm512_or_si512(byte, _mm512_slli_epi32::<16>(byte));
        let odd_s = _mm512_slli_epi32::<8>(even_s);
        let minus = _mm512_mullo_epi16(_mm512_srai_epi16::<8>(odd_s), _mm512_set1_epi16(offset.into()));
        let [t, q] = lines.octet;
        for i in lines.of_octet {
            // SAFETY: the caller's.
            let c = unsafe { code::<PLAN>(lines.source, [t, q], i) };
            // Of codes of even number and of odd number, as words.
            let even = _mm512_sub_epi16(_mm512_maddubs_epi16(c, even_s), minus);
            let odd = _mm512_sub_epi16(_mm512_maddubs_epi16(c, odd_s), minus);
            let low = _mm512_ternarylogic_epi32::<PICK>(bytes, even, _mm512_slli_epi16::<8>(odd));
            let high = _mm512_ternarylogic_epi32::<PICK>(bytes, _mm512_srli_epi16::<8>(even), odd);
            self.put((t * 4 + q) * 8 + i, [low, high]);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn put(&mut self, line: usize, [low, high]: [__m512i; 2]) {
        // SAFETY: whole lines at their alignment.
        unsafe {
            _mm512_store_si512(self.low[line].as_mut_ptr().cast(), low);
            _mm512_store_si512(self.high[line].as_mut_ptr().cast(), high);
        }
    }

    /// What the sums of products with `low` and with `high` stand for. Without a shift, which would take the pipe that
    /// multiplies.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn sum<const SCALES: u8>([low, high]: [__m512i; 2]) -> __m512i {
        if SCALES < BYTES16 {
            let mut sum = high;
            // SAFETY: sums of registers, in assembly because the compiler makes a shift of them.
            unsafe {
                asm!("vpaddd {0}, {0}, {0}", "vpaddd {0}, {0}, {0}", "vpaddd {0}, {0}, {0}", inout(zmm_reg) sum,
                    options(pure, nomem, nostack, preserves_flags));
            }
            return _mm512_add_epi32(sum, low);
        }
        const BYTE_UP: [i8; 16] = [-1, 0, 1, 2, -1, 4, 5, 6, -1, 8, 9, 10, -1, 12, 13, 14]; // -1 for zero
        // SAFETY: 16 bytes.
        let byte_up = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(BYTE_UP.as_ptr().cast()) });
        _mm512_add_epi32(_mm512_shuffle_epi8(high, byte_up), low)
    }
}
