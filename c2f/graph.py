"""The bipartite training graph and LightGCN propagation; SciPy and torch run the same few lines."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from c2f.data import Interactions


def symmetric_normalise(matrix: sp.csr_array) -> sp.csr_array:
    """Return D^-1/2 M D^-1/2 with D the row sums and 1/sqrt(0) = 0; float32 csr, int32 indices."""
    degrees = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(1.0, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    scaled = matrix.astype(np.float64).tocoo()
    values = scaled.data * scale[scaled.row] * scale[scaled.col]
    return _int32_csr(sp.csr_array((values.astype(np.float32), (scaled.row, scaled.col)), shape=matrix.shape))


def normalised_adjacency(train: Interactions) -> sp.csr_array:
    """Return the (N, N) adjacency D^-1/2 [[0, R], [R^T, 0]] D^-1/2, users first (METHODS.md 1.2)."""
    ratings = train.csr()
    return symmetric_normalise(sp.block_array([[None, ratings], [ratings.T, None]], format="csr"))


def expanded_adjacency(adjacency: sp.csr_array, assignment: sp.csr_array, bridge: sp.csr_array | None = None):
    """Return the normalised graph over entities and their codes (METHODS.md 3.4; 4.5 with a bridge).

    adjacency: (N, N), already normalised, and normalised again here, as published; assignment: (N, c) of entities to
    coarse codes; bridge: (c, f) of coarse to fine codes. Result: (N + c [+ f], same), float32 csr.
    """
    if bridge is None:
        blocks = [[adjacency, assignment], [assignment.T, None]]
    else:
        blocks = [[adjacency, assignment, None], [assignment.T, None, bridge], [None, bridge.T, None]]
    return symmetric_normalise(sp.block_array(blocks, format="csr"))


def propagate(x, adjacency, num_layers: int):
    """Return the mean of A^l x over l = 0..num_layers, in Horner form (one running sum, METHODS.md 1.3).

    x: (N, d) ndarray or tensor; adjacency: (N, N) csr_array or c2f.ops.SparseMatrix.
    """
    total = x
    for _ in range(num_layers):
        total = adjacency @ total + x
    return total / (num_layers + 1)


@dataclass(frozen=True, eq=False)
class Graph:
    """The training pairs as a normalised graph; nodes are users 0..U-1, then items U..N-1. Training pairs only."""

    train: Interactions

    @property
    def num_users(self) -> int:
        return self.train.num_users

    @property
    def num_items(self) -> int:
        return self.train.num_items

    @property
    def num_nodes(self) -> int:
        return self.num_users + self.num_items

    @cached_property
    def adjacency(self) -> sp.csr_array:
        """(N, N) normalised adjacency, float32 csr."""
        return normalised_adjacency(self.train)

    @cached_property
    def item_counts(self) -> np.ndarray:
        """(I,) how many training users each item has."""
        return np.bincount(self.train.item, minlength=self.num_items)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the training pairs in their smallest plain form: item ids per user and a pointer array."""
        return len(self.train) * smallest_uint(self.num_items).itemsize + 4 * (self.num_users + 1)


def smallest_uint(count: int) -> np.dtype:
    """Return the smallest unsigned type that holds 0..count-1."""
    return np.min_scalar_type(max(count - 1, 0))


def _int32_csr(matrix: sp.csr_array) -> sp.csr_array:
    matrix.sort_indices()
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return matrix
