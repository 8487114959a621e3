"""PEP: every number of the full table learns when to be dropped; what is left longest is trained again from the start.

Liu et al., "Learnable Embedding Sizes for Recommender Systems" (PEP, plug-in embedding pruning), ICLR 2021,
https://arxiv.org/abs/2101.07577.

    V^ = sign(V) max(|V| - sigmoid(s), 0)     layer 0; s: one threshold per number, row, column, or for all
    search: BPR on V^, L2 on V; s starts at S0, and Adam with COUPLED weight decay makes it drift up by about lr per
            step, until few numbers are left
    retrain: V = mask * V_initial, mask = the numbers that stayed alive longest; plain recipe, no thresholds

The decay, not the loss, prunes: far below 0 a threshold has next to no loss gradient, and Adam makes a step of lr out
of the decay's gradient however small it is. With AdamW, whose decay is no gradient, nothing is pruned (METHODS.md 5.4).

Deviations, with reasons:
* the backbone is LightGCN with BPR and its batch L2, not a CTR model with cross-entropy, and V starts as LightGCN's,
  N(0, 0.1^2), not Xavier uniform (+-0.009 on Gowalla): the benchmark compares tables, not backbones;
* only the thresholds decay in Adam, as in the LightGCN adaptation; in the paper V decays too. In its place V has the
  batch's L2, on V itself and not on V^, and a strong one in the search (l2 0.15): decay takes s to 0 and no further,
  where sigmoid(s) = 0.5, and |V| grows along with its threshold unless something holds it. With l2 1.0e-4 on V^, 66 %
  of the numbers were still alive with the thresholds at -0.2 (made-up blocks) and -0.6 (lastfm) on average, dim 32. At
  0.3 all of V shrank to 0 together on blocks (not on lastfm);
* so the thresholds rise in lock-step and choose nothing: at any budget the mask is that of magnitude pruning of a table
  trained with l2 0.15, as it was at the search's end, or before, when so many numbers were left as the budget holds.
  On lastfm (dim 64, lr 0.02, S0 -6) their standard deviation was 0.00001 at 30 % left and 0.00006 at 10 %, and of
  what was kept, or the best tenth of it, 99.99 % were among as many largest |V|; with a decay of 1e-5 0.001 and
  99.9 %, with 1e-7 0.1 and 97 %. Every search says so in run.json: `threshold_std`, `shared_with_largest`;
* the search ends at `kept_fraction` of the numbers (0.1; 0.3 in config/small.yaml), and a smaller budget keeps the
  largest margins at its end, |v| less a threshold that is the same for all. Searching on to 0.2 % needs an L2 (0.2) at
  which the choice among the last numbers was no better than chance on made-up blocks (one seed);
* S0 = -10 instead of -15 to -150: the steps before pruning begins change only V;
* one search serves all budgets, exactly: the paper keeps the support at the first step at or below a target (any size
  below it), here of k numbers those stay that were alive last, by margin |v| - sigmoid(s) among equals;
* no thresholds per field (users, items), no temperature, no clipping of the gradient's norm;
* the retrain's best epoch is chosen on validation, not on test.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from baselines import decoders
from c2f.api import (
    Choice,
    EmbeddingMethod,
    Embeddings,
    Float,
    MaskedTable,
    Survival,
    TableParams,
    check,
    kept_sizes,
    pack_sparse,
    propagate,
    search_by_thresholds,
    soft_threshold,
    survivors,
    tensor_sha256,
)


class PEPSearch(EmbeddingMethod):
    """Prunes the (N, dim) table until `kept_fraction` is left, and ranks all numbers by how long they stayed alive.

    Stored: the initial table (float32), the ranks (uint32; 0 outlives all), and the table as the search ended, packed.
    Raises BudgetError below 12 * dim * N bytes (dim * N numbers): before the search nothing is pruned.
    """

    counted = ("table",)
    search_space = {  # as recsys-benchmark tunes them (METHODS.md 6.5)
        "start_threshold": Float(-50.0, -5.0),
        "threshold_decay": Float(1e-5, 1.0, log=True),
    }
    initial: torch.Tensor

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """dim: embedding size d; start_threshold: S0, before the sigmoid; threshold_decay: Adam's, coupled.

        granularity: what has a threshold of its own: all numbers together (global), each column (dimension), each user
        and item (feature), each number (feature_dim); kept_fraction: of the dim * N numbers, where the search ends.
        """

        dim: int = 128
        granularity: Literal["global", "dimension", "feature", "feature_dim"] = "feature_dim"
        start_threshold: float = -10.0
        threshold_decay: float = 1e-3
        kept_fraction: float = 0.1

        def __post_init__(self):
            super().__post_init__()
            check(self.dim >= 1, "dim", self.dim, "at least 1")
            check(self.start_threshold < 0, "start_threshold", self.start_threshold, "below 0, from where it drifts up")
            check(self.threshold_decay > 0, "threshold_decay", self.threshold_decay, "above 0: it is what prunes")
            check(0 < self.kept_fraction < 1, "kept_fraction", self.kept_fraction, "above 0 and below 1")

    @classmethod
    def from_budget(cls, budget, graph, params):
        size = graph.num_nodes * params.dim
        budget.require(numbers=size, nbytes=12 * size)
        return cls(graph.num_nodes, params)

    def __init__(self, num_nodes, params):
        super().__init__(params)
        self.vectors = torch.nn.Parameter(0.1 * torch.randn(num_nodes, params.dim))
        self.register_buffer("initial", self.vectors.detach().clone())
        shapes = {
            "global": (1, 1),
            "dimension": (1, params.dim),
            "feature": (num_nodes, 1),
            "feature_dim": (num_nodes, params.dim),
        }
        self.thresholds = torch.nn.Parameter(torch.full(shapes[params.granularity], params.start_threshold))
        self.survival = Survival(self.vectors, self.thresholds)

    def table(self):
        return soft_threshold(self.vectors, torch.sigmoid(self.thresholds))  # (N, d)

    def embed(self, graph):
        final = propagate(self.table(), graph.operator, self.params.num_layers, graph.rows)
        return Embeddings(self.vectors, final, graph.rows)

    def fit(self, trainer, start=None):
        self.to(trainer.device)
        others = [parameter for parameter in self.parameters() if parameter is not self.thresholds]
        decayed = {"params": [self.thresholds], "weight_decay": self.params.threshold_decay}
        adam = torch.optim.Adam([{"params": others}, decayed], lr=trainer.settings.lr)
        search_by_thresholds(self, trainer, adam, self.vectors, more="l2, threshold_decay")
        self.details |= kept_sizes(self.table()) | {"initial_sha256": tensor_sha256(self.initial)}

    def export(self):
        pruned = pack_sparse("table", self.table().detach().cpu().numpy())
        return {"initial": self.initial.cpu().numpy(), "ranks": self.survival.ranks(), **pruned}

    decode = staticmethod(decoders.packed_table)


class PEP(MaskedTable):
    """The numbers of an (N, dim) float32 table that its search kept alive longest, as many as fit, trained anew."""

    search_space = {"reinit": Choice((False, True))}

    @dataclass(frozen=True)
    class Params(TableParams):
        """dim: as in the search; reinit: train the same numbers from fresh values (init_std), not from the search's.

        mask: what the search learned, or random: as many numbers at random places, the control for the search.
        """

        reinit: bool = False
        mask: Literal["learned", "random"] = "learned"

    def fit(self, trainer, start=None):
        generator = trainer.generator("mask") if self.params.mask == "random" else None
        mask, initial = survivors(start, self.vectors.shape, self.num_kept, generator)
        self.keep(mask)
        if not self.params.reinit:
            with torch.no_grad():
                self.vectors.copy_(initial)
        self.details["initial_sha256"] = tensor_sha256(self.vectors)
        trainer.run(self, "retrain")
