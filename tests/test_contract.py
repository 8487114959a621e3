"""What every configured method must keep to, whatever it is; `pytest -k NAME` runs the contract on one entry.

Methods are shrunk (dim 8, a tenth of the codes) and trained on the toy data `blocks` of conftest.py; what prunes or
sizes a table keeps a third of it.
"""

import dataclasses
import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from c2f import data
from c2f.budget import Budget, Footprint
from c2f.errors import BudgetError, ConfigError
from c2f.evaluate import DotProducts, means, rank, score_users, union
from c2f.grid import Grid
from c2f.method import EmbeddingMethod, build, decoder_of, export_arrays, load_class
from c2f.record import Artifact
from c2f.serve import Reader
from c2f.settings import from_mapping
from c2f.train import Trainer, TrainingSettings, _Step

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
GRID = Grid(CONFIG, ROOT / "workflow/schemas/config.schema.yaml")
NAMES = sorted(GRID.entries)
GENEROUS = "bytes-20kB"
PRUNED = ("baselines.cerp", "baselines.ciess", "baselines.magprune", "baselines.pep")
A_THIRD = "bytes-900"  # 205 of a table's 640 numbers (576 in CERP's codebooks); 80 bytes say which
FAST = {"lr": 0.05, "batch_size": 512, "max_epochs": 12, "evaluate_every": 2, "l2": 1e-4, "device": "cpu"}


@dataclass(frozen=True)
class Fitted:
    method: EmbeddingMethod
    arrays: dict
    trainer: Trainer
    budget: Budget


def shrunk_params(name: str):
    """The entry's parameters for 80 nodes: 8 dimensions, a tenth of the codes, thresholds that 8 numbers survive."""
    entry = GRID.entries[name]
    params = dict(entry.params)
    small = {"dim": 8, "components": 6, "threshold": 0.3, "batches": 10, "pretrain_batches": 10, "episodes": 1}
    small |= {"start_threshold": -3.0, "kept_fraction": 0.9, "updates": 2}  # a search of the few steps there are
    small |= {"epochs": 12, "train_batch_size": 2048, "learning_rate": 0.05}  # of RecBole's trainer, as FAST is of ours
    params |= {key: value for key, value in small.items() if key in params}
    for key, times in (("num_codes", 10), ("fine_codes", 10), ("num_rows", 125)):
        if params.get(key):
            params[key] //= times
    return from_mapping(load_class(entry.uses).Params, params, f"methods.{name}.params")


def is_pruned(name: str) -> bool:
    return GRID.entries[name].uses.startswith(PRUNED) and not GRID.entries[name].budgets


def budget_of(name: str) -> Budget:
    return Budget.parse((GRID.entries[name].budgets or [A_THIRD if is_pruned(name) else GENEROUS])[0])


@functools.cache
def fit(name: str, graph, valid, seed: int = 1, **training) -> Fitted:
    """The shrunk entry, trained on the toy graph (after the run it starts from, if any)."""
    entry, params, budget = GRID.entries[name], shrunk_params(name), budget_of(name)
    method = build(load_class(entry.uses), budget, graph, params, seed)
    training = CONFIG["training"] | entry.training | FAST | training
    settings = from_mapping(TrainingSettings, training, f"methods.{name}.training")
    trainer = Trainer(graph, valid, settings, seed)
    start = fit(entry.starts_from["method"], graph, valid, seed).arrays if entry.starts_from else None
    method.fit(trainer, start)
    return Fitted(method, export_arrays(method), trainer, budget)


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def fitted(name, blocks) -> Fitted:
    graph, valid, _ = blocks
    return fit(name, graph, valid)


@pytest.mark.parametrize("name", ["lightgcn", "c2f", "dhe", "cerp", "pq"])
def test_torch_s_deterministic_algorithms_change_nothing_on_a_processor(name, blocks):
    graph, valid, _ = blocks
    usual = fit(name, graph, valid).arrays
    try:
        chosen = fit.__wrapped__(name, graph, valid, deterministic=True).arrays
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert {key: array.tobytes() for key, array in chosen.items()} == {
        key: array.tobytes() for key, array in usual.items()
    }


def restored(fitted: Fitted):
    """What scores items for the fitted method, made of its arrays alone."""
    return fitted.method.scorer(fitted.arrays, fitted.method.params, fitted.trainer.graph.graph, torch.device("cpu"))


def final_vectors(fitted: Fitted):
    with torch.no_grad():
        final = fitted.method.embed(fitted.trainer.graph).final.numpy()
    num_users = fitted.trainer.graph.num_users
    return final[:num_users], final[num_users:]


def test_the_artifact_keeps_the_budget_and_its_footprint_is_what_lies_in_the_file(fitted, tmp_path):
    footprint = Footprint.measure(fitted.arrays, fitted.method.counted, 0, 0, False)
    assert footprint.spent(fitted.budget) <= fitted.budget.amount
    Artifact(fitted.arrays, {}).save(tmp_path / "artifact.npz")
    with np.load(tmp_path / "artifact.npz", allow_pickle=False) as stored:
        in_file = {name: stored[name].nbytes for name in stored.files if name != "__info__"}
    assert in_file == {name: part["bytes"] for name, part in footprint.parts.items()}
    assert sum(in_file.values()) == footprint.stored


def test_the_arrays_alone_give_the_final_embeddings_back(fitted):
    scorer = restored(fitted)
    if not isinstance(scorer, DotProducts):
        pytest.skip("no final embeddings: its own test compares the scores")
    expected_users, expected_items = final_vectors(fitted)
    dim = expected_users.shape[1]
    np.testing.assert_allclose(scorer.users[:, :dim], expected_users, atol=2e-5)
    np.testing.assert_allclose(scorer.items[:, :dim], expected_items, atol=2e-5)
    if fitted.method.item_bias is not None:
        np.testing.assert_array_equal(scorer.users[:, dim], 1)
        np.testing.assert_array_equal(scorer.items[:, dim], fitted.method.item_bias.detach())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name, fitted, blocks):
    graph, valid, _ = blocks
    again = fit.__wrapped__(name, graph, valid)
    assert as_bytes(again.arrays) == as_bytes(fitted.arrays)
    if list(fitted.method.parameters()):
        assert as_bytes(fit.__wrapped__(name, graph, valid, seed=2).arrays) != as_bytes(fitted.arrays)


def as_bytes(arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_global_generators_are_left_alone(name, blocks):
    graph, valid, _ = blocks
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the state is what is tested)
    fit.__wrapped__(name, graph, valid)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
def test_below_the_least_budget_it_says_what_it_needs_and_from_there_on_it_fits(name, kind, blocks):
    graph, _, _ = blocks
    cls, params = load_class(GRID.entries[name].uses), shrunk_params(name)
    with pytest.raises(BudgetError) as error:
        build(cls, Budget.parse(f"{kind}-1"), graph, params, 1)
    least = error.value.needs
    assert f"{least:,} {kind}" in str(error.value)
    method = build(cls, Budget.parse(f"{kind}-{least}"), graph, params, 1)
    footprint = Footprint.measure(export_arrays(method), method.counted, 0, 0, False)
    assert footprint.spent(Budget.parse(f"{kind}-{least}")) <= least
    with pytest.raises(BudgetError):
        build(cls, Budget.parse(f"{kind}-{least - 1}"), graph, params, 1)


def test_every_trained_parameter_gets_a_gradient_and_everything_frozen_stays(fitted, name):
    parameters = [parameter for parameter in fitted.method.parameters() if parameter.requires_grad]
    if not parameters:
        pytest.skip("nothing is trained")
    step = _Step(fitted.method, fitted.trainer.graph, fitted.trainer.settings)
    for parameter in parameters:
        parameter.grad = None
    step.loss(*(torch.from_numpy(ids) for ids in fitted.trainer.sampler.epoch(np.random.default_rng(1)))).backward()
    for parameter in parameters:
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    start = GRID.entries[name].starts_from
    if start:  # what it holds of the start without training it stands unchanged in the artifact
        started = fit(start["method"], fitted.trainer.graph.graph, fitted.trainer.valid)
        frozen = {name for name, _ in fitted.method.named_buffers()}
        for key in frozen & set(started.arrays) & set(fitted.arrays):
            np.testing.assert_array_equal(fitted.arrays[key], started.arrays[key])


@pytest.fixture(scope="module")
def blocks_folder(blocks, tmp_path_factory):
    """The toy data as `prepare` writes them."""
    graph, valid, test = blocks
    pairs = {"train": graph.train, "valid": valid, "test": test}
    stats = {"name": "blocks", "num_users": 40, "num_items": 40, "mask_at_test": ["train", "valid"]}
    stats |= {"sha256": {part: table.sha256() for part, table in pairs.items()}}
    folder = tmp_path_factory.mktemp("blocks")
    data._write(folder, pairs, stats, {"user": list(range(40)), "item": list(range(40))})
    return folder


def test_the_reader_of_its_artifact_ranks_as_the_evaluator_does(name, fitted, blocks, blocks_folder, tmp_path):
    graph, valid, _ = blocks
    params, decoder = dataclasses.asdict(fitted.method.params), decoder_of(type(fitted.method))
    sums = {"train_sha256": graph.train.sha256(), "valid_sha256": valid.sha256()}
    info = {"status": "ok", "uses": GRID.entries[name].uses, "decoder": decoder, "params": params, "device": "cpu"}
    Artifact(fitted.arrays, info | sums | {"dataset": "blocks"}).save(tmp_path / "artifact.npz")
    reader = Reader.open(tmp_path, blocks_folder)
    scorer, users = restored(fitted), np.arange(40)
    scores = scorer.scores(users).numpy()
    ((_, expected),) = rank(scorer, union([graph.train, valid]), users, 10)
    for user, (items, found) in zip(users, reader.recommend_all(users, 10), strict=True):
        np.testing.assert_allclose(found, scores[user][items], rtol=1e-4, atol=1e-5)
        best = expected[user][: len(items)]  # the evaluator fills up with what is masked
        np.testing.assert_allclose(scores[user][items], scores[user][best], rtol=1e-4, atol=1e-5)


def test_it_beats_popularity_on_blocks(fitted, name, blocks):
    if name == "popularity":
        pytest.skip("it is popularity")
    graph, valid, test = blocks
    scores = {}
    for method in (name, "popularity"):
        scorer = restored(fit(method, graph, valid))
        scores[method] = means(score_users(scorer, union([graph.train, valid]), test, [5]))
    assert scores[name]["recall@5"] > 2 * scores["popularity"]["recall@5"]


@pytest.mark.parametrize("name", filter(is_pruned, NAMES))
def test_what_prunes_keeps_the_contract_with_a_third_of_its_numbers(fitted):
    kept = Footprint.measure(fitted.arrays, fitted.method.counted, 0, 0, False).numbers
    assert 0.25 < kept / sum(parameter.numel() for parameter in fitted.method.parameters()) < 0.4


def test_an_unknown_parameter_is_refused_with_the_nearest_known_one(name):
    cls = load_class(GRID.entries[name].uses)
    with pytest.raises(
        ConfigError, match=r"unknown key 'num_layer' in methods\.x\.params; did you mean 'num_layers'\?"
    ):
        from_mapping(cls.Params, {"num_layer": 3}, "methods.x.params")


def test_the_final_rows_asked_for_are_those_of_all(fitted):
    graph = fitted.trainer.graph
    rows = torch.tensor([0, 7, graph.num_users, graph.num_nodes - 1])
    if not isinstance(restored(fitted), DotProducts):
        pytest.skip("no final embeddings")
    with torch.no_grad():
        some, whole = fitted.method.embed(graph.at(rows)), fitted.method.embed(graph)
    assert whole.rows is None and torch.equal(some.ego, whole.ego)
    assert torch.equal(some.final, whole.final if some.rows is None else whole.final[rows])


def test_collapsed_and_full_propagation_give_the_same_loss_and_gradients(fitted):
    form = fitted.method.linear_form(fitted.trainer.graph)
    if form is None:
        pytest.skip("no linear form")
    batch = [torch.from_numpy(ids[:300]) for ids in fitted.trainer.sampler.epoch(np.random.default_rng(1))]
    few = [ids[:9] for ids in batch]  # fewer nodes than the graph has: only their rows are multiplied
    for triples in (batch, few):
        results = []
        for chosen in (form, None):
            step = _Step(fitted.method, fitted.trainer.graph, dataclasses.replace(fitted.trainer.settings, l2=0.1))
            step.collapse(chosen)
            fitted.method.zero_grad()
            loss = step.loss(*triples)
            loss.backward()
            trained = [parameter for parameter in fitted.method.parameters() if parameter.requires_grad]
            results.append((loss.item(), [parameter.grad.clone() for parameter in trained]))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
        for collapsed, full in zip(results[0][1], results[1][1], strict=True):
            np.testing.assert_allclose(collapsed, full, rtol=1e-5, atol=1e-5 * float(full.abs().max()))
