# make demo: the whole pipeline on real images. make docs: the documentation, in site/. make test: the CPU tests.
# make soak: the long ones. make slurm: on a cluster of two nodes that it starts here (as root, with Debian's slurm-wlm,
# slurmdbd, munge and mariadb-server). make nightly: the tests of the components and pipelines on a nightly of TorchX.
# make floors: the CPU tests on the oldest versions that setup.cfg allows, in an environment of their own. make check:
# tests, linter and types. make gpu: the most valuable figures of an NVIDIA GPU in MINUTES; again: it goes on.
PYTHON ?= python3
VENV ?= .venv
DALI ?= cuda12
RUNS ?= runs
MINUTES ?= 7
BIN := $(VENV)/bin
PACKAGES := '.[$(DALI),demo,export,cloud,wandb,mlflow,docs,test]'
FLOORS := $(VENV)-floors
# The nightly the tests last passed with. It lies beside the stable TorchX, whose import name it shares, and in front.
NIGHTLY := torchx-nightly==2026.10.26
NIGHTLY_PATH := $(abspath $(VENV))/$(NIGHTLY)

.PHONY: gpu demo docs test soak slurm nightly torchx-nightly floors check install clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	@echo "Installing deit_fast and its packages into $(VENV): about 8 GB, most of them PyTorch's CUDA libraries."
	@echo "It is done once and takes minutes, most of them downloads; pip shows each with its size."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --editable $(PACKAGES)
	touch $@

demo: install
	@echo "The demo: digits as images, a pretraining, a finetuning and an evaluation of each: minutes on two CPU cores."
	$(BIN)/deit-fast data demo $(RUNS)/digits
	$(BIN)/python -m pipelines.deit3 --size demo --scheduler local_cwd --data $(RUNS)/digits --out $(RUNS)/demo

test: install
	$(BIN)/python -m pytest -n 2 --durations 10

soak: install
	$(BIN)/python -m pytest -n 2 -m soak --durations 10

slurm: install
	$(BIN)/python -m pytest -m slurm --durations 10

torchx-nightly: $(NIGHTLY_PATH)

$(NIGHTLY_PATH): | install
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(NIGHTLY_PATH) '$(NIGHTLY)'

nightly: export PYTHONPATH := $(NIGHTLY_PATH)
nightly: torchx-nightly
	$(BIN)/python -c "import torchx; assert 'torchx-nightly==' + torchx.__version__ == '$(NIGHTLY)', torchx"
	$(BIN)/python -m pytest -n 2 tests/components tests/pipelines tests/kubernetes/test_kueue.py
	$(BIN)/python -m pytest -m slurm tests/slurm/test_pipeline.py

gpu: install
	$(BIN)/python -m benchmarks day --device cuda --minutes $(MINUTES) --out $(RUNS)/gpu $(if $(DATA),--data '$(DATA)')

floors: $(FLOORS)/.installed
	$(FLOORS)/bin/python -m pytest -n 2 --durations 10

$(FLOORS)/.installed: setup.cfg pyproject.toml floors.txt
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/pip install --quiet --disable-pip-version-check --constraint floors.txt --editable $(PACKAGES)
	touch $@

# Material's authors warn of MkDocs 2, which is not used here.
docs: export NO_MKDOCS_2_WARNING := 1
docs: install
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

clean:
	rm -rf $(VENV) $(FLOORS) $(RUNS) site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
