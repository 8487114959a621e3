"""The trainer: the loss written out, the order of events in an epoch, stopping, stages, and going on after a stop."""

import dataclasses
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from baselines.lightgcn import LightGCN
from c2f import kernels, train
from c2f.adam import Adam
from c2f.budget import Budget
from c2f.codebook import assignment_matrix
from c2f.decoding import propagate
from c2f.errors import ConfigError, DataError, DivergedError
from c2f.evaluate import DotProducts, means, score_users
from c2f.method import LinearForm, build
from c2f.ops import SparseMatrix, layers_in_halves
from c2f.train import (
    Trainer,
    TrainingSettings,
    _Step,
    pick_device,
    sampled_users,
    sampling_error,
    triple_margins,
)

FAST = TrainingSettings(lr=0.05, batch_size=256, max_epochs=4, evaluate_every=2, device="cpu")


def make(blocks, settings=FAST, cls=LightGCN, dim=4, **more):
    """(trainer, untrained method with `dim` numbers per node) on the toy graph; more: settings or trainer arguments."""
    graph, valid, _ = blocks
    names = {field.name for field in dataclasses.fields(TrainingSettings)}
    settings = dataclasses.replace(settings, **{key: more.pop(key) for key in list(more) if key in names})
    method = build(cls, Budget.parse("full"), graph, cls.Params(dim=dim, num_layers=2), seed=1)
    return Trainer(graph, valid, settings, 1, **more), method


def copied(method) -> dict:
    return {name: value.clone() for name, value in method.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def at_step(monkeypatch):
    """Functions appended to this list are called with the optimiser before every step."""
    calls = []

    def hooked(optimizer, step=Adam.step):
        for call in calls:
            call(optimizer)
        step(optimizer)

    monkeypatch.setattr(Adam, "step", hooked)
    return calls


# The loss --------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_of_a_batch_is_bpr_plus_half_l2_times_the_squares_over_the_batch(blocks, bias):
    graph, *_ = blocks
    l2, user, positive, negative = 0.1, [0, 0, 3], [2, 4, 5], [1, 1, 6]
    trainer, method = make(blocks, l2=l2)
    if bias:
        method.item_bias = torch.nn.Parameter(torch.linspace(-1, 1, graph.num_items))
    adjacency = torch.from_numpy(graph.adjacency.toarray())
    ego = method.vectors.detach().clone().requires_grad_()
    final = (ego + adjacency @ ego + adjacency @ adjacency @ ego) / 3
    bpr, squares = 0.0, 0.0
    for u, i, j in zip(user, positive, negative, strict=True):
        x_ui, x_uj = final[u] @ final[40 + i], final[u] @ final[40 + j]
        if bias:
            x_ui, x_uj = x_ui + method.item_bias[i].detach(), x_uj + method.item_bias[j].detach()
        bpr = bpr - torch.log(torch.sigmoid(x_ui - x_uj))
        squares = squares + ego[u] @ ego[u] + ego[40 + i] @ ego[40 + i] + ego[40 + j] @ ego[40 + j]
    expected = bpr / 3 + l2 / 2 * squares / 3
    batch = [torch.tensor(ids, dtype=torch.int32) for ids in (user, positive, negative)]
    loss = _Step(method, trainer.graph, trainer.settings).loss(*batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(method.vectors.grad, ego.grad)


def test_the_margins_of_triples_have_the_gradient_of_the_plain_formula_also_for_repeated_nodes():
    table = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    user, positive, negative = torch.tensor([0, 0, 1]), torch.tensor([2, 3, 2]), torch.tensor([3, 4, 5])
    assert torch.autograd.gradcheck(lambda x: triple_margins(x, user, positive, negative), table)
    torch.testing.assert_close(
        triple_margins(table, user, positive, negative)[1], table[0] @ table[3] - table[0] @ table[4]
    )


@pytest.mark.parametrize("width", [64, 96])
def test_compiled_margins_are_the_plain_formula_and_two_runs_give_the_same_bytes(width):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(30, width, generator=generator, requires_grad=True)
    user, positive, negative = torch.randint(30, (3, 400), generator=generator, dtype=torch.int32)  # much repeated
    by = torch.randn(400, generator=generator)
    plain = (table[user] * table[positive]).sum(dim=1) - (table[user] * table[negative]).sum(dim=1)
    (expected,) = torch.autograd.grad(plain @ by, table)
    runs = []
    for ids in ((user, positive, negative), (user.long(), positive.long(), negative.long())):
        margins = triple_margins(table, *ids)
        (gradient,) = torch.autograd.grad(margins @ by, table)
        torch.testing.assert_close(margins, plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-4)
        runs.append(margins.detach().numpy().tobytes() + gradient.numpy().tobytes())
    assert runs[0] == runs[1]


class Composed(LightGCN):
    """Table = S W with a fixed sparse S of two entries a row and six rows W: trained collapsed where that is asked."""

    def __init__(self, num_nodes, params):
        super().__init__(6, params)
        generator = np.random.default_rng(0)
        columns = np.argsort(generator.random((num_nodes, 6)), axis=1)[:, :2]
        self.assignment = SparseMatrix(assignment_matrix(columns, generator.random((num_nodes, 2)), 6))

    def table(self):
        return self.assignment @ self.vectors

    def linear_form(self, graph):
        def basis():
            return propagate(self.assignment @ torch.eye(6), graph.operator, self.params.num_layers), None

        return LinearForm(6, basis, lambda: self.vectors, composition=self.assignment)


@pytest.mark.parametrize("by_gram", [True, False])
def test_l2_of_the_collapsed_form_is_that_of_the_composed_table(blocks, by_gram):
    trainer, method = make(blocks, cls=Composed, l2=5.0)
    step, found = _Step(method, trainer.graph, trainer.settings), []
    batch = [torch.tensor(ids, dtype=torch.int32) for ids in ([0, 0, 3], [2, 4, 5], [1, 1, 6])]
    for form in (None, method.linear_form(trainer.graph)):
        step.collapse(form)
        if form is not None:
            assert step.gram is not None  # 6 * 6 numbers for 80 * 4
            step.gram = step.gram if by_gram else None  # as where there are many rows
        loss = step.loss(*batch)
        found.append((loss, torch.autograd.grad(loss, method.vectors)[0]))
    for through_graph, collapsed in zip(*found, strict=True):
        torch.testing.assert_close(collapsed, through_graph, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("collapsed", [True, False])
def test_a_step_in_bfloat16_has_the_loss_and_the_gradient_of_float32_to_two_hundredths(blocks, collapsed):
    batch = [torch.tensor(ids, dtype=torch.int32) for ids in ([0, 0, 3], [2, 4, 5], [1, 1, 6])]
    found = []
    for precision in ("float32", "bfloat16"):
        trainer, method = make(blocks, cls=Composed, dim=kernels.NARROWEST, precision=precision)
        with torch.no_grad():
            method.vectors.copy_(torch.randn(method.vectors.shape, generator=torch.Generator().manual_seed(0)))
        step = _Step(method, trainer.graph, trainer.settings)
        step.collapse(method.linear_form(trainer.graph) if collapsed else None)
        with layers_in_halves(precision == "bfloat16"):
            loss = step.loss(*batch)
            found.append((loss.detach(), *torch.autograd.grad(loss, method.vectors)))
    for half, whole in zip(found[1], found[0], strict=True):
        assert half.dtype == torch.float32
        assert 0 < (half - whole).norm() / whole.norm() < 0.02


def test_training_in_bfloat16_learns_the_blocks_and_validates_in_float32(blocks):
    trainer, method = make(blocks, dim=kernels.NARROWEST, precision="bfloat16", lr=0.05, max_epochs=20)
    trainer.run(method, "train")
    assert trainer.validate(method, [2])["recall@2"].min() == 1  # of every user's two items outside the training pairs
    exact = propagate(method.vectors.detach(), trainer.graph.operator, method.params.num_layers)
    torch.testing.assert_close(method.embed(trainer.graph).final.detach(), exact, rtol=0, atol=0)


class WithPenalty(LightGCN):
    """Adds seven times the first number to the loss."""

    def penalty(self, *batch):
        return 7 * self.vectors[0, 0]


def test_a_method_s_own_penalty_is_added(blocks):
    losses = []
    batch = [torch.tensor([1], dtype=torch.int32)] * 2 + [torch.tensor([2], dtype=torch.int32)]
    for cls in (LightGCN, WithPenalty):
        trainer, method = make(blocks, cls=cls)
        losses.append(_Step(method, trainer.graph, trainer.settings).loss(*batch).item())
    assert losses[1] - losses[0] == pytest.approx(7 * method.vectors[0, 0].item(), rel=1e-4)


def test_the_curve_holds_the_mean_loss_of_the_epoch_and_the_validation_metrics(blocks):
    graph, valid, _ = blocks
    trainer, method = make(blocks)
    trainer.run(method, "train")
    assert [(row["stage"], row["epoch"]) for row in trainer.curve] == [("train", 0), ("train", 2), ("train", 4)]
    assert math.isnan(trainer.curve[0]["loss"])
    assert trainer.curve[1]["loss"] > trainer.curve[2]["loss"] > 0
    best = max(trainer.curve, key=lambda row: row["ndcg@20"])
    with torch.no_grad():
        final = method.embed(trainer.graph).final
    scores = means(score_users(DotProducts.of_nodes(final, 40), graph.train, valid, [5, 20]))
    for name in ("ndcg@5", "ndcg@20", "recall@20"):
        assert best[name] == pytest.approx(scores[name])


# A sample of the users ---------------------------------------------------------


def test_a_sample_of_all_users_gives_the_numbers_of_all_and_the_error_0(blocks):
    runs = []
    for asked in (None, 40, 1000):  # there are 40
        trainer, method = make(blocks, valid_users=asked)
        report = trainer.run(method, "train")
        assert (report.best_value_error, len(trainer.validate(method, [5])["user"])) == (0, 40)
        runs.append([{**row, "seconds": 0, "loss": 0} for row in trainer.curve])
    assert runs[0] == runs[1] == runs[2]


def test_the_error_of_a_sample_s_mean_is_the_formula_written_out():
    # s^2 = (1/9 + 4/9 + 1/9) / 2 = 1/3; three of six users: half of them are not seen
    assert sampling_error(np.array([1.0, 0.0, 1.0]), 6) == pytest.approx(math.sqrt(1 / 3 / 3 * (1 - 3 / 6)))
    assert sampling_error(np.array([1.0, 0.0, 1.0]), 3) == 0


def test_the_stage_states_the_sampling_error_of_its_best_value(blocks):
    trainer, method = make(blocks, valid_users=10)
    report = trainer.run(method, "train")  # leaves the best weights
    users = np.unique(sampled_users(blocks[1], 10).user)
    values = trainer.validate(method, [20])["ndcg@20"][users]  # every one of the 40 users has a validation pair
    assert report.best_value == pytest.approx(values.mean())
    assert report.best_value_error == pytest.approx(values.std(ddof=1) / math.sqrt(10) * math.sqrt(1 - 10 / 40))
    assert report.best_value_error > 0


def test_over_many_samples_the_mean_is_that_of_all_users_and_the_spread_is_the_error_stated(blocks, monkeypatch):
    valid = blocks[1]
    values = np.random.default_rng(0).random(40) ** 3  # skewed, as metrics are
    means, errors = [], []
    for draw in range(2000):
        monkeypatch.setattr(train, "seed_for", lambda *_, draw=draw: draw)
        sample = values[sampled_users(valid, 10).user]
        means.append(sample.mean())
        errors.append(sampling_error(sample, 40))
    spread = np.std(means)
    assert abs(np.mean(means) - values.mean()) < 3 * spread / math.sqrt(2000)
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.05)


def test_the_sample_depends_on_the_pairs_alone_and_a_larger_one_holds_a_smaller(blocks):
    graph, valid, test = blocks
    few, more = (set(sampled_users(valid, count).user) for count in (10, 20))
    assert len(few) == 10 and few < more and len(more) == 20
    assert set(sampled_users(test, 10).user) != few
    curves = []
    for settings in (FAST, dataclasses.replace(FAST, lr=0.01)):  # other settings and another seed: the same users
        trainer = Trainer(graph, valid, dataclasses.replace(settings, valid_users=10), seed=len(curves))
        curves.append(set(trainer._ranked.user))
    assert curves == [few, few]


# One epoch -------------------------------------------------------------------


def test_gradients_are_clipped_entry_by_entry_before_each_step(blocks, at_step):
    largest = []
    at_step.append(lambda optimizer: largest.append(optimizer.param_groups[0]["params"][0].grad.abs().max().item()))
    for clip, expected in ((None, False), (1e-4, True)):
        largest.clear()
        trainer, method = make(blocks, clip_value=clip, max_epochs=1)
        trainer.run(method, "train")
        assert (max(largest) <= np.float32(1e-4)) == expected


def test_each_epoch_is_called_once_an_epoch_after_the_first_backward_and_before_the_first_step(blocks, at_step):
    trainer, method = make(blocks, max_epochs=2)
    steps_per_epoch = math.ceil(len(blocks[0].train) / 256)
    events, seen = [], []
    at_step.append(lambda _: events.append("step"))

    def each_epoch():
        events.append("each epoch")
        seen.append((method.vectors.grad is not None, copied(method), torch.is_grad_enabled()))

    before = copied(method)
    trainer.run(method, "train", each_epoch=each_epoch, keep="last")
    assert events == (["each epoch"] + ["step"] * steps_per_epoch) * 2
    has_gradient, weights, grad_enabled = seen[0]
    assert has_gradient
    assert equal(weights, before)
    assert not grad_enabled


def test_a_sample_is_drawn_afresh_in_every_epoch_and_stage(blocks, monkeypatch):
    trainer, method = make(blocks, max_epochs=2)
    drawn = []
    sample = trainer.sampler.epoch
    monkeypatch.setattr(trainer.sampler, "epoch", lambda generator: drawn.append(sample(generator)) or drawn[-1])
    trainer.run(method, "one")
    trainer.run(method, "two")
    assert len({np.concatenate(triples).tobytes() for triples in drawn}) == 4


# Stopping --------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch):
    """Validation values that come out whatever the model is; the method's state at each evaluation is kept."""

    def script(trainer, method, values):
        values, states = list(values), []

        def fake(_):
            states.append(copied(method))
            value = values[len(states) - 1]
            return {"ndcg@5": 0.0, "ndcg@20": value, "recall@20": 1 - value}

        monkeypatch.setattr(train, "means", fake)
        return states

    return script


def test_patience_counts_evaluations_without_a_strictly_better_value_and_the_best_weights_come_back(blocks, scripted):
    trainer, method = make(blocks, max_epochs=100, patience=3)
    # evaluated at epochs 0, 2, 4, 6, 8: the best is at epoch 2; 0.2 again is no improvement
    states = scripted(trainer, method, [0.1, 0.2, 0.15, 0.2, 0.19, 0.9])
    report = trainer.run(method, "train")
    assert (report.epochs, report.best_epoch, report.best_value, report.stopped_by) == (8, 2, 0.2, "patience")
    assert report.steps == 8 * math.ceil(len(blocks[0].train) / 256)
    assert equal(copied(method), states[1])
    assert not equal(copied(method), states[4])


def test_a_new_best_value_starts_the_patience_again(blocks, scripted):
    trainer, method = make(blocks, max_epochs=100, patience=2)
    scripted(trainer, method, [0.1, 0.05, 0.2, 0.1, 0.3, 0.1, 0.1, 0.9])
    assert trainer.run(method, "train").epochs == 12


def test_keep_last_leaves_the_last_weights(blocks, scripted):
    trainer, method = make(blocks, max_epochs=100, patience=3)
    states = scripted(trainer, method, [0.1, 0.2, 0.15, 0.2, 0.19])
    report = trainer.run(method, "train", keep="last")
    assert report.best_epoch == 2
    assert equal(copied(method), states[4])


def test_the_untrained_weights_come_back_where_training_only_made_it_worse(blocks, scripted):
    trainer, method = make(blocks, max_epochs=4, patience=9)
    states = scripted(trainer, method, [0.5, 0.2, 0.15])
    assert trainer.run(method, "train").best_epoch == 0
    assert equal(copied(method), states[0])


def test_select_on_chooses_the_metric_that_stops_and_selects(blocks, scripted):
    trainer, method = make(blocks, max_epochs=100, patience=2, select_on="recall@20")
    states = scripted(trainer, method, [0.5, 0.9, 0.4, 0.45, 0.6])  # recall@20 is 1 - value here
    report = trainer.run(method, "train")
    assert (report.metric, report.best_epoch, report.best_value) == ("recall@20", 4, 0.6)
    assert equal(copied(method), states[2])


def test_the_last_epoch_is_evaluated_also_between_two_regular_evaluations(blocks):
    trainer, method = make(blocks, max_epochs=3, evaluate_every=2)
    assert trainer.run(method, "train").stopped_by == "epochs"
    assert [row["epoch"] for row in trainer.curve] == [0, 2, 3]


def test_a_stage_may_have_fewer_epochs_than_the_setting(blocks):
    trainer, method = make(blocks, max_epochs=9, evaluate_every=1)
    report = trainer.run(method, "short", max_epochs=2)
    assert (report.epochs, report.max_epochs) == (2, 2)


def test_a_stage_judged_by_its_own_epochs_may_end_below_its_start(blocks, scripted):
    trainer, method = make(blocks, max_epochs=100, patience=2)
    states = scripted(trainer, method, [0.9, 0.1, 0.3, 0.2, 0.2])  # epochs 0, 2, 4, 6, 8
    report = trainer.run(method, "updated", start_counts=False)
    assert (report.epochs, report.best_epoch, report.best_value) == (8, 4, 0.3)
    assert equal(copied(method), states[2])


def test_a_stage_may_end_in_mid_epoch_with_an_optimiser_of_its_own_and_without_early_stopping(blocks):
    trainer, method = make(blocks, max_epochs=50, evaluate_every=1, patience=1, batch_size=64)
    optimizer, steps = torch.optim.SGD(method.parameters(), lr=0.0), []
    before = copied(method)
    report = trainer.run(
        method,
        "search",
        each_step=lambda: steps.append(1) or len(steps) == 70,
        optimizer=optimizer,
        early_stopping=False,
    )
    per_epoch = -(-len(trainer.graph.train) // 64)
    assert (report.steps, report.epochs, report.stopped_by) == (70, -(-70 // per_epoch), "condition")
    assert report.epochs > 2 and equal(copied(method), before)  # at lr 0 nothing improves: patience would end it at 1
    assert trainer.curve[-1]["epoch"] == report.epochs


def test_out_of_time_the_stage_ends_and_later_stages_do_not_train(blocks, monkeypatch):
    trainer, method = make(blocks, max_epochs=50, evaluate_every=1, max_seconds=25)
    epochs = []
    monkeypatch.setattr(Trainer, "seconds", lambda _: 10.0 * len(epochs))  # ten seconds an epoch
    first = trainer.run(method, "one", each_epoch=lambda: epochs.append(1), keep="last")
    weights = copied(method)
    second = trainer.run(method, "two", each_epoch=lambda: epochs.append(1))
    assert (first.epochs, first.stopped_by) == (3, "time")
    assert (second.epochs, second.steps, second.stopped_by) == (0, 0, "time")
    assert trainer.timed_out
    assert equal(copied(method), weights)


# Stages ----------------------------------------------------------------------


def test_the_moments_of_the_optimiser_go_on_from_stage_to_stage(blocks, at_step):
    trainer, method = make(blocks)
    counts = []
    at_step.append(lambda optimizer: counts.append([float(state["step"]) for state in optimizer.state.values()]))
    trainer.run(method, "one", keep="last")
    steps = len(counts)
    trainer.run(method, "two")
    assert counts[0] == []  # nothing known before the first step
    assert counts[steps] == [steps]  # at the first step of the second stage


def test_another_choice_of_trained_parameters_gets_a_fresh_optimiser(blocks, at_step):
    trainer, method = make(blocks)
    method.extra = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    trainer.run(method, "one")
    method.extra.requires_grad_()
    method.vectors.requires_grad_(False)
    groups = []
    at_step.append(lambda optimizer: groups.append((optimizer.param_groups[0]["params"], len(optimizer.state))))
    method.penalty = lambda *batch: method.extra.square().sum() + method.extra.sum()
    weights = method.vectors.detach().clone()
    trainer.run(method, "two", keep="last")
    assert groups[0] == ([method.extra], 0)
    assert torch.equal(method.vectors, weights)
    assert method.extra.item() < 0


# The optimiser ---------------------------------------------------------------


def test_adam_moves_the_weights_as_torch_does_also_where_some_have_no_gradient_and_after_a_reload():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(7, 3, generator=generator), torch.randn(5, generator=generator), torch.ones(2)]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizers = [Adam(ours, 0.01), torch.optim.Adam(theirs, lr=0.01)]
    for number in range(50):
        if number == 20:
            state = optimizers[0].state_dict()
            optimizers[0] = Adam(ours, 0.01)
            optimizers[0].load_state_dict(state)
        for optimizer in optimizers:
            optimizer.zero_grad()
        for one, other in zip(ours[: 1 + number % 2], theirs, strict=False):  # the second at every other step
            one.grad = torch.randn(one.shape, generator=generator) * 10.0 ** (number % 5 - 3)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours[2], torch.ones(2))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_training_does_not_import_what_only_torch_compile_needs():
    code = (
        "import sys, torch; from c2f.adam import Adam; weight = torch.nn.Parameter(torch.ones(2)); "
        "adam = Adam([weight], 0.1); weight.sum().backward(); adam.step(); adam.load_state_dict(adam.state_dict()); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Batches outside any stage ---------------------------------------------------


def test_batches_outside_a_stage_train_as_the_epochs_of_a_stage_of_that_name_do(blocks):
    trainer, method = make(blocks)
    trainer.run(method, "name", keep="last")
    alone, same = make(blocks)
    steps = 4 * math.ceil(len(blocks[0].train) / 256)
    alone.train_batches(same, "name", steps, Adam(same.parameters(), lr=0.05))
    assert equal(copied(same), copied(method))


def test_batches_outside_a_stage_stop_in_mid_epoch_and_leave_no_trace_in_the_record(blocks, at_step):
    trainer, method = make(blocks, batch_size=64)
    per_epoch = math.ceil(len(blocks[0].train) / 64)
    optimizer, events = Adam(method.parameters(), lr=0.05), []
    at_step.append(lambda used: events.append("step" if used is optimizer else "step of a stage"))
    trainer.train_batches(method, "name", per_epoch + 2, optimizer, lambda: events.append("each step"))
    assert events == ["step", "each step"] * (per_epoch + 2)
    assert (trainer.reports, trainer.curve, trainer.timed_out) == ([], [], False)
    trainer.run(method, "stage", max_epochs=1)
    assert events[-per_epoch:] == ["step of a stage"] * per_epoch


def test_batches_outside_a_stage_end_when_the_time_is_out(blocks, monkeypatch):
    trainer, method = make(blocks, batch_size=64, max_seconds=25)
    steps = []
    monkeypatch.setattr(Trainer, "seconds", lambda _: 10.0 * len(steps))  # ten seconds a step
    optimizer = torch.optim.Adam(method.parameters())
    trainer.train_batches(method, "name", 1000, optimizer, lambda: steps.append(1))
    assert len(steps) == math.ceil(len(blocks[0].train) / 64)  # the epoch under way is ended
    assert trainer.timed_out


# What goes wrong -------------------------------------------------------------


class NaNInSecondEpoch(LightGCN):
    """Its penalty becomes NaN after four steps, the first epoch of this data."""

    asked = 0

    def penalty(self, *batch):
        self.asked += 1
        return self.vectors.sum() * (math.nan if self.asked > self.good else 0)


def test_a_loss_that_is_not_finite_is_named_with_stage_epoch_and_batch(blocks):
    trainer, method = make(blocks, cls=NaNInSecondEpoch)
    method.good = math.ceil(len(blocks[0].train) / 256) + 1  # all of epoch 1 and one batch of epoch 2
    message = r"the loss became nan in stage 'warm-up', epoch 2, batch 2; lower `lr` or raise `l2`"
    with pytest.raises(DivergedError, match=message):
        trainer.run(method, "warm-up")


def test_cuda_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="device = 'cuda', but torch sees no CUDA device here; write device: auto"):
        pick_device("cuda")
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


# Interrupted and taken up again ----------------------------------------------


def two_stages(trainer, method, interrupt_at=None):
    """Train two stages; interrupt_at: (stage, epoch) in which SIGINT arrives."""
    for stage in ("one", "two"):
        epoch = []

        def each_epoch(stage=stage, epoch=epoch):
            epoch.append(1)
            if (stage, len(epoch)) == interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)

        trainer.run(method, stage, each_epoch=each_epoch, keep="last" if stage == "one" else "best")


@pytest.mark.parametrize("interrupt_at", [("one", 1), ("one", 3), ("two", 1), ("two", 4)])
def test_a_run_stopped_by_ctrl_c_ends_its_epoch_and_goes_on_to_the_same_weights(blocks, tmp_path, interrupt_at):
    trainer, method = make(blocks)
    two_stages(trainer, method)
    checkpoint = {"checkpoint": tmp_path / "checkpoint.pt", "fingerprint": "x"}
    stopped, half = make(blocks, **checkpoint)
    stopped._started -= 1000  # as if it had run for so many seconds
    with pytest.raises(KeyboardInterrupt):
        two_stages(stopped, half, interrupt_at)
    stage, epoch = interrupt_at
    assert (stopped.reports[-1].name, stopped.reports[-1].epochs) == (stage, epoch)
    resumed, again = make(blocks, **checkpoint)
    two_stages(resumed, again)
    assert equal(copied(again), copied(method))
    for name in ("name", "epochs", "steps", "best_epoch", "best_value", "stopped_by"):
        assert [getattr(r, name) for r in resumed.reports] == [getattr(r, name) for r in trainer.reports]
    for ours, expected in zip(resumed.curve, trainer.curve, strict=True):
        assert {**ours, "seconds": 0, "loss": 0} == {**expected, "seconds": 0, "loss": 0}
    assert 1000 < resumed.seconds() < 2000  # the time of both attempts


def stopped_checkpoint(blocks, tmp_path, fingerprint="x"):
    """The checkpoint of a run that was stopped after its second epoch."""
    path = tmp_path / "checkpoint.pt"
    trainer, method = make(blocks, checkpoint=path, fingerprint=fingerprint)
    with pytest.raises(KeyboardInterrupt):
        two_stages(trainer, method, ("one", 2))
    return path


def epochs_sampled(trainer, method, monkeypatch) -> int:
    """How many epochs are really trained in two stages of four."""
    count, sample = [], trainer.sampler.epoch
    monkeypatch.setattr(trainer.sampler, "epoch", lambda generator: count.append(1) or sample(generator))
    two_stages(trainer, method)
    return len(count)


def test_only_the_epochs_that_are_missing_are_trained(blocks, tmp_path, monkeypatch):
    path = stopped_checkpoint(blocks, tmp_path)
    assert epochs_sampled(*make(blocks, checkpoint=path, fingerprint="x"), monkeypatch) == 8 - 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage", "empty"])
def test_a_damaged_checkpoint_is_ignored_and_training_starts_again(blocks, tmp_path, monkeypatch, damage):
    path = stopped_checkpoint(blocks, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:900], "flipped": content, "garbage": b"hello" * 99, "empty": b""}[damage])
    trainer, method = make(blocks, checkpoint=path, fingerprint="x")
    assert epochs_sampled(trainer, method, monkeypatch) == 8
    reference = make(blocks)
    two_stages(*reference)
    assert equal(copied(method), copied(reference[1]))


def test_a_checkpoint_of_other_settings_is_kept_apart_and_named(blocks, tmp_path, monkeypatch, capsys):
    path = stopped_checkpoint(blocks, tmp_path, fingerprint="x")
    before = path.read_bytes()
    assert epochs_sampled(*make(blocks, checkpoint=path, fingerprint="y"), monkeypatch) == 8
    assert (tmp_path / "checkpoint.old.pt").read_bytes() == before
    assert "checkpoint.old.pt is of other code, settings or data: training starts again" in capsys.readouterr().err


def test_an_interruption_while_the_last_checkpoint_of_a_stage_is_written_is_not_lost(blocks, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    trainer, method = make(blocks, checkpoint=path, fingerprint="x")
    write = trainer._write_checkpoint

    def interrupted_write(*arguments, now):
        if trainer.reports[-1].epochs == 2:
            os.kill(os.getpid(), signal.SIGINT)
        write(*arguments, now=now)

    monkeypatch.setattr(trainer, "_write_checkpoint", interrupted_write)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(method, "one", max_epochs=2)
    assert [report.epochs for report in trainer.reports] == [2]


def test_checkpoints_are_written_at_intervals_and_a_full_disk_keeps_the_last_one(blocks, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    monkeypatch.setattr(Trainer, "checkpoint_seconds", 0.0)
    trainer, method = make(blocks, checkpoint=path, fingerprint="x")
    trainer.run(method, "one")
    before = path.read_bytes()
    monkeypatch.setattr("builtins.open", lambda file, mode="r", _open=open: _open("/dev/full", mode))
    with pytest.raises(DataError, match=r"cannot write .*checkpoint\.pt: No space left on device; free some space"):
        trainer.run(method, "two")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint_is_written_before_the_interval_is_over(blocks, tmp_path):
    trainer, method = make(blocks, checkpoint=tmp_path / "checkpoint.pt", fingerprint="x")
    trainer.run(method, "one")
    assert list(tmp_path.iterdir()) == []
