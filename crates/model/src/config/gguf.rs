//! Configuration from GGUF metadata: llama.cpp's keys (`gguf-py/gguf/constants.py` lists them).

use lingqu_backend::{GroupScore, RopePairing, RouteGroups, RouteSpec, Scoring};

use super::fields::Fields;
use super::{
    AttentionConfig, FieldNames, GqaConfig, MlaConfig, ModelConfig, MoeConfig, RopeConfig, RopeScaling, hugging_face,
    validate, yarn_mscale,
};
use crate::ModelError;

const NAMES: FieldNames = FieldNames {
    kv_heads: "attention.head_count_kv",
    rope_dim: "rope.dimension_count",
    top_k: "expert_used_count",
    groups: "expert_group_count",
    top_groups: "expert_group_used_count",
};

/// What the tensors of the file tell beside its metadata.
pub(crate) struct TensorFacts {
    /// Rows of `token_embd.weight`: some files have no `vocab_size`.
    pub embedding_rows: usize,
    /// Whether there is an `output.weight` of its own.
    pub has_head: bool,
    pub has_qkv_bias: bool,
    pub has_output_bias: bool,
    /// Whether there is an `exp_probs_b.bias`.
    pub has_correction_bias: bool,
}

/// `llama` and `qwen2`. llama.cpp's converter permutes Llama's q and k rows so that pairs lie side by side; Qwen2's
/// stay as in Hugging Face.
pub(crate) fn gqa(
    f: &Fields,
    name: &str,
    facts: &TensorFacts,
    architecture: &'static str,
    pairing: RopePairing,
) -> Result<ModelConfig, ModelError> {
    let experts = f.optional_size("expert_count")?.unwrap_or(0);
    f.require("expert_count", experts == 0, || format!("{experts} experts in this architecture are not supported"))?;
    let heads = f.count("attention.head_count")?;
    let hidden = f.count("embedding_length")?;
    let head_dim = match f.optional_count("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return f.error("attention.head_count", format!("width {hidden} does not divide by {heads}")),
    };
    let value_dim = f.optional_count("attention.value_length")?.unwrap_or(head_dim);
    f.require("attention.value_length", value_dim == head_dim, || {
        format!("values of {value_dim} beside keys of {head_dim} are not supported")
    })?;
    let rope_dim = f.optional_count("rope.dimension_count")?.unwrap_or(head_dim);
    f.require("rope.dimension_count", rope_dim == head_dim, || {
        format!("rotating {rope_dim} of {head_dim} values is not supported")
    })?;
    let context_tokens_max = f.count("context_length")?;
    let window = f.optional_size("attention.sliding_window")?.unwrap_or(0);
    f.require("attention.sliding_window", window == 0 || window >= context_tokens_max, || {
        format!("attention over a window of {window} tokens is not supported")
    })?;
    let attention = GqaConfig {
        heads,
        kv_heads: f.optional_count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        qkv_bias: facts.has_qkv_bias,
        output_bias: facts.has_output_bias,
    };
    let [layers, prediction_layers] = layers(f)?;
    let config = ModelConfig {
        name: name.into(),
        architecture,
        vocab_size: vocab_size(f, facts)?,
        hidden,
        layers,
        prediction_layers,
        context_tokens_max,
        rms_norm_eps: f.positive("attention.layer_norm_rms_epsilon")? as f32,
        attention: AttentionConfig::Gqa(attention),
        rope: RopeConfig {
            theta: rope_theta(f)?,
            dim: head_dim,
            pairing,
            scaling: rope_scaling(f, context_tokens_max)?,
        },
        ffn_intermediate: f.count("feed_forward_length")?,
        moe: None,
        tied_embeddings: !facts.has_head,
    };
    validate(config, f, &NAMES)
}

/// `deepseek2`: V2, V3 and R1. In files with split `attn_k_b`/`attn_v_b`, `key_length` describes the absorbed key and
/// `key_length_mla` a head's own; older files have only the latter's meaning under the former's name.
pub(crate) fn deepseek(f: &Fields, name: &str, facts: &TensorFacts) -> Result<ModelConfig, ModelError> {
    let rope_dim = f.count("rope.dimension_count")?;
    let field = |mla: &'static str, plain: &'static str| if f.has(mla) { mla } else { plain };
    let key_field = field("attention.key_length_mla", "attention.key_length");
    let key_dim = f.count(key_field)?;
    let v_dim = f.count(field("attention.value_length_mla", "attention.value_length"))?;
    f.require(key_field, key_dim > rope_dim, || format!("{key_dim} is not above the {rope_dim} rotated values"))?;
    let context_tokens_max = f.count("context_length")?;
    let attention = MlaConfig {
        heads: f.count("attention.head_count")?,
        q_lora_rank: f.optional_size("attention.q_lora_rank")?.filter(|&rank| rank > 0),
        kv_lora_rank: f.count("attention.kv_lora_rank")?,
        nope_dim: key_dim - rope_dim,
        rope_dim,
        v_dim,
        softmax_scale: softmax_scale(f, key_dim)? as f32,
    };
    let [layers, prediction_layers] = layers(f)?;
    let config = ModelConfig {
        name: name.into(),
        architecture: "deepseek",
        vocab_size: vocab_size(f, facts)?,
        hidden: f.count("embedding_length")?,
        layers,
        prediction_layers,
        context_tokens_max,
        rms_norm_eps: f.positive("attention.layer_norm_rms_epsilon")? as f32,
        attention: AttentionConfig::Mla(attention),
        rope: RopeConfig {
            theta: rope_theta(f)?,
            dim: rope_dim,
            pairing: RopePairing::Interleaved,
            scaling: deepseek_rope_scaling(f, context_tokens_max)?,
        },
        ffn_intermediate: f.count("feed_forward_length")?,
        moe: moe(f, facts)?,
        tied_embeddings: !facts.has_head,
    };
    validate(config, f, &NAMES)
}

fn vocab_size(f: &Fields, facts: &TensorFacts) -> Result<usize, ModelError> {
    let stated = f.optional_count("vocab_size")?.unwrap_or(facts.embedding_rows);
    let held = facts.embedding_rows;
    f.require("vocab_size", stated == held, || format!("{stated}, but the embedding holds {held} tokens"))?;
    Ok(stated)
}

/// Layers, and multi-token-prediction layers behind them: `block_count` counts both.
fn layers(f: &Fields) -> Result<[usize; 2], ModelError> {
    let (all, mtp) = (f.count("block_count")?, f.optional_size("nextn_predict_layers")?.unwrap_or(0));
    f.require("nextn_predict_layers", mtp < all, || format!("{mtp} of {all} layers"))?;
    Ok([all - mtp, mtp])
}

fn rope_theta(f: &Fields) -> Result<f64, ModelError> {
    let theta = f.optional_positive("rope.freq_base")?.unwrap_or(10_000.0);
    f.require("rope.freq_base", theta > 1.0, || format!("{theta} is not above 1"))?;
    Ok(theta)
}

enum Scaling {
    None,
    Linear(f64),
    Yarn { factor: f64, original_context: usize },
}

fn scaling(f: &Fields, context_tokens_max: usize) -> Result<Scaling, ModelError> {
    let factor = match f.optional_number("rope.scaling.factor")? {
        // llama.cpp reads 0 as "none"; files from before `rope.scaling` have `rope.scale_linear`.
        None | Some(0.0) => f.optional_positive("rope.scale_linear")?.unwrap_or(1.0),
        Some(_) => f.positive("rope.scaling.factor")?,
    };
    match f.text("rope.scaling.type")?.as_deref() {
        Some("none") => Ok(Scaling::None),
        None | Some("linear") if factor == 1.0 => Ok(Scaling::None),
        None | Some("linear") => Ok(Scaling::Linear(factor)),
        Some("yarn") => {
            let original = f.optional_count("rope.scaling.original_context_length")?;
            Ok(Scaling::Yarn { factor, original_context: original.unwrap_or(context_tokens_max) })
        }
        Some(other) => f.error("rope.scaling.type", format!("'{other}' is not supported (none, linear, yarn)")),
    }
}

const BETAS: [&str; 2] = ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"];

fn rope_scaling(f: &Fields, context_tokens_max: usize) -> Result<RopeScaling, ModelError> {
    Ok(match scaling(f, context_tokens_max)? {
        Scaling::None => RopeScaling::None,
        Scaling::Linear(factor) => RopeScaling::Linear { factor },
        Scaling::Yarn { factor, original_context } => {
            let scale = f.optional_positive("rope.scaling.attn_factor")?;
            let scale = match scale {
                Some(scale) => scale,
                None => f.optional_positive("rope.scaling.yarn_attn_factor")?.unwrap_or(1.0),
            };
            hugging_face::yarn(f, factor, original_context, scale * yarn_mscale(factor, 1.0), BETAS)?
        }
    })
}

/// `yarn_log_multiplier` is 0.1 * mscale_all_dim. llama.cpp takes mscale to equal it, as in every release, so that
/// cosines and sines keep their size.
fn yarn_log_multiplier(f: &Fields) -> Result<f64, ModelError> {
    Ok(f.optional_number("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0))
}

fn deepseek_rope_scaling(f: &Fields, context_tokens_max: usize) -> Result<RopeScaling, ModelError> {
    Ok(match scaling(f, context_tokens_max)? {
        Scaling::None => RopeScaling::None,
        Scaling::Linear(factor) => RopeScaling::Linear { factor },
        Scaling::Yarn { factor, original_context } => hugging_face::yarn(f, factor, original_context, 1.0, BETAS)?,
    })
}

fn softmax_scale(f: &Fields, key_dim: usize) -> Result<f64, ModelError> {
    let mscale = match scaling(f, 1)? {
        Scaling::Yarn { factor, .. } => yarn_mscale(factor, yarn_log_multiplier(f)? / 0.1),
        _ => 1.0,
    };
    Ok((key_dim as f64).powf(-0.5) * mscale * mscale)
}

/// Files converted before llama.cpp knew `expert_gating_func` are V2's (softmax); those before it knew groups lack
/// `expert_group_count`. DeepSeek's releases of the sizes below all choose groups first, so we do too: it is what the
/// weights were trained with, though llama.cpp leaves it out for such files.
fn moe(f: &Fields, facts: &TensorFacts) -> Result<Option<MoeConfig>, ModelError> {
    let Some(experts) = f.optional_size("expert_count")?.filter(|&e| e > 0) else { return Ok(None) };
    let scoring = match f.optional_size("expert_gating_func")?.unwrap_or(0) {
        0 if facts.has_correction_bias => Scoring::Sigmoid,
        0 | 1 => Scoring::Softmax,
        2 => Scoring::Sigmoid,
        other => return f.error("expert_gating_func", format!("{other} is not supported (1 softmax, 2 sigmoid)")),
    };
    let top_k = f.count("expert_used_count")?;
    let (score, released) = match (scoring, experts, top_k) {
        (Scoring::Sigmoid, 256, 8) => (GroupScore::Top2Sum, (8, 4)), // V3, R1
        (Scoring::Sigmoid, ..) => (GroupScore::Top2Sum, (1, 1)),
        (Scoring::Softmax, 160, 6) => (GroupScore::Max, (8, 3)), // V2, V2.5
        (Scoring::Softmax, ..) => (GroupScore::Max, (1, 1)),
    };
    let (groups, top_groups) = match f.optional_size("expert_group_count")?.filter(|&g| g > 0) {
        None => released,
        Some(groups) => (groups, f.optional_count("expert_group_used_count")?.unwrap_or(groups)),
    };
    let normalise = f.flag("expert_weights_norm")?.unwrap_or(false);
    // 0 stands for "not set".
    let factor = f.optional_number("expert_weights_scale")?.filter(|&s| s != 0.0).unwrap_or(1.0);
    f.require("expert_weights_scale", factor > 0.0, || format!("{factor} is not above 0"))?;
    // V2's release code scales only weights that are not normalised; V3's scales always.
    let scaled = scoring == Scoring::Sigmoid || !(normalise && top_k > 1);
    Ok(Some(MoeConfig {
        route: RouteSpec {
            experts,
            top_k,
            scoring,
            groups: (groups > 1).then_some(RouteGroups { groups, top_groups, score }),
            normalise,
            scale: if scaled { factor as f32 } else { 1.0 },
        },
        intermediate: f.count("expert_feed_forward_length")?,
        shared_experts: f.optional_size("expert_shared_count")?.unwrap_or(0),
        first_moe_layer: f.optional_size("leading_dense_block_count")?.unwrap_or(0),
        layer_freq: 1,
        correction_bias: facts.has_correction_bias,
    }))
}
