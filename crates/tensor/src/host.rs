//! A named weight in host memory, still in its stored format.

use thiserror::Error;

use crate::bytes::Bytes;
use crate::format::Format;

/// A tensor whose bytes do not fit its shape and format, or a value that cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("tensor '{name}': {problem}")]
pub struct TensorError {
    pub name: String,
    pub problem: String,
}

/// Scales of an FP8 tensor: value = fp8 * scales[row / rows_per_block][col / cols_per_block].
#[derive(Clone, Debug)]
pub struct BlockScales {
    /// Little-endian f32, row-major `[ceil(rows / rows_per_block), ceil(cols / cols_per_block)]`.
    pub data: Bytes,
    pub rows_per_block: usize,
    pub cols_per_block: usize,
}

/// A matrix `[rows, cols]` (or vector, rows = 1) in host memory, row-major, in its stored format.
///
/// A weight of a linear layer is `[out, in]`, as in PyTorch; quantised blocks run along a row.
#[derive(Clone, Debug)]
pub struct HostTensor {
    pub name: String,
    pub rows: usize,
    pub cols: usize,
    pub format: Format,
    pub data: Bytes,
    /// Present exactly for [`Format::Fp8E4M3`].
    pub scales: Option<BlockScales>,
}

impl HostTensor {
    /// Checks that the bytes are just what shape and format say.
    pub fn new(name: impl Into<String>, shape: [usize; 2], format: Format, data: Bytes) -> Result<Self, TensorError> {
        let [rows, cols] = shape;
        let tensor = Self { name: name.into(), rows, cols, format, data, scales: None };
        let expected = format.row_bytes(cols).and_then(|b| b.checked_mul(rows));
        match expected {
            Some(bytes) if bytes == tensor.data.len() => Ok(tensor),
            Some(bytes) => {
                let held = tensor.data.len();
                tensor.fail(format!("[{rows}, {cols}] in {format} is {bytes} bytes, but {held} are stored"))
            }
            None => tensor.fail(format!("a row of {cols} values is not whole blocks of {format}")),
        }
    }

    /// The same for an FP8 tensor with its scales.
    pub fn with_scales(mut self, scales: BlockScales) -> Result<Self, TensorError> {
        if self.format != Format::Fp8E4M3 {
            return self.fail("only FP8 tensors have block scales".into());
        }
        if scales.rows_per_block == 0 || scales.cols_per_block == 0 {
            return self.fail("a scale block of no values".into());
        }
        let blocks = self.rows.div_ceil(scales.rows_per_block) * self.cols.div_ceil(scales.cols_per_block);
        if scales.data.len() != blocks * 4 {
            let held = scales.data.len() / 4;
            return self.fail(format!("{blocks} block scales are needed, but {held} are stored"));
        }
        self.scales = Some(scales);
        Ok(self)
    }

    /// A tensor of f32 values.
    pub fn from_f32(name: impl Into<String>, shape: [usize; 2], values: &[f32]) -> Self {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(name, shape, Format::F32, data.into()).expect("values fit the shape")
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols).expect("checked when made")
    }

    /// The rows `range` as a tensor of its own, sharing the bytes. FP8: `range.start` must be a multiple of
    /// `rows_per_block`, since scales are shared by whole row blocks.
    pub fn row_range(&self, name: impl Into<String>, range: std::ops::Range<usize>) -> Result<Self, TensorError> {
        let row = self.row_bytes();
        let Some(data) = self.data.slice(range.start.saturating_mul(row)..range.end.saturating_mul(row)) else {
            return self.fail(format!("rows {range:?} of {}", self.rows));
        };
        let part = Self::new(name, [range.len(), self.cols], self.format, data)?;
        let Some(scales) = &self.scales else { return Ok(part) };
        if !range.start.is_multiple_of(scales.rows_per_block) {
            return self.fail(format!("rows {range:?} do not start at a block of scales"));
        }
        let per_row = self.cols.div_ceil(scales.cols_per_block) * 4;
        let first = range.start / scales.rows_per_block * per_row;
        let last = range.end.div_ceil(scales.rows_per_block) * per_row;
        let data = scales.data.slice(first..last).expect("scales were checked when made");
        part.with_scales(BlockScales { data, ..scales.clone() })
    }

    pub(crate) fn fail<T>(&self, problem: String) -> Result<T, TensorError> {
        Err(TensorError { name: self.name.clone(), problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fit_shape_and_format() {
        let check = |shape: [usize; 2], format, bytes: usize, ok: bool| {
            let made = HostTensor::new("w", shape, format, vec![0u8; bytes].into());
            assert_eq!(made.is_ok(), ok, "{shape:?} {format} {bytes}: {made:?}");
        };
        check([2, 32], Format::Q8_0, 68, true);
        check([2, 32], Format::Q8_0, 67, false);
        check([2, 33], Format::Q8_0, 68, false);
        check([1, 256], Format::Q4K, 144, true);
        check([usize::MAX, 256], Format::Q4K, 144, false);
        check([0, 8], Format::F32, 0, true);
    }

    #[test]
    fn fp8_scales_are_counted_with_ragged_blocks() {
        let tensor = || HostTensor::new("w", [130, 5], Format::Fp8E4M3, vec![0u8; 650].into()).unwrap();
        let scales = |n: usize| BlockScales { data: vec![0u8; n * 4].into(), rows_per_block: 128, cols_per_block: 128 };
        assert!(tensor().with_scales(scales(1)).is_err());
        let whole = tensor().with_scales(scales(2)).unwrap();
        let tail = whole.row_range("tail", 128..130).unwrap();
        assert_eq!((tail.rows, tail.scales.unwrap().data.len()), (2, 4));
        assert!(whole.row_range("odd", 1..2).is_err());
        assert!(whole.row_range("past", 128..131).is_err());
    }
}
