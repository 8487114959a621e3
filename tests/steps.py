"""The steps of the command line as functions, on a made-up dataset small enough to train in a second; and Snakemake."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from c2f.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
SPEC = {
    "generate": {"num_users": 60, "num_items": 48, "num_blocks": 4, "pairs_per_user": 8, "seed": 0},
    "recipe": "given",
}
LIGHTGCN = {"uses": "baselines.lightgcn:LightGCN", "params": {"dim": 4, "num_layers": 2}}
TRAINING = {"lr": 0.05, "batch_size": 128, "max_epochs": 4, "evaluate_every": 2, "device": "cpu"}


def step(name: str, /, **options) -> int:
    """Run one step in this process and return its exit code; lists become repeated words, mappings JSON."""
    words = [name]
    for option, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{option}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return main(words)


def prepared(folder: Path, name: str = "toy", **generate) -> Path:
    """Download (make up) and prepare a dataset below `folder`; return the folder of its parquet files."""
    data = folder / "data" / name
    spec = SPEC | {"generate": SPEC["generate"] | generate}
    assert step("download", name=name, spec=spec, output=data / "raw") == 0
    assert step("prepare", name=name, spec=spec, raw=data / "raw", output=data) == 0
    return data


def resolved(folder: Path, name: str = "lightgcn", entry: dict | None = None, **training) -> Path:
    """Resolve a method below `folder`; return its file."""
    method = folder / "methods" / f"{name}.json"
    assert step("resolve", name=name, entry=entry or LIGHTGCN, training=TRAINING | training, output=method) == 0
    return method


def train_words(data: Path, method: Path, run: Path, budget: str = "full", seed: int = 1, **more) -> dict:
    """Return the options of a `train` step."""
    files = {part: data / f"{part}.parquet" for part in ("train", "valid")}
    return {
        **files,
        "stats": data / "stats.json",
        "method": method,
        "budget": budget,
        "seed": seed,
        "output": run,
        **more,
    }


def trained(data: Path, method: Path, run: Path, budget: str = "full", seed: int = 1, **more) -> dict:
    """Train one run into the folder `run`; return its record."""
    assert step("train", **train_words(data, method, run, budget, seed, **more)) == 0
    return record(run)


def record(run: Path) -> dict:
    """Return run.json."""
    return json.loads((run / "run.json").read_text())


LITERATURE = "results/published/literature.csv"


def copy_checkout(folder: Path, *more: str) -> Path:
    """Copy what the workflow consists of, so that edits and results stay apart from this checkout."""
    folder.mkdir()
    for part in ["Snakefile", "environment.yml", "workflow", "config", "c2f", "baselines", LITERATURE, *more]:
        source, copy = ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    return folder


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Snakemake in a folder."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def jobs(output: str) -> list[dict[str, str]]:
    """Return every job of a dry run: its rule, input, output, log and resources as printed, and its wildcards."""
    found = []
    for block in re.split(r"^\[.*\]$", output, flags=re.MULTILINE):
        if rule := re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE):
            values = dict(re.findall(r"(\w+)=([^,\s]+)", (re.search(r"wildcards: (.*)", block) or [""])[0]))
            files = dict(re.findall(r"^ +(input|output|log|resources): (.*)", block, re.MULTILINE))
            found.append(
                {"rule": rule[1], **dict.fromkeys(("input", "output", "log", "resources"), ""), **files, **values}
            )
    return found
