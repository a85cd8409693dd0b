#!/usr/bin/env bash
# A server under overload for a long time: its memory must not grow, and every answer must be the one that the same
# request gets alone.
#
# usage: soak.sh [SECONDS]        default: one hour
#
#   LINGQU, LOADGEN   binaries                              [target/release/lingqu, target/release/lingqu-loadgen]
#   MODEL             checkpoint                            [the embedded model]
#   USERS             clients that ask without a pause      [64]
#   SEQUENCES, QUEUE  what the server computes and queues   [16, 32]: fewer than USERS, so that it must refuse
#   DISTINCT          different requests, over and over     [64]
#   CONTEXT           tokens of a sequence                  [1024]
#   GROWTH_MIB        memory that may come on top of what it was after a tenth of the time [64]
#   OUT               folder for rss.csv and the figures    [.cache/soak]
#   SERVE_ARGS        further arguments of `lingqu serve`   [none]
#
# Exits with 1 when memory grew beyond the bound, an answer differed or was lost, or the server did not end well.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-3600}
lingqu=${LINGQU:-target/release/lingqu} loadgen=${LOADGEN:-target/release/lingqu-loadgen}
out=${OUT:-.cache/soak} growth_mib=${GROWTH_MIB:-64} context=${CONTEXT:-1024}
every=$((seconds / 360 > 1 ? seconds / 360 : 1))
mkdir -p "$out" && rm -f "$out/summary.json"
problems=0
problem() { echo "soak: $*" >&2; problems=$((problems + 1)); }

model=()
[ -z "${MODEL:-}" ] || model=(--model "$MODEL")
# shellcheck disable=SC2086  # SERVE_ARGS holds several words
"$lingqu" serve "${model[@]}" --backend cpu --grpc-addr 127.0.0.1:0 --max-context "$context" \
    --max-sequences "${SEQUENCES:-16}" --max-queue "${QUEUE:-32}" ${SERVE_ARGS:-} 2>"$out/server.log" &
server=$!
trap 'kill -9 $server 2>/dev/null || true' EXIT
address=
while [ -z "$address" ]; do
    kill -0 $server 2>/dev/null || { cat "$out/server.log" >&2; exit 1; }
    sleep 0.2
    address=$(sed -n 's/^lingqu: gRPC on //p' "$out/server.log")
done

rss_kib() { awk '/^VmRSS:/ { print $2 }' "/proc/$server/status" 2>/dev/null || true; }
echo "seconds,rss_kib" >"$out/rss.csv"

"$loadgen" run --grpc "$address" --workload mixed --users "${USERS:-64}" --duration "$seconds" --temperature 0.8 \
    --context "$context" --document-tokens $((context / 2)) --distinct "${DISTINCT:-64}" --verify --label soak \
    --server-pid $server --out "$out" >"$out/load.log" 2>&1 &
load=$!

began=$SECONDS
while [ $((SECONDS - began)) -lt "$seconds" ] && kill -0 $server 2>/dev/null; do
    sleep "$every"
    echo "$((SECONDS - began)),$(rss_kib)" >>"$out/rss.csv"
done
wait $load || problem "$(tail -5 "$out/load.log")"

# A request is lost when it is neither answered nor refused.
if [ -e "$out/summary.json" ]; then
    lost=$(tr -d ' \n' <"$out/summary.json" |
        grep -oE '"errors":\{[^}]*\}' | grep -oE '"(cut_off|timeout|server|protocol|connect)":[0-9]+' || true)
    [ -z "$lost" ] || problem "requests were lost: $lost"
else
    problem "the load generator left no summary"
fi

peak() { awk -F, -v from="$1" -v to="$2" 'NR > 1 && $1 >= from && $1 <= to && $2 > most { most = $2 }
    END { print most + 0 }' "$out/rss.csv"; }
early=$(peak 0 $((seconds / 10 > 5 ? seconds / 10 : 5)))
late=$(peak $((seconds * 9 / 10)) "$((seconds + every))")
echo "memory: $((early / 1024)) MiB in the first tenth, $((late / 1024)) MiB in the last, $growth_mib MiB more allowed"
[ "$early" -gt 0 ] && [ "$late" -gt 0 ] || problem "memory was not seen"
[ $((late - early)) -le $((growth_mib * 1024)) ] || problem "memory grew"

kill -TERM $server 2>/dev/null || problem "the server was gone before its time"
wait $server || problem "the server ended with $?: $(tail -3 "$out/server.log")"
trap - EXIT
! grep -q panicked "$out/server.log" || problem "the server panicked: see $out/server.log"
cat "$out/load.log"
[ $problems -eq 0 ] && echo "soak: ok" || exit 1
