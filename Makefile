# Every target sets up what it needs in .venv; PYTHON=python3.12 chooses another one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all lint docs bench faults repro-smoke clean

quickstart: $(VENV)/installed
	$(BIN)/python experiments/quickstart/run.py

test test-all: TESTS = -n 2 --dist loadfile --no-loadscope-reorder --durations=8

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(TESTS) -m "not long"

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in site/: open site/index.html. EXECUTE_NOTEBOOKS=false takes seconds.
docs: $(VENV)/installed-dev
	$(BIN)/python -m mkdocs build --strict

# In an environment of its own: the peer is PyTorch, which nothing else needs.
bench: .venv-bench/installed
	.venv-bench/bin/python experiments/benchmarks/run.py

# Kills, damaged files, full disks, signals, fuzzed inputs; see experiments/reliability.
faults: $(VENV)/installed
	$(BIN)/python experiments/reliability/run.py $(FAULTS)

# A recorded experiment's best row, again: is it inside its band?
repro-smoke: $(VENV)/installed
	$(BIN)/gen-jax repro experiments/learning_rate --smoke

clean:
	rm -rf $(VENV) .venv-bench runs

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed; choose one with PYTHON=python3.12")'
	@# Debian's python3 may lack venv; virtualenv needs only pip.
	$(PYTHON) -m venv $(VENV) || \
	  ($(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV))
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
	  --requirement requirements.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet \
	  --requirement requirements-dev.txt
	touch $@

.venv-bench/installed: requirements.txt experiments/benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --disable-pip-version-check --quiet \
	  --requirement requirements.txt \
	  --requirement experiments/benchmarks/requirements.txt --editable .
	touch $@
