# make demo | test | lint | format | docs | install: each installs what it needs on a machine with Python 3.11 to 3.13.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where Python may not write its bytecode (containers often forbid it), each command would compile all packages anew.
export PYTHONDONTWRITEBYTECODE :=

# Two workers of one thread each. A file stays with one worker, so that its tests share what they prepare.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
WORKERS ?= 2

.PHONY: install demo test test-all lint format docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV): PyTorch, runtimes and tools, some GB; minutes at the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/amc

test: install
	$(TEST) -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

test-all: install
	$(TEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	@$(BIN)/python -c "import material" 2> /dev/null \
		|| { echo "make docs needs mkdocs: $(BIN)/uv pip install --python $(BIN)/python 'mkdocs-material>=9.5'"; exit 1; }
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "The site is in build/site."

clean:
	rm -rf $(VENV) build dist *.egg-info
