# What the rules need to know about the configuration. The logic, and its tests, are in c2f/grid.py.
import json
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(workflow.current_basedir).parents[1]
sys.path.insert(0, str(ROOT))


def put_first(variable, folder):
    paths = [str(folder), os.environ.get(variable)]
    os.environ.update({variable: os.pathsep.join(filter(None, paths))})


# `python -m c2f` in a rule: this checkout's package, in the environment that Snakemake itself runs in
put_first("PATH", Path(sys.executable).parent)
put_first("PYTHONPATH", ROOT)

from c2f.captions import table_caption
from c2f.errors import C2FError
from c2f.grid import Grid, Run, module_file, read_config

try:
    files = list(map(read_config, workflow.configfiles))  # --configfile comes first
    order = [name for file in files[-1:] + files for name in file.get("methods", {})]
    GRID = Grid(config, ROOT / "workflow" / "schemas" / "config.schema.yaml", order)
    GRID.check_entries(Path(".snakemake", "checked-methods"))
except C2FError as error:
    print(f"ERROR: {error}", file=sys.stderr)
    sys.exit(2)


# With a rate limit, its default, every finished job makes Snakemake 9.27 look for jobs once more in each second from then
# on: a quarter of a core after 200 jobs. The linear program that chooses the next jobs weighs temporary files, of which there
# are none, and takes 0.05 s with 100 jobs ready. Both are there only when the jobs start.
onstart:
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None
    workflow.scheduler._job_selector = workflow.scheduler.job_selector_greedy


READING = (
    "baselines.decoders",
    "c2f.decoding",
)  # what makes vectors of an artifact


def made_by():
    """Return the command that makes the tables and the report, whatever the number of cores."""
    chosen = workflow.overwrite_configfiles or ["config/config.yaml"]
    keys = workflow.config_settings.config.items()
    words = ["--configfile", *map(os.path.relpath, chosen)] + ["--config"] * bool(keys)
    words += [f"{key}={value}" for key, value in keys]
    return shlex.join(["snakemake", "--cores", "2", "all", *words])


wildcard_constraints:
    dataset="[^/]+",
    method="[^/]+",
    budget="[^/]+",
    seed="[0-9]+",
    name="[a-z0-9_]+",


def training_on(dataset):
    """Return the train step's words for settings that hold on this dataset, none where it has none."""
    changes = GRID.data_training(dataset)
    return ["--training", changes] if changes else []


def start_of(wildcards, seed=None):
    """Return the folder of the run that this one starts from, in a list that is empty where it starts from nothing."""
    seed = int(wildcards.seed) if seed is None else seed
    run = Run(wildcards.dataset, wildcards.method, wildcards.budget, seed)
    start = GRID.start(run)
    return [GRID.folder(start)] if start else []
