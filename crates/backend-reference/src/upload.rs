//! Weights in every format become f32 tensors.

use candle_core::{Device, Result as CandleResult, Tensor};
use lingqu_backend::{LinearSource, Result, Weight};
use lingqu_tensor::HostTensor;

use crate::{device, dots};

/// `[rows, cols]`
pub struct Table(pub Tensor);

impl Table {
    /// `[ids, cols]`; panics where an id is beyond the table.
    pub fn rows(&self, ids: &[u32]) -> CandleResult<Tensor> {
        let rows = self.0.dim(0)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            panic!("row {id} of a table of {rows}");
        }
        self.0.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)
    }

    pub fn values(&self) -> CandleResult<Vec<f32>> {
        self.0.flatten_all()?.to_vec1()
    }
}

/// One matrix `[out, in]`, with a bias `[out]` or none, or one for each head.
pub struct Matrices {
    heads: Vec<Tensor>,
    bias: Option<Tensor>,
}

impl Matrices {
    /// x `[rows, in]` to `[rows, out]`
    pub fn apply(&self, head: usize, x: &Tensor) -> CandleResult<Tensor> {
        let y = dots(x, &self.heads[head])?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// `[rows, cols]` in f32; an error where a stored number is not finite.
pub fn matrix(tensor: &HostTensor) -> Result<Tensor> {
    tensor.check_finite_scales()?;
    Tensor::from_vec(tensor.to_f32(), (tensor.rows, tensor.cols), &Device::Cpu).map_err(device)
}

pub fn bytes(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|t| t.elem_count() * size_of::<f32>()).sum()
}

pub fn table(tensor: &HostTensor) -> Result<Weight> {
    let table = matrix(tensor)?;
    Ok(Weight::new([1, tensor.rows, tensor.cols], bytes(std::slice::from_ref(&table)), Table(table)))
}

pub fn linear(source: LinearSource<'_>) -> Result<Weight> {
    let LinearSource { parts, biases } = source;
    assert!(!parts.is_empty(), "a linear layer without a matrix");
    let cols = parts[0].cols;
    parts.iter().for_each(|p| assert_eq!(p.cols, cols, "inputs of '{}', stacked on '{}'", p.name, parts[0].name));
    let stacked = parts.iter().map(matrix).collect::<Result<Vec<_>>>()?;
    let weight = Tensor::cat(&stacked, 0).map_err(device)?; // [sum of out, in]
    let rows = parts.iter().map(|p| p.rows).sum();
    let bias = if biases.is_empty() {
        None
    } else {
        assert_eq!(biases.len(), parts.len(), "biases beside '{}'", parts[0].name);
        let each = biases.iter().zip(parts).map(|(bias, part)| {
            assert_eq!(bias.rows * bias.cols, part.rows, "values of '{}', bias of '{}'", bias.name, part.name);
            matrix(bias).and_then(|b| b.flatten_all().map_err(device))
        });
        Some(Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0).map_err(device)?) // [sum of out]
    };
    let held = bytes(std::slice::from_ref(&weight)) + bias.as_ref().map_or(0, |b| bytes(std::slice::from_ref(b)));
    Ok(Weight::new([1, rows, cols], held, Matrices { heads: vec![weight], bias }))
}

pub fn heads(heads: &[HostTensor]) -> Result<Weight> {
    assert!(!heads.is_empty(), "no heads");
    let (rows, cols) = (heads[0].rows, heads[0].cols);
    heads.iter().for_each(|h| assert_eq!((h.rows, h.cols), (rows, cols), "shape of '{}'", h.name));
    let matrices = heads.iter().map(matrix).collect::<Result<Vec<_>>>()?;
    Ok(Weight::new([heads.len(), rows, cols], bytes(&matrices), Matrices { heads: matrices, bias: None }))
}
