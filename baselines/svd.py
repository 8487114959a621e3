"""Truncated SVD: the best low-rank picture of the normalised training matrix, in closed form and without training.

PureSVD, Cremonesi et al., "Performance of Recommender Algorithms on Top-N Recommendation Tasks", RecSys 2010,
https://doi.org/10.1145/1864708.1864721, on the degree-normalised matrix: the low-pass filter of GF-CF, Shen et al.,
"How Powerful is Graph Convolution for Recommendation?", CIKM 2021, https://arxiv.org/abs/2108.07567.

    M = (D_u + o)^-1/2 R (D_i + o)^-1/2     R: the training pairs (U, I); D: degrees; o: degree_offset
    M ~ P S Q^T                             the r largest singular values
    users = P S = M Q;   items = (D_i + o)^p Q;   scores = users items^T       p: item_power

P and Q are orthonormal, so how S is shared between the two sides (P S^a, Q S^(1-a)) changes no score.

Deviations, with reasons:
* o is the mean degree of a user, the regularisation of Qin and Rohe, "Regularized Spectral Clustering under the
  Degree-Corrected Stochastic Blockmodel", NeurIPS 2013, https://arxiv.org/abs/1309.4111. With o = 0, as in GF-CF, every
  small component of the graph has a singular value of 1: on lastfm the first 10 are spent on those;
* p = 1/2 puts the popularity back that the normalisation took out, as GF-CF does; p = 0 is the plain product P S Q^T;
* GF-CF adds the unfiltered item similarities M^T M, an (I, I) matrix; they are what a budget cannot pay;
* `dim` bounds the rank: from some rank on the noise is fitted, and validation falls.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import svds

from baselines import decoders
from c2f.api import BudgetError, EmbeddingMethod, Embeddings, Float, check


class TruncatedSVD(EmbeddingMethod):
    """r numbers per user and item (users: stored), or per item alone (users: folded: computed from their items).

    r is as large as the budget allows, at most `dim` and below U and I. Raises BudgetError below one number for each.
    """

    vectors: torch.Tensor
    search_space = {"num_layers": None, "item_power": Float(0.0, 1.0)}

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """dim: the largest rank r; dtype: of what is stored; users: stored, or folded in from their training items.

        degree_offset: o, or null for the mean degree of a user; item_power: p.
        """

        dim: int = 128
        dtype: Literal["float32", "float16"] = "float32"
        users: Literal["stored", "folded"] = "stored"
        degree_offset: float | None = None
        item_power: float = 0.5

        def __post_init__(self):
            super().__post_init__()
            check(self.dim >= 1, "dim", self.dim, "at least 1")
            some = self.degree_offset is None or self.degree_offset >= 0
            check(some, "degree_offset", self.degree_offset, "at least 0, or null")
            check(0 <= self.item_power <= 1, "item_power", self.item_power, "between 0 and 1")

    @classmethod
    def from_budget(cls, budget, graph, params):
        num_rows = graph.num_nodes if params.users == "stored" else graph.num_items
        per_rank = budget.measure(numbers=num_rows, nbytes=num_rows * np.dtype(params.dtype).itemsize)
        if per_rank > budget.amount:
            raise BudgetError(needs=per_rank, budget=budget)
        rank = int(min(budget.amount / per_rank, params.dim, graph.num_users - 1, graph.num_items - 1))
        return cls(num_rows, rank, params)

    def __init__(self, num_rows, rank, params):
        super().__init__(params)
        self.needs_graph = params.users == "folded"
        self.register_buffer("vectors", torch.zeros(num_rows, rank, dtype=getattr(torch, params.dtype)))

    def fit(self, trainer, start=None):
        matrix, item_scale = decoders.degree_normalised(trainer.graph, self.params)
        generator = trainer.generator("svd")
        users, singular, items = largest_singular(matrix, self.vectors.shape[1], generator)
        stored = items if self.params.users == "folded" else np.vstack([users * singular, item_scale * items])
        self.vectors.copy_(torch.from_numpy(stored))
        self.details |= {"rank": len(singular), "singular_values": [float(singular[0]), float(singular[-1])]}
        self.to(trainer.device)

    def embed(self, graph):
        final = torch.from_numpy(self.restore(self.export(), self.params, graph)).to(graph.device)
        return Embeddings(final, final)

    def leftover(self, budget):
        (num_rows, rank), itemsize = self.vectors.shape, self.vectors.element_size()
        if rank == self.params.dim:
            return f"its rank is the largest, `dim` = {rank}"
        more = "one more number for every row; numbers that are 0 are not counted; it"
        return budget.price(more, numbers=num_rows, nbytes=num_rows * itemsize)

    def export(self):
        return {"vectors": self.vectors.cpu().numpy()}

    restore = staticmethod(decoders.singular_vectors)


def largest_singular(matrix, rank, generator):
    """Return P (U, r), S (r,) falling and Q (I, r) of the r largest singular values.

    The largest entry of every column of Q is positive. generator: draws the start of the iteration.
    """
    start = generator.standard_normal(min(matrix.shape))
    users, singular, items = svds(matrix, k=rank, v0=start, rng=generator)
    users, singular, items = users[:, ::-1], singular[::-1], items[::-1].T
    sign = np.sign(items[np.abs(items).argmax(axis=0), np.arange(rank)])
    return users * sign, singular, items * sign
