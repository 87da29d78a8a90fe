# The front door. Everything is built by CMake below build/; see CMakePresets.json.
.DEFAULT_GOAL := all
BUILD := build/release
WAN := $(BUILD)/wan
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
DEMO_PROMPT ?= a red circle moving right on a navy background

.PHONY: all deps demo test asan fuzz bench lint format install clean

all: deps-build ## build the library and the command
	@cmake --preset release >/dev/null
	@cmake --build --preset release -j $(JOBS)

deps: deps-build deps-test deps-lint ## install what is missing
deps-%:
	@tools/install_deps.sh $*

demo: all ## make a video with the model that ships with the repository
	@$(WAN) generate --model models/shapes -p "$(DEMO_PROMPT)" --size 128x128 --frames 17 --steps 20 --seed 7 -o build/demo.mp4
	@$(WAN) frame build/demo.mp4 --index 0 -o build/demo-first.png
	@$(WAN) generate --model models/shapes -p "$(DEMO_PROMPT)" -i build/demo-first.png --size 128x128 --frames 17 --steps 20 --seed 8 -o build/demo-i2v.mp4
	@echo "Text to video:    $(CURDIR)/build/demo.mp4"
	@echo "Picture to video: $(CURDIR)/build/demo-i2v.mp4"

test: deps-test all ## all tests on the release build
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

asan: deps-build deps-test ## all tests under address and undefined-behaviour sanitizers
	@cmake --preset asan >/dev/null
	@cmake --build --preset asan -j $(JOBS)
	@ctest --test-dir build/asan --output-on-failure -j $(JOBS)

fuzz: deps-build deps-fuzz ## a short run of every fuzzer
	@tests/fuzz/run.sh

bench: all ## speed against the chip and against PyTorch (see bench/run.py)
	@bench/run.sh

lint: deps-lint ## format, layering, static analysis
	@clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' | grep -v /tables/)
	@tools/check_layers.py
	@tools/lint.sh

format: ## rewrite the sources in the house format
	@clang-format -i $$(git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' | grep -v /tables/)

install: all ## install below PREFIX (default /usr/local)
	@cmake --install $(BUILD) --prefix $(PREFIX)

clean: ## remove everything that was built
	rm -rf build
