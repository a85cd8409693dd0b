//! Low-rank changes of linear layers (LoRA, Hu et al. 2021): what an adapter adds to a model for some of its rows.

use lingqu_tensor::{Format, HostTensor};

use crate::weights::LowRank;

/// The largest rank of a change.
pub const RANK_MAX: usize = 256;

/// A change of some outputs of a linear layer before upload: `out[offset + o] += scale * (B (A x))[o]`.
#[derive(Clone, Debug)]
pub struct LowRankSource {
    /// The first output that is changed, counted over the layer's stacked parts.
    pub offset: usize,
    /// `[rank, in]`, rank 1 to [`RANK_MAX`], in a format of [`LowRankSource::FORMATS`]
    pub a: HostTensor,
    /// `[outputs changed, rank]`, alike
    pub b: HostTensor,
    pub scale: f32,
}

impl LowRankSource {
    /// What factors may be stored in.
    pub const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::Bf16];
}

/// Rows that one adapter changes. The rows of several in one call are disjoint.
#[derive(Clone, Copy)]
pub struct AdaptedRows<'a> {
    /// Ascending.
    pub rows: &'a [u32],
    pub change: &'a LowRank,
}

/// Rows of a gated feed-forward layer that one adapter changes. The rows of several in one call are disjoint.
#[derive(Clone, Copy)]
pub struct AdaptedFfn<'a> {
    /// Ascending.
    pub rows: &'a [u32],
    /// Of gate and up, stacked: outputs from `intermediate` on are up's.
    pub gate_up: Option<&'a LowRank>,
    pub down: Option<&'a LowRank>,
}
