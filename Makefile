# make install: the environment in .venv; make run: the smoke grid, figures and report in results/smoke/; make test: everything CI checks, the smoke grid included; make bench: speed and growth at gowalla's size.
PYTHON ?= python3.11
CORES ?= 2
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: install run lint test bench

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

bench: install  # alone on the machine; see benchmarks/README.md
	python benchmarks/bench.py --sizes gowalla x1 x2 x4 x8 --threads $(CORES) --output results/bench
