"""The hashing family: sizes, who shares rows with whom, the composed vectors, and where they start."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from baselines.hashing import DoubleHashing, Hashing, QuotientRemainder
from c2f.budget import Budget
from c2f.codebook import hash_constants
from c2f.diagnostics import collision_rate
from c2f.errors import BudgetError, ConfigError
from c2f.method import build

VARIANTS = {
    "plain": (Hashing, {}),
    "double": (DoubleHashing, {}),
    "qr-add": (QuotientRemainder, {"combine": "add"}),
    "qr-multiply": (QuotientRemainder, {"combine": "multiply"}),
    "qr-concatenate": (QuotientRemainder, {"combine": "concatenate"}),
}
ALL = pytest.mark.parametrize("variant", VARIANTS)


def made(variant, budget, num_nodes=80, seed=1, **params):
    """The untrained method for so many nodes; rows of 8 numbers unless `params` say otherwise."""
    cls, chosen = VARIANTS[variant]
    params = cls.Params(**{"dim": 8, **chosen, **params})
    return build(cls, Budget.parse(budget), SimpleNamespace(num_nodes=num_nodes), params, seed)


def stored(method):
    return sum(array.nbytes for array in method.export().values())


def collisions(method):
    """The share of nodes with a twin, as diagnostics.json has it."""
    return collision_rate(method.code_arrays(method.export(), method.params)["nodes"])


# A row has 8 float32 numbers, half as many where rows are concatenated. Beside the rows lie 20 bytes of two int64
# constants and N (plain), of four uint32 constants and N (double), or 8 bytes of m and N (quotient-remainder).
@pytest.mark.parametrize(
    ("variant", "rows", "nbytes"),
    [
        ("plain", 30, 30 * 32 + 20),  # (1000 - 20) / 32 = 30.6
        ("double", 30, 30 * 32 + 20),
        ("qr-add", 3 + 27, 30 * 32 + 8),  # (1000 - 8) / 32 = 31; m = 3 needs 3 + 80/3, m = 2 would need 2 + 40
        ("qr-concatenate", 2 + 40, 42 * 16 + 8),  # (1000 - 8) / 16 = 62; m = 1 would need 1 + 80
    ],
)
def test_a_budget_buys_as_many_rows_as_fit_beside_the_address(variant, rows, nbytes):
    method = made(variant, "bytes-1000")
    assert len(method.codebook) == rows
    assert stored(method) == nbytes


def test_an_odd_number_of_rows_gives_the_first_table_one_more():
    method = made("double", f"numbers-{11 * 8}", num_nodes=1000)
    assert set(method.codes[:, 0].tolist()) == set(range(6))
    assert set(method.codes[:, 1].tolist()) == set(range(6, 11))


def test_m_is_the_root_nearest_the_square_root_of_n():
    # m + 80/m = 20 has the roots 10 - sqrt(20) = 5.5 and 10 + sqrt(20) = 14.5; 6 is 2.9 from sqrt(80), 14 is 5.1.
    method = made("qr-add", f"numbers-{20 * 8}")
    assert method.address["divisor"] == [6]
    assert len(method.codebook) == 6 + 14


@pytest.mark.parametrize(
    ("num_nodes", "rows"), [(70_839, 533), (116_198, 682), (144_242, 760)], ids=["gowalla", "yelp2020", "amazon-book"]
)
def test_quotient_remainder_needs_two_square_roots_of_n_rows(num_nodes, rows):
    with pytest.raises(BudgetError) as error:
        made("qr-multiply", f"numbers-{rows * 128 - 1}", num_nodes, dim=128)
    assert error.value.needs == rows * 128
    assert len(made("qr-multiply", f"numbers-{rows * 128}", num_nodes, dim=128).codebook) == rows


@ALL
def test_a_full_budget_sets_no_size(variant):
    with pytest.raises(BudgetError, match="sets no size"):
        made(variant, "full")


def test_remainders_come_first_and_quotients_below_them():
    address = {"divisor": np.array([3]), "num_nodes": np.array([7])}
    expected = [[0, 3], [1, 3], [2, 3], [0, 4], [1, 4], [2, 4], [0, 5]]
    np.testing.assert_array_equal(QuotientRemainder.codes_of(address, 6), expected)


@pytest.mark.parametrize("rows", [533, 1000, 20_000])
def test_no_two_nodes_share_a_quotient_and_a_remainder(rows):
    method = made("qr-add", f"numbers-{rows * 8}", num_nodes=70_839)
    assert len(np.unique(method.codes[:, 0] + 10**6 * method.codes[:, 1])) == 70_839
    assert collisions(method) == 0


def test_double_hashing_makes_about_n_squared_over_twice_m1_m2_pairs_collide():
    # On average over draws of the constants: one draw is far off (standard deviation 85 here), so it takes many.
    num_nodes, m1, m2 = 200, 20, 20
    torch.manual_seed(0)
    pairs = []
    for _ in range(10_000):
        address = {"hash_constants": hash_constants(2), "num_nodes": [num_nodes]}
        first, second = DoubleHashing.codes_of(address, m1 + m2).T
        nodes = np.bincount(m2 * first + second - m1, minlength=m1 * m2)
        pairs.append((nodes * (nodes - 1) / 2).sum())
    assert np.mean(pairs) == pytest.approx(num_nodes**2 / (2 * m1 * m2), rel=0.07)  # 50


def test_double_hashing_separates_more_nodes_than_plain_hashing_on_the_same_budget():
    plain, double = (
        np.mean([collisions(made(name, "numbers-800", 300, seed)) for seed in range(30)])
        for name in ("plain", "double")
    )
    assert plain > 0.9  # 300 nodes, 100 rows
    assert double < plain / 2  # 50 * 50 pairs of rows


@ALL
def test_the_collision_rate_is_the_share_of_nodes_with_a_twin(variant):
    method = made(variant, f"numbers-{24 * 8}")
    codes = [tuple(code) for code in method.codes.tolist()]
    assert collisions(method) == sum(codes.count(code) > 1 for code in codes) / 80


@ALL
def test_a_vector_is_made_of_the_rows_that_the_stored_numbers_lead_to(variant):
    method = made(variant, f"numbers-{20 * 8}", num_nodes=30)
    arrays = method.export()
    rows = arrays["codebook"]
    for node, vector in enumerate(type(method).decode(arrays, method.params)):
        if variant == "plain":
            a, b = map(int, arrays["hash_constants"])
            expected = rows[(a * node + b) % (2**31 - 1) % 20]
        elif variant == "double":
            (a, b), (c, d) = arrays["hash_constants"].tolist()
            expected = rows[(a * node + b) % (2**31 - 1) % 10] + rows[10 + (c * node + d) % (2**31 - 1) % 10]
        else:
            m = int(arrays["divisor"][0])
            remainder, quotient = rows[node % m], rows[m + node // m]
            expected = {
                "add": remainder + quotient,
                "multiply": remainder * quotient,
                "concatenate": np.concatenate([remainder, quotient]),
            }[method.params.combine]
        np.testing.assert_array_equal(vector, expected)
    np.testing.assert_array_equal(type(method).decode(arrays, method.params), method.table().detach())


def start(variant, num_nodes=5000, num_seeds=10, **params):
    """The entries of initial tables of several seeds, 150 rows of 64 numbers each."""
    budget = f"numbers-{150 * 64}"
    tables = [made(variant, budget, num_nodes, seed, dim=64, **params).table() for seed in range(num_seeds)]
    return torch.stack(tables).detach()


@ALL
def test_the_composed_vectors_start_with_the_variance_of_the_backbone(variant):
    entries = start(variant)
    assert float(entries.square().mean()) == pytest.approx(0.1**2, rel=0.05)
    assert float(entries.mean()) == pytest.approx(0, abs=0.005)


def test_products_start_with_both_signs_unless_recsys_benchmarks_start_is_chosen():
    assert float((start("qr-multiply") > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    positive = start("qr-multiply", init="recsys-benchmark")
    assert float(positive.min()) > 0
    mean_of_a_row = (math.sqrt(1 / 5000) + 1) / 2  # of U(sqrt(1/N), 1)
    assert float(positive.mean()) == pytest.approx(mean_of_a_row**2, rel=0.02)


def test_recsys_benchmarks_sums_start_with_half_the_variance():
    assert float(start("qr-add", init="recsys-benchmark").square().mean()) == pytest.approx(0.1**2 / 2, rel=0.05)


def test_what_cannot_be_concatenated_is_refused():
    with pytest.raises(ConfigError, match="dim = 7, but it must be even"):
        QuotientRemainder.Params(dim=7, combine="concatenate")
    with pytest.raises(ConfigError, match="init = 'recsys-benchmark'"):
        QuotientRemainder.Params(combine="concatenate", init="recsys-benchmark")


def test_products_have_no_linear_form_and_sums_have_one_row_per_row_of_the_codebook(blocks):
    graph = SimpleNamespace(graph=blocks[0], device=torch.device("cpu"))
    assert made("qr-multiply", "numbers-160").linear_form(graph) is None
    for variant in ("plain", "double", "qr-add", "qr-concatenate"):
        method = made(variant, "numbers-160")
        form = method.linear_form(graph)
        assert form.num_rows == len(method.codebook)
        np.testing.assert_allclose((form.composition @ form.rows()).detach(), method.table().detach(), atol=1e-7)
