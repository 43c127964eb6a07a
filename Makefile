# Every target makes what it needs; nothing but Python (with pip) and make has to be there before.
PYTHON ?= python3
# The torch that is installed first. `make test TORCH=` leaves the choice to pip (torch>=2.6, the newest).
TORCH ?= torch==2.13.0
# Further arguments of pytest and of the demo: `make test PYTEST_ARGS="-k geometry"`, `make demo DEMO_ARGS="--seed 1"`.
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?= --quick
# Benchmarks are the programs of their folder; the rest are modules that these share.
BENCHMARKS := $(shell grep -l '__main__' benchmarks/*.py)
# They need sae-dashboard, a GPU, or an hour.
BENCHMARKS_APART := benchmarks/dashboards.py benchmarks/step_gpu.py benchmarks/memory.py

VENV := .venv
VENV_DASHBOARD := .venv-dashboard
BIN := $(VENV)/bin
BIN_DASHBOARD := $(VENV_DASHBOARD)/bin
STAMP := $(VENV)/.installed
STAMP_DASHBOARD := $(VENV_DASHBOARD)/.installed

# What is mutated, and the tests that have to notice it.
MUTATE ?= $(addprefix diffing/,geometry.py classes.py latent_scaling.py scaling_result.py latent_statistics.py \
	top_contexts.py rotation.py pair_geometry.py active_latents.py linear_decoder.py sae_pass.py) $(addprefix training/,sparse/ties.py sparse/chunk_selection.py sparse/selection.py \
	parallel/kth_largest.py crosscoder.py batchtopk_crosscoder.py) activations/scaler.py hub/weights.py
MUTATION_TESTS ?= $(wildcard $(addprefix tests/,diffing/test_[acglprst]*.py diffing/test_devices.py \
	training/test_*crosscoder.py training/test_contract.py training/test_latent_layout.py training/test_unfolding.py \
	training/sparse/test_*selection.py training/sparse/test_forward.py training/parallel/test_kth_largest.py \
	activations/test_scaler.py hub/test_formats.py hub/test_weights.py hub/formats))

# What runs on the second stack only: dashboards, and the kernels for GPUs, which need Triton.
COVERAGE_DASHBOARD := tests/dashboards tests/training/sparse

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

# A Python without ensurepip (Debian's, without python3-venv) makes an empty environment, which its own pip fills.
define make_venv
	rm -rf $(1)
	$(PYTHON) -m venv $(1) || { rm -rf $(1); $(PYTHON) -m venv --without-pip $(1) && \
		$(PYTHON) -m pip --python $(1)/bin/python install pip; }
endef

.DELETE_ON_ERROR:
.PHONY: help install test test-fast test-dashboard coverage demo docs tutorials test-tutorials
.PHONY: bench bench-dashboard bench-gpu bench-memory
.PHONY: lint format types imports check mutation dist clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

# The stamp is made last, so a broken installation is started afresh and a finished one is not repeated.
$(STAMP): pyproject.toml
	$(call make_venv,$(VENV))
	$(if $(strip $(TORCH)),$(BIN)/python -m pip install "$(strip $(TORCH))")
	$(BIN)/python -m pip install -e ".[dev,docs,tutorials]"
	@touch $@

# No TORCH here: sae-dashboard brings torchvision, which needs the registry's own build of torch of the same date.
$(STAMP_DASHBOARD): pyproject.toml
	$(call make_venv,$(VENV_DASHBOARD))
	$(BIN_DASHBOARD)/python -m pip install -e ".[dashboard,dev]"
	@touch $@

install: $(STAMP) ## make the virtual environment .venv and install the package with [dev,docs,tutorials]

test: $(STAMP) ## run the whole test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(STAMP) ## run the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-dashboard: $(STAMP_DASHBOARD) ## run the core suite on the second stack (sae-dashboard, TransformerLens 2)
	$(BIN_DASHBOARD)/python -m pytest -m "not slow" $(PYTEST_ARGS)

coverage: $(STAMP) $(STAMP_DASHBOARD) ## lines and branches that the tests reach on both stacks together; fails below 95 %
	rm -f .coverage .coverage.*
	COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/python -m coverage run -m pytest $(PYTEST_ARGS)
	COVERAGE_FILE=$(CURDIR)/.coverage $(BIN_DASHBOARD)/python -m coverage run -m pytest $(COVERAGE_DASHBOARD)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --sort=cover --fail-under=95

demo: $(STAMP) ## train a crosscoder on two tiny models and show what fine-tuning changed
	$(BIN)/sae-lens-crosscoder demo $(DEMO_ARGS)

docs: $(STAMP) ## build the documentation into site/; a broken link or name is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tutorials: $(STAMP) ## execute all tutorials and write their notebooks
	$(BIN)/python tutorials/execute.py --write

test-tutorials: $(STAMP) ## execute all tutorials, writing no notebook
	$(BIN)/python tutorials/execute.py

bench: $(STAMP) ## run the benchmarks (BENCH_ARGS= for the long form)
	@set -e; for script in $(filter-out $(BENCHMARKS_APART),$(BENCHMARKS)); do \
		echo "== $$script"; $(BIN)/python $$script $(BENCH_ARGS); done

bench-dashboard: $(STAMP_DASHBOARD) ## run the benchmark of dashboards, which needs sae-dashboard
	$(BIN_DASHBOARD)/python benchmarks/dashboards.py $(BENCH_ARGS)

bench-gpu: $(STAMP) ## measure a training step on a CUDA device; status 2 without one (TORCH= for a CUDA build)
	$(BIN)/python benchmarks/step_gpu.py $(BENCH_ARGS)

bench-memory: $(STAMP) ## train for ten minutes (BENCH_ARGS= for an hour) and see that memory, files and threads stay
	$(BIN)/python benchmarks/memory.py $(BENCH_ARGS)

lint: $(STAMP) ## ruff: rules and format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## pyright, strict
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP) ## import-linter: the layers of ARCHITECTURE.md
	$(BIN)/lint-imports

check: lint types imports ## lint, types and imports

dist: $(STAMP) ## build the wheel and the sdist into dist/, and check what an index would say of them
	rm -rf dist
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

mutation: $(STAMP) ## mutation tests of diffing, folding and selection; MUTATE= and MUTATION_TESTS= choose (see CONTRIBUTING.md)
	$(BIN)/python -m pip install --quiet "mutmut>=3.8,<3.9"
	PYTHONPATH=tests $(BIN)/python -m pytest -q -s -p mutation -m "not slow" \
		$(addprefix --mutate sae_lens_crosscoder/,$(MUTATE)) $(PYTEST_ARGS) $(MUTATION_TESTS)

clean: ## remove the virtual environments and caches
	rm -rf $(VENV) $(VENV_DASHBOARD) .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov site dist
