"""The runs table, the main table and the report: what was run, what came out, what is missing, and from where."""

import base64
import html
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template

import pandas as pd

from c2f.budget import Budget
from c2f.errors import DataError
from c2f.record import read_json, write_atomically

TABLE_METRICS = ["recall@20", "ndcg@20"]
_KEY = ["dataset", "budget", "method"]
_SIZES = ["numbers", "stored_bytes", "serving_bytes"]
_DATA = ["train", "valid", "test"]


# The runs table -------------------------------------------------------------------------------------------------------


def collect(run_dirs: Sequence[Path], output: Path) -> None:
    """Write one row per run folder: what its run.json and metrics.json say. Raises DataError for a missing record."""
    if not run_dirs:
        raise DataError(f"no runs to collect into {output}; name at least one run folder")
    table = pd.DataFrame([_row(Path(folder)) for folder in run_dirs])
    table = table.astype({"reason": "string", "starts_from": "string"})  # text also where every run has none
    with write_atomically(Path(output)) as temporary:
        table.to_parquet(temporary, index=False)


def _row(folder: Path) -> dict:
    record, metrics = read_json(folder / "run.json"), read_json(folder / "metrics.json")
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
        "epochs": sum(stage["epochs"] for stage in stages),
        "seconds": float(record["seconds"]),
        "seconds_per_epoch": float(stages[-1]["seconds_per_epoch"] if stages else "nan"),
        "peak_rss_bytes": record["peak_rss_bytes"],
        **{key: record[key] for key in ("device", "threads", "machine", "commit", "starts_from", "command")},
        "versions": json.dumps(record["versions"], sort_keys=True),
        "inputs_sha256": json.dumps(record["inputs_sha256"], sort_keys=True),
        "users": metrics["users"],
        **{name: float(value) for name, value in metrics["means"].items()},
    }


def read_runs(paths: Iterable[Path]) -> pd.DataFrame:
    """Return several runs tables as one."""
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def summarise(runs: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Return one row per dataset, method, budget and metric: mean and standard deviation over the runs with a result.

    runs, results: how many runs there are, and how many have a value (a run that its time limit stopped has one);
    status: `ok`, or what happened to how many; reason: of the first run that is not ok.
    """
    columns = ["dataset", "protocol", "method", "budget", "budget_kind", "budget_amount"]
    rows = []
    for key, group in runs.groupby(columns, sort=False):
        unwell = group[group.status != "ok"]
        shared = {
            **dict(zip(columns, key, strict=True)),
            "runs": len(group),
            "status": _status(group.status),
            "reason": unwell.reason.iloc[0] if len(unwell) else None,
            **{name: group[name].mean() for name in ("numbers", "stored_bytes", "serving_bytes")},
        }
        for metric in metrics:
            values = group[metric] if metric in group else pd.Series(dtype=float)
            rows.append(
                shared | {"metric": metric, "results": values.count(), "mean": values.mean(), "sd": values.std(ddof=1)}
            )
    names = [*columns, "metric", "mean", "sd", "results", "runs", "status", "reason"]
    return pd.DataFrame(rows, columns=[*names, "numbers", "stored_bytes", "serving_bytes"])


def _status(statuses: pd.Series) -> str:
    counts = statuses.value_counts()
    if len(counts) == 1:
        return str(counts.index[0])
    return ", ".join(f"{count} {status}" for status, count in counts.items())


# The main table -------------------------------------------------------------------------------------------------------


def write_table(runs: Sequence[Path], output: Path) -> None:
    """Write the main table as `<output>.csv` (unrounded), `<output>.md` and `<output>.tex`."""
    table = main_table(read_runs(runs))
    texts = {"csv": table.to_csv(index=False), "md": to_markdown(table), "tex": to_latex(table)}
    for ending, text in texts.items():
        with write_atomically(Path(f"{output}.{ending}")) as temporary:
            temporary.write_text(text)


def main_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per dataset, budget and method, unrounded; budgets from small to large, `full` last."""
    parts = summarise(runs, TABLE_METRICS)
    first = parts[parts.metric == TABLE_METRICS[0]].set_index(_KEY)
    table = first[["protocol", "budget_kind", "budget_amount", "runs", "results", "status"]].copy()
    table[_SIZES] = first[_SIZES]
    for metric in TABLE_METRICS:
        values = parts[parts.metric == metric].set_index(_KEY)
        table[metric], table[f"{metric}_sd"] = values["mean"], values.sd
    costs = runs.groupby(_KEY)
    table["seconds"], table["peak_rss_bytes"] = costs.seconds.mean(), costs.peak_rss_bytes.max()
    table["reason"] = first.reason
    table = table.reset_index()
    place = pd.DataFrame(
        {
            "dataset": pd.factorize(table.dataset)[0],
            "kind": table.budget_kind.map({"numbers": 0, "bytes": 1, "full": 2}),
            "amount": table.budget_amount,
        }
    )
    return table.loc[place.sort_values(["dataset", "kind", "amount"], kind="stable").index].reset_index(drop=True)


def best(table: pd.DataFrame, metric: str) -> pd.Series:
    """Return which rows have the best mean of their dataset and budget, as printed; False where there is no contest.

    Sizes differ under `full`, so there is none.
    """
    printed = table[metric].round(4)
    contest = printed.groupby([table.dataset, table.budget])
    return (printed == contest.transform("max")) & (contest.transform("count") > 1) & (table.budget != "full")


def printed(table: pd.DataFrame, emphasise: Callable[[str], str]) -> pd.DataFrame:
    """Return the main table as text, rounded and with units, the best of each budget emphasised."""
    text = table[["dataset", "budget", "method"]].copy()
    text["runs"] = [f"{results} of {runs}" for results, runs in zip(table.results, table.runs, strict=True)]
    text["status"] = table.status
    for title, column, kind in [
        ("numbers", "numbers", "numbers"),
        ("stored", "stored_bytes", "bytes"),
        ("serving", "serving_bytes", "bytes"),
    ]:
        text[title] = [size_in_words(value, kind) for value in table[column]]
    for metric in TABLE_METRICS:
        values = [_spread(mean, sd) for mean, sd in zip(table[metric], table[f"{metric}_sd"], strict=True)]
        text[metric] = [
            emphasise(value) if top else value for value, top in zip(values, best(table, metric), strict=True)
        ]
    text["seconds"] = [f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in table.seconds]
    text["peak memory"] = [size_in_words(value, "bytes") for value in table.peak_rss_bytes]
    return text


def to_markdown(table: pd.DataFrame) -> str:
    """Return the main table in Markdown, and below it why cells are missing."""
    text = printed(table, lambda value: f"**{value}**")
    rows: list[Iterable] = [text.columns, ["---"] * len(text.columns), *text.itertuples(index=False)]
    lines = [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    holes = table[table.status != "ok"]
    reasons = [
        f"* {dataset}, {budget}, {method}: {status}: {reason}"
        for dataset, budget, method, status, reason in holes[[*_KEY, "status", "reason"]].itertuples(
            index=False, name=None
        )
    ]
    return "\n".join([*lines, *([""] if reasons else []), *reasons, ""])


def to_latex(table: pd.DataFrame) -> str:
    """Return the main table in LaTeX, for a document that loads booktabs."""
    text = printed(table, lambda value: f"\\textbf{{{value}}}")
    body = []
    for _, group in text.groupby(["dataset", "budget"], sort=False):
        body += [
            "\\midrule",
            *(" & ".join(map(_latex, map(str, row))) + r" \\" for row in group.itertuples(index=False)),
        ]
    head = " & ".join(_latex(title) for title in text.columns) + r" \\"
    lines = [rf"\begin{{tabular}}{{lll{'r' * (len(text.columns) - 3)}}}", "\\toprule", head, *body]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def to_html(table: pd.DataFrame) -> str:
    """Return the main table as HTML."""
    return _html_table(printed(table.astype({"status": str}), lambda value: f"<b>{value}</b>"), numeric_from=5)


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


def _spread(mean: float, sd: float) -> str:
    if pd.isna(mean):
        return "-"
    return f"{mean:.4f}" if pd.isna(sd) else f"{mean:.4f} ± {sd:.4f}"


def _latex(text: str) -> str:
    for plain, escaped in {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "±": r"$\pm$"}.items():
        text = text.replace(plain, escaped)
    return text


# The report -----------------------------------------------------------------------------------------------------------


def write_report(tables: Sequence[Path], figures: Sequence[Path], runs: Sequence[Path], output: Path) -> None:
    """Write one HTML file that needs no other: what was run, tables, figures (png), holes, and where it came from."""
    table = read_runs(runs)
    page = _PAGE.substitute(
        summary=_summary(table),
        tables="".join(_scroll(to_html(pd.read_csv(path))) for path in tables),
        figures="".join(map(_figure, figures)) or "<p>None asked for.</p>",
        holes=_holes(table),
        provenance=_provenance(table),
        commands=_commands(table),
    )
    with write_atomically(Path(output)) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _summary(runs: pd.DataFrame) -> str:
    well = int((runs.status == "ok").sum())
    hours = runs.seconds.sum() / 3600
    spent = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
    facts = {
        "runs": f"{len(runs)}, of which {well} ended well; {spent} of training in all",
        "data": ", ".join(f"{name} (protocol {recipe})" for name, recipe in _distinct(runs, ["dataset", "protocol"])),
        "methods": ", ".join(runs.method.unique()),
        "budgets": ", ".join(main_table(runs).budget.unique()),
        "seeds": ", ".join(map(str, sorted(runs.seed.unique()))),
    }
    return _facts(facts)


def _holes(runs: pd.DataFrame) -> str:
    holes = runs[runs.status != "ok"]
    if holes.empty:
        return "<p>None: every run ended well.</p>"
    shown = holes[["dataset", "method", "budget", "seed", "status", "reason"]].fillna("").astype(str)
    return _scroll(_html_table(shown.map(html.escape)))


def _provenance(runs: pd.DataFrame) -> str:
    versions: dict[str, set] = {}
    for text in runs.versions.unique():
        for name, version in json.loads(text).items():
            versions.setdefault(name, set()).add(str(version))
    facts = {
        "commit": ", ".join(runs.commit.unique()),
        "machine": "; ".join(runs.machine.unique()),
        "device": "; ".join(
            f"{device}, {threads} threads" for device, threads in _distinct(runs, ["device", "threads"])
        ),
        "versions": ", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in versions.items()),
    }
    checksums = {
        (dataset, name, checksum)
        for dataset, sums in _distinct(runs, ["dataset", "inputs_sha256"])
        for name, checksum in json.loads(sums).items()
        if name in _DATA
    }
    shown = pd.DataFrame(sorted(checksums), columns=["dataset", "pairs", "sha256"])
    return _facts(facts) + _scroll(_html_table(shown.map(html.escape)))


def _commands(runs: pd.DataFrame) -> str:
    return html.escape("\n".join(runs.command))


def _figure(path: Path) -> str:
    name = html.escape(Path(path).stem)
    data = base64.b64encode(Path(path).read_bytes()).decode()
    text = f"{name}; the numbers drawn are in {name}.csv beside {name}.pdf"
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>\n'


def _distinct(runs: pd.DataFrame, columns: list[str]) -> Iterable[tuple]:
    return runs[columns].drop_duplicates().itertuples(index=False, name=None)


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>{rows}</dl>"


def _scroll(table: str) -> str:
    return f'<div class="scroll">{table}</div>\n'


def _html_table(text: pd.DataFrame, numeric_from: int | None = None) -> str:
    """Return a table of cells that are HTML already; columns from `numeric_from` on are aligned right."""

    def row(cells: Iterable, tag: str) -> str:
        classes = [' class="n"' if numeric_from is not None and place >= numeric_from else "" for place in range(99)]
        return (
            "<tr>"
            + "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, classes, strict=False))
            + "</tr>"
        )

    body = "".join(row(cells, "td") for cells in text.itertuples(index=False))
    return f"<table><thead>{row(text.columns, 'th')}</thead><tbody>{body}</tbody></table>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Recommenders under a memory budget</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #ffffff; --mark: #f0f4f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --mark: #1c232c; }
}
body { margin: 0 auto; max-width: 84rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, figcaption, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: .25rem 1rem; } dd { margin: 0; }
dd, td { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td:last-child { white-space: normal; min-width: 6rem; }
th { background: var(--mark); } .n { text-align: right; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
pre { overflow-x: auto; font-size: .75rem; background: var(--mark); padding: .75rem; border-radius: 6px; }
</style>
</head>
<body>
<h1>Recommenders under a memory budget</h1>
$summary
<h2>Results</h2>
<p>Mean ± standard deviation over seeds; the best of each dataset and budget is bold. Runs: how many have a result.
Numbers: what the method's paper counts. Stored: every array of the artifact. Serving: stored, and the training graph or
a cached table where scores need it. Seconds: training, mean over seeds.</p>
$tables
<h2>Figures</h2>
$figures
<h2>Holes</h2>
<p>Runs that did not end well, and why. One that its time limit stopped has a result, from its best weights so far.</p>
$holes
<h2>Where it came from</h2>
$provenance
<details><summary>The command of every run</summary><pre>$commands</pre></details>
</body>
</html>
""")
