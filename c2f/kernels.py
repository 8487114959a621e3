"""Sparse products and scores of triples on processors, compiled on first use and kept beside this file.

With the row's width known when compiling, its sum stays in registers. Gowalla's adjacency (1.6 M non-zeros) times 128
columns, against torch.sparse.mm in the same run: 20-37 ms against 31-81 on two cores, 28-37 against 63-150 on one.
"""

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch


def _cache_folder(here: Path, home: Path, temporary: Path) -> Path | None:
    """Return a folder for the compiled loops where numba would find none: neither beside this file nor at home.

    That is a container that runs as a foreign user. The folder must be this user's own: numba runs what lies in it.
    """
    if os.name != "posix" or os.access(here, os.W_OK) or os.access(home, os.W_OK):
        return None
    folder = temporary / f"c2f-numba-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder if folder.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="c2f-numba-"))


if found := _cache_folder(Path(__file__).parent, Path(os.path.expanduser("~")), Path(tempfile.gettempdir())):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(found))
os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))  # idle threads of a larger pool would spin
import numba  # noqa: E402 - it reads both when it is imported

WIDTHS = (64, 128)
"""Columns for which the compiled product is the faster one; at 32 it was not."""
CHUNKS = 64
"""Groups of rows with about the same number of non-zeros, shared among the threads."""


def balanced_chunks(indptr: np.ndarray) -> np.ndarray:
    """Return the first row of every chunk, and the number of rows: (CHUNKS + 1,) int64."""
    first = np.searchsorted(indptr, np.linspace(0, indptr[-1], CHUNKS + 1)[1:-1])
    return np.concatenate([[0], first, [len(indptr) - 1]]).astype(np.int64)


def multiply(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    chunks: np.ndarray,
    x: np.ndarray,
    plus: np.ndarray | None = None,
    scale: float = 1.0,
    nonzero: np.ndarray | None = None,
    halved: bool = False,
) -> np.ndarray:
    """Return scale * (csr @ x + plus) for x (n, w) float32 in C order, w one of WIDTHS: (rows of csr, w).

    plus: (rows of csr, w), or None for nothing; nonzero: (n,) bool, which rows of x are to be read, the others being 0;
    None for all. x may be what `halves` returns; halved: return the like of it. Sums are of float32 in any case.
    A row is summed by one thread, in csr order, so the result does not depend on the number of threads.
    The indices must be below n: the compiled loop does not check them.
    """
    product = np.empty((len(indptr) - 1, x.shape[1]), dtype=np.uint16 if halved else np.float32)
    compiled = _product(x.shape[1], x.dtype == np.uint16, halved)
    compiled(indptr, indices, data, chunks, x, plus, np.float32(scale), nonzero, product)
    return product


def halves(x: np.ndarray) -> np.ndarray:
    """Return x (n, w) float32, finite, rounded to the nearest bfloat16 (ties to even), its bits as uint16."""
    rounded = np.empty(x.shape, dtype=np.uint16)
    _round_all(x, rounded)
    return rounded


def nonzero_rows(x: np.ndarray) -> np.ndarray:
    """Return which rows of x (n, w) float32 have a number that is not 0 (NaN is not): (n,) bool."""
    found = np.empty(len(x), dtype=np.bool_)
    _nonzero_rows(x, found)
    return found


def triple_margins(x: np.ndarray, user: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return <x_u, x_i - x_j> for rows (B,) of x (n, w) float32, w one of WIDTHS: (B,). The rows are not checked."""
    margins = np.empty(len(user), dtype=np.float32)
    _triple_margins(x, user, positive, negative, margins)
    return margins


def triple_gradient(by: np.ndarray, x: np.ndarray, user: np.ndarray, positive: np.ndarray, negative: np.ndarray):
    """Return the gradient (n, w) of the sum of by * triple_margins(x, ...), by (B,) float32, with respect to x.

    It is W x for a sparse symmetric W with the entries (u, i) += by and (u, j) -= by: every row is summed by one
    thread, in the order of the triples, so it is the same in every run.
    """
    rows = np.concatenate([user, user, positive, negative])
    columns = np.concatenate([positive, negative, user, user])
    indptr, indices, data = _by_row(rows, columns, np.concatenate([by, -by, by, -by]), len(x))
    return multiply(indptr, indices, data, balanced_chunks(indptr), x)


@numba.njit(cache=True)
def _widened(half):
    return np.uint32(np.uint32(half) << np.uint32(16)).view(np.float32)


@numba.njit(cache=True)
def _rounded(value):
    bits = np.float32(value).view(np.uint32)  # numba wants the type named
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(parallel=True, cache=True)
def _round_all(x, rounded):
    for row in numba.prange(len(x)):
        for k in range(x.shape[1]):
            rounded[row, k] = _rounded(x[row, k])


@cache
def _product(width: int, halves_in: bool, halves_out: bool):
    @numba.njit(parallel=True, fastmath={"contract"}, cache=True)
    def product_of_chunks(indptr, indices, data, chunks, x, plus, scale, nonzero, product):
        for chunk in numba.prange(len(chunks) - 1):
            total = np.empty(width, np.float32)
            if nonzero is not None:
                read = np.empty(_longest_row(indptr, chunks[chunk], chunks[chunk + 1]), np.int32)
            for row in range(chunks[chunk], chunks[chunk + 1]):
                if plus is None:
                    for k in range(width):
                        total[k] = 0
                else:
                    for k in range(width):
                        total[k] = plus[row, k]
                if nonzero is None:
                    for place in range(indptr[row], indptr[row + 1]):
                        weight, column = data[place], indices[place]
                        for k in range(width):
                            total[k] += weight * (_widened(x[column, k]) if halves_in else x[column, k])
                else:  # a branch inside the sum would keep it out of the registers: ten times as slow
                    count = 0
                    for place in range(indptr[row], indptr[row + 1]):
                        read[count] = place
                        count += nonzero[indices[place]]
                    for chosen in range(count):
                        weight, column = data[read[chosen]], indices[read[chosen]]
                        for k in range(width):
                            total[k] += weight * (_widened(x[column, k]) if halves_in else x[column, k])
                for k in range(width):
                    product[row, k] = _rounded(scale * total[k]) if halves_out else scale * total[k]

    return product_of_chunks


@numba.njit(cache=True)
def _longest_row(indptr, first, last):
    """Return the most entries of a row among first..last-1."""
    longest = 0
    for row in range(first, last):
        longest = max(longest, indptr[row + 1] - indptr[row])
    return longest


@numba.njit(parallel=True, cache=True)
def _nonzero_rows(x, found):
    for row in numba.prange(len(x)):
        k = 0
        while k < x.shape[1] and x[row, k] == 0:
            k += 1
        found[row] = k < x.shape[1]


@numba.njit(parallel=True, fastmath={"contract", "reassoc"}, cache=True)
def _triple_margins(x, user, positive, negative, margins):
    for triple in numba.prange(len(user)):
        u, i, j = user[triple], positive[triple], negative[triple]
        total = np.float32(0)
        for k in range(x.shape[1]):
            total += x[u, k] * (x[i, k] - x[j, k])
        margins[triple] = total


@numba.njit(cache=True)
def _by_row(rows, columns, values, num_rows):
    """Return indptr, indices and data of the entries (e,), those of a row in the order given."""
    indptr = np.zeros(num_rows + 2, np.int32)
    for row in rows:
        indptr[row + 2] += 1
    for row in range(num_rows):
        indptr[row + 2] += indptr[row + 1]
    indices, data = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    for entry in range(len(rows)):
        place = indptr[rows[entry] + 1]
        indices[place], data[place] = columns[entry], values[entry]
        indptr[rows[entry] + 1] += 1
    return indptr[:-1], indices, data
