# `make run` to try limner, `make test` before a change goes out. Needs Python 3.11 or newer with venv, and make.
#
#   make setup TORCH_INDEX=ADDRESS   takes torch from this package index: pip's default torch is a CUDA build of
#                                    several GB on Linux; the index of CPU wheels that PyTorch publishes has a small one
SHELL := /bin/bash
BIN := .venv/bin
TORCH_INDEX ?=

.PHONY: setup run test lint bench chaos clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@set -e; if [ ! -x $(BIN)/python ]; then \
	  for python in python3.11 python3.14 python3.13 python3.12 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  [ -n "$$found" ] || { echo "make: no Python 3.11 or newer on the PATH" >&2; exit 1; }; \
	  echo "making .venv with $$($$found --version)"; $$found -m venv .venv || { rm -rf .venv; exit 1; }; \
	fi
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q --no-deps --index-url $(TORCH_INDEX) -c constraints.txt torch)
	$(BIN)/python -m pip install -q -e '.[dev]' -c constraints.txt
	@touch $@

run: setup
	@$(BIN)/limner up --demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r streaming model trainer

test: lint
	$(BIN)/python -m pytest

chaos: setup
	CHAOS=full $(BIN)/python -m pytest tests/chaos

bench: setup
	@set -e; for name in $$($(BIN)/python -c 'from streaming.cli.bench import BENCHES; print(*BENCHES)'); do \
	  $(BIN)/limner bench $$name; \
	done

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
