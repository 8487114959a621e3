# make install: the environment in .venv; make run: the smoke grid, figures and report in results/smoke/; make test: everything CI checks, the smoke grid included.
PYTHON ?= python3.11
CORES ?= 2
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: install run lint test

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	pip install --quiet -r requirements.txt
	pip install --quiet --no-deps -e .
	touch $@

run: install
	snakemake --cores $(CORES) --rerun-incomplete --show-failed-logs all --configfile config/smoke.yaml
	@echo "Done: open results/smoke/report.html"

lint: install
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	snakemake --lint --configfile config/smoke.yaml
	mypy

test: lint run  # a thread per worker: more would wait for each other
	OMP_NUM_THREADS=1 pytest -q -n $(CORES) --dist loadfile
