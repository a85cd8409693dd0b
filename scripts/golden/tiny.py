"""Random weights that make a wrong or ignored tensor visible: unit-scale activations, spread logits."""

import math

import torch

from .reference import generator

LOGIT_STD = 1.5

# (part of the name, gain): the first that matches. A matrix of gain 1 keeps the scale of its input. What is added to
# the residual stream stays below the embedding's scale, so that the int8 activations of a fast backend are not
# amplified from layer to layer beyond the tests' tolerance; a wrong tensor still moves log-probs by tenths.
GAINS = [
    ("mlp.gate.weight", 1.5),  # router: decided choices
    ("shared_experts.down_proj", 0.5),
    ("experts.", 1.0),
    ("down_proj", 0.5),
    ("o_proj", 0.4),
    ("q_proj", 1.1),
    ("k_proj", 1.1),
    ("q_b_proj", 1.1),
    ("kv_a_proj", 1.1),
]


def gain_of(name):
    if ".experts." in name and "down_proj" in name:
        return 0.15  # one flipped expert does not dominate a token
    return next((gain for part, gain in GAINS if part in name), 1.0)


def random_tensor(name, shape, seed, tied):
    """shape as in the checkpoint: [out, in] for a matrix."""
    rng = generator(seed, name)
    normal = torch.randn(shape, generator=rng)
    if name.endswith("e_score_correction_bias"):
        return normal * 0.12
    if name.endswith(".bias"):
        return normal * 0.3
    if tied and name == "model.norm.weight":
        # Random signs: otherwise a tied model's likeliest next token is always the last one.
        return (1.0 + 0.2 * normal) * torch.where(torch.rand(shape, generator=rng) < 0.5, -1.0, 1.0)
    if "norm" in name:
        return 1.0 + 0.2 * normal
    if name == "lm_head.weight" or (tied and "embed_tokens" in name):
        return normal * (LOGIT_STD / math.sqrt(shape[-1]))
    residual_scale = LOGIT_STD / math.sqrt(shape[0]) if tied and ("o_proj" in name or "down_proj" in name) else 1.0
    if "embed_tokens" in name:
        return normal
    return normal * (gain_of(name) * residual_scale / math.sqrt(shape[-1]))


def random_weights(model, seed, dtype):
    """Weights for every entry of the model's state dict, rounded to `dtype`."""
    tied = model.config.tie_word_embeddings
    weights = {}
    for name, like in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        tensor = random_tensor(name, tuple(like.shape), seed, tied)
        # DeepSeek's releases keep the correction bias in f32 beside bf16 weights.
        weights[name] = tensor if name.endswith("e_score_correction_bias") else tensor.to(dtype)
    return weights
