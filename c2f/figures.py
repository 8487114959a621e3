"""Figures from one runs table: pdf and png to look at; beside them a csv of the numbers drawn, and the caption."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from c2f.captions import (
    FIGURES,
    NEEDED_KEYS,
    SIZE_KEYS,
    TUNING,
    commits_in_words,
    data_in_words,
    metric_in_words,
    seeds_in_words,
)
from c2f.errors import ConfigError, did_you_mean
from c2f.record import write_atomically
from c2f.report import read_runs, size_in_words, summarise

# Okabe and Ito's colours without yellow and black, then three of Tol's muted ones: told apart with any colour vision
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255", "#999933", "#332288"]
_MARKERS = "osD^vPhp<>*d"  # no x: it marks a missing result
_DASHES = ["solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 1.5))]  # with 12 markers 60 pairs
_REFERENCE = (0, (6, 2))
_FEW = 10  # methods that a legend alone keeps apart; more are also named at the ends of their lines
_THEME = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper"), "font.family": "DejaVu Sans"}
_AXES = {"numbers": "budget: numbers, as the papers count", "bytes": "budget: bytes stored", "full": "no budget"}


def write_figure(name: str, spec: Mapping, runs: Sequence[Path], output: Path) -> None:
    """Draw figure `name` from the runs tables; write `<output>.pdf`, `.png`, `.csv`, and `.txt` with its caption.

    spec: what c2f.grid tells of the figure; its key `draw` names a function of this module, of c2f.memory_figures or of
    c2f.evidence_figures, all of which have a caption in c2f.captions; `seeds` are those of the runs that are drawn.
    """
    draw = spec.get("draw", name)
    if draw not in FIGURES:
        raise ConfigError(f"unknown drawing {draw!r} in figures.{name}; {did_you_mean(draw, FIGURES)}")
    drawn = "lines" if "points" in NEEDED_KEYS[draw] else "methods"
    wanted = [*NEEDED_KEYS[draw], *SIZE_KEYS.get(draw, {}), "seeds", "families", drawn]
    if missing := [key for key in wanted if key not in spec]:
        raise ConfigError(
            f"the spec of figures.{name} has no {missing[0]!r}; it takes {', '.join(wanted)}, as c2f.grid writes them"
        )
    table = read_runs(runs)
    with matplotlib.rc_context(_THEME):
        figure, plotted = drawing(draw)(table[table.seed.isin(spec["seeds"])], spec)
        _save(figure, plotted, spec.get("caption", FIGURES[draw]), output)


def write_tuning(studies: Sequence[Mapping], spec: Mapping, output: Path) -> None:
    """Draw every trial of one dataset's studies (c2f.tuning) as `write_figure` does. spec: `made_up` and `families`."""
    columns = ["dataset", "protocol", "method", "budget", "seed", "metric", "commit"]
    trials = pd.DataFrame(
        {**{name: study[name] for name in columns}, "made_up": spec["made_up"], **trial}
        for study in studies
        for trial in study["trials"]
    )
    with matplotlib.rc_context(_THEME):
        figure, plotted = tuning(trials, spec)
        data = (studies[0]["dataset"], studies[0]["protocol"], spec["made_up"])
        _save(figure, plotted, f"{TUNING} D{data_in_words([data])[1:]}.", output)


def _save(figure: Figure, plotted: pd.DataFrame, caption: str, output: Path) -> None:
    """Write `<output>.pdf`, `.png`, `.csv` and `.txt`."""
    with write_atomically(Path(f"{output}.pdf")) as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})  # equal content, equal bytes
    with write_atomically(Path(f"{output}.png")) as temporary:
        figure.savefig(temporary, format="png", dpi=160)
    with write_atomically(Path(f"{output}.csv")) as temporary:
        plotted.to_csv(temporary, index=False)
    with write_atomically(Path(f"{output}.txt")) as temporary:
        temporary.write_text(caption + "\n")


def drawing(name: str) -> Callable[[pd.DataFrame, Mapping], tuple[Figure, pd.DataFrame]]:
    """Return the function that draws: of runs and a spec it makes the figure, and the table of what this shows."""
    from c2f import evidence_figures, memory_figures  # not above: they draw with what stands below

    return vars(memory_figures).get(name) or vars(evidence_figures).get(name) or globals()[name]


def comparison(runs: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return every metric against the budget as a figure, and the table of what it shows.

    Rows are dataset and metric, columns the kind of budget. A line is a method's mean over seeds, its bars one standard
    deviation; a method without a budget is a dashed line with its size; a cell without a result is a cross in a strip
    below its dataset; an open marker is a run that its time limit stopped.
    """
    runs = runs[runs.method.isin(spec["methods"])]
    shown = [name for name in spec["methods"] if (runs.method == name).any()]
    plotted = summarise(runs, spec["metrics"])
    if not shown:
        return empty_figure(spec["methods"]), plotted
    kinds = [kind for kind in ("numbers", "bytes") if (runs.budget_kind == kind).any()] or ["full"]
    styles = {name: method_styles(spec["families"])[name] for name in shown}
    datasets = list(runs.dataset.unique())
    holes = {dataset: with_holes(plotted[plotted.dataset == dataset], "method", shown) for dataset in datasets}
    crowded = len(shown) > _FEW
    size = 1 + max(0, len(shown) - _FEW) / 24  # the more lines, the larger the panels
    figure, blocks = make_panels(
        [(len(spec["metrics"]), len(holes[dataset])) for dataset in datasets], len(kinds), 4.7 * size, 2.4 * size
    )
    for dataset, (panels, strips) in zip(datasets, blocks, strict=True):
        for metric, row in zip(spec["metrics"], panels, strict=True):
            cells = plotted[(plotted.dataset == dataset) & (plotted.metric == metric)]
            full = cells[cells.budget_kind == "full"].dropna(subset="mean")
            for kind, ax in zip(kinds, row, strict=True):
                sized = cells[cells.budget_kind == kind]
                for name in shown:
                    _draw_line(ax, sized[sized.method == name], "budget_amount", styles[name] | {"label": name})
                for line in full.itertuples():
                    style = styles[line.method] | {"marker": "", "linestyle": _REFERENCE, "label": line.method}
                    ax.axhline(line.mean, **style)
                _label_budgets(ax, kind, runs)
                ax.set_title(panel_title(cells))
            row[0].set_ylabel(metric_in_words(metric))
            share_scale(row)
            for kind, ax in zip(kinds, row, strict=True):
                ends = _references(full, kind)
                if crowded:
                    ends += _line_ends(cells[cells.budget_kind == kind])
                _label_ends(ax, ends, styles, gap=0.06 / size)
        for kind, strip in zip(kinds, strips, strict=False):
            _label_budgets(strip, kind, runs)
        found = plotted[plotted.dataset == dataset]
        cells = [found[found.budget_kind.isin([kind, "full"])] for kind in kinds]
        draw_holes(panels[-1], strips, cells, "budget_amount", "method", holes[dataset], styles)
    for kind, ax in zip(kinds, figure.axes[-len(kinds) :], strict=True):
        ax.set_xlabel(_AXES[kind])
    unsized = set(runs.method[runs.budget_kind == "full"]) - set(runs.method[runs.budget_kind != "full"])
    dashed = {name: {"marker": "", "linestyle": _REFERENCE} if name in unsized else {} for name in shown}
    legend = line_legend({name: styles[name] | dashed[name] for name in shown})
    finish(figure, "comparison", legend, runs, plotted, spec["methods"])
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
        return empty_figure(wanted), plotted
    styles = {label: method_styles(spec["families"])[spec["lines"][side]] for side, label in sides.items()}
    datasets = list(runs.dataset.unique())
    holes = {dataset: with_holes(plotted[plotted.dataset == dataset], "line", styles) for dataset in datasets}
    figure, blocks = make_panels([(1, len(holes[dataset])) for dataset in datasets], len(spec["metrics"]), 2.7, 2.5)
    for dataset, (panels, strips) in zip(datasets, blocks, strict=True):
        cells = plotted[plotted.dataset == dataset]
        for metric, ax in zip(spec["metrics"], panels[0], strict=True):
            for label, style in styles.items():
                drawn = cells[(cells.line == label) & (cells.metric == metric)]
                _draw_line(ax, drawn, "x", style | {"label": label})
            ax.set_xticks(sorted({point["x"] for point in points}))
            ax.set_xmargin(0.1)
            ax.set_title(f"{panel_title(cells)}: {metric_in_words(metric)}")
            share_scale([ax])
        draw_holes(panels[0], strips, [cells] * len(spec["metrics"]), "x", "line", holes[dataset], styles)
    for ax in figure.axes[-len(spec["metrics"]) :]:
        ax.set_xlabel(spec.get("x", "x"))
    finish(figure, "ablation", line_legend(styles), runs, plotted, wanted)
    return figure, plotted


def tuning(trials: pd.DataFrame, spec: Mapping) -> tuple[Figure, pd.DataFrame]:
    """Return the trials of one dataset's studies as a figure, a panel for each budget, and the table of what it shows.

    A point is a trial's value, a line a method's best so far; a trial without a value is a cross at the bottom.
    """
    plotted = trials.assign(best_so_far=trials.groupby(["method", "budget"]).value.cummax())
    plotted["best_so_far"] = plotted.groupby(["method", "budget"]).best_so_far.ffill()  # a failed trial changes nothing
    plotted["settings"] = plotted.settings.map(json.dumps)
    budgets, shown = list(trials.budget.unique()), list(trials.method.unique())
    styles = {name: method_styles(spec["families"])[name] for name in shown}
    figure, ((panels, _),) = make_panels([(1, 0)], len(budgets), 4.7, 3.0)
    for budget, ax in zip(budgets, panels[0], strict=True):
        for name in shown:
            found = plotted[(plotted.budget == budget) & (plotted.method == name)]
            style = {"color": styles[name]["color"], "marker": styles[name]["marker"]}
            ax.plot(found.trial + 1, found.value, linestyle="none", markersize=4, alpha=0.5, **style)
            line = {"color": style["color"], "linestyle": styles[name]["linestyle"]}
            ax.step(found.trial + 1, found.best_so_far, where="post", label=name, **line)
            for trial in found.trial[found.value.isna()]:
                bottom = {"transform": ax.get_xaxis_transform(), "clip_on": False}
                ax.plot(trial + 1, 0, **bottom, **cross_marker(style["color"]))
        ax.set_title(f"{panel_title(plotted)}, {budget}")
        ax.set_xlabel("trial")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    share_scale(list(panels[0]))
    panels[0][0].set_ylabel(f"{' or '.join(map(metric_in_words, trials.metric.unique()))} on validation pairs")
    finish(figure, "tuning", line_legend(styles), trials, plotted, shown)
    return figure, plotted


def method_styles(families: Sequence[Sequence[str]]) -> dict[str, dict]:
    """Return colour, marker and dashes of every method: alike in every figure of every configuration.

    A family (an entry and all that are like it) has one colour, and no two methods have all three in common.
    """
    first = [(place % len(COLOURS), family[0]) for place, family in enumerate(families)]
    others = [(place % len(COLOURS), name) for place, family in enumerate(families) for name in family[1:]]
    count: Counter[int] = Counter()
    styles = {}
    for colour, name in first + others:
        styles[name] = {
            "color": COLOURS[colour],
            "marker": _MARKERS[(colour + count[colour]) % len(_MARKERS)],
            "linestyle": _DASHES[count[colour] % len(_DASHES)],
        }
        count[colour] += 1
    return styles


def make_panels(
    blocks: Sequence[tuple[int, int]],
    num_columns: int,
    width: float,
    height: float | Sequence[float],
    sharex: Literal["col", "all", "none"] = "col",
) -> tuple[Figure, list[tuple[np.ndarray, np.ndarray]]]:
    """Return a figure and, per block of (rows, lines), the axes of its rows and those of a strip of so many lines.

    width, height: of one panel, in inches, the height also by block. sharex: which axes have one x scale. A strip of no
    lines has no axes.
    """
    own = height if isinstance(height, Sequence) else [height] * len(blocks)
    heights = []
    for (rows, lines), inches in zip(blocks, own, strict=True):
        heights += [inches] * rows + [0.15 * lines + 0.1] * bool(lines)
    figure = Figure(figsize=(width * num_columns, sum(heights) + 1.0))
    ratios = {"height_ratios": heights}
    axes = figure.subplots(len(heights), num_columns, squeeze=False, sharex=sharex, gridspec_kw=ratios)
    found, top = [], 0
    for rows, lines in blocks:
        strip = axes[top + rows] if lines else np.array([])
        found.append((axes[top : top + rows], strip))
        top += rows + bool(lines)
    return figure, found


def _draw_line(ax: Axes, cells: pd.DataFrame, x: str, style: Mapping) -> None:
    """Draw mean and standard deviation over x; markers of runs that were stopped by their time limit are open."""
    cells = cells.dropna(subset="mean").sort_values(x)
    if cells.empty:
        return
    ax.errorbar(cells[x], cells["mean"], yerr=cells.sd.fillna(0), capsize=2, markersize=4.5, **style)
    stopped = cells[cells.status.str.contains("timeout")]
    ax.plot(stopped[x], stopped["mean"], **open_marker(style["marker"], style["color"]))


def open_marker(marker: str, colour: str) -> dict:
    return {"marker": marker, "linestyle": "none", "markersize": 6, "mfc": "white", "mec": colour, "zorder": 4}


def cross_marker(colour: str) -> dict:
    return {"marker": "x", "linestyle": "none", "markersize": 5, "markeredgewidth": 1.6, "color": colour, "zorder": 4}


def panel_title(cells: pd.DataFrame) -> str:
    return cells.dataset.iloc[0] + " (made up)" * bool(cells.made_up.iloc[0])


def share_scale(panels: Sequence[Axes]) -> None:
    """Put panels on one y scale; no metric is below 0."""
    limits = [ax.get_ylim() for ax in panels if ax.lines] or [(0.0, 1.0)]
    low, high = max(0.0, min(low for low, _ in limits)), max(high for _, high in limits)
    for ax in panels:
        ax.set_ylim(low, high)
        ax.yaxis.set_major_locator(MaxNLocator(5))


def with_holes(cells: pd.DataFrame, by: str, order: Iterable[str]) -> list[str]:
    """Return the lines on which a run has no result, in the given order."""
    return [name for name in order if name in set(cells[by][cells.results < cells.runs])]


def draw_holes(
    panels: Iterable[Axes],
    strips: np.ndarray,
    cells: Iterable[pd.DataFrame],
    x: str,
    by: str,
    lines: Sequence[str],
    styles: Mapping[str, Mapping],
) -> None:
    """Fill the strips below a row of panels: a line for each of `lines`, a cross where a run of it has no result."""
    for ax in panels:
        ax.tick_params(labelbottom=not lines)  # the strip has the same axis
    if not lines:
        return
    for ax, part in zip(strips, cells, strict=True):
        missing = part[part.results < part.runs].drop_duplicates([x, by])
        for place, name in enumerate(lines):
            for value in missing[x][missing[by] == name]:
                at = (value, ax.transData) if np.isfinite(value) else (0.98, ax.get_yaxis_transform())  # no budget
                ax.plot(at[0], place, transform=at[1], **cross_marker(styles[name]["color"]))
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.set_yticks(range(len(lines)), lines if ax is strips[0] else [""] * len(lines), fontsize="x-small")
        ax.set_facecolor("0.95")
        ax.tick_params(labelbottom=True)
    strips[0].set_ylabel("no result", rotation=0, ha="right", va="center", fontsize="small")


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


def _references(full: pd.DataFrame, kind: str) -> list[dict]:
    """Return what names the lines of the methods without a budget: name and size, right of the panel."""
    column, unit = ("stored_bytes", "bytes") if kind == "bytes" else ("numbers", "numbers")
    return [
        {"method": row["method"], "text": f"{row['method']} {size_in_words(row[column], unit)}", "xy": (1, row["mean"])}
        for row in full.to_dict("records")
    ]


def _line_ends(sized: pd.DataFrame) -> list[dict]:
    """Return what names the lines of the methods with budgets: the name, at the last point."""
    last = sized.dropna(subset="mean").sort_values("budget_amount").groupby("method").tail(1)
    return [
        {"method": row["method"], "text": row["method"], "xy": (row["budget_amount"], row["mean"]), "xycoords": "data"}
        for row in last.to_dict("records")
    ]


def _label_ends(ax: Axes, ends: list[dict], styles: Mapping[str, Mapping], gap: float) -> None:
    """Write the names of lines right of the panel, as near to their height as the others allow, a thin line to each.

    gap: between two names, as a part of the panel's height.
    """
    low, high = ax.get_ylim()
    ends = sorted(ends, key=lambda end: end["xy"][1])
    stack = gap * np.arange(len(ends))  # as close as names may stand: what remains of the heights must not decrease
    heights = np.array([(end["xy"][1] - low) / (high - low) for end in ends])
    if len(ends):
        heights = stack + np.clip(isotonic_regression(heights - stack).x, 0, max(0, 1 - stack[-1]))
    for end, height in zip(ends, heights, strict=True):
        colour = styles[end["method"]]["color"]
        ax.annotate(
            end["text"],
            end["xy"],
            (1.04, height),
            xycoords=end.get("xycoords", ax.get_yaxis_transform()),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize="small",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def line_legend(styles: Mapping[str, Mapping]) -> dict[str, Artist]:
    return {name: Line2D([], [], markersize=4.5, **style) for name, style in styles.items()}


def finish(
    figure: Figure,
    draw: str,
    legend: Mapping[str, Artist],
    runs: pd.DataFrame,
    plotted: pd.DataFrame,
    wanted: Iterable[str],
    notes: Iterable[str] = (),
) -> None:
    """Add the legend, above the panels or beside them, and the footer below them; `notes` is what else this says."""
    entries = dict(legend)
    if any(line.get_marker() == "x" for ax in figure.axes for line in ax.lines):
        entries["no result (reason in the csv)"] = Line2D([], [], **cross_marker("0.3"))
    if plotted.status.str.contains("timeout", na=False).any():
        entries["stopped by the time limit"] = Line2D([], [], **open_marker("o", "0.3"))
    if len(legend) > _FEW:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", frameon=False, handlelength=3.5)
    elif entries:
        inches = max(1.75, 0.5 + max(map(len, entries)) / 12)  # of an entry
        columns = min(len(entries), max(1, int(figure.get_figwidth() / inches)))
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns, frameon=False)

    data = runs[["dataset", "protocol", "made_up"]].drop_duplicates().itertuples(index=False, name=None)
    footer = [data_in_words(data), seeds_in_words(runs.seed.unique(), draw), commits_in_words(runs.commit), *notes]
    if missing := sorted(set(wanted) - set(runs.method)):
        footer.append("not run: " + ", ".join(missing))
    text = fill(" · ".join(footer), width=int(figure.get_figwidth() * 18))
    below = (text.count("\n") + 1.8) * 0.13  # inches, beside what the panels were given
    figure.set_figheight(figure.get_figheight() + below)
    figure.text(0.01, 0.05 / figure.get_figheight(), text, fontsize=7, color="0.35", va="bottom")
    height = below / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, height, 1, 1 - height))


def empty_figure(wanted: Iterable[str], runs: str = "runs") -> Figure:
    """Return a figure that says what it would need. runs: of what kind."""
    figure = Figure(figsize=(7, 2))
    text = fill(f"Nothing to draw: no {runs} of {', '.join(dict.fromkeys(wanted))}.", width=90)
    figure.text(0.5, 0.5, text, ha="center", va="center", color="0.3")
    return figure
