"""The command line: `python -m c2f STEP`, one thin function per step, and the boundary where errors become messages."""

import argparse
import atexit
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args, get_origin

from c2f.errors import C2FError, ConfigError


def json_argument(text: str) -> dict:
    """Read a mapping from JSON text or from a path to a .json file. Raises ConfigError."""
    try:
        value = json.loads(Path(text).read_text() if text.endswith(".json") else text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{text!r} is neither JSON nor a readable .json file: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{text!r} is not a JSON mapping; write '{{...}}'")
    return value


Names = list[str] | None
Paths = list[Path] | None
Output = Annotated[Path, "file to write"]
Stem = Annotated[Path, "path to write, without an ending: .csv and others are added"]
Training = Annotated[str, "the settings under `training:`, as JSON or a .json file"]
Spec = Annotated[str, "the dataset's entry in the configuration, as JSON or a .json file"]
Studies = Annotated[list[Path], "studies of one dataset, as `tune` writes them"]
Tables = Annotated[list[Path], "runs tables, as `collect` writes them"]
MadeBy = Annotated[str, "the command that made all this, to be stated in it"]


def download(
    name: Annotated[str, "the dataset's name"],
    spec: Spec,
    output: Annotated[Path, "folder for the raw files"],
) -> None:
    """Get a dataset's published files, or make the made-up ones; verify their checksums.

    C2F_DATA_MIRROR (a folder or URL that holds <dataset>/<file>) is tried before the URLs of the spec.
    """
    from c2f.download import download as run

    run(name, json_argument(spec), output)


def prepare(
    name: Annotated[str, "the dataset's name"],
    spec: Spec,
    raw: Annotated[Path, "folder that `download` filled"],
    output: Annotated[Path, "folder for the prepared files"],
) -> None:
    """Read raw files and split them by the dataset's recipe: train, valid and test.parquet, ids.csv, stats.json.

    The pairs have ids of their own; ids.csv has the published id or name of each.
    """
    from c2f.data import prepare as run

    run(name, json_argument(spec), raw, output)


def check(
    entries: Annotated[str, "methods' names to their entries with all that they inherit, as JSON or a .json file"],
    training: Training,
) -> None:
    """Check methods' entries as `resolve` does, and write nothing: mistakes are found before anything runs."""
    from c2f.run import resolved_method

    for name, entry in json_argument(entries).items():
        resolved_method(name, entry, json_argument(training))


def resolve(
    name: Annotated[str, "the method's name"],
    entry: Annotated[str, "its entry under `methods:` with all that it inherits, as JSON or a .json file"],
    training: Training,
    output: Output,
) -> None:
    """Check a method's config entry and write it with every default filled in."""
    from c2f.run import resolve as run

    run(name, json_argument(entry), json_argument(training), output)


def partition(
    data: Annotated[Path, "folder of a prepared dataset"],
    parts: Annotated[int, "how many parts: the number of codes that a method starts with"],
) -> None:
    """Cut the training graph into balanced parts with METIS and keep the result beside the data.

    `train` does this on demand; run it where pymetis is installed to train where it is not.
    """
    from c2f.data import load_pairs, load_stats
    from c2f.graph import Graph
    from c2f.partition import partition as run

    graph = Graph(load_pairs(data / "train.parquet", load_stats(data / "stats.json")))
    _, engine = run(graph, parts, 0, data)
    print(f"{parts} parts of {graph.num_nodes:,} nodes by {engine}")


def train(
    train: Annotated[Path, "the training pairs, train.parquet"],
    valid: Annotated[Path, "the validation pairs, valid.parquet: they stop the training and select the weights"],
    stats: Annotated[Path, "the dataset's stats.json"],
    method: Annotated[Path, "the method as `resolve` wrote it"],
    budget: Annotated[str, "full, numbers-N, or bytes-N with kB, MB or GB"],
    seed: Annotated[int, "of everything random but the split"],
    output: Annotated[Path, "the run's folder"],
    start: Annotated[Path | None, "folder of the run that the method's `starts_from` names"] = None,
    training: Annotated[str, "settings as JSON that take the place of the method's own on this dataset"] = "{}",
) -> None:
    """Train one run: artifact.npz, run.json, curve.csv. The test pairs are not among its inputs.

    What cannot be done within the budget is a status in run.json, not an error. Run it again to continue after an
    interruption.
    """
    from c2f.run import train as run

    status = run(train, valid, stats, method, budget, seed, output, start, json_argument(training))
    print(f"{output}: {status}")


def tune(
    train: Annotated[Path, "the training pairs, train.parquet"],
    valid: Annotated[Path, "the validation pairs, valid.parquet: they alone judge the trials"],
    stats: Annotated[Path, "the dataset's stats.json"],
    method: Annotated[Path, "the method as `resolve` wrote it"],
    budget: Annotated[str, "full, numbers-N, or bytes-N with kB, MB or GB"],
    trials: Annotated[int, "how many, failed ones too; the first has the method's own settings"],
    seed: Annotated[int, "of the search, and of the training of every trial"],
    space: Annotated[str, "the ranges under `tuning: space`, as JSON or a .json file"],
    folder: Annotated[Path, "folder of the study: study.sqlite, and the trials without their artifacts"],
    output: Annotated[Path, "file to write: the settings found, and every trial (json)"],
    start: Annotated[Path | None, "folder of the run that the method's `starts_from` names"] = None,
    training: Annotated[str, "settings as JSON that take the place of the method's own on this dataset"] = "{}",
) -> None:
    """Search a method's settings at one budget with Optuna. The test pairs are not among its inputs.

    A trial is a training run in a process of its own; one that does not end well is recorded as failed, with the
    reason. Run it again to continue after an interruption, or with more trials.
    """
    from c2f.tuning import tune as run

    given = json_argument(space), folder, output, start, json_argument(training)
    study = run(train, valid, stats, method, budget, trials, seed, *given)
    print(f"{output}: {study['trials_run']} trials, {study['trials_failed']} failed, best {study['best_value']}")


def freeze(
    studies: Studies,
    spec: Annotated[str, "what c2f.grid tells of them: output, made_up, families, as JSON or a .json file"],
    output: Stem,
    made_by: MadeBy = "",
) -> None:
    """Write what studies found as entries of a configuration, OUTPUT.yaml, and draw every trial.

    The figure is OUTPUT.pdf and .png, its numbers OUTPUT.csv, its caption OUTPUT.txt.
    """
    from c2f.tuning import freeze as run

    run(studies, json_argument(spec), output, made_by)


def evaluate(
    run: Annotated[Path, "folder of a trained run"],
    data: Annotated[Path, "folder of the dataset that it was trained on"],
    output: Annotated[Path, "folder for per_user.parquet, metrics.json and diagnostics.json"],
    ks: Annotated[str, "list lengths k of Recall@k and NDCG@k"] = "5,10,20,50",
) -> None:
    """Rank all items for every user with a held-out test item: per_user.parquet, metrics.json, diagnostics.json.

    The model is rebuilt from the artifact alone. The diagnostics: items that nobody is shown, the metrics by the users'
    activity and the items' popularity, and what the codes of the model do.
    """
    from c2f.run import evaluate_run

    try:
        cutoffs = sorted({int(k) for k in ks.split(",")})
    except ValueError:
        raise ConfigError(f"--ks {ks!r} is not a list of whole numbers; write --ks 5,10,20,50") from None
    if cutoffs[0] < 1:
        raise ConfigError(f"--ks {ks!r} holds {cutoffs[0]}; every k must be at least 1")
    means = evaluate_run(run, data, cutoffs, output)
    print(" ".join(f"{name}={value:.5f}" for name, value in means.items()) or "no trained model: nothing to evaluate")


def inference(
    runs: Annotated[list[Path], "folders of trained runs, all on one dataset"],
    data: Annotated[Path, "folder of that dataset"],
    output: Output,
    num_users: Annotated[int, "how many users are asked for"] = 1000,
    memory_limit: Annotated[str, "address space beyond what Python and NumPy take, with kB, MB or GB"] = "256MB",
) -> None:
    """Measure what serving each run costs: file, load time, memory, time per user (csv).

    Each is served in a process of its own, on one core, with NumPy alone. Nothing else should run meanwhile.
    """
    from c2f.budget import parse_bytes
    from c2f.inference import measure_runs

    if num_users < 1:
        raise ConfigError(f"--num_users {num_users} is no number of users; write 1 or more")
    measure_runs(runs, data, output, num_users, parse_bytes(memory_limit, "--memory_limit"))


def collect(
    runs: Annotated[list[Path], "folders of evaluated runs, all on one dataset"],
    data: Annotated[Path, "folder of that dataset"],
    spec: Spec,
    output: Output,
    methods: Annotated[Names, "the methods that are compared (default: all); the others serve figures"] = None,
    inference: Annotated[Path | None, "what serving these runs costs, as `inference` writes it"] = None,
) -> None:
    """Gather a dataset's finished runs, and those that they start from, into one table with a row per run (parquet)."""
    from c2f.report import collect as run

    run(runs, data, json_argument(spec), output, methods or None, inference)


def table(runs: Tables, output: Stem, made_by: MadeBy = "") -> None:
    """Write the main table from runs tables: OUTPUT.csv, .md and .tex."""
    from c2f.report import write_table

    write_table(runs, output, made_by)


def memory(runs: Tables, output: Stem, made_by: MadeBy = "") -> None:
    """Write what was asked for, stored, and measured when serving, from runs tables: OUTPUT.csv and .md."""
    from c2f.report import write_memory

    write_memory(runs, output, made_by)


def compare(
    runs: Tables,
    output: Stem,
    plain: Annotated[str, "the method that is a plain table"],
    made_by: MadeBy = "",
) -> None:
    """Write which methods differ, and which beat a plain table: OUTPUT.csv, .md, .tex and OUTPUT-variance.csv.

    The runs' folders must still hold their per_user.parquet.
    """
    from c2f.compare import write_compare

    write_compare(runs, output, plain, made_by)


def protocol_effect(
    runs: Tables,
    output: Stem,
    full: Annotated[str, "the method whose runs without a budget the others are held against"],
    made_by: MadeBy = "",
) -> None:
    """Write what the split recipe does to levels and order of methods: OUTPUT.csv, .md and OUTPUT-orders.csv.

    For data that was run under more than one protocol; the others are left out.
    """
    from c2f.protocols import write_protocol_effect

    write_protocol_effect(runs, output, full, made_by)


def figure(
    name: Annotated[str, "the figure's name"],
    spec: Annotated[str, "its entry under `figures:` and what the grid adds to it, as JSON or a .json file"],
    runs: Tables,
    output: Stem,
) -> None:
    """Draw one figure from runs tables: OUTPUT.pdf, .png, .csv with the plotted numbers, and .txt with the caption."""
    from c2f.figures import write_figure

    write_figure(name, json_argument(spec), runs, output)


def report(
    tables: Annotated[list[Path], "main tables (csv), as `table` writes them"],
    runs: Tables,
    output: Output,
    figures: Annotated[Paths, "pictures (png), as `figure` writes them; their captions lie beside them"] = None,
    made_by: MadeBy = "",
    spec: Annotated[str, "what c2f.grid tells of the methods: families, as JSON or a .json file"] = "{}",
    compare: Annotated[Path | None, "compare table (csv), as `compare` writes it: which differences are noise"] = None,
    full: Annotated[str | None, "the method whose runs without a budget the others are held against"] = None,
    plain: Annotated[str | None, "the method that is a plain table"] = None,
    protocols: Annotated[Paths, "what the split recipe does (csv), as `protocol_effect` writes it"] = None,
) -> None:
    """Write one self-contained HTML page: findings in words, an interactive plot, tables, figures, holes, provenance.

    Its address may end in a choice of what the plot shows: #dataset=ml-1m&metric=recall@20&view=serving&method=c2f.
    """
    from c2f.page import write_report

    families = json_argument(spec).get("families")
    write_report(tables, figures or [], runs, output, made_by, families, compare, full, plain, protocols or [])


def explain(path: Annotated[Path, "a file in figures/ or tables/, or report.html"], /) -> None:
    """Print what is behind a figure, a table or the report: runs, data, commit, commands.

    They are found in the csv beside it and the runs tables of the same output folder.
    """
    from c2f.explain import explain as run

    print(run(path))


def choose(
    bytes: Annotated[str, "the size that a model may have, with kB, MB or GB"],
    dataset: Annotated[str, "the dataset's name"],
    latency: Annotated[str | None, "the 95th percentile of the time for one user, with us, ms or s"] = None,
    train_hours: Annotated[str | None, "hours of training, with what a run starts from"] = None,
    runs: Annotated[Path | None, "runs table, as `collect` writes it (default: that of results/tables)"] = None,
    metric: Annotated[str, "by which methods are ordered"] = "ndcg@20",
    view: Annotated[str, "which bytes are limited: stored, or serving (all that answering queries takes)"] = "stored",
) -> None:
    """Print which method to take within limits, the runner-up, and whether the evidence separates them.

    It compares the finished runs of one dataset; what was left out is counted, with the reason.
    """
    from c2f.choose import Limits
    from c2f.choose import choose as run

    print(run(dataset, Limits.parse(bytes, view, latency, train_hours), runs, metric))


def recommend(
    artifact: Annotated[Path, "a trained run's folder, or its artifact.npz"],
    data: Annotated[Path, "folder of the dataset that it was trained on"],
    user: Annotated[str, "the user's published id or name, as in ids.csv"],
    k: Annotated[int, "how many items"] = 20,
) -> None:
    """Print the items that a trained model recommends to a user, best first; none that the user has already.

    NumPy alone reads the artifact. Ids are the published ones.
    """
    from c2f.serve import Reader

    reader = Reader.open(artifact, data)
    names = reader.data.names()
    if user not in names["user"]:
        raise ConfigError(
            f"there is no user {user!r}; the rows `user,...` of {data / 'ids.csv'} end in all their names"
        )
    items, scores = reader.recommend(names["user"].index(user), k)
    print(f"{reader.info['method']} on {reader.info['dataset']}, user {user}")
    width = max([4, *(len(names["item"][item]) for item in items)])
    print(f"rank  {'item':>{width}}  score")
    for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1):
        print(f"{rank:4d}  {names['item'][item]:>{width}}  {score:.4f}")


def export(
    artifact: Annotated[Path, "a trained run's folder, or its artifact.npz"],
    data: Annotated[Path, "folder of the dataset that it was trained on"],
    output: Output,
    format: Annotated[str, "npz, parquet, or onnx (a model from users to scores of all items)"] = "npz",
) -> None:
    """Write a model's final user and item vectors for others: their dot products are the scores.

    npz: users (U, d), items (I, d), user_names, item_names. parquet: a row per user and item: kind, id, name, vector.
    onnx: input `users` (n,) of ids 0..U-1, output `scores` (n, I); it needs the package onnx.
    """
    from c2f.export import export as run

    run(artifact, data, output, format)


STEPS: list[Callable] = [download, prepare, check, resolve, partition, train, tune, freeze, evaluate, inference]
STEPS += [collect, table, memory, compare, protocol_effect, figure, report, explain, choose, recommend, export]


def parser() -> argparse.ArgumentParser:
    """Return the parser; a step's help is its docstring, its options are its arguments with what is annotated there."""
    top = argparse.ArgumentParser(prog="python -m c2f", description=__doc__)
    steps = top.add_subparsers(dest="step", required=True, metavar="STEP")
    for function in STEPS:
        text = inspect.cleandoc(function.__doc__ or "")
        step = steps.add_parser(
            function.__name__,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        step.set_defaults(function=function)
        for argument in inspect.signature(function).parameters.values():
            kind, text = argument.annotation, ""
            if get_origin(kind) is Annotated:
                kind, text = get_args(kind)
            metavar = {int: "N", str: "TEXT", str | None: "TEXT", Names: "TEXT"}.get(kind, "PATH")
            given = {"required": True} if argument.default is argument.empty else {"default": argument.default}
            options = dict.fromkeys([f"--{argument.name}", f"--{argument.name.replace('_', '-')}"])
            if argument.kind is argument.POSITIONAL_ONLY:
                options, given = {argument.name: None}, {}
            step.add_argument(
                *options,
                type={"N": int, "TEXT": str}.get(metavar, Path),
                nargs={list[Path]: "+", Names: "*", Paths: "*"}.get(kind),
                metavar=metavar,
                help=text + (f" (default: {argument.default})" if given.get("default") else ""),
                **given,
            )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one step. Returns 0, 2 for a mistake that the user can mend, 130 when interrupted, 141 when unread."""
    options = vars(parser().parse_args(arguments))
    options.pop("step")
    function = options.pop("function")
    taken = inspect.signature(function).parameters.values()
    words = [options.pop(argument.name) for argument in taken if argument.kind is argument.POSITIONAL_ONLY]
    try:
        function(*words, **options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except C2FError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    code = main()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking down all that torch imported, object by object, takes Python up to a second
