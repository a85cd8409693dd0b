"""A tiny deepseek_v3 folder in DeepSeek's FP8 release format, with a multi-token-prediction layer to be ignored."""

import torch

from . import fp8, hf_models, reference, tiny

NAME = "deepseek-v3-fp8"
SEED = 401
SHARDS = 3
QUANTIZATION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
# Sizes that leave ragged last blocks: 160 = 128 + 32, 320 = 2 * 128 + 64, 288, 36 ...
CONFIG = hf_models.DEEPSEEK_V3 | dict(
    vocab_size=320, hidden_size=160, intermediate_size=320, moe_intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=6, q_lora_rank=136, kv_lora_rank=64, qk_nope_head_dim=32,
    qk_rope_head_dim=16, v_head_dim=24, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
    first_k_dense_replace=1, n_group=4, topk_group=2, num_nextn_predict_layers=1, torch_dtype="bfloat16",
)  # fmt: skip


def uneven(name, tensor):
    """Scales whole blocks up and down (the sum of squares stays): a scale taken from a neighbour is then far off."""
    rows, cols = tensor.shape
    grid = torch.rand(fp8.blocks_of(rows), fp8.blocks_of(cols), generator=reference.generator(SEED, name + " grid"))
    factor = fp8.spread(0.25 + 1.5 * grid, rows, cols)
    return tensor * factor / factor.square().mean().sqrt()


def mtp_layer(weights, layer):
    """What the releases add as model.layers.<num_hidden_layers>: a whole decoder layer and four tensors of its own."""
    last = f"model.layers.{layer - 1}."
    extra = {name.replace(last, f"model.layers.{layer}."): t for name, t in weights.items() if name.startswith(last)}
    hidden, prefix = CONFIG["hidden_size"], f"model.layers.{layer}."
    extra[prefix + "embed_tokens.weight"] = weights["model.embed_tokens.weight"]
    extra[prefix + "enorm.weight"] = extra[prefix + "hnorm.weight"] = torch.ones(hidden)
    extra[prefix + "eh_proj.weight"] = torch.randn(hidden, 2 * hidden, generator=reference.generator(SEED, "eh_proj"))
    extra[prefix + "shared_head.norm.weight"] = torch.ones(hidden)
    extra[prefix + "shared_head.head.weight"] = weights["lm_head.weight"]
    # Values that would be noticed if anything used them.
    return {name: torch.full_like(t, 3.0) if t.ndim == 1 else t.flip(0) * 3.0 for name, t in extra.items()}


def split_release(weights):
    """As in the release, eh_proj, embedding and head of the extra layer stay in bf16."""
    plain = {n: t for n, t in weights.items() if "eh_proj" in n}
    stored, exact = fp8.split({n: t for n, t in weights.items() if n not in plain})
    return stored | {n: t.to(torch.bfloat16) for n, t in plain.items()}, exact


def make(root, only=None):
    if only and NAME not in only:
        return
    folder = root / NAME
    empty = hf_models.skeleton(CONFIG)
    hf_models.write_config(folder, CONFIG | {"quantization_config": QUANTIZATION})
    weights = tiny.random_weights(empty, SEED, torch.float32)
    weights = {n: uneven(n, t) if fp8.is_quantised(n) else t for n, t in weights.items()}
    stored, exact = split_release(weights)
    extra, _ = split_release(mtp_layer(weights, CONFIG["num_hidden_layers"]))
    hf_models.save_sharded(folder, stored | extra, SHARDS)
    reference.write_golden(root, NAME, NAME, "fp8", reference.build(empty.config, exact), SEED)
