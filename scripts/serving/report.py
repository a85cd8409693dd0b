"""From the rows of serving.csv to a table in Markdown; the load generator draws the plots."""

import datetime
import statistics
import subprocess

LINGQU = "lingqu"
# Figure, title, unit, whether less is better.
SHOWN = [
    ("output tokens/s", False), ("requests/s", False), ("goodput requests/s", False), ("ttft p50 ms", True),
    ("ttft p95 ms", True), ("tpot p50 ms", True), ("tpot p95 ms", True), ("e2e p95 ms", True),
]  # fmt: skip


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def figures(summary):
    """What is kept of a run."""
    found = {
        "output tokens/s": summary["output_tokens_per_s"],
        "requests/s": summary["requests_per_s"],
        "goodput requests/s": summary["goodput"]["requests_per_s"],
        "answered": summary["requests"]["answered"],
        "measured": summary["requests"]["measured"],
        "not sent": summary["not_sent"],
        "prompt tokens": summary["prompt_tokens"],
        "cached tokens": summary["cached_tokens"],
        "server bytes": summary["server_memory_bytes"]["after"],
    }
    for name in ("ttft", "tpot", "e2e"):
        for point in ("p50", "p95", "p99"):
            found[f"{name} {point} ms"] = summary[f"{name}_ms"][point]
    return {name: value for name, value in found.items() if value is not None}


def values_of(rows, model, job):
    """figure -> contender -> round -> value"""
    found = {}
    for row in rows:
        if (row["model"], row["job"]) == (model, job):
            rounds = found.setdefault(row["figure"], {}).setdefault(row["contender"], {})
            rounds[int(row["round"])] = float(row["value"])
    return found


def shown(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def with_spread(rounds):
    if not rounds:
        return "-"
    values = sorted(rounds.values())
    median = shown(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({shown(values[0])} .. {shown(values[-1])})"


def times_better(ours, theirs, less_is_better):
    """The median, over rounds, of how many times better Lingqu is: both saw the same machine."""
    both = [(ours[r], theirs[r]) for r in ours.keys() & theirs.keys()]
    ratios = [b / a if less_is_better else a / b for a, b in both if a > 0 and b > 0]
    return f"**{statistics.median(ratios):.2f}x**" if ratios else "-"


def section(rows, model, job, about):
    values = values_of(rows, model, job)
    lines = [f"### {job}", "", f"{about['settings'].get(job, '')}.", ""]
    lines += ["| | Lingqu | llama-server, best | Lingqu better by |", "|---|---|---|---|"]
    for figure, less_is_better in SHOWN:
        by = values.get(figure, {})
        peers = [name for name in by if name != LINGQU]
        pick = min if less_is_better else max
        best = pick(peers, key=lambda name: statistics.median(by[name].values()), default=None)
        ours, theirs = by.get(LINGQU, {}), by.get(best, {})
        which = f", {best.partition(' ')[2]}" if best else ""
        ratio = times_better(ours, theirs, less_is_better)
        lines.append(f"| {figure} | {with_spread(ours)} | {with_spread(theirs)}{which} | {ratio} |")
    lines.append("")
    for contender in values.get("measured", {}):
        total = {name: sum(values.get(name, {}).get(contender, {}).values()) for name in
                 ("measured", "answered", "not sent", "prompt tokens", "cached tokens")}  # fmt: skip
        lost = total["measured"] - total["answered"]
        peak = max(values.get("server bytes", {}).get(contender, {0: 0}).values())
        lines.append(
            f"- {contender}: {total['answered']:.0f} answered, {lost:.0f} failed, {total['not sent']:.0f} never sent; "
            f"{total['prompt tokens']:.0f} prompt tokens, {total['cached tokens']:.0f} of them told as cached; "
            f"memory after {peak / 1e9:.2f} GB"
        )
    for what, why in about["failed"].items():
        if what.startswith(f"{model}, {job}, "):
            lines.append(f"- {what.split(', ')[2]} failed: {why}")
    return [*lines, ""]


HEAD = """# Servers side by side

Written by `scripts/compare_servers.py`; every measurement is in `serving.csv`. Each run has a fresh server, the same
clients (`lingqu-loadgen`, on the same cores), the same requests in the same order, greedy, with the length of the answer
forced. Figures are medians of the rounds (lowest .. highest); a ratio is the median of ratios within a round; the peer's
column shows the best of its configurations in that row.

- TTFT counts from when a request was due, to the first text of the answer; TPOT is the mean time of one more token; e2e
  is the whole answer. In open loops a request is due when the Poisson process says so, whether or not it could be sent.
- output tokens/s: those that came while the window was open.
- goodput: requests within the bounds of TTFT and TPOT.
"""


def write(args, results):
    rows, about = results.rows, results.about
    days = sorted({row["time"][:10] for row in rows})
    facts = {"Date": " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "-"}
    facts |= about["machine"] | about["contenders"]
    lines = [HEAD, "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts.items()), ""]
    (args.out / "plots").mkdir(exist_ok=True)
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += [f"## {model}", ""]
        names = list(dict.fromkeys(row["job"] for row in rows if row["model"] == model))
        for job in names:
            lines += section(rows, model, job, about)
        for plot in plots(args, model, names):
            lines += [f"![{plot.stem}](plots/{plot.name})", ""]
    (args.out / "SERVING.md").write_text("\n".join(lines))


def plots(args, model, names):
    """Drawn from the last round's summaries, as far as they are still there."""
    open_loops = [job for job in names if job.startswith("open-")]
    groups = {job: [job] for job in names if job not in open_loops} | ({"open": open_loops} if open_loops else {})
    drawn = []
    for group, members in groups.items():
        last = {}
        for job in members:
            for summary in (args.work / model / job).glob("*/summary.json"):
                contender, _, round_ = summary.parent.name.rpartition("-")
                last.setdefault((job, contender), {})[int(round_)] = summary
        files = [rounds[max(rounds)] for rounds in last.values()]
        if not files or not args.loadgen:
            continue
        prefix = args.out / "plots" / f"serving-{model}-{group}"
        command = [args.loadgen, "plot", "--title", f"{model}, {group}", "--out", prefix, *sorted(files)]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        wanted = ("throughput", "ttft-p95", "goodput") if group == "open" else ("ttft-cdf", "tpot-cdf")
        for path in map(type(prefix), done.stdout.split()):
            if path.stem.endswith(wanted):
                drawn.append(path)
            else:
                path.unlink()
    return drawn
