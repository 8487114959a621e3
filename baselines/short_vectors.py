"""Short vectors: every user and item keeps a dense vector, only a shorter one."""

import torch

from baselines import decoders
from c2f.api import BudgetError, EmbeddingMethod


class ShortVectors(EmbeddingMethod):
    """One float32 vector per node, dim = floor(numbers that fit / N). Any method that loses to it earns no complexity.

    Raises BudgetError below one number per node. Trained and initialised as LightGCN is.
    """

    @classmethod
    def from_budget(cls, budget, graph, params):
        dim = budget.values() // graph.num_nodes
        if dim < 1:
            raise BudgetError(needs=budget.measure(numbers=1, nbytes=4) * graph.num_nodes, budget=budget)
        return cls(graph.num_nodes, dim, params)

    def __init__(self, num_nodes, dim, params):
        super().__init__(params)
        self.vectors = torch.nn.Parameter(0.1 * torch.randn(num_nodes, dim))

    def table(self):
        return self.vectors  # (N, dim)

    def export(self):
        return {"vectors": self.vectors.detach().cpu().numpy()}

    decode = staticmethod(decoders.vectors)
