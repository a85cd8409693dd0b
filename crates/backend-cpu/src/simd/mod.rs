//! The few kernels that are written by hand for each instruction set, one file per set.
//!
//! They work on weights that were unpacked into a small scratch just before: [`Codes`] of 16 weight rows for the block
//! formats, plain f32 rows for the float formats. All else is plain Rust, compiled once per set by `per_isa!`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod columns;
mod portable;
#[cfg(target_arch = "x86_64")]
mod stored;

#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::isa::Simd;
use lingqu_tensor::Format;

/// Weight rows of a panel: outputs that are computed side by side.
pub(crate) const PANEL_ROWS: usize = 16;
/// Values of a row that are unpacked at a time.
pub(crate) const CHUNK: usize = 256;
/// Lanes over which a dot of floats is spread.
pub(crate) const LANES: usize = 16;
/// Weight rows of floats that are multiplied at a time.
pub(crate) const FLOAT_ROWS: usize = 8;
/// Values that share a floating-point scale in the formats of small blocks, and of activations that meet them.
pub(crate) const SMALL: usize = 32;

/// 16 rows x 256 values of a block format: what unpacking writes.
///
/// A value is `d * s * (c - offset) + min * m`; see [`Scheme`]. Formats of small blocks have 8 blocks here and neither
/// `s` nor `m`; the others one block of 8 or 16 groups, whose integers `s` and `m` come with them.
#[repr(C, align(64))]
pub(crate) struct Codes {
    /// Unused where the kernels read codes from the stored bytes: see [`Direct`]. `[row, value]`
    pub c: [[u8; CHUNK]; PANEL_ROWS],
    /// `[row, group]`
    pub s: [[i16; 16]; PANEL_ROWS],
    /// `[pair of groups, row, 2]`
    pub m: [[[i16; 2]; PANEL_ROWS]; 8],
    /// Scale of each block. `[block, row]`
    pub d: [[f32; PANEL_ROWS]; 8],
    /// Minimum of each block, or what scales `m`. `[block, row]`
    pub min: [[f32; PANEL_ROWS]; 8],
}

impl Codes {
    pub fn boxed() -> Box<Self> {
        let (c, s, m) = ([[0; _]; _], [[0; _]; _], [[[0; _]; _]; _]);
        Box::new(Self { c, s, m, d: [[0.0; _]; _], min: [[0.0; _]; _] })
    }
}

/// Stored blocks of 256 values that the kernels of an instruction set read themselves.
#[derive(Clone, Copy)]
pub(crate) struct Direct<'a> {
    pub format: Format,
    /// From the first row's block on.
    pub data: &'a [u8],
    pub row_bytes: usize,
    /// Rows that there are, 1 to 16.
    pub rows: usize,
    pub ahead: Ahead,
}

/// What will be read after this stretch. 16 rows side by side are more streams than the hardware follows, so it is
/// asked for line by line, a few lines with each row: all at once they would wait for each other.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    from: *const u8,
    bytes_per_row: usize,
}

impl Ahead {
    /// As many bytes for each row of a panel, which need not exist.
    pub fn new(from: *const u8, bytes_per_row: usize) -> Self {
        Self { from, bytes_per_row }
    }

    /// Asks for a row's, at most `LINES` of 64 bytes.
    #[inline(always)]
    pub fn fetch<const LINES: usize>(self, row: usize) {
        #[cfg(target_arch = "x86_64")]
        for line in 0..LINES {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let address = self.from.wrapping_add(row * self.bytes_per_row + line * 64);
            // SAFETY: a hint; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }
}

impl<'a> Direct<'a> {
    /// The rows, where this instruction set has kernels for their format.
    pub fn new(
        simd: Simd,
        format: Format,
        data: &'a [u8],
        [row_bytes, rows]: [usize; 2],
        ahead: Ahead,
    ) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if simd.isa() >= Isa::Avx512 && matches!(format, Format::Q4K | Format::Q6K) {
            assert!((1..=PANEL_ROWS).contains(&rows) && data.len() >= (rows - 1) * row_bytes + format.block_bytes());
            return Some(Self { format, data, row_bytes, rows, ahead });
        }
        let _ = (simd, format, data, row_bytes, rows, ahead);
        None
    }
}

/// Scales and minima of blocks that are read directly.
pub(crate) fn scales(direct: Direct<'_>, codes: &mut Codes) {
    // SAFETY: a `Direct` exists, so the machine has AVX-512 and the rows are there.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        stored::scales(direct, codes);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (direct, codes);
}

/// How the codes of a block format become values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// Values of a block: 32 (a floating-point scale each) or 256 (one, and an integer for each group).
    pub block: usize,
    /// Values that share a scale and minimum, a float or an integer: 16 or 32.
    pub group: usize,
    /// What is subtracted from a code.
    pub offset: u8,
    pub mins: bool,
}

/// Where 16 values of a block of 256 are among its activations, which are kept in another order: of four groups of 32
/// first the even ones, then the odd ones, as Q4_K has them in the low and high halves of its bytes.
pub(crate) const fn place_of(sixteen: usize) -> usize {
    let (half, group) = (sixteen / 8, sixteen / 2 % 4);
    half * 128 + (group % 2 * 2 + group / 2) * 32 + sixteen % 2 * 16
}

/// Rows of quantised activations: `x = sum over planes of d * v`.
#[derive(Clone, Copy)]
pub(crate) struct QuantRows<'a> {
    /// Values that share a scale: 32 or 256.
    pub block: usize,
    /// 1 or 2.
    pub planes: usize,
    /// Values of a row with its padding of zeros: a multiple of 64.
    pub stride: usize,
    /// `[rows, planes, stride]`, each in -127..=127; blocks of 256 in the order of [`place_of`]
    pub v: &'a [i8],
    /// `[rows, planes, stride / block]`
    pub d: &'a [f32],
    /// Sums of 16 values. `[rows, planes, stride / 16]`
    pub sums16: &'a [i16],
    /// Sums of 32 values. `[rows, planes, stride / 32]`
    pub sums32: &'a [i16],
}

impl QuantRows<'_> {
    pub fn rows(&self) -> usize {
        self.v.len() / (self.stride * self.planes).max(1)
    }
}

/// One stretch of a panel against some rows.
#[derive(Clone, Copy)]
pub(crate) struct Stretch<'a> {
    pub scheme: Scheme,
    pub codes: &'a Codes,
    /// Where the codes are, if not in `codes`.
    pub direct: Option<Direct<'a>>,
    pub x: QuantRows<'a>,
    /// Where the stretch starts, in values of a row (a multiple of 256).
    pub start: usize,
    /// Values of the stretch (whole blocks).
    pub len: usize,
    /// Rows of `x`.
    pub rows: &'a [u32],
}

/// A row's running sums with the 16 rows of a panel: blocks of even and of odd number apart.
pub(crate) type Sums = [[f32; PANEL_ROWS]; 2];

impl Stretch<'_> {
    /// What the unchecked loads of the kernels rely on.
    fn check(&self, sums: &[Sums]) {
        let Stretch { scheme, x, start, len, rows, .. } = *self;
        assert!(x.block == scheme.block && (x.block == SMALL || x.block == CHUNK) && (1..=2).contains(&x.planes));
        assert!(len <= CHUNK && len.is_multiple_of(x.block) && start.is_multiple_of(CHUNK));
        assert!(x.stride.is_multiple_of(64) && x.stride.is_multiple_of(x.block));
        assert!(start + len.next_multiple_of(64) <= x.stride);
        let vectors = x.rows() * x.planes;
        assert!(x.v.len() == vectors * x.stride && x.d.len() == vectors * (x.stride / x.block));
        assert!(x.sums16.len() == vectors * (x.stride / 16) && x.sums32.len() == vectors * (x.stride / 32));
        assert!(self.direct.is_none() || scheme.block == CHUNK);
        assert!(sums.len() == rows.len() && rows.iter().all(|&r| (r as usize) < x.rows()));
    }
}

/// Adds the stretch's part of each dot. For each block of weights in order, for each plane of activations in order:
/// `acc = fma(d * x.d, i, acc)` with the exact integer `i = sum(s * (c - offset) * v)`, then with minima
/// `acc = fma(min * x.d, j, acc)` with `j = sum(m * v)`. Small blocks (`s` and `m` are 1) go by turns to two sums. No
/// integer leaves 32 bits: |s (c - offset)| <= 4096, so |i| < 2^27. sums `[rows]`
pub(crate) fn stretch(simd: Simd, stretch: Stretch<'_>, sums: &mut [Sums]) {
    stretch.check(sums);
    match simd.isa() {
        // SAFETY: a `Simd` of this set exists; `check` has passed.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { avx512::stretch(stretch, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::stretch(stretch, sums) },
        _ => portable::stretch(stretch, sums),
    }
}

/// Sums of products, spread over lanes: lane `j` has the values `j, j + 16, ...` in order.
pub(crate) type LaneSums = [[f32; LANES]; FLOAT_ROWS];

/// Some float rows of weights against some rows of activations.
#[derive(Clone, Copy)]
pub(crate) struct Dots<'a> {
    /// `[8, w_stride]`, 0 beyond the rows and values in use
    pub w: &'a [f32],
    pub w_stride: usize,
    /// `[rows, x_stride]`, 0 beyond the values in use
    pub x: &'a [f32],
    pub x_stride: usize,
    /// Where in a row of `x` the weights start.
    pub start: usize,
    /// A multiple of 16.
    pub len: usize,
    /// Rows of `x`.
    pub rows: &'a [u32],
}

impl Dots<'_> {
    /// What the unchecked loads of the kernels rely on.
    fn check(&self, sums: &[LaneSums]) {
        assert!(self.len.is_multiple_of(LANES) && self.len <= self.w_stride);
        assert!(self.w.len() >= (FLOAT_ROWS - 1) * self.w_stride + self.len);
        assert!(self.start + self.len <= self.x_stride && sums.len() == self.rows.len());
        let rows = self.x.len() / self.x_stride.max(1);
        assert!(self.rows.iter().all(|&r| (r as usize) < rows));
    }
}

/// `sums[i][w][lane] = fma(w, x, ..)` over the stretch, in order. sums `[rows, 8, 16]`
pub(crate) fn dots(simd: Simd, dots: Dots<'_>, sums: &mut [LaneSums]) {
    dots.check(sums);
    match simd.isa() {
        // SAFETY: a `Simd` of this set exists; `check` has passed.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { avx512::dots(dots, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::dots(dots, sums) },
        _ => portable::dots(dots, sums),
    }
}

/// Adds up lanes as a tree: `j` and `j + 8`, then `j + 4`, `j + 2`, `j + 1`.
#[inline(always)]
pub(crate) fn reduce(lanes: &[f32; LANES]) -> f32 {
    let a: [f32; 8] = std::array::from_fn(|j| lanes[j] + lanes[j + 8]);
    let b: [f32; 4] = std::array::from_fn(|j| a[j] + a[j + 4]);
    (b[0] + b[2]) + (b[1] + b[3])
}

#[cfg(test)]
mod tests;
