"""From the arrays of an artifact to vectors, for every method, in NumPy alone: a server needs nothing else.

A decoder gives the layer-0 table (N, d) from `arrays` and `params`; or, where propagation is another than LightGCN's,
the final vectors (N, d') from `arrays`, `params` and `graph`. It stands here and not beside its method, because that
imports torch. What a method also trains with takes NumPy arrays and tensors alike.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from c2f.decoding import (
    activate,
    concatenate,
    expanded_adjacency,
    propagate,
    sparse_assignment,
    universal_hash,
    unpack,
    unpack_sparse,
)

# Tables ---------------------------------------------------------------------------------------------------------------


def vectors(arrays, params):
    """A dense table."""
    return unpack("vectors", arrays)  # (N, d)


def packed_table(arrays, params):
    """A mostly zero table."""
    return unpack_sparse("table", arrays, params.dim)  # (N, d)


def prefixes(arrays, params):
    """The first numbers of each row; `sizes` says how many, less one."""
    mask = np.arange(params.dim) <= arrays["sizes"][:, None]  # (N, dim)
    table = np.zeros(mask.shape, dtype=np.float32)
    table[mask] = arrays["values"]
    return table


def item_counts(arrays, params, graph):
    """One number per item, the same for every user: final vectors."""
    counts = arrays["item_counts"].astype(np.float32)
    return np.concatenate([np.ones(graph.num_users, dtype=np.float32), counts])[:, None]  # (N, 1)


def singular_vectors(arrays, params, graph):
    """The singular vectors of users and items; or the items' V, and the users' M V: final vectors."""
    final = arrays["vectors"].astype(np.float32)
    if params.users == "folded":
        matrix, item_scale = degree_normalised(graph, params)
        final = np.concatenate([matrix @ final, item_scale * final]).astype(np.float32)
    return final  # (N, r)


def degree_normalised(graph, params):
    """Return M (U, I) of the kind of graph.adjacency, and the items' scale (D_i + o)^p as a column (I, 1)."""
    user, item = graph.train.user, graph.train.item
    user_degrees, item_degrees = np.bincount(user, minlength=graph.num_users), np.bincount(item, None, graph.num_items)
    offset = user_degrees.mean() if params.degree_offset is None else params.degree_offset
    by_user, by_item = (np.maximum(degrees + offset, 1) ** -0.5 for degrees in (user_degrees, item_degrees))
    entries = (by_user[user] * by_item[item], (user, item))
    matrix = type(graph.adjacency)(entries, shape=(graph.num_users, graph.num_items))
    return matrix, ((item_degrees + offset) ** params.item_power)[:, None]


# Shared rows ----------------------------------------------------------------------------------------------------------


def hashed_codes(address, num_rows):
    """Return the codebook row (N, 1) of every node under one hash."""
    return universal_hash(int(address["num_nodes"][0]), num_rows, address["hash_constants"])[:, None]


def hashed(arrays, params):
    """One row of the codebook for each node."""
    codebook = unpack("codebook", arrays)
    return codebook[hashed_codes(arrays, len(codebook))[:, 0]]  # (N, d)


def double_hashed_codes(address, num_rows):
    """Return the rows (N, 2) of every node, in the upper and in the lower half of the codebook."""
    num_nodes, (one, other) = int(address["num_nodes"][0]), address["hash_constants"]
    first = num_rows - num_rows // 2
    rows = universal_hash(num_nodes, first, one), first + universal_hash(num_nodes, num_rows - first, other)
    return np.stack(rows, axis=1)


def double_hashed(arrays, params):
    """The sum of two rows."""
    codebook = unpack("codebook", arrays)
    return codebook[double_hashed_codes(arrays, len(codebook))].sum(1)  # (N, d)


def quotient_remainder_codes(address, num_rows):
    """Return the rows (N, 2) of every node: by the remainder of its id, and by the quotient."""
    divisor, ids = int(address["divisor"][0]), np.arange(address["num_nodes"][0], dtype=np.int64)
    return np.stack([ids % divisor, divisor + ids // divisor], axis=1)


def combined(parts, params):
    """Return the vectors (N, d) made of each node's two rows (N, 2, width); NumPy or torch."""
    if params.combine == "multiply":
        return parts[:, 0] * parts[:, 1]
    return parts.sum(1) if params.combine == "add" else parts.reshape(len(parts), -1)


def quotient_remainder(arrays, params):
    """Two rows, combined."""
    codebook = unpack("codebook", arrays)
    return combined(codebook[quotient_remainder_codes(arrays, len(codebook))], params)  # (N, d)


def row_pairs(num_nodes, num_rows):
    """Return the two rows (N, 2) of every node in P over Q, b rows each: e mod b, and b + floor(e / ceil(N / b))."""
    node = np.arange(num_nodes)
    return np.stack([node % num_rows, num_rows + node // -(-num_nodes // num_rows)], axis=1)


def summed_pairs(arrays, params, graph):
    """The sum of a row of each of two mostly zero codebooks, propagated: final vectors."""
    codebook = unpack_sparse("codebook", arrays, params.dim)
    first, second = row_pairs(graph.num_nodes, len(codebook) // 2).T
    return propagate(codebook[first] + codebook[second], graph.adjacency, params.num_layers)  # (N, d)


# Generated tables -----------------------------------------------------------------------------------------------------

EPSILON = 1e-5
"""What batch normalisation adds to a variance."""


def hash_encoding(num_nodes, constants, params):
    """Return the input (N, k) of a deep hash network for every node id; constants: (k, 2) of (a, b)."""
    buckets = params.num_buckets
    encoding = np.empty((num_nodes, len(constants)), dtype=np.float32)
    for column, pair in zip(encoding.T, constants, strict=True):  # in turn: int64 is twice as large
        hashed = universal_hash(num_nodes, buckets, pair)
        column[:] = 2 * hashed / (buckets - 1) - 1 if params.encoding == "uniform" else (hashed + 1) / buckets
    if params.encoding == "gaussian":
        radius, angle = np.sqrt(-2 * np.log(encoding[:, 0::2])), 2 * np.pi * encoding[:, 1::2]
        encoding[:, 0::2], encoding[:, 1::2] = radius * np.cos(angle), radius * np.sin(angle)
    return encoding


def deep_hash(arrays, params):
    """A network's answers to the hashes of every id."""
    x = hash_encoding(int(arrays["num_nodes"][0]), arrays["hash_constants"], params)  # (N, k)
    for weights, (scale, shift) in zip([arrays["first"], *arrays["deeper"]], arrays["norm"], strict=True):
        x = x @ weights
        mean, variance = x.mean(axis=0, dtype=np.float64), x.var(axis=0, dtype=np.float64)
        x = (x - mean.astype(np.float32)) * (scale / np.sqrt(variance + EPSILON)).astype(np.float32) + shift
        x = x * np.tanh(np.logaddexp(0, x))  # mish
    return x @ arrays["output"] + arrays["bias"]  # (N, d)


def multiply_out(einsum, core_1, core_2, core_3):
    """Return the (n1 n2 n3, d) table of three cores; einsum: NumPy's or torch's."""
    left = einsum("iar,rjbs->ijabs", core_1, core_2)
    table = einsum("ijabs,skc->ijkabc", left, core_3)
    return table.reshape(math.prod(table.shape[:3]), -1)


def tensor_train(arrays, params):
    """The product of three cores, as many rows as there are nodes."""
    cores = (arrays[name] for name in ("core_1", "core_2", "core_3"))
    table = multiply_out(functools.partial(np.einsum, optimize=True), *cores)
    return np.ascontiguousarray(table[: int(arrays["num_nodes"][0])])  # (N, d)


# Quantised tables -----------------------------------------------------------------------------------------------------


def quantised(arrays, params):
    """Codes times their row's scale; or the centroids that the codes name, side by side."""
    codes = arrays["codes"]
    if params.scheme == "pq":
        codebook = arrays["codebook"].astype(np.float32)  # (K, d)
        dim = codebook.shape[1]
        return codebook[codes[:, subspaces(dim, codes.shape[1])], np.arange(dim)]  # (N, d)
    if params.scheme == "fp16":
        return codes.astype(np.float32)
    codes = unpack_nibbles(codes) if params.scheme == "int4" else codes
    return codes * arrays["scales"].astype(np.float32)  # (N, d')


def quantised_table(arrays, params, graph):
    """The quantised table, propagated if it is the one of layer 0: final vectors."""
    table = quantised(arrays, params)
    return table if params.table == "final" else propagate(table, graph.adjacency, params.num_layers)


def unpack_nibbles(packed):
    """Return the codes (n, 2 * bytes), -8..7, of bytes whose lower half is the first of two."""
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1).astype(np.int8) - np.int8(8)


def subspaces(dim, count):
    """Return the subspace (dim,) of every dimension: runs of dim / count, to rounding."""
    return np.arange(dim) * count // dim


# Codes and assignment -------------------------------------------------------------------------------------------------


def composed(arrays, params, graph):
    """Codes and their assignment, propagated over the expanded graph (METHODS.md 3.4): final vectors."""
    codebook = unpack("codebook", arrays)
    assignment = sparse_assignment(type(graph.adjacency), arrays["codes"], unpack("weights", arrays), len(codebook))
    expanded = expanded_adjacency(graph.adjacency, assignment)
    return np.ascontiguousarray(composed_forward(assignment, codebook, expanded, params)[1])  # (N, d)


def composed_forward(assignment, codebook, expanded, params, rows=None):
    """Return ego (N, d), propagated nodes (N, d) and propagated codes (c, d); NumPy or torch.

    rows: (k,) ids of the nodes to return, (k, d), without the codes.
    """
    ego = activate(assignment @ codebook, params.activation)
    propagated = propagate(concatenate([ego, codebook]), expanded, params.num_layers, rows)
    return ego, propagated[: len(ego)], propagated[len(ego) :]


def coarse_to_fine(arrays, params, graph):
    """Coarse codes, sparse fine codes and the bridge between them (METHODS.md 4.5): final vectors."""
    codebook, fine = unpack("codebook", arrays), fine_codes(arrays, params)
    kind = type(graph.adjacency)
    assignment = sparse_assignment(kind, arrays["codes"], unpack("weights", arrays), len(codebook))
    bridge = sparse_assignment(kind, arrays["bridge_codes"], unpack("bridge_weights", arrays), len(fine))
    layers = Layers(assignment, bridge, expanded_adjacency(graph.adjacency, assignment, bridge))
    return np.ascontiguousarray(fine_forward(layers, codebook, fine, params)[1])  # (N, d)


def fine_codes(arrays, params):
    """Return the sparse fine codes (f, d)."""
    fine = {"fine": unpack_sparse("fine", arrays, params.dim)}
    return unpack("fine", fine | {"fine_scales": arrays["fine_scales"]} if "fine_scales" in arrays else fine)


@dataclass(frozen=True)
class Layers:
    """assignment S1 (N, c), bridge S2 (c, f), expanded G (N + c + f, same): NumPy or torch."""

    assignment: Any
    bridge: Any
    expanded: Any

    def propagate(self, nodes, coarse, fine, gate, num_layers):
        """Return the means over the layers of nodes (N, d), coarse codes (c, d) and fine codes (f, d)."""
        ends = len(nodes), len(nodes) + len(coarse)
        current = total = concatenate([nodes, coarse, fine])
        for _ in range(num_layers):
            moved = self.expanded @ current
            nodes, coarse, fine = moved[: ends[0]], moved[ends[0] : ends[1]], moved[ends[1] :]
            corrected = (1 - gate) * coarse + (2 * gate - 1) * (self.bridge @ fine)
            current = concatenate([nodes + self.assignment @ (corrected - coarse), corrected, fine])
            total = total + current
        mean = total / (num_layers + 1)
        return mean[: ends[0]], mean[ends[0] : ends[1]], mean[ends[1] :]


def fine_forward(layers, codebook, sparse_fine, params):
    """Return ego (N, d) and the propagated nodes (N, d), coarse codes (c, d), fine codes (f, d); NumPy or torch."""
    gate = params.gate
    gated = gate * (layers.bridge @ sparse_fine) + (1 - gate) * codebook  # (c, d)
    shown = codebook if params.compose == "released" else gated
    ego = activate(layers.assignment @ shown, params.activation)
    fine = activate(sparse_fine, params.activation)
    return ego, *layers.propagate(ego, gated, fine, gate, params.num_layers)
