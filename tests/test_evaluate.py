"""Recall and NDCG against sums written out by hand, a naive loop, and RecBole's evaluator."""

import math

import numpy as np
import pytest
import torch
from conftest import interactions

from baselines.recbole_models import isolated
from c2f import evaluate
from c2f.evaluate import DotProducts, means, rank, score_users, top_items, union

NOTHING = np.empty((0, 2), dtype=int)


def scorer_of(scores):
    """Vectors whose dot products are exactly `scores` (U, I): every user is its own row of scores."""
    scores = torch.as_tensor(scores, dtype=torch.float32)
    return DotProducts(scores, torch.eye(scores.shape[1]))


def evaluated(scores, held_out, ks, masked=NOTHING):
    scorer = scorer_of(scores)
    shape = tuple(scorer.users.shape)
    return score_users(scorer, interactions(masked, *shape), interactions(held_out, *shape), ks)


def test_ndcg_sums_one_over_log2_of_rank_plus_one_and_divides_by_the_best_possible_sum():
    # One user; ranking 3, 0, 2, 1, 4; held out 0 and 2: hits at ranks 2 and 3.
    result = evaluated([[0.8, 0.2, 0.5, 0.9, 0.1]], [(0, 0), (0, 2)], [1, 3, 5])
    ideal = 1 / math.log2(2) + 1 / math.log2(3)
    assert result["ndcg@3"][0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / ideal)
    assert result["ndcg@5"][0] == result["ndcg@3"][0]
    assert result["ndcg@1"][0] == 0
    assert result["recall@1"][0] == 0 / 2
    assert result["recall@3"][0] == 2 / 2


def test_recall_divides_by_all_held_out_items_also_where_k_is_smaller():
    # Held out 0, 1, 2 at ranks 1, 2, 3; two of them are in the top 2.
    result = evaluated([[0.9, 0.8, 0.7, 0.1]], [(0, 0), (0, 1), (0, 2)], [2])
    assert result["recall@2"][0] == pytest.approx(2 / 3)
    assert result["ndcg@2"][0] == 1.0  # the ideal sum stops at k: nothing better fits into two places


def test_capped_recall_divides_by_the_held_out_items_that_fit_into_the_list():
    # The first user has 0, 1, 3 held out, two of them at ranks 1, 2 and one at rank 4; the second has 3, at rank 4.
    scores = [[0.9, 0.8, 0.7, 0.1]] * 2
    result = evaluated(scores, [(0, 0), (0, 1), (0, 3), (1, 3)], [2, 3, 4])
    assert result["recall_capped@2"].tolist() == [2 / min(3, 2), 0 / min(1, 2)]
    assert result["recall_capped@3"].tolist() == pytest.approx([2 / min(3, 3), 0 / min(1, 3)])
    assert result["recall_capped@4"].tolist() == [3 / min(3, 4), 1 / min(1, 4)]
    assert result["recall@2"].tolist() == pytest.approx([2 / 3, 0 / 1])


def test_a_masked_item_gives_its_place_to_the_next_one():
    scores = [[0.9, 0.8, 0.7, 0.6]]
    assert evaluated(scores, [(0, 2)], [2])["recall@2"][0] == 0
    result = evaluated(scores, [(0, 2)], [2], masked=[(0, 0), (0, 1)])
    assert result["recall@2"][0] == 1
    assert result["ndcg@2"][0] == 1  # rank 1 after masking


def test_the_item_bias_is_one_more_coordinate_of_the_dot_product():
    final = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.5, 0.5]])  # one user, two items
    scorer = DotProducts.of_nodes(final, 1, item_bias=torch.tensor([0.25, -1.0]))
    assert scorer.scores(np.array([0])).tolist() == [[1 * 3 + 2 * 0 + 0.25, 1 * 0.5 + 2 * 0.5 - 1]]
    assert scorer.num_items == 2
    assert scorer.cached_bytes == 3 * (2 + 1) * 4


def test_users_without_a_held_out_item_have_no_row():
    result = evaluated(np.ones((4, 3)), [(1, 0), (3, 0), (3, 2)], [2])
    assert result["user"].tolist() == [1, 3]
    assert result["held_out"].tolist() == [1, 2]


def test_k_above_the_number_of_items_ranks_them_all():
    result = evaluated([[0.3, 0.2, 0.1]], [(0, 2)], [2, 50])
    assert result["recall@50"][0] == 1
    assert result["ndcg@50"][0] == pytest.approx(1 / math.log2(4))


def test_means_are_over_users_and_empty_without_any():
    assert means({"user": np.array([4, 5]), "recall@5": np.array([0.2, 0.6])}) == {"recall@5": pytest.approx(0.4)}
    assert means({"user": np.array([]), "recall@5": np.array([])}) == {}


def test_union_holds_the_pairs_of_all_parts_in_order():
    whole = union([interactions([(0, 2), (1, 0)], 2, 3), interactions([(0, 1), (1, 2)], 2, 3)])
    assert list(zip(whole.user.tolist(), whole.item.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0), (1, 2)]


# Ties ------------------------------------------------------------------------


def test_equal_scores_are_ranked_by_item_id():
    assert top_items(torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.5]]), 5).tolist() == [[1, 3, 0, 2, 4]]


def test_of_a_tie_across_the_cut_the_lowest_ids_are_taken():
    assert top_items(torch.tensor([[0.5, 0.5, 0.9, 0.5]]), 2).tolist() == [[2, 0]]


def test_all_equal_scores_give_the_first_items():
    assert top_items(torch.zeros(3, 200), 20).tolist() == [list(range(20))] * 3


def test_top_items_equal_a_stable_sort_also_with_many_ties():
    generator = np.random.default_rng(0)
    for levels, width, k in [(3, 50, 10), (8, 40, 40), (20, 30, 1), (5, 7, 20)]:
        scores = generator.integers(levels, size=(60, width)).astype(np.float32)
        scores[generator.random(scores.shape) < 0.2] = -np.inf
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(top_items(torch.from_numpy(scores), k), expected)


# Against other implementations -----------------------------------------------


def random_case(seed=0, num_users=70, num_items=90):
    """Random scores with ties, and disjoint train, valid and test pairs; some users have no test item, some one."""
    generator = np.random.default_rng(seed)
    part = generator.choice(4, p=[0.6, 0.2, 0.1, 0.1], size=(num_users, num_items))  # none, train, valid, test
    part[0][part[0] == 3] = 0  # user 0 has nothing to be tested on
    part[1][part[1] == 3] = 0
    part[1, 5] = 3
    part[2, :40] = 3  # user 2 has more held-out items than the smaller k
    scores = np.round(generator.standard_normal((num_users, num_items)), 1).astype(np.float32)
    train, valid, test = (interactions(np.argwhere(part == p), num_users, num_items) for p in (1, 2, 3))
    return scores, train, valid, test


def naive(scores, masked, held_out, ks):
    """Recall and NDCG of every user with a held-out item, as one would write them for one user."""
    seen = set(zip(masked.user.tolist(), masked.item.tolist(), strict=True))
    rows = {}
    for user in range(held_out.num_users):
        relevant = {i for u, i in zip(held_out.user.tolist(), held_out.item.tolist(), strict=True) if u == user}
        if not relevant:
            continue
        candidates = [item for item in range(held_out.num_items) if (user, item) not in seen]
        ranking = sorted(candidates, key=lambda item: (-scores[user, item], item))
        row = {}
        for k in ks:
            hits = [item in relevant for item in ranking[:k]]
            gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, start=1) if hit)
            best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
            row |= {f"recall@{k}": sum(hits) / len(relevant), f"ndcg@{k}": gain / best}
            row[f"recall_capped@{k}"] = sum(hits) / min(k, len(relevant))
        rows[user] = row
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_a_naive_loop_over_the_users(seed):
    scores, train, valid, test = random_case(seed)
    ks = [1, 5, 20, 50]
    masked = union([train, valid])
    ours = score_users(scorer_of(scores), masked, test, ks)
    expected = naive(scores, masked, test, ks)
    assert 0 not in expected
    assert ours["user"].tolist() == list(expected)
    for name in next(iter(expected.values())):
        np.testing.assert_allclose(ours[name], [row[name] for row in expected.values()], rtol=1e-12)


def test_the_size_of_the_blocks_of_users_changes_nothing():
    scores, train, *_ = random_case()
    scorer = scorer_of(scores)
    chosen = np.arange(len(scores))
    whole = [top for _, top in rank(scorer, train, chosen, 20)]
    assert len(whole) == 1
    by_three = list(rank(scorer, train, chosen, 20, block_bytes=3 * 4 * scorer.num_items))
    assert [len(block) for block, _ in by_three] == [3] * 23 + [1]
    np.testing.assert_array_equal(np.concatenate([top for _, top in by_three]), whole[0])
    np.testing.assert_array_equal(np.concatenate([block for block, _ in by_three]), chosen)


def test_a_memory_cap_below_one_row_still_ranks_one_user_at_a_time():
    scores, train, *_ = random_case()
    blocks = list(rank(scorer_of(scores), train, np.array([4, 9]), 5, block_bytes=1))
    assert [block.tolist() for block, _ in blocks] == [[4], [9]]


def test_metrics_equal_those_of_recbole_on_random_rankings():
    scores, train, valid, test = random_case(7)
    ks = [5, 10, 20, 50]
    masked = union([train, valid])
    ours = means(score_users(scorer_of(scores), masked, test, ks))

    users = np.unique(test.user)
    (_, top), *others = rank(scorer_of(scores), masked, users, max(ks))
    assert not others
    relevant = test.csr().toarray()[users] > 0
    hits = np.take_along_axis(relevant, top, axis=1)
    with isolated():  # the shims that RecBole needs
        recbole = pytest.importorskip("recbole.evaluator", reason="needs recbole", exc_type=ImportError)
        collected = recbole.DataStruct()
        collected.set("rec.topk", torch.from_numpy(np.column_stack([hits, relevant.sum(axis=1)]).astype(int)))
        config = {"topk": ks, "metric_decimal_place": 12}
        theirs = {}
        for metric in (recbole.Recall, recbole.NDCG):
            theirs |= metric(config).calculate_metric(collected)
    assert theirs.keys() == {name for name in ours if not name.startswith("recall_capped")}
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=2e-12), name


def test_scores_are_not_changed_by_the_order_of_the_ks():
    scores, train, _, test = random_case()
    one = evaluate.score_users(scorer_of(scores), train, test, [20, 5])
    other = evaluate.score_users(scorer_of(scores), train, test, [5, 20])
    np.testing.assert_array_equal(one["ndcg@5"], other["ndcg@5"])
    np.testing.assert_array_equal(one["recall@20"], other["recall@20"])
