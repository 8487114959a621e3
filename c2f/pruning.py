"""What methods share that prune by learnable soft thresholds: the search, which entry outlives which, and its retrain.

One search serves every budget: of k entries those are kept that stayed alive longest. So the supports are nested, and
any size is met exactly, although a search overshoots every target (METHODS.md 5.4, 5.8).
"""

import hashlib

import numpy as np
import torch

from c2f.errors import MethodError


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


def search(method, trainer, optimizer, survival: Survival, values, thresholds, kept_fraction: float) -> int:
    """Train `method` until at most kept_fraction of its values (r, d) are alive; return how many.

    values, thresholds: the parameters that `survival` watches. Raises MethodError where training ends before that.
    """
    goal, alive = int(kept_fraction * values.numel()), values.numel()

    def few_enough() -> bool:
        nonlocal alive
        alive = survival.check(values, thresholds)
        return alive <= goal

    report = trainer.run(method, "search", optimizer=optimizer, each_step=few_enough, keep="last", early_stopping=False)
    if report.stopped_by != "condition":
        raise MethodError(
            f"after {report.epochs} epochs ({report.stopped_by}) the search still keeps {alive:,} of "
            f"{values.numel():,} numbers, and its goal is {goal:,}; raise max_epochs, lr, l2 or start_threshold, "
            "or kept_fraction itself"
        )
    return alive


def survivors(start: dict | None, shape, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask (r, d) of the `kept` numbers that a search kept alive longest, and all initial values (r, d).

    Below what the search reached the largest margins at its end decide. start: the search's arrays `initial` and
    `ranks`. Raises MethodError for another start.
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
    return torch.from_numpy(start["ranks"] < kept), torch.from_numpy(start["initial"])


def fingerprint(values: torch.Tensor) -> str:
    """Return the sha256 of a tensor's bytes: two runs that name the same one started from the same values."""
    return hashlib.sha256(values.detach().cpu().numpy().tobytes()).hexdigest()


@torch.no_grad()
def _margin(values: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    return values.abs().sub_(torch.sigmoid(thresholds))
