"""Which entry outlives which, against a slow loop; and what a retrain takes from it."""

import numpy as np
import pytest
import torch

from baselines.cerp import CERP
from baselines.ciess import CIESS, FrequencySized
from baselines.magprune import MagPrune
from baselines.pep import PEP
from c2f.budget import Budget
from c2f.errors import BudgetError, MethodError
from c2f.method import build
from c2f.pruning import MaskedTable, Survival, kept_sizes, survivors, tensor_sha256


def logit(chance) -> torch.Tensor:
    return torch.logit(torch.tensor(chance))


def test_an_entry_that_dies_later_ranks_higher_and_the_margin_before_death_breaks_ties():
    values = torch.tensor([[0.5, -0.4, 0.3, 0.2]])
    survival = Survival(values, logit([[0.1]]))  # margins 0.4, 0.3, 0.2, 0.1
    assert survival.check(values, logit([[0.15]])) == 4  # margins 0.35, 0.25, 0.15, 0.05
    assert survival.check(values, logit([[0.45]])) == 1  # 0.05 for the first; the others died
    assert survival.last_alive.tolist() == [[2, 1, 1, 1]]
    np.testing.assert_allclose(survival.margin, [[0.05, 0.25, 0.15, 0.05]], atol=1e-6)
    assert survival.ranks().tolist() == [[0, 1, 2, 3]]


def test_an_entry_that_comes_back_to_life_counts_as_alive_throughout():
    survival = Survival(torch.tensor([0.5, 0.4]), logit([0.1]))
    survival.check(torch.tensor([0.05, 0.4]), logit([0.1]))
    survival.check(torch.tensor([0.3, 0.05]), logit([0.1]))
    assert survival.last_alive.tolist() == [2, 1]
    assert survival.ranks().tolist() == [0, 1]


def test_entries_never_alive_rank_last_the_nearest_to_life_first_and_equal_ones_by_place():
    survival = Survival(torch.tensor([0.0, 0.05, 0.2, 0.0]), logit([0.1]))
    survival.check(torch.tensor([0.0, 0.05, 0.0, 0.0]), logit([0.1]))
    assert survival.ranks().tolist() == [2, 1, 0, 3]
    assert survival.ranks().dtype == np.uint32


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (5, 1), (5, 3)])
def test_survival_is_what_a_loop_over_entries_and_steps_finds(shape):
    torch.manual_seed(1)
    thresholds, values = torch.randn(shape) - 1, torch.randn(5, 3)
    survival = Survival(values, thresholds)
    margins = [values.abs() - torch.sigmoid(thresholds)]
    for _ in range(6):
        values, thresholds = values + 0.3 * torch.randn(5, 3), thresholds + 0.3
        margins.append(values.abs() - torch.sigmoid(thresholds))
        assert survival.check(values, thresholds) == sum(float(m) > 0 for m in margins[-1].flatten())
    for place in np.ndindex(5, 3):
        alive = [step for step in range(1, 7) if margins[step][place] > 0]
        last = alive[-1] if alive else 0
        assert survival.last_alive[place] == last
        assert survival.margin[place] == margins[last][place]


def test_a_saved_state_goes_on_as_if_never_interrupted():
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    whole, first, second = (Survival(values, logit([[0.1]])) for _ in range(3))
    for survival in (whole, first):
        survival.check(values, logit([[0.3]]))
    second.load_state_dict(first.state_dict())
    for survival in (whole, second):
        survival.check(values, logit([[0.7]]))
    np.testing.assert_array_equal(whole.ranks(), second.ranks())


def start(rows=6, dim=4) -> dict:
    """What a search exports: ranks as in reading order, backwards."""
    ranks = np.arange(rows * dim, dtype=np.uint32)[::-1].reshape(rows, dim)
    initial = np.linspace(0.1, 1, rows * dim, dtype=np.float32).reshape(rows, dim)
    return {"initial": initial, "ranks": ranks}


def test_exactly_as_many_survive_as_fit_and_larger_budgets_keep_what_smaller_ones_keep():
    masks = {kept: survivors(start(), (6, 4), kept)[0] for kept in (3, 10, 24)}
    assert {kept: int(mask.sum()) for kept, mask in masks.items()} == {3: 3, 10: 10, 24: 24}
    assert masks[3].nonzero().tolist() == [[5, 1], [5, 2], [5, 3]]  # the three last in reading order
    assert not (masks[3] & ~masks[10]).any()


def test_the_initial_values_are_the_searchs_own():
    _, initial = survivors(start(), (6, 4), 5)
    assert tensor_sha256(initial) == tensor_sha256(torch.from_numpy(start()["initial"]))
    assert tensor_sha256(initial) != tensor_sha256(initial + 1e-6)


def test_a_random_mask_keeps_as_many_at_other_places_and_follows_its_generator():
    masks = [survivors(start(60, 10), (60, 10), 200, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    learned = survivors(start(60, 10), (60, 10), 200)[0]
    for mask in masks:
        assert int(mask.sum()) == 200
        assert int((mask & learned).sum()) == pytest.approx(200 * 200 / 600, abs=20)  # what independent masks share


def test_what_is_kept_is_told_as_a_share_of_the_full_table_and_as_nodes_without_any():
    table = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.1, -0.2, 0.0], [0.0, 0.0, 0.0]])
    assert kept_sizes(table) == {"kept_fraction_of_full_table": 3 / 12, "nodes_without_a_number": 2}


@pytest.mark.parametrize("cls", [MagPrune, PEP, CERP, CIESS, FrequencySized])
def test_what_fills_its_budget_takes_no_size_from_full(cls, blocks):
    assert issubclass(cls, MaskedTable) or cls is CERP
    with pytest.raises(BudgetError):
        build(cls, Budget.parse("full"), blocks[0], cls.Params(dim=8), 1)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "`starts_from`"),
        ({"vectors": np.zeros((6, 4))}, r"has initial none, this one expects \(6, 4\)"),
        (start(rows=5), r"has initial \(5, 4\), this one expects \(6, 4\); give both entries the same sizes"),
    ],
)
def test_a_start_that_is_no_such_search_is_refused(arrays, words):
    with pytest.raises(MethodError, match=words):
        survivors(arrays, (6, 4), 5)
