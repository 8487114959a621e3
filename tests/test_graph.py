"""Adjacency, propagation, sparse products, codebook helpers and partitions, on graphs small enough to write out."""

import math
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import interactions

from c2f import kernels
from c2f.budget import Budget, Footprint
from c2f.codebook import (
    anchored_assignment,
    assignment_matrix,
    coarse_codes,
    feasible_codes,
    feasible_nonzeros,
)
from c2f.data import generate_blocks
from c2f.decoding import (
    expanded_adjacency,
    id_array,
    pack,
    pack_sparse,
    propagate,
    row_bytes,
    smallest_uint,
    symmetric_normalise,
    unpack,
    unpack_sparse,
)
from c2f.errors import BudgetError, DataError
from c2f.graph import Graph
from c2f.ops import SparseMatrix, layers_in_halves, soft_threshold
from c2f.partition import partition, spectral_parts

# The adjacency ---------------------------------------------------------------


def test_the_adjacency_of_two_users_and_two_items_written_out():
    # user 0 has items 0 and 1, user 1 has item 1: degrees 2, 1 (users) and 1, 2 (items)
    adjacency = Graph(interactions([(0, 0), (0, 1), (1, 1)], 2, 2)).adjacency
    a, b, c = 1 / math.sqrt(2 * 1), 1 / math.sqrt(2 * 2), 1 / math.sqrt(1 * 2)
    expected = [[0, 0, a, b], [0, 0, 0, c], [a, 0, 0, 0], [b, c, 0, 0]]
    np.testing.assert_allclose(adjacency.toarray(), expected, rtol=1e-7)
    assert (adjacency.dtype, adjacency.indices.dtype, adjacency.indptr.dtype) == (np.float32, np.int32, np.int32)


def test_a_node_without_pairs_has_an_empty_row_and_column_and_no_nan():
    adjacency = Graph(interactions([(0, 0)], 2, 3)).adjacency.toarray()  # user 1, items 1 and 2 are isolated
    expected = np.zeros((5, 5))
    expected[0, 2] = expected[2, 0] = 1 / math.sqrt(1 * 1)
    np.testing.assert_array_equal(adjacency, expected)


def test_stored_bytes_are_the_item_ids_and_a_pointer_per_user_and_one():
    assert Graph(interactions([(0, 0), (0, 1), (1, 1)], 2, 256)).stored_bytes == 3 * 1 + 4 * (2 + 1)
    assert Graph(interactions([(0, 0), (0, 1), (1, 1)], 2, 257)).stored_bytes == 3 * 2 + 4 * (2 + 1)


@pytest.mark.parametrize(("count", "kind"), [(1, "u1"), (256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "u4")])
def test_the_smallest_type_holds_ids_from_0_to_count_minus_1(count, kind):
    assert smallest_uint(count) == np.dtype(kind)
    assert id_array([count - 1], count).tolist() == [count - 1]


# Propagation -----------------------------------------------------------------


def random_sparse(shape, seed=0, density=0.3):
    return sp.random_array(shape, density=density, rng=np.random.default_rng(seed), dtype=np.float32).tocsr()


def test_the_product_that_a_gpu_can_repeat_bit_by_bit_is_the_product():
    """Tried on a processor, which never takes it; a row may be empty."""
    matrix = random_sparse((9, 7)).tolil()
    matrix[3] = 0
    operator, x = SparseMatrix(matrix.tocsr()), torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(operator._forward._added_in_order(x), torch.from_numpy(matrix.toarray()) @ x)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_propagation_is_the_mean_of_the_dense_powers(num_layers, blocks):
    graph, *_ = blocks
    x = np.random.default_rng(0).standard_normal((graph.num_nodes, 5)).astype(np.float32)
    dense = graph.adjacency.toarray().astype(np.float64)
    powers = [np.linalg.matrix_power(dense, layer) @ x for layer in range(num_layers + 1)]
    expected = sum(powers) / (num_layers + 1)
    np.testing.assert_allclose(propagate(x, graph.adjacency, num_layers), expected, atol=1e-6)
    np.testing.assert_allclose(propagate(x, graph.adjacency, num_layers, [3, 7]), expected[[3, 7]], atol=1e-6)
    operator = SparseMatrix(graph.adjacency, symmetric=True)
    np.testing.assert_allclose(propagate(torch.from_numpy(x), operator, num_layers), expected, atol=1e-6)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [3, 64, 96])
def test_fused_propagation_and_its_gradient_are_the_sum_of_dense_powers_also_where_most_rows_are_unused(
    width, symmetric, num_layers
):
    matrix = random_sparse((9, 9))
    matrix = (matrix + matrix.T).tocsr() if symmetric else matrix
    x = torch.randn(9, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(9, width, generator=torch.Generator().manual_seed(1))
    weight[[0, 2, 3, 5, 8]] = 0  # rows outside the batch
    dense, total, layer = torch.from_numpy(matrix.toarray()), x, x
    for _ in range(num_layers):
        layer = dense @ layer
        total = total + layer
    ours = propagate(x, SparseMatrix(matrix, symmetric=symmetric), num_layers)
    torch.testing.assert_close(ours, total / (num_layers + 1))
    of_ours, of_dense = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, total / (num_layers + 1)))
    torch.testing.assert_close(of_ours, of_dense)


@pytest.mark.parametrize("num_layers", [0, 1, 3])
@pytest.mark.parametrize("width", [3, 64])
@pytest.mark.parametrize("halved", [False, True])
def test_some_rows_of_a_propagation_are_those_of_the_whole_and_so_is_their_gradient(halved, width, num_layers):
    operator = SparseMatrix(random_sparse((9, 9)))
    x = torch.randn(9, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rows = torch.tensor([1, 4, 8])
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    with layers_in_halves(halved):
        some, whole = propagate(x, operator, num_layers, rows), propagate(x, operator, num_layers)[rows]
        assert torch.equal(some, whole)
        of_some, of_whole = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (some, whole))
    assert torch.equal(of_some, of_whole)


@pytest.mark.parametrize("width", [64, 96])
def test_numbers_in_halves_are_torchs_bfloat16(width):
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    x[0, :4] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 0.0, -3e38])  # two ties, which go to even: 1 and 1 + 4 * 2^-8
    bits = kernels.blocks(x.numpy(), halved=True)
    of_torch = x.to(torch.bfloat16).view(torch.int16).numpy()
    assert bits.tobytes() == of_torch.reshape(5, -1, kernels.LANES).transpose(1, 0, 2).tobytes()
    assert bits[0, 0, :2].tolist() == [0x3F80, 0x3F82]


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("width", [64, 96])
def test_propagation_in_halves_rounds_what_each_layer_reads_and_nothing_else(width, num_layers):
    matrix = random_sparse((9, 9))
    x = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    dense, sums = torch.from_numpy(matrix.toarray()), x.to(torch.bfloat16).float()
    for layer in range(num_layers):
        sums = dense @ sums + x
        if layer < num_layers - 1:
            sums = sums.to(torch.bfloat16).float()
    operator = SparseMatrix(matrix)
    with layers_in_halves():
        ours = propagate(x, operator, num_layers)
    torch.testing.assert_close(ours, sums / (num_layers + 1), rtol=2**-8, atol=1e-6)  # a sum beside a tie may round on
    exact = propagate(x, operator, num_layers)
    assert 0 < (ours - exact).norm() / exact.norm() < 0.005


@pytest.mark.parametrize("halved", [False, True])
def test_a_column_s_propagation_has_the_same_bits_whatever_columns_stand_beside_it(halved):
    x = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    operator = SparseMatrix(random_sparse((200, 200)))
    with layers_in_halves(halved):
        whole, part = (propagate(table, operator, 3) for table in (x, x[:, 32:96]))
    assert torch.equal(whole[:, 32:96], part)


@pytest.mark.parametrize("rows", [4, 6])
def test_propagation_refuses_a_table_of_other_rows(rows):
    with pytest.raises(ValueError, match=r"shape \(5, 5\) cannot propagate"):
        propagate(torch.ones(rows, kernels.NARROWEST), SparseMatrix(sp.csr_array((5, 5))), 2)


def test_the_gram_of_weighted_rows_is_that_of_the_dense_matrix_also_with_empty_rows():
    matrix = random_sparse((20, 4))
    assert (np.diff(matrix.indptr) == 0).any()
    weights = torch.rand(20, 1, generator=torch.Generator().manual_seed(0))
    expected = matrix.toarray().T @ (weights.numpy() * matrix.toarray())
    np.testing.assert_allclose((SparseMatrix(matrix).gram() @ weights).view(4, 4), expected, rtol=1e-5)


@pytest.mark.parametrize("width", [3, 64, 96])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_sparse_product_and_its_gradient_are_those_of_the_dense_one(symmetric, width):
    matrix = random_sparse((6, 6) if symmetric else (7, 4))
    matrix = (matrix + matrix.T).tocsr() if symmetric else matrix
    x = torch.randn(matrix.shape[1], width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(matrix.shape[0], width, generator=torch.Generator().manual_seed(1))
    ours, dense = SparseMatrix(matrix, symmetric=symmetric) @ x, torch.from_numpy(matrix.toarray()) @ x
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(*(torch.autograd.grad((y * weight).sum(), x) for y in (ours, dense)))


def test_chunks_of_rows_cover_every_row_once_and_share_the_non_zeros():
    matrix = random_sparse((1000, 50))
    chunks = kernels.balanced_chunks(matrix.indptr)
    assert chunks[0] == 0 and chunks[-1] == 1000 and (np.diff(chunks) >= 0).all()
    assert np.diff(matrix.indptr[chunks]).max() <= matrix.nnz / kernels.CHUNKS + np.diff(matrix.indptr).max()


def test_an_empty_matrix_gives_zeros():
    assert (SparseMatrix(sp.csr_array((3, 5))) @ torch.ones(5, kernels.NARROWEST) == 0).all()
    assert (SparseMatrix(sp.csr_array((0, 5))) @ torch.ones(5, kernels.NARROWEST)).shape == (0, kernels.NARROWEST)


@pytest.mark.parametrize("rows", [4, 6])
def test_a_sparse_product_refuses_a_table_of_other_rows(rows):
    with pytest.raises(ValueError, match=r"shape \(3, 5\) cannot multiply"):
        SparseMatrix(sp.csr_array((3, 5))) @ torch.ones(rows, kernels.NARROWEST)


def test_a_sparse_product_takes_a_gradient_that_is_not_contiguous():
    matrix = random_sparse((5, 4))
    x = torch.ones(4, 3, requires_grad=True)
    (ours,) = torch.autograd.grad((SparseMatrix(matrix) @ x).T @ torch.ones(5), x, torch.ones(3))
    np.testing.assert_allclose(ours, matrix.toarray().T @ np.ones((5, 3)), rtol=1e-6)


def test_the_soft_threshold_pulls_towards_zero_and_stops_there():
    x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.5])
    assert soft_threshold(x, 1.0).tolist() == [-2, 0, 0, 0, 0, 0, 1.5]


# The expanded graph ----------------------------------------------------------


@pytest.mark.parametrize("bridged", [False, True])
def test_the_expanded_graph_is_the_normalised_block_matrix(bridged, blocks):
    graph, *_ = blocks
    n, c, f = graph.num_nodes, 6, 4
    assignment, bridge = abs(random_sparse((n, c))), abs(random_sparse((c, f)))
    size = n + c + (f if bridged else 0)
    dense = np.zeros((size, size))
    dense[:n, :n] = graph.adjacency.toarray()
    dense[:n, n : n + c] = assignment.toarray()
    dense[n : n + c, :n] = assignment.toarray().T
    if bridged:
        dense[n : n + c, n + c :] = bridge.toarray()
        dense[n + c :, n : n + c] = bridge.toarray().T
    degrees = dense.sum(axis=1)
    scale = np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1e-30)), 0)
    ours = expanded_adjacency(graph.adjacency, assignment, bridge if bridged else None)
    np.testing.assert_allclose(ours.toarray(), scale[:, None] * dense * scale, atol=1e-6)
    assert (ours.dtype, ours.indices.dtype) == (np.float32, np.int32)


def test_an_unused_code_is_an_isolated_node_of_the_expanded_graph(blocks):
    graph, *_ = blocks
    assignment = sp.csr_array((np.ones(80, dtype=np.float32), (np.arange(80), np.zeros(80, dtype=int))), shape=(80, 2))
    expanded = expanded_adjacency(graph.adjacency, assignment).toarray()
    assert expanded[80].any()
    assert not expanded[81].any()
    assert np.isfinite(expanded).all()


def test_normalising_leaves_the_rows_of_a_regular_graph_with_sum_1():
    ring = sp.csr_array(np.roll(np.eye(5), 1, axis=1) + np.roll(np.eye(5), -1, axis=1))
    np.testing.assert_allclose(symmetric_normalise(ring).sum(axis=1), 1)


# Assignments and codes -------------------------------------------------------


@pytest.mark.parametrize("per_node", [2, 3, 5])
def test_an_anchored_assignment_has_the_anchor_first_distinct_codes_and_rows_of_sum_1(per_node):
    anchors = np.random.default_rng(0).integers(5, size=200)
    codes, weights = anchored_assignment(anchors, 5, per_node, 0.5, np.random.default_rng(1))
    assert codes.shape == weights.shape == (200, per_node)
    np.testing.assert_array_equal(codes[:, 0], anchors)
    assert all(len(set(row)) == per_node for row in codes.tolist())
    assert 0 <= codes.min() <= codes.max() < 5
    np.testing.assert_allclose(weights[:, 0], 0.5)
    np.testing.assert_allclose(weights[:, 1:], 0.5 / (per_node - 1))
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_the_codes_beside_the_anchor_are_uniform():
    codes, _ = anchored_assignment(np.zeros(4000, dtype=int), 5, 3, 0.5, np.random.default_rng(0))
    pairs = np.sort(codes[:, 1:], axis=1)
    counts = np.bincount(pairs[:, 0] * 5 + pairs[:, 1])
    assert (counts > 0).sum() == 6  # {1,2} {1,3} {1,4} {2,3} {2,4} {3,4}
    assert abs(counts[counts > 0] / 4000 - 1 / 6).max() < 0.03


def test_one_code_per_node_is_the_anchor_with_weight_1_whatever_the_anchor_weight():
    codes, weights = anchored_assignment(np.array([2, 0]), 3, 1, 0.5, np.random.default_rng(0))
    assert codes.tolist() == [[2], [0]]
    assert weights.tolist() == [[1], [1]]


def test_an_assignment_matrix_holds_the_weights_at_the_codes_and_drops_zeros():
    matrix = assignment_matrix(np.array([[0, 2], [1, 0]], dtype=np.uint8), [[0.5, 0.25], [1, 0]], 3)
    np.testing.assert_array_equal(matrix.toarray(), [[0.5, 0, 0.25], [0, 1, 0]])
    assert matrix.nnz == 3


# Sparse storage --------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "arrays"),
    [
        # 50 x 128: dense 25,600 bytes; a mask 50 * 16 = 800; counts 50 and a column id of one byte for each value
        (0.02, {"fine": 4 * 128, "fine_counts": 50, "fine_columns": 128}),
        (0.5, {"fine": 4 * 3200, "fine_mask": 800}),
        (1.0, {"fine": 25_600}),
    ],
)
def test_of_three_ways_to_store_a_sparse_matrix_the_cheapest_is_taken_and_loses_nothing(kept, arrays):
    generator = np.random.default_rng(0)
    matrix = np.zeros(50 * 128, dtype=np.float32)
    chosen = generator.permutation(len(matrix))[: round(kept * len(matrix))]
    matrix[chosen] = generator.uniform(1, 2, len(chosen))
    matrix = matrix.reshape(50, 128)
    packed = pack_sparse("fine", matrix)
    assert {name: array.nbytes for name, array in packed.items()} == arrays
    assert np.array_equal(unpack_sparse("fine", packed, 128), matrix)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (4, 300)])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.97])
def test_packing_and_unpacking_gives_the_matrix_back_for_odd_widths_and_empty_rows(shape, kept):
    generator = np.random.default_rng(2)
    matrix = np.where(generator.random(shape) < kept, generator.standard_normal(shape), 0).astype(np.float32)
    packed = pack_sparse("fine", matrix)
    assert sum(array.nbytes for array in packed.values()) <= matrix.nbytes
    assert np.array_equal(unpack_sparse("fine", packed, shape[1]), matrix)


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
@pytest.mark.parametrize("amount", [50, 200, 1000, 2000, 10**6])
@pytest.mark.parametrize("dim", [8, 128, 300])
def test_as_many_non_zeros_as_fit_are_stored_within_the_budget_and_one_more_is_not(kind, amount, dim):
    budget, size = Budget.parse(f"{kind}-{amount}"), 20 * dim
    nonzero = feasible_nonzeros(budget, 20, dim)

    def spent(count):
        matrix = np.zeros(size, dtype=np.float32)
        matrix[np.random.default_rng(0).permutation(size)[:count]] = 1.0
        return Footprint.measure(pack_sparse("x", matrix.reshape(20, dim)), ("x",), 0, 0, False).spent(budget)

    assert spent(nonzero) <= amount
    assert nonzero == size or spent(nonzero + 1) > amount


def test_not_even_one_non_zero_is_a_budget_error_that_says_what_one_takes():
    with pytest.raises(BudgetError, match="the 7 bytes"):  # a value, and 3 masks of 8 bits
        feasible_nonzeros(Budget.parse("bytes-3"), 3, 8)


# How many codes fit ----------------------------------------------------------

GOWALLA_NODES = 29_858 + 40_981


class Sizes:
    """What coarse_codes asks of a graph and of LEGCF's parameters, in Gowalla's size: no graph is built."""

    num_nodes = GOWALLA_NODES
    dim, codes_per_node, num_codes, codebook_share = 128, 2, None, 1.0
    storage = weight_storage = "float32"

    def __init__(self, **changes):
        vars(self).update(changes)


def gowalla_codes(budget, **changes):
    return coarse_codes(Budget.parse(budget), Sizes(), Sizes(**changes))


def test_the_bytes_of_legcf_with_500_codes_on_gowalla_are_codebook_ids_and_weights():
    # 500 codes of 128 float32; 70,839 nodes with two uint16 ids and two float32 weights
    needs = 256_000 + 283_356 + 566_712
    assert (500 * 128 * 4, GOWALLA_NODES * 2 * 2, GOWALLA_NODES * 2 * 4) == (256_000, 283_356, 566_712)
    assert gowalla_codes(f"bytes-{needs}") == 500
    assert gowalla_codes(f"bytes-{needs - 1}") == 499
    assert gowalla_codes("numbers-64000") == 64_000 // 128 == 500


def test_a_257th_code_is_bought_only_when_two_byte_ids_are_paid_for_all():
    at_256 = 256 * 512 + GOWALLA_NODES * 2 * (4 + 1)
    at_257 = 257 * 512 + GOWALLA_NODES * 2 * (4 + 2)
    assert gowalla_codes(f"bytes-{at_256 - 1}") == 255
    assert gowalla_codes(f"bytes-{at_256}") == gowalla_codes(f"bytes-{at_257 - 1}") == 256
    assert gowalla_codes(f"bytes-{at_257}") == 257


def test_the_same_step_lies_between_65536_and_65537_codes():
    def fit(budget):
        return feasible_codes(Budget.parse(budget), lambda _: (2, 8), lambda id_bytes: (0, 1000 * id_bytes))

    at_65536, at_65537 = 65_536 * 8 + 2000, 65_537 * 8 + 4000
    assert [fit(f"bytes-{b}") for b in (at_65536 - 1, at_65536, at_65537 - 1, at_65537)] == [
        65_535,
        65_536,
        65_536,
        65_537,
    ]


def test_a_share_of_the_codes_is_rounded_down_and_never_more_than_the_nodes():
    assert gowalla_codes("numbers-51200", codebook_share=0.75) == 300  # of 400
    assert gowalla_codes("numbers-51199", codebook_share=0.75) == 299  # 0.75 * 399 = 299.25
    assert coarse_codes(Budget.parse("bytes-8MB"), Sizes(num_nodes=10), Sizes()) == 10


def test_below_codes_per_node_codes_the_least_budget_is_named():
    least = 2 * 512 + GOWALLA_NODES * 2 * (4 + 1)
    with pytest.raises(BudgetError) as error:
        gowalla_codes(f"bytes-{least - 1}")
    assert error.value.needs == least
    with pytest.raises(BudgetError) as error:
        gowalla_codes("numbers-255")
    assert error.value.needs == 2 * 128
    with pytest.raises(BudgetError) as error:  # 0.5 * 4 codes are the two that a node needs
        gowalla_codes("numbers-511", codebook_share=0.5)
    assert error.value.needs == 4 * 128


def test_a_fixed_number_of_codes_is_refused_where_it_does_not_fit():
    assert gowalla_codes("numbers-25600", num_codes=200) == 200
    assert gowalla_codes("full", num_codes=200) == 200
    with pytest.raises(BudgetError) as error:
        gowalla_codes("bytes-0.5MB", num_codes=200)
    assert error.value.needs == 200 * 512 + GOWALLA_NODES * 2 * (4 + 1)


def test_the_budget_full_sizes_no_codebook():
    with pytest.raises(BudgetError, match="budget full sets no size"):
        gowalla_codes("full")


# Partitions ------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_up():
    return Graph(generate_blocks(num_users=160, num_items=80, num_blocks=4, pairs_per_user=12, skew=0.5)["train"])


def cut(adjacency, parts) -> float:
    """The share of edges between different parts."""
    edges = adjacency.tocoo()
    return float((parts[edges.row] != parts[edges.col]).mean())


def shuffled(parts):
    return np.random.default_rng(0).permutation(parts)


def test_metis_parts_are_balanced_and_cut_fewer_edges_than_chance(made_up):
    pytest.importorskip("pymetis", reason="needs pymetis (requirements.txt)")
    parts, engine = partition(made_up, 8, seed=0)
    assert engine.startswith("pymetis ")
    sizes = np.bincount(parts, minlength=8)
    assert sizes.sum() == 240
    assert abs(sizes - 240 / 8).max() <= 0.1 * 240 / 8
    assert cut(made_up.adjacency, parts) < 0.8 * cut(made_up.adjacency, shuffled(parts))
    assert np.array_equal(parts, partition(made_up, 8, seed=0)[0])


def test_one_part_needs_no_partitioner(made_up):
    parts, engine = partition(made_up, 1, seed=0)
    assert (engine, parts.tolist()) == ("one part", [0] * 240)


def test_a_kept_partition_serves_the_same_request_and_no_other(made_up, tmp_path, monkeypatch):
    parts, engine = partition(made_up, 4, 0, tmp_path)
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr("c2f.partition._compute", lambda graph, k, seed: (np.zeros(graph.num_nodes, np.int32), "new"))
    again, same_engine = partition(made_up, 4, 0, tmp_path)
    assert (again.tolist(), same_engine) == (parts.tolist(), engine)
    fewer = interactions(np.column_stack([made_up.train.user, made_up.train.item])[:-1], 160, 80)
    for graph, num_parts, seed in [(made_up, 5, 0), (made_up, 4, 1), (Graph(fewer), 4, 0)]:
        assert partition(graph, num_parts, seed, tmp_path)[1] == "new"
    assert len(list(tmp_path.iterdir())) == 4
    assert kept.exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "other size", "other array"])
def test_a_damaged_kept_partition_is_named(made_up, tmp_path, damage):
    partition(made_up, 4, 0, tmp_path)
    (kept,) = tmp_path.iterdir()
    content = bytearray(kept.read_bytes())
    if damage == "other size":
        np.savez(kept, parts=np.zeros(3, dtype=np.int32), engine=np.array("x"))
    elif damage == "other array":
        np.savez(kept, something=np.zeros(240, dtype=np.int32))
    else:
        content[200] ^= 1
        kept.write_bytes({"truncated": content[:100], "flipped": content, "text": b"no npz at all"}[damage])
    with pytest.raises(DataError) as error:
        partition(made_up, 4, 0, tmp_path)
    assert str(kept) in str(error.value)
    assert "delete it" in str(error.value)


@pytest.mark.parametrize("num_parts", [2, 3, 7, 8])
def test_without_pymetis_the_parts_are_deterministic_and_balanced_within_one_per_level(made_up, num_parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymetis", None)  # importing it is an ImportError
    parts, engine = partition(made_up, num_parts, seed=0)
    assert engine == "spectral"
    assert np.array_equal(parts, partition(made_up, num_parts, seed=0)[0])
    sizes = np.bincount(parts, minlength=num_parts)
    assert abs(sizes - 240 / num_parts).max() <= math.ceil(math.log2(num_parts))


def test_what_was_kept_without_metis_or_by_another_version_of_it_is_made_anew(made_up, tmp_path, monkeypatch):
    pytest.importorskip("pymetis")
    engine = partition(made_up, 4, 0, tmp_path)[1]
    (path,) = tmp_path.iterdir()
    for old in ("spectral", "pymetis 1999"):
        np.savez(path, parts=np.zeros(made_up.num_nodes, np.int32), engine=np.array(old))
        assert partition(made_up, 4, 0, tmp_path)[1] == engine
    np.savez(path, parts=np.zeros(made_up.num_nodes, np.int32), engine=np.array("pymetis 1999"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert partition(made_up, 4, 0, tmp_path)[1] == "pymetis 1999"


def test_the_fallback_cuts_clearly_fewer_edges_than_a_random_partition(made_up):
    parts = spectral_parts(made_up.adjacency, 4, seed=0)
    assert cut(made_up.adjacency, parts) < 0.7 * cut(made_up.adjacency, shuffled(parts))


def test_the_fallback_finds_two_halves_that_no_edge_connects(blocks):
    graph, *_ = blocks
    parts = spectral_parts(graph.adjacency, 2, seed=0)
    assert cut(graph.adjacency, parts) == 0
    assert len({*parts[0:40:2]} | {*parts[40:80:2]}) == 1  # even users with even items


# Types of storage ------------------------------------------------------------


@pytest.mark.parametrize(("storage", "axis"), [("float32", 1), ("float16", 1), ("int8", 1), ("uint8", 0)])
def test_packing_is_off_by_half_a_step_at_most_and_repeats_exactly(storage, axis):
    matrix = np.random.default_rng(0).random((30, 7)).astype(np.float32) * 10 ** np.linspace(-2, 2, 30)[:, None]
    matrix = (matrix if storage == "uint8" else matrix - matrix.mean()).astype(np.float32)
    arrays = pack("x", matrix, storage, axis)
    kept = unpack("x", arrays)
    step = {"float32": 0.0, "float16": np.abs(matrix) * 2**-10}.get(storage, arrays.get("x_scales"))
    assert (np.abs(kept - matrix) <= np.asarray(step, dtype=np.float32) / 2 + 1e-7).all()
    again = pack("x", kept, storage, axis)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    assert (
        sum(array.nbytes for array in pack("x", matrix, storage, 1).values()) == 30 * row_bytes(7, storage) or axis == 0
    )


def test_rows_of_zeros_stay_zeros_in_every_storage():
    zeros = np.zeros((3, 4), dtype=np.float32)
    for storage in ("float32", "float16", "int8", "uint8"):
        np.testing.assert_array_equal(unpack("x", pack("x", zeros, storage)), zeros)


def test_where_numba_can_keep_nothing_its_loops_are_kept_below_the_temporary_folder(tmp_path, monkeypatch):
    """A container with a foreign user: neither the package nor a home can be written to. Root may write anywhere."""
    here, home = tmp_path / "package", tmp_path / "home"
    writable = {here}
    monkeypatch.setattr(kernels.os, "access", lambda place, mode: place in writable)
    assert kernels._cache_folder(here, home, tmp_path) is None
    writable.clear()
    folder = kernels._cache_folder(here, home, tmp_path)
    assert folder == kernels._cache_folder(here, home, tmp_path) and folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(kernels.os, "getuid", lambda: folder.stat().st_uid + 1)
    (tmp_path / f"c2f-numba-{folder.stat().st_uid + 1}").mkdir()  # made by somebody else
    assert kernels._cache_folder(here, home, tmp_path).name != f"c2f-numba-{folder.stat().st_uid + 1}"
