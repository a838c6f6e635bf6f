# `make demo` and `make test` need Python >= 3.10 and nothing else: they make .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install demo test format clean

help:
	@echo "make demo    train a small model that memorizes, unlearn it, draw the figure (minutes)"
	@echo "make test    run the tests"
	@echo "make format  format the code with black"
	@echo "make clean   remove .venv, caches and runs"

install: $(VENV)/.installed

# The stamp is written last, so that an interrupted installation is made again.
$(VENV)/.installed: requirements.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

demo: install
	$(BIN)/python experiments/demo.py

test: install
	$(BIN)/python -m pytest

format: install
	$(BIN)/python -m black .

clean:
	rm -rf $(VENV) data runs .cache .pytest_cache
