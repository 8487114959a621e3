"""The hashing trick: nodes share the rows of a small table, chosen by a random hash of their id.

Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009, https://arxiv.org/abs/0902.2206.
h(e) = ((a e + b) mod p) mod m, with p = 2^31 - 1 and a, b drawn once: a universal hash of Carter and Wegman.

Deviations: users and items are hashed into one table (one id space, users first); LightGCN propagates the result, which
sets apart nodes that share a row.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from c2f.api import BudgetError, EmbeddingMethod, LinearForm, SparseMatrix, check, propagate

PRIME = 2**31 - 1


class Hashing(EmbeddingMethod):
    """m rows of `dim` float32 numbers; two hash constants and the node count (20 bytes).

    Raises BudgetError below one row.
    """

    counted = ("codebook",)
    hash_constants: torch.Tensor

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """dim: embedding size d; init_std: standard deviation of the initial normal weights."""

        dim: int = 64
        init_std: float = 0.1

        def __post_init__(self):
            super().__post_init__()
            check(self.dim >= 1, "dim", self.dim, "at least 1")

    @classmethod
    def from_budget(cls, budget, graph, params):
        fixed = budget.measure(numbers=0, nbytes=20)
        per_row = budget.measure(numbers=params.dim, nbytes=4 * params.dim)
        if budget.amount < fixed + per_row:
            raise BudgetError(needs=fixed + per_row, budget=budget)
        rows = min((budget.amount - fixed) // per_row, graph.num_nodes)
        return cls(graph.num_nodes, int(rows), params)

    def __init__(self, num_nodes, num_rows, params):
        super().__init__(params)
        self.num_nodes = num_nodes
        self.codebook = torch.nn.Parameter(torch.randn(num_rows, params.dim) * params.init_std)
        constants = torch.cat([torch.randint(1, PRIME, (1,)), torch.randint(0, PRIME, (1,))])
        self.register_buffer("hash_constants", constants)

    def table(self):
        return self.codebook[torch.from_numpy(self._rows()).to(self.codebook.device)]  # (N, d)

    def linear_form(self, graph):
        ones = np.ones(self.num_nodes, dtype=np.float32)
        shape = (self.num_nodes, len(self.codebook))
        composition = sp.csr_array((ones, (np.arange(self.num_nodes), self._rows())), shape=shape)

        def basis():
            dense = torch.from_numpy(composition.toarray()).to(graph.device)
            return propagate(dense, graph.operator, self.params.num_layers), None

        matrix = SparseMatrix(composition, graph.device)
        return LinearForm(len(self.codebook), basis, lambda: self.codebook, composition=matrix)

    def export(self):
        return {
            "codebook": self.codebook.detach().cpu().numpy(),
            "hash_constants": self.hash_constants.cpu().numpy(),
            "num_nodes": np.array([self.num_nodes], dtype=np.uint32),
        }

    @staticmethod
    def decode(arrays, params):
        codebook = arrays["codebook"]
        return codebook[hash_rows(int(arrays["num_nodes"][0]), len(codebook), arrays["hash_constants"])]  # (N, d)

    def _rows(self):
        return hash_rows(self.num_nodes, len(self.codebook), self.hash_constants.cpu().numpy())


def hash_rows(num_nodes, num_rows, constants):
    """Return the row (N,) of every node id under h(e) = ((a e + b) mod p) mod m; constants: int64 (a, b)."""
    a, b = map(int, constants)
    return (a * np.arange(num_nodes, dtype=np.int64) + b) % PRIME % num_rows
