//! What a model is, in numbers: read from `config.json` or GGUF metadata, checked, and then the same for both.

pub(crate) mod fields;
pub(crate) mod gguf;
pub(crate) mod hugging_face;
#[cfg(test)]
mod tests;

use lingqu_backend::{GroupScore, KvEntry, RopePairing, RouteSpec};

use crate::ModelError;
use fields::Fields;

/// A checked configuration. All counts are at least 1 unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// For people: GGUF's `general.name`, or the folder's name.
    pub name: String,
    /// The registry's name of the architecture: `deepseek`, `qwen2`, `llama`.
    pub architecture: &'static str,
    pub vocab_size: usize,
    pub hidden: usize,
    pub layers: usize,
    /// Multi-token-prediction layers behind them (DeepSeek-V3 paper, section 2.2), of which the first can be used.
    /// May be 0.
    pub prediction_layers: usize,
    /// Positions the model was trained (or scaled) for.
    pub context_tokens_max: usize,
    pub rms_norm_eps: f32,
    pub attention: AttentionConfig,
    pub rope: RopeConfig,
    /// Width of a dense feed-forward layer. 0 where every layer is a mixture of experts.
    pub ffn_intermediate: usize,
    pub moe: Option<MoeConfig>,
    /// The head is the embedding.
    pub tied_embeddings: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AttentionConfig {
    Gqa(GqaConfig),
    Mla(MlaConfig),
}

/// Grouped-query attention (Ainslie et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct GqaConfig {
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    pub qkv_bias: bool,
    pub output_bias: bool,
}

/// Multi-head latent attention (DeepSeek-V2 paper, section 2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct MlaConfig {
    pub heads: usize,
    /// `None`: queries come straight from the hidden state (V2-Lite).
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    /// Of a head's query and key, the part without position.
    pub nope_dim: usize,
    /// The part that is rotated; the key's is shared by all heads.
    pub rope_dim: usize,
    pub v_dim: usize,
    /// Multiplies the dot of query and key: (nope_dim + rope_dim)^-1/2, times YaRN's mscale squared.
    pub softmax_scale: f32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// Values that turn, even.
    pub dim: usize,
    pub pairing: RopePairing,
    pub scaling: RopeScaling,
}

/// How angles are stretched for contexts longer than the first training's.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions divided by a factor (Chen et al. 2023).
    Linear {
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a smooth change between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// YaRN (Peng et al. 2023). `attention_factor` multiplies cosines and sines.
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
    },
}

/// DeepSeekMoE (DeepSeek-V2 paper, section 2.2; DeepSeek-V3 paper, section 2.1.2).
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    pub route: RouteSpec,
    /// Width of one expert.
    pub intermediate: usize,
    /// Experts that every token passes, held as one layer of `shared_experts * intermediate`. May be 0.
    pub shared_experts: usize,
    /// Layers before this one are dense.
    pub first_moe_layer: usize,
    /// From there on, the layers whose number divides by this are mixtures of experts.
    pub layer_freq: usize,
    /// A bias corrects the choice of experts (V3).
    pub correction_bias: bool,
}

impl ModelConfig {
    /// Reads the text of a Hugging Face `config.json` alone; `name` is for people.
    ///
    /// # Errors
    /// Name the field that is missing, wrong or not supported.
    pub fn from_config_json(text: &str, name: &str) -> Result<Self, ModelError> {
        let json = hugging_face::ConfigJson::parse(text)?;
        let architecture = crate::registry::by_json("config.json", &json.architectures())?;
        (architecture.read_json)(&json, name)
    }

    /// What one position of the KV cache holds, per layer.
    pub fn kv_entry(&self) -> KvEntry {
        match &self.attention {
            AttentionConfig::Gqa(a) => KvEntry::Separate { kv_heads: a.kv_heads, k_dim: a.head_dim, v_dim: a.head_dim },
            AttentionConfig::Mla(a) => KvEntry::Latent { width: a.kv_lora_rank + a.rope_dim, v_dim: a.kv_lora_rank },
        }
    }

    /// Whether layer `layer` is a mixture of experts.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.moe.as_ref().is_some_and(|m| layer >= m.first_moe_layer && layer.is_multiple_of(m.layer_freq))
    }

    /// Only for architectures that have it.
    pub(crate) fn mla(&self) -> &MlaConfig {
        match &self.attention {
            AttentionConfig::Mla(mla) => mla,
            AttentionConfig::Gqa(_) => unreachable!("the registry pairs architectures with their attention"),
        }
    }

    pub(crate) fn gqa(&self) -> &GqaConfig {
        match &self.attention {
            AttentionConfig::Gqa(gqa) => gqa,
            AttentionConfig::Mla(_) => unreachable!("the registry pairs architectures with their attention"),
        }
    }
}

/// How a file calls the fields that [`validate`] may complain about.
pub(crate) struct FieldNames {
    pub kv_heads: &'static str,
    pub rope_dim: &'static str,
    pub top_k: &'static str,
    pub groups: &'static str,
    pub top_groups: &'static str,
}

/// Checks what one field alone cannot tell.
pub(crate) fn validate(config: ModelConfig, f: &Fields, names: &FieldNames) -> Result<ModelConfig, ModelError> {
    if let AttentionConfig::Gqa(GqaConfig { heads, kv_heads, .. }) = config.attention {
        f.require(names.kv_heads, heads.is_multiple_of(kv_heads), || {
            format!("{heads} attention heads do not divide over {kv_heads} kv heads")
        })?;
    }
    let dim = config.rope.dim;
    f.require(names.rope_dim, dim.is_multiple_of(2), || format!("rotates {dim} values, which are not pairs"))?;
    if let Some(MoeConfig { route, .. }) = &config.moe {
        let RouteSpec { experts, top_k, .. } = *route;
        f.require(names.top_k, top_k <= experts, || format!("{top_k} of {experts} experts"))?;
        if let Some(groups) = route.groups {
            let per_group = experts / groups.groups;
            let least = if groups.score == GroupScore::Top2Sum { 2 } else { 1 };
            f.require(names.groups, experts.is_multiple_of(groups.groups) && per_group >= least, || {
                format!("{experts} experts in {} groups", groups.groups)
            })?;
            f.require(names.top_groups, groups.top_groups <= groups.groups, || {
                format!("{} of {} groups", groups.top_groups, groups.groups)
            })?;
            f.require(names.top_k, top_k <= groups.top_groups * per_group, || {
                format!("{top_k} experts out of {} groups of {per_group}", groups.top_groups)
            })?;
        }
    }
    Ok(config)
}

/// YaRN's attention temperature, as DeepSeek's release code has it (`yarn_get_mscale`).
pub(crate) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
