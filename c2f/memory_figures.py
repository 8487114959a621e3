"""Figures of what memory is spent on and what it buys: bytes by kind, quality against size and cost, ranks."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from c2f.budget import KINDS, parse_bytes
from c2f.captions import metric_in_words
from c2f.figures import (
    COLOURS,
    cross_marker,
    draw_holes,
    empty_figure,
    finish,
    line_legend,
    make_panels,
    method_styles,
    open_marker,
    panel_title,
    share_scale,
    with_holes,
)
from c2f.inference import COLUMNS as MEASURED
from c2f.report import size_in_words, summarise

VIEWS = {"paper": "counted by the paper", "stored": "stored", "serving": "to serve"}
"""The ways to count a model's bytes."""

_CELL = ["dataset", "method", "budget"]
_STACKED = [*KINDS, "to serve"]
_TOLD = ["results", "runs", "status", "reason"]
_KIND_COLOURS = dict(zip(KINDS, [*COLOURS, "0.6"], strict=True))
_TO_SERVE: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.45", "hatch": "//////", "linewidth": 0.5}
_TICK: dict[str, Any] = {"color": "black", "marker": "|", "markersize": 9, "markeredgewidth": 1.8, "linestyle": "none"}
_FRONTIER: dict[str, Any] = {"color": "0.25", "linewidth": 1.2, "drawstyle": "steps-post"}
_BREAK: dict[str, Any] = {"marker": [(-1, -2), (1, 2)], "markersize": 11, "linestyle": "none", "clip_on": False}
_TOO_LONG = 2.5  # times the bar before it: there an axis may end
_STRIP_LINE = 0.8  # of a rank's height
_LINE = 0.135  # inches between two lines of small text


def memory_ledger(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return where each method's bytes go at one budget as a figure, and the table of what it shows.

    Rows are datasets, a bar is a method: what it stores by kind of array, then what else it needs to serve; a tick is
    what its paper counts. Methods that are only run without a budget stand below a line. spec: `budget` by its name.
    """
    budget = spec["budget"]
    runs = runs[runs.method.isin(spec["methods"])]
    sized = set(runs.method[runs.budget == budget])
    shown = runs[(runs.budget == budget) | (runs.budget.eq("full") & ~runs.method.isin(sized))]
    plotted = _ledger(shown)
    if shown.empty:
        return empty_figure(spec["methods"], f"runs at {budget}, or without a budget,"), plotted
    datasets = list(shown.dataset.unique())
    lines = shown.groupby("dataset").method.nunique().max() + 1
    figure, panels = make_panels([(1, 0)] * len(datasets), 1, 8.5, 0.18 * lines + 0.5, sharex="none")
    for dataset, (((ax,),), _) in zip(datasets, panels, strict=True):
        _draw_ledger(ax, plotted[plotted.dataset == dataset], budget)
        ax.set_title(f"{panel_title(shown[shown.dataset == dataset])}: {budget}")
    figure.axes[-1].set_xlabel("bytes")
    drawn = [kind for kind in KINDS if kind in set(plotted.kind)]
    legend: dict[str, Artist] = {kind: Patch(color=_KIND_COLOURS[kind], linewidth=0) for kind in drawn}
    legend["to serve: graph or cached table"] = Patch(**_TO_SERVE)
    legend["the paper's numbers, at 4 bytes"] = Line2D([], [], **_TICK)
    elsewhere = sorted(set(runs.method) - set(shown.method))
    notes = [f"run at other budgets: {', '.join(elsewhere)}"] * bool(elsewhere)
    cells = plotted.drop_duplicates(_CELL)
    notes += _named("not every seed has a result", cells[(cells.results > 0) & (cells.results < cells.runs)], cells)
    finish(figure, "memory_ledger", legend, runs, plotted, spec["methods"], notes)
    return figure, plotted


def pareto(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return a metric against size as a figure, and the table of what it shows.

    Rows are datasets, columns the ways to count bytes. A point is a method at a budget; those that another one of no
    more bytes and no less quality beats are faint, the others named and joined by a step line.
    """
    runs = runs[runs.method.isin(spec["methods"])]
    plotted = by_view(summarise(runs, [spec["metric"]])).drop(columns=["numbers", "stored_bytes", "serving_bytes"])
    plotted["on_frontier"] = False
    for _, rows in plotted.groupby(["dataset", "view"]):
        plotted.loc[rows.index, "on_frontier"] = on_frontier(rows.bytes, rows["mean"])
    plotted = plotted[[*plotted.columns.drop(_TOLD), *_TOLD]]
    if runs.empty:
        return empty_figure(spec["methods"]), plotted
    styles = _styles(runs, spec)
    plotted["budget_bytes"] = _budget_bytes(plotted)
    datasets = list(runs.dataset.unique())
    holes = {dataset: with_holes(plotted[plotted.dataset == dataset], "method", styles) for dataset in datasets}
    blocks, height = [(1, len(holes[dataset])) for dataset in datasets], _height(styles, datasets)
    figure, panels = make_panels(blocks, len(VIEWS), 3.9, height, sharex="all")
    cells = {
        dataset: [plotted[(plotted.dataset == dataset) & (plotted["view"] == view)] for view in VIEWS]
        for dataset in datasets
    }
    for dataset, ((row,), strips) in zip(datasets, panels, strict=True):
        for words, ax, points in zip(VIEWS.values(), row, cells[dataset], strict=True):
            for point in points.dropna(subset="mean").itertuples():
                _draw_point(ax, point, point.bytes, styles[point.method], 1.0 if point.on_frontier else 0.3)
            ax.set_title(f"{panel_title(points)}: {words}")
        row[0].set_ylabel(metric_in_words(spec["metric"]))
        share_scale(row)
        limited = [points.dropna(subset="budget_bytes") for points in cells[dataset]]
        draw_holes(row, strips, limited, "budget_bytes", "method", holes[dataset], styles)
    _log_scale(figure.axes, "bytes", room=0.35)
    for dataset, ((row,), _) in zip(datasets, panels, strict=True):
        _draw_frontiers(row, cells[dataset], styles, _LINE / height)
    for ax in figure.axes[-len(VIEWS) :]:
        ax.set_xlabel("size")
    legend = _point_legend(styles)
    legend["best within a size"] = Line2D([], [], **_FRONTIER)
    finish(figure, "pareto", legend, runs, plotted, spec["methods"])
    return figure, plotted.drop(columns="budget_bytes")


def rank_changes(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return how the methods' order at one size changes with what is counted as a figure, and the table of it.

    Rows are datasets. At each way to count bytes stand the methods by their best mean among the runs of at most
    spec's `size`; below, in a strip, those that have none.
    """
    runs = runs[runs.method.isin(spec["methods"])]
    limit = parse_bytes(spec["size"], "size")
    summary = by_view(summarise(runs, [spec["metric"]]))
    plotted = _ranked(summary, limit)
    if runs.empty:
        return empty_figure(spec["methods"]), plotted
    styles = _styles(runs, spec)
    counts = plotted.groupby(["dataset", "view"], sort=False)["rank"].agg(["count", "size"])
    ranks = counts["count"].groupby("dataset", sort=False).max()
    others = (counts["size"] - counts["count"]).groupby("dataset", sort=False).max()
    heights = 0.165 * (ranks + _STRIP_LINE * others) + 0.9
    figure, panels = make_panels([(1, 0)] * len(ranks), 1, 7.0, list(heights))
    for dataset, (((ax,),), _) in zip(ranks.index, panels, strict=True):
        _draw_ranks(ax, plotted[plotted.dataset == dataset], ranks[dataset], styles, size_in_words(limit, "bytes"))
        title = f"{panel_title(runs[runs.dataset == dataset])}: {metric_in_words(spec['metric'])}"
        ax.set_title(f"{title} of the best run of at most {size_in_words(limit, 'bytes')}", pad=18)
    every = summary[summary["view"] == "paper"]
    notes = _named("runs without a result", every[every.results < every.runs], every)
    finish(figure, "rank_changes", {}, runs, plotted, spec["methods"], notes)
    return figure, plotted


def inference(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return a metric against what answering queries takes as a figure, and the table of what it shows.

    Rows are datasets, columns milliseconds for one user (median, a line to the 95th percentile) and the memory of the
    process that serves. A point is a method at a budget; runs that were not measured are named in the footer.
    """
    runs = runs[runs.method.isin(spec["methods"])].astype(dict.fromkeys(MEASURED, float))
    cells = runs.groupby(_CELL)
    measured = cells[["latency_p50_ms", "resident_bytes"]].count().min(axis=1).rename("measured")
    costs = pd.concat([measured, cells[MEASURED].mean()], axis=1)
    plotted = summarise(runs, [spec["metric"]]).merge(costs, how="left", left_on=_CELL, right_index=True)
    plotted = plotted[[*plotted.columns.drop(_TOLD), *_TOLD]]
    if not len(measured) or not measured.any():
        return empty_figure(spec["methods"], "measured runs"), plotted
    styles = _styles(runs, spec)
    datasets = list(runs.dataset.unique())
    figure, panels = make_panels([(1, 0)] * len(datasets), 2, 3.9, _height(styles, datasets))
    for dataset, ((row,), _) in zip(datasets, panels, strict=True):
        points = plotted[plotted.dataset == dataset]
        for point in points.dropna(subset="mean").itertuples():
            style = styles[point.method]
            row[0].hlines(point.mean, point.latency_p50_ms, point.latency_p95_ms, color=style["color"], linewidth=0.7)
            _draw_point(row[0], point, point.latency_p50_ms, style)
            _draw_point(row[1], point, point.resident_bytes, style)
        row[0].set_ylabel(metric_in_words(spec["metric"]))
        for ax in row:
            ax.set_title(panel_title(points))
        share_scale(row)
    _log_scale([row[0] for (row,), _ in panels], "milliseconds")
    _log_scale([row[1] for (row,), _ in panels], "bytes")
    figure.axes[-2].set_xlabel("milliseconds for one user")
    figure.axes[-1].set_xlabel("memory of the process that serves")
    legend = _point_legend(styles)
    unmeasured = plotted[(plotted.results > 0) & (plotted.measured < plotted.results)]
    notes = _named("not measured", unmeasured, plotted)
    notes += _named("runs without a result", plotted[plotted.results < plotted.runs], plotted)
    finish(figure, "inference", legend, runs, plotted, spec["methods"], notes)
    return figure, plotted


# What is shown --------------------------------------------------------------------------------------------------------


def _ledger(runs: pd.DataFrame) -> pd.DataFrame:
    """Return bytes by kind, means over seeds: `paper`, what is stored by KINDS, and `to serve` beside that.

    A method without a result has one row, without a kind.
    """
    runs = runs.assign(paper=4 * runs.numbers, to_serve=runs.serving_bytes - runs.stored_bytes)
    found = runs.dropna(subset="stored_bytes")
    parts = pd.DataFrame([json.loads(text) for text in found.parts], index=found.index, dtype=float)
    assert set(parts) <= set(KINDS), set(parts)
    parts = parts.reindex(columns=KINDS).fillna(0.0)
    kinds = pd.concat([found[[*_CELL, "paper"]], parts, found.to_serve.rename("to serve")], axis=1)
    rows = kinds.groupby(_CELL).mean().reset_index().melt(_CELL, var_name="kind", value_name="bytes")
    rows = rows[~rows.kind.isin(KINDS) | (rows.bytes > 0)]
    cells = summarise(runs, ["stored_bytes"])
    return cells[[*_CELL, *_TOLD]].merge(rows, on=_CELL, how="left")[[*_CELL, "kind", "bytes", *_TOLD]]


def by_view(summary: pd.DataFrame) -> pd.DataFrame:
    """Return every row of a summary in each of VIEWS, with its `bytes` there."""
    sizes = {"paper": 4 * summary.numbers, "stored": summary.stored_bytes, "serving": summary.serving_bytes}
    return pd.concat([summary.assign(view=view, bytes=sizes[view]) for view in VIEWS], ignore_index=True)


def on_frontier(sizes: pd.Series, means: pd.Series) -> np.ndarray:
    """Return which points no other one beats: by no more bytes and no worse a mean, one of them better."""
    size, mean = sizes.to_numpy(), means.to_numpy()
    as_good = (size <= size[:, None]) & (mean >= mean[:, None])  # (points, others)
    better = (size < size[:, None]) | (mean > mean[:, None])
    return ~(as_good & better).any(axis=1) & np.isfinite(mean)


def _ranked(sized: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Return one row per dataset, view and method: the best run of at most `limit` bytes, and its rank among these.

    Without a rank, the smallest run of a method of which none is so small, or one without a result.
    """
    fits = (sized.bytes <= limit) & sized["mean"].notna()
    ordered = sized.assign(fits=fits, by=(-sized["mean"]).where(fits, sized.bytes))
    ordered = ordered.sort_values(["fits", "by", "bytes"], ascending=[False, True, True], kind="stable")
    best = ordered.drop_duplicates(["dataset", "view", "method"])
    places = best.groupby(["dataset", "view"]).cumcount() + 1
    best = best.assign(rank=places.where(best.fits).astype("Int64")).sort_values(
        ["dataset", "view"], kind="stable", key=lambda column: column.map(list(sized[column.name].unique()).index)
    )
    columns = ["dataset", "method", "view", "rank", "budget", "metric", "mean", "sd", "bytes", *_TOLD]
    return best[columns].reset_index(drop=True)


def _named(what: str, cells: pd.DataFrame, all_cells: pd.DataFrame) -> list[str]:
    """Return a note that names methods, and budgets where it is not all of theirs; none where there are no cells."""
    budgets = all_cells.groupby(["dataset", "method"]).budget.nunique()
    texts: dict[str, list[str]] = {}
    for dataset, found in cells.groupby("dataset", sort=False):
        names = [
            method if len(rows) == budgets[dataset, method] else f"{method} ({', '.join(rows.budget)})"
            for method, rows in found.groupby("method", sort=False)
        ]
        texts.setdefault(", ".join(names), []).append(str(dataset))
    return [f"{what}: " + "; ".join(f"{names} on {', '.join(where)}" for names, where in texts.items())] * bool(texts)


# How it is drawn ------------------------------------------------------------------------------------------------------


def _styles(runs: pd.DataFrame, spec: Mapping) -> dict[str, dict]:
    styles = method_styles(spec["families"])
    return {name: styles[name] for name in spec["methods"] if (runs.method == name).any()}


def _point_legend(styles: Mapping[str, Mapping]) -> dict[str, Artist]:
    return line_legend({name: {**style, "linestyle": "none"} for name, style in styles.items()})


def _height(styles: Mapping, datasets: Sequence) -> float:
    """Return the inches of a row of panels: the legend beside them has a line for each method."""
    return max(2.7, 0.19 * (len(styles) + 4) / len(datasets))


def _draw_point(ax: Axes, cell, x: float, style: Mapping, alpha: float = 1.0) -> None:
    """Draw mean and standard deviation at x; the marker of a run that was stopped by its time limit is open."""
    bars = None if np.isnan(cell.sd) else cell.sd
    ax.errorbar(x, cell.mean, yerr=bars, markersize=4.5, elinewidth=0.8, alpha=alpha, **{**style, "linestyle": "none"})
    if "timeout" in cell.status:
        ax.plot(x, cell.mean, alpha=alpha, **open_marker(style["marker"], style["color"]))


def _log_scale(panels: Sequence[Axes], unit: str, room: float = 0.0) -> None:
    """Give panels that share it a logarithmic x axis, labelled in words. room: on the left, as a part of what is."""
    for ax in panels:
        ax.set_xscale("log")
    low, high = panels[0].get_xlim()
    low /= (high / low) ** room
    ticks = _round_sizes(low, high)
    labels = [size_in_words(tick, "bytes") if unit == "bytes" else f"{tick:g}" for tick in ticks]
    for ax in panels:
        ax.set_xlim(low, high)
        ax.set_xticks(ticks, labels)
        ax.xaxis.set_minor_locator(NullLocator())


def _round_sizes(low: float, high: float) -> list[float]:
    """Return at least three, and at most five, round numbers between two limits, for a logarithmic axis."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    for digits in ([1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]):
        found = [float(tick) for tick in np.outer(powers, digits).ravel() if low <= tick <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 5)]
    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def _draw_ledger(ax: Axes, cells: pd.DataFrame, budget: str) -> None:
    """Draw a dataset's bars from the smallest to the largest, methods without a result and without a budget last."""
    of_method = cells.drop_duplicates("method").set_index("method")
    kinds = cells.assign(kind=cells.kind.fillna("")).pivot(index="method", columns="kind", values="bytes")
    kinds = kinds.reindex(columns=["paper", *KINDS, "to serve"]).assign(unsized=of_method.budget != budget)
    kinds["total"] = kinds[_STACKED].sum(axis=1).where(kinds.paper.notna())
    kinds = kinds.sort_values(["unsized", "total"], kind="stable")
    height = np.arange(len(kinds)) + 0.5 * kinds.unsized.to_numpy()
    end = _axis_end(kinds[["total", "paper"]].max(axis=1).dropna().to_numpy())
    stop = 1.08 * end
    right = kinds[_STACKED].fillna(0.0).cumsum(axis=1).clip(upper=stop)
    left = right.shift(axis=1, fill_value=0.0)
    for kind in right:
        look: dict[str, Any] = _TO_SERVE if kind == "to serve" else {"color": _KIND_COLOURS[kind], "linewidth": 0}
        ax.barh(height, right[kind] - left[kind], left=left[kind], height=0.72, **look)
    for y, (method, bar) in zip(height, kinds.iterrows(), strict=True):
        if np.isnan(bar.total):
            ax.plot(0.008, y, transform=ax.get_yaxis_transform(), **cross_marker("0.3"))
            ax.annotate(of_method.status[method], (0, y), (9, 0), textcoords="offset points", va="center", fontsize=7)
            continue
        words = size_in_words(bar.total, "bytes")
        if bar.total > stop:
            for colour, width in (("white", 4.0), ("0.3", 1.0)):
                ax.plot(0.985 * stop, y, markeredgecolor=colour, markeredgewidth=width, **_BREAK)
        if bar.paper > stop:
            words += f" (paper: {size_in_words(bar.paper, 'bytes')})"
        else:
            for colour, width in (("white", 3.6), ("black", 1.8)):
                ax.vlines(bar.paper, y - 0.46, y + 0.46, color=colour, linewidth=width, zorder=3)
        stopped = "timeout" in of_method.status[method]
        at = max(right["to serve"][method], 0 if bar.paper > stop else bar.paper)
        if stopped:
            ax.plot(at + 0.012 * stop, y, **open_marker("o", "0.3"))
        ax.annotate(words, (at, y), (12 if stopped else 5, 0), textcoords="offset points", va="center", fontsize=7)
    if kinds.unsized.any() and not kinds.unsized.all():
        ax.axhline(height[kinds.unsized.to_numpy()][0] - 0.75, color="0.4", linewidth=0.8)
    names = [f"{method} (no budget)" if bar.unsized else method for method, bar in kinds.iterrows()]
    ax.set_yticks(height, names, fontsize=7.5)
    ax.set_ylim(height[-1] + 0.6, -0.6)
    ax.set_xlim(0, (1.5 if (kinds.paper > stop).any() else 1.2) * stop)  # room for the totals
    ticks = [tick for tick in MaxNLocator(5).tick_values(0, end) if 0 <= tick <= stop]
    ax.set_xticks(ticks, ["0", *(size_in_words(tick, "bytes") for tick in ticks[1:])])
    ax.grid(visible=False, axis="y")


def _axis_end(sizes: np.ndarray) -> float:
    """Return where an axis ends: at the longest bar, or before a few that would dwarf all others (at most half)."""
    ordered = np.sort(sizes)
    for place in range((len(ordered) - 1) // 2, len(ordered) - 1):
        if ordered[place + 1] > _TOO_LONG * ordered[place]:
            return float(ordered[place])
    return float(ordered[-1]) if len(ordered) else 1.0


def _budget_bytes(plotted: pd.DataFrame) -> pd.Series:
    """Return the bytes to which a row's budget limits its view; infinite without a budget, NaN where it does not."""
    own = plotted.budget_kind.map({"numbers": "paper", "bytes": "stored"})
    limits = plotted.budget_amount * plotted.budget_kind.map({"numbers": 4, "bytes": 1, "full": 1})
    return limits.where((own == plotted["view"]) | (plotted.budget_kind == "full"))


def _draw_frontiers(row: Sequence[Axes], cells: Iterable[pd.DataFrame], styles: Mapping[str, Mapping], gap: float):
    """Draw the step lines of a row of panels, and name their methods above and left of the points, where none is.

    gap: between two names, as a part of the panel's height.
    """
    points = [part[part.on_frontier].sort_values(["bytes", "mean"]) for part in cells]
    named = [part.drop_duplicates("method") for part in points]  # at its smallest
    low, high = row[0].get_ylim()
    for _ in range(4):  # room for names makes all heights smaller, which needs more room
        heights = [_rising(part["mean"].to_numpy(), gap * (high - low)) for part in named]
        high = max([high, *(top[-1] + 0.7 * gap * (high - low) for top in heights if len(top))])
    for ax, part, names, tops in zip(row, points, named, heights, strict=True):
        ax.set_ylim(low, high)
        if part.empty:
            continue
        left, right = ax.get_xlim()
        ax.plot([*part.bytes, right], [*part["mean"], part["mean"].iloc[-1]], zorder=1.5, **_FRONTIER)
        ax.set_xlim(left, right)
        for point, top in zip(names.itertuples(), tops, strict=True):
            ax.annotate(
                point.method,
                (point.bytes, point.mean),
                (point.bytes / (right / left) ** 0.03, top),
                color=styles[point.method]["color"],
                ha="right",
                va="center",
                fontsize="small",
                arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            )


def _rising(heights: np.ndarray, gap: float) -> np.ndarray:
    """Return rising heights, moved up as little as it takes to stand at least `gap` above where they were and apart."""
    stack = gap * np.arange(len(heights))
    return stack + np.maximum.accumulate(heights + gap / 2 - stack) if len(heights) else heights


def _draw_ranks(ax: Axes, cells: pd.DataFrame, last: int, styles: Mapping[str, Mapping], limit: str) -> None:
    """Draw a dataset's ranks as lines over the views, and the strip below rank `last`."""
    below = last + 2.0 + _STRIP_LINE * cells[cells["rank"].isna()].groupby("view").cumcount()
    cells = cells.assign(height=cells["rank"].astype(float).fillna(below))
    for method, rows in cells.groupby("method", sort=False):
        style, rows = styles[method], rows.set_index("view").loc[list(VIEWS)]
        for place in range(len(VIEWS) - 1):
            ends = rows.iloc[place : place + 2]
            ranked = ends["rank"].notna()
            width, alpha = (1.6, 1.0) if ranked.all() else (0.8, 0.45 if ranked.any() else 0.2)
            look = {"color": style["color"], "linestyle": style["linestyle"]}
            ax.plot([place, place + 1], ends.height, linewidth=width, alpha=alpha, **look)
        for place, row in enumerate(rows.itertuples()):
            look = {"color": style["color"], "marker": style["marker"], "markersize": 4.5}
            if row.results == 0:
                look = cross_marker(style["color"])
            elif "timeout" in row.status:
                look = open_marker(style["marker"], style["color"])
            ax.plot(place, row.height, **look)
        for row, align in ((rows.iloc[0], "right"), (rows.iloc[-1], "left")):
            words = [str(method)] if pd.isna(row["rank"]) else [f"{row['mean']:.4f}", str(method), str(row["rank"])]
            text = "  ".join(words if align == "right" else reversed(words))
            place, away = (0, -8) if align == "right" else (len(VIEWS) - 1, 8)
            ax.annotate(
                text,
                (place, row.height),
                (away, 0),
                textcoords="offset points",
                color=style["color"],
                ha=align,
                va="center",
                fontsize=7.5,
                annotation_clip=False,
            )
    bottom = max(last + 1.0, cells.height.max()) + 0.6
    if cells["rank"].isna().any():
        ax.axhspan(last + 0.65, bottom, color="0.94", zorder=0)
        ax.text(1, last + 1.2, f"no run of at most {limit}", ha="center", va="center", fontsize=7, color="0.35")
    ax.set_ylim(bottom, 0.4)
    ax.set_xlim(-0.06, len(VIEWS) - 0.94)
    ax.set_xticks(range(len(VIEWS)), VIEWS.values())
    ax.tick_params(axis="x", top=False, bottom=False, labeltop=True, labelbottom=False)
    ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    ax.spines[:].set_visible(False)
