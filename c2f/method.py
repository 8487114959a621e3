"""The contract between the engine and a method: what a baseline implements, and how the engine builds one."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from c2f.budget import Budget
from c2f.decoding import propagate, unpack
from c2f.diagnostics import Codes
from c2f.errors import BudgetError, ConfigError, MethodError, did_you_mean
from c2f.evaluate import DotProducts, Scorer
from c2f.graph import Graph
from c2f.ops import SparseMatrix
from c2f.seeds import seed_for
from c2f.settings import check
from c2f.tuning import Dimension


@dataclass(frozen=True)
class Embeddings:
    """ego: (N, d) layer-0 rows, what L2 acts on; final: (N, d') rows whose dot products are the scores, users first.

    rows: graph.rows where `final` has these rows alone, (k, d'); None where it has all of them.
    """

    ego: Any
    final: Any
    rows: torch.Tensor | None = None


@dataclass(frozen=True)
class LinearForm:
    """The final embeddings as offset + basis @ rows(), for a method whose trainable part enters linearly.

    num_rows: m; basis: makes the dense, already propagated (N, m) tensor and the (N, d) offset or None, both constant
    until the method's assignment changes; rows: returns the (m, d) differentiable codebook rows; composition: (N, m)
    with ego = composition @ rows(), None where ego is constant. The engine decides by m whether to use it.
    """

    num_rows: int
    basis: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
    rows: Callable[[], torch.Tensor]
    composition: SparseMatrix | None = None


@dataclass
class TrainingGraph:
    """The training graph on a device: what `embed` and `linear_form` are given.

    rows: (k,) ids of the nodes whose final embeddings are asked for; None for all of them.
    """

    graph: Graph
    device: torch.device
    operator: SparseMatrix = None  # type: ignore[assignment]  # made of the graph
    rows: torch.Tensor | None = None

    def __post_init__(self):
        if self.operator is None:
            self.operator = SparseMatrix(self.graph.adjacency, self.device, symmetric=True)

    def __getattr__(self, name):
        return getattr(self.graph, name)

    def at(self, rows: torch.Tensor | None) -> "TrainingGraph":
        """Return this graph, with these rows asked for."""
        return replace(self, rows=rows)


class EmbeddingMethod(torch.nn.Module):
    """One way to hold an embedding for every user and item in little memory.

    A method implements `from_budget`, `table` (or `embed`), `export` and `decode` (or `restore`), and `fit` where it
    trains in more than one plain stage; one whose scores are no dot products gives a `scorer` and no vectors. Torch's
    default generator is seeded around `from_budget` and put back after it, so plain torch initialisers are reproducible
    there; later randomness comes from `trainer.generator(name)`.
    """

    @dataclass(frozen=True)
    class Params:
        """num_layers: propagation layers L; item_bias: one more score coordinate per item, stored and charged."""

        num_layers: int = 3
        item_bias: bool = False

        def __post_init__(self):
            check(self.num_layers >= 0, "num_layers", self.num_layers, "at least 0")

    counted: tuple[str, ...] | None = None
    """Names of the exported arrays that the method's paper counts (None: all but the item bias)."""
    kinds: Mapping[str, str] = MappingProxyType({})
    """What exported arrays are in the ledger (budget.KINDS), where budget.kind_of would take them for others."""
    search_space: Mapping[str, Dimension | None] = MappingProxyType({})
    """What tuning searches beside `tuning: space` of the configuration, which is the same for all: its own `params`.

    Float(low, high, log=True), Int(low, high) or Choice(options) by the parameter's name. None for a name of the common
    space that has no effect on this method. Settings of the training need no None where nothing is trained.
    """
    needs_graph: bool = True
    """Whether answering a query needs the training graph (or a cached table of final embeddings)."""

    def __init__(self, params):
        super().__init__()
        self.params = params
        self.item_bias: torch.nn.Parameter | None = None
        self.details: dict = {}

    @classmethod
    def from_budget(cls, budget: Budget, graph: Graph, params) -> "EmbeddingMethod":
        """Return an untrained method that fits the budget. Raises BudgetError naming the least feasible size."""
        raise NotImplementedError

    def table(self) -> torch.Tensor:
        """Return the (N, d) layer-0 embeddings, users first, differentiable."""
        raise NotImplementedError

    def embed(self, graph: TrainingGraph) -> Embeddings:
        """Return ego and final embeddings; by default LightGCN's propagation of `table()`.

        A method may return all final rows, or those of `graph.rows` alone and say so in `Embeddings.rows`.
        """
        ego = self.table()
        return Embeddings(ego, propagate(ego, graph.operator, self.params.num_layers, graph.rows), graph.rows)

    def linear_form(self, graph: TrainingGraph) -> LinearForm | None:
        """Return the collapsed form where the method has one with few rows, else None."""
        return None

    def penalty(self, user, positive, negative) -> torch.Tensor | None:
        """Return an extra scalar loss term for a batch of triples (user and item ids, (B,) each), or None."""
        return None

    def state_changed(self) -> None:
        """Called after the trainer put back a saved state: rebuild what is derived from it (an expanded graph)."""

    def fit(self, trainer, start: dict | None = None) -> None:
        """Train. `start`: the arrays of the artifact that the config's `starts_from` names. By default one stage."""
        trainer.run(self, "train")

    def export(self) -> dict[str, np.ndarray]:
        """Return everything needed to answer a query, at the types it is charged for. The engine adds the item bias."""
        raise NotImplementedError

    def packed_numbers(self) -> int | None:
        """Return how many numbers the counted arrays hold where an element packs several; None for one each."""
        return None

    def leftover(self, budget: Budget) -> str:
        """Return why part of the budget is left: what the next larger size would take, or that there is none."""
        return "its size is set by `params`"

    @staticmethod
    def decode(arrays: dict, params) -> np.ndarray:
        """Return the (N, d) layer-0 table from the exported arrays alone, in NumPy."""
        raise NotImplementedError

    @classmethod
    def restore(cls, arrays: dict, params, graph) -> np.ndarray:
        """Return the final (N, d') embeddings, in NumPy; must equal what `embed` gave. By default `decode`, propagated.

        One of the two is given by a method, as a static function. Where that lives in a module that imports no torch,
        the model is served without torch. graph: train, num_users, num_items, num_nodes, and an `adjacency` of the kind
        that decoding.sparse_assignment makes.
        """
        return propagate(cls.decode(arrays, params), graph.adjacency, params.num_layers)

    @classmethod
    def code_arrays(cls, arrays: dict, params) -> dict[str, list[Codes]]:
        """Return what of the exported arrays, or made from them, are codes, for diagnostics.json; by default nothing.

        `nodes`: what a node's vector is made of, one entry per codebook; more names for codes that are made of others.
        """
        return {}

    @classmethod
    def scorer(cls, arrays: dict, params, graph: Graph, device: torch.device) -> Scorer:
        """Return what scores the items for a user, from arrays alone; by default dot products of `restore`'s rows."""
        final = np.ascontiguousarray(cls.restore(arrays, params, graph), dtype=np.float32)
        bias = torch.from_numpy(arrays["item_bias"]).to(device) if "item_bias" in arrays else None
        return DotProducts.of_nodes(torch.from_numpy(final).to(device), graph.num_users, bias)


@dataclass(frozen=True)
class TableParams(EmbeddingMethod.Params):
    """dim: embedding size d; init_std: standard deviation of the initial layer-0 vectors' entries."""

    dim: int = 128
    init_std: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check(self.dim >= 1, "dim", self.dim, "at least 1")
        check(self.init_std > 0, "init_std", self.init_std, "above 0")


def load_start(method: EmbeddingMethod, start: dict | None, names) -> None:
    """Copy the arrays `names`, and the item bias, of the run that a method starts from into its tensors of these names.

    What `pack` stored is unpacked. Raises MethodError where there is no start, or one of other arrays or sizes.
    """
    kind = type(method).__name__
    if start is None:
        raise MethodError(f"{kind} continues another run; give its entry `starts_from` in the config")
    for name in [*names, *(["item_bias"] if method.item_bias is not None else [])]:
        tensor = getattr(method, name)
        found = start[name].shape if name in start else "none"
        if found != tuple(tensor.shape):
            raise MethodError(
                f"the run that {kind} starts from has {name} {found}, this one expects {tuple(tensor.shape)}; "
                "give both entries the same sizes in `params`"
            )
        with torch.no_grad():
            whole = not tensor.is_floating_point()
            tensor.copy_(torch.from_numpy(start[name].astype(np.int64) if whole else unpack(name, start)))


def load_class(uses: str) -> type[EmbeddingMethod]:
    """Import `package.module:Class`. Raises ConfigError naming what is missing."""
    module_name, _, class_name = str(uses).partition(":")
    if not module_name or module_name.startswith("."):
        raise ConfigError(f"`uses: {uses}` names no module; write package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise  # the module exists, one of its own imports does not
        raise ConfigError(f"`uses: {uses}`: there is no module {module_name!r}; write package.module:Class") from None
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, EmbeddingMethod)):
        known = [name for name, value in vars(module).items() if isinstance(value, type)]
        hint = did_you_mean(class_name, known)
        raise ConfigError(f"`uses: {uses}`: {module_name} has no EmbeddingMethod {class_name!r}; {hint}")
    return cls


def decoder_of(cls: type[EmbeddingMethod]) -> dict[str, str]:
    """Return which function reads a method's arrays, for who serves the model: {hook: "module:name"}.

    hook: `decode` gives the layer-0 table, `restore` the final vectors, `scorer` the scores where there are no vectors.
    """
    functions = {hook: getattr(cls, hook) for hook in ("scorer", "restore", "decode")}
    hook = next(hook for hook, own in functions.items() if own.__qualname__ != f"EmbeddingMethod.{hook}")
    return {hook: f"{functions[hook].__module__}:{functions[hook].__qualname__}"}


def build(cls: type[EmbeddingMethod], budget: Budget, graph: Graph, params, seed: int) -> EmbeddingMethod:
    """Return the untrained method within the budget, its item bias (if any) set aside first. Raises BudgetError."""
    bias_bytes = 4 * graph.num_items if params.item_bias else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "initial weights"))
        try:
            method = cls.from_budget(budget.less(bias_bytes), graph, params)
        except BudgetError as error:
            extra = budget.measure(numbers=0, nbytes=bias_bytes)
            needs = None if error.needs is None else error.needs + extra
            raise BudgetError(needs=needs, budget=budget) from None
    if params.item_bias:
        method.item_bias = torch.nn.Parameter(torch.zeros(graph.num_items))
    return method


def export_arrays(method: EmbeddingMethod) -> dict[str, np.ndarray]:
    """Return the method's exported arrays and its item bias: the whole content of an artifact."""
    arrays = dict(method.export())
    if method.item_bias is not None:
        arrays["item_bias"] = method.item_bias.detach().cpu().numpy()
    return arrays
