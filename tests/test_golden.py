"""The coarse and fine stages reproduce the reference arrays of ../shared/golden (its README names every key)."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from baselines.legcf import LEGCF
from c2f.codebook import closest_codes
from c2f.data import Interactions
from c2f.decoding import expanded_adjacency
from c2f.evaluate import DotProducts, score_users
from c2f.graph import Graph
from c2f.metaembed import C2FMetaEmbed, closest_bridge, initial_bridge, initial_fine_codes
from c2f.method import TrainingGraph
from c2f.train import TrainingSettings, _Step

FILES = ["c2f_a", "c2f_b"]
STATES = ["coarse", "coarse2", "fine", "fine2"]


@pytest.fixture(scope="module", params=FILES)
def golden(shared, request):
    return np.load(shared / "golden" / f"{request.param}.npz", allow_pickle=False)


def pairs(golden, part):
    num_users, num_items = int(golden["n_users"]), int(golden["n_items"])
    order = np.lexsort((golden[f"{part}_item"], golden[f"{part}_user"]))
    user, item = (golden[f"{part}_{side}"][order].astype(np.int32) for side in ("user", "item"))
    return Interactions(user, item, num_users, num_items)


def sparse_rows(matrix, width):
    """A dense (n, c) assignment as codes (n, width) and weights (n, width)."""
    codes = np.argsort(-matrix, axis=1, kind="stable")[:, :width]
    return torch.from_numpy(codes), torch.from_numpy(np.take_along_axis(matrix, codes, axis=1).astype(np.float32))


def build(golden, state):
    """The method in one golden state, on the golden graph."""
    graph = TrainingGraph(Graph(pairs(golden, "train")), torch.device("cpu"))
    codebook, assign = golden[f"{state}_coarse"], golden[f"{state}_assign"]
    common = {"dim": codebook.shape[1], "num_layers": int(golden["n_layers"]), "item_bias": True}
    per_node = int((assign != 0).sum(axis=1).max())
    if state.startswith("coarse"):
        method = LEGCF(len(assign), len(codebook), LEGCF.Params(codes_per_node=per_node, **common))
        method.codebook = torch.nn.Parameter(torch.from_numpy(codebook))
    else:
        bridge, fine = golden[f"{state}_bridge"], golden[f"{state}_fine"]
        bridges = int((bridge != 0).sum(axis=1).max())
        settings = {"gate": float(golden["gate"]), "threshold": float(golden["threshold"]), "bridges": bridges}
        params = C2FMetaEmbed.Params(codes_per_node=per_node, **settings, **common)
        method = C2FMetaEmbed(len(assign), len(codebook), len(fine), params)
        method.codebook.copy_(torch.from_numpy(codebook))
        method.fine = torch.nn.Parameter(torch.from_numpy(fine))
        codes, weights = sparse_rows(bridge, bridges)
        method.bridge_codes.copy_(codes)
        method.bridge_weights.copy_(weights)
    codes, weights = sparse_rows(assign, per_node)
    method.codes.copy_(codes)
    method.weights.copy_(weights)
    item_bias = golden[f"{state}_linear"][graph.num_users :]
    method.item_bias = torch.nn.Parameter(torch.from_numpy(item_bias.copy()))
    method.graph = graph
    method.state_changed()
    return method, graph


def close(ours, reference, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), reference, rtol=tolerance, atol=tolerance)


def expanded_of(method, graph):
    return method.expanded if isinstance(method, LEGCF) else method.layers.expanded


def dense(matrix):
    return matrix @ torch.eye(matrix.shape[1])


def test_the_adjacency_is_the_reference_one(golden):
    close(Graph(pairs(golden, "train")).adjacency.toarray(), golden["norm_adj"])


@pytest.mark.parametrize("state", STATES)
def test_expanded_graph(golden, state):
    method, graph = build(golden, state)
    expected = golden[f"{state}_graph"]
    ours = dense(expanded_of(method, graph))
    close(ours, expected[: len(ours), : len(ours)])
    assert not expected[len(ours) :].any()  # the coarse stage carries an idle block for fine codes; we do not


@pytest.mark.parametrize("state", STATES)
def test_ego_and_final_embeddings_in_torch_and_from_the_exported_arrays(golden, state):
    method, graph = build(golden, state)
    with torch.no_grad():
        embeddings = method.embed(graph)
    close(embeddings.ego, golden[f"{state}_ego"])
    close(embeddings.final, golden[f"{state}_H"])
    restored = type(method).restore(method.export(), method.params, graph.graph)
    close(restored, golden[f"{state}_H"])


@pytest.mark.parametrize(
    ("state", "collapsed"), [*((state, False) for state in STATES), ("fine", True), ("fine2", True)]
)
def test_loss_and_gradients(golden, state, collapsed):
    method, graph = build(golden, state)
    batch = [torch.from_numpy(golden[f"batch_{part}"].astype(np.int32)) for part in ("user", "pos", "neg")]
    num_users, kappa = graph.num_users, float(golden["l2_factor"])
    step = _Step(method, graph, TrainingSettings(l2=2e-4 * kappa))  # 1e-4 * kappa * Q / B in the convention l2 / 2
    step.collapse(method.linear_form(graph) if collapsed else None)
    loss = step.loss(*batch)
    # In the fine stage the L2 term is a constant without a gradient; it is left out of the loss.
    constant_ego = isinstance(method, C2FMetaEmbed)
    close(loss.item(), golden[f"{state}_bpr"] + (0 if constant_ego else 1e-4 * golden[f"{state}_reg"]))
    loss.backward()
    trained, key = (method.fine, "finetune_embs") if constant_ego else (method.codebook, "centroid_embs")
    for ours, expected in (
        (trained.grad, golden[f"{state}_grad_{key}"]),
        (method.item_bias.grad, golden[f"{state}_grad_fc"].ravel()[num_users:]),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("state", STATES)
def test_regulariser(golden, state):
    method, graph = build(golden, state)
    ego = method.embed(graph).ego.detach()
    nodes = np.concatenate([golden["batch_user"], *(golden[f"batch_{p}"] + graph.num_users for p in ("pos", "neg"))])
    squares = ego[torch.from_numpy(nodes)].square().sum().item()
    close(float(golden["l2_factor"]) * squares / len(golden["batch_user"]), golden[f"{state}_reg"])


@pytest.mark.parametrize("state", STATES)
def test_scores_and_metrics(golden, state):
    method, graph = build(golden, state)
    with torch.no_grad():
        final = method.embed(graph).final
        users, items = final[: graph.num_users], final[graph.num_users :]
        linear = torch.from_numpy(golden[f"{state}_linear"].ravel())
        scores = users @ items.T + linear[: graph.num_users, None] + linear[graph.num_users :]
        close(scores + float(golden[f"{state}_linear_bias"].item()), golden[f"{state}_scores"])
        scorer = DotProducts.of_nodes(final, graph.num_users, method.item_bias)
    for part in ("valid", "test"):
        ours = score_users(scorer, pairs(golden, "train"), pairs(golden, part), [5, 10, 20, 50])
        for metric in ("recall", "ndcg"):
            means = [ours[f"{metric}@{k}"].mean() for k in (5, 10, 20, 50)]
            close(means, golden[f"{state}_{part}_{metric}"])


def test_assignment_update(golden):
    method, _ = build(golden, "coarse")
    with torch.no_grad():
        method.update_assignment()
    assign = np.zeros(golden["coarse_updated_assign"].shape)
    np.put_along_axis(assign, method.codes.numpy(), method.weights.numpy(), axis=1)
    close(assign, golden["coarse_updated_assign"])
    ours = dense(method.expanded)
    close(ours, golden["coarse_updated_graph"][: len(ours), : len(ours)])


def test_the_update_in_blocks_equals_the_whole_product(golden):
    method, _ = build(golden, "coarse")
    _, nodes, codebook = (x.detach() for x in method._propagated())
    whole = nodes @ torch.linalg.pinv(codebook)  # (N, c), the slow and obvious form
    values, codes = torch.topk(whole, 2, dim=1)
    ours = closest_codes(nodes, codebook, 2, rows_at_once=7)
    assert torch.equal(ours[0], codes)
    close(ours[1], values.clamp_min(0))


def test_bridging_update(golden):
    method, _ = build(golden, "fine")
    with torch.no_grad():
        method.update_bridge()
    bridge = np.zeros(golden["fine_updated_bridge"].shape)
    np.put_along_axis(bridge, method.bridge_codes.numpy(), method.bridge_weights.numpy(), axis=1)
    close(bridge, golden["fine_updated_bridge"])
    close(dense(method.layers.expanded), golden["fine_updated_graph"])


def test_the_gram_form_of_the_bridging_update_equals_the_dense_products():
    generator = torch.Generator().manual_seed(1)
    nodes, coarse, fine = (torch.randn(n, 6, generator=generator) for n in (50, 5, 4))
    affinity = (nodes @ torch.linalg.pinv(coarse)).T @ (nodes @ torch.linalg.pinv(fine))  # via (N, c) and (N, f)
    values, codes = torch.topk(torch.softmax(affinity, dim=1), 2, dim=1)
    ours = closest_bridge(nodes, coarse, fine, 2)
    assert torch.equal(ours[0], codes)
    close(ours[1], values)


def test_the_initial_bridge_equals_the_dense_construction():
    generator = np.random.default_rng(3)
    num_nodes, num_coarse, num_fine = 40, 6, 5
    assign = np.where(generator.random((num_nodes, num_coarse)) < 0.4, generator.random((num_nodes, num_coarse)), 0)
    parts = generator.integers(num_fine, size=num_nodes)
    start = np.full((num_nodes, num_fine), 0.5 / (num_fine - 1))
    start[np.arange(num_nodes), parts] = 0.5
    shared = assign.T @ start
    softmax = np.exp(shared) / np.exp(shared).sum(axis=1, keepdims=True)
    codes, weights = initial_bridge(sp.csr_array(assign), parts, num_fine, C2FMetaEmbed.Params(bridges=3))
    order = np.argsort(-softmax, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(codes, order)
    close(weights, np.take_along_axis(softmax, order, axis=1))


def test_fine_codes_start_like_the_reference_ones(golden):
    # The published start draws from a global generator: compare what does not depend on the draw.
    codebook = golden["coarse2_coarse"]
    reference = golden["init_fine"]
    width = int((reference != 0).sum(axis=1).max())
    params = C2FMetaEmbed.Params(dim=codebook.shape[1], components=width)
    ours = initial_fine_codes(codebook, len(reference), params, np.random.default_rng(0))
    assert ours.shape == reference.shape
    assert ((ours != 0).sum(axis=1) <= width).all()
    assert 0.3 < np.abs(ours).mean() / max(np.abs(reference).mean(), 1e-12) < 3


def test_expanded_entries_lie_between_0_and_1(golden):
    graph = Graph(pairs(golden, "train"))
    assignment = sp.csr_array(golden["coarse_assign"])
    expanded = expanded_adjacency(graph.adjacency, assignment)
    assert expanded.min() >= 0
    assert expanded.max() <= 1
    assert abs(expanded - expanded.T).max() == 0
