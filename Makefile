# Every habit of this repository. `make help` lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Recipes share one environment; installing twice into it at once would break it.
.NOTPARALLEL:

PYTHON ?= python3
ARGS ?=

VENV := .venv
export PYTHONPATH := layers/campaign_jobs/python:cli:.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

LOCAL := $(VENV)/.installed-local
DEV := $(VENV)/.installed-dev
FUZZ_VENV := .venv-fuzz
FUZZ := $(FUZZ_VENV)/.installed
E2E_VENV := .venv-e2e
E2E := $(E2E_VENV)/.installed
E2E_NODE := local/emulator/node/node_modules/.installed
CDK := node_modules/.installed

install = $(VENV)/bin/python -m pip install --quiet --require-hashes -r
# The command campaign-jobs, as it stands in this tree.
command_line = $(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable layers/campaign_jobs --editable cli
compile = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
# Lambda's runtime brings boto3, so the layer leaves it and what only it needs out; pip installs the layer without
# looking for dependencies.
in_the_runtime = boto3 botocore python-dateutil s3transfer six urllib3

##@ See it work
demo: $(LOCAL) ## Run a whole campaign launch on this machine, e.g. make demo ARGS="--people 1000"
	@python -m local demo $(ARGS)

chaos: $(LOCAL) ## Break everything while events come, and see that none is lost, e.g. make chaos ARGS="--events 2000 --seed 7"
	@python -m local chaos $(ARGS)

local: $(LOCAL) ## Start the whole system on this machine; Ctrl-C stops it
	@python -m local $(ARGS)

##@ Work on it
test: $(DEV) ## Run all tests, e.g. make test ARGS="tests/unit -k email"
	@python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
# More than processors, because most tests of servers wait.
WORKERS ?= 3

mutants: $(DEV) ## Remove each guard in turn and prove that a test notices, e.g. make mutants ARGS="--only claim"
	@python -m tests.mutants $(ARGS)

crash: $(DEV) ## Stop a process at each boundary of each job, e.g. make crash ARGS="-k relay"
	@python -m pytest tests/crash -s --every-boundary $(ARGS)

e2e: $(DEV) $(CDK) $(E2E) $(E2E_NODE) ## Deploy the stack to an emulated AWS account, use it, change it, destroy it
	@CAMPAIGN_JOBS_E2E_PYTHON=$(CURDIR)/$(E2E_VENV)/bin/python \
		python -m pytest tests/e2e/test_deployment.py tests/e2e/test_runtime_emulator.py $(ARGS)

check: format-check lint types imports test synth ## Run the full local gate: format, lint, types, imports, tests, synth
	@echo "All checks passed."

gates: format-check lint types imports synth ## Run every gate of `make check` but the tests

format: $(DEV) ## Format the code and sort its imports
	@ruff check --quiet --select I --fix
	@ruff format

format-check: $(DEV) ## Check the format
	@echo "Checking the format ..."
	@ruff format --check --output-format concise || { echo "Run 'make format'."; exit 1; }

lint: $(DEV) ## Check for mistakes (ruff)
	@echo "Linting ..."
	@ruff check --quiet

types: $(DEV) ## Check the types (mypy, strict)
	@echo "Checking types ..."
	@mypy

imports: $(DEV) ## Check the directions of imports (import-linter)
	@echo "Checking import directions ..."
	@lint-imports

synth: $(DEV) $(CDK) ## Synthesize the stack of one environment, e.g. make synth ENV=dev
	@echo "Synthesizing the stack ..."
	@npx --no-install cdk synth --quiet -c env=$(ENV)
ENV ?= dev

snapshots: $(DEV) ## Write each environment's template down, and what of it must stay, for review
	@UPDATE_SNAPSHOTS=1 python -m pytest --quiet tests/infrastructure/test_snapshots.py tests/infrastructure/test_frozen.py

fuzz: $(FUZZ) ## Try hard to break what parses bytes from outside, e.g. make fuzz ARGS="--seconds 60 --target records"
	@$(FUZZ_VENV)/bin/python -m tests.fuzz $(ARGS)

schemas: $(DEV) ## Write the event contract's JSON Schema and AsyncAPI from the models
	@python -m campaign_jobs.schemas

bench: $(DEV) ## Measure beside the peers and bare SQL, and write docs/benchmarks.md, e.g. make bench ARGS=--quick
	@python -m benchmarks $(ARGS)

##@ Keep it in order
PEERS := celery dramatiq taskiq procrastinate huey

lock: $(DEV) ## Write the lock files from pyproject.toml (uv); ARGS=--upgrade takes newer versions
	@command -v uv > /dev/null || { echo "make lock needs uv: pip install uv"; exit 1; }
	$(compile) $(ARGS) --group dev -o requirements-dev.txt
	$(compile) -c requirements-dev.txt --group cdk -o requirements.txt
	$(compile) -c requirements-dev.txt $(in_the_runtime:%=--no-emit-package %) --group functions -o layers/dependencies/requirements.txt
	$(compile) -c requirements-dev.txt --group local -o local/requirements.txt
	$(compile) -c requirements-dev.txt --group fuzz -o requirements-fuzz.txt
	$(compile) $(ARGS) --group e2e -o requirements-e2e.txt
	$(compile) $(ARGS) --no-deps --group runtime-emulator -o requirements-runtime-emulator.txt
	for peer in $(PEERS); do $(compile) $(ARGS) --group bench-$$peer -o benchmarks/peers/$$peer/requirements.txt || exit 1; done
	$(compile) $(ARGS) --group bench-chart -o benchmarks/chart/requirements.txt

authorities: $(CDK) ## Write the certificates of Amazon RDS's authorities from the npm package that carries them
	@node infra/authorities.js > layers/campaign_jobs/python/campaign_jobs/database/rds-authorities.pem

clean: ## Remove what these targets made, the environment included (Kafka's jars stay in the user's cache)
	rm -rf $(VENV) $(FUZZ_VENV) $(E2E_VENV) .bench .fuzz .local cdk.out node_modules $(dir $(E2E_NODE)) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
		echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.13 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "This Python lacks the module venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(LOCAL): local/requirements.txt | $(VENV)/bin/python
	@echo "Installing what the local system needs (about a minute, once) ..."
	@$(install) $<
	@$(command_line)
	@touch $@

$(DEV): requirements-dev.txt | $(VENV)/bin/python
	@echo "Installing what the tests and tools need (about a minute, once) ..."
	@$(install) $<
	@$(command_line)
	@touch $@

$(FUZZ): requirements-fuzz.txt
	@echo "Installing what fuzzing needs (some seconds, once) ..."
	@$(PYTHON) -m venv $(FUZZ_VENV)
	@$(FUZZ_VENV)/bin/python -m pip install --quiet --require-hashes -r $<
	@touch $@

$(E2E): requirements-e2e.txt requirements-runtime-emulator.txt
	@for python in $(PYTHON) python3.13 "$$(pyenv prefix 3.13 2> /dev/null)/bin/python" "$$(uv python find 3.13 2> /dev/null)"; do \
		"$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 13))' 2> /dev/null && break; python=; \
	done; \
	test -n "$$python" || { echo "make e2e needs Python 3.13, which the functions run on: make PYTHON=/path/to/python3.13 e2e"; exit 1; }; \
	echo "Installing the emulated AWS account (some seconds, once) ..."; \
	"$$python" -m venv --clear $(E2E_VENV)
	@$(E2E_VENV)/bin/python -m pip install --quiet --require-hashes -r requirements-e2e.txt
	@$(E2E_VENV)/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements-runtime-emulator.txt
	@touch $@

$(E2E_NODE): local/emulator/node/package-lock.json local/emulator/node/package.json | $(DEV)
	@echo "Installing what Lambda's Node.js runtime brings (some seconds, once) ..."
	@npm ci --silent --no-audit --no-fund --prefix local/emulator/node
	@touch $@

$(CDK): package-lock.json package.json | $(DEV)
	@echo "Installing the CDK command line (some seconds, once) ..."
	@npm ci --silent --no-audit --no-fund
	@touch $@

.PHONY: demo chaos local test crash fuzz e2e check gates format format-check lint types imports synth snapshots schemas authorities bench lock clean help mutants
