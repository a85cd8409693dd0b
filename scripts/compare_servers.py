#!/usr/bin/env python3
"""`lingqu serve` and llama-server side by side: the same file, cores, clients and requests.

    compare_servers.py --model NAME=FILE --lingqu BINARY --loadgen BINARY --llama NAME=LLAMA_SERVER[,ARGUMENT...]

Every job of every round starts a fresh server, so that none finds another's cache. Contenders take turns, in an order
that moves on with each round. Each figure is a row of OUT/serving.csv, written at once; OUT/serving.json says of what
machine, contenders and models. OUT/SERVING.md and OUT/plots/serving-*.svg are made from all of them: a run that was cut
off is continued with --append, --report only writes the report. Summaries of single runs stay in WORK. Needs nothing
but Python.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys

from peers import machine, measure
from serving import contenders, jobs, report

FIELDS = ["time", "model", "job", "round", "contender", "figure", "value"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="NAME=FILE", help="GGUF file and what to call it; repeatable")
    add("--lingqu", default=os.environ.get("LINGQU"), metavar="BINARY", help="release build [env LINGQU]")
    add("--loadgen", default=os.environ.get("LOADGEN"), metavar="BINARY", help="lingqu-loadgen [env LOADGEN]")
    add("--llama", action="append", default=os.environ.get("LLAMA_SERVER", "").split(),
        metavar="NAME=BINARY[,ARGUMENT...]", help="llama-server, and arguments of its own, as `unified=...,-kvu`; "
        "repeatable, the report takes the best [env LLAMA_SERVER]")  # fmt: skip
    add("--protocol", choices=["http", "grpc"], help="how Lingqu is asked [http if it serves that; peers: http]")
    add("--jobs", default=",".join(jobs.JOBS), help="which of: %(default)s")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count(), help="of the servers")
    add("--cores", metavar="N,N", help="cores on which servers and clients run [all]")
    add("--users", type=int, default=16, help="users of closed loops, and sequences that a server computes together")
    add("--rates", default="0.25,0.5,1,2", help="requests a second of open loops")
    add("--duration", type=float, default=60, help="seconds measured of each run")
    add("--warm-up", type=float, default=15, help="seconds before; runs on a cold server have none")
    add("--context", type=int, default=4096, help="tokens of one sequence")
    add("--document", type=int, default=8000, help="tokens of the shared document, whose jobs have a context to match")
    add("--scale", type=float, default=1.0, help="multiplies the lengths of hotline, draft, policy and azure")
    add("--vocabulary", type=int, default=4000, help="token ids of azure and fixed are below this")
    add("--ttft-ms", type=float, default=2000, help="bound of goodput")
    add("--tpot-ms", type=float, default=200, help="bound of goodput")
    add("--timeout", type=int, default=1800, help="seconds that one run gets")
    add("--out", type=pathlib.Path, default=pathlib.Path("benches"), metavar="FOLDER")
    add("--work", type=pathlib.Path, default=pathlib.Path(".cache/serving"), metavar="FOLDER")
    add("--append", action="store_true", help="add to OUT/serving.csv; without it, none may be there")
    add("--report", action="store_true", help="only write the report")
    return parser.parse_args()


class Results:
    def __init__(self, folder):
        self.path, self.about_path = folder / "serving.csv", folder / "serving.json"
        self.rows = list(csv.DictReader(self.path.open())) if self.path.exists() else []
        about = {"machine": {}, "contenders": {}, "settings": {}, "failed": {}}
        self.about = json.loads(self.about_path.read_text()) if self.about_path.exists() else about

    def add(self, model, job, round_, contender, figures):
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            for figure, value in figures.items():
                row = dict(zip(FIELDS, [report.now(), model, job, str(round_), contender, figure, f"{value:.6g}"]))
                self.rows.append(row)
                writer.writerow(row)

    def tell(self, about, name, value):
        self.about[about][name] = value
        if value is None:
            del self.about[about][name]
        self.about_path.write_text(json.dumps(self.about, indent=1, ensure_ascii=False) + "\n")

    def next_round(self, model, job):
        done = [int(r["round"]) for r in self.rows if r["model"] == model and r["job"] == job]
        return max(done, default=0) + 1


def run_one(args, contender, model, path, job, round_, chars_per_token):
    """Starts a server, loads it, ends it: the run's summary."""
    folder = args.work / model / job.name / f"{contender.name.replace(' ', '-')}-{round_}"
    folder.mkdir(parents=True, exist_ok=True)
    machine.read_through(path)
    with contender.serve(path, job.context, folder / "server.log") as server:
        command = [args.loadgen, "run", *server.target, "--server-pid", server.pid, "--label", contender.name]
        command += ["--context", job.context, "--vocabulary", args.vocabulary, "--scale", args.scale]
        command += ["--ttft-ms", args.ttft_ms, "--tpot-ms", args.tpot_ms, "--out", folder, *job.arguments]
        if chars_per_token:
            command += ["--chars-per-token", chars_per_token]
        try:
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=args.timeout)
        except subprocess.TimeoutExpired as error:
            raise measure.Failed(f"no end within {args.timeout} s") from error
        if done.returncode != 0:
            raise measure.Failed(f"the load generator: {done.stderr.strip()[-300:]}")
    return json.loads((folder / "summary.json").read_text())


def run_round(args, model, path, job, everyone, results, settled):
    round_ = results.next_round(model, job.name)
    shift = (round_ - 1) % len(everyone)
    for contender in [*everyone[shift:], *everyone[:shift]]:
        try:
            # The first to answer says how many characters a token holds: the others get the same text.
            summary = run_one(args, contender, model, path, job, round_, settled.get(model) if job.has_document else None)
        except (measure.Failed, OSError) as error:
            results.tell("failed", f"{model}, {job.name}, {contender.name}", str(error).replace(str(path), model))
            print(f"{model}: {job.name} {round_}: {contender.name}: {error}", file=sys.stderr, flush=True)
            continue
        if job.has_document:
            settled.setdefault(model, summary["workload"]["chars_per_token"])
        figures = report.figures(summary)
        results.add(model, job.name, round_, contender.name, figures)
        results.tell("failed", f"{model}, {job.name}, {contender.name}", None)
        shown = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
        print(f"{model}: {job.name} {round_}: {contender.name}: {shown}", flush=True)


def run_all(args, results):
    if args.cores:
        os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    everyone = contenders.found(args)
    if not everyone or not args.model or not args.loadgen:
        sys.exit("nothing to measure: --model, --loadgen, --lingqu, --llama (see --help)")
    if results.rows and not args.append:
        sys.exit(f"{results.path} is there: --append adds to it; else name another --out, or remove it")
    for name, text in machine.describe(args.threads).items():
        results.tell("machine", name, text)
    for contender in everyone:
        results.tell("contenders", contender.name, contender.version())
    settled = {}
    for job in jobs.chosen(args):
        results.tell("settings", job.name, job.text)
        for name, _, path in (model.partition("=") for model in args.model):
            for _ in range(args.rounds):
                run_round(args, name, pathlib.Path(path).resolve(), job, everyone, results, settled)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("lingqu", "loadgen"):
        if path := getattr(args, name):
            setattr(args, name, pathlib.Path(path).resolve())
    if unknown := set(args.jobs.split(",")) - set(jobs.JOBS):
        sys.exit(f"unknown job {', '.join(unknown)}: there are {', '.join(jobs.JOBS)}")
    results = Results(args.out)
    if not args.report:
        run_all(args, results)
    report.write(args, results)
    print(f"wrote {args.out}/SERVING.md")


if __name__ == "__main__":
    main()
