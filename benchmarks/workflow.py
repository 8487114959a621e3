"""What Snakemake adds to a grid of trivial runs, and whether `threads:` keeps jobs apart. Linux.

    python benchmarks/workflow.py                # 200 cells, alone on the machine: see README.md beside this file

Every process `python -m c2f STEP` of the workflow notes its own start (as the kernel has it) and end. So
  overhead = wall seconds of the snakemake command * cores / the sum of its processes' seconds - 1
holds Snakemake's own work, shells, what ends of a process after its last line of Python, and idle cores. What is beside
a process slows it and lengthens the sum: so the two processes of a cell are also timed with nothing beside them.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package is not installed

from c2f import record
from c2f.errors import C2FError, ConfigError

ROOT = Path(__file__).resolve().parents[1]
NOTE = """
import atexit, json, os, time

words = open("/proc/self/cmdline").read().split("\\0")
if words[1:3] == ["-m", "c2f"]:
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    began = time.time() - float(open("/proc/uptime").read().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")

    def note():
        text = json.dumps({"step": words[3], "began": began, "ended": time.time()})
        open(f"{os.environ['NOTES']}/{os.getpid()}-{time.time_ns()}.json", "w").write(text)

    atexit.register(note)
"""
TRIVIAL = {"num_users": 60, "num_items": 48, "num_blocks": 4, "pairs_per_user": 8}
BUSY = {"num_users": 6000, "num_items": 4000, "num_blocks": 8, "pairs_per_user": 40}
MOST_SHARE = 0.05


def trivial_grid(cells: int) -> dict:
    """Return a configuration of so many runs of one epoch: at most ten budgets, the rest by seeds."""
    budgets = next(count for count in range(10, 0, -1) if cells % count == 0)
    return {
        "output": "results/trivial",
        "grid": {
            "datasets": ["blocks"],
            "methods": ["short-vectors"],
            "budgets": [f"numbers-{108 * count}" for count in range(1, budgets + 1)],
            "seeds": list(range(cells // budgets)),
            "figures": [],
        },
        "datasets": {"blocks": {"generate": TRIVIAL}},
        "training": {"max_epochs": 1, "device": "cpu"},
        "evaluation": {"serving": {"num_users": 10}},
    }


def busy_grid(name: str, threads: int, epochs: int) -> dict:
    """Return a configuration of two runs of so many epochs each."""
    return {
        "output": f"results/{name}",
        "grid": {
            "datasets": ["blocks"], "methods": ["lightgcn"], "budgets": ["full"], "seeds": [1, 2], "figures": [],
        },
        "datasets": {"blocks": {"generate": BUSY, "threads": threads}},
        "training": {"max_epochs": epochs, "evaluate_every": epochs, "device": "cpu"},
    }  # fmt: skip


def snakemake(folder: Path, config: dict, cores: int, *targets: str) -> tuple[float, list[dict]]:
    """Run the workflow in a folder; return the wall seconds, and step, began and ended of each of its processes."""
    name = Path(config["output"]).name
    notes = folder / f"notes-{name}"
    notes.mkdir()
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    (folder / "sitecustomize.py").write_text(NOTE)
    if not (folder / "config").exists():
        (folder / "config").symlink_to(ROOT / "config")
    words = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", str(cores), *targets]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(folder), "NOTES": str(notes)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *words, "--configfile", str(folder / f"{name}.yaml")],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise C2FError(f"snakemake ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds, [record.read_json(file) for file in notes.iterdir()]


def seconds_of(processes: list[dict], *steps: str) -> list[float]:
    """Return the seconds of the processes of these steps."""
    return [process["ended"] - process["began"] for process in processes if process["step"] in steps]


def grid_overhead(folder: Path, cells: int, cores: int) -> dict:
    """Run the grid of trivial cells, and a cell's two processes alone, three times; return what each costs in seconds.

    run_seconds: of the mean cell's two processes within the grid; alone_seconds: with nothing beside them;
    training_seconds: of these what the trainer itself took; per_cell_overhead: core seconds beside the processes.
    """
    wall, processes = snakemake(folder, trivial_grid(cells), cores, "all")
    processes = [process for process in processes if process["step"] != "check"]  # a part of Snakemake's start
    total = sum(process["ended"] - process["began"] for process in processes)
    runs = seconds_of(processes, "train", "evaluate")
    records = [record.read_json(file) for file in sorted((folder / "results/trivial/runs").rglob("run.json"))]
    assert len(runs) == 2 * cells == 2 * len(records)
    command = [sys.executable, *shlex.split(records[0]["command"])[1:]]
    run = command[command.index("--output") + 1]
    evaluate = [sys.executable, "-m", "c2f", "evaluate", "--run", run, "--data", "results/data/blocks", "--output", run]
    alone = []
    for _ in range(3):
        began = time.perf_counter()
        for words in (command, evaluate):
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)
        alone.append(time.perf_counter() - began)
    span = max(process["ended"] for process in processes) - min(process["began"] for process in processes)
    return {
        "cells": cells,
        "wall_seconds": wall,
        "before_and_after_seconds": wall - span,
        "process_seconds": total,
        "other_steps_seconds": total - sum(runs),
        "overhead": wall * cores / total - 1,
        "run_seconds": sum(runs) / cells,
        "alone_seconds": statistics.median(alone),
        "training_seconds": statistics.mean(entry["seconds"] for entry in records),
        "per_cell_overhead": (wall * cores - total) / cells,
    }


def threads_kept(folder: Path, epochs: int) -> list[dict]:
    """Train two runs in three ways on two cores; return for each way the threads, and the seconds of jobs and span."""
    ways = []
    for way, threads, cores in (("at once", 1, 2), ("in turn, two threads", 2, 2), ("in turn, one thread", 1, 1)):
        name = f"threads-{threads}-cores-{cores}"
        files = [f"results/{name}/runs/blocks/lightgcn/full/{seed}/run.json" for seed in (1, 2)]
        _, processes = snakemake(folder, busy_grid(name, threads, epochs), cores, *files)
        jobs = [process for process in processes if process["step"] == "train"]
        span = max(job["ended"] for job in jobs) - min(job["began"] for job in jobs)
        found = [record.read_json(folder / file)["threads"] for file in files]
        ways.append({"way": way, "threads": found, "job_seconds": seconds_of(jobs, "train"), "span_seconds": span})
    return ways


def as_markdown(result: dict) -> str:
    """Return the measurement in words and a table."""
    grid, cores = result["grid"], result["cores"]
    start = grid["run_seconds"] - grid["training_seconds"]
    enough = grid["per_cell_overhead"] / MOST_SHARE
    lines = [
        f"`{result['command']}`, commit {result['commit']}, {result['machine']}, load {result['load']:.1f} before.",
        "",
        f"{grid['cells']} trivial runs on {cores} cores: {grid['wall_seconds']:.1f} s, "
        f"{grid['before_and_after_seconds']:.1f} s of them before the first and after the last process. "
        f"The processes took {grid['process_seconds']:.1f} s, "
        f"{grid['other_steps_seconds']:.1f} s of them beside training and evaluation. "
        f"Overhead {100 * grid['overhead']:.1f} %.",
        "",
        f"A cell's two processes took {grid['run_seconds']:.2f} s ({grid['alone_seconds']:.2f} s with nothing beside "
        f"them); {grid['training_seconds']:.2f} s of it was training, {start:.2f} s starting, reading, writing and "
        f"evaluating. Beside its processes a cell cost {grid['per_cell_overhead']:.2f} core seconds: the overhead is "
        f"below {100 * MOST_SHARE:.0f} % where cells take {enough:.1f} s or more in the mean.",
        "",
        "| two runs on two cores | threads of each | s of each job | s from first start to last end |",
        "|---|---|---|---|",
    ]
    for way in result["threads"]:
        seconds = ", ".join(f"{value:.1f}" for value in way["job_seconds"])
        lines.append(
            f"| {way['way']} | {', '.join(map(str, way['threads']))} | {seconds} | {way['span_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure both. Returns 0, or 2 where something cannot be measured."""
    top = argparse.ArgumentParser(prog="python benchmarks/workflow.py", description=__doc__)
    top.add_argument("--cells", type=int, default=200, help="runs of the trivial grid")
    top.add_argument("--cores", type=int, default=2)
    top.add_argument("--epochs", type=int, default=40, help="of the two runs that are trained side by side")
    top.add_argument(
        "--output", type=Path, default=ROOT / "results/bench", help="folder of workflow.json and workflow.md"
    )
    options = top.parse_args(arguments)
    try:
        for name in ("cells", "cores", "epochs"):
            if getattr(options, name) < 1:
                raise ConfigError(f"--{name} {getattr(options, name)} must be at least 1")
        words = sys.argv[1:] if arguments is None else arguments
        result = {
            "command": shlex.join(["python", "benchmarks/workflow.py", *words]),
            "commit": record.commit(),
            "machine": record.machine(),
            "load": os.getloadavg()[0],
            "cores": options.cores,
        }
        with tempfile.TemporaryDirectory() as folder:
            result["grid"] = grid_overhead(Path(folder), options.cells, options.cores)
        with tempfile.TemporaryDirectory() as folder:
            result["threads"] = threads_kept(Path(folder), options.epochs)
        record.write_json(options.output / "workflow.json", result)
        with record.write_atomically(options.output / "workflow.md") as temporary:
            temporary.write_text(as_markdown(result))
    except C2FError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    print(as_markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
