#!/usr/bin/env python3
"""What rounding activations costs, in Lingqu and in llama.cpp, on the same GGUF file, text, windows and positions.

    accuracy.py --model FILE --text FILE --lingqu BINARY --llama NAME=FOLDER [--llama NAME=FOLDER ...] --work FOLDER

The yardstick is the model as the file means it: all its tensors dequantised to f32, computed by the first llama.cpp
with f32 keys and values and no flash attention. Everyone else's distributions are held against it at the same
positions: the second half of windows of the text, as llama-perplexity scores it. Prints a table in Markdown:

- perplexity, and how much larger it is than the yardstick's;
- KL(yardstick || contender), over the contender's 256 likeliest tokens and the rest as one: mean with its standard
  error, and the 99th percentile; `llama-perplexity --kl-divergence` itself sums over the whole vocabulary;
- in how many of the positions the likeliest token is the same.

FOLDER holds llama-perplexity, of llama.cpp or ik_llama.cpp. Needs `pip install gguf numpy`. Files in --work (the f32
model, and for each peer half a GB for 20 windows of 49,152 tokens) are made once and used again while they are there.
"""

import argparse
import json
import math
import os
import pathlib
import re
import sys

import numpy as np

from peers import gguf_f32, log_probs, measure

YARDSTICK = ["-fa", "off", "-ctk", "f32", "-ctv", "f32"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=pathlib.Path, required=True, metavar="FILE", help="GGUF file of a block format")
    add("--text", type=pathlib.Path, required=True, metavar="FILE")
    add("--lingqu", default=os.environ.get("LINGQU"), metavar="BINARY", help="[env LINGQU]")
    add("--llama", action="append", default=[], metavar="NAME=FOLDER", help="the first computes the yardstick")
    add("--work", type=pathlib.Path, required=True, metavar="FOLDER")
    add("--window", type=int, default=512, help="tokens of each window [%(default)s]")
    add("--windows", type=int, default=20, help="how many [%(default)s]")
    add("--reference-windows", type=int, default=0,
        help="windows that Lingqu's reference backend computes too, a minute each [%(default)s]")  # fmt: skip
    add("--top", type=int, default=256, help="tokens listed at each position [%(default)s]")
    add("--threads", type=int, default=os.cpu_count())
    add("--timeout", type=int, default=7200, help="seconds that one process gets [%(default)s]")
    return parser.parse_args()


def perplexity(folder, model, args, extra):
    """What llama-perplexity prints."""
    command = [folder / "llama-perplexity", "-m", model, "-f", args.work / "text", "-c", args.window, "-b", args.window]
    # Newer ones print figures on the error channel.
    return measure.run([*command, "-t", args.threads, *extra], args.timeout, folder, with_errors=True)[0]


def found(pattern, text):
    match = re.search(pattern, text)
    return match.group(1) if match else sys.exit(f"llama-perplexity printed no {pattern!r}: {text[-500:]}")


def distributions(folder, model, args, name, extra=()):
    """(LlamaFile, the perplexity that was printed)"""
    path, printed = args.work / f"{name}.bin", args.work / f"{name}.ppl"
    if not printed.exists():
        text = perplexity(folder, model, args, ["--chunks", args.windows, "--kl-divergence-base", path, *extra])
        printed.write_text(found(r"Final estimate: PPL.* = ([\d.]+)", text))
    return log_probs.LlamaFile(path), float(printed.read_text())


class Tally:
    """Divergences and agreements of one contender, position by position."""

    def __init__(self):
        self.kl, self.same = [], []

    def add(self, base, window, listed):
        for row, small, other in zip(*base.log_probs(window), listed):
            self.kl.append(log_probs.divergence(row, small, other))
            self.same.append(row.argmax() == other.ids[0])

    def cells(self):
        kl, same = np.array(self.kl), np.array(self.same)
        error = kl.std() / math.sqrt(len(kl))
        return [f"{kl.mean():.2e} ± {error:.0e}", f"{np.quantile(kl, 0.99):.1e}", f"{100 * same.mean():.2f}%"]


def lingqu(args, base, begin, windows, model, switches):
    """(perplexity, tally)"""
    lines = []
    for tokens in base.tokens[:windows].tolist():
        lines.append(json.dumps({"token_ids": tokens if begin is None else [begin, *tokens[1:]]}))
    (args.work / "windows.jsonl").write_text("\n".join(lines))
    command = [pathlib.Path(args.lingqu).resolve(), "score", "--model", model, "--input", args.work / "windows.jsonl"]
    out, _, _ = measure.run([*command, "--top", args.top, "--threads", args.threads, *switches], args.timeout)
    tally, nll = Tally(), []
    for window, line in enumerate(out.splitlines()):
        listed, values = log_probs.of_lingqu(line)
        tally.add(base, window, listed)
        nll += values
    return math.exp(np.mean(nll)), tally


def official(args, folder, name, base_name):
    """The mean KL divergence that llama-perplexity computes itself."""
    printed = args.work / f"{name}.kl"
    if not printed.exists():
        extra = ["--kl-divergence", "--kl-divergence-base", args.work / f"{base_name}.bin"]
        text = perplexity(folder, args.model, args, extra)
        printed.write_text(found(r"Mean +KLD: +([\d.]+)", text))
    return float(printed.read_text())


def main():
    args = arguments()
    args.model, args.work = args.model.resolve(), args.work.resolve()
    full = args.work / args.model.stem / "f32.gguf"
    args.work = full.parent / f"{args.text.stem}-{args.windows}x{args.window}"
    args.work.mkdir(parents=True, exist_ok=True)
    # All of a long text would be tokenised each time; tokens of real text have fewer than 8 characters on average.
    characters = args.window * max(args.windows, 2) * 8
    (args.work / "text").write_text(args.text.read_text()[:characters])
    if not full.exists():
        gguf_f32.write(args.model, full.with_suffix(".part"))
        full.with_suffix(".part").rename(full)
    named = (entry.partition("=") for entry in args.llama)
    peers = [(name, pathlib.Path(folder).resolve()) for name, _, folder in named]
    base, base_ppl = distributions(peers[0][1], full, args, "f32", YARDSTICK)
    begin = gguf_f32.adds_begin_token(args.model)
    print(f"## {args.model.name}, {args.text.name}\n\n{base.windows} windows of {base.width} tokens, "
          f"{base.windows * base.scored} positions; f32 has perplexity {base_ppl:.3f}.\n")  # fmt: skip
    print("| | perplexity | to f32's | KL divergence | 99% below | by llama-perplexity | same likeliest token |")
    print("|---|---|---|---|---|---|---|")

    def row(name, ppl, tally, printed=None):
        mean, most, same = tally.cells()
        of_tool = "-" if printed is None else f"{printed:.2e}"
        ratio = f"{100 * (ppl / base_ppl - 1):+.2f}%"
        print(f"| {name} | {ppl:.3f} | {ratio} | {mean} | {most} | {of_tool} | {same} |", flush=True)

    for name, folder in peers:
        file, ppl = distributions(folder, args.model, args, name)
        tally = Tally()
        for window in range(base.windows):
            tally.add(base, window, file.listed(window, args.top))
        row(name, ppl, tally, official(args, folder, name, "f32"))
    for name, model, switches in [
        ("Lingqu, int8", args.model, ["--backend", "cpu", "--activations", "int8"]),
        ("Lingqu, int16", args.model, ["--backend", "cpu", "--activations", "int16"]),
        ("Lingqu, the f32 file", full, ["--backend", "cpu"]),
    ]:
        row(name, *lingqu(args, base, begin, base.windows, model, switches))
    if count := min(args.reference_windows, base.windows):
        ppl, tally = lingqu(args, base, begin, count, args.model, ["--backend", "reference"])
        mean, most, same = tally.cells()
        print(f"| Lingqu, reference, {count} windows | {ppl:.3f} | - | {mean} | {most} | - | {same} |")


if __name__ == "__main__":
    main()
