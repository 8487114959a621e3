"""What is behind a figure, a table or the report: its runs, data, commit and commands, from the files beside it."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from c2f.captions import seeds_of
from c2f.errors import ConfigError, DataError
from c2f.report import data_checksums, distinct, read_runs, unreadable

_KEYS = ["dataset", "method", "budget", "seed"]
_MADE_BY = {"figures": "figure", "tables": "table", "published": "figure"}  # the folder: the step that fills it
_ENDINGS = (".png", ".pdf", ".csv", ".txt", ".md", ".tex")


def explain(path: Path) -> str:
    """Return as plain text which runs a figure, table or report.html shows, and where these came from.

    path: `<output>/figures/NAME.*`, `<output>/tables/NAME.*` (not a runs table) or `<output>/report.html`. The runs are
    those of `<output>/tables/runs-*.parquet` that the csv beside it names; the report shows all. Or a figure or table
    that lies beside its runs tables, as in a folder of `results/published`. Raises ConfigError for another path,
    DataError where the csv or the runs tables are missing or damaged.
    """
    path = Path(path)
    kind, folder = _place(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; {_there_are(path)}")
    tables = sorted(folder.glob("runs-*.parquet"))
    if not tables:
        raise DataError(
            f"{folder} has no runs table (runs-*.parquet), which names the runs behind {path}; "
            "run `python -m c2f collect`"
        )
    runs = read_runs(tables)
    shown, notes = (runs, []) if kind == "report" else _shown(path, runs, _MADE_BY[kind])
    starts = _starts(shown, read_runs(tables, starts=True))
    age = [] if kind == "published" else _age(path, tables)  # git keeps no times
    lines = [str(path), *_caption(path), "", f"From {', '.join(map(str, tables))}.", *age, *notes, ""]
    lines += ["Data", *_columns(_data(shown)), ""]
    lines += ["Made with", *_columns(_origin(shown)), ""]
    lines += [f"Runs ({len(shown)})", *_columns(_runs(shown)), ""]
    if len(starts):
        lines += [f"Runs that these start from ({len(starts)})", *_columns(_runs(starts)), ""]
    whole = _made_by(folder)
    lines += ["All of it again", whole, ""] if whole else []
    return "\n".join([*lines, "Commands of the runs alone", *starts.command, *shown.command])


def _place(path: Path) -> tuple[str, Path]:
    """Return `report`, `figures`, `tables` or `published`, and the folder of the runs tables behind a path."""
    if path.name == "report.html":
        return "report", path.parent / "tables"
    if path.parent.name in ("figures", "tables") and path.suffix in _ENDINGS:
        return path.parent.name, path.parent.parent / "tables"
    beside = path.suffix in _ENDINGS and path.with_suffix(".csv").is_file()
    if beside and any(path.parent.glob("runs-*.parquet")):
        return "published", path.parent
    raise ConfigError(
        f"{path} is no figure, table or report beside its runs; name a file such as results/figures/comparison.png, "
        "results/tables/main.md or results/report.html"
    )


def _made_by(folder: Path) -> str:
    """Return the command that made the tables in a folder and all else, as the first that names one has it; or ""."""
    starts = (table.read_text(errors="replace").partition("\n")[0] for table in sorted(folder.glob("*.md")))
    return next((line[len("Made by `") : -len("`.")] for line in starts if line.startswith("Made by `")), "")


def _there_are(path: Path) -> str:
    found = sorted({other.stem for other in path.parent.glob(f"*{path.suffix}")} - {path.stem})
    return f"beside it are {', '.join(found)}" if found else "make it first: see config/README.md for the command"


def _shown(path: Path, runs: pd.DataFrame, step: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the runs that the csv beside a figure or table names, and what is to be said of it.

    The csv has means over seeds; which, the caption says.
    """
    csv = path.with_suffix(".csv")
    try:
        drawn = pd.read_csv(csv, dtype=dict.fromkeys(_KEYS[:3], str))
    except (OSError, ValueError) as error:
        raise unreadable(csv, error, step) from None
    if "entry" in drawn:  # published numbers, under published names, beside ours
        ours = {"our_dataset": "dataset", "entry": "method"}
        drawn = drawn[drawn.compared].drop(columns=list(ours.values())).rename(columns=ours)
    keys = [key for key in _KEYS if key in drawn]
    if "method" not in keys:
        return runs, [f"{csv.name} names no methods: all runs of the tables are listed"]
    cells = drawn[keys].dropna().drop_duplicates()
    seeds = seeds_of(_read_caption(path))
    found = runs[runs.seed.isin(seeds)] if seeds and "seed" not in keys else runs
    found = found.merge(cells, on=keys).drop_duplicates(_KEYS).reset_index(drop=True)
    lost = cells.merge(found[keys].drop_duplicates(), on=keys, how="left", indicator=True)
    lost = lost[lost["_merge"] == "left_only"][keys]
    names = "; ".join(" ".join(map(str, row)) for row in lost.itertuples(index=False))
    return found, [f"no run in the tables for {len(lost)} rows of {csv.name}: {names}"] * bool(len(lost))


def _starts(runs: pd.DataFrame, starts: pd.DataFrame) -> pd.DataFrame:
    """Return those of `starts` that runs start from, and so on."""
    every = pd.concat([runs, starts]).dropna(subset="starts_from").set_index("folder").starts_from
    wanted, folders = set[str](), set(runs.folder)
    while folders := {every[folder] for folder in folders if folder in every} - wanted:
        wanted |= folders
    return starts[starts.folder.isin(wanted)].reset_index(drop=True)


def _read_caption(path: Path) -> str:
    caption = path.with_suffix(".txt")
    return caption.read_text(errors="replace").strip() if caption.is_file() else ""


def _caption(path: Path) -> list[str]:
    text = _read_caption(path)
    return [text] if text else []


def _age(path: Path, tables: Iterable[Path]) -> list[str]:
    """Return whether one of the runs tables is newer than what was made from them."""
    newer = [table.name for table in tables if table.stat().st_mtime > path.stat().st_mtime]
    warning = f"OUT OF DATE: it is older than {', '.join(newer)}, and may show other numbers; make it again."
    return [warning] * bool(newer)


def _data(runs: pd.DataFrame) -> pd.DataFrame:
    about = pd.DataFrame(distinct(runs, ["dataset", "protocol", "made_up"]), columns=["dataset", "protocol", "made_up"])
    about["made_up"] = about.made_up.map({True: "made up", False: "real"})
    return about.rename(columns={"made_up": "kind"}).merge(data_checksums(runs), on="dataset")


def _origin(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per commit, machine and set of versions."""
    columns = ["commit", "machine", "versions"]
    counts = runs.groupby(columns, sort=False).size().rename("runs").reset_index()
    counts["versions"] = [
        ", ".join(f"{name} {version}" for name, version in json.loads(text).items()) for text in counts.versions
    ]
    return counts[["runs", *columns]]


def _runs(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[[*_KEYS, "status", "commit", "folder"]]


def _columns(table: pd.DataFrame) -> list[str]:
    """Return a table as lines of aligned columns."""
    rows = [[str(name) for name in table.columns], *(list(map(str, row)) for row in table.itertuples(index=False))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
