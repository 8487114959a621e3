"""Full-ranking evaluation: Recall@k, with two denominators, and NDCG@k per user (METHODS.md 1.7)."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from c2f.data import Interactions


class Scorer(Protocol):
    """What ranking needs of a trained method: the scores of all items for any users."""

    @property
    def num_items(self) -> int: ...

    @property
    def cached_bytes(self) -> int:
        """Return the bytes of a table that answers a query without the training graph."""

    def scores(self, users: np.ndarray) -> torch.Tensor:
        """Return scores (rows, I) for user ids (rows,), in a tensor that the caller may overwrite."""


@dataclass(frozen=True)
class DotProducts:
    """Scores <users[u], items[i]> of users (U, d) and items (I, d), tensors on one device."""

    users: torch.Tensor
    items: torch.Tensor

    @classmethod
    def of_nodes(cls, final: torch.Tensor, num_users: int, item_bias: torch.Tensor | None = None) -> "DotProducts":
        """Return the scorer of final embeddings (N, d), users first; an item bias (I,) is one more coordinate."""
        users, items = final[:num_users], final[num_users:]
        if item_bias is not None:
            users = torch.cat([users, users.new_ones(len(users), 1)], dim=1)
            items = torch.cat([items, item_bias[:, None]], dim=1)
        return cls(users, items)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def cached_bytes(self) -> int:
        return self.users.nbytes + self.items.nbytes

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return self.users[torch.from_numpy(users).to(self.users.device)] @ self.items.T


def top_items(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the ids (rows, k) of the k largest scores of each row, best first; equal scores in order of item id."""
    width = scores.shape[1]
    values, items = torch.topk(scores, min(k + 1, width), dim=1)
    if width > k:  # a tie across the cut: torch.topk takes any, so settle those rows by a stable sort
        tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()
        values, items = values[:, :k].contiguous(), items[:, :k].contiguous()
        if len(tied):
            order = torch.sort(scores[tied], dim=1, descending=True, stable=True)
            values[tied], items[tied] = order.values[:, :k], order.indices[:, :k]
    by_item = torch.argsort(items, dim=1)
    by_score = torch.argsort(values.gather(1, by_item), dim=1, descending=True, stable=True)
    return items.gather(1, by_item.gather(1, by_score))


def rank(scorer: Scorer, masked: Interactions, chosen: np.ndarray, k: int, block_bytes: int = 2**26):
    """Yield (user ids, top items (rows, k) ndarray) for the chosen users, in blocks of at most block_bytes of scores.

    masked: pairs that are never recommended.
    """
    pairs = masked.csr()
    rows_at_once = max(1, block_bytes // (4 * scorer.num_items))
    for first in range(0, len(chosen), rows_at_once):
        block = chosen[first : first + rows_at_once]
        scores = scorer.scores(block)  # (rows, I)
        seen = pairs[block].tocoo()
        row, col = (torch.from_numpy(index.astype(np.int64)).to(scores.device) for index in (seen.row, seen.col))
        scores[row, col] = -torch.inf
        yield block, top_items(scores, k).cpu().numpy()


@dataclass(frozen=True)
class TopLists:
    """What is recommended to every user with a held-out item: `user` (n,), with `held_out` (n,) items each.

    items: (n, k), best first, -1 where the user has no item left; hits: (n, k), which of them are held out.
    """

    user: np.ndarray
    held_out: np.ndarray
    items: np.ndarray
    hits: np.ndarray


def top_lists(scorer: Scorer, masked: Interactions, held_out: Interactions, k: int) -> TopLists:
    """Return the lists of length k (all items where there are fewer) of the users with a held-out item."""
    counts = np.bincount(held_out.user, minlength=held_out.num_users)
    chosen = np.flatnonzero(counts)
    k = min(k, scorer.num_items)
    left = scorer.num_items - np.bincount(masked.user, minlength=masked.num_users)
    relevant = held_out.user.astype(np.int64) * held_out.num_items + held_out.item  # sorted
    items = np.empty((len(chosen), k), dtype=np.int32)
    hits = np.zeros((len(chosen), k), dtype=bool)
    done = 0
    for block, top in rank(scorer, masked, chosen, k):
        rows = slice(done, done + len(block))
        pairs = block[:, None].astype(np.int64) * held_out.num_items + top
        place = np.minimum(np.searchsorted(relevant, pairs), len(relevant) - 1)
        hits[rows] = relevant[place] == pairs
        items[rows] = np.where(np.arange(k) < left[block, None], top, -1)
        done += len(block)
    return TopLists(chosen.astype(np.int32), counts[chosen].astype(np.int32), items, hits)


def user_metrics(lists: TopLists, ks) -> dict[str, np.ndarray]:
    """Return `user`, `held_out` and, per k, `recall@k`, `recall_capped@k`, `ndcg@k`, for users with a held-out item.

    recall@k = hits in the top k / all held-out items; recall_capped@k = hits / min(held-out items, k), so that 1 can be
    reached (what Liang et al., WWW 2018, https://arxiv.org/abs/1802.05814, call Recall@k; BEIR, whose word it is,
    https://arxiv.org/abs/2104.08663, capped recall); ndcg@k = DCG / ideal DCG, gain 1 / log2(rank + 1).
    """
    result = {"user": lists.user, "held_out": lists.held_out}
    gains = 1 / np.log2(np.arange(2, max(ks) + 2))
    ideal = np.concatenate([[0], np.cumsum(gains)])
    for k in sorted(ks):
        within = lists.hits[:, :k]
        hits = within.sum(axis=1)
        result[f"recall@{k}"] = hits / lists.held_out
        result[f"recall_capped@{k}"] = hits / np.minimum(lists.held_out, k)
        result[f"ndcg@{k}"] = within @ gains[: within.shape[1]] / ideal[np.minimum(lists.held_out, k)]
    return result


def score_users(scorer: Scorer, masked: Interactions, held_out: Interactions, ks) -> dict[str, np.ndarray]:
    """Return `user_metrics` of the users with a held-out item."""
    return user_metrics(top_lists(scorer, masked, held_out, max(ks)), ks)


def union(parts: list[Interactions]) -> Interactions:
    """Return all pairs of disjoint parts of one dataset, sorted."""
    user, item = (np.concatenate([getattr(part, side) for part in parts]) for side in ("user", "item"))
    order = np.lexsort((item, user))
    return Interactions(user[order], item[order], parts[0].num_users, parts[0].num_items)


def means(per_user: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of every metric over the users."""
    return {name: float(values.mean()) for name, values in per_user.items() if "@" in name and len(values)}
