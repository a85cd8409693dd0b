//! AMX: 16 x 64 activations by 64 x 16 weights of int8 in one instruction.
//!
//! Weights are the right operand, which wants them as records have them: four values of each of 16 rows to a line. The
//! instructions are written as assembly: std::arch has none on stable Rust.
//!
//! A large block's integer scales go into the weights before the product ([`Scaled`]). So a block costs two tile
//! products to 64 values, and floats once in 256.
//!
//! **Few tiles alive.** Where another thread runs on the same core, a tile waits for a free register of the core's own,
//! and there are hardly more than eight: a loop that keeps all eight tiles full does one thing at a time and takes 4
//! times as long. So at most five are in use at once, and a tile that is done with is set to zero, which frees its
//! register: measured, 15 ns to a product with its loads, where four sums and four operands took 33.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::groups::{LargeRows, SmallRows, TILE_ROWS, TileSums};
use super::records::{BYTES16, Integers, Source, halves, pairs, with_large};
use super::scaled::Scaled;
use super::{CHUNK, Codes, OCTET, OCTETS, PANEL_ROWS, ask};
use crate::isa::Simd;
use crate::panels::{LINE_BYTES, Plan, Record};
use crate::unpack;

/// Whether the machine has AMX with int8 and the system lets us use it.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && has_permission() || emulated())
}

/// Whether instructions on tiles end in an emulator (a feature for tests).
fn emulated() -> bool {
    #[cfg(all(feature = "emulated-amx", target_os = "linux"))]
    return super::emulated::install();
    #[cfg(not(all(feature = "emulated-amx", target_os = "linux")))]
    false
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
    /// Tiles 0 and 1 are sums, 2 activations of so many columns, 3 to 7 weights of as many.
    const fn new(columns: u16) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            config.row_bytes[i] = if i == 2 { columns } else { 64 };
            config.rows[i] = if i > 2 { (columns / 4) as u8 } else { 16 };
            i += 1;
        }
        config
    }
}

static LARGE: Config = Config::new(64);
static SMALL: Config = Config::new(32);

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
        let config = if block == OCTET { &SMALL } else { &LARGE };
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

type Integers16 = [[i32; PANEL_ROWS]; TILE_ROWS];

/// What a panel is multiplied in. Reused from panel to panel.
#[repr(C, align(64))]
pub(crate) struct TileScratch {
    weights: Scaled,
    /// Integer sums, two sets in turn. `[set, low or high]`
    sums: [[Integers16; 2]; 2],
}

impl TileScratch {
    pub fn boxed() -> Box<Self> {
        Box::new(Self { weights: Scaled::ZERO, sums: [[[[0; _]; _]; _]; _] })
    }
}

/// What will be read after a record: the next one, and its first group. They need not exist.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    pub record: *const u8,
    pub group: *const [[i8; CHUNK]; TILE_ROWS],
}

impl Next {
    /// Asks for a quarter of the next record.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fetch_quarter(self, quarter: usize, record: Record<'_>) {
        let lines = record.bytes.len() / LINE_BYTES;
        for line in lines * quarter / 4..lines * (quarter + 1) / 4 {
            ask(self.record, line);
        }
    }
}

type LargeKernel = unsafe fn(Record<'_>, (&[LargeRows], Next), &mut TileScratch, &mut [TileSums]);

fn check(record: Record<'_>, tiles: &Tiles, block: usize, [groups, sums]: [usize; 2]) {
    let Record { scheme, bytes, octets, .. } = record;
    assert!(tiles.block == block && scheme.block == block && (1..=OCTETS).contains(&octets));
    assert!(octets == OCTETS || block == OCTET);
    assert!(bytes.len() == scheme.record_bytes(octets));
    assert!(sums > 0 && groups.is_multiple_of(sums));
}

/// What `super::run` computes, of one record for groups of 16 rows; the record at column 0 overwrites the sums. groups
/// `[sums, planes]`
///
/// # Safety
/// The machine must have AVX-512 with VNNI.
pub(crate) unsafe fn large_chunk(
    tiles: &Tiles,
    record: Record<'_>,
    (groups, next): (&[LargeRows], Next),
    scratch: &mut TileScratch,
    sums: &mut [TileSums],
) {
    check(record, tiles, CHUNK, [groups.len(), sums.len()]);
    let large: LargeKernel = with_large!(record.scheme.plan, large[]);
    // SAFETY: the caller's; checked above.
    unsafe { large(record, (groups, next), scratch, sums) };
}

/// 64 columns of a group by the low and high bytes of weights; the last quarter stores the sums.
macro_rules! multiply_quarter {
    ($q:tt, $scales:expr, $($operands:expr),*) => {
        // High bytes have a sign where scales have one.
        match $scales {
            ..BYTES16 => multiply_quarter!($q "tdpbsud", $($operands),*),
            _ => multiply_quarter!($q "tdpbssd", $($operands),*),
        }
    };
    (0 $high_product:literal, $($operands:expr),*) => {
        multiply_quarter!(@ "tilezero tmm0\ntilezero tmm1", "0", "0", "", $high_product, $($operands),*)
    };
    (1 $high_product:literal, $($operands:expr),*) => {
        multiply_quarter!(@ "", "64", "1024", "", $high_product, $($operands),*)
    };
    (2 $high_product:literal, $($operands:expr),*) => {
        multiply_quarter!(@ "", "128", "2048", "", $high_product, $($operands),*)
    };
    (3 $high_product:literal, $($operands:expr),*) => {
        multiply_quarter!(@ "", "192", "3072",
            "tilestored [{sums} + {line}*1], tmm0\ntilestored [{sums} + {line}*1 + 1024], tmm1",
            $high_product, $($operands),*)
    };
    (@ $before:literal, $column:literal, $lines:literal, $after:literal, $high_product:literal,
        $group:expr, $low:expr, $high:expr, $sums:expr) => {
        asm!(
            $before,
            concat!("tileloadd tmm2, [{x} + {row}*1 + ", $column, "]"),
            concat!("tileloadd tmm3, [{low} + {line}*1 + ", $lines, "]"),
            "tdpbsud tmm0, tmm2, tmm3",
            "tilezero tmm3",
            concat!("tileloadd tmm4, [{high} + {line}*1 + ", $lines, "]"),
            concat!($high_product, " tmm1, tmm2, tmm4"),
            "tilezero tmm2", "tilezero tmm4",
            $after,
            "/* {x} {low} {high} {sums} {line} {row} */",
            x = in(reg) $group, low = in(reg) $low, high = in(reg) $high, sums = in(reg) $sums.as_mut_ptr(),
            row = in(reg) CHUNK, line = in(reg) LINE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
        )
    };
}

/// Asks for an eighth of a group's activations: tile loads wait for the second-level cache, and nothing goes on then.
#[inline]
#[target_feature(enable = "avx512f")]
fn fetch_eighth(eighth: usize, v: *const [[i8; CHUNK]; TILE_ROWS]) {
    (eighth * 8..eighth * 8 + 8).for_each(|line| ask(v.cast(), line));
}

/// # Safety
/// As for [`large_chunk`], and what it checks; `PLAN` and `SCALES` must be those of the scheme.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn large<const PLAN: u8, const SCALES: u8>(
    record: Record<'_>,
    (groups, next): (&[LargeRows], Next),
    scratch: &mut TileScratch,
    sums: &mut [TileSums],
) {
    let (source, integers) = (Source::of(record), Integers::of(record));
    let planes = groups.len() / sums.len();
    // SAFETY: the caller's.
    unsafe {
        scratch.weights.fill::<PLAN, SCALES>(source, integers, record.scheme.offset);
        let mins = if SCALES >= BYTES16 { 0 } else { pairs(SCALES) };
        let mut m = [_mm512_setzero_si512(); 8];
        (0..mins).for_each(|pair| m[pair] = integers.pair::<SCALES>(pair));
        let [w_d, w_min] = integers.floats::<SCALES>();
        let TileScratch { weights: Scaled { low, high }, sums: integer_sums } = scratch;
        let (low, high) = (low.as_ptr().cast::<u8>(), high.as_ptr().cast::<u8>());
        // The products of one group while the floats of the one before are computed.
        for step in 0..=groups.len() {
            let [a, b] = &mut *integer_sums;
            let (now, before) = if step % 2 == 0 { (a, b) } else { (b, a) };
            let group = groups.get(step).map(|group| group.v.as_ptr().cast::<u8>());
            let of = step.wrapping_sub(1);
            macro_rules! quarter {
                ($q:tt) => {
                    let after = groups.get(step + 1).map_or(next.group, |group| &raw const group.v);
                    if step < groups.len() {
                        fetch_eighth($q * 2, after);
                        fetch_eighth($q * 2 + 1, after);
                    }
                    if step == 0 {
                        next.fetch_quarter($q, record);
                    }
                    if let Some(group) = group {
                        multiply_quarter!($q, SCALES, group, low, high, now);
                    }
                    if let Some(group) = groups.get(of) {
                        let fresh = record.start == 0 && of % planes == 0;
                        let sums = &mut sums[of / planes];
                        for row in $q * 4..$q * 4 + 4 {
                            let load = |i: usize| _mm512_load_si512(before[i][row].as_ptr().cast());
                            let dot = Scaled::sum::<SCALES>([load(0), load(1)]);
                            let mut t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(dot));
                            if mins > 0 {
                                let x_sums = match mins {
                                    4 => group.sums32[row].as_ptr().cast::<i32>(),
                                    _ => group.sums16[row].as_ptr().cast::<i32>(),
                                };
                                let mut of_min = _mm512_setzero_si512();
                                for pair in 0..mins {
                                    let x_sums = _mm512_set1_epi32(x_sums.add(pair).read());
                                    of_min = _mm512_dpwssd_epi32(of_min, m[pair], x_sums);
                                }
                                t = _mm512_fmadd_ps(w_min, _mm512_cvtepi32_ps(of_min), t);
                            }
                            let to = sums.0[row].as_mut_ptr();
                            let acc = if fresh { _mm512_setzero_ps() } else { _mm512_load_ps(to) };
                            _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_set1_ps(group.d[row]), t, acc));
                        }
                    }
                };
            }
            quarter!(0);
            quarter!(1);
            quarter!(2);
            quarter!(3);
        }
    }
}

/// What `super::run` computes, of one record for groups of 16 rows; the record at column 0 overwrites the sums. groups
/// `[sums, planes]`
///
/// # Safety
/// The machine must have AVX-512 with VNNI.
pub(crate) unsafe fn small_chunk(
    simd: Simd,
    tiles: &Tiles,
    record: Record<'_>,
    (groups, next): (&[SmallRows], Next),
    (codes, scratch): (&mut Codes, &mut TileScratch),
    sums: &mut [TileSums],
) {
    check(record, tiles, OCTET, [groups.len(), sums.len()]);
    let lines = match record.scheme.plan {
        Plan::Bytes => Source::of(record).0,
        _ => {
            unpack::codes(simd, record, &mut codes.c);
            codes.c.as_ptr().cast()
        }
    };
    // SAFETY: the caller's; checked above.
    unsafe {
        match record.scheme.mins {
            false => small::<false>(record, lines, (groups, next), scratch, sums),
            true => small::<true>(record, lines, (groups, next), scratch, sums),
        }
    }
}

/// # Safety
/// As for [`small_chunk`], and what it checks; the codes of the record must be at `lines`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn small<const MINS: bool>(
    record: Record<'_>,
    lines: *const u8,
    (groups, next): (&[SmallRows], Next),
    scratch: &mut TileScratch,
    sums: &mut [TileSums],
) {
    let Record { scheme, bytes, octets, start } = record;
    let mins = scheme.mins_at(octets);
    let planes = groups.len() / sums.len();
    let offset = -i32::from(scheme.offset);
    let mut spread = Spread([0; _], [0.0; _]);
    let integer_sums: &mut [Integers16; 4] = scratch.sums.as_flattened_mut().try_into().expect("four");
    // Steps between: the sums of the step just before are still on their way to memory.
    const LAG: usize = 2;
    // SAFETY: the caller's.
    unsafe {
        for (i, (planes_of, sums)) in groups.chunks_exact(planes).zip(sums).enumerate() {
            let mut acc: [__m512; TILE_ROWS] = match start {
                0 => [_mm512_setzero_ps(); TILE_ROWS],
                _ => std::array::from_fn(|row| _mm512_load_ps(sums.0[row].as_ptr())),
            };
            // The products of one step while the floats of an earlier one are computed.
            for step in 0..octets * planes + LAG {
                if step < octets * planes {
                    let (o, plane) = (step / planes, step % planes);
                    let after = groups.get((i + 1) * planes + plane).map_or(next.group, |group| &raw const group.v);
                    fetch_eighth(o, after);
                    if i == 0 && plane == 0 && o < 4 {
                        next.fetch_quarter(o, record);
                    }
                    multiply_octet(
                        planes_of[plane].v.as_ptr().cast::<u8>().add(o * OCTET),
                        lines.add(o * 512),
                        &mut integer_sums[step % 4],
                    );
                }
                let Some(step) = step.checked_sub(LAG) else { continue };
                let before = &integer_sums[step % 4];
                let (o, plane) = (step / planes, step % planes);
                let group = &planes_of[plane];
                let w_d = halves(bytes.as_ptr().add(o * PANEL_ROWS * 2));
                let w_min = if MINS { halves(bytes.as_ptr().add(mins + o * PANEL_ROWS * 2)) } else { w_d };
                let x_sums = _mm512_load_si512(group.sums[o].as_ptr().cast());
                let minus = _mm512_mullo_epi32(x_sums, _mm512_set1_epi32(offset));
                _mm512_store_si512(spread.0.as_mut_ptr().cast(), minus);
                _mm512_store_ps(spread.1.as_mut_ptr(), _mm512_cvtepi32_ps(x_sums));
                // Read as they are wanted: lanes of a vector are slower to spread than memory.
                let spread = std::hint::black_box(&spread);
                for row in 0..TILE_ROWS {
                    let dot = _mm512_load_si512(before[row].as_ptr().cast());
                    let dot = _mm512_add_epi32(dot, _mm512_set1_epi32(spread.0[row]));
                    let mut t = _mm512_mul_ps(w_d, _mm512_cvtepi32_ps(dot));
                    if MINS {
                        t = _mm512_fmadd_ps(w_min, _mm512_set1_ps(spread.1[row]), t);
                    }
                    acc[row] = _mm512_fmadd_ps(_mm512_set1_ps(group.d[o][row]), t, acc[row]);
                }
            }
            (0..TILE_ROWS).for_each(|row| _mm512_store_ps(sums.0[row].as_mut_ptr(), acc[row]));
        }
    }
}

/// A number for each row.
#[repr(C, align(64))]
struct Spread([i32; TILE_ROWS], [f32; TILE_ROWS]);

/// 16 rows of 32 activations, 256 bytes apart, by eight lines of weights.
///
/// # Safety
/// They must be there, and the tiles configured as [`SMALL`].
#[inline(always)]
unsafe fn multiply_octet(x: *const u8, lines: *const u8, sums: &mut Integers16) {
    // SAFETY: loads and stores lie in the arguments.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm2, [{x} + {row}*1]",
            "tileloadd tmm3, [{lines} + {line}*1]",
            "tdpbsud tmm0, tmm2, tmm3",
            "tilezero tmm2", "tilezero tmm3",
            "tilestored [{sums} + {line}*1], tmm0",
            x = in(reg) x, lines = in(reg) lines, sums = in(reg) sums.as_mut_ptr(),
            row = in(reg) CHUNK, line = in(reg) LINE_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
        );
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
