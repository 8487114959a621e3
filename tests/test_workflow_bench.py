"""The measurement of the workflow: its grid, its notes and its arithmetic. No test looks at times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import workflow

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("cells", "budgets"), [(200, 10), (10, 10), (27, 9), (7, 7)])
def test_the_trivial_grid_has_as_many_cells_as_asked_for(cells, budgets):
    grid = workflow.trivial_grid(cells)["grid"]
    assert (len(grid["budgets"]), len(grid["budgets"]) * len(grid["seeds"])) == (budgets, cells)


def test_a_step_notes_its_own_start_and_end_and_no_other_process_does(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(workflow.NOTE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NOTES": str(tmp_path)}
    for words in (["-m", "c2f", "table", "--help"], ["-c", "pass"]):
        subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True, capture_output=True)
    (file,) = tmp_path.glob("*.json")
    note = json.loads(file.read_text())
    assert note["step"] == "table"
    assert 0 < note["ended"] - note["began"] < 60


def test_the_report_says_from_what_length_of_a_run_the_overhead_is_small():
    # 200 s on two cores for 300 s of processes: a third more; 0.5 core seconds a cell are 5 % of 10 s
    numbers = {"wall_seconds": 200.0, "before_and_after_seconds": 4.0, "process_seconds": 300.0}
    grid = numbers | {"other_steps_seconds": 20.0, "overhead": 200 * 2 / 300 - 1, "run_seconds": 1.4}
    grid |= {"cells": 200, "alone_seconds": 1.2, "training_seconds": 0.1, "per_cell_overhead": (400 - 300) / 200}
    ways = [{"way": "at once", "threads": [1, 1], "job_seconds": [3.0, 3.1], "span_seconds": 3.2}]
    about = {"command": "x", "commit": "y", "machine": "z", "load": 0.1, "cores": 2}
    text = workflow.as_markdown(about | {"grid": grid, "threads": ways})
    assert "Overhead 33.3 %" in text
    assert "below 5 % where cells take 10.0 s or more" in text
    assert "| at once | 1, 1 | 3.0, 3.1 | 3.2 |" in text
