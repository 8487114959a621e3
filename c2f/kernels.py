"""Sparse products and scores of triples on processors, compiled on first use and kept beside this file.

A row's sum stays in registers, LANES numbers at a time, and a table that is gathered from is laid out in blocks of
LANES columns, so that most of what is gathered from lies in the processor's nearest cache. Gowalla's three layers of
128 columns, beside the product with whole rows and numba's own vectorisation, in the same run: 53 ms and 121 on two
cores, 104 and 186 on one, the same bits.
"""

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided


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
from llvmlite import ir  # noqa: E402 - what numba compiles with
from numba.extending import intrinsic  # noqa: E402

LANES = 32
"""Columns that are summed at a time: two cache lines of float32, one of bfloat16."""
NARROWEST = 64
"""Fewest columns, of multiples of LANES, that are worth a process's first call: 0.4 s even where it is kept."""
CHUNKS = 64
"""Groups of rows with about the same number of non-zeros, shared among the threads."""


def balanced_chunks(indptr: np.ndarray) -> np.ndarray:
    """Return the first row of every chunk, and the number of rows: (CHUNKS + 1,) int64."""
    first = np.searchsorted(indptr, np.linspace(0, indptr[-1], CHUNKS + 1)[1:-1])
    return np.concatenate([[0], first, [len(indptr) - 1]]).astype(np.int64)


def multiply(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, chunks: np.ndarray, x: np.ndarray):
    """Return csr @ x for x (n, w) float32 in C order, w a multiple of LANES: (rows of csr, w).

    A row is summed by one thread, in csr order, so the result does not depend on the number of threads.
    The indices must be below n: the compiled loop does not check them.
    """
    product = _empty((len(indptr) - 1, x.shape[1]))
    zeros = as_strided(np.zeros(LANES, np.float32), (x.shape[1] // LANES, len(product), LANES), (0, 0, 4))
    every = np.arange(len(product), dtype=np.int32)
    _product(False, False)(indptr, indices, data, every, chunks, _columns(x), zeros, np.float32(1), _columns(product))
    return product


def propagate(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    chunks: np.ndarray,
    x: np.ndarray,
    num_layers: int,
    rows: np.ndarray | None = None,
    given: np.ndarray | None = None,
    halved: bool = False,
) -> np.ndarray:
    """Return the mean of csr^l @ x over l = 0..num_layers, at least 1, for a square csr and x (n, w) as in `multiply`.

    A row's sum starts at x, and the last layer divides: no pass over (n, w) beside the products. rows: (k,) int32, of
    which alone the last layer is made, and the mean returned, (k, w). given: (k,) int32, distinct; x has these rows
    alone, (k, w), and the others are 0. halved: what a layer reads, and all but the last one write, is rounded to the
    nearest bfloat16 (ties to even); sums stay float32.
    """
    every = np.arange(len(indptr) - 1, dtype=np.int32)
    if given is None:
        start, read, read_at = x, blocks(x, halved), indices
    else:  # the first layer reads x and, in the place of every other row, one more of zeros, which stays in the cache
        where, filled = torch.from_numpy(given).long(), torch.from_numpy(x)
        start = torch.zeros(len(every), x.shape[1]).index_copy_(0, where, filled).numpy()
        read = blocks(torch.cat([filled, torch.zeros(1, x.shape[1])]).numpy(), halved)
        places = torch.full((len(every),), len(given), dtype=torch.int32)
        places[where] = torch.arange(len(given), dtype=torch.int32)
        read_at = places.index_select(0, torch.from_numpy(indices)).numpy()
    start = _columns(start)
    for _ in range(num_layers - 1):
        written = _empty((len(start), len(every), LANES), halved)
        _product(halved, halved)(indptr, read_at, data, every, chunks, read, start, np.float32(1), written)
        read, read_at = written, indices
    if rows is None:
        rows = every
    else:
        chunks = balanced_chunks(np.cumsum(np.append(0, np.diff(indptr)[rows])))
    mean = _empty((len(rows), x.shape[1]))
    scale = np.float32(1 / (num_layers + 1))
    _product(halved, False)(indptr, read_at, data, rows, chunks, read, start, scale, _columns(mean))
    return mean


def blocks(x: np.ndarray, halved: bool = False) -> np.ndarray:
    """Return x (n, w) with LANES columns side by side, (w / LANES, n, LANES), or their bfloat16's bits as uint16."""
    columns = _columns(x)
    copied = _empty(columns.shape, halved)
    (_round_blocks if halved else _copy_blocks)(columns, copied)
    return copied


def triple_margins(x: np.ndarray, user: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return <x_u, x_i - x_j> for rows (B,) of x (n, w) float32: (B,). The rows are not checked."""
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


def _columns(x: np.ndarray) -> np.ndarray:
    """Return a view of x (n, w) as blocks of columns, (w / LANES, n, LANES)."""
    return x.reshape(len(x), x.shape[1] // LANES, LANES).transpose(1, 0, 2)


def _empty(shape, halved: bool = False) -> np.ndarray:
    """Return an array that starts at a cache line, as torch's do and NumPy's do not: no row lies across one more."""
    return torch.empty(tuple(shape), dtype=torch.uint16 if halved else torch.float32).numpy()


@cache
def _product(halves_in: bool, halves_out: bool):
    """Return the compiled product: written = scale * (csr @ x + plus)[rows], in blocks (b, n, LANES) of any strides.

    chunks: of places in rows.
    """
    x, written = ("uint16[:, :, :]" if halved else "float32[:, :, :]" for halved in (halves_in, halves_out))
    csr_rows_chunks = "int32[::1], int32[::1], float32[::1], int32[::1], int64[::1]"

    @numba.njit(f"void({csr_rows_chunks}, {x}, float32[:, :, :], float32, {written})", parallel=True, cache=True)
    def product_of_chunks(indptr, indices, data, rows, chunks, x, plus, scale, written):
        num_chunks, stride = len(chunks) - 1, x.strides[1]
        columns, weights = indices.ctypes.data, data.ctypes.data
        for task in numba.prange(len(x) * num_chunks):  # a thread's tasks are neighbours: it stays with a block
            block, chunk = task // num_chunks, task % num_chunks
            read = x.ctypes.data + block * x.strides[0]
            begin = plus.ctypes.data + block * plus.strides[0]
            end = written.ctypes.data + block * written.strides[0]
            for place in range(chunks[chunk], chunks[chunk + 1]):
                row = np.int64(rows[place])
                first, past = np.int64(indptr[row]), np.int64(indptr[row + 1])
                at, to = begin + row * plus.strides[1], end + place * written.strides[1]
                _sum_of_row(halves_in, halves_out, columns, weights, first, past, read, stride, at, scale, to)  # type: ignore[call-arg]

    return product_of_chunks


@intrinsic(prefer_literal=True)
def _sum_of_row(_, halves_in, halves_out, columns, weights, first, past, rows, stride, begin, scale, end):
    """Write scale * (begin + sum of weights[p] * rows[columns[p]] over p = first..past-1) to `end`, LANES numbers each.

    All are addresses but the two literals, first, past, stride (bytes from row to row) and scale. As numba would unroll
    so short an inner loop and keep its sums in memory, it is written in LLVM's own vectors.
    """
    kinds = (halves_in, halves_out, columns, weights, first, past, rows, stride, begin, scale, end)
    halves_in, halves_out = halves_in.literal_value, halves_out.literal_value
    number, half, word, long = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
    numbers, halves, words = (ir.VectorType(kind, LANES) for kind in (number, half, word))

    def generate(context, at, _, arguments):
        _, _, columns, weights, first, past, rows, stride, begin, scale, end = arguments

        def load(kind, address):
            return at.load(at.inttoptr(address, kind.as_pointer()), align=2 if kind is halves else 4)

        def element(kind, array, place):
            return at.load(at.gep(at.inttoptr(array, kind.as_pointer()), [place]))

        def everywhere(value):
            nothing = ir.Constant(numbers, ir.Undefined)
            return at.shuffle_vector(at.insert_element(nothing, value, word(0)), nothing, constant(0))

        def constant(value):
            return ir.Constant(words, [value] * LANES)

        begun, before = load(numbers, begin), at.block
        head, body, after = (at.append_basic_block(name) for name in ("head", "body", "after"))
        at.branch(head)
        at.position_at_end(head)
        place, total = at.phi(long), at.phi(numbers)
        at.cbranch(at.icmp_signed("<", place, past), body, after)
        at.position_at_end(body)
        row = at.add(rows, at.mul(at.sext(element(word, columns, place), long), stride))
        if halves_in:
            read = at.bitcast(at.shl(at.zext(load(halves, row), words), constant(16)), numbers)
        else:
            read = load(numbers, row)
        weighted = at.fmul(read, everywhere(element(number, weights, place)), flags=["contract"])
        added, next_place = at.fadd(total, weighted, flags=["contract"]), at.add(place, long(1))
        for phi, at_first, later in ((place, first, next_place), (total, begun, added)):
            phi.add_incoming(at_first, before)
            phi.add_incoming(later, at.block)
        at.branch(head)
        at.position_at_end(after)
        found = at.fmul(total, everywhere(scale))
        if halves_out:
            bits = at.bitcast(found, words)
            even = at.and_(at.lshr(bits, constant(16)), constant(1))
            rounded = at.lshr(at.add(at.add(bits, constant(0x7FFF)), even), constant(16))
            at.store(at.trunc(rounded, halves), at.inttoptr(end, halves.as_pointer()), align=2)
        else:
            at.store(found, at.inttoptr(end, numbers.as_pointer()), align=4)
        return context.get_dummy_value()

    return numba.types.void(*kinds), generate


@numba.njit(cache=True)
def _rounded(value):
    bits = np.float32(value).view(np.uint32)  # numba wants the type named
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@numba.njit(parallel=True, cache=True)
def _round_blocks(columns, rounded):
    for row in numba.prange(columns.shape[1]):
        for block in range(len(columns)):
            for lane in range(LANES):
                rounded[block, row, lane] = _rounded(columns[block, row, lane])


@numba.njit(parallel=True, cache=True)
def _copy_blocks(columns, copied):
    for row in numba.prange(columns.shape[1]):
        for block in range(len(columns)):
            for lane in range(LANES):
                copied[block, row, lane] = columns[block, row, lane]


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
