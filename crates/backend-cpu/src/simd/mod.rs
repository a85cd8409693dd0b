//! The few kernels that are written by hand for each instruction set, one file per set.
//!
//! They work on weights that were unpacked into a small scratch just before: a [`Panel`] of 16 weight rows for the
//! block formats, plain f32 rows for the float formats. All else is plain Rust, compiled once per set by `per_isa!`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::isa::Simd;

/// Weight rows of a panel: outputs that are computed side by side.
pub(crate) const PANEL_ROWS: usize = 16;
/// Values of a row that are unpacked at a time.
pub(crate) const CHUNK: usize = 256;
/// Lanes over which a dot of floats is spread.
pub(crate) const LANES: usize = 16;
/// Weight rows of floats that are multiplied at a time.
pub(crate) const FLOAT_ROWS: usize = 8;
/// Values that share one scale of quantised activations.
pub(crate) const X_GROUP: usize = 32;

/// What a step of the first plane of quantised activations is worth, in steps of the second. 254 and not 256: both
/// planes then stay within -127..=127, whose signs AVX2 can turn.
pub(crate) const X_STEP: i32 = 254;
/// The largest quantised activation.
pub(crate) const X_MAX: f32 = 127.0 * X_STEP as f32;

/// 16 rows x 256 values of a block format, row by row: what unpacking writes.
#[repr(C, align(64))]
pub(crate) struct Unpacked {
    /// Integers plus their format's offset. `[row, value]`
    pub q: [[u8; CHUNK]; PANEL_ROWS],
    /// Scale of each group. `[row, group]`
    pub d: [[f32; 16]; PANEL_ROWS],
    /// Minimum of each group. `[row, group]`
    pub m: [[f32; 16]; PANEL_ROWS],
}

/// The same with the rows in lanes: what the kernels read. The layout of bytes is that of VNNI and of AMX tiles.
#[repr(C, align(64))]
pub(crate) struct Panel {
    /// `[value / 4, row, value % 4]`
    pub q: [[[u8; 4]; PANEL_ROWS]; CHUNK / 4],
    /// `[group, row]`
    pub d: [[f32; PANEL_ROWS]; 16],
    /// `[group, row]`
    pub m: [[f32; PANEL_ROWS]; 16],
}

/// How the integers of a block format become values: `d * (q - offset) + m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// Values that share a scale (and minimum): 16 or 32.
    pub group: usize,
    pub offset: u8,
    pub mins: bool,
}

/// Rows of quantised activations: `x = d * v` with `v = 254 q + r`, 32 values to a scale.
#[derive(Clone, Copy)]
pub(crate) struct QuantRows<'a> {
    /// Values of a row, a multiple of 32.
    pub cols: usize,
    /// `[rows, cols]`, each in -127..=127
    pub q: &'a [i8],
    /// `[rows, cols]`, each in -127..=127
    pub r: &'a [i8],
    /// `[rows, cols / 32]`
    pub d: &'a [f32],
    /// Sums of 16 values of `v`. `[rows, cols / 16]`
    pub sums: &'a [i32],
}

/// One stretch of a panel against some rows.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub scheme: Scheme,
    pub panel: &'a Panel,
    pub x: QuantRows<'a>,
    /// Where the panel starts, in values of a row (a multiple of 32).
    pub start: usize,
    /// Values of the panel in use (a multiple of 32).
    pub len: usize,
    /// Rows of `x`.
    pub rows: &'a [u32],
}

impl Tile<'_> {
    /// What the unchecked loads of the kernels rely on.
    fn check(&self, sums: &[[f32; PANEL_ROWS]]) {
        let x = &self.x;
        assert!(self.len <= CHUNK && self.len.is_multiple_of(X_GROUP) && self.start.is_multiple_of(X_GROUP));
        assert!(x.cols.is_multiple_of(X_GROUP) && self.start + self.len <= x.cols);
        let rows = x.q.len() / x.cols.max(1);
        assert!(x.r.len() == x.q.len() && x.d.len() == rows * (x.cols / 32) && x.sums.len() == rows * (x.cols / 16));
        assert!(sums.len() == self.rows.len() && self.rows.iter().all(|&r| (r as usize) < rows));
    }
}

/// Adds the tile's part of each dot: for each group of the scheme in order, with `i` the exact integer
/// `sum((q - offset) * x.v)` and `s = sum(x.v)`: `acc = fma(d * x.d, i, acc)`, then with minima
/// `acc = fma(m, x.d * s, acc)`. No integer leaves 32 bits: |i| < 2^28. sums `[rows, 16]`
pub(crate) fn tile(simd: Simd, tile: Tile<'_>, sums: &mut [[f32; PANEL_ROWS]]) {
    tile.check(sums);
    match simd.isa() {
        // SAFETY: a `Simd` of this set exists; `check` has passed.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::tile(tile, sums) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::tile(tile, sums) },
        _ => portable::tile(tile, sums),
    }
}

/// Puts the rows of `unpacked` into lanes.
pub(crate) fn interleave(simd: Simd, unpacked: &Unpacked, panel: &mut Panel) {
    match simd.isa() {
        // SAFETY: a `Simd` of this set exists.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::interleave(unpacked, panel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::interleave(unpacked, panel) },
        _ => portable::interleave(unpacked, panel),
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
        Isa::Avx512 => unsafe { avx512::dots(dots, sums) },
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
