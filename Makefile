# make demo: the whole pipeline on real images. make test: the CPU tests. make soak: the long ones. make slurm: on a
# cluster of two nodes that it starts here (as root, with Debian's slurm-wlm, slurmdbd, munge and mariadb-server).
# make check: tests, linter and types.
PYTHON ?= python3
VENV ?= .venv
DALI ?= cuda12
RUNS ?= runs
BIN := $(VENV)/bin

.PHONY: demo test soak slurm check install clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(DALI),demo,export,test]'
	touch $@

demo: install
	$(BIN)/deit-fast data demo $(RUNS)/digits
	$(BIN)/python -m pipelines.deit3 --size demo --scheduler local_cwd --data $(RUNS)/digits --out $(RUNS)/demo

test: install
	$(BIN)/python -m pytest -n 2 --durations 10

soak: install
	$(BIN)/python -m pytest -n 2 -m soak --durations 10

slurm: install
	$(BIN)/python -m pytest -m slurm --durations 10

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

clean:
	rm -rf $(VENV) $(RUNS) *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
