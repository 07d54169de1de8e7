# Two commands: `make demo` and `make test`. Everything else is a step of them.
# The first Python of a version that can be used; set PYTHON to choose another.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(or $(shell for p in python3 python3.12 python3.11; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done),python3)
BIN := envs/controller/.venv/bin
CORES ?= 2
# What `test` is made of. The image is built beside the first two, which measure no time: one core would else wait.
CHECKS := lint type unit workflow docker rootless slurm

# A Docker daemon of our own keeps its images here between runs; see envs/desktop/with_docker.sh.
export ARPO_DOCKER_STATE ?= /var/tmp/arpo-docker

.PHONY: help demo test docs pictures lint type unit workflow docker rootless-image rootless slurm slow osworld-tasks setup system controller cpu gpu evaluator lock

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup ## Set everything up, run the study of configs/demo.yaml, write reports/demo/index.html
	@$(BIN)/snakemake --cores $(CORES)

test: setup ## Set up what is missing and run every check that two cores can run
	@$(MAKE) --jobs=2 --output-sync rootless-image lint type
	@$(MAKE) --jobs=1 $(filter-out lint type,$(CHECKS))

setup: system controller cpu ## Debian packages and locked Python environments

system:
	@sh envs/debian.sh

controller: system
	@$(PYTHON) envs/prepare.py controller

cpu: system
	@$(PYTHON) envs/prepare.py cpu

gpu: controller ## envs/gpu, in place of envs/cpu on a machine with NVIDIA GPUs
	@$(PYTHON) envs/prepare.py gpu

evaluator: controller
	@sh envs/debian.sh envs/desktop/apt-evaluator.txt
	@$(PYTHON) envs/prepare.py evaluator

docs: controller ## The docs site, into site/; a broken link or a key without its docstring fails
	$(BIN)/zensical build --strict --clean

pictures: controller ## The pictures of README and docs, from reports/nano and, if it is there, results/demo
	$(BIN)/python benchmarks/make_pictures.py

lint: docs ## ruff, the order of the packages, snakefmt, snakemake --lint, the docs site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile rules workflow
	$(BIN)/python tests/lint_workflow.py

type: controller ## mypy --strict
	$(BIN)/mypy

unit: setup evaluator ## Unit tests and tests on real desktops
	$(BIN)/python -m pytest tests/unit -m "not slow" -n 2 --dist loadfile
	$(BIN)/python -m pytest tests/desktop tests/evaluator -m "not slow"
	envs/cpu/.venv/bin/python -m pytest tests/nano tests/training -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

workflow: setup ## What runs again after which change, bad input, and a whole small study
	$(BIN)/python -m pytest tests/workflow -m "not slow and not study" -n 2
	$(BIN)/python -m pytest tests/workflow -m "study and not slow" -n 2 --dist loadfile

docker: setup evaluator ## Desktops in containers, with the Docker daemon at hand or, as root, one of our own
	@sh envs/debian.sh envs/desktop/apt-docker.txt
	envs/desktop/with_docker.sh $(BIN)/snakemake --cores 1 --configfile configs/demo.yaml configs/desktops/container.yaml \
		-- results/demo_container/desktop_image.json
	ARPO_REQUIRE_DOCKER=1 envs/desktop/with_docker.sh $(BIN)/python -m pytest tests/docker -m "not slow"

rootless-image: setup
	@sh envs/debian.sh envs/desktop/apt-rootless.txt
	$(BIN)/snakemake --cores 1 --configfile configs/demo.yaml configs/desktops/bubblewrap.yaml \
		-- results/demo_bubblewrap/desktop_image.json

rootless: rootless-image evaluator ## Container desktops without Docker, by bubblewrap, on an image that is built first
	ARPO_REQUIRE_ROOTLESS=1 $(BIN)/python -m pytest tests/rootless -m "not slow"

slurm: setup ## A study on a Slurm of virtual nodes, started for the tests (as root, about 18 minutes)
	@sh envs/debian.sh tests/slurm/apt.txt
	ARPO_REQUIRE_SLURM=1 $(BIN)/python -m pytest tests/slurm

osworld-tasks: controller ## OSWorld's task files from its repository into results/osworld/tasks; their tests else skip
	$(BIN)/snakemake --cores 1 --no-hooks -- results/osworld/tasks/manifest.json

slow: setup evaluator ## The long variants of tests: three kills of a training, long simulations
	@sh envs/debian.sh envs/desktop/apt-rootless.txt
	$(BIN)/python -m pytest tests/unit tests/rootless -m slow
	envs/cpu/.venv/bin/python -m pytest tests/training -m slow

lock: controller ## Write the locked requirements anew
	envs/lock.sh
