"""Tuning: equal trials for all, repeatable and resumable; failures are failures; the test pairs stay closed."""

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml
from snakemake.utils import update_config
from steps import TRAINING, copy_checkout, jobs, prepared, record, resolved, snakemake, step

from c2f.errors import ConfigError
from c2f.figures import tuning as draw
from c2f.grid import Grid
from c2f.method import load_class
from c2f.record import read_json, write_json
from c2f.settings import from_mapping
from c2f.train import TrainingSettings
from c2f.tuning import STARTUP, Choice, Float, Int, Outcome, frozen, read_space, search, space_of

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
GRID = Grid(CONFIG, SCHEMA)
COMMON = read_space(CONFIG["tuning"]["space"], "tuning.space")
SPACE = {"lr": {"low": 0.01, "high": 0.2, "log": True}, "l2": {"low": 1e-5, "high": 1e-2, "log": True}}
SHORT = {"uses": "baselines.short_vectors:ShortVectors", "params": {"num_layers": 2}}


# What is searched -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRID.entries)
def test_a_method_searches_what_it_has_and_takes_every_end_of_its_ranges(name):
    entry = GRID.entries[name]
    cls = load_class(entry.uses)
    params = {field.name for field in dataclasses.fields(cls.Params)}
    training = {field.name for field in dataclasses.fields(TrainingSettings)}
    for own, dimension in cls.search_space.items():
        assert own in COMMON if dimension is None else own in params - COMMON.keys()
    space = space_of(cls, COMMON, starts=entry.starts_from is not None)
    for searched, dimension in space.items():
        assert searched in params | training
        for end in dimension.ends:
            assert dimension.holds(end)
            if searched in params:
                from_mapping(cls.Params, entry.params | {searched: end}, name)
            else:
                from_mapping(TrainingSettings, CONFIG["training"] | {searched: end}, name)


def test_the_common_space_is_the_same_for_all_and_each_adds_its_own():
    both = {"lr": Float(5e-4, 5e-2, log=True), "l2": Float(1e-5, 1e-1, log=True)}
    spaces = {
        name: space_of(load_class(GRID.entries[name].uses), COMMON, starts=bool(GRID.entries[name].starts_from))
        for name in ("short-vectors", "legcf", "c2f", "svd")
    }
    assert spaces["short-vectors"] == both | {"num_layers": Int(1, 4)}
    assert spaces["legcf"] == both | {"num_layers": Int(1, 4), "anchor_weight": Choice((0.5, 0.6, 0.9))}
    own = {"gate": Float(0.05, 0.8), "threshold": Float(0.25, 2.0), "bridges": Int(2, 8)}
    assert spaces["c2f"] == both | own  # its layers are those of the run that it starts from
    assert spaces["svd"] == both | {"item_power": Float(0.0, 1.0)}  # its first trial shows that nothing is trained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"low": 2.0, "high": 1.0},
            "tuning.space.lr: Float(low=2.0, high=1.0, log=False) is no range; write low < high",
        ),
        ({"low": 0.0, "high": 1.0, "log": True}, "low above 0 where `log` is true"),
        ({"low": 1.0}, "tuning.space.lr = {'low': 1.0} is no range"),
        ({"choices": []}, "a choice needs options"),
    ],
)
def test_a_range_that_is_none_is_named(words, message):
    with pytest.raises(ConfigError) as error:
        read_space({"lr": words}, "tuning.space")
    assert message in str(error.value)


def test_a_range_that_is_none_stops_the_configuration():
    changed = yaml.safe_load(yaml.safe_dump(CONFIG))
    changed["tuning"]["space"]["lr"]["low"] = 1.0
    with pytest.raises(ConfigError, match=r"tuning\.space\.lr: .* is no range"):
        Grid(changed, SCHEMA)
    changed["tuning"]["space"] = {"lrr": {"low": 1.0, "high": 2.0}}
    with pytest.raises(ConfigError, match="lrr"):
        Grid(changed, SCHEMA)


def test_a_number_is_run_with_three_digits_and_stays_in_its_range():
    assert Float(0.001, 0.1).used(0.0123456) == 0.0123
    assert Float(0.001234, 0.1).used(0.0012341) == 0.001234
    assert Int(1, 4).used(3) == 3 and Choice((None, "a")).used(None) is None


# The search -----------------------------------------------------------------------------------------------------------

PLANE = {"lr": Float(1e-3, 1.0, log=True), "depth": Int(1, 4)}


def hill(number: int, settings: dict) -> Outcome:
    """A metric that is best, 1.0, at lr 0.1 and depth 3."""
    return Outcome(1 / (1 + abs(settings["lr"] - 0.1) * 5 + abs(settings["depth"] - 3)), seconds=1.0)


def searched(folder: Path, trials: int, run=hill, seed: int = 1, fingerprint: str = "a", space=PLANE) -> list[dict]:
    own = {"lr": 0.5, "depth": 1}
    return search(folder, fingerprint, seed, trials, {name: own[name] for name in space}, space, {"lr"}, run)


def proposals(trials: list[dict]) -> list[dict]:
    return [trial["settings"] for trial in trials]


def test_the_first_trial_has_the_own_settings_and_all_are_counted(tmp_path):
    done = searched(tmp_path, 3)
    assert [trial["trial"] for trial in done] == [0, 1, 2]
    assert done[0]["settings"] == {"lr": 0.5, "depth": 1}
    assert done[0]["value"] == pytest.approx(1 / (1 + 0.4 * 5 + 2))


def test_own_settings_outside_of_the_ranges_are_run_as_they_are(tmp_path):
    own, seen = {"lr": 0.0, "depth": None}, []
    search(tmp_path, "a", 1, 3, own, PLANE, set(), lambda number, settings: seen.append(settings) or Outcome(0.5))
    assert seen[0] == own
    assert all(PLANE[name].holds(value) for settings in seen[1:] for name, value in settings.items())


def test_the_same_seed_proposes_the_same_and_another_seed_other_settings(tmp_path):
    first, again, other = (searched(tmp_path / name, 9, seed=seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)])
    assert proposals(first) == proposals(again)
    assert proposals(first)[0] == proposals(other)[0] and proposals(first)[1:] != proposals(other)[1:]


def test_a_study_that_is_given_more_trials_is_the_one_that_had_them_from_the_start(tmp_path):
    whole = searched(tmp_path / "whole", STARTUP + 4)
    for trials in (2, STARTUP + 1, STARTUP + 4):
        grown = searched(tmp_path / "grown", trials)
    assert grown == whole
    assert searched(tmp_path / "grown", 3) == whole  # none is taken away


@pytest.mark.parametrize("killed", [0, 2, STARTUP + 2])
def test_an_interrupted_trial_is_failed_repeated_and_not_counted_and_changes_nothing(tmp_path, killed):
    def interrupted(number, settings):
        if number == killed:
            raise KeyboardInterrupt
        return hill(number, settings)

    whole = searched(tmp_path / "whole", STARTUP + 4)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "killed", STARTUP + 4, interrupted)
    assert searched(tmp_path / "killed", STARTUP + 4) == whole
    study = optuna.load_study(study_name="tuning", storage=f"sqlite:///{tmp_path / 'killed' / 'study.sqlite'}")
    states = Counter(trial.state.name for trial in study.trials)
    assert states == Counter(COMPLETE=STARTUP + 4, FAIL=int(killed > 0))  # the first is written when it has ended


def test_a_failed_trial_has_its_reason_and_no_value_and_tpe_does_not_learn_from_it(tmp_path):
    def failing(number, settings):
        return Outcome(None, "diverged: the loss became nan", 1.0) if number in (1, 3) else hill(number, settings)

    done = searched(tmp_path, 5, failing)
    assert [trial["status"] for trial in done] == ["ok", "failed", "ok", "failed", "ok"]
    assert [trial["value"] is None for trial in done] == [False, True, False, True, False]
    assert done[3]["reason"] == "diverged: the loss became nan"
    assert searched(tmp_path, 5, failing) == done  # and it is not tried again


def test_the_search_gets_nearer_to_the_best_than_its_random_start(tmp_path):
    done = searched(tmp_path, 30)
    values = [trial["value"] for trial in done]
    assert max(values) > 0.8 and max(values) > max(values[: STARTUP + 1])


def test_what_trains_nothing_is_not_searched_for_settings_of_the_training(tmp_path):
    untrained = lambda number, settings: Outcome(0.5, trains=False)  # noqa: E731
    done = searched(tmp_path / "both", 3, untrained)
    assert [sorted(trial["settings"]) for trial in done] == [["depth", "lr"], ["depth"], ["depth"]]
    assert len(searched(tmp_path / "nothing left", 3, untrained, space={"lr": PLANE["lr"]})) == 1
    assert len(searched(tmp_path / "nothing at all", 3, untrained, space={})) == 1


def test_a_study_of_other_settings_is_begun_anew(tmp_path, capsys):
    searched(tmp_path, 2)
    (tmp_path / "trials" / "000").mkdir(parents=True)
    assert len(searched(tmp_path, 1, fingerprint="b")) == 1
    assert "the study begins anew" in capsys.readouterr().out and not (tmp_path / "trials").exists()


def test_a_damaged_study_is_named_with_the_way_out(tmp_path):
    (tmp_path / "study.sqlite").write_text("no database" * 100)
    with pytest.raises(Exception, match=r"study\.sqlite cannot be read .*; delete it and tune again"):
        searched(tmp_path, 1)


# The step -------------------------------------------------------------------------------------------------------------


def tune_words(folder: Path, data: Path, method: Path, trials: int = 3, **more) -> dict:
    files = {part: data / f"{part}.parquet" for part in ("train", "valid")} | {"stats": data / "stats.json"}
    words = {"method": method, "budget": "bytes-2kB", "trials": trials, "seed": 1, "space": SPACE}
    return files | words | {"folder": folder / "study", "output": folder / "found.json"} | more


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(data, method file, folder) of a study of three trials on data whose test pairs cannot be read."""
    folder = tmp_path_factory.mktemp("finished")
    data, method = prepared(folder), resolved(folder, "short", SHORT)
    (data / "test.parquet").write_bytes(b"whoever opens this fails")
    assert step("tune", **tune_words(folder, data, method)) == 0
    return data, method, folder


def test_tuning_needs_no_test_pairs_and_writes_every_trial(finished):
    _, _, folder = finished
    study = read_json(folder / "found.json")
    assert (study["trials_run"], study["trials_failed"], study["metric"]) == (3, 0, "ndcg@20")
    values = [trial["value"] for trial in study["trials"]]
    assert study["own_value"] == values[0] and study["best_value"] == max(values)
    assert study["trials"][0]["settings"] == {"lr": TRAINING["lr"], "l2": 1e-4}
    best = study["trials"][study["best_trial"]]
    assert study["training"] == best["settings"] and study["params"] == {}


def test_the_value_of_a_trial_is_the_best_validation_metric_of_its_record(finished):
    _, _, folder = finished
    study = read_json(folder / "found.json")
    for trial in study["trials"]:
        run = record(folder / "study" / "trials" / f"{trial['trial']:03d}")
        assert trial["value"] == pytest.approx(run["stages"][-1]["best_value"], abs=1e-5)
        assert {name: run["training"][name] for name in ("lr", "l2")} == trial["settings"]


def test_a_trial_s_folder_is_small(finished):
    _, _, folder = finished
    kept = {path.name for path in (folder / "study" / "trials" / "001").iterdir()}
    assert kept == {"method.json", "run.json", "curve.csv", "train.log"}


def test_a_finished_study_is_not_run_again(finished, tmp_path):
    data, method, folder = finished
    times = {path: path.stat().st_mtime_ns for path in (folder / "study" / "trials").rglob("*")}
    assert step("tune", **tune_words(folder, data, method, output=tmp_path / "again.json")) == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "study" / "trials").rglob("*")} == times
    assert read_json(tmp_path / "again.json")["trials"] == read_json(folder / "found.json")["trials"]


def test_a_trial_that_crashes_is_failed_with_its_reason_and_the_study_goes_on(tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(
        "import os, sys\nfrom baselines.short_vectors import ShortVectors\n"
        "class Crash(ShortVectors):\n"
        "    def fit(self, trainer, start=None):\n"
        "        number = int(sys.argv[sys.argv.index('--output') + 1][-3:])\n"
        "        if number == 1: os.kill(os.getpid(), 9)\n"
        "        if number == 2: raise RuntimeError('a bug')\n"
        "        if number == 3: raise MemoryError('too large')\n"
        "        super().fit(trainer, start)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    entry = {"uses": "crashing:Crash", "params": {"num_layers": 2}}
    data, method = prepared(tmp_path), resolved(tmp_path, "crash", entry)
    assert step("tune", **tune_words(tmp_path, data, method, trials=4)) == 0
    own, *crashed = read_json(tmp_path / "found.json")["trials"]
    assert own["status"] == "ok" and own["value"] > 0
    reasons = [
        "crashed with signal 9: ",
        "crashed with exit code 1: RuntimeError: a bug",
        "oom: out of memory: too large",
    ]
    for trial, reason in zip(crashed, reasons, strict=True):
        assert (trial["status"], trial["value"]) == ("failed", None) and trial["reason"].startswith(reason)


def test_a_trial_that_its_time_limit_stops_has_no_value(tmp_path):
    data, method = prepared(tmp_path), resolved(tmp_path, "short", SHORT, max_seconds=1e-6)
    assert step("tune", **tune_words(tmp_path, data, method, trials=1)) == 0
    study = read_json(tmp_path / "found.json")
    assert study["best_value"] is None and study["trials_failed"] == 1
    assert study["trials"][0]["reason"].startswith("timeout: stopped after max_seconds")


def test_what_has_nothing_to_tune_gets_one_trial_and_an_infeasible_one_says_so(tmp_path):
    data = prepared(tmp_path)
    popularity = resolved(tmp_path, "popularity", {"uses": "baselines.controls:Popularity"})
    words = tune_words(tmp_path, data, popularity, space=SPACE | {"num_layers": {"low": 1, "high": 4}})
    assert step("tune", **words | {"budget": "full"}) == 0
    study = read_json(tmp_path / "found.json")
    assert (study["trials_run"], study["space"], study["params"], study["training"]) == (1, {}, {}, {})
    assert study["best_value"] == study["own_value"] > 0
    assert step("tune", **words | {"budget": "bytes-8", "trials": 1}) == 0
    study = read_json(tmp_path / "found.json")
    assert study["best_value"] is None and study["trials"][0]["reason"].startswith(
        "infeasible: budget bytes-8 is below"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"lr": 0.1}}, "'lr' is searched (tuning.space), and stands in this dataset's own `training`"),
        ({"trials": 0}, "--trials 0 is no number of trials"),
        ({"budget": "byte-5"}, "budget 'byte-5' has the unknown kind"),
        ({"space": {"lr": {"low": 1.0}}}, "tuning.space.lr = {'low': 1.0} is no range"),
    ],
)
def test_a_mistake_is_named_and_no_trial_is_counted(finished, tmp_path, capsys, changes, message):
    data, method, _ = finished
    assert step("tune", **tune_words(tmp_path, data, method) | changes) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


def test_a_killed_step_takes_its_trial_with_it_and_goes_on_where_it_was(tmp_path):
    data, method = prepared(tmp_path), resolved(tmp_path, "short", SHORT, max_epochs=100000, patience=100000)
    words = tune_words(tmp_path, data, method, trials=2, training={"max_epochs": 100000})
    command = [sys.executable, "-m", "c2f", "tune"]
    for name, value in words.items():
        command += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "study" / "trials" / "000" / "train.log"
    try:
        while not (log.exists() and "epoch" in log.read_text()):  # until it trains
            assert process.poll() is None
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
    assert (log.parent / "checkpoint.pt").exists() and "interrupted" in log.read_text()
    with sqlite3.connect(tmp_path / "study" / "study.sqlite") as database:
        assert database.execute("select count(*) from trials").fetchone() == (0,)


def test_what_starts_from_another_run_is_tuned_on_top_of_it(tmp_path):
    data = prepared(tmp_path)
    full = resolved(tmp_path)
    words = {part: data / f"{part}.parquet" for part in ("train", "valid")} | {"stats": data / "stats.json"}
    assert step("train", **words, method=full, budget="full", seed=1, output=tmp_path / "full") == 0
    entry = {"uses": "baselines.magprune:MagPrune", "params": {"dim": 4, "num_layers": 2}}
    method = resolved(tmp_path, "magprune", entry | {"starts_from": {"method": "lightgcn", "budget": "full"}})
    more = {"start": tmp_path / "full", "space": SPACE | {"num_layers": {"low": 1, "high": 4}}}
    assert step("tune", **tune_words(tmp_path, data, method, trials=2, **more)) == 0
    study = read_json(tmp_path / "found.json")
    assert study["space"] == {
        "min_per_row": {"low": 0, "high": 4, "log": False}
    }  # nothing is trained, layers are fixed
    assert study["starts_from"] == str(tmp_path / "full") and len(study["inputs_sha256"]["start"]) == 64
    assert list(study["trials"][1]["settings"]) == ["min_per_row"]


# What is frozen -------------------------------------------------------------------------------------------------------


def a_study(method: str, budget: str, values: list, **changes) -> dict:
    """A study as `tune` writes it; a value of None is a failed trial."""
    trials = [
        {"trial": n, "status": "ok" if v else "failed", "value": v, "settings": {"lr": 0.1 * (n + 1), "num_layers": n}}
        | {"reason": None if v else "diverged: the loss became nan", "seconds": 1.0}
        for n, v in enumerate(values)
    ]
    best = max((t for t in trials if t["value"]), key=lambda t: t["value"], default=None)
    found = {"params": {"num_layers": best["trial"]}, "training": best["settings"] | {}} if best else {}
    if best:
        found["training"] = {"lr": best["settings"]["lr"]}
    told = {"dataset": "blocks", "protocol": "given", "seed": 1, "metric": "ndcg@20", "commit": "abc"}
    told |= {"trials_run": len(trials), "trials_failed": sum(v is None for v in values), "own_value": values[0]}
    told |= {"best_value": best and best["value"], "best_trial": best and best["trial"], "trials": trials}
    return told | {"method": method, "budget": budget, "params": {}, "training": {}} | found | changes


STUDIES = [
    a_study("legcf", "bytes-32kB", [0.2, None, 0.3, 0.25]),
    a_study("hashing", "bytes-32kB", [0.1, 0.15, 0.12]),
    a_study("short-vectors", "bytes-32kB", [None]),
    a_study("legcf", "bytes-64kB", [0.3, 0.2]),
]


def test_the_frozen_file_is_entries_that_the_grid_reads_after_the_configuration_they_were_found_with():
    text = frozen(STUDIES, "results/smoke/blocks", "snakemake --cores 2 tuned --configfile config/smoke.yaml")
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    update_config(config, yaml.safe_load((ROOT / "config/smoke.yaml").read_text()))
    update_config(config, yaml.safe_load(text))
    grid = Grid(config, SCHEMA)
    assert grid.output == "results/smoke/blocks"
    best, untuned = (grid.entries[name] for name in ("legcf-tuned-bytes-32kB", "legcf"))
    assert best.params == untuned.params | {"num_layers": 2}
    assert best.training == untuned.training | {"lr": pytest.approx(0.3)}
    assert best.budgets == ("bytes-32kB",) and grid.entries["legcf-tuned-bytes-64kB"].params["num_layers"] == 0
    assert grid.methods == [
        *["legcf", "legcf-tuned-bytes-32kB", "hashing", "hashing-tuned-bytes-32kB", "short-vectors"],
        "legcf-tuned-bytes-64kB",
    ]
    tuned = Counter(run.budget for run in grid.asked if run.method.startswith("legcf-tuned"))
    assert tuned == Counter({"bytes-32kB": 2, "bytes-64kB": 2})  # two seeds


def test_the_frozen_file_says_what_was_found_where():
    lines = frozen(STUDIES, "results/smoke/blocks", "snakemake --cores 2 tuned").splitlines()
    assert "#   snakemake --cores 2 tuned" in lines
    assert (
        "# legcf at bytes-32kB: validation ndcg@20 0.30000, with its own settings 0.20000; 4 trials, 1 failed, "
        "the best was number 3; seed 1, commit abc"
    ) in lines
    expected = (
        "# short-vectors at bytes-32kB: 1 trials, 1 failed; none has a value, first: diverged: the loss became nan"
    )
    assert expected in lines


def test_freeze_draws_the_best_so_far_and_marks_what_failed(tmp_path):
    for place, study in enumerate(STUDIES):
        write_json(tmp_path / f"{place}.json", study)
    spec = json.loads(GRID.tuned_spec("blocks"))
    files = [tmp_path / f"{place}.json" for place in range(len(STUDIES))]
    assert step("freeze", studies=files, spec=spec, output=tmp_path / "blocks") == 0
    drawn = pd.read_csv(tmp_path / "blocks.csv")
    legcf = drawn[(drawn.method == "legcf") & (drawn.budget == "bytes-32kB")]
    assert legcf.best_so_far.tolist() == [0.2, 0.2, 0.3, 0.3]  # the failed one changes nothing
    assert legcf.value.isna().tolist() == [False, True, False, False]
    assert legcf.reason[1] == "diverged: the loss became nan"
    assert json.loads(legcf.settings[2])["num_layers"] == 2
    assert "made up" in (tmp_path / "blocks.txt").read_text()
    assert (tmp_path / "blocks.png").stat().st_size > 0 and (tmp_path / "blocks.pdf").stat().st_size > 0
    figure, _ = draw(drawn.assign(settings=None), spec)
    first, second = figure.axes
    (line,) = [line for line in first.get_lines() if line.get_label() == "legcf"]
    assert [list(values) for values in line.get_data()] == [[1, 2, 3, 4], [0.2, 0.2, 0.3, 0.3]]
    crosses = sorted(x for line in first.get_lines() if line.get_marker() == "x" for x in line.get_xdata())
    assert crosses == [1, 2]  # of short-vectors, of legcf
    assert second.get_title() == "blocks (made up), bytes-64kB"
    own = drawn.method.map(lambda name: "ndcg@5" if name == "legcf" else "ndcg@20")  # each entry has its `select_on`
    label = draw(drawn.assign(settings=None, metric=own), spec)[0].axes[0].get_ylabel()
    assert "NDCG@5" in label and "NDCG@20" in label


def test_studies_of_two_datasets_are_not_frozen_as_one(tmp_path, capsys):
    write_json(tmp_path / "0.json", STUDIES[0])
    write_json(tmp_path / "1.json", STUDIES[1] | {"dataset": "lastfm"})
    spec = json.loads(GRID.tuned_spec("blocks"))
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    assert step("freeze", studies=files, spec=spec, output=tmp_path / "x") == 2
    assert "--studies are of 'blocks' and 'lastfm'; freeze one dataset at a time" in capsys.readouterr().err


# The workflow ---------------------------------------------------------------------------------------------------------

TINY = {
    "output": "results/tiny",
    "grid": {
        "datasets": ["blocks"],
        "methods": ["short-vectors", "magprune"],
        "budgets": ["bytes-2kB", "bytes-4kB"],
        "seeds": [7],
        "figures": ["comparison"],
    },
    "datasets": {"blocks": {"generate": {"num_users": 60, "num_items": 40, "num_blocks": 2, "pairs_per_user": 8}}},
    "training": {"lr": 0.02, "max_epochs": 2, "evaluate_every": 1, "device": "cpu"},
    "tuning": {"trials": 2, "seed": 1},
    "methods": {"lightgcn": {"params": {"dim": 8}}, "magprune": {"params": {"dim": 8}}},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = copy_checkout(tmp_path_factory.mktemp("tuning") / "checkout")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def test_tuned_has_a_job_for_each_method_and_budget_and_no_job_reads_the_test_pairs(checkout):
    done = snakemake(checkout, "-n", "tuned", "--configfile", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    found = jobs(done.stdout + done.stderr)
    expected = Counter(download=1, prepare=1, resolve=3, train=1, tune=4, freeze=1, tuned=1)  # lightgcn is started from
    assert Counter(job["rule"] for job in found) == expected
    for job in found:
        if job["rule"] in ("train", "tune"):
            assert "valid.parquet" in job["input"] and "test" not in job["input"]
    starts = {job["input"].split(", ")[4:][0] for job in found if job["rule"] == "tune" and job["method"] == "magprune"}
    assert starts == {"results/tiny/runs/blocks/lightgcn/full/1/run.json"}  # at the seed of the trials


def test_all_does_not_tune(checkout):
    done = snakemake(checkout, "-n", "all", "--configfile", "tiny.yaml")
    assert {"tune", "freeze"}.isdisjoint(job["rule"] for job in jobs(done.stdout + done.stderr))


@pytest.mark.slow
def test_what_tuned_writes_is_run_by_all_beside_the_methods_own_settings(checkout):
    one = TINY | {"grid": TINY["grid"] | {"methods": ["short-vectors"], "budgets": ["bytes-2kB"]}}
    (checkout / "one.yaml").write_text(yaml.safe_dump(one))
    done = snakemake(checkout, "--cores", "2", "tuned", "--configfile", "one.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    done = snakemake(checkout, "-n", "all", "--configfile", "one.yaml", "results/tiny/tuned/blocks.yaml")
    assert done.returncode == 0, done.stderr
    trained = {job["method"]: job["output"] for job in jobs(done.stdout + done.stderr) if job["rule"] == "train"}
    assert set(trained) == {"short-vectors", "short-vectors-tuned-bytes-2kB"}
    assert all(files.startswith("results/tiny/blocks/runs/blocks/") for files in trained.values())
    done = snakemake(checkout, "-n", "tuned", "--configfile", "one.yaml")
    assert "Nothing to be done" in done.stdout + done.stderr
