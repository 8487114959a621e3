"""Where the memory goes, against sums by hand; and budgets that are used as far as a method's steps allow."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_contract import GRID, NAMES, fit

from baselines.legcf import LEGCF
from c2f.budget import Budget, Footprint
from c2f.data import Interactions
from c2f.graph import Graph
from c2f.metaembed import C2FMetaEmbed
from c2f.method import build, export_arrays
from c2f.run import WELL_USED

USERS, ITEMS, PAIRS = 29_858, 40_981, 810_128  # Gowalla
NODES = USERS + ITEMS


@pytest.fixture(scope="module")
def gowalla():
    """A graph of Gowalla's sizes."""
    user = np.arange(PAIRS, dtype=np.int64) * USERS // PAIRS
    return Graph(Interactions(user.astype(np.int32), (np.arange(PAIRS) % ITEMS).astype(np.int32), USERS, ITEMS))


def footprint_of(method, graph) -> Footprint:
    table = 4 * NODES * 128 + 4 * (USERS + ITEMS)  # cached: final vectors, and a coordinate for the item bias
    return Footprint.measure(
        export_arrays(method), method.counted, graph.stored_bytes, table, method.needs_graph, kinds=method.kinds
    )


def test_the_ledger_of_legcf_with_500_codes_on_gowalla(gowalla):
    params = LEGCF.Params(num_codes=500, item_bias=True)
    footprint = footprint_of(build(LEGCF, Budget.parse("numbers-64000"), gowalla, params, 1), gowalla)
    assert footprint.numbers == 500 * 128 == 64_000
    assert footprint.by_kind() == {
        "codebook": 500 * 128 * 4,  # 256,000
        "assignment": NODES * 2 * 4,  # two float32 weights for each user and item: 566,712
        "indices": NODES * 2 * 2,  # two uint16 codes: 283,356
        "biases": ITEMS * 4,  # 163,924
    }
    assert footprint.stored == 256_000 + 566_712 + 283_356 + 163_924 == 1_269_992
    graph = PAIRS * 2 + (USERS + 1) * 4  # uint16 item ids by user, uint32 where each user's begin: 1,739,692
    assert footprint.serving == 1_269_992 + graph == 3_009_684  # the cached table would be 36.6 MB


def test_the_ledger_of_c2f_with_300_and_100_codes_on_gowalla(gowalla):
    params = C2FMetaEmbed.Params(num_codes=300, fine_codes=100, item_bias=True)
    method = build(C2FMetaEmbed, Budget.parse("numbers-51200"), gowalla, params, 1)
    with torch.no_grad():
        method.codebook.fill_(0.5)
        method.fine[:, :48] = 1.5  # 48 of 128 numbers of each fine code are beyond the threshold of 1
    footprint = footprint_of(method, gowalla)
    assert footprint.numbers == 300 * 128 + 100 * 48  # zeros are no numbers
    assert footprint.by_kind() == {
        "codebook": 300 * 128 * 4 + 100 * 48 * 4,  # 153,600 + 19,200
        "assignment": NODES * 2 * 4 + 300 * 4 * 4,  # weights of the assignment and of the bridge: 571,512
        "indices": NODES * 2 * 2 + 300 * 4,  # uint16 codes, uint8 bridge codes: 284,556
        "masks": 100 * 128 // 8,  # a bit for each number of the fine codes: 1,600
        "biases": ITEMS * 4,
    }
    assert footprint.stored == 172_800 + 571_512 + 284_556 + 1_600 + 163_924 == 1_194_392


@pytest.mark.parametrize(
    ("storage", "weight_storage", "nbytes"),
    [
        ("float16", "float16", 500 * 128 * 2 + NODES * 2 * (2 + 2)),
        ("int8", "uint8", 500 * (128 + 2) + NODES * 2 * (1 + 2) + 2 * 2),  # a float16 scale for each code and place
    ],
)
def test_smaller_types_of_storage_are_charged_as_they_are(gowalla, storage, weight_storage, nbytes):
    params = LEGCF.Params(num_codes=500, storage=storage, weight_storage=weight_storage)
    footprint = footprint_of(build(LEGCF, Budget.parse("full"), gowalla, params, 1), gowalla)
    assert footprint.stored == nbytes
    assert footprint.numbers <= 64_000


def test_what_an_array_is_follows_from_its_name_and_type_unless_the_method_says_it():
    arrays = {
        "vectors": np.ones(2, dtype=np.float32),
        "codes": np.ones(2, dtype=np.uint8),
        "fine_mask": np.ones(2, dtype=np.uint8),
        "codes_scales": np.ones(2, dtype=np.float16),
        "item_bias": np.ones(2, dtype=np.float32),
        "weights": np.ones(2, dtype=np.float32),
    }
    parts = Footprint.measure(arrays, None, 0, 0, False, kinds={"weights": "assignment"}).parts
    kinds = ["vectors", "indices", "masks", "scales", "biases", "assignment"]
    assert [parts[name]["kind"] for name in arrays] == kinds


# Budgets ---------------------------------------------------------------------

SIZED = [name for name in NAMES if not GRID.entries[name].budgets]


@pytest.mark.parametrize("name", SIZED)
def test_a_budget_is_used_to_98_percent_or_the_method_says_what_keeps_it_from_that(name, blocks):
    graph, valid, _ = blocks
    fitted = fit(name, graph, valid)
    spent = Footprint.measure(
        fitted.arrays, fitted.method.counted, 0, 0, False, numbers=fitted.method.packed_numbers()
    ).spent(fitted.budget)
    assert spent <= fitted.budget.amount
    if spent >= WELL_USED * fitted.budget.amount:
        return
    reason = fitted.method.leftover(fitted.budget)
    step = re.search(r"takes ([\d,]+) bytes more$", reason)
    if step:  # the next larger size does not fit
        assert spent + int(step[1].replace(",", "")) > fitted.budget.amount, reason
    else:
        assert len(reason) > 20


def test_the_price_of_more_is_given_in_the_budgets_own_unit():
    budget = SimpleNamespace(numbers=Budget.parse("numbers-10"), bytes=Budget.parse("bytes-10"))
    assert budget.numbers.price("one more code", numbers=128, nbytes=512) == "one more code takes 128 numbers more"
    assert budget.bytes.price("one more code", numbers=128, nbytes=512) == "one more code takes 512 bytes more"
