"""What figures show and columns mean: one text for the pages, the tables, the report and Snakemake's own report."""

import re
from collections.abc import Iterable

FIGURES = {
    "comparison": (
        "Recall and NDCG against the budget, for each dataset. Dashed lines are methods without a budget, with their "
        "size. Crosses in the strip below a dataset mark the budgets at which a method has no result; why stands in "
        "the csv. Open markers are runs that their time limit stopped."
    ),
    "ablation": (
        "Recall and NDCG before and after the fine stage, for each dataset. Crosses in the strip below a dataset mark "
        "points without a result; why stands in the csv. Open markers are runs that their time limit stopped."
    ),
    "memory_ledger": (
        "Where the memory goes at one budget, the same for all, for each dataset: what a model stores by kind, then "
        "(hatched) what it needs to serve beside that, the smaller of the training graph and a cached table. The "
        "number at a bar's end is their sum. A black tick marks what the method's paper counts, at 4 bytes a number. "
        "Below the line stand methods without a budget. Bars with a break are longer than the axis. A cross: no "
        "result, why stands in the csv. Open markers are runs that their time limit stopped."
    ),
    "pareto": (
        "NDCG (or Recall) against size, for each dataset, by three ways to count: what the method's paper counts at 4 "
        "bytes a number, all that is stored, and all that is needed to serve. A point is a method at a budget. The "
        "step line is the best that any method reaches within a size; faint points lie below it. Crosses in the strip "
        "below a dataset mark the budgets at which a method has no result, in the column that such a budget limits; "
        "why stands in the csv. Open markers are runs that their time limit stopped."
    ),
    "rank_changes": (
        "How the order of methods at one size depends on what is counted: each method's best run among those whose "
        "size is at most the given one, ranked by how much of it the paper counts (4 bytes a number), all that is "
        "stored, and all that is needed to serve. The number beside a name is the mean of the metric. In the grey "
        "strip stand methods of which no run is so small; a cross: none has a result, why stands in the csv. Open "
        "markers are runs that their time limit stopped."
    ),
    "inference": (
        "NDCG (or Recall) against the cost of answering queries, for each dataset: the median time for a user, with a "
        "thin line to the 95th percentile, and the highest memory of the process that serves. A point is a method at a "
        "budget. Open markers are runs that their time limit stopped."
    ),
    "sensitivity": (
        "Recall or NDCG against the values of one parameter, all else alike, at one budget, for each dataset. A dotted "
        "line marks the default. Bars are of one mean each: how far a value is from the default, in pairs, stands in "
        "the csv. Crosses in the strip below a dataset mark values without a result; why stands in the csv. Open "
        "markers are runs that their time limit stopped."
    ),
    "components": (
        "What is lost or gained where one part of a method is changed, at one budget, for each dataset: the difference "
        "of the means in percent of the whole method's, which is the line at 0; the numbers at the right are means. "
        "Intervals stand for one comparison each; blue: told apart, p is below 0.05 when corrected (Holm) for the "
        "number of variants. A cross: no result, why stands in the csv. Open markers are runs that their time limit "
        "stopped."
    ),
    "training_curves": (
        "A metric on the validation pairs, and the training loss, as training goes on, at one budget, for each "
        "dataset. Stages before a run's last are dashed; a bar marks where a later stage begins. A run keeps the best "
        "weights of its last stage, not the last ones."
    ),
    "published_vs_ours": (
        "Our means beside published numbers, as the difference in percent of the published number. Only numbers of "
        "the same data, recipe, metric, method and size are compared; what still differs in the data stands in the "
        "csv, with which steps and how long ours were trained in their records. Every other published number is named "
        "below with the reason, and all of them stand in the csv. Open markers are runs that their time limit stopped."
    ),
}
"""For each function of c2f/figures.py, c2f/memory_figures.py and c2f/evidence_figures.py that `draw:` may name how its
figures are read."""

NEEDED_KEYS: dict[str, list[str]] = {
    "comparison": ["metrics"],
    "ablation": ["metrics", "points"],
    "memory_ledger": [],
    "pareto": ["metric"],
    "rank_changes": ["metric"],
    "inference": ["metric"],
    "sensitivity": ["metrics", "points"],
    "components": ["metrics", "points", "base"],
    "training_curves": ["metric"],
    "published_vs_ours": ["literature"],
}
"""The keys that an entry must have for each of them. What has no `points` may have `methods`; any may have `seeds`."""

OTHER_KEYS = {
    "ablation": ["x"],
    "sensitivity": ["x", "default"],
    "training_curves": ["x"],
    "published_vs_ours": ["tolerance"],
}
"""The keys that an entry may have beside those."""

POINT_KEYS = {
    "ablation": (["x", "before", "after"], []),
    "sensitivity": (["x", "method"], ["line"]),
    "components": (["x", "method"], []),
}
"""The keys that a point must have, and those that it may have beside them."""

SIZE_KEYS = {
    "memory_ledger": {"budget": "numbers"},
    "rank_changes": {"size": "bytes"},
    "sensitivity": {"budget": "numbers"},
    "components": {"budget": "numbers"},
    "training_curves": {"budget": "numbers"},
}
"""The key that says at which size it is drawn, and the kind of the grid's budgets whose middle one is its default."""

AT_ONE_BUDGET = {"sensitivity", "components", "training_curves"}
"""Those of them that need runs at their budget alone (and of methods without a budget)."""

WITHOUT_BARS = {"memory_ledger", "rank_changes"}
"""Those of them that draw no standard deviation over seeds."""

WITH_INTERVALS = {"sensitivity": "seeds", "components": "users and seeds"}
"""Those of them that draw 95 % intervals instead, and over what."""

LINE_PER_SEED = {"training_curves"}
"""Those of them that draw every seed's run."""

METRICS = {"recall": "Recall", "recall_capped": "capped Recall", "ndcg": "NDCG"}
"""What is evaluated at each k, in words: recall of all held-out items, of the min(held-out, k) that fit, and NDCG."""

CURVE_METRICS = ["ndcg@5", "ndcg@20", "recall@20"]
"""The metrics of the validation pairs that curve.csv has."""

TABLE_METRICS = ["recall@20", "ndcg@20"]
"""The metrics of the tables and the report."""

TUNING = (
    "Tuning at each budget: the metric on the validation pairs of every trial (points, the first with the method's own "
    "settings), and the best so far (lines). A cross at the bottom: a trial without a value; why stands in the csv."
)
"""How the figure is read that the freeze step draws of its studies."""

COLUMNS = {
    "runs": "how many seeds have a result, and of how many",
    "status": "ok, or what happened to how many runs; the reasons are listed below",
    "numbers": "values that the method's paper counts",
    "stored": "bytes of every array of the artifact: all that the model is rebuilt from",
    "serving": "stored, and the smaller of the training graph and a cached table where scores need one of them",
    "recall, ndcg": "on the test pairs, all items ranked: mean over seeds ± standard deviation; the best of each "
    "dataset and budget is bold",
    "seconds": "training, mean over seeds",
    "with starts": "seconds, and those of the runs that it starts from",
    "peak memory": "of the training process, the largest over seeds",
}
"""The columns of the main table as it is printed."""


def table_caption() -> str:
    """Return what the columns of main.csv mean, in one paragraph."""
    legend = "; ".join(f"{name}: {meaning}" for name, meaning in COLUMNS.items())
    return f"Every dataset, budget and method, unrounded, sizes in bytes. {legend[0].upper()}{legend[1:]}."


def figure_caption(draw: str, data: Iterable[tuple[str, str, bool]], seeds: Iterable[int]) -> str:
    """Return how a figure is read and what is behind it. data: each set's name, protocol, and whether it is made up."""
    return f"{FIGURES[draw]} {_sentence(data_in_words(data))} {_sentence(seeds_in_words(seeds, draw))}"


def data_in_words(data: Iterable[tuple[str, str, bool]]) -> str:
    """Return `data: blocks (made up, protocol given), ...`, and what may be concluded from made-up data."""
    data = list(data)
    named = [f"{name} ({'made up, ' if made_up else ''}protocol {protocol})" for name, protocol, made_up in data]
    warning = "; nothing is to be concluded from made-up data" if any(made_up for *_, made_up in data) else ""
    return f"data: {', '.join(named)}{warning}"


def commits_in_words(commits: Iterable[str]) -> str:
    """Return `commit: abc1234, def5678+` and, where one has a `+`, what it means."""
    named = sorted(set(commits))
    changed = " (+: with changes that were not committed)" if any(name.endswith("+") for name in named) else ""
    return f"commit: {', '.join(named)}{changed}"


def seeds_in_words(seeds: Iterable[int], draw: str) -> str:
    """Return the seeds and what is drawn over them; one seed says nothing of the noise between seeds."""
    seeds = sorted(seeds)
    if len(seeds) == 1:
        return f"one seed ({seeds[0]}): how far another would lie from it is not known"
    if draw in LINE_PER_SEED:
        return f"a line for each of {len(seeds)} seeds ({', '.join(map(str, seeds))})"
    spread = "" if draw in WITHOUT_BARS else ", bars: one standard deviation"
    spread = f", bars: 95 % intervals over {WITH_INTERVALS[draw]}" if draw in WITH_INTERVALS else spread
    return f"mean over {len(seeds)} seeds ({', '.join(map(str, seeds))}){spread}"


def seeds_of(caption: str) -> list[int]:
    """Return the seeds that a figure's caption names, as `seeds_in_words` writes them; none where it names none."""
    found = re.search(r"\bseeds? \(([\d, ]+)\)", caption)
    return [int(seed) for seed in found[1].split(", ")] if found else []


def metric_in_words(metric: str) -> str:
    """Return `Recall@20` for recall@20."""
    name, _, k = metric.partition("@")
    return f"{METRICS.get(name, name)}@{k}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
