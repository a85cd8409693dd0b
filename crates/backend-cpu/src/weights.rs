//! Uploaded weights: block formats repacked (see `panels.rs`), floats in their stored bytes, shared with whoever mapped
//! them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use lingqu_backend::{BackendError, ExpertWeights, FfnSource, FfnWeights, LinearSource, Weight};
use lingqu_tensor::{Format, HostTensor, TensorError, quant};

use crate::Result;
use crate::activations::Wanted;
use crate::panels::{Pack, Panels, scheme};
use crate::region::{Region, Regions};
use crate::simd::{CHUNK, LANES, OCTET};
use crate::team::Team;
use crate::unpack::StoredRows;

/// A matrix `[rows, cols]` that is multiplied with.
pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    values: Values,
}

enum Values {
    Floats(Stored),
    Blocks(Panels),
}

/// A matrix in its stored format.
pub(crate) struct Stored {
    tensor: HostTensor,
    scales: Option<Scales>,
}

/// Storage of an embedding.
pub(crate) struct Embedding {
    stored: Stored,
    /// Whether all its numbers were looked at when it was uploaded. Else those of a row are when it is.
    checked: bool,
    /// Rows that were looked up since the memory of a mapped file was given back.
    looked_up: AtomicUsize,
}

/// Rows after which it is. The system maps 16 pages around each that is touched: with all tokens of a text met, the
/// whole table would count as this process's memory, beside the repacked one that a tied head is.
const LOOKED_UP_MAX: usize = 64;

impl Embedding {
    /// One row as f32.
    ///
    /// # Errors
    /// [`BackendError::Tensor`] for a number that is NaN or infinite.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        if !self.checked {
            self.stored.tensor.check_finite_rows(row..row + 1)?;
        }
        self.stored.decode_row(row, out);
        if self.looked_up.fetch_add(1, Ordering::Relaxed) + 1 == LOOKED_UP_MAX {
            self.looked_up.store(0, Ordering::Relaxed);
            self.stored.tensor.data.release();
        }
        Ok(())
    }
}

/// Scales of an FP8 matrix, `[row blocks, column blocks]`.
struct Scales {
    values: Vec<f32>,
    rows_per_block: usize,
    cols_per_block: usize,
}

/// Who repacks.
#[derive(Clone, Copy)]
pub(crate) struct Packer<'a> {
    pub team: &'a Team,
    pub regions: &'a Regions,
    /// Who repacks later; `None`: at once.
    pub later: Option<&'a Later>,
}

/// What is to be repacked later, in the order of its upload.
#[derive(Default)]
pub(crate) struct Later(Mutex<VecDeque<Weak<Pack>>>);

impl Later {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Weak<Pack>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, pack: &Arc<Pack>) {
        self.queue().push_back(Arc::downgrade(pack));
    }

    /// Repacks until a moment. Whether nothing is left. No op may run meanwhile.
    ///
    /// # Errors
    /// As [`Pack::run`].
    pub fn settle(&self, team: &Team, until: Instant) -> Result<bool> {
        loop {
            let Some(next) = self.queue().front().cloned() else { return Ok(true) };
            let done = next.upgrade().map_or(Ok(true), |pack| pack.run(team, Some(until)))?;
            if !done {
                return Ok(false);
            }
            self.queue().pop_front();
        }
    }
}

impl Packer<'_> {
    /// Repacks those of a block format together, after which their bytes are not read any more.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`]; [`BackendError::Tensor`] for a number that is NaN or infinite.
    fn matrices<'t>(self, tensors: impl Iterator<Item = &'t HostTensor> + Clone) -> Result<Vec<Matrix>> {
        let blocks: Vec<&HostTensor> = tensors.clone().filter(|tensor| scheme(tensor.format).is_some()).collect();
        let mut panels = Panels::pack(self, &blocks)?.into_iter();
        let matrix = |tensor: &HostTensor| {
            let values = match scheme(tensor.format) {
                None => Values::Floats(Stored::new(tensor)?),
                Some(_) => Values::Blocks(panels.next().expect("panels of each matrix of blocks")),
            };
            Ok(Matrix { rows: tensor.rows, cols: tensor.cols, values })
        };
        tensors.map(matrix).collect()
    }
}

impl Matrix {
    /// One of floats.
    pub fn floats_of(tensor: &HostTensor) -> Result<Self> {
        Ok(Self { rows: tensor.rows, cols: tensor.cols, values: Values::Floats(Stored::new(tensor)?) })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn bytes(&self) -> usize {
        match &self.values {
            Values::Floats(stored) => stored.bytes(),
            Values::Blocks(panels) => panels.bytes(),
        }
    }

    /// The repacked weights, or `None` for floats.
    pub fn panels(&self) -> Option<&Panels> {
        match &self.values {
            Values::Floats(_) => None,
            Values::Blocks(panels) => Some(panels),
        }
    }

    /// Whether some of these panels must be repacked for the moment before they are read.
    pub fn is_pending(&self, panels: &Range<usize>) -> bool {
        self.panels().is_some_and(|of| of.is_pending(panels))
    }

    /// Some panels of a matrix that is not repacked yet, for the moment: in memory of which at least so many bytes are
    /// taken anew where there are not enough. `None` where they are repacked.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`]; as [`Panels::part`].
    pub fn part(
        &self,
        packer: Packer<'_>,
        panels: Range<usize>,
        memory: &mut Option<Arc<Region>>,
    ) -> Result<Option<Self>> {
        let Some(of) = self.panels().filter(|of| of.is_pending(&panels)) else { return Ok(None) };
        let bytes = panels.len() * of.panel_bytes();
        let memory = match memory {
            Some(memory) if memory.len() >= bytes => memory,
            other => other.insert(Arc::new(packer.regions.take("weights that are not repacked yet", bytes)?)),
        };
        let part = of.part(panels, memory)?;
        Ok(part.map(|part| Self { rows: self.rows, cols: self.cols, values: Values::Blocks(part) }))
    }

    /// The stored floats, or `None` for block formats.
    pub fn floats(&self) -> Option<&Stored> {
        match &self.values {
            Values::Floats(stored) => Some(stored),
            Values::Blocks(_) => None,
        }
    }

    /// Values of a block, or `None` for floats.
    pub fn block(&self) -> Option<usize> {
        self.panels().map(|panels| panels.scheme.block)
    }

    /// What the kernels want of the input.
    pub fn wanted(&self) -> Wanted {
        let block = self.block();
        Wanted { floats: block.is_none(), small: block == Some(OCTET), large: block == Some(CHUNK) }
    }
}

impl Stored {
    /// # Errors
    /// [`BackendError::Tensor`] for a number that is NaN or infinite, and for FP8 without its scales.
    pub fn new(tensor: &HostTensor) -> Result<Self> {
        tensor.check_finite_rows(0..tensor.rows)?;
        Self::unchecked(tensor)
    }

    /// The same where nobody has looked at the values.
    fn unchecked(tensor: &HostTensor) -> Result<Self> {
        tensor.check_finite_block_scales()?;
        let scales = tensor.scales.as_ref().map(|scales| Scales {
            values: scales.data.as_slice().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            rows_per_block: scales.rows_per_block,
            cols_per_block: scales.cols_per_block,
        });
        if tensor.format == Format::Fp8E4M3 && scales.is_none() {
            let problem = "FP8 without its block scales".into();
            return Err(BackendError::Tensor(TensorError { name: tensor.name.clone(), problem }));
        }
        Ok(Self { tensor: tensor.clone(), scales })
    }

    fn bytes(&self) -> usize {
        self.tensor.data.len() + self.scales.as_ref().map_or(0, |s| s.values.len() * 4)
    }

    pub fn rows(&self) -> StoredRows<'_> {
        let HostTensor { format, ref data, .. } = self.tensor;
        StoredRows { format, data: data.as_slice(), row_bytes: self.tensor.row_bytes() }
    }

    /// Multiplies decoded FP8 values `start..` of a row by their block scales; does nothing for other formats.
    pub fn scale_floats(&self, row: usize, start: usize, values: &mut [f32]) {
        let Some(scales) = &self.scales else { return };
        let per_row = self.tensor.cols.div_ceil(scales.cols_per_block);
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

    /// One row as f32, of any format.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let stored = self.rows();
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

pub(crate) fn decoded(tensor: &HostTensor) -> Result<Vec<f32>> {
    let stored = Stored::new(tensor)?;
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    for (row, out) in values.chunks_exact_mut(tensor.cols.max(1)).enumerate() {
        stored.decode_row(row, out);
    }
    Ok(values)
}

pub(crate) fn upload_table(tensor: &HostTensor) -> Result<Weight> {
    let values = decoded(tensor)?;
    Ok(Weight::new([1, tensor.rows, tensor.cols], values.len() * 4, Table(values)))
}

pub(crate) fn upload_embedding(packer: Packer<'_>, tensor: &HostTensor) -> Result<Weight> {
    let checked = packer.later.is_none();
    let stored = if checked { Stored::new(tensor) } else { Stored::unchecked(tensor) }?;
    tensor.data.release(); // a check reads all of it; a step reads a row for each token
    let bytes = stored.bytes();
    Ok(Weight::new([1, tensor.rows, tensor.cols], bytes, Embedding { stored, checked, looked_up: AtomicUsize::new(0) }))
}

pub(crate) fn upload_linear(packer: Packer<'_>, source: LinearSource<'_>) -> Result<Weight> {
    let LinearSource { parts, biases } = source;
    let cols = parts.first().expect("a linear layer has a matrix").cols;
    assert!(parts.iter().all(|part| part.cols == cols), "the parts of a linear layer share their input");
    let parts = packer.matrices(parts.iter())?;
    let rows = parts.iter().map(Matrix::rows).sum();
    let bias = biases.iter().map(decoded).collect::<Result<Vec<_>>>()?.concat();
    assert!(bias.is_empty() || bias.len() == rows, "{} biases of {rows} outputs", bias.len());
    let bytes = parts.iter().map(Matrix::bytes).sum::<usize>() + bias.len() * 4;
    Ok(Weight::new([1, rows, cols], bytes, Linear { parts, bias }))
}

pub(crate) fn upload_heads(packer: Packer<'_>, heads: &[HostTensor]) -> Result<Weight> {
    let HostTensor { rows, cols, .. } = *heads.first().expect("a matrix for each head");
    assert!(heads.iter().all(|h| h.rows == rows && h.cols == cols), "heads of the same shape");
    let heads = packer.matrices(heads.iter())?;
    Ok(Weight::new([heads.len(), rows, cols], heads.iter().map(Matrix::bytes).sum(), Heads(heads)))
}

impl Gated {
    /// All in one piece of memory.
    fn all(packer: Packer<'_>, sources: &[FfnSource]) -> Result<Vec<Self>> {
        let tensors = sources.iter().flat_map(|source| [&source.gate, &source.up, &source.down]);
        let mut matrices = packer.matrices(tensors)?.into_iter();
        let mut next = || matrices.next().expect("three matrices of each");
        let gated = sources.iter().map(|_| {
            let (gate, up, down) = (next(), next(), next());
            assert!(gate.rows() == up.rows() && gate.cols() == up.cols(), "gate and up of the same shape");
            assert!(down.rows() == gate.cols() && down.cols() == gate.rows(), "down of the opposite shape");
            Self { gate, up, down }
        });
        Ok(gated.collect())
    }

    fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}

pub(crate) fn upload_ffn(packer: Packer<'_>, source: &FfnSource) -> Result<FfnWeights> {
    let gated = Gated::all(packer, std::slice::from_ref(source))?.remove(0);
    Ok(FfnWeights::new([gated.gate.cols(), gated.gate.rows()], gated.bytes(), gated))
}

pub(crate) fn upload_experts(packer: Packer<'_>, experts: &[FfnSource]) -> Result<ExpertWeights> {
    let experts = Gated::all(packer, experts)?;
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

#[cfg(test)]
mod tests {
    use lingqu_tensor::{Bytes, Owner};

    use super::*;
    use crate::testing;

    /// Counts how often its bytes are given back.
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl Owner for Counted {
        fn bytes(&self) -> &[u8] {
            &self.0
        }

        fn release(&self, _: Range<usize>) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_embedding_gives_its_pages_back_now_and_then() {
        let mut tensor = testing::weights(1, Format::Q4K, [8, 256]);
        let want = testing::decoded(&tensor);
        let (team, regions) = (&Team::new(1).unwrap(), &Regions::default());
        let packer = Packer { team, regions, later: None };
        let released = Arc::new(AtomicUsize::new(0));
        tensor.data = Bytes::new(Arc::new(Counted(tensor.data.as_slice().to_vec(), released.clone())));
        let weight = upload_embedding(packer, &tensor).unwrap();
        assert_eq!(released.load(Ordering::Relaxed), 1, "after the check");
        let embedding = weight.storage::<Embedding>();
        let mut row = vec![0.0; 256];
        for i in 0..2 * LOOKED_UP_MAX {
            embedding.decode_row(i % 8, &mut row).unwrap();
            assert_eq!(row, want[i % 8 * 256..][..256]);
            assert_eq!(released.load(Ordering::Relaxed), 1 + (i + 1) / LOOKED_UP_MAX, "after {} rows", i + 1);
        }
    }

    #[test]
    fn a_row_of_an_embedding_that_is_no_number_is_refused_at_upload_or_when_it_is_looked_up() {
        let (team, regions, later) = (&Team::new(1).unwrap(), &Regions::default(), &Later::default());
        let packer = Packer { team, regions, later: None };
        let mut tensor = testing::weights(1, Format::Q4K, [8, 256]);
        let mut data = tensor.data.as_slice().to_vec();
        data[5 * tensor.row_bytes() + 2..][..2].copy_from_slice(&[0x01, 0xfc]);
        tensor.data = data.into();
        assert!(upload_embedding(packer, &tensor).err().expect("a broken scale").to_string().contains("row 5"));
        let weight = upload_embedding(Packer { later: Some(later), ..packer }, &tensor).unwrap();
        let (embedding, mut row) = (weight.storage::<Embedding>(), vec![0.0; 256]);
        for number in 0..8 {
            match embedding.decode_row(number, &mut row) {
                Ok(()) => assert_ne!(number, 5),
                Err(error) => assert!(number == 5 && error.to_string().contains("row 5"), "{error}"),
            }
        }
    }
}
