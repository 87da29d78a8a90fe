#!/bin/sh
# Builds bench/peers/sdcpp_stage.cpp against stable-diffusion.cpp's CPU build, compiled for this machine, below
# DIR (default build/peers). The sources come with the project's Python package. Prints the program's path.
#   bench/peers/sdcpp.sh [DIR]     PYTHON: an interpreter that has pip
set -eu
version=0.4.7 # of the package stable-diffusion-cpp-python
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/../../build/peers}
mkdir -p "$dir" && cd "$dir"
name=stable_diffusion_cpp_python-$version
[ -f "$name.tar.gz" ] ||
  ${PYTHON:-python3} -m pip download --quiet --no-deps --no-binary stable-diffusion-cpp-python "stable-diffusion-cpp-python==$version" >&2
[ -d "$name" ] || tar xzf "$name.tar.gz"
sd=$name/vendor/stable-diffusion.cpp
cmake -S "$sd" -B sdcpp -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DSD_WEBP=OFF -DSD_WEBM=OFF >/dev/null
cmake --build sdcpp --target stable-diffusion -j "$(nproc)" >&2
${CXX:-c++} -std=c++17 -O2 -DGGML_MAX_NAME=128 -I"$sd" -I"$sd/src" -I"$sd/include" -I"$sd/thirdparty" \
  -I"$sd/ggml/include" "$here/sdcpp_stage.cpp" -o sdcpp_stage sdcpp/libstable-diffusion.a \
  sdcpp/ggml/src/libggml.a sdcpp/ggml/src/libggml-cpu.a sdcpp/ggml/src/libggml-base.a -fopenmp -lpthread -ldl >&2
echo "$PWD/sdcpp_stage"
