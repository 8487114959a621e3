"""Budgets are read exactly, and an artifact is charged for what it holds."""

import math

import numpy as np
import pytest
from conftest import interactions

from baselines.short_vectors import ShortVectors
from c2f.budget import Budget, Footprint
from c2f.errors import BudgetError, ConfigError
from c2f.graph import Graph
from c2f.method import build


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("full", "full", math.inf),
        ("numbers-25600", "numbers", 25_600),
        ("numbers-1", "numbers", 1),
        ("bytes-500000", "bytes", 500_000),
        ("bytes-500000B", "bytes", 500_000),
        ("bytes-64kB", "bytes", 64_000),
        ("bytes-0.5MB", "bytes", 500_000),
        ("bytes-1.1MB", "bytes", 1_100_000),  # 1.1 * 10**6 in floats is 1100000.0000000002
        ("bytes-2GB", "bytes", 2_000_000_000),
    ],
)
def test_a_budget_is_read_in_decimal_units_and_keeps_its_name(text, kind, amount):
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount, budget.name, str(budget)) == (kind, amount, text, text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("25600", ["'25600' is not a budget", "`full`, `numbers-25600` or `bytes-0.5MB`"]),
        (25600, ["25600 is not a budget"]),
        ("", ["'' is not a budget"]),
        ("bytes", ["'bytes' is not a budget"]),
        ("bytes--5", ["'bytes--5' is not a budget"]),
        ("bytes-5 MB", ["is not a budget"]),
        ("bytes-1e6", ["'bytes-1e6' is not a budget"]),
        ("Full", ["'Full' is not a budget"]),
        ("byte-500", ["unknown kind 'byte'", "did you mean 'bytes'?"]),
        ("params-500", ["unknown kind 'params'", "known: bytes, full, numbers"]),
        ("bytes-5mb", ["unknown unit 'mb'", "kB, MB, GB"]),
        ("bytes-5MiB", ["unknown unit 'MiB'"]),
        ("numbers-5kB", ["unknown unit 'kB'", "numbers none"]),
        ("bytes-0", ["'bytes-0' is empty", "positive"]),
        ("numbers-0", ["'numbers-0' is empty"]),
        ("numbers-1.5", ["not a whole number of numbers", "numbers-2"]),
        ("bytes-0.0001kB", ["not a whole number of bytes", "bytes-1"]),
    ],
)
def test_what_is_no_budget_is_refused_with_the_value_and_the_way_out(text, pieces):
    with pytest.raises(ConfigError) as error:
        Budget.parse(text)
    for piece in pieces:
        assert piece in str(error.value)


def test_bytes_charge_bytes_and_numbers_charge_what_the_paper_counts():
    assert Budget.parse("bytes-100").measure(numbers=7, nbytes=28) == 28
    assert Budget.parse("numbers-100").measure(numbers=7, nbytes=28) == 7


def test_require_names_what_is_needed_in_the_unit_of_the_budget():
    Budget.parse("bytes-280").require(numbers=70, nbytes=280)
    with pytest.raises(BudgetError) as error:
        Budget.parse("bytes-44").require(numbers=70, nbytes=28_000)
    assert error.value.needs == 28_000
    for piece in ("bytes-44", "28,000 bytes", "`budgets` in the configuration", "bytes-28000", "`grid.budgets`, or"):
        assert piece in str(error.value)
    with pytest.raises(BudgetError, match="the 70 numbers that this method needs"):
        Budget.parse("numbers-44").require(numbers=70, nbytes=28_000)


def test_nothing_is_too_large_for_full():
    Budget.parse("full").require(numbers=10**12, nbytes=4 * 10**12)
    with pytest.raises(BudgetError, match=r"full sets no size .* `budgets`"):
        Budget.parse("full").values()


def test_values_are_float32_numbers_that_fit():
    assert Budget.parse("bytes-283").values() == 283 // 4
    assert Budget.parse("numbers-283").values() == 283


def test_setting_bytes_aside_costs_a_bytes_budget_and_no_numbers_budget():
    assert Budget.parse("bytes-100").less(40).amount == 60
    assert Budget.parse("numbers-100").less(40).amount == 100
    assert Budget.parse("full").less(40).amount == math.inf


# Footprint -------------------------------------------------------------------

ARRAYS = {
    "codebook": np.ones((3, 2), dtype=np.float32),  # 6 numbers, 24 bytes
    "codes": np.ones((5, 2), dtype=np.uint8),  # 10 bytes
    "weights": np.ones((5, 2), dtype=np.float32),  # 40 bytes
    "item_bias": np.ones(4, dtype=np.float32),  # 16 bytes
}


def test_zeros_of_a_pruned_table_are_stored_but_not_counted():
    arrays = {"table": np.array([[0.5, 0.0], [0.0, 0.0]], dtype=np.float32), "codes": np.zeros(3, dtype=np.uint8)}
    footprint = Footprint.measure(arrays, None, graph_bytes=0, table_bytes=0, needs_graph=False)
    assert (footprint.numbers, footprint.stored) == (1 + 3, 16 + 3)


def test_a_footprint_written_out():
    footprint = Footprint.measure(ARRAYS, ("codebook",), graph_bytes=30, table_bytes=40, needs_graph=True)
    assert footprint.numbers == 3 * 2
    assert footprint.stored == 24 + 10 + 40 + 16
    assert footprint.serving == 90 + 30  # the training graph is cheaper than the cached table
    parts = {name: tuple(part.values()) for name, part in footprint.parts.items()}
    assert list(footprint.parts["codes"]) == ["shape", "dtype", "bytes", "kind", "counted"]
    assert parts["codes"] == ([5, 2], "|u1", 10, "indices", False)
    assert parts["codebook"] == ([3, 2], "<f4", 24, "vectors", True)
    assert footprint.spent(Budget.parse("bytes-1MB")) == 90
    assert footprint.spent(Budget.parse("numbers-1")) == 6


def test_serving_takes_the_cached_table_where_it_is_cheaper_and_neither_where_none_is_needed():
    assert Footprint.measure(ARRAYS, ("codebook",), 30, 20, True).serving == 90 + 20
    assert Footprint.measure(ARRAYS, ("codebook",), 30, 20, False).serving == 90


def test_without_a_list_the_paper_counts_everything_but_the_item_bias():
    footprint = Footprint.measure(ARRAYS, None, 0, 0, False)
    assert footprint.numbers == 6 + 10 + 10
    assert not footprint.parts["item_bias"]["counted"]


# An item bias ----------------------------------------------------------------


def test_an_item_bias_is_paid_first_and_the_rest_sizes_the_method():
    graph = Graph(interactions([(0, 0)], 3, 7))  # ten nodes; the bias takes 7 * 4 = 28 bytes
    params = ShortVectors.Params(item_bias=True)
    method = build(ShortVectors, Budget.parse("bytes-148"), graph, params, seed=1)
    assert method.vectors.shape == (10, (148 - 28) // (4 * 10))
    assert build(ShortVectors, Budget.parse("numbers-30"), graph, params, seed=1).vectors.shape == (10, 3)


@pytest.mark.parametrize("amount", [1, 27, 28, 67])
def test_below_the_bias_and_one_number_per_node_the_least_budget_holds_both(amount):
    graph = Graph(interactions([(0, 0)], 3, 7))
    with pytest.raises(BudgetError) as error:
        build(ShortVectors, Budget.parse(f"bytes-{amount}"), graph, ShortVectors.Params(item_bias=True), seed=1)
    assert error.value.needs == 28 + 4 * 10
