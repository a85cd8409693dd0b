//! The one matrix product of attention, on f32 in the nearest cache: scores are queries x transposed keys, outputs are
//! weights x values. Also what brings 64 values of a tile of entries there: halves to f32, and keys transposed.

use lingqu_backend::KvPrecision;

#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::isa::{Simd, per_isa};
use crate::math::f16_to_f32;
use crate::memory::group_cells;

use super::ahead::Ahead;
use super::entries::Block;
#[cfg(target_arch = "x86_64")]
use super::x86;

/// Rows and columns of all that is multiplied here.
pub(super) const BLOCK: usize = 64;

/// `c += a x b`, where each value of `c` is one chain of fused multiply-adds over the depth, in order. It does not
/// matter to any value how rows or the depth are cut into calls.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// `[rows, depth]`, of which `from..to` is taken
    pub a: &'a [[f32; BLOCK]],
    pub from: usize,
    pub to: usize,
    /// `[depth, 64]`
    pub b: &'a [[f32; BLOCK]],
}

impl Product<'_> {
    /// What the unchecked loads and stores of the kernels rely on.
    fn check(&self, c: &[f32], c_stride: usize) {
        let Product { a, from, to, b } = *self;
        assert!(from <= to && to <= BLOCK && to <= b.len(), "depth of a product");
        assert!(c_stride >= BLOCK, "columns of a product");
        assert!(a.is_empty() || c.len() >= (a.len() - 1) * c_stride + BLOCK, "sums of a product");
    }

    /// Asks for what comes after it as it goes. c `[rows, c_stride]`, of which the first 64 columns are meant
    pub fn add_to(self, simd: Simd, c: &mut [f32], c_stride: usize, ahead: &mut Ahead<'_>) {
        self.check(c, c_stride);
        match simd.isa() {
            // SAFETY: a `Simd` of this set exists; `check` has passed.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => unsafe { x86::avx512::product(self, c.as_mut_ptr(), c_stride, ahead) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { x86::avx2::product(self, c.as_mut_ptr(), c_stride, ahead) },
            _ => self.add_to_plain(c, c_stride),
        }
    }

    /// The definition of the bits.
    fn add_to_plain(self, c: &mut [f32], c_stride: usize) {
        for (a, c) in self.a.iter().zip(c.chunks_mut(c_stride)) {
            for i in self.from..self.to {
                for (c, b) in c.iter_mut().zip(&self.b[i]) {
                    *c = a[i].mul_add(*b, *c);
                }
            }
        }
    }
}

/// A block of some entries: `out[i]` are the values that entry `i` holds there.
pub(super) fn decode(simd: Simd, cells: &[u16], entries: &[usize], block: Block, out: &mut [[f32; BLOCK]]) {
    let Block { cell, len, precision } = block;
    assert!(len <= BLOCK && entries.len() <= out.len(), "values of a tile");
    if precision == KvPrecision::Int8 {
        return from_bytes(simd, cells, entries, [cell, len], out);
    }
    let values = cell..cell + len;
    match simd.isa() {
        // SAFETY: a `Simd` of this set exists.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { x86::avx512::decode(cells, entries, values, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2::decode(cells, entries, values, out) },
        _ => {
            for (entry, out) in entries.iter().zip(out) {
                let halves = &cells[*entry..][values.clone()];
                halves.iter().zip(out).for_each(|(half, out)| *out = f16_to_f32(*half));
            }
        }
    }
}

per_isa! {
    /// Values of 8 bits times their scale.
    fn from_bytes(cells: &[u16], entries: &[usize], block: [usize; 2], out: &mut [[f32; BLOCK]]) = from_bytes_plain
}

#[inline(always)]
fn from_bytes_plain(cells: &[u16], entries: &[usize], [cell, len]: [usize; 2], out: &mut [[f32; BLOCK]]) {
    for (entry, out) in entries.iter().zip(out) {
        let group = &cells[entry + cell..][..group_cells(len)];
        let Some((scale, pairs)) = group.split_first() else { continue };
        let scale = f16_to_f32(*scale);
        // SAFETY: a cell is two bytes, and any bytes are numbers.
        let codes = unsafe { std::slice::from_raw_parts(pairs.as_ptr().cast::<i8>(), pairs.len() * 2) };
        let times_scale = |code: &i8| f32::from(*code) * scale;
        match codes.as_array::<BLOCK>().filter(|_| len == BLOCK) {
            Some(codes) => (0..BLOCK).for_each(|i| out[i] = times_scale(&codes[i])), // its length is known
            None => out[..len].iter_mut().zip(codes).for_each(|(out, code)| *out = times_scale(code)),
        }
    }
}

/// The columns of `x` as rows. x, out `[64, 64]`
pub(super) fn transpose(simd: Simd, x: &[[f32; BLOCK]; BLOCK], out: &mut [[f32; BLOCK]; BLOCK]) {
    match simd.isa() {
        // SAFETY: a `Simd` of this set exists.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { x86::avx512::transpose(x, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2::transpose(x, out) },
        _ => {
            for (i, x) in x.iter().enumerate() {
                (0..BLOCK).for_each(|j| out[j][i] = x[j]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::f32_to_f16;
    use crate::testing::{every_simd, normal};

    #[test]
    fn products_are_chains_in_order() {
        for (rows, depth) in [(1, 1), (3, 7), (8, 64), (16, 32), (23, 20), (0, 3)] {
            let c_stride = BLOCK + 16;
            let (a, b, c) = (normal(1, rows * BLOCK), normal(2, depth * BLOCK), normal(3, rows * c_stride));
            let (a, b) = (a.as_chunks().0, b.as_chunks().0);
            let mut want = c.clone();
            for (row, want) in want.chunks_mut(c_stride).enumerate() {
                for (col, want) in want[..BLOCK].iter_mut().enumerate() {
                    *want = (0..depth).fold(*want, |c, i| f32::mul_add(a[row][i], b[i][col], c));
                }
            }
            for simd in every_simd() {
                for cuts in [vec![0, depth], vec![0, depth / 2, depth]] {
                    let mut got = c.clone();
                    for cut in cuts.windows(2) {
                        let product = Product { a, from: cut[0], to: cut[1], b };
                        product.add_to(simd, &mut got, c_stride, &mut Ahead::none());
                    }
                    assert!(got == want, "{rows} x {depth} in {cuts:?} on {simd:?}");
                }
            }
        }
    }

    #[test]
    fn tiles_are_turned() {
        let x = normal(4, BLOCK * BLOCK);
        let x = x.as_chunks().0.first_chunk().unwrap();
        for simd in every_simd() {
            let mut out = [[0.0; BLOCK]; BLOCK];
            transpose(simd, x, &mut out);
            assert!((0..BLOCK * BLOCK).all(|i| out[i % BLOCK][i / BLOCK] == x[i / BLOCK][i % BLOCK]), "{simd:?}");
        }
    }

    #[test]
    fn entries_are_decoded_alike_on_all_sets() {
        // All that the cache can hold: what `f32_to_f16` makes.
        let cells: Vec<u16> = (0..=u16::MAX).map(|bits| f32_to_f16(f16_to_f32(bits))).collect();
        for (width, from) in [(64, 0), (64, 3), (17, 0), (1, 60), (48, 16)] {
            let entries: Vec<usize> = (0..cells.len() - 128).step_by(width).collect();
            for simd in every_simd() {
                for entries in entries.chunks(BLOCK) {
                    let mut out = [[7.0; BLOCK]; BLOCK];
                    let block = Block { cell: from, len: width, precision: KvPrecision::Full };
                    decode(simd, &cells, entries, block, &mut out);
                    for (entry, out) in entries.iter().zip(out) {
                        let want = cells[entry + from..][..width].iter().map(|half| f16_to_f32(*half).to_bits());
                        assert!(want.eq(out[..width].iter().map(|value| value.to_bits())), "{entry} on {simd:?}");
                        assert!(out[width..].iter().all(|value| *value == 7.0));
                    }
                }
            }
        }
    }
}
