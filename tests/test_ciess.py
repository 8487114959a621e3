"""CIESS: exact sums, the walk, rewards and TD3 updates written out, what agents learn, and what a budget takes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from baselines.ciess import (
    CIESS,
    Agent,
    CIESSSearch,
    FrequencySized,
    chosen_step,
    exact_sizes,
    feasible_sizes,
    frequencies,
    random_walk,
    rewards,
    to_action,
    to_size,
    worth_keeping,
)
from c2f.budget import Budget
from c2f.errors import BudgetError, MethodError
from c2f.method import build, export_arrays
from c2f.train import Trainer, TrainingSettings

FAST = TrainingSettings(lr=0.05, batch_size=512, max_epochs=2, evaluate_every=2, device="cpu")


def search_params(**more):
    return CIESSSearch.Params(**{"dim": 8, "hidden": 16, "batches": 5, "pretrain_batches": 5, **more})


def copied(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Sizes with an exact sum -----------------------------------------------------


def test_sizes_are_proportional_and_what_rounding_leaves_goes_to_the_closest():
    # alpha just below 1.5 gives 1.5, 3, 4.5, 6 -> 1, 3, 4, 6 = 14; two more go to those at .5, in the given order
    sizes = [exact_sizes([1, 2, 3, 4], total, 8, np.array([2, 0, 1, 3])).tolist() for total in (14, 15, 16)]
    assert sizes == [[1, 3, 4, 6], [1, 3, 5, 6], [2, 3, 5, 6]]


def test_any_sum_between_all_ones_and_all_full_is_met_and_no_node_shrinks_when_the_sum_grows():
    generator = np.random.default_rng(0)
    for wanted in (generator.random(40), generator.integers(0, 4, 40), np.ones(40)):
        order, before = generator.permutation(40), np.zeros(40)
        for total in range(40, 40 * 8 + 1, 5):
            sizes = exact_sizes(wanted, total, 8, order)
            assert sizes.sum() == total
            assert sizes.min() >= 1 and sizes.max() <= 8
            assert (sizes >= before).all()
            before = sizes


def test_rounded_sizes_grow_with_alpha_so_bisection_finds_what_a_fine_search_finds():
    generator = np.random.default_rng(1)
    wanted = generator.random(30) * 8
    sums = [np.clip(np.floor(alpha * wanted + 0.5), 1, 8).sum() for alpha in np.linspace(0, 50, 20_001)]
    assert (np.diff(sums) >= 0).all()
    for total in (45, 120, 200):
        sizes = exact_sizes(wanted, total, 8, np.arange(30))
        alpha = np.linspace(0, 50, 20_001)[np.searchsorted(sums, total, side="right") - 1]
        slow = np.clip(np.floor(alpha * wanted + 0.5), 1, 8)
        assert np.abs(sizes - slow).sum() == total - slow.sum() <= 1


@pytest.mark.parametrize(
    ("budget", "expected"),
    [("numbers-100", 100), ("numbers-9999", 80 * 8), ("bytes-400", 80), ("bytes-487", 101), ("bytes-1MB", 80 * 8)],
)
def test_bytes_pay_four_for_a_number_and_one_for_each_node_s_size(budget, expected):
    assert feasible_sizes(Budget.parse(budget), 80, 8) == expected


@pytest.mark.parametrize(("budget", "needs"), [("numbers-79", 80), ("bytes-399", 4 * 80 + 80)])
def test_less_than_one_number_per_node_is_infeasible(blocks, budget, needs):
    for cls in (CIESS, FrequencySized):
        with pytest.raises(BudgetError) as error:
            build(cls, Budget.parse(budget), blocks[0], cls.Params(dim=8), seed=1)
        assert error.value.needs == needs


# The control -----------------------------------------------------------------


def test_frequency_sized_fills_the_budget_and_gives_the_more_frequent_no_less():
    counts = np.array([0, 1, 7, 63, 2, 2, 40])
    train = SimpleNamespace(user=np.repeat(np.arange(3), counts[:3]))
    graph = SimpleNamespace(train=train, num_users=3, num_items=4, num_nodes=7, item_counts=counts[3:])
    assert frequencies(graph).tolist() == counts.tolist()
    method = FrequencySized.from_budget(Budget.parse("numbers-40"), graph, FrequencySized.Params(dim=16))
    sizes = method.export()["sizes"] + 1
    assert sizes.sum() == len(method.export()["values"]) == 40
    # log2(1 + count) = 0, 1, 3, 6, 1.585, 1.585, 5.358: alpha = 2.1 gives 1, 2, 6, 13, 3, 3, 11 = 39; 40 from 2.15 on
    assert sizes.tolist() == [1, 2, 6, 13, 3, 3, 12]


# The agents ------------------------------------------------------------------


def test_the_walk_stays_in_range_and_goes_near_more_often_as_one_over_the_distance():
    visited = random_walk(np.full(60_000, 3), dim=6, steps=1, reach=5, generator=np.random.default_rng(0))
    assert (visited[:, 0] == 3).all()
    chances = np.bincount(visited[:, 1], minlength=7)[1:] / 60_000
    near = np.array([1 / 2, 1, 0, 1, 1 / 2, 1 / 3])  # distances of 1..6 from 3
    np.testing.assert_allclose(chances, near / near.sum(), atol=0.01)
    long = random_walk(np.array([1, 128] * 500), dim=128, steps=5, reach=5, generator=np.random.default_rng(1))
    assert long.shape == (1000, 6)
    assert long.min() >= 1 and long.max() <= 128
    steps = np.abs(np.diff(long, axis=1))
    assert steps.min() == 1 and steps.max() == 5


def test_actions_and_sizes_are_two_scales_of_the_same():
    assert to_action(np.array([1, 8]), 8).tolist() == [-1, 1]
    np.testing.assert_allclose(to_size(to_action(np.arange(1, 9), 8), 8), np.arange(1, 9))


def test_the_reward_is_quality_less_the_squared_share_of_the_size():
    params = search_params(size_cost=0.01)
    expected = [0.5 - 0.01 * (0 / 8) ** 2, 0.25 - 0.01 * (7 / 8) ** 2]
    np.testing.assert_allclose(rewards(np.array([0.5, 0.25]), np.array([1, 8]), params), expected)


def test_the_agent_takes_the_size_on_its_walk_that_the_first_critic_likes_best():
    agent = Agent(search_params(dim=128))
    agent.actor = lambda states: torch.zeros(len(states), 1)  # proposes 1 + 127 / 2 = 64.5, rounded to 64
    agent.critics = [lambda pair: -(pair[:, 3:] - to_action(66, 128)).abs()]  # likes 66
    state = np.zeros((500, 3), dtype=np.float32)
    visited = random_walk(np.full(500, 64), 128, 5, 5, np.random.default_rng(3))
    closest = np.abs(visited - 66).min(axis=1)
    chosen = agent.choose(state, np.random.default_rng(3))
    np.testing.assert_array_equal(np.abs(chosen - 66), closest)


def test_the_critics_learn_the_reward_and_the_smaller_discounted_value_at_the_noisy_target_size():
    agent = Agent(search_params(dim=5, discount=0.9))
    agent.target_actor = lambda after: after[:, :1]  # -0.5 is size 2; 0.75 is size 4.5
    agent.target_critics = [lambda pair: pair.sum(dim=1, keepdim=True), lambda pair: 3 * pair[:, 3:]]
    reward, after = torch.tensor([[1.0], [2.0]]), torch.tensor([[-0.5, 0.0, 1.0], [0.75, 1.0, 0.5]])
    # noise of one size is 2 / (5 - 1) = 0.5: actions 0 and 1 (clipped from 1.25)
    first = 1 + 0.9 * min(-0.5 + 0 + 1 + 0, 3 * 0)
    second = 2 + 0.9 * min(0.75 + 1 + 0.5 + 1, 3 * 1)
    np.testing.assert_allclose(agent.critic_target(reward, after, 1.0), [[first], [second]])


def filled_agent(**params):
    torch.manual_seed(0)
    agent, generator = Agent(search_params(replay_batch=64, **params)), np.random.default_rng(0)
    state, after = generator.random((2, 30, 3))
    agent.remember(state, generator.integers(1, 9, 30), generator.random(30), after)
    return agent, generator


def test_the_actor_and_its_target_move_only_at_every_second_update_of_the_critics():
    agent, generator = filled_agent()
    for expected in (False, True, False, True):
        critics, actor, target = copied(agent.critics), copied(agent.actor), copied(agent.target_actor)
        agent.update(generator)
        assert not same(copied(agent.critics), critics)
        assert same(copied(agent.actor), actor) != expected
        assert same(copied(agent.target_actor), target) != expected


def test_targets_move_the_target_rate_of_the_way():
    agent, generator = filled_agent(target_rate=0.005)
    old = copied(agent.target_critics)
    agent.update(generator)
    for before, new, target in zip(old, copied(agent.critics), copied(agent.target_critics), strict=True):
        torch.testing.assert_close(target, 0.995 * before + 0.005 * new)


def test_the_replay_forgets_the_oldest_step():
    agent = Agent(search_params(replay_steps=2))
    for step in range(3):
        agent.remember(np.zeros((4, 3)), np.ones(4), np.full(4, step), np.zeros((4, 3)))
    assert [rows[0, 4] for rows in agent.replay] == [1, 2]
    assert agent.replay[0][0].tolist() == [0, 0, 0, -1, 1, 0, 0, 0]  # state, action, reward, next state


# The search ------------------------------------------------------------------


def planted_search(blocks, quality, **params):
    """A search in which q = quality(sizes) (N,), whatever is trained."""
    graph, valid, _ = blocks
    method = build(CIESSSearch, Budget.parse("full"), graph, search_params(**params), seed=1)
    method.peak_quality = lambda trainer: np.ones(graph.num_nodes)

    def evaluate(trainer, sizes, step):
        method.resize(sizes)
        return quality(sizes), float(quality(sizes).mean())

    method.evaluate = evaluate
    method.fit(Trainer(graph, valid, FAST, 1))
    return method


def test_by_default_agents_learn_small_sizes_where_size_costs_much_and_large_ones_where_it_pays(blocks):
    default = {"hidden": CIESSSearch.Params.hidden, "replay_batch": 64}  # all else as it is; 64: for time
    cheap = planted_search(blocks, lambda sizes: np.full(80, 0.5), size_cost=10.0, **default)
    assert cheap.history[-1][0].mean() < 2
    large = planted_search(blocks, lambda sizes: sizes / 8.0, size_cost=0.0, **default)
    assert large.history[-1][0].mean() > 7
    assert all(agent.num_updates == 330 for agent in large.agents)  # as published


def test_tried_are_the_sizes_with_one_noise_for_all_and_kept_are_those_without(blocks):
    tried = []
    method = planted_search(blocks, lambda sizes: tried.append(sizes) or np.full(80, 0.5), updates=1, dim=200)
    noises = [sizes - greedy for sizes, (greedy, _) in zip(tried[::2], method.history, strict=True)]
    assert [len(np.unique(noise)) for noise in noises] == [1] * 16  # users' and items' alike
    assert noises[-1][0] == 0 and 1 < np.std([noise[0] for noise in noises[:-1]]) < 12  # 6 as published
    steps = method.details["steps"]
    assert [step["numbers"] for step in steps] == [sizes.sum() for sizes in tried[::2]]
    assert steps[0]["size_std"] == pytest.approx(tried[0].std())
    assert steps[0]["mean_item_size"] == pytest.approx(tried[0][40:].mean())


def test_the_search_keeps_the_table_of_its_best_step_and_the_sizes_after_it_last(blocks):
    method = planted_search(blocks, lambda sizes: np.full(80, -abs(sizes.mean() - 4)), steps=4, episodes=2)
    assert len(method.history) == 4 * 2 + 1
    best = min(method.details["steps"], key=lambda step: abs(step["numbers"] / 80 - 4))
    arrays = export_arrays(method)
    assert (arrays["sizes"].astype(int) + 1).sum() == len(arrays["values"]) == best["numbers"]
    np.testing.assert_array_equal(arrays["step_sizes"][-1] + 1, method.history[-1][0])
    assert arrays["step_ids"][-1] == 8
    for row, step in enumerate(arrays["step_ids"]):
        np.testing.assert_array_equal(arrays["step_sizes"][row] + 1, method.history[step][0])
        assert arrays["step_quality"][row] == np.float32(method.history[step][1])


def test_quality_is_the_mean_of_recall_and_ndcg_and_an_item_s_is_that_of_its_training_users(blocks):
    graph, valid, _ = blocks
    method = build(CIESSSearch, Budget.parse("full"), graph, search_params(), seed=1)
    trainer = Trainer(graph, valid, FAST, 1)
    quality, mean = method.quality(trainer)
    scores = trainer.validate(method, [5, 10, 20])
    of_users = sum(scores[f"{name}@{k}"] for name in ("recall", "ndcg") for k in (5, 10, 20)) / 6
    np.testing.assert_allclose(quality[:40], of_users)
    assert mean == pytest.approx(of_users.mean())
    users_of_item_7 = [u for u, i in zip(graph.train.user, graph.train.item, strict=True) if i == 7]
    assert quality[40 + 7] == pytest.approx(np.mean(of_users[users_of_item_7]))


def test_the_learning_rate_decays_to_its_floor(blocks):
    graph, valid, _ = blocks
    params = search_params(lr_decay=0.5, decay_every=2, least_lr=0.01)
    method = build(CIESSSearch, Budget.parse("full"), graph, params, seed=1)
    optimizer, lower = method.learning(Trainer(graph, valid, FAST, 1))
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lower()
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125, 0.01])


def test_out_of_time_a_search_ends_and_still_has_sizes(blocks):
    graph, valid, _ = blocks
    method = build(CIESSSearch, Budget.parse("full"), graph, search_params(), seed=1)
    trainer = Trainer(graph, valid, TrainingSettings(max_seconds=1e-9, device="cpu"), 1)
    method.fit(trainer)
    assert trainer.timed_out
    assert export_arrays(method)["step_sizes"].shape == (1, 80)


# From the search to a budget -------------------------------------------------


def test_kept_are_the_steps_that_no_other_beats_with_as_few_numbers_and_the_last():
    totals, quality = np.array([10, 20, 15, 30, 40]), np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    assert worth_keeping(totals, quality).tolist() == [0, 2, 3, 4]  # 20 is beaten by 15; the last always stays


def test_a_budget_takes_the_best_step_within_it_and_else_the_last():
    sizes, quality = np.array([[1, 2], [3, 3], [2, 2], [4, 4]]), np.array([0.1, 0.4, 0.3, 0.2])
    chosen = {total: chosen_step(sizes, quality, total)[1] for total in (2, 3, 4, 5, 6, 8)}
    assert chosen == {2: 3, 3: 0, 4: 2, 5: 2, 6: 1, 8: 1}


def start_of(sizes):
    sizes = np.array(sizes)
    return {
        "step_sizes": (sizes - 1).astype(np.uint8),
        "step_quality": np.linspace(0.1, 0.2, len(sizes), dtype=np.float32),
        "step_ids": np.arange(len(sizes), dtype=np.uint32),
    }


def test_ciess_trains_the_sizes_found_scaled_to_exactly_the_budget(blocks):
    graph, valid, _ = blocks
    method = build(CIESS, Budget.parse("numbers-240"), graph, CIESS.Params(dim=8), seed=1)
    half_and_half = np.repeat([2, 6], 40)  # users 2, items 6: 320 numbers, above the budget
    method.fit(Trainer(graph, valid, FAST, 1), start_of([half_and_half]))
    arrays = export_arrays(method)
    assert arrays["values"].shape == (240,)
    sizes = arrays["sizes"].astype(int) + 1
    assert sizes.sum() == 240
    assert set(sizes[:40]) <= {1, 2} and set(sizes[40:]) <= {4, 5}  # 0.75 * 2 = 1.5, 0.75 * 6 = 4.5
    assert method.details["is_last_step"] and method.details["numbers_of_step"] == 320
    table = method.table().detach().numpy()
    np.testing.assert_array_equal((table != 0).sum(axis=1), sizes)
    np.testing.assert_array_equal(CIESS.decode(arrays, method.params), table)
    assert method.details["mean_user_size"] == pytest.approx(sizes[:40].mean())
    assert method.details["kept_fraction_of_full_table"] == pytest.approx(240 / (80 * 8))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (None, "starts_from: {method: ciess-search}"),
        ({"vectors": np.zeros((80, 8))}, "starts_from: {method: ciess-search}"),
        (start_of([[1] * 79]), "sizes up to 1 for 79 nodes, this run takes up to 8 for 80"),
        (start_of([[9] * 80]), "sizes up to 9 for 80 nodes, this run takes up to 8 for 80"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_with_the_way_out(blocks, start, message):
    graph, valid, _ = blocks
    method = build(CIESS, Budget.parse("numbers-100"), graph, CIESS.Params(dim=8), seed=1)
    with pytest.raises(MethodError) as error:
        method.fit(Trainer(graph, valid, FAST, 1), start)
    assert message in str(error.value)
