"""Contenders: how each is asked to do a job, and what its answer says.

A job is one process. Its figures, by name: `prefill P` (of a prompt of P tokens), `decode N` (N streams, all together)
and `decode after C` (one stream, after C tokens) in tokens/s, `first token` in seconds from the start of the process to
its end, and `peak` in bytes of RAM.
"""

import json
import os
import subprocess
import tempfile
import threading
import time

JOBS = ["speed", "streams", "start", "context"]
STREAM_PROMPT = 32  # tokens of each of several streams: what is measured comes after them


class Failed(Exception):
    """The process did not answer as expected."""


def run(command, timeout_s, libraries=None, threads=None, with_errors=False):
    """(output, seconds, peak memory in bytes) of a process; `libraries`: where its shared libraries are; `threads`
    of a process that has no argument for them; the output ends with that of the error channel, if asked for. It runs in
    a folder of its own, where ik_llama.cpp leaves a log: all paths must be absolute."""
    environment = dict(os.environ)
    if libraries:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    if threads:
        environment["RAYON_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as cwd, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        try:
            words = [str(part) for part in command]
            process = subprocess.Popen(words, stdout=out, stderr=err, env=environment, cwd=cwd)
        except OSError as error:
            raise Failed(str(error)) from error
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        errors = err.read().decode(errors="replace")
        if process.returncode != 0:
            last = " / ".join(errors.strip().splitlines()[-3:])
            raise Failed(f"exit {process.returncode} after {seconds:.0f} s: {last}")
        text = out.read().decode(errors="replace")
        return text + errors if with_errors else text, seconds, usage.ru_maxrss * 1024


def parsed(text, what):
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failed(f"{what} did not print JSON: {text[:200]!r}") from error


class Lingqu:
    """`lingqu bench`, and `lingqu generate` for the first token."""

    family = "lingqu"

    def __init__(self, name, binary):
        self.name, self.binary = name, binary

    def does(self, job, facts):
        return True

    def command(self, command, path, args):
        return [self.binary, command, "--model", path, "--backend", "cpu", "--threads", args.threads]

    def run(self, job, path, args):
        if job == "start":
            command = self.command("generate", path, args) + ["--prompt", "the", "--max-tokens", 1]
            _, seconds, peak = run([*command, "--temperature", 0, "--max-context", 512], args.timeout)
            return {"first token": seconds, "peak": peak}
        shape = {
            "speed": ["--prompt", args.prompt, "--gen", args.generate, "--batch", 1],
            "streams": ["--prompt", STREAM_PROMPT, "--gen", args.stream_generate,
                        "--batch", ",".join(map(str, args.streams))],
            "context": ["--prompt", min(args.prompt, args.context), "--gen", args.stream_generate, "--batch", 1,
                        "--context", args.context],
        }[job]  # fmt: skip
        command = self.command("bench", path, args) + shape + ["--repeat", 1, "--json"]
        out, _, _ = run(command, args.timeout)
        answer = parsed(out, "lingqu bench")
        peak = answer["peak_memory_bytes"]
        figures = {} if peak is None else {"peak": peak}
        for row in answer["results"]:
            name = f"decode {row['batch']}"
            if job == "context":
                if row["context_tokens"] != args.context:
                    continue
                name = f"decode after {args.context}"
            elif job == "speed":
                figures[f"prefill {args.prompt}"] = row["prefill_tokens_per_s"]["median"]
            figures[name] = row["decode_tokens_per_s"]["median"]
            figures[f"bytes of {name}"] = row["expected_bytes_per_step"]
        return figures

    def version(self):
        return run([self.binary, "--version"], 60)[0].strip()


class Llama:
    """llama-bench and llama-batched-bench of llama.cpp, in one configuration."""

    family = "llama.cpp"
    no_warmup = ["--no-warmup"]
    # What a switch stands for in llama-bench and in llama-batched-bench.
    switches = {"norepack": (["--repack", 0], ["--no-repack"])}

    def __init__(self, name, folder, chosen):
        self.name, self.folder, self.chosen = name, folder, chosen

    def does(self, job, facts):
        return True

    def program(self, program, path, args):
        which = ["llama-bench", "llama-batched-bench"].index(program)
        extra = [part for switch in self.chosen for part in self.switches[switch][which]]
        return [self.folder / program, "-m", path, "-t", args.threads, *extra]

    def after(self, context, generate):
        return ["-p", 0, "-n", generate, "-d", context]

    def bench(self, path, args, shape):
        command = self.program("llama-bench", path, args) + shape + ["-r", 1, "-o", "json"]
        out, seconds, peak = run(command, args.timeout, self.folder)
        # ik_llama.cpp prints remarks on the same channel.
        return parsed(out[max(out.find("[\n"), 0) :], self.name), seconds, peak

    def run(self, job, path, args):
        if job == "streams":
            return self.streams(path, args)
        if job == "start":
            _, seconds, peak = self.bench(path, args, ["-p", 1, "-n", 0, *self.no_warmup])
            return {"first token": seconds, "peak": peak}
        if job == "context":
            shapes = {f"decode after {args.context}": self.after(args.context, args.stream_generate)}
        else:  # decoding after the prompt, as Lingqu's
            shapes = {
                f"prefill {args.prompt}": ["-p", args.prompt, "-n", 0],
                "decode 1": self.after(args.prompt, args.generate),
            }
        figures = {"peak": 0}
        for name, shape in shapes.items():
            [test], _, peak = self.bench(path, args, shape)
            figures[name] = test["avg_ts"]
            figures["peak"] = max(figures["peak"], peak)
        return figures

    def streams(self, path, args):
        context = max(args.streams) * (STREAM_PROMPT + args.stream_generate)
        command = self.program("llama-batched-bench", path, args) + ["-c", context, "-b", 2048, "-ub", 512]
        command += ["-npp", STREAM_PROMPT, "-ntg", args.stream_generate, "-npl", ",".join(map(str, args.streams))]
        # ik_llama.cpp prints its table on the error channel.
        out, _, peak = run(command, args.timeout, self.folder, with_errors=True)
        figures = {"peak": peak}
        for line in out.splitlines():  # | PP | TG | B | N_KV | T_PP | S_PP | T_TG | S_TG | ...
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            if len(cells) == 10 and cells[2].isdigit():
                figures[f"decode {cells[2]}"] = float(cells[7])
        if len(figures) == 1:
            raise Failed(f"{self.name}: no table from llama-batched-bench: {out[-200:]!r}")
        return figures

    def version(self):
        """Of the sources, where the build knows it."""
        name = self.folder / "VERSION"
        return name.read_text().strip() if name.exists() else "unknown version"


class IkLlama(Llama):
    """ik_llama.cpp: the same programs, of an older line, with arguments of their own."""

    family = "ik_llama.cpp"
    no_warmup = ["-w", 0]
    switches = {"rtr": (["-rtr", 1], ["-rtr"])}

    def after(self, context, generate):
        return ["-p", 0, "-n", 0, "-gp", f"{context},{generate}"]


class Candle:
    """`candle-bench` of peers/candle: candle-transformers' quantised models."""

    family = "candle"
    switches = {}

    def __init__(self, name, folder, _chosen):
        self.name, self.folder = name, folder

    def does(self, job, facts):
        """It has no quantised model with latent attention, and would keep 16k x 16k scores of each head."""
        is_dense = facts is None or facts["config"]["architecture"] in ("qwen2", "llama")
        return job != "context" and is_dense

    def run(self, job, path, args):
        shape = {
            "speed": ["--prompt", args.prompt, "--gen", args.generate],
            "streams": ["--prompt", STREAM_PROMPT, "--gen", args.stream_generate,
                        "--batch", ",".join(map(str, args.streams))],
            "start": ["--prompt", 1, "--gen", 0, "--no-warmup"],
        }[job]  # fmt: skip
        command = [self.folder / "candle-bench", path, *shape]
        out, seconds, peak = run(command, args.timeout, threads=args.threads)
        if job == "start":
            return {"first token": seconds, "peak": peak}
        figures = {"peak": peak}
        for row in parsed(out, "candle-bench")["results"]:
            if job == "speed":
                figures[f"prefill {args.prompt}"] = row["prefill_tokens_per_s"]
            figures[f"decode {row['batch']}"] = row["decode_tokens_per_s"]
        return figures

    def version(self):
        name = self.folder / "VERSION"
        return name.read_text().strip() if name.exists() else "unknown version"
