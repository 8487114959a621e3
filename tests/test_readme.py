"""What the README tells a reader to do works as printed."""

import re
from pathlib import Path

import pytest
import steps
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def example(tmp_path, monkeypatch) -> dict:
    """The README's baseline, written where Python finds it; returns its config entry."""
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
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


def test_the_example_is_infeasible_below_two_numbers_a_node(example, tmp_path):
    data = steps.prepared(tmp_path)
    record = steps.trained(data, steps.resolved(tmp_path, "two-numbers", example), tmp_path / "run", "numbers-200")
    assert record["status"] == "infeasible"
    assert "216 numbers" in record["reason"]  # 2 * (60 users + 48 items)


@pytest.mark.parametrize("page", ["README.md", "config/README.md"])
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    configs = re.findall(r"--configfile (\S+\.yaml)", text)
    for target in [*links, *configs]:
        assert (ROOT / target).exists() or (ROOT / page).parent.joinpath(target).exists(), target


def test_every_method_of_the_grid_is_in_the_table_of_methods():
    grid = yaml.safe_load((ROOT / "config/config.yaml").read_text())["grid"]
    for name in grid["methods"]:
        assert f"`{name}`" in README
