"""The report: one HTML page that needs no other file and no network, to read, to sort and to switch views of."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template

import pandas as pd
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from c2f import compare as differences
from c2f import protocols as splits
from c2f.captions import COLUMNS, TABLE_METRICS, commits_in_words, data_in_words, metric_in_words
from c2f.figures import method_styles
from c2f.findings import findings
from c2f.memory_figures import VIEWS, by_view, on_frontier
from c2f.record import write_atomically
from c2f.report import (
    data_checksums,
    distinct,
    holes,
    is_number,
    main_table,
    memory_sections,
    memory_table,
    read_main_table,
    read_runs,
    sections,
    size_in_words,
    status_in_words,
    unreadable,
)

_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "h": "hexagon",
    "p": "pentagon",
    "<": "triangle-left",
    ">": "triangle-right",
    "*": "star",
    "d": "diamond-tall",
}  # matplotlib's markers in plotly's words


def write_report(
    tables: Sequence[Path],
    figures: Sequence[Path],
    runs: Sequence[Path],
    output: Path,
    made_by: str = "",
    families: Sequence[Sequence[str]] | None = None,
    compare: Path | None = None,
    full: str | None = None,
    plain: str | None = None,
    protocols: Sequence[Path] = (),
) -> None:
    """Write one HTML file that needs no other: findings, an interactive plot, tables, figures (png), holes, provenance.

    families: names of methods that have one colour (None: each its own). compare: the compare table (csv), for what is
    said of differences. full, plain: the methods that others are held against, without a budget and at the same bytes.
    protocols: what the split recipe does (csv), where data was run under several. Raises DataError for a missing or
    damaged file.
    """
    table, starts = read_runs(runs), read_runs(runs, starts=True)
    compared = None if compare is None else differences.read_compare(compare)
    points = plot_data(table, families)
    page = Template(_part("html")).substitute(
        style=_part("css"),
        summary=_summary(table, starts, made_by),
        findings=_findings(table, compared, full, plain),
        compare="<p>Not asked for.</p>" if compared is None else _compare(compared, plain or "the plain table"),
        controls=_controls(points),
        tables="".join(to_html(read_main_table(path)) for path in tables),
        columns=_facts(COLUMNS),
        protocols="".join(_protocols(path, full or "the full table") for path in protocols),
        memory=memory_html(table),
        figures="".join(map(_figure, figures)) or "<p>None asked for.</p>",
        holes=_holes(main_table(table)),
        starts=_starts_table(starts),
        provenance=_provenance(table),
        commands=html.escape("\n".join([*starts.command, *table.command])),
        points=_in_script(json.dumps(points, allow_nan=False)),
        plotly=_in_script(get_plotlyjs()) if points["points"] else "",
        script=_part("js"),
    )
    with write_atomically(Path(output)) as temporary:
        temporary.write_text(page, encoding="utf-8")


# The interactive plot -------------------------------------------------------------------------------------------------


def plot_data(runs: pd.DataFrame, families: Sequence[Sequence[str]] | None = None) -> dict:
    """Return what page.js draws, of the runs that are compared: views, metrics, datasets, methods and points.

    A point is a method at a budget with a result; its `sizes` are bytes by view; of each of its `metrics` it has
    [mean, sd, low, high, the views in which no other point beats it], None for what one seed does not tell.
    """
    runs = runs[runs.role == "compared"]
    grouped = {name for family in families or [] for name in family}
    styles = method_styles([*(families or []), *([name] for name in runs.method.unique() if name not in grouped)])
    cells = {metric: differences.cells_of(runs, [metric]).dropna(subset="mean") for metric in TABLE_METRICS}
    frontiers = {metric: _frontiers(rows) for metric, rows in cells.items()}
    by_metric = {metric: rows.set_index(["dataset", "method", "budget"]) for metric, rows in cells.items()}
    points = []
    for key, group in runs.groupby(["dataset", "method", "budget"], sort=False):
        if any(key not in rows.index for rows in by_metric.values()):
            continue
        dataset, method, budget = key
        first = by_metric[TABLE_METRICS[0]].loc[key]
        found = group.dropna(subset=TABLE_METRICS[0])
        sizes = by_view(first.to_frame().T)
        points.append(
            {
                "dataset": dataset,
                "method": method,
                "budget": budget,
                "seeds": ", ".join(map(str, sorted(found.seed))),
                "runs": len(group),
                "status": first.status,
                "stopped": "timeout" in first.status,
                "sizes": {view: float(size) for view, size in zip(sizes["view"], sizes.bytes, strict=True)},
                "words": {
                    view: size_in_words(size, "bytes") for view, size in zip(sizes["view"], sizes.bytes, strict=True)
                },
                "metrics": {
                    metric: [*map(_number, rows.loc[key, ["mean", "sd", "low", "high"]]), frontiers[metric][key]]
                    for metric, rows in by_metric.items()
                },
                "command": found.command.iloc[0],
            }
        )
    methods = list(dict.fromkeys(point["method"] for point in points))
    titles = {
        dataset: dataset + " (made up)" * bool(made_up) for dataset, made_up in distinct(runs, ["dataset", "made_up"])
    }
    return {
        "views": VIEWS,
        "metrics": {metric: metric_in_words(metric) for metric in TABLE_METRICS},
        "datasets": {name: titles[name] for name in dict.fromkeys(point["dataset"] for point in points)},
        "methods": {
            name: {"color": styles[name]["color"], "symbol": _SYMBOLS[styles[name]["marker"]]} for name in methods
        },
        "points": points,
    }


def _frontiers(cells: pd.DataFrame) -> dict[tuple, list[str]]:
    """Return by dataset, method and budget the views in which no other cell has no more bytes and no worse a mean."""
    sized = by_view(cells)
    on = pd.Series(False, index=sized.index)
    for _, rows in sized.groupby(["dataset", "view"]):
        on[rows.index] = on_frontier(rows.bytes, rows["mean"])
    found = sized[on].groupby(["dataset", "method", "budget"])["view"].agg(list).to_dict()
    return {
        key: found.get(key, []) for key in cells[["dataset", "method", "budget"]].itertuples(index=False, name=None)
    }


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _controls(points: dict) -> str:
    """Return the choices above the plot; the page's address takes the same words: #view=serving&metric=recall@20."""
    choices = {
        "dataset": ("Data", points["datasets"]),
        "metric": ("Metric", dict(reversed(points["metrics"].items()))),
        "view": ("Bytes", {view: points["views"][view] for view in ("stored", "serving", "paper")}),
        "method": ("Highlight", {"": "no method"} | {name: name for name in points["methods"]}),
    }
    return "".join(
        f'<label>{title} <select id="{name}">'
        + "".join(f'<option value="{html.escape(key)}">{html.escape(text)}</option>' for key, text in options.items())
        + "</select></label>\n"
        for name, (title, options) in choices.items()
    )


# Words, tables and figures --------------------------------------------------------------------------------------------


def _summary(runs: pd.DataFrame, starts: pd.DataFrame, made_by: str) -> str:
    well = int((runs.status == "ok").sum())
    hours = (runs.seconds.sum() + starts.seconds.sum()) / 3600
    spent = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes"
    others = f", and {len(starts)} that they start from" if len(starts) else ""
    compared = runs[runs.role == "compared"]
    data = data_in_words(distinct(runs, ["dataset", "protocol", "made_up"]))
    facts = {
        "made by": made_by or "commands given one by one",
        "data": data.removeprefix("data: "),
        "runs": f"{len(runs)}{others}; {well} of {len(runs)} ended well; {spent} of training in all",
        "methods": ", ".join(compared.method.unique()),
        "budgets": ", ".join(main_table(compared).budget.unique()),
        "seeds": ", ".join(map(str, sorted(runs.seed.unique()))),
    }
    return _facts(facts)


def _findings(runs: pd.DataFrame, tested: pd.DataFrame | None, full: str | None, plain: str | None) -> str:
    text = ""
    for dataset, found in findings(runs, tested, full, plain):
        items = "".join(f"<li><b>{html.escape(label)}.</b> {html.escape(words)}</li>\n" for label, words in found)
        text += f"<h3>{html.escape(dataset or 'All data')}</h3>\n<ul>{items}</ul>\n"
    return text


def to_html(table: pd.DataFrame) -> str:
    """Return the main table as HTML; where it is long, one opens the budgets that one wants to see."""
    opened = " open" if len(table) <= 60 else ""
    text, heading = "", ""
    for dataset, title, rows in sections(table.astype({"status": str}), lambda value: f"<b>{value}</b>"):
        text += f"<h3>{html.escape(dataset)}</h3>" if dataset != heading else ""
        heading = dataset
        body = f"<summary>{html.escape(title)}</summary>{_scroll(_html_table(rows), f'{dataset}: {title}')}"
        text += f"<details{' open' if title.endswith('by budget') else opened}>{body}</details>\n"
    return text


def _compare(table: pd.DataFrame, plain: str) -> str:
    """Return the compare table as HTML, each budget to be opened."""
    text = f"<p>{differences.how_made(table)}</p>\n"
    for dataset, budget, words, rows in differences.titled(table, "<b>{}</b>"):
        body = _scroll(_html_table(rows), f"{dataset}: {budget}")
        text += f"<details><summary>{html.escape(f'{dataset}: {budget}')}</summary><p>{words}</p>{body}</details>\n"
    columns = _facts({name: meaning.format(plain=plain) for name, meaning in differences.LEGEND.items()})
    return f"{text}<details><summary>What these columns mean</summary>{columns}</details>\n"


def _protocols(path: Path, full: str) -> str:
    """Return what the split recipe does as HTML, each table to be opened."""
    table, orders = splits.read_protocol_effect(path)
    said = "".join(f"<li><b>{html.escape(label)}.</b> {words}</li>" for label, words in splits.sentences(table, orders))
    text = f'<h2 id="protocols">Protocols</h2>\n<p>{splits.WARNING}</p>\n<ul>{said}</ul>\n'
    for data, title, rows in splits.titled(table, orders, "<b>{}</b>"):
        body = _scroll(_html_table(rows), f"{data}: {title}")
        text += f"<details><summary>{html.escape(f'{data}: {title}')}</summary>{body}</details>\n"
    columns = _facts({name: meaning.format(full=full) for name, meaning in splits.LEGEND.items()})
    return f"{text}<details><summary>What these columns mean</summary>{columns}</details>\n"


def memory_html(runs: pd.DataFrame) -> str:
    """Return the memory table as HTML, each section to be opened."""
    return "".join(
        f"<details><summary>{html.escape(f'{dataset}: {title}')}</summary>"
        f"{_scroll(_html_table(text.map(html.escape)), f'{dataset}: {title}')}</details>\n"
        for dataset, title, text in memory_sections(memory_table(runs))
    )


def _holes(table: pd.DataFrame) -> str:
    found = pd.DataFrame(holes(table), columns=["dataset", "method", "budgets", "what happened"])
    if found.empty:
        return "<p>None: every run ended well.</p>"
    return _scroll(_html_table(found.map(html.escape)), "Holes")


def _starts_table(starts: pd.DataFrame) -> str:
    if starts.empty:
        return "<p>None.</p>"
    rows = [
        (*key, status_in_words(group.status), f"{group.seconds.mean():,.1f}")
        for key, group in starts.groupby(["dataset", "method", "budget"], sort=False)
    ]
    table = pd.DataFrame(rows, columns=[*["dataset", "method", "budget"], "status", "seconds"])
    return _scroll(_html_table(table), "Runs that others start from")


def _provenance(runs: pd.DataFrame) -> str:
    versions: dict[str, set] = {}
    for text in runs.versions.unique():
        for name, version in json.loads(text).items():
            versions.setdefault(name, set()).add(str(version))
    protocols = [f"{dataset}: {protocol}" for dataset, protocol in distinct(runs, ["dataset", "protocol"])]
    facts = {
        "commit": commits_in_words(runs.commit).removeprefix("commit: "),
        "protocol": ", ".join(protocols),
        "machine": "; ".join(runs.machine.unique()),
        "device": "; ".join(
            f"{device}, {threads} threads" for device, threads in distinct(runs, ["device", "threads"])
        ),
        "versions": ", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in versions.items()),
        "drawn with": f"plotly.js {get_plotlyjs_version()} (MIT licence), which this file contains",
    }
    return _facts(facts) + _scroll(_html_table(data_checksums(runs).map(html.escape)), "Checksums of the data")


def _figure(path: Path) -> str:
    """Return a figure with its caption, which lies beside the picture. Raises DataError without either."""
    try:
        picture = path.read_bytes()
        if not picture.startswith(b"\x89PNG"):
            raise ValueError("it is no png")
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "figure") from None
    caption = path.with_suffix(".txt")
    try:
        text = caption.read_text().strip()
    except (OSError, ValueError) as error:
        raise unreadable(caption, error, "figure") from None
    name, data = html.escape(path.stem), base64.b64encode(picture).decode()
    numbers = f"The numbers drawn are in {name}.csv beside {name}.pdf."
    shown = html.escape(f"{path.stem}: {text.partition('. ')[0].rstrip('.')}.")
    return (
        f'<figure id="figure-{name}"><img alt="{shown}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(text)} {numbers}</figcaption></figure>\n"
    )


# HTML -----------------------------------------------------------------------------------------------------------------


def _part(ending: str) -> str:
    """Return page.html, page.css or page.js, which lie beside this module."""
    return Path(__file__).with_suffix(f".{ending}").read_text(encoding="utf-8")


def _in_script(text: str) -> str:
    """Return JavaScript or JSON in which nothing ends the element that it stands in."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
    return f"<dl>{rows}</dl>"


def _scroll(table: str, name: str) -> str:
    """Return a table in a box of its own, which scrolls where the table is wider than the page, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(name)}">{table}</div>\n'


def _html_table(text: pd.DataFrame) -> str:
    """Return a table of cells that are HTML already; columns of numbers are aligned right, methods name their row."""
    classes = [' class="n"' if is_number(name) else "" for name in text.columns]

    def cell(name: str, value: str, kind: str) -> str:
        return f'<th scope="row">{value}</th>' if name == "method" else f"<td{kind}>{value}</td>"

    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(text.columns, classes, strict=True))
    body = "".join(f"<tr>{''.join(map(cell, text.columns, row, classes))}</tr>" for row in text.itertuples(index=False))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
