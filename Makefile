# The main commands are make run and make test. Both set up the environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Without bytecode, which some containers switch off, every command would compile all imported packages again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-thorough tiers tiers-again check docs ui team repro lock clean
.DEFAULT_GOAL := run

run: $(BIN)/.ready ## all steps, on the data that params.yaml names: by default the embedded sample
	@winnow run

test: $(BIN)/.ready ## the default test suite, on all cores, at most four
	@python -m pytest -n logical --maxprocesses 4 --dist loadgroup --max-worker-restart 0

test-thorough: $(BIN)/.ready ## tests of several seconds each, which the default suite leaves out
	@python -m pytest -m "thorough and not slow and not services and not gpu" -n logical --maxprocesses 4 --dist loadgroup --max-worker-restart 0

tiers: $(BIN)/.ready ## the slow tests, and those that start and kill servers; lists what it skips
	@python -m pytest -m "(slow or services) and not gpu" -rs -n 3 --dist loadfile

tiers-again: $(BIN)/.ready ## the failed tests of `make tiers` again, one after the other
	@python -m pytest -m "(slow or services) and not gpu" -rs --last-failed --last-failed-no-failures none

check: $(BIN)/.ready ## lint, types
	ruff check . && ruff format --check . && mypy

docs: $(BIN)/.ready ## the documentation as a site, without network: docs/_build/html/index.html
	@python docs/generate_reference.py
	@sphinx-build --quiet --fail-on-warning -b html docs docs/_build/html

ui: $(BIN)/.ready ## MLflow and Prefect in the browser
	@winnow ui

team: $(BIN)/.ready ## a team's servers on this machine: PostgreSQL, S3, MLflow with accounts, Prefect
	@winnow team

repro: $(BIN)/.ready ## the same steps by DVC alone
	@dvc repro

lock: $(BIN)/.ready ## pin all dependencies of pyproject.toml again
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade -o requirements.lock

clean: ## remove results of runs, but not the environment, MLflow's store, a team's servers or the count of test readings (git clean -fdx: all)
	@"$(PYTHON)" -c "import fcntl, glob; [fcntl.flock(open(f, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB) for f in glob.glob('.winnow/*.lock')]" 2>/dev/null || { echo "winnow works here; end it first (Ctrl-C)"; exit 1; }
	rm -rf artifacts dvc.lock
	@if [ -d .winnow ]; then find .winnow -mindepth 1 -maxdepth 1 ! -name mlflow ! -name team ! -name test-readings.json ! -name 'up.*' ! -name deployed.json -exec rm -rf {} +; fi

$(BIN)/.ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8,<1"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
