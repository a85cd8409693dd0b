//! Buffers, routings and the KV cache on the device, and the ops that move values between it and the host.

use std::ops::Range;

use lingqu_backend::{Buffer, HostRouting, KvEntry, KvPrecision, KvSpec, KvStore, Routing, View, ViewMut};
use lingqu_types::BlockId;

use crate::Result;
use crate::arguments::{Argument, KvArgument, ViewArgument};
use crate::core::{Core, Room};
use crate::device::Memory;
use crate::driver::Address;

const F32_BYTES: usize = 4;
const F16_BYTES: usize = 2;
const U32_BYTES: usize = 4;

/// Storage of a [`Buffer`]: f32 `[rows_max, cols]`.
pub(crate) struct Floats(Memory);

pub(crate) fn alloc(core: &Core, rows_max: usize, cols: usize) -> Result<Buffer> {
    let what = format!("a buffer [{rows_max}, {cols}]");
    Ok(Buffer::new(rows_max, cols, Floats(core.memory(&what, &[rows_max, cols], F32_BYTES)?)))
}

/// A view as kernels take it, its heads as they are.
pub(crate) fn source(view: View<'_>) -> ViewArgument {
    let View { buffer, heads, head_stride, offset, len } = view;
    let Floats(memory) = buffer.storage();
    ViewArgument {
        data: memory.address() + (offset * F32_BYTES) as Address,
        row_stride: buffer.cols() as u64,
        head_stride: head_stride as u64,
        rows: buffer.rows() as u32,
        heads: heads as u32,
        len: len as u32,
        zero: 0,
    }
}

/// The same of an output.
pub(crate) fn target(view: ViewMut<'_>) -> ViewArgument {
    let ViewMut { buffer, heads, head_stride, offset, len } = view;
    source(View { buffer, heads, head_stride, offset, len })
}

impl ViewArgument {
    /// Heads that lie side by side as one.
    pub fn flat(self) -> Self {
        assert!(self.heads == 1 || self.head_stride == u64::from(self.len), "gaps between heads");
        let len = self.heads * self.len;
        Self { heads: 1, len, head_stride: u64::from(len), ..self }
    }

    /// Columns `from .. from + len` of a flat view.
    pub fn columns(self, from: usize, len: usize) -> Self {
        assert!(self.heads == 1 && from + len <= self.len as usize, "columns of a flat view");
        let data = self.data + (from * F32_BYTES) as Address;
        Self { data, len: len as u32, head_stride: len as u64, ..self }
    }

    pub fn width(&self) -> usize {
        self.heads as usize * self.len as usize
    }
}

/// As many rows and values on both sides, head by head.
pub(crate) fn assert_alike(x: &ViewArgument, out: &ViewArgument, op: &str) {
    let shape = |v: &ViewArgument| (v.rows, v.heads, v.len);
    assert_eq!(shape(x), shape(out), "rows, heads and columns of {op}");
}

/// Whether the rows in use lie in memory as the host has them.
fn is_whole(view: &ViewArgument) -> bool {
    let is_flat = view.heads == 1 || view.head_stride == u64::from(view.len);
    is_flat && view.row_stride == view.width() as u64
}

/// The same shape, packed in memory of our own.
fn staged(view: &ViewArgument, data: Address) -> ViewArgument {
    ViewArgument { data, row_stride: view.width() as u64, head_stride: u64::from(view.len), ..*view }
}

pub(crate) fn copy(core: &Core, x: ViewArgument, out: ViewArgument) -> Result<()> {
    let grid = [x.rows as usize, x.heads as usize, 1];
    core.launch("copy", grid, 128, &[Argument::View(x), Argument::View(out)])
}

pub(crate) fn read(core: &Core, x: View<'_>, out: &mut [f32]) -> Result<()> {
    read_rows(core, x, 0..x.rows(), out)
}

pub(crate) fn read_rows(core: &Core, x: View<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
    let (view, Floats(memory)) = (source(x), x.buffer.storage());
    assert!(rows.start <= rows.end && rows.end <= x.rows(), "rows {rows:?} of {}", x.rows());
    assert_eq!(out.len(), rows.len() * x.width(), "values of [{}, {}]", rows.len(), x.width());
    let from = rows.start * x.buffer.cols() + x.offset;
    if is_whole(&view) {
        return memory.read(from * F32_BYTES, out).map_err(core.told("reading a buffer"));
    }
    let data = memory.address() + (from * F32_BYTES) as Address;
    let view = ViewArgument { data, rows: rows.len() as u32, ..view };
    let mut scratch = core.scratch();
    let memory = scratch.memory(core, Room::Staged, size_of_val(out))?;
    copy(core, view, staged(&view, memory.address()))?;
    memory.read(0, out).map_err(core.told("reading a buffer"))
}

pub(crate) fn write(core: &Core, values: &[f32], out: ViewMut<'_>) -> Result<()> {
    let (offset, rows, width) = (out.offset, out.rows(), out.width());
    assert_eq!(values.len(), rows * width, "values of [{rows}, {width}]");
    let view = source(View {
        buffer: out.buffer,
        heads: out.heads,
        head_stride: out.head_stride,
        offset: out.offset,
        len: out.len,
    });
    if is_whole(&view) {
        let Floats(memory) = out.buffer.storage();
        return memory.write(offset * F32_BYTES, values).map_err(core.told("writing a buffer"));
    }
    let mut scratch = core.scratch();
    let memory = scratch.memory(core, Room::Staged, size_of_val(values))?;
    memory.write(0, values).map_err(core.told("writing a buffer"))?;
    copy(core, staged(&view, memory.address()), view)
}

/// Storage of a [`Routing`]: `[rows_max, top_k]` of each.
pub(crate) struct Routed {
    experts: Memory,
    weights: Memory,
}

impl Routed {
    pub fn experts(&self) -> Address {
        self.experts.address()
    }

    pub fn weights(&self) -> Address {
        self.weights.address()
    }
}

pub(crate) fn alloc_routing(core: &Core, rows_max: usize, top_k: usize) -> Result<Routing> {
    let what = format!("a routing [{rows_max}, {top_k}]");
    let half = || core.memory(&what, &[rows_max, top_k], U32_BYTES);
    Ok(Routing::new(rows_max, top_k, Routed { experts: half()?, weights: half()? }))
}

pub(crate) fn read_routing(core: &Core, routing: &Routing) -> Result<HostRouting> {
    let (slots, routed) = (routing.rows() * routing.top_k(), routing.storage::<Routed>());
    let (mut experts, mut weights) = (vec![0; slots], vec![0.0; slots]);
    let both = routed.experts.read(0, &mut experts).and_then(|()| routed.weights.read(0, &mut weights));
    both.map_err(core.told("reading a routing"))?;
    Ok(HostRouting { top_k: routing.top_k(), experts, weights })
}

pub(crate) fn write_routing(core: &Core, host: &HostRouting, out: &mut Routing) -> Result<()> {
    assert_eq!(host.top_k, out.top_k(), "slots of a routing");
    let slots = host.experts.len();
    assert_eq!(slots, host.weights.len(), "a weight for each expert");
    assert!(slots.is_multiple_of(host.top_k.max(1)), "whole rows of {} slots", host.top_k);
    out.set_rows(slots / host.top_k.max(1));
    let routed = out.storage::<Routed>();
    let both = routed.experts.write(0, &host.experts).and_then(|()| routed.weights.write(0, &host.weights));
    both.map_err(core.told("writing a routing"))
}

/// Storage of a [`KvStore`]: f16 `[layers, blocks, block_tokens, entry values]`. An entry is the latent, or the keys
/// of all kv heads and then their values.
pub(crate) struct KvCells {
    cells: Memory,
    spec: KvSpec,
}

impl KvCells {
    fn block_values(&self) -> usize {
        self.spec.block_tokens * self.spec.entry.values()
    }

    /// One layer as kernels take it.
    pub fn layer(&self, layer: usize) -> KvArgument {
        assert!(layer < self.spec.layers, "layer {layer} of {}", self.spec.layers);
        let bytes = layer * self.spec.blocks * self.block_values() * F16_BYTES;
        let cells = self.cells.address() + bytes as Address;
        let entry_values = self.spec.entry.values() as u32;
        match self.spec.entry {
            KvEntry::Separate { kv_heads, k_dim, v_dim } => KvArgument {
                cells,
                entry_values,
                kv_heads: kv_heads as u32,
                k_dim: k_dim as u32,
                v_dim: v_dim as u32,
                v_offset: (kv_heads * k_dim) as u32,
                v_head_stride: v_dim as u32,
            },
            KvEntry::Latent { width, v_dim } => KvArgument {
                cells,
                entry_values,
                kv_heads: 1,
                k_dim: width as u32,
                v_dim: v_dim as u32,
                v_offset: 0,
                v_head_stride: 0,
            },
        }
    }

    pub fn spec(&self) -> &KvSpec {
        &self.spec
    }
}

pub(crate) fn alloc_kv(core: &Core, spec: &KvSpec) -> Result<KvStore> {
    if spec.precision != KvPrecision::Full {
        let (backend, what) = (core.name.clone(), "a KV cache of 8 bits".into());
        return Err(lingqu_backend::BackendError::Unsupported { backend, what });
    }
    let entry: &[usize] = match spec.entry {
        KvEntry::Latent { width, .. } => &[width],
        KvEntry::Separate { kv_heads, k_dim, v_dim } => &[kv_heads, k_dim.saturating_add(v_dim)],
    };
    let what = format!("a KV cache of {} layers, {} blocks of {} tokens", spec.layers, spec.blocks, spec.block_tokens);
    let counts = [&[spec.layers, spec.blocks, spec.block_tokens], entry].concat();
    let cells = core.memory(&what, &counts, F16_BYTES)?;
    Ok(KvStore::new(spec.clone(), KvCells { cells, spec: spec.clone() }))
}

pub(crate) fn kv_copy(core: &Core, kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) -> Result<()> {
    let kv = kv.storage::<KvCells>();
    let is_block = |block: &BlockId| (block.0 as usize) < kv.spec.blocks;
    assert!(pairs.iter().all(|(from, to)| is_block(from) && is_block(to)), "blocks of the cache");
    let numbers: Vec<u32> = pairs.iter().map(|p| p.0.0).chain(pairs.iter().map(|p| p.1.0)).collect();
    let layer_values = kv.spec.blocks * kv.block_values();
    let mut scratch = core.scratch();
    let from = scratch.memory(core, Room::BlockPairs, numbers.len() * U32_BYTES)?;
    from.write(0, &numbers).map_err(core.told("numbers of cache blocks"))?;
    let from = from.address();
    let to = from + (pairs.len() * U32_BYTES) as Address;
    let held_bytes = kv.spec.layers * pairs.len() * kv.block_values() * F16_BYTES;
    let held = scratch.address(core, Room::HeldBlocks, held_bytes)?;
    for (kernel, blocks) in [("kv_read_blocks", from), ("kv_write_blocks", to)] {
        let arguments = [
            Argument::Address(kv.cells.address()),
            Argument::Address(blocks),
            Argument::Address(held),
            Argument::U64(layer_values as u64),
            Argument::U32(kv.block_values() as u32),
        ];
        core.launch(kernel, [pairs.len(), kv.spec.layers, 1], 128, &arguments)?;
    }
    Ok(())
}
