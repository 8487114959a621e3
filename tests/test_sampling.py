"""Triples are drawn uniformly over users, uniformly over a user's items, and their negatives are really negative."""

import numpy as np
import pytest
import scipy.stats
from conftest import interactions

from c2f.errors import DataError
from c2f.sampling import TripleSampler

# User 0 has three items, user 1 one, user 2 none, user 3 six; six items.
PAIRS = [(0, 0), (0, 2), (0, 5), (1, 4), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 5)]
SMALL = interactions(PAIRS, 4, 8)


def sampled(train, negatives, seed=0, epochs=1):
    """Triples of some epochs: users, positives, negatives."""
    sampler, generator = TripleSampler(train, negatives), np.random.default_rng(seed)
    return [np.concatenate(column) for column in zip(*(sampler.epoch(generator) for _ in range(epochs)), strict=True)]


def random_pairs(num_users=40, num_items=30, share=0.3):
    return interactions(np.argwhere(np.random.default_rng(1).random((num_users, num_items)) < share), 40, 30)


@pytest.mark.parametrize("negatives", [1, 2])
def test_an_epoch_has_as_many_draws_as_pairs_and_a_triple_for_each_negative(negatives):
    for column in sampled(SMALL, negatives):
        assert column.shape == (10 * negatives,)
        assert column.dtype == np.int32


@pytest.mark.parametrize("negatives", [1, 5])
def test_positives_are_training_items_and_negatives_are_not(negatives):
    train = random_pairs()
    known = set(zip(train.user.tolist(), train.item.tolist(), strict=True))
    user, positive, negative = (column.tolist() for column in sampled(train, negatives, epochs=3))
    assert known.issuperset(zip(user, positive, strict=True))
    assert known.isdisjoint(zip(user, negative, strict=True))


def test_the_negatives_of_one_draw_are_distinct_even_where_few_are_left():
    # One user with one item of six: each draw takes all five others; unshuffled, the draws lie in rows.
    sampler = TripleSampler(interactions([(0, 2)], 1, 6), 5)
    for seed in range(20):
        drawn = sampler._draw_negatives(np.zeros(4, dtype=int), np.random.default_rng(seed))
        assert [sorted(row) for row in drawn.tolist()] == [[0, 1, 3, 4, 5]] * 4


def test_users_are_uniform_among_those_with_items_however_many_they_have():
    user, _, _ = sampled(SMALL, 1, epochs=300)  # 3,000 draws
    counts = np.bincount(user, minlength=4)
    assert counts[2] == 0
    assert scipy.stats.chisquare(counts[[0, 1, 3]]).pvalue > 0.01  # 1,000 each, not 3 : 1 : 6


def test_positives_are_uniform_within_a_user():
    user, positive, _ = sampled(SMALL, 1, epochs=300)
    counts = np.bincount(positive[user == 3], minlength=8)
    assert counts[6:].sum() == 0
    assert scipy.stats.chisquare(counts[:6]).pvalue > 0.01


def test_negatives_are_uniform_over_the_items_that_the_user_lacks():
    user, _, negative = sampled(SMALL, 1, epochs=300)
    counts = np.bincount(negative[user == 0], minlength=8)
    assert counts[[0, 2, 5]].sum() == 0
    assert scipy.stats.chisquare(counts[[1, 3, 4, 6, 7]]).pvalue > 0.01


def test_the_triples_of_one_draw_do_not_stay_together():
    user, positive, _ = sampled(random_pairs(), 5)
    same = (user[1:] == user[:-1]) & (positive[1:] == positive[:-1])
    assert same.mean() < 0.1  # unshuffled it would be 4 of 5


def test_the_same_generator_gives_the_same_triples_and_goes_on_to_others():
    train = random_pairs()
    once, again, other = (sampled(train, 2, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once[0], other[0])
    two_epochs = sampled(train, 2, seed=3, epochs=2)
    half = len(once[0])
    assert np.array_equal(two_epochs[0][:half], once[0])
    assert not np.array_equal(two_epochs[0][half:], once[0])


def test_a_user_with_too_few_items_left_is_refused_by_number():
    full = interactions([(0, 1), *((1, item) for item in range(4))], 2, 6)  # user 1 lacks two of six items
    TripleSampler(full, 2)
    message = r"user 1 has 4 of the 6 items in training, so 3 distinct negatives cannot be drawn; lower `negatives`"
    with pytest.raises(DataError, match=message):
        TripleSampler(full, 3)


def test_is_training_pair_equals_a_set_lookup_also_where_the_filter_lets_everything_through(monkeypatch):
    train = random_pairs()
    known = set(zip(train.user.tolist(), train.item.tolist(), strict=True))
    user, item = (grid.ravel() for grid in np.mgrid[:40, :30])
    expected = [pair in known for pair in zip(user.tolist(), item.tolist(), strict=True)]
    assert TripleSampler(train, 1).is_training_pair(user, item).tolist() == expected
    monkeypatch.setattr(TripleSampler, "_slots_per_pair", 0)  # two slots, both taken
    assert TripleSampler(train, 1).is_training_pair(user, item).tolist() == expected


def test_is_training_pair_broadcasts_users_against_rows_of_items():
    sampler = TripleSampler(SMALL, 1)
    found = sampler.is_training_pair(np.array([0, 1])[:, None], np.array([[0, 1, 5], [4, 5, 0]]))
    assert found.tolist() == [[True, False, True], [True, False, False]]
