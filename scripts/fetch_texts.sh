#!/usr/bin/env bash
# Brings two real English texts for accuracy.py into .cache/texts/ (git-ignored): persuasion.txt (Jane Austen's novel,
# 470 KB, public domain, from Debian's r-cran-janeaustenr) and jargon.txt (chapters 4 to 10 of the Jargon File, 58 KB,
# public domain, from Debian's jargon-text). Needs apt-get, dpkg and python3; where it finds nothing, `apt-get update`.
set -euo pipefail
cd "$(dirname "$0")/.."
dest=$PWD/.cache/texts
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
for package in r-cran-janeaustenr jargon-text; do
  apt-get download -qq "$package"
  dpkg -x "$package"_*.deb .
done
mkdir -p "$dest"
python3 - "$dest" <<'PYTHON'
import gzip, pathlib, struct, sys, zlib

dest = pathlib.Path(sys.argv[1])
jargon = gzip.open("usr/share/doc/jargon-text/jargon.txt.gz", "rt", encoding="utf-8").read().splitlines()
first, last = (next(i for i, line in enumerate(jargon) if line.split()[:2] == ["Chapter", f"{n}."]) for n in (4, 11))
(dest / "jargon.txt").write_text("\n".join(jargon[first:last]) + "\n")

# R's lazy-load file: a compressed object after another, each a list of lines: flags and length, big-endian, and bytes.
data = pathlib.Path("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
at = 0
while at < len(data):
    stream = zlib.decompressobj()
    book = stream.decompress(data[at + 4 :])  # 4 bytes: its length
    at = len(data) - len(stream.unused_data)
    here = book.find(b"Persuasion")
    if not 0 < here < 100:
        continue
    here, lines = here - 8, []
    while here + 8 <= len(book):
        (length,) = struct.unpack_from(">i", book, here + 4)
        lines.append(book[here + 8 : here + 8 + max(length, 0)].decode())
        here += 8 + max(length, 0)
    (dest / "persuasion.txt").write_text("\n".join(lines) + "\n")
PYTHON
ls "$dest"/*.txt
