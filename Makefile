# Two commands a person needs: `make demo` and `make test`. Both install what is missing into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread per test process: two processes on two cores do not fight over them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

.PHONY: help demo test lint types imports prove bench results method schema golden install clean

help: ## Show the targets.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

install: $(INSTALLED) ## Make .venv and install lanewise with pinned dependencies.

$(INSTALLED): pyproject.toml constraints/cpu-py311.txt tools/install.sh
	bash tools/install.sh "$(PYTHON)" "$(VENV)"

demo: $(INSTALLED) ## Ablate every feature of a small hybrid lane on this machine (about five minutes).
	$(BIN)/lanewise ablate nam56r-tiny --budget 5m

test: $(INSTALLED) lint types imports ## Everything continuous integration runs.
	$(PYTEST) -m "not slow and not gpu"

lint: $(INSTALLED) ## Format and lint checks.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED) ## Type check.
	$(BIN)/mypy

imports: $(INSTALLED) ## Direction of imports.
	$(BIN)/lint-imports

prove: $(INSTALLED) ## Long tests, then every proof at full counts (hours); writes docs/PROOF.md.
	$(PYTEST) -m "slow and not gpu"
	$(BIN)/python -m tools.prove

bench: $(INSTALLED) ## Time the program's own overheads and the ops; writes benchmarks/results.
	$(BIN)/python -m benchmarks.overheads

results: $(INSTALLED) ## Regenerate docs/RESULTS.md from the committed evidence.
	$(BIN)/python -m tools.results

method: $(INSTALLED) ## Put the tables of the committed simulation study into docs/METHOD.md.
	$(BIN)/python -m tools.method

schema: $(INSTALLED) ## Regenerate the committed JSON Schemas.
	$(BIN)/python -m lanewise.receipts.jsonschema

golden: $(INSTALLED) ## Freeze one document of every schema version that is written now (once per release).
	$(BIN)/python -m tools.golden

clean: ## Remove the environment and caches; receipts stay.
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
