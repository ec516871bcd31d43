# make report   train the lab's models if they are not cached, run the notebooks, write reports/
# make test     every check of this project
# make test-servers  what a real server answers: compiles llama.cpp once, some four minutes
# make fuzz     ten thousand bad inputs to all commands, counted by how they end
# make lab      JupyterLab on the first notebook
# make bench    speed and power against peers; BENCH=--smoke runs each on tiny inputs only
# make notebooks  execute notebooks/source/*.py into notebooks/*.ipynb, outputs included
# make clean    remove what the commands above wrote here (not the cache of trained models)
#
# PYTHON       the interpreter that makes the environment   (python3)
# VENV         where it is made                             (.venv)
# BENCH        arguments of every benchmark
# TORCH_INDEX  the package index that torch is taken from, for instance that of its CPU builds

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BENCH ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
LONGEST := tests/test_ray.py tests/test_faults.py tests/browser tests/test_notebooks.py \
	tests/test_benchmarks.py tests/test_calibration.py tests/test_causal_lm.py tests/test_foreign_runs.py
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.PHONY: report test test-servers fuzz lab bench notebooks clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV): about two gigabytes, a few minutes"
	$(PYTHON) -m venv $(VENV)
	@# torch first and alone, so that another index is asked for nothing else.
	$(PIP) install --quiet --no-deps -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install --quiet -c constraints.txt -e '.[all]'
	@touch $@

report: $(READY)
	$(BIN)/palimpsest lab train --observations
	$(BIN)/palimpsest report -p source=tiny

test: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo
	@# Two at a time: much of a test is waiting for processes. A file's tests share what they set up,
	@# and the longest files come first, so that none is left to the end.
	@# One thread each: two that both take every core wait for one another.
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest --quiet -n 2 --dist loadfile --no-loadscope-reorder \
		$(LONGEST) workbench tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -n 2 --dist loadscope --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg $(or $(NOTEBOOKS),notebooks/no-notebooks.ipynb)

test-servers: $(READY)
	@echo "compiling llama.cpp if it is not there: some four minutes on two cores"
	$(PIP) install --quiet -c constraints.txt -e '.[servers]'
	PALIMPSEST_TEST_SERVERS=1 $(BIN)/python -m pytest -rP -m servers tests/test_servers_llama.py

fuzz: $(READY)
	$(BIN)/python tests/fuzzing.py 10000 0

lab: $(READY)
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

bench: $(READY)
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script $(BENCH); \
	done

notebooks: $(READY)
	$(BIN)/python -m workbench.reports build

clean:
	rm -rf $(VENV) reports build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find workbench tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
