"""Tensor operations that several methods share."""

import contextlib
import ctypes
import warnings
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch

from c2f import kernels


class SparseMatrix:
    """A constant sparse matrix on a device; products with it are differentiable in x and save no activations.

    The transpose needed backward is prepared once; a symmetric matrix is its own.
    """

    def __init__(self, matrix: sp.csr_array, device: torch.device | str = "cpu", symmetric: bool = False):
        self.shape, self._device = matrix.shape, device
        self._forward = _Csr(matrix, device)
        self._backward = self._forward if symmetric else _Csr(matrix.T.tocsr(), device)

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x, self._forward, self._backward)

    def propagate(self, x: torch.Tensor, num_layers: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean of A^l x over l = 0..num_layers for this A (N, N) and x (N, d), of all rows or of `rows`.

        See decoding.propagate.
        """
        return _Propagation.apply(x, self._forward, self._backward, num_layers, rows)

    def gram(self) -> "SparseMatrix":
        """Return the (m * m, n) matrix that makes of weights (n, 1) the numbers of A^T diag(weights) A, for A (n, m).

        It has an entry for every pair of entries in a row of A.
        """
        indptr, indices, data = self._forward.arrays
        num_rows, num_columns = self.shape
        squares = np.diff(indptr) ** 2
        row = np.repeat(np.arange(num_rows), squares)  # of every pair
        pair = np.arange(len(row)) - np.repeat(np.cumsum(squares) - squares, squares)  # counted from the row's first
        one, other = (indptr[row] + part for part in np.divmod(pair, np.diff(indptr)[row]))
        entries = (data[one] * data[other], (indices[one].astype(np.int64) * num_columns + indices[other], row))
        return SparseMatrix(sp.csr_array(entries, shape=(num_columns**2, num_rows)), self._device)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, matrix, transposed):
        ctx.transposed = transposed
        return matrix.multiply(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.transposed.multiply(gradient), None, None


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, matrix, transposed, num_layers, rows):
        ctx.transposed, ctx.num_layers, ctx.rows = transposed, num_layers, rows
        return matrix.propagate(x, num_layers, rows)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.transposed.propagate(gradient, ctx.num_layers, given=ctx.rows), None, None, None, None


class _Csr:
    """Float32 values and int32 indices on a device, multiplied in the fastest way there."""

    def __init__(self, matrix: sp.csr_array, device):
        self.arrays = (
            matrix.indptr.astype(np.int32, copy=False),
            matrix.indices.astype(np.int32, copy=False),
            matrix.data.astype(np.float32, copy=False),
        )
        self._chunks = kernels.balanced_chunks(matrix.indptr)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse")  # "beta state" and "invariant checks"
            indptr, indices, data = map(torch.from_numpy, self.arrays)
            self._tensor = torch.sparse_csr_tensor(indptr, indices, data, size=matrix.shape).to(device)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return this matrix times x (n, d), outside autograd."""
        if x.shape[0] != self._tensor.shape[1]:
            raise ValueError(f"a matrix of shape {tuple(self._tensor.shape)} cannot multiply {tuple(x.shape)}")
        x = x.contiguous()
        if x.device.type != "cpu":
            return self._added_in_order(x) if torch.are_deterministic_algorithms_enabled() else self._tensor @ x
        if compiled_for(x):
            return torch.from_numpy(kernels.multiply(*self.arrays, self._chunks, x.detach().numpy()))
        return torch.sparse.mm(self._tensor, x, "sum")  # up to four times as fast as the plain product

    def _added_in_order(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product by index_add_, which torch's deterministic mode knows on CUDA, as it does not know CSR's.

        It takes the entries times d numbers of memory.
        """
        tensor = self._tensor
        counts = tensor.crow_indices().diff().long()
        rows = torch.repeat_interleave(torch.arange(len(counts), device=x.device), counts)
        parts = tensor.values()[:, None] * x[tensor.col_indices().long()]
        return x.new_zeros(len(counts), x.shape[1]).index_add_(0, rows, parts)

    def propagate(
        self,
        x: torch.Tensor,
        num_layers: int,
        rows: torch.Tensor | None = None,
        given: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the mean of A^l x (N, d) over l = 0..num_layers, of all rows or of `rows` (k,), outside autograd.

        given: (k,) distinct ids of the rows that x (k, d) has, the others being 0; None for all.
        """
        num_rows = self._tensor.shape[1]
        if x.shape[0] != (num_rows if given is None else len(given)):
            raise ValueError(f"a matrix of shape {tuple(self._tensor.shape)} cannot propagate {tuple(x.shape)}")
        if num_layers == 0 or not compiled_for(x):
            if given is not None:
                x = x.new_zeros(num_rows, x.shape[1]).index_copy_(0, given, x)
            total = x
            for _ in range(num_layers):
                total = self.multiply(total).add_(x)
            return (total if rows is None else total.index_select(0, rows)) / (num_layers + 1)
        table = x.detach().contiguous().numpy()
        wanted, filled = (None if ids is None else ids.int().numpy() for ids in (rows, given))
        mean = kernels.propagate(*self.arrays, self._chunks, table, num_layers, wanted, filled, _in_halves)
        return torch.from_numpy(mean)


_in_halves = False


@contextlib.contextmanager
def layers_in_halves(wanted: bool = True):
    """Within it, compiled propagation keeps its layers in bfloat16 (8 bits of precision): half the bytes to gather."""
    global _in_halves
    before, _in_halves = _in_halves, wanted
    try:
        yield
    finally:
        _in_halves = before


def compiled_for(x: torch.Tensor) -> bool:
    """Return whether c2f.kernels serve a table (n, d): float32 of some widths, on a processor."""
    wide = x.shape[1] >= kernels.NARROWEST and x.shape[1] % kernels.LANES == 0
    return wide and x.device.type == "cpu" and x.dtype == torch.float32


def basis_of(final: Callable[[torch.Tensor], torch.Tensor], num_rows: int, num_nodes: int, device) -> torch.Tensor:
    """Return the (N, m) basis of a LinearForm: `final` of the columns of the identity (m, m), some at a time.

    final: what m rows (m, w) come to at every node (N, w), a linear function. What it takes on the way is only as wide
    as a block, and the compiled product serves it.
    """
    identity, basis = torch.eye(num_rows, device=device), torch.empty(num_nodes, num_rows, device=device)
    for first in range(0, num_rows, 128):
        columns = slice(first, first + 128)
        basis[:, columns] = final(identity[:, columns])
    return basis


def soft_threshold(x: torch.Tensor, threshold) -> torch.Tensor:
    """Return sign(x) * max(|x| - threshold, 0), element-wise."""
    return torch.sign(x) * torch.relu(x.abs() - threshold)


def keep_freed_memory() -> None:
    """Tell glibc to keep and reuse freed blocks instead of returning them to the kernel; elsewhere do nothing.

    Training frees and takes the same (N, d) buffers at every step; without this most of a CPU step is page faults
    (Gowalla, two cores: one propagation layer 20 ms instead of 12, a sum of two tables 9 ms instead of 1).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mmap_threshold, trim_threshold = -3, -1
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, 2**31 - 1)
