//! Zeroed, aligned memory that may be refused, and the ops that move values between host and device.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};

use lingqu_backend::kv_int8::KV_GROUP;
use lingqu_backend::{
    BackendError, Buffer, HostRouting, KvEntry, KvPrecision, KvSpec, KvStore, Routing, View, ViewMut,
};
use lingqu_types::BlockId;

use crate::Result;

/// Types for which all-zero bytes are a value and that need no drop.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for f32 {}
impl Plain for u16 {}
impl Plain for u8 {}

/// A slice of zeros at cache-line alignment. Large ones come as untouched pages of the system.
pub(crate) struct Zeroed<T: Plain> {
    pointer: *mut T,
    len: usize,
    /// Who owns the memory, if not the allocator.
    pages: Option<memmap2::MmapMut>,
}

/// Bytes from which whole pages are asked for.
const PAGES_MIN_BYTES: usize = 1 << 20;

// SAFETY: it owns its memory, as a `Box<[T]>` does.
unsafe impl<T: Plain> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Zeroed<T> {}

impl<T: Plain> Zeroed<T> {
    /// The product of `lens` values, or [`BackendError::OutOfMemory`] naming `what`.
    pub fn new(what: &str, lens: &[usize]) -> Result<Self> {
        Self::with_pages(what, lens, false)
    }

    /// The same in huge pages where the system has them: for memory all of which will be written, for a huge page is
    /// taken whole.
    pub fn huge(what: &str, lens: &[usize]) -> Result<Self> {
        Self::with_pages(what, lens, true)
    }

    fn with_pages(what: &str, lens: &[usize], huge: bool) -> Result<Self> {
        let (len, bytes) = Self::sizes(what, lens)?;
        let refused = || BackendError::OutOfMemory { what: what.into(), bytes };
        if bytes >= PAGES_MIN_BYTES {
            let mut pages = memmap2::MmapMut::map_anon(bytes).map_err(|_| refused())?;
            #[cfg(target_os = "linux")]
            if huge {
                let _ = pages.advise(memmap2::Advice::HugePage); // without, it is slower and nothing else
            }
            #[cfg(not(target_os = "linux"))]
            let _ = huge;
            let pointer = pages.as_mut_ptr().cast::<T>(); // pages are aligned to more than a line
            return Ok(Self { pointer, len, pages: Some(pages) });
        }
        let layout = Self::layout(len).ok_or_else(refused)?;
        // SAFETY: the layout's size is not 0 (see `layout`).
        let pointer = unsafe { alloc_zeroed(layout) }.cast::<T>();
        if pointer.is_null() {
            return Err(refused());
        }
        Ok(Self { pointer, len, pages: None })
    }

    /// Values and bytes, if the machine has so many.
    fn sizes(what: &str, lens: &[usize]) -> Result<(usize, usize)> {
        let refused = |bytes| BackendError::OutOfMemory { what: what.into(), bytes };
        let len = lens.iter().try_fold(1usize, |product, &len| product.checked_mul(len));
        let len = len.ok_or_else(|| refused(usize::MAX))?;
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| refused(usize::MAX))?;
        if machine_bytes().is_some_and(|all| bytes > all) {
            return Err(refused(bytes)); // the system might promise it and kill us later
        }
        Ok((len, bytes))
    }

    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>())?.max(1);
        Layout::from_size_align(bytes, 64).ok()
    }
}

impl<T: Plain> Deref for Zeroed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` got `len` values of zero bytes, which `Plain` makes values.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }
}

impl<T: Plain> DerefMut for Zeroed<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl<T: Plain> Drop for Zeroed<T> {
    fn drop(&mut self) {
        if self.pages.is_some() {
            return; // they go by themselves
        }
        let layout = Self::layout(self.len).expect("the layout it was made with");
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.pointer.cast(), layout) };
    }
}

/// Memory of the whole machine, where it says so.
fn machine_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Storage of a [`Buffer`]: f32, row-major.
pub(crate) type Floats = Zeroed<f32>;

pub(crate) fn alloc(rows_max: usize, cols: usize) -> Result<Buffer> {
    let what = format!("a buffer [{rows_max}, {cols}]");
    Ok(Buffer::new(rows_max, cols, Floats::new(&what, &[rows_max, cols])?))
}

/// Values of a [`View`], addressed by row and head.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub heads: usize,
    pub len: usize,
    row_stride: usize,
    head_stride: usize,
    offset: usize,
}

impl<'a> Source<'a> {
    pub fn of(view: View<'a>) -> Self {
        let values: &[f32] = view.buffer.storage::<Floats>();
        let View { buffer, heads, head_stride, offset, len } = view;
        Self { values, rows: buffer.rows(), heads, len, row_stride: buffer.cols(), head_stride, offset }
    }

    /// `rows` rows of `len` values, one after the other.
    pub fn packed(values: &'a [f32], rows: usize, len: usize) -> Self {
        Self { values, rows, heads: 1, len, row_stride: len, head_stride: len, offset: 0 }
    }

    /// `rows` rows of `len` values, each `row_stride` after the one before.
    pub fn strided(values: &'a [f32], rows: usize, len: usize, row_stride: usize) -> Self {
        Self { row_stride, ..Self::packed(values, rows, len) }
    }

    /// With heads that lie side by side taken as one row; other heads stay apart.
    pub fn flattened(self) -> Self {
        if self.heads > 1 && self.head_stride == self.len {
            let len = self.heads * self.len;
            return Self { heads: 1, len, head_stride: len, ..self };
        }
        self
    }

    pub fn head(&self, row: usize, head: usize) -> &'a [f32] {
        let start = row * self.row_stride + self.offset + head * self.head_stride;
        &self.values[start..start + self.len]
    }

    pub fn width(&self) -> usize {
        self.heads * self.len
    }
}

/// Where an op writes: a [`ViewMut`] taken apart.
pub(crate) struct Target<'a> {
    pub values: &'a mut [f32],
    pub rows: usize,
    pub heads: usize,
    pub len: usize,
    pub row_stride: usize,
    pub head_stride: usize,
    pub offset: usize,
}

impl<'a> Target<'a> {
    pub fn of(view: ViewMut<'a>) -> Self {
        let ViewMut { buffer, heads, head_stride, offset, len } = view;
        let (rows, row_stride) = (buffer.rows(), buffer.cols());
        let values: &mut [f32] = buffer.storage_mut::<Floats>();
        Self { values, rows, heads, len, row_stride, head_stride, offset }
    }

    pub fn start(&self, row: usize, head: usize) -> usize {
        row * self.row_stride + self.offset + head * self.head_stride
    }

    pub fn head(&mut self, row: usize, head: usize) -> &mut [f32] {
        let start = self.start(row, head);
        &mut self.values[start..start + self.len]
    }

    pub fn width(&self) -> usize {
        self.heads * self.len
    }

    /// As one head; the heads must lie side by side.
    pub fn flattened(self) -> Self {
        assert!(self.heads == 1 || self.head_stride == self.len, "an output with gaps between its heads");
        let len = self.width();
        Self { heads: 1, len, head_stride: len, ..self }
    }
}

pub(crate) fn read(x: View<'_>, out: &mut [f32]) {
    let x = Source::of(x);
    assert_eq!(out.len(), x.rows * x.width(), "values of [{}, {}]", x.rows, x.width());
    for (i, out) in out.chunks_exact_mut(x.len.max(1)).enumerate() {
        out.copy_from_slice(x.head(i / x.heads, i % x.heads));
    }
}

pub(crate) fn write(values: &[f32], out: ViewMut<'_>) {
    let mut out = Target::of(out);
    assert_eq!(values.len(), out.rows * out.width(), "values of [{}, {}]", out.rows, out.width());
    for (i, values) in values.chunks_exact(out.len.max(1)).enumerate() {
        let heads = out.heads;
        out.head(i / heads, i % heads).copy_from_slice(values);
    }
}

/// Storage of a [`Routing`].
pub(crate) struct Routed {
    /// `[rows_max, top_k]`
    pub experts: Vec<u32>,
    /// `[rows_max, top_k]`
    pub weights: Vec<f32>,
}

pub(crate) fn alloc_routing(rows_max: usize, top_k: usize) -> Result<Routing> {
    let refused = |bytes| BackendError::OutOfMemory { what: format!("a routing [{rows_max}, {top_k}]"), bytes };
    let slots = rows_max.checked_mul(top_k).ok_or_else(|| refused(usize::MAX))?;
    let (mut experts, mut weights) = (Vec::new(), Vec::new());
    experts.try_reserve_exact(slots).map_err(|_| refused(slots.saturating_mul(8)))?;
    weights.try_reserve_exact(slots).map_err(|_| refused(slots.saturating_mul(8)))?;
    experts.resize(slots, 0);
    weights.resize(slots, 0.0);
    Ok(Routing::new(rows_max, top_k, Routed { experts, weights }))
}

pub(crate) fn read_routing(routing: &Routing) -> HostRouting {
    let (slots, routed) = (routing.rows() * routing.top_k(), routing.storage::<Routed>());
    HostRouting {
        top_k: routing.top_k(),
        experts: routed.experts[..slots].to_vec(),
        weights: routed.weights[..slots].to_vec(),
    }
}

pub(crate) fn write_routing(host: &HostRouting, out: &mut Routing) {
    assert_eq!(host.top_k, out.top_k(), "slots of a routing");
    let slots = host.experts.len();
    assert_eq!(slots, host.weights.len(), "a weight for each expert");
    assert!(slots.is_multiple_of(host.top_k.max(1)), "whole rows of {} slots", host.top_k);
    out.set_rows(slots / host.top_k.max(1));
    let routed = out.storage_mut::<Routed>();
    routed.experts[..slots].copy_from_slice(&host.experts);
    routed.weights[..slots].copy_from_slice(&host.weights);
}

/// Storage of a [`KvStore`]: `[layers, blocks, block_tokens, entry cells]`. An entry is the latent, or the keys of all
/// kv heads and then their values. A cell has the bits of an f16; in a cache of 8 bits each run of 64 values of a head
/// is the f16 of its scale and then two values to a cell.
pub(crate) struct KvCells {
    pub cells: Zeroed<u16>,
    layers: usize,
    blocks: usize,
    block_tokens: usize,
    entry_cells: usize,
}

impl KvCells {
    /// Index of the first value of a position's entry.
    pub fn entry(&self, layer: usize, block: BlockId, offset: usize) -> usize {
        let block = block.0 as usize;
        assert!(layer < self.layers && block < self.blocks && offset < self.block_tokens, "layer {layer}, {block:?}");
        ((layer * self.blocks + block) * self.block_tokens + offset) * self.entry_cells
    }
}

/// Cells of one head's key or value.
pub(crate) fn head_cells(dim: usize, precision: KvPrecision) -> usize {
    match precision {
        KvPrecision::Full => dim,
        KvPrecision::Int8 => dim / KV_GROUP * group_cells(KV_GROUP) + group_cells(dim % KV_GROUP),
    }
}

/// Cells of so many values with one scale.
pub(crate) fn group_cells(values: usize) -> usize {
    if values == 0 { 0 } else { 1 + values.div_ceil(2) }
}

pub(crate) fn alloc_kv(spec: &KvSpec) -> Result<KvStore> {
    let cells = |dim| head_cells(dim, spec.precision);
    let entry_cells = match spec.entry {
        KvEntry::Latent { width, .. } => Some(cells(width)),
        KvEntry::Separate { kv_heads, k_dim, v_dim } => {
            cells(k_dim).checked_add(cells(v_dim)).and_then(|both| both.checked_mul(kv_heads))
        }
    };
    let what = format!("a KV cache of {} layers, {} blocks of {} tokens", spec.layers, spec.blocks, spec.block_tokens);
    let refused = || BackendError::OutOfMemory { what: what.clone(), bytes: usize::MAX };
    let entry_cells = entry_cells.ok_or_else(refused)?;
    let cells = Zeroed::new(&what, &[spec.layers, spec.blocks, spec.block_tokens, entry_cells])?;
    let (layers, blocks, block_tokens) = (spec.layers, spec.blocks, spec.block_tokens);
    Ok(KvStore::new(spec.clone(), KvCells { cells, layers, blocks, block_tokens, entry_cells }))
}

pub(crate) fn kv_copy(kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) {
    let kv = kv.storage_mut::<KvCells>();
    let block_cells = kv.block_tokens * kv.entry_cells;
    let mut held = Vec::with_capacity(pairs.len() * block_cells);
    for layer in 0..kv.layers {
        held.clear();
        for &(from, _) in pairs {
            let start = kv.entry(layer, from, 0);
            held.extend_from_slice(&kv.cells[start..start + block_cells]);
        }
        for (&(_, to), values) in pairs.iter().zip(held.chunks_exact(block_cells.max(1))) {
            let start = kv.entry(layer, to, 0);
            kv.cells[start..start + block_cells].copy_from_slice(values);
        }
    }
}

/// The first `len` values, as they are. Memory that has been written once is not written again: filling what a smaller
/// op had given back took a twentieth of a prompt's time.
pub(crate) fn grow<T: Clone>(values: &mut Vec<T>, len: usize, fresh: T) -> &mut [T] {
    if values.len() < len {
        values.resize(len, fresh);
    }
    &mut values[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_sizes_are_refused() {
        let check = |lens: &[usize]| match Zeroed::<f32>::new("x", lens) {
            Err(BackendError::OutOfMemory { what, .. }) => assert_eq!(what, "x"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{lens:?} were given"),
        };
        check(&[usize::MAX, 2]);
        check(&[usize::MAX / 4]);
        check(&[1 << 50]);
        let entry = KvEntry::Separate { kv_heads: usize::MAX, k_dim: 2, v_dim: 2 };
        assert!(
            alloc_kv(&KvSpec { layers: 1, blocks: 1, block_tokens: 1, entry, precision: KvPrecision::Full }).is_err()
        );
        assert!(alloc_routing(usize::MAX, 2).is_err());
    }

    #[test]
    fn copies_read_before_they_write() {
        let entry = KvEntry::Latent { width: 2, v_dim: 1 };
        let mut kv =
            alloc_kv(&KvSpec { layers: 2, blocks: 3, block_tokens: 2, entry, precision: KvPrecision::Full }).unwrap();
        let cells = |kv: &KvStore| kv.storage::<KvCells>().cells.to_vec();
        let first: Vec<u16> = (0..24).collect();
        kv.storage_mut::<KvCells>().cells.copy_from_slice(&first);
        kv_copy(&mut kv, &[(BlockId(0), BlockId(1)), (BlockId(1), BlockId(2))]);
        let after = cells(&kv);
        for layer in [0, 12] {
            assert_eq!(after[layer + 4..layer + 8], first[layer..layer + 4]);
            assert_eq!(after[layer + 8..layer + 12], first[layer + 4..layer + 8]);
        }
    }
}
