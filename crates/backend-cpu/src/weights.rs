//! Uploaded weights: the stored bytes themselves, shared with whoever mapped them, never a copy.

use lingqu_backend::{BackendError, ExpertWeights, FfnSource, FfnWeights, LinearSource, Weight};
use lingqu_tensor::{Format, HostTensor, TensorError, quant};

use crate::Result;
use crate::activations::Wanted;
use crate::simd::{CHUNK, LANES, SMALL, Scheme};
use crate::unpack::{StoredRows, scheme};

/// A matrix `[rows, cols]` in its stored format.
pub(crate) struct Matrix {
    tensor: HostTensor,
    /// How its blocks become values; `None` for floats.
    pub scheme: Option<Scheme>,
    scales: Option<Scales>,
}

/// Scales of an FP8 matrix, `[row blocks, column blocks]`.
struct Scales {
    values: Vec<f32>,
    rows_per_block: usize,
    cols_per_block: usize,
}

impl Matrix {
    pub fn new(tensor: &HostTensor) -> Result<Self> {
        let scales = tensor.scales.as_ref().map(|scales| Scales {
            values: scales.data.as_slice().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            rows_per_block: scales.rows_per_block,
            cols_per_block: scales.cols_per_block,
        });
        if tensor.format == Format::Fp8E4M3 && scales.is_none() {
            let problem = "FP8 without its block scales".into();
            return Err(BackendError::Tensor(TensorError { name: tensor.name.clone(), problem }));
        }
        Ok(Self { tensor: tensor.clone(), scheme: scheme(tensor.format), scales })
    }

    pub fn rows(&self) -> usize {
        self.tensor.rows
    }

    pub fn cols(&self) -> usize {
        self.tensor.cols
    }

    pub fn bytes(&self) -> usize {
        self.tensor.data.len() + self.scales.as_ref().map_or(0, |s| s.values.len() * 4)
    }

    pub fn stored(&self) -> StoredRows<'_> {
        let HostTensor { format, ref data, .. } = self.tensor;
        StoredRows { format, data: data.as_slice(), row_bytes: self.tensor.row_bytes() }
    }

    /// What the kernels want of the input.
    pub fn wanted(&self) -> Wanted {
        let block = self.scheme.map(|scheme| scheme.block);
        Wanted { floats: block.is_none(), small: block == Some(SMALL), large: block == Some(CHUNK) }
    }

    /// Multiplies decoded FP8 values `start..` of a row by their block scales; does nothing for other formats.
    pub fn scale_floats(&self, row: usize, start: usize, values: &mut [f32]) {
        let Some(scales) = &self.scales else { return };
        let per_row = self.cols().div_ceil(scales.cols_per_block);
        let row = &scales.values[row / scales.rows_per_block * per_row..][..per_row];
        let mut at = start;
        let mut rest = values;
        while !rest.is_empty() {
            let block = at / scales.cols_per_block;
            let count = rest.len().min((block + 1) * scales.cols_per_block - at);
            let (part, tail) = rest.split_at_mut(count);
            part.iter_mut().for_each(|v| *v *= row[block]);
            (rest, at) = (tail, at + count);
        }
    }

    /// One row as f32.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let stored = self.stored();
        let bytes = &stored.data[row * stored.row_bytes..][..stored.row_bytes];
        quant::decode_blocks(stored.format, bytes, out);
        self.scale_floats(row, 0, out);
    }
}

/// Storage of a table.
pub(crate) struct Table(pub Vec<f32>);

/// Storage of a linear layer.
pub(crate) struct Linear {
    pub parts: Vec<Matrix>,
    /// Of all outputs, or empty.
    pub bias: Vec<f32>,
}

/// Storage of one matrix per head.
pub(crate) struct Heads(pub Vec<Matrix>);

/// Storage of a gated feed-forward layer, or of one expert.
pub(crate) struct Gated {
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

/// Storage of the experts of a layer.
pub(crate) struct Experts(pub Vec<Gated>);

fn decoded(tensor: &HostTensor) -> Result<Vec<f32>> {
    let matrix = Matrix::new(tensor)?;
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    for (row, out) in values.chunks_exact_mut(tensor.cols.max(1)).enumerate() {
        matrix.decode_row(row, out);
    }
    Ok(values)
}

pub(crate) fn upload_table(tensor: &HostTensor) -> Result<Weight> {
    let values = decoded(tensor)?;
    Ok(Weight::new([1, tensor.rows, tensor.cols], values.len() * 4, Table(values)))
}

pub(crate) fn upload_embedding(tensor: &HostTensor) -> Result<Weight> {
    let matrix = Matrix::new(tensor)?;
    Ok(Weight::new([1, tensor.rows, tensor.cols], matrix.bytes(), matrix))
}

pub(crate) fn upload_linear(source: LinearSource<'_>) -> Result<Weight> {
    let LinearSource { parts, biases } = source;
    let cols = parts.first().expect("a linear layer has a matrix").cols;
    assert!(parts.iter().all(|part| part.cols == cols), "the parts of a linear layer share their input");
    let parts = parts.iter().map(Matrix::new).collect::<Result<Vec<_>>>()?;
    let rows = parts.iter().map(Matrix::rows).sum();
    let bias = biases.iter().map(decoded).collect::<Result<Vec<_>>>()?.concat();
    assert!(bias.is_empty() || bias.len() == rows, "{} biases of {rows} outputs", bias.len());
    let bytes = parts.iter().map(Matrix::bytes).sum::<usize>() + bias.len() * 4;
    Ok(Weight::new([1, rows, cols], bytes, Linear { parts, bias }))
}

pub(crate) fn upload_heads(heads: &[HostTensor]) -> Result<Weight> {
    let HostTensor { rows, cols, .. } = *heads.first().expect("a matrix for each head");
    assert!(heads.iter().all(|h| h.rows == rows && h.cols == cols), "heads of the same shape");
    let heads = heads.iter().map(Matrix::new).collect::<Result<Vec<_>>>()?;
    Ok(Weight::new([heads.len(), rows, cols], heads.iter().map(Matrix::bytes).sum(), Heads(heads)))
}

impl Gated {
    fn new(source: &FfnSource) -> Result<Self> {
        let [gate, up, down] = [&source.gate, &source.up, &source.down].map(Matrix::new);
        let (gate, up, down) = (gate?, up?, down?);
        assert!(gate.rows() == up.rows() && gate.cols() == up.cols(), "gate and up of the same shape");
        assert!(down.rows() == gate.cols() && down.cols() == gate.rows(), "down of the opposite shape");
        Ok(Self { gate, up, down })
    }

    fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}

pub(crate) fn upload_ffn(source: &FfnSource) -> Result<FfnWeights> {
    let gated = Gated::new(source)?;
    Ok(FfnWeights::new([gated.gate.cols(), gated.gate.rows()], gated.bytes(), gated))
}

pub(crate) fn upload_experts(experts: &[FfnSource]) -> Result<ExpertWeights> {
    let experts = experts.iter().map(Gated::new).collect::<Result<Vec<_>>>()?;
    let first = experts.first().expect("a layer of experts has one");
    let (hidden, intermediate) = (first.gate.cols(), first.gate.rows());
    let same = |e: &Gated| e.gate.cols() == hidden && e.gate.rows() == intermediate;
    assert!(experts.iter().all(same), "experts of the same shape");
    let bytes = experts.iter().map(Gated::bytes).sum();
    Ok(ExpertWeights::new([experts.len(), hidden, intermediate], bytes, Experts(experts)))
}

/// Length of a row of floats with its padding to whole lanes.
pub(crate) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(LANES)
}
