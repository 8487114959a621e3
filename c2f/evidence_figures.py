"""Figures of evidence: settings, parts and training of a method, and our numbers beside published ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from c2f.captions import metric_in_words
from c2f.compare import cells_of, difference
from c2f.errors import DataError
from c2f.figures import (
    cross_marker,
    draw_holes,
    empty_figure,
    finish,
    make_panels,
    method_styles,
    open_marker,
    panel_title,
    share_scale,
    with_holes,
)
from c2f.report import unreadable
from c2f.stats import LEVEL, holm

LITERATURE = ["source", "dataset", "protocol", "method", "setting", "metric", "value", "note"]
"""What a published number comes with."""
OURS = ["our_dataset", "our_protocol", "entry", "budget", "reason", "caveat"]
"""Which of our runs it is compared with, or the reason why there is none; and what still differs where there is."""
TOLERANCE = 5.0
"""Percent by which our mean may differ from a published one where the figure names no `tolerance`."""

_DEFAULT: dict[str, Any] = {"color": "0.45", "linewidth": 0.9, "linestyle": (0, (1, 1.5)), "zorder": 1}
_APART, _NOT_APART = "#0072B2", "0.55"  # from the base
_EARLIER = (0, (3, 1.5))
_CURVE = ["dataset", "method", "budget", "seed", "status", "reason", "stage", "epoch", "epochs", "seconds", "loss"]
_LINE = 0.17  # inches of a row of small text


def sensitivity(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return every metric against the values of a parameter as a figure, and the table of what it shows.

    Rows are datasets, columns metrics. spec: `points` with `x` (a number or a word), `method` and `line`; `lines` names
    the method whose look a line takes; `budget` at which all are run; `default`: the x that is marked. Bars are 95 %
    intervals of the mean over seeds. The table has, as that of `components`, each value's difference to the default of
    its line, in pairs: intervals of two means that touch say little.
    """
    points = pd.DataFrame(spec["points"])
    shown = at_one_budget(runs[runs.method.isin(points.method)], spec["budget"])
    plotted = _at_points(points, shown, spec["metrics"])
    plotted["is_default"] = plotted.x == spec.get("default")
    defaults = points[points.x == spec.get("default")].set_index("line").method
    plotted = _with_differences(plotted, shown, plotted.line.map(defaults))
    if shown.empty:
        return empty_figure(points.method, f"runs at {spec['budget']}"), plotted
    numeric = all(isinstance(x, int | float) for x in points.x)
    places = {x: x if numeric else place for place, x in enumerate(points.x.drop_duplicates())}
    plotted["place"] = plotted.x.map(places).astype(float)
    styles = {line: method_styles(spec["families"])[spec["lines"][line]] for line in points.line.drop_duplicates()}
    datasets = list(shown.dataset.unique())
    holes = {dataset: with_holes(plotted[plotted.dataset == dataset], "line", styles) for dataset in datasets}
    blocks = [(1, len(holes[dataset])) for dataset in datasets]
    figure, panels = make_panels(blocks, len(spec["metrics"]), 3.4, 2.4, sharex="all")
    for dataset, ((row,), strips) in zip(datasets, panels, strict=True):
        cells = plotted[plotted.dataset == dataset]
        for metric, ax in zip(spec["metrics"], row, strict=True):
            for line, style in styles.items():
                _draw_interval_line(ax, cells[(cells.line == line) & (cells.metric == metric)], style)
            ax.set_title(f"{panel_title(shown[shown.dataset == dataset])}: {metric_in_words(metric)}")
            share_scale([ax])
        draw_holes(row, strips, [cells] * len(row), "place", "line", holes[dataset], styles)
    _label_values(figure.axes, places, numeric)
    if spec.get("default") in places:
        for ax in figure.axes:
            ax.axvline(places[spec["default"]], **_DEFAULT)
    for ax in figure.axes[-len(spec["metrics"]) :]:
        ax.set_xlabel(spec.get("x", "x"))
    legend: dict[str, Artist] = {line: Line2D([], [], markersize=4.5, **style) for line, style in styles.items()}
    if spec.get("default") in places:
        legend["default"] = Line2D([], [], **_DEFAULT)
    finish(figure, "sensitivity", legend, shown, plotted, points.method, [f"budget: {spec['budget']}"])
    return figure, plotted.drop(columns="place")


def components(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return what a method loses or gains with each of its parts changed as a figure, and the table of what it shows.

    Rows are datasets, columns metrics. spec: `base` names the method, `points` its variants (`method`) with what is
    changed in words (`x`), `budget` the size at which all are run. The difference to the base is in percent of the
    base's mean, over the seeds that both have, with its 95 % interval (c2f.compare.difference). They are told apart
    where p, corrected by Holm over the variants of the dataset and metric, is below 0.05.
    """
    base = spec["base"]
    points = pd.DataFrame([{"x": base, "method": base}, *({k: p[k] for k in ("x", "method")} for p in spec["points"])])
    shown = at_one_budget(runs[runs.method.isin(points.method)], spec["budget"])
    plotted = _at_points(points, shown, spec["metrics"])
    plotted = _with_differences(plotted, shown, pd.Series(base, plotted.index))
    if shown.empty:
        return empty_figure(points.method, f"runs at {spec['budget']}"), plotted
    datasets = list(shown.dataset.unique())
    figure, panels = make_panels([(1, 0)] * len(datasets), len(spec["metrics"]), 4.3, _height(len(points)))
    for dataset, ((row,), _) in zip(datasets, panels, strict=True):
        for metric, ax in zip(spec["metrics"], row, strict=True):
            cells = plotted[(plotted.dataset == dataset) & (plotted.metric == metric)]
            _draw_differences(ax, cells, names=ax is row[0])
            ax.set_title(f"{panel_title(shown[shown.dataset == dataset])}: {metric_in_words(metric)}")
    for ax in figure.axes[-len(spec["metrics"]) :]:
        ax.set_xlabel(f"difference to {base} in percent")
    legend: dict[str, Artist] = {
        "told apart (corrected p < 0.05)": Line2D([], [], color=_APART, marker="o", markersize=4.5),
        "not told apart": Line2D([], [], color=_NOT_APART, marker="o", markersize=4.5),
    }
    alone = plotted[plotted.interval_over == "seeds"].x.nunique()
    notes = [f"budget: {spec['budget']}"]
    notes += [f"{alone} variants without metrics by user: their intervals are over seeds alone"] * bool(alone)
    finish(figure, "components", legend, shown, plotted, points.method, notes)
    return figure, plotted


def training_curves(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return a validation metric and the loss as training goes on as a figure, and the table of what it shows.

    Rows are datasets. A line is a run, read from curve.csv in its folder; all stages but the last are dashed, and a
    bar stands where a later one begins. spec: `metric` as curve.csv has it, `methods`, `budget`, and `x`: epochs
    (counted on over the stages; the default) or seconds. Raises DataError where a curve cannot be read.
    """
    metric, against = spec["metric"], spec.get("x", "epochs")
    shown = at_one_budget(runs[runs.method.isin(spec["methods"])], spec["budget"])
    rows = [row for run in shown.to_dict("records") for row in _curve(run, metric)]
    plotted = pd.DataFrame(rows, columns=[*_CURVE, metric])
    if plotted[metric].isna().all():
        return empty_figure(spec["methods"], f"training curves at {spec['budget']}"), plotted
    styles = {name: method_styles(spec["families"])[name] for name in spec["methods"] if name in set(plotted.method)}
    datasets = list(shown.dataset.unique())
    figure, panels = make_panels([(1, 0)] * len(datasets), 2, 4.2, 2.5)
    for dataset, ((row,), _) in zip(datasets, panels, strict=True):
        cells = plotted[plotted.dataset == dataset]
        for column, ax in zip([metric, "loss"], row, strict=True):
            for _, curve in cells.groupby(["method", "budget", "seed"], sort=False):
                _draw_curve(ax, curve, against, column, styles[curve.method.iloc[0]])
            ax.set_title(panel_title(shown[shown.dataset == dataset]))
            share_scale([ax])
        row[0].set_ylabel(f"{metric_in_words(metric)}, validation")
        row[1].set_ylabel("loss, training")
    for ax in figure.axes[-2:]:
        ax.set_xlabel({"epochs": "epochs, all stages", "seconds": "seconds of training"}[against])
    legend: dict[str, Artist] = {name: Line2D([], [], **_solid(style)) for name, style in styles.items()}
    if len(plotted.dropna(subset="stage").drop_duplicates(["method", "stage"])) > len(styles):
        legend["before the last stage"] = Line2D([], [], color="0.3", linestyle=_EARLIER)
        legend["a later stage begins"] = Line2D([], [], **_begin("0.3"))
    bare = plotted[plotted[metric].isna() & plotted.stage.isna()].method.unique()
    notes = [f"budget: {spec['budget']}"] + [f"without a curve: {', '.join(bare)}"] * bool(len(bare))
    finish(figure, "training_curves", legend, shown, plotted, spec["methods"], notes)
    return figure, plotted


def published_vs_ours(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return our means beside published numbers as a figure, and every published number with what became of it.

    A number is compared where the runs hold the entry, budget, dataset and protocol that its row of spec's `literature`
    names; else `why_not` says why it is not. spec: `tolerance` in percent of the published number. Bars are the
    standard deviation of ours over seeds; of published seeds each is a row. Raises DataError for a damaged file.
    """
    tolerance = float(spec.get("tolerance", TOLERANCE))
    plotted = read_literature(Path(spec["literature"])).apply(_against, axis=1, runs=runs, tolerance=tolerance)
    compared = plotted[plotted.compared]
    told = [f"{len(compared)} of {len(plotted)} published numbers compared"]
    others = [
        f"{source} ({', '.join(rows.method.unique())}): {why}"
        for (source, why), rows in plotted[~plotted.compared].groupby(["source", "why_not"], sort=False)
    ]
    told += [f"not compared: {'; '.join(others)}"] * bool(others)
    if compared.empty:
        return empty_figure(plotted.entry.dropna(), "runs to compare with a published number"), plotted
    datasets = list(compared.our_dataset.unique())
    heights = [_height((compared.our_dataset == dataset).sum()) for dataset in datasets]
    figure, panels = make_panels([(1, 0)] * len(datasets), 1, 8.5, heights, sharex="all")
    for dataset, (((ax,),), _) in zip(datasets, panels, strict=True):
        cells = compared[compared.our_dataset == dataset]
        _draw_published(ax, cells, tolerance)
        ax.set_title(f"{dataset}, protocol {cells.our_protocol.iloc[0]}")
    figure.axes[-1].set_xlabel("our mean, difference to the published number in percent")
    legend: dict[str, Artist] = {
        f"within {tolerance:g} %": Line2D([], [], color=_APART, marker="o", linestyle="none", markersize=4.5),
        "not within": Line2D([], [], color="#D55E00", marker="s", linestyle="none", markersize=4.5),
        "tolerance": Patch(color="0.92"),
    }
    used = runs.merge(
        compared[["our_dataset", "entry", "budget"]].drop_duplicates(),
        left_on=["dataset", "method", "budget"],
        right_on=["our_dataset", "entry", "budget"],
    )
    finish(figure, "published_vs_ours", legend, used, plotted, [], told)
    return figure, plotted


# What is shown --------------------------------------------------------------------------------------------------------


def at_one_budget(runs: pd.DataFrame, budget: str) -> pd.DataFrame:
    """Return the runs at a budget, and those of methods that are only run without one."""
    sized = set(runs.method[runs.budget == budget])
    return runs[(runs.budget == budget) | (runs.budget.eq("full") & ~runs.method.isin(sized))]


def _at_points(points: pd.DataFrame, runs: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return a row per dataset, point and metric: the mean over seeds with its 95 % interval, or `not run`."""
    cells = pd.DataFrame({"dataset": runs.dataset.unique()}).merge(points, how="cross")
    cells = cells.merge(pd.DataFrame({"metric": list(metrics)}), how="cross")
    told = ["budget", "mean", "sd", "low", "high", "results", "runs", "status", "reason"]
    summary = cells_of(runs, metrics)[["dataset", "method", "metric", *told]]
    found = cells.merge(summary, how="left", on=["dataset", "method", "metric"])
    found[["results", "runs"]] = found[["results", "runs"]].fillna(0).astype(int)
    return found.assign(status=found.status.fillna("not run"))


def _with_differences(plotted: pd.DataFrame, runs: pd.DataFrame, bases: pd.Series) -> pd.DataFrame:
    """Return the rows of `_at_points` with the difference of each to the method in `bases` (NaN: to none).

    difference_percent: of the base's mean, with its interval, over `pairs` common seeds; p_holm: corrected over the
    rows of a dataset, metric and base.
    """
    found = [
        _difference(runs[runs.dataset == row.dataset], row.method, base, row.metric)
        for row, base in zip(plotted.itertuples(), bases, strict=True)
    ]
    columns = ["difference_percent", "difference_low", "difference_high", "pairs", "interval_over", "p"]
    plotted[columns] = pd.DataFrame(found, columns=columns, index=plotted.index)
    families = plotted.dropna(subset="p").groupby(["dataset", "metric", bases], sort=False).p
    plotted["p_holm"] = families.transform(lambda p: holm(p.tolist()))
    return plotted


def _difference(runs: pd.DataFrame, method: str, base: str, metric: str) -> tuple:
    """Return the mean difference to the base in percent, its interval (two), over how many seeds and what, and p."""
    own, whole = runs[runs.method == method], runs[runs.method == base]
    if method == base or whole.empty or metric not in runs:
        return np.nan, np.nan, np.nan, 0, None, np.nan
    found = difference(own, whole, metric)
    unit = whole[metric][whole.seed.isin(own.seed[own[metric].notna()])].mean() / 100
    over = ("users and seeds" if found.seeds > 1 else "users") if found.by_user else "seeds"
    ends = found.difference / unit, found.low / unit, found.high / unit
    return *ends, found.seeds, over if found.seeds else None, found.p


def _curve(run: Mapping, metric: str) -> list[dict]:
    """Return the rows of a run's curve.csv, `epochs` counted on over its stages; one bare row where it has none."""
    told = {key: run[key] for key in ("dataset", "method", "budget", "seed", "status", "reason")}
    if not isinstance(run.get("folder"), str):
        raise DataError(
            f"the runs table has no `folder` of {run['method']} on {run['dataset']}, where its curve.csv lies; "
            "run `python -m c2f collect` again"
        )
    path = Path(run["folder"]) / "curve.csv"
    try:
        curve = pd.read_csv(path)
        curve = curve[["stage", "epoch", "seconds", "loss", metric]]
    except KeyError as error:
        raise DataError(f"{path} has not all that is drawn: {error}; run `python -m c2f train` again") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error, "train") from None
    if curve.empty:
        return [told]
    lengths = curve.groupby("stage", sort=False).epoch.max()
    before = lengths.cumsum() - lengths
    curve["epochs"] = curve.epoch + curve.stage.map(before)
    return [told | row for row in curve.to_dict("records")]


def read_literature(path: Path) -> pd.DataFrame:
    """Return published numbers and what of ours each is compared with. Raises DataError where the file is damaged."""
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys([*LITERATURE, *OURS], "string") | {"value": float})
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(f"{path} {problem}; name the file of published numbers under `literature`") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); it is a csv of {', '.join(LITERATURE + OURS)}") from None
    if missing := [name for name in [*LITERATURE, *OURS] if name not in table]:
        raise DataError(f"{path} has no column {missing[0]!r}; it is a csv of {', '.join(LITERATURE + OURS)}")
    needed = ["our_dataset", "our_protocol", "entry", "budget"]
    for line, row in enumerate(table.itertuples(), start=2):
        if not (np.isfinite(row.value) and row.value > 0):
            raise DataError(f"{path}, line {line}: value is {row.value}; write the published number, above 0")
        if pd.isna(row.reason) and any(pd.isna(getattr(row, name)) for name in needed):
            raise DataError(
                f"{path}, line {line}: neither all of {', '.join(needed)} nor a reason why it is not comparable; "
                "give one of them"
            )
    return table


def _height(rows: int) -> float:
    """Return the inches of a panel with so many rows of small text, with its title and what stands at its axis."""
    return _LINE * (rows + 2) + 0.9


def _against(row: pd.Series, runs: pd.DataFrame, tolerance: float) -> pd.Series:
    """Return a published number with our runs at its data, protocol, entry and budget, or why it has none."""
    blank: dict[str, Any] = {"compared": False, "mean": np.nan, "sd": np.nan, "results": 0, "status": None}
    blank |= {"difference_percent": np.nan, "within_tolerance": None}
    if not pd.isna(row.reason):
        return pd.concat([row.drop("reason"), pd.Series(blank | {"why_not": row.reason})])
    own = runs[(runs.method == row.entry) & (runs.budget == row.budget) & (runs.dataset == row.our_dataset)]
    same = own[own.protocol == row.our_protocol]
    values = same[row.metric].dropna() if row.metric in same else pd.Series(dtype=float)
    if own.empty:
        blank["why_not"] = f"not among these runs: {row.entry} at {row.budget} on {row.our_dataset}"
    elif same.empty:
        blank["why_not"] = f"other protocol: {row.our_dataset} is {own.protocol.iloc[0]} here, not {row.our_protocol}"
    elif values.empty:
        blank["why_not"] = f"no result: {same.status.iloc[0]}" if row.metric in same else f"no {row.metric} here"
    else:
        percent = 100 * (values.mean() / row.value - 1)
        blank |= {"compared": True, "mean": values.mean(), "sd": values.std(ddof=1), "results": len(values)}
        blank |= {"status": ", ".join(sorted(same.status.unique())), "difference_percent": percent}
        blank |= {"within_tolerance": bool(abs(percent) <= tolerance), "why_not": None}
    return pd.concat([row.drop("reason"), pd.Series(blank)])


# How it is drawn ------------------------------------------------------------------------------------------------------


def _draw_interval_line(ax: Axes, cells: pd.DataFrame, style: Mapping) -> None:
    """Draw mean and interval over x; markers of runs that were stopped by their time limit are open."""
    cells = cells.dropna(subset="mean").sort_values("place")
    if cells.empty:
        return
    bars = (cells.high - cells["mean"]).fillna(0)
    ax.errorbar(cells.place, cells["mean"], yerr=bars, capsize=2, markersize=4.5, **style)
    stopped = cells[cells.status.str.contains("timeout")]
    ax.plot(stopped.place, stopped["mean"], **open_marker(style["marker"], style["color"]))


def _label_values(panels: Sequence[Axes], places: Mapping, numeric: bool) -> None:
    """Label the x axes with the values of the parameter; numbers of which one is many times another are spread."""
    found = sorted(places.values())
    spread = numeric and found[0] > 0 and found[-1] >= 8 * found[0]
    for ax in panels:
        if spread:
            ax.set_xscale("log")
        ax.set_xticks(list(places.values()), [f"{x:g}" if numeric else str(x) for x in places])
        ax.minorticks_off()
        ax.set_xmargin(0.1)


def _draw_differences(ax: Axes, cells: pd.DataFrame, names: bool) -> None:
    """Draw a panel's variants from top to bottom, each mean at the right; the base is the line at 0."""
    ax.axvline(0, color="0.25", linewidth=1.0, zorder=1)
    for place, row in enumerate(cells.itertuples()):
        colour = _APART if row.p_holm < 1 - LEVEL else _NOT_APART
        look: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4.5, "linestyle": "none"}
        if row.results == 0:
            ax.plot(0, place, **cross_marker("0.3"))
        elif np.isfinite(row.difference_percent):
            arms = [[row.difference_percent - row.difference_low], [row.difference_high - row.difference_percent]]
            bars = None if np.isnan(row.difference_low) else arms
            ax.errorbar(row.difference_percent, place, xerr=bars, capsize=2, **look)
        if "timeout" in row.status and np.isfinite(row.difference_percent):
            ax.plot(row.difference_percent, place, **open_marker("o", colour))
        words = f"{row.mean:.4f}" if row.results else row.status
        at = ax.get_yaxis_transform()
        ax.annotate(words, (1.02, place), xycoords=at, fontsize=7.5, va="center", annotation_clip=False)
    ax.set_yticks(range(len(cells)), [str(x) for x in cells.x] if names else [""] * len(cells), fontsize=7.5)
    ax.set_ylim(len(cells) - 0.4, -0.6)
    ax.margins(x=0.08)


def _begin(colour: str) -> dict:
    return {"color": colour, "marker": "|", "markersize": 9, "markeredgewidth": 1.4, "linestyle": "none"}


def _solid(style: Mapping) -> dict:
    return {**style, "linestyle": "solid", "linewidth": 1.1, "markersize": 3.5, "alpha": 0.85}


def _draw_curve(ax: Axes, curve: pd.DataFrame, x: str, y: str, style: Mapping) -> None:
    """Draw a run's stages, with the method's marker at every fourth point and the last one."""
    stages = [rows for _, rows in curve.groupby("stage", sort=False)]
    for place, rows in enumerate(stages):
        drawn = rows.dropna(subset=y)
        earlier = {"linestyle": _EARLIER} if place < len(stages) - 1 else {}
        marked = [*range(3, len(drawn) - 1, 4), len(drawn) - 1] if len(drawn) else []
        ax.plot(drawn[x], drawn[y], **_solid(style) | earlier, markevery=marked)
        if place:
            ax.plot(drawn[x].iloc[:1], drawn[y].iloc[:1], **_begin(style["color"]))


def _draw_published(ax: Axes, cells: pd.DataFrame, tolerance: float) -> None:
    """Draw our difference to each published number; both numbers stand at the right."""
    ax.axvspan(-tolerance, tolerance, color="0.92", zorder=0)
    ax.axvline(0, color="0.25", linewidth=1.0, zorder=1)
    for place, row in enumerate(cells.itertuples()):
        near = row.within_tolerance
        colour, marker = (_APART, "o") if near else ("#D55E00", "s")
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "linestyle": "none"}
        bars = None if np.isnan(row.sd) else 100 * row.sd / row.value
        ax.errorbar(row.difference_percent, place, xerr=bars, capsize=2, **look)
        if "timeout" in row.status:
            ax.plot(row.difference_percent, place, **open_marker(marker, colour))
        words = f"{row.value:.4f} published, {row.mean:.4f} ours"
        at = ax.get_yaxis_transform()
        ax.annotate(words, (1.01, place), xycoords=at, fontsize=7.5, va="center", annotation_clip=False)
    settings = cells.setting.fillna("")
    names = [
        fill(", ".join(filter(None, [f"{method} ({setting})" if setting else method, metric_in_words(metric)])), 60)
        for method, setting, metric in zip(cells.method, settings, cells.metric, strict=True)
    ]
    ax.set_yticks(range(len(cells)), names, fontsize=7.5)
    ax.set_ylim(len(cells) - 0.4, -0.6)
    ax.margins(x=0.08)
