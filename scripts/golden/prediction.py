"""Scores the default model's prediction layer (DeepSeek-V3 paper, section 2.2), which transformers leaves out.

Row s joins token s with the state of the token before it, after the model's last norm (zeros before the first), and says
token s + 1. Writes default.prediction.json: prompts as in the other golden files, and a second guess behind each prompt:
the layer goes on from its own state and its own likeliest token.
"""

import json

import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3DecoderLayer, DeepseekV3RMSNorm, DeepseekV3RotaryEmbedding,
)  # fmt: skip

from . import default_model, fp8, reference

SEED = 701
PROMPT_TOKENS = [1, 2, 3, 17, 64, 129]


class Prediction(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        norm = lambda: DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.enorm, self.hnorm, self.norm = norm(), norm(), norm()
        self.eh_proj = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = DeepseekV3DecoderLayer(config, config.num_hidden_layers)
        self.rope = DeepseekV3RotaryEmbedding(config)

    def forward(self, embeddings, states):
        """[rows, hidden] of each -> states of this layer [rows, hidden]"""
        x = self.eh_proj(torch.cat((self.enorm(embeddings), self.hnorm(states)), -1))[None]
        rows = x.shape[1]
        mask = torch.full((rows, rows), float("-inf")).triu(1)[None, None]
        angles = self.rope(x, torch.arange(rows)[None])
        out = self.layer(x, attention_mask=mask, position_embeddings=angles)
        return self.norm(out[0] if isinstance(out, tuple) else out)[0]


def load(folder, config):
    stored = load_file(folder / "model.safetensors")
    prefix = f"model.layers.{config.num_hidden_layers}."
    weights = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv") or not name.startswith(prefix):
            continue
        scale = stored.get(f"{name}_scale_inv")
        short = name[len(prefix) :].replace("shared_head.norm", "norm")
        short = short if short.split(".")[0] in ("enorm", "hnorm", "eh_proj", "norm") else f"layer.{short}"
        weights[short] = tensor.float() if scale is None else fp8.dequantise(tensor, scale)
    prediction = Prediction(config).eval()
    missing, unknown = prediction.load_state_dict(weights, strict=False)
    assert not missing and not unknown, (missing, unknown)
    return prediction


@torch.no_grad()
def joined(model, prediction, ids):
    """States of the prediction layer, [rows, hidden], and what it was given."""
    states = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0].float()
    before = torch.cat((torch.zeros(1, states.shape[1]), states[:-1]))
    embeddings = model.model.embed_tokens(torch.tensor(ids))
    return prediction(embeddings, before), embeddings, before


@torch.no_grad()
def score(model, prediction, ids):
    out, embeddings, before = joined(model, prediction, ids)
    logprobs = torch.log_softmax(model.lm_head(out).double(), -1)
    best = logprobs.topk(reference.TOP, -1)
    rows = zip(best.indices.tolist(), best.values.tolist())
    # Once more, from the last row's own state and its likeliest token.
    guess = best.indices[-1, :1]
    embeddings, before = torch.cat((embeddings, model.model.embed_tokens(guess))), torch.cat((before, out[-1:]))
    again = torch.log_softmax(model.lm_head(prediction(embeddings, before)[-1]).double(), -1).topk(reference.TOP)
    pairs = lambda indices, values: [[i, round(p, 6)] for i, p in zip(indices, values)]
    return {"token_ids": ids, "top": [pairs(*row) for row in rows], "again": pairs(again.indices.tolist(), again.values.tolist())}


def make(folder, only=None):
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    config._attn_implementation = "eager"
    model = reference.build(config, default_model.exact_weights(folder, config.num_hidden_layers))
    prediction = load(folder, config)
    draw = lambda n: torch.randint(0, config.vocab_size, (n,), generator=reference.generator(SEED, f"prompt {n}")).tolist()
    prompts = [score(model, prediction, draw(n)) for n in PROMPT_TOKENS]
    path = folder.parents[1] / "testdata" / "golden" / "models" / "default.prediction.json"
    path.write_text(json.dumps({"prompts": prompts}, separators=(",", ":")) + "\n")
    print(f"default.prediction: {sum(len(p['top']) for p in prompts)} rows")
