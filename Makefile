# One command per wish; `make help` lists them. Everything is incremental.
SHELL := /bin/bash
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local

# Lets ccache store and reuse the precompiled header and what includes it.
export CCACHE_SLOPPINESS := pch_defines,time_macros,include_file_mtime,include_file_ctime

# A libtorch of your own: make Torch_DIR=... or CMAKE_PREFIX_PATH=... (also from the environment).
export Torch_DIR CMAKE_PREFIX_PATH
configure = cmake --preset $(1) $(foreach v,Torch_DIR CMAKE_PREFIX_PATH,$(if $($(v)),-D$(v)="$($(v))"))
build = $(if $(wildcard build/$(1)/build.ninja),,$(call configure,$(1)) &&) cmake --build build/$(1) -j$(JOBS) $(2)

.PHONY: build
build: setup ## Build everything into build/release
	@$(call build,release)

.PHONY: setup
setup: ## Install what is missing: Debian packages, .venv, test assets
	@tools/setup

.PHONY: demo
demo: setup ## Build the program alone, ask the built-in model about a picture and see what was pruned
	@$(call build,release,--target glimpse_cli)
	@tools/demo

.PHONY: test
test: build ## Run all tests
	@ctest --test-dir build/release --output-on-failure -j2

.PHONY: test-clients
test-clients: build ## Run unmodified lmms-eval against the server; fetches what it needs (330 MB) into build/lmms-eval
	@tools/setup_lmms_eval
	@ctest --test-dir build/release --output-on-failure -R '^lmms_eval$$'

.PHONY: bench
bench: build ## Run the benchmarks (up to an hour on two cores, 40 GB of disk; tools/bench --quick: less); results in build/bench.json
	@tools/bench

.PHONY: bench-serve
bench-serve: build ## Load the server with pruning and without (half an hour on two cores, 10 GB); results in build/bench_serve.json
	@tools/bench_serve

.PHONY: bench-peers
bench-peers: build ## Time prefill, decoding and whole answers beside llama.cpp, OpenVINO and transformers; fetches them (50 GB, two and a half hours on two cores)
	@tools/bench_peers --rounds 2
	@tools/bench_peers --answers --visual 1024 --rounds 2
	@tools/bench_peers --answers --visual 4096 --rounds 1 --json build/bench_answers_4096.json

.PHONY: benchmark
benchmark: build ## Compare all pruning methods on the built-in model; results in docs/benchmark
	@tools/benchmark

.PHONY: cuda
cuda: export PATH := $(PATH):/usr/local/cuda/bin
cuda: setup ## Build for CUDA into build/cuda, against the libtorch that tools/setup_cuda fetches; needs nvcc, no GPU
	@tools/setup_cuda
	@$(call build,cuda)

.PHONY: gpu-bundle
gpu-bundle: setup ## Pack the CUDA build and its tests' data for a bare GPU machine, into build/gpu-bundle
	@tools/gpu_bundle

.PHONY: check
check: build ## Check format, includes, file lengths, duplicates, documents (FULL=1: clang-tidy and README commands too)
	@tools/check $(if $(FULL),--full)

# Instrumented kernels are slow: the engine's tests alone take 20 minutes.
sanitized = ctest --test-dir build/$(1) --output-on-failure -j2 --timeout 14400 -L 'unit|golden' $(if $(ONLY),-R '^$(ONLY)$$')

.PHONY: asan
asan: setup ## Build and run the unit and golden tests (ONLY=engine: these) with address and undefined-behaviour sanitizers
	@$(call build,asan)
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(call sanitized,asan)

# libtorch and libgomp are not instrumented, so parallel regions are run by one thread: their barriers would
# be invisible and every region would look like a race.
.PHONY: tsan
tsan: setup ## Build and run the unit and golden tests (ONLY=engine: these) with the thread sanitizer
	@$(call build,tsan)
	@OMP_NUM_THREADS=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
	  $(call sanitized,tsan)

# Many clients against the server, polite and not: 10,000 requests under the address and undefined-behaviour sanitizers, then 2,000 under
# the thread sanitizer.
soak = cd tests/cli && GLIMPSE=$(CURDIR)/build/release/bin/glimpse_$(1) python3 -B soak_serve.py --requests $(2)
.PHONY: soak
soak: build ## Soak the server under the sanitizers (an hour on two cores)
	@$(call build,release,--target glimpse_asan glimpse_tsan)
	@ASAN_OPTIONS=quarantine_size_mb=16 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 $(call soak,asan,10000)
	@OMP_NUM_THREADS=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1:suppressions=$(CURDIR)/tests/cli/tsan.supp $(call soak,tsan,2000)

.PHONY: format
format: ## Format all C++ files
	@git ls-files '*.h' '*.cpp' | xargs clang-format -i

.PHONY: install
install: build ## Install to PREFIX (/usr/local), below DESTDIR
	@cmake --install build/release --prefix $(PREFIX)

.PHONY: clean
clean: ## Remove build/ (not .venv)
	@rm -rf build

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13
