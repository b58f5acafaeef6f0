# Two commands do all the set-up: `make movielens` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help movielens movielens-deep movielens-spark test lint slow benchmark clean

help:
	@echo "make movielens   install, fetch MovieLens-100k, train, print metrics per coordinate"
	@echo "make movielens-spark  the same on Spark, on all cores of this machine (needs Java 17)"
	@echo "make movielens-deep   the same with networks of PyTorch; needs some 10 minutes"
	@echo "make test        install the dev extras, lint, check types and layers, test"
	@echo "make slow        the tests that take minutes"
	@echo "make benchmark   compare the solvers with what else one would use"
	@echo "make clean       remove the environment and everything that was built or fetched"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("gdmix needs Python 3.11 or later, $(PYTHON) is %d.%d: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# First by itself: a plain version number may be answered with a build for CPUs alone.
$(VENV)/installed-torch: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0'
	@touch $@

$(VENV)/installed-deep: pyproject.toml | $(VENV)/installed-torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[deep]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-dev: pyproject.toml | $(VENV)/installed-torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/installed $(VENV)/installed-deep $(VENV)/installed-spark

$(VENV)/installed-spark: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[spark]'
	@touch $@ $(VENV)/installed

movielens: $(VENV)/installed
	$(BIN)/gdmix example movielens movielens
	$(BIN)/gdmix train movielens/movielens_gdmix.yaml --overwrite --quiet
	$(BIN)/gdmix train movielens/movielens.yaml --overwrite --quiet
	$(BIN)/gdmix train movielens/movielens_auto.yaml --overwrite
	$(BIN)/gdmix compare runs/movielens-gdmix runs/movielens runs/movielens-auto

# The same configurations, the same table; see docs/spark.md.
ON_SPARK = --engine spark --overwrite
movielens-spark: $(VENV)/installed-spark
	@$(BIN)/python -c 'import sys; sys.tracebacklimit = 0; from gdmix.engines.spark.session import check_java; check_java()'
	$(BIN)/gdmix example movielens movielens
	$(BIN)/gdmix train movielens/movielens_gdmix.yaml --output runs/movielens-gdmix-spark $(ON_SPARK) --quiet
	$(BIN)/gdmix train movielens/movielens.yaml --output runs/movielens-spark $(ON_SPARK) --quiet
	$(BIN)/gdmix train movielens/movielens_auto.yaml --output runs/movielens-auto-spark $(ON_SPARK)
	$(BIN)/gdmix compare runs/movielens-gdmix-spark runs/movielens-spark runs/movielens-auto-spark

# Networks: GDMix's wide-and-deep model, two towers, random effects over what these see in movies;
# then the two towers for users that training did not see.
movielens-deep: $(VENV)/installed-deep
	$(BIN)/gdmix example movielens movielens
	$(BIN)/gdmix train movielens/movielens_deep_gdmix.yaml --overwrite
	$(BIN)/gdmix train movielens/movielens_deep.yaml --overwrite
	$(BIN)/gdmix train movielens/movielens_deep_crossed.yaml --overwrite
	$(BIN)/gdmix encode runs/movielens-deep movielens/train.parquet -c global -o movielens/items/train.parquet
	$(BIN)/gdmix encode runs/movielens-deep movielens/validation.parquet -c global -o movielens/items/validation.parquet
	$(BIN)/gdmix train movielens/movielens_deep_items.yaml --overwrite
	$(BIN)/gdmix example movielens movielens-users --split users
	$(BIN)/gdmix train movielens-users/movielens_deep.yaml --output runs/new-users-deep --overwrite

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m "not slow"

slow: $(VENV)/installed-dev
	$(BIN)/pytest -m slow

# The other libraries come with `pip install --editable '.[benchmark]'`; the missing are left out.
benchmark: $(VENV)/installed-dev
	$(BIN)/python benchmarks/random_effect.py
	$(BIN)/python benchmarks/fixed_effect.py
	$(BIN)/python benchmarks/end_to_end.py

clean:
	rm -rf $(VENV) movielens movielens-users runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
