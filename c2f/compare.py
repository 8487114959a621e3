"""The compare table: which methods differ at one budget, and which of them beat a plain table of the same size."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from c2f.captions import TABLE_METRICS, commits_in_words, metric_in_words
from c2f.data import read_parquet
from c2f.errors import DataError
from c2f.record import write_atomically
from c2f.report import (
    data_checksums,
    in_latex,
    main_table,
    markdown_rows,
    mean_and_sd,
    read_runs,
    read_table,
    size_in_words,
    summarise,
)
from c2f.seeds import seed_for
from c2f.stats import (
    DRAWS,
    LEVEL,
    bootstrap_means,
    detectable_difference,
    effect_size,
    holm,
    interval,
    interval_p,
    probability_best,
    seed_error,
    seeds_interval,
    seeds_p,
    users_interval,
    variance_split,
    wilcoxon_p,
)

_CELL = ["dataset", "budget", "method"]
_COLLECTED = ["folder", "unsplit_data"]
_MEASURED = ["difference", "low", "high", "users_low", "users_high", "seeds", "effect_size", "detectable"]
_P_VALUES = ["p", "wilcoxon_p"]
_AGAINST = ["other", *_MEASURED, *(f"{p}{family}" for p in _P_VALUES for family in ("", "_holm")), "different"]
_VARIANCE = ["datasets", "protocol", "budget", "method", "metric", "splits", "runs", "sd_model_seed", "sd_split_seed"]

LEGEND = {
    "seeds": "how many have a result, and of how many",
    "recall, ndcg": "mean over seeds ± standard deviation. Bold: the best of its dataset and budget. Underlined: not "
    "told apart from the best, so noise may have made the difference",
    "stored": "bytes of the model, the mean over seeds: methods use different parts of one budget",
    "against the best": "the mean difference to the method with the best NDCG@20, and its interval",
    "p": "of that difference, corrected by Holm over all pairs of methods at the budget: below 0.05 they are told "
    "apart, with the luck of being the best of many taken into account",
    "detectable": "the true difference to the best of which so many users and seeds give an interval without 0 four "
    "times in five, if noise is as these seeds show it, which few seeds do roughly; to be told apart takes more",
    "P(best)": "how often the method has the best NDCG@20 when users and seeds are drawn anew",
    "beats a plain table of the same size?": "yes or no where the corrected p of the difference to `{plain}` at the "
    "same budget is below 0.05, else not told apart, even where the interval, which stands for itself, leaves out 0",
    "†": "one seed in common: about these two trained models alone. Other seeds may turn it",
}
"""What the columns of the table mean."""

METHOD = (
    "Intervals are of 95 %. Two methods are paired by user, on the seeds that both have: {draws:,} bootstrap draws of "
    "the users (percentiles), in quadrature with Student's interval of the mean over seeds. They hold for one "
    "comparison at a time: of twenty between equal methods one may leave out 0, and more with the best, which luck "
    "helped to become it (up to a tenth of 8 equal methods, a fifth of 30). The p in the table is that at which the "
    "interval would end at 0, corrected by Holm over all pairs of methods at a budget ({families}): where none differ, "
    "one of twenty budgets has any below 0.05. Two methods are told apart where it is below 0.05. The csv has "
    "Wilcoxon's signed-rank test over users too, corrected over the same pairs; it knows nothing of seeds and speaks "
    "of these trained models alone."
)
"""How the table is made."""


def read_compared(runs: Sequence[Path]) -> pd.DataFrame:
    """Return the runs that are compared, with where each lies and of which data it is a split. Raises DataError."""
    every = read_runs(runs)
    for column in _COLLECTED:
        if column not in every:
            raise DataError(
                f"{', '.join(map(str, runs))}: there is no column {column!r}, so they are of another version; "
                "run `python -m c2f collect` again"
            )
    return every[every.role == "compared"]


def write_compare(runs: Sequence[Path], output: Path, plain: str, made_by: str = "") -> None:
    """Write the compare table as `<output>.csv` (unrounded), `.md` and `.tex`, and `<output>-variance.csv`.

    plain: the method that is a plain table; the runs' folders must hold per_user.parquet. Raises DataError where a file
    is missing, damaged or of another version.
    """
    compared = read_compared(runs)
    table, variance = compare_table(compared, plain), variance_table(compared)
    texts = {
        ".csv": table.to_csv(index=False),
        ".md": _to_markdown(table, variance, compared, plain, made_by),
        ".tex": _to_latex(table, plain),
        "-variance.csv": variance.to_csv(index=False),
    }
    for ending, text in texts.items():
        with write_atomically(Path(f"{output}{ending}")) as temporary:
            temporary.write_text(text)


def read_compare(path: Path) -> pd.DataFrame:
    """Read the csv of `write_compare`. Raises DataError where it is missing, damaged or another one."""
    columns = [*_CELL, "metric", *(f"{against}_{column}" for against in ("best", "plain") for column in _AGAINST)]
    return read_table(pd.read_csv, path, [*columns, "beats_plain"], "compare").fillna({"beats_plain": ""})


# Means and differences ------------------------------------------------------------------------------------------------


def cells_of(runs: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Return the rows of c2f.report.summarise with `low` and `high`, the ends of the mean's 95 % interval over seeds.

    NaN for a cell of fewer than two seeds, which say nothing of the noise between seeds.
    """
    cells = summarise(runs, metrics)
    groups = dict(iter(runs.groupby(["dataset", "method", "role", "budget"])))
    found = [groups[row.dataset, row.method, row.role, row.budget].get(row.metric) for row in cells.itertuples()]
    ends = [seeds_interval(np.array([]) if values is None else values.dropna().to_numpy(float)) for values in found]
    return cells.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


@dataclass(frozen=True)
class Difference:
    """One method's mean minus another's on `seeds` common seeds, with 95 % intervals, of which NaN: not known.

    low, high: over users and, where there are several, seeds; users_low, users_high: over users alone; p: that at which
    the interval would end at 0.
    """

    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    users_low: float = np.nan
    users_high: float = np.nan
    seeds: int = 0
    effect_size: float = np.nan
    detectable: float = np.nan
    p: float = np.nan

    @property
    def different(self) -> bool:
        """Whether the interval leaves out 0: about one comparison, not the best of many."""
        return self.low > 0 or self.high < 0

    @property
    def by_user(self) -> bool:
        """Whether the interval is over users too."""
        return not np.isnan(self.users_low)


def difference(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> Difference:
    """Return by how much the runs of one cell are better than those of another, on the seeds that both have.

    A cell is a method at a budget on one dataset. Where every run's folder has its per_user.parquet, all is as the
    compare table has it; else low and high are Student's over the seeds. Raises DataError for a damaged file.
    """
    both = [runs.dropna(subset=metric).set_index("seed") for runs in (first, second)]
    seeds = sorted({*both[0].index} & {*both[1].index})
    if not seeds:
        return Difference()
    one, two = (runs.loc[seeds].assign(method=side).reset_index() for side, runs in enumerate(both))
    if not all(_users_file(folder).is_file() for folder in (*one.folder, *two.folder)):
        seed_means = (one[metric] - two[metric]).to_numpy(float)
        low, high = seeds_interval(seed_means)
        mean = float(seed_means.mean())
        return Difference(difference=mean, low=low, high=high, seeds=len(seeds), p=seeds_p(seed_means))
    values = _per_user(pd.concat([one, two], ignore_index=True), [metric])[metric]
    gaps = np.stack([values[0, seed] - values[1, seed] for seed in seeds])  # (S, n)
    by_user = gaps.mean(axis=0)
    draws = bootstrap_means(by_user[:, None], _generator(one.dataset[0]))[:, 0]
    gap = by_user, draws, gaps.mean(axis=1)
    return replace(_measure(*gap), p=float(_interval_p([gap])[0]))


def lead(runs: pd.DataFrame, first: str, second: str, metric: str) -> tuple[Difference, float]:
    """Return by how much the first of two methods is better, and its p corrected by Holm over all pairs of methods.

    runs: of one cell for each method, of one dataset; first: the method with the best mean. As in the compare table
    where every run's folder has its per_user.parquet; else over the seeds. Raises DataError for a damaged file.
    """
    cells = dict(iter(runs.dropna(subset=metric).groupby("method", sort=False)))
    if all(_users_file(folder).is_file() for cell in cells.values() for folder in cell.folder):
        row = _compare_budget(pd.concat(cells.values()).assign(budget=""), "", [metric])[second, metric]
        p_holm = row.get("best_p_holm", np.nan)
    else:
        pairs = itertools.combinations(cells, 2)
        p_values = {(one, other): difference(cells[one], cells[other], metric).p for one, other in pairs}
        known = [pair for pair, p in p_values.items() if not np.isnan(p)]
        corrected = dict(zip(map(frozenset, known), holm([p_values[pair] for pair in known]), strict=True))
        p_holm = corrected.get(frozenset((first, second)), np.nan)
    return difference(cells[first], cells[second], metric), float(p_holm)


# The table ------------------------------------------------------------------------------------------------------------


def compare_table(runs: pd.DataFrame, plain: str) -> pd.DataFrame:
    """Return one row per dataset, budget, method and metric, unrounded, from small budgets to large.

    low, high: the interval of the mean; probability_best; then, each with the prefix best_ or plain_ for the best
    method and the plain table of the same budget: other (its name), difference, low, high, users_low, users_high (the
    interval over users alone), seeds (in common), effect_size (Cohen's d_z), detectable, p (of the interval), p_holm,
    wilcoxon_p, wilcoxon_p_holm, different (p_holm below 0.05); beats_plain in words. Holm's family: all pairs of
    methods with a result of a dataset, budget and metric. Rows of the budget `full` are compared with nothing.
    Raises DataError.
    """
    cells = summarise(runs, TABLE_METRICS)
    order = main_table(runs)[_CELL]
    cells = order.merge(cells, on=_CELL, how="left").drop(columns="role")
    found = {
        (dataset, budget, *key): row
        for (dataset, budget), group in runs.dropna(subset=TABLE_METRICS).groupby(["dataset", "budget"], sort=False)
        for key, row in _compare_budget(group, plain, TABLE_METRICS).items()
    }
    keys = list(cells[[*_CELL, "metric"]].itertuples(index=False, name=None))
    columns = ["low", "high", "best", "probability_best", "users"]
    columns += [f"{against}_{column}" for against in ("best", "plain") for column in _AGAINST]
    table = pd.concat([cells, pd.DataFrame([found.get(key, {}) for key in keys], columns=columns)], axis=1)
    words = [_beats_plain(row, table, plain) for row in table.to_dict("records")]
    return table.assign(best=table.best.eq(True), beats_plain=words)


def _compare_budget(runs: pd.DataFrame, plain: str, metrics: Sequence[str]) -> dict:
    """Return the rows of one dataset and budget, by method and metric."""
    seeds = {method: tuple(sorted(group.seed)) for method, group in runs.groupby("method", sort=False)}
    rival = runs.budget.iloc[0] != "full" and len(seeds) > 1
    rows: dict[tuple, dict] = {}
    for metric, values in _per_user(runs, metrics).items():
        means = runs.groupby("method", sort=False)[metric].mean().to_dict()
        best = max(means, key=lambda method: means[method])
        common = {
            (method, other): shared
            for method, other in (itertools.combinations(seeds, 2) if rival else [])
            if (shared := tuple(sorted({*seeds[method]} & {*seeds[other]})))
        }
        needed = [*seeds.items(), *((name, shared) for names, shared in common.items() for name in names)]
        place = {key: column for column, key in enumerate(dict.fromkeys(needed))}
        by_seed = {key: np.stack([values[key[0], seed] for seed in key[1]]) for key in place}  # (S, n)
        averaged = np.stack([by_seed[key].mean(axis=0) for key in place], axis=1)  # (n, columns)
        rng = _generator(runs.dataset.iloc[0])
        draws = bootstrap_means(averaged, rng)
        cells = [place[item] for item in seeds.items()]
        probability = _probability_best(draws[:, cells], by_seed, seeds, rng) if rival else [np.nan] * len(seeds)
        for (method, own), chance in zip(seeds.items(), probability, strict=True):
            low, high = interval(means[method], draws[:, place[method, own]], by_seed[method, own].mean(axis=1))
            rows[method, metric] = {
                "low": float(low),
                "high": float(high),
                "best": rival and means[method] == means[best],
                "probability_best": float(chance),
                "users": len(averaged),
                "best_other": best if rival and method != best else None,
                "plain_other": plain if rival and plain in seeds and method != plain else None,
            }

        gaps = {}
        for (method, other), shared in common.items():
            one, two = place[method, shared], place[other, shared]
            of_seeds = (by_seed[method, shared] - by_seed[other, shared]).mean(axis=1)
            gaps[method, other] = averaged[:, one] - averaged[:, two], draws[:, one] - draws[:, two], of_seeds
        p_values = _p_values(gaps)
        for method, against in itertools.product(seeds, ("best", "plain")):
            row = rows[method, metric]
            pair = (method, row[f"{against}_other"])
            if pair in gaps:
                measured = _measure(*gaps[pair])
            elif (pair := pair[::-1]) in gaps:
                measured = _measure(*(-values for values in gaps[pair]))
            else:
                continue
            row |= {f"{against}_{column}": getattr(measured, column) for column in _MEASURED}
            row |= {f"{against}_{column}": p for column, p in p_values[pair].items()}
            row[f"{against}_different"] = p_values[pair]["p_holm"] < 1 - LEVEL
    return rows


def _p_values(gaps: dict[tuple, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[tuple, dict[str, float]]:
    """Return by pair p, wilcoxon_p, and both corrected for the family of all pairs, from what `_measure` takes."""
    if not gaps:
        return {}
    found = pd.DataFrame({"p": _interval_p(gaps.values())})
    found["wilcoxon_p"] = [wilcoxon_p(by_user) for by_user, _, _ in gaps.values()]
    found = found.assign(**{f"{column}_holm": holm(found[column].tolist()) for column in _P_VALUES})
    return dict(zip(gaps, found.to_dict("records"), strict=True))


def _interval_p(gaps: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return for each of what `_measure` takes the p at which its interval would end at 0."""
    numbers = [
        (by_user.mean(), *users_interval(draws), seed_error(of_seeds), len(of_seeds))
        for by_user, draws, of_seeds in gaps
    ]
    return interval_p(*np.array(numbers).T)


def _generator(dataset: str) -> np.random.Generator:
    """Return what draws users: the same ones in every comparison of a dataset, wherever it is made."""
    return np.random.default_rng(seed_for(0, "compare", dataset))


def _measure(by_user: np.ndarray, draws: np.ndarray, seed_means: np.ndarray) -> Difference:
    """Compare by the differences of users (n,) (means over seeds), bootstrap draws (B,) and seeds (S,)."""
    mean, seeds = by_user.mean(), len(seed_means)
    user_error = by_user.std(ddof=1) / np.sqrt(len(by_user)) if len(by_user) > 1 else np.nan
    low, high = interval(mean, draws, seed_means)
    users_low, users_high = users_interval(draws)
    return Difference(
        difference=float(mean),
        low=float(low),
        high=float(high),
        users_low=float(users_low),
        users_high=float(users_high),
        seeds=seeds,
        effect_size=effect_size(by_user),
        detectable=float(detectable_difference(user_error, seed_error(seed_means), seeds)),
    )


def _probability_best(draws: np.ndarray, by_seed: dict, seeds: dict, rng: np.random.Generator) -> np.ndarray:
    every = sorted(set().union(*seeds.values()))
    seed_means = np.full((len(every), len(seeds)), np.nan)
    for column, (method, own) in enumerate(seeds.items()):
        seed_means[[every.index(seed) for seed in own], column] = by_seed[method, own].mean(axis=1)
    return probability_best(draws, seed_means, rng)


def _users_file(folder: object) -> Path:
    return Path(str(folder)) / "per_user.parquet"


def _per_user(runs: pd.DataFrame, metrics: Sequence[str]) -> dict[str, dict[tuple, np.ndarray]]:
    """Return by metric, then by method and seed, the values (n,) of the same users in the same order."""
    found: dict[str, dict[tuple, np.ndarray]] = {metric: {} for metric in metrics}
    users, first = np.empty(0), None
    for run in runs.itertuples():
        path = _users_file(run.folder)
        try:
            table = read_parquet(path, ["user", *metrics])
            columns = {name: table[name].to_numpy() for name in ["user", *metrics]}
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}); run `python -m c2f evaluate` again") from None
        if first is None:
            users, first = columns["user"], path
        if not np.array_equal(users, columns["user"]):
            raise DataError(f"{path} has other users than {first}; run `python -m c2f evaluate` again for both")
        for metric in metrics:
            if abs(columns[metric].mean(dtype=float) - runs.at[run.Index, metric]) > 1e-6:
                raise DataError(
                    f"{path} has another mean {metric} than the runs table; run `python -m c2f collect` again"
                )
            found[metric][run.method, run.seed] = columns[metric].astype(float)
    return found


def _beats_plain(row: dict, table: pd.DataFrame, plain: str) -> str:
    """Return yes, no or not told apart; or why there is no answer; nothing where none is asked for."""
    if row["budget"] == "full" or row["method"] == plain or not row["results"]:
        return ""
    if not pd.isna(row["plain_difference"]):
        if not row["plain_different"]:
            return "not told apart"
        return "yes" if row["plain_difference"] > 0 else "no"
    there = table[(table.dataset == row["dataset"]) & (table.budget == row["budget"]) & (table.method == plain)]
    if there.empty:
        return f"{plain} was not run"
    return "no seed in common" if there.results.iloc[0] else f"{plain}: {there.status.iloc[0]}"


def variance_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what model seeds and split seeds add to a metric's spread, where a method was run with several of both.

    Datasets of the same published files, recipe, k-core and sizes are splits of one another: a split is drawn from the
    dataset's name and its split seed. Other recipes are not other splits: they stand apart (c2f.protocols).
    """
    rows = []
    keys = ["unsplit_data", "protocol", "budget", "method"]
    for (_, *key), group in runs.groupby(keys, sort=False):
        for metric in TABLE_METRICS:
            found = group.dropna(subset=metric)
            by_split = [part[metric].to_numpy() for _, part in found.groupby("dataset")]
            model, split = variance_split(by_split)
            if not np.isnan(model):
                names = ", ".join(sorted(found.dataset.unique()))
                rows.append([names, *key, metric, len(by_split), len(found), np.sqrt(model), np.sqrt(split)])
    return pd.DataFrame(rows, columns=_VARIANCE)


# Its text -------------------------------------------------------------------------------------------------------------


def _sections(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str], dict[str, pd.DataFrame]]]:
    """Yield (dataset, budget) and the rows of each metric, methods from the best NDCG to the worst, holes last."""
    for key, rows in table[table.budget != "full"].groupby(["dataset", "budget"], sort=False):
        by_metric = {metric: part.set_index("method") for metric, part in rows.groupby("metric", sort=False)}
        ranked = by_metric["ndcg@20"].sort_values("mean", ascending=False, na_position="last", kind="stable").index
        yield key, {metric: part.loc[ranked] for metric, part in by_metric.items()}


@dataclass(frozen=True)
class _Marks:
    """How a text sets apart the best, what is not told apart from it, and what one seed says."""

    bold: Callable[[str], str]
    underlined: Callable[[str], str]
    one_seed: str


def _printed(by_metric: dict[str, pd.DataFrame], marks: _Marks, size: str) -> pd.DataFrame:
    """Return one budget's rows as text; size: what a plain table has the same of."""
    ndcg = by_metric["ndcg@20"]
    text = pd.DataFrame({"method": ndcg.index, "status": ndcg.status.to_numpy()})
    text.insert(1, "seeds", [f"{results} of {runs}" for results, runs in zip(ndcg.results, ndcg.runs, strict=True)])
    for metric, rows in by_metric.items():
        text[metric_in_words(metric)] = [_mean(row, marks) for row in rows.to_dict("records")]
    text["stored"] = ["-" if pd.isna(size) else size_in_words(size, "bytes") for size in ndcg.stored_bytes]
    text["NDCG@20 against the best"] = [_against_best(row, marks) for row in ndcg.to_dict("records")]
    text["p"] = ["" if pd.isna(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in ndcg.best_p_holm]
    text["detectable"] = ["" if pd.isna(size) else f"{size:.4f}" for size in ndcg.best_detectable]
    text["P(best)"] = ["-" if pd.isna(chance) else f"{chance:.2f}" for chance in ndcg.probability_best]
    for metric, rows in by_metric.items():
        text[f"beats a plain table of the same {size}? {metric_in_words(metric)}"] = [
            ", ".join(filter(None, [row["beats_plain"], _with_interval(row, "plain", marks)]))
            for row in rows.to_dict("records")
        ]
    return text


def _mean(row: dict, marks: _Marks) -> str:
    text = mean_and_sd(row["mean"], row["sd"])
    if row["best"]:
        return marks.bold(text)
    told = pd.isna(row["best_difference"]) or row["best_different"]
    return text if told else marks.underlined(text)


def _against_best(row: dict, marks: _Marks) -> str:
    if not pd.isna(row["best_other"]) and pd.isna(row["best_difference"]):
        return "no seed in common"
    return _with_interval(row, "best", marks)


def _with_interval(row: dict, against: str, marks: _Marks) -> str:
    if pd.isna(row[f"{against}_difference"]):
        return ""
    difference, low, high = (row[f"{against}_{end}"] for end in ("difference", "low", "high"))
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]{marks.one_seed * (row[f'{against}_seeds'] == 1)}"


def _in_words(by_metric: dict[str, pd.DataFrame]) -> str:
    """Return how many users a section has."""
    ndcg = by_metric["ndcg@20"]
    return f"{ndcg.users.max():,.0f} users." if ndcg.results.any() else "No run has a result."


def how_made(table: pd.DataFrame) -> str:
    """Return METHOD with the draws, and how many pairs Holm's correction counts on each dataset."""
    counts = []
    ndcg = table[(table.metric == "ndcg@20") & (table.budget != "full") & (table.results > 0)]
    for dataset, rows in ndcg.groupby("dataset", sort=False):
        pairs = sorted({math.comb(methods, 2) for methods in rows.groupby("budget").size()})
        counts.append(f"{' to '.join(map(str, dict.fromkeys([pairs[0], pairs[-1]])))} on {dataset}")
    return METHOD.format(draws=DRAWS, families=", ".join(counts))


def titled(table: pd.DataFrame, bold: str) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Yield (dataset and protocol, budget, what came out, rows as text, underlined with HTML); bold: with {} for it."""
    marks = _Marks(bold.format, "<u>{}</u>".format, " †")
    for (dataset, budget), by_metric in _sections(table):
        first = by_metric["ndcg@20"].iloc[0]
        text = _printed(by_metric, marks, first.budget_kind)
        heading = f"{dataset} ({'made up, ' if first.made_up else ''}protocol {first.protocol})"
        yield heading, budget, _in_words(by_metric), text


def _to_markdown(table: pd.DataFrame, variance: pd.DataFrame, runs: pd.DataFrame, plain: str, made_by: str) -> str:
    lines = [f"Made by `{made_by}`.", ""] if made_by else []
    lines += ["Nothing is to be concluded from made-up data.", ""] if table.made_up.any() else []
    lines += [how_made(table), ""]
    heading = ""
    for dataset, budget, words, text in titled(table, "**{}**"):
        lines += [f"## {dataset}", ""] if dataset != heading else []
        lines += [f"### {budget}", "", words, "", *markdown_rows(text), ""]
        heading = dataset
    if len(variance):
        rounded = variance.round({"sd_model_seed": 5, "sd_split_seed": 5})
        lines += ["## Spread by model seed and split seed", "", *markdown_rows(rounded), ""]
    lines += ["## Columns", ""]
    lines += [f"* {name}: {meaning.format(plain=plain)}" for name, meaning in LEGEND.items()]
    lines += ["", "## Data", "", f"Trained at {commits_in_words(runs.commit)}.", ""]
    return "\n".join([*lines, *markdown_rows(data_checksums(runs)), ""])


def _to_latex(table: pd.DataFrame, plain: str) -> str:
    """Return the table in LaTeX, for a document that loads booktabs and longtable."""
    marks = _Marks(r"\textbf{{{}}}".format, r"\underline{{{}}}".format, r"$^\dagger$")
    dropped = {"stored": "stored", "against the best": "NDCG@20 against the best", "detectable": "detectable"}
    meanings = (f"{name}: {text.format(plain=plain)}." for name, text in LEGEND.items() if name not in dropped)
    caption = in_latex(" ".join(meanings)).replace("†", r"$^\dagger$")
    lines: list[str] = []
    for (dataset, budget), by_metric in _sections(table):
        text = _printed(by_metric, marks, "size").drop(columns=list(dropped.values()))
        width = len(text.columns)
        if not lines:
            lines += [rf"\begin{{longtable}}{{lrl{'r' * (width - 3)}}}", rf"\caption{{{caption}}}\\"]
            lines += [r"\toprule"]
            lines += [" & ".join(map(in_latex, text.columns)) + r" \\", r"\endhead"]
        title = f"{dataset}{' (made up)' if by_metric['ndcg@20'].made_up.iloc[0] else ''}, {budget}"
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{{in_latex(title)}}} \\", r"\midrule"]
        lines += [" & ".join(map(in_latex, map(str, row))) + r" \\" for row in text.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{longtable}", ""]) if lines else ""
