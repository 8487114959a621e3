"""Runs through the command line: from prepared data to artifact, record and metrics, and every way a run can end."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from steps import LIGHTGCN, prepared, record, resolved, step, train_words, trained

from c2f.data import load_pairs, load_stats
from c2f.evaluate import DotProducts, means, score_users, union
from c2f.record import Artifact
from c2f.train import Trainer

ROOT = Path(__file__).resolve().parents[1]
KS = "5,20"
PER_USER = ["user", "held_out", *(f"{name}@{k}" for k in (5, 20) for name in ("recall", "recall_capped", "ndcg"))]
LEGCF = {
    "uses": "baselines.legcf:LEGCF",
    "params": {"dim": 4, "num_layers": 2, "num_codes": 6, "item_bias": True},
    "training": {"negatives": 2, "patience": 1000, "evaluate_every": 20},
}
COARSE = {"uses": "baselines.legcf:LEGCF", "params": {"dim": 4, "num_codes": 6}}
C2F = {
    "uses": "c2f.metaembed:C2FMetaEmbed",
    "starts_from": {"method": "coarse"},
    "params": {"dim": 4, "num_codes": 6, "fine_codes": 3, "components": 3, "threshold": 0.1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def data(folder):
    return prepared(folder)


@pytest.fixture(scope="module")
def lightgcn(folder):
    return resolved(folder)


@pytest.fixture(scope="module")
def run(folder, data, lightgcn):
    """A finished and evaluated run; tests only read it."""
    run = folder / "lightgcn"
    trained(data, lightgcn, run, "numbers-432")  # 108 nodes of 4 numbers
    assert step("evaluate", run=run, data=data, ks=KS, output=run) == 0
    return run


def evaluated(run, data) -> tuple[dict, pd.DataFrame]:
    """Evaluate a run in its own folder; return metrics.json and per_user.parquet."""
    assert step("evaluate", run=run, data=data, ks=KS, output=run) == 0
    return json.loads((run / "metrics.json").read_text()), pd.read_parquet(run / "per_user.parquet")


def files(run) -> list[str]:
    return sorted(path.name for path in run.iterdir())


# A run that ends well --------------------------------------------------------


def test_a_run_leaves_its_six_files_and_nothing_else(run):
    expected = ["artifact.npz", "curve.csv", "diagnostics.json", "metrics.json", "per_user.parquet", "run.json"]
    assert files(run) == expected


def test_training_and_evaluation_import_no_pandas_which_takes_a_third_of_a_second(data, lightgcn, tmp_path):
    code = """
import sys
from pathlib import Path
from steps import step, trained
data, method, run = map(Path, sys.argv[1:])
trained(data, method, run)
step("evaluate", run=run, data=data, ks="5,20", output=run)
sys.exit(", ".join(sorted({"pandas", "scipy.special"} & set(sys.modules))) or 0)
"""
    words = [sys.executable, "-c", code, data, lightgcn, tmp_path / "run"]
    paths = os.pathsep.join(map(str, [ROOT, ROOT / "tests"]))
    subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": paths})


def test_the_record_says_how_the_run_was_made_and_how_it_ended(run, data, lightgcn):
    found = record(run)
    assert (found["status"], found["reason"], found["starts_from"]) == ("ok", None, None)
    assert (found["dataset"], found["protocol"], found["method"]) == ("toy", "given", "lightgcn")
    assert (found["budget"], found["seed"], found["uses"]) == ("numbers-432", 1, LIGHTGCN["uses"])
    assert found["params"] == {"num_layers": 2, "item_bias": False, "dim": 4, "init_std": 0.1}
    assert found["training"]["batch_size"] == 128
    assert found["training"]["patience"] == 5  # a default, filled in
    assert found["footprint"]["numbers"] == 108 * 4
    assert found["footprint"]["stored"] == 108 * 4 * 4
    stats = load_stats(data / "stats.json")
    graph_bytes = stats["num_train"] * 1 + 4 * (60 + 1)  # 48 items fit one byte
    assert found["footprint"]["serving"] == 108 * 4 * 4 + min(graph_bytes, 108 * 4 * 4)
    (stage,) = found["stages"]
    assert (stage["name"], stage["epochs"], stage["stopped_by"]) == ("train", 4, "epochs")
    assert found["seconds"] >= stage["seconds"] > 0
    assert found["peak_rss_bytes"] > 10**7
    assert found["device"] == "cpu"
    assert found["inputs_sha256"]["train"] == stats["sha256"]["train"]
    assert found["command"].startswith("python -m c2f")


def test_the_curve_has_a_row_for_each_evaluation(run):
    with open(run / "curve.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["stage", "epoch", "seconds", "loss", "ndcg@5", "ndcg@20", "recall@20"]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("train", "0"), ("train", "2"), ("train", "4")]
    assert rows[0]["loss"] == ""  # nothing trained yet
    best = max(rows, key=lambda row: float(row["ndcg@20"]))
    assert int(best["epoch"]) == record(run)["stages"][0]["best_epoch"]


def test_metrics_are_those_of_the_artifact_with_train_and_valid_masked(run, data):
    stats = load_stats(data / "stats.json")
    assert stats["mask_at_test"] == ["train", "valid"]
    train, valid, test = (load_pairs(data / f"{part}.parquet", stats) for part in ("train", "valid", "test"))
    table = torch.from_numpy(Artifact.load(run / "artifact.npz").arrays["vectors"])
    ratings = train.csr().toarray()
    adjacency = np.block([[np.zeros((60, 60)), ratings], [ratings.T, np.zeros((48, 48))]])
    scale = np.power(np.maximum(adjacency.sum(axis=1), 1e-9), -0.5)
    adjacency = torch.from_numpy((scale[:, None] * adjacency * scale).astype(np.float32))
    final = (table + adjacency @ table + adjacency @ adjacency @ table) / 3
    expected = means(score_users(DotProducts.of_nodes(final, 60), union([train, valid]), test, [5, 20]))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["users"] == len(np.unique(test.user))
    assert metrics["means"] == {name: pytest.approx(value, abs=1e-3) for name, value in expected.items()}
    assert metrics["means"]["recall@20"] > 0.4  # a block has 12 of the 48 items


def test_the_table_per_user_holds_the_means(run):
    frame = pd.read_parquet(run / "per_user.parquet")
    assert list(frame) == PER_USER
    assert [str(kind) for kind in frame.dtypes] == ["int32", "int32", *["float32"] * 6]
    means = json.loads((run / "metrics.json").read_text())["means"]
    for name, value in means.items():
        assert frame[name].mean() == pytest.approx(value, abs=1e-6)


def test_the_same_command_gives_the_same_bytes_and_another_seed_or_method_name_others(folder, data, lightgcn, run):
    content = (run / "artifact.npz").read_bytes()
    trained(data, lightgcn, folder / "again", "numbers-432")
    assert (folder / "again" / "artifact.npz").read_bytes() == content
    trained(data, lightgcn, folder / "seed2", "numbers-432", seed=2)
    assert (folder / "seed2" / "artifact.npz").read_bytes() != content


def test_training_never_opens_the_test_file(folder, lightgcn, run):
    data = prepared(folder / "no test")
    (data / "test.parquet").unlink()
    trained(data, lightgcn, folder / "untested", "numbers-432")
    assert (folder / "untested" / "artifact.npz").read_bytes() == (run / "artifact.npz").read_bytes()


# Other ends ------------------------------------------------------------------


def assert_nothing_to_evaluate(run, data):
    metrics, per_user = evaluated(run, data)
    assert (metrics["users"], metrics["means"]) == (0, {})
    assert list(per_user) == PER_USER
    assert len(per_user) == 0


def test_a_budget_below_what_the_method_needs_is_a_status_that_names_the_least_one(folder, data, lightgcn, capsys):
    found = trained(data, lightgcn, folder / "small", "bytes-1727")
    assert found["status"] == "infeasible"
    for piece in ("budget bytes-1727", "1,728 bytes", "raise `budgets` in the configuration to bytes-1728"):
        assert piece in found["reason"]
    assert (found["footprint"], found["stages"]) == (None, [])
    assert capsys.readouterr().out.endswith("small: infeasible\n")
    assert Artifact.load(folder / "small" / "artifact.npz").arrays == {}
    assert_nothing_to_evaluate(folder / "small", data)
    assert trained(data, lightgcn, folder / "enough", "bytes-1728")["status"] == "ok"


def test_no_limit_is_no_size_for_a_method_that_fills_its_budget(folder, data):
    found = trained(data, resolved(folder, "short", {"uses": "baselines.short_vectors:ShortVectors"}), folder / "short")
    assert found["status"] == "infeasible"
    assert found["reason"].startswith("budget full sets no size for a method that fills its budget; give it numbers-")


def test_a_step_size_far_too_large_is_the_status_diverged(folder, data):
    method = resolved(folder, "wild", lr=1e30)
    found = trained(data, method, folder / "wild")
    assert found["status"] == "diverged"
    assert re.search(r"the loss became (nan|inf) in stage 'train', epoch 1, batch \d; lower `lr`", found["reason"])
    assert files(folder / "wild") == ["artifact.npz", "curve.csv", "run.json"]
    assert_nothing_to_evaluate(folder / "wild", data)


def test_out_of_time_is_the_status_timeout_with_a_model_and_metrics(folder, data):
    method = resolved(folder, "slow", max_seconds=1e-6)
    found = trained(data, method, folder / "slow")
    assert (found["status"], found["reason"]) == ("timeout", "stopped after max_seconds = 1e-06; best weights so far")
    assert found["stages"][0]["stopped_by"] == "time"
    metrics, per_user = evaluated(folder / "slow", data)
    assert metrics["users"] == len(per_user) > 0


def test_an_artifact_larger_than_the_budget_is_the_status_over_budget_and_is_not_kept(
    folder, data, lightgcn, monkeypatch
):
    from baselines.lightgcn import LightGCN

    export = LightGCN.export
    monkeypatch.setattr(LightGCN, "export", lambda self: export(self) | {"more": np.ones(1, dtype=np.float32)})
    found = trained(data, lightgcn, folder / "over", "numbers-432")
    assert (found["status"], found["reason"]) == ("over_budget", "the artifact takes 433 of the budget numbers-432")
    assert found["footprint"]["numbers"] == 433
    assert Artifact.load(folder / "over" / "artifact.npz").arrays == {}
    assert_nothing_to_evaluate(folder / "over", data)


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), RuntimeError("DefaultCPUAllocator: not enough memory: 8 TB")]
)
def test_too_little_memory_is_the_status_oom(folder, data, lightgcn, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Trainer, "run", fail)
    found = trained(data, lightgcn, folder / "oom", "full")
    assert found["status"] == "oom"
    assert str(error) in found["reason"]


def test_a_run_that_starts_from_a_failed_one_fails_with_its_reason(folder, data):
    coarse, c2f = resolved(folder, "coarse", COARSE), resolved(folder, "c2f", C2F)
    trained(data, coarse, folder / "coarse-small", "numbers-10")
    assert record(folder / "coarse-small")["status"] == "infeasible"
    found = trained(data, c2f, folder / "c2f-failed", start=folder / "coarse-small")
    assert found["status"] == "failed"
    for piece in ("coarse-small", "ended as infeasible", "numbers-24"):
        assert piece in found["reason"]
    assert found["starts_from"] == str(folder / "coarse-small")
    assert_nothing_to_evaluate(folder / "c2f-failed", data)


def test_a_fine_run_goes_on_from_its_coarse_run_and_fails_with_the_way_out_without_one(folder, data):
    coarse, c2f = resolved(folder, "coarse", COARSE), resolved(folder, "c2f", C2F)
    assert trained(data, coarse, folder / "coarse")["status"] == "ok"
    found = trained(data, c2f, folder / "c2f", start=folder / "coarse")
    assert (found["status"], found["starts_from"]) == ("ok", str(folder / "coarse"))
    assert "start" in found["inputs_sha256"]
    start, end = (Artifact.load(folder / name / "artifact.npz").arrays for name in ("coarse", "c2f"))
    assert np.array_equal(start["codebook"], end["codebook"])
    found = trained(data, c2f, folder / "c2f-alone")
    assert found["status"] == "failed"
    assert "give its entry `starts_from`" in found["reason"]


def test_a_coarse_run_of_another_size_is_the_status_failed(folder, data):
    wide = resolved(folder, "wide", COARSE | {"params": COARSE["params"] | {"dim": 8}})
    trained(data, wide, folder / "wide")
    of_wide = resolved(folder, "c2f-wide", C2F | {"starts_from": {"method": "wide"}})
    found = trained(data, of_wide, folder / "c2f-wide", start=folder / "wide")
    assert found["status"] == "failed"
    assert "the run that C2FMetaEmbed starts from has codebook (6, 8), this one expects (6, 4)" in found["reason"]


# Artifacts that cannot be used -----------------------------------------------


def refused(capsys, words: dict, *pieces):
    capsys.readouterr()
    assert step("evaluate", **words) == 2
    message = capsys.readouterr().err
    assert message.startswith("ERROR: ")
    for piece in pieces:
        assert str(piece) in message


def copy_of(run, folder) -> Path:
    folder.mkdir()
    for name in ("artifact.npz", "run.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


def test_an_artifact_is_not_evaluated_on_another_dataset(run, folder, tmp_path, capsys):
    other = prepared(tmp_path, "other", seed=5)
    words = {"run": run, "data": other, "ks": KS, "output": tmp_path / "out"}
    refused(capsys, words, run / "artifact.npz", "trained on toy", "other training pairs than other", "train it again")
    assert not (tmp_path / "out").exists()


def test_an_artifact_selected_on_other_validation_pairs_is_not_evaluated(run, data, tmp_path, capsys):
    other = copy_of(run, tmp_path / "run")
    artifact = Artifact.load(other / "artifact.npz")
    Artifact(artifact.arrays, artifact.info | {"valid_sha256": "0"}).save(other / "artifact.npz")
    words = {"run": other, "data": data, "ks": KS, "output": tmp_path / "out"}
    refused(capsys, words, "selected on other toy validation pairs than toy has here", "train it again")


def test_a_damaged_artifact_is_named_and_nothing_is_written(run, data, tmp_path, capsys):
    damaged = copy_of(run, tmp_path / "run")
    content = (damaged / "artifact.npz").read_bytes()
    (damaged / "artifact.npz").write_bytes(content[: len(content) // 2])
    refused(
        capsys,
        {"run": damaged, "data": data, "output": damaged},
        "artifact.npz is damaged",
        "run the step that writes it",
    )
    assert files(damaged) == ["artifact.npz", "run.json"]


def test_an_artifact_that_lacks_an_array_of_its_method_is_refused(run, data, tmp_path, capsys):
    other = copy_of(run, tmp_path / "run")
    artifact = Artifact.load(other / "artifact.npz")
    Artifact({"vector": artifact.arrays["vectors"]}, artifact.info).save(other / "artifact.npz")
    refused(
        capsys, {"run": other, "data": data, "output": other}, "does not hold what baselines.lightgcn:LightGCN needs"
    )


def test_an_artifact_that_does_not_say_what_it_is_is_refused(run, data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    Artifact({"vectors": np.zeros((2, 2))}, {"status": "ok"}).save(tmp_path / "run" / "artifact.npz")
    words = {"run": tmp_path / "run", "data": data, "ks": KS, "output": tmp_path / "out"}
    missing = "reason, method, uses, params, device, dataset, train_sha256, valid_sha256"
    refused(capsys, words, f"does not say its {missing};", "train the run again")


def test_a_start_that_is_not_the_run_which_the_entry_names_is_refused(folder, data, run, tmp_path, capsys):
    c2f = resolved(folder, "c2f", C2F)
    assert step("train", **train_words(data, c2f, tmp_path / "c2f", start=run)) == 2
    assert "is a run of 'lightgcn', but 'c2f' starts from coarse" in capsys.readouterr().err
    deeper = C2F | {"params": C2F["params"] | {"num_layers": 4}}
    trained(data, resolved(folder, "coarse", COARSE), tmp_path / "coarse")
    words = train_words(data, resolved(folder, "deeper", deeper), tmp_path / "deeper", start=tmp_path / "coarse")
    assert step("train", **words) == 2
    assert "'deeper' has num_layers = 4, but 'coarse', from which it starts, 3" in capsys.readouterr().err


def test_a_damaged_start_is_named_and_nothing_is_written(folder, data, tmp_path, capsys):
    coarse, c2f = resolved(folder, "coarse", COARSE), resolved(folder, "c2f", C2F)
    trained(data, coarse, tmp_path / "coarse")
    content = (tmp_path / "coarse" / "artifact.npz").read_bytes()
    (tmp_path / "coarse" / "artifact.npz").write_bytes(content[:300])
    assert step("train", **train_words(data, c2f, tmp_path / "c2f", start=tmp_path / "coarse")) == 2
    assert f"{tmp_path}/coarse/artifact.npz is damaged" in capsys.readouterr().err
    assert not (tmp_path / "c2f").exists()


# Stopped and started again ---------------------------------------------------

CHECKPOINT_EVERY_EPOCH = (
    "import sys; from c2f.train import Trainer; from c2f.__main__ import main; "
    "Trainer.checkpoint_seconds = 0; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def legcf(folder):
    """Two stages of 200 epochs, one or two seconds."""
    return resolved(folder, "legcf", LEGCF, max_epochs=200)


@pytest.fixture(scope="module")
def uninterrupted(folder, data, legcf):
    trained(data, legcf, folder / "uninterrupted")
    return folder / "uninterrupted"


def started(arguments: list[str], words: dict) -> subprocess.Popen:
    command = [sys.executable, *arguments, "train"]
    for name, value in words.items():
        command += [f"--{name}", str(value)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def read_until(process: subprocess.Popen, text: str) -> str:
    """Read the progress bars of a process until `text` appears."""
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        chunk = os.read(process.stderr.fileno(), 4096).decode()
        assert chunk, f"it ended early: {seen}"
        seen += chunk
    return seen


def trained_epochs(run) -> list[tuple]:
    return [(stage["name"], stage["epochs"], stage["best_epoch"], stage["steps"]) for stage in record(run)["stages"]]


def assert_same_run(run, expected):
    assert (run / "artifact.npz").read_bytes() == (expected / "artifact.npz").read_bytes()
    assert trained_epochs(run) == trained_epochs(expected)
    curves = [pd.read_csv(folder / "curve.csv").drop(columns="seconds") for folder in (run, expected)]
    pd.testing.assert_frame_equal(*curves)
    assert files(run) == ["artifact.npz", "curve.csv", "run.json"]  # no checkpoint left


def test_after_ctrl_c_the_same_command_goes_on_to_the_same_bytes(tmp_path, data, legcf, uninterrupted):
    words = train_words(data, legcf, tmp_path / "run")
    process = started(["-m", "c2f"], words)
    read_until(process, "updated assignment")  # the second stage has begun
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"run the same command again to continue" in message
    assert b"Traceback" not in message
    assert files(tmp_path / "run") == ["checkpoint.pt"]
    trained(data, legcf, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


def test_after_a_kill_the_same_command_goes_on_from_the_last_checkpoint(tmp_path, data, legcf, uninterrupted):
    words = train_words(data, legcf, tmp_path / "run")
    process = started(["-c", CHECKPOINT_EVERY_EPOCH], words)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = files(tmp_path / "run")
    assert not {"artifact.npz", "run.json"} & set(left)
    for name in set(left) - {"checkpoint.pt"}:  # a checkpoint may have been half-written, under a temporary name
        assert name.endswith(".tmp")
        (tmp_path / "run" / name).unlink()
    trained(data, legcf, tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


def stopped_in_epoch_two(data, method, run, monkeypatch):
    """Train until the second sample is drawn and stop as Ctrl-C does; leaves the checkpoint of one epoch."""
    epoch, count = Trainer._train_epoch, []

    def stop(*arguments):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint_seconds", 0.0)
        patch.setattr(Trainer, "_train_epoch", stop)
        assert step("train", **train_words(data, method, run)) == 130
    assert files(run) == ["checkpoint.pt"]


def epochs_run(monkeypatch) -> list:
    epoch, count = Trainer._train_epoch, []
    monkeypatch.setattr(Trainer, "_train_epoch", lambda *arguments: count.append(1) or epoch(*arguments))
    return count


def test_only_missing_epochs_are_trained_after_an_interruption(tmp_path, data, lightgcn, monkeypatch):
    stopped_in_epoch_two(data, lightgcn, tmp_path / "run", monkeypatch)
    count = epochs_run(monkeypatch)
    trained(data, lightgcn, tmp_path / "run")
    assert len(count) == 3


def test_an_interrupted_run_is_taken_up_again_under_another_limit(tmp_path, data, lightgcn, monkeypatch):
    stopped_in_epoch_two(data, lightgcn, tmp_path / "run", monkeypatch)
    count = epochs_run(monkeypatch)
    trained(data, resolved(tmp_path, "lightgcn", max_epochs=6), tmp_path / "run")
    assert len(count) == 5


@pytest.mark.parametrize("change", ["settings", "seed", "budget", "engine", "damage"])
def test_a_checkpoint_of_another_request_or_a_damaged_one_is_not_taken_up(
    tmp_path, data, lightgcn, monkeypatch, change
):
    stopped_in_epoch_two(data, lightgcn, tmp_path / "run", monkeypatch)
    request: dict = {"data": data, "method": lightgcn}
    if change == "settings":
        request["method"] = resolved(tmp_path, "lightgcn", lr=0.01)
    elif change == "seed":
        request["seed"] = 2
    elif change == "budget":
        request["budget"] = "numbers-999"
    elif change == "engine":
        monkeypatch.setattr("c2f.run._engine_sha256", lambda: "edited")
    else:
        (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK\x03\x04 damaged")
    count = epochs_run(monkeypatch)
    trained(**request, run=tmp_path / "run")
    assert len(count) == 4
    trained(**request, run=tmp_path / "fresh")
    names = [tmp_path / name / "artifact.npz" for name in ("run", "fresh")]
    assert names[0].read_bytes() == names[1].read_bytes()
    kept = ["checkpoint.old.pt"] * (change != "damage")
    assert files(tmp_path / "run") == ["artifact.npz", *kept, "curve.csv", "run.json"]
