"""LEGCF: a small codebook, a sparse assignment, and a graph in which the codes are nodes too.

Liang et al., "Lightweight Embeddings for Graph Collaborative Filtering", SIGIR 2024, https://arxiv.org/abs/2403.18479.
It is also the coarse stage of C2F-MetaEmbed (config entry c2f-coarse).

    X = tanh(S M)                              layer-0 rows of the N users and items from c codes M, t per row of S
    G = D^-1/2 [[A, S], [S^T, 0]] D^-1/2       expanded graph; A is the normalised adjacency, normalised again
    [H; H_M] = mean over l = 0..L of G^l [X; M]
    S <- the t largest entries per row of H pinv(H_M)      once per epoch, in the second stage

Deviations, with reasons:
* user and global biases are dropped: they change neither the loss nor a ranking;
* the item bias starts at 0, not at N(0, 1), which only adds noise to early rankings; it is stored and charged;
* entries of S that come out negative are set to 0: the published code stops, or makes NaN, when one appears;
* pinv is computed in float64 with a stated cut-off (1e-6) and in blocks of rows: no (N, c) matrix is held.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from baselines import decoders
from c2f.api import (
    Choice,
    Codes,
    EmbeddingMethod,
    Embeddings,
    LinearForm,
    SparseMatrix,
    anchored_assignment,
    as_stored,
    assignment_matrix,
    basis_of,
    check,
    closest_codes,
    coarse_codes,
    expanded_adjacency,
    id_array,
    load_start,
    pack,
    propagate,
    row_bytes,
    unpack,
)


class LEGCF(EmbeddingMethod):
    """c codes of `dim` numbers, and per node t code ids and weights, of the types `storage` and `weight_storage`.

    Raises BudgetError below one code (t codes where t is larger) beside the assignment and the item bias.
    """

    counted = ("codebook",)
    kinds = {"codebook": "codebook", "weights": "assignment"}
    search_space = {"anchor_weight": Choice((0.5, 0.6, 0.9))}  # those of its README (METHODS.md 3.3)
    codes: torch.Tensor
    weights: torch.Tensor

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """dim: embedding size d; codes_per_node: t; anchor_weight: weight of the METIS code at the start (w*).

        activation: tanh as published, or linear (another, cheaper model); num_codes: c, or null to fill the budget;
        codebook_share: the share of the budget's codes to use, the rest being left to a later stage;
        anchors: where the first assignment comes from; update: whether the second stage estimates S anew;
        first_stage_epochs: at most so many epochs with the first assignment, null to wait for validation;
        train_codes: whether a run that starts from another trains its codes on, or the item bias alone;
        storage, weight_storage: of the codebook's numbers and the weights, after training in float32; of 8 bits: with a
        float16 scale for each code, and for each of the t places.
        """

        dim: int = 128
        codes_per_node: int = 2
        anchor_weight: float = 0.5
        activation: Literal["tanh", "linear"] = "tanh"
        num_codes: int | None = None
        codebook_share: float = 1.0
        anchors: Literal["metis", "random"] = "metis"
        update: bool = True
        first_stage_epochs: int | None = None
        train_codes: bool = True
        storage: Literal["float32", "float16", "int8"] = "float32"
        weight_storage: Literal["float32", "float16", "uint8"] = "float32"

        def __post_init__(self):
            super().__post_init__()
            check(self.dim >= 1, "dim", self.dim, "at least 1")
            check(self.codes_per_node >= 1, "codes_per_node", self.codes_per_node, "at least 1")
            check(0 < self.anchor_weight <= 1, "anchor_weight", self.anchor_weight, "above 0 and at most 1")
            check(0 < self.codebook_share <= 1, "codebook_share", self.codebook_share, "above 0 and at most 1")
            enough = self.num_codes is None or self.num_codes >= self.codes_per_node
            some = self.first_stage_epochs is None or self.first_stage_epochs >= 1
            trained = self.train_codes or self.item_bias
            check(trained, "train_codes", self.train_codes, "true where there is no item_bias to train")
            check(some, "first_stage_epochs", self.first_stage_epochs, "at least 1, or null")
            check(enough, "num_codes", self.num_codes, "at least codes_per_node, or null")

    @classmethod
    def from_budget(cls, budget, graph, params):
        return cls(graph.num_nodes, coarse_codes(budget, graph, params), params)

    def __init__(self, num_nodes, num_codes, params):
        super().__init__(params)
        self.codebook = torch.nn.Parameter(torch.randn(num_codes, params.dim))
        self.register_buffer("codes", torch.zeros(num_nodes, params.codes_per_node, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(num_nodes, params.codes_per_node))

    def fit(self, trainer, start=None):
        self.graph = trainer.graph
        self.to(trainer.device)
        update = self.update_assignment if self.params.update and self.params.train_codes else None
        if start is not None:  # a control: what does more training give, without anything new?
            load_start(self, start, ["codebook", "codes", "weights"])
            self.state_changed()
            self.codebook.requires_grad_(self.params.train_codes)
            trainer.run(self, "continued", each_epoch=update)
        else:
            self.assign(*self._first_assignment(trainer))
            if update is not None:
                trainer.run(self, "fixed assignment", keep="last", max_epochs=self.params.first_stage_epochs)
                trainer.run(self, "updated assignment", each_epoch=update, start_counts=False)
            else:
                trainer.run(self, "fixed assignment")
        with torch.no_grad():
            self.codebook.copy_(as_stored(self.codebook, self.params.storage))
        self.assign(self.codes, as_stored(self.weights, self.params.weight_storage, axis=0))

    def _first_assignment(self, trainer):
        """Return codes and weights (N, t): the code of the node's part, and t - 1 others at random (METHODS.md 3.3)."""
        num_nodes, num_codes = len(self.codes), len(self.codebook)
        generator = trainer.generator("assignment")
        if self.params.anchors == "metis":
            anchors, self.details["partition"] = trainer.partition(num_codes)
        else:
            anchors = generator.integers(num_codes, size=num_nodes)
        per_node, anchor_weight = self.params.codes_per_node, self.params.anchor_weight
        assignment = anchored_assignment(anchors, num_codes, per_node, anchor_weight, generator)
        return map(torch.from_numpy, assignment)

    def assign(self, codes, weights):
        """Replace S by weights (N, t) at codes (N, t), and rebuild the expanded graph."""
        self.codes.copy_(codes)
        self.weights.copy_(weights)
        self.state_changed()

    def state_changed(self):
        assignment = assignment_matrix(self.codes.cpu(), self.weights.cpu(), len(self.codebook))
        device = self.codebook.device
        self.assignment = SparseMatrix(assignment, device)
        self.expanded = SparseMatrix(expanded_adjacency(self.graph.adjacency, assignment), device, symmetric=True)

    def update_assignment(self):
        """One closed-form update of S from the propagated nodes and codes (METHODS.md 3.6)."""
        _, nodes, codebook = self._propagated()
        self.assign(*closest_codes(nodes, codebook, self.params.codes_per_node))

    def embed(self, graph):
        ego, final, _ = self._propagated(graph.rows)
        return Embeddings(ego, final, graph.rows)

    def _propagated(self, rows=None):
        return decoders.composed_forward(self.assignment, self.codebook, self.expanded, self.params, rows)

    def linear_form(self, graph):
        if not self.codebook.requires_grad:  # all is constant but the item bias
            return LinearForm(0, lambda: (self.weights[:, :0], self._propagated()[1]), lambda: self.codebook[:0])
        if self.params.activation != "linear":
            return None

        def final(codebook):
            start = torch.cat([self.assignment @ codebook, codebook])  # (N + c, w)
            return propagate(start, self.expanded, self.params.num_layers)[: len(self.codes)]

        def basis():
            return basis_of(final, len(self.codebook), len(self.codes), graph.device), None

        return LinearForm(len(self.codebook), basis, lambda: self.codebook, composition=self.assignment)

    def leftover(self, budget):
        share, dim = self.params.codebook_share, self.params.dim
        if self.params.num_codes is not None:
            return f"`num_codes` = {self.params.num_codes} sets its size"
        if share < 1:
            return f"`codebook_share` = {share}: the rest is for the fine codes of the run that starts from it"
        if len(self.codebook) == len(self.codes):
            return "there are as many codes as users and items: more are of no use"
        return budget.price("one more code", numbers=dim, nbytes=row_bytes(dim, self.params.storage))

    def export(self):
        return {
            **pack("codebook", self.codebook.detach().cpu().numpy(), self.params.storage),
            "codes": id_array(self.codes.cpu(), len(self.codebook)),
            **pack("weights", self.weights.cpu().numpy(), self.params.weight_storage, axis=0),
        }

    @classmethod
    def code_arrays(cls, arrays, params):
        return {"nodes": [Codes(unpack("codebook", arrays), arrays["codes"], unpack("weights", arrays))]}

    restore = staticmethod(decoders.composed)
