//! The few kernels that are written by hand for each instruction set, one file per set.
//!
//! Block formats come as records of repacked weights (see `panels.rs`), floats as plain f32 rows that were decoded just
//! before. All else is plain Rust, compiled once per set by `per_isa!`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(feature = "emulated-amx", target_arch = "x86_64", target_os = "linux"))]
mod emulated;
#[cfg(target_arch = "x86_64")]
pub(crate) mod groups;
mod interleave;
mod portable;
#[cfg(target_arch = "x86_64")]
mod records;
#[cfg(target_arch = "x86_64")]
mod records_avx2;
mod rows;
#[cfg(target_arch = "x86_64")]
mod scaled;
#[cfg(target_arch = "x86_64")]
mod steps;
#[cfg(target_arch = "x86_64")]
pub(crate) mod twins;

#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::isa::Simd;
#[cfg(target_arch = "x86_64")]
use crate::panels::LINE_BYTES;
use crate::panels::{Panels, Record};
use crate::unpack;

pub(crate) use interleave::{Strided, interleave};
pub(crate) use rows::{QuantRows, RowChunk, pair_place};

/// Weight rows of a panel: outputs that are computed side by side.
pub(crate) const PANEL_ROWS: usize = 16;
/// Columns of a record.
pub(crate) const CHUNK: usize = 256;
/// Columns that share a scale in the formats of small blocks, and of activations that meet them.
pub(crate) const OCTET: usize = 32;
/// Octets of a whole record.
pub(crate) const OCTETS: usize = CHUNK / OCTET;
/// Panels that are read side by side where memory is what a product waits for: more streams get more of its width.
pub(crate) const STREAMS: usize = 4;
/// Rows up to which a core of AMD's reads one stream faster, without asking ahead (Zen 4, measured; one of Intel's
/// reads four faster, asked for ahead).
pub(crate) const IN_TURN_ROWS_MAX: usize = 3;
/// Lanes over which a dot of floats is spread.
pub(crate) const LANES: usize = 16;
/// Weight rows of floats that are multiplied at a time.
pub(crate) const FLOAT_ROWS: usize = 8;

/// A record, unpacked: 16 rows x 256 values, for sets that do not read records themselves.
///
/// A value is `d * s * (c - offset) + min * m`; see [`crate::panels::Scheme`]. Formats of small blocks have 8 blocks
/// here and neither `s` nor `m`; the others one block of 8 or 16 groups, whose integers `s` and `m` come with them.
#[repr(C, align(64))]
pub(crate) struct Codes {
    /// `[value / 4, row, value % 4]`
    pub c: [[u8; 64]; CHUNK / 4],
    /// `[group, row]`
    pub s: [[i32; PANEL_ROWS]; 16],
    /// In pairs as the sums of activations have them: see [`pair_place`]. `[pair of groups, row, 2]`
    pub m: [[[i16; 2]; PANEL_ROWS]; 8],
    /// Scale of each block. `[block, row]`
    pub d: [[f32; PANEL_ROWS]; OCTETS],
    /// Minimum of each block, or what scales `m`. `[block, row]`
    pub min: [[f32; PANEL_ROWS]; OCTETS],
}

impl Codes {
    pub fn boxed() -> Box<Self> {
        let (c, s, m) = ([[0; _]; _], [[0; _]; _], [[[0; _]; _]; _]);
        Box::new(Self { c, s, m, d: [[0.0; _]; _], min: [[0.0; _]; _] })
    }
}

/// Panels against some rows.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub panels: &'a Panels,
    /// The first panel, and how many.
    pub first: usize,
    pub count: usize,
    /// Whether they are read one after the other, not side by side.
    pub in_turn: bool,
    pub x: QuantRows<'a>,
    /// Rows of `x`.
    pub rows: &'a [u32],
}

/// A row's running sums with the 16 rows of a panel.
pub(crate) type Sums = [f32; PANEL_ROWS];

impl<'a> Run<'a> {
    /// What the unchecked loads of the kernels rely on.
    fn check(&self, sums: &[Sums]) {
        let Run { panels, first, count, x, rows, .. } = *self;
        x.check();
        assert!(x.block == panels.scheme.block && panels.records() <= x.count());
        assert!(panels.start() <= first && first + count <= panels.end());
        assert!(sums.len() == count * rows.len() && rows.iter().all(|&r| (r as usize) < x.rows));
    }

    /// All records: `(panel of the run, record)`.
    fn records(&self) -> impl Iterator<Item = (usize, Record<'a>)> {
        let Run { panels, first, count, .. } = *self;
        let of_panel = move |k| (0..panels.records()).map(move |number| (k, panels.record(first + k, number)));
        (0..count).flat_map(of_panel)
    }
}

/// Sets the sums to the dots. For each block of weights in order, for each plane of activations in order, with the
/// exact integers `i = sum(s * (c - offset) * v)` and `j = sum(m * v)`: `t = d * i`, with minima `t = fma(min, j, t)`,
/// then `acc = fma(x.d, t, acc)`, from 0. Small blocks have 1 for `s` and `m`. No integer leaves 32 bits:
/// |s (c - offset)| <= 4096, so |i| < 2^27. sums `[panels, rows]`
pub(crate) fn run(simd: Simd, run: Run<'_>, codes: &mut Codes, sums: &mut [Sums]) {
    run.check(sums);
    sums.fill([0.0; PANEL_ROWS]);
    if run.rows.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if simd.isa() >= Isa::Avx512 {
        // SAFETY: a `Simd` of this set exists; `check` has passed.
        return unsafe { avx512::run(run, sums) };
    }
    #[cfg(target_arch = "x86_64")]
    if simd.isa() == Isa::Avx2 {
        // SAFETY: as above.
        return unsafe { avx2::run(run, sums) };
    }
    for (k, record) in run.records() {
        unpack::record(simd, record, codes);
        portable::record(run, record, codes, &mut sums[k * run.rows.len()..(k + 1) * run.rows.len()]);
    }
}

/// Asks the nearest cache for a line from `first` on, which need not be there.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn ask(first: *const u8, line: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, of SSE.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(line * LINE_BYTES).cast()) };
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
