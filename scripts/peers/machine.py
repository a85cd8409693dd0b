"""What the machine is, and how fast its memory and its matrix unit are at this moment."""

import datetime
import json
import pathlib
import platform
import re

from .measure import Failed, run


def limits(lingqu, args):
    """GB/s of reading by all threads and, where `lingqu devices --measure` tells, TOPS of int8 products."""
    if lingqu is None:
        raise Failed("limits are measured by lingqu: --lingqu is missing")
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
    """`lingqu inspect` of a model; None without lingqu."""
    if not lingqu:
        return None
    return json.loads(run([lingqu, "inspect", path, "--json"], 300)[0])


def describe(threads, contenders):
    """Lines for the head of the report."""
    cpu = pathlib.Path("/proc/cpuinfo")
    text = cpu.read_text() if cpu.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    flags = set(re.search(r"flags\s*: (.*)|$", text).group(0).split())
    wanted = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"]
    memory = pathlib.Path("/proc/meminfo")
    gib = int(re.search(r"MemTotal:\s*(\d+)", memory.read_text()).group(1)) / 2**20 if memory.exists() else 0
    lines = [
        ("Date", datetime.date.today().isoformat()),
        ("Machine", f"{name.group(1) if name else platform.processor()}, {threads} threads, {gib:.0f} GiB"),
        ("Instructions", " ".join(flag for flag in wanted if flag in flags) or "none of AVX2, AVX512, AMX"),
        ("System", f"{platform.system()} {platform.release()}"),
    ]
    for contender in contenders:
        try:
            version = contender.version()
        except Failed as error:
            version = str(error)
        lines.append((contender.name, version))
    return lines
