"""CERP: every user and item is the sum of two shared rows, and the numbers in those rows are pruned one by one.

Liang et al., "Learning Compact Compositional Embeddings via Regularized Pruning for Recommendation", ICDM 2023,
https://arxiv.org/abs/2309.03518.

    x_e = P^[e mod b] + Q^[floor(e / ceil(N / b))]      b rows each; one id space, users first
    V^ = sign(V) max(|V| - sigmoid(S), 0)               V = P, Q: one learnable threshold S per number
    search: BPR - gamma 10/B sum ||tanh(K x)||^2        over the distinct users and all item rows of B triples;
            S starts at S0, and Adam with COUPLED weight decay makes it drift up by about lr per step;
            gamma is halved as it goes, until few numbers are left
    retrain: V = mask * V_initial, mask = the numbers that stayed alive longest; plain recipe, no thresholds

The decay, not the loss, prunes: far below 0 a threshold has next to no loss gradient, and Adam makes a step of lr of
the decay's gradient, however small that is. With AdamW, whose decay is no gradient, next to nothing is pruned
(METHODS.md 5.4; on lastfm, as below, 0.2 % after 344 steps where Adam prunes 5 %). The second term keeps composed
vectors dense meanwhile, so that the two rows of a node lose different numbers.
How strong the decay is matters once it meets a loss gradient. On lastfm (dim 16, lr 0.02, gamma halved every 25 steps)
1e-5, as published, left 21 % after 900 steps and 8 % after 5,400; 1e-3 left 5 % after 688, but there all thresholds
rise together, and the values alone decide what goes. With 1e-4 (dim 64, 327 steps to 40 %) 90 % of what was kept were
among as many largest values (`shared_with_largest` in run.json).

Deviations, with reasons:
* the published batch is 10 positives with 5 negatives each, its BPR summed over the negatives. A fifth of that loss is
  the mean over its 50 triples, as ours, minus gamma / 5 times the sum; a sum grows with the batch, hence
  gamma / 5 * 50 / B = 10 gamma / B for B triples. A positive here counts once for each of its negatives;
* S0 = -10 instead of -100, from where pruning would begin after 95,000 steps; on that tenth of the way gamma is halved
  every 1,000 steps, not every epoch of such batches (METHODS.md 5.8 suggests 10,000);
* one search serves all budgets, exactly: the paper keeps the support at the first step at or below a target, here of k
  numbers those stay that were alive last, by margin |v| - sigmoid(s) among equals, also below where the search ended;
* b = ceil(4 sqrt(N)) whatever the budget, 1,065 on Gowalla, about the 1,000 of the released example. A budget beyond
  2bd numbers (1.1 MB there) gets them all: one and the same model, `unpruned` in run.json. `cerp-wide` has b = 5,000;
* triples are drawn afresh every epoch, not once; no clipping of the gradient's norm; epochs of the retraining are
  chosen on validation, not on test.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from baselines import decoders
from c2f.api import (
    EmbeddingMethod,
    Float,
    LinearForm,
    SparseMatrix,
    Survival,
    assignment_matrix,
    basis_of,
    check,
    feasible_nonzeros,
    pack_sparse,
    propagate,
    search_by_thresholds,
    soft_threshold,
    survivors,
    tensor_sha256,
)


class _Codebooks(EmbeddingMethod):
    """What search and retraining share: P over Q as one (2b, d) table, and the two rows of every node."""

    counted = ("codebook",)
    kinds = {"codebook": "codebook"}
    pairs: torch.Tensor

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """dim: embedding size d; num_rows: b, the rows of each codebook, or null for ceil(4 sqrt(N)).

        The search and the retraining need the same. From b = sqrt(N) on no two nodes share both rows.
        """

        dim: int = 128
        num_rows: int | None = None

        def __post_init__(self):
            super().__post_init__()
            check(self.dim >= 1, "dim", self.dim, "at least 1")
            check(self.num_rows is None or self.num_rows >= 1, "num_rows", self.num_rows, "at least 1, or null")

    def __init__(self, graph, params):
        super().__init__(params)
        self.num_users, self.num_nodes = graph.num_users, graph.num_nodes
        rows = codebook_rows(graph.num_nodes, params)
        bound = math.sqrt(6 / (rows + params.dim))  # Xavier's, of a (b, d) matrix
        self.codebook = torch.nn.Parameter(torch.empty(2 * rows, params.dim).uniform_(-bound, bound))
        pairs = torch.from_numpy(decoders.row_pairs(graph.num_nodes, rows))
        self.register_buffer("pairs", pairs, persistent=False)

    def pruned(self):
        """Return P^ over Q^ (2b, d), differentiable."""
        raise NotImplementedError

    @cached_property
    def composition(self):
        matrix = assignment_matrix(self.pairs.cpu(), torch.ones(self.pairs.shape), len(self.codebook))
        return SparseMatrix(matrix, self.pairs.device)  # (N, 2b), two ones in a row

    def table(self):
        return self.composition @ self.pruned()  # (N, d)

    def linear_form(self, graph):
        def final(rows):
            return propagate(self.composition @ rows, graph.operator, self.params.num_layers)

        def basis():
            return basis_of(final, len(self.codebook), graph.num_nodes, graph.device), None

        return LinearForm(len(self.codebook), basis, self.pruned, composition=self.composition)

    def sizes(self, table):
        """Return for `details` the number of rows b, and what is not 0 of `table` (2b, d)."""
        kept, empty = int(table.count_nonzero()), (table == 0).all(dim=1)
        return {
            "num_rows": len(table) // 2,
            "unpruned": kept == table.numel(),
            "kept_fraction_of_codebooks": kept / table.numel(),
            "kept_fraction_of_full_table": kept / (self.num_nodes * self.params.dim),
            "nodes_without_a_number": int(empty[self.pairs].all(dim=1).sum()),
        }

    def leftover(self, budget):
        return "nothing is pruned: all of both codebooks is in it; `num_rows` makes them larger"

    def export(self):
        return pack_sparse("codebook", self.pruned().detach().cpu().numpy())

    restore = staticmethod(decoders.summed_pairs)


class CERPSearch(_Codebooks):
    """Prunes until `kept_fraction` of the 2bd numbers is left, and ranks all of them by how long they stayed alive.

    Stored: the initial codebooks (float32), the ranks (uint32; 0 outlives all), and the codebooks as the search ended,
    packed. Raises BudgetError below 24bd bytes (2bd numbers): before the search nothing is pruned.
    """

    initial: torch.Tensor
    search_space = {  # from METHODS.md 5.4 on: beyond -10 most steps prune nothing
        "start_threshold": Float(-10.0, -5.0),
        "weight_decay": Float(1e-5, 1e-2, log=True),
    }

    @dataclass(frozen=True)
    class Params(_Codebooks.Params):
        """start_threshold: S0, before the sigmoid; weight_decay: Adam's, coupled, of values and thresholds alike.

        sharpness: K; gamma: weight of the density term, halved every gamma_halving_steps steps; kept_fraction: of the
        2bd numbers, where the search ends. Below what it reached the largest margins at its end decide.
        """

        start_threshold: float = -10.0
        weight_decay: float = 1e-5
        sharpness: float = 100.0
        gamma: float = 1.0
        gamma_halving_steps: int = 1000
        kept_fraction: float = 0.1

        def __post_init__(self):
            super().__post_init__()
            check(self.start_threshold < 0, "start_threshold", self.start_threshold, "below 0, from where it drifts up")
            check(self.weight_decay > 0, "weight_decay", self.weight_decay, "above 0: it is what prunes")
            check(self.sharpness > 0, "sharpness", self.sharpness, "above 0")
            check(self.gamma >= 0, "gamma", self.gamma, "at least 0")
            check(self.gamma_halving_steps >= 1, "gamma_halving_steps", self.gamma_halving_steps, "at least 1")
            check(0 < self.kept_fraction < 1, "kept_fraction", self.kept_fraction, "above 0 and below 1")

    @classmethod
    def from_budget(cls, budget, graph, params):
        size = 2 * codebook_rows(graph.num_nodes, params) * params.dim
        budget.require(numbers=size, nbytes=12 * size)
        return cls(graph, params)

    def __init__(self, graph, params):
        super().__init__(graph, params)
        self.register_buffer("initial", self.codebook.detach().clone())
        self.thresholds = torch.nn.Parameter(torch.full_like(self.codebook, params.start_threshold))
        self.survival = Survival(self.codebook, self.thresholds)

    def pruned(self):
        return soft_threshold(self.codebook, torch.sigmoid(self.thresholds))

    def penalty(self, user, positive, negative):
        nodes = torch.cat([user.unique(), positive + self.num_users, negative + self.num_users])
        composed = torch.nn.functional.embedding_bag(self.pairs[nodes], self.pruned(), mode="sum")  # (n, d)
        halvings = self.survival.num_checks // self.params.gamma_halving_steps
        weight = self.params.gamma * 0.5**halvings * 10 / len(positive)
        return -weight * torch.tanh(self.params.sharpness * composed).square().sum()

    def fit(self, trainer, start=None):
        self.to(trainer.device)
        adam = torch.optim.Adam(self.parameters(), lr=trainer.settings.lr, weight_decay=self.params.weight_decay)
        search_by_thresholds(self, trainer, adam, self.codebook, more="weight_decay")
        self.details |= self.sizes(self.pruned()) | {"initial_sha256": tensor_sha256(self.initial)}

    def export(self):
        return {"initial": self.initial.cpu().numpy(), "ranks": self.survival.ranks(), **super().export()}


class CERP(_Codebooks):
    """The numbers of both codebooks that the search kept alive longest, as many as fit, trained from its start.

    Stored as `MaskedTable` stores a table, here of (2b, dim). Raises BudgetError below `dim` numbers.
    """

    mask: torch.Tensor

    @dataclass(frozen=True)
    class Params(_Codebooks.Params):
        """mask: what the search learned, or random: as many numbers at random places, the control for the search."""

        mask: Literal["learned", "random"] = "learned"

    @classmethod
    def from_budget(cls, budget, graph, params):
        rows = 2 * codebook_rows(graph.num_nodes, params)
        return cls(graph, feasible_nonzeros(budget, rows, params.dim, at_least=params.dim), params)

    def __init__(self, graph, kept, params):
        super().__init__(graph, params)
        self.kept = kept
        self.register_buffer("mask", torch.zeros(self.codebook.shape, dtype=torch.bool))

    def pruned(self):
        return self.codebook * self.mask  # what is masked gets no gradient

    def fit(self, trainer, start=None):
        generator = trainer.generator("mask") if self.params.mask == "random" else None
        mask, initial = survivors(start, self.codebook.shape, self.kept, generator)
        self.mask.copy_(mask)
        with torch.no_grad():
            self.codebook.copy_(initial)
        self.details |= self.sizes(self.mask) | {"initial_sha256": tensor_sha256(self.codebook)}
        self.to(trainer.device)
        trainer.run(self, "retrain")


def codebook_rows(num_nodes, params):
    """Return b, the rows of each of the two codebooks."""
    return params.num_rows or math.ceil(4 * math.sqrt(num_nodes))
