//! AMX: 16 x 64 activations by 64 x 16 weights of int8 in one instruction.
//!
//! Weights are the right operand, which wants them as records have them: four values of each of 16 rows to a line. The
//! instructions are written as assembly: std::arch has none on stable Rust. A *unit* of work is a record of one panel
//! against a group of 16 rows; two panels go together, so that activations come from the nearest cache every second
//! time.
//!
//! **Written in the order in which things are ready.** A product has its sums 52 cycles after its operands, which take
//! some 20 from the nearest cache, and what waits fills the core's window: so the operands of a product are loaded a
//! stage before it, sums are stored a stage or more after it, and their floats computed a unit later still. Few tiles
//! are alive at once, and one that is done with is set to zero, which frees its register: where another thread runs on
//! the core there are hardly more than eight.
//!
//! **Few multiplications of floats.** While tiles are in use, a core of Sapphire Rapids multiplies (and converts)
//! vectors of 512 bits in one of its two pipes only; it adds in both. Measured: 0.33 ns to a product or conversion
//! beside tile loads, 0.19 without; 0.2 to a sum in either case.

use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::groups::TILE_ROWS;
use super::{OCTET, OCTETS, PANEL_ROWS, ask};
use crate::panels::Record;

mod large;
mod small;

pub(crate) use large::large_chunk;
pub(crate) use small::small_chunk;

/// Panels that are multiplied together.
pub(crate) const TOGETHER: usize = 2;

/// Whether the machine has AMX with int8 and bf16 and the system lets us use it.
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
    const WANTED: u32 = 1 << 22 | 1 << 24 | 1 << 25; // bf16, tiles, int8
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & WANTED == WANTED
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
    /// Tile 2 holds activations of so many columns, 3 and 4 weights of as many, the others sums.
    const fn new(columns: u16) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            config.row_bytes[i] = if i == 2 { columns } else { 64 };
            config.rows[i] = if i == 3 || i == 4 { (columns / 4) as u8 } else { 16 };
            i += 1;
        }
        config
    }
}

static LARGE: Config = Config::new(64);
static SMALL: Config = Config::new(32);

/// The tiles of this thread, shaped for blocks of 32 or 256 values; given back to the system when dropped: held, they
/// slow down what else the core does. Between calls those with sums are zero.
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

/// A tile of sums. `[row of activations, weight row]`
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile<T>([[T; PANEL_ROWS]; TILE_ROWS]);

impl<T> Tile<T> {
    fn row(&self, row: usize) -> *const T {
        self.0[row].as_ptr()
    }
}

/// What records are multiplied in. Reused from record to record.
#[repr(C, align(64))]
pub(crate) struct TileScratch {
    large: large::Scratch,
    small: small::Scratch,
}

impl TileScratch {
    pub fn boxed() -> Box<Self> {
        Box::new(Self { large: large::Scratch::ZERO, small: small::Scratch::ZERO })
    }
}

/// The records that will be read next. They need not exist.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    pub records: [*const u8; TOGETHER],
    /// Of a record.
    pub lines: usize,
}

impl Next {
    /// Asks for one of so many parts, if there is such a part.
    #[inline]
    fn ask(self, part: usize, parts: usize) {
        if part < parts {
            let lines = self.lines * part / parts..self.lines * (part + 1) / parts;
            self.records.iter().for_each(|record| lines.clone().for_each(|line| ask(*record, line)));
        }
    }
}

/// What the unchecked loads rely on. records: of each panel; groups `[sums / panels, planes]`
fn check(records: &[Record<'_>], tiles: &Tiles, block: usize, [groups, sums]: [usize; 2]) {
    assert!((1..=TOGETHER).contains(&records.len()) && tiles.block == block);
    for record in records {
        let Record { scheme, bytes, octets, start } = *record;
        assert!(scheme == records[0].scheme && octets == records[0].octets && start == records[0].start);
        assert!(scheme.block == block && (1..=OCTETS).contains(&octets) && (octets == OCTETS || block == OCTET));
        assert!(bytes.len() == scheme.record_bytes(octets));
    }
    assert!(sums > 0 && sums.is_multiple_of(records.len()) && groups.is_multiple_of(sums / records.len()));
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
