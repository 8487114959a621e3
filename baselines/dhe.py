"""Deep Hash Embedding: no table at all; a small network makes every vector out of many hashes of the id.

Kang et al., "Learning to Embed Categorical Features without Embedding Tables for Recommendation", KDD 2021,
https://arxiv.org/abs/2010.10784.

    h_i(e) = ((a_i e + b_i) mod p) mod m              k universal hashes into m buckets; p = 2^31 - 1
    z_i = 2 h_i / (m - 1) - 1                         uniform encoding; or Gaussian, from pairs of hashes (Box-Muller):
    z, z' = sqrt(-2 ln u) (cos, sin)(2 pi u')         u = (h + 1) / m
    x <- mish(batchnorm(x W_l))                       hidden layers l = 1..n of one width, from x = z
    X = x W_out + b                                   one row per node; LightGCN propagates it

Batch-norm takes its mean and variance over all N nodes, in training and in serving. Every call makes the whole table
(propagation needs it), so these are exact, the same for every batch, and follow from the weights: no running averages
are stored, and what the artifact gives is what was validated.

Deviations, with reasons:
* k is 256 at most instead of 1,024: the encodings are a constant (N, k) matrix in memory (Gowalla: 73 MB, not 290 MB);
* the width is solved from the budget at a fixed depth, and a network of h units takes at most 4 h hashes: at small
  budgets the first layer's k h weights would otherwise leave no width for the rest;
* users and items share the network and one id space (users first), where the paper has a network per feature;
* layers before a batch-norm have no bias: it would subtract it again;
* the last layer is scaled so that the vectors start with the backbone's standard deviation.
"""

import bisect
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import batch_norm, mish

from baselines import decoders
from c2f.api import HASH_PRIME, BudgetError, Choice, EmbeddingMethod, Int, TableParams, check, hash_constants

HASHES_PER_UNIT = 4


class DHE(EmbeddingMethod):
    """The network's float32 weights and batch-norm scales and shifts; k pairs of uint32 hash constants, the node count.

    Raises BudgetError below one hidden unit a layer, with 4 hashes (fewer where num_hashes is less).
    """

    counted = ("first", "deeper", "norm", "output", "bias")
    kinds = {**dict.fromkeys(counted, "network"), "hash_constants": "hashes", "num_nodes": "hashes"}
    encoding: torch.Tensor
    search_space = {"hidden_layers": Int(2, 4), "num_hashes": Choice((64, 128, 256))}

    @dataclass(frozen=True)
    class Params(TableParams):
        """hidden_layers: n; num_hashes: k at most; num_buckets: m; encoding: distribution of the network's input."""

        hidden_layers: int = 2
        num_hashes: int = 256
        num_buckets: int = 1_000_000
        encoding: Literal["uniform", "gaussian"] = "uniform"

        def __post_init__(self):
            super().__post_init__()
            check(self.hidden_layers >= 2, "hidden_layers", self.hidden_layers, "at least 2")
            even = self.num_hashes >= 2 and self.num_hashes % 2 == 0
            check(even, "num_hashes", self.num_hashes, "even and at least 2 (Box-Muller pairs them)")
            check(2 <= self.num_buckets <= HASH_PRIME, "num_buckets", self.num_buckets, f"from 2 to {HASH_PRIME}")

    @classmethod
    def from_budget(cls, budget, graph, params):
        budget.require_size()

        def cost(width):
            numbers = network_size(width, params)
            return budget.measure(numbers=numbers, nbytes=4 * numbers + 8 * hashes_of(width, params) + 4)

        width = bisect.bisect_right(range(1, int(budget.amount) + 1), budget.amount, key=cost)
        if width < 1:
            raise BudgetError(needs=cost(1), budget=budget)
        return cls(graph.num_nodes, width, params)

    def __init__(self, num_nodes, width, params):
        super().__init__(params)
        num_hashes, depth = hashes_of(width, params), params.hidden_layers
        self.num_nodes, self.hash_constants = num_nodes, hash_constants(num_hashes).astype(np.uint32)  # (k, 2)
        encoding = torch.from_numpy(decoders.hash_encoding(num_nodes, self.hash_constants, params))
        self.register_buffer("encoding", encoding, persistent=False)  # made anew from the constants
        self.first = torch.nn.Parameter(torch.randn(num_hashes, width) / num_hashes**0.5)
        self.deeper = torch.nn.Parameter(torch.randn(depth - 1, width, width) / width**0.5)
        self.norm = torch.nn.Parameter(torch.tensor([1.0, 0.0])[:, None].repeat(depth, 1, width))  # scales, shifts
        self.output = torch.nn.Parameter(torch.randn(width, params.dim))
        self.bias = torch.nn.Parameter(torch.zeros(params.dim))
        with torch.no_grad():
            self.output.mul_(params.init_std / self.table().std())
        self.details = {"num_hashes": num_hashes, "hidden_width": width}

    def table(self):
        x = self.encoding  # (N, k)
        for weights, (scale, shift) in zip([self.first, *self.deeper], self.norm, strict=True):
            x = mish(batch_norm(x @ weights, None, None, scale, shift, training=True, eps=decoders.EPSILON))  # (N, h)
        return x @ self.output + self.bias  # (N, d)

    def leftover(self, budget):
        width, params = len(self.output), self.params
        numbers = network_size(width + 1, params) - network_size(width, params)
        nbytes = 4 * numbers + 8 * (hashes_of(width + 1, params) - hashes_of(width, params))
        return budget.price("one more hidden unit in each layer", numbers=numbers, nbytes=nbytes)

    def export(self):
        weights = {name: getattr(self, name).detach().cpu().numpy() for name in self.counted}
        return {**weights, "hash_constants": self.hash_constants, "num_nodes": np.array([self.num_nodes], np.uint32)}

    decode = staticmethod(decoders.deep_hash)


def hashes_of(width, params):
    """Return k for a network of this width; even."""
    return min(params.num_hashes, HASHES_PER_UNIT * width)


def network_size(width, params):
    """Return how many numbers a network of this width has."""
    hidden = hashes_of(width, params) * width + (params.hidden_layers - 1) * width**2
    return hidden + 2 * params.hidden_layers * width + (width + 1) * params.dim
