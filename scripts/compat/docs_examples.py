"""Every example of README.md, docs/http.md and docs/grpc.md against a running server at LINGQU_HTTP and LINGQU_GRPC (host:port).

curl runs as it stands. grpcurl is not needed: its commands are read here and called through the server's reflection, as it
would. Python examples run too. Whatever is no success, or says nothing, fails.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

ROOT = Path(__file__).resolve().parents[2]
HTTP, GRPC = os.environ["LINGQU_HTTP"], os.environ["LINGQU_GRPC"]
TIMEOUT_S = 120


def commands(text, program):
    """Of indented or fenced examples, those that call `program`, as lists of arguments."""
    lines = re.findall(r"^(?:    )?(.*)$", text, re.MULTILINE)
    found = []
    while lines:
        command = lines.pop(0)
        if not command.startswith(program + " "):
            continue
        while command.endswith("\\") or command.count("'") % 2:
            command = command.removesuffix("\\") + "\n" + lines.pop(0)
        found.append(shlex.split(command))
    return found


def curl(arguments):
    arguments = [argument.replace("127.0.0.1:8080", HTTP) for argument in arguments]
    ask = [*arguments, "--show-error", "--max-time", str(TIMEOUT_S), "--write-out", "\n%{http_code}"]
    run = subprocess.run(ask, capture_output=True, text=True)
    body, _, status = run.stdout.rpartition("\n")
    assert run.returncode == 0 and status.startswith("2"), (arguments, run.stdout, run.stderr)
    assert body and '"error"' not in body, (arguments, body)


def grpcurl(arguments):
    channel = grpc.insecure_channel(GRPC)
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    arguments = [argument for argument in arguments[1:] if argument != "-plaintext"]
    body = "{}"
    if arguments[0] == "-d":
        body, arguments = arguments[1], arguments[2:]
    address, *symbols = arguments
    assert address in ("localhost:50051", "127.0.0.1:50051") and symbols, arguments
    if symbols[0] in ("describe", "list"):
        pool.FindMessageTypeByName(symbols[1])
        return
    service, name = symbols[0].split("/")
    method = pool.FindServiceByName(service).FindMethodByName(name)
    asked = json_format.Parse(body, message_factory.GetMessageClass(method.input_type)(), descriptor_pool=pool)
    reply = message_factory.GetMessageClass(method.output_type)
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = kind(f"/{service}/{name}", type(asked).SerializeToString, reply.FromString)
    answer = call(asked, timeout=TIMEOUT_S)
    replies = list(answer) if method.server_streaming else [answer]
    assert any(len(json_format.MessageToDict(reply, descriptor_pool=pool)) for reply in replies), (arguments, replies)


def python(source):
    source = source.replace("127.0.0.1:50051", GRPC).replace("127.0.0.1:8080", HTTP)
    exec(compile(source, "docs", "exec"), {"__name__": "example"})


for file, curls, grpcurls, pythons in [("README.md", 1, 1, 0), ("docs/http.md", 3, 0, 0), ("docs/grpc.md", 0, 15, 1)]:
    text = (ROOT / file).read_text()
    examples = [
        (curl, commands(text, "curl"), curls),
        (grpcurl, commands(text, "grpcurl"), grpcurls),
        (python, re.findall(r"```python\n(.*?)```", text, re.DOTALL), pythons),
    ]
    for call, found, least in examples:
        assert len(found) >= least, f"{file}: {len(found)} examples of {call.__name__} were found"
        for example in found:
            call(example)
    print(f"{file}: " + ", ".join(f"{len(found)} of {call.__name__}" for call, found, _ in examples) + ": ok")
