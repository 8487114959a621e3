"""LightGCN with its full table: the reference that every compressed table is measured against.

He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", SIGIR 2020,
https://arxiv.org/abs/2002.02126. Layer 0 is trained; the final embedding is the mean over the layers (equations 7, 8).

Deviations: negatives and batch size are settings of the benchmark, the same for all methods; training stops on
validation instead of after 1,000 epochs.
"""

import torch

from baselines import decoders
from c2f.api import EmbeddingMethod, TableParams


class LightGCN(EmbeddingMethod):
    """A float32 vector of `dim` numbers per user and item. Raises BudgetError below 4 * dim * N bytes."""

    Params = TableParams

    @classmethod
    def from_budget(cls, budget, graph, params):
        values = graph.num_nodes * params.dim
        budget.require(numbers=values, nbytes=4 * values)
        return cls(graph.num_nodes, params)

    def __init__(self, num_nodes, params):
        super().__init__(params)
        self.vectors = torch.nn.Parameter(torch.randn(num_nodes, params.dim) * params.init_std)

    def table(self):
        return self.vectors  # (N, d)

    def export(self):
        return {"vectors": self.vectors.detach().cpu().numpy()}

    decode = staticmethod(decoders.vectors)
