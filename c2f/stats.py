"""Statistics of the comparison: intervals, paired tests and detectable sizes, with the users and the seeds as chance.

Two things are chance in a difference between two methods: which users there are, and which seeds the methods were
trained with. The first is told by users resampled in pairs, both methods on the same ones. The second is told by the
spread over seeds alone, and a benchmark has two to five of them. `interval` puts both into one interval; with one seed
it can only speak of the models that were trained.

Measured before it was chosen, as the share of equal methods that a nominal 95 % interval calls different (40,000
normal samples, the worst over shares of the seeds in the variance of 0, .1, .3, .5, .7, .9, 1):

| interval                                                     | 2 seeds | 3      | 4      | 5      |
| users and seeds resampled (hierarchical bootstrap)           | 39.8 %  | 24.8 % | 18.8 % | 15.6 % |
| sum of the variances, Satterthwaite's degrees of freedom     | 12.5 %  | 7.9 %  | 6.4 %  | 5.8 %  |
| the two intervals added in quadrature: `interval`            | 5.0 %   | 5.0 %  | 5.1 %  | 5.0 %  |

Resampling few seeds understates their variance by (S - 1) / S and takes what is left for known. That the last row stays
at 5 % is no accident: with d / sd normal, user variance U known and seed variance W estimated as W X, X = chi2(v) / v,
the error is E f(z^2 (1 - w) + t^2 w X), where w = W / (U + W), f(x) = P(chi2(1) > x) and t is Student's quantile. f is
convex, so this is at most (1 - w) f(z^2) + w E f(t^2 X) = 5 %, for any w. The price is at two seeds: t is 12.7 there,
so they tell methods apart only where seeds hardly matter. At five the interval is some 7 % wider than the second row's.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special, stats

LEVEL = 0.95
"""Of every interval."""
POWER = 0.8
"""How often a difference of the detectable size is found."""
DRAWS = 2000
"""Bootstrap draws: the end of an interval is then known to some 3 % of the interval's half width."""


# Intervals ------------------------------------------------------------------------------------------------------------


def bootstrap_means(values: np.ndarray, rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """Return the means (draws, c) of values (n, c) over n rows drawn with replacement, the same ones in every column.

    Differences between columns of the result are therefore paired by user (Efron and Tibshirani 1993, chapter 8).
    """
    users = len(values)
    means = np.empty((draws, values.shape[1]))
    at_once = max(1, 2**23 // users)  # 64 MiB of weights
    for first in range(0, draws, at_once):
        rows = means[first : first + at_once]
        weights = np.empty((len(rows), users))
        for row in weights:
            row[:] = np.bincount(rng.integers(users, size=users), minlength=users)
        np.matmul(weights, values, out=rows)
    return means / users


def interval(mean: np.ndarray, draws: np.ndarray, seed_means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (c,) of the 95 % interval of `mean` (c,): over users, and over seeds where there are several.

    draws: bootstrap means (B, c) of the same quantity over users; seed_means: (S, c), of each seed. The percentile
    interval of the users, its arms lengthened in quadrature by Student's interval of the mean over seeds (MOVER: Zou
    and Donner 2008, Statistics in Medicine 27; why it holds its level stands at the top of this module). What users and
    seeds do together is in both parts: the interval errs towards "not told apart". Percentiles and not BCa: a mean over
    a thousand users has next to no skewness to correct.
    """
    low, high = users_interval(draws)
    reach = _student(len(seed_means)) * seed_error(seed_means)
    return mean - np.hypot(mean - low, reach), mean + np.hypot(high - mean, reach)


def users_interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (c,) of the 95 % percentile interval of bootstrap means (B, c): of the trained models alone."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def seed_error(seed_means: np.ndarray) -> np.ndarray:
    """Return the standard error (c,) of the mean over seeds (S, c); 0 for one seed, which tells nothing of it."""
    seeds = len(seed_means)
    return seed_means.std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.zeros(seed_means.shape[1:])


def interval_p(
    mean: np.ndarray, users_low: np.ndarray, users_high: np.ndarray, errors_of_seeds: np.ndarray, seeds: np.ndarray
) -> np.ndarray:
    """Return the two-sided p (c,) of `mean` (c,) being 0: one minus the level at which `interval` would end at 0.

    users_low, users_high: the ends (c,) of the users' 95 % interval; errors_of_seeds, seeds: what `seed_error` gives,
    and how many there are (c,). It solves for a: mean^2 = (z_a U)^2 + (t_a W)^2, where U is the users' standard error,
    taken from the arm of their interval towards 0, and W that of the seeds: so p < 0.05 where `interval` leaves out 0.
    For the same reason as there, p is below a in at most a share a of comparisons between equal methods. 1 where all
    is 0.
    """
    arm = np.where(mean > 0, mean - users_low, users_high - mean)
    users, degrees = arm / special.ndtri((1 + LEVEL) / 2), np.maximum(seeds - 1, 1)
    below, above = np.full(mean.shape, -690.0), np.zeros(mean.shape)  # logarithms of p: down to 1e-300
    for _ in range(50):
        middle = (below + above) / 2
        tail = np.exp(middle) / 2
        reach = np.where(seeds > 1, stats.t.ppf(tail, degrees), 0) * errors_of_seeds
        inside = np.hypot(special.ndtri(tail) * users, reach) >= np.abs(mean)
        below, above = np.where(inside, middle, below), np.where(inside, above, middle)
    return np.exp((below + above) / 2)


def seeds_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values (S,) over seeds, Student's; NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    reach = _student(len(values)) * seed_error(values)
    return float(values.mean() - reach), float(values.mean() + reach)


def seeds_p(values: np.ndarray) -> float:
    """Return the two-sided p of the mean of values (S,) over seeds being 0, Student's; NaN for fewer than two.

    1 where all are 0.
    """
    if len(values) < 2:
        return float("nan")
    error = float(seed_error(values))
    if error == 0:
        return float(values.mean() == 0)
    return float(2 * stats.t.sf(abs(values.mean()) / error, len(values) - 1))


def _student(seeds: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, seeds - 1)) if seeds > 1 else 0.0


# Tests and sizes ------------------------------------------------------------------------------------------------------


def wilcoxon_p(differences: np.ndarray) -> float:
    """Return the two-sided p of the signed-rank test of differences (n,) by user; users without one are left out.

    Wilcoxon 1945; 1 where no user has a difference. It is about users and these trained models: seeds do not come into
    it, so it finds differences between equal methods that only their seeds make. Metrics are stored
    with seven digits, and so are differences compared: what rounding makes of equal ones is no difference.
    """
    differences = np.round(differences, 7)
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p values (m,) corrected for a family of m tests (Holm 1979).

    Where nothing has an effect, one of twenty families has any below 5 %.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return corrected


def effect_size(differences: np.ndarray) -> float:
    """Return Cohen's d_z (1988, section 2.3.5) of differences (n,) by user: their mean by their standard deviation."""
    mean, spread = differences.mean(), differences.std(ddof=1)
    if spread == 0:
        return float(np.copysign(np.inf, mean)) if mean else 0.0
    return float(mean / spread)


def detectable_difference(
    user_error: np.ndarray | float, errors_of_seeds: np.ndarray | float, seeds: int
) -> np.ndarray:
    """Return the least true difference (c,) whose `interval` leaves out 0 in 80 % of repetitions.

    user_error, errors_of_seeds: standard errors (c,) of the mean difference by users and by seeds (`seed_error`). It
    solves for d: E[Phi((d - h) / s) + Phi((-d - h) / s)] = 0.8, where s^2 = user_error^2 + errors_of_seeds^2,
    h^2 = z^2 user_error^2 + t^2 errors_of_seeds^2 X is the interval's half width, and X is chi2(S - 1) / (S - 1). For
    users alone that is Bloom's (1995, Evaluation Review 19) 2.8 standard errors; for seeds alone the t test's power
    (Cohen 1988, chapter 2). Errors that were estimated from few seeds make it as uncertain as they are.
    """
    users, errors = np.broadcast_arrays(np.asarray(user_error, float), np.asarray(errors_of_seeds, float))
    if seeds > 1:
        parts = (np.arange(1000) + 0.5) / 1000
        chi = stats.chi2.ppf(parts, seeds - 1) / (seeds - 1)
    else:
        chi = np.ones(1)
    normal = special.ndtri((1 + LEVEL) / 2)
    chi = chi.reshape(-1, *[1] * users.ndim)
    half = np.hypot(normal * users, _student(seeds) * errors * np.sqrt(chi))  # (parts, c)
    spread = np.hypot(users, errors)
    low, high = np.zeros_like(spread), half.max(axis=0) + 3 * spread
    for _ in range(50):
        middle = (low + high) / 2
        with np.errstate(invalid="ignore"):  # 0 / 0 where nothing varies: every difference is found
            found = special.ndtr((middle - half) / spread) + special.ndtr((-middle - half) / spread)
        enough = ~(found.mean(axis=0) < POWER)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


# All methods of a budget ----------------------------------------------------------------------------------------------


def probability_best(draws: np.ndarray, seed_means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of c methods has the largest mean (c,) when users and seeds are drawn anew.

    draws: bootstrap means (B, c) over the same users; seed_means: (S, c), a row per seed that any method has, NaN where
    it has not. Seeds enter as multipliers: normal weights on a method's deviations from its mean, the same for methods
    with the same seed, scaled so that a method's mean varies as Student's t with its S - 1 degrees of freedom. (Drawing
    few seeds with replacement would understate their spread.) Ties are shared.
    """
    present = ~np.isnan(seed_means)
    counts = present.sum(axis=0)
    totals = np.where(present, seed_means, 0).sum(axis=0)
    deviations = np.where(present, seed_means - totals / np.maximum(counts, 1), 0)  # (S, c)
    scaled = deviations / np.sqrt(np.maximum(counts * (counts - 1), 1))
    noise = rng.standard_normal((len(draws), len(seed_means))) @ scaled  # (B, c)
    luck = rng.uniform(size=len(draws))  # one for all methods: it scales their differences alike
    for degrees in {count - 1 for count in counts.tolist() if count > 1}:
        widths = np.sqrt(degrees / stats.chi2.ppf(luck, degrees))
        noise[:, counts - 1 == degrees] *= widths[:, None]
    drawn = draws + noise
    top = drawn == drawn.max(axis=1, keepdims=True)
    return (top / top.sum(axis=1, keepdims=True)).mean(axis=0)


def variance_split(by_split: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the variance between model seeds and the variance that split seeds add, of a metric's mean.

    by_split: for each split seed the means (S_i,) of its runs, which differ in the model seed alone. Components of a
    one-way analysis of variance with random effects, model seeds nested in splits, also for unequal S_i (Searle,
    Casella and McCulloch 1992, section 3.6); a negative one is 0. NaN of fewer than two splits, or without two seeds.
    """
    counts = np.array([len(values) for values in by_split])
    splits, runs = len(counts), counts.sum()
    if splits < 2 or runs == splits:
        return float("nan"), float("nan")
    means = np.array([values.mean() for values in by_split])
    grand = (counts * means).sum() / runs
    within = sum(((values - mean) ** 2).sum() for values, mean in zip(by_split, means, strict=True)) / (runs - splits)
    between = (counts * (means - grand) ** 2).sum() / (splits - 1)
    size = (runs - (counts**2).sum() / runs) / (splits - 1)
    return float(within), float(max(0.0, (between - within) / size))
