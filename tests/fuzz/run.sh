#!/usr/bin/env bash
# A short run of every fuzzer under libFuzzer and the sanitizers. FUZZ_RUNS inputs each (default 20000),
# at most a minute; a longer search is the same command with a larger number.
set -euo pipefail
cd "$(dirname "$0")/../.."
cmake -S . -B build/fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER=clang \
  -DCMAKE_CXX_COMPILER=clang++ -DWAN_FUZZ=ON -DWAN_TESTS=OFF -DWAN_ONEDNN=OFF -DWAN_CURL=OFF \
  -DWAN_CUDA=OFF -DWAN_FUZZ_RUNS="${FUZZ_RUNS:-20000}" >/dev/null
cmake --build build/fuzz --target fuzzers -j "${JOBS:-$(nproc)}"
ctest --test-dir build/fuzz -R '^fuzz/' --no-tests=error --output-on-failure
