"""Scores the embedded default model, as scripts/train_default exported it; writes nothing into its folder."""

from safetensors.torch import load_file
from transformers import AutoConfig

from . import fp8, reference

SEED = 601


def exact_weights(folder, layers):
    """Every tensor that transformers has, in f32: value times the scale of its block. It has no prediction layer."""
    stored = load_file(folder / "model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv") or name.startswith(f"model.layers.{layers}."):
            continue
        scale = stored.get(f"{name}_scale_inv")
        weights[name] = tensor.float() if scale is None else fp8.dequantise(tensor, scale)
    return weights


def make(folder, only=None):
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = reference.build(config, exact_weights(folder, config.num_hidden_layers))
    golden = folder.parents[1] / "testdata" / "golden" / "models"
    reference.write_golden(golden, "default", "../../../models/default", "fp8", model, SEED)
