"""C2F's fine stage against the published sequence of steps, its options, and its dead zone."""

import dataclasses

import numpy as np
import pytest
import torch

from baselines.decoders import Layers, fine_forward
from c2f.budget import Budget
from c2f.errors import ConfigError, MethodError
from c2f.evaluate import means, score_users, union
from c2f.metaembed import C2FMetaEmbed, initial_fine_codes
from c2f.method import build, export_arrays, load_class, load_start
from c2f.train import Trainer, TrainingSettings

SETTINGS = TrainingSettings(lr=0.05, batch_size=512, max_epochs=10, evaluate_every=2, device="cpu")
COARSE = {"dim": 8, "num_codes": 15, "item_bias": True}
FINE = C2FMetaEmbed.Params(**COARSE, fine_codes=6, components=5, threshold=0.2)


def published_layers(layers, nodes, coarse, fine, gate, num_layers):
    """The mean over layers, step by step as published: message, subtract, gate, add (METHODS.md 4.5)."""
    total = nodes, coarse, fine
    for _ in range(num_layers):
        moved = layers.expanded @ np.concatenate([nodes, coarse, fine])
        nodes, coarse, fine = np.split(moved, [len(nodes), len(nodes) + len(coarse)])
        nodes = nodes - layers.assignment @ coarse
        coarse = coarse - layers.bridge @ fine
        coarse = gate * (layers.bridge @ fine) + (1 - gate) * coarse
        nodes = nodes + layers.assignment @ coarse
        total = tuple(old + new for old, new in zip(total, (nodes, coarse, fine), strict=True))
    return [part / (num_layers + 1) for part in total]


@pytest.fixture
def state():
    """Random dense layers of 9 nodes, 4 coarse and 3 fine codes, with a codebook and fine codes of 5 numbers."""
    generator = np.random.default_rng(0)
    layers = Layers(generator.random((9, 4)), generator.random((4, 3)), generator.random((16, 16)) / 8)
    return layers, generator.standard_normal((4, 5)), generator.standard_normal((3, 5))


@pytest.mark.parametrize("gate", [0.0, 0.2, 1.0])
def test_the_closed_form_of_a_layer_equals_the_published_sequence(state, gate):
    layers, codebook, fine = state
    nodes = np.tanh(layers.assignment @ codebook)
    ours = layers.propagate(nodes, codebook, fine, gate, 3)
    for part, expected in zip(ours, published_layers(layers, nodes, codebook, fine, gate, 3), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-12)


def test_released_nodes_ignore_the_fine_codes_and_described_nodes_are_composed_of_the_gated_ones(state):
    layers, codebook, fine = state
    gated = 0.2 * (layers.bridge @ fine) + 0.8 * codebook
    for compose, composed in (("released", codebook), ("described", gated)):
        params = C2FMetaEmbed.Params(dim=5, gate=0.2, compose=compose)
        ego, final, _, _ = fine_forward(layers, codebook, fine, params)
        np.testing.assert_allclose(ego, np.tanh(layers.assignment @ composed))
        expected = published_layers(layers, ego, gated, np.tanh(fine), 0.2, 3)
        np.testing.assert_allclose(final, expected[0], atol=1e-12)


def fit(blocks, params, seed=1):
    """A coarse run and a fine run that starts from it, on the toy data."""
    graph, valid, _ = blocks
    coarse_class = load_class("baselines.legcf:LEGCF")
    shared = {field.name for field in dataclasses.fields(coarse_class.Params)} & {"dim", "num_codes", "item_bias"}
    options = {name: getattr(params, name) for name in shared} | {"codes_per_node": params.codes_per_node}
    coarse = build(coarse_class, Budget.parse("full"), graph, coarse_class.Params(**options), seed)
    coarse.fit(Trainer(graph, valid, SETTINGS, seed))
    fine = build(C2FMetaEmbed, Budget.parse("full"), graph, params, seed)
    fine.fit(Trainer(graph, valid, SETTINGS, seed), export_arrays(coarse))
    return fine


@pytest.mark.parametrize(
    "change",
    [
        {"compose": "described"},
        {"init": "components"},
        {"init": "random"},
        {"codes_per_node": 1},
        {"update": False},
        {"bridges": 9},
        {"item_bias": False},
        {"fine_codes": 1},
        {"num_layers": 1},
    ],
    ids=str,
)
def test_every_option_trains_restores_from_its_arrays_and_ranks_the_held_out_items_first(blocks, change):
    graph, valid, test = blocks
    params = dataclasses.replace(FINE, **change)
    method = fit(blocks, params)
    scorer = C2FMetaEmbed.scorer(export_arrays(method), params, graph, torch.device("cpu"))
    with torch.no_grad():
        final = method.embed(None).final.numpy()
    np.testing.assert_allclose(np.vstack([scorer.users, scorer.items])[:, : params.dim], final, atol=2e-5)
    scores = means(score_users(scorer, union([graph.train, valid]), test, [1]))
    assert scores["recall@1"] > 0.5  # one unseen item of the user's parity is left, of 21 unseen ones


def test_entries_inside_the_dead_zone_never_move_and_the_support_only_shrinks(blocks):
    graph, valid, _ = blocks
    method = fit(blocks, FINE)
    start = initial_fine_codes(method.codebook.numpy(), 6, FINE, np.random.default_rng(int(trainer_seed(graph, valid))))
    dead = np.abs(start) <= FINE.threshold
    final = method.fine.detach().numpy()
    np.testing.assert_array_equal(final[dead], start[dead])
    assert method.details["fine_nonzero"] <= method.details["fine_nonzero_at_start"] == (~dead).sum()


def trainer_seed(graph, valid):
    return Trainer(graph, valid, SETTINGS, 1).generator("sparse pca").integers(2**31)


def test_fine_codes_start_as_codes_at_random_places_sparse_loadings_or_noise():
    codebook = np.random.default_rng(0).standard_normal((12, 10)).astype(np.float32)
    starts = {
        init: initial_fine_codes(
            codebook, 4, C2FMetaEmbed.Params(dim=10, components=6, init=init), np.random.default_rng(1)
        )
        for init in ("sparse_pca", "components", "random")
    }
    assert all(start.shape == (4, 10) and start.dtype == np.float32 for start in starts.values())
    assert ((starts["sparse_pca"] != 0).sum(axis=1) <= 6).all()  # 6 codes a row, each row at its own positions
    assert len({tuple(np.flatnonzero(row)) for row in starts["sparse_pca"]}) > 1
    assert (starts["components"] == 0).any()
    assert (starts["random"] != 0).all()


def test_a_fine_stage_without_its_coarse_run_or_with_one_of_another_size_says_what_to_change(blocks):
    graph, _, _ = blocks
    method = build(C2FMetaEmbed, Budget.parse("full"), graph, FINE, 1)
    names = ["codebook", "codes", "weights"]
    with pytest.raises(MethodError, match="give its entry `starts_from`"):
        load_start(method, None, names)
    arrays = export_arrays(fit(blocks, dataclasses.replace(FINE, num_codes=12)))
    with pytest.raises(MethodError, match=r"starts from has codebook \(12, 8\), this one expects \(15, 8\)"):
        load_start(method, arrays, names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": 1.5}, "gate = 1.5, but it must be between 0 and 1"),
        ({"threshold": -1.0}, "threshold = -1.0, but it must be at least 0"),
        ({"bridges": 0}, "bridges = 0, but it must be at least 1"),
        ({"fine_codes": 0}, "fine_codes = 0, but it must be at least 1, or null"),
    ],
)
def test_a_parameter_out_of_range_is_named_with_its_range(change, message):
    with pytest.raises(ConfigError, match=message):
        C2FMetaEmbed.Params(**change)
