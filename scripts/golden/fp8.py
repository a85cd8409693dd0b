"""DeepSeek's FP8 release format: float8_e4m3fn weights with one f32 `weight_scale_inv` for each 128x128 block.

The stored value times its block's scale_inv is the weight. Blocks at the right and lower edges may be smaller.
"""

import torch

BLOCK = 128
FP8_MAX = 448.0  # largest finite e4m3fn


def blocks_of(length):
    return -(-length // BLOCK)


def is_quantised(name):
    """The release quantises every linear layer of attention and experts; norms, the gate, embeddings and head stay."""
    return name.endswith("_proj.weight") or name.endswith("kv_a_proj_with_mqa.weight")


def spread(scale, rows, cols):
    """Block scales [ceil(rows/128), ceil(cols/128)] -> one a value [rows, cols]."""
    return scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]


def quantise(weight):
    """[rows, cols] f32 -> (e4m3fn [rows, cols], scale_inv f32 [ceil(rows/128), ceil(cols/128)])"""
    rows, cols = weight.shape
    scale = torch.empty(blocks_of(rows), blocks_of(cols))
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            scale[i, j] = block.abs().max() / FP8_MAX
    stored = (weight / spread(scale, rows, cols)).to(torch.float8_e4m3fn)
    return stored, scale


def dequantise(stored, scale):
    return stored.to(torch.float32) * spread(scale, *stored.shape)


def split(weights):
    """f32 weights -> (tensors to store, the f32 values that they stand for)"""
    stored, exact = {}, {}
    for name, tensor in weights.items():
        if is_quantised(name):
            quantised, scale = quantise(tensor.float())
            stored[name], stored[name + "_scale_inv"] = quantised, scale
            exact[name] = dequantise(quantised, scale)
        else:
            keep = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
            stored[name] = tensor.to(keep)
            exact[name] = stored[name].float()
    return stored, exact
