#!/usr/bin/env bash
# On a machine with an accelerator: builds; checks every op on it against the cpu (sampling among them), the golden models,
# and that it writes what the cpu writes; then measures the ops at DeepSeek-R1's shapes against the speed of its memory.
# No GPU toolkit is needed, only the driver and its compiler library.
#
#   scripts/gpu_check.sh cuda|dcu [figures.txt]     (emu: to see that this script works)
#
# With torch for that device it measures the same work in PyTorch, too (skipped otherwise).
set -euo pipefail
row=${1:?usage: gpu_check.sh cuda|dcu|emu [figures.txt]}
figures=${2:-gpu_figures_$row.txt}
cd "$(dirname "$0")/.."

cargo build --release -p lingqu -p lingqu-backend-gpu --bin lingqu --example measure
target=${CARGO_TARGET_DIR:-target}/release
LINGQU_TEST_DEVICE=$row cargo test --release -p lingqu-backend-gpu --test device -- --nocapture
LINGQU_TEST_DEVICE=$row cargo test --release -p lingqu-backend-gpu --test golden device -- --nocapture

# The same reply on both; where two tokens are about equally likely they may part, so this is shown, not demanded.
write() { "$target/lingqu" generate --backend "$1" --prompt 秋天 --max-tokens 24 --temperature 0; }
echo "on $row: $(write "$row")"
echo "on cpu: $(write cpu)"
{
    date -u +%FT%TZ
    git rev-parse HEAD
    if [ "$row" = cuda ]; then nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv || true; fi
    "$target/lingqu" devices --measure
    "$target/examples/measure" "$row"
    if python3 -c 'import torch' 2>/dev/null; then
        if [ "$row" = emu ]; then python3 scripts/gpu_peers.py --tiny; else python3 scripts/gpu_peers.py; fi
    else
        echo "PyTorch is not installed: no peers measured"
    fi
} | tee "$figures"
