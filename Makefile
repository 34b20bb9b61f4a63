# Every way to build, run and check polyloop. `make` alone lists the targets.
#
# Each CPython gets its own environment, .venv-<version>, and its own cargo target directory, so that going from one to
# the other rebuilds nothing. Stamp files inside them say what is up to date.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

SUPPORTED := 3.11 3.12 3.13

# The version that demo, lint and bench use, and that runs the whole suite first: make test PYTHON=3.13
PYTHON ?= $(firstword $(FOUND))
FOUND = $(eval FOUND := $(shell for v in $(SUPPORTED); do tools/find_python $$v >/dev/null && echo $$v; done))$(FOUND)

# Options for pytest: make test-python PYTEST='-k killed -x'
PYTEST ?=
SEEDS ?= 2000
KILL_ROUNDS ?= 20
SECONDS ?= 120
FUZZ_SECONDS ?= 120
STORM_TASKS ?= 20000
STORM_IDLE_KILLS ?= 500
BENCH ?=

LOCKED := $(if $(CI),--locked)
VENV = .venv-$(PYTHON)
BIN = $(VENV)/bin
CRATES := polyloop-shm polyloop-core polyloop-macros polyloop
RUST_SOURCES := Cargo.toml $(wildcard Cargo.lock) $(shell find crates -name '*.rs' -o -name Cargo.toml)

# Deferred, so that it is asked only by a target that needs it.
define need_python
	@test -n "$(filter $(SUPPORTED),$(PYTHON))" || { \
		echo "polyloop needs one of CPython $(SUPPORTED), with venv. Found: $(or $(FOUND),none). PYTHON='$(PYTHON)'" >&2; exit 1; }
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Options: PYTHON=3.12  PYTEST='-k name'  SEEDS=$(SEEDS)  KILL_ROUNDS=$(KILL_ROUNDS)  SECONDS=$(SECONDS)  BENCH='--rounds 7'"

.PHONY: demo
demo: build ## Build, then crawl the standard library on one loop and on a pool that loses a worker
	@$(BIN)/python -m polyloop.demo

.PHONY: build
build: ## Build the extension into the environment of PYTHON
	$(need_python)
	@$(MAKE) --silent --no-print-directory $(VENV)/built

.PHONY: wheel
wheel: build ## Build a wheel for PYTHON into dist/
	CARGO_TARGET_DIR=$(abspath target/python-$(PYTHON)) $(BIN)/maturin build --release $(LOCKED) --out dist \
		--interpreter $(BIN)/python

.PHONY: wheel-test
wheel-test: ## Build a wheel, install it into an empty environment, and run the examples from there (asks the package index)
	@rm -f dist/polyloop-*-cp$(subst .,,$(PYTHON))-*.whl
	@$(MAKE) --no-print-directory wheel PYTHON=$(PYTHON)
	$(BIN)/python tools/wheel_test.py dist/polyloop-*-cp$(subst .,,$(PYTHON))-*.whl

.PHONY: package
package: ## Pack the crates as they are to be published, and build each from its package
	cargo package $(LOCKED) $(CRATES:%=--package %) --all-features --allow-dirty --quiet --target-dir target/package
	@ls -s target/package/package/*.crate

.PHONY: test
test: test-rust test-python test-workers ## Rust tests, then Python tests on every supported CPython found

.PHONY: test-rust
test-rust: build ## Rust tests, those of Python workers with PYTHON
	POLYLOOP_TEST_PYTHON=$(abspath $(BIN))/python cargo test $(LOCKED) --workspace --exclude polyloop-python

.PHONY: test-workers
test-workers: ## Python workers of Rust programs, on the CPythons found besides PYTHON
	@for version in $(filter-out $(PYTHON),$(FOUND)); do \
		$(MAKE) --silent --no-print-directory .venv-$$version/built; \
		export POLYLOOP_TEST_PYTHON=$(CURDIR)/.venv-$$version/bin/python; \
		cargo test $(LOCKED) -p polyloop --test contract -- ::python::; \
		cargo test $(LOCKED) -p polyloop --test python; \
	done

.PHONY: test-python
test-python: ## Python tests on PYTHON, then on the others found
	$(need_python)
	@for version in $(PYTHON) $(filter-out $(PYTHON),$(FOUND)); do $(MAKE) --no-print-directory test-python-$$version; done
	@echo "Python tests passed on CPython: $(PYTHON) $(filter-out $(PYTHON),$(FOUND))"

.PHONY: $(SUPPORTED:%=test-python-%)
# What fails is run once more, by itself: some tests wait for what a busy machine is slow with. Both runs are shown.
$(SUPPORTED:%=test-python-%): test-python-%: .venv-%/built
	.venv-$*/bin/python -m pytest $(PYTEST) || \
		.venv-$*/bin/python -m pytest --last-failed --last-failed-no-failures none $(PYTEST)

.PHONY: lint
lint: build ## Format, clippy, ruff, types, stubs, and the rule of who may import whom
	cargo fmt --all --check
	PYO3_PYTHON=$(abspath $(BIN))/python cargo clippy $(LOCKED) --workspace --all-targets \
		--features polyloop/tracing,polyloop/anyhow,polyloop/bytes,polyloop/python -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps -p polyloop --features tracing,anyhow,bytes,python
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	@$(MAKE) --silent --no-print-directory $(VENV)/pyright
	$(BIN)/basedpyright --level error
	$(BIN)/python -m mypy.stubtest polyloop._core --mypy-config-file pyproject.toml
	$(BIN)/python tools/check_imports.py

.PHONY: format
format: build ## Rewrite sources in the project's format
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Two preemptions find nearly every ordering mistake and end in minutes; loom-long takes three.
.PHONY: loom loom-long
loom: LOOM_MAX_PREEMPTIONS := 2
loom: ## Model-check board, ring and wake over all interleavings, bounded
loom-long: LOOM_MAX_PREEMPTIONS := 3
loom-long: ## The same with a wider bound
loom loom-long:
	LOOM_MAX_PREEMPTIONS=$(LOOM_MAX_PREEMPTIONS) RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom \
		cargo test $(LOCKED) -p polyloop-shm --release --test loom

.PHONY: loom-mutants
loom-mutants: ## Weaken every ordering on purpose, and see a model fail for each (minutes)
	tools/weaken.py

.PHONY: simulate simulate-long
simulate: ## Run the manager and its workers through SEEDS seeded worlds with faults
	cargo run $(LOCKED) --release -p polyloop-sim -- --seeds $(SEEDS)
simulate-long: SEEDS := 100000
simulate-long: simulate ## The same through 100,000 seeds

.PHONY: kill-test kill-test-long
kill-test: ## Two real processes, SIGKILL and SIGSTOP at every step of the queues, KILL_ROUNDS times
	POLYLOOP_KILL_ROUNDS=$(KILL_ROUNDS) cargo test $(LOCKED) --release -p polyloop --test kill -- --nocapture
kill-test-long: KILL_ROUNDS := 1000
kill-test-long: kill-test ## The same, 1,000 times

.PHONY: storm
storm: build ## STORM_TASKS tasks under a SIGKILL each 50 ms, STORM_IDLE_KILLS idle workers killed; prints figures
	POLYLOOP_STORM_TASKS=$(STORM_TASKS) POLYLOOP_STORM_IDLE_KILLS=$(STORM_IDLE_KILLS) \
		$(BIN)/python -m pytest -s tests/python/test_storm.py $(PYTEST)

.PHONY: soak
soak: build ## SECONDS of everything at once on each start method; fails if the client grows or a call hangs
	$(BIN)/python tools/soak.py --seconds $(SECONDS)

# Coverage for libFuzzer, which stable Rust can do by itself: no nightly, no sanitizer.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
FUZZ_TARGETS := frames ring board queue rogue
FUZZ_TRIPLE = $(shell rustc -vV | sed -n 's/^host: //p')

.PHONY: fuzz
fuzz: ## FUZZ_SECONDS of libFuzzer on each of FUZZ_TARGETS; what it finds is left in fuzz/artifacts/ (needs a C++ compiler)
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build $(LOCKED) --release --manifest-path fuzz/Cargo.toml --target $(FUZZ_TRIPLE) \
		--target-dir target/fuzz
	@mkdir -p fuzz/artifacts
	@for name in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/corpus/$$name; \
		echo "fuzz $$name, $(FUZZ_SECONDS) s"; \
		target/fuzz/$(FUZZ_TRIPLE)/release/$$name -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 \
			-max_len=512 -len_control=0 -verbosity=0 -artifact_prefix=fuzz/artifacts/$$name- target/fuzz/corpus/$$name; \
	done

# Each of these leaves docs/performance.md with the figures it has taken.
.PHONY: bench
bench: build $(VENV)/bench-tools ## Rivals side by side, against the goals; writes benches/results/ (minutes; wants a quiet machine)
	$(BIN)/python benches/bench.py $(BENCH)
	@$(BIN)/python benches/performance_page.py

.PHONY: bench-scaling
bench-scaling: build $(VENV)/bench-tools ## How cost grows with items, workers and payload, as plots; writes benches/results/ (minutes)
	$(BIN)/python benches/scaling.py $(BENCH)
	@$(BIN)/python benches/performance_page.py

.PHONY: profile
profile: build ## Where the time of client and worker goes for each item; writes benches/results/ (needs perf)
	$(BIN)/python benches/profile_items.py $(BENCH)
	@$(BIN)/python benches/performance_page.py

.PHONY: instructions
instructions: build ## Count instructions on the hot paths; fails where one costs more than its baseline (needs valgrind)
	cargo build $(LOCKED) --release --package polyloop-paths
	$(BIN)/python benches/instructions.py $(BENCH)
	@$(BIN)/python benches/performance_page.py

.PHONY: performance-page
performance-page: $(VENV)/installed ## Put the last results into docs/performance.md
	@$(BIN)/python benches/performance_page.py $(BENCH)

.PHONY: bench-queue
bench-queue: build ## polyloop.Queue and multiprocessing.Queue side by side; writes benches/results/
	$(BIN)/python benches/queues.py $(BENCH)

.PHONY: bench-rust
bench-rust: ## A no-op on other processes from Rust: polyloop, pipes, procspawn, rayon (minutes to build)
	cargo run $(LOCKED) --release --manifest-path benches/pools/Cargo.toml --target-dir target/bench -- $(BENCH)

.PHONY: bench-rust-python
bench-rust-python: build ## Python called from Rust: PythonPool, and PyO3 under one GIL (minutes to build)
	PYO3_PYTHON=$(abspath $(BIN))/python POLYLOOP_TEST_PYTHON=$(abspath $(BIN))/python \
	LD_LIBRARY_PATH=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))') \
		cargo run $(LOCKED) --release --manifest-path benches/python/Cargo.toml --target-dir target/bench-python -- $(BENCH)

.PHONY: fault-table
fault-table: build ## Faults on polyloop, aiomultiprocess, ProcessPoolExecutor and pebble; writes docs/faults.md (minutes)
	$(BIN)/python benches/fault_table.py $(BENCH)

.PHONY: docs
docs: build ## Build the pages into target/site/
	@$(MAKE) --silent --no-print-directory $(VENV)/docs-tools
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs target/site
	@echo "documentation: target/site/index.html"

.PHONY: lock
lock: ## Resolve requirements/*.in again into locked files
	$(need_python)
	@$(MAKE) --silent --no-print-directory $(VENV)/lock-tools
	@for name in dev bench docs lock pyright; do \
		(cd requirements && UV_CUSTOM_COMPILE_COMMAND="make lock" ../$(BIN)/uv pip compile --quiet --universal --upgrade \
			--python-version $(firstword $(SUPPORTED)) --generate-hashes --no-emit-index-url $$name.in -o $$name.txt); \
	done

.PHONY: clean
clean: ## Remove everything built
	rm -rf target dist .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f python/polyloop/_core.*.so
	find python tests tools benches examples -name __pycache__ -type d -prune -exec rm -rf {} +

.venv-%/installed: requirements/dev.txt
	@python=$$(tools/find_python $*) || { echo "no CPython $* with venv found" >&2; exit 1; }; \
	echo "creating .venv-$*"; \
	"$$python" -m venv --clear .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

.venv-%/lock-tools: requirements/lock.txt .venv-%/installed
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	@touch $@

.venv-%/bench-tools: requirements/bench.txt .venv-%/installed
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	@touch $@

# Only for lint, as it brings a JavaScript engine along.
.venv-%/pyright: requirements/pyright.txt .venv-%/installed
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/pyright.txt
	@touch $@

.venv-%/docs-tools: requirements/docs.txt .venv-%/installed
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

.PRECIOUS: .venv-%/installed
# The package itself is linked, not copied: only a change to Rust, or to what the package declares, builds again.
.venv-%/built: .venv-%/installed pyproject.toml $(RUST_SOURCES)
	env -u CONDA_PREFIX VIRTUAL_ENV=$(abspath .venv-$*) CARGO_TARGET_DIR=$(abspath target/python-$*) \
		.venv-$*/bin/maturin develop --release $(LOCKED)
	@touch $@
