#!/usr/bin/env bash
# Compiler launcher: clang 16 crashes on ik_llama.cpp's iqk_gemm_floats.cpp, so that file alone is compiled by g++.
set -euo pipefail
case " $* " in
*/iqk_gemm_floats.cpp\ *) ;;
*) exec "$@" ;;
esac
arguments=(-w)
for argument in "${@:2}"; do
    case $argument in
    -fopenmp=*) arguments+=(-fopenmp) ;;
    -Wunreachable-code-*) ;; # clang's
    *) arguments+=("$argument") ;;
    esac
done
exec g++ "${arguments[@]}"
