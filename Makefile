# Two commands: `make demo` and `make test`. Everything else is a step of them.
# The first Python of a version that can be used; set PYTHON to choose another.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(or $(shell for p in python3 python3.12 python3.11; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done),python3)
BIN := envs/controller/.venv/bin
CORES ?= 2

.PHONY: help demo test check lint type unit workflow setup system controller cpu lock clean-study

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup ## Set everything up, run the study of configs/demo.yaml, write reports/demo/index.html
	$(BIN)/snakemake --cores $(CORES)
	@echo "The report: reports/demo/index.html"

test: setup lint type unit workflow ## Set up what is missing and run every check that two cores can run

setup: system controller cpu ## Debian packages and locked Python environments

system:
	@sh envs/debian.sh

controller: system
	@$(PYTHON) envs/prepare.py controller

cpu: system
	@$(PYTHON) envs/prepare.py cpu

lint: controller ## ruff, snakefmt, snakemake --lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/python tests/lint_workflow.py

type: controller ## mypy
	$(BIN)/mypy

unit: setup ## Unit tests and tests on real desktops
	$(BIN)/python -m pytest tests/unit tests/desktop
	envs/cpu/.venv/bin/python -m pytest tests/nano tests/training

workflow: setup ## What runs again after which change, bad input, and a whole small study
	$(BIN)/python -m pytest tests/workflow

lock: controller ## Write the locked requirements anew
	envs/lock.sh
