#!/usr/bin/env python3
"""Lingqu, llama.cpp, ik_llama.cpp and candle side by side on this machine, on the same GGUF files.

    compare_peers.py --model NAME=FILE --lingqu BINARY --llama NAME=FOLDER[,SWITCH] --ik NAME=FOLDER[,SWITCH]

Every figure comes from a fresh process. Contenders take turns, round by round, in an order that moves on with each
round; the machine's limits are measured right before and right after Lingqu's turn. Each measurement is a row of
OUT/results.csv, written at once; OUT/about.json says of what machine, contenders and models, and what failed.
OUT/RESULTS.md and OUT/plots/*.svg are made from all of them, so that a run that was cut off can be continued, and jobs
and models be run one by one (`--append`), or only reported (`--report`). Needs nothing but Python; `peers/build.sh`
builds the contenders.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import sys

from peers import machine, measure, report

FIELDS = ["time", "model", "job", "round", "contender", "figure", "value"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="NAME=FILE", help="GGUF file and what to call it; repeatable")
    add("--lingqu", default=os.environ.get("LINGQU"), metavar="BINARY", help="release build [env LINGQU]")
    add("--llama", action="append", default=os.environ.get("LLAMA", "").split(), metavar="NAME=FOLDER[,SWITCH]",
        help="folder with llama-bench and llama-batched-bench; the switch norepack; repeatable [env LLAMA]")
    add("--ik", action="append", default=os.environ.get("IK_LLAMA", "").split(), metavar="NAME=FOLDER[,SWITCH]",
        help="the same of ik_llama.cpp; the switch rtr: repack at load [env IK_LLAMA]")
    add("--candle", action="append", default=os.environ.get("CANDLE", "").split(), metavar="NAME=FOLDER",
        help="folder with candle-bench; dense models only [env CANDLE]")
    add("--jobs", default=",".join(measure.JOBS), help="which of: %(default)s")
    add("--rounds", type=int, default=3)
    add("--context-rounds", type=int, default=1, help="rounds of the job `context`, which takes peers a long time")
    add("--threads", type=int, default=os.cpu_count())
    add("--prompt", type=int, default=512, help="tokens of the prompt [512]")
    add("--generate", type=int, default=64, help="tokens decoded by one stream [64]")
    add("--streams", default="4,8,16", help="streams decoded together [4,8,16]")
    add("--stream-generate", type=int, default=32, help="tokens decoded by each of several streams [32]")
    add("--context", type=int, default=16384, help="tokens before those of the job `context` [16384]")
    add("--timeout", type=int, default=3600, help="seconds that one process gets [3600]")
    add("--out", type=pathlib.Path, default=pathlib.Path("benches"), metavar="FOLDER")
    add("--append", action="store_true", help="add to OUT/results.csv what is measured; without it, none may be there")
    add("--report", action="store_true", help="only write the report of OUT/results.csv")
    return parser.parse_args()


def contenders(args):
    """In the order of the report; Lingqu first."""
    found = []
    if args.lingqu:
        found.append(measure.Lingqu("lingqu", args.lingqu))
    peers = ((measure.Llama, args.llama), (measure.IkLlama, args.ik), (measure.Candle, args.candle))
    for kind, entries in peers:
        for entry in entries:
            name, _, rest = entry.partition("=")
            folder, *switches = rest.split(",")
            if unknown := set(switches) - set(kind.switches):
                sys.exit(f"{entry}: unknown switch {', '.join(unknown)}; {kind.family} has {', '.join(kind.switches)}")
            found.append(kind(f"{kind.family} {name}", pathlib.Path(folder).resolve(), switches))
    return found


class Results:
    """What was measured: rows of a CSV file, and beside it what they are about."""

    def __init__(self, folder):
        self.path, self.about_path = folder / "results.csv", folder / "about.json"
        self.rows = list(csv.DictReader(self.path.open())) if self.path.exists() else []
        about = {"machine": {}, "contenders": {}, "models": {}, "failed": {}}
        self.about = json.loads(self.about_path.read_text()) if self.about_path.exists() else about

    def add(self, model, job, round_, contender, figures):
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            for figure, value in figures.items():
                row = dict(zip(FIELDS, [now(), model, job, str(round_), contender, figure, f"{value:.6g}"]))
                self.rows.append(row)
                writer.writerow(row)

    def tell(self, about, name, value):
        self.about[about][name] = value
        if value is None:
            del self.about[about][name]
        self.about_path.write_text(json.dumps(self.about, indent=1) + "\n")

    def next_round(self, model, job):
        done = [int(r["round"]) for r in self.rows if r["model"] == model and r["job"] == job]
        return max(done, default=0) + 1

    def best(self, model, family):
        """The configuration of a peer that decodes fastest; None before that was measured."""
        table = report.Table(self.rows, model)
        return table.best("decode 1", family) if "decode 1" in table.values else None


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def run_round(args, model, path, job, taking_part, results):
    round_ = results.next_round(model, job)
    shift = (round_ - 1) % len(taking_part)
    for contender in [*taking_part[shift:], *taking_part[:shift]]:
        with_limits = isinstance(contender, measure.Lingqu)
        for each in [None, contender, None] if with_limits else [contender]:
            name = each.name if each else "machine"
            if each:
                machine.read_through(path)
            try:
                figures = each.run(job, path, args) if each else machine.limits(contender, args)
            except measure.Failed as error:
                results.tell("failed", f"{model}, {job}, {name}", str(error).replace(str(path), model))
                print(f"{model}: {job} {round_}: {name}: {error}", file=sys.stderr, flush=True)
                continue
            results.add(model, job, round_, name, figures)
            results.tell("failed", f"{model}, {job}, {name}", None)
            shown = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
            print(f"{model}: {job} {round_}: {name}: {shown}", flush=True)


def run_all(args, results):
    everyone = contenders(args)
    if not everyone or not args.model:
        sys.exit("nothing to measure: --model, --lingqu, --llama, --ik, --candle (see --help)")
    if results.rows and not args.append:
        sys.exit(f"{results.path} is there: --append adds to it; else name another --out, or remove it")
    models = [(name, pathlib.Path(path).resolve()) for name, _, path in (m.partition("=") for m in args.model)]
    for name, text in machine.describe(args.threads).items():
        results.tell("machine", name, text)
    for contender in everyone:
        results.tell("contenders", contender.name, contender.version())
    for model, path in models:
        if args.lingqu:
            results.tell("models", model, machine.facts_of(args.lingqu, path))
    for job in args.jobs.split(","):
        for model, path in models:
            facts = results.about["models"].get(model)
            taking_part = [c for c in everyone if c.does(job, facts)]
            if job == "context":
                best = {c.family: results.best(model, c.family) for c in taking_part}
                taking_part = [c for c in taking_part if best[c.family] in (None, c.name)]
            for _ in range(args.context_rounds if job == "context" else args.rounds):
                run_round(args, model, path, job, taking_part, results)


def main():
    args = arguments()
    args.lingqu = args.lingqu and pathlib.Path(args.lingqu).resolve()
    args.streams = [int(n) for n in args.streams.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out)
    if unknown := set(args.jobs.split(",")) - set(measure.JOBS):
        sys.exit(f"unknown job {', '.join(unknown)}: there are {', '.join(measure.JOBS)}")
    if not args.report:
        run_all(args, results)
    report.write(args.out, results)
    print(f"wrote {args.out}/RESULTS.md")


if __name__ == "__main__":
    main()
