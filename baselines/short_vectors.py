"""Short vectors: every user and item keeps a dense vector, only a shorter one."""

from dataclasses import dataclass
from typing import Literal

import torch

from baselines import decoders
from c2f.api import BudgetError, EmbeddingMethod, as_stored, pack, row_bytes


class ShortVectors(EmbeddingMethod):
    """One vector per node, dim = as many numbers as fit for all N. Any method that loses to it earns no complexity.

    Raises BudgetError below one number per node. Trained and initialised as LightGCN is.
    """

    counted = ("vectors",)
    kinds = {"vectors": "vectors"}

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """storage: of a number, after training in float32; int8: with a float16 scale for each node."""

        storage: Literal["float32", "float16", "int8"] = "float32"

    @classmethod
    def from_budget(cls, budget, graph, params):
        budget.require_size()

        def cost(dim):
            return graph.num_nodes * budget.measure(numbers=dim, nbytes=row_bytes(dim, params.storage))

        if cost(1) > budget.amount:
            raise BudgetError(needs=cost(1), budget=budget)
        return cls(graph.num_nodes, int(1 + (budget.amount - cost(1)) // (cost(2) - cost(1))), params)

    def __init__(self, num_nodes, dim, params):
        super().__init__(params)
        self.vectors = torch.nn.Parameter(0.1 * torch.randn(num_nodes, dim))

    def fit(self, trainer, start=None):
        trainer.run(self, "train")
        with torch.no_grad():
            self.vectors.copy_(as_stored(self.vectors, self.params.storage))

    def table(self):
        return self.vectors  # (N, dim)

    def leftover(self, budget):
        num_nodes, dim = self.vectors.shape
        more = num_nodes * (row_bytes(dim + 1, self.params.storage) - row_bytes(dim, self.params.storage))
        return budget.price("one more number for every user and item", numbers=num_nodes, nbytes=more)

    def export(self):
        return pack("vectors", self.vectors.detach().cpu().numpy(), self.params.storage)

    decode = staticmethod(decoders.vectors)
