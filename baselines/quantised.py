"""Compress the full LightGCN table after training: fewer bits per number, fewer dimensions, or codes into a codebook.

fp16, int8, int4: uniform scalar quantisation, row by row. pq: product quantisation, Jegou et al., "Product Quantization
for Nearest Neighbor Search", TPAMI 2011, https://doi.org/10.1109/TPAMI.2010.57. Nothing is trained by gradient.

    T = W, the layer-0 table (N, d) of a full run (table: layer0), or H, its propagation (table: final)
    T <- T V      V: the d' leading eigenvectors of T^T T, where fewer than d dimensions fit; the largest d' that does
    fp16          half-precision numbers
    int8, int4    q = round(T / s) with s = max|row| / 127 or / 7, one s per row, so |T - s q| <= s / 2
    pq            d cut into M subspaces; per row and subspace the id of the nearest of K <= 256 k-means centroids;
                  of the (M, K) that fit the one with the most bits M log2 K per node: K = 256 but in small budgets

The axes V are orthonormal and the same for users and items, so (T V)(T V)^T needs no V at query time, and propagation
mixes rows and passes through V. Nothing is centred: that would change dot products.

Deviations, with reasons:
* pq does not rotate and does not centre; an asymmetric distance has no use here, the table itself is rebuilt;
* k-means is scikit-learn's mini-batch one, for a fixed number of steps: its result does not depend on the number of
  threads, as full k-means' does (scikit-learn issue 27518), at 3 % more error (lastfm). At 0.4 seconds a subspace there
  faiss is not worth a dependency;
* scales and centroids are float16: half the bytes, for an error far below that of the codes.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from baselines import decoders
from c2f.api import BudgetError, Codes, EmbeddingMethod, Embeddings, check, load_start, propagate, quantise

LARGEST_CODE = {"int8": 127, "int4": 7}


class QuantisedTable(EmbeddingMethod):
    """Per node d' float16 values; or d' int8 codes, or two int4 codes in a byte, and a float16 scale; or M uint8 codes
    into K * dim float16 centroids.

    As numbers count all codes, scales and centroids, whatever their bits. Raises BudgetError below one dimension, or
    for pq below one subspace with two centroids.
    """

    codes: torch.Tensor
    codebook: torch.Tensor

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """dim, num_layers: as in the full run that it starts from.

        scheme: how a number, or for pq a subvector, is coded; table: layer-0 embeddings, propagated at query time, or
        the final ones, which need no training graph.
        """

        dim: int = 128
        scheme: Literal["fp16", "int8", "int4", "pq"] = "int8"
        table: Literal["layer0", "final"] = "layer0"

        def __post_init__(self):
            super().__post_init__()
            check(self.dim >= 1, "dim", self.dim, "at least 1")

    @classmethod
    def from_budget(cls, budget, graph, params):
        def cost(size):
            numbers, nbytes = stored_size(params.scheme, graph.num_nodes, params.dim, *size)
            return budget.measure(numbers=numbers, nbytes=nbytes)

        centroids = range(2, min(256, graph.num_nodes) + 1) if params.scheme == "pq" else [2]
        sizes = list(itertools.product(range(1, params.dim + 1), centroids))
        fitting = [size for size in sizes if cost(size) <= budget.amount]
        if not fitting:
            raise BudgetError(needs=min(map(cost, sizes)), budget=budget)
        return cls(graph.num_nodes, *max(fitting, key=lambda size: size[0] * math.log2(size[1])), params)

    def __init__(self, num_nodes, codes_per_node, num_centroids, params):
        """codes_per_node: d', or M for pq; num_centroids: K, of use for pq alone."""
        super().__init__(params)
        self.needs_graph = params.table == "layer0"
        self.kinds = {"codebook": "codebook"} if params.scheme == "pq" else {"codes": "vectors"}
        self.codes_per_node = codes_per_node
        self.vectors = torch.zeros(num_nodes, params.dim)  # the full run's; no buffer, so not stored
        width = (codes_per_node + 1) // 2 if params.scheme == "int4" else codes_per_node
        dtype = {"fp16": torch.float16, "int8": torch.int8}.get(params.scheme, torch.uint8)
        self.register_buffer("codes", torch.zeros(num_nodes, width, dtype=dtype))
        if params.scheme in LARGEST_CODE:
            self.register_buffer("scales", torch.zeros(num_nodes, 1, dtype=torch.float16))
        if params.scheme == "pq":
            self.register_buffer("codebook", torch.zeros(num_centroids, params.dim, dtype=torch.float16))

    def fit(self, trainer, start=None):
        load_start(self, start, ["vectors"])
        table = self.vectors.numpy()
        if self.params.table == "final":
            table = propagate(table, trainer.graph.adjacency, self.params.num_layers)
        if self.params.scheme == "pq":
            kept, seed = table, int(trainer.generator("k-means").integers(2**31))
            arrays = product_quantise(kept, self.codes_per_node, len(self.codebook), seed)
        else:
            kept = leading_dimensions(table, self.codes_per_node)
            arrays = scalar_quantise(kept, self.params.scheme)
        for name, array in arrays.items():
            getattr(self, name).copy_(torch.from_numpy(array))
        rounded = self.decode(arrays, self.params)[:, : kept.shape[1]]
        lost = energy(table) - energy(kept) + energy(kept - rounded)  # dimensions left out, and rounding
        self.details |= {"codes_per_node": self.codes_per_node, "relative_squared_error": lost / energy(table)}
        self.to(trainer.device)

    def table(self):
        return torch.from_numpy(self.decode(self.export(), self.params)).to(self.codes.device)  # (N, d')

    def embed(self, graph):
        if self.params.table == "layer0":
            return super().embed(graph)
        final = self.table()
        return Embeddings(final, final)

    def export(self):
        return {name: stored.cpu().numpy() for name, stored in self.named_buffers()}

    def leftover(self, budget):
        if self.codes_per_node == self.params.dim:
            return f"the whole table of `dim` = {self.params.dim} is in it"
        num_nodes, num_centroids = len(self.codes), len(self.codebook) if self.params.scheme == "pq" else 0
        more = 2 if self.params.scheme == "int4" and self.codes_per_node % 2 == 0 else 1  # two codes share a byte

        def size(count):
            return np.array(stored_size(self.params.scheme, num_nodes, self.params.dim, count, num_centroids))

        numbers, nbytes = (size(self.codes_per_node + more) - size(self.codes_per_node)).tolist()
        return budget.price("one more code for every user and item", numbers=numbers, nbytes=nbytes)

    def packed_numbers(self):
        scheme, num_nodes = self.params.scheme, len(self.codes)
        return stored_size(scheme, num_nodes, 0, self.codes_per_node, 0)[0] if scheme == "int4" else None

    @classmethod
    def code_arrays(cls, arrays, params):
        if params.scheme != "pq":  # rounded numbers: they name nothing
            return {}
        codebook, codes = arrays["codebook"], arrays["codes"]
        of = decoders.subspaces(codebook.shape[1], codes.shape[1])
        return {"nodes": [Codes(codebook[:, of == m], codes[:, [m]]) for m in range(codes.shape[1])]}

    decode = staticmethod(decoders.quantised)
    restore = staticmethod(decoders.quantised_table)


def energy(table):
    """Return the sum of squares."""
    return float(np.square(table, dtype=np.float64).sum())


def stored_size(scheme, num_nodes, dim, codes_per_node, num_centroids):
    """Return the (numbers, bytes) of all codes, scales and centroids."""
    codes = num_nodes * codes_per_node
    return {
        "fp16": (codes, 2 * codes),
        "int8": (codes + num_nodes, codes + 2 * num_nodes),
        "int4": (codes + num_nodes, num_nodes * ((codes_per_node + 1) // 2 + 2)),
        "pq": (codes + num_centroids * dim, codes + 2 * num_centroids * dim),
    }[scheme]


def leading_dimensions(table, dim):
    """Return (N, dim): the table in its leading principal axes (not centred), as it is where dim is all it has."""
    if dim == table.shape[1]:
        return table
    gram = table.T.astype(np.float64) @ table
    axes = np.linalg.eigh(gram).eigenvectors[:, ::-1][:, :dim]  # (d, d'), eigenvalues falling
    return table @ axes.astype(np.float32)


def scalar_quantise(table, scheme):
    """Return the arrays `codes` and, but for fp16, `scales` of a table (N, d'), rounded within its row's largest."""
    if scheme == "fp16":
        return {"codes": table.astype(np.float16)}
    codes, scales = quantise(table, LARGEST_CODE[scheme], axis=1)
    codes = codes.astype(np.int8)
    return {"codes": pack_nibbles(codes) if scheme == "int4" else codes, "scales": scales}


def pack_nibbles(codes):
    """Return codes (n, t) within -7..7 as bytes (n, ceil(t / 2)), the first of each two in the lower half."""
    shifted = np.pad((codes + 8).astype(np.uint8), ((0, 0), (0, codes.shape[1] % 2)), constant_values=8)
    return shifted[:, ::2] | shifted[:, 1::2] << 4


def product_quantise(table, num_subspaces, num_centroids, seed):
    """Return `codes` (N, M) and `codebook` (K, d), whose columns of a subspace hold that subspace's centroids."""
    codes = np.empty((len(table), num_subspaces), dtype=np.uint8)
    codebook = np.empty((num_centroids, table.shape[1]), dtype=np.float16)
    of = decoders.subspaces(table.shape[1], num_subspaces)
    for m in range(num_subspaces):
        kmeans = MiniBatchKMeans(
            num_centroids, batch_size=4096, max_iter=10, max_no_improvement=None, n_init=1, random_state=seed
        ).fit(np.ascontiguousarray(table[:, of == m]))
        codes[:, m], codebook[:, of == m] = kmeans.labels_, kmeans.cluster_centers_
    return {"codes": codes, "codebook": codebook}
