"""Figures from one runs table: pdf and png to look at, and beside them a csv of exactly the numbers that are drawn."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from c2f.errors import ConfigError, did_you_mean
from c2f.record import write_atomically
from c2f.report import read_runs, size_in_words, summarise

# Okabe and Ito's colours without yellow and black, then three of Tol's muted ones: told apart with any colour vision
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255", "#999933", "#332288"]
_MARKERS = "osD^vPh<>"  # no x: it marks a missing result
_DASHES = ["solid", (0, (4, 1.5)), (0, (1, 1))]
_REFERENCE = (0, (6, 2))
_THEME = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper"), "font.family": "DejaVu Sans"}
_AXES = {"numbers": "budget: numbers, as the papers count", "bytes": "budget: bytes stored", "full": "no budget"}


def write_figure(name: str, spec: Mapping, runs: Sequence[Path], output: Path) -> None:
    """Draw figure `name` from the runs tables; write `<output>.pdf`, `<output>.png` and `<output>.csv`.

    spec: what c2f.grid tells of the figure; its key `draw` names one of this module's functions.
    """
    drawings = {"comparison": comparison, "ablation": ablation}
    draw = spec.get("draw", name)
    if draw not in drawings:
        raise ConfigError(f"unknown drawing {draw!r} in figures.{name}; {did_you_mean(draw, drawings)}")
    with matplotlib.rc_context(_THEME):
        figure, plotted = drawings[draw](read_runs(runs), spec)
        with write_atomically(Path(f"{output}.pdf")) as temporary:
            figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})  # equal content, equal bytes
        with write_atomically(Path(f"{output}.png")) as temporary:
            figure.savefig(temporary, format="png", dpi=160)
    with write_atomically(Path(f"{output}.csv")) as temporary:
        plotted.to_csv(temporary, index=False)


def comparison(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return every metric against the budget as a figure, and the table of what it shows.

    Rows are dataset and metric, columns the kind of budget. A line is a method's mean over seeds, its bars one standard
    deviation; a method without a budget is a dashed line with its size; a cell without a result is a cross at the
    bottom; an open marker is a run that its time limit stopped.
    """
    runs = runs[runs.method.isin(spec["methods"])]
    shown = [name for name in spec["methods"] if (runs.method == name).any()]
    plotted = summarise(runs, spec["metrics"])
    if not shown:
        return _empty(spec["methods"]), plotted
    kinds = [kind for kind in ("numbers", "bytes") if (runs.budget_kind == kind).any()] or ["full"]
    rows = list(itertools.product(runs.dataset.unique(), spec["metrics"]))
    styles = {name: _style(name, spec["palette"]) for name in shown}
    figure, axes = _panels(len(rows), len(kinds), width=4.4, height=2.4)
    for (dataset, metric), panels in zip(rows, axes, strict=True):
        cells = plotted[(plotted.dataset == dataset) & (plotted.metric == metric)]
        full = cells[cells.budget_kind == "full"]
        for kind, ax in zip(kinds, panels, strict=True):
            sized = cells[cells.budget_kind == kind]
            for name in shown:
                _draw_line(ax, sized[sized.method == name], "budget_amount", styles[name] | {"label": name})
            for row in full.dropna(subset="mean").itertuples():
                ax.axhline(
                    row.mean, **styles[row.method] | {"marker": "", "linestyle": _REFERENCE, "label": row.method}
                )
            _label_budgets(ax, kind, runs)
            ax.set_title(dataset)
        panels[0].set_ylabel(_metric_in_words(metric))
        _mark_holes(panels, [cells[cells.budget_kind == kind] for kind in kinds], "budget_amount", "method", styles)
        for kind, ax in zip(kinds, panels, strict=True):
            _label_references(ax, kind, full.dropna(subset="mean"), styles)
    for kind, ax in zip(kinds, axes[-1], strict=True):
        ax.set_xlabel(_AXES[kind])
    figure.align_ylabels()
    unsized = set(runs.method[runs.budget_kind == "full"]) - set(runs.method[runs.budget_kind != "full"])
    dashed = {name: {"marker": "", "linestyle": _REFERENCE} if name in unsized else {} for name in shown}
    _finish(figure, {name: styles[name] | dashed[name] for name in shown}, runs, plotted, spec["methods"])
    return figure, plotted


def ablation(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return every metric before and after the fine stage as a figure, and the table of what it shows.

    Rows are datasets, columns metrics. spec: `points` names the methods before and after at each x, `x` labels the
    axis, `lines` names the methods whose colours the two lines take.
    """
    sides = {"before": "before the fine stage", "after": "after the fine stage"}
    points = [
        {"x": point["x"], "line": sides[side], "method": point[side]} for side in sides for point in spec["points"]
    ]
    wanted = [point["method"] for point in points]
    runs = runs[runs.method.isin(wanted)]
    plotted = pd.DataFrame(points).merge(summarise(runs, spec["metrics"]), on="method")
    if runs.empty:
        return _empty(wanted), plotted
    datasets = list(runs.dataset.unique())
    styles = {label: _style(spec["lines"][side], spec["palette"]) for side, label in sides.items()}
    figure, axes = _panels(len(datasets), len(spec["metrics"]), width=2.7, height=2.5)
    for dataset, panels in zip(datasets, axes, strict=True):
        for metric, ax in zip(spec["metrics"], panels, strict=True):
            cells = plotted[(plotted.dataset == dataset) & (plotted.metric == metric)]
            for label, style in styles.items():
                _draw_line(ax, cells[cells.line == label], "x", style | {"label": label})
            ax.set_xticks(sorted({point["x"] for point in points}))
            ax.set_xmargin(0.1)
            ax.set_title(f"{dataset}: {_metric_in_words(metric)}")
            _mark_holes([ax], [cells], "x", "line", styles)
    for ax in axes[-1]:
        ax.set_xlabel(spec.get("x", "x"))
    _finish(figure, styles, runs, plotted, wanted)
    return figure, plotted


def _style(name: str, palette: Sequence[str]) -> dict:
    """Return the colour, marker and dashes of a method: by its place in the palette, so alike in every figure."""
    place = palette.index(name) if name in palette else len(palette)
    lap = place // len(_COLOURS)
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[(place + lap) % len(_MARKERS)],
        "linestyle": _DASHES[lap % len(_DASHES)],
    }


def _panels(num_rows: int, num_columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Return a figure and its (num_rows, num_columns) axes; width and height of one of them in inches."""
    figure = Figure(figsize=(width * num_columns, height * num_rows + 1.0))
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def _draw_line(ax: Axes, cells: pd.DataFrame, x: str, style: Mapping) -> None:
    """Draw mean and standard deviation over x; markers of runs that were stopped by their time limit are open."""
    cells = cells.dropna(subset="mean").sort_values(x)
    if cells.empty:
        return
    ax.errorbar(cells[x], cells["mean"], yerr=cells.sd.fillna(0), capsize=2, markersize=4.5, **style)
    stopped = cells[cells.status.str.contains("timeout")]
    ax.plot(stopped[x], stopped["mean"], **_open(style["marker"], style["color"]))


def _open(marker: str, colour: str) -> dict:
    return {"marker": marker, "linestyle": "none", "markersize": 6, "mfc": "white", "mec": colour, "zorder": 4}


def _cross(colour: str) -> dict:
    return {"marker": "x", "linestyle": "none", "markersize": 5, "markeredgewidth": 1.6, "color": colour, "zorder": 4}


def _mark_holes(
    panels: Sequence[Axes], cells: Sequence[pd.DataFrame], x: str, by: str, styles: Mapping[str, Mapping]
) -> None:
    """Put the panels on one y scale and a cross at the bottom for every cell with a run that has no result."""
    room = 0.08  # of the panel's height for each cross
    holes = [part[part.results < part.runs].drop_duplicates([x, by]) for part in cells]
    stack = max([int(part[x].value_counts().max()) for part in holes if len(part)], default=0)
    low, high = _common_limits(panels)
    reserved = room * (stack + 0.4) if stack else 0.0
    low -= (high - low) * reserved / (1 - reserved)
    for ax, part in zip(panels, holes, strict=True):
        ax.set_ylim(low, high)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set_yticks([tick for tick in ax.get_yticks() if max(low, 0) <= tick <= high])
        for value in part[x].unique():
            for height, name in enumerate(name for name in styles if name in set(part[by][part[x] == value])):
                y = room * (height + 0.7)
                ax.plot(value, y, transform=ax.get_xaxis_transform(), **_cross(styles[name]["color"]))


def _common_limits(panels: Sequence[Axes]) -> tuple[float, float]:
    limits = [ax.get_ylim() for ax in panels if ax.lines]
    return (min(low for low, _ in limits), max(high for _, high in limits)) if limits else (0.0, 1.0)


def _label_budgets(ax: Axes, kind: str, runs: pd.DataFrame) -> None:
    """Label a logarithmic x axis with the budgets themselves."""
    amounts = sorted(runs.budget_amount[runs.budget_kind == kind].unique())
    if not amounts:
        ax.set_xticks([])
        return
    ax.set_xscale("log")
    ax.set_xlim(amounts[0] / 1.25, amounts[-1] * 1.25)
    ax.set_xticks(amounts, [size_in_words(amount, kind) for amount in amounts])
    ax.xaxis.set_minor_locator(NullLocator())
    gaps = np.diff(np.log(amounts)) / np.log(amounts[-1] / amounts[0] * 1.25**2)
    if len(gaps) and gaps.min() < 0.17:
        ax.tick_params(axis="x", rotation=40)


def _label_references(ax: Axes, kind: str, full: pd.DataFrame, styles: Mapping[str, Mapping]) -> None:
    """Write name and size of the methods without a budget right of the panel, each at its line's height."""
    low, high = ax.get_ylim()
    unit = "bytes" if kind == "bytes" else "numbers"
    place = -1.0
    for row in full.sort_values("mean").to_dict("records"):
        place = max((row["mean"] - low) / (high - low), place + 0.19)
        text = f"{row['method']}\n{size_in_words(row['stored_bytes' if unit == 'bytes' else 'numbers'], unit)}"
        colour = styles[row["method"]]["color"]
        ax.text(1.02, place, text, transform=ax.transAxes, color=colour, va="center", fontsize="small")


def _finish(
    figure: Figure, styles: Mapping[str, Mapping], runs: pd.DataFrame, plotted: pd.DataFrame, wanted: Iterable[str]
) -> None:
    """Add the legend above the panels and the footer below them."""
    lines = {name: Line2D([], [], markersize=4.5, **style) for name, style in styles.items()}
    if (plotted.results < plotted.runs).any():
        lines["no result (reason in the csv)"] = Line2D([], [], **_cross("0.3"))
    if plotted.status.str.contains("timeout").any():
        lines["stopped by the time limit"] = Line2D([], [], **_open("o", "0.3"))
    columns = min(len(lines), max(2, int(figure.get_figwidth() / 1.75)))
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=columns, frameon=False)

    data = runs[["dataset", "protocol"]].drop_duplicates().to_dict("records")
    notes = [
        "data: " + ", ".join(f"{row['dataset']} (protocol {row['protocol']})" for row in data),
        "seeds: " + ", ".join(map(str, sorted(runs.seed.unique()))),
        "commit: " + ", ".join(sorted(runs.commit.unique())),
    ]
    if runs.seed.nunique() > 1:
        notes.append("mean over seeds, bars: one standard deviation")
    if missing := sorted(set(wanted) - set(runs.method)):
        notes.append("not run: " + ", ".join(missing))
    text = fill(" · ".join(notes), width=int(figure.get_figwidth() * 19))
    height = (text.count("\n") + 1.8) * 0.13 / figure.get_figheight()
    figure.text(0.01, 0.05 / figure.get_figheight(), text, fontsize=7, color="0.35", va="bottom")
    figure.set_layout_engine("constrained", rect=(0, height, 1, 1 - height))


def _empty(wanted: Iterable[str]) -> Figure:
    """Return a figure that says what it would need."""
    figure = Figure(figsize=(7, 2))
    text = fill(f"Nothing to draw: no runs of {', '.join(dict.fromkeys(wanted))}.", width=90)
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.3")
    return figure


def _metric_in_words(metric: str) -> str:
    name, _, k = metric.partition("@")
    return f"{ {'recall': 'Recall', 'ndcg': 'NDCG'}.get(name, name) }@{k}"
