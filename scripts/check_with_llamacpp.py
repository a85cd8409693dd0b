#!/usr/bin/env python3
"""Compares the golden GGUF models with llama.cpp: an independent reader of our files and conventions.

Needs `pip install --no-deps xllamacpp` (checked with 2026.10.11549). For each prompt it prints the largest
difference of the four likeliest log-probs after the last token. llama.cpp rounds activations to int8 for quantised
weights: expect a few 1e-2 there, 1e-3 for f32 and f16. deepseek2-v2-groups-* may differ by more: llama.cpp ranks V2's
groups as V3's. It cannot open deepseek2-v2-lite-q4_k_m: it knows V2-Lite by its 27 layers, ours has 2.

usage: check_with_llamacpp.py [NAME ...] 2>/dev/null
"""

import json
import pathlib
import sys

import xllamacpp

MODELS = pathlib.Path(__file__).resolve().parent.parent / "testdata" / "golden" / "models"


def open_server(path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def largest_difference(server, prompt):
    """None where llama.cpp stops at once (the likeliest token ends the text) and gives no probabilities."""
    request = {"prompt": prompt["token_ids"], "n_predict": 1, "n_probs": 16, "temperature": 0.0, "cache_prompt": False}
    answer = server.handle_completions(request)
    answer = answer[0] if isinstance(answer, list) else answer
    content = ((answer["choices"][0].get("logprobs") or {}).get("content")) or []
    if not content:
        return None
    theirs = {entry["id"]: entry["logprob"] for entry in content[0]["top_logprobs"]}
    return max(abs(theirs.get(token, float("-inf")) - logprob) for token, logprob in prompt["top"][-1])


def main():
    paths = [MODELS / f"{name}.golden.json" for name in sys.argv[1:]] or sorted(MODELS.glob("*.golden.json"))
    for path in paths:
        golden = json.loads(path.read_text())
        if not golden["model"].endswith(".gguf") or "needs" in golden:
            continue
        try:
            server = open_server(MODELS / golden["model"])
        except Exception as error:
            print(f"{golden['model']}: not opened: {error}", flush=True)
            continue
        found = [largest_difference(server, prompt) for prompt in golden["prompts"]]
        print(golden["model"], *("-" if each is None else f"{each:.4f}" for each in found), flush=True)
        del server


if __name__ == "__main__":
    main()
