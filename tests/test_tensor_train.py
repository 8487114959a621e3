"""TT-Rec: the chain of cores multiplied index by index, its shapes and ranks, and the sampled Gaussian start."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from baselines.decoders import multiply_out
from baselines.tensor_train import TensorTrain, cover, factor, sampled_gaussian
from c2f.budget import Budget
from c2f.errors import BudgetError
from c2f.method import build


def made(budget, num_nodes=11, dim=6, seed=1):
    graph = SimpleNamespace(num_nodes=num_nodes)
    return build(TensorTrain, Budget.parse(budget), graph, TensorTrain.Params(dim=dim), seed)


def test_the_table_equals_the_product_index_by_index():
    method = made("numbers-60")
    arrays = method.export()
    first, middle, last = (arrays[name] for name in TensorTrain.counted)
    (n1, d1, _), (_, n2, d2, _), (_, n3, d3) = first.shape, middle.shape, last.shape
    assert (n1, n2, n3, d1, d2, d3) == (3, 2, 2, 2, 1, 3)
    expected = np.zeros((12, 6))
    for i1, i2, i3, j1, j2, j3 in itertools.product(*map(range, (n1, n2, n3, d1, d2, d3))):
        node, column = (i1 * n2 + i2) * n3 + i3, (j1 * d2 + j2) * d3 + j3
        expected[node, column] = first[i1, j1] @ middle[:, i2, j2] @ last[:, i3, j3]
    np.testing.assert_allclose(method.table().detach(), expected[:11], atol=1e-7)
    np.testing.assert_allclose(TensorTrain.decode(arrays, method.params), expected[:11], atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 7, 80, 1000, 70_839, 116_198])
def test_nodes_are_covered_by_three_near_equal_factors_the_smallest_in_the_middle(count):
    first, middle, last = cover(count)
    assert first * middle * last >= count
    assert first * (middle - 1) * last < count
    assert middle == min(first, middle, last)
    assert max(first, last) <= math.ceil(count ** (1 / 3) + 1e-9)


def test_the_dimension_is_split_exactly_the_smallest_factor_in_the_middle():
    assert factor(128) == (4, 4, 8)
    assert factor(64) == (4, 4, 4)
    assert factor(12) == (2, 2, 3)
    assert factor(7) == (1, 1, 7)


# Gowalla, d = 128: cores of (42 * 4) R1, R1 (41 * 4) R2 and R2 (42 * 8) numbers; in bytes also N.
def gowalla_size(rank_1, rank_2):
    return 168 * rank_1 + 164 * rank_1 * rank_2 + 336 * rank_2


@pytest.mark.parametrize(
    ("budget", "ranks"),
    [
        (f"numbers-{gowalla_size(1, 1)}", (1, 1)),
        (f"numbers-{gowalla_size(10, 10)}", (10, 10)),
        (f"numbers-{gowalla_size(10, 11) - 1}", (10, 10)),
        (f"numbers-{gowalla_size(10, 11)}", (10, 11)),
        (f"numbers-{gowalla_size(11, 11)}", (11, 11)),
        (f"bytes-{4 * gowalla_size(10, 10) + 4}", (10, 10)),
        (f"bytes-{4 * gowalla_size(10, 10) + 3}", (9, 10)),
    ],
)
def test_the_ranks_are_the_largest_that_fit(budget, ranks):
    method = made(budget, num_nodes=70_839, dim=128)
    assert method.details["ranks"] == list(ranks)
    arrays = method.export()
    assert sum(arrays[name].size for name in TensorTrain.counted) == gowalla_size(*ranks)
    assert sum(array.nbytes for array in arrays.values()) == 4 * gowalla_size(*ranks) + 4


def test_below_rank_one_it_is_infeasible():
    least = 168 + 164 + 336
    with pytest.raises(BudgetError) as error:
        made(f"numbers-{least - 1}", num_nodes=70_839, dim=128)
    assert error.value.needs == least


def test_at_the_largest_ranks_the_chain_can_be_any_table():
    method = made("bytes-1MB", num_nodes=12)
    assert method.details["ranks"] == [3 * 2, 2 * 3]  # n1 d1 and n3 d3
    table = np.random.default_rng(0).standard_normal((12, 6))
    first, last = np.eye(6).reshape(3, 2, 6), np.eye(6).reshape(6, 2, 3)
    middle = table.reshape(3, 2, 2, 2, 1, 3).transpose(0, 3, 1, 4, 2, 5).reshape(6, 2, 1, 6)
    np.testing.assert_allclose(multiply_out(np.einsum, first, middle, last), table)


@pytest.mark.parametrize("budget", ["numbers-3000", "numbers-30000"])
def test_the_table_starts_with_the_variance_of_the_backbone(budget):
    variances = [float(made(budget, 5000, 64, seed).table().detach().square().mean()) for seed in range(20)]
    assert np.mean(variances) == pytest.approx(0.1**2, rel=0.05)


def test_factors_of_the_start_have_variance_one_and_stay_away_from_zero():
    torch.manual_seed(0)
    draws = sampled_gaussian(100_000)
    assert float(draws.mean()) == pytest.approx(0, abs=0.01)
    assert float(draws.var()) == pytest.approx(1, rel=0.01)
    # As drawn by rejection: 2 / 2.397, where 2.397^2 = 1 + 2 phi(2) / P(x > 2) is the second moment beyond 2.
    rejected = np.random.default_rng(0).standard_normal(2_000_000)
    rejected = rejected[abs(rejected) >= 2]
    quantiles = [0.1, 0.5, 0.9]
    expected = np.quantile(abs(rejected), quantiles) / np.sqrt(np.mean(rejected**2))
    np.testing.assert_allclose(np.quantile(draws.abs().numpy(), quantiles), expected, rtol=0.01)
    assert float(draws.abs().min()) >= 2 / 2.398


def test_products_of_sampled_gaussians_do_not_pile_up_at_zero_as_those_of_plain_ones_do():
    torch.manual_seed(0)
    near_zero = {
        name: float((draw(100_000) * draw(100_000) * draw(100_000)).abs().lt(0.1).float().mean())
        for name, draw in (("plain", torch.randn), ("sampled", sampled_gaussian))
    }
    assert near_zero["plain"] > 0.2
    assert near_zero["sampled"] == 0
