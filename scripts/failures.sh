#!/usr/bin/env bash
# Seeded failures of real processes (crates/server/tests/failures), and the table of docs/failures.md:
#   scripts/failures.sh [RUNS]     100 unless said
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked
export LINGQU_FAILURES_RUNS="${1:-100}" LINGQU_TEST_BINARY="${CARGO_TARGET_DIR:-$PWD/target}/release/lingqu"
exec cargo test -p lingqu --test failures --locked -- --nocapture
