# Two commands for a newcomer: `make quickstart` and `make test`. The README shows the same without make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint docs clean

quickstart: $(VENV)/installed
	$(BIN)/python run_scripts/run_connectivity_sampling.py --flagfile=flags/quickstart.flags --overwrite
	$(BIN)/python run_scripts/run_foolbox_eval.py --flagfile=flags/quickstart_foolbox.flags
	$(BIN)/python run_scripts/run_robustness_eval.py --flagfile=flags/quickstart_robustness.flags
	$(BIN)/python run_scripts/run_compile.py --flagfile=flags/quickstart_compile.flags --overwrite

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed, found: $$($(PYTHON) --version). Call make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

ENGINE := setup.py $(wildcard tf_robust_sparse/engine/*.[ch])

$(VENV)/installed: setup.cfg $(ENGINE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: setup.cfg $(ENGINE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: setup.cfg $(ENGINE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
