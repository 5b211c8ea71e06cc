# `make demo` and `make test` do all set-up; both need only make and Python 3.10 or newer.
PYTHON ?= python3
EPOCHS ?= 15
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DELETE_ON_ERROR:
.PHONY: demo test nightly check docs clean

demo: $(VENV)/.installed
	$(BIN)/python main.py --task-dist halfcheetah-vel --algo rl2 --method ssm --benchmark-mode --few-shot 1 5 --epochs $(EPOCHS)

# A worker of the tests runs on each core: with threads of their own they would wait for each other, three times as long.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

nightly: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m nightly

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --quiet --offline .github/workflows

docs: $(VENV)/.installed-dev
	$(BIN)/python scripts/build_docs.py

clean:
	rm -rf $(VENV)

# The stamps make set-up incremental: it is done again when the declared or the pinned dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.installed

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  found=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo missing); \
	  echo "metarl needs Python 3.10 or newer, but '$(PYTHON)' is $$found:" \
	    "name another, as in  make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
