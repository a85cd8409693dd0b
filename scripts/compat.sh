#!/usr/bin/env bash
# Clients as their makers ship them, against a server with the default model: scripts/compat.sh [BINARY]
# Installs them into virtual environments under target/compat (the network is needed once; scripts/compat.sh --install
# does no more than that), starts the server on free ports and runs every scripts/compat/*.py, which read LINGQU_HTTP
# and LINGQU_GRPC (host:port) or --grpc. Then SIGTERM must end the server with status 0. The load client has an
# environment of its own: it wants other versions of what both use.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${1:-${CARGO_TARGET_DIR:-target}/release/lingqu}
home=$PWD/target/compat

environment() { # NAME PACKAGE...: made once for these packages
    local folder=$home/$1 packages=${*:2}
    [ "$(cat "$folder/installed" 2>/dev/null)" = "$packages" ] && return
    rm -rf "$folder"
    python3 -m venv "$folder"
    "$folder/bin/pip" install -q --disable-pip-version-check "${@:2}"
    echo "$packages" >"$folder/installed"
}
environment clients 'openai==3.*' 'tritonclient[grpc]==2.*' 'grpcio-reflection==1.*'
environment load 'aiperf==0.13.*'
[ "${1:-}" != --install ] || exit 0

log=$home/server.log
: >"$log" # not the one before
"$binary" serve --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 2>"$log" &
server=$!
trap 'kill -KILL "$server" 2>/dev/null || true' EXIT
address() { sed -n "s/^lingqu: $1 on //p" "$log"; }
until [ -n "$(address HTTP)" ]; do
    kill -0 "$server" || { cat "$log"; exit 1; }
    sleep 0.1
done
LINGQU_HTTP=$(address HTTP)
LINGQU_GRPC=$(address gRPC)
export LINGQU_HTTP LINGQU_GRPC LINGQU_AIPERF=$home/load/bin/aiperf

for script in scripts/compat/*.py; do
    echo "-- $script"
    "$home/clients/bin/python" "$script" --grpc "$LINGQU_GRPC" || { tail -20 "$log"; exit 1; }
done
kill -TERM "$server"
trap - EXIT
wait "$server"
echo 'all clients are served, and the server has drained'
