"""Balanced parts of the training graph: METIS, or recursive spectral bisection.

The latter where pymetis is not installed, or METIS leaves parts empty, as it does below a few nodes a part.
"""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from c2f.errors import DataError
from c2f.graph import Graph
from c2f.record import ZIP_ERRORS, read_npz, write_atomically, write_npz


def partition(graph: Graph, num_parts: int, seed: int, folder: Path | None = None) -> tuple[np.ndarray, str]:
    """Return (parts, engine): the part of every node (N,) int32, and which partitioner made it.

    Users and items together, edges unweighted, node counts balanced (METHODS.md 3.3). With a folder, the result is kept
    there under a name that holds the pairs' hash, the number of parts and the seed, so it never serves another request;
    what was made without METIS, or by another version of it, is made anew where METIS is installed.
    """
    if folder is None:
        return _compute(graph, num_parts, seed)
    pairs = hashlib.sha256(graph.train.user.tobytes() + graph.train.item.tobytes()).hexdigest()[:12]
    path = Path(folder) / f"partition-{num_parts}-{seed}-{pairs}.npz"
    if not path.exists() or _is_stale(_load(path)[1]):
        parts, engine = _compute(graph, num_parts, seed)
        with write_atomically(path) as temporary, open(temporary, "wb") as stream:
            write_npz(stream, {"parts": parts, "engine": np.array(engine)})
    parts, engine = _load(path)
    if parts.shape != (graph.num_nodes,) or parts.min() < 0 or parts.max() >= num_parts:
        raise DataError(f"{path} does not hold {num_parts} parts of {graph.num_nodes} nodes; delete it")
    return parts, engine


def _load(path: Path) -> tuple[np.ndarray, str]:
    try:
        stored = read_npz(path)
        return stored["parts"], str(stored["engine"])
    except ZIP_ERRORS as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run the same command again") from None


def _is_stale(engine: str) -> bool:
    if importlib.util.find_spec("pymetis") is None:
        return False
    return engine == "spectral" or (engine.startswith("pymetis") and engine != _metis())


def _metis() -> str:
    import pymetis

    return f"pymetis {pymetis.version}"


def _compute(graph: Graph, num_parts: int, seed: int) -> tuple[np.ndarray, str]:
    if num_parts == 1:
        return np.zeros(graph.num_nodes, dtype=np.int32), "one part"
    try:
        import pymetis
    except ImportError:
        return spectral_parts(graph.adjacency, num_parts, seed), "spectral"
    # Seeds 0 and 1 give the same partition in METIS, so count from 2; one refinement pass, as published.
    options = pymetis.Options(niter=1, seed=seed % 2**30 + 2)
    neighbours = pymetis.CSRAdjacency(graph.adjacency.indptr, graph.adjacency.indices)
    _, parts = pymetis.part_graph(num_parts, neighbours, options=options)
    if len(np.unique(parts)) < num_parts:  # METIS does this where a part is to hold only a few nodes
        return spectral_parts(graph.adjacency, num_parts, seed), "spectral, as METIS left parts empty"
    return np.asarray(parts, dtype=np.int32), _metis()


def spectral_parts(adjacency: sp.csr_array, num_parts: int, seed: int) -> np.ndarray:
    """Return balanced parts (N,) int32 by recursive bisection along a smooth vector of each subgraph.

    Each half is cut at the node count that its share of parts deserves; sizes differ by at most one per level.
    """
    parts = np.zeros(adjacency.shape[0], dtype=np.int32)
    generator = np.random.default_rng(seed)
    queue = [(np.arange(adjacency.shape[0]), 0, num_parts)]
    while queue:
        nodes, first, count = queue.pop()
        if count == 1 or len(nodes) == 0:
            parts[nodes] = first
            continue
        order = np.argsort(_smooth_vector(adjacency[nodes][:, nodes], generator), kind="stable")
        left = count // 2
        cut = round(len(nodes) * left / count)
        queue.append((nodes[order[:cut]], first, left))
        queue.append((nodes[order[cut:]], first + left, count - left))
    return parts


def _smooth_vector(subgraph: sp.csr_array, generator, steps: int = 20) -> np.ndarray:
    """Return an approximate second eigenvector of the lazy random walk on the subgraph, by power iteration."""
    degrees = np.asarray(subgraph.sum(axis=1)).ravel() + 1e-9
    stationary = degrees / degrees.sum()
    vector = generator.standard_normal(len(degrees))
    for _ in range(steps):
        vector -= stationary @ vector
        vector = 0.5 * vector + 0.5 * (subgraph @ vector) / degrees
        vector /= np.abs(vector).max() + 1e-300
    return vector
