"""TT-Rec: the embedding table as a chain of three small tensors, multiplied out for every use.

Yin et al., "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models", MLSys 2021,
https://arxiv.org/abs/2101.11714.

    N <= n1 n2 n3, d = d1 d2 d3;  node e = (i1 n2 + i2) n3 + i3,  column j = (j1 d2 + j2) d3 + j3
    X[e, j] = G1[i1, j1, :] G2[:, i2, j2, :] G3[:, i3, j3]           cores of ranks R1 and R2
    start: every entry of a core N(0, 1), drawn again while it is within 2 of 0, then scaled

The start is the paper's sampled Gaussian: a product of plain Gaussians piles up at 0; without the small factors the
product looks like one Gaussian. The paper scales it to variance 1 / (3 N), as DLRM's uniform start has it.

Deviations, with reasons:
* the variance of the product is init_std^2, the backbone's, so that every table here starts alike;
* one table serves users and items (one id space, users first): one rank to solve for;
* the ranks are solved from the budget: R1 = R2 as far as both fit, then R2 as far as it still fits;
* the whole table is multiplied out at every step, since propagation needs all of it; the paper's batched lookups and
  its cache of uncompressed frequent rows are there for speed;
* the smallest of the factors of N and of d are the middle core's, whose size grows with R^2.
"""

import math

import numpy as np
import torch

from baselines import decoders
from c2f.api import BudgetError, EmbeddingMethod, TableParams


class TensorTrain(EmbeddingMethod):
    """Three float32 cores (n1, d1, R1), (R1, n2, d2, R2), (R2, n3, d3), and the node count (4 bytes).

    Raises BudgetError below rank 1. No rank is larger than what represents every table, n1 d1 and n3 d3.
    """

    counted = ("core_1", "core_2", "core_3")
    kinds = {**dict.fromkeys(counted, "codebook"), "num_nodes": "other"}

    Params = TableParams

    @classmethod
    def from_budget(cls, budget, graph, params):
        budget.require_size()
        nodes, dims = cover(graph.num_nodes), factor(params.dim)
        first, middle, last = (n * d for n, d in zip(nodes, dims, strict=True))
        fixed, each = budget.measure(numbers=0, nbytes=4), budget.measure(numbers=1, nbytes=4)
        room = (budget.amount - fixed) // each  # numbers in all cores
        if room < first + middle + last:
            raise BudgetError(needs=fixed + each * (first + middle + last), budget=budget)
        both = (math.isqrt((first + last) ** 2 + 4 * middle * room) - first - last) // (2 * middle)
        rank_1 = min(both, first)
        rank_2 = min((room - first * rank_1) // (middle * rank_1 + last), last)
        return cls(graph.num_nodes, nodes, dims, (rank_1, rank_2), params)

    def __init__(self, num_nodes, nodes, dims, ranks, params):
        super().__init__(params)
        self.num_nodes = num_nodes
        (n1, n2, n3), (d1, d2, d3), (rank_1, rank_2) = nodes, dims, ranks
        std = (params.init_std**2 / (rank_1 * rank_2)) ** (1 / 6)  # an entry of X is the sum of R1 R2 products of three
        self.core_1 = torch.nn.Parameter(std * sampled_gaussian(n1, d1, rank_1))
        self.core_2 = torch.nn.Parameter(std * sampled_gaussian(rank_1, n2, d2, rank_2))
        self.core_3 = torch.nn.Parameter(std * sampled_gaussian(rank_2, n3, d3))
        self.details = {"ranks": list(ranks), "factors_of_nodes": list(nodes), "factors_of_dim": list(dims)}

    def table(self):
        return decoders.multiply_out(torch.einsum, self.core_1, self.core_2, self.core_3)[: self.num_nodes]  # (N, d)

    def leftover(self, budget):
        (n1, d1, rank_1), (rank_2, n3, d3) = self.core_1.shape, self.core_3.shape
        n2, d2 = self.core_2.shape[1:3]
        if (rank_1, rank_2) == (n1 * d1, n3 * d3):
            return "its ranks are the largest: it can represent every table"
        numbers = n2 * d2 * rank_1 + n3 * d3
        return budget.price("one more rank", numbers=numbers, nbytes=4 * numbers)

    def export(self):
        cores = {name: getattr(self, name).detach().cpu().numpy() for name in self.counted}
        return {**cores, "num_nodes": np.array([self.num_nodes], dtype=np.uint32)}

    decode = staticmethod(decoders.tensor_train)


def sampled_gaussian(*shape):
    """Return draws of N(0, 1) given that they are 2 or more away from 0, divided by their standard deviation."""
    threshold = 2.0
    tail = math.erfc(threshold / math.sqrt(2)) / 2  # P(x > 2)
    magnitude = -torch.special.ndtri(tail * (1 - torch.rand(shape)))  # the quantile function: no draw is thrown away
    sign = 2.0 * torch.randint(2, shape) - 1
    density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    return sign * magnitude / math.sqrt(1 + threshold * density / tail)


def cover(count):
    """Return three near-equal numbers whose product is at least `count`, the smallest in the middle."""
    largest = next(n for n in range(1, count + 1) if n**3 >= count)
    second = next(n for n in range(1, count + 1) if n**2 * largest >= count)
    return largest, math.ceil(count / (largest * second)), second


def factor(dim):
    """Return three near-equal numbers whose product is `dim`, the smallest in the middle."""
    divisors = [n for n in range(1, dim + 1) if dim % n == 0]
    triples = [(a, b, dim // (a * b)) for a in divisors for b in divisors if dim % (a * b) == 0]
    small, middle, large = min((sorted(triple) for triple in triples), key=sum)
    return middle, small, large
