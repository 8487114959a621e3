"""The SVD against NumPy's dense one; users folded in against users stored; sizes; the regularised degrees."""

import numpy as np
import pytest
from conftest import interactions

from baselines.decoders import degree_normalised
from baselines.svd import TruncatedSVD, largest_singular
from c2f.budget import Budget
from c2f.errors import BudgetError, ConfigError
from c2f.graph import Graph
from c2f.method import build, export_arrays
from c2f.train import Trainer, TrainingSettings

SETTINGS = TrainingSettings(device="cpu")


@pytest.fixture(scope="module")
def graph():
    """30 users x 20 items, a random third of the pairs; the last user and the last item have none."""
    liked = np.argwhere(np.random.default_rng(0).random((29, 19)) < 0.3)
    return Graph(interactions(liked, 30, 20))


def fit(graph, budget, **params):
    method = build(TruncatedSVD, Budget.parse(budget), graph, TruncatedSVD.Params(**params), 1)
    method.fit(Trainer(graph, interactions([(29, 19)], 30, 20), SETTINGS, 1))
    return method


def scores(method, graph):
    final = method.restore(export_arrays(method), method.params, graph)
    return final[: graph.num_users] @ final[graph.num_users :].T


def dense_scores(graph, rank, offset, power):
    """P S Q^T (D_i + o)^p by the definition."""
    ratings = graph.train.csr().toarray().astype(float)
    user_degrees, item_degrees = ratings.sum(axis=1), ratings.sum(axis=0)
    matrix = np.zeros_like(ratings)
    for user, item in np.argwhere(ratings):
        matrix[user, item] = 1 / np.sqrt((user_degrees[user] + offset) * (item_degrees[item] + offset))
    users, singular, items = np.linalg.svd(matrix)
    low_rank = users[:, :rank] * singular[:rank] @ items[:rank]
    return low_rank * (item_degrees + offset) ** power


@pytest.mark.parametrize("users", ["stored", "folded"])
@pytest.mark.parametrize(("offset", "power"), [(0.0, 0.0), (0.0, 0.5), (3.0, 0.5)])
def test_the_scores_are_those_of_the_dense_svd(graph, users, offset, power):
    method = fit(graph, "full", dim=6, users=users, degree_offset=offset, item_power=power)
    np.testing.assert_allclose(scores(method, graph), dense_scores(graph, 6, offset, power), atol=1e-5)


def test_by_default_the_mean_degree_of_a_user_is_added_to_every_degree(graph):
    mean = len(graph.train) / graph.num_users
    np.testing.assert_allclose(scores(fit(graph, "full", dim=6), graph), dense_scores(graph, 6, mean, 0.5), atol=1e-5)


def test_plain_degrees_are_those_of_the_propagation(graph):
    matrix, _ = degree_normalised(graph, TruncatedSVD.Params(degree_offset=0.0))
    np.testing.assert_allclose(matrix.toarray(), graph.adjacency.toarray()[:30, 30:], atol=1e-7)


def test_small_components_take_the_first_dimensions_of_the_plain_matrix_and_not_of_the_regularised_one():
    # Ten users share ten items, but for one each; an eleventh has an item of her own.
    graph = Graph(interactions([(u, i) for u in range(10) for i in range(10) if u != i] + [(10, 10)], 11, 11))
    matrices = {
        offset: degree_normalised(graph, TruncatedSVD.Params(degree_offset=offset))[0] for offset in (0.0, None)
    }
    singular = {offset: largest_singular(matrices[offset], 2, np.random.default_rng(0)) for offset in matrices}
    np.testing.assert_allclose(singular[0.0][1], [1, 1], atol=1e-9)  # one for each component, whatever its size
    offset = 91 / 11  # pairs by users
    np.testing.assert_allclose(singular[None][1], [9 / (9 + offset), 1 / (1 + offset)])


def test_users_folded_in_equal_stored_users_at_every_rank(graph):
    for rank in (1, 5, 12):
        stored, folded = (fit(graph, "full", dim=rank, users=users) for users in ("stored", "folded"))
        np.testing.assert_allclose(scores(stored, graph), scores(folded, graph), atol=1e-6)
        assert (stored.needs_graph, folded.needs_graph) == (False, True)


@pytest.mark.parametrize("users", ["stored", "folded"])
def test_half_precision_changes_scores_by_rounding(graph, users):
    single, half = (scores(fit(graph, "full", dim=6, users=users, dtype=t), graph) for t in ("float32", "float16"))
    np.testing.assert_allclose(half, single, atol=2**-9 * np.abs(single).max())


@pytest.mark.parametrize(
    ("budget", "params", "rank", "nbytes"),
    [
        ("bytes-800", {}, 4, 50 * 4 * 4),
        ("bytes-800", {"dtype": "float16"}, 8, 50 * 8 * 2),
        ("bytes-800", {"users": "folded"}, 10, 20 * 10 * 4),
        ("bytes-799", {"users": "folded", "dtype": "float16", "dim": 19}, 19, 20 * 19 * 2),
        ("numbers-100", {"dtype": "float16"}, 2, 50 * 2 * 2),
        ("numbers-100", {"users": "folded"}, 5, 20 * 5 * 4),
        ("full", {"dim": 7}, 7, 50 * 7 * 4),
        ("full", {}, 19, 50 * 19 * 4),  # less than the 20 items
    ],
)
def test_the_rank_fills_the_budget(graph, budget, params, rank, nbytes):
    arrays = export_arrays(build(TruncatedSVD, Budget.parse(budget), graph, TruncatedSVD.Params(**params), 1))
    assert arrays["vectors"].shape[1] == rank
    assert {name: array.nbytes for name, array in arrays.items()} == {"vectors": nbytes}


def test_below_one_number_each_it_says_what_it_needs(graph):
    for params, least in (({}, 200), ({"dtype": "float16"}, 100), ({"users": "folded"}, 80)):
        with pytest.raises(BudgetError) as error:
            build(TruncatedSVD, Budget.parse("bytes-79"), graph, TruncatedSVD.Params(**params), 1)
        assert error.value.needs == least


def test_the_start_of_the_iteration_moves_rounding_alone_and_signs_are_fixed(graph):
    matrix, _ = degree_normalised(graph, TruncatedSVD.Params())
    first, second = (largest_singular(matrix, 5, np.random.default_rng(seed)) for seed in (0, 1))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    assert (np.diff(first[1]) < 0).all()
    assert (first[2].max(axis=0) >= -first[2].min(axis=0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim = 0, but it must be at least 1"),
        ({"degree_offset": -1.0}, "degree_offset = -1.0, but it must be at least 0, or null"),
        ({"item_power": 2.0}, "item_power = 2.0, but it must be between 0 and 1"),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_range(change, message):
    with pytest.raises(ConfigError, match=message):
        TruncatedSVD.Params(**change)
