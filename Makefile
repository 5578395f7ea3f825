# Two commands do everything: `make run` and `make test`. The others are for developers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
ARGS ?=

.PHONY: run test check unit format fuzz faults bench bench-vm soak demo generate golden lock build image clean help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/runtime ## install and start the agent on this node, without any configuration
	$(BIN)/ullage run $(ARGS)

test: $(VENV)/dev ## install what the tests need (Debian packages when root) and run all of them
	tests/install-packages.sh
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(SIDE_BY_SIDE) $(SECOND_TRY) $(ARGS)

# the guest, and this machine: tests/conftest.py
SIDE_BY_SIDE = -n 2 --no-loadscope-reorder
# real daemons and an emulated machine, among other work: what failed once is told all the same
SECOND_TRY = --reruns 1 --max-suite-reruns 10 --rerun-show-tracebacks $(addprefix --rerun-exclude-path=,tests/unit tests/fuzz)

check: $(VENV)/dev lint unit ## lint, types, import arrows and unit tests; under a minute

.PHONY: lint
lint: $(VENV)/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > $(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

unit: $(VENV)/dev ## unit tests, without those marked slow
	$(BIN)/python -m pytest -q -m "not slow" tests/unit $(ARGS)

format: $(VENV)/dev ## format the code, mend what ruff can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

fuzz: $(VENV)/dev ## fuzz the readers for longer than the tests do: ARGS=dm for one, until it fails
	$(BIN)/python -m tests.fuzz $(ARGS)

bench: $(VENV)/dev ## measure against others, as ratios of CPU time within one run
	$(BIN)/python -m tests.bench $(ARGS)

bench-vm: $(VENV)/dev ## the sweep of cgroups, on cgroup v2 in the lab's virtual machine
	$(BIN)/python -m tests.vm.bench cgroups

faults: $(VENV)/dev ## inject faults into the whole agent, for real; needs root, and the machine alone
	$(BIN)/python -m pytest tests/faults tests/soak $(ARGS)

soak: $(VENV)/dev ## run the agent for half an hour among all that comes and goes: ARGS="--minutes 5"; needs root
	$(BIN)/python -m tests.soak $(ARGS)

demo: $(VENV)/dev ## Ullage at work on this machine, with Prometheus and Alertmanager, until Ctrl-C; needs root
	$(BIN)/python -m tests.demo $(ARGS)

generate: $(VENV)/dev ## write the generated files: rules, their tests, dashboards, documentation
	$(BIN)/python -m tests.generate

golden: $(VENV)/dev ## write what the recorded trees give; the diff is the review
	$(BIN)/python -m tests.golden

lock: $(VENV)/dev ## renew the lock files
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --output-file requirements-build.lock requirements-build.in
	$(COMPILE) --output-file requirements-dev.lock pyproject.toml requirements-build.in requirements-dev.in

COMPILE = $(BIN)/python -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
	--no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' agent/__init__.py)
WHEEL := dist/ullage-$(VERSION)-py3-none-any.whl
# directories too: they are newer when a file of theirs is gone
PACKED := pyproject.toml README.md LICENSE requirements-build.lock $(shell find agent collectors -name __pycache__ -prune -o -print)

build: $(WHEEL) ## build the wheel, unless that in dist/ is newer than all that belongs in it

# the only one of ours in dist/: the Dockerfile installs what it finds
$(WHEEL): $(PACKED) | $(VENV)/dev
	rm -f dist/ullage-*.whl
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

image: build ## build the image with docker, from the wheel in dist/: ARGS="--build-arg BASE=..."
	docker build --tag ullage:$(VERSION) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD) --build-arg CREATED=$$(date -u +%FT%TZ) $(ARGS) .

clean: ## remove what the targets made
	rm -rf $(VENV) dist .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	tests/make-venv.sh $(PYTHON) $(VENV)

$(VENV)/runtime: requirements.lock requirements-build.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-deps --require-hashes -r requirements.lock -r requirements-build.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@ $(VENV)/runtime
