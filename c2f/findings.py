"""What a runs table says, in sentences made from its numbers: who is best, by how much, and what is not known."""

from collections.abc import Iterator

import pandas as pd

from c2f.captions import TABLE_METRICS, metric_in_words
from c2f.compare import cells_of
from c2f.report import size_in_words, status_in_words, summarise

_JUDGED = "ndcg@20"
_FEW = 5  # names that a sentence holds
_CELL = ["dataset", "budget", "method", "metric"]
_TESTED = ["best_difference", "best_low", "best_high", "best_seeds", "best_p_holm", "best_different", "beats_plain"]


def findings(
    runs: pd.DataFrame, tested: pd.DataFrame | None = None, full: str | None = None, plain: str | None = None
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield (dataset, its findings as (what it is about, sentences)); last, under "", what holds for all.

    runs: as c2f.report.read_runs gives them; those that only figures need are left out. tested: their compare table
    (None: nothing is said of which differences are noise). full, plain: the methods that others are held against,
    without a budget and at the same budget of bytes.
    """
    compared = runs[runs.role == "compared"]
    tests = pd.DataFrame(columns=[*_CELL, *_TESTED]) if tested is None else tested[[*_CELL, *_TESTED]]
    cells = cells_of(compared, TABLE_METRICS).merge(tests, how="left", on=_CELL)
    for dataset, rows in cells.groupby("dataset", sort=False):
        yield str(dataset), list(_of_dataset(rows, full, plain))
    yield "", [("What failed", _failed(runs)), ("What is not known", _not_known(compared, tested is not None))]


def _of_dataset(cells: pd.DataFrame, full: str | None, plain: str | None) -> Iterator[tuple[str, str]]:
    judged = cells[cells.metric == _JUDGED]
    whole = judged[(judged.method == full) & (judged.budget_kind == "full")].dropna(subset="mean")
    reference = float(whole["mean"].iloc[0]) if len(whole) else None
    if full:
        yield "Full table", _full_table(whole, full)
    for budget, rows in _in_order(judged):
        found = rows.dropna(subset="mean").sort_values("mean", ascending=False, kind="stable")
        if found.empty:
            yield budget, f"None of {len(rows)} methods has a result."
            continue
        others = cells[(cells.metric != _JUDGED) & (cells.budget == budget)].dropna(subset="mean")
        sentences = [_best(found, reference if budget != "full" else None, full), _by_others(found, others)]
        if budget != "full":
            sentences.append(_runner_up(found))
        if rows.budget_kind.iloc[0] == "bytes" and plain:
            sentences.append(_beats_plain(found, plain))
        if rows.budget_kind.iloc[0] == "numbers":
            sizes = (size_in_words(size, "bytes") for size in (found.stored_bytes.min(), found.stored_bytes.max()))
            sentences.append(f"Stored bytes, which such a budget does not limit, go from {' to '.join(sizes)}.")
        yield budget, " ".join(filter(None, sentences))


def _in_order(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the cells of each budget, from small to large, `full` last."""
    kinds = cells.budget_kind.map({"numbers": 0, "bytes": 1, "full": 2})
    ordered = cells.assign(kind=kinds).sort_values(["kind", "budget_amount"], kind="stable")
    for budget, rows in ordered.groupby("budget", sort=False):
        yield str(budget), rows


def _full_table(found: pd.DataFrame, name: str) -> str:
    if found.empty:
        return f"{name} without a budget has no result here: how far the others are from it is not known."
    row = found.iloc[0]
    return (
        f"{name} without a budget has {metric_in_words(_JUDGED)} {_value(row)} and stores "
        f"{size_in_words(row.stored_bytes, 'bytes')}."
    )


def _best(found: pd.DataFrame, reference: float | None, full: str | None) -> str:
    top = found.iloc[0]
    text = f"{metric_in_words(_JUDGED)} {_value(top)} in {size_in_words(top.stored_bytes, 'bytes')}"
    text += f", {top['mean'] / reference:.1%} of the full table of {full}" if reference else ""
    if len(found) == 1:
        return f"{top.method} alone has a result: {text}."
    return f"{top.method} is the best of {len(found)} methods with a result: {text}."


def _by_others(found: pd.DataFrame, others: pd.DataFrame) -> str:
    """Return who is best by the metrics beside the one that judges, where there is a choice."""
    texts = []
    for metric, rows in others.groupby("metric", sort=False) if len(found) > 1 else []:
        top = rows.sort_values("mean", ascending=False, kind="stable").iloc[0]
        who = "too" if top.method == found.method.iloc[0] else f"it is {top.method}"
        texts.append(f"By {metric_in_words(str(metric))} {who}: {_value(top)}.")
    return " ".join(texts)


def _runner_up(found: pd.DataFrame) -> str:
    if len(found) == 1:
        return ""
    second = found.iloc[1]
    text = f"The next is {second.method}, {_value(second)}"
    if pd.isna(second.best_difference):
        return f"{text}."
    seeds = int(second.best_seeds)
    over = f"and {seeds} seeds" if seeds > 1 else "alone, as they have one seed in common"
    if second.best_different:
        verdict = "so it is worse"
    elif second.best_low > 0 or second.best_high < 0:
        verdict = (
            f"which leaves out 0; but p, corrected for the luck of being the best of {len(found)}, is "
            f"{second.best_p_holm:.2g}, so the evidence does not separate the two"
        )
    else:
        verdict = "which holds 0, so the evidence does not separate the two"
    return (
        f"{text}: a difference of {second.best_difference:+.4f}, 95 % interval {second.best_low:+.4f} to "
        f"{second.best_high:+.4f} over users {over}, {verdict}."
    )


def _beats_plain(found: pd.DataFrame, plain: str) -> str:
    own, others = found[found.method == plain], found[found.method != plain]
    if own.empty:
        return f"A plain table of the same bytes ({plain}) has no result."
    text = f"A plain table of the same bytes ({plain}) has {_value(own.iloc[0])}"
    if others.empty:
        return f"{text}."
    words = {"yes": "beaten by", "not told apart": "not told apart from", "no": "better than"}
    said = {word: others[others.beats_plain == answer] for answer, word in words.items()}
    parts = [f"{word} {_named(cells)}" for word, cells in said.items() if len(cells)]
    if not parts:
        return f"{text}; of {len(others)} others {_named(others[others['mean'] > own['mean'].iloc[0]])} lie above it."
    return f"{text}. Of {len(others)} others it is {', '.join(parts)}."


def _named(cells: pd.DataFrame) -> str:
    """Return how many cells there are, and the first few methods."""
    if cells.empty:
        return "none"
    more = f" and {len(cells) - _FEW} more" if len(cells) > _FEW else ""
    return f"{len(cells)} ({', '.join(cells.method.iloc[:_FEW])}{more})"


def _failed(runs: pd.DataFrame) -> str:
    unwell = runs[runs.status != "ok"]
    if unwell.empty:
        return f"Nothing: all {len(runs)} runs ended well."
    methods = ", ".join(unwell.method.unique()[:_FEW])
    more = unwell.method.nunique() - _FEW
    return (
        f"{len(unwell)} of {len(runs)} runs did not end well ({status_in_words(runs.status)}); "
        f"of {methods}{f' and {more} more methods' if more > 0 else ''}. Why, stands under Holes."
    )


def _not_known(compared: pd.DataFrame, tested: bool) -> str:
    texts = []
    if not tested:
        texts.append("There was no compare table: which differences are more than noise is not known.")
    cells = summarise(compared, [_JUDGED])
    cells = cells[cells.results > 0]
    single = int((cells.results == 1).sum())
    if single and single == len(cells):
        texts.append(
            "Every number is from one seed, so no mean has an interval: whether another seed would change the order is "
            "not known, and differences are those of these trained models alone."
        )
    elif single:
        texts.append(f"{single} of {len(cells)} numbers are from one seed and have no interval.")
    if stopped := int(compared.status.eq("timeout").sum()):
        texts.append(
            f"{stopped} runs were stopped by their time limit; how much better they would become is not known."
        )
    models = compared[compared.stored_bytes.notna()]
    if unserved := int((models.served.fillna("not measured") != "ok").sum()):
        texts.append(f"For {unserved} of {len(models)} models it is not known what serving them costs.")
    if compared.made_up.any():
        names = ", ".join(compared.dataset[compared.made_up].unique())
        texts.append(f"Nothing is to be concluded from made-up data ({names}).")
    texts.append("Other settings of a method than those that were run may be better.")
    if single != len(cells):
        texts.append(
            "Intervals (95 %; of means over seeds, of differences over users and seeds) hold for these data and this "
            "split; other data may order methods otherwise."
        )
    return " ".join(texts)


def _value(row: pd.Series) -> str:
    """Return `0.1234`, or `0.1234 (0.1220 to 0.1248)` where seeds differ."""
    if pd.isna(row.low) or row.high - row.low < 1e-9:
        return f"{row['mean']:.4f}"
    return f"{row['mean']:.4f} ({row.low:.4f} to {row.high:.4f})"
