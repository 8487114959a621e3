"""What the README tells a reader to do works as printed."""

import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import steps
import yaml
from conftest import interactions

from c2f.budget import Budget
from c2f.errors import BudgetError
from c2f.graph import Graph
from c2f.grid import Grid
from c2f.method import build, load_class
from c2f.settings import from_mapping

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GRID = Grid(yaml.safe_load((ROOT / "config/config.yaml").read_text()), ROOT / "workflow/schemas/config.schema.yaml")


@pytest.fixture
def example(tmp_path, monkeypatch) -> dict:
    """The README's baseline, written where Python finds it; returns its config entry."""
    code = re.search(r"```python\n([^`]*?class TwoNumbers.*?)```", README, re.DOTALL).group(1)
    (tmp_path / "two_numbers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    entry = yaml.safe_load(re.search(r"two-numbers: (\{.*\})", README).group(1))
    return {"uses": entry["uses"].replace("baselines.", "")}


def test_the_example_of_a_baseline_trains_and_is_evaluated(example, tmp_path):
    data = steps.prepared(tmp_path)
    method = steps.resolved(tmp_path, "two-numbers", example)
    record = steps.trained(data, method, tmp_path / "run", budget="bytes-1kB")
    assert record["status"] == "ok"
    assert record["footprint"]["stored"] == 4 * 2 * (60 + 48)
    assert steps.step("evaluate", run=tmp_path / "run", data=data, output=tmp_path / "run") == 0


def test_the_example_of_serving_a_model_runs_as_printed(tmp_path):
    code = re.search(r"```python\n(from c2f\.serve.*?)```", README, re.DOTALL).group(1)
    data = steps.prepared(tmp_path)
    steps.trained(data, steps.resolved(tmp_path), tmp_path / "run")
    places = re.findall(r'"(results/[^"]*)"', code)
    found: dict = {}
    exec(code.replace(places[0], str(tmp_path / "run")).replace(places[1], str(data)), found)
    assert len(found["items"]) == len(found["scores"]) == 5


def test_the_example_is_infeasible_below_two_numbers_a_node(example, tmp_path):
    data = steps.prepared(tmp_path)
    record = steps.trained(data, steps.resolved(tmp_path, "two-numbers", example), tmp_path / "run", "numbers-200")
    assert record["status"] == "infeasible"
    assert "216 numbers" in record["reason"]  # 2 * (60 users + 48 items)


@pytest.mark.slow
def test_the_example_file_of_the_design_is_a_method_as_it_stands(tmp_path, monkeypatch, shared):
    design = (shared / "DESIGN.md").read_text()
    code = re.search(r"```python\n([^`]*?class ShortVectors.*?)```", design, re.DOTALL).group(1)
    (tmp_path / "design_example.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    data = steps.prepared(tmp_path)
    method = steps.resolved(tmp_path, "of-the-design", {"uses": "design_example:ShortVectors"})
    record = steps.trained(data, method, tmp_path / "run", budget="bytes-1kB")
    assert (record["status"], record["footprint"]["stored"]) == ("ok", 4 * 2 * (60 + 48))
    assert steps.step("evaluate", run=tmp_path / "run", data=data, output=tmp_path / "run") == 0


def test_the_commands_for_a_new_baseline_check_it_and_list_its_jobs(tmp_path):
    folder = steps.copy_checkout(tmp_path / "checkout", "tests", "pyproject.toml")
    code = re.search(r"```python\n([^`]*?class TwoNumbers.*?)```", README, re.DOTALL).group(1)
    entry = re.search(r"^    (  two-numbers: .*\n)", README, re.MULTILINE).group(1)
    commands = re.findall(r"^    (pytest .*?|snakemake -n .*?) +# ", README, re.MULTILINE)
    assert len(commands) == 2
    (folder / "baselines" / "two_numbers.py").write_text(code)
    for file, place, added in [
        ("config.yaml", r"^methods:.*\n", entry),
        ("config.yaml", r"^grid:(.*\n)+?  methods:.*\n *\[", "two-numbers, "),
        ("smoke.yaml", r"^grid:(.*\n)+?  methods: \[", "two-numbers, "),
    ]:
        path = folder / "config" / file
        text = path.read_text()
        end = re.search(place, text, re.MULTILINE).end()
        path.write_text(text[:end] + added + text[end:])
    words = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    for command in commands:
        done = subprocess.run(command.split(), cwd=folder, env=os.environ | words, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        if command.startswith("pytest"):
            assert re.search(r"\d+ passed", done.stdout)
        else:
            new = [job for job in steps.jobs(done.stdout + done.stderr) if job.get("method") == "two-numbers"]
            assert Counter(job["rule"] for job in new) == Counter(resolve=1, train=6, evaluate=6)  # 3 budgets, 2 seeds


def test_conda_users_make_the_environment_that_they_activate():
    name = yaml.safe_load((ROOT / "environment.yml").read_text())["name"]
    assert "conda env create -f environment.yml" in README and f"conda activate {name}" in README


@pytest.mark.parametrize("page", ["README.md", "config/README.md", "baselines/README.md"])
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    configs = re.findall(r"--configfile (\S+\.yaml)", text)
    for target in [*links, *configs]:
        assert (ROOT / target).exists() or (ROOT / page).parent.joinpath(target).exists(), target


def table_of_methods() -> dict:
    """The rows of baselines/README.md by the names in their first cell."""
    lines = (ROOT / "baselines/README.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {tuple(re.findall(r"`([^`]+)`", row[0])): row for row in cells}


def test_every_method_is_in_the_table_of_methods_or_in_the_words_below_it():
    page = (ROOT / "baselines/README.md").read_text()
    for name in GRID.entries:
        if not re.match(r"c2f-(coarse-)?t?[0-9]|c2f-(tau|gate|bridges|components)-[0-9]", name):  # points of figures
            parent = re.sub(r"-search|-coarse", "", name)
            assert f"`{name}`" in page or f"`{parent}`" in page, name
    for name in GRID.methods:
        assert f"`{name}`" in README, name


@pytest.mark.parametrize("names", table_of_methods(), ids=lambda names: names[0])
def test_the_table_of_methods_says_how_long_a_file_is_and_what_gowalla_needs_at_least(names):
    row, entry = table_of_methods()[names], GRID.entries[names[0]]
    cls = load_class(entry.uses)
    source = Path(inspect.getsourcefile(cls))
    assert row[3].endswith(f"), {len(source.read_text().splitlines())}") and source.name in row[3]
    if row[6] == "-":
        pytest.skip("a reference: its size is not solved from a budget")
    graph, needs = Graph(interactions([(0, 0)], 29_858, 40_981)), []
    for kind in ("numbers", "bytes"):
        with pytest.raises(BudgetError) as error:
            build(cls, Budget.parse(f"{kind}-1"), graph, from_mapping(cls.Params, entry.params, names[0]), 1)
        needs.append(f"{error.value.needs:,}")
    assert row[6] == " / ".join(needs)


def test_conda_and_pip_install_the_same_versions():
    pip = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": pip}
