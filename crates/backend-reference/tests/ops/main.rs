//! Every op of the reference against numbers worked out by hand, or against its definition in plain f64 loops.

mod attention;
mod contract;
mod experts;
mod rows;

use lingqu_backend::{Backend, Buffer, Step, Weight};
use lingqu_backend_reference::ReferenceBackend;
use lingqu_tensor::HostTensor;
use lingqu_types::{Batch, BlockId, SequenceSlice};

fn reference() -> ReferenceBackend {
    ReferenceBackend::new()
}

/// A buffer with all its rows in use.
fn buffer(cols: usize, values: &[f32]) -> Buffer {
    let rows = values.len() / cols;
    let mut buffer = reference().alloc(rows, cols).unwrap();
    buffer.set_rows(rows);
    reference().write(values, buffer.view_mut()).unwrap();
    buffer
}

fn empty(rows: usize, cols: usize) -> Buffer {
    buffer(cols, &vec![7.0; rows * cols]) // `out` is overwritten, so it need not be zero
}

fn values(buffer: &Buffer) -> Vec<f32> {
    let mut values = vec![0.0; buffer.rows() * buffer.cols()];
    reference().read(buffer.view(), &mut values).unwrap();
    values
}

fn table(shape: [usize; 2], values: &[f32]) -> Weight {
    reference().upload_table(&HostTensor::from_f32("table", shape, values)).unwrap()
}

/// Numbers in -1..1 that are always the same.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435769).wrapping_add(12345);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn check_close(what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: values");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= 1e-6 * (1.0 + want.abs()), "{what}: value {i} is {got}, should be {want}");
    }
}

/// `W x` for a matrix `[out, in]`.
fn product(w: &[f32], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// A step of sequences given as `(rows, context, blocks)`.
fn step(sequences: &[(usize, usize, &[u32])], block_tokens: usize) -> Step {
    let mut batch = Batch::default();
    for (rows, context, blocks) in sequences {
        let start = batch.tokens.len();
        batch.tokens.extend((0..*rows).map(|i| i as u32));
        let blocks = blocks.iter().map(|b| BlockId(*b)).collect();
        batch.sequences.push(SequenceSlice { rows: start..start + rows, context: *context, blocks, adapter: None });
        batch.logit_rows.push((start + rows - 1) as u32);
    }
    reference().begin_step(&batch, block_tokens).unwrap()
}
