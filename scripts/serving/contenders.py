"""Servers that can be started, asked and ended."""

import contextlib
import dataclasses
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

from peers.measure import Failed

START_S, STOP_S = 300, 60  # seconds


@dataclasses.dataclass
class Server:
    pid: int
    # Arguments of the load generator.
    target: list


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(process, is_ready, log):
    """Until a server answers."""
    until = time.monotonic() + START_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > until:
            raise Failed(f"the server did not start: {log.read_text(errors='replace').strip()[-300:]!r}")
        time.sleep(0.2)


@contextlib.contextmanager
def running(command, log, is_ready, target):
    with log.open("wb") as file:
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(process, is_ready, log)
        yield Server(process.pid, target)
        if process.poll() is not None:
            raise Failed(f"the server ended with {process.returncode} under load")
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Lingqu:
    """`lingqu serve`."""

    def __init__(self, name, binary, args):
        self.name, self.binary, self.args = name, binary, args
        shown = subprocess.run([binary, "serve", "--help"], capture_output=True, text=True).stdout
        has_http = "--http-addr" in shown
        self.protocol = args.protocol or ("http" if has_http else "grpc")
        self.has_http = has_http

    def serve(self, path, context, log):
        grpc, http = free_port(), free_port()
        command = [self.binary, "serve", "--model", path, "--backend", "cpu", "--threads", self.args.threads]
        command += ["--max-context", context, "--max-sequences", self.args.users]
        command += ["--grpc-addr", f"127.0.0.1:{grpc}"]
        if self.has_http:
            command += ["--http-addr", f"127.0.0.1:{http}"]
        if self.protocol == "http":
            return running(command, log, lambda: healthy(http), ["--http", f"http://127.0.0.1:{http}"])
        # The port is bound before the model is loaded: the log says when it serves.
        is_ready = lambda: b"gRPC on" in log.read_bytes()  # noqa: E731
        return running(command, log, is_ready, ["--grpc", f"127.0.0.1:{grpc}"])

    def version(self):
        version = subprocess.run([self.binary, "--version"], capture_output=True, text=True).stdout.strip()
        return f"{version}, over {self.protocol}, `--max-sequences {self.args.users}`"


class Llama:
    """llama-server: a slot for each user, each with the whole context, so that it need not drop what it has cached;
    prompt caching in its slots (its default), matching pieces of at least 64 tokens wherever they stand
    (--cache-reuse), and its cache of prompts in RAM (its default, 8 GiB)."""

    def __init__(self, name, binary, extra, args):
        self.name, self.binary, self.extra, self.args = name, binary, extra, args

    def settings(self):
        return ["-np", self.args.users, "-t", self.args.threads, "-tb", self.args.threads, "--cache-reuse", 64,
                *self.extra]  # fmt: skip

    def serve(self, path, context, log):
        port = free_port()
        command = [self.binary, "-m", path, "--host", "127.0.0.1", "--port", port, "-c", context * self.args.users]
        command += self.settings()
        return running(command, log, lambda: healthy(port), ["--http", f"http://127.0.0.1:{port}"])

    def version(self):
        """Of the sources, where the build knows it."""
        file = self.binary.parent / "VERSION"
        version = file.read_text().strip() if file.exists() else "llama-server, unknown version"
        return f"{version}, `-c` {self.args.users} contexts, `{' '.join(map(str, self.settings()))}`"


def found(args):
    """In the order of the report; Lingqu first."""
    result = [Lingqu("lingqu", args.lingqu, args)] if args.lingqu else []
    for entry in args.llama:
        name, _, rest = entry.partition("=")
        binary, *extra = rest.split(",")
        result.append(Llama(f"llama-server {name}", pathlib.Path(binary).resolve(), extra, args))
    return result
