//! Uploaded weights, and the tables by which kernels find them.

use lingqu_backend::{BackendError, ExpertWeights, FfnSource, FfnWeights, LinearSource, Weight};
use lingqu_tensor::HostTensor;

use crate::Result;
use crate::arguments::MatrixEntry;
use crate::core::Core;
use crate::device::Memory;
use crate::driver::Address;
use crate::pack::{Layout, Packed};

/// Planes start at multiples of it, so that any load of a kernel is aligned.
const ALIGNMENT: usize = 256;
/// Values of a row that share a scale at least, for matrix units.
const UNIT_VALUES: u32 = 32;
/// Experts of a layer that the grouping kernel can count.
pub(crate) const EXPERTS_MAX: usize = 1024;

/// How products with a matrix are computed: fixed at upload by the device and the matrices' layouts, as the two differ
/// in their last bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// In f32, on any device.
    Plain,
    /// On matrix units, with x in bf16.
    Units,
}

/// Matrices of the same shape and their table: one, one per head, or one per expert. Formats may differ.
pub(crate) struct Matrices {
    _values: Vec<Memory>,
    table: Memory,
    pub rows: usize,
    pub cols: usize,
    pub arithmetic: Arithmetic,
    bytes: usize,
}

impl Matrices {
    fn new<'a>(core: &Core, tensors: impl Iterator<Item = &'a HostTensor>) -> Result<Self> {
        let (mut values, mut words, mut shape) = (Vec::new(), Vec::new(), None);
        let mut arithmetic = if core.has_matrix_units { Arithmetic::Units } else { Arithmetic::Plain };
        for tensor in tensors {
            let (rows, cols) = *shape.get_or_insert((tensor.rows, tensor.cols));
            assert!(tensor.rows == rows && tensor.cols == cols, "matrices of the same shape");
            let (memory, entry) = upload(core, tensor)?;
            if !suits_units(&entry) {
                arithmetic = Arithmetic::Plain;
            }
            words.extend(entry.words());
            values.push(memory);
        }
        let (rows, cols) = shape.expect("at least one matrix");
        let table = Memory::of(&core.device, &words).map_err(core.told("a table of weights"))?;
        let bytes = values.iter().map(Memory::bytes).sum::<usize>() + table.bytes();
        Ok(Self { _values: values, table, rows, cols, arithmetic, bytes })
    }

    pub fn table(&self) -> Address {
        self.table.address()
    }
}

/// Whether matrix units hold its values exactly, and scales cover whole steps of theirs.
fn suits_units(entry: &MatrixEntry) -> bool {
    let is_fine = entry.format == Layout::Fp8 as u32 && entry.cols_per_scale < UNIT_VALUES;
    entry.format != Layout::F32 as u32 && !is_fine
}

fn upload(core: &Core, tensor: &HostTensor) -> Result<(Memory, MatrixEntry)> {
    let what = format!("weight '{}'", tensor.name);
    let told = core.told(&what);
    let packed = Packed::of(tensor)?;
    let mut ends = 0usize;
    let starts = packed.planes.each_ref().map(|plane| {
        let start = ends;
        ends += plane.len().next_multiple_of(ALIGNMENT);
        start
    });
    let memory = Memory::new(&core.device, ends).map_err(&told)?;
    let mut planes = [0; 4];
    for (i, plane) in packed.planes.iter().enumerate().filter(|(_, plane)| !plane.is_empty()) {
        memory.write(starts[i], plane).map_err(&told)?;
        planes[i] = memory.address() + starts[i] as Address;
    }
    let entry = MatrixEntry {
        planes,
        format: packed.layout as u32,
        rows: dimension(core, tensor.rows)?,
        cols: dimension(core, tensor.cols)?,
        rows_per_scale: dimension(core, packed.rows_per_scale)?,
        cols_per_scale: dimension(core, packed.cols_per_scale)?,
    };
    Ok((memory, entry))
}

fn dimension(core: &Core, count: usize) -> Result<u32> {
    let what = || format!("{count} rows or columns");
    count.try_into().map_err(|_| BackendError::Unsupported { backend: core.name.clone(), what: what() })
}

/// Storage of a table: f32.
pub(crate) struct Table(Memory);

impl Table {
    pub fn address(&self) -> Address {
        self.0.address()
    }
}

/// Storage of a linear layer.
pub(crate) struct Linear {
    /// One table each, as their shapes differ.
    pub parts: Vec<Matrices>,
    /// Of all outputs, or none.
    pub bias: Option<Table>,
}

/// Storage of a gated feed-forward layer, or of all experts of a layer.
pub(crate) struct Gated {
    pub gate: Matrices,
    pub up: Matrices,
    pub down: Matrices,
}

/// # Errors
/// FP8 without its scales has no values.
fn decoded(tensor: &HostTensor) -> Result<Vec<f32>> {
    Packed::of(tensor)?;
    Ok(tensor.to_f32())
}

pub(crate) fn upload_table(core: &Core, tensor: &HostTensor) -> Result<Weight> {
    let what = format!("table '{}'", tensor.name);
    let table = Table(Memory::of(&core.device, &decoded(tensor)?).map_err(core.told(&what))?);
    Ok(Weight::new([1, tensor.rows, tensor.cols], table.0.bytes(), table))
}

pub(crate) fn upload_embedding(core: &Core, tensor: &HostTensor) -> Result<Weight> {
    upload_heads(core, std::slice::from_ref(tensor))
}

pub(crate) fn upload_linear(core: &Core, source: LinearSource<'_>) -> Result<Weight> {
    let LinearSource { parts, biases } = source;
    let cols = parts.first().expect("a linear layer has a matrix").cols;
    assert!(parts.iter().all(|part| part.cols == cols), "the parts of a linear layer share their input");
    let parts = parts.iter().map(|part| Matrices::new(core, [part].into_iter())).collect::<Result<Vec<_>>>()?;
    let rows = parts.iter().map(|part| part.rows).sum();
    let bias = biases.iter().map(decoded).collect::<Result<Vec<_>>>()?.concat();
    assert!(bias.is_empty() || bias.len() == rows, "{} biases of {rows} outputs", bias.len());
    let bytes = parts.iter().map(|part| part.bytes).sum::<usize>() + bias.len() * 4;
    let held = || Memory::of(&core.device, &bias).map(Table).map_err(core.told("a bias"));
    let bias = if bias.is_empty() { None } else { Some(held()?) };
    Ok(Weight::new([1, rows, cols], bytes, Linear { parts, bias }))
}

pub(crate) fn upload_heads(core: &Core, heads: &[HostTensor]) -> Result<Weight> {
    let matrices = Matrices::new(core, heads.iter())?;
    Ok(Weight::new([heads.len(), matrices.rows, matrices.cols], matrices.bytes, matrices))
}

impl Gated {
    fn new(core: &Core, sources: &[FfnSource]) -> Result<Self> {
        let mut gate = Matrices::new(core, sources.iter().map(|s| &s.gate))?;
        let mut up = Matrices::new(core, sources.iter().map(|s| &s.up))?;
        let mut down = Matrices::new(core, sources.iter().map(|s| &s.down))?;
        // One arithmetic, so that the rows of an expert are cut alike for both halves.
        let is_plain = [&gate, &up, &down].iter().any(|matrices| matrices.arithmetic == Arithmetic::Plain);
        let arithmetic = if is_plain { Arithmetic::Plain } else { Arithmetic::Units };
        [&mut gate, &mut up, &mut down].into_iter().for_each(|matrices| matrices.arithmetic = arithmetic);
        assert!(gate.rows == up.rows && gate.cols == up.cols, "gate and up of the same shape");
        assert!(down.rows == gate.cols && down.cols == gate.rows, "down of the opposite shape");
        Ok(Self { gate, up, down })
    }

    fn bytes(&self) -> usize {
        self.gate.bytes + self.up.bytes + self.down.bytes
    }
}

pub(crate) fn upload_ffn(core: &Core, source: &FfnSource) -> Result<FfnWeights> {
    let gated = Gated::new(core, std::slice::from_ref(source))?;
    Ok(FfnWeights::new([gated.gate.cols, gated.gate.rows], gated.bytes(), gated))
}

pub(crate) fn upload_experts(core: &Core, experts: &[FfnSource]) -> Result<ExpertWeights> {
    if experts.len() > EXPERTS_MAX {
        let what = format!("a layer of {} experts (at most {EXPERTS_MAX})", experts.len());
        return Err(BackendError::Unsupported { backend: core.name.clone(), what });
    }
    let gated = Gated::new(core, experts)?;
    Ok(ExpertWeights::new([experts.len(), gated.gate.cols, gated.gate.rows], gated.bytes(), gated))
}
