"""What a mean hides: which items are shown, for whom and for what the lists are good, and which codes do anything.

All of it comes from the lists that the metrics are made of and from the artifact's arrays: nothing is ranked again.
"""

from dataclasses import dataclass

import numpy as np

NUM_GROUPS = 10
PARALLEL = 0.999
"""The cosine above which two codes that are weighted count as one."""


@dataclass(frozen=True)
class Codes:
    """How n rows are made of the rows of a codebook (c, w).

    codes: (n, t), which of its rows, no two alike; weights: (n, t), how much of each (None: each as it is).
    """

    codebook: np.ndarray
    codes: np.ndarray
    weights: np.ndarray | None = None


def of_run(lists, metrics: dict, train, held_out, ks, codes: dict[str, list[Codes]]) -> dict:
    """Return all diagnostics of a run, for every k; `codes` only where the method has some.

    lists: evaluate.TopLists of n users; metrics: evaluate.user_metrics of them; train, held_out: Interactions.
    """
    num_items = train.num_items
    active = np.bincount(train.user, minlength=train.num_users)[lists.user]
    hits = {k: np.bincount(lists.items[:, :k][lists.hits[:, :k]], minlength=num_items) for k in ks}
    popularity, wanted = (np.bincount(pairs.item, minlength=num_items) for pairs in (train, held_out))
    found = {
        "items": recommended(lists.items, num_items, ks),
        "by_user_activity": by_user_activity(active, metrics),
        "by_item_popularity": by_item_popularity(popularity, wanted, hits),
    }
    return found | ({"codes": {name: of_codes(parts) for name, parts in codes.items()}} if codes else {})


# Lists ----------------------------------------------------------------------------------------------------------------


def recommended(items, num_items: int, ks) -> dict[str, float | None]:
    """Return per k the share of all items that are in no list, and the Gini coefficient of how often each is.

    items: (n, k) lists of the users with a held-out item, best first; -1 where a user has no item left. Others' lists
    are not made, so an item may be in one of theirs.
    """
    result: dict[str, float | None] = {}
    for k in ks:
        top = items[:, :k]
        counts = np.bincount(top[top >= 0], minlength=num_items)
        result |= {f"never_recommended@{k}": float((counts == 0).mean()), f"gini@{k}": gini(counts)}
    return result


def gini(counts) -> float | None:
    """Return the Gini coefficient of counts (n,): 0 where all are equal, 1 - 1/n where one has all, None for zeros."""
    if not counts.any():
        return None
    places = np.arange(1, len(counts) + 1)
    return float((2 * places - len(counts) - 1) @ np.sort(counts) / (len(counts) * counts.sum()))


def by_user_activity(pairs, metrics: dict) -> list[dict]:
    """Return the mean metrics of ten groups of users, the least active first.

    The groups are equal in users (to one, the first ones larger), by the number of training pairs, ties by user id.
    pairs: (n,) training pairs of each evaluated user; metrics: those named `...@k`, (n,) each. Null where a group is
    empty.
    """
    rows = []
    for group in np.array_split(np.argsort(pairs, kind="stable"), NUM_GROUPS):
        row = {"users": len(group)} | _range_of(pairs[group])
        for name, values in metrics.items():
            if "@" in name:
                row[name] = float(values[group].mean()) if len(group) else None
        rows.append(row)
    return rows


def by_item_popularity(pairs, held_out, hits: dict) -> list[dict]:
    """Return recall@k of ten groups of items, the least popular first: hits / held-out pairs with an item of the group.

    The groups have equal shares of the training pairs, as in SGL's study of the long tail (Wu et al., SIGIR 2021,
    https://arxiv.org/abs/2010.10783): of groups equal in items, the last would hold most held-out pairs and the first
    next to none. Items are sorted by training pairs, ties by id; one belongs where the middle of its own pairs lies.
    Every held-out pair counts alike here, in the other metrics every user does. pairs, held_out: (I,) of each item;
    hits: {k: (I,)}. Null where a group has no held-out pair; one item with more than a tenth of all pairs leaves a
    group empty.
    """
    order = np.argsort(pairs, kind="stable")
    until = np.cumsum(pairs[order])
    group_of = np.empty(len(pairs), dtype=np.int64)
    group_of[order] = NUM_GROUPS * (2 * until - pairs[order]) // max(2 * int(pairs.sum()), 1)
    rows = []
    for group in (np.flatnonzero(group_of == number) for number in range(NUM_GROUPS)):
        row = {"items": len(group)} | _range_of(pairs[group]) | {"held_out": int(held_out[group].sum())}
        for k, found in hits.items():
            row[f"recall@{k}"] = float(found[group].sum() / row["held_out"]) if row["held_out"] else None
        rows.append(row)
    return rows


def _range_of(pairs) -> dict:
    least, most = (int(pairs.min()), int(pairs.max())) if len(pairs) else (None, None)
    return {"least_pairs": least, "most_pairs": most}


# Codes ----------------------------------------------------------------------------------------------------------------


def of_codes(parts: list[Codes]) -> dict:
    """Return what n rows make of the codes of one codebook, or of one each for several parts of them.

    rows: n; codebooks; codes: of all codebooks; dead: codes that no row uses, or only with weight 0; duplicate: codes
    that another can stand for (see num_duplicates); usage_entropy: how evenly the codes are used, mean over codebooks;
    weight_entropy: how evenly a row uses its codes, mean over rows; without_code: rows all of whose weights are 0;
    collision_rate: share of rows made alike (see collision_rate). Entropies: 0 (one has all) to 1 (all alike), null
    where there is nothing to share.
    """
    usage = [_usage(part) for part in parts]
    return {
        "rows": len(parts[0].codes),
        "codebooks": len(parts),
        "codes": sum(map(len, usage)),
        "dead": sum(int((used == 0).sum()) for used in usage),
        "duplicate": sum(map(num_duplicates, parts)),
        "usage_entropy": _mean([evenness(used[None]) for used in usage]),
        "weight_entropy": _mean([evenness(_weights(part)) for part in parts if part.weights is not None]),
        "without_code": int(np.all([_weights(part).sum(axis=1) == 0 for part in parts], axis=0).sum()),
        "collision_rate": collision_rate(parts),
    }


def evenness(weights) -> float | None:
    """Return the mean over rows of a row's entropy / log(t), for weights (n, t); rows of zeros do not count.

    None where t is 1, or no row is left.
    """
    from scipy.special import entr  # a tenth of a second, which training has no use for

    weights = np.asarray(weights, dtype=np.float64)
    total = weights.sum(axis=1, keepdims=True)
    shares = weights[total[:, 0] > 0] / total[total > 0][:, None]
    if weights.shape[1] == 1 or not len(shares):
        return None
    return float(entr(shares).sum(axis=1).mean() / np.log(weights.shape[1]))


def num_duplicates(part: Codes, block_bytes: int = 2**26) -> int:
    """Return how many codes another code can stand for.

    Where rows have weights: a code whose cosine with another is above 0.999, as a weight makes up for a length; zero
    codes are duplicates of each other. Where a code is used as it is: one equal to another in every number.
    """
    if part.weights is None:
        return num_with_twin([part.codebook + 0])  # -0 becomes 0
    norms = np.linalg.norm(part.codebook, axis=1, keepdims=True)
    unit = (part.codebook / np.where(norms > 0, norms, 1)).astype(np.float32)  # (c, w)
    zero = norms[:, 0] == 0
    found = zero & (zero.sum() > 1)
    at_once = max(1, block_bytes // (4 * len(unit)))
    for first in range(0, len(unit), at_once):
        cosines = unit[first : first + at_once] @ unit.T
        own = np.arange(len(cosines))
        cosines[own, first + own] = -1
        found[first : first + at_once] |= (cosines > PARALLEL).any(axis=1)
    return int(found.sum())


def collision_rate(parts: list[Codes]) -> float:
    """Return the share of rows that have the same codes as another row, with the same weights, in every codebook.

    The order of a row's codes does not matter, nor does a code of weight 0.
    """
    columns = []
    for part in parts:
        if part.weights is None:
            columns.append(np.sort(part.codes, axis=1))
        else:
            used = part.weights != 0
            codes, weights = np.where(used, part.codes.astype(np.int64), -1), np.where(used, part.weights, 0)
            order = np.argsort(codes, axis=1, kind="stable")
            columns += [np.take_along_axis(array, order, axis=1) for array in (codes, weights)]
    return num_with_twin(columns) / len(parts[0].codes)


def num_with_twin(columns: list) -> int:
    """Return how many of n rows equal another one to the bit, in all of `columns`: arrays (n, any number)."""
    rows = np.hstack([np.ascontiguousarray(array).view(np.uint8) for array in columns])  # (n, bytes)
    times = np.unique(rows.view(f"V{rows.shape[1]}"), return_counts=True)[1]
    return int(times[times > 1].sum())


def _weights(part: Codes):
    """Return how much of each code (n, t) a row has; what is subtracted counts as what is added."""
    return np.ones(part.codes.shape) if part.weights is None else np.abs(part.weights)


def _usage(part: Codes):
    """Return the sum of the weights (c,) of each code over all rows."""
    return np.bincount(part.codes.ravel(), _weights(part).ravel(), minlength=len(part.codebook))


def _mean(values: list) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
