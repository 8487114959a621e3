"""Controls that any method must beat: what the data give away without a model of taste."""

import numpy as np
import torch

from baselines import decoders
from c2f.api import EmbeddingMethod, Embeddings


class Popularity(EmbeddingMethod):
    """Every user gets the items with the most training users. Nothing is trained; one count per item is stored."""

    needs_graph = False
    kinds = {"item_counts": "vectors"}
    search_space = {"num_layers": None}
    counts: torch.Tensor

    @classmethod
    def from_budget(cls, budget, graph, params):
        budget.require(numbers=graph.num_items, nbytes=4 * graph.num_items)
        return cls(graph, params)

    def __init__(self, graph, params):
        super().__init__(params)
        self.num_users = graph.num_users
        self.register_buffer("counts", torch.from_numpy(graph.item_counts.astype(np.float32)))

    def embed(self, graph):
        vectors = torch.cat([self.counts.new_ones(self.num_users), self.counts])[:, None]  # (N, 1)
        return Embeddings(vectors, vectors)

    def fit(self, trainer, start=None):
        self.to(trainer.device)

    def export(self):
        return {"item_counts": self.counts.cpu().numpy().astype(np.uint32)}

    restore = staticmethod(decoders.item_counts)
