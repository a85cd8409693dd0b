//! AMX in software, so that its kernels are tested on machines without it.
//!
//! Where tiles are missing, each of their instructions ends in an illegal-instruction signal. The handler here decodes
//! it, does what Intel's manual says on tiles that it keeps for the thread, and goes on behind it. It does so strictly:
//! what a machine would refuse (tiles that are not configured, shapes that do not fit) ends the process.

use std::cell::UnsafeCell;
use std::sync::OnceLock;

/// Sets the handler up; whether that went well.
pub(super) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SAFETY: plain data, of which the handler and its flags are set; the handler takes what the flags promise it.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn on_illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system gives the handler the registers of the thread that it stopped.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let mut is_ours = false;
    // They come in rows: a signal for each would be most of the time.
    while let Some(instruction) = Instruction::decode(registers) {
        // SAFETY: the tiles are this thread's, and no instruction of theirs is under way in here.
        TILES.with(|tiles| unsafe { (*tiles.get()).run(&instruction) });
        registers[libc::REG_RIP as usize] += instruction.bytes as i64;
        is_ours = true;
    }
    if !is_ours {
        // Without the handler it ends the process as it would have.
        // SAFETY: a system call.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

type Registers = [libc::greg_t; 23];

/// An instruction on tiles, as its bytes say.
struct Instruction {
    /// The prefix: none, 66, F3 or F2.
    prefix: u8,
    opcode: u8,
    /// Of three tiles `reg` is the one that is changed.
    reg: usize,
    rm: usize,
    vvvv: usize,
    /// Where it has an operand in memory: address, and bytes from row to row.
    memory: Option<(usize, isize)>,
    /// Its length.
    bytes: usize,
}

impl Instruction {
    fn decode(registers: &Registers) -> Option<Self> {
        let start = registers[libc::REG_RIP as usize] as *const u8;
        // SAFETY: an instruction is here, and what is read of it is within its length: five bytes with this prefix.
        let byte = |i: usize| unsafe { start.add(i).read() };
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 {
            return None;
        }
        let (first, second, opcode, modrm) = (byte(1), byte(2), byte(3), byte(4));
        if second & 0x84 != 0 || ![0x49, 0x4b, 0x5c, 0x5e].contains(&opcode) {
            return None;
        }
        let extended = |low: u8, inverted: bool| usize::from(low & 7) + if inverted { 0 } else { 8 };
        let (reg, rm) = (usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
        let vvvv = usize::from(!second >> 3 & 15);
        let mut bytes = 5;
        let memory = (modrm >> 6 != 3).then(|| {
            let mut stride = 0;
            let mut base = extended(modrm, first & 0x20 != 0);
            if rm == 4 {
                let sib = byte(5);
                bytes += 1;
                base = extended(sib, first & 0x20 != 0);
                let index = extended(sib >> 3, first & 0x40 != 0);
                stride = if index == 4 { 0 } else { register(registers, index) << (sib >> 6) };
            }
            let (displacement, size) = match modrm >> 6 {
                1 => (isize::from(byte(bytes) as i8), 1),
                2 => (i32::from_le_bytes(std::array::from_fn(|i| byte(bytes + i))) as isize, 4),
                _ => {
                    assert!(base & 7 != 5, "an address without a base, which no kernel uses");
                    (0, 0)
                }
            };
            bytes += size;
            (register(registers, base).wrapping_add(displacement) as usize, stride)
        });
        Some(Self { prefix: second & 3, opcode, reg, rm, vvvv, memory, bytes })
    }
}

/// A register by the number that instructions have for it.
fn register(registers: &Registers, number: usize) -> isize {
    use libc::{REG_R8, REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
    let place = match number {
        8.. => REG_R8 as usize + number - 8,
        _ => [REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI][number] as usize,
    };
    registers[place] as isize
}

thread_local! {
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles { shapes: None, rows: [[[0; 64]; 16]; 8] }) };
}

/// The tiles of a thread.
struct Tiles {
    /// Rows and their bytes of each, once configured.
    shapes: Option<[(usize, usize); 8]>,
    /// `[tile, row, byte]`, zero beyond its shape
    rows: [[[u8; 64]; 16]; 8],
}

impl Tiles {
    /// # Safety
    /// What the instruction says must be true of memory.
    unsafe fn run(&mut self, instruction: &Instruction) {
        let Instruction { prefix, opcode, reg, rm, vvvv, memory, .. } = *instruction;
        match (opcode, prefix, memory) {
            // SAFETY: the caller's.
            (0x49, 0, Some((at, _))) => self.configure(unsafe { &*(at as *const [u8; 64]) }),
            (0x49, 0, None) => self.shapes = None,
            (0x49, 3, None) => {
                self.shape(reg);
                self.rows[reg] = [[0; 64]; 16];
            }
            (0x4b, 1..=3, Some((at, stride))) => {
                let (rows, bytes) = self.shape(reg);
                let row = |i: usize| at.wrapping_add_signed(stride * i as isize) as *mut u8;
                // SAFETY: the caller's.
                match prefix {
                    2 => (0..rows).for_each(|i| unsafe { row(i).copy_from(self.rows[reg][i].as_ptr(), bytes) }),
                    _ => {
                        self.rows[reg] = [[0; 64]; 16];
                        (0..rows).for_each(|i| unsafe { row(i).copy_to(self.rows[reg][i].as_mut_ptr(), bytes) });
                    }
                }
            }
            (0x5c, 2, None) => self.multiply_floats([reg, rm, vvvv]),
            (0x5e, _, None) => self.multiply([reg, rm, vvvv], [prefix >= 2, prefix % 2 == 1]),
            _ => panic!("no kernel uses opcode {opcode:x} with prefix {prefix}"),
        }
    }

    fn configure(&mut self, config: &[u8; 64]) {
        let [palette, start_row, ..] = *config;
        assert!(palette == 1 && start_row == 0, "palette {palette}, row {start_row}");
        assert!(config[2..16].iter().chain(&config[32..48]).chain(&config[56..]).all(|byte| *byte == 0));
        self.shapes = Some(std::array::from_fn(|tile| {
            let bytes = usize::from(u16::from_le_bytes([config[16 + tile * 2], config[17 + tile * 2]]));
            let rows = usize::from(config[48 + tile]);
            assert!((1..=16).contains(&rows) && (1..=64).contains(&bytes), "tile {tile}: {rows} rows of {bytes} bytes");
            (rows, bytes)
        }));
        self.rows = [[[0; 64]; 16]; 8];
    }

    fn shape(&self, tile: usize) -> (usize, usize) {
        self.shapes.expect("tiles are configured before they are used")[tile]
    }

    /// Adds to each 32-bit word of `to` the dots of four bytes. signed: the operands
    fn multiply(&mut self, tiles: [usize; 3], signed: [bool; 2]) {
        let value = |byte: u8, signed| if signed { i32::from(byte as i8) } else { i32::from(byte) };
        self.add_products(tiles, |sum, x, w| {
            let products = (0..4).map(|i| value(x[i], signed[0]) * value(w[i], signed[1]));
            products.fold(i32::from_le_bytes(sum), i32::wrapping_add).to_le_bytes()
        });
    }

    /// The same of floats with the dots of two of bf16. What kernels multiply is exact: nothing is said of rounding.
    fn multiply_floats(&mut self, tiles: [usize; 3]) {
        let value = |word: [u8; 4], i: usize| f32::from_le_bytes([0, 0, word[i * 2], word[i * 2 + 1]]);
        self.add_products(tiles, |sum, x, w| {
            let products = (0..2).map(|i| value(x, i) * value(w, i));
            products.fold(f32::from_le_bytes(sum), |sum, product| sum + product).to_le_bytes()
        });
    }

    /// To each word of `to` what `add` makes of it and the words that meet there.
    fn add_products(&mut self, [to, left, right]: [usize; 3], add: impl Fn([u8; 4], [u8; 4], [u8; 4]) -> [u8; 4]) {
        assert!(to != left && to != right && left != right, "three tiles");
        let [(rows, bytes), (left_rows, left_bytes), (right_rows, right_bytes)] =
            [to, left, right].map(|t| self.shape(t));
        assert!(rows == left_rows && bytes == right_bytes && bytes.is_multiple_of(4) && left_bytes == right_rows * 4);
        let word =
            |tile: &[[u8; 64]; 16], row: usize, at: usize| -> [u8; 4] { std::array::from_fn(|i| tile[row][at + i]) };
        for row in 0..rows {
            for column in (0..bytes).step_by(4) {
                let sum = (0..right_rows).fold(word(&self.rows[to], row, column), |sum, k| {
                    add(sum, word(&self.rows[left], row, k * 4), word(&self.rows[right], k, column))
                });
                self.rows[to][row][column..column + 4].copy_from_slice(&sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    /// `$product` of 3 rows of 8 bytes by 2 rows of 12, added to 3 rows of 12: the sums before and after.
    macro_rules! product {
        ($product:literal, $left:expr, $right:expr) => {{
            let mut config = [0u8; 64];
            config[0] = 1;
            for tile in 0..8 {
                (config[16 + tile * 2], config[48 + tile]) = [(12, 3), (8, 3), (12, 2)][tile.min(2)];
            }
            let (left, right): ([[u8; 8]; 3], [[u8; 12]; 2]) = ($left, $right);
            let before: [[i32; 3]; 3] = std::array::from_fn(|i| std::array::from_fn(|j| (i * 1000 + j) as i32 - 7));
            let mut after = [[0i32; 3]; 3];
            // SAFETY: the tiles have the shapes of the arrays.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]",
                    "tilezero tmm0",
                    "tileloadd tmm0, [{before} + {twelve}*4 - 120]",
                    "tileloadd tmm1, [{left} + {eight}*1]",
                    "tileloadd tmm2, [{right} + {twelve}*4 + 1000]",
                    concat!($product, " tmm0, tmm1, tmm2"),
                    "tilestored [{after} + {twelve}*4], tmm0",
                    "tilerelease",
                    config = in(reg) config.as_ptr(),
                    before = in(reg) before.as_ptr().wrapping_byte_add(120), after = in(reg) after.as_mut_ptr(),
                    left = in(reg) left.as_ptr(), right = in(reg) right.as_ptr().wrapping_byte_sub(1000),
                    eight = in(reg) 8usize, twelve = in(reg) 3usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
                );
            }
            (before, after)
        }};
    }

    #[test]
    fn products_are_those_of_the_manual() {
        if !crate::simd::amx::available() {
            return println!("not tested: neither tiles nor a way to emulate them");
        }
        let left: [[u8; 8]; 3] = std::array::from_fn(|i| std::array::from_fn(|k| (200 + i * 37 + k * 91) as u8));
        let right: [[u8; 12]; 2] = std::array::from_fn(|k| std::array::from_fn(|j| (100 + k * 77 + j * 53) as u8));
        let signed = |byte: u8| i32::from(byte as i8);
        let unsigned = |byte: u8| i32::from(byte);
        let check = |(before, after): ([[i32; 3]; 3], [[i32; 3]; 3]), of: [&dyn Fn(u8) -> i32; 2]| {
            let want: [[i32; 3]; 3] = std::array::from_fn(|i| {
                std::array::from_fn(|j| {
                    let term = |k: usize| of[0](left[i][k]) * of[1](right[k / 4][j * 4 + k % 4]);
                    before[i][j] + (0..8).map(term).sum::<i32>()
                })
            });
            assert_eq!(after, want);
        };
        check(product!("tdpbssd", left, right), [&signed, &signed]);
        check(product!("tdpbsud", left, right), [&signed, &unsigned]);
        check(product!("tdpbusd", left, right), [&unsigned, &signed]);
        check(product!("tdpbuud", left, right), [&unsigned, &unsigned]);
    }

    #[test]
    fn products_of_floats_are_those_of_the_manual() {
        if !crate::simd::amx::available() {
            return println!("not tested: neither tiles nor a way to emulate them");
        }
        let bf16 = |value: usize| ((value as f32).to_bits() >> 16).to_le_bytes().first_chunk::<2>().copied().unwrap();
        let of = |values: [usize; 4]| values.map(bf16).as_flattened().first_chunk::<8>().copied().unwrap();
        let left = std::array::from_fn(|i| of([i + 1, 3, 64 * i, 7]));
        let right = std::array::from_fn(|k| {
            let words: [[u8; 2]; 6] = std::array::from_fn(|j| bf16(10 * k + j));
            words.as_flattened().first_chunk::<12>().copied().unwrap()
        });
        let (before, after) = product!("tdpbf16ps", left, right);
        for i in 0..3 {
            for j in 0..3 {
                let at = |k: usize, second: usize| 10 * k + 2 * j + second;
                let dot = (i + 1) * at(0, 0) + 3 * at(0, 1) + 64 * i * at(1, 0) + 7 * at(1, 1);
                // The sums before are no normal floats, which these instructions take for zeros.
                let before = f32::from_bits(before[i][j].cast_unsigned());
                let before = if before.is_nan() { before } else { 0.0 };
                let (got, want) = (f32::from_bits(after[i][j].cast_unsigned()), before + dot as f32);
                assert!(got == want || got.is_nan() && want.is_nan(), "row {i}, column {j}: {got} for {want}");
            }
        }
    }
}
