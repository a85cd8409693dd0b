//! Configuration from Hugging Face's `config.json`.

use lingqu_backend::{GroupScore, RopePairing, RouteGroups, RouteSpec, Scoring};
use serde_json::{Map, Value};

use super::fields::Fields;
use super::{
    AttentionConfig, FieldNames, GqaConfig, MlaConfig, ModelConfig, MoeConfig, RopeConfig, RopeScaling, validate,
    yarn_mscale,
};
use crate::ModelError;

const FILE: &str = "config.json";

const NAMES: FieldNames = FieldNames {
    kv_heads: "num_key_value_heads",
    rope_dim: "head_dim",
    top_k: "num_experts_per_tok",
    groups: "n_group",
    top_groups: "topk_group",
};

/// `config.json`, parsed but not yet believed.
pub(crate) struct ConfigJson {
    root: Map<String, Value>,
}

impl ConfigJson {
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let fail = |problem: String| ModelError::Config { file: FILE.into(), field: "JSON".into(), problem };
        match serde_json::from_str(text) {
            Ok(Value::Object(root)) => Ok(Self { root }),
            Ok(_) => Err(fail("is not an object".into())),
            Err(error) => Err(fail(error.to_string())),
        }
    }

    /// What the file calls its architecture: the entries of `architectures`, or `model_type` where there are none.
    pub fn architectures(&self) -> Vec<&str> {
        let classes = self.root.get("architectures").and_then(Value::as_array).into_iter().flatten();
        let classes: Vec<&str> = classes.filter_map(Value::as_str).collect();
        let model_type = self.root.get("model_type").and_then(Value::as_str);
        if classes.is_empty() { model_type.into_iter().collect() } else { classes }
    }

    pub fn fields(&self) -> Fields<'_> {
        Fields::json(FILE, "", &self.root)
    }

    fn object(&self, field: &str) -> Option<Fields<'_>> {
        let object = self.root.get(field)?.as_object()?;
        Some(Fields::json(FILE, &format!("{field}."), object))
    }

    /// Rope's numbers lie in `rope_scaling`, or since transformers 5 in `rope_parameters`.
    fn rope_fields(&self) -> Option<Fields<'_>> {
        self.object("rope_scaling").or_else(|| self.object("rope_parameters"))
    }

    /// A list of token ids: one number, or several.
    pub fn token_ids(&self, field: &str) -> Vec<u32> {
        token_ids(self.root.get(field))
    }
}

/// `7`, `[7, 8]` or nothing.
pub(crate) fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
        Some(id) => one(id).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Llama, Qwen2 and their like. `qwen_bias`: biases on q, k and v whatever the file says; otherwise `attention_bias`
/// tells, for all four.
pub(crate) fn gqa(
    json: &ConfigJson,
    name: &str,
    architecture: &'static str,
    qwen_bias: bool,
) -> Result<ModelConfig, ModelError> {
    let f = json.fields();
    refuse_what_is_not_done(json, &f)?;
    let heads = f.count("num_attention_heads")?;
    let hidden = f.count("hidden_size")?;
    let head_dim = match f.optional_count("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => return f.error("num_attention_heads", format!("hidden size {hidden} does not divide by {heads}")),
    };
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    let attention = GqaConfig {
        heads,
        kv_heads: f.optional_count("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        qkv_bias: qwen_bias || attention_bias,
        output_bias: !qwen_bias && attention_bias,
    };
    let context_tokens_max = f.count("max_position_embeddings")?;
    refuse_sliding_window(json, &f, context_tokens_max)?;
    let config = ModelConfig {
        name: name.into(),
        architecture,
        vocab_size: f.count("vocab_size")?,
        hidden,
        layers: f.count("num_hidden_layers")?,
        prediction_layers: 0,
        context_tokens_max,
        rms_norm_eps: f.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        attention: AttentionConfig::Gqa(attention),
        rope: RopeConfig {
            theta: rope_theta(json, &f)?,
            dim: head_dim,
            pairing: RopePairing::Half,
            scaling: rope_scaling(json, context_tokens_max)?,
        },
        ffn_intermediate: f.count("intermediate_size")?,
        moe: None,
        tied_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    validate(config, &f, &NAMES)
}

/// DeepSeek V2, V3 and R1.
pub(crate) fn deepseek(json: &ConfigJson, name: &str) -> Result<ModelConfig, ModelError> {
    let f = json.fields();
    refuse_what_is_not_done(json, &f)?;
    let interleaved = f.flag("rope_interleave")?.unwrap_or(true);
    f.require("rope_interleave", interleaved, || "false is not supported".into())?;
    let biased = f.flag("attention_bias")?.unwrap_or(false);
    f.require("attention_bias", !biased, || "true is not supported".into())?;
    let context_tokens_max = f.count("max_position_embeddings")?;
    let nope_dim = f.count("qk_nope_head_dim")?;
    let rope_dim = f.count("qk_rope_head_dim")?;
    let attention = MlaConfig {
        heads: f.count("num_attention_heads")?,
        q_lora_rank: f.optional_count("q_lora_rank")?,
        kv_lora_rank: f.count("kv_lora_rank")?,
        nope_dim,
        rope_dim,
        v_dim: f.count("v_head_dim")?,
        softmax_scale: softmax_scale(json, nope_dim + rope_dim)? as f32,
    };
    let moe = moe(json, &f)?;
    let config = ModelConfig {
        name: name.into(),
        architecture: "deepseek",
        vocab_size: f.count("vocab_size")?,
        hidden: f.count("hidden_size")?,
        layers: f.count("num_hidden_layers")?,
        prediction_layers: f.optional_size("num_nextn_predict_layers")?.unwrap_or(0),
        context_tokens_max,
        rms_norm_eps: f.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        attention: AttentionConfig::Mla(attention),
        rope: RopeConfig {
            theta: rope_theta(json, &f)?,
            dim: rope_dim,
            pairing: RopePairing::Interleaved,
            scaling: rope_scaling(json, context_tokens_max)?,
        },
        ffn_intermediate: f.count("intermediate_size")?,
        moe,
        tied_embeddings: f.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    validate(config, &f, &FieldNames { rope_dim: "qk_rope_head_dim", ..NAMES })
}

/// (nope + rope)^-1/2, times the square of YaRN's temperature over all dimensions where the file sets it
/// (DeepSeek-V2's `modeling_deepseek.py`, `softmax_scale`; transformers' own DeepSeek-V2 leaves it out).
fn softmax_scale(json: &ConfigJson, qk_dim: usize) -> Result<f64, ModelError> {
    let mut mscale = 1.0;
    if let Some(rope) = json.rope_fields()
        && let Some(all_dims) = rope.optional_number("mscale_all_dim")?
    {
        mscale = yarn_mscale(rope.optional_positive("factor")?.unwrap_or(1.0), all_dims);
    }
    Ok((qk_dim as f64).powf(-0.5) * mscale * mscale)
}

/// V2 and V3 share the field names but not the defaults, nor what `routed_scaling_factor` does beside
/// `norm_topk_prob`: V2's release code scales only weights that are not normalised, V3's scales always.
fn moe(json: &ConfigJson, f: &Fields) -> Result<Option<MoeConfig>, ModelError> {
    let Some(experts) = f.optional_count("n_routed_experts")? else { return Ok(None) };
    let v3 = json.architectures().iter().any(|a| matches!(*a, "DeepseekV3ForCausalLM" | "deepseek_v3"));
    let scoring = match f.text("scoring_func")?.as_deref() {
        None if v3 => Scoring::Sigmoid,
        None | Some("softmax") => Scoring::Softmax,
        Some("sigmoid") => Scoring::Sigmoid,
        Some(other) => return f.error("scoring_func", format!("'{other}' is not supported (softmax, sigmoid)")),
    };
    let method = f.text("topk_method")?;
    let group_score = match method.as_deref() {
        None if v3 => Some(GroupScore::Top2Sum),
        // 'gready' is how DeepSeek's own configuration class spells its default.
        None | Some("greedy" | "gready") => None,
        Some("group_limited_greedy") => Some(GroupScore::Max),
        Some("noaux_tc") => Some(GroupScore::Top2Sum),
        Some(other) => {
            let known = "greedy, group_limited_greedy, noaux_tc";
            return f.error("topk_method", format!("'{other}' is not supported ({known})"));
        }
    };
    let correction_bias = group_score == Some(GroupScore::Top2Sum);
    let groups = match group_score {
        None => None,
        Some(score) => {
            let groups = f.optional_count("n_group")?.unwrap_or(1);
            let top_groups = f.optional_count("topk_group")?.unwrap_or(groups);
            (groups > 1 || top_groups > 1).then_some(RouteGroups { groups, top_groups, score })
        }
    };
    let top_k = f.count("num_experts_per_tok")?;
    let normalise = f.flag("norm_topk_prob")?.unwrap_or(v3);
    let factor = f.optional_positive("routed_scaling_factor")?.unwrap_or(1.0) as f32;
    let scale = if v3 || !(normalise && top_k > 1) { factor } else { 1.0 };
    Ok(Some(MoeConfig {
        route: RouteSpec { experts, top_k, scoring, groups, normalise, scale },
        intermediate: f.count("moe_intermediate_size")?,
        shared_experts: f.optional_size("n_shared_experts")?.unwrap_or(0),
        first_moe_layer: f.optional_size("first_k_dense_replace")?.unwrap_or(0),
        layer_freq: f.optional_count("moe_layer_freq")?.unwrap_or(1),
        correction_bias,
    }))
}

fn rope_theta(json: &ConfigJson, f: &Fields) -> Result<f64, ModelError> {
    let nested = match json.object("rope_parameters") {
        Some(rope) => rope.optional_positive("rope_theta")?,
        None => None,
    };
    let theta = match nested {
        Some(theta) => theta,
        None => f.optional_positive("rope_theta")?.unwrap_or(10_000.0),
    };
    f.require("rope_theta", theta > 1.0, || format!("{theta} is not above 1"))?;
    Ok(theta)
}

fn rope_scaling(json: &ConfigJson, context_tokens_max: usize) -> Result<RopeScaling, ModelError> {
    let Some(f) = json.rope_fields() else {
        let field = json.root.get("rope_scaling").unwrap_or(&Value::Null);
        json.fields().require("rope_scaling", field.is_null(), || "is not an object".into())?;
        return Ok(RopeScaling::None);
    };
    let kind = match f.text("rope_type")? {
        Some(kind) => Some(kind),
        None => f.text("type")?,
    };
    Ok(match kind.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: f.positive("factor")? },
        Some("llama3") => {
            let (low, high) = (f.positive("low_freq_factor")?, f.positive("high_freq_factor")?);
            f.require("high_freq_factor", high > low, || format!("{high} is not above low_freq_factor {low}"))?;
            RopeScaling::Llama3 {
                factor: f.positive("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context: f.count("original_max_position_embeddings")? as f64,
            }
        }
        Some("yarn") => {
            let factor = f.positive("factor")?;
            let original = f.optional_count("original_max_position_embeddings")?.unwrap_or(context_tokens_max);
            let attention_factor = match f.optional_positive("attention_factor")? {
                Some(explicit) => explicit,
                None => {
                    let mscale = f.optional_number("mscale")?.unwrap_or(1.0);
                    let all_dims = f.optional_number("mscale_all_dim")?.unwrap_or(0.0);
                    yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dims)
                }
            };
            f.require("mscale", attention_factor > 0.0, || "the attention factor is not above 0".into())?;
            let truncate = f.flag("truncate")?.unwrap_or(true);
            f.require("truncate", truncate, || "false is not supported".into())?;
            yarn(&f, factor, original, attention_factor, ["beta_fast", "beta_slow"])?
        }
        Some(other) => {
            let known = "default, linear, llama3, yarn";
            return f.error("rope_type", format!("'{other}' is not supported ({known})"));
        }
    })
}

/// YaRN with its ramp's bounds from the fields `[beta_fast, beta_slow]`, 32 and 1 where absent.
pub(super) fn yarn(
    f: &Fields,
    factor: f64,
    original_context: usize,
    attention_factor: f64,
    [fast, slow]: [&str; 2],
) -> Result<RopeScaling, ModelError> {
    Ok(RopeScaling::Yarn {
        factor,
        original_context: original_context as f64,
        beta_fast: f.optional_positive(fast)?.unwrap_or(32.0),
        beta_slow: f.optional_positive(slow)?.unwrap_or(1.0),
        attention_factor,
    })
}

/// Fields that, set so, change the arithmetic in ways this crate does not follow.
fn refuse_what_is_not_done(json: &ConfigJson, f: &Fields) -> Result<(), ModelError> {
    if let Some(act) = f.text("hidden_act")? {
        f.require("hidden_act", matches!(act.as_str(), "silu" | "swish"), || {
            format!("'{act}' is not supported (silu)")
        })?;
    }
    let biased = f.flag("mlp_bias")?.unwrap_or(false);
    f.require("mlp_bias", !biased, || "true is not supported".into())?;
    for field in ["partial_rotary_factor", "logits_scaling", "embedding_multiplier", "residual_multiplier"] {
        let value = f.optional_number(field)?.unwrap_or(1.0);
        f.require(field, value == 1.0, || format!("{value} is not supported (1)"))?;
    }
    if let Some(quantization) = json.object("quantization_config") {
        let method = quantization.text("quant_method")?.unwrap_or_default();
        quantization.require("quant_method", method == "fp8", || format!("'{method}' is not supported (fp8)"))?;
    }
    Ok(())
}

/// A window that some layer would really use. As in transformers, Qwen2's layers from `max_window_layers` on have it.
fn refuse_sliding_window(json: &ConfigJson, f: &Fields, context: usize) -> Result<(), ModelError> {
    let Some(window) = f.optional_size("sliding_window")? else { return Ok(()) };
    let used = f.flag("use_sliding_window")?.unwrap_or(true);
    let layers = f.count("num_hidden_layers")?;
    let some_layer = match json.root.get("layer_types").and_then(Value::as_array) {
        Some(types) => types.iter().any(|t| t.as_str() != Some("full_attention")),
        None => f.optional_size("max_window_layers")?.unwrap_or(0) < layers,
    };
    f.require("sliding_window", !used || !some_layer || window >= context, || {
        format!("attention over a window of {window} tokens is not supported")
    })
}
