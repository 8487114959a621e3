"""What pruning methods share: a table with a mask, the search by learnable soft thresholds, and what outlives what.

One search serves every budget: of k entries those are kept that stayed alive longest. So the supports are nested, and
any size is met exactly, although a search overshoots every target (METHODS.md 5.4, 5.8).
"""

import hashlib

import numpy as np
import torch

from c2f.codebook import feasible_nonzeros
from c2f.decoding import pack_sparse, packed_vectors
from c2f.errors import MethodError
from c2f.method import EmbeddingMethod


class MaskedTable(EmbeddingMethod):
    """As many numbers of an (N, dim) float32 table as fit; a subclass chooses in `fit` which, by `keep`.

    Stored as the cheapest of a bitmask, row counts with column ids, and the dense table. Raises BudgetError below
    `least_kept` numbers, `dim` if nothing else is said.
    """

    counted = ("vectors",)
    mask: torch.Tensor

    @classmethod
    def from_budget(cls, budget, graph, params):
        least = cls.least_kept(graph, params)
        return cls(graph.num_nodes, feasible_nonzeros(budget, graph.num_nodes, params.dim, at_least=least), params)

    @staticmethod
    def least_kept(graph, params) -> int:
        """Return how few numbers are still worth having."""
        return params.dim

    def __init__(self, num_nodes, num_kept, params):
        super().__init__(params)
        self.num_kept = num_kept
        self.vectors = torch.nn.Parameter(torch.randn(num_nodes, params.dim) * params.init_std)
        self.register_buffer("mask", torch.zeros(num_nodes, params.dim, dtype=torch.bool))

    def keep(self, mask: torch.Tensor) -> None:
        """Keep the numbers where `mask` (N, dim) is true, and note in `details` how they lie."""
        self.mask.copy_(mask)
        self.details |= kept_sizes(mask)

    def table(self):
        return self.vectors * self.mask  # (N, dim); what is masked gets no gradient

    def leftover(self, budget):
        if self.num_kept == self.vectors.numel():
            return f"nothing is pruned: the whole table of `dim` = {self.params.dim} is in it"
        return budget.price("one more number", numbers=1, nbytes=4)

    def export(self):
        return pack_sparse("vectors", self.table().detach().cpu().numpy())

    decode = staticmethod(packed_vectors)


def kept_sizes(table: torch.Tensor) -> dict:
    """Return for `details` how much of a full table (N, d) is not 0, and how many of its rows are all 0."""
    kept = table != 0
    return {
        "kept_fraction_of_full_table": int(kept.sum()) / kept.numel(),
        "nodes_without_a_number": int((~kept.any(dim=1)).sum()),
    }


class Survival(torch.nn.Module):
    """For each entry of a table the last check that found it alive, |v| > sigma(s), and its margin |v| - sigma(s) then.

    Check 0 is the start, with the margin as it is; an entry that comes back to life counts as alive throughout.
    All state is in buffers, so a checkpoint holds it.
    """

    num_checks: torch.Tensor
    last_alive: torch.Tensor
    margin: torch.Tensor

    def __init__(self, values: torch.Tensor, thresholds: torch.Tensor):
        super().__init__()
        self.register_buffer("num_checks", torch.zeros((), dtype=torch.int32))
        self.register_buffer("last_alive", torch.zeros(values.shape, dtype=torch.int32))
        self.register_buffer("margin", _margin(values, thresholds))

    @torch.no_grad()
    def check(self, values: torch.Tensor, thresholds: torch.Tensor) -> int:
        """Record which entries are alive now and return how many. thresholds: s, broadcast to values (r, d)."""
        self.num_checks += 1
        margin = _margin(values, thresholds)
        alive = margin > 0
        # Products and maxima: with `where` and `masked_fill_` it takes 1.7 times as long (9 million numbers, a core).
        self.margin.mul_(~alive).add_(margin.relu_())
        torch.maximum(self.last_alive, alive * self.num_checks, out=self.last_alive)
        return int(torch.count_nonzero(alive))

    def ranks(self) -> np.ndarray:
        """Return the rank of every entry (uint32, same shape): 0 outlives all others; ties by margin, then by place."""
        ranks = np.empty(self.margin.numel(), dtype=np.uint32)
        order = np.lexsort((-self.margin.cpu().numpy().ravel(), -self.last_alive.cpu().numpy().ravel()))
        ranks[order] = np.arange(len(ranks), dtype=np.uint32)
        return ranks.reshape(self.margin.shape)


def search_by_thresholds(method, trainer, optimizer, values: torch.Tensor, more: str) -> None:
    """Train `method` until at most params.kept_fraction of its values (r, d) is alive, or its time is up.

    method: has `thresholds` and their `survival`; more: names what else of its settings prunes sooner, for the error.
    Notes in `details` whether thresholds or magnitudes chose: mean and standard deviation of s, and the share of k kept
    entries that are among the k largest |v|, for all that is alive and for the best tenth of it.
    Raises MethodError where the epochs end first.
    """
    thresholds, survival = method.thresholds.detach(), method.survival
    goal = int(method.params.kept_fraction * values.numel())
    report = trainer.run(
        method,
        "search",
        optimizer=optimizer,
        each_step=lambda: survival.check(values, thresholds) <= goal,
        keep="last",
        early_stopping=False,
    )
    alive = int((_margin(values, thresholds) > 0).sum())
    if report.stopped_by == "epochs":
        raise MethodError(
            f"after {report.epochs} epochs the search still keeps {alive:,} of {values.numel():,} numbers, and its "
            f"goal is {goal:,}; raise max_epochs, lr, start_threshold, {more}, or kept_fraction itself"
        )
    ranks, magnitudes = survival.ranks().ravel(), values.detach().abs().ravel()
    largest = {kept: magnitudes.topk(kept).indices.cpu() for kept in (alive, alive // 10) if kept}
    method.details |= {
        "threshold_mean": float(thresholds.mean()),
        "threshold_std": float(thresholds.std(correction=0)),
        "shared_with_largest": {kept: float((ranks[places] < kept).mean()) for kept, places in largest.items()},
    }


def survivors(start: dict | None, shape, kept: int, generator=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask (r, d) of the `kept` numbers that a search kept alive longest, and all initial values (r, d).

    Below what the search reached the largest margins at its end decide. start: the search's arrays `initial` and
    `ranks`; generator: given (NumPy) to keep as many at random instead. Raises MethodError for another start.
    """
    if start is None:
        raise MethodError("it retrains what a search kept; give its entry `starts_from` in the config")
    for key in ("initial", "ranks"):
        found = start[key].shape if key in start else "none"
        if found != tuple(shape):
            raise MethodError(
                f"the search that it starts from has {key} {found}, this one expects {tuple(shape)}; "
                "give both entries the same sizes in `params`"
            )
    ranks = start["ranks"] if generator is None else generator.permutation(start["ranks"].ravel()).reshape(shape)
    return torch.from_numpy(ranks < kept), torch.from_numpy(start["initial"])


def tensor_sha256(values: torch.Tensor) -> str:
    """Return the sha256 of a tensor's bytes: two runs that name the same one started from the same values."""
    return hashlib.sha256(values.detach().cpu().numpy().tobytes()).hexdigest()


@torch.no_grad()
def _margin(values: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    return values.abs().sub_(torch.sigmoid(thresholds))
