#!/usr/bin/env python3
"""The work of crates/backend-gpu/examples/measure.rs in PyTorch, eager and compiled, at the same shapes.

usage: gpu_peers.py [--tiny]      (needs torch; --tiny also runs on the CPU, where figures mean nothing)

Weights are bf16: PyTorch has no eager product of 128x128-scaled FP8. Bytes are those that must be read at least.
"""
import statistics
import sys
import time

import torch
import torch.nn.functional as F

TINY = "--tiny" in sys.argv
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and not TINY:
    sys.exit("no CUDA device (use --tiny to see that this script works)")
if TINY:
    HIDDEN, EXPERT, DENSE, EXPERTS, TOP_K, HEADS, LATENT, WIDTH = 256, 128, 512, 8, 2, 4, 16, 24
    ROWS, SEQUENCES, CONTEXTS, SAMPLES, SAMPLE_S = (1, 5), (1, 2), (40, 300), 3, 0.0
else:  # DeepSeek-R1: config.json of its release; 64 experts in bf16 are measured: all are more than 80 GB hold
    HIDDEN, EXPERT, DENSE, EXPERTS, TOP_K, HEADS, LATENT, WIDTH = 7168, 2048, 18432, 256, 8, 128, 512, 576
    ROWS, SEQUENCES, CONTEXTS, SAMPLES, SAMPLE_S = (1, 2, 4, 8, 16, 128, 512), (1, 16, 128), (4096, 32768), 9, 0.02
DTYPE = torch.bfloat16


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(name, bytes_, operations, op):
    op()
    wait()
    start = time.perf_counter()
    op()
    wait()
    once = time.perf_counter() - start
    calls = min(1000, max(1, round(SAMPLE_S / max(once, 1e-7))))
    samples = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        for _ in range(calls):
            op()
        wait()
        samples.append((time.perf_counter() - start) * 1e6 / calls)
    median = statistics.median(samples)
    print(
        f"{name:<52} {bytes_ / 1e6:9.1f} MB {median:10.1f} us ({min(samples):.1f} .. {max(samples):.1f}) "
        f"{bytes_ / median / 1e3:8.1f} GB/s {operations / median / 1e6:7.2f} TFLOP/s",
        flush=True,
    )


def both(name, bytes_, operations, function, *args):
    measure(f"{name}, eager", bytes_, operations, lambda: function(*args))
    compiled = torch.compile(function, dynamic=False)
    measure(f"{name}, compiled", bytes_, operations, lambda: compiled(*args))


def mla(q, cache):
    """q [sequences, heads, width], cache [sequences, positions, width] -> [sequences, heads, latent]"""
    return F.scaled_dot_product_attention(q, cache, cache[..., :LATENT], scale=0.07)


def ffn(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def routed(x, chosen, weights, gate, up, down):
    """As eager code does it: expert after expert, each with its rows. chosen, weights [rows, top_k]"""
    out = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        row, slot = (chosen == expert).nonzero(as_tuple=True)
        y = ffn(x[row], gate[expert], up[expert], down[expert])
        out.index_add_(0, row, y * weights[row, slot, None])
    return out


def layer(x, norm, router, chosen, weights, gate, up, down, shared):
    y = F.rms_norm(x, (HIDDEN,), norm, 1e-6)
    torch.sigmoid(F.linear(y, router)).topk(TOP_K)
    return x + routed(y, chosen, weights, gate, up, down) + ffn(y, *shared)


def values(*shape, scale=1.0):
    return torch.randn(*shape, device=DEVICE, dtype=DTYPE) * scale


@torch.no_grad()
def main():
    torch.manual_seed(1)
    print(torch.__version__, torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu, figures mean nothing")
    for context in CONTEXTS:
        for count in SEQUENCES:
            q, cache = values(count, HEADS, WIDTH), values(count, context + 1, WIDTH)
            positions = count * (context + 1)
            operations = 2 * positions * HEADS * (WIDTH + LATENT)
            both(f"MLA decode, {count} x {context} positions", positions * WIDTH * 2, operations, mla, q, cache)
            del q, cache
    dense = values(DENSE, HIDDEN, scale=0.02)
    for rows in ROWS:
        name = f"linear bf16 [{DENSE}, {HIDDEN}], {rows} rows"
        both(name, dense.nbytes, 2 * rows * dense.numel(), F.linear, values(rows, HIDDEN), dense)
    del dense
    held = EXPERTS // 4 if not TINY else EXPERTS
    gate, up = (values(held, EXPERT, HIDDEN, scale=0.02) for _ in range(2))
    down = values(held, HIDDEN, EXPERT, scale=0.02)
    shared = tuple(values(*shape, scale=0.02) for shape in [(EXPERT, HIDDEN), (EXPERT, HIDDEN), (HIDDEN, EXPERT)])
    norm, router = torch.ones(HIDDEN, device=DEVICE, dtype=DTYPE), values(EXPERTS, HIDDEN, scale=0.02)
    one = 3 * HIDDEN * EXPERT
    for rows in ROWS:
        # Chosen among all experts; those not held share memory with the ones that are.
        chosen = torch.stack([torch.randperm(EXPERTS, device=DEVICE)[:TOP_K] for _ in range(rows)]) % held
        in_use, weights, x = chosen.unique().numel(), values(rows, TOP_K), values(rows, HIDDEN)
        args = (x, chosen, weights, gate, up, down)
        both(f"{in_use} of {held} experts, {rows} rows", in_use * one * 2, 2 * rows * TOP_K * one, routed, *args)
        args = (x, norm, router, chosen, weights, gate, up, down, shared)
        operations = 2 * rows * ((TOP_K + 1) * one + EXPERTS * HIDDEN)
        bytes_ = (in_use + 1) * one * 2 + EXPERTS * HIDDEN * 2
        both(f"MoE layer, {rows} rows", bytes_, operations, layer, *args)


if __name__ == "__main__":
    main()
