//! Where in a base model a change belongs.

use lingqu_backend::RopePairing;
use lingqu_tensor::{HostTensor, TensorError};

use crate::config::{AttentionConfig, ModelConfig};
use crate::names::Role;

/// The linear layers that an adapter may change in each layer of a model; what shares its input is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// `qkv`, or MLA's `query_kv_a`.
    AttentionIn,
    /// MLA's queries out of their latent.
    QueryB,
    AttentionOut,
    /// Of a dense layer, or of the shared experts.
    GateUp,
    Down,
}

impl Site {
    pub const COUNT: usize = 5;
}

/// A matrix of the base.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub site: Site,
    /// Its first output at the site.
    pub offset: usize,
    /// `[out, in]`
    pub shape: [usize; 2],
    /// Its outputs are heads of this many values whose rotated pairs lie side by side, as in GGUF files of Llama;
    /// adapters are made for the halves that Hugging Face has.
    pub interleaved_heads: Option<usize>,
}

/// Where `role` of layer `layer` is, or why an adapter cannot change it.
pub(crate) fn place(config: &ModelConfig, role: Role, layer: usize) -> Result<Place, String> {
    if layer >= config.layers {
        return Err(format!("is of layer {layer}, but the model has {}", config.layers));
    }
    match role {
        Role::KvB => {
            return Err("kv_b_proj is absorbed into attention and never applied by itself: train without it".into());
        }
        Role::ExpertGate | Role::ExpertUp | Role::ExpertDown | Role::Router => {
            return Err("routed experts and their router take no adapters".into());
        }
        Role::FfnGate | Role::FfnUp | Role::FfnDown | Role::SharedGate | Role::SharedUp | Role::SharedDown => {
            return feed_forward(config, role, layer);
        }
        _ => {}
    }
    let hidden = config.hidden;
    let mut interleaved_heads = None;
    let (site, offset, shape) = match &config.attention {
        AttentionConfig::Gqa(gqa) => {
            let (q, kv) = (gqa.heads * gqa.head_dim, gqa.kv_heads * gqa.head_dim);
            if config.rope.pairing == RopePairing::Interleaved && matches!(role, Role::Query | Role::Key) {
                interleaved_heads = Some(gqa.head_dim);
            }
            match role {
                Role::Query => (Site::AttentionIn, 0, [q, hidden]),
                Role::Key => (Site::AttentionIn, q, [kv, hidden]),
                Role::Value => (Site::AttentionIn, q + kv, [kv, hidden]),
                Role::Output => (Site::AttentionOut, 0, [hidden, q]),
                _ => return Err(NONE.into()),
            }
        }
        AttentionConfig::Mla(mla) => {
            let q = mla.heads * (mla.nope_dim + mla.rope_dim);
            match (role, mla.q_lora_rank) {
                (Role::QueryA, Some(rank)) => (Site::AttentionIn, 0, [rank, hidden]),
                (Role::QueryB, Some(rank)) => (Site::QueryB, 0, [q, rank]),
                (Role::Query, None) => (Site::AttentionIn, 0, [q, hidden]),
                (Role::KvA, rank) => (Site::AttentionIn, rank.unwrap_or(q), [mla.kv_lora_rank + mla.rope_dim, hidden]),
                (Role::Output, _) => (Site::AttentionOut, 0, [hidden, mla.heads * mla.v_dim]),
                _ => return Err(NONE.into()),
            }
        }
    };
    Ok(Place { site, offset, shape, interleaved_heads })
}

const NONE: &str = "the base model has no such linear layer";

fn feed_forward(config: &ModelConfig, role: Role, layer: usize) -> Result<Place, String> {
    let shared = config.moe.as_ref().filter(|_| config.is_moe_layer(layer)).map(|m| m.shared_experts * m.intermediate);
    let is_shared = matches!(role, Role::SharedGate | Role::SharedUp | Role::SharedDown);
    let intermediate = match shared {
        Some(width) if is_shared && width > 0 => width,
        None if !is_shared => config.ffn_intermediate,
        _ => return Err(NONE.into()),
    };
    let hidden = config.hidden;
    let (site, offset, shape) = match role {
        Role::FfnGate | Role::SharedGate => (Site::GateUp, 0, [intermediate, hidden]),
        Role::FfnUp | Role::SharedUp => (Site::GateUp, intermediate, [intermediate, hidden]),
        _ => (Site::Down, 0, [hidden, intermediate]),
    };
    Ok(Place { site, offset, shape, interleaved_heads: None })
}

/// Rows of heads of halves (`a.., b..`) as rows of heads of pairs (`a0, b0, a1, b1, ..`): what llama.cpp's converter
/// does to Llama's q and k.
pub(crate) fn interleave_heads(b: &HostTensor, head_dim: usize) -> Result<HostTensor, TensorError> {
    let bytes = b.row_bytes();
    let stored = b.data.as_slice();
    let half = head_dim / 2;
    let mut data = Vec::with_capacity(stored.len());
    for row in 0..b.rows {
        let (head, i) = (row / head_dim, row % head_dim);
        let from = head * head_dim + i % 2 * half + i / 2;
        data.extend_from_slice(&stored[from * bytes..][..bytes]);
    }
    HostTensor::new(b.name.clone(), [b.rows, b.cols], b.format, data.into())
}
