PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[omnisafe]"
	$(BIN)/pip install --quiet --no-deps omnisafe==0.5.0
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) ".[dev,deepspeed,docs,mlflow,sb3,trackio,trl,wandb]"
	touch $@

demo: $(VENV)/.installed  ## compare the three algorithms on the embedded world
	$(BIN)/textsafe compare ppo reward_shaping ppo_lagrangian --seeds 5 --workers 2 --out runs/demo $(if $(wildcard runs/demo),--resume)

test: $(VENV)/.installed-dev  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not timing" --numprocesses 2 --dist loadfile
	$(BIN)/pytest -m timing

clean:
	rm -rf $(VENV)
