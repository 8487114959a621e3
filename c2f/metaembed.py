"""C2F-MetaEmbed, fine stage: sparse fine codes that refine a frozen coarse codebook through a small bridge.

"Coarse-to-fine meta-embeddings", 2025, https://arxiv.org/abs/2501.11870. The coarse stage is LEGCF exactly (config
entry c2f-coarse); this stage starts from its artifact (codebook E_c, assignment S1, item bias).

    E = soft(E_f; threshold)         sparse fine codes (f, d); only E_f and the item bias are trained
    layer 0:  U = tanh(S1 E_c),  C = g S2 E + (1 - g) E_c,  F = tanh(E)
    G = D^-1/2 [[A, S1, 0], [S1^T, 0, S2], [0, S2^T, 0]] D^-1/2
    one layer:  (U', C', F') = G (U, C, F);  C = (1 - g) C' + (2g - 1) S2 F';  U = U' + S1 (C - C');  F = F'
    H = mean of U over the layers 0..L
    S2 <- the k largest per row of softmax((pinv(H_C))^T H^T H pinv(H_F))      once per epoch, in the second stage

With S1 and S2 fixed everything but E enters as a constant, so H = H_0 + K_1 E + K_2 tanh(E): see `linear_form`.

Deviations, with reasons:
* `compose: released` is the published code, where layer-0 nodes ignore the fine codes; `described` is the paper's text,
  U = tanh(S1 C). They are different models;
* the initial bridge is the same to rounding, but made without an (N, f) matrix: a row softmax ignores the constant part
  of the published dense start; the update uses the (d, d) Gram matrix of H instead of two (N, c) products;
* the L2 term is inert in `released` (layer-0 nodes are constant there), as published;
* user and global biases are dropped: they change neither the loss nor a ranking.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from baselines.decoders import Layers, coarse_to_fine, fine_codes, fine_forward
from c2f.api import (
    BudgetError,
    Codes,
    EmbeddingMethod,
    Embeddings,
    Float,
    Int,
    LinearForm,
    SparseMatrix,
    activate,
    as_stored,
    assignment_bytes,
    assignment_matrix,
    basis_of,
    check,
    coarse_codes,
    expanded_adjacency,
    id_array,
    load_start,
    pack,
    pack_sparse,
    pseudo_inverse,
    row_bytes,
    soft_threshold,
    unpack,
)


class C2FMetaEmbed(EmbeddingMethod):
    """c coarse codes and their assignment as in LEGCF, f sparse fine codes, and a bridge of k fine per coarse code.

    Fine codes are charged as if dense when the size is chosen, and as stored when it is measured.
    Raises BudgetError where the coarse stage and one fine code do not fit.
    """

    counted = ("codebook", "fine")
    kinds = {
        "codebook": "codebook",
        "fine": "codebook",
        "weights": "assignment",
        "bridge_weights": "assignment",
    }
    search_space = {"gate": Float(0.05, 0.8), "threshold": Float(0.25, 2.0), "bridges": Int(2, 8)}
    codebook: torch.Tensor
    codes: torch.Tensor
    weights: torch.Tensor
    bridge_codes: torch.Tensor
    bridge_weights: torch.Tensor

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """dim, codes_per_node, num_codes, codebook_share, activation: as in the coarse stage that it starts from.

        fine_codes: f, or null to fill the budget; bridges: k; gate: g; threshold: tau of the soft threshold;
        components: q of SparsePCA; compose, init: see the module; anchors: where the first bridge comes from;
        update: whether the second stage estimates S2 anew; train_bias: whether the item bias is trained on;
        storage, weight_storage: of both codebooks' numbers and of all weights, after training in float32.
        """

        dim: int = 128
        codes_per_node: int = 2
        num_codes: int | None = None
        codebook_share: float = 0.75
        activation: Literal["tanh", "linear"] = "tanh"
        fine_codes: int | None = None
        bridges: int = 4
        gate: float = 0.2
        threshold: float = 1.0
        components: int = 80
        compose: Literal["released", "described"] = "released"
        init: Literal["sparse_pca", "components", "random"] = "sparse_pca"
        anchors: Literal["metis", "random"] = "metis"
        update: bool = True
        train_bias: bool = True
        storage: Literal["float32", "float16", "int8"] = "float32"
        weight_storage: Literal["float32", "float16", "uint8"] = "float32"

        def __post_init__(self):
            super().__post_init__()
            for name in ("dim", "codes_per_node", "bridges", "components"):
                check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
            for name in ("num_codes", "fine_codes"):
                value = getattr(self, name)
                check(value is None or value >= 1, name, value, "at least 1, or null")
            check(0 <= self.gate <= 1, "gate", self.gate, "between 0 and 1")
            check(self.threshold >= 0, "threshold", self.threshold, "at least 0")
            check(0 < self.codebook_share < 1, "codebook_share", self.codebook_share, "above 0 and below 1")

    @classmethod
    def from_budget(cls, budget, graph, params):
        def used(coarse, fine):
            ids, weights = (id_array([], count).itemsize for count in (coarse, fine)), params.weight_storage
            assignment = assignment_bytes(graph.num_nodes, params.codes_per_node, next(ids), weights)
            bridge = assignment_bytes(coarse, min(params.bridges, fine), next(ids), weights)
            nbytes = (coarse + fine) * row_bytes(params.dim, params.storage) + assignment + bridge
            return budget.measure(numbers=params.dim * (coarse + fine), nbytes=nbytes)

        # Climb to the least amount that holds the coarse stage, as its own run sizes it, and the fine codes.
        amount, fine = budget.amount, params.fine_codes or 1
        while True:
            try:
                coarse = coarse_codes(replace(budget, amount=amount), graph, params)
            except BudgetError as error:
                amount = error.needs
                continue
            if used(coarse, fine) <= amount:
                break
            amount = used(coarse, fine)
        if amount > budget.amount:
            raise BudgetError(needs=int(amount), budget=budget)
        if params.fine_codes is None:
            budget.require_size()
            room = budget.amount - used(coarse, 1)
            fine = 1 + int(room // budget.measure(numbers=params.dim, nbytes=row_bytes(params.dim, params.storage)))
            while used(coarse, fine) > budget.amount:  # more fine codes make the bridge wider, up to k
                fine -= 1
        return cls(graph.num_nodes, coarse, fine, params)

    def __init__(self, num_nodes, num_coarse, num_fine, params):
        super().__init__(params)
        self.fine = torch.nn.Parameter(torch.zeros(num_fine, params.dim))
        self.register_buffer("codebook", torch.zeros(num_coarse, params.dim))
        self.register_buffer("codes", torch.zeros(num_nodes, params.codes_per_node, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(num_nodes, params.codes_per_node))
        bridges = min(params.bridges, num_fine)
        self.register_buffer("bridge_codes", torch.zeros(num_coarse, bridges, dtype=torch.int64))
        self.register_buffer("bridge_weights", torch.zeros(num_coarse, bridges))

    def fit(self, trainer, start=None):
        load_start(self, start, ["codebook", "codes", "weights"])
        if self.item_bias is not None:
            self.item_bias.requires_grad_(self.params.train_bias)
        self.graph = trainer.graph
        self.to(trainer.device)
        if self.params.anchors == "metis":
            parts, self.details["partition"] = trainer.partition(len(self.fine))
        else:
            parts = trainer.generator("bridge").integers(len(self.fine), size=len(self.codes))
        seed = int(trainer.generator("sparse pca").integers(2**31))
        fine = initial_fine_codes(self.codebook.cpu().numpy(), len(self.fine), self.params, np.random.default_rng(seed))
        with torch.no_grad():
            self.fine.copy_(torch.from_numpy(fine))
        assignment = assignment_matrix(self.codes.cpu(), self.weights.cpu(), len(self.codebook))
        self.bridge_to(*initial_bridge(assignment, parts, len(self.fine), self.params))
        self.details["fine_nonzero_at_start"] = int((self._sparse_fine() != 0).sum())
        if self.params.update:
            trainer.run(self, "fixed bridge", keep="last")
            trainer.run(self, "updated bridge", each_epoch=self.update_bridge, start_counts=False)
        else:
            trainer.run(self, "fixed bridge")
        self.round_to_storage()
        self.details["fine_nonzero"] = int((self._sparse_fine() != 0).sum())

    def round_to_storage(self):
        """Make of everything what will be stored of it."""
        storage, weight_storage, threshold = self.params.storage, self.params.weight_storage, self.params.threshold
        with torch.no_grad():
            self.codebook.copy_(as_stored(self.codebook, storage))
            self.weights.copy_(as_stored(self.weights, weight_storage, axis=0))
            if storage != "float32":
                sparse = as_stored(self._sparse_fine(), storage)
                self.fine.copy_(sparse + threshold * torch.sign(sparse))
        self.bridge_to(self.bridge_codes, as_stored(self.bridge_weights, weight_storage, axis=0))

    def bridge_to(self, codes, weights):
        """Replace S2 by weights (c, k) at codes (c, k), and rebuild the expanded graph."""
        self.bridge_codes.copy_(torch.as_tensor(codes))
        self.bridge_weights.copy_(torch.as_tensor(weights))
        self.state_changed()

    def state_changed(self):
        assignment = assignment_matrix(self.codes.cpu(), self.weights.cpu(), len(self.codebook))
        bridge = assignment_matrix(self.bridge_codes.cpu(), self.bridge_weights.cpu(), len(self.fine))
        expanded = expanded_adjacency(self.graph.adjacency, assignment, bridge)
        device = self.fine.device
        self.layers = Layers(
            SparseMatrix(assignment, device),
            SparseMatrix(bridge, device),
            SparseMatrix(expanded, device, symmetric=True),
        )

    def update_bridge(self):
        """One closed-form update of S2 from the propagated nodes, coarse and fine codes (METHODS.md 4.6)."""
        _, nodes, coarse, fine = fine_forward(self.layers, self.codebook, self._sparse_fine(), self.params)
        self.bridge_to(*closest_bridge(nodes, coarse, fine, self.bridge_codes.shape[1]))

    def _sparse_fine(self):
        return soft_threshold(self.fine, self.params.threshold)  # (f, d)

    def embed(self, graph):
        ego, final, _, _ = fine_forward(self.layers, self.codebook, self._sparse_fine(), self.params)
        return Embeddings(ego, final)

    def linear_form(self, graph):
        if self.params.compose != "released":
            return None
        num_fine, gate = len(self.fine), self.params.gate

        def final(nodes, coarse, fine):
            return self.layers.propagate(nodes, coarse, fine, gate, self.params.num_layers)[0]

        def of_fine_codes(rows):  # (2f, w): E, which reaches the nodes through the bridge, over tanh(E)
            nodes = rows.new_zeros(len(self.codes), rows.shape[1])
            return final(nodes, gate * (self.layers.bridge @ rows[:num_fine]), rows[num_fine:])

        def basis():
            nodes = activate(self.layers.assignment @ self.codebook, self.params.activation)  # (N, d)
            offset = final(nodes, (1 - gate) * self.codebook, torch.zeros_like(self.fine))
            return basis_of(of_fine_codes, 2 * num_fine, len(nodes), nodes.device), offset

        def rows():
            sparse = self._sparse_fine()
            return torch.cat([sparse, activate(sparse, self.params.activation)])  # (2f, d)

        return LinearForm(2 * num_fine, basis, rows)

    def leftover(self, budget):
        if self.params.fine_codes is not None:
            return f"`fine_codes` = {self.params.fine_codes} sets its size"
        zeros = self.fine.numel() - int((self._sparse_fine() != 0).sum())
        return f"fine codes are sized as if dense, and {zeros:,} of their {self.fine.numel():,} numbers are 0"

    def export(self):
        storage, weight_storage = self.params.storage, self.params.weight_storage
        fine = pack("fine", self._sparse_fine().detach().cpu().numpy(), storage)
        return {
            **pack("codebook", self.codebook.cpu().numpy(), storage),
            "codes": id_array(self.codes.cpu(), len(self.codebook)),
            **pack("weights", self.weights.cpu().numpy(), weight_storage, axis=0),
            **fine,
            **pack_sparse("fine", fine["fine"]),
            "bridge_codes": id_array(self.bridge_codes.cpu(), len(self.fine)),
            **pack("bridge_weights", self.bridge_weights.cpu().numpy(), weight_storage, axis=0),
        }

    @classmethod
    def code_arrays(cls, arrays, params):
        codebook, weights, bridge_weights = (unpack(name, arrays) for name in ("codebook", "weights", "bridge_weights"))
        return {
            "nodes": [Codes(codebook, arrays["codes"], weights)],
            "bridge": [
                Codes(fine_codes(arrays, params), arrays["bridge_codes"], bridge_weights)
            ],  # what coarse codes are made of
        }

    restore = staticmethod(coarse_to_fine)


def initial_fine_codes(codebook, num_fine, params, generator):
    """Return the (f, d) start of E_f from the coarse codebook (c, d): METHODS.md 4.4, steps 1 to 3.

    sparse_pca: ridge codes of f coarse rows drawn with replacement, each written to its own random choice of positions;
    components: f sparse loadings of the coarse codebook, scaled to its rows; random: normal of the codebook's spread.
    """
    dim = params.dim
    if params.init == "random":
        return (generator.standard_normal((num_fine, dim)) * codebook.std()).astype(np.float32)
    from sklearn.decomposition import SparsePCA

    seed = int(generator.integers(2**31))
    if params.init == "components":
        pca = SparsePCA(n_components=num_fine, random_state=seed).fit(codebook)
        norms = np.linalg.norm(pca.components_, axis=1, keepdims=True)
        size = np.linalg.norm(codebook, axis=1).mean()
        return (pca.components_ * size / np.maximum(norms, 1e-12)).astype(np.float32)
    rows = codebook[generator.integers(len(codebook), size=num_fine)]
    width = min(dim, params.components)
    values = SparsePCA(n_components=width, random_state=seed).fit(rows).transform(rows)  # (f, q)
    places = np.sort(np.argsort(generator.random((num_fine, dim)), axis=1)[:, :width], axis=1)
    fine = np.zeros((num_fine, dim), dtype=np.float32)
    np.put_along_axis(fine, places, values.astype(np.float32), axis=1)
    return fine


def initial_bridge(assignment, parts, num_fine, params):
    """Return codes (c, k) and weights (c, k) of the first S2 from a partition of the nodes into f parts.

    W = row softmax(beta * S1^T onehot(parts)), the k largest kept as they are; beta = 0.5 - 0.5 / (f - 1), and 1 for
    t = 1. Equal to the published dense start, whose constant background a row softmax ignores (METHODS.md 4.4).
    """
    num_nodes = assignment.shape[0]
    onehot = assignment_matrix(np.asarray(parts)[:, None], np.ones((num_nodes, 1)), num_fine)
    shared = (assignment.T @ onehot).toarray()  # (c, f)
    beta = 1.0 if params.codes_per_node == 1 or num_fine == 1 else 0.5 - 0.5 / (num_fine - 1)
    return largest_of_softmax(torch.from_numpy(beta * shared.astype(np.float64)), min(params.bridges, num_fine))


def closest_bridge(nodes, coarse, fine, bridges):
    """Return codes (c, k) and weights (c, k) of the updated S2 from propagated nodes, coarse and fine codes.

    Q = pinv(H_C)^T (H^T H) pinv(H_F), equal to (H pinv(H_C))^T (H pinv(H_F)) without an (N, c) matrix.
    """
    gram = nodes.double().T @ nodes.double()  # (d, d)
    affinity = pseudo_inverse(coarse).T @ gram @ pseudo_inverse(fine)  # (c, f)
    return largest_of_softmax(affinity, bridges)


def largest_of_softmax(affinity, bridges):
    """Return the k largest entries of each row's softmax, not renormalised: codes (c, k), float32 weights (c, k).

    The softmax is taken in float32, as published, so entries far below the largest become 0. Ties: lowest code first.
    """
    weights = torch.softmax(affinity.float(), dim=1)
    order = torch.sort(weights, dim=1, descending=True, stable=True)
    return order.indices[:, :bridges], order.values[:, :bridges]
