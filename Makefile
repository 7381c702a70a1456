# Environments are made where they are missing, below .envs/. Everything else is a Snakemake flag: see ./snakemake --help.

RUN = sh scripts/launch.sh run
DEV = $(RUN) dev --
LOCKS = workflow tensorflow llvm torch training demo dev docs
# Two processes, a file at a time each, in the order that tests/conftest.py sets; TESTS= and JOBS= change which tests and
# how many at once. Three for all tests: of those each waits a fifth of its time, for SLURM, the network, a container.
TESTS = tests
JOBS = 2
test: JOBS = 3
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Compiled files are kept, the tests' too: without them every process of pytest writes its assertions anew, for 8 s.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(DEV) -m pytest $(PARALLEL)
# What goes to pytest as well, e.g. make test ARGS="-k golden"
ARGS =

.PHONY: help demo demo-docker demo-synthseg2 test test-fast prove verify-arm64 benchmark lint format locks python311 clean-envs reference-image docs

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' Makefile | awk -F '\t' '{ printf "make %-16s %s\n", $$1, $$2 }'

demo: ## the demonstration: phantoms, structures, parcels, scores, compared with the reference: results/summary.tsv
	@./snakemake --cores 1 results/summary.tsv

demo-docker: ## the same with the reference in its Docker container
	@./snakemake --cores 1 results/summary.tsv --configfile config/demo-docker.yaml

demo-synthseg2: ## robust mode, parcels and scores on the same phantoms
	@./snakemake --cores 1 results-synthseg2/summary.tsv --configfile config/demo-synthseg2.yaml

test: ## run all tests
	@sh scripts/launch.sh ensure dev workflow tensorflow llvm demo
	@$(PYTEST) $(TESTS) $(ARGS)

test-fast: ## run the tests that take seconds and need no Docker
	@$(PYTEST) -m "not slow and not docker" $(TESTS) $(ARGS)

prove: ## golden cases, seconds, memory, devices of this machine by each engine that is there, as one page to send back
	@sh scripts/launch.sh ensure dev llvm
	@$(DEV) tests/prove.py $(ARGS)

verify-arm64: ## as root on Debian x86-64: the arm64 environments under QEMU, and golden cases by each engine, as a page
	@sh scripts/launch.sh ensure dev
	@$(DEV) tests/arm64.py $(ARGS)

benchmark: ## time and memory of engines and reference on this machine (what and how: make benchmark ARGS=--help)
	@sh scripts/launch.sh ensure dev tensorflow llvm
	@$(DEV) benchmarks/run.py $(ARGS)

lint: ## check style, workflow, profiles, configurations
	@$(DEV) -m ruff check
	@$(DEV) -m ruff format --check
	@$(DEV) -m snakefmt --check Snakefile workflow
	@$(DEV) scripts/lint.py

format: ## put code and rules in the house's format
	@$(DEV) -m ruff check --fix
	@$(DEV) -m ruff format
	@$(DEV) -m snakefmt Snakefile workflow

reference-image: ## build the container image of the reference (podman: make reference-image ARGS="--runtime podman")
	@$(RUN) workflow -- scripts/reference_image.py build $(ARGS)

docs: ## build the documentation as a site, build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(RUN) docs -- -m mkdocs build --strict --quiet
	@echo build/site/index.html

locks: ## resolve envs/*.in anew for all platforms (newer versions: make locks ARGS=--upgrade)
	@for name in $(LOCKS); do \
		(cd envs && sh ../scripts/launch.sh run dev -- -m uv pip compile --quiet --universal --generate-hashes \
			--python-version 3.11 --no-annotate --no-header --no-emit-index-url $(ARGS) -o $$name.txt $$name.in) || exit 1; \
	done
	@$(DEV) tests/locks.py

python311: ## fetch a Python 3.11 for TensorFlow, without root
	@$(DEV) -m uv python install 3.11

clean-envs: ## remove all environments; they are made again when needed
	rm -rf .envs
