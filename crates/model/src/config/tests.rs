//! Configurations of the real releases, and broken ones.

use std::collections::HashMap;

use lingqu_backend::{GroupScore, RopePairing, RouteGroups, Scoring};
use serde_json::{Value, json};

use super::fields::{Fields, Scalar};
use super::gguf::TensorFacts;
use super::hugging_face::ConfigJson;
use super::*;
use crate::registry;

fn read(json: &Value) -> Result<ModelConfig, ModelError> {
    let json = ConfigJson::parse(&json.to_string())?;
    (registry::by_json("config.json", &json.architectures())?.read_json)(&json, "test")
}

/// DeepSeek-V3 and R1, as released.
fn v3() -> Value {
    json!({
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": false,
        "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
        "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
        "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [128, 128]},
        "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn"},
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false, "topk_group": 4,
        "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280
    })
}

/// DeepSeek-R1-Distill-Qwen-7B.
fn qwen() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
        "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000,
        "sliding_window": 4096, "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 152064
    })
}

/// DeepSeek-R1-Distill-Llama-8B.
fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": false, "vocab_size": 128256,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    })
}

#[test]
fn deepseek_v3_is_read() {
    let config = read(&v3()).unwrap();
    assert_eq!(config.kv_entry(), KvEntry::Latent { width: 576, v_dim: 512 });
    let mla = config.mla();
    assert_eq!((mla.q_lora_rank, mla.nope_dim, mla.rope_dim, mla.v_dim), (Some(1536), 128, 64, 128));
    let mscale = 0.1 * 40f64.ln() + 1.0;
    assert!((f64::from(mla.softmax_scale) - mscale * mscale / 192f64.sqrt()).abs() < 1e-7);
    assert_eq!(config.rope.pairing, RopePairing::Interleaved);
    assert!(matches!(config.rope.scaling, RopeScaling::Yarn { attention_factor: 1.0, original_context: 4096.0, .. }));
    let moe = config.moe.as_ref().unwrap();
    assert_eq!(moe.route.groups, Some(RouteGroups { groups: 8, top_groups: 4, score: GroupScore::Top2Sum }));
    assert_eq!((moe.route.scoring, moe.route.normalise, moe.route.scale), (Scoring::Sigmoid, true, 2.5));
    assert!(moe.correction_bias && !config.is_moe_layer(2) && config.is_moe_layer(3));
}

#[test]
fn routing_follows_the_release() {
    let check = |edit: &[(&str, Value)], scale: f32, groups: Option<GroupScore>, scoring: Scoring| {
        let mut json = v3();
        json["architectures"] = json!(["DeepseekV2ForCausalLM"]);
        json["model_type"] = json!("deepseek_v2");
        for (field, value) in edit {
            json[field] = value.clone();
        }
        let route = read(&json).unwrap().moe.unwrap().route;
        assert_eq!((route.scale, route.groups.map(|g| g.score), route.scoring), (scale, groups, scoring), "{edit:?}");
    };
    let v2 = |method: &str| [("topk_method", json!(method)), ("scoring_func", json!("softmax"))];
    let (greedy, limited) = (v2("greedy"), v2("group_limited_greedy"));
    let plain = ("norm_topk_prob", json!(false));
    // V2 scales weights only where it does not normalise them; V3 always.
    check(&[limited[0].clone(), limited[1].clone(), plain.clone()], 2.5, Some(GroupScore::Max), Scoring::Softmax);
    check(&[limited[0].clone(), limited[1].clone()], 1.0, Some(GroupScore::Max), Scoring::Softmax);
    check(&[greedy[0].clone(), greedy[1].clone(), plain], 2.5, None, Scoring::Softmax);
    // Fields that transformers leaves out: each class's own defaults.
    let bare = [("topk_method", Value::Null), ("scoring_func", Value::Null), ("norm_topk_prob", Value::Null)];
    check(&bare, 2.5, None, Scoring::Softmax);
    let v3_class = ("architectures", json!(["DeepseekV3ForCausalLM"]));
    check(&[&bare[..], &[v3_class]].concat(), 2.5, Some(GroupScore::Top2Sum), Scoring::Sigmoid);
}

#[test]
fn distills_are_read() {
    let config = read(&qwen()).unwrap();
    assert_eq!(config.kv_entry(), KvEntry::Separate { kv_heads: 4, k_dim: 128, v_dim: 128 });
    assert!(config.gqa().qkv_bias && !config.gqa().output_bias && config.rope.pairing == RopePairing::Half);
    let config = read(&llama()).unwrap();
    assert!(!config.gqa().qkv_bias && config.gqa().head_dim == 128 && config.rope.dim == 128);
    assert!(matches!(config.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
}

#[test]
fn what_is_wrong_or_not_done_is_said() {
    let check = |json: Value, edit: Value, says: &str| {
        let mut broken = json;
        for (field, value) in edit.as_object().unwrap() {
            broken[field] = value.clone();
        }
        let error = read(&broken).expect_err(says).to_string();
        assert!(error.starts_with("config.json: ") && error.contains(says), "{error:?} lacks {says:?}");
    };
    check(v3(), json!({"hidden_size": 0}), "hidden_size: is 0");
    check(v3(), json!({"num_hidden_layers": -3}), "num_hidden_layers: -3 is not in");
    check(v3(), json!({"vocab_size": 1e12}), "vocab_size: 1000000000000 is not in");
    check(v3(), json!({"num_attention_heads": null}), "num_attention_heads: is missing");
    check(v3(), json!({"num_experts_per_tok": 257}), "num_experts_per_tok: 257 of 256 experts");
    check(v3(), json!({"num_experts_per_tok": 200}), "200 experts out of 4 groups of 32");
    check(v3(), json!({"n_group": 7}), "n_group: 256 experts in 7 groups");
    check(v3(), json!({"n_group": 256, "topk_group": 8}), "n_group: 256 experts in 256 groups");
    check(v3(), json!({"topk_group": 9}), "topk_group: 9 of 8 groups");
    check(v3(), json!({"qk_rope_head_dim": 63}), "qk_rope_head_dim: rotates 63 values");
    check(v3(), json!({"topk_method": "magic"}), "topk_method: 'magic' is not supported");
    check(v3(), json!({"scoring_func": "tanh"}), "scoring_func: 'tanh' is not supported");
    check(v3(), json!({"rope_interleave": false}), "rope_interleave");
    check(v3(), json!({"attention_bias": true}), "attention_bias");
    check(v3(), json!({"quantization_config": {"quant_method": "awq"}}), "quant_method: 'awq' is not supported (fp8)");
    check(v3(), json!({"rope_scaling": {"type": "yarn"}}), "rope_scaling.factor: is missing");
    check(v3(), json!({"rope_scaling": {"type": "yarn", "factor": -4}}), "rope_scaling.factor: -4 is not above 0");
    check(v3(), json!({"rope_scaling": {"type": "longrope"}}), "rope_scaling.rope_type: 'longrope' is not supported");
    check(v3(), json!({"rope_scaling": "yarn"}), "rope_scaling: is not an object");
    check(v3(), json!({"architectures": ["GPT2LMHeadModel"]}), "architecture 'GPT2LMHeadModel' is not supported");
    check(llama(), json!({"hidden_act": "gelu"}), "hidden_act: 'gelu' is not supported (silu)");
    check(llama(), json!({"mlp_bias": true}), "mlp_bias");
    check(llama(), json!({"num_key_value_heads": 5}), "num_key_value_heads: 32 attention heads do not divide");
    check(llama(), json!({"num_attention_heads": 33}), "num_attention_heads: hidden size 4096 does not divide by 33");
    check(llama(), json!({"head_dim": 127}), "head_dim: rotates 127 values");
    check(llama(), json!({"rope_theta": 1.0}), "rope_theta: 1 is not above 1");
    check(llama(), json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}), "'dynamic' is not supported");
    check(qwen(), json!({"use_sliding_window": true, "max_window_layers": 14}), "window of 4096 tokens");
    check(
        qwen(),
        json!({"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": true}),
        "window",
    );
    // A window that no layer has, or that is as long as the context, changes nothing.
    let mut unused = qwen();
    unused["use_sliding_window"] = json!(true);
    assert!(read(&unused).is_ok());
}

fn int(value: i128) -> Scalar {
    Scalar::Int(value)
}

/// The keys of a GGUF of DeepSeek-R1 from before llama.cpp knew groups and split `attn_kv_b`.
fn r1_gguf() -> HashMap<String, Scalar> {
    let ints = [
        ("block_count", 61),
        ("context_length", 163_840),
        ("embedding_length", 7168),
        ("feed_forward_length", 18_432),
        ("attention.head_count", 128),
        ("attention.head_count_kv", 128),
        ("attention.q_lora_rank", 1536),
        ("attention.kv_lora_rank", 512),
        ("attention.key_length", 192),
        ("attention.value_length", 128),
        ("rope.dimension_count", 64),
        ("leading_dense_block_count", 3),
        ("expert_count", 256),
        ("expert_used_count", 8),
        ("expert_shared_count", 1),
        ("expert_feed_forward_length", 2048),
        ("expert_gating_func", 2),
        ("rope.scaling.original_context_length", 4096),
        ("vocab_size", 129_280),
    ];
    let floats = [
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("rope.freq_base", 10_000.0),
        ("rope.scaling.factor", 40.0),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("expert_weights_scale", 2.5),
    ];
    let ints = ints.map(|(key, value)| (key.to_string(), int(value)));
    let floats = floats.map(|(key, value)| (key.to_string(), Scalar::Float(value)));
    let others = [
        ("rope.scaling.type".to_string(), Scalar::Text("yarn".into())),
        ("expert_weights_norm".to_string(), Scalar::Bool(true)),
    ];
    ints.into_iter().chain(floats).chain(others).collect()
}

fn read_gguf(keys: &HashMap<String, Scalar>, architecture: &str) -> Result<ModelConfig, ModelError> {
    let facts = TensorFacts {
        embedding_rows: 129_280,
        has_head: true,
        has_qkv_bias: false,
        has_output_bias: false,
        has_correction_bias: true,
    };
    let fields = Fields::new("r1.gguf", &format!("{architecture}."), |field| keys.get(field).cloned());
    (registry::by_gguf("r1.gguf", architecture)?.read_gguf)(&fields, "test", &facts)
}

#[test]
fn gguf_of_any_age_says_the_same_as_json() {
    let expected = read(&v3()).unwrap();
    let mut keys = r1_gguf();
    // Files without the prediction layer do not count it.
    assert_eq!(read_gguf(&keys, "deepseek2").unwrap(), ModelConfig { prediction_layers: 0, ..expected.clone() });
    // Newer files: groups said, key and value lengths those of the absorbed form, MTP layers counted.
    for (key, value) in [
        ("expert_group_count", 8),
        ("expert_group_used_count", 4),
        ("attention.key_length", 576),
        ("attention.value_length", 512),
        ("attention.key_length_mla", 192),
        ("attention.value_length_mla", 128),
        ("attention.head_count_kv", 1),
        ("block_count", 62),
        ("nextn_predict_layers", 1),
    ] {
        keys.insert(key.into(), int(value));
    }
    assert_eq!(read_gguf(&keys, "deepseek2").unwrap(), expected);
}

#[test]
fn broken_gguf_keys_are_named() {
    let check = |architecture: &str, key: &str, value: Scalar, says: &str| {
        let mut keys = r1_gguf();
        keys.insert(key.into(), value);
        let error = read_gguf(&keys, architecture).expect_err(says).to_string();
        assert!(error.starts_with(&format!("r1.gguf: {architecture}.")) && error.contains(says), "{error}");
    };
    let d = "deepseek2";
    check(d, "block_count", int(0), "block_count: is 0");
    check(d, "nextn_predict_layers", int(61), "nextn_predict_layers: 61 of 61 layers");
    check(d, "vocab_size", int(5), "vocab_size: 5, but the embedding holds 129280 tokens");
    check(d, "attention.key_length", int(64), "attention.key_length: 64 is not above the 64 rotated values");
    check(d, "expert_gating_func", int(3), "expert_gating_func: 3 is not supported");
    check(d, "expert_weights_scale", Scalar::Float(-1.0), "expert_weights_scale: -1 is not above 0");
    check(d, "expert_group_count", int(7), "expert_group_count: 256 experts in 7 groups");
    check(d, "rope.scaling.type", Scalar::Text("longrope".into()), "'longrope' is not supported");
    check(d, "rope.freq_base", Scalar::Float(f64::NAN), "rope.freq_base: NaN is out of range");
    check("llama", "expert_count", int(8), "expert_count: 8 experts in this architecture are not supported");
    let mut keys = r1_gguf();
    keys.insert("expert_count".into(), int(0));
    let error = read_gguf(&keys, "llama").expect_err("keys of 192 beside values of 128").to_string();
    assert!(error.contains("attention.value_length: values of 128 beside keys of 192"), "{error}");
}
