//! Reading records with AVX2, eight of a panel's rows at a time.

use std::arch::x86_64::*;

use super::PANEL_ROWS;
use super::records::{BYTES8, BYTES16, FOURS, SIXES, TABLE};
use crate::panels::{Further, IQ4_OFFSET, LINE_BYTES, Plan, Record};

/// Rows 0..8 or 8..16 of a record.
#[derive(Clone, Copy)]
pub(super) struct Half {
    /// Its part of the first line, of the first one of the codes, and of the first halves.
    first: *const u8,
    codes: *const u8,
    floats: *const u8,
}

/// A shuffle: byte `group` of each row's four to both its words, as their low or high byte; zeros beside it.
const fn pick(group: u8, high: usize) -> [u8; 32] {
    let mut from = [0x80; 32]; // zeros
    let mut row = 0;
    while row < 8 {
        let mut word = 0;
        while word < 2 {
            from[row * 4 + word * 2 + high] = (row % 4 * 4) as u8 + group; // within 16 bytes
            word += 1;
        }
        row += 1;
    }
    from
}

const PICK_LOW: [[u8; 32]; 4] = [pick(0, 0), pick(1, 0), pick(2, 0), pick(3, 0)];
const PICK_HIGH: [[u8; 32]; 4] = [pick(0, 1), pick(1, 1), pick(2, 1), pick(3, 1)];

/// # Safety
/// 32 bytes must be there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(from: *const u8) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn right(words: __m256i, by: usize) -> __m256i {
    if by == 0 { words } else { _mm256_srl_epi16(words, _mm_cvtsi32_si128(by as i32)) }
}

/// The nibbles and the bits of `mask` of the other, moved from bit `from` to bit `to`.
#[inline]
#[target_feature(enable = "avx2")]
fn join(low: __m256i, line: __m256i, [from, to]: [usize; 2], mask: u8) -> __m256i {
    let moved =
        if from >= to { right(line, from - to) } else { _mm256_sll_epi16(line, _mm_cvtsi32_si128((to - from) as i32)) };
    _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8)))
}

impl Half {
    /// Rows from `lane` on, of the record so many bytes after this one.
    pub fn of(record: Record<'_>, after: usize, lane: usize) -> Self {
        let (record_at, codes_at) = (record.bytes.as_ptr().wrapping_add(after), record.scheme.codes_at(record.octets));
        let first = record_at.wrapping_add(lane * 4);
        Self { first, codes: first.wrapping_add(codes_at), floats: record_at.wrapping_add(lane * 2) }
    }

    /// Line `i` of octet `o`, a byte for each code.
    ///
    /// # Safety
    /// The record must have that octet, and be of plan `PLAN`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn code<const PLAN: u8>(self, o: usize, i: usize) -> __m256i {
        let plan = const { Plan::ALL[PLAN as usize] };
        // SAFETY: the caller's.
        let line = |line: usize| unsafe { load(self.codes.add(line * LINE_BYTES)) };
        let (at, from) = plan.low(o, i);
        if plan.low_mask() == 0xff {
            return line(at);
        }
        let low = _mm256_and_si256(right(line(at), from), _mm256_set1_epi8(plan.low_mask() as i8));
        match plan.further(o, i) {
            Some(Further { line: at, from, to, mask }) => join(low, line(at), [from, to], mask),
            None if PLAN == TABLE => {
                // SAFETY: 16 bytes.
                let table = unsafe { _mm_loadu_si128(IQ4_OFFSET.as_ptr().cast()) };
                _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), low)
            }
            None => low,
        }
    }

    /// Line `i` of the integers.
    ///
    /// # Safety
    /// It must be there.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn integers(self, i: usize) -> __m256i {
        // SAFETY: the caller's.
        unsafe { load(self.first.add(i * LINE_BYTES)) }
    }

    /// The scale of a group, in both words of each row.
    ///
    /// # Safety
    /// The record must have scales of this kind.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn scale<const SCALES: u8>(self, group: usize) -> __m256i {
        // SAFETY: the caller's.
        let (line, load) = unsafe { (self.integers(group / 4), |from: &[u8; 32]| load(from.as_ptr())) };
        match SCALES {
            SIXES | FOURS => {
                let mask = if SCALES == SIXES { 63 } else { 15 };
                let low = _mm256_shuffle_epi8(line, load(&PICK_LOW[group % 4]));
                _mm256_and_si256(low, _mm256_set1_epi16(mask))
            }
            _ => _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(line, load(&PICK_HIGH[group % 4]))),
        }
    }

    /// Pairs of minima, or of scales where a code has an offset: as `Integers::pair` has them.
    ///
    /// # Safety
    /// The record must have scales of this kind.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn pair<const SCALES: u8>(self, pair: usize) -> __m256i {
        let (four, odd) = (pair / 2, pair % 2);
        // SAFETY: the caller's.
        let line = |i| unsafe { self.integers(i) };
        match SCALES {
            SIXES => {
                let low = if four == 0 {
                    line(2)
                } else {
                    let top = |i, by| right(_mm256_and_si256(line(i), _mm256_set1_epi8(-64)), by);
                    _mm256_or_si256(_mm256_or_si256(top(0, 6), top(1, 4)), top(2, 2))
                };
                _mm256_and_si256(right(low, odd * 8), _mm256_set1_epi16(63))
            }
            FOURS => _mm256_and_si256(right(line(four), 4 + odd * 8), _mm256_set1_epi16(15)),
            _ => {
                let words = line(four);
                let top = if odd == 0 { _mm256_slli_epi16::<8>(words) } else { words };
                _mm256_srai_epi16::<8>(top)
            }
        }
    }

    /// `d` and the minimum's scale. They follow the integers.
    ///
    /// # Safety
    /// The record must have scales of this kind.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub unsafe fn floats<const SCALES: u8>(self) -> [__m256; 2] {
        let lines = match SCALES {
            SIXES => 3,
            BYTES8 => 2,
            _ => 4,
        };
        // SAFETY: the caller's.
        unsafe {
            let d = halves(self.floats.add(lines * LINE_BYTES));
            if SCALES >= BYTES16 {
                return [d, _mm256_setzero_ps()];
            }
            [d, _mm256_sub_ps(_mm256_setzero_ps(), halves(self.floats.add(lines * LINE_BYTES + PANEL_ROWS * 2)))]
        }
    }
}

/// Eight halves as floats.
///
/// # Safety
/// They must be there.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn halves(from: *const u8) -> __m256 {
    // SAFETY: the caller's.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}
