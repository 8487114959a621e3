"""CERP against the reference arrays, and the claims its pruning rests on: drift, dead zone, nesting, exact budgets."""

import dataclasses
import itertools
import math
import os
import signal

import numpy as np
import pytest
import torch

from baselines.cerp import CERP, CERPSearch
from baselines.decoders import row_pairs
from c2f.budget import Budget, Footprint
from c2f.data import Interactions
from c2f.decoding import sparse_bytes, unpack_sparse
from c2f.errors import ConfigError, MethodError
from c2f.graph import Graph
from c2f.method import TrainingGraph, build, export_arrays
from c2f.train import Trainer, TrainingSettings

FAST = TrainingSettings(lr=0.02, batch_size=256, max_epochs=12, evaluate_every=6, device="cpu")
SMALL = {"dim": 8, "num_rows": 9}  # 2 * 9 * 8 = 144 numbers for the 80 nodes of the toy data
QUICK = {**SMALL, "start_threshold": -3.0, "weight_decay": 0.01, "gamma": 0.0, "kept_fraction": 0.6}  # ten steps


def make(blocks, cls=CERPSearch, budget="full", settings=FAST, params=QUICK, **more):
    """(untrained method, trainer) on the toy graph; more: arguments of the trainer."""
    graph, valid, _ = blocks
    method = build(cls, Budget.parse(budget), graph, cls.Params(**params), seed=1)
    return method, Trainer(graph, valid, settings, 1, **more)


@pytest.fixture(scope="module")
def searched(blocks):
    """(method, its arrays, [alive (18, 8) after each step]) of a finished search."""
    method, trainer = make(blocks)
    check, alive = method.survival.check, []

    def noted(values, thresholds):
        alive.append((values.abs() > torch.sigmoid(thresholds)).numpy().copy())
        return check(values, thresholds)

    method.survival.check = noted
    method.fit(trainer)
    return method, export_arrays(method), alive


def retrained(blocks, searched, budget, params=SMALL):
    method, trainer = make(blocks, CERP, budget, params=params)
    method.fit(trainer, searched[1])
    return method


def support(method) -> np.ndarray:
    return unpack_sparse("codebook", method.export(), 8) != 0


# The reference arrays ---------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden/cerp_a.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def golden_graph(shared):
    pairs = np.load(shared / "golden/c2f_a.npz", allow_pickle=False)
    sides = pairs["train_user"], pairs["train_item"]
    train = Interactions.from_pairs(*sides, int(pairs["n_users"]), int(pairs["n_items"]))
    return TrainingGraph(Graph(train), torch.device("cpu"))


@pytest.fixture
def golden_method(golden, golden_graph):
    rows, dim = golden["R_v"].shape
    shape = {"dim": dim, "num_rows": rows, "num_layers": int(golden["n_layers"])}
    method = CERPSearch(golden_graph, CERPSearch.Params(**shape, sharpness=float(golden["K"])))
    with torch.no_grad():
        method.codebook.copy_(torch.from_numpy(np.concatenate([golden["R_v"], golden["Q_v"]])))
        method.thresholds.copy_(torch.from_numpy(np.concatenate([golden["R_s"], golden["Q_s"]])))
    return method


def close(ours, reference):
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=1e-5, atol=1e-5)


def test_pruned_codebooks_and_embeddings_are_the_reference_ones(golden, golden_graph, golden_method):
    close(golden_graph.adjacency.toarray(), golden["norm_adj"])
    with torch.no_grad():
        pruned, embeddings = golden_method.pruned(), golden_method.embed(golden_graph)
    close(pruned, np.concatenate([golden["sparse_R"], golden["sparse_Q"]]))
    assert int(pruned.count_nonzero()) == int(golden["nnz"])
    restored = CERPSearch.restore(golden_method.export(), golden_method.params, golden_graph.graph)
    close(embeddings.ego, golden["composed"])
    for final in (embeddings.final, restored):
        close(final, golden["propagated"])


@pytest.mark.parametrize("collapsed", [False, True])
def test_scores_pruning_loss_and_gradients_are_the_reference_ones(golden, golden_graph, golden_method, collapsed):
    if collapsed:
        form = golden_method.linear_form(golden_graph)
        basis, offset = form.basis()
        assert offset is None
        final = basis @ form.rows()
    else:
        final = golden_method.embed(golden_graph).final
    user, item = torch.from_numpy(golden["x"].astype(np.int32)).T
    scores = (final[user] * final[item + golden_graph.num_users]).sum(dim=1)
    close(scores.detach(), golden["scores"])
    # Its 30 item rows as 15 positives and 15 negatives: gamma = 1.5 makes the factor 10 gamma / B one.
    golden_method.params = CERPSearch.Params(gamma=1.5, sharpness=float(golden["K"]))
    prune_loss = golden_method.penalty(user, item[:15], item[15:])
    close(prune_loss.item(), golden["prune_loss"])
    (scores.sum() + 1e-3 * prune_loss).backward()
    for ours, name in ((golden_method.codebook, "v"), (golden_method.thresholds, "s")):
        expected = np.concatenate([golden[f"grad_R_{name}"], golden[f"grad_Q_{name}"]])
        np.testing.assert_allclose(ours.grad, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# Composition -----------------------------------------------------------------


def test_no_two_nodes_share_both_rows_exactly_where_ceil_of_N_over_b_is_at_most_b():
    for num_nodes in range(1, 60):
        for rows in range(1, num_nodes + 2):
            pairs = row_pairs(num_nodes, rows)
            assert pairs[:, 0].max() < rows <= pairs[:, 1].min() and pairs[:, 1].max() < 2 * rows
            unique = len(np.unique(pairs, axis=0)) == num_nodes
            assert unique == (math.ceil(num_nodes / rows) <= rows)


def test_a_node_is_the_sum_of_row_e_mod_b_and_row_e_over_ceil_of_N_over_b(blocks):
    method, _ = make(blocks)  # N = 80, b = 9: ceil(80 / 9) = 9
    with torch.no_grad():
        table, pruned = method.table(), method.pruned()
    for node in (0, 8, 9, 41, 79):
        torch.testing.assert_close(table[node], pruned[node % 9] + pruned[9 + node // 9])


def test_the_default_number_of_rows_is_four_square_roots_of_N(blocks):
    method, _ = make(blocks, params={"dim": 8})
    assert method.codebook.shape == (2 * 36, 8)  # 4 * sqrt(80) = 35.8
    assert method.codebook.abs().max() <= math.sqrt(6 / (36 + 8))  # Xavier uniform, of a (36, 8) matrix


# What prunes -----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_coupled_decay_makes_thresholds_rise_by_lr_a_step_and_prunes_and_decoupled_decay_does_not(blocks, optimizer):
    method, _ = make(blocks, params=SMALL)  # S0 = -10
    method.codebook.requires_grad_(False)  # else the values decay and die, whatever the thresholds do
    at_start = int(method.pruned().count_nonzero())
    assert at_start > 140
    stepper = optimizer(method.parameters(), lr=0.02, weight_decay=1e-5)
    rise = []
    for _ in range(800):
        stepper.zero_grad()
        (0 * method.table().sum()).backward()
        stepper.step()
        rise.append((method.thresholds - method.params.start_threshold).mean().item())
    alive = int(method.pruned().count_nonzero())
    if optimizer is torch.optim.Adam:
        assert rise[99] == pytest.approx(100 * 0.02, rel=0.05)  # whatever the decay is
        assert alive < 0.6 * at_start  # s = -0.8, sigmoid(s) = 0.32, and Xavier's values lie in +- 0.59
        assert alive == int((method.codebook.abs() > torch.sigmoid(method.thresholds)).sum())
    else:
        assert rise[99] == pytest.approx(100 * 0.02 * 1e-5 * 10, rel=0.05)  # lr * decay * |s|
        assert alive == at_start


def test_the_search_trains_values_and_thresholds_by_adam_with_coupled_decay(blocks, monkeypatch):
    method, trainer = make(blocks, params={**QUICK, "item_bias": True})
    run, seen = trainer.run, []
    monkeypatch.setattr(trainer, "run", lambda *args, **more: seen.append(more) or run(*args, **more))
    method.fit(trainer)
    optimizer = seen[0]["optimizer"]
    assert type(optimizer) is torch.optim.Adam and not optimizer.defaults.get("decoupled_weight_decay")
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.02, 0.01)]
    assert {*optimizer.param_groups[0]["params"]} == {method.codebook, method.thresholds, method.item_bias}


def test_numbers_below_their_threshold_get_no_gradient_and_all_others_do(golden_graph, golden_method):
    golden_method.embed(golden_graph).final.square().sum().backward()
    alive = golden_method.pruned() != 0
    assert 0 < alive.sum() < alive.numel()
    for parameter in (golden_method.codebook, golden_method.thresholds):
        assert torch.equal(parameter.grad != 0, alive)


def test_the_density_term_counts_distinct_users_and_every_item_row_and_is_halved_as_steps_go(blocks):
    method, _ = make(blocks, params={**SMALL, "gamma": 0.3, "gamma_halving_steps": 4})
    user, positive, negative = torch.tensor([[3, 3, 7], [0, 39, 39], [5, 5, 6]])
    with torch.no_grad():
        table = method.table()
        total = sum(
            float(torch.tanh(100 * table[node]).square().sum())
            for node in [3, 7, *(40 + item for item in (0, 39, 39, 5, 5, 6))]
        )
        expected = {3: 1, 4: 0.5, 7: 0.5, 8: 0.25}
        for step in range(1, 9):
            method.survival.check(method.codebook, method.thresholds)
            if step in expected:
                weight = 0.3 * expected[step] * 10 / 3  # 3 triples
                assert method.penalty(user, positive, negative).item() == pytest.approx(-weight * total)


def test_the_weight_of_the_density_term_is_the_published_one_on_the_published_batch(blocks):
    method, _ = make(blocks, params={**SMALL, "gamma": 1.0})
    generator = torch.Generator().manual_seed(1)
    user, positive = (torch.randint(40, (10,), generator=generator).repeat_interleave(5) for _ in range(2))
    negative = torch.randint(40, (50,), generator=generator)
    with torch.no_grad():
        nodes = torch.cat([user.unique(), 40 + positive, 40 + negative])
        total = torch.tanh(100 * method.table()[nodes]).square().sum().item()
        # Published: BPR summed over 5 negatives, mean over 10 positives, minus the total. A fifth of it is ours.
        assert method.penalty(user, positive, negative).item() == pytest.approx(-total / 5)


# From a search to its budgets ------------------------------------------------


def test_the_search_ends_at_the_first_step_with_few_enough_numbers_and_stores_what_is_left(searched):
    method, arrays, alive = searched
    counts = [int(mask.sum()) for mask in alive]
    assert counts[-1] <= 0.6 * 144 < min(counts[:-1])
    np.testing.assert_array_equal(unpack_sparse("codebook", arrays, 8) != 0, alive[-1])
    assert arrays["ranks"].dtype == np.uint32
    assert method.details["kept_fraction_of_codebooks"] == counts[-1] / 144
    assert method.details["kept_fraction_of_full_table"] == counts[-1] / (80 * 8)


def test_of_k_numbers_those_are_kept_that_the_search_saw_alive_last(searched):
    _, arrays, alive = searched
    outlives = np.logical_or.accumulate(alive[::-1])  # alive at this step or at a later one, latest first
    assert len({int(mask.sum()) for mask in outlives}) > 3
    for mask in outlives:
        np.testing.assert_array_equal(arrays["ranks"] < mask.sum(), mask)


def test_budgets_are_met_exactly_and_their_supports_are_nested(blocks, searched):
    supports = [support(retrained(blocks, searched, f"numbers-{k}")) for k in (90, 101, 144)]
    assert [int(mask.sum()) for mask in supports] == [90, 101, 144]
    for small, large in itertools.pairwise(supports):
        assert (small <= large).all()


def test_bytes_pay_for_the_kept_numbers_and_their_places_and_one_more_would_not_fit(blocks, searched):
    method = retrained(blocks, searched, "bytes-400")
    footprint = Footprint.measure(export_arrays(method), method.counted, 0, 0, False)
    assert footprint.numbers == 95  # 18 rows of 8: a bitmask of 18 bytes, and 4 bytes a number
    assert footprint.stored == 18 + 4 * 95 <= 400 < 18 + 4 * 96 == sparse_bytes(18, 8, 96)


def test_retraining_starts_from_the_very_values_that_the_search_started_from(blocks, searched, monkeypatch):
    method, trainer = make(blocks, CERP, "numbers-100", params=SMALL)
    start = []
    monkeypatch.setattr(trainer, "run", lambda *_, **__: start.append(method.codebook.detach().clone()))
    method.fit(trainer, searched[1])
    fresh, _ = make(blocks)
    for values in (start[0].numpy(), fresh.codebook.detach().numpy()):
        np.testing.assert_array_equal(values, searched[1]["initial"])
    assert method.details["initial_sha256"] == searched[0].details["initial_sha256"]
    assert not np.array_equal(searched[0].codebook.detach(), searched[1]["initial"])  # the search itself moved on


def test_a_random_mask_keeps_as_many_numbers_at_other_places_from_the_same_values(blocks, searched):
    params = [{**SMALL, "mask": mask} for mask in ("learned", "random")]
    learned, random = (retrained(blocks, searched, "numbers-70", chosen) for chosen in params)
    assert int(learned.mask.sum()) == int(random.mask.sum()) == 70
    assert not torch.equal(learned.mask, random.mask)
    assert learned.details["initial_sha256"] == random.details["initial_sha256"]


def test_where_the_budget_holds_both_codebooks_the_record_says_that_nothing_is_pruned(blocks, searched):
    details = {kept: retrained(blocks, searched, f"numbers-{kept}").details for kept in (143, 144, 200)}
    assert {kept: noted["unpruned"] for kept, noted in details.items()} == {143: False, 144: True, 200: True}


def test_the_record_counts_nodes_of_which_neither_row_has_a_number(blocks):
    method, _ = make(blocks, params=SMALL)  # b = 9, nine nodes share a row of Q
    table = torch.ones(18, 8)
    table[[0, 3, 9, 10]] = 0  # node e has the rows e mod 9 and 9 + e // 9: nodes 0, 3, 9 and 12 have none
    assert method.sizes(table)["nodes_without_a_number"] == 4


def test_pruned_numbers_get_no_gradient_in_retraining_and_stay_out(blocks, searched):
    method = retrained(blocks, searched, "numbers-100")
    pruned, initial = ~method.mask.numpy(), searched[1]["initial"]
    values = method.codebook.detach().numpy()
    np.testing.assert_array_equal(values[pruned], initial[pruned])
    assert (values[~pruned] != initial[~pruned]).all()
    assert not support(method)[pruned].any()


def test_a_search_that_ends_before_its_goal_says_how_far_it_came(blocks):
    settings = dataclasses.replace(FAST, max_epochs=1)
    method, trainer = make(blocks, settings=settings, params={**SMALL, "kept_fraction": 0.5})
    with pytest.raises(MethodError, match=r"keeps 14\d of 144 numbers, and its goal is 72; raise .* weight_decay, or"):
        method.fit(trainer)


def test_a_retraining_without_its_search_or_with_one_of_another_size_says_what_to_change(blocks, searched):
    method, trainer = make(blocks, CERP, "numbers-100", params={**SMALL, "num_rows": 10})
    with pytest.raises(MethodError, match="starts_from"):
        method.fit(trainer, None)
    with pytest.raises(MethodError, match=r"has initial \(18, 8\), this one expects \(20, 8\)"):
        method.fit(trainer, searched[1])


def test_an_interrupted_search_goes_on_to_the_same_bytes(blocks, searched, tmp_path, monkeypatch):
    where = {"checkpoint": tmp_path / "checkpoint.pt", "fingerprint": "x"}
    stopped, trainer = make(blocks, **where)
    check, steps = stopped.survival.check, len(searched[2])

    def interrupting(values, thresholds):
        if int(stopped.survival.num_checks) == steps // 2:
            os.kill(os.getpid(), signal.SIGINT)
        return check(values, thresholds)

    monkeypatch.setattr(stopped.survival, "check", interrupting)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(trainer)
    resumed, trainer = make(blocks, **where)
    resumed.fit(trainer)
    arrays = export_arrays(resumed)
    assert arrays.keys() == searched[1].keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, searched[1][name])
    assert resumed.details == searched[0].details


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 0}, "num_rows = 0, but it must be at least 1, or null"),
        ({"weight_decay": 0.0}, "weight_decay = 0.0, but it must be above 0: it is what prunes"),
        ({"kept_fraction": 1.0}, "kept_fraction = 1.0, but it must be above 0 and below 1"),
        ({"start_threshold": 1.0}, "start_threshold = 1.0, but it must be below 0"),
        ({"gamma_halving_steps": 0}, "gamma_halving_steps = 0, but it must be at least 1"),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_range(change, message):
    with pytest.raises(ConfigError, match=message):
        CERPSearch.Params(**change)
