"""PEP: what drives its search, what the search leaves to its retrain, and what the retrain stores."""

import itertools

import numpy as np
import pytest
import torch

from baselines.pep import PEP, PEPSearch
from c2f.budget import Budget, Footprint
from c2f.codebook import sparse_bytes
from c2f.errors import ConfigError, MethodError
from c2f.method import build, export_arrays
from c2f.pruning import tensor_sha256
from c2f.train import Trainer, TrainingSettings

NUM_NODES, DIM = 80, 8
FULL = Budget.parse("full")
SETTINGS = {"lr": 0.05, "batch_size": 512, "max_epochs": 60, "evaluate_every": 20, "l2": 0.2, "device": "cpu"}


def trainer(blocks, checkpoint=None, **settings) -> Trainer:
    graph, valid, _ = blocks
    return Trainer(graph, valid, TrainingSettings(**SETTINGS | settings), 1, checkpoint=checkpoint)


def pep_search(blocks, **params) -> PEPSearch:
    return build(PEPSearch, FULL, blocks[0], PEPSearch.Params(dim=DIM, **{"start_threshold": -4.0, **params}), 1)


def pep(blocks, budget, **params) -> PEP:
    return build(PEP, Budget.parse(budget), blocks[0], PEP.Params(dim=DIM, **params), 2)


@pytest.fixture(scope="module")
def searched(blocks) -> PEPSearch:
    """A search that ended with at most 30 % of its 640 numbers, after pruning for some 40 steps."""
    method = pep_search(blocks, kept_fraction=0.3)
    run = trainer(blocks)
    method.fit(run)
    assert run.reports[0].steps > 10
    return method


def retrained(blocks, searched, budget, epochs=1, **params) -> PEP:
    method = pep(blocks, budget, **params)
    method.fit(trainer(blocks, max_epochs=epochs, l2=1e-4), searched.export())
    return method


# What drives the search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1e-5, 1e-1])
def test_a_threshold_without_gradient_rises_by_lr_per_step_whatever_the_decay(blocks, decay):
    method = pep_search(blocks, start_threshold=-100.0, threshold_decay=decay)
    run = trainer(blocks, max_epochs=10)
    with pytest.raises(MethodError):
        method.fit(run)
    steps = run.reports[0].steps
    np.testing.assert_allclose(method.thresholds.detach(), -100 + 0.05 * steps, atol=1e-3)


def test_with_decoupled_decay_it_stays_where_it_is(blocks, monkeypatch):
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.AdamW)
    method = pep_search(blocks, start_threshold=-100.0, threshold_decay=1e-5)
    run = trainer(blocks, max_epochs=10)
    with pytest.raises(MethodError):
        method.fit(run)
    moved = method.thresholds.detach() + 100
    assert 0 < moved.max() < 2 * run.reports[0].steps * 0.05 * 1e-5 * 100  # lr * decay * |s| a step, not lr


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("global", (1, 1)), ("dimension", (1, 8)), ("feature", (80, 1)), ("feature_dim", (80, 8))],
)
def test_the_granularity_says_what_shares_a_threshold(blocks, granularity, shape):
    method = pep_search(blocks, granularity=granularity)
    assert method.thresholds.shape == shape
    assert method.table().shape == (NUM_NODES, DIM)


def test_a_table_as_long_as_wide_still_has_the_thresholds_it_was_told_to_have():
    for granularity, shape in (("dimension", (1, 8)), ("feature", (8, 1))):
        assert PEPSearch(8, PEPSearch.Params(dim=8, granularity=granularity)).thresholds.shape == shape


def test_the_table_is_the_values_brought_nearer_to_zero_by_sigmoid_of_the_threshold(blocks):
    method = pep_search(blocks)
    with torch.no_grad():
        method.vectors[0, :4] = torch.tensor([0.5, -0.5, 0.2, -0.2])
        method.thresholds[0] = -np.log(3)  # sigmoid: 1 / (1 + 3) = 0.25
    np.testing.assert_allclose(method.table()[0, :4].detach(), [0.5 - 0.25, -(0.5 - 0.25), 0, 0], atol=1e-7)


def test_a_dead_number_stays_dead_it_gets_no_gradient_and_its_threshold_goes_on_rising(blocks):
    method = pep_search(blocks)
    with torch.no_grad():
        method.thresholds[:, :4] = -1.0  # sigmoid: 0.27
        method.vectors[:, :4] = 0.2
    with pytest.raises(MethodError):
        method.fit(trainer(blocks, max_epochs=5, l2=0.0))
    assert (method.vectors[:, :4] == 0.2).all()
    assert (method.thresholds[:, :4] > -1).all()
    assert (method.table()[:, :4] == 0).all()
    assert (method.survival.last_alive[:, :4] == 0).all()
    assert (method.vectors[:, 4:] != method.initial[:, 4:]).any()


def test_l2_acts_on_the_values_themselves_so_that_a_dead_one_shrinks(blocks):
    method = pep_search(blocks)
    with torch.no_grad():
        method.thresholds[:, :4] = -1.0
        method.vectors[:, :4] = 0.2
    with pytest.raises(MethodError):
        method.fit(trainer(blocks, max_epochs=1, lr=1e-3))
    assert (method.vectors[:, :4] < 0.2).all()


def test_a_search_that_does_not_get_there_says_how_far_it_got_and_what_to_raise(blocks):
    method = pep_search(blocks, start_threshold=-50.0, kept_fraction=0.1)
    words = "after 2 epochs the search still keeps 640 of 640 numbers, and its goal is 64; raise max_epochs, lr, "
    words += "start_threshold, l2, threshold_decay, or kept_fraction"
    with pytest.raises(MethodError, match=words):
        method.fit(trainer(blocks, max_epochs=2))


@pytest.mark.parametrize(
    "wrong",
    [{"start_threshold": 0.0}, {"threshold_decay": 0.0}, {"kept_fraction": 0.0}, {"kept_fraction": 1.0}, {"dim": 0}],
)
def test_a_search_that_could_prune_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PEPSearch.Params(**wrong)


# What it leaves ------------------------------------------------------------------------------------------------------


def test_the_search_ends_at_its_goal_and_its_best_ranks_are_what_is_left(searched):
    arrays = searched.export()
    table = PEPSearch.decode(arrays, searched.params)
    alive = np.count_nonzero(table)
    assert 0 < alive <= 0.3 * NUM_NODES * DIM
    np.testing.assert_array_equal(arrays["ranks"] < alive, table != 0)
    assert sorted(arrays["ranks"].ravel()) == list(range(NUM_NODES * DIM))
    assert arrays["ranks"].dtype == np.uint32
    assert searched.details["kept_fraction_of_full_table"] == alive / (NUM_NODES * DIM)
    assert searched.details["nodes_without_a_number"] == sum(not row.any() for row in table)


def test_the_record_tells_thresholds_from_magnitudes(searched):
    values, thresholds = searched.vectors.detach().numpy(), searched.thresholds.detach().numpy()
    kept = PEPSearch.decode(searched.export(), searched.params) != 0
    assert searched.details["threshold_std"] == pytest.approx(thresholds.std(), rel=1e-4)
    assert searched.details["threshold_mean"] == pytest.approx(thresholds.mean(), rel=1e-4)
    size = int(kept.sum())
    largest = np.abs(values) >= np.sort(np.abs(values).ravel())[-size]
    shares = searched.details["shared_with_largest"]
    assert list(shares) == [size, size // 10]
    assert shares[size] == pytest.approx((largest & kept).sum() / size)


def test_out_of_time_a_search_ends_with_the_ranks_so_far(blocks):
    method, run = pep_search(blocks, kept_fraction=0.3), trainer(blocks, max_seconds=1e-9)
    method.fit(run)
    assert run.timed_out and run.reports[0].stopped_by == "time"
    masked = np.abs(method.initial.numpy()) >= np.sort(np.abs(method.initial.numpy()).ravel())[-200]
    np.testing.assert_array_equal(method.export()["ranks"] < 200, masked)  # not a step: the largest initial values


def test_an_interrupted_search_ends_as_an_uninterrupted_one(blocks, searched, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "checkpoint_seconds", 0.0)
    with pytest.raises(MethodError):  # stands for an interruption: its last checkpoint is that of epoch 6
        pep_search(blocks, kept_fraction=0.3).fit(trainer(blocks, tmp_path / "checkpoint.pt", max_epochs=6))
    again, checked = pep_search(blocks, kept_fraction=0.3), []
    check = again.survival.check
    again.survival.check = lambda *arguments: checked.append(1) or check(*arguments)
    again.fit(trainer(blocks, tmp_path / "checkpoint.pt"))
    assert len(checked) == int(searched.survival.num_checks) - 6 * 2  # it went on after six epochs of two steps
    for name, array in searched.export().items():
        np.testing.assert_array_equal(again.export()[name], array)


# The retrain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [200, 333, 640])
def test_a_budget_in_numbers_is_met_exactly(blocks, searched, kept):
    method = retrained(blocks, searched, f"numbers-{kept}")
    footprint = Footprint.measure(export_arrays(method), method.counted, 0, 0, False)
    assert footprint.numbers == int(method.mask.sum()) == kept
    assert method.details["kept_fraction_of_full_table"] == kept / 640


def test_what_a_budget_keeps_every_larger_one_keeps_too(blocks, searched):
    masks = [retrained(blocks, searched, f"numbers-{kept}").mask for kept in (200, 300, 500)]
    for smaller, larger in itertools.pairwise(masks):
        assert not (smaller & ~larger).any()


def test_it_starts_from_the_identical_initial_tensor(blocks, searched, monkeypatch):
    started = []
    monkeypatch.setattr(Trainer, "run", lambda self, method, stage: started.append(method.table().detach().numpy()))
    method = retrained(blocks, searched, "numbers-250")
    np.testing.assert_array_equal(started[0], searched.initial.numpy() * method.mask.numpy())
    untouched = pep_search(blocks).vectors  # the search's before its first step: same seed
    assert method.details["initial_sha256"] == searched.details["initial_sha256"] == tensor_sha256(untouched)
    assert (searched.vectors != searched.initial).all()


def test_a_random_mask_of_the_same_size_starts_from_the_same_values_at_other_places(blocks, searched):
    learned, random = (retrained(blocks, searched, "numbers-250", mask=mask) for mask in ("learned", "random"))
    assert int(learned.mask.sum()) == int(random.mask.sum()) == 250
    assert int((learned.mask & random.mask).sum()) == pytest.approx(250 * 250 / 640, abs=25)
    assert learned.details["initial_sha256"] == random.details["initial_sha256"]


def test_reinit_keeps_the_same_numbers_but_not_their_values(blocks, searched):
    rewound, fresh = (retrained(blocks, searched, "numbers-250", reinit=reinit) for reinit in (False, True))
    assert torch.equal(rewound.mask, fresh.mask)
    assert rewound.details["initial_sha256"] != fresh.details["initial_sha256"]


def test_training_moves_what_is_kept_and_nothing_else(blocks, searched):
    method = retrained(blocks, searched, "numbers-250", epochs=3)
    assert torch.equal(method.vectors.detach()[~method.mask], searched.initial[~method.mask])
    assert (method.vectors[method.mask] != searched.initial[method.mask]).float().mean() > 0.9
    assert (method.table()[~method.mask] == 0).all()


@pytest.mark.parametrize(
    ("kept", "parts", "nbytes"),
    [
        (200, {"vectors", "vectors_mask"}, 200 * 4 + 80 * 1),  # values; one byte of mask for the 8 columns of a row
        (630, {"vectors"}, 80 * 8 * 4),  # dense is less than 630 * 4 + 80
    ],
)
def test_the_cheapest_storage_is_chosen_and_charged(blocks, searched, kept, parts, nbytes):
    method = retrained(blocks, searched, f"numbers-{kept}")
    arrays = export_arrays(method)
    assert set(arrays) == parts
    assert Footprint.measure(arrays, method.counted, 0, 0, False).stored == nbytes == sparse_bytes(80, 8, kept)


def test_few_numbers_of_long_rows_are_stored_as_row_counts_and_column_ids(blocks):
    method = build(PEP, Budget.parse("numbers-128"), blocks[0], PEP.Params(dim=128), 1)
    method.mask[:64, :2] = True
    arrays = export_arrays(method)
    assert set(arrays) == {"vectors", "vectors_counts", "vectors_columns"}
    stored = Footprint.measure(arrays, method.counted, 0, 0, False).stored
    assert stored == 128 * 4 + 80 * 1 + 128 * 1  # a bitmask would take 80 * 16
    np.testing.assert_array_equal(PEP.decode(arrays, method.params), method.table().detach())


def test_a_budget_in_bytes_pays_for_the_mask(blocks, searched):
    method = retrained(blocks, searched, f"bytes-{300 * 4 + 80}")
    assert int(method.mask.sum()) == 300


def test_below_what_the_search_reached_the_largest_margins_stay(blocks, searched):
    reached = np.count_nonzero(PEPSearch.decode(searched.export(), searched.params))
    method = retrained(blocks, searched, f"numbers-{reached // 2}")
    chosen = searched.survival.margin[method.mask]
    left_out = searched.survival.margin[~method.mask & (searched.table() != 0)]
    assert len(chosen) == reached // 2 and chosen.min() >= left_out.max()


def test_it_wants_a_search_of_its_own_size(blocks, searched):
    with pytest.raises(MethodError, match="starts_from"):
        pep(blocks, "numbers-300").fit(trainer(blocks))
    wrong = build(PEP, Budget.parse("numbers-300"), blocks[0], PEP.Params(dim=4), 1)
    with pytest.raises(MethodError, match=r"has initial \(80, 8\), this one expects \(80, 4\)"):
        wrong.fit(trainer(blocks), searched.export())
