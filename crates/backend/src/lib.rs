//! THE SEAM: what a device must do for our models.
//!
//! A backend knows no model, no request and no file. A model calls these ops and knows no device. Start with
//! [`Backend`]; [`buffer`] has the handles that ops pass around, [`ops`] their parameters, [`Exchange`] the way to
//! routed experts wherever they live, and [`conformance`] the suite that every backend must pass.
//!
//! # Contract
//! - Ops may run asynchronously in call order; only those that bring values to the host wait.
//! - **Reproducible:** the result for a row depends on that row (and its sequence's cache) alone: never on the other
//!   rows of the batch, on how many rows there are, or on the number of threads. Bit for bit.
//! - Shapes are the caller's duty: a wrong shape is a bug of ours and panics. What the world can cause (out of
//!   memory, an unsupported format, a lost device) is a [`BackendError`].

#![forbid(unsafe_code)]

pub mod buffer;
pub mod conformance;
pub mod exchange;
pub mod kv_int8;
pub mod low_rank;
pub mod ops;
pub mod top;
pub mod weights;

use std::ops::Range;
use std::time::Duration;

use lingqu_tensor::{Format, HostTensor, TensorError};
use lingqu_types::{Batch, BlockId};
use thiserror::Error;

pub use buffer::{Buffer, KvStore, Routing, Step, View, ViewMut};
pub use exchange::{Exchange, LocalExchange, OffloadExchange, OffloadSizes, PendingExperts};
pub use low_rank::{AdaptedFfn, AdaptedRows, LowRankSource, RANK_MAX};
pub use ops::{
    AttentionSpec, GroupScore, HostRouting, KvEntry, KvPrecision, KvSpec, RopePairing, RouteGroups, RouteSpec, Scoring,
};
pub use top::{TOP_LOGITS_MAX, TopLogits};
pub use weights::{ExpertWeights, FfnSource, FfnWeights, LinearSource, LowRank, Weight};

/// What the world, not our own code, can make fail.
#[derive(Debug, Error)]
pub enum BackendError {
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory { what: String, bytes: usize },
    #[error("{backend} cannot hold {what}")]
    Unsupported { backend: String, what: String },
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("{backend}: {problem}")]
    Device { backend: String, problem: String },
    /// Experts that could not be reached, with what was tried.
    #[error("experts of layer {layer}: {problem}")]
    Exchange { layer: usize, problem: String },
}

pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// What a backend can do, for whoever plans or prints; ops need not ask.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Name for people, such as `cpu (avx512-vnni, 2 threads)`.
    pub name: String,
    /// Formats of matrix weights that stay as they are stored. Others are refused at upload.
    pub weight_formats: Vec<Format>,
    /// The host may read buffers without a copy.
    pub host_memory: bool,
    /// Weights that are NaN or infinite are refused by uploads, or by [`Backend::settle`] and each op that would need
    /// them, so that nobody need look at them before.
    pub checks_numbers: bool,
}

/// A device. `out` is overwritten by every op; its rows in use must be set already and equal those of the input.
///
/// Activations are `[rows, cols]` of the backend's own float type. Dots accumulate in at least f32. Where an op says
/// `[rows, heads, len]` its views may have other columns between their heads; where it says `[rows, cols]` they are
/// flat ([`View::is_flat`]), as one head or several (the same on both sides of an op without weights). An op writes
/// nothing beside its view.
pub trait Backend: Send + Sync {
    fn capabilities(&self) -> &Capabilities;

    // ---- memory ----

    /// A buffer for up to `rows_max` rows of `cols` values, zeroed.
    fn alloc(&self, rows_max: usize, cols: usize) -> Result<Buffer>;

    /// Room for the routing of up to `rows_max` rows to `top_k` experts each.
    fn alloc_routing(&self, rows_max: usize, top_k: usize) -> Result<Routing>;

    /// The paged KV cache of all layers.
    fn alloc_kv(&self, spec: &KvSpec) -> Result<KvStore>;

    /// Copies whole blocks in every layer: `(from, to)` pairs, all reads before all writes.
    fn kv_copy(&self, kv: &mut KvStore, pairs: &[(BlockId, BlockId)]) -> Result<()>;

    /// Copies the rows in use to the host as f32: `out` is `[rows, heads * len]`. Waits for the device.
    fn read(&self, x: View<'_>, out: &mut [f32]) -> Result<()>;

    /// [`Backend::read`] of some of the rows in use: `out` is `[rows.len(), heads * len]`.
    fn read_rows(&self, x: View<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let width = x.width();
        let mut all = vec![0.0; x.rows() * width];
        self.read(x, &mut all)?;
        out.copy_from_slice(&all[rows.start * width..rows.end * width]);
        Ok(())
    }

    /// The `k` largest values of each row in use and a sum over all of them, with a scale for each row. `x` is flat;
    /// `k` is 1 to [`TOP_LOGITS_MAX`] and at most its columns. Waits for the device. For devices whose memory is far:
    /// with [`Capabilities::host_memory`], `read` costs no more.
    fn top_logits(&self, x: View<'_>, scales: &[f32], k: usize) -> Result<TopLogits> {
        let mut values = vec![0.0; x.rows() * x.width()];
        self.read(x, &mut values)?;
        Ok(TopLogits::of(&values, x.width(), scales, k))
    }

    /// Fills the rows in use from the host: `values` is `[rows, heads * len]`.
    fn write(&self, values: &[f32], out: ViewMut<'_>) -> Result<()>;

    /// The routing as the host sees it. Waits for the device.
    fn read_routing(&self, routing: &Routing) -> Result<HostRouting>;

    /// Sets rows in use and content of `out` from the host.
    fn write_routing(&self, routing: &HostRouting, out: &mut Routing) -> Result<()>;

    // ---- weights: uploaded once, possibly repacked ----

    /// Goes on with what uploads have left for later, for about as long as the budget says. Whether nothing is left.
    /// Until then ops give the same results, but slower.
    ///
    /// # Errors
    /// What an upload could have refused.
    fn settle(&self, budget: Duration) -> Result<bool> {
        let _ = budget;
        Ok(true)
    }

    /// A small vector or table kept in f32: norm weights, rope tables, the router's correction bias.
    fn upload_table(&self, tensor: &HostTensor) -> Result<Weight>;

    /// A token embedding `[vocab, hidden]`, read by rows.
    fn upload_embedding(&self, tensor: &HostTensor) -> Result<Weight>;

    /// A linear layer: one or several matrices that share an input, stacked by output.
    fn upload_linear(&self, source: LinearSource<'_>) -> Result<Weight>;

    /// One matrix `[out, in]` per head, all of the same shape.
    fn upload_heads(&self, heads: &[HostTensor]) -> Result<Weight>;

    /// A gated feed-forward layer.
    fn upload_ffn(&self, source: &FfnSource) -> Result<FfnWeights>;

    /// Routed experts that live on this device, in the order of their local index.
    fn upload_experts(&self, experts: &[FfnSource]) -> Result<ExpertWeights>;

    /// What an adapter adds to one linear layer, or to gate and up of a feed-forward layer. The sources share their
    /// input; the outputs that they change do not overlap. A backend that takes no adapters refuses here.
    fn upload_low_rank(&self, sources: &[LowRankSource]) -> Result<LowRank> {
        let what = format!("adapters ('{}')", sources.first().map_or("none", |source| &source.a.name));
        Err(BackendError::Unsupported { backend: self.capabilities().name.clone(), what })
    }

    // ---- ops ----

    /// Brings tokens, positions and block tables of one step to the device.
    fn begin_step(&self, batch: &Batch, block_tokens: usize) -> Result<Step>;

    /// `out[r] = table[token of r]`. out `[rows, hidden]`
    fn embed(&self, step: &Step, table: &Weight, out: ViewMut<'_>) -> Result<()>;

    /// `out = x / sqrt(mean(x^2) + eps) * weight` over the last dimension of each head.
    /// x, out `[rows, heads, len]`; weight `[len]` (Zhang & Sennrich 2019).
    fn rms_norm(&self, x: View<'_>, weight: &Weight, eps: f32, out: ViewMut<'_>) -> Result<()>;

    /// `out = x W^T (+ bias)`. x `[rows, in]`, W `[out, in]`, out `[rows, out]`
    fn linear(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()>;

    /// `out[r, h] = W[h] x[r, h]`. x `[rows, heads, in]`, W `[heads, out, in]`, out `[rows, heads, out]`
    fn linear_heads(&self, x: View<'_>, weight: &Weight, out: ViewMut<'_>) -> Result<()>;

    /// Rotates by the row's position. x, out `[rows, heads, dim]`; `table` `[positions, dim]`: cosines of the `dim / 2`
    /// angles, then their sines (any attention factor multiplied in). Each pair `(a, b)` of [`RopePairing`] becomes
    /// `(a cos - b sin, a sin + b cos)`, at the place where it stood.
    fn rope(&self, step: &Step, x: View<'_>, table: &Weight, pairing: RopePairing, out: ViewMut<'_>) -> Result<()>;

    /// Writes this step's keys (and values) to the cache at the rows' positions.
    /// [`KvEntry::Separate`]: k `[rows, kv_heads, k_dim]`, v `[rows, kv_heads, v_dim]`.
    /// [`KvEntry::Latent`]: k `[rows, 1, width]` (latent, then rotated rope key), v `None`.
    fn kv_append(&self, step: &Step, kv: &mut KvStore, layer: usize, k: View<'_>, v: Option<View<'_>>) -> Result<()>;

    /// Causal attention of each row over its own sequence's cache, itself included; call after `kv_append`.
    /// `out[r, h] = sum_p softmax_p(scale * q[r, h] . k[p, g]) v[p, g]` with kv head `g = h / (heads / kv_heads)`.
    /// q `[rows, heads, k_dim]`, out `[rows, heads, v_dim]`. With [`KvEntry::Latent`] there is one kv head, k is the
    /// whole entry and v its first `v_dim` values (absorbed MLA, DeepSeek-V2 paper, section 2.1.2 and appendix C).
    fn attention(&self, step: &Step, q: View<'_>, kv: &KvStore, spec: AttentionSpec, out: ViewMut<'_>) -> Result<()>;

    /// `out = down(silu(gate(x)) * up(x))`. x, out `[rows, hidden]`
    fn ffn(&self, x: View<'_>, weights: &FfnWeights, out: ViewMut<'_>) -> Result<()>;

    /// `out[r, offset + o] += scale * (B (A x[r]))[o]` for the rows of each adapter; other rows stay as they are.
    /// x `[rows, in]`, out `[rows, out]`
    fn add_low_rank(&self, _x: View<'_>, _adapted: &[AdaptedRows<'_>], _out: ViewMut<'_>) -> Result<()> {
        unreachable!("a change that this backend did not upload")
    }

    /// [`Backend::ffn`] where adapters change gate, up or down for some rows. Other rows have the bits of `ffn`, and so
    /// does a row whose changes are all zero. x, out `[rows, hidden]`
    fn ffn_adapted(
        &self,
        _x: View<'_>,
        _weights: &FfnWeights,
        _adapted: &[AdaptedFfn<'_>],
        _out: ViewMut<'_>,
    ) -> Result<()> {
        unreachable!("a change that this backend did not upload")
    }

    /// Chooses `top_k` experts for each row and their weights. logits `[rows, experts]`; `bias` `[experts]` corrects
    /// the choice but not the weights (DeepSeek-V3 paper, section 2.1.2). See [`RouteSpec`] for the arithmetic.
    fn route(&self, logits: View<'_>, bias: Option<&Weight>, spec: &RouteSpec, out: &mut Routing) -> Result<()>;

    /// `out[r] = sum over slots, in slot order, of weight[r, slot] * ffn_expert[r, slot](x[r])`.
    /// x, out `[rows, hidden]`. Expert numbers are local indices of `weights`.
    fn experts(&self, x: View<'_>, routing: &Routing, weights: &ExpertWeights, out: ViewMut<'_>) -> Result<()>;

    /// The sum of [`Backend::experts`] alone, the same bits, over outputs that came from elsewhere.
    /// y `[rows * top_k, hidden]`, slot after slot of each row; out `[rows, hidden]`
    fn combine(&self, y: View<'_>, routing: &Routing, out: ViewMut<'_>) -> Result<()>;

    /// `out += x`. x, out `[rows, cols]`
    fn add(&self, x: View<'_>, out: ViewMut<'_>) -> Result<()>;

    /// `out[i] = x[rows[i]]`, between steps: waits for the device. x `[rows, cols]`, out `[rows.len(), cols]`
    fn gather_rows(&self, x: View<'_>, rows: &[u32], out: ViewMut<'_>) -> Result<()> {
        let (Some(&first), Some(&last)) = (rows.iter().min(), rows.iter().max()) else { return Ok(()) };
        let span = first as usize..last as usize + 1;
        let mut values = vec![0.0; span.len() * x.width()];
        self.read_rows(x, span.clone(), &mut values)?;
        let row = |r: &u32| &values[(*r as usize - span.start) * x.width()..][..x.width()];
        self.write(&rows.iter().flat_map(row).copied().collect::<Vec<f32>>(), out)
    }

    /// The rows whose logits the batch asked for. x `[rows, cols]`, out `[logit_rows, cols]`
    fn gather_logit_rows(&self, step: &Step, x: View<'_>, out: ViewMut<'_>) -> Result<()>;
}
