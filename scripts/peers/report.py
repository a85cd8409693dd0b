"""From the rows of results.csv to a table in Markdown and plots in SVG.

A ratio is the median, over rounds, of Lingqu's figure by the peer's of the same round: both saw the same machine.
"""

import statistics

from . import plot

LINGQU = "lingqu"
LLAMA = "llama.cpp"
IK = "ik_llama.cpp"


class Table:
    """Values of one model: figure -> contender -> round -> value."""

    def __init__(self, rows, model):
        self.model, self.values, self.bytes, self.limits = model, {}, {}, {}
        for row in rows:
            if row["model"] != model:
                continue
            name, value, round_ = row["figure"], float(row["value"]), int(row["round"])
            if row["contender"] == "machine":
                self.limits.setdefault((row["job"], name), []).append(value)
            elif name.startswith("bytes of "):
                self.bytes[name.removeprefix("bytes of ")] = value
            else:
                name = f"peak, {row['job']}" if name == "peak" else name
                self.values.setdefault(name, {}).setdefault(row["contender"], {})[round_] = value

    def figures(self):
        def place(name):
            order = ["prefill", "decode", "decode at context", "first token", "peak"]
            kind = "decode" if name.startswith("decode ") and name.split()[1].isdigit() else name.split(",")[0]
            count = int(name.split()[1]) if kind == "decode" else 0
            return order.index(kind), count, name

        return sorted(self.values, key=place)

    def median(self, figure, contender):
        rounds = self.values[figure].get(contender)
        return statistics.median(rounds.values()) if rounds else None

    def best(self, figure, family):
        """The contender of a family with the best median."""
        names = [name for name in self.values[figure] if name == family or name.startswith(f"{family} ")]
        pick = min if less_is_better(figure) else max
        return pick(names, key=lambda name: self.median(figure, name), default=None)

    def ratio(self, figure, peer):
        """How many times better Lingqu is."""
        ours, theirs = self.values[figure].get(LINGQU, {}), self.values[figure].get(peer, {})
        ratios = [ours[r] / theirs[r] for r in ours.keys() & theirs.keys()]
        if not ratios:
            return None
        ratio = statistics.median(ratios)
        return 1 / ratio if less_is_better(figure) else ratio

    def limit(self, job, name):
        values = self.limits.get((job, name))
        return statistics.median(values) if values else None


def less_is_better(figure):
    return figure == "first token" or figure.startswith("peak")


def shown(figure, value):
    if value is None:
        return "-"
    if figure.startswith("peak"):
        return f"{value / 1e9:.2f} GB"
    return f"{value:.2f} s" if figure == "first token" else f"{value:.1f}"


def with_spread(figure, rounds):
    if not rounds:
        return "-"
    values = sorted(rounds.values())
    median = shown(figure, statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({shown(figure, values[0])} .. {shown(figure, values[-1])})"


def prefill_operations(facts):
    """Operations of all matrix products of one prompt token: two for each parameter that it meets. The head, and the
    last layer's FFN, are computed for the last token of the prompt alone."""
    groups = {}
    for weight in facts["weights"]:
        groups[weight["group"]] = groups.get(weight["group"], 0) + weight["parameters"]
    config = facts["config"]
    layers = int(config["layers"])
    total, routed = facts["parameters"], groups.get("routed experts", 0)
    total -= groups.get("embedding", 0) + groups.get("head", 0) + groups.get("unused", 0)
    if not routed:
        return 2 * (total - groups.get("dense ffn", 0) / layers)
    top_k, experts = (int(word) for word in config["experts"].split(" a token")[0].split(" of "))
    met = routed * top_k / experts
    moe_layers = layers - int(config["dense_layers"].split()[-1])
    last = (met + groups.get("shared experts", 0) + groups.get("router", 0)) / moe_layers
    return 2 * (total - routed + met - last)


def share(table, figure, facts):
    """Lingqu's part of what the machine could do in that job."""
    value = table.median(figure, LINGQU)
    if figure.startswith("peak") and value and facts:
        return f"{value / facts['weight_bytes']:.2f} of the weights"
    if value is None or less_is_better(figure):
        return "-"
    if figure == "prefill":
        tops = table.limit("speed", "int8 TOPS")
        if not tops or not facts:
            return "-"
        return f"{100 * value * prefill_operations(facts) / (tops * 1e12):.0f}% of int8 peak"
    streams = int(figure.split()[1]) if figure != "decode at context" else 1
    job = "context" if figure == "decode at context" else "speed" if streams == 1 else "streams"
    bandwidth = table.limit(job, "read GB/s")
    if not bandwidth or figure not in table.bytes:
        return "-"
    return f"{100 * value / streams * table.bytes[figure] / (bandwidth * 1e9):.0f}% of bandwidth"


def label(figure, args):
    count = figure.split()[1] if figure.startswith("decode ") else ""
    names = {"prefill": f"prefill, {args.prompt} tokens", "decode at context": f"decode at {args.context} tokens",
             "decode 1": "decode, 1 stream", "first token": "load to first token"}  # fmt: skip
    jobs = {"speed": "prefill, 1 stream", "streams": f"{max(args.streams)} streams", "start": "first token",
            "context": f"{args.context} tokens"}  # fmt: skip
    if figure.startswith("peak"):
        return f"peak memory, {jobs[figure.split(', ')[1]]}"
    return names.get(figure, f"decode, {count} streams")


def section(table, facts, args):
    lines = [f"## {table.model}", ""]
    if facts:
        size, all_, active = (facts[name] / 1e9 for name in ("weight_bytes", "parameters", "active_parameters"))
        lines += [f"{size:.2f} GB, {all_:.2f} billion parameters, {active:.2f} of them a token.", ""]
    lines += ["| | Lingqu | llama.cpp, best | ik_llama.cpp, best | by llama.cpp | by ik | Lingqu of the limit |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for figure in table.figures():
        values = table.values[figure]
        peers, ratios = [], []
        for family in (LLAMA, IK):
            best = table.best(figure, family)
            ratio = table.ratio(figure, best)
            peers.append(f"{with_spread(figure, values[best])}, {best.removeprefix(family).strip()}" if best else "-")
            ratios.append(f"**{ratio:.2f}x**" if ratio else "-")
        cells = [label(figure, args), with_spread(figure, values.get(LINGQU)), *peers, *ratios]
        lines.append("| " + " | ".join([*cells, share(table, figure, facts)]) + " |")
    lines += ["", *limit_lines(table), "", f"![{table.model}](plots/{table.model}.svg)", ""]
    return lines


def limit_lines(table):
    merged = {}
    for (_, name), values in sorted(table.limits.items()):
        merged.setdefault(name, []).extend(values)
    texts = [
        f"{name} {statistics.median(values):.1f} ({min(values):.1f} .. {max(values):.1f})"
        for name, values in merged.items()
    ]
    return ["Limits, measured before and after each round: " + "; ".join(texts) + "."] if texts else []


HEAD = """# Measured side by side

Written by `scripts/compare_peers.py`; every measurement is in `results.csv`. Figures are tokens/s of all streams
together unless a unit says otherwise: median of the rounds (lowest .. highest). `by` is how many times better Lingqu is
than that peer in the same round. A peer's column shows the best of its configurations in that row.

- prefill: one sequence of random tokens, logits of the last token; all engines compute the last layer's FFN for that
  token alone, and the share of the limit counts it so.
- decode: random tokens, so that streams meet different experts; the share of the limit counts weights of the expected
  number of distinct experts, and the KV cache.
- decode at a long context: Lingqu's cache is filled with copies of a short prompt's blocks, the peers compute theirs.
- load to first token: a whole process that loads the model and computes one token, page cache warm; memory is the
  process's peak in RAM, mapped files included.
"""


def write(folder, rows, about, facts, args):
    lines = [HEAD, "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in about), ""]
    (folder / "plots").mkdir(exist_ok=True)
    for model in dict.fromkeys(row["model"] for row in rows):
        table = Table(rows, model)
        lines += section(table, facts.get(model), args)
        speeds = [figure for figure in table.figures() if not less_is_better(figure)]
        bars = {label(figure, args): bars_of(table, figure) for figure in speeds}
        (folder / "plots" / f"{model}.svg").write_text(plot.bars(f"{model}, tokens/s", bars))
    (folder / "RESULTS.md").write_text("\n".join(lines))


def bars_of(table, figure):
    """contender -> (median, lowest, highest)"""
    found = {}
    for family in (LINGQU, LLAMA, IK):
        best = table.best(figure, family)
        if best:
            rounds = table.values[figure][best].values()
            found[family] = (statistics.median(rounds), min(rounds), max(rounds))
    return found
