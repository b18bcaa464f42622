# `make` lists the targets. Overrides: SWEEP=sweeps/x.yml DATASET=folder BACKBONE=name WEIGHTS=file CORES=n PROFILE=profiles/slurm
# DATASET=path/to/birds makes a sweep of its own, images-birds, with its report in reports/images-birds/; so do another
# BACKBONE= and WEIGHTS=. REPLACE=1 lets a sweep delete finished runs that were made with other settings.
# For compare SWEEPS="a b", names of sweeps that have a report.
# For plan also MEMORY=16GiB TFLOPS=n: a card that this machine does not have. DETAILS=1: with a table of pairs.
# VENV=path uses an environment (a conda one: VENV="$CONDA_PREFIX") as it is; otherwise .venv is made here.
SHELL := /bin/bash
.DEFAULT_GOAL := help

DATASET ?=
BACKBONE ?=
WEIGHTS ?=
CORES ?=
PROFILE ?=
MEMORY ?=
TFLOPS ?=
DETAILS ?=
REPLACE ?=
FROM ?=
SWEEPS ?=
SWEEP ?=
PYTHON3 ?= python3
VENV ?=

# Environment variables carry what the user gives, word for word: neither make nor the shell looks into it.
# The commands read FIXRES_DATASET and so on themselves. Other targets, such as the tests, do not get them.
OPTIONS := DATASET BACKBONE WEIGHTS CORES PROFILE MEMORY TFLOPS DETAILS REPLACE FROM SWEEPS
COMMANDS := sweep plan data report publish compare bench bench-peers
unexport $(OPTIONS) SWEEP PYTHON3 VENV
$(foreach name,$(OPTIONS),$(eval $(COMMANDS): export FIXRES_$(name) := $$(value $(name))))
FILE := $(if $(value DATASET),sweeps/images.yml,sweeps/demo.yml)
$(COMMANDS): export FIXRES_SWEEP := $(if $(value SWEEP),$(value SWEEP),$(FILE))
export FIXRES_VENV := $(value VENV)
export FIXRES_PYTHON3 := $(value PYTHON3)

ifneq ($(filter %.yml %.yaml,$(MAKECMDGOALS)),)
$(error $(filter %.yml %.yaml,$(MAKECMDGOALS)) is no target; name a sweep file by SWEEP=)
endif
ifeq ($(origin SWEEPS),command line)
ifneq ($(filter sweep plan data report publish,$(MAKECMDGOALS)),)
$(error SWEEPS= is for compare; name a sweep file by SWEEP=)
endif
endif

ifeq ($(value VENV),)
export FIXRES_VENV := .venv
READY := .venv/.installed
else
READY :=
endif
PYTHON := "$$FIXRES_VENV/bin/python"
PYTHON3_GIVEN := "$$FIXRES_PYTHON3"
# Two notebooks at a time share the cores, and so do two sweeps' runs.
HALF := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 1 ? n / 2 : 1)))

# Recipes say $$PWD: what make puts into a recipe, the shell would run. PYTHONPATH separates folders by colons.
ifneq ($(findstring :,$(CURDIR)),)
$(error the path of this folder has a colon in it, which Python cannot search; rename or move the folder)
endif
export PYTHONPATH := $(CURDIR)
export JUPYTER_PREFER_ENV_PATH := 1

FIXRES := $(PYTHON) -m fixres_poc

.PHONY: help setup sweep plan data report publish compare lab notebooks bench bench-peers test test-faults test-simulations test-cluster test-lab test-sabotage lint types unit nbval audit-deps clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## */\t/' | awk -F'\t' '{printf "%-12s %s\n", $$1, $$2}'

sweep: setup  ## everything: environment, images, runs, report (SWEEP= DATASET= BACKBONE= WEIGHTS= CORES= PROFILE= REPLACE=)
	@$(FIXRES) sweep

plan: setup  ## time and memory that a sweep will need, before it (SWEEP= DATASET= BACKBONE= WEIGHTS= MEMORY= TFLOPS= DETAILS=)
	@$(FIXRES) plan

test: lint types unit nbval  ## lint, types, unit tests, and the notebooks against their stored outputs

setup: $(READY)  ## make .venv with the tested versions (not with VENV=)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: no Python 3.11 or newer there; VENV= names an environment, PYTHON3= a python' >&2; exit 2; }

ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
lab: setup  ## open the notebooks in JupyterLab, for this machine only
	$(PYTHON) -m jupyterlab $(ROOT) --ServerApp.ip=127.0.0.1 --ServerApp.root_dir="$$PWD" --LabApp.default_url=/lab/tree/notebooks

notebooks: setup  ## run the committed notebooks again, in place
	@rm -rf runs/notebooks
	FIXRES_PROGRESS=/dev/null $(PYTHON) -m nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=-1 notebooks/*.ipynb

bench: setup  ## speed against the usual loop, into docs/bench.md: 50 minutes on 2 cores (DATASET=)
	$(PYTHON) -m benchmarks.bench

bench-peers: .venv-peers/.installed  ## the same against fastai, in an environment of its own: 25 minutes (DATASET=)
	.venv-peers/bin/python -m benchmarks.peers

data: setup  ## draw or check the images of a sweep, without training
	@$(FIXRES) data

report: setup  ## render a report again: of a sweep (SWEEP=), or of a folder's tables (FROM=docs/reports/x)
	@$(FIXRES) report

publish: setup  ## copy a sweep's report to docs/reports, where reports are committed (SWEEP= DATASET=)
	@$(FIXRES) publish

compare: setup  ## sweeps side by side, networks or datasets, into reports/compare-*.html (SWEEPS="a b")
	@$(FIXRES) compare

lint: setup  ## ruff: rules and format, notebooks included
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: setup  ## mypy, strict
	$(PYTHON) -m mypy

unit: setup  ## unit tests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist loadfile tests

# 04 reads what 03 has trained.
nbval: setup  ## the notebooks against their stored outputs
	FIXRES_PROGRESS=/dev/null $(PYTHON) -m pytest --nbval --nbval-current-env notebooks/03_train.ipynb
	FIXRES_PROGRESS=/dev/null OMP_NUM_THREADS=$(HALF) $(PYTHON) -m pytest \
		--nbval --nbval-current-env -n 2 --dist loadscope notebooks/0[!3]*.ipynb

AUDIT = $(PYTHON) -m pip_audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off
audit-deps: setup  ## known vulnerabilities of the pinned versions, where their database can be reached
	@found=$$($(AUDIT) --format json 2>/dev/null); status=$$?; \
	case $$found in \
	*'"vulns"'*) test $$status = 0 && echo 'no known vulnerabilities' || $(AUDIT) ;; \
	*) echo 'not audited: no database of vulnerabilities can be reached' ;; \
	esac

test-faults: setup  ## kills, full disks, two at once and the like, in sweeps that train
	$(PYTHON) -m pytest -m faults tests/faults

test-simulations: setup  ## intervals held against thousands of simulated sweeps
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m simulations tests/analysis

test-cluster: setup  ## sweeps on a Slurm cluster of this machine alone; root, slurmctld slurmd slurm-client munge
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m cluster tests/cluster

test-lab: setup  ## a notebook in JupyterLab, run, changed and run again in a browser (Chromium or Chrome)
	$(PYTHON) -m pytest -m lab tests/lab

test-sabotage: setup  ## break the method in five ways, one at a time: nbval must turn red each time
	OMP_NUM_THREADS=$(HALF) $(PYTHON) -m pytest -m sabotage -s tests/sabotage

clean:  ## remove runs/ and reports/; data/ and docs/reports/ stay
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache
	@if [ -d reports ]; then find reports -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +; fi

.venv-peers/.installed: pyproject.toml constraints.txt
	$(PYTHON3_GIVEN) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -e . "fastai==2.8.12" -c constraints.txt
	touch $@

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON3_GIVEN) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: that is not Python 3.11 or newer; name one with PYTHON3=' >&2; exit 2; }
	$(PYTHON3_GIVEN) -m venv .venv
	@echo 'installing PyTorch and other packages into .venv: 7 GB, some minutes, once' >&2
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	touch $@
