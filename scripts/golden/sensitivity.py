"""Prints how far the log-probs move when one tensor or one rule is ignored: each must exceed the tests' tolerance.

usage: python -m golden.sensitivity NAME ...   (from scripts/; not a stage of make_golden.py)
"""

import copy
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from . import deepseek_release, reference

MODELS = pathlib.Path(__file__).resolve().parents[2] / "testdata" / "golden" / "models"
RULES = {
    "norm_topk_prob": lambda v: not v,
    "routed_scaling_factor": lambda v: v * 1.5,
    "topk_group": lambda v: v + 1,
    "n_group": lambda v: 1 if v > 1 else 2,
    "rope_theta": lambda v: v * 2,
    "rms_norm_eps": lambda v: v * 100,
}


def main():
    torch.set_num_threads(1)
    deepseek_release.apply()
    for name in sys.argv[1:]:
        folder = MODELS / name
        golden = json.loads((MODELS / f"{name}.golden.json").read_text())
        ids = golden["prompts"][5]["token_ids"]
        weights = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
        config = AutoConfig.from_pretrained(folder)
        exact = run(config, weights, ids)
        moved = {}
        for tensor, value in weights.items():
            plain = torch.ones_like(value) if "norm" in tensor else torch.zeros_like(value)
            moved[tensor] = difference(exact, run(config, weights | {tensor: plain}, ids))
        for rule, change in RULES.items():
            if (old := getattr(config, rule, None)) is not None:
                other = copy.deepcopy(config)
                setattr(other, rule, change(old))
                if rule == "n_group" and other.n_group == 1:
                    other.topk_group = 1
                moved[rule] = difference(exact, run(other, weights, ids))
        for key in (config.rope_scaling or {}).keys() - {"type", "rope_type"}:
            other = copy.deepcopy(config)
            other.rope_scaling[key] *= 0.5
            moved[f"rope_scaling.{key}"] = difference(exact, run(other, weights, ids))
        print(name)
        for what, by in sorted(moved.items(), key=lambda item: item[1])[:14]:
            print(f"  {by:.5f}  {what}")


def run(config, weights, ids):
    return torch.log_softmax(reference.logits_of(reference.build(config, weights), ids), -1)


def difference(a, b):
    return (a - b).abs().mean().item()


if __name__ == "__main__":
    main()
