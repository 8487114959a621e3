"""Each stage as a plain program does it: right, readable, and without a thought for speed. `bench.py` compares.

Written from the equations (baselines/METHODS.md, whose sections are named), with nothing of the engine's: Python loops
over pairs, a set of items for every user, COO matrices through torch's autograd with all layers kept, dense (N, c)
arrays, one user scored at a time. Node ids: users first, then items.
"""

import math
import random

import numpy as np
import scipy.sparse as sp
import torch

# Data and graphs ------------------------------------------------------------------------------------------------------


def read_lists(path) -> tuple[np.ndarray, np.ndarray]:
    """Return the users and items of `user item item ...` lines, in the file's order."""
    users, items = [], []
    with open(path) as lines:
        for line in lines:
            user, *liked = map(int, line.split())
            for item in liked:
                users.append(user)
                items.append(item)
    return np.array(users), np.array(items)


def normalised(matrix) -> sp.csr_array:
    """Return D^-1/2 M D^-1/2 with D the row sums, 1/sqrt(0) = 0 (1.2)."""
    degrees = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.array([1 / math.sqrt(degree) if degree > 0 else 0.0 for degree in degrees])
    return (sp.diags_array(scale) @ matrix @ sp.diags_array(scale)).tocsr()


def adjacency(user, item, num_users: int, num_items: int) -> sp.csr_array:
    """Return the (N, N) normalised adjacency, its pairs entered one by one (1.2)."""
    size = num_users + num_items
    matrix = sp.dok_array((size, size), dtype=np.float64)
    for u, i in zip(user.tolist(), item.tolist(), strict=True):
        matrix[u, num_users + i] = 1
        matrix[num_users + i, u] = 1
    return normalised(matrix.tocsr())


def dense_assignment(codes: np.ndarray, weights: np.ndarray, num_codes: int) -> np.ndarray:
    """Return the dense (n, num_codes) float32 matrix with `weights` (n, t) at columns `codes` (n, t)."""
    matrix = np.zeros((len(codes), num_codes), dtype=np.float32)
    for row in range(len(codes)):
        for code, weight in zip(codes[row], weights[row], strict=True):
            matrix[row, code] = weight
    return matrix


def expanded(graph: sp.csr_array, assignment: np.ndarray, bridge: np.ndarray | None = None) -> sp.csr_array:
    """Return the graph over nodes and their codes, from dense assignments (n, c) and (c, f), normalised (3.4, 4.5)."""
    one = sp.csr_array(assignment)
    if bridge is None:
        return normalised(sp.block_array([[graph, one], [one.T, None]], format="csr"))
    other = sp.csr_array(bridge)
    return normalised(sp.block_array([[graph, one, None], [one.T, None, other], [None, other.T, None]], format="csr"))


def partition(graph: sp.csr_array, num_parts: int, seed: int) -> np.ndarray:
    """Return METIS's part of every node, the graph given as a list of neighbours for each."""
    import pymetis

    neighbours = [graph.indices[graph.indptr[node] : graph.indptr[node + 1]].tolist() for node in range(graph.shape[0])]
    options = pymetis.Options(niter=1, seed=seed)
    return np.array(pymetis.part_graph(num_parts, adjacency=neighbours, options=options)[1])


# Sampling -------------------------------------------------------------------------------------------------------------


def items_of_users(user, item, num_users: int) -> list[list[int]]:
    """Return every user's items."""
    items: list[list[int]] = [[] for _ in range(num_users)]
    for u, i in zip(user.tolist(), item.tolist(), strict=True):
        items[u].append(i)
    return items


def sample(items: list[list[int]], known: list[set[int]], num_items: int, draws: int, negatives: int, seed: int):
    """Return users, positives and negatives of `draws` draws, a triple for each negative, shuffled (1.4, S-user).

    items, known: every user's items, as lists and as sets.
    """
    generator = random.Random(seed)
    triples = []
    for _ in range(draws):
        user = generator.randrange(len(items))
        while not items[user]:
            user = generator.randrange(len(items))
        positive = generator.choice(items[user])
        chosen: set[int] = set()
        while len(chosen) < negatives:
            item = generator.randrange(num_items)
            if item not in known[user]:
                chosen.add(item)
        triples += [(user, positive, negative) for negative in chosen]
    generator.shuffle(triples)
    return tuple(np.array(triples).T)


# Training steps -------------------------------------------------------------------------------------------------------


def coo(matrix) -> torch.Tensor:
    """Return a SciPy matrix (or a dense array) as a float32 COO tensor."""
    found = sp.coo_array(matrix)
    places, values = np.stack([found.row, found.col]), found.data.astype(np.float32)
    return torch.sparse_coo_tensor(torch.from_numpy(places), torch.from_numpy(values), found.shape).coalesce()


def propagate(x: torch.Tensor, graph: torch.Tensor, num_layers: int) -> torch.Tensor:
    """Return the mean over the layers 0..num_layers, all kept in one stack (1.3)."""
    layers = [x]
    for _ in range(num_layers):
        layers.append(torch.sparse.mm(graph, layers[-1]))
    return torch.stack(layers, dim=1).mean(dim=1)


def composed(codebook, assignment, graph, num_layers: int, activation: str):
    """Return ego (N, d), propagated nodes (N, d) and codes (c, d) of LEGCF (3.4): the whole table, every time."""
    ego = torch.sparse.mm(assignment, codebook)
    if activation == "tanh":
        ego = torch.tanh(ego)
    final = propagate(torch.cat([ego, codebook]), graph, num_layers)
    return ego, final[: len(ego)], final[len(ego) :]


def coarse_to_fine(trained, codebook, assignment, bridge, graph, num_layers: int, gate: float, threshold: float):
    """Return the propagated nodes (N, d) of C2F's fine stage, layer by layer as released (4.5)."""
    fine = torch.sign(trained) * torch.relu(trained.abs() - threshold)
    nodes = torch.tanh(torch.sparse.mm(assignment, codebook))
    coarse = gate * torch.sparse.mm(bridge, fine) + (1 - gate) * codebook
    ends, fine = (len(nodes), len(nodes) + len(coarse)), torch.tanh(fine)
    layers = [nodes]
    for _ in range(num_layers):
        moved = torch.sparse.mm(graph, torch.cat([nodes, coarse, fine]))
        nodes, coarse, fine = moved[: ends[0]], moved[ends[0] : ends[1]], moved[ends[1] :]
        nodes = nodes - torch.sparse.mm(assignment, coarse)
        of_fine = torch.sparse.mm(bridge, fine)
        coarse = gate * of_fine + (1 - gate) * (coarse - of_fine)
        nodes = nodes + torch.sparse.mm(assignment, coarse)
        layers.append(nodes)
    return torch.stack(layers, dim=1).mean(dim=1)


def loss(ego, final, item_bias, batch, num_users: int, l2: float) -> torch.Tensor:
    """Return BPR and L2 of a batch of triples (1.5); ego None: constant, so that its L2 trains nothing."""
    user, positive, negative = batch[0].long(), batch[1].long(), batch[2].long()
    of_user, of_positive, of_negative = final[user], final[num_users + positive], final[num_users + negative]
    margin = (of_user * of_positive).sum(dim=1) - (of_user * of_negative).sum(dim=1)
    if item_bias is not None:
        margin = margin + item_bias[positive] - item_bias[negative]
    total = torch.nn.functional.softplus(-margin).mean()
    if ego is not None:
        squares = sum(ego[rows].square().sum() for rows in (user, num_users + positive, num_users + negative))
        total = total + l2 * squares / (2 * len(user))
    return total


# Assignment and ranking -----------------------------------------------------------------------------------------------


def updated_assignment(nodes: np.ndarray, codebook: np.ndarray, codes_per_node: int) -> np.ndarray:
    """Return the dense (N, c) assignment with the t largest of each row of H pinv(H_M), negative ones 0 (3.6)."""
    affinity = nodes @ np.linalg.pinv(codebook.astype(np.float64), rcond=1e-6).astype(np.float32)  # (N, c)
    best = np.argsort(-affinity, axis=1)[:, :codes_per_node]
    assignment = np.zeros_like(affinity)
    for row in range(len(best)):
        for code in best[row]:
            assignment[row, code] = max(affinity[row, code], 0)
    return assignment


def user_metrics(user: int, users: np.ndarray, items: np.ndarray, seen: list[int], held_out: list[int], ks) -> dict:
    """Return recall@k and ndcg@k of one user: all items scored and sorted (1.7)."""
    scores = items @ users[user]
    scores[seen] = -np.inf
    ranking = np.argsort(-scores, kind="stable").tolist()
    wanted, values = set(held_out), {}
    for k in ks:
        gains = [1 / math.log2(rank + 2) for rank in range(k) if ranking[rank] in wanted]
        ideal = [1 / math.log2(rank + 2) for rank in range(min(k, len(wanted)))]
        values[f"recall@{k}"], values[f"ndcg@{k}"] = len(gains) / len(wanted), sum(gains) / sum(ideal)
    return values
