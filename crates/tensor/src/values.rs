//! The values of a [`HostTensor`]: decoding, and the check that none of its numbers is broken.

use std::ops::Range;

use crate::host::{BlockScales, HostTensor, TensorError};
use crate::quant::{decode_blocks, scale_offsets};
use crate::{Format, quant};

impl HostTensor {
    /// Decodes row `row` into `out` (`[cols]` values). FP8 values come with their block scales applied (as they
    /// are where the tensor has none). Panics where `row` or the length of `out` do not fit the tensor.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {} of '{}'", self.rows, self.name);
        assert_eq!(out.len(), self.cols, "columns of '{}'", self.name);
        let bytes = self.row_bytes();
        decode_blocks(self.format, &self.data.as_slice()[row * bytes..][..bytes], out);
        if let Some(scales) = &self.scales {
            let row_scales = scales.row(row / scales.rows_per_block, self.cols);
            for (values, scale) in out.chunks_mut(scales.cols_per_block).zip(row_scales) {
                values.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }

    /// All values, row-major `[rows, cols]`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in values.chunks_exact_mut(self.cols).enumerate() {
                self.decode_row(row, out);
            }
        }
        values
    }

    /// Fails where a stored number is NaN or infinite: a float weight, an FP8 value or its block scale, or a scale
    /// of a GGUF block. Reads every byte of the tensor at about the speed of memory.
    pub fn check_finite_scales(&self) -> Result<(), TensorError> {
        self.check_finite_rows(0..self.rows)?;
        self.check_finite_block_scales()
    }

    /// The same of some rows alone, without [`BlockScales`].
    pub fn check_finite_rows(&self, rows: Range<usize>) -> Result<(), TensorError> {
        let data = &self.data.as_slice()[rows.start * self.row_bytes()..rows.end * self.row_bytes()];
        let broken = match self.format {
            Format::F32 => first_broken(data, |v| is_broken_f32(*v)),
            Format::F16 => first_broken(data, |v| u16::from_le_bytes(*v) & 0x7c00 == 0x7c00),
            Format::Bf16 => first_broken(data, |v| u16::from_le_bytes(*v) & 0x7f80 == 0x7f80),
            Format::Fp8E4M3 => first_broken(data, |&[v]| v & 0x7f == 0x7f),
            block => first_broken_block(block, data).map(|b| b * block.block_values()),
        };
        if let Some(value) = broken {
            let (row, col) = (rows.start + value / self.cols, value % self.cols);
            let what = if self.format.block_values() > 1 { "the block scale" } else { "the value" };
            return self.fail(format!("{what} at row {row}, column {col} ({}) is NaN or infinite", self.format));
        }
        Ok(())
    }

    /// The same of [`BlockScales`] alone.
    pub fn check_finite_block_scales(&self) -> Result<(), TensorError> {
        let scales = self.scales.as_ref().map_or(&[][..], |s| s.data.as_slice());
        match first_broken(scales, |v| is_broken_f32(*v)) {
            Some(scale) => self.fail(format!("block scale {scale} is NaN or infinite")),
            None => Ok(()),
        }
    }

    /// The bytes of row `row`, as stored.
    pub fn row_data(&self, row: usize) -> &[u8] {
        let bytes = self.row_bytes();
        &self.data.as_slice()[row * bytes..][..bytes]
    }

    /// An FP8 tensor `[rows, cols]` with one scale per `block` x `block` tile, encoded from `values`.
    pub fn fp8_from_f32(name: impl Into<String>, shape: [usize; 2], values: &[f32], block: usize) -> Self {
        let fp8 = quant::encode_fp8_blocks(values, shape, block);
        let scales: Vec<u8> = fp8.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        Self::new(name, shape, Format::Fp8E4M3, fp8.data.into())
            .and_then(|t| {
                t.with_scales(BlockScales { data: scales.into(), rows_per_block: block, cols_per_block: block })
            })
            .expect("encoded to fit the shape")
    }

    /// A tensor `[rows, cols]` in `format` from `values`, by the simple encoders of [`quant`] (FP8: 128 x 128
    /// blocks). `None` where a row is not whole blocks of the format.
    pub fn encode(name: impl Into<String>, shape: [usize; 2], format: Format, values: &[f32]) -> Option<Self> {
        let [rows, cols] = shape;
        assert_eq!(values.len(), rows * cols, "values fit the shape");
        if format == Format::Fp8E4M3 {
            return Some(Self::fp8_from_f32(name, shape, values, 128));
        }
        let mut data = Vec::with_capacity(format.row_bytes(cols)? * rows);
        for row in values.chunks_exact(cols.max(1)) {
            data.extend(quant::encode_row(format, row)?);
        }
        Some(Self::new(name, shape, format, data.into()).expect("encoded to fit the shape"))
    }
}

impl BlockScales {
    /// The scales of the row of blocks `block_row` of a tensor with `cols` columns. `[ceil(cols / cols_per_block)]`
    pub fn row(&self, block_row: usize, cols: usize) -> impl Iterator<Item = f32> + '_ {
        let per_row = cols.div_ceil(self.cols_per_block);
        let bytes = &self.data.as_slice()[block_row * per_row * 4..][..per_row * 4];
        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))
    }
}

fn is_broken_f32(bytes: [u8; 4]) -> bool {
    u32::from_le_bytes(bytes) & 0x7f80_0000 == 0x7f80_0000
}

/// The index of the first `N`-byte number that is broken. Runs of numbers are tested without a branch, so that the
/// compiler can use vector instructions; only a run with a broken one is searched.
fn first_broken<const N: usize>(bytes: &[u8], is_broken: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    let numbers = bytes.as_chunks().0;
    let run = numbers.chunks(4096).position(|run| run.iter().fold(false, |any, v| any | is_broken(v)))?;
    let start = run * 4096;
    Some(start + numbers[start..].iter().position(is_broken).expect("the run holds one"))
}

/// The index of the first block with a broken f16 scale.
fn first_broken_block(format: Format, bytes: &[u8]) -> Option<usize> {
    let offsets = scale_offsets(format);
    bytes
        .chunks_exact(format.block_bytes())
        .position(|block| offsets.iter().any(|&at| u16::from_le_bytes([block[at], block[at + 1]]) & 0x7c00 == 0x7c00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_rows_take_the_scales_of_their_block() {
        // 3 x 5 in blocks of 2: scales [2, 3], ragged below and right. 0x38 is 1.0.
        let scales: Vec<u8> = (1..=6).flat_map(|s| (s as f32).to_le_bytes()).collect();
        let scales = BlockScales { data: scales.into(), rows_per_block: 2, cols_per_block: 2 };
        let tensor = HostTensor::new("w", [3, 5], Format::Fp8E4M3, vec![0x38; 15].into()).unwrap();
        let tensor = tensor.with_scales(scales).unwrap();
        let upper = [1.0, 1.0, 2.0, 2.0, 3.0];
        let lower = [4.0, 4.0, 5.0, 5.0, 6.0];
        assert_eq!(tensor.to_f32(), [upper, upper, lower].concat());
    }

    #[test]
    fn a_row_is_decoded_alone() {
        let values: Vec<f32> = (0..96).map(|i| i as f32).collect();
        for format in [Format::F32, Format::F16, Format::Bf16, Format::Q8_0] {
            let tensor = HostTensor::encode("w", [3, 32], format, &values).unwrap();
            let mut row = [0.0; 32];
            tensor.decode_row(1, &mut row);
            assert_eq!(row[..], tensor.to_f32()[32..64], "{format}");
            assert!((row[31] - 63.0).abs() < 0.3, "{format}");
        }
        assert!(HostTensor::encode("w", [3, 32], Format::Q4K, &values).is_none());
        assert_eq!(HostTensor::from_f32("none", [4, 0], &[]).to_f32(), []);
    }

    #[test]
    fn broken_numbers_are_found_and_placed() {
        let check = |format: Format, at: usize, bytes: &[u8], says: &str| {
            let values: Vec<f32> = (0..4 * 512).map(|i| (i % 13) as f32 - 6.0).collect();
            let mut tensor = HostTensor::encode("w", [4, 512], format, &values).unwrap();
            assert_eq!(tensor.check_finite_scales(), Ok(()), "{format}");
            let mut data = tensor.data.as_slice().to_vec();
            data[at..at + bytes.len()].copy_from_slice(bytes);
            tensor.data = data.into();
            let error = tensor.check_finite_scales().expect_err(says);
            assert!(error.problem.contains(says), "{format}: {error}");
        };
        let (nan, inf) = (f32::NAN.to_le_bytes(), f32::NEG_INFINITY.to_le_bytes());
        check(Format::F32, 513 * 4, &nan, "row 1, column 1 ");
        check(Format::F32, 0, &inf, "row 0, column 0 ");
        check(Format::F16, 2047 * 2, &[0x00, 0x7c], "row 3, column 511 ");
        check(Format::Bf16, 5 * 2, &[0x80, 0xff], "row 0, column 5 ");
        check(Format::Fp8E4M3, 7, &[0x7f], "row 0, column 7 ");
        for format in &Format::ALL[4..] {
            for offset in scale_offsets(*format) {
                let block = 3 * 512 / format.block_values() + 1;
                let says = format!("block scale at row 3, column {} ", format.block_values());
                check(*format, block * format.block_bytes() + offset, &[0x01, 0xfc], &says);
            }
        }
        let values = vec![1.0; 130 * 5];
        let mut fp8 = HostTensor::fp8_from_f32("w", [130, 5], &values, 128);
        let scales = fp8.scales.as_mut().unwrap();
        scales.data = [1f32.to_le_bytes(), nan].concat().into();
        assert!(fp8.check_finite_scales().expect_err("a NaN scale").problem.contains("block scale 1 "));
    }
}
