#!/bin/sh
# Builds the benchmarks and runs the table. PEER_PYTHON: an interpreter with bench/peers/requirements.txt, to have
# PyTorch measured in turns with us; SDCPP: the program made by bench/peers/sdcpp.sh. Arguments go to bench/run.py.
set -eu
cd "$(dirname "$0")/.."
cmake --preset release -DWAN_BENCH=ON >/dev/null
cmake --build --preset release -j "$(nproc)" >/dev/null
exec python3 bench/run.py ${PEER_PYTHON:+--peer-python "$PEER_PYTHON"} ${SDCPP:+--sdcpp "$SDCPP"} "$@"
