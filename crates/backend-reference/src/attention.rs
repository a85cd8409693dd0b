//! The paged cache, and causal attention over it.

use candle_core::{D, Device, Result as CandleResult, Tensor};
use lingqu_backend::kv_int8::{KV_GROUP, round_group};
use lingqu_backend::{AttentionSpec, KvEntry, KvPrecision, KvSpec, KvStore, Result, Step, View, ViewMut};
use lingqu_types::{BlockId, SequenceSlice};

use crate::memory::{StepData, expect_rows, read, tensor, write, zeroed};
use crate::{device, dots};

/// Keys and values of one layer, block after block.
struct Layer {
    /// `[blocks, block_tokens, heads * k_dim]`, or whole latent entries.
    keys: Vec<f32>,
    /// `[blocks, block_tokens, heads * v_dim]`; empty where values are part of the latent entry.
    values: Vec<f32>,
}

/// What an entry looks like to attention.
#[derive(Clone, Copy)]
struct Heads {
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    /// Values are the first `v_dim` of the key.
    shared: bool,
}

impl From<KvEntry> for Heads {
    fn from(entry: KvEntry) -> Self {
        match entry {
            KvEntry::Separate { kv_heads, k_dim, v_dim } => Self { kv_heads, k_dim, v_dim, shared: false },
            KvEntry::Latent { width, v_dim } => Self { kv_heads: 1, k_dim: width, v_dim, shared: true },
        }
    }
}

impl Heads {
    fn key_width(self) -> usize {
        self.kv_heads * self.k_dim
    }

    /// Of the values that are stored beside the keys.
    fn value_width(self) -> usize {
        if self.shared { 0 } else { self.kv_heads * self.v_dim }
    }
}

pub fn alloc(spec: &KvSpec) -> Result<KvStore> {
    let heads = Heads::from(spec.entry);
    let what = format!("the KV cache of {} blocks", spec.blocks);
    drop(zeroed(&what, &[spec.layers, spec.blocks, spec.block_tokens, spec.entry.values()])?); // all at once, or none
    let layer = |_| -> Result<Layer> {
        let keys = zeroed(&what, &[spec.blocks, spec.block_tokens, heads.key_width()])?;
        let values = zeroed(&what, &[spec.blocks, spec.block_tokens, heads.value_width()])?;
        Ok(Layer { keys, values })
    };
    let layers: Vec<Layer> = (0..spec.layers).map(layer).collect::<Result<_>>()?;
    Ok(KvStore::new(spec.clone(), layers))
}

pub fn copy_blocks(kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) {
    let KvSpec { blocks, block_tokens, entry, .. } = *kv.spec();
    let heads = Heads::from(entry);
    let inside = |id: &BlockId| assert!((id.0 as usize) < blocks, "kv_copy: block {} of {blocks}", id.0);
    pairs.iter().for_each(|(from, to)| [from, to].into_iter().for_each(inside));
    for layer in kv.storage_mut::<Vec<Layer>>() {
        let Layer { keys, values } = layer;
        for (stored, width) in [(keys, heads.key_width()), (values, heads.value_width())] {
            let block = block_tokens * width;
            let read: Vec<Vec<f32>> =
                pairs.iter().map(|(from, _)| stored[from.0 as usize * block..][..block].to_vec()).collect();
            for ((_, to), content) in pairs.iter().zip(read) {
                stored[to.0 as usize * block..][..block].copy_from_slice(&content);
            }
        }
    }
}

/// Where position `p` of a sequence lives, counted in tokens from the first block.
fn slot(sequence: &SequenceSlice, block_tokens: usize, p: usize) -> usize {
    sequence.blocks[p / block_tokens].0 as usize * block_tokens + p % block_tokens
}

pub fn append(step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) {
    let StepData { batch, block_tokens, .. } = step.storage();
    assert_eq!(*block_tokens, kv.spec().block_tokens, "kv_append: tokens of a block");
    let KvSpec { entry, precision, .. } = *kv.spec();
    let heads = Heads::from(entry);
    expect_rows("kv_append", step.rows(), k.rows());
    assert_eq!(k.width(), heads.key_width(), "kv_append: values of a key");
    assert_eq!(v.is_none(), heads.shared, "kv_append: a value exactly where the entry keeps one");
    let stored = &mut kv.storage_mut::<Vec<Layer>>()[layer];
    let put = |x: View<'_>, stored: &mut [f32], width: usize| {
        let mut rows = vec![0.0; x.rows() * width]; // [rows, heads, dim]
        read(x, &mut rows);
        if precision == KvPrecision::Int8 {
            rows.chunks_mut(x.len.max(1)).for_each(round_head);
        }
        for sequence in &batch.sequences {
            for (i, row) in sequence.rows.clone().enumerate() {
                let to = slot(sequence, *block_tokens, sequence.context + i);
                stored[to * width..][..width].copy_from_slice(&rows[row * width..][..width]);
            }
        }
    };
    put(k, &mut stored.keys, heads.key_width());
    if let Some(v) = v {
        expect_rows("kv_append", step.rows(), v.rows());
        assert_eq!(v.width(), heads.value_width(), "kv_append: values of a value");
        put(v, &mut stored.values, heads.value_width());
    }
}

/// What is left of a head's values in a cache of 8 bits.
fn round_head(values: &mut [f32]) {
    for group in values.chunks_mut(KV_GROUP) {
        let mut codes = [0; KV_GROUP];
        let codes = &mut codes[..group.len()];
        let scale = round_group(group, codes).to_f32();
        group.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(*code) * scale);
    }
}

pub fn attend(step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) -> Result<()> {
    let StepData { batch, block_tokens, .. } = step.storage();
    assert_eq!(*block_tokens, kv.spec().block_tokens, "attention: tokens of a block");
    let heads = Heads::from(kv.spec().entry);
    expect_rows("attention", step.rows(), q.rows());
    expect_rows("attention", step.rows(), out.rows());
    assert_eq!((q.len, out.len), (heads.k_dim, heads.v_dim), "attention: values of a head");
    assert!(q.heads == out.heads && q.heads.is_multiple_of(heads.kv_heads), "attention: heads");
    let layer = &kv.storage::<Vec<Layer>>()[spec.layer];
    let group = q.heads / heads.kv_heads;
    let each_row = |q: Tensor| -> CandleResult<Tensor> {
        let mut rows = Vec::with_capacity(step.rows());
        for sequence in &batch.sequences {
            let cached = Cached::gather(layer, heads, sequence, *block_tokens)?;
            for (i, row) in sequence.rows.clone().enumerate() {
                let seen = sequence.context + i + 1;
                let q = q.get(row)?; // [heads, k_dim]
                let of_group = |g| cached.attend(g, seen, &q.narrow(0, g * group, group)?, spec.scale);
                let groups: Vec<Tensor> = (0..heads.kv_heads).map(of_group).collect::<CandleResult<_>>()?;
                rows.push(Tensor::cat(&groups, 0)?); // [heads, v_dim]
            }
        }
        Tensor::stack(&rows, 0)
    };
    let y = tensor(q).and_then(each_row).map_err(device)?; // [rows, heads, v_dim]
    write("attention", &y, out)
}

/// What one sequence has in the cache, for each kv head.
struct Cached {
    /// `[positions, k_dim]`
    keys: Vec<Tensor>,
    /// `[v_dim, positions]`
    values: Vec<Tensor>,
}

impl Cached {
    fn gather(layer: &Layer, heads: Heads, sequence: &SequenceSlice, block_tokens: usize) -> CandleResult<Self> {
        let positions = sequence.context + sequence.rows.len();
        let slots: Vec<usize> = (0..positions).map(|p| slot(sequence, block_tokens, p)).collect();
        let of_head = |stored: &[f32], width: usize, dim: usize, head: usize| {
            let values: Vec<f32> =
                slots.iter().flat_map(|s| &stored[s * width + head * dim..][..dim]).copied().collect();
            Tensor::from_vec(values, (positions, dim), &Device::Cpu)
        };
        let keys: Vec<Tensor> = (0..heads.kv_heads)
            .map(|g| of_head(&layer.keys, heads.key_width(), heads.k_dim, g))
            .collect::<CandleResult<_>>()?;
        let values = if heads.shared {
            vec![keys[0].narrow(1, 0, heads.v_dim)?.t()?.contiguous()?]
        } else {
            (0..heads.kv_heads)
                .map(|g| of_head(&layer.values, heads.value_width(), heads.v_dim, g)?.t()?.contiguous())
                .collect::<CandleResult<_>>()?
        };
        Ok(Self { keys, values })
    }

    /// Over the first `seen` positions. q `[heads of the group, k_dim]`, result `[heads of the group, v_dim]`
    fn attend(&self, group: usize, seen: usize, q: &Tensor, scale: f32) -> CandleResult<Tensor> {
        let scores = (dots(q, &self.keys[group].narrow(0, 0, seen)?)? * f64::from(scale))?; // [heads, seen]
        let exps = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = exps.broadcast_div(&exps.sum_keepdim(D::Minus1)?)?;
        dots(&weights, &self.values[group].narrow(1, 0, seen)?)
    }
}
