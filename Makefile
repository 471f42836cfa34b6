# `make quickstart` and `make test` install everything on a machine that has Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LAB := $(VENV)/.lab

.PHONY: install quickstart smollm2 lab notebooks test audit bench docs lint clean

install: $(STAMP)

# Install torch first, pinned: an open range would fetch gigabytes of CUDA packages on a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/lightning run quickstart

# JupyterLab is installed only on demand.
$(LAB): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebooks]'
	touch $(LAB)

# Fetch a real pretrained model of 135M parameters into the user's cache, for backbone.path=smollm2.
smollm2: $(STAMP)
	$(BIN)/lightning fetch smollm2

lab: $(LAB)
	$(BIN)/jupyter lab notebooks

notebooks: $(LAB)
	$(BIN)/python -m pytest -m slow -s tests/repo/test_notebooks.py

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Build the site into build/docs: a page opens as a file; for the search run `python3 -m http.server --directory build/docs`.
# Then run all code and commands that the pages show. (No --quiet: it would hide the warnings that --strict counts.)
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs.yml
	$(BIN)/python -m pytest -m pages --numprocesses auto tests/repo/test_documents.py tests/repo/test_readme.py

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(VENV)/.docs

# Measure ratios against HF Trainer, transformers' generate and a bare loop; on a machine that does nothing else.
bench: $(STAMP)
	$(BIN)/python tests/performance $(PARTS)

audit: $(STAMP)
	$(BIN)/python tests/audit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
