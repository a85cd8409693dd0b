//! Buffers are plain vectors `[rows_max, cols]`; ops read a view as a tensor and write a tensor to a view.

use candle_core::{Device, Result as CandleResult, Tensor};
use lingqu_backend::{BackendError, Result, View, ViewMut};
use lingqu_types::Batch;

use crate::device;

/// What a step holds here: all of it on the host.
pub struct StepData {
    pub batch: Batch,
    /// `[rows]`
    pub positions: Vec<u32>,
    pub block_tokens: usize,
}

/// Zeros for a tensor of these dimensions, or an error where they cannot be had.
pub fn zeroed(what: &str, dims: &[usize]) -> Result<Vec<f32>> {
    let len = dims.iter().try_fold(1usize, |len, dim| len.checked_mul(*dim));
    // Asking first is the way to an error instead of an abort; the pages are only touched when written.
    let granted = len.is_some_and(|len| Vec::<f32>::new().try_reserve_exact(len).is_ok());
    match len {
        Some(len) if granted => Ok(vec![0.0; len]),
        _ => {
            let bytes = len.unwrap_or(usize::MAX).saturating_mul(size_of::<f32>());
            Err(BackendError::OutOfMemory { what: what.into(), bytes })
        }
    }
}

pub fn expect_rows(op: &str, expected: usize, rows: usize) {
    assert_eq!(rows, expected, "{op}: rows in use");
}

/// Where each head of each row starts: row after row, head after head.
fn heads(x: View<'_>) -> impl Iterator<Item = usize> {
    let (cols, heads, offset, stride) = (x.buffer.cols(), x.heads, x.offset, x.head_stride);
    (0..x.rows()).flat_map(move |r| (0..heads).map(move |h| r * cols + offset + h * stride))
}

/// Copies a view to `out`. `[rows, heads, len]`
pub fn read(x: View<'_>, out: &mut [f32]) {
    let values: &Vec<f32> = x.buffer.storage();
    for (from, out) in heads(x).zip(out.chunks_exact_mut(x.len.max(1))) {
        out.copy_from_slice(&values[from..from + x.len]);
    }
}

/// Copies `values` to a view. `[rows, heads, len]`
pub fn write_values(values: &[f32], out: ViewMut<'_>) {
    let starts: Vec<usize> = heads(as_view(&out)).collect();
    let stored: &mut Vec<f32> = out.buffer.storage_mut();
    for (to, values) in starts.into_iter().zip(values.chunks_exact(out.len.max(1))) {
        stored[to..to + out.len].copy_from_slice(values);
    }
}

/// A view as a tensor `[rows, heads, len]`.
pub fn tensor(x: View<'_>) -> CandleResult<Tensor> {
    let mut values = vec![0.0; x.rows() * x.width()];
    read(x, &mut values);
    Tensor::from_vec(values, (x.rows(), x.heads, x.len), &Device::Cpu)
}

/// The same for what an op is about to overwrite.
pub fn tensor_of_out(out: &ViewMut<'_>) -> CandleResult<Tensor> {
    tensor(as_view(out))
}

pub fn as_view<'a>(out: &'a ViewMut<'_>) -> View<'a> {
    View { buffer: out.buffer, heads: out.heads, head_stride: out.head_stride, offset: out.offset, len: out.len }
}

/// Writes a tensor of as many values as the view has.
pub fn write(op: &str, y: &Tensor, out: ViewMut<'_>) -> Result<()> {
    assert_eq!(y.elem_count(), out.rows() * out.width(), "{op}: values of the output");
    let values: Vec<f32> = y.flatten_all().and_then(|y| y.to_vec1()).map_err(device)?;
    write_values(&values, out);
    Ok(())
}
