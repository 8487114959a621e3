"""Which method to take within limits of memory, time and training, and whether the evidence separates it from the next.

A cell is a method at a budget on one dataset. Of every method that has cells within the limits the one with the best
mean counts; the best of these is recommended, the next is the runner-up.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from c2f.budget import parse_bytes
from c2f.captions import metric_in_words
from c2f.compare import lead
from c2f.errors import ConfigError, DataError, did_you_mean
from c2f.report import read_runs, size_in_words, status_in_words
from c2f.stats import LEVEL, seeds_interval

SIZES = {"stored": "stored_bytes", "serving": "serving_bytes"}
"""The ways to count bytes that can be limited, and their columns of the runs table."""
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Limits:
    """At most so many bytes, and (None: any) milliseconds for one user (95th percentile), and seconds of training."""

    size: int
    view: str = "stored"
    latency_ms: float | None = None
    train_seconds: float | None = None

    @classmethod
    def parse(cls, size: str, view: str, latency: str | None, train_hours: str | None) -> "Limits":
        """Read what the command line says: `1MB`, `stored` or `serving`, `5ms`, `1.5`. Raises ConfigError."""
        if view not in SIZES:
            raise ConfigError(f"--view {view!r} is unknown; {did_you_mean(view, SIZES)}")
        milliseconds = None if latency is None else _milliseconds(latency)
        hours = "hours; write for instance 1.5"
        seconds = None if train_hours is None else 3600 * _positive(train_hours, "--train-hours", hours)
        return cls(parse_bytes(size, "--bytes"), view, milliseconds, seconds)

    def __str__(self) -> str:
        words = [f"at most {size_in_words(self.size, 'bytes')} {'to serve' if self.view == 'serving' else 'stored'}"]
        words += [f"{self.latency_ms:g} ms for one user"] if self.latency_ms is not None else []
        words += [f"{self.train_seconds / 3600:g} h of training"] if self.train_seconds is not None else []
        return ", ".join(words)


def choose(
    dataset: str,
    limits: Limits,
    runs: Path | None = None,
    metric: str = "ndcg@20",
) -> str:
    """Return in words which method the runs of a dataset recommend within limits, and how sure that is.

    runs: a runs table as `collect` writes it (None: that of results/). Raises ConfigError for an unknown dataset or
    metric, DataError for a table that is missing or damaged.
    """
    every = read_runs([runs if runs is not None else _default_table(dataset)])
    table = every[every.role == "compared"]
    if dataset not in set(table.dataset):
        hint = did_you_mean(dataset, set(table.dataset))
        raise ConfigError(f"--dataset {dataset!r} is not in the runs table; {hint}")
    known = [name for name in table if "@" in name]
    if metric not in known:
        raise ConfigError(f"--metric {metric!r} is not in the runs table; {did_you_mean(metric, known)}")
    table = table[table.dataset == dataset]
    cells = fitting(table, limits, metric)
    lines = [f"{dataset} (protocol {table.protocol.iloc[0]}), {limits}:", ""]
    lines[0] = "MADE-UP DATA, nothing is to be concluded: " * bool(table.made_up.iloc[0]) + lines[0]
    best = cells[cells.left_out.isna()].sort_values("mean", ascending=False, kind="stable").drop_duplicates("method")
    lines += _verdict(best, table, limits, metric) if len(best) else ["No run fits; why, stands below."]
    drawn = every[(every.dataset == dataset) & (every.role != "compared")].method.nunique()
    no_choice = [f"{drawn} more methods were run for figures alone and are no choice."] * bool(drawn)
    return "\n".join([*lines, "", *_left_out(cells, limits), *no_choice])


def fitting(runs: pd.DataFrame, limits: Limits, metric: str) -> pd.DataFrame:
    """Return a row per cell: mean, interval over seeds, size, latency, seconds; `left_out` says why it does not fit.

    Of a cell its runs with a result count, those that their time limit stopped too: their largest size, and their mean
    latency and training time, the latter with what they start from.
    """
    rows = []
    for (method, budget), group in runs.groupby(["method", "budget"], sort=False):
        found = group.dropna(subset=metric)
        low, high = seeds_interval(found[metric].to_numpy(float))
        cell = {
            "method": method,
            "budget": budget,
            "status": status_in_words(group.status),
            "results": len(found),
            "mean": found[metric].mean(),
            "low": low,
            "high": high,
            **{view: found[column].max() for view, column in SIZES.items()},
            "latency_ms": found.latency_p95_ms.astype(float).mean(),
            "train_seconds": found.seconds_with_starts.mean(),
        }
        rows.append(cell | {"left_out": _problem(cell, group, limits)})
    return pd.DataFrame(rows).astype({"left_out": "string"})


def _problem(cell: dict, group: pd.DataFrame, limits: Limits) -> str | None:
    if not cell["results"]:
        return f"no result: {', '.join(sorted(set(group.status)))}"
    if not cell[limits.view] <= limits.size:
        return "too large"
    if limits.latency_ms is not None and math.isnan(cell["latency_ms"]):
        return "not measured when serving"
    if limits.latency_ms is not None and cell["latency_ms"] > limits.latency_ms:
        return "too slow"
    if limits.train_seconds is not None and cell["train_seconds"] > limits.train_seconds:
        return "too long to train"
    return None


def _default_table(dataset: str) -> Path:
    """Return the dataset's runs table in results/. Raises DataError, naming those that there are."""
    path = Path("results/tables") / f"runs-{dataset}.parquet"
    if path.is_file():
        return path
    found = sorted(Path("results").glob("*/tables/runs-*.parquet"))
    found += sorted(Path("results/published").glob("*/runs-*.parquet"))
    same = [str(other) for other in found if other.name == path.name]
    names = [other.stem.removeprefix("runs-") for other in found]
    others = f"name one with --runs, or {did_you_mean(dataset, names)}"
    hint = f"name one: --runs {' or '.join(same)}" if same else others
    raise DataError(f"{path} is missing; {hint}")


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"([0-9.]+)(us|ms|s)", text.strip())
    if match is None:
        raise ConfigError(f"--latency {text!r} is no time; write for instance 5ms")
    return 1000 * _positive(match[1], "--latency", "a time; write for instance 5ms") * _SECONDS[match[2]]


def _positive(text: str, place: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{place} {text!r} is not a positive number of {what}")
    return number


# In words -------------------------------------------------------------------------------------------------------------


def _verdict(best: pd.DataFrame, runs: pd.DataFrame, limits: Limits, metric: str) -> list[str]:
    """Return what is recommended, the runner-up, and whether the evidence separates them.

    best: a cell per method, sorted.
    """
    first = best.iloc[0]
    lines = [f"Recommended: {_cell_in_words(first, metric)}"]
    if len(best) == 1:
        return [*lines, "Runner-up: none, no other method fits."]
    second = best.iloc[1]
    lines += [f"Runner-up: {_cell_in_words(second, metric)}"]
    chosen = runs.merge(best[["method", "budget"]], on=["method", "budget"])
    gap, p = lead(chosen, first.method, second.method, metric)
    if not gap.seeds:
        return [*lines, "They have no seed in common: the evidence does not separate them."]
    seeds = f"the {gap.seeds} seeds that both have" if gap.seeds > 1 else "one seed"
    over = f"users and {seeds}" if gap.by_user else seeds
    if math.isnan(gap.low):
        return [
            *lines,
            f"Difference: {gap.difference:+.4f} with one seed. How much of it is noise between seeds is unknown, "
            "and there are no metrics by user: the evidence does not separate them.",
        ]
    text = f"Difference: {gap.difference:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f} over {over}. "
    pairs = math.comb(len(best), 2)
    size = "below 0.001" if p < 0.001 else f"{p:.2g}"
    luck = f"p is {size}" + f", corrected for the {pairs} pairs of the {len(best)} methods that fit" * (pairs > 1)
    better = first.method if gap.difference > 0 else second.method
    if p < 1 - LEVEL:
        unknown = (
            " on these users. Whether it is on others is not known here: there are no metrics by user "
            "(per_user.parquet) where the runs table says that its runs lie"
        )
        text += f"The interval leaves out 0 and {luck}: {better} is better{'' if gap.by_user else unknown}."
    else:
        text += f"The interval leaves out 0, but {luck}" if gap.different else "The interval holds 0"
        text += ": the evidence does not separate them"
        smaller = min((first, second), key=lambda cell: cell[limits.view])
        alike = first[limits.view] == second[limits.view]
        text += "." if alike else f"; {smaller.method} is smaller ({size_in_words(smaller[limits.view], 'bytes')})."
    if gap.seeds == 1:
        text += " This is about these two models: with one seed the noise between seeds is unknown."
    return [*lines, text]


def _cell_in_words(cell: pd.Series, metric: str) -> str:
    if math.isnan(cell.low):
        noise = "one seed: the noise between seeds is unknown"
    elif cell.high - cell.low < 1e-9:
        noise = f"the same for every one of {cell.results} seeds"
    else:
        noise = f"95 % interval {cell.low:.4f} to {cell.high:.4f} over {cell.results} seeds"
    status = f" ({cell.status})" * (cell.status != "ok")
    latency = "latency not measured" if math.isnan(cell.latency_ms) else f"{cell.latency_ms:.3g} ms for one user"
    sizes = [f"{size_in_words(cell.stored, 'bytes')} stored", f"{size_in_words(cell.serving, 'bytes')} to serve"]
    return (
        f"{cell.method} at {cell.budget}: {metric_in_words(metric)} {cell['mean']:.4f}, {noise}{status}; "
        f"{', '.join([*sizes, latency, f'{cell.train_seconds:,.1f} s of training with its starts'])}."
    )


def _left_out(cells: pd.DataFrame, limits: Limits) -> list[str]:
    """Return how many cells were left out and why; named are those not measured, and those at most 10 % too slow.

    So small a difference of latencies may be the machine's and not the method's.
    """
    total = f"{len(cells)} cells (a method at a budget)"
    if not cells.left_out.notna().any():
        return [f"All {total} fit."]
    lines = [f"Left out of {total}:"]
    for why, rows in cells[cells.left_out.notna()].groupby("left_out", sort=False):
        named = f": {', '.join(_names(rows))}" if why == "not measured when serving" else ""
        if why == "too slow" and len(near := rows[rows.latency_ms <= 1.1 * (limits.latency_ms or 0)]):
            times = ", ".join(f"{name} ({ms:.3g} ms)" for name, ms in zip(_names(near), near.latency_ms, strict=True))
            named = f"; by less than 10 %: {times}"
        lines.append(f"  {len(rows)} {why}{named}")
    return lines


def _names(cells: pd.DataFrame) -> Iterable[str]:
    return (f"{method} at {budget}" for method, budget in zip(cells.method, cells.budget, strict=True))
