//! AMX: 16 x 64 weights by 64 x 16 activations of int8 in one instruction.
//!
//! Weights are the left operand, so that their rows stay rows; activations are laid out once per op as the right one
//! wants them ([`Columns`]). The instructions are written as assembly: std::arch has none on stable Rust.
//!
//! A large block's integer scales go into the weights before the product: `s (c - offset)` has 13 bits and a sign, and
//! becomes two bytes, `256 high + low`. So a block costs two tile products to 64 values, and floats once in 256.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::avx512::{CODES, GROUPS, Place, Q4_K, Q6_K, transpose};
use super::columns::{Columns, Line, TILE_COLUMNS, TileSums};
use super::{CHUNK, Codes, Direct, PANEL_ROWS, SMALL, Scheme};

/// Whether the machine has AMX with int8 and the system lets us use it.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && has_permission())
}

fn has_instructions() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (TILE | INT8) == TILE | INT8
}

/// Linux hands out the large register state on request, to all threads of a process.
#[cfg(target_os = "linux")]
fn has_permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that changes nothing but what this process may use.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn has_permission() -> bool {
    false
}

/// Shapes of the eight tiles.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    const fn new(left_bytes: u16) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            let (left, right) = (i == 4 || i == 5, i >= 6);
            config.row_bytes[i] = if left { left_bytes } else { 64 };
            config.rows[i] = if right { (left_bytes / 4) as u8 } else { 16 };
            i += 1;
        }
        config
    }
}

/// Tiles 0-3 are sums, 4 and 5 weights, 6 and 7 activations: of 64 values, or of 32.
static LARGE: Config = Config::new(64);
static SMALL_TILES: Config = Config::new(32);

/// The tiles of this thread, shaped for blocks of 32 or 256 values; given back to the system when dropped: held, they
/// slow down what else the core does.
pub(crate) struct Tiles {
    block: usize,
    /// They are this thread's.
    thread: PhantomData<*const ()>,
}

impl Tiles {
    /// # Safety
    /// [`available`] must have said so, and no other value may live on this thread.
    pub unsafe fn new(block: usize) -> Self {
        let config = if block == SMALL { &SMALL_TILES } else { &LARGE };
        // SAFETY: a valid configuration; the caller's word that there are tiles.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
        Self { block, thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a value exists, so there are tiles.
        unsafe {
            asm!("tilerelease", options(nostack, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

/// What a panel is multiplied in. Reused from panel to panel.
#[repr(C, align(64))]
pub(crate) struct TileScratch {
    /// Codes times integer scales, low and high bytes. `[row, value]`
    low: [[u8; CHUNK]; PANEL_ROWS],
    high: [[i8; CHUNK]; PANEL_ROWS],
    /// Integer sums, two sets in turn. `[set, tile, row, column]`
    sums: [[[[i32; TILE_COLUMNS]; PANEL_ROWS]; 4]; 2],
}

impl TileScratch {
    pub fn boxed() -> Box<Self> {
        let zeros = Self { low: [[0; _]; _], high: [[0; _]; _], sums: [[[[0; _]; _]; _]; _] };
        Box::new(zeros)
    }
}

/// One stretch of a panel against groups of vectors.
#[derive(Clone, Copy)]
pub(crate) struct TileStretch<'a> {
    pub scheme: Scheme,
    pub codes: &'a Codes,
    /// Where the codes are, if not in `codes`.
    pub direct: Option<Direct<'a>>,
    pub columns: Columns<'a>,
    /// In values of a vector, a multiple of 256.
    pub start: usize,
    /// Values of the stretch, whole blocks.
    pub len: usize,
}

/// What `super::stretch` computes, for groups of 16 activations. sums `[2, groups / planes]`: of even blocks, then of
/// odd ones, which large blocks leave alone. The stretch at 0 overwrites what is there.
///
/// # Safety
/// The machine must have AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn stretch(
    tiles: &Tiles,
    stretch: TileStretch<'_>,
    scratch: &mut TileScratch,
    sums: [&mut [TileSums]; 2],
) {
    let TileStretch { scheme, columns, start, len, .. } = stretch;
    assert!(tiles.block == scheme.block && columns.block == scheme.block && len.is_multiple_of(scheme.block));
    assert_eq!(sums[0].len(), sums[1].len());
    columns.check(start, len, sums[0].len());
    let [even, odd] = sums;
    // SAFETY: the caller's; checked above.
    unsafe {
        match (scheme.block, scheme.mins, scheme.group) {
            (SMALL, false, _) => small_blocks::<false>(&stretch, scratch, [even, odd]),
            (SMALL, true, _) => small_blocks::<true>(&stretch, scratch, [even, odd]),
            (_, false, _) => large_block::<0>(&stretch, scratch, even),
            (_, true, 32) => large_block::<4>(&stretch, scratch, even),
            _ => large_block::<8>(&stretch, scratch, even),
        }
    }
}

/// Codes times their scales, in two bytes.
///
/// # Safety
/// The place must be that of the codes, and `FROM` what it is.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn scale_codes<const FROM: u8>(codes: &Codes, place: Place, scheme: Scheme, scratch: &mut TileScratch) {
    let offset = _mm512_set1_epi16(scheme.offset.into());
    let low_byte = _mm512_set1_epi16(0xff);
    let groups = &GROUPS[usize::from(scheme.group == 32)];
    // SAFETY: the caller's; whole rows of 256 bytes or 16 words, by quarters.
    unsafe {
        let groups: [__m512i; 4] = std::array::from_fn(|i| _mm512_loadu_si512(groups[i].as_ptr().cast()));
        for row in 0..PANEL_ROWS {
            place.fetch_ahead::<FROM>(row);
            let block = place.block(row);
            let s = _mm512_castsi256_si512(_mm256_load_si256(codes.s[row].as_ptr().cast()));
            for quarter in 0..4 {
                // Codes of even number and of odd number as words.
                let c = super::avx512::quarter::<FROM>(block, quarter);
                let s = _mm512_permutexvar_epi16(groups[quarter], s);
                let even = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_and_si512(c, low_byte), offset), s);
                let odd = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_srli_epi16::<8>(c), offset), s);
                // low: even & 255 | odd << 8; high: even >> 8 | odd & 0xff00.
                const PICK: i32 = 0xca; // a ? b : c
                let low = _mm512_ternarylogic_epi32::<PICK>(low_byte, even, _mm512_slli_epi16::<8>(odd));
                let high = _mm512_ternarylogic_epi32::<PICK>(low_byte, _mm512_srli_epi16::<8>(even), odd);
                _mm512_store_si512(scratch.low[row].as_mut_ptr().add(quarter * 64).cast(), low);
                _mm512_store_si512(scratch.high[row].as_mut_ptr().add(quarter * 64).cast(), high);
            }
        }
    }
}

/// # Safety
/// As for [`stretch`], and what it checks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn large_block<const PAIRS: usize>(stretch: &TileStretch<'_>, scratch: &mut TileScratch, sums: &mut [TileSums]) {
    let TileStretch { scheme, codes, direct, columns, start, .. } = *stretch;
    let (place, from) = Place::of(codes, direct);
    // SAFETY: it is.
    unsafe {
        match from {
            CODES => scale_codes::<CODES>(codes, place, scheme, scratch),
            Q4_K => scale_codes::<Q4_K>(codes, place, scheme, scratch),
            _ => scale_codes::<Q6_K>(codes, place, scheme, scratch),
        }
    }
    let groups = columns.groups;
    let TileScratch { low, high, sums: integers } = scratch;
    // SAFETY: `check`: each group has its tiles, scales and sums at `start`.
    unsafe {
        let tile = |group: usize| columns.tiles.as_ptr().add(columns.at(start, group) * (CHUNK / 4));
        for first in (0..groups).step_by(2) {
            match groups - first {
                1 => multiply_one(low, high, tile(first), &mut integers[0]),
                _ => multiply_pair(low, high, [tile(first), tile(first + 1)], &mut integers[0]),
            }
            for group in first..groups.min(first + 2) {
                let integers = &integers[0][(group - first) * 2..];
                let at = columns.at(start, group);
                let x_d = _mm512_load_ps(columns.d[at].0.as_ptr());
                let x_sums: [__m512i; PAIRS] = std::array::from_fn(|i| {
                    let pairs = match PAIRS {
                        4 => &columns.sums32[at * (CHUNK / 64) + i],
                        _ => &columns.sums16[at * (CHUNK / 32) + i],
                    };
                    _mm512_load_si512(pairs.0.as_ptr().cast())
                });
                let sums = &mut sums[group / columns.planes];
                let fresh = start == 0 && group % columns.planes == 0;
                for row in 0..PANEL_ROWS {
                    let [low, high] = std::array::from_fn(|i| _mm512_load_si512(integers[i][row].as_ptr().cast()));
                    let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                    let to = sums.0[row].as_mut_ptr();
                    let scale = _mm512_mul_ps(_mm512_set1_ps(codes.d[0][row]), x_d);
                    let before = if fresh { _mm512_setzero_ps() } else { _mm512_load_ps(to) };
                    let mut acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), before);
                    if PAIRS > 0 {
                        let mut of_min = _mm512_setzero_si512();
                        for i in 0..PAIRS {
                            let m = _mm512_set1_epi32(codes.m[i][row].as_ptr().cast::<i32>().read_unaligned());
                            of_min = _mm512_dpwssd_epi32(of_min, m, x_sums[i]);
                        }
                        let scale = _mm512_mul_ps(_mm512_set1_ps(codes.min[0][row]), x_d);
                        acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(of_min), acc);
                    }
                    _mm512_store_ps(to, acc);
                }
            }
        }
    }
}

/// 64 values of 16 rows of low and high bytes, from byte `at` of each, by the first group from line byte `lines` on.
macro_rules! quarter {
    ($at:literal, $lines:literal) => {
        concat!(
            "tileloadd tmm4, [{low} + {row}*1 + ",
            $at,
            "]\n",
            "tileloadd tmm6, [{x0} + {line}*1 + ",
            $lines,
            "]\n",
            "tdpbusd tmm0, tmm4, tmm6\n",
            "tileloadd tmm5, [{high} + {row}*1 + ",
            $at,
            "]\n",
            "tdpbssd tmm1, tmm5, tmm6\n",
        )
    };
}

/// [`multiply_pair`] for one group: sums `[low, high, ..]`.
///
/// # Safety
/// As there.
unsafe fn multiply_one(
    low: &[[u8; CHUNK]; PANEL_ROWS],
    high: &[[i8; CHUNK]; PANEL_ROWS],
    group: *const Line,
    sums: &mut [[[i32; TILE_COLUMNS]; PANEL_ROWS]; 4],
) {
    // SAFETY: loads and stores lie in the arguments, by the caller's word for the activations.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1",
            quarter!("0", "0"), quarter!("64", "1024"), quarter!("128", "2048"), quarter!("192", "3072"),
            "tilestored [{sums} + {line}*1], tmm0", "tilestored [{sums} + {line}*1 + 1024], tmm1",
            low = in(reg) low.as_ptr(), high = in(reg) high.as_ptr(), row = in(reg) CHUNK, line = in(reg) 64usize,
            x0 = in(reg) group, sums = in(reg) sums.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
        );
    }
}

/// 16 rows of low and high bytes by two groups, 256 values each: sums `[low 0, high 0, low 1, high 1]`.
///
/// # Safety
/// Tiles must be configured as [`LARGE`]; at each pointer 64 lines of activations.
unsafe fn multiply_pair(
    low: &[[u8; CHUNK]; PANEL_ROWS],
    high: &[[i8; CHUNK]; PANEL_ROWS],
    groups: [*const Line; 2],
    sums: &mut [[[i32; TILE_COLUMNS]; PANEL_ROWS]; 4],
) {
    macro_rules! quarter_of_two {
        ($at:literal, $lines:literal) => {
            concat!(
                quarter!($at, $lines),
                "tileloadd tmm7, [{x1} + {line}*1 + ",
                $lines,
                "]\n",
                "tdpbusd tmm2, tmm4, tmm7\n",
                "tdpbssd tmm3, tmm5, tmm7\n",
            )
        };
    }
    // SAFETY: loads and stores lie in the arguments, by the caller's word for the activations.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            quarter_of_two!("0", "0"), quarter_of_two!("64", "1024"),
            quarter_of_two!("128", "2048"), quarter_of_two!("192", "3072"),
            "tilestored [{sums} + {line}*1], tmm0", "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2", "tilestored [{sums} + {line}*1 + 3072], tmm3",
            low = in(reg) low.as_ptr(), high = in(reg) high.as_ptr(), row = in(reg) CHUNK, line = in(reg) 64usize,
            x0 = in(reg) groups[0], x1 = in(reg) groups[1], sums = in(reg) sums.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
        );
    }
}

/// # Safety
/// As for [`stretch`], and what it checks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn small_blocks<const MINS: bool>(
    stretch: &TileStretch<'_>,
    scratch: &mut TileScratch,
    sums: [&mut [TileSums]; 2],
) {
    let TileStretch { scheme, codes, columns, start, len, .. } = *stretch;
    let groups = columns.groups;
    let minus = _mm512_set1_epi16(-i16::from(scheme.offset));
    let ones = _mm512_set1_epi16(1);
    // SAFETY: `check`: each group has its tiles, scales and sums at `start`.
    unsafe {
        // Steps of a block and up to four groups: the products of one run while the sums of the one before are taken.
        let fours = groups.div_ceil(4);
        let steps = (len / SMALL) * fours;
        let multiply = |step: usize, integers: &mut [[[i32; TILE_COLUMNS]; PANEL_ROWS]; 4]| {
            let (block, first) = (step / fours, step % fours * 4);
            let tile = |i: usize| {
                let group = (first + i).min(groups - 1);
                columns.tiles.as_ptr().add(columns.at(start, group) * (CHUNK / 4) + block * (SMALL / 4))
            };
            multiply_four(codes.c.as_ptr().cast::<u8>().add(block * SMALL), std::array::from_fn(tile), integers);
        };
        multiply(0, &mut scratch.sums[0]);
        for step in 0..steps {
            let [a, b] = &mut scratch.sums;
            let (now, next) = if step % 2 == 0 { (a, b) } else { (b, a) };
            if step + 1 < steps {
                multiply(step + 1, next);
            }
            let (block, first) = (step / fours, step % fours * 4);
            for group in first..groups.min(first + 4) {
                let integers = &now[group - first];
                let at = columns.at(start, group) * (CHUNK / SMALL) + block;
                let x_d = _mm512_load_ps(columns.d[at].0.as_ptr());
                let pairs = _mm512_load_si512(columns.sums16[at].0.as_ptr().cast());
                let of_offset = _mm512_dpwssd_epi32(_mm512_setzero_si512(), pairs, minus);
                let x_sum = _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(_mm512_setzero_si512(), pairs, ones));
                let sums = &mut sums[block % 2][group / columns.planes];
                let fresh = start == 0 && block < 2 && group % columns.planes == 0;
                for row in 0..PANEL_ROWS {
                    let dot = _mm512_add_epi32(_mm512_load_si512(integers[row].as_ptr().cast()), of_offset);
                    let to = sums.0[row].as_mut_ptr();
                    let scale = _mm512_mul_ps(_mm512_set1_ps(codes.d[block][row]), x_d);
                    let before = if fresh { _mm512_setzero_ps() } else { _mm512_load_ps(to) };
                    let mut acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), before);
                    if MINS {
                        let scale = _mm512_mul_ps(_mm512_set1_ps(codes.min[block][row]), x_d);
                        acc = _mm512_fmadd_ps(scale, x_sum, acc);
                    }
                    _mm512_store_ps(to, acc);
                }
            }
        }
    }
}

/// Four products of 16 x 64 x 16 from tiles at hand, `count` times: what the tiles can do at most.
///
/// # Safety
/// [`available`] must have said so.
pub(crate) unsafe fn multiply_registers(_: &Tiles, count: u64) {
    // SAFETY: touches nothing but tiles.
    unsafe {
        asm!(
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbusd tmm0, tmm4, tmm6", "tdpbssd tmm1, tmm5, tmm6",
            "tdpbusd tmm2, tmm4, tmm7", "tdpbssd tmm3, tmm5, tmm7",
            "dec {count}", "jnz 2b",
            count = inout(reg) count => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem)
        );
    }
}

/// 16 rows of 32 codes, 256 bytes apart, by four groups.
///
/// # Safety
/// Tiles must be configured as [`SMALL_TILES`]; the codes must be there, and at each other pointer 8 lines.
unsafe fn multiply_four(codes: *const u8, groups: [*const Line; 4], sums: &mut [[[i32; TILE_COLUMNS]; PANEL_ROWS]; 4]) {
    // SAFETY: loads and stores lie in the arguments, by the caller's word.
    unsafe {
        asm!(
            "tileloadd tmm4, [{codes} + {row}*1]", "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tileloadd tmm6, [{x0} + {line}*1]", "tdpbusd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{x1} + {line}*1]", "tdpbusd tmm1, tmm4, tmm7",
            "tileloadd tmm6, [{x2} + {line}*1]", "tdpbusd tmm2, tmm4, tmm6",
            "tileloadd tmm7, [{x3} + {line}*1]", "tdpbusd tmm3, tmm4, tmm7",
            "tilestored [{sums} + {line}*1], tmm0", "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2", "tilestored [{sums} + {line}*1 + 3072], tmm3",
            codes = in(reg) codes, row = in(reg) CHUNK, line = in(reg) 64usize, sums = in(reg) sums.as_mut_ptr(),
            x0 = in(reg) groups[0], x1 = in(reg) groups[1], x2 = in(reg) groups[2], x3 = in(reg) groups[3],
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
        );
    }
}

/// Turns sums, after adding those of odd blocks to those of even ones where there are any. out
/// `[activation, weight row]`
///
/// # Safety
/// The machine must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn finish(even: &TileSums, odd: Option<&TileSums>, out: &mut TileSums) {
    let Some(odd) = odd else {
        // SAFETY: both are 16 lines of 16 words.
        return unsafe { transpose(even.0.as_ptr().cast(), 16, out.0.as_mut_ptr().cast()) };
    };
    let mut sums = TileSums::ZERO;
    for row in 0..PANEL_ROWS {
        for column in 0..TILE_COLUMNS {
            sums.0[row][column] = even.0[row][column] + odd.0[row][column];
        }
    }
    // SAFETY: both are 16 lines of 16 words.
    unsafe { transpose(sums.0.as_ptr().cast(), 16, out.0.as_mut_ptr().cast()) };
}
