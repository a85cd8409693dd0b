//! Parameters of ops.

/// Which values of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// `(x[2i], x[2i + 1])`: DeepSeek's own layout, GGUF's `llama` and `deepseek2` ("NORM").
    Interleaved,
    /// `(x[i], x[i + dim / 2])`: Hugging Face's Llama and Qwen2 ("NEOX").
    Half,
}

/// What one position of the cache holds, per layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvEntry {
    /// Grouped-query attention: keys and values of each kv head.
    Separate { kv_heads: usize, k_dim: usize, v_dim: usize },
    /// MLA: `width` values (latent, then rope key) of which the first `v_dim` also serve as the value.
    Latent { width: usize, v_dim: usize },
}

impl KvEntry {
    /// Values one token takes in one layer.
    pub fn values(self) -> usize {
        match self {
            KvEntry::Separate { kv_heads, k_dim, v_dim } => kv_heads * (k_dim + v_dim),
            KvEntry::Latent { width, .. } => width,
        }
    }
}

/// Shape of a paged KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSpec {
    pub layers: usize,
    pub blocks: usize,
    pub block_tokens: usize,
    pub entry: KvEntry,
    pub precision: KvPrecision,
}

/// How finely the cache keeps keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPrecision {
    /// In the backend's own float of 16 bits or more.
    #[default]
    Full,
    /// In 8 bits, with a scale to each run of 64 values of a head: see [`crate::kv_int8`]. Half the memory. A backend
    /// that lacks it refuses to make such a cache.
    Int8,
}

/// Parameters of one attention call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    pub layer: usize,
    /// Multiplies the dot of query and key.
    pub scale: f32,
}

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
}

/// How a group of experts is scored when whole groups are chosen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (DeepSeek-V2's `group_limited_greedy`).
    Max,
    /// The sum of its two best (DeepSeek-V3's `noaux_tc`).
    Top2Sum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteGroups {
    pub groups: usize,
    pub top_groups: usize,
    pub score: GroupScore,
}

/// The router. Step by step, in f32:
/// 1. `score = scoring(logits)` over all experts; `choice = score + bias` (bias only where given).
/// 2. With groups: experts are `groups` equal runs; keep the `top_groups` best by [`GroupScore`] of `choice`; equal
///    scores go to the lower group number.
/// 3. The `top_k` best of what is kept, by `choice`, best first; equal values go to the lower expert number.
/// 4. `weight = score` of the chosen; if `normalise` and top_k > 1, divided by (their sum in slot order + 1e-20);
///    then times `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteSpec {
    pub experts: usize,
    pub top_k: usize,
    pub scoring: Scoring,
    pub groups: Option<RouteGroups>,
    pub normalise: bool,
    pub scale: f32,
}

/// A routing as the host sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostRouting {
    pub top_k: usize,
    /// Expert of each slot, best first. `[rows, top_k]`
    pub experts: Vec<u32>,
    /// `[rows, top_k]`
    pub weights: Vec<f32>,
}
