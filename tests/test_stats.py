"""The statistics hold what they promise: planted differences are found, equal methods are left alone."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from c2f.stats import (
    bootstrap_means,
    detectable_difference,
    effect_size,
    holm,
    interval,
    probability_best,
    seed_error,
    users_interval,
    variance_split,
    wilcoxon_p,
)

COMPARISONS = 1000
USERS = 200


def differences(seeds, *, user=0.0, seed=0.0, noise=0.1, planted=0.0, comparisons=COMPARISONS, stream=1) -> np.ndarray:
    """Per-user differences (S, n, comparisons) of two methods: planted + user effect + seed effect + noise."""
    rng = np.random.default_rng([stream, seeds])
    users = user * rng.standard_normal((1, USERS, comparisons))
    runs = seed * rng.standard_normal((seeds, 1, comparisons))
    return planted + users + runs + noise * rng.standard_normal((seeds, USERS, comparisons))


def sparse_differences(seeds, seed=0.0) -> np.ndarray:
    """The same of recalls with one held-out item, 0 or 1: a user's chance is low, and each training shifts them all."""
    rng = np.random.default_rng([2, seeds])
    chances = rng.beta(0.3, 1.7, size=(1, USERS, COMPARISONS))

    def recalls():
        shifted = np.clip(chances * (1 + seed * rng.standard_normal((seeds, 1, COMPARISONS))), 0, 1)
        return (rng.uniform(size=shifted.shape) < shifted).astype(float)

    return recalls() - recalls()


def intervals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % intervals of many comparisons (S, n, comparisons) at once."""
    draws = bootstrap_means(values.mean(axis=0), np.random.default_rng(3))
    return interval(values.mean(axis=(0, 1)), draws, values.mean(axis=1))


def called_different(values: np.ndarray) -> float:
    low, high = intervals(values)
    return float(((low > 0) | (high < 0)).mean())


# 65 of 1,000 is two standard deviations of a binomial above the 50 that are promised
EQUAL = {
    "trainings that differ in noise alone": {},
    "seeds as large as users": {"user": 0.1, "seed": 0.1 / math.sqrt(USERS)},
    "seeds above all": {"user": 0.1, "seed": 0.1},
    "users above all": {"user": 0.3},
}


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("effects", EQUAL.values(), ids=EQUAL)
def test_equal_methods_are_called_different_in_at_most_5_of_100_comparisons(effects, seeds):
    assert called_different(differences(seeds, **effects)) <= 0.065


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed", [0.0, 0.2])
def test_equal_methods_with_recalls_of_0_and_1_are_called_different_no_more_often(seeds, seed):
    assert called_different(sparse_differences(seeds, seed)) <= 0.065


def test_of_one_seed_the_interval_is_about_the_trained_models_and_other_seeds_leave_it():
    assert called_different(differences(1, user=0.1)) <= 0.065
    assert called_different(differences(1, user=0.1, seed=0.05)) > 0.5


def test_resampling_seeds_and_users_would_call_equal_methods_different_too_often():
    """Why the interval is no hierarchical bootstrap: of 3 seeds it makes 3 times the errors that it states."""
    values, rng = differences(3, seed=0.1)[:, :50], np.random.default_rng(4)
    draws = []
    for _ in range(400):
        chosen = values[rng.integers(3, size=3)].mean(axis=0)
        draws.append(chosen[rng.integers(50, size=50)].mean(axis=0))
    low, high = users_interval(np.array(draws))
    assert ((low > 0) | (high < 0)).mean() > 0.15


PLANTED = {
    "users alone": (0.2, 0.0),
    "seeds as large as users": (0.1, 0.1 / math.sqrt(USERS)),
    "seeds above all": (0.05, 0.1),
}


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
@pytest.mark.parametrize(("user", "seed"), PLANTED.values(), ids=PLANTED)
def test_a_difference_of_the_detectable_size_is_found_in_four_of_five_comparisons(user, seed, seeds):
    user_error = math.sqrt((user**2 + 0.1**2 / seeds) / USERS)
    errors_of_seeds = math.sqrt((seed**2 + 0.1**2 / USERS) / seeds)
    size = float(detectable_difference(user_error, errors_of_seeds, seeds))
    values = differences(seeds, user=user, seed=seed, planted=size)
    low, high = intervals(values)
    assert (low > 0).mean() >= 0.77
    assert (high < 0).mean() <= 0.01


def test_the_detectable_size_is_no_larger_than_it_must_be():
    """Found in four of five, not in nearly all: a size that promises too little would hide behind that."""
    size = float(detectable_difference(0.01, 0.05, 5))
    values = differences(5, user=0.0, noise=0.0, seed=0.05 * math.sqrt(5), planted=size)
    values = values + 0.01 * math.sqrt(USERS) * np.random.default_rng(5).standard_normal((1, USERS, COMPARISONS))
    assert 0.77 <= (intervals(values)[0] > 0).mean() <= 0.86


def test_the_detectable_size_of_users_alone_is_2_8_standard_errors():
    found = detectable_difference(np.array([0.01, 0.02, 0.0]), np.zeros(3), 1)
    np.testing.assert_allclose(found, [(1.959964 + 0.841621) * 0.01, (1.959964 + 0.841621) * 0.02, 0], rtol=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_detectable_size_of_seeds_alone_has_the_power_of_the_t_test(seeds):
    size = float(detectable_difference(0.0, 0.01, seeds))
    limit = scipy_stats.t.ppf(0.975, seeds - 1)
    assert scipy_stats.nct.sf(limit, seeds - 1, size / 0.01) == pytest.approx(0.8, abs=0.002)


def test_a_planted_winner_wins_with_the_right_sign():
    rng = np.random.default_rng(6)
    users = rng.uniform(size=(1, USERS, 1))
    lifts = np.array([0.0, 0.05, 0.02])  # the second is the best of three
    values = users + lifts + 0.05 * rng.standard_normal((4, USERS, 3))
    draws = bootstrap_means(values.mean(axis=0), rng)
    assert probability_best(draws, values.mean(axis=1), rng).argmax() == 1
    for loser in (0, 2):
        gap = values[:, :, [1]] - values[:, :, [loser]]
        low, high = intervals(gap)
        assert 0 < low < lifts[1] - lifts[loser] < high
        assert effect_size(gap.mean(axis=0)[:, 0]) > 0
        assert wilcoxon_p(gap.mean(axis=0)[:, 0]) < 0.001
        low, high = intervals(-gap)
        assert low < high < 0


# By hand --------------------------------------------------------------------------------------------------------------


def test_bootstrap_means_are_those_of_a_loop_over_drawn_users():
    values = np.random.default_rng(7).uniform(size=(9, 2))
    rng, expected = np.random.default_rng(8), []
    for _ in range(50):
        drawn = rng.integers(9, size=9)
        expected.append([sum(values[user, column] for user in drawn) / 9 for column in range(2)])
    np.testing.assert_allclose(bootstrap_means(values, np.random.default_rng(8), 50), expected)


def test_the_interval_of_many_users_is_the_normal_one():
    """1.96 standard errors on each side; 20,000 draws know that to 1 %."""
    values = np.random.default_rng(9).exponential(size=(5000, 1))
    draws = bootstrap_means(values, np.random.default_rng(10), 20_000)
    low, high = interval(values.mean(axis=0), draws, values.mean(axis=0)[None])
    arm = 1.96 * values.std(ddof=1) / math.sqrt(5000)
    np.testing.assert_allclose([values.mean() - low[0], high[0] - values.mean()], arm, rtol=0.03)


def test_seeds_lengthen_the_interval_by_student_s_in_quadrature():
    """Users alone: 0.5 ± 0.03. Seeds 0.4, 0.5, 0.6: sd 0.1, error 0.1 / sqrt 3; t is 4.3027 for 3 seeds."""
    draws = np.linspace(0.5 - 0.03 / 0.95, 0.5 + 0.03 / 0.95, 2001)  # its 2.5 % and 97.5 % lie 0.03 from the middle
    arm = math.sqrt(0.03**2 + (4.302653 * 0.1 / math.sqrt(3)) ** 2)
    seed_means = np.array([0.4, 0.5, 0.6])
    assert seed_error(seed_means) == pytest.approx(0.1 / math.sqrt(3))
    assert interval(np.array(0.5), draws, seed_means) == pytest.approx((0.5 - arm, 0.5 + arm))
    assert interval(np.array(0.5), draws, np.array([0.5])) == pytest.approx((0.47, 0.53))


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04; none below the one before: .02 .03 .06 .06."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1.0, 1.0])
    assert len(holm([])) == 0


def test_holm_holds_the_error_of_a_whole_family():
    """20 tests of nothing: without correction 64 of 100 families claim something, with it 5."""
    families = np.random.default_rng(11).uniform(size=(2000, 20))
    assert (families.min(axis=1) < 0.05).mean() > 0.6
    assert np.mean([holm(family).min() < 0.05 for family in families]) == pytest.approx(0.05, abs=0.015)


def test_the_signed_rank_test_by_hand():
    """Five gains of different size: of 2^5 signs, 2 are as extreme. Users without a difference say nothing."""
    assert wilcoxon_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    assert wilcoxon_p(np.zeros(5)) == 1.0
    assert wilcoxon_p(np.full(5, 1e-9)) == 1.0  # what float32 rounding leaves of equal metrics


def test_cohen_s_d_is_the_mean_by_the_standard_deviation():
    assert effect_size(np.array([0.1, 0.3])) == pytest.approx(0.2 / math.sqrt(0.02))
    assert effect_size(np.zeros(4)) == 0.0
    assert effect_size(np.full(4, -0.5)) == -math.inf


def test_the_probability_of_being_best_by_hand():
    """Of four draws the first method leads twice, the second once, and once they are level."""
    draws = np.array([[3.0, 1.0], [3.0, 2.0], [1.0, 2.0], [2.0, 2.0]])
    one_seed = np.zeros((1, 2))
    found = probability_best(draws, one_seed, np.random.default_rng(12))
    np.testing.assert_allclose(found, [2.5 / 4, 1.5 / 4])


def test_seeds_that_differ_make_the_best_less_certain_unless_they_are_shared():
    """A lead of 1 with seed errors of 1: Student's t of each, 4 degrees of freedom, says how often that is turned."""
    rng, draws = np.random.default_rng(13), np.tile([1.0, 0.0], (40_000, 1))
    spread = np.array([-1.0, 1.0, -1.0, 1.0, 0.0]) * math.sqrt(5)  # standard error 1
    apart = np.full((10, 2), np.nan)
    apart[:5, 0], apart[5:, 1] = spread, spread
    first, second = probability_best(draws, apart, rng)
    assert first == pytest.approx(scipy_stats.t.cdf(1 / math.sqrt(2), 4), abs=0.01)
    assert first + second == pytest.approx(1)
    together = np.stack([spread, spread], axis=1)
    assert probability_best(draws, together, rng)[0] == 1.0
    one_alone = np.stack([spread, np.full(5, np.nan)], axis=1)
    one_alone[0, 1] = 7.0  # its only seed: it says nothing of others
    assert probability_best(draws, one_alone, rng)[0] == pytest.approx(scipy_stats.t.cdf(1, 4), abs=0.01)


def test_the_variance_split_by_hand():
    """Splits (1, 3), (5, 7): within ((1 + 1) + (1 + 1)) / 2 = 2; between 2 (2^2 + 2^2) / 1 = 16; (16 - 2) / 2 = 7."""
    assert variance_split([np.array([1.0, 3.0]), np.array([5.0, 7.0])]) == (2.0, 7.0)
    assert variance_split([np.array([1.0, 3.0]), np.array([1.0, 3.0])]) == (2.0, 0.0)
    assert np.isnan(variance_split([np.array([1.0, 3.0])])).all()
    assert np.isnan(variance_split([np.array([1.0]), np.array([3.0])])).all()


def test_the_variance_split_recovers_planted_components():
    rng = np.random.default_rng(14)
    by_split = [0.3 * rng.standard_normal() + 0.2 * rng.standard_normal(2 + place % 3) for place in range(3000)]
    model, split = variance_split(by_split)
    assert model == pytest.approx(0.2**2, rel=0.06)
    assert split == pytest.approx(0.3**2, rel=0.06)
