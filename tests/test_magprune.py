"""Pruning keeps exactly as many numbers as the budget holds, and the right ones; it trains only where it says so."""

import numpy as np
import pytest
import torch

from baselines.lightgcn import LightGCN
from baselines.magprune import MagPrune, kept_places
from c2f.budget import Budget, Footprint
from c2f.errors import BudgetError, ConfigError, MethodError
from c2f.method import build, export_arrays
from c2f.train import Trainer, TrainingSettings

SETTINGS = TrainingSettings(lr=0.05, batch_size=512, max_epochs=4, evaluate_every=2, device="cpu")
FULL = Budget.parse("full")


@pytest.fixture(scope="module")
def full_run(blocks):
    """The arrays of a full LightGCN run: 80 nodes x 8 numbers."""
    graph, valid, _ = blocks
    method = build(LightGCN, FULL, graph, LightGCN.Params(dim=8), 1)
    method.fit(Trainer(graph, valid, SETTINGS, 1))
    return export_arrays(method)


def prune(blocks, full_run, budget, **params):
    """The method pruned (and perhaps retrained) from the full run, and its trainer."""
    graph, valid, _ = blocks
    method = build(MagPrune, Budget.parse(budget), graph, MagPrune.Params(dim=8, **params), 1)
    trainer = Trainer(graph, valid, SETTINGS, 1)
    method.fit(trainer, full_run)
    return method, trainer


TABLE = np.array([[4, 1, 3], [9, 8, 7], [2, 2, 2], [6, 5, 0.5]])  # two users, two items


def test_globally_the_largest_numbers_stay_wherever_they_are():
    kept = kept_places(TABLE, 6)
    np.testing.assert_array_equal(TABLE * kept, [[4, 0, 0], [9, 8, 7], [0, 0, 0], [6, 5, 0]])


def test_per_table_users_and_items_keep_the_same_fraction():
    kept = kept_places(TABLE, 6, num_users=2)
    np.testing.assert_array_equal(TABLE * kept, [[0, 0, 0], [9, 8, 7], [2, 0, 0], [6, 5, 0]])
    for num_kept in range(1, 13):  # 7 of 12: 3.5 each, so 4 and 3
        counts = [int(part.sum()) for part in np.split(kept_places(TABLE, num_kept, num_users=2), 2)]
        assert sum(counts) == num_kept
        assert abs(counts[0] - counts[1]) <= 1


def test_the_largest_number_of_every_row_is_kept_before_all_others():
    kept = kept_places(TABLE, 6, min_per_row=1)
    np.testing.assert_array_equal(TABLE * kept, [[4, 0, 0], [9, 8, 7], [2, 0, 0], [6, 0, 0]])
    kept = kept_places(TABLE, 8, num_users=2, min_per_row=2)  # exactly the floor
    np.testing.assert_array_equal(kept.sum(axis=1), [2, 2, 2, 2])


def test_ties_are_settled_by_position():
    np.testing.assert_array_equal(kept_places(np.ones((2, 3)), 4), [[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize("scope", ["global", "per_table"])
@pytest.mark.parametrize("mask", ["magnitude", "random"])
@pytest.mark.parametrize("retrain", ["none", "from_trained"])
def test_exactly_as_many_numbers_survive_as_the_budget_holds(blocks, full_run, scope, mask, retrain):
    method, _ = prune(blocks, full_run, "numbers-101", scope=scope, mask=mask, retrain=retrain)
    arrays = export_arrays(method)
    assert int(method.mask.sum()) == 101
    assert Footprint.measure(arrays, method.counted, 0, 0, False).numbers == 101
    assert np.count_nonzero(method.decode(arrays, method.params)) == 101


def test_in_bytes_the_cheapest_storage_is_filled(blocks, full_run):
    # 80 rows of 8: a bitmask takes 80 bytes, counts and column ids 80 + one per number; so 500 = 80 + 4 * 105
    method, _ = prune(blocks, full_run, "bytes-500")
    arrays = export_arrays(method)
    assert {name: array.nbytes for name, array in arrays.items()} == {"vectors": 4 * 105, "vectors_mask": 80}


def test_without_retraining_nothing_is_trained_and_the_kept_numbers_are_the_full_runs(blocks, full_run):
    method, trainer = prune(blocks, full_run, "numbers-100")
    assert (trainer.reports, trainer.curve) == ([], [])
    assert not any(parameter.requires_grad for parameter in method.parameters())
    pruned = method.decode(export_arrays(method), method.params)
    largest = np.sort(np.abs(full_run["vectors"]).ravel())[-100:]
    np.testing.assert_array_equal(np.sort(np.abs(pruned[pruned != 0])), largest)
    np.testing.assert_array_equal(pruned[pruned != 0], full_run["vectors"][pruned != 0])


def test_per_row_every_node_keeps_as_many_and_the_largest_take_what_is_left(blocks, full_run):
    method, _ = prune(blocks, full_run, f"numbers-{80 * 3 + 7}", scope="per_row")
    kept = method.mask.sum(dim=1)
    assert (int(kept.min()), int(kept.sum())) == (3, 80 * 3 + 7)
    magnitudes = method.vectors.abs()
    assert (magnitudes.masked_fill(~method.mask, 9).amin(1) >= magnitudes.masked_fill(method.mask, 0).amax(1)).all()


def test_a_random_mask_has_the_same_size_and_other_places(blocks, full_run):
    masks = [prune(blocks, full_run, "numbers-100", mask=mask)[0].mask for mask in ("magnitude", "random")]
    assert masks[0].sum() == masks[1].sum() == 100
    expected = 100 * 100 / 640  # what two independent masks of 640 share
    assert int((masks[0] & masks[1]).sum()) == pytest.approx(expected, abs=12)


def test_retraining_starts_from_the_trained_or_from_fresh_numbers_in_the_same_places(blocks, full_run, monkeypatch):
    starts = {}
    for retrain in ("from_trained", "from_init"):
        monkeypatch.setattr(
            Trainer, "run", lambda _, method, stage, key=retrain: starts.update({key: method.vectors.detach().clone()})
        )
        method, _ = prune(blocks, full_run, "numbers-100", retrain=retrain)
        np.testing.assert_array_equal(method.mask, kept_places(np.abs(full_run["vectors"]), 100))
    np.testing.assert_array_equal(starts["from_trained"], full_run["vectors"])
    assert float(starts["from_init"].std()) == pytest.approx(0.1, rel=0.15)
    assert not torch.isclose(starts["from_init"], starts["from_trained"]).any(dim=1).all()


def test_retraining_moves_the_kept_numbers_and_no_others(blocks, full_run):
    method, trainer = prune(blocks, full_run, "numbers-100", retrain="from_init")
    start = build(MagPrune, Budget.parse("numbers-100"), blocks[0], method.params, 1).vectors.detach().numpy()
    kept, vectors = method.mask.numpy(), method.vectors.detach().numpy()
    assert [(report.name, report.best_epoch > 0) for report in trainer.reports] == [("retrain", True)]
    np.testing.assert_array_equal(vectors[~kept], start[~kept])
    assert (vectors[kept] != start[kept]).mean() > 0.9
    assert (method.table().detach().numpy()[~kept] == 0).all()


def test_a_floor_for_every_node_needs_that_many_numbers(blocks):
    graph, _, _ = blocks
    with pytest.raises(BudgetError) as error:
        build(MagPrune, Budget.parse("numbers-159"), graph, MagPrune.Params(dim=8, min_per_row=2), 1)
    assert error.value.needs == 2 * 80


def test_a_full_run_of_another_size_or_none_says_what_to_change(blocks, full_run):
    with pytest.raises(MethodError, match="starts_from"):
        prune(blocks, None, "numbers-100")
    with pytest.raises(MethodError, match=r"vectors \(80, 4\), this one expects \(80, 8\)"):
        prune(blocks, {"vectors": full_run["vectors"][:, :4]}, "numbers-100")


def test_a_floor_beyond_the_row_is_refused():
    with pytest.raises(ConfigError, match="min_per_row = 9, but it must be between 0 and dim"):
        MagPrune.Params(dim=8, min_per_row=9)
