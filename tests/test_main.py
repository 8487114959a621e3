"""The command line: help from docstrings; mistakes end with exit code 2, a message, and nothing half-written."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from steps import LIGHTGCN, SPEC, TRAINING, prepared, resolved, step, train_words, trained

from c2f import __main__ as command_line
from c2f.__main__ import STEPS, main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(data, method file, run folder) of one finished run; tests only read them."""
    folder = tmp_path_factory.mktemp("finished")
    data, method = prepared(folder), resolved(folder)
    trained(data, method, folder / "run")
    return data, method, folder / "run"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(capsys, words: list, pieces: list[str]) -> None:
    """Assert that the command ends with exit code 2 and one error message that holds all pieces."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("ERROR: ")
    for piece in pieces:
        assert str(piece) in output.err
    assert "Traceback" not in output.err


def options(**values) -> list:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


# Help ------------------------------------------------------------------------


def test_the_steps_are_those_of_the_design():
    expected = "download prepare check resolve partition train tune freeze evaluate inference"
    expected += " collect table memory compare protocol_effect figure report explain choose recommend export"
    assert [function.__name__ for function in STEPS] == expected.split()


@pytest.mark.parametrize("function", STEPS, ids=lambda function: function.__name__)
def test_the_help_of_a_step_is_its_docstring_and_names_every_option(function, capsys):
    with pytest.raises(SystemExit) as end:
        main([function.__name__, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    description = text.split("\n\n", 1)[1]
    assert description.startswith(inspect.cleandoc(function.__doc__))
    for name, argument in inspect.signature(function).parameters.items():
        option = name if argument.kind is argument.POSITIONAL_ONLY else f"--{name}"
        assert f"{option} " in text or "positional arguments" in text
        _, meaning = get_args(argument.annotation)
        assert len(meaning) > 10
        assert meaning in " ".join(text.split())


def test_the_default_of_an_option_stands_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "list lengths k of Recall@k and NDCG@k (default: 5,10,20,50)" in " ".join(capsys.readouterr().out.split())


def test_the_overview_lists_each_step_with_the_first_line_of_its_docstring(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for function in STEPS:
        first_line = inspect.cleandoc(function.__doc__).splitlines()[0]
        assert f"{function.__name__} {first_line}" in text


# Mistakes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["trian"], ["invalid choice: 'trian'", "train", "evaluate"]),
        ([], ["STEP"]),
        (["train"], ["required", "--train", "--budget"]),
        (["partition", "--data", "x", "--parts", "many"], ["--parts", "'many'"]),
        (["table", "--output", "x", "--runs"], ["--runs", "expected at least one argument"]),
        (["report", "--output", "x", "--runs", "y", "--tables"], ["--tables", "expected at least one argument"]),
        (["table", "--run", "x", "--runs", "y", "--output", "z", "--outptu", "w"], ["unrecognized", "--outptu"]),
    ],
)
def test_a_command_that_cannot_be_read_ends_with_code_2_and_the_choices(words, pieces, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    message = capsys.readouterr().err
    for piece in pieces:
        assert piece in message


ENTRY_MISTAKES = [
    ({"entry": '{"uses": '}, ["neither JSON nor a readable .json file"]),
    ({"entry": "nowhere.json"}, ["'nowhere.json'", "neither JSON nor a readable .json file"]),
    ({"entry": "[1]"}, ["'[1]' is not a JSON mapping", "write '{...}'"]),
    ({"entry": LIGHTGCN | {"param": {}}}, ["unknown key 'param' in methods.x", "params"]),
    ({"entry": {}}, ["methods.x has no `uses`", "package.module:Class"]),
    ({"entry": {"uses": "baselines.nothing:X"}}, ["uses: baselines.nothing:X", "no module 'baselines.nothing'"]),
    ({"entry": {"uses": "nothing:X"}}, ["no module 'nothing'"]),
    ({"entry": {"uses": ""}}, ["names no module", "package.module:Class"]),
    ({"entry": {"uses": ".lightgcn:LightGCN"}}, ["names no module"]),
    ({"entry": {"uses": "baselines.lightgcn:LigthGCN"}}, ["no EmbeddingMethod 'LigthGCN'", "did you mean 'LightGCN'"]),
    ({"entry": {"uses": "baselines.lightgcn"}}, ["no EmbeddingMethod ''"]),
    ({"entry": {"uses": "json:JSONDecoder"}}, ["json has no EmbeddingMethod 'JSONDecoder'"]),
    ({"entry": LIGHTGCN | {"params": {"dims": 4}}}, ["unknown key 'dims' in methods.x.params", "did you mean 'dim'?"]),
    ({"entry": LIGHTGCN | {"params": {"dim": "4"}}}, ["methods.x.params.dim = '4' is not a whole number"]),
    ({"entry": LIGHTGCN | {"params": {"dim": 0}}}, ["methods.x.params: dim = 0", "at least 1"]),
    ({"entry": LIGHTGCN | {"params": [4]}}, ["methods.x.params = [4] is not a mapping"]),
    ({"entry": LIGHTGCN | {"training": {"ls": 1}}}, ["unknown key 'ls' in methods.x.training"]),
    ({"entry": LIGHTGCN | {"training": [1]}}, ["methods.x.training = [1] is not a mapping"]),
    ({"training": '{"learning_rate": 1}'}, ["unknown key 'learning_rate' in training", "lr"]),
    ({"training": '{"lr": -1}'}, ["training: lr = -1.0", "above 0"]),
    ({"training": '{"max_seconds": Infinity}'}, ["training.max_seconds = inf is not a number or null"]),
]


@pytest.mark.parametrize(("changes", "pieces"), ENTRY_MISTAKES)
def test_a_mistake_in_a_method_s_entry_stops_at_resolve_and_writes_nothing(changes, pieces, capsys, tmp_path):
    given = {"entry": LIGHTGCN, "training": TRAINING} | changes
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    refused(capsys, ["resolve", *options(name="x", **texts, output=tmp_path / "x.json")], pieces)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(("changes", "pieces"), ENTRY_MISTAKES[3:])
def test_the_same_mistakes_stop_at_check_which_looks_at_every_entry(changes, pieces, capsys):
    given = {"entry": LIGHTGCN, "training": json.dumps(TRAINING)} | changes
    entries = json.dumps({"good": LIGHTGCN, "x": given["entry"]})
    refused(capsys, ["check", *options(entries=entries, training=given["training"])], pieces)


def test_check_says_and_writes_nothing_where_all_is_well(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert step("check", entries={"good": LIGHTGCN}, training=TRAINING) == 0
    assert capsys.readouterr().out == "" and files_below(tmp_path) == []


def test_a_mapping_may_come_from_a_file_and_a_file_that_is_no_text_is_named(capsys, tmp_path):
    (tmp_path / "entry.json").write_text(json.dumps(LIGHTGCN))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    given = {"name": "x", "training": "{}", "output": tmp_path / "x.json"}
    assert step("resolve", entry=tmp_path / "entry.json", **given) == 0
    refused(capsys, ["resolve", *options(entry=tmp_path / "binary.json", **given)], ["binary.json", "neither JSON nor"])


TRAIN_MISTAKES = [
    ({"budget": "byte-500"}, ["budget 'byte-500'", "unknown kind 'byte'", "did you mean 'bytes'?"]),
    ({"budget": "plenty"}, ["budget 'plenty' is not a budget", "numbers-25600"]),
    ({"train": "nowhere/train.parquet"}, ["cannot read nowhere/train.parquet", "prepare"]),
    ({"stats": "nowhere/stats.json"}, ["cannot read nowhere/stats.json", "prepare"]),
    ({"method": "nowhere.json"}, ["nowhere.json is missing", "run the step that writes it"]),
    ({"start": "nowhere"}, ["nowhere/artifact.npz is missing", "run the step that writes it"]),
]


@pytest.mark.parametrize(("changes", "pieces"), TRAIN_MISTAKES)
def test_a_mistake_in_the_inputs_of_train_is_named_and_nothing_is_written(changes, pieces, capsys, tmp_path, finished):
    data, method, _ = finished
    words = train_words(data, method, tmp_path / "run") | changes
    refused(capsys, ["train", *options(**words)], pieces)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_start_is_named_before_the_run_s_folder_is_made(capsys, tmp_path, finished):
    data, method, _ = finished
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "artifact.npz").write_bytes(b"PK\x03\x04 but no more")
    words = train_words(data, method, tmp_path / "run", start=tmp_path / "start")
    refused(capsys, ["train", *options(**words)], ["start/artifact.npz is damaged", "run the step that writes it"])
    assert files_below(tmp_path) == ["start/artifact.npz"] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("{}", ["holds no resolved method", "python -m c2f resolve"]),
        ("[1, 2]", ["holds no resolved method"]),
        ('{"name": ', ["is not valid JSON"]),
        ({"params": {"dimm": 3}}, ["unknown key 'dimm'", "did you mean 'dim'?"]),
        ({"training": {"lr": "fast"}}, ["lr = 'fast' is not a number"]),
        ({"uses": "baselines.gone:X"}, ["no module 'baselines.gone'"]),
    ],
)
def test_a_method_file_that_resolve_did_not_write_is_named(content, pieces, capsys, tmp_path, finished):
    data, method, _ = finished
    other = tmp_path / "method.json"
    other.write_text(content if isinstance(content, str) else json.dumps(json.loads(method.read_text()) | content))
    refused(capsys, ["train", *options(**train_words(data, other, tmp_path / "run"))], pieces)
    assert files_below(tmp_path) == ["method.json"]


def test_a_run_folder_that_cannot_be_made_is_named_before_training(capsys, tmp_path, finished):
    data, method, _ = finished
    (tmp_path / "run").write_text("a file")
    refused(
        capsys, ["train", *options(**train_words(data, method, tmp_path / "run"))], ["cannot write", tmp_path / "run"]
    )


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"ks": "5,ten"}, ["--ks '5,ten' is not a list of whole numbers", "--ks 5,10,20,50"]),
        ({"ks": ""}, ["--ks '' is not a list of whole numbers"]),
        ({"ks": "0,5"}, ["--ks '0,5' holds 0", "at least 1"]),
        ({"run": "nowhere"}, ["there is no artifact at nowhere/artifact.npz", "train the run first"]),
        ({"data": "nowhere"}, ["cannot read nowhere/stats.json", "prepare"]),
    ],
)
def test_a_mistake_in_the_inputs_of_evaluate_is_named_and_nothing_is_written(
    changes, pieces, capsys, tmp_path, finished
):
    data, _, run = finished
    words = {"run": run, "data": data, "output": tmp_path} | changes
    refused(capsys, ["evaluate", *options(**words)], pieces)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("table --runs nowhere.parquet", ["nowhere.parquet is missing", "python -m c2f collect"]),
        ("compare --plain svd --runs nowhere.parquet", ["nowhere.parquet is missing", "python -m c2f collect"]),
        ("table --runs README.md", ["README.md cannot be read", "python -m c2f collect"]),
        ("figure --name mine --spec {} --runs README.md", ["unknown drawing 'mine' in figures.mine", "comparison"]),
        ("figure --name comparison --spec {} --runs README.md", ["figures.comparison has no 'metrics'"]),
        ("report --tables main.csv --runs nowhere.parquet", ["nowhere.parquet is missing"]),
        ("collect --runs nowhere --data nowhere --spec {}", ["cannot read nowhere/stats.json", "prepare"]),
    ],
)
def test_a_mistake_in_the_inputs_of_tables_and_figures_is_named_and_nothing_is_written(
    words, pieces, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no table")
    refused(capsys, [*words.split(), "--output", "made"], pieces)
    assert files_below(tmp_path) == ["README.md"]


def test_a_mistake_in_a_dataset_s_entry_is_named(capsys, tmp_path):
    spec = json.dumps(SPEC | {"recipe": "legfc"})
    refused(
        capsys, ["download", *options(name="toy", spec=spec, output=tmp_path)], ["'legfc'", "did you mean 'legcf'?"]
    )


def test_a_mistake_in_a_subprocess_has_exit_code_2_and_no_traceback(tmp_path):
    words = ["resolve", "--name", "x", "--entry", "{", "--training", "{}", "--output", str(tmp_path / "x.json")]
    result = subprocess.run([sys.executable, "-m", "c2f", *words], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("ERROR: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_bug_still_ends_with_a_traceback(monkeypatch):
    def broken(name: str) -> None:
        """Fail."""
        raise ZeroDivisionError

    monkeypatch.setattr(command_line, "STEPS", [broken])
    with pytest.raises(ZeroDivisionError):
        main(["broken", "--name", "x"])


def test_ctrl_c_ends_with_code_130_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(name: str) -> None:
        """Stop."""
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "STEPS", [interrupted])
    assert main(["interrupted", "--name", "x"]) == 130
    assert "run the same command again to continue" in capsys.readouterr().err


# Steps that are not tested elsewhere -----------------------------------------


def test_partition_keeps_the_parts_beside_the_data(tmp_path, capsys):
    data = prepared(tmp_path)
    assert step("partition", data=data, parts=4) == 0
    assert "4 parts of 108 nodes by" in capsys.readouterr().out
    assert len(list(data.glob("partition-4-*.npz"))) == 1


def test_a_reader_that_has_enough_ends_a_step_without_a_traceback(tmp_path):
    data = prepared(tmp_path)
    step = subprocess.Popen(
        [sys.executable, "-m", "c2f", "partition", "--data", data, "--parts", "4"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    step.stdout.close()  # before anything is written
    assert (step.wait(), step.stderr.read()) == (141, b"")
    step.stderr.close()


def test_the_module_runs_from_any_folder(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "c2f", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert "resolve" in result.stdout
