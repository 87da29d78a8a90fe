#!/bin/sh
# Builds the benchmarks and runs the table. Set PEER_PYTHON to an interpreter with bench/peers/requirements.txt to
# have PyTorch measured beside; extra arguments go to bench/run.py.
set -eu
cd "$(dirname "$0")/.."
cmake --preset release >/dev/null
cmake --build --preset release >/dev/null
exec "${PEER_PYTHON:-python3}" bench/run.py ${PEER_PYTHON:+--peer-python "$PEER_PYTHON"} "$@"
