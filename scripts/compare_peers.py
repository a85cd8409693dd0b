#!/usr/bin/env python3
"""Lingqu, llama.cpp and ik_llama.cpp side by side on this machine, on the same GGUF files.

    compare_peers.py --model NAME=FILE --lingqu BINARY --llama NAME=FOLDER[,SWITCH] --ik NAME=FOLDER[,SWITCH]

Every figure comes from a fresh process. Contenders take turns, round by round, in an order that moves on with each
round; the machine's limits are measured before and after each round. What was measured is appended to OUT/results.csv
at once, so that a run that was cut off can be reported (`--report`) and continued; OUT/RESULTS.md and OUT/plots/*.svg
are made from the whole of it. Needs nothing but Python; `peers/build.sh` builds the contenders.
"""

import argparse
import csv
import datetime
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
    add("--report", action="store_true", help="only write the report of OUT/results.csv")
    return parser.parse_args()


def contenders(args):
    """In the order of the report; Lingqu first."""
    found = []
    if args.lingqu:
        found.append(measure.Lingqu("lingqu", pathlib.Path(args.lingqu)))
    for kind, entries in ((measure.Llama, args.llama), (measure.IkLlama, args.ik)):
        for entry in entries:
            name, _, rest = entry.partition("=")
            folder, *switches = rest.split(",")
            if unknown := set(switches) - set(kind.switches):
                sys.exit(f"{entry}: unknown switch {', '.join(unknown)}; {kind.family} has {', '.join(kind.switches)}")
            found.append(kind(f"{kind.family} {name}", pathlib.Path(folder), switches))
    return found


class Results:
    """Rows of a CSV file, written as they come."""

    def __init__(self, path):
        self.path = path
        self.rows = list(csv.DictReader(path.open())) if path.exists() else []

    def add(self, model, job, round_, contender, figures):
        is_new = not self.path.exists()
        time = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            for figure, value in figures.items():
                row = dict(zip(FIELDS, [time, model, job, str(round_), contender, figure, f"{value:.6g}"]))
                self.rows.append(row)
                writer.writerow(row)

    def next_round(self, model, job):
        done = [int(r["round"]) for r in self.rows if r["model"] == model and r["job"] == job]
        return max(done, default=0) + 1

    def best(self, model, family):
        """The configuration of a peer that decodes fastest; None before that was measured."""
        table = report.Table(self.rows, model)
        return table.best("decode 1", family) if "decode 1" in table.values else None


def run_round(args, model, path, job, round_, taking_part, results):
    shift = (round_ - 1) % len(taking_part)
    lingqu = next((c for c in taking_part if isinstance(c, measure.Lingqu)), None)
    for contender in [None, *taking_part[shift:], *taking_part[:shift], None]:
        name = contender.name if contender else "machine"
        machine.read_through(path)
        try:
            figures = contender.run(job, path, args) if contender else machine.limits(lingqu, args)
        except measure.Failed as error:
            print(f"{model}: {job} {round_}: {name}: {error}", file=sys.stderr, flush=True)
            continue
        results.add(model, job, round_, name, figures)
        shown = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
        print(f"{model}: {job} {round_}: {name}: {shown}", flush=True)


def main():
    args = arguments()
    args.streams = [int(n) for n in args.streams.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out / "results.csv")
    everyone = contenders(args)
    if not args.report:
        if not everyone or not args.model:
            sys.exit("nothing to measure: --model, --lingqu, --llama, --ik (see --help)")
        for job in args.jobs.split(","):
            for model, _, path in (entry.partition("=") for entry in args.model):
                best = {kind: results.best(model, kind.family) for kind in (measure.Llama, measure.IkLlama)}
                for _ in range(args.context_rounds if job == "context" else args.rounds):
                    taking_part = [
                        c for c in everyone
                        if job != "context" or best.get(type(c)) in (None, c.name)
                    ]  # fmt: skip
                    run_round(args, model, path, job, results.next_round(model, job), taking_part, results)
    facts = {model: machine.facts_of(args.lingqu, path) for model, _, path in (m.partition("=") for m in args.model)}
    about = machine.describe(args.threads, everyone)
    report.write(args.out, results.rows, about, facts, args)
    print(f"wrote {args.out}/RESULTS.md")


if __name__ == "__main__":
    main()
