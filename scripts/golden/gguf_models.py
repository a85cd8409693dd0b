"""Tiny GGUF files as llama.cpp's convert_hf_to_gguf.py and llama-quantize would write them.

Names, shapes and metadata keys come from the `gguf` package (its tensor name map and writer). Matrices in formats that
the package cannot quantise are random valid blocks; the reference model gets the package's dequantised values.
"""

import math
import zlib

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from . import gguf_blocks, gguf_vocab, hf_models, reference, tiny

VOCAB = 320
PACKAGE_QUANTISES = {
    Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1,
}  # fmt: skip
# What llama-quantize takes for a width that is not a multiple of 256.
FALLBACK = {
    Type.Q2_K: Type.Q4_0, Type.Q3_K: Type.Q4_0, Type.IQ4_XS: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0,
}  # fmt: skip
FILE_TYPE = {
    Type.F32: 0, Type.F16: 1, Type.Q4_0: 2, Type.Q4_1: 3, Type.Q8_0: 7, Type.Q5_0: 8, Type.Q5_1: 9, Type.Q2_K: 10,
    Type.Q3_K: 12, Type.Q4_K: 15, Type.Q5_K: 17, Type.Q6_K: 18, Type.IQ4_NL: 25, Type.IQ4_XS: 30, Type.BF16: 32,
}  # fmt: skip

LLAMA = hf_models.LLAMA | dict(vocab_size=VOCAB, num_hidden_layers=2, rope_theta=10000.0, tie_word_embeddings=False)
NARROW = LLAMA | dict(hidden_size=128, intermediate_size=224, num_attention_heads=4, num_key_value_heads=2)
WIDE = LLAMA | dict(hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=2)
V3 = hf_models.DEEPSEEK_V3 | dict(vocab_size=VOCAB, num_hidden_layers=3, first_k_dense_replace=1)

# name -> (seed, main format, format of the more sensitive tensors, pre-tokenizer, config, how to write it)
MODELS = {
    **{
        f"llama-{kind.name.lower()}": (500 + i, kind, kind, "llama-bpe", NARROW, {})
        for i, kind in enumerate(
            [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.IQ4_NL]
        )
    },
    **{
        f"llama-{kind.name.lower()}": (520 + i, kind, kind, "llama-bpe", WIDE | dict(tie_word_embeddings=i % 2 == 0),
                                        {})
        for i, kind in enumerate([Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS])
    },
    # llama3 scaling as convert_hf_to_gguf.py writes it: a tensor of divisors, rope_freqs.weight; head_dim given
    "llama3-rope-freqs-q8_0": (540, Type.Q8_0, Type.Q8_0, "llama-bpe", LLAMA | dict(
        hidden_size=96, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        rope_theta=500000.0, tie_word_embeddings=True,
        rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=64, rope_type="llama3")), {}),
    "llama-split-q5_0": (541, Type.Q5_0, Type.Q8_0, "smollm", NARROW, {"tensors_a_file": 8}),
    "qwen2-q4_k_m": (550, Type.Q4_K, Type.Q6_K, "qwen2", hf_models.QWEN2 | dict(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False), {}),
    # as converted since April 2025: split kv_b, MLA seen as attention with one kv head, groups in the metadata
    "deepseek2-v3-q4_k_m": (560, Type.Q4_K, Type.Q6_K, "deepseek-v3", V3 | dict(
        hidden_size=256, intermediate_size=512, moe_intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=8, q_lora_rank=256, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
        n_group=4, topk_group=2), {}),
    # as converted before: merged kv_b, no keys for groups (then there is one group)
    "deepseek2-v3-merged-q8_0": (561, Type.Q8_0, Type.Q8_0, "deepseek-v3", V3 | dict(
        hidden_size=96, intermediate_size=160, moe_intermediate_size=32, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=24, qk_rope_head_dim=16,
        v_head_dim=40, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, n_group=1, topk_group=1),
        {"merged_kv_b": True}),
    # V2-Lite like: no q_lora, softmax; expert width 96, so that down_exps falls back to 32-value blocks
    "deepseek2-v2-lite-q4_k_m": (562, Type.Q4_K, Type.Q6_K, "deepseek-v3", hf_models.DEEPSEEK_V2 | dict(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, moe_intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=32, v_head_dim=64, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3,
        first_k_dense_replace=1, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0), {}),
    # V2 like: the best groups by their best expert (llama.cpp ranks them by the sum of two, as for V3)
    "deepseek2-v2-groups-q8_0": (563, Type.Q8_0, Type.Q8_0, "deepseek-v3", hf_models.DEEPSEEK_V2 | dict(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=12, n_shared_experts=1, num_experts_per_tok=3,
        first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=4, topk_group=2,
        routed_scaling_factor=4.0), {}),
}  # fmt: skip
SENSITIVE = ("attn_v.weight", "ffn_down", "output.weight", "token_embd")  # higher precision in Q4_K_M


def permute(weight, heads):
    """llama.cpp keeps llama's q and k so that rotated pairs are neighbours: row halves of a head are interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def format_of(name, shape, kind, sensitive):
    if len(shape) == 1 or "ffn_gate_inp" in name:
        return Type.F32
    chosen = sensitive if any(part in name for part in SENSITIVE) else kind
    if name == "token_embd.weight":
        chosen = kind
    if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = FALLBACK.get(chosen, Type.F16)
    if shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
        chosen = Type.F16
    return chosen


def encode(name, values, kind, rng):
    """f32 values -> (data as the file holds it, the f32 values that it stands for)"""
    if kind in PACKAGE_QUANTISES:
        data = gguf.quantize(np.ascontiguousarray(values), kind)
    else:
        data = gguf_blocks.random_rows(kind, values.shape, float(values.std()), rng)
    return data, gguf.dequantize(data, kind).reshape(values.shape).astype(np.float32)


def llama3_divisors(config):
    """rope_freqs.weight [head_dim / 2]: what each rotation frequency is divided by (Llama 3.1's scaling)."""
    scaling, dim = config["rope_scaling"], config["head_dim"]
    original = scaling["original_max_position_embeddings"]
    divisors = []
    for i in range(0, dim, 2):
        turns = original * config["rope_theta"] ** (-i / dim) / (2 * math.pi)  # within the original context
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1.0 / ((1.0 - blend) / scaling["factor"] + blend))
    return np.array(divisors, dtype=np.float32)


class Converter:
    """Turns HF weights [name -> f32 array] into GGUF tensors and back into what the reference must compute with."""

    def __init__(self, config, kind, sensitive, merged_kv_b):
        self.config, self.kind, self.sensitive, self.merged = config, kind, sensitive, merged_kv_b
        arch = {"llama": "LLAMA", "qwen2": "QWEN2"}.get(config["model_type"], "DEEPSEEK2")
        self.names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], config["num_hidden_layers"])
        self.tensors, self.exact = [], {}  # [(name, data, format)], HF name -> f32 array

    def add(self, hf_name, values, seed):
        """One tensor under its GGUF name; returns the values that the file really holds."""
        name = self.names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        assert name, hf_name
        kind = format_of(name, values.shape, self.kind, self.sensitive)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        data, exact = encode(name, values, kind, rng)
        self.tensors.append((name, data, kind))
        return exact

    def convert(self, weights, seed):
        for name, values in weights.items():
            if ".experts." in name:
                continue
            self.exact[name] = self.convert_one(name, values, seed)
        for layer in range(self.config.get("first_k_dense_replace", 10**9), self.config["num_hidden_layers"]):
            for part in ("gate_proj", "up_proj", "down_proj"):
                prefix = f"model.layers.{layer}.mlp.experts."
                each = [f"{prefix}{e}.{part}.weight" for e in range(self.config["n_routed_experts"])]
                stacked = np.stack([weights[name] for name in each])  # [experts, out, in]
                self.exact |= zip(each, self.add(f"{prefix}{part}.weight", stacked, seed))

    def convert_one(self, name, values, seed):
        config = self.config
        if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            return unpermute(self.add(name, permute(values, heads), seed), heads)
        if name.endswith("e_score_correction_bias"):
            return self.add(name.replace("_correction_bias", "_correction.bias"), values, seed)
        if name.endswith("kv_b_proj.weight") and not self.merged:
            return self.split_kv_b(name, values, seed)
        return self.add(name, values, seed)

    def split_kv_b(self, name, values, seed):
        """[heads * (nope + v), kv_lora] -> k_b [heads, kv_lora, nope] (transposed) and v_b [heads, v, kv_lora]"""
        heads, nope = self.config["num_attention_heads"], self.config["qk_nope_head_dim"]
        by_head = values.reshape(heads, -1, values.shape[-1])
        k_b = self.add(name.replace("kv_b_proj", "k_b_proj"), by_head[:, :nope].swapaxes(1, 2), seed)
        v_b = self.add(name.replace("kv_b_proj", "v_b_proj"), by_head[:, nope:], seed)
        return np.concatenate([k_b.swapaxes(1, 2), v_b], axis=1).reshape(values.shape)


def add_metadata(writer, config, kind, merged_kv_b):
    writer.add_name("tiny random " + config["model_type"])
    writer.add_file_type(FILE_TYPE[kind])
    writer.add_quantization_version(2)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config["model_type"].startswith("deepseek"):
        return add_deepseek_metadata(writer, config, merged_kv_b)
    writer.add_head_count_kv(config["num_key_value_heads"])
    if config["model_type"] == "llama":
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(head_dim)
        if "head_dim" in config:
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)


def add_deepseek_metadata(writer, config, merged_kv_b):
    key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    if merged_kv_b:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(key)
        writer.add_value_length(config["v_head_dim"])
    else:
        writer.add_head_count_kv(1)
        writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
        writer.add_value_length(config["kv_lora_rank"])
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(config["v_head_dim"])
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    writer.add_vocab_size(config["vocab_size"])
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(float(config["routed_scaling_factor"]))
    if config["norm_topk_prob"]:
        writer.add_expert_weights_norm(True)
    gating = {"sigmoid": gguf.ExpertGatingFuncType.SIGMOID, "softmax": gguf.ExpertGatingFuncType.SOFTMAX}
    writer.add_expert_gating_func(gating[config["scoring_func"]])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    scaling = config["rope_scaling"]
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(scaling["factor"]))
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])


def write_file(root, name, converter, config, kind, pre, merged_kv_b, tensors_a_file):
    for old in root.glob(f"{name}*.gguf"):
        old.unlink()
    arch = config["model_type"] if config["model_type"] in ("llama", "qwen2") else "deepseek2"
    writer = gguf.GGUFWriter(root / f"{name}.gguf", arch, split_max_tensors=tensors_a_file or 0)
    add_metadata(writer, config, kind, merged_kv_b)
    gguf_vocab.add_vocab(writer, config["vocab_size"], pre)
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    for tensor, data, tensor_kind in converter.tensors:
        plain = tensor_kind in (Type.F32, Type.F16)
        writer.add_tensor(tensor, np.ascontiguousarray(data), raw_dtype=None if plain else tensor_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=False)
    writer.close()
    return sorted(path.name for path in root.glob(f"{name}*.gguf"))[0]


def make_one(root, name):
    seed, kind, sensitive, pre, config, how = MODELS[name]
    merged = how.get("merged_kv_b", False)
    empty = hf_models.skeleton(config)
    weights = {n: t.numpy() for n, t in tiny.random_weights(empty, seed, torch.float32).items()}
    converter = Converter(config, kind, sensitive, merged)
    converter.convert(weights, seed)
    first = write_file(root, name, converter, config, kind, pre, merged, how.get("tensors_a_file"))
    exact = {n: torch.from_numpy(np.ascontiguousarray(values)) for n, values in converter.exact.items()}
    label = kind.name.lower() + ("_m" if sensitive != kind and kind == Type.Q4_K else "")
    reference.write_golden(root, name, first, label, reference.build(empty.config, exact), seed)


def make(root, only=None):
    for name in MODELS:
        if only is None or name in only:
            make_one(root, name)
