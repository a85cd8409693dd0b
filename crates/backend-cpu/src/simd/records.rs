//! Reading records with AVX-512: codes a line at a time, integer scales, and the floats that scale them.

use std::arch::x86_64::*;

use super::PANEL_ROWS;
use crate::panels::{Further, IQ4_OFFSET, LINE_BYTES, Plan, Record};

// Plans as numbers, for constants of functions.
pub(super) const BYTES: u8 = Plan::Bytes as u8;
pub(super) const HALVES: u8 = Plan::Halves as u8;
pub(super) const HALVES_AND_ONE: u8 = Plan::HalvesAndOne as u8;
pub(super) const TABLE: u8 = Plan::Table as u8;
pub(super) const NIBBLES: u8 = Plan::Nibbles as u8;
pub(super) const NIBBLES_AND_ONE: u8 = Plan::NibblesAndOne as u8;
pub(super) const NIBBLES_AND_TWO: u8 = Plan::NibblesAndTwo as u8;
pub(super) const PAIRS: u8 = Plan::Pairs as u8;
pub(super) const PAIRS_AND_ONE: u8 = Plan::PairsAndOne as u8;

// How integer scales are kept.
pub(super) const SIXES: u8 = 0;
pub(super) const FOURS: u8 = 1;
pub(super) const BYTES16: u8 = 2;
pub(super) const BYTES8: u8 = 3;

/// The function with constants for the plan of a scheme of large blocks, and for the scales that go with it.
macro_rules! with_large {
    ($plan:expr, $function:ident[$($n:ident),*]) => {{
        use crate::panels::Plan;
        use crate::simd::records::{
            BYTES8, BYTES16, FOURS, NIBBLES, NIBBLES_AND_ONE, NIBBLES_AND_TWO, PAIRS, PAIRS_AND_ONE, SIXES, TABLE,
        };
        match $plan {
            Plan::Table => $function::<$($n,)* TABLE, BYTES8>,
            Plan::Nibbles => $function::<$($n,)* NIBBLES, SIXES>,
            Plan::NibblesAndOne => $function::<$($n,)* NIBBLES_AND_ONE, SIXES>,
            Plan::NibblesAndTwo => $function::<$($n,)* NIBBLES_AND_TWO, BYTES16>,
            Plan::Pairs => $function::<$($n,)* PAIRS, FOURS>,
            Plan::PairsAndOne => $function::<$($n,)* PAIRS_AND_ONE, BYTES16>,
            plan => unreachable!("large blocks with {plan:?}"),
        }
    }};
}
pub(super) use with_large;

/// Where codes lie: see [`crate::panels::Plan`].
#[derive(Clone, Copy)]
pub(super) struct Source(pub *const u8);

impl Source {
    pub fn of(record: Record<'_>) -> Self {
        Self(record.bytes.as_ptr().wrapping_add(record.scheme.codes_at(record.octets)))
    }

    /// Of the record so many bytes later.
    pub fn after(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// # Safety
/// 64 bytes must be there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn line(from: *const u8, line: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe { _mm512_loadu_si512(from.add(line * LINE_BYTES).cast()) }
}

/// Bits of each byte from `from` on, as `mask` says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bits(line: __m512i, from: usize, mask: i8) -> __m512i {
    if mask == -1 {
        return line;
    }
    let line = if from == 0 { line } else { _mm512_srl_epi16(line, _mm_cvtsi32_si128(from as i32)) };
    _mm512_and_si512(line, _mm512_set1_epi8(mask))
}

/// The low nibbles of one and the bits of `mask` of the other, moved from bit `from` to bit `to`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn join(nibbles: __m512i, line: __m512i, [from, to]: [usize; 2], mask: i8) -> __m512i {
    let moved = match from.cmp(&to) {
        std::cmp::Ordering::Equal => line,
        std::cmp::Ordering::Greater => _mm512_srl_epi16(line, _mm_cvtsi32_si128((from - to) as i32)),
        std::cmp::Ordering::Less => _mm512_sll_epi16(line, _mm_cvtsi32_si128((to - from) as i32)),
    };
    const OR_AND: i32 = 0xf8; // a | b & c
    _mm512_ternarylogic_epi32::<OR_AND>(nibbles, moved, _mm512_set1_epi8(mask))
}

/// Line `i` of octet `4 t + q`, a byte for each code. See [`Plan`].
///
/// # Safety
/// The source must have that octet.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn code<const PLAN: u8>(source: Source, [t, q]: [usize; 2], i: usize) -> __m512i {
    let Source(lines) = source;
    let (plan, o) = (const { Plan::ALL[PLAN as usize] }, t * 4 + q);
    let (at, from) = plan.low(o, i);
    // SAFETY: the caller's.
    unsafe {
        let low = bits(line(lines, at), from, plan.low_mask() as i8);
        match plan.further(o, i) {
            Some(Further { line: at, from, to, mask }) => {
                let (further, from) = match plan {
                    // The octet's number, of which one part alone is known when this is compiled.
                    Plan::NibblesAndOne | Plan::PairsAndOne => {
                        (_mm512_srl_epi16(line(lines, at), _mm_cvtsi32_si128(t as i32 * 4)), q)
                    }
                    _ => (line(lines, at), from),
                };
                join(low, further, [from, to], mask as i8)
            }
            None if PLAN == TABLE => {
                _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(IQ4_OFFSET.as_ptr().cast())), low)
            }
            None => low,
        }
    }
}

/// The integer scales of large blocks.
#[derive(Clone, Copy)]
pub(super) struct Integers(pub *const u8);

impl Integers {
    pub fn of(record: Record<'_>) -> Self {
        Self(record.bytes.as_ptr())
    }

    /// Of the record so many bytes later.
    pub fn after(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The line with the scales of four groups, and its number.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn line(self, four: usize) -> __m512i {
        // SAFETY: the caller's: such a line is there.
        unsafe { line(self.0, four) }
    }

    /// The scales of group `group` of those in a line, a word of 32 bits for each row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn scale<const SCALES: u8>(line: __m512i, group: usize) -> __m512i {
        let right = |line, by: usize| _mm512_srl_epi32(line, _mm_cvtsi32_si128(by as i32));
        match SCALES {
            SIXES => _mm512_and_si512(right(line, group * 8), _mm512_set1_epi32(63)),
            FOURS => _mm512_and_si512(right(line, group * 8), _mm512_set1_epi32(15)),
            _ => {
                let top = _mm512_sll_epi32(line, _mm_cvtsi32_si128(24 - group as i32 * 8));
                _mm512_srai_epi32::<24>(top)
            }
        }
    }

    /// Pairs of minima, or of scales where a code has an offset: of groups 0 and 2 of each four, then of 1 and 3. As
    /// many as `Self::pairs`.
    ///
    /// # Safety
    /// The integers must be there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn pair<const SCALES: u8>(self, pair: usize) -> __m512i {
        let (four, odd) = (pair / 2, pair % 2);
        // SAFETY: the caller's.
        unsafe {
            match SCALES {
                SIXES => {
                    let six = _mm512_set1_epi16(63);
                    let low = if four == 0 {
                        self.line(2)
                    } else {
                        let top = |line, by: u32| {
                            let bits = _mm512_and_si512(line, _mm512_set1_epi8(-64));
                            _mm512_srl_epi16(bits, _mm_cvtsi32_si128(by as i32))
                        };
                        let low = _mm512_or_si512(top(self.line(0), 6), top(self.line(1), 4));
                        _mm512_or_si512(low, top(self.line(2), 2))
                    };
                    let low = if odd == 0 { low } else { _mm512_srli_epi16::<8>(low) };
                    _mm512_and_si512(low, six)
                }
                FOURS => {
                    let by = if odd == 0 { 4 } else { 12 };
                    let moved = _mm512_srl_epi16(self.line(four), _mm_cvtsi32_si128(by));
                    _mm512_and_si512(moved, _mm512_set1_epi16(15))
                }
                _ => {
                    let words = self.line(four);
                    let top = if odd == 0 { _mm512_slli_epi16::<8>(words) } else { words };
                    _mm512_srai_epi16::<8>(top)
                }
            }
        }
    }

    /// `d` and the minimum's scale. They follow the integers.
    ///
    /// # Safety
    /// They must be there.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn floats<const SCALES: u8>(self) -> [__m512; 2] {
        let at = match SCALES {
            SIXES => 3,
            BYTES8 => 2,
            _ => 4,
        } * LINE_BYTES;
        // SAFETY: the caller's.
        unsafe {
            let d = halves(self.0.add(at));
            if SCALES >= BYTES16 {
                return [d, _mm512_setzero_ps()];
            }
            [d, _mm512_sub_ps(_mm512_setzero_ps(), halves(self.0.add(at + PANEL_ROWS * 2)))]
        }
    }
}

/// Pairs of groups of a large block.
pub(super) const fn pairs(scales: u8) -> usize {
    match scales {
        SIXES | BYTES8 => 4,
        _ => 8,
    }
}

/// 16 halves as floats.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn halves(from: *const u8) -> __m512 {
    // SAFETY: the caller's.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
}
