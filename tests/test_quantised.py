"""Quantised tables: error bounds, packing, exact sizes, and what a rotation and the final table leave unchanged."""

import dataclasses

import numpy as np
import pytest

from baselines.decoders import subspaces, unpack_nibbles
from baselines.lightgcn import LightGCN
from baselines.quantised import (
    LARGEST_CODE,
    QuantisedTable,
    leading_dimensions,
    pack_nibbles,
    product_quantise,
    scalar_quantise,
    stored_size,
)
from c2f.budget import Budget, Footprint
from c2f.decoding import propagate
from c2f.errors import BudgetError, MethodError
from c2f.method import build, export_arrays
from c2f.train import Trainer, TrainingSettings

SETTINGS = TrainingSettings(lr=0.05, batch_size=512, max_epochs=4, evaluate_every=2, device="cpu")
SCHEMES = ["fp16", "int8", "int4", "pq"]


@pytest.fixture(scope="module")
def full_run(blocks):
    """The arrays of a full LightGCN run: 80 nodes x 8 numbers."""
    graph, valid, _ = blocks
    method = build(LightGCN, Budget.parse("full"), graph, LightGCN.Params(dim=8), 1)
    method.fit(Trainer(graph, valid, SETTINGS, 1))
    return export_arrays(method)


@pytest.fixture(scope="module")
def table():
    """300 rows x 12 numbers: some rows tiny, one all zero."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 12)) * 10.0 ** generator.integers(-6, 2, size=(300, 1))
    rows[7] = 0
    return rows.astype(np.float32)


def compress(blocks, full_run, budget, **params):
    graph, valid, _ = blocks
    method = build(QuantisedTable, Budget.parse(budget), graph, QuantisedTable.Params(dim=8, **params), 1)
    method.fit(Trainer(graph, valid, SETTINGS, 1), full_run)
    return method


def decoded(arrays, scheme):
    return QuantisedTable.decode(arrays, QuantisedTable.Params(scheme=scheme))


# Scalar quantisation ---------------------------------------------------------


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_no_number_is_further_than_half_a_scale_from_its_code(table, scheme):
    arrays = scalar_quantise(table, scheme)
    error = np.abs(decoded(arrays, scheme) - table)
    assert (error <= arrays["scales"].astype(np.float64) / 2 * (1 + 1e-5)).all()
    assert (decoded(arrays, scheme)[7] == 0).all()


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_a_scale_is_the_rows_largest_by_the_largest_code_and_is_used_up(table, scheme):
    large = table[np.abs(table).max(axis=1) > 0.1]
    arrays = scalar_quantise(large, scheme)
    codes = arrays["codes"] if scheme == "int8" else unpack_nibbles(arrays["codes"])
    np.testing.assert_array_equal(np.abs(codes).max(axis=1), LARGEST_CODE[scheme])
    wanted = np.abs(large).max(axis=1, keepdims=True) / LARGEST_CODE[scheme]
    assert (arrays["scales"] >= wanted).all()  # rounded up to float16
    np.testing.assert_allclose(arrays["scales"], wanted, rtol=2**-10)


def test_a_row_written_out():
    arrays = scalar_quantise(np.array([[7.0, -3.4, 0.6, 0.0]], dtype=np.float32), "int4")
    assert arrays["scales"] == 1  # 7 / 7
    np.testing.assert_array_equal(decoded(arrays, "int4"), [[7, -3, 1, 0]])


def test_float16_keeps_eleven_bits(table):
    normal = table[np.abs(table).min(axis=1) > 1e-3]
    np.testing.assert_allclose(decoded(scalar_quantise(normal, "fp16"), "fp16"), normal, rtol=2**-11)


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_two_int4_codes_in_a_byte_come_back(width):
    codes = np.random.default_rng(0).integers(-7, 8, size=(50, width)).astype(np.int8)
    packed = pack_nibbles(codes)
    assert (packed.dtype, packed.shape) == (np.uint8, (50, (width + 1) // 2))
    np.testing.assert_array_equal(unpack_nibbles(packed)[:, :width], codes)
    assert (unpack_nibbles(packed)[:, width:] == 0).all()  # what fills the last byte adds nothing to a dot product


# Leading dimensions ----------------------------------------------------------


def test_all_dimensions_rotated_or_not_have_the_same_dot_products_also_after_propagation(blocks):
    graph, _, _ = blocks
    rows = np.random.default_rng(0).standard_normal((80, 6)).astype(np.float32)
    wider = np.hstack([rows, np.zeros((80, 1), dtype=np.float32)])  # six of seven dimensions hold everything
    rotated = leading_dimensions(wider, 6)
    assert not np.allclose(rotated, rows, atol=0.1)
    np.testing.assert_allclose(rotated @ rotated.T, rows @ rows.T, atol=1e-4)
    finals = [propagate(part, graph.adjacency, 3) for part in (rows, rotated)]
    np.testing.assert_allclose(finals[0] @ finals[0].T, finals[1] @ finals[1].T, atol=1e-4)
    assert leading_dimensions(rows, 6) is rows


def test_the_leading_dimensions_are_the_best_low_rank_table():
    rows = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32) + 1  # not centred
    singular = np.linalg.svd(rows, compute_uv=False)
    kept = leading_dimensions(rows, 2)
    assert np.square(kept).sum() == pytest.approx(np.square(singular[:2]).sum(), rel=1e-5)


# Product quantisation --------------------------------------------------------


def test_subspaces_are_runs_of_dimensions_that_differ_by_one_at_most():
    assert subspaces(8, 2).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert subspaces(8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert subspaces(3, 3).tolist() == [0, 1, 2]


def test_a_row_is_put_together_from_one_centroid_per_subspace():
    arrays = {
        "codes": np.array([[0, 1, 1], [1, 0, 1]], dtype=np.uint8),
        "codebook": np.array([[1, 2, 3, 4], [10, 20, 30, 40]], dtype=np.float16),  # subspaces: two, one, one columns
    }
    np.testing.assert_array_equal(decoded(arrays, "pq"), [[1, 2, 30, 40], [10, 20, 3, 40]])


def test_the_error_falls_with_the_number_of_subspaces():
    rows = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    errors = [
        np.square(decoded(product_quantise(rows, subspaces, 16, seed=0), "pq") - rows).sum() / np.square(rows).sum()
        for subspaces in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 < 0.4 < errors[0]  # 32 bits a row against 4


def test_as_many_centroids_as_different_subvectors_lose_nothing():
    rows = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    np.testing.assert_array_equal(decoded(product_quantise(rows, 2, 3, seed=0), "pq"), rows)  # 10, 01 and 00 in each


# Sizes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "dim", "numbers", "nbytes"),
    [
        ("fp16", 5, 80 * 5, 80 * 5 * 2),
        ("int8", 5, 80 * (5 + 1), 80 * (5 + 2)),
        ("int4", 5, 80 * (5 + 1), 80 * (3 + 2)),  # three bytes hold five codes
        ("int4", 6, 80 * (6 + 1), 80 * (3 + 2)),
        ("pq", 3, 80 * 3 + 16 * 8, 80 * 3 + 16 * 8 * 2),  # 16 centroids of 8 numbers in all
    ],
)
def test_a_size_written_out_and_what_is_stored(scheme, dim, numbers, nbytes):
    assert stored_size(scheme, 80, 8, dim, 16) == (numbers, nbytes)
    arrays = QuantisedTable(80, dim, 16, QuantisedTable.Params(dim=8, scheme=scheme)).export()
    assert sum(array.nbytes for array in arrays.values()) == nbytes


@pytest.mark.parametrize(
    ("scheme", "budget", "width"),
    [
        ("fp16", "bytes-959", 5),  # 80 * 2 * 6 = 960
        ("fp16", "bytes-960", 6),
        ("int8", "bytes-560", 5),  # 80 * (5 + 2)
        ("int4", "bytes-400", 6),  # 80 * (3 + 2)
        ("int8", "numbers-480", 5),  # 80 * (5 + 1)
        ("int4", "numbers-480", 5),  # as many: a code is a number, whatever its bits
    ],
)
def test_the_budget_is_filled_with_dimensions(blocks, full_run, scheme, budget, width):
    method = compress(blocks, full_run, budget, scheme=scheme)
    assert method.codes_per_node == width
    arrays, packed = export_arrays(method), method.packed_numbers()
    footprint = Footprint.measure(arrays, method.counted, 0, 0, False, packed)
    assert footprint.spent(Budget.parse(budget)) == Budget.parse(budget).amount - (budget == "bytes-959") * 159


def test_the_recorded_error_is_of_the_whole_table_with_the_dimensions_left_out(blocks, full_run):
    singular = np.linalg.svd(full_run["vectors"], compute_uv=False)
    method = compress(blocks, full_run, "numbers-240", scheme="fp16")
    expected = np.square(singular[3:]).sum() / np.square(singular).sum()
    assert method.details == {"codes_per_node": 3, "relative_squared_error": pytest.approx(expected, abs=1e-5)}


def test_the_budget_of_pq_goes_where_it_buys_most_bits(blocks):
    graph, _, _ = blocks
    params = QuantisedTable.Params(dim=8, scheme="pq")
    method = build(QuantisedTable, Budget.parse("bytes-500"), graph, params, 1)
    bits = {
        (m, k): m * np.log2(k) for m in range(1, 9) for k in range(2, 81) if 80 * m + 2 * k * 8 <= 500
    }  # all that fits
    assert (method.codes_per_node, len(method.codebook)) == max(bits, key=bits.get) == (4, 11)


@pytest.mark.parametrize(("scheme", "least"), [("fp16", 160), ("int8", 240), ("int4", 240), ("pq", 80 + 2 * 2 * 8)])
def test_the_least_size_is_one_dimension_or_one_subspace_of_two_centroids(blocks, scheme, least):
    graph, _, _ = blocks
    with pytest.raises(BudgetError) as error:
        build(QuantisedTable, Budget.parse("bytes-9"), graph, QuantisedTable.Params(dim=8, scheme=scheme), 1)
    assert error.value.needs == least


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_full_budget_codes_every_dimension(blocks, full_run, scheme):
    method = compress(blocks, full_run, "full", scheme=scheme)
    assert method.codes_per_node == 8
    assert method.details["relative_squared_error"] < {"fp16": 1e-6, "int8": 1e-4, "int4": 0.02, "pq": 0.01}[scheme]


# Layer 0 or final ------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_final_table_needs_no_graph_and_both_are_near_the_full_runs_scores(blocks, full_run, scheme):
    expected = propagate(full_run["vectors"], blocks[0].adjacency, 3)
    expected = expected @ expected.T
    for name, needs_graph in (("layer0", True), ("final", False)):
        method = compress(blocks, full_run, "full", scheme=scheme, table=name)
        assert method.needs_graph == needs_graph
        graph = blocks[0] if needs_graph else None
        final = QuantisedTable.restore(export_arrays(method), method.params, graph)
        error = np.linalg.norm(final @ final.T - expected) / np.linalg.norm(expected)
        assert error < {"fp16": 1e-3, "int8": 0.02, "int4": 0.2, "pq": 0.2}[scheme]


def test_nothing_is_trained_and_only_codes_and_scales_are_state(blocks, full_run):
    method = compress(blocks, full_run, "bytes-560")
    assert list(method.parameters()) == []
    assert set(method.state_dict()) == set(export_arrays(method)) == {"codes", "scales"}


def test_a_full_run_of_another_size_says_what_to_change(blocks, full_run):
    with pytest.raises(MethodError, match=r"vectors \(80, 4\), this one expects \(80, 8\)"):
        compress(blocks, {"vectors": full_run["vectors"][:, :4]}, "full")


def test_the_seed_of_the_run_seeds_k_means(blocks, full_run):
    graph, valid, _ = blocks
    params = QuantisedTable.Params(dim=8, scheme="pq")
    codes = []
    for seed in (1, 1, 2):
        method = build(QuantisedTable, Budget.parse("bytes-500"), graph, dataclasses.replace(params), 1)
        method.fit(Trainer(graph, valid, SETTINGS, seed), full_run)
        codes.append(export_arrays(method)["codes"].tobytes())
    assert codes[0] == codes[1] != codes[2]
