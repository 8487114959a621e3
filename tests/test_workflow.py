"""The grid and its workflow: which jobs a configuration asks for, what a mistake says, what an edit reruns."""

import html
import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from snakemake.utils import update_config
from steps import copy_checkout, jobs, snakemake

from c2f.captions import FIGURES
from c2f.errors import ConfigError
from c2f.grid import Grid, Run, read_config

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
CONFIGS = sorted(path.name for path in (ROOT / "config").glob("*.yaml"))


def configuration(changes: dict | None = None, file: str | None = None) -> dict:
    """The configuration as Snakemake sees it: config.yaml, then --configfile, then the changes."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    for layer in ([yaml.safe_load((ROOT / "config" / file).read_text())] if file else []) + [changes or {}]:
        update_config(config, layer)
    return config


def grid(changes: dict | None = None, file: str | None = None) -> Grid:
    return Grid(configuration(changes, file), SCHEMA)


def dry_run(folder: Path, *words: str) -> str:
    done = snakemake(folder, "-n", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def job_counts(output: str) -> dict[str, int]:
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the workflow without results."""
    return copy_checkout(tmp_path_factory.mktemp("workflow") / "checkout")


# Entries and runs -----------------------------------------------------------------------------------------------------


def test_like_inherits_and_merges_key_by_key():
    entry = grid().entries["c2f-160+40"]
    assert entry.lineage == ("c2f-160+40", "c2f")
    assert entry.uses == "c2f.metaembed:C2FMetaEmbed"
    assert (entry.params["fine_codes"], entry.params["gate"]) == (40, 0.2)
    assert entry.starts_from == {"method": "c2f-coarse-160"}
    assert entry.budgets == ("full",)


def test_a_run_starts_from_the_same_dataset_budget_and_seed():
    start = grid().start(Run("gowalla", "c2f", "bytes-1MB", 2025))
    assert start == Run("gowalla", "c2f-coarse", "bytes-1MB", 2025)


def test_a_start_may_name_its_own_budget():
    changes = {"methods": {"legcf": {"starts_from": {"method": "lightgcn", "budget": "full"}}}}
    assert grid(changes).start(Run("gowalla", "legcf", "bytes-1MB", 1)) == Run("gowalla", "lightgcn", "full", 1)


def test_an_entry_is_told_to_resolve_without_its_budgets():
    """More budgets for a method must not retrain those that it has."""
    more = {"methods": {"lightgcn": {"budgets": ["full", "bytes-8MB"]}}}
    assert grid(more).entries["lightgcn"].to_json() == grid().entries["lightgcn"].to_json()


def test_a_dataset_like_another_has_its_files_and_settings_but_for_what_it_changes():
    changes = {
        "datasets": {
            "ml-1m": {"training": {"batch_size": 16384}},
            "mine": {"like": "ml-1m-holdout", "k_core": 5, "training": {"lr": 0.1}},
            "other-files": {"like": "ml-1m-legcf", "files": {"test.txt": {"sha256": "0" * 64}}},
            "more-blocks": {"like": "blocks", "generate": {"num_blocks": 4}},
        }
    }
    whole = grid(changes)
    mine, given = (json.loads(whole.data_spec(name, urls=True)) for name in ("mine", "ml-1m"))
    assert mine == given | {"recipe": "holdout", "k_core": 5}
    assert json.loads(whole.data_training("mine")) == {"batch_size": 16384, "lr": 0.1}
    assert (whole.threads("gowalla-holdout"), whole.data["more-blocks"]["generate"]["num_users"]) == (2, 600)
    names = ("ml-1m", "ml-1m-legcf", "mine", "other-files", "more-blocks", "gowalla-holdout")
    roots = ["ml-1m", "ml-1m", "ml-1m", "other-files", "more-blocks", "gowalla"]  # whose files it has
    assert [whole.roots[name] for name in names] == roots


def test_one_dataset_under_several_recipes_is_told_from_other_data():
    def several(*datasets: str, **entries: dict) -> bool:
        return grid({"grid": {"datasets": list(datasets)}, "datasets": entries}).several_protocols

    assert several("gowalla-holdout", "lastfm", "gowalla") and several("ml-1m-legcf", "ml-1m-holdout")
    assert not several("gowalla", "lastfm-holdout")
    assert not several("lastfm", "again", again={"like": "lastfm", "split_seed": 1})  # another split, the same recipe
    assert several("lastfm", "again", again={"like": "lastfm-legcf", "split_seed": 1})
    assert not several("lastfm", "core", core={"like": "lastfm-legcf", "k_core": 5})  # other pairs


def test_urls_and_threads_do_not_reach_the_prepare_step():
    changes = {"datasets": {"gowalla": {"threads": 7, "files": {"train.txt": {"urls": ["https://elsewhere.org/t"]}}}}}
    assert grid(changes).data_spec("gowalla", urls=False) == grid().data_spec("gowalla", urls=False)
    assert "https://elsewhere.org/t" in grid(changes).data_spec("gowalla", urls=True)


def test_a_dataset_s_own_settings_reach_the_train_step_and_its_gpu_but_not_the_prepare_step():
    on_blocks = {"datasets": {"blocks": {"training": {"device": "cpu"}}}}
    assert json.loads(grid(on_blocks).data_training("blocks")) == {"device": "cpu"}
    assert grid(on_blocks).data_spec("blocks", urls=False) == grid().data_spec("blocks", urls=False)
    in_the_entry = {"methods": {"legcf": {"training": {"device": "cpu"}}}}
    assert (grid().gpus("blocks", "c2f-coarse"), grid(in_the_entry).gpus("blocks", "c2f-coarse")) == (
        1,
        0,
    )  # like legcf
    assert (grid(on_blocks).gpus("blocks", "c2f"), grid(on_blocks).gpus("gowalla", "c2f")) == (0, 1)


@pytest.mark.parametrize("file", CONFIGS)
def test_a_dataset_s_own_settings_cut_no_entry_short(file):
    whole = grid(file=file)
    for run in whole.trained:
        longest = json.loads(whole.data_training(run.dataset) or "{}").get("max_epochs", float("inf"))
        assert whole.entries[run.method].training.get("max_epochs", 0) <= longest, run


def test_the_race_for_an_l2_is_trained_as_its_file_says_and_reads_no_test_pairs(checkout):
    lines = (ROOT / "config" / "gowalla-l2.yaml").read_text().splitlines()
    first = next(place for place, line in enumerate(lines) if "snakemake" in line)
    command = " ".join(line.strip("# \\") for line in lines[first : first + 2]).replace("--cores 2", "-n")
    done = subprocess.run(["bash", "-c", command], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = jobs(done.stdout + done.stderr)
    assert Counter(job["rule"] for job in found) == Counter(download=1, prepare=1, resolve=6, train=6)
    assert {job["method"] for job in found if job["rule"] == "train"} == set(grid(file="gowalla-l2.yaml").methods)


# Where it lies --------------------------------------------------------------------------------------------------------


def test_no_two_shipped_configurations_replace_each_other_s_runs():
    assert len({grid(file=file).output for file in CONFIGS}) == len(CONFIGS)


def test_all_but_the_data_lies_below_the_output(checkout):
    found = jobs(dry_run(checkout, "all", "--configfile", "config/gowalla-2mb.yaml"))
    for job in found:
        home = "results/" if job["rule"] in ("download", "prepare") else "results/gowalla-2mb/"
        for file in [*job["output"].split(", "), job["log"]] * (job["rule"] != "all"):
            assert file.startswith(home), file
    assert {"results/gowalla-2mb/report.html", "results/logs/prepare/gowalla.log"} < {
        job[key] for job in found for key in ("output", "log")
    }


def test_every_run_is_asked_for_once():
    for file in CONFIGS:
        runs = grid(file=file).trained
        assert len(runs) == len(set(runs))
        assert set(grid(file=file).asked) <= set(runs)


def test_a_figure_adds_the_runs_that_it_needs():
    only = {
        "grid": {"methods": ["popularity"], "figures": ["ablation_fine_count"], "datasets": ["blocks"], "seeds": [1]}
    }
    assert {run.method for run in grid(only).asked} == {"popularity", "c2f-coarse-100"} | {
        f"c2f-100+{fine}" for fine in (20, 40, 60, 80, 100)
    }


def test_a_figure_at_one_budget_adds_no_runs_at_others():
    only = {"grid": {"methods": ["popularity"], "figures": ["sensitivity_gate"], "datasets": ["blocks"], "seeds": [1]}}
    runs = {run for run in grid(only).asked if run.method != "popularity"}
    methods = {"c2f", "c2f-gate-0.1", "c2f-gate-0.4", "c2f-gate-0.8"}
    assert runs == {Run("blocks", method, "numbers-51200", 1) for method in methods}


def test_each_line_of_a_figure_is_told_whose_look_it_takes():
    told = json.loads(grid({"grid": {"figures": ["sensitivity_codes"]}}).figure_spec("sensitivity_codes"))
    assert told["lines"] == {"coarse stage": "legcf", "fine stage": "c2f"}
    told = json.loads(grid({"grid": {"figures": ["sensitivity_gate"]}}).figure_spec("sensitivity_gate"))
    assert told["lines"] == {"c2f": "c2f"} and {point["line"] for point in told["points"]} == {"c2f"}


def test_a_figure_is_drawn_again_when_the_published_numbers_change():
    whole = grid({"grid": {"figures": ["published_vs_ours", "comparison"]}})
    assert whole.figure_files("published_vs_ours") == ["results/published/literature.csv"]
    assert whole.figure_files("comparison") == []


# Mistakes -------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "method": ({"grid": {"methods": ["legfc"]}}, "unknown method 'legfc' in grid.methods; did you mean 'legcf'?"),
    "dataset": (
        {"grid": {"datasets": ["gowala"]}},
        "unknown dataset 'gowala' in grid.datasets; did you mean 'gowalla'?",
    ),
    "figure": ({"grid": {"figures": ["comparisn"]}}, "unknown figure 'comparisn' in grid.figures; did you mean"),
    "budget kind": ({"grid": {"budgets": ["byts-5MB"]}}, "budget 'byts-5MB' has the unknown kind 'byts'"),
    "budget unit": ({"methods": {"c2f": {"budgets": ["bytes-5XB"]}}}, "budget 'bytes-5XB' has the unknown unit 'XB'"),
    "same budget": ({"grid": {"budgets": ["bytes-0.5MB", "bytes-500kB"]}}, "which are the same budget"),
    "key": ({"grid": {"sedes": [1]}}, "unknown key 'sedes' in grid; did you mean 'seeds'?"),
    "top key": ({"metods": {}}, "unknown key 'metods' in the configuration; did you mean 'methods'?"),
    "method key": (
        {"methods": {"legcf": {"parms": {}}}},
        "unknown key 'parms' in methods.legcf; did you mean 'params'?",
    ),
    "training key": ({"training": {"lrr": 1}}, "unknown key 'lrr' in training; did you mean 'lr'?"),
    "number as text": ({"training": {"lr": "1e-3"}}, "write 1.0e-3"),
    "recipe": (
        {"datasets": {"blocks": {"recipe": "legfc"}}},
        "datasets.blocks.recipe = 'legfc' is unknown; did you mean",
    ),
    "output": ({"output": "../elsewhere"}, "output = '../elsewhere': "),
    "output with a blank": ({"output": "results/my run"}, "output = 'results/my run': "),
    "absolute output": ({"output": "/results"}, "output = '/results': "),
    "two sources": ({"datasets": {"blocks": {"files": {"a.txt": {}}}}}, "datasets: blocks needs either `files`"),
    "dataset like": (
        {"datasets": {"ml-1m-legcf": {"like": "ml-1n"}}},
        "unknown dataset 'ml-1n' in datasets.ml-1m-legcf.like; did you mean 'ml-1m'?",
    ),
    "dataset like itself": (
        {"datasets": {"ml-1m": {"like": "ml-1m-legcf"}}},
        "is like itself, by way of",
    ),
    "no recipe": (
        {"grid": {"datasets": ["mine"]}, "datasets": {"mine": {"generate": {}}}},
        "datasets: mine has no `recipe`; give one of legcf, holdout, given",
    ),
    "recipe of too few files": (
        {"grid": {"datasets": ["mine"]}, "datasets": {"mine": {"like": "gowalla", "recipe": "given"}}},
        "datasets: mine: recipe given reads one file each of train, valid, test (with any ending), but files lists",
    ),
    "no source": (
        {"grid": {"datasets": ["mine"]}, "datasets": {"mine": {"recipe": "given"}}},
        "datasets: mine needs either `files`",
    ),
    "no checksum": (
        {
            "grid": {"datasets": ["mine"]},
            "datasets": {"mine": {"recipe": "legcf", "files": {"train.txt": {"urls": ["https://a.org/b"]}}}},
        },
        "datasets: mine: files: train.txt needs a checksum",
    ),
    "module": ({"methods": {"legcf": {"uses": "baselines.legfc:LEGCF"}}}, "there is no such module"),
    "like": ({"methods": {"c2f-coarse": {"like": "legfc"}}}, "unknown method 'legfc' in methods.c2f-coarse.like"),
    "like itself": ({"methods": {"legcf": {"like": "c2f-coarse"}}}, "is like itself"),
    "start": ({"methods": {"c2f": {"starts_from": "coarse"}}}, "unknown method 'coarse' in methods.c2f.starts_from"),
    "start from itself": ({"methods": {"legcf": {"starts_from": "c2f"}}}, "starts from itself"),
    "start elsewhere": ({"methods": {"c2f": {"starts_from": "lightgcn"}}}, "{method: lightgcn, budget: full}"),
    "no class": ({"methods": {"mine": {"params": {}}}}, "methods.mine names no class"),
    "k of the tables": (
        {"evaluation": {"ks": [5]}},
        "'recall@20' in the tables needs 20, which evaluation.ks = [5] has not; add it there",
    ),
    "k of a figure": (
        {"evaluation": {"ks": [20]}},
        "'ndcg@5' in figures.ablation_fine_share.metrics needs 5, which evaluation.ks = [20] has not; add it there",
    ),
    "metric": (
        {"figures": {"comparison": {"metrics": ["recal@20"]}}},
        "unknown metric 'recal@20' in figures.comparison.metrics; did you mean 'recall@20'?",
    ),
    "seed of a figure": (
        {"figures": {"comparison": {"seeds": [2024, 7]}}},
        "figures.comparison.seeds has 7, which grid.seeds has not; add it there or take it out here",
    ),
    "no points": (
        {"grid": {"figures": ["mine"]}, "figures": {"mine": {"draw": "ablation", "metrics": ["recall@20"]}}},
        "figures.mine needs `points`, as its drawing is 'ablation'",
    ),
    "points for nothing": (
        {"figures": {"comparison": {"points": [{"x": 1, "before": "lightgcn", "after": "lightgcn"}]}}},
        "figures.comparison takes no `points`, as its drawing is 'comparison', which takes metrics, methods, seeds",
    ),
    "no metric": (
        {"grid": {"figures": ["mine"]}, "figures": {"mine": {"draw": "pareto"}}},
        "figures.mine needs `metric`, as its drawing is 'pareto'",
    ),
    "metrics for one": (
        {"grid": {"figures": ["pareto"]}, "figures": {"pareto": {"metrics": ["ndcg@20"]}}},
        "figures.pareto takes no `metrics`, as its drawing is 'pareto', which takes metric, methods, seeds",
    ),
    "metric of a figure": (
        {"grid": {"figures": ["inference"]}, "figures": {"inference": {"metric": "ndgc@20"}}},
        "unknown metric 'ndgc@20' in figures.inference.metric; did you mean 'ndcg@20'?",
    ),
    "budget of a figure": (
        {"grid": {"figures": ["memory_ledger"]}, "figures": {"memory_ledger": {"budget": "numbers-51201"}}},
        "unknown budget 'numbers-51201' in figures.memory_ledger.budget; did you mean 'numbers-51200'?",
    ),
    "no budget to take": (
        {"grid": {"figures": ["memory_ledger"], "budgets": ["bytes-1MB"], "methods": ["legcf"]}},
        "figures.memory_ledger has no `budget`, and grid.budgets has no numbers-N, whose middle it would take; "
        "give it one of bytes-1MB",
    ),
    "size of a figure": (
        {"grid": {"figures": ["rank_changes"]}, "figures": {"rank_changes": {"size": "0.8 MB"}}},
        "figures.rank_changes.size = '0.8 MB' is no amount of memory; write for instance",
    ),
    "no size to take": (
        {"grid": {"figures": ["rank_changes"], "budgets": ["numbers-100"]}},
        "figures.rank_changes has no `size`, and grid.budgets has no bytes-N, whose middle it would take; "
        "give it one such as 1MB",
    ),
    "twin of a budget": (
        {"grid": {"figures": ["components"]}, "figures": {"components": {"budget": "bytes-1000kB"}}},
        "grid.budgets and figures.components.budget together has 'bytes-1MB' and 'bytes-1000kB', which are the same",
    ),
    "reference": (
        {"references": {"plain": "short-vector"}},
        "unknown method 'short-vector' in references; did you mean",
    ),
    "drawing": ({"figures": {"comparison": {"draw": "compare"}}}, "did you mean 'comparison'?"),
    "point": (
        {"figures": {"ablation_fine_share": {"points": [{"x": 1, "before": "legcf", "after": "c2f"}]}}},
        "run at several budgets",
    ),
    "point of another drawing": (
        {
            "grid": {"figures": ["components"]},
            "figures": {"components": {"points": [{"x": 1, "before": "legcf", "after": "c2f"}]}},
        },
        "a point of figures.components has x, before, after, but the drawing 'components' takes x, method",
    ),
    "base of a figure": (
        {"grid": {"figures": ["components"]}, "figures": {"components": {"base": "c2ff"}}},
        "unknown method 'c2ff' in figures.components; did you mean 'c2f'?",
    ),
    "default of a figure": (
        {"grid": {"figures": ["sensitivity_gate"]}, "figures": {"sensitivity_gate": {"default": 0.3}}},
        "figures.sensitivity_gate.default = 0.3 is no x of its points, which have 0.1, 0.2, 0.4, 0.8",
    ),
    "x of curves": (
        {"grid": {"figures": ["training_curves"]}, "figures": {"training_curves": {"x": "steps"}}},
        "figures.training_curves.x = 'steps' is unknown; write epochs or seconds",
    ),
    "metric of curves": (
        {"grid": {"figures": ["training_curves"]}, "figures": {"training_curves": {"metric": "ndcg@50"}}},
        "figures.training_curves.metric = 'ndcg@50' is not in curve.csv; write one of ndcg@5, ndcg@20, recall@20",
    ),
    "published numbers": (
        {
            "grid": {"figures": ["published_vs_ours"]},
            "figures": {"published_vs_ours": {"literature": "results/published/nothing.csv"}},
        },
        "figures.published_vs_ours.literature = 'results/published/nothing.csv', but there is no such file",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_the_way_out(mistake):
    changes, message = MISTAKES[mistake]
    base = {"grid": {"datasets": ["blocks"]}}
    update_config(base, changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        grid(base).asked  # noqa: B018


@pytest.mark.parametrize("mistake", ["method", "dataset", "budget kind", "key"])
def test_snakemake_stops_at_a_mistake_with_one_line_and_exit_code_2(checkout, mistake):
    changes, message = MISTAKES[mistake]
    (checkout / "mistake.yaml").write_text(yaml.safe_dump(changes))
    done = snakemake(checkout, "-n", "all", "--configfile", "mistake.yaml")
    assert done.returncode == 2
    assert f"ERROR: {message}" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_is_unlocked_without_a_number_of_cores(checkout):
    done = snakemake(checkout, "--unlock")
    assert done.returncode == 0, done.stderr


def test_a_key_that_stands_twice_is_named_with_its_file_and_lines(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training:\n  lr: 0.1\n  l2: 0\n  lr: 0.2\n")
    with pytest.raises(ConfigError) as error:
        read_config(path)
    message = f"{path}, line 4: the key 'lr' stands in training already, in line 2; keep one of them"
    assert str(error.value) == message
    for text, place in {
        "a: 1\nb: 2\na: 3\n": "line 3: the key 'a' stands in the configuration already, in line 1",
        "figures: {f: {points: [{x: 1}, {x: 2, x: 3}]}}": "line 1: the key 'x' stands in figures.f.points already",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=place):
            read_config(path)


def test_anchors_aliases_and_an_empty_file_are_fine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: &x {lr: 1}\nb: *x\nc: {<<: *x, lr: 2}\n")
    assert read_config(path) == {"a": {"lr": 1}, "b": {"lr": 1}, "c": {"lr": 2}}
    path.write_text("# nothing yet\n")
    assert read_config(path) == {}


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_no_shipped_configuration_has_a_key_twice(path):
    assert read_config(path)


def test_snakemake_refuses_a_key_that_stands_twice_in_any_configfile(checkout):
    (checkout / "good.yaml").write_text("training: {max_epochs: 1}\n")
    (checkout / "twice.yaml").write_text("training:\n  lr: 0.1\n  lr: 0.2\n")
    done = snakemake(checkout, "-n", "all", "--configfile", "good.yaml", "twice.yaml")
    assert done.returncode == 2
    assert "twice.yaml, line 3: the key 'lr' stands in training already, in line 2" in done.stderr


# Entries checked by their methods -------------------------------------------------------------------------------------


@pytest.fixture
def checks(monkeypatch) -> list:
    """The entries that were checked in processes of their own, one list for each process."""
    found, run = [], subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda words, **more: found.append(list(json.loads(words[5]))) or run(words, **more)
    )
    return found


BLOCKS = {"grid": {"datasets": ["blocks"], "methods": ["hashing"], "figures": []}}


def test_methods_check_their_entries_once_for_each_content(tmp_path, checks):
    for _ in range(2):
        grid(BLOCKS).check_entries(tmp_path)
    assert checks == [["hashing"]]
    grid(update(BLOCKS, {"methods": {"hashing": {"params": {"dim": 64}}}})).check_entries(tmp_path)
    assert checks == [["hashing"]] * 2


def test_a_mistake_in_params_is_found_each_time_and_with_what_it_inherits(tmp_path, checks):
    changes = {"methods": {"mine": {"like": "hashing", "params": {"dim": 0}}}, "grid": {"methods": ["mine"]}}
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"methods\.mine\.params: dim = 0, but it must be at least 1"):
            grid(update(BLOCKS, changes)).check_entries(tmp_path)
    assert len(checks) == 2 and not list(tmp_path.iterdir())


def test_an_entry_that_is_not_run_is_not_checked(tmp_path, checks):
    grid(update(BLOCKS, {"methods": {"c2f": {"params": {"dimm": 8}}}})).check_entries(tmp_path)
    assert checks == [["hashing"]]


# What figures are told ------------------------------------------------------------------------------------------------


def test_colours_follow_config_yaml_whatever_is_drawn_and_whatever_a_configfile_names_first():
    own, config = configuration(), {}
    mine = {"grid": {"methods": ["c2f", "mine"]}, "methods": {"mine": {"like": "legcf"}, "c2f": {"params": {"dim": 8}}}}
    for layer in (mine, own, mine):  # as Snakemake does: what --configfile names comes first
        update_config(config, layer)
    assert list(config["methods"])[:2] == ["mine", "c2f"]
    families = Grid(config, SCHEMA, list(own["methods"])).families
    assert [[name for name in family if name != "mine"] for family in families] == grid().families
    assert next(family for family in families if "mine" in family)[0] == "legcf"


def test_a_family_is_an_entry_and_all_that_are_like_it():
    families = {family[0]: family for family in grid().families}
    assert {"c2f-coarse", "legcf-linear", "c2f-coarse-linear", "c2f-coarse-100"} < set(families["legcf"])
    assert "c2f-linear" in families["c2f"]


def test_the_lines_of_an_ablation_have_the_same_colours_in_every_configuration():
    for file in (None, "smoke.yaml"):
        told = json.loads(grid(file=file).figure_spec("ablation_fine_share"))
        assert told["lines"] == {"before": "legcf", "after": "c2f"}


def test_a_figure_is_told_its_seeds():
    for file, name, seeds in [
        (None, "comparison", [2024, 2025, 2026]),
        ("smoke.yaml", "comparison", [2024, 2025]),
        ("smoke.yaml", "ablation_fine_count", [2024]),
    ]:
        assert json.loads(grid(file=file).figure_spec(name))["seeds"] == seeds


@pytest.mark.parametrize(
    ("name", "key", "own", "middle"),
    [
        ("memory_ledger", "budget", "bytes-0.8MB", {None: "numbers-51200", "small.yaml": "numbers-38400"}),
        ("rank_changes", "size", 500_000, {None: "2MB", "small.yaml": "0.8MB"}),
    ],
)
def test_a_figure_at_one_size_is_told_its_own_or_the_middle_one_of_the_grid(name, key, own, middle):
    for file, expected in middle.items():
        assert json.loads(grid({"grid": {"figures": [name]}}, file).figure_spec(name))[key] == expected
    changes = {"grid": {"figures": [name]}, "figures": {name: {key: own}}}
    assert json.loads(grid(changes, "small.yaml").figure_spec(name))[key] == str(own)


def test_a_figure_of_methods_that_no_budget_sizes_is_at_none():
    told = grid({"grid": {"figures": ["memory_ledger"]}}, "recbole.yaml").figure_spec("memory_ledger")
    assert json.loads(told)["budget"] == "full"


@pytest.mark.parametrize("file", CONFIGS)
def test_every_figure_of_config_yaml_can_be_asked_for_wherever_there_are_budgets_for_it(file):
    budgets = ["numbers-12800", "bytes-1MB"]
    whole = grid({"grid": {"figures": list(configuration()["figures"]), "budgets": budgets}}, file)
    for told in map(json.loads, map(whole.figure_spec, whole.figures)):
        assert told["caption"].startswith(FIGURES[told["draw"]])


def test_a_caption_says_how_to_read_the_figure_what_is_made_up_and_how_many_seeds():
    smoke = grid(file="smoke.yaml")
    assert smoke.caption("comparison") == (
        FIGURES["comparison"] + " Data: blocks (made up, protocol given); nothing is to be concluded from made-up data."
        " Mean over 2 seeds (2024, 2025), bars: one standard deviation."
    )
    assert smoke.caption("ablation_fine_count").endswith(
        " One seed (2024): how far another would lie from it is not known."
    )
    assert "made up" not in grid().caption("comparison")


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_a_grid_has_a_run_for_each_cell_and_those_that_they_start_from():
    whole = grid(
        {
            "grid": {
                "datasets": ["gowalla", "blocks"],
                "methods": ["popularity", "hashing", "c2f"],
                "budgets": ["numbers-12800", "bytes-1MB"],
                "seeds": [1, 2, 3],
                "figures": ["ablation_fine_count"],
            }
        }
    )
    cells = 1 + 2 * 2 + (5 + 1)  # popularity; two methods at two budgets; c2f-100+n and c2f-coarse-100
    assert len(whole.asked) == 2 * cells * 3
    assert len(whole.trained) == 2 * (cells + 2) * 3  # c2f-coarse at two budgets; c2f-100+n start from what is there


@pytest.mark.parametrize("file", CONFIGS)
def test_a_dry_run_has_as_many_jobs_as_the_grid_has_runs(checkout, file):
    whole = grid(file=file)
    each = {rule: len(whole.datasets) for rule in ("prepare", "inference", "collect")}
    each["download"] = len({whole.roots[dataset] for dataset in whole.datasets})
    runs = {"train": len(whole.trained), "evaluate": len(whole.asked)}
    once = {"resolve": len({run.method for run in whole.trained}), "figure": len(whole.figures)}
    once["protocol_effect"] = int(file == "protocols.yaml")
    expected = {**each, **runs, **once, "table": 1, "memory": 1, "compare": 1, "report": 1, "all": 1}
    expected = {rule: count for rule, count in expected.items() if count}
    done = snakemake(checkout, "-n", "all", "--configfile", f"config/{file}", "--quiet", "rules")
    assert done.returncode == 0, done.stderr
    assert job_counts(done.stdout + done.stderr) == {**expected, "total": sum(expected.values())}


def test_datasets_like_one_another_share_one_download_and_are_set_side_by_side(checkout):
    changes = {
        "datasets": {f"blocks-{recipe}": {"like": "blocks", "recipe": recipe} for recipe in ("legcf", "holdout")}
    }
    changes["grid"] = {"datasets": ["blocks-legcf", "blocks-holdout"]}
    (checkout / "recipes.yaml").write_text(yaml.safe_dump(update(BLOCKS, changes)))
    found = jobs(dry_run(checkout, "all", "--configfile", "recipes.yaml"))
    assert [job["dataset"] for job in found if job["rule"] == "download"] == ["blocks"]
    prepared = {job["dataset"]: job["input"] for job in found if job["rule"] == "prepare"}
    assert prepared == dict.fromkeys(["blocks-legcf", "blocks-holdout"], "results/data/blocks/raw/.downloaded")
    [effect] = [job for job in found if job["rule"] == "protocol_effect"]
    [report] = [job for job in found if job["rule"] == "report"]
    assert "results/tables/protocol_effect.csv" in effect["output"] and "protocol_effect.csv" in report["input"]


def test_config_readme_counts_the_training_jobs_of_every_file_and_says_where_they_write():
    page = (ROOT / "config" / "README.md").read_text()
    table = re.findall(r"^\| `([\w-]+\.yaml)` \|.*\| (\d+) \| `([\w/-]+)` \|", page, re.MULTILINE)
    assert {file: (int(count), output) for file, count, output in table} == {
        file: (len(grid(file=file).trained), grid(file=file).output) for file in CONFIGS
    }


def test_training_never_reads_the_test_pairs(checkout):
    small = dry_run(checkout, "all", "--configfile", "config/small.yaml")
    training = [job for job in jobs(small) if job["rule"] == "train"]
    assert len(training) == len(grid(file="small.yaml").trained)
    for job in training:
        assert "train.parquet" in job["input"] and "test" not in job["input"]


def test_a_bare_snakemake_runs_everything(checkout):
    done = snakemake(checkout, "-n", "--configfile", "config/gowalla.yaml", "--quiet", "rules")
    assert job_counts(done.stdout + done.stderr)["train"] == 4  # the coarse runs stand in the grid themselves


def test_evaluation_asks_for_a_gpu_where_training_does(checkout):
    changes = {"methods": {"hashing": {"training": {"device": "cpu"}}}, "grid": {"methods": ["hashing", "svd"]}}
    (checkout / "mine.yaml").write_text(yaml.safe_dump(update(BLOCKS, changes)))
    found = jobs(dry_run(checkout, "all", "--configfile", "mine.yaml"))
    asks = {(job["rule"], job["method"], "gpu=1" in job["resources"]) for job in found if "gpu=" in job["resources"]}
    assert asks == {(rule, name, name == "svd") for rule in ("train", "evaluate") for name in ("hashing", "svd")}


def test_the_shell_command_that_collects_stays_far_below_its_limit():
    whole = grid()
    assert max(len(" ".join(whole.folders(dataset))) for dataset in whole.datasets) < 128 * 1024 / 4


# What an edit reruns --------------------------------------------------------------------------------------------------

TINY = {
    "grid": {
        "datasets": ["blocks"],
        "methods": ["popularity", "hashing", "c2f"],
        "budgets": ["numbers-160"],
        "seeds": [1],
        "figures": ["comparison"],
    },
    "datasets": {"blocks": {"generate": {"num_users": 60, "num_items": 40, "num_blocks": 2, "pairs_per_user": 8}}},
    "training": {"max_epochs": 1, "evaluate_every": 1},
    "methods": {"hashing": {"params": {"dim": 8}}, "legcf": {"params": {"dim": 8}}, "c2f": {"params": {"dim": 8}}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A copy of the workflow after a tiny run."""
    folder = copy_checkout(tmp_path_factory.mktemp("finished") / "checkout")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = snakemake(folder, "--cores", "2", "all", "--configfile", "tiny.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture
def edit(finished):
    """A function that appends a comment to a file of the finished checkout; undone after the test."""
    originals = {}

    def append(name: str) -> None:
        originals[name] = (finished / name).read_text()
        (finished / name).write_text(originals[name] + "\n# edited\n")

    yield append
    for name, text in originals.items():
        (finished / name).write_text(text)


def rerun(folder: Path, changes: dict | None = None) -> Counter:
    """Return what would be run now: `train hashing` and the like for the runs, the rule's name for the rest."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(update(TINY, changes or {})))
    found = jobs(dry_run(folder, "all", "--configfile", "tiny.yaml"))
    return Counter(f"{job['rule']} {job.get('method', '')}".strip() for job in found if job["rule"] != "all")


def update(base: dict, changes: dict) -> dict:
    merged = yaml.safe_load(yaml.safe_dump(base))
    update_config(merged, changes)
    return merged


REPORTS = Counter(["collect", "table", "memory", "compare", "figure", "report"])
SERVED = Counter(["inference"])


@pytest.mark.slow
def test_no_rate_limit_makes_snakemake_look_for_jobs_ever_more_often_and_no_linear_program_chooses_them(checkout):
    with open(checkout / "Snakefile", "a") as stream:
        stream.write("\nonsuccess:\n    scheduler = workflow.scheduler\n")
        stream.write('    print("rate limit:", scheduler.job_rate_limiter)\n')
        stream.write('    print("chosen by", type(scheduler._job_selector.__self__).__module__)\n')
    done = snakemake(checkout, "--cores", "1", "results/smoke/methods/svd.json", "--configfile", "config/smoke.yaml")
    assert "rate limit: None" in done.stdout + done.stderr
    assert "chosen by snakemake.scheduling.greedy" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_leaves_tables_figures_and_a_report(finished):
    results = finished / "results"
    for name in (
        "report.html",
        "tables/main.md",
        "tables/main.tex",
        "figures/comparison.pdf",
        "figures/comparison.csv",
    ):
        assert (results / name).stat().st_size > 0
    assert "| c2f | 1 of 1 | ok |" in (results / "tables" / "main.md").read_text()


@pytest.mark.slow
def test_tables_and_report_name_their_configuration_and_that_its_data_is_made_up(finished):
    table, page = ((finished / "results" / name).read_text() for name in ("tables/main.md", "report.html"))
    for text in (table, page):
        assert "snakemake --cores 2 all --configfile tiny.yaml" in text
        assert "blocks (made up, protocol given)" in text
    (finished / "other.yaml").write_text(yaml.safe_dump(TINY))
    again = jobs(dry_run(finished, "all", "--configfile", "other.yaml"))
    assert Counter(job["rule"] for job in again) == Counter(["table", "memory", "compare", "report", "all"])


@pytest.mark.slow
def test_a_figure_has_one_caption_in_every_report(finished):
    caption = (finished / "results" / "figures" / "comparison.txt").read_text().strip()
    assert caption == grid(TINY).caption("comparison")  # what the rule's `params.caption` is
    assert (finished / "workflow" / "report" / "figure.rst").read_text() == "{{ snakemake.params.caption }}\n"
    assert html.escape(caption) in (finished / "results" / "report.html").read_text()


@pytest.mark.slow
def test_the_table_adds_the_seconds_of_the_coarse_run_to_those_of_c2f(finished):
    table = pd.read_csv(finished / "results" / "tables" / "main.csv").set_index("method")
    runs = finished / "results" / "runs" / "blocks"
    own, coarse = (json.loads((runs / m / "numbers-160/1/run.json").read_text()) for m in ("c2f", "c2f-coarse"))
    assert table.seconds["c2f"] == pytest.approx(own["seconds"])
    assert table.seconds_with_starts["c2f"] == pytest.approx(own["seconds"] + coarse["seconds"])
    assert "c2f-coarse" not in table.index


@pytest.mark.slow
def test_nothing_is_rerun_without_a_change(finished):
    assert rerun(finished) == Counter()


@pytest.mark.slow
def test_touching_a_file_reruns_nothing(finished):
    (finished / "baselines" / "hashing.py").touch()
    assert rerun(finished) == Counter()


@pytest.mark.slow
def test_editing_a_method_retrains_it_and_nothing_else(finished, edit):
    edit("baselines/hashing.py")
    assert rerun(finished) == REPORTS + SERVED + Counter(["resolve hashing", "train hashing", "evaluate hashing"])


@pytest.mark.slow
def test_editing_a_method_retrains_what_starts_from_it(finished, edit):
    edit("baselines/legcf.py")
    again = Counter(["resolve c2f-coarse", "train c2f-coarse", "train c2f", "evaluate c2f"])
    assert rerun(finished) == REPORTS + SERVED + again


@pytest.mark.slow
def test_snakemake_s_own_report_holds_the_figures_with_their_captions(finished):
    done = snakemake(finished, "--cores", "1", "--report", "workflow.html", "--configfile", "tiny.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    page = (finished / "workflow.html").read_text()
    caption = (finished / "results/figures/comparison.txt").read_text().split(".")[0]
    assert "comparison.png" in page and caption in page


@pytest.mark.slow
def test_changing_a_parameter_retrains_that_method_alone(finished):
    changed = {"methods": {"hashing": {"params": {"dim": 16}}}}
    assert rerun(finished, changed) == REPORTS + SERVED + Counter(
        ["resolve hashing", "train hashing", "evaluate hashing"]
    )


@pytest.mark.slow
def test_changing_a_key_of_training_retrains_the_methods_that_do_not_set_it_themselves(finished):
    planned = rerun(finished, {"training": {"l2": 2.0e-4}})
    assert planned["resolve hashing"] and planned["train hashing"]
    assert not planned["resolve c2f-coarse"] and not planned["train c2f-coarse"]  # it has an l2 of its own


@pytest.mark.slow
def test_editing_the_figures_redraws_and_retrains_nothing(finished, edit):
    edit("c2f/figures.py")
    assert rerun(finished) == Counter(["figure", "report"])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["c2f/page.py", "c2f/page.js", "c2f/findings.py"])
def test_editing_the_page_makes_it_again_and_nothing_else(finished, edit, file):
    edit(file)
    assert rerun(finished) == Counter(["report"])


@pytest.mark.slow
def test_editing_the_report_collects_and_redraws_and_retrains_nothing(finished, edit):
    edit("c2f/report.py")
    assert rerun(finished) == REPORTS


@pytest.mark.slow
def test_another_output_shares_the_data_and_leaves_the_runs_of_this_one(finished):
    other = update(TINY, {"output": "results/other", "methods": {"hashing": {"params": {"dim": 4}}}})
    (finished / "other.yaml").write_text(yaml.safe_dump(other))
    rules = Counter(job["rule"] for job in jobs(dry_run(finished, "all", "--configfile", "other.yaml")))
    assert rules["train"] == 4 and not rules["download"] + rules["prepare"]
    done = snakemake(finished, "--cores", "1", "results/other/methods/hashing.json", "--configfile", "other.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    assert rerun(finished) == Counter()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["c2f/evaluate.py", "baselines/decoders.py"])
def test_editing_the_evaluation_trains_nothing(finished, edit, file):
    edit(file)
    again = rerun(finished)
    assert again["evaluate hashing"] == 1
    assert not [job for job in again if job.startswith(("train", "resolve", "prepare"))]


@pytest.mark.slow
def test_adding_a_method_trains_only_its_runs(finished):
    added = {
        "methods": {"mine": {"like": "hashing", "params": {"dim": 4}}},
        "grid": {"methods": [*TINY["grid"]["methods"], "mine"]},
    }
    assert rerun(finished, added) == REPORTS + SERVED + Counter(["resolve mine", "train mine", "evaluate mine"])


@pytest.mark.slow
def test_more_threads_rerun_nothing(finished):
    assert rerun(finished, {"datasets": {"blocks": {"threads": 2}}}) == Counter()


@pytest.mark.slow
def test_a_mistyped_parameter_stops_before_anything_runs_and_mending_it_reruns_nothing(finished):
    (finished / "tiny.yaml").write_text(yaml.safe_dump(update(TINY, {"methods": {"hashing": {"params": {"dimm": 8}}}})))
    done = snakemake(finished, "--cores", "1", "all", "--configfile", "tiny.yaml")
    assert done.returncode == 2
    assert "ERROR: unknown key 'dimm' in methods.hashing.params; did you mean 'dim'?" in done.stderr
    assert rerun(finished) == Counter()


@pytest.mark.slow
def test_a_broken_method_file_stops_before_anything_runs_and_mending_it_reruns_nothing(finished):
    source = finished / "baselines" / "hashing.py"
    text = source.read_text()
    source.write_text(text + "\ndef broken(:\n")
    done = snakemake(finished, "--cores", "1", "all", "--configfile", "tiny.yaml")
    source.write_text(text)
    assert done.returncode == 2
    assert "a method cannot be loaded" in done.stderr and "hashing.py" in done.stderr
    assert rerun(finished) == Counter()
