"""From the rows of results.csv to a table in Markdown and plots in SVG.

A ratio is the median, over rounds, of Lingqu's figure by the peer's of the same round: both saw the same machine. A
share of a limit is the median, over rounds, of Lingqu's figure by the mean of that limit right before and right after.
"""

import statistics

from . import plot

LINGQU = "lingqu"
FAMILIES = [LINGQU, "llama.cpp", "ik_llama.cpp", "candle"]
KINDS = ["prefill", "decode", "decode after", "first token", "peak"]


def kind_of(figure):
    """(kind, tokens or streams)"""
    *words, last = figure.split(", ")[0].split()
    return (" ".join(words), int(last)) if last.isdigit() else (figure.split(", ")[0], 0)


class Table:
    """Values of one model: figure -> contender -> round -> value."""

    def __init__(self, rows, model):
        self.model, self.values, self.bytes, self.limits, self.jobs = model, {}, {}, {}, {}
        for row in rows:
            if row["model"] != model:
                continue
            name, value, round_, job = row["figure"], float(row["value"]), int(row["round"]), row["job"]
            if row["contender"] == "machine":
                self.limits.setdefault((job, name), {}).setdefault(round_, []).append(value)
            elif name.startswith("bytes of "):
                self.bytes[name.removeprefix("bytes of ")] = value
            elif (job, name) != ("streams", "decode 1"):  # the job `speed` has it, over more tokens
                name = f"peak, {job}" if name == "peak" else name
                self.jobs[name] = job
                self.values.setdefault(name, {}).setdefault(row["contender"], {})[round_] = value

    def figures(self):
        return sorted(self.values, key=lambda name: (KINDS.index(kind_of(name)[0]), kind_of(name)[1], name))

    def families(self):
        """Those measured, but for Lingqu."""
        present = {contender for rounds in self.values.values() for contender in rounds}
        return [f for f in FAMILIES[1:] if any(c == f or c.startswith(f"{f} ") for c in present)]

    def best(self, figure, family):
        """The contender of a family with the best median."""
        names = [name for name in self.values[figure] if name == family or name.startswith(f"{family} ")]
        pick = min if less_is_better(figure) else max
        return pick(names, key=lambda name: statistics.median(self.values[figure][name].values()), default=None)

    def ratio(self, figure, peer):
        """How many times better Lingqu is."""
        ours, theirs = self.values[figure].get(LINGQU, {}), self.values[figure].get(peer, {})
        ratios = [ours[r] / theirs[r] for r in ours.keys() & theirs.keys()]
        if not ratios:
            return None
        ratio = statistics.median(ratios)
        return 1 / ratio if less_is_better(figure) else ratio

    def share(self, figure, limit, unit):
        """Of a limit, of what Lingqu did: its figure times `unit` (bytes or operations) in each round."""
        limits = self.limits.get((self.jobs[figure], limit), {})
        ours = self.values[figure].get(LINGQU, {})
        shares = [ours[r] * unit / statistics.mean(limits[r]) for r in ours.keys() & limits.keys()]
        return statistics.median(shares) if shares else None


def less_is_better(figure):
    return kind_of(figure)[0] in ("first token", "peak")


def shown(figure, value):
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


def prefill_operations(facts, prompt):
    """Operations of the products with weights, of one prompt token: two for each parameter that it meets. The head, and
    the last layer's FFN, are computed for the last token of the prompt alone."""
    groups = {}
    for weight in facts["weights"]:
        groups[weight["group"]] = groups.get(weight["group"], 0) + weight["parameters"]
    config = facts["config"]
    layers = int(config["layers"])
    total, routed = facts["parameters"], groups.get("routed experts", 0)
    # A file without a head has its embedding as the head.
    once = groups.get("head", groups.get("embedding", 0))
    total -= groups.get("embedding", 0) + groups.get("head", 0) + groups.get("unused", 0)
    if not routed:
        once += groups.get("dense ffn", 0) / layers
        return 2 * (total - groups.get("dense ffn", 0) / layers + once / prompt)
    top_k, experts = (int(word) for word in config["experts"].split(" a token")[0].split(" of "))
    met = routed * top_k / experts
    moe_layers = layers - int(config["dense_layers"].split()[-1])
    last = (met + groups.get("shared experts", 0) + groups.get("router", 0)) / moe_layers
    return 2 * (total - routed + met - last + (once + last) / prompt)


def share(table, figure, facts):
    """Lingqu's part of what the machine could do in that job."""
    kind, count = kind_of(figure)
    ours = table.values[figure].get(LINGQU)
    if kind == "peak" and ours and facts:
        return f"{statistics.median(ours.values()) / facts['weight_bytes']:.2f} of the weights"
    found, of = None, ""
    if kind == "prefill" and facts:
        found, of = table.share(figure, "int8 TOPS", prefill_operations(facts, count) / 1e12), "int8 peak"
    elif kind.startswith("decode") and figure in table.bytes:
        streams = count if kind == "decode" else 1
        found, of = table.share(figure, "read GB/s", table.bytes[figure] / streams / 1e9), "bandwidth"
    return f"{100 * found:.0f}% of {of}" if found else "-"


def label(figure):
    kind, count = kind_of(figure)
    if kind == "peak":
        jobs = {"speed": "prompt, 1 stream", "streams": "several streams", "start": "first token", "context": "context"}
        return f"peak memory, {jobs[figure.split(', ')[1]]}"
    return {
        "prefill": f"prefill, {count} tokens",
        "decode": f"decode, {count} stream{'s' if count > 1 else ''}",
        "decode after": f"decode after {count} tokens",
        "first token": "load to first token",
    }[kind]


def section(table, facts, failed):
    lines = [f"## {table.model}", ""]
    if facts:
        size, all_, active = (facts[name] / 1e9 for name in ("weight_bytes", "parameters", "active_parameters"))
        lines += [f"{size:.2f} GB, {all_:.2f} billion parameters, {active:.2f} of them a token.", ""]
    families = table.families()
    titles = ["", "Lingqu", *(f"{f}, best" for f in families), *(f"by {f}" for f in families), "Lingqu of the limit"]
    lines += ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for figure in table.figures():
        values = table.values[figure]
        peers, ratios = [], []
        for family in families:
            best = table.best(figure, family)
            ratio = table.ratio(figure, best)
            which = f", {best.removeprefix(family).strip()}".rstrip(", ") if best else ""
            peers.append(with_spread(figure, values.get(best)) + which)
            ratios.append(f"**{ratio:.2f}x**" if ratio else "-")
        cells = [label(figure), with_spread(figure, values.get(LINGQU)), *peers, *ratios, share(table, figure, facts)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *limit_lines(table)]
    for what, why in failed.items():
        model, job, contender = what.split(", ", 2)
        if model == table.model:
            lines += [f"{contender} failed at `{job}`: {why}".replace("|", "/"), ""]
    return [*lines, f"![{table.model}](plots/{table.model}.svg)", ""]


def limit_lines(table):
    merged = {}
    for (_, name), rounds in sorted(table.limits.items()):
        merged.setdefault(name, []).extend(value for values in rounds.values() for value in values)
    texts = [
        f"{name} {statistics.median(values):.1f} ({min(values):.1f} .. {max(values):.1f})"
        for name, values in merged.items()
    ]
    what = "Limits, measured right before and right after Lingqu's turns"
    return [f"{what}: {'; '.join(texts)}.", ""] if texts else []


HEAD = """# Measured side by side

Written by `scripts/compare_peers.py`; every measurement is in `results.csv`. Figures are tokens/s of all streams
together unless a unit says otherwise: median of the rounds (lowest .. highest). `by` is how many times better Lingqu is
than that peer in the same round (the median of these ratios). A peer's column shows the best of its configurations in
that row. A share of a limit is of the mean of that limit right before and right after Lingqu's turn.

- prefill: one sequence of random tokens, logits of the last token. The share counts the operations that the products
  with weights need, two for each parameter that a token meets (the last layer's FFN and the head: for the last token
  alone, as all engines compute them), by the whole time of the prompt, attention and all else included. A second pass
  over the same operands, padding and attention's own products do not count.
- decode: random tokens, one stream after the prompt, several after a short one, so that streams meet different experts;
  the share counts bytes of the weights of the expected number of distinct experts, and of the KV cache.
- decode after a long context: Lingqu's cache is filled with copies of a short prompt's blocks, peers compute theirs.
- load to first token: a whole process that loads the model and computes one token, page cache warm.
- peak memory is that of the process in RAM, pages of mapped files included.
"""


def write(folder, results):
    about, rows = results.about, results.rows
    days = sorted({row["time"][:10] for row in rows})
    facts = {"Date": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "-"}
    facts |= about["machine"] | about["contenders"]
    lines = [HEAD, "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts.items()), ""]
    (folder / "plots").mkdir(exist_ok=True)
    for model in dict.fromkeys(row["model"] for row in rows):
        table = Table(rows, model)
        lines += section(table, about["models"].get(model), about["failed"])
        speeds = [figure for figure in table.figures() if not less_is_better(figure)]
        bars = {label(figure): bars_of(table, figure) for figure in speeds}
        (folder / "plots" / f"{model}.svg").write_text(plot.bars(f"{model}, tokens/s", bars))
    (folder / "RESULTS.md").write_text("\n".join(lines))


def bars_of(table, figure):
    """contender -> (median, lowest, highest)"""
    found = {}
    for family in FAMILIES:
        best = table.best(figure, family)
        if best:
            rounds = table.values[figure][best].values()
            found[family] = (statistics.median(rounds), min(rounds), max(rounds))
    return found
