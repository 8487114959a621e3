"""What methods with a codebook share: sparse assignments, their closed-form update, and what fits a budget."""

import bisect
import math

import numpy as np
import scipy.sparse as sp
import torch

from c2f.decoding import (
    HASH_PRIME,
    number_bytes,
    pack,
    row_bytes,
    smallest_uint,
    sparse_assignment,
    sparse_bytes,
    unpack,
)
from c2f.errors import BudgetError


def hash_constants(count: int) -> np.ndarray:
    """Draw the constants (a, b) of so many universal hashes from torch's default generator: (count, 2) int64."""
    return torch.stack([torch.randint(1, HASH_PRIME, (count,)), torch.randint(0, HASH_PRIME, (count,))], dim=1).numpy()


def assignment_matrix(codes, weights, num_codes: int) -> sp.csr_array:
    """Return the sparse (n, num_codes) matrix with `weights` (n, t) at columns `codes` (n, t); zero weights dropped."""
    return sparse_assignment(sp.csr_array, codes, weights, num_codes)


def anchored_assignment(anchors, num_codes: int, codes_per_node: int, anchor_weight: float, generator):
    """Return codes (n, t) and weights (n, t): the anchor code, and t - 1 other codes at random (METHODS.md 3.3).

    anchors: (n,) code of every node, as a partition gives it; the others share 1 - anchor_weight equally.
    generator: numpy Generator.
    """
    num_nodes, num_others = len(anchors), codes_per_node - 1
    if num_others == 0:
        return np.asarray(anchors, dtype=np.int64)[:, None], np.ones((num_nodes, 1), dtype=np.float32)
    # Distinct columns among the others: draw offsets 1..c-1 from the anchor without replacement.
    offsets = np.empty((num_nodes, num_others), dtype=np.int64)
    for slot in range(num_others):
        draw = generator.integers(1, num_codes - slot, size=num_nodes)
        for taken in np.sort(offsets[:, :slot], axis=1).T:
            draw += draw >= taken
        offsets[:, slot] = draw
    codes = np.hstack([np.asarray(anchors)[:, None], (np.asarray(anchors)[:, None] + offsets) % num_codes])
    weights = np.full(codes.shape, (1 - anchor_weight) / num_others, dtype=np.float32)
    weights[:, 0] = anchor_weight
    return codes, weights


def pseudo_inverse(matrix: torch.Tensor, rcond: float = 1e-6) -> torch.Tensor:
    """Return the Moore-Penrose inverse (d, c) of (c, d), computed in float64, singular values below rcond cut."""
    return torch.linalg.pinv(matrix.double(), rtol=rcond)


def closest_codes(nodes: torch.Tensor, codebook: torch.Tensor, codes_per_node: int, rows_at_once: int = 8192):
    """Return codes (n, t) and weights (n, t): the t largest of each row of nodes @ pinv(codebook) (METHODS.md 3.6).

    Signed, as published; what is then negative is set to 0. nodes: (n, d), codebook: (c, d).
    Works in blocks of rows, so no (n, c) matrix is held.
    """
    inverse = pseudo_inverse(codebook).to(nodes.dtype)
    blocks = [torch.topk(block @ inverse, codes_per_node, dim=1) for block in nodes.split(rows_at_once)]
    weights = torch.cat([block.values for block in blocks]).clamp_min(0)
    return torch.cat([block.indices for block in blocks]), weights


def feasible_codes(budget, per_code, fixed, at_least: int = 1) -> int:
    """Return how many codes fit the budget; ids are stored in the smallest type that holds them.

    per_code, fixed: functions of an id's bytes that return (numbers, bytes) of one code and of everything else.
    Raises BudgetError where `at_least` codes do not fit, and for the budget `full`.
    """
    budget.require_size()

    def cost(pair) -> int:
        return budget.measure(numbers=pair[0], nbytes=pair[1])

    best = 0
    for id_bytes, most in ((1, 2**8), (2, 2**16), (4, 2**32)):
        room = budget.amount - cost(fixed(id_bytes))
        best = max(best, min(most, int(room // cost(per_code(id_bytes)))))
    if best < at_least:
        id_bytes = smallest_uint(at_least).itemsize
        raise BudgetError(needs=cost(fixed(id_bytes)) + at_least * cost(per_code(id_bytes)), budget=budget)
    return best


def coarse_codes(budget, graph, params) -> int:
    """Return the number of codes c of LEGCF, or of the coarse stage of C2F, within the budget.

    params: dim, codes_per_node, num_codes, codebook_share, storage, weight_storage. Charged: a row for each code; per
    node t weights and t ids. Raises BudgetError where codes_per_node codes do not fit.
    """
    per_node, per_code = params.codes_per_node, row_bytes(params.dim, params.storage)

    def fixed(id_bytes):
        return 0, assignment_bytes(graph.num_nodes, per_node, id_bytes, params.weight_storage)

    if params.num_codes is not None:
        numbers, nbytes = fixed(smallest_uint(params.num_codes).itemsize)
        budget.require(numbers=numbers + params.num_codes * params.dim, nbytes=nbytes + params.num_codes * per_code)
        return params.num_codes
    least = math.ceil(per_node / params.codebook_share)
    feasible = feasible_codes(budget, lambda _: (params.dim, per_code), fixed, at_least=least)
    return min(int(feasible * params.codebook_share + 1e-9), graph.num_nodes)


def assignment_bytes(num_rows: int, per_row: int, id_bytes: int, weight_storage: str) -> int:
    """Return the bytes of `per_row` ids and weights for each row; uint8 weights have a scale for each column."""
    scales = 2 * per_row * (weight_storage == "uint8")
    return num_rows * per_row * (number_bytes(weight_storage) + id_bytes) + scales


def as_stored(tensor: torch.Tensor, storage: str, axis: int = 1) -> torch.Tensor:
    """Return the values that `pack` keeps of a tensor: what is trained in float32 is served as these."""
    return torch.from_numpy(unpack("x", pack("x", tensor.detach().cpu().numpy(), storage, axis))).to(tensor.device)


def feasible_nonzeros(budget, num_rows: int, dim: int, at_least: int = 1) -> int:
    """Return how many non-zeros of a (num_rows, dim) matrix fit the budget, at most all of them.

    Charged as `pack_sparse` stores them. Raises BudgetError where `at_least` do not fit, and for the budget `full`.
    """
    budget.require_size()

    def cost(nonzero: int) -> int:
        return budget.measure(numbers=nonzero, nbytes=sparse_bytes(num_rows, dim, nonzero))

    if cost(at_least) > budget.amount:
        raise BudgetError(needs=cost(at_least), budget=budget)
    return bisect.bisect_right(range(num_rows * dim + 1), budget.amount, key=cost) - 1
