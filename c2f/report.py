"""The runs table, the main table and the memory table: what was run, what came out and what is missing."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from c2f.budget import KINDS, Budget, Footprint
from c2f.captions import COLUMNS, TABLE_METRICS, commits_in_words, metric_in_words
from c2f.data import load_stats, read_parquet
from c2f.errors import DataError
from c2f.inference import COLUMNS as SERVING_COLUMNS
from c2f.record import read_json, write_atomically

_KEY = ["dataset", "budget", "method"]
_SIZES = ["numbers", "stored_bytes", "serving_bytes"]
_UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
# What is read of run.json, of a runs table and of a main table: what all have, the first two, the last two
_ALL = ["dataset", "protocol", "method", "budget", "status", "reason", "seconds", "peak_rss_bytes"]
_RUN = ["seed", "starts_from", "device", "threads", "machine", "commit", "command", "versions"]
_SIZED = ["made_up", "role", "budget_kind", "budget_amount", *_SIZES, "seconds_with_starts"]
_RECORD_KEYS = [*_ALL, *_RUN, "footprint", "leftover", "stages", "inputs_sha256"]
_RUNS_COLUMNS = [*_ALL, *_RUN, *_SIZED, "folder", "data_sha256", "parts", "leftover", "served", *SERVING_COLUMNS]
_TABLE_COLUMNS = [*_ALL, *_SIZED, "runs", "results", *TABLE_METRICS]


# The runs table -------------------------------------------------------------------------------------------------------


def collect(
    run_dirs: Sequence[Path],
    data: Path,
    spec: dict,
    output: Path,
    methods: Sequence[str] | None = None,
    inference: Path | None = None,
) -> None:
    """Write one row per run folder, as run.json and metrics.json say, and one per run that these start from.

    data, spec: the dataset's folder and entry; inference: what serving the runs costs, as c2f.inference measured it. A
    row's `role` is `compared` for the runs of `methods` (None: all), `figure` for other run folders, `start` for what
    is only started from. Raises DataError for a missing record.
    """
    if not run_dirs:
        raise DataError(f"no runs to collect into {output}; name at least one run folder")
    stats = load_stats(Path(data) / "stats.json")
    shared = {"made_up": "generate" in spec, "data_sha256": json.dumps(stats["sha256"])}
    unsplit = {key: stats.get(key) for key in ("source", "recipe", "k_core", "num_users", "num_items")}
    shared |= {"split_seed": stats.get("split_seed"), "unsplit_data": json.dumps(unsplit)}
    read = functools.cache(lambda folder: _read_record(folder, stats))
    asked = [Path(folder) for folder in run_dirs]
    started = dict.fromkeys(start for folder in asked for start in _starts(folder, read))
    served = _read_served(inference)
    rows = []
    for folder in [*asked, *(start for start in started if start not in asked)]:
        record = read(folder)
        compared = methods is None or record["method"] in methods
        role = ("compared" if compared else "figure") if folder in asked else "start"
        metrics = {"users": 0, "means": {}} if role == "start" else _read_metrics(folder, stats)
        before = sum(float(read(start)["seconds"]) for start in _starts(folder, read))
        row = {"folder": str(folder)} | _row(record, metrics) | shared
        row |= {"seconds_with_starts": record["seconds"] + before, "role": role}
        rows.append(row | served.get(str(folder), dict.fromkeys(["served", *SERVING_COLUMNS])))
    table = pd.DataFrame(rows).astype(dict.fromkeys(SERVING_COLUMNS, float))
    texts = ["reason", "starts_from", "parts", "leftover", "served"]  # text also where every run has none
    table = table.astype(dict.fromkeys(texts, "string"))
    with write_atomically(Path(output)) as temporary:
        table.to_parquet(temporary, index=False)


def _read_served(path: Path | None) -> dict[str, dict]:
    """Return by run folder how it could be served, and at what cost."""
    if path is None:
        return {}
    table = read_table(pd.read_csv, Path(path), ["run", "status", "reason", *SERVING_COLUMNS], "inference")
    table["served"] = table.status.where(table.status == "ok", table.status + ": " + table.reason.fillna(""))
    return dict(table.set_index("run")[["served", *SERVING_COLUMNS]].to_dict("index").items())


def _read_record(folder: Path, stats: dict) -> dict:
    record = _read_mapping(folder / "run.json", "train")
    if record["inputs_sha256"]["train"] != stats["sha256"]["train"]:
        raise DataError(
            f"{folder} was trained on {record['dataset']} with other training pairs than {stats['name']} has here; "
            "name the folder of its own dataset, or train it again"
        )
    return record


def _read_metrics(folder: Path, stats: dict) -> dict:
    metrics = _read_mapping(folder / "metrics.json", "evaluate")
    if metrics["test_sha256"] != stats["sha256"]["test"]:
        raise DataError(
            f"{folder / 'metrics.json'} was made with other test pairs than {stats['name']} has here; "
            "run `python -m c2f evaluate` again"
        )
    return metrics


def _read_mapping(path: Path, step: str) -> dict:
    """Return what `step` wrote as JSON. Raises DataError where the file is missing, damaged or another one."""
    content = read_json(path)
    wanted = {"train": _RECORD_KEYS, "evaluate": ["users", "means", "test_sha256"]}[step]
    _check_holds(wanted, content if isinstance(content, dict) else {}, path, step)
    for part in (content.get("footprint") or {"parts": {}})["parts"].values():
        _check_holds(["kind"], part, path, step)
    return content


def _check_holds(wanted: Iterable[str], found: Iterable[str], path: Path, step: str) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise DataError(
            f"{path} has no {missing[0]!r}, so it is of another kind or version; run `python -m c2f {step}` again"
        )


def read_table(read: Callable[[Path], pd.DataFrame], path: Path, columns: Iterable[str], step: str) -> pd.DataFrame:
    """Return a table that `step` wrote. Raises DataError where the file is missing, damaged or another one."""
    try:
        table = read(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, step) from None
    _check_holds(columns, table.columns, path, step)
    return table


def unreadable(path: Path, error: Exception, step: str) -> DataError:
    """Return what is said of a file that `step` should have written."""
    problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return DataError(f"{path} {problem}; run the step that writes it: `python -m c2f {step}`")


def _starts(folder: Path, read: Callable[[Path], dict]) -> Iterator[Path]:
    """Yield the folders of the run that a run starts from, of the one that this starts from, and so on."""
    while (start := read(folder)["starts_from"]) is not None:
        folder = Path(start)
        yield folder


def _row(record: dict, metrics: dict) -> dict:
    budget = Budget.parse(record["budget"])
    footprint = record["footprint"] or {}
    stages = record["stages"]
    return {
        **{key: record[key] for key in ("dataset", "protocol", "method", "budget")},
        "budget_kind": budget.kind,
        "budget_amount": float(budget.amount),
        **{key: record[key] for key in ("seed", "status", "reason")},
        "numbers": float(footprint.get("numbers", "nan")),
        "stored_bytes": float(footprint.get("stored", "nan")),
        "serving_bytes": float(footprint.get("serving", "nan")),
        "parts": json.dumps(Footprint(**footprint).by_kind()) if footprint else None,
        "leftover": record["leftover"],
        "epochs": sum(stage["epochs"] for stage in stages),
        "seconds": float(record["seconds"]),
        "seconds_per_epoch": float(stages[-1]["seconds_per_epoch"] if stages else "nan"),
        "peak_rss_bytes": record["peak_rss_bytes"],
        **{key: record[key] for key in ("device", "threads", "machine", "commit", "starts_from", "command")},
        "versions": json.dumps(record["versions"], sort_keys=True),
        "users": metrics["users"],
        **{name: float(value) for name, value in metrics["means"].items()},
    }


def read_runs(paths: Iterable[Path], *, starts: bool = False) -> pd.DataFrame:
    """Return the evaluated runs of several runs tables as one; or those that are only started from.

    Raises DataError for a table that is missing, damaged or of another kind.
    """
    tables = [read_table(lambda path: read_parquet(path).to_pandas(), path, _RUNS_COLUMNS, "collect") for path in paths]
    runs = pd.concat(tables, ignore_index=True)
    return runs[(runs.role == "start") == starts].reset_index(drop=True)


def summarise(runs: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Return one row per dataset, method, budget and metric: mean and standard deviation over the runs with a result.

    runs, results: how many runs there are, and how many have a value (a run that its time limit stopped has one);
    status: `ok`, or what happened to how many; reason: of the first run that is not ok.
    """
    columns = ["dataset", "protocol", "made_up", "method", "role", "budget", "budget_kind", "budget_amount"]
    rows = []
    for key, group in runs.groupby(columns, sort=False):
        unwell = group[group.status != "ok"]
        shared = {
            **dict(zip(columns, key, strict=True)),
            "runs": len(group),
            "status": status_in_words(group.status),
            "reason": unwell.reason.iloc[0] if len(unwell) else None,
            **{name: group[name].mean() for name in _SIZES},
        }
        for metric in metrics:
            values = group[metric] if metric in group else pd.Series(dtype=float)
            rows.append(
                shared | {"metric": metric, "results": values.count(), "mean": values.mean(), "sd": values.std(ddof=1)}
            )
    names = [*columns, "metric", "mean", "sd", "results", "runs", "status", "reason", *_SIZES]
    return pd.DataFrame(rows, columns=names)


def status_in_words(statuses: pd.Series) -> str:
    """Return `ok`, or how many there are of each, the most frequent first: `2 ok, 1 diverged`."""
    counts = statuses.value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    return ", ".join(f"{count} {status}" for status, count in counts.items())


# The main table -------------------------------------------------------------------------------------------------------


def write_table(runs: Sequence[Path], output: Path, made_by: str = "") -> None:
    """Write the main table as `<output>.csv` (unrounded), `<output>.md` and `<output>.tex`."""
    every = read_runs(runs)
    table = main_table(every)
    texts = {"csv": table.to_csv(index=False), "md": to_markdown(table, every, made_by), "tex": to_latex(table)}
    for ending, text in texts.items():
        with write_atomically(Path(f"{output}.{ending}")) as temporary:
            temporary.write_text(text)


def main_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per dataset, budget and method, unrounded.

    Within a dataset, runs that only figures need stand behind those that are compared. Budgets go from small to large,
    `full` last.
    """
    parts = summarise(runs, TABLE_METRICS)
    first = parts[parts.metric == TABLE_METRICS[0]].set_index(_KEY)
    columns = ["protocol", "made_up", "role", "budget_kind", "budget_amount", "runs", "results", "status", *_SIZES]
    table = first[columns].copy()
    for metric in TABLE_METRICS:
        values = parts[parts.metric == metric].set_index(_KEY)
        table[metric], table[f"{metric}_sd"] = values["mean"], values.sd
    costs = runs.groupby(_KEY)
    table["seconds"], table["seconds_with_starts"] = costs.seconds.mean(), costs.seconds_with_starts.mean()
    table["peak_rss_bytes"] = costs.peak_rss_bytes.max()
    table["reason"] = first.reason
    table = table.reset_index()
    place = pd.DataFrame(
        {
            "dataset": pd.factorize(table.dataset)[0],
            "role": table.role == "figure",
            "kind": table.budget_kind.map({"numbers": 0, "bytes": 1, "full": 2}),
            "amount": table.budget_amount,
        }
    )
    return table.loc[place.sort_values(list(place.columns), kind="stable").index].reset_index(drop=True)


def read_main_table(path: Path) -> pd.DataFrame:
    """Read the csv of `write_table`. Raises DataError where it is missing, damaged or another one."""
    return read_table(pd.read_csv, path, _TABLE_COLUMNS, "table")


def best(table: pd.DataFrame, metric: str) -> pd.Series:
    """Return which rows have the best mean of their dataset and budget, as printed; False where there is no contest.

    Sizes differ under `full`, so there is none; and runs that only figures need are no rivals of those compared.
    """
    printed = table[metric].round(4)
    contest = printed.groupby([table.dataset, table.role, table.budget])
    return (printed == contest.transform("max")) & (contest.transform("count") > 1) & (table.budget != "full")


def sections(table: pd.DataFrame, emphasise: Callable[[str], str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (dataset, title, rows) of the main table's sections as text: each metric by budget, then each budget.

    Methods stand in the given order by budget, else from the best NDCG to the worst. Runs that only figures need are
    the last section of a dataset.
    """
    text = printed(table, emphasise)
    for dataset, rows in table.groupby("dataset", sort=False):
        title = f"{dataset} ({'made up, ' if rows.made_up.iloc[0] else ''}protocol {rows.protocol.iloc[0]})"
        compared, others = rows[rows.role == "compared"], rows[rows.role != "compared"]
        for metric in TABLE_METRICS if compared.budget.nunique() > 1 else []:
            yield title, f"{metric_in_words(metric)} by budget", _by_budget(compared, metric, emphasise)
        for budget, part in compared.groupby("budget", sort=False):
            yield title, str(budget), text.loc[_ranked(part).index].drop(columns="budget")
        if len(others):
            yield title, "Runs for the figures alone", text.loc[_ranked(others).index]


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("ndcg@20", ascending=False, na_position="last", kind="stable")


def printed(table: pd.DataFrame, emphasise: Callable[[str], str]) -> pd.DataFrame:
    """Return the main table as text, rounded and each column in one unit, the best of each budget emphasised."""
    text = table[["method", "budget"]].copy()
    text["runs"] = [f"{results} of {runs}" for results, runs in zip(table.results, table.runs, strict=True)]
    text["status"] = table.status
    text["numbers"] = ["-" if pd.isna(value) else f"{value:,.0f}" for value in table.numbers]
    for title, column in [("stored", "stored_bytes"), ("serving", "serving_bytes")]:
        unit, cells = in_one_unit(table[column])
        text[f"{title} ({unit})"] = cells
    for metric in TABLE_METRICS:
        values = [mean_and_sd(mean, sd) for mean, sd in zip(table[metric], table[f"{metric}_sd"], strict=True)]
        text[metric] = [
            emphasise(value) if top else value for value, top in zip(values, best(table, metric), strict=True)
        ]
    text["seconds"] = [f"{value:,.1f}" for value in table.seconds]
    text["with starts"] = [f"{value:,.1f}" for value in table.seconds_with_starts]
    unit, text["peak memory"] = in_one_unit(table.peak_rss_bytes)
    return text.rename(columns={"peak memory": f"peak memory ({unit})"})


def _by_budget(rows: pd.DataFrame, metric: str, emphasise: Callable[[str], str]) -> pd.DataFrame:
    """Return means as text, a row per method and a column per budget in the order of the rows; or why there is none."""
    means = [
        status if pd.isna(mean) else emphasise(f"{mean:.4f}") if top else f"{mean:.4f}"
        for status, mean, top in zip(rows.status, rows[metric], best(rows, metric), strict=True)
    ]
    wide = rows[["method", "budget"]].assign(mean=means).pivot(index="method", columns="budget", values="mean")
    return wide.loc[rows.method.unique(), rows.budget.unique()].fillna("").reset_index()


def holes(table: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return (dataset, method, budgets, what happened) where runs of the main table did not end well.

    Budgets with reasons that differ in nothing but the budget's name stand together, with the first one's reason.
    """
    unwell = table[table.status != "ok"].fillna({"reason": "no reason given"})
    alike = [reason.replace(budget, "") for reason, budget in zip(unwell.reason, unwell.budget, strict=True)]
    return [
        (dataset, method, ", ".join(group.budget), f"{status}: {group.reason.iloc[0]}")
        for (dataset, method, status, _), group in unwell.groupby(
            ["dataset", "method", "status", pd.Series(alike, index=unwell.index, dtype=object)], sort=False
        )
    ]


# The memory table -----------------------------------------------------------------------------------------------------


def write_memory(runs: Sequence[Path], output: Path, made_by: str = "") -> None:
    """Write what was asked for, what is stored and what serving costs as `<output>.csv` (unrounded) and `.md`."""
    table = memory_table(read_runs(runs))
    lines = [f"Made by `{made_by}`.", ""] if made_by else []
    for dataset, title, text in memory_sections(table):
        lines += [f"## {dataset}: {title}", "", *markdown_rows(text), ""]
    texts = {"csv": table.to_csv(index=False), "md": "\n".join(lines)}
    for ending, content in texts.items():
        with write_atomically(Path(f"{output}.{ending}")) as temporary:
            temporary.write_text(content)


def memory_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per dataset, method and budget with a model, unrounded; sizes in bytes.

    requested, achieved, share: in the budget's unit, the largest over seeds, NaN for `full`; leftover: why less than 98
    % of it is used; one column for each of budget.KINDS; the rest as measured, means over seeds.
    """
    rows = []
    for key, group in runs.dropna(subset="stored_bytes").groupby(["dataset", "method", "budget"], sort=False):
        kind, amount = group.budget_kind.iloc[0], group.budget_amount.iloc[0]
        achieved = (group.numbers if kind == "numbers" else group.stored_bytes).max()
        parts = pd.DataFrame(list(map(json.loads, group.parts)), columns=list(KINDS)).fillna(0).mean()
        rows.append(
            {
                **dict(zip(["dataset", "method", "budget"], key, strict=True)),
                "unit": "numbers" if kind == "numbers" else "bytes",
                "requested": amount if math.isfinite(amount) else math.nan,
                "achieved": achieved,
                "share": achieved / amount if math.isfinite(amount) else math.nan,
                "leftover": next(iter(group.leftover.dropna()), None),
                **parts,
                **{name: group[name].mean() for name in [*_SIZES, *SERVING_COLUMNS]},
                "served": status_in_words(group.served.fillna("not measured")),
            }
        )
    return pd.DataFrame(rows)


def memory_sections(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (dataset, title, rows as text): budgets, the ledger of stored bytes, and serving."""
    for dataset, rows in table.groupby("dataset", sort=False) if len(table) else []:
        names = rows[["method", "budget"]]
        sized = rows[rows.requested.notna()]
        text = sized[["method", "budget"]].copy()
        for column in ("requested", "achieved"):
            text[column] = [f"{value:,.0f}" for value in sized[column]]
        text["used"] = [f"{share:.1%}" for share in sized.share]
        text["why not more"] = sized.leftover.fillna("")
        yield str(dataset), "requested and achieved (by the largest of the seeds), in the budget's unit", text
        kinds = [kind for kind in KINDS if rows[kind].any()]
        unit, _ = in_one_unit(rows.stored_bytes)
        columns = dict(zip(kinds, kinds, strict=True)) | {"stored": "stored_bytes", "serving": "serving_bytes"}
        text = names.assign(**{title: _amounts(rows[column], unit) for title, column in columns.items()})
        yield str(dataset), f"where the stored bytes are ({unit})", text
        served = rows[rows.file_bytes.notna()]
        text = served[["method", "budget"]].copy()
        for title, column in [("file", "file_bytes"), ("resident", "resident_bytes")]:
            unit, text[title] = in_one_unit(served[column])
            text = text.rename(columns={title: f"{title} ({unit})"})
        text["load (s)"] = [f"{value:.3f}" for value in served.load_seconds]
        for title, column in [("p50 (ms)", "latency_p50_ms"), ("p95 (ms)", "latency_p95_ms")]:
            text[title] = [f"{value:.3f}" for value in served[column]]
        text["users/s"] = [f"{value:,.0f}" for value in served.users_per_second]
        text["status"] = served.served
        others = rows[rows.file_bytes.isna()]
        text = pd.concat([text, others[["method", "budget"]].assign(status=others.served)]).fillna("-")
        yield str(dataset), "serving, measured in a process of its own on one core", text


def _amounts(amounts: pd.Series, unit: str) -> list[str]:
    return [f"{amount / _UNITS[unit]:,.3f}" if amount else "0" for amount in amounts]


def data_checksums(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the sha256 of every dataset's training, validation and test pairs."""
    rows = [
        (dataset, name, checksum)
        for dataset, sums in distinct(runs, ["dataset", "data_sha256"])
        for name, checksum in json.loads(sums).items()
    ]
    return pd.DataFrame(rows, columns=["dataset", "pairs", "sha256"])


def distinct(runs: pd.DataFrame, columns: list[str]) -> Iterable[tuple]:
    """Return the different rows of some columns, in their order."""
    return runs[columns].drop_duplicates().itertuples(index=False, name=None)


def to_markdown(table: pd.DataFrame, runs: pd.DataFrame, made_by: str) -> str:
    """Return the main table in Markdown: why runs have no result, what the columns mean, which data and code it was."""
    lines = [f"Made by `{made_by}`.", ""] if made_by else []
    lines += ["Nothing is to be concluded from made-up data.", ""] if table.made_up.any() else []
    heading = ""
    for dataset, title, rows in sections(table, lambda value: f"**{value}**"):
        if dataset != heading:
            lines += [f"## {dataset}", ""]
        heading = dataset
        lines += [f"### {title}", "", *markdown_rows(rows), ""]
    if found := holes(table):
        lines += ["## Holes", "", *(f"* {', '.join(words)}: {what}" for *words, what in found), ""]
    lines += ["## Columns", "", *(f"* {name}: {meaning}" for name, meaning in COLUMNS.items()), ""]
    lines += [
        "## Data",
        "",
        *markdown_rows(data_checksums(runs)),
        "",
        f"Trained at {commits_in_words(runs.commit)}.",
        "",
    ]
    return "\n".join(lines)


def markdown_rows(text: pd.DataFrame) -> list[str]:
    """Return the lines of a table of text in Markdown."""
    rule = ["---:" if is_number(name) else "---" for name in text.columns]
    rows: list[Iterable] = [text.columns, rule, *text.itertuples(index=False)]
    return [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]


def to_latex(table: pd.DataFrame) -> str:
    """Return the main table in LaTeX, for a document that loads booktabs and longtable."""
    text = printed(table, lambda value: f"\\textbf{{{value}}}").drop(columns="budget")
    head = " & ".join(map(in_latex, text.columns)) + r" \\"
    aligned = "".join("r" if is_number(name) else "l" for name in text.columns)
    lines = [rf"\begin{{longtable}}{{{aligned}}}", r"\toprule", head, r"\endhead"]
    for (dataset, made_up, role, budget), rows in table.groupby(["dataset", "made_up", "role", "budget"], sort=False):
        title = f"{dataset}{' (made up)' if made_up else ''}, {budget}{', for figures alone' * (role == 'figure')}"
        lines += [r"\midrule", rf"\multicolumn{{{len(text.columns)}}}{{l}}{{{in_latex(title)}}} \\", r"\midrule"]
        lines += [
            " & ".join(map(in_latex, map(str, row))) + r" \\"
            for row in text.loc[_ranked(rows).index].itertuples(index=False)
        ]
    return "\n".join([*lines, r"\bottomrule", r"\end{longtable}", ""])


def in_one_unit(amounts: pd.Series) -> tuple[str, list[str]]:
    """Return kB, MB or GB, and all amounts in it, with as many decimals as the smallest needs for three digits."""
    smallest = amounts[amounts > 0].min()
    unit = next((name for name, size in _UNITS.items() if smallest >= size), "kB")
    decimals = 0 if pd.isna(smallest) else min(3, max(0, 2 - math.floor(math.log10(smallest / _UNITS[unit]))))
    return unit, ["-" if pd.isna(amount) else f"{amount / _UNITS[unit]:,.{decimals}f}" for amount in amounts]


def size_in_words(amount: float, kind: str) -> str:
    """Return `25.6k` or `9.07M` for numbers, `0.5 MB` or `32 kB` for bytes (decimal units), `-` for NaN."""
    if pd.isna(amount):
        return "-"
    if kind == "bytes" and amount >= 1e5:
        return f"{amount / 1e6:,.3g} MB" if amount < 1e9 else f"{amount / 1e9:,.3g} GB"
    if kind == "bytes":
        return f"{amount / 1e3:.3g} kB" if amount >= 1e3 else f"{amount:.0f} B"
    if amount >= 1e6:
        return f"{amount / 1e6:.3g}M"
    return f"{amount / 1e3:.3g}k" if amount >= 1e3 else f"{amount:.0f}"


def is_number(column: str) -> bool:
    """Return whether a printed column holds numbers, which are aligned right."""
    texts = ["dataset", "method", "budget", "budgets", "status", "what happened", "why not more", "pairs", "sha256"]
    return column not in [*texts, "first", "second", "which"]


def mean_and_sd(mean: float, sd: float) -> str:
    """Return `0.2500 ± 0.0010`; without the second where one seed has none, `-` for NaN."""
    if pd.isna(mean):
        return "-"
    return f"{mean:.4f}" if pd.isna(sd) else f"{mean:.4f} ± {sd:.4f}"


def in_latex(text: str) -> str:
    """Return text with what LaTeX would take for commands escaped."""
    for plain, escaped in {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$"}.items():
        text = text.replace(plain, escaped)
    return text
