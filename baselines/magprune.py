"""Pruning: train the full table, then keep only its P largest numbers and set the others to zero.

Magnitude pruning (Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
https://arxiv.org/abs/1506.02626), applied to embedding tables as the baseline "MagPrune" of recsys-benchmark.

    W                                     layer-0 table (N, d) of a full LightGCN run
    M = 1 at the P largest of |W|, else 0 P fills the budget; ties go to the earlier position
    X0 = M * W                            with `retrain`: M * V, V trained from W or from a fresh start, M fixed

Deviations, with reasons:
* the full run is this benchmark's LightGCN, without the InfoNCE term and the tuned L2 of recsys-benchmark: the same
  run is the reference for every compressed table. A stronger L2 leaves a table that is easier to prune;
* `scope: global` is the default, and users and items share P as magnitudes fall: with 1, 5 and 20 % kept it validated
  better on lastfm than `per_table`, which is the published choice. `per_row` (`magprune-rows`) leaves every node as
  many, and starts from a run with a strong L2. Validation NDCG@20 on lastfm, 480 steps, one seed, with all, 12, 6 and
  3 % kept: L2 1e-4 .183, .078, .038, .021 (per row .183, .074, .040, .018), below popularity from 6 % on although
  nothing is lost at 100 %: pruning alone does that. L2 0.1 .112, .121, .021, .008; per row .112, .135, .135, .124;
* `min_per_row` is a parameter, not searched on validation;
* `retrain: from_init` draws a fresh start: the one of the full run is not in its artifact, so this tells the worth of
  the mask, not of a lottery ticket;
* `mask: random` is a control: as many numbers, at random places.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from c2f.api import Int, MaskedTable, TableParams, check, load_start


class MagPrune(MaskedTable):
    """The largest numbers of a full run's table, as many as fit, and at least `min_per_row` of each node."""

    search_space = {"min_per_row": Int(0, 4)}  # by validation, as in recsys-benchmark (METHODS.md 9)

    @dataclass(frozen=True)
    class Params(TableParams):
        """dim, num_layers: as in the full run that it starts from.

        mask: keep the largest magnitudes, or random places; scope: largest of all nodes together, or the same fraction
        of users' and items' numbers, or of each node's, as far as that is whole; min_per_row: at least so many, the
        largest, of every node; retrain: none as published, from_init or from_trained to train the kept numbers again;
        init_std: of the start for from_init.
        """

        mask: Literal["magnitude", "random"] = "magnitude"
        scope: Literal["global", "per_table", "per_row"] = "global"
        min_per_row: int = 0
        retrain: Literal["none", "from_init", "from_trained"] = "none"

        def __post_init__(self):
            super().__post_init__()
            check(0 <= self.min_per_row <= self.dim, "min_per_row", self.min_per_row, "between 0 and dim")

    @staticmethod
    def least_kept(graph, params):
        return max(params.dim, params.min_per_row * graph.num_nodes)

    def __init__(self, num_nodes, num_kept, params):
        super().__init__(num_nodes, num_kept, params)
        self.vectors.requires_grad_(params.retrain != "none")

    def fit(self, trainer, start=None):
        initial = self.vectors.detach().clone()
        load_start(self, start, ["vectors"])
        by_magnitude = self.params.mask == "magnitude"
        shape = tuple(self.vectors.shape)
        score = self.vectors.detach().abs().numpy() if by_magnitude else trainer.generator("mask").random(shape)
        num_users = trainer.graph.num_users if self.params.scope == "per_table" else None
        for_each = self.num_kept // len(score) if self.params.scope == "per_row" else 0
        least = max(for_each, self.params.min_per_row)
        self.keep(torch.from_numpy(kept_places(score, self.num_kept, num_users, least)))
        if self.params.retrain == "from_init":
            with torch.no_grad():
                self.vectors.copy_(initial)
        self.to(trainer.device)
        if self.params.retrain != "none":
            trainer.run(self, "retrain")


def kept_places(score, num_kept, num_users=None, min_per_row=0):
    """Return the boolean mask (N, d) of the num_kept largest scores, ties by position, users first.

    num_users: given to keep the same fraction of the users' rows and of the items' rows (to rounding);
    min_per_row: so many of the largest of each row are kept before all others.
    """
    if num_users is not None:
        of_users = round(num_kept * num_users / len(score))
        users = kept_places(score[:num_users], of_users, min_per_row=min_per_row)
        return np.concatenate([users, kept_places(score[num_users:], num_kept - of_users, min_per_row=min_per_row)])
    if min_per_row:
        largest = np.argsort(-score, axis=1, kind="stable")[:, :min_per_row]
        score = score.copy()
        np.put_along_axis(score, largest, np.inf, axis=1)
    kept = np.zeros(score.size, dtype=bool)
    kept[np.argsort(-score, axis=None, kind="stable")[:num_kept]] = True
    return kept.reshape(score.shape)
