# make demo    train, compare, merge on the embedded tiny base; nothing to download but Python packages
# make test    install and run all CPU tests
# make test-real  run what needs real data that is not part of the repository, from the folder in GLMTUNE_REAL_DATA
# make interop  compare with llama.cpp, TRL, lm-evaluation-harness and the wheel, in an environment of its own
# make docs    build the documentation site into site/
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-gpu test-real interop lint docs install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("glmtune needs Python 3.11 or newer; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "1/2 creating the virtual environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@echo "2/2 installing torch, transformers and the rest into $(VENV); this takes minutes (a mirror: PIP_INDEX_URL=...) ..."
	@$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "done; to use it: source $(BIN)/activate"

demo: $(STAMP)
	$(BIN)/glmtune demo

# worksteal: each process takes half of the modules, so that what the tests of a module share is made only once.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not real_data and not interop" --numprocesses 2 --dist worksteal

test-gpu: $(STAMP)
	$(BIN)/python -m pytest tests/gpu -m "gpu and not real_data"

test-real: $(STAMP)
	$(BIN)/python -m pytest -m real_data

# What is compared with is large and its versions are its own, so it has its own environment. With GLMTUNE_REAL_DATA,
# the published tokenizer is compared too; with GLMTUNE_VLLM, vLLM, which needs an environment of its own:
# the variable names its Python.
interop:
	$(PYTHON) -m venv $(VENV)-interop
	$(VENV)-interop/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf]' pytest \
	  --requirement tests/interop/requirements.txt
	$(VENV)-interop/bin/python -m pytest -m "interop$(if $(GLMTUNE_REAL_DATA),, and not real_data)" tests/interop \
	  $(if $(GLMTUNE_VLLM),,--ignore tests/interop/test_vllm.py)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python tools/config_reference.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
