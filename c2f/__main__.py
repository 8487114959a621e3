"""The command line: `python -m c2f STEP`, one thin function per step, and the boundary where errors become messages."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

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


def download(name: str, spec: str, output: Path) -> None:
    """Get a dataset's published files, or make the made-up ones; verify their checksums.

    C2F_DATA_MIRROR (a folder or URL that holds <dataset>/<file>) is tried before the URLs of the spec.
    """
    from c2f.download import download as run

    run(name, json_argument(spec), output)


def prepare(name: str, spec: str, raw: Path, output: Path) -> None:
    """Read raw files and split them by the dataset's recipe: train, valid and test.parquet, stats.json."""
    from c2f.data import prepare as run

    run(name, json_argument(spec), raw, output)


def resolve(name: str, entry: str, training: str, output: Path) -> None:
    """Check a method's config entry and write it with every default filled in."""
    from c2f.run import resolve as run

    run(name, json_argument(entry), json_argument(training), output)


def partition(data: Path, parts: int) -> None:
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
    train: Path,
    valid: Path,
    stats: Path,
    method: Path,
    budget: str,
    seed: int,
    output: Path,
    start: Path | None = None,
    training: str = "{}",
) -> None:
    """Train one run: artifact.npz, run.json, curve.csv. The test pairs are not among its inputs.

    What cannot be done within the budget is a status in run.json, not an error. Run it again to continue after an
    interruption. --start: the folder of the run that the method's `starts_from` names.
    --training: settings as JSON that take the place of the method's own, as a dataset's entry may want.
    """
    from c2f.run import train as run

    status = run(train, valid, stats, method, budget, seed, output, start, json_argument(training))
    print(f"{output}: {status}")


def evaluate(run: Path, data: Path, output: Path, ks: str = "5,10,20,50") -> None:
    """Rank all items for every user with a held-out test item: per_user.parquet, metrics.json.

    The model is rebuilt from the artifact alone. --ks: the k of Recall@k and NDCG@k.
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


def collect(runs: list[Path], output: Path) -> None:
    """Gather finished runs into one table with a row per run (parquet)."""
    from c2f.report import collect as run

    run(runs, output)


def table(runs: list[Path], output: Path) -> None:
    """Write the main table from runs tables: OUTPUT.csv, .md and .tex."""
    from c2f.report import write_table

    write_table(runs, output)


def figure(name: str, spec: str, runs: list[Path], output: Path) -> None:
    """Draw one figure from runs tables: OUTPUT.pdf, .png, and .csv with the plotted numbers."""
    from c2f.figures import write_figure

    write_figure(name, json_argument(spec), runs, output)


def report(tables: list[Path], figures: list[Path], runs: list[Path], output: Path) -> None:
    """Write one self-contained HTML page with the tables, figures, holes and provenance."""
    from c2f.report import write_report

    write_report(tables, figures, runs, output)


STEPS: list[Callable] = [download, prepare, resolve, partition, train, evaluate, collect, table, figure, report]


def parser() -> argparse.ArgumentParser:
    """Return the parser; a step's help is its docstring and its options are its arguments."""
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
            kind = argument.annotation
            many = kind == list[Path]
            step.add_argument(
                f"--{argument.name}",
                required=argument.default is argument.empty,
                default=None if argument.default is argument.empty else argument.default,
                type={int: int, str: str}.get(kind, Path),
                nargs="*" if many else None,
                metavar={int: "N", str: "TEXT"}.get(kind, "PATH"),
            )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one step. Returns 0, 2 for a mistake that the user can mend, 130 when interrupted."""
    options = vars(parser().parse_args(arguments))
    options.pop("step")
    function = options.pop("function")
    try:
        function(**options)
    except C2FError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
