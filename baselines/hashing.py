"""The hashing family: nodes share the rows of small tables, chosen by their id alone.

    plain                x_e = T[h(e)]
    double               x_e = T1[h1(e)] + T2[h2(e)]             two independent hashes: fewer nodes share both rows
    quotient-remainder   x_e = T1[e mod m] o T2[floor(e / m)]    o is +, times or concatenation; no two nodes share both
    h(e) = ((a e + b) mod p) mod rows, p = 2^31 - 1, a and b drawn once: a universal hash of Carter and Wegman

Plain: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009,
https://arxiv.org/abs/0902.2206. Double: Zhang et al., "Model Size Reduction Using Frequency Based Double Hashing for
Recommender Systems", RecSys 2020, https://arxiv.org/abs/2007.14523. Quotient-remainder: Shi et al., "Compositional
Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems", KDD 2020,
https://arxiv.org/abs/1909.02107.

Deviations, with reasons:
* users and items share the tables (one id space, users first): one size to solve for; LightGCN propagates the result,
  which sets apart nodes that share their rows;
* double hashing serves every node: the paper's own rows for frequent ids would be a second method in the comparison;
* every variant starts with the backbone's variance in the composed vectors, so that none is ahead by its start alone;
  `init: recsys-benchmark` is that suite's: products of U(sqrt(1/N), 1), all positive, and sums with half the variance;
* m is solved from the budget: of the two roots of m + N/m = rows the smaller, which is the one nearest sqrt(N).

Ids are consecutive, and ids a fixed distance apart tend to collide all together or not at all under h. So double
hashing's N^2 / (2 m1 m2) colliding pairs hold on average over draws, but one draw may be far off: Gowalla, 250 + 250
rows, 20 seeds: 36,000 pairs, standard deviation 29,000. `diagnostics.json` has the collision rate of a run.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from baselines import decoders
from c2f.api import (
    BudgetError,
    Codes,
    EmbeddingMethod,
    LinearForm,
    SparseMatrix,
    TableParams,
    as_stored,
    assignment_matrix,
    basis_of,
    check,
    hash_constants,
    pack,
    propagate,
    row_bytes,
    unpack,
)


class SharedRows(EmbeddingMethod):
    """What the family has in common: the tables stacked to one codebook, and the k rows of it that an id leads to."""

    counted = ("codebook",)
    kinds = {"codebook": "codebook", "hash_constants": "hashes", "num_nodes": "hashes", "divisor": "hashes"}
    codes: torch.Tensor

    @dataclass(frozen=True)
    class Params(TableParams):
        """storage: of the codebook's numbers, after training in float32; int8: with a float16 scale for each row."""

        storage: Literal["float32", "float16", "int8"] = "float32"

        @property
        def width(self) -> int:
            """Numbers in one row."""
            return self.dim

    def __init__(self, codebook, address, params):
        """codebook: the initial rows; address: the few stored numbers that lead from an id to its rows."""
        super().__init__(params)
        self.codebook = torch.nn.Parameter(codebook)
        self.address = address
        codes = self.codes_of(address, len(codebook))  # (N, k)
        self.register_buffer("codes", torch.from_numpy(codes), persistent=False)  # made anew from the address
        self.details = {"rows": len(codebook)}

    @staticmethod
    def codes_of(address, num_rows):
        """Return the codebook rows (N, k) of every node."""
        raise NotImplementedError

    @staticmethod
    def first_rows(address, num_rows):
        """Return where in the codebook each table begins."""
        return [0]

    @classmethod
    def code_arrays(cls, arrays, params):
        codebook = unpack("codebook", arrays)
        codes, first = cls.codes_of(arrays, len(codebook)), cls.first_rows(arrays, len(codebook))
        tables = np.split(codebook, first[1:])
        return {"nodes": [Codes(table, codes[:, [k]] - first[k]) for k, table in enumerate(tables)]}

    def fit(self, trainer, start=None):
        trainer.run(self, "train")
        with torch.no_grad():
            self.codebook.copy_(as_stored(self.codebook, self.params.storage))

    def parts(self):
        """Return each node's rows (N, k, width), differentiable."""
        return torch.nn.functional.embedding(self.codes, self.codebook)

    def table(self):
        return self.parts().sum(1)  # (N, d)

    def summands(self):
        """Return rows (rows, d) such that a node's vector is the sum of those of its codes."""
        return self.codebook

    def linear_form(self, graph):
        ones, num_rows = torch.ones(self.codes.shape), len(self.codebook)
        composition = SparseMatrix(assignment_matrix(self.codes.cpu(), ones, num_rows), graph.device)

        def final(rows):
            return propagate(composition @ rows, graph.operator, self.params.num_layers)

        def basis():
            return basis_of(final, num_rows, graph.num_nodes, graph.device), None

        return LinearForm(num_rows, basis, self.summands, composition=composition)

    def leftover(self, budget):
        if len(self.codebook) >= self.codes.numel():
            return "there are as many rows as users and items in each table: more are of no use"
        return self.price(budget, "one more row", 1)

    def price(self, budget, what, rows):
        """Say what so many more rows would take."""
        width = self.params.width
        return budget.price(what, numbers=rows * width, nbytes=rows * row_bytes(width, self.params.storage))

    def export(self):
        return pack("codebook", self.codebook.detach().cpu().numpy(), self.params.storage) | self.address


class Hashing(SharedRows):
    """m rows of `dim` numbers (float32, or as `storage` says); two int64 hash constants and the node count (20 bytes).

    Raises BudgetError below one row.
    """

    @classmethod
    def from_budget(cls, budget, graph, params):
        rows = affordable_rows(budget, params, address_bytes=20, at_least=1)
        return cls(graph.num_nodes, min(rows, graph.num_nodes), params)

    def __init__(self, num_nodes, num_rows, params):
        codebook = torch.randn(num_rows, params.dim) * params.init_std
        super().__init__(codebook, {"hash_constants": hash_constants(1)[0], "num_nodes": uint32(num_nodes)}, params)

    codes_of = staticmethod(decoders.hashed_codes)
    decode = staticmethod(decoders.hashed)


class DoubleHashing(SharedRows):
    """Two tables of as many rows (the first has the odd one) of `dim` numbers, one below the other.

    Beside them two pairs of uint32 hash constants and the node count (20 bytes). Raises BudgetError below one row each.
    """

    @classmethod
    def from_budget(cls, budget, graph, params):
        rows = affordable_rows(budget, params, address_bytes=20, at_least=2)
        return cls(graph.num_nodes, min(rows, 2 * graph.num_nodes), params)

    def __init__(self, num_nodes, num_rows, params):
        codebook = torch.randn(num_rows, params.dim) * params.init_std / math.sqrt(2)
        constants = hash_constants(2).astype(np.uint32)
        super().__init__(codebook, {"hash_constants": constants, "num_nodes": uint32(num_nodes)}, params)

    @staticmethod
    def first_rows(address, num_rows):
        return [0, num_rows - num_rows // 2]

    codes_of = staticmethod(decoders.double_hashed_codes)
    decode = staticmethod(decoders.double_hashed)


class QuotientRemainder(SharedRows):
    """m remainder rows above ceil(N / m) quotient rows; m and the node count (8 bytes).

    A row has `dim` numbers, dim / 2 where rows are concatenated. Raises BudgetError below the least m + ceil(N / m)
    rows, which is about 2 sqrt(N).
    """

    @dataclass(frozen=True)
    class Params(SharedRows.Params):
        """combine: how the two rows become one vector; init: variance-matched, or as in the suite recsys-benchmark."""

        combine: Literal["add", "multiply", "concatenate"] = "multiply"
        init: Literal["matched", "recsys-benchmark"] = "matched"

        def __post_init__(self):
            super().__post_init__()
            joined = self.combine == "concatenate"
            check(self.dim % 2 == 0 or not joined, "dim", self.dim, "even where rows are concatenated")
            check(self.init == "matched" or not joined, "init", self.init, "'matched' where rows are concatenated")

        @property
        def width(self) -> int:
            return self.dim // 2 if self.combine == "concatenate" else self.dim

    @classmethod
    def from_budget(cls, budget, graph, params):
        divisors = np.arange(1, graph.num_nodes + 1)
        needed = divisors + ceil_divide(graph.num_nodes, divisors)  # rows of both tables; falls to sqrt(N), then grows
        rows = affordable_rows(budget, params, address_bytes=8, at_least=int(needed.min()))
        return cls(graph.num_nodes, int(divisors[needed <= rows][0]), params)

    def __init__(self, num_nodes, divisor, params):
        num_rows = divisor + ceil_divide(num_nodes, divisor)
        codebook = initial_rows(num_rows, num_nodes, params)
        super().__init__(codebook, {"divisor": uint32(divisor), "num_nodes": uint32(num_nodes)}, params)

    @staticmethod
    def first_rows(address, num_rows):
        return [0, int(address["divisor"][0])]

    codes_of = staticmethod(decoders.quotient_remainder_codes)
    decode = staticmethod(decoders.quotient_remainder)

    def table(self):
        return decoders.combined(self.parts(), self.params)  # (N, d)

    def leftover(self, budget):
        divisor, num_nodes = (int(self.address[name][0]) for name in ("divisor", "num_nodes"))
        if divisor == 1:
            return "every user and item has a row of its own"
        rows = divisor - 1 + ceil_divide(num_nodes, divisor - 1) - len(self.codebook)
        return self.price(budget, "the next smaller divisor", rows)

    def linear_form(self, graph):
        return None if self.params.combine == "multiply" else super().linear_form(graph)

    def summands(self):
        if self.params.combine == "add":
            return self.codebook
        return torch.block_diag(*self.codebook.tensor_split([int(self.address["divisor"][0])]))


def affordable_rows(budget, params, address_bytes, at_least):
    """Return how many rows fit beside the address. Raises BudgetError below `at_least`."""
    budget.require_size()
    fixed = budget.measure(numbers=0, nbytes=address_bytes)
    per_row = budget.measure(numbers=params.width, nbytes=row_bytes(params.width, params.storage))
    if budget.amount < fixed + at_least * per_row:
        raise BudgetError(needs=fixed + at_least * per_row, budget=budget)
    return (budget.amount - fixed) // per_row


def initial_rows(num_rows, num_nodes, params):
    """Return the initial rows (num_rows, width) of quotient-remainder hashing (METHODS.md 8.3)."""
    shape, std = (num_rows, params.width), params.init_std
    if params.init == "recsys-benchmark" and params.combine == "multiply":
        return torch.empty(shape).uniform_(math.sqrt(1 / num_nodes), 1)
    if params.init == "recsys-benchmark":
        return torch.randn(shape) * std / 2
    row_std = {"add": std / math.sqrt(2), "multiply": math.sqrt(std), "concatenate": std}
    return torch.randn(shape) * row_std[params.combine]


def ceil_divide(numerator, denominator):
    return -(-numerator // denominator)


def uint32(value):
    return np.array([value], dtype=np.uint32)
