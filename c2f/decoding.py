"""From an artifact's arrays to vectors, in NumPy alone: what a method's decoder may use, and what serving imports.

Where a function says "NumPy or torch", a method also trains with it.
"""

import sys

import numpy as np

HASH_PRIME = 2**31 - 1
VALUES_AT_ONCE = 2**20
"""Numbers in one block of a sparse product: 4 MB."""


# Compact arrays -------------------------------------------------------------------------------------------------------


def smallest_uint(count: int) -> np.dtype:
    """Return the smallest unsigned type that holds 0..count-1."""
    return np.min_scalar_type(max(count - 1, 0))


def id_array(codes, num_codes: int) -> np.ndarray:
    """Return code ids in the smallest unsigned type that holds num_codes of them."""
    return np.asarray(codes).astype(smallest_uint(num_codes))


def number_bytes(storage: str) -> int:
    """Return the bytes of a number stored as float32, float16, int8 or uint8."""
    return np.dtype(storage).itemsize


def row_bytes(dim: int, storage: str) -> int:
    """Return the bytes of a row of so many numbers that `pack` stores; int8 has a scale for each row."""
    return dim * number_bytes(storage) + 2 * (storage == "int8")


def pack(name: str, matrix: np.ndarray, storage: str, axis: int = 1) -> dict[str, np.ndarray]:
    """Return the arrays that store a float32 matrix as float32, float16, int8 or (what is not negative) uint8.

    Of 8 bits: `name` holds codes, and `<name>_scales` the float16 step of each row (axis 1) or column (axis 0).
    """
    if storage.startswith("float"):
        return {name: matrix.astype(storage, copy=False)}
    codes, scales = quantise(matrix, int(np.iinfo(storage).max), axis)
    return {name: codes.astype(storage), f"{name}_scales": scales}


def unpack(name: str, arrays: dict) -> np.ndarray:
    """Return the float32 matrix that `pack` stored."""
    if f"{name}_scales" in arrays:
        return arrays[name] * arrays[f"{name}_scales"].astype(np.float32)
    return arrays[name].astype(np.float32, copy=False)


def quantise(matrix: np.ndarray, largest: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (whole float32 numbers up to `largest`) and float16 scales along an axis: matrix = codes * scales.

    Each entry is off by at most half a scale. What was stored so once gives the same codes and scales again.
    """
    wanted = np.abs(matrix).max(axis=axis, keepdims=True, initial=0) / largest
    scales = wanted.astype(np.float16)
    scales = np.where(scales < wanted, np.nextafter(scales, np.float16(np.inf)), scales)  # up, so no code is too large
    return np.rint(matrix / np.where(scales > 0, scales, 1).astype(np.float32)), scales


def universal_hash(num_ids: int, num_buckets: int, constants) -> np.ndarray:
    """Return ((a e + b) mod p) mod num_buckets for the ids e = 0..num_ids-1, p = 2^31 - 1: (num_ids,) int64."""
    a, b = map(int, constants)
    return (a * np.arange(num_ids, dtype=np.int64) + b) % HASH_PRIME % num_buckets


def sparse_bytes(num_rows: int, dim: int, nonzero: int) -> int:
    """Return the bytes of a (num_rows, dim) float32 matrix with so many non-zeros in its cheapest storage."""
    dense, mask = 4 * num_rows * dim, num_rows * ((dim + 7) // 8)
    lists = num_rows * smallest_uint(dim + 1).itemsize + nonzero * smallest_uint(dim).itemsize
    return min(dense, 4 * nonzero + min(mask, lists))


def pack_sparse(name: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of the cheapest storage of a mostly zero (r, d) float32 matrix.

    dense: `name`; or the non-zero values `name` (nnz,) in row order beside either a bitmask `name_mask` (r, ceil(d/8))
    or row counts and column ids `name_counts` (r,), `name_columns` (nnz,).
    """
    nonzero = matrix != 0
    values = matrix[nonzero]
    counts = nonzero.sum(axis=1)
    columns = np.nonzero(nonzero)[1]
    ways = [
        {name: matrix},
        {name: values, f"{name}_mask": np.packbits(nonzero, axis=1)},
        {
            name: values,
            f"{name}_counts": counts.astype(smallest_uint(matrix.shape[1] + 1)),
            f"{name}_columns": columns.astype(smallest_uint(matrix.shape[1])),
        },
    ]
    return min(ways, key=lambda arrays: sum(array.nbytes for array in arrays.values()))


def unpack_sparse(name: str, arrays: dict, dim: int) -> np.ndarray:
    """Return the (r, dim) matrix that `pack_sparse` stored."""
    values = arrays[name]
    if values.ndim == 2:
        return values
    if f"{name}_mask" in arrays:
        nonzero = np.unpackbits(arrays[f"{name}_mask"], axis=1, count=dim).astype(bool)
    else:
        counts = arrays[f"{name}_counts"].astype(np.int64)
        nonzero = np.zeros((len(counts), dim), dtype=bool)
        nonzero[np.repeat(np.arange(len(counts)), counts), arrays[f"{name}_columns"]] = True
    matrix = np.zeros(nonzero.shape, dtype=np.float32)
    matrix[nonzero] = values
    return matrix


def packed_vectors(arrays: dict, params) -> np.ndarray:
    """Return the layer-0 table (N, dim) that `pack_sparse` stored as `vectors`."""
    return unpack_sparse("vectors", arrays, params.dim)


# Sparse matrices and the graph ----------------------------------------------------------------------------------------


class CsrArray:
    """What decoders need of SciPy's csr_array, for where SciPy is not to be imported; float32."""

    def __init__(self, entries, shape):
        """entries: (values, (rows, columns)) as for SciPy; shape: (n, m)."""
        values, (rows, columns) = entries
        order = np.lexsort((columns, rows))
        self.shape = shape
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
        self.indices = np.asarray(columns)[order].astype(np.int32)
        self.data = np.asarray(values)[order].astype(np.float32)

    @property
    def row(self) -> np.ndarray:
        """The row of every entry."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.indptr))

    @property
    def col(self) -> np.ndarray:
        """The column of every entry."""
        return self.indices

    def tocoo(self) -> "CsrArray":
        """Return what has `row`, `col` and `data`: itself."""
        return self

    @property
    def T(self) -> "CsrArray":
        """The transpose."""
        return CsrArray((self.data, (self.col, self.row)), self.shape[::-1])

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        """Return the product with x (m, d) -> (n, d), in blocks of rows."""
        if x.shape[0] != self.shape[1]:
            raise ValueError(f"a matrix of shape {self.shape} cannot multiply {x.shape}")
        result = np.zeros((self.shape[0], x.shape[1]), dtype=np.float32)
        rows = np.flatnonzero(np.diff(self.indptr))  # reduceat takes no empty ones
        starts, ends = self.indptr[rows], self.indptr[rows + 1]
        first = 0
        while first < len(rows):
            reach = starts[first] + max(1, VALUES_AT_ONCE // x.shape[1])
            last = max(first + 1, int(np.searchsorted(ends, reach, side="right")))
            entries = slice(starts[first], ends[last - 1])
            block = x[self.indices[entries]] * self.data[entries, None]
            result[rows[first:last]] = np.add.reduceat(block, starts[first:last] - starts[first], axis=0)
            first = last
        return result


def sparse_assignment(kind, codes, weights, num_codes: int):
    """Return the sparse (n, num_codes) matrix with `weights` (n, t) at columns `codes` (n, t); zero weights dropped.

    kind: CsrArray, or SciPy's csr_array.
    """
    codes, weights = np.asarray(codes), np.asarray(weights, dtype=np.float32)
    num_rows, per_row = codes.shape
    rows = np.repeat(np.arange(num_rows, dtype=np.int32), per_row)
    keep = weights.ravel() != 0
    entries = (weights.ravel()[keep], (rows[keep], codes.ravel()[keep].astype(np.int32)))
    return kind(entries, shape=(num_rows, num_codes))


def symmetric_normalise(matrix):
    """Return D^-1/2 M D^-1/2 with D the row sums and 1/sqrt(0) = 0, float32; csr_array or CsrArray."""
    coo = matrix.tocoo()
    degrees = np.bincount(coo.row, weights=coo.data, minlength=matrix.shape[0])
    scale = np.divide(1.0, np.sqrt(np.maximum(degrees, 0)), out=np.zeros_like(degrees), where=degrees > 0)
    values = coo.data.astype(np.float64) * scale[coo.row] * scale[coo.col]
    return type(matrix)((values.astype(np.float32), (coo.row, coo.col)), shape=matrix.shape)


def normalised_adjacency(kind, user: np.ndarray, item: np.ndarray, num_users: int, num_items: int):
    """Return the (N, N) adjacency D^-1/2 [[0, R], [R^T, 0]] D^-1/2 of the pairs, users first (METHODS.md 1.2).

    kind: CsrArray, or SciPy's csr_array.
    """
    users, items = user.astype(np.int32), item.astype(np.int32) + np.int32(num_users)
    rows, columns = np.concatenate([users, items]), np.concatenate([items, users])
    size = num_users + num_items
    return symmetric_normalise(kind((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(size, size)))


def expanded_adjacency(adjacency, assignment, bridge=None):
    """Return the normalised graph over entities and their codes (METHODS.md 3.4; 4.5 with a bridge).

    adjacency: (N, N), already normalised, and normalised again here, as published; assignment: (N, c) of entities to
    coarse codes; bridge: (c, f) of coarse to fine codes. Result: (N + c [+ f], same). All csr_array or all CsrArray.
    """
    blocks, num_nodes = [adjacency.tocoo()], adjacency.shape[0]
    rows, columns, size = [blocks[0].row], [blocks[0].col], num_nodes
    values = [blocks[0].data]
    above = 0
    for block in [assignment] if bridge is None else [assignment, bridge]:
        coo = block.tocoo()
        row, column = coo.row + np.int32(above), coo.col + np.int32(size)
        rows += [row, column]
        columns += [column, row]
        values += [coo.data, coo.data]
        above, size = size, size + block.shape[1]
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return symmetric_normalise(type(adjacency)(entries, shape=(size, size)))


def propagate(x, adjacency, num_layers: int, rows=None):
    """Return the mean of A^l x over l = 0..num_layers, in Horner form (one running sum, METHODS.md 1.3): (N, d).

    x: (N, d) ndarray or tensor; adjacency: (N, N) csr_array, CsrArray or c2f.ops.SparseMatrix, which has a faster way;
    rows: (k,) distinct ids of the rows to return, (k, d), or None for all.
    """
    if hasattr(adjacency, "propagate"):
        return adjacency.propagate(x, num_layers, rows)
    total = x
    for _ in range(num_layers):
        total = adjacency @ total + x
    return (total if rows is None else total[rows]) / (num_layers + 1)


# Element by element, NumPy or torch -----------------------------------------------------------------------------------


def activate(x, activation: str):
    """Return tanh(x), or x where the activation is `linear`."""
    if activation == "linear":
        return x
    return np.tanh(x) if isinstance(x, np.ndarray) else x.tanh()


def concatenate(blocks):
    """Stack blocks of rows: (n_1, d), (n_2, d), ... -> (n_1 + n_2 + ..., d)."""
    if isinstance(blocks[0], np.ndarray):
        return np.concatenate(blocks)
    return sys.modules["torch"].cat(list(blocks))  # loaded, where there is a tensor
