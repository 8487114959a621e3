"""The bipartite training graph."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from c2f.data import Interactions
from c2f.decoding import normalised_adjacency, smallest_uint


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
        return normalised_adjacency(sp.csr_array, self.train.user, self.train.item, self.num_users, self.num_items)

    @cached_property
    def item_counts(self) -> np.ndarray:
        """(I,) how many training users each item has."""
        return np.bincount(self.train.item, minlength=self.num_items)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the training pairs in their smallest plain form: item ids per user and a pointer array."""
        return len(self.train) * smallest_uint(self.num_items).itemsize + 4 * (self.num_users + 1)
