PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## compare the three algorithms on the embedded world
	$(BIN)/textsafe compare ppo reward_shaping ppo_lagrangian --seeds 5 --workers 2 --out runs/demo $(if $(wildcard runs/demo),--resume)

test: $(VENV)/.installed  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

clean:
	rm -rf $(VENV)
