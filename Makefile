# Each target sets itself up in .venv; all it takes is Python 3.11 or later and git.
# Options go through ARGS: `make test ARGS="-k metrics"`, `make demo ARGS="--rounds 4"`.

PYTHON ?= python3
ARGS ?=

# A process a core, of one thread each; a file's tests stay together and share what they set up.
# One process, to read along or debug: make test ARGS="-n 0 -k name"
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# make fuzz: TIMES as many examples as a test asks for, LEAST at the fewest, again and again until
# MINUTES are over: make fuzz LEAST=2000 ARGS="-k withheld", make fuzz MINUTES=60
TIMES ?= 10
LEAST ?= 0
MINUTES ?= 0

# pytest's exit code when ARGS select none
NO_TESTS := 5

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-more fuzz bench lint clean

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Four hospitals train together on this machine; ends with a report
	$(BIN)/her2-deploy demo $(ARGS)

test: $(INSTALLED) ## Every test but the slow ones, with the same examples each time
	$(PYTEST) -m "not slow" $(ARGS)

test-all: test ## Every test, then property tests again with examples of their own
	@$(MAKE) --no-print-directory test-more

test-more: $(INSTALLED) ## What test-all adds to test: slow tests, random examples
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile=random $(ARGS) || test $$? -eq $(NO_TESTS)

fuzz: $(INSTALLED) ## Property tests, many random examples: TIMES=10 LEAST=0 MINUTES=0
	@end=$$(($$(date +%s) + 60 * $(MINUTES))); while \
		$(PYTEST) -m hypothesis --hypothesis-profile=random --timeout=0 \
			--examples-times=$(TIMES) --examples-least=$(LEAST) $(ARGS) || exit; \
		[ "$$(date +%s)" -lt "$$end" ]; do :; done

bench: $(INSTALLED) ## The benchmarks, one after another
	@set -e; for script in tests/benchmarks/bench_*.py; do \
		test -e "$$script" || { echo "tests/benchmarks holds no bench_*.py"; exit 1; }; \
		echo "== $$script"; $(BIN)/python "$$script" $(ARGS); \
	done

lint: $(INSTALLED) ## Style, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove .venv, caches and the demo's files
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf build dist demo runs/demo runs/demo-without-* runs/demo-leave-one-out.json
	find client common deploy server tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "make: error: expected Python 3.11 or later, got no '$(PYTHON)'"; \
		echo "hint: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: error: expected Python 3.11 or later, got $$($(PYTHON) -V 2>&1)"; \
		echo "hint: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: error: this Python cannot make virtual environments (ensurepip is missing)"; \
		echo "hint: Debian and Ubuntu keep it in a package: apt install python3-venv"; exit 1; }
	@echo "making .venv with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv .venv

# The first file to want is the interpreter alone: its age says nothing, hence order-only.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing her2-map and its dependencies into .venv: minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[dev]'
	@touch $@
