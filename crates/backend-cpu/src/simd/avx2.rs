//! AVX2 with FMA. A lane is a weight row; activations are broadcast.

use std::arch::x86_64::*;

use super::records::{BYTES, BYTES16, TABLE, pairs};
use super::records_avx2::{Half, halves};
use super::steps::{self, Ahead, Step, kernels};
use super::{CHUNK, Dots, FLOAT_ROWS, LANES, LaneSums, OCTET, PANEL_ROWS, Run, Sums, pair_place};
use crate::panels::{Plan, Record};

/// # Safety
/// `Run::check` must have passed.
pub(super) unsafe fn run(run: Run<'_>, sums: &mut [Sums]) {
    let kernels = kernels!(&run.panels.scheme, large, small, eight: false);
    // SAFETY: the caller's; these are the kernels of the scheme.
    unsafe { steps::run(run, kernels, sums) };
}

/// Lines whose products with activations are added up in 16 bits, two to a word: `lines * 2 * code * 127 < 32768`.
const fn lines_in_words(plan: Plan) -> usize {
    match plan {
        // Not even two products of bytes without sign fit; with a sign (`by_sign`) they do.
        Plan::Bytes | Plan::Table => 1,
        Plan::Halves | Plan::Nibbles => 8,
        Plan::HalvesAndOne | Plan::NibblesAndOne => 4,
        Plan::NibblesAndTwo => 2,
        // What shares a scale here.
        Plan::Pairs | Plan::PairsAndOne => 4,
    }
}

/// Whether codes are taken as signed bytes, their offset of 128 off.
const fn by_sign(plan: u8) -> bool {
    plan == BYTES || plan == TABLE
}

/// Adds the products of a line of codes with four activations of each row, two to a word.
///
/// # Safety
/// The activations must be there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot<const N: usize, const PLAN: u8>(dots: &mut [__m256i; N], c: __m256i, x: [*const i8; N], i: usize) {
    for n in 0..N {
        // SAFETY: the caller's.
        let x = unsafe { _mm256_set1_epi32(x[n].add(i * 4).cast::<i32>().read_unaligned()) };
        let two = if by_sign(PLAN) {
            let c = _mm256_xor_si256(c, _mm256_set1_epi8(-128));
            _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(x, c))
        } else {
            _mm256_maddubs_epi16(c, x)
        };
        dots[n] = _mm256_add_epi16(dots[n], two);
    }
}

/// Adds the dots of an octet. codes: those of its line `i`; scale: of the group with its line `i`, in both words
///
/// # Safety
/// `x` must point to the octet's activations.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn octet<const N: usize, const PLAN: u8>(
    codes: impl Fn(usize) -> __m256i,
    scale: impl Fn(usize) -> __m256i,
    x: [*const i8; N],
    sums: &mut [__m256i; N],
) {
    macro_rules! stretches {
        ($([$first:literal $($more:literal)*])*) => {{$(
            let mut dots = [_mm256_setzero_si256(); N];
            // SAFETY: the caller's.
            unsafe {
                dot::<N, PLAN>(&mut dots, codes($first), x, $first);
                $( dot::<N, PLAN>(&mut dots, codes($more), x, $more); )*
            }
            let s = scale($first);
            for n in 0..N {
                sums[n] = _mm256_add_epi32(sums[n], _mm256_madd_epi16(dots[n], s));
            }
        )*}};
    }
    match const { lines_in_words(Plan::ALL[PLAN as usize]) } {
        8 => stretches!([0 1 2 3 4 5 6 7]),
        4 => stretches!([0 1 2 3] [4 5 6 7]),
        2 => stretches!([0 1] [2 3] [4 5] [6 7]),
        _ => stretches!([0][1][2][3][4][5][6][7]),
    }
}

/// Blocks of 256 values against `N` rows.
///
/// # Safety
/// `Run::check` must have passed for the step and these `N` rows; `PLAN` and `SCALES` must be those of its source and
/// its scheme.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn large<const N: usize, const ASK: bool, const PLAN: u8, const SCALES: u8>(
    step: &Step<'_>,
    rows: &[u32],
    acc: &mut [Sums],
    ahead: &mut Ahead,
) {
    let Step { x: of_x, record, records, next } = *step;
    let rows: &[u32; N] = rows.first_chunk().expect("as many rows");
    let offset_bits = _mm_cvtsi32_si128(record.scheme.offset.trailing_zeros() as i32);
    let first = of_x.pointers(record.start / CHUNK, rows);
    for number in 0..records {
        let acc: &mut [Sums; N] = acc[number * next.sums..].first_chunk_mut().expect("sums for each row");
        let x = first.map(|x| x.wrapping_add(number * next.chunks));
        for plane in 0..of_x.planes {
            // SAFETY: the caller's: the chunks are there for each row; the records are whole.
            unsafe {
                let x = x.map(|x| x.add(plane));
                for lane in [0, 8] {
                    let half = Half::of(record, number * next.bytes, lane);
                    let mut sums = [_mm256_setzero_si256(); N];
                    macro_rules! octets {
                        ($($o:literal)*) => {$({
                            if ASK && lane == 0 {
                                ahead.octet();
                            }
                            let scale = |i| half.scale::<SCALES>($o * pairs(SCALES) / 4 + i * pairs(SCALES) / 32);
                            let x = x.map(|x| x.cast::<i8>().add($o * OCTET));
                            octet::<N, PLAN>(|i| half.code::<PLAN>($o, i), scale, x, &mut sums);
                        })*};
                    }
                    octets!(0 1 2 3 4 5 6 7);
                    let mut of_pairs = [_mm256_setzero_si256(); N];
                    if !by_sign(PLAN) {
                        for pair in 0..pairs(SCALES) {
                            let m = half.pair::<SCALES>(pair);
                            for n in 0..N {
                                let x_sums: *const i32 = match pairs(SCALES) {
                                    8 => (&raw const (*x[n]).sums16).cast(),
                                    _ => (&raw const (*x[n]).sums32).cast(),
                                };
                                let sums = _mm256_madd_epi16(m, _mm256_set1_epi32(*x_sums.add(pair)));
                                of_pairs[n] = _mm256_add_epi32(of_pairs[n], sums);
                            }
                        }
                    }
                    let [w_d, w_min] = half.floats::<SCALES>();
                    for n in 0..N {
                        let x_d = _mm256_set1_ps((*x[n]).d[0]);
                        let t = if SCALES >= BYTES16 {
                            let minus = _mm256_sll_epi32(of_pairs[n], offset_bits);
                            _mm256_mul_ps(w_d, _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[n], minus)))
                        } else {
                            let t = _mm256_mul_ps(w_d, _mm256_cvtepi32_ps(sums[n]));
                            _mm256_fmadd_ps(w_min, _mm256_cvtepi32_ps(of_pairs[n]), t)
                        };
                        let to = acc[n].as_mut_ptr().add(lane);
                        _mm256_storeu_ps(to, _mm256_fmadd_ps(x_d, t, _mm256_loadu_ps(to)));
                    }
                }
            }
        }
    }
}

/// Blocks of 32 values against `N` rows.
///
/// # Safety
/// `Run::check` must have passed for the step and these `N` rows; `PLAN` must be that of its source.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn small<const N: usize, const ASK: bool, const PLAN: u8, const MINS: bool>(
    step: &Step<'_>,
    rows: &[u32],
    acc: &mut [Sums],
    ahead: &mut Ahead,
) {
    let Step { x: of_x, record, records, next } = *step;
    let Record { scheme, octets, start, .. } = record;
    let rows: &[u32; N] = rows.first_chunk().expect("as many rows");
    let mins = scheme.mins_at(octets);
    let offset = if by_sign(PLAN) { 0 } else { -i32::from(scheme.offset) };
    let first = of_x.pointers(start / CHUNK, rows);
    for number in 0..records {
        let acc: &mut [Sums; N] = acc[number * next.sums..].first_chunk_mut().expect("sums for each row");
        let bytes = number * next.bytes;
        let x = first.map(|x| x.wrapping_add(number * next.chunks));
        for o in 0..octets {
            if ASK {
                ahead.octet();
            }
            for plane in 0..of_x.planes {
                // SAFETY: the caller's: the chunks are there for each row; the records are whole.
                unsafe {
                    let chunks = x.map(|x| &*x.add(plane));
                    let x_sums = chunks.map(|x| i32::from(x.sums32[pair_place(o)]));
                    let x = chunks.map(|x| x.v.as_ptr().add(o * OCTET));
                    for lane in [0, 8] {
                        let half = Half::of(record, bytes, lane);
                        let mut dots = x_sums.map(|sum| _mm256_set1_epi32(offset * sum));
                        let scale = |_| _mm256_set1_epi16(1);
                        octet::<N, PLAN>(|i| half.code::<PLAN>(o, i), scale, x, &mut dots);
                        let floats = record.bytes.as_ptr().add(bytes + (o * PANEL_ROWS + lane) * 2);
                        let w_d = halves(floats);
                        for n in 0..N {
                            let x_d = _mm256_set1_ps(chunks[n].d[o]);
                            let mut t = _mm256_mul_ps(w_d, _mm256_cvtepi32_ps(dots[n]));
                            if MINS {
                                t = _mm256_fmadd_ps(halves(floats.add(mins)), _mm256_set1_ps(x_sums[n] as f32), t);
                            }
                            let to = acc[n].as_mut_ptr().add(lane);
                            _mm256_storeu_ps(to, _mm256_fmadd_ps(x_d, t, _mm256_loadu_ps(to)));
                        }
                    }
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
