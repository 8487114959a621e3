"""What the split recipe does to a comparison: levels, ranks and changed places of methods under several protocols."""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from c2f.captions import TABLE_METRICS, commits_in_words, data_in_words, metric_in_words
from c2f.compare import difference, read_compared
from c2f.errors import DataError
from c2f.record import write_atomically
from c2f.report import data_checksums, distinct, main_table, markdown_rows, mean_and_sd, read_table, summarise

METRICS = [TABLE_METRICS[0], "recall_capped@20", *TABLE_METRICS[1:]]
"""The metrics of the table: recall by both definitions, NDCG."""

_SIDES = ["first", "first_metric", "second", "second_metric"]  # two orders of the methods: dataset and metric of each
_TABLE = ["data", "dataset", "protocol", "made_up", "budget", "method", "metric"]
_TABLE += ["mean", "sd", "results", "runs", "status", "rank", "kept"]
_ORDERS = ["data", "budget", *_SIDES, "methods", "pairs", "tau", "changed", "apart", "changed_pairs", "apart_pairs"]

WARNING = (
    "The same methods on the same published pairs, split by several protocols. Levels under different protocols are "
    "not comparable: other pairs are held out, and other numbers of them. What may be set side by side is the order of "
    "the methods, and how much of the full table each keeps."
)
"""What stands above the table."""

LEGEND = {
    "given, holdout, legcf": "the protocol: the mean over seeds ± standard deviation under it, of `recall@20` (hits by "
    "all held-out items of a user), `recall_capped@20` (hits by at most 20 of them) or `ndcg@20`",
    "rank": "among the methods of the same budget; 1 is the best. Methods without a budget have none",
    "kept": "the mean in percent of that of `{full}` without a budget under the same protocol",
    "first, second": "two orders of the methods of one budget, by protocol and metric",
    "tau": "Kendall's tau-b of the two orders: 1 where they are the same, -1 where one is the other reversed",
    "change places": "pairs of methods in opposite orders, of all pairs with a result on both sides",
    "told apart": "those of them whose order is more than noise on both sides: the 95 % intervals of the difference, "
    "made as in the compare table and for one pair at a time, leave out 0",
    "which": "ahead by the first / ahead by the second; bold: told apart",
}
"""What the columns mean."""


def write_protocol_effect(runs: Sequence[Path], output: Path, full: str, made_by: str = "") -> None:
    """Write the table as `<output>.csv` (unrounded) and `.md`, and the orders of methods as `<output>-orders.csv`.

    full: the method whose runs without a budget the others are held against. Raises DataError where a file is missing
    or damaged, or no data was run under more than one protocol.
    """
    compared = read_compared(runs)
    table = protocol_table(compared, full)
    if table.empty:
        raise DataError(
            f"{', '.join(map(str, runs))}: no data was run under more than one protocol; add an entry such as "
            "`{like: ml-1m, recipe: holdout}` under `datasets:` and its name to `grid: datasets`"
        )
    orders = order_table(compared, table)
    texts = {
        ".csv": table.to_csv(index=False),
        "-orders.csv": orders.to_csv(index=False),
        ".md": _to_markdown(table, orders, compared[compared.dataset.isin(table.dataset)], full, made_by),
    }
    for ending, text in texts.items():
        with write_atomically(Path(f"{output}{ending}")) as temporary:
            temporary.write_text(text)


def read_protocol_effect(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read both csv files of `write_protocol_effect`, `path` being the first. Raises DataError."""
    orders = read_table(pd.read_csv, path.with_name(f"{path.stem}-orders.csv"), _ORDERS, "protocol_effect")
    table = read_table(pd.read_csv, path, _TABLE, "protocol_effect")
    return table, orders.fillna({"changed_pairs": "", "apart_pairs": ""})


# Numbers --------------------------------------------------------------------------------------------------------------


def protocol_table(runs: pd.DataFrame, full: str) -> pd.DataFrame:
    """Return one row per dataset, budget, method and metric, unrounded, of what was run under several protocols.

    data: the name of the first of the datasets that split the same pairs; rank: by the mean, among the methods of the
    dataset and budget, NaN without a budget; kept: share of the mean of `full` without a budget on the same dataset.
    Datasets split the same pairs where their published files, k-core and sizes are the same.
    """
    tables = [pd.DataFrame(columns=_TABLE)]
    pairs = runs.unsplit_data.map(lambda text: json.dumps({**json.loads(text), "recipe": None}))
    for _, rows in runs.groupby(pairs, sort=False):
        if rows.protocol.nunique() == 1:
            continue
        order = main_table(rows)[["dataset", "budget", "method"]]
        cells = order.merge(summarise(rows, METRICS), how="left").assign(data=rows.dataset.iloc[0])
        whole = cells[(cells.method == full) & (cells.budget == "full")].set_index(["dataset", "metric"])["mean"]
        keys = pd.MultiIndex.from_frame(cells[["dataset", "metric"]])
        sized = cells[cells.budget != "full"]
        cells["rank"] = sized.groupby(["dataset", "budget", "metric"])["mean"].rank(ascending=False, method="min")
        cells["kept"] = cells["mean"] / whole.reindex(keys).to_numpy()
        tables.append(cells[_TABLE])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def order_table(runs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per two orders of the methods of one data and budget: two protocols, or the two kinds of recall.

    methods: with a result on both sides; pairs: of them; tau: Kendall's tau-b; changed: how many pairs change places,
    apart: of how many of these both orders are more than noise; changed_pairs, apart_pairs: `a/b; ...`, which are they,
    a being ahead on the first side.
    """

    @functools.cache
    def ahead(dataset: str, budget: str, metric: str, one: str, two: str) -> bool:
        """Return whether the difference of two methods is more than noise."""
        cell = runs[(runs.dataset == dataset) & (runs.budget == budget)]
        return difference(cell[cell.method == one], cell[cell.method == two], metric).different

    rows = []
    for (data, budget), cells in table[table.budget != "full"].groupby(["data", "budget"], sort=False):
        means = cells.pivot(index="method", columns=["dataset", "metric"], values="mean").loc[cells.method.unique()]
        protocols = dict(distinct(cells, ["dataset", "protocol"]))
        sides = [
            ((one, metric), (two, metric))
            for metric in METRICS
            for one, two in itertools.combinations(protocols, 2)
            if protocols[one] != protocols[two]
        ]
        sides += [((dataset, METRICS[0]), (dataset, METRICS[1])) for dataset in protocols]
        for first, second in sides:
            both = means[[first, second]].dropna()
            changed = []
            for one, two in itertools.combinations(both.index, 2):
                gaps = both.loc[one] - both.loc[two]
                if gaps[first] * gaps[second] < 0:
                    changed.append((one, two) if gaps[first] > 0 else (two, one))
            apart = [
                pair
                for pair in changed
                if all(ahead(dataset, budget, metric, *sorted(pair)) for dataset, metric in (first, second))
            ]
            tau = kendalltau(both[first], both[second]).statistic if len(both) > 1 else float("nan")
            counts = [len(both), len(both) * (len(both) - 1) // 2, tau, len(changed), len(apart)]
            names = ["; ".join("/".join(pair) for pair in pairs) for pairs in (changed, apart)]
            rows.append([data, budget, *first, *second, *counts, *names])
    return pd.DataFrame(rows, columns=_ORDERS)


# Words and text -------------------------------------------------------------------------------------------------------


def sentences(table: pd.DataFrame, orders: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield (data and budget, how far levels and kept shares differ and how often methods change places there)."""
    for (data, budget), here in orders.groupby(["data", "budget"], sort=False):
        cells = table[(table.data == data) & (table.budget == budget)].dropna(subset="mean")
        levels, kept, turned = [], [], []
        for metric, orders_by in here[here.first_metric == here.second_metric].groupby("first_metric", sort=False):
            if metric == METRICS[1] and _one_recall(cells):
                continue
            name = metric_in_words(str(metric))
            rows = cells[cells.metric == metric]
            several = rows.groupby("method").filter(lambda cell: len(cell) > 1).groupby("method")
            factors = (several["mean"].max() / several["mean"].min()).dropna()
            points = (several.kept.max() - several.kept.min()).dropna() * 100
            levels += [f"{factors.min():.2f} to {factors.max():.2f} times the {name}"] * bool(len(factors))
            kept += [f"{points.min():.1f} to {points.max():.1f} in {name}"] * bool(len(points))
            turned.append(f"{_turned(orders_by)} by {name}")
        words = [f"A method has, under its highest protocol, {_listed(levels)} of its lowest."] if levels else []
        if kept:
            words.append(f"What it keeps of the full table differs by percentage points: {_listed(kept)}.")
        words.append(f"Two methods change places between two protocols in {_listed(turned)}.")
        if _one_recall(cells):
            words.append("Both kinds of recall are the same here: no user with a hit has more than 20 held-out items.")
        else:
            between = _turned(here[here.first_metric != here.second_metric])
            words.append(f"Between the two kinds of recall under one protocol they do so in {between}.")
        yield f"{data}, {budget}", " ".join(words)


def _one_recall(cells: pd.DataFrame) -> bool:
    """Return whether both kinds of recall have the same means; the second is then not printed."""
    recall, capped = (cells["mean"][cells.metric == metric].to_numpy(float) for metric in METRICS[:2])
    return np.array_equal(recall, capped, equal_nan=True)


def _listed(texts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _turned(orders: pd.DataFrame) -> str:
    """Return `3 of 45 cases (1 told apart from noise)`; a case is two methods and two orders."""
    apart = f" ({orders.apart.sum()} told apart from noise)" if orders.changed.any() else ""
    return f"{orders.changed.sum()} of {orders.pairs.sum()} cases{apart}"


def titled(table: pd.DataFrame, orders: pd.DataFrame, bold: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield (data and its protocols, title, rows as text): each budget's metrics, then its orders of the methods.

    bold: how a text is set apart, with {} for it. A protocol is named after its recipe, or after the dataset where
    several have that recipe. Methods stand from the best mean rank to the worst, those without a budget below.
    """
    for data, cells in table.groupby("data", sort=False):
        protocols = dict(distinct(cells, ["dataset", "protocol"]))
        recipes = list(protocols.values())
        names = {name: recipe if recipes.count(recipe) == 1 else name for name, recipe in protocols.items()}
        heading = f"{data} under {_listed([f'{names[dataset]} ({dataset})' for dataset in protocols])}"
        if _one_recall(cells):
            cells = cells[cells.metric != METRICS[1]]
        sized = [budget for budget in cells.budget.unique() if budget != "full"]
        for budget in sized or ["full"]:
            shown = cells[cells.budget.isin([budget, "full"])]
            shown = shown.assign(
                method=shown.method + ((shown.budget == "full") & bool(sized)).map({True: " (full)", False: ""})
            )
            for metric, rows in shown.groupby("metric", sort=False):
                yield heading, f"{budget}, {metric_in_words(str(metric))}", _side_by_side(rows, names)
            here = orders[(orders.data == data) & (orders.budget == budget) & orders.second_metric.isin(cells.metric)]
            if len(here):
                yield heading, f"{budget}, order of the methods", _changes(here, names, bold)


def _side_by_side(cells: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Return one row per method: mean, rank and kept share under every protocol."""
    methods = cells.groupby("method", sort=False)["rank"].mean().sort_values(kind="stable").index
    text = pd.DataFrame({"method": methods})
    for dataset, name in names.items():
        rows = cells[cells.dataset == dataset].set_index("method").reindex(methods)
        found = rows.to_dict("records")
        text[name] = [mean_and_sd(row["mean"], row["sd"]) if row["results"] else row["status"] for row in found]
        text[f"{name}: rank"] = ["-" if pd.isna(rank) else f"{rank:.0f}" for rank in rows["rank"]]
        text[f"{name}: kept"] = ["-" if pd.isna(kept) else f"{kept:.1%}" for kept in rows.kept]
    return text


def _changes(orders: pd.DataFrame, names: dict[str, str], bold: str) -> pd.DataFrame:
    """Return one row per two orders of the methods: tau, and who changes places."""
    rows = []
    for row in orders.itertuples():
        apart = set(row.apart_pairs.split("; "))
        pairs = sorted(filter(None, row.changed_pairs.split("; ")), key=lambda pair: pair not in apart)
        rows.append(
            {
                "first": f"{names[row.first]}, {metric_in_words(row.first_metric)}",
                "second": f"{names[row.second]}, {metric_in_words(row.second_metric)}",
                "tau": "-" if pd.isna(row.tau) else f"{row.tau:.2f}",
                "change places": f"{row.changed} of {row.pairs}",
                "told apart": str(row.apart),
                "which": ", ".join(bold.format(pair) if pair in apart else pair for pair in pairs),
            }
        )
    return pd.DataFrame(rows)


def _to_markdown(table: pd.DataFrame, orders: pd.DataFrame, runs: pd.DataFrame, full: str, made_by: str) -> str:
    lines = [f"Made by `{made_by}`.", ""] if made_by else []
    lines += [WARNING, "", *(f"* **{label}.** {words}" for label, words in sentences(table, orders)), ""]
    heading = ""
    for data, title, text in titled(table, orders, "**{}**"):
        lines += [f"## {data}", ""] * (data != heading) + [f"### {title}", "", *markdown_rows(text), ""]
        heading = data
    lines += ["## Columns", "", *(f"* {name}: {meaning.format(full=full)}" for name, meaning in LEGEND.items()), ""]
    data = data_in_words(distinct(runs, ["dataset", "protocol", "made_up"])).removeprefix("data: ")
    seeds = ", ".join(map(str, sorted(runs.seed.unique())))
    lines += ["## Data", "", f"{data}. Seeds: {seeds}. Trained at {commits_in_words(runs.commit)}.", ""]
    return "\n".join([*lines, *markdown_rows(data_checksums(runs)), ""])
