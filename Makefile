PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable

.PHONY: demo test test-long test-processors mutate docs linkcheck wheel-check clean reference

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[train]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) ".[train,dev,deepspeed,docs,mlflow,omnisafe,sb3,trackio,trl,wandb]"
	$(BIN)/pip install --quiet --no-deps omnisafe==0.5.0
	touch $@

demo: $(VENV)/.installed  ## compare the three algorithms on the embedded world
	$(BIN)/textsafe compare ppo reward_shaping ppo_lagrangian --seeds 5 --workers 2 --out runs/demo $(if $(wildcard runs/demo),--resume)

test: $(VENV)/.installed-dev  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/mypy >$(VENV)/mypy.log & mypy=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not timing and not long" --numprocesses 2 --dist loadfile; tests=$$?; \
	wait $$mypy; types=$$?; cat $(VENV)/mypy.log; exit $$((tests + types))
	$(BIN)/pytest -m timing $$(grep -rl mark.timing tests)

test-long: $(VENV)/.installed-dev  ## the tests that take longest, which `make test` leaves out
	OMP_NUM_THREADS=1 $(BIN)/pytest -m long --numprocesses 2

test-processors: $(VENV)/.installed-dev  ## the tests as older processors round, with two threads, in random order
	PYTEST=$(BIN)/pytest tests/any_processor.sh

mutate: $(VENV)/.installed-dev  ## which planted faults the tests notice; goes on where it was stopped
	$(BIN)/python -m tests.mutation.mutate --workers 2

docs: $(VENV)/.installed-dev  ## the documentation as HTML, in build/docs
	$(BIN)/sphinx-build -E -W --keep-going -n textsafe_gym/docs build/docs

reference: $(VENV)/.installed-dev  ## what the pages hold of the code itself: settings, help, adapters
	$(BIN)/python -m textsafe_gym.docs.generate

linkcheck: $(VENV)/.installed-dev  ## whether the pages that the documentation links to are there; needs a network
	$(BIN)/sphinx-build -E -n -b linkcheck textsafe_gym/docs build/linkcheck

wheel-check:  ## an episode in a fresh environment with nothing but the wheel and what it requires; needs a network
	rm -rf build/wheel-check build/lib build/bdist.*
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/pip wheel --quiet --no-deps --wheel-dir build/wheel-check/dist .
	build/wheel-check/bin/pip install --quiet --constraint constraints.txt build/wheel-check/dist/*.whl
	cd build/wheel-check && bin/python -I ../../tests/helpers/base_install.py
	cd build/wheel-check && { bin/textsafe train ppo; test $$? = 2; }  # says what is to be added

clean:
	rm -rf $(VENV)
