"""Tiny Hugging Face folders (config.json + safetensors) in bf16, f16 and f32."""

import copy
import json

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from . import reference, tiny

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 1024,
    "rope_scaling": None,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 1024,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": 1024,
    "max_window_layers": 2,
}
DEEPSEEK = {
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 2560,
    "moe_layer_freq": 1,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "tie_word_embeddings": False,
    "rope_theta": 10000,
    "ep_size": 1,
    "pretraining_tp": 1,
}


def yarn(factor, mscale, mscale_all_dim, original, beta_fast=32, beta_slow=1):
    return {
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "factor": factor,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
        "original_max_position_embeddings": original,
        "type": "yarn",
    }


DEEPSEEK_V2 = DEEPSEEK | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "rope_scaling": yarn(40, 0.707, 0.707, 64),
}
DEEPSEEK_V3 = DEEPSEEK | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rope_scaling": yarn(40, 1.0, 1.0, 64),
}

# name -> (seed, dtype, number of shards, config)
MODELS = {
    "llama-gqa-bf16": (101, "bfloat16", 1, LLAMA | dict(
        vocab_size=384, hidden_size=96, intermediate_size=224, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, rope_theta=10000.0, tie_word_embeddings=False)),
    "llama3-rope-tied-f32": (102, "float32", 1, LLAMA | dict(
        vocab_size=352, hidden_size=72, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, rope_theta=500000.0, tie_word_embeddings=True,
        rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=64, rope_type="llama3"))),
    "llama-f16-sharded": (103, "float16", 3, LLAMA | dict(
        vocab_size=321, hidden_size=80, intermediate_size=176, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=5, rope_theta=10000.0, tie_word_embeddings=False)),
    "qwen2-tied-bf16": (201, "bfloat16", 1, QWEN2 | dict(
        vocab_size=400, hidden_size=112, intermediate_size=208, num_hidden_layers=3, num_attention_heads=7,
        num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen2-f32": (202, "float32", 1, QWEN2 | dict(
        vocab_size=336, hidden_size=64, intermediate_size=144, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_theta=10000.0, tie_word_embeddings=False)),
    # V2-Lite like: no q_lora, plain top-k of the softmax
    "deepseek-v2-lite-bf16": (301, "bfloat16", 1, DEEPSEEK_V2 | dict(
        vocab_size=384, hidden_size=96, intermediate_size=192, moe_intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=48, qk_nope_head_dim=24,
        qk_rope_head_dim=16, v_head_dim=20, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3,
        first_k_dense_replace=1, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0)),
    # V2 like: q_lora, the best groups by their best expert, weights scaled but not normalised
    "deepseek-v2-bf16": (302, "bfloat16", 1, DEEPSEEK_V2 | dict(
        vocab_size=384, hidden_size=96, intermediate_size=192, moe_intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=56, kv_lora_rank=40, qk_nope_head_dim=20,
        qk_rope_head_dim=24, v_head_dim=28, rope_scaling=yarn(16, 0.707, 0.707, 128, beta_fast=4),
        n_routed_experts=16, n_shared_experts=2, num_experts_per_tok=4,
        first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=4, topk_group=2,
        routed_scaling_factor=4.0)),
    # V3/R1 like
    "deepseek-v3-bf16": (303, "bfloat16", 2, DEEPSEEK_V3 | dict(
        vocab_size=384, hidden_size=96, intermediate_size=192, moe_intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=56, kv_lora_rank=48, qk_nope_head_dim=24,
        qk_rope_head_dim=32, v_head_dim=20, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4,
        first_k_dense_replace=1, n_group=4, topk_group=2)),
    # YaRN with mscale != mscale_all_dim: the rotated part itself is scaled, too
    "deepseek-v3-f32": (304, "float32", 1, DEEPSEEK_V3 | dict(
        vocab_size=320, hidden_size=72, intermediate_size=136, moe_intermediate_size=28, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=3, q_lora_rank=40, kv_lora_rank=36, qk_nope_head_dim=20,
        qk_rope_head_dim=8, v_head_dim=26, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3,
        first_k_dense_replace=2, n_group=3, topk_group=2, routed_scaling_factor=1.8,
        rope_scaling=yarn(10, 0.9, 0.6, 64, beta_fast=2, beta_slow=0.5))),
    # no rope scaling, no q_lora, one group
    "deepseek-v3-plain-bf16": (305, "bfloat16", 1, DEEPSEEK_V3 | dict(
        vocab_size=320, hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16,
        qk_rope_head_dim=16, v_head_dim=16, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, n_group=1, topk_group=1, routed_scaling_factor=1.0, rope_scaling=None)),
}  # fmt: skip


def write_config(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"transformers_version": "4.57.6", "use_cache": True} | config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n")


def save_sharded(folder, weights, shards):
    """model.safetensors, or shards with an index, cut by count in name order as Hugging Face names them."""
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    if shards == 1:
        return save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    names, weight_map = list(weights), {}
    for index in range(shards):
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def skeleton(settings):
    """An uninitialised model for what a config.json says, for its tensor names and shapes."""
    # A copy: transformers writes its own spelling into rope_scaling.
    settings = copy.deepcopy({key: value for key, value in settings.items() if key != "quantization_config"})
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def make_one(root, name):
    seed, dtype, shards, config = MODELS[name]
    folder = root / name
    config = config | {"torch_dtype": dtype}
    write_config(folder, config)
    empty = skeleton(config)
    weights = tiny.random_weights(empty, seed, getattr(torch, dtype))
    save_sharded(folder, weights, shards)
    model = reference.build(empty.config, weights)
    kind = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[dtype]
    reference.write_golden(root, name, name, kind, model, seed)


def make(root, only=None):
    for name in MODELS:
        if only is None or name in only:
            make_one(root, name)
