"""What the machine is, and how fast its memory and its matrix unit are at this moment."""

import json
import pathlib
import platform
import re

from .measure import Failed, run


def limits(lingqu, args):
    """GB/s of reading by all threads and, where there are tiles, TOPS of int8 products: `lingqu devices --measure`."""
    out, _, _ = run([lingqu.binary, "devices", "--measure"], args.timeout)
    line = next((line for line in out.splitlines() if line.startswith("cpu ")), "")
    figures = {}
    for name, pattern in [("read GB/s", r"([\d.]+) GB/s read"), ("int8 TOPS", r"([\d.]+) TOPS int8")]:
        if found := re.search(pattern, line):
            figures[name] = float(found.group(1))
    if not figures:
        raise Failed(f"no limits in {line!r}")
    return figures


def read_through(path):
    """Brings a file back to the page cache: a contender that copies its weights may have driven it out."""
    buffer = bytearray(1 << 24)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def facts_of(lingqu, path):
    """`lingqu inspect` of a model."""
    return json.loads(run([lingqu, "inspect", path, "--json"], 300)[0])


def describe(threads):
    """For the head of the report."""
    cpu = pathlib.Path("/proc/cpuinfo")
    text = cpu.read_text() if cpu.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    flags = set(re.search(r"flags\s*: (.*)|$", text).group(0).split())
    wanted = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"]
    memory = pathlib.Path("/proc/meminfo")
    gib = int(re.search(r"MemTotal:\s*(\d+)", memory.read_text()).group(1)) / 2**20 if memory.exists() else 0
    return {
        "Machine": f"{name.group(1) if name else platform.processor()}, {threads} threads, {gib:.0f} GiB",
        "Instructions": " ".join(flag for flag in wanted if flag in flags) or "none of AVX2, AVX512, AMX",
        "System": f"{platform.system()} {platform.release()}",
    }
