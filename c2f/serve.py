"""Answer queries from an artifact with NumPy alone: no torch, no SciPy, no pandas.

    reader = Reader.open("results/smoke/runs/blocks/legcf/bytes-32kB/2024", "results/data/blocks")
    items, scores = reader.recommend(user=42, k=20)

Beside the artifact it takes the dataset's serving.npz: whom a user has seen, and the training graph where scores need
it. Both are mapped into memory, and their checksums verified.
"""

import csv
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from c2f.decoding import CsrArray, normalised_adjacency, propagate
from c2f.errors import ArtifactError, ConfigError, DataError
from c2f.record import Artifact

DAMAGES = (ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError)
"""What a decoder may raise of arrays or parameters that are not those it was written for."""
SCORES_AT_ONCE = 2**22
"""Scores in one block of users: 16 MB."""


@dataclass(frozen=True)
class Pairs:
    """user, item: (E,) int32, sorted by user; made of `starts` (U + 1,) and `items` (E,)."""

    starts: np.ndarray
    items: np.ndarray

    @cached_property
    def user(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), self.starts[1:] - self.starts[:-1])

    @cached_property
    def item(self) -> np.ndarray:
        return self.items.astype(np.int32)

    def of_user(self, user: int) -> np.ndarray:
        """Return one user's items."""
        return self.items[int(self.starts[user]) : int(self.starts[user + 1])]


@dataclass(frozen=True)
class ServingGraph:
    """The training pairs as decoders take them."""

    train: Pairs
    num_users: int
    num_items: int

    @property
    def num_nodes(self) -> int:
        return self.num_users + self.num_items

    @cached_property
    def adjacency(self) -> CsrArray:
        """(N, N) normalised adjacency."""
        return normalised_adjacency(CsrArray, self.train.user, self.train.item, self.num_users, self.num_items)


@dataclass(frozen=True)
class ServingData:
    """A dataset's serving.npz: the training pairs, and all that is never recommended."""

    train: Pairs
    masked: list[Pairs]
    info: dict
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "ServingData":
        """Read serving.npz of a prepared dataset. Raises DataError."""
        path = Path(folder) / "serving.npz"
        if not path.is_file():
            raise DataError(f"there is no {path}; prepare the dataset, or name the folder that it was prepared in")
        try:
            stored = Artifact.load(path, mapped=True)
            keys = ("mask_at_test", "name", "num_users", "num_items", "train_sha256")
            info = {key: stored.info[key] for key in keys}
            parts = {part: _pairs(stored.arrays, part, info) for part in info["mask_at_test"]}
            return cls(parts["train"], list(parts.values()), info, Path(folder))
        except ArtifactError as error:
            raise DataError(str(error)) from None
        except DAMAGES as error:
            raise DataError(f"{path} is no dataset's serving.npz ({error}); prepare the dataset again") from None

    @property
    def num_users(self) -> int:
        return self.info["num_users"]

    @property
    def num_items(self) -> int:
        return self.info["num_items"]

    def names(self) -> dict[str, list[str]]:
        """Return the published ids or names of `user` and `item`, in the order of ours. Raises DataError."""
        path = self.folder / "ids.csv"
        names: dict[str, list[str]] = {"user": [], "item": []}
        try:
            with open(path, newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    names[row["kind"]].append(row["name"])
        except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
            raise DataError(f"{path} has no published ids ({error!r}); prepare the dataset again") from None
        if (len(names["user"]), len(names["item"])) != (self.num_users, self.num_items):
            raise DataError(f"{path} is not of {self.num_users} users and {self.num_items} items; prepare it again")
        return names


def _pairs(arrays: dict, part: str, info: dict) -> Pairs:
    starts, items = arrays[f"{part}_starts"], arrays[f"{part}_items"]
    steps = np.diff(starts.astype(np.int64))
    if starts.shape != (info["num_users"] + 1,) or starts[0] != 0 or (steps < 0).any() or starts[-1] != len(items):
        raise ValueError(f"{part}_starts does not count {part}_items by user")
    if items.ndim != 1 or (items >= info["num_items"]).any():
        raise ValueError(f"{part}_items names items that there are not")
    return Pairs(starts, items)


@dataclass(frozen=True)
class Reader:
    """A trained model that answers: scores(users) -> (rows, I) float32, by internal ids."""

    scores: Callable[[np.ndarray], np.ndarray]
    data: ServingData
    info: dict
    vectors: tuple[np.ndarray, np.ndarray] | None
    """users (U, d') and items (I, d'), whose dot products are the scores; None where it has no vectors."""

    @classmethod
    def open(cls, run: Path, data: Path) -> "Reader":
        """Load a run's artifact.npz beside its dataset. Raises ArtifactError or DataError, naming what is wrong.

        run: the run's folder, or the file; data: the folder of the prepared dataset.
        """
        path = Path(run) / "artifact.npz" if Path(run).is_dir() else Path(run)
        try:
            artifact, serving = Artifact.load(path, mapped=True), ServingData.open(data)
            info = artifact.info
            status, decoder = info["status"], info["decoder"]
            if info["train_sha256"] != serving.info["train_sha256"]:
                raise ArtifactError(
                    f"{path} was trained on {info['dataset']} pairs that are not those of {data} "
                    f"({serving.info['name']}); name the folder that it was trained on"
                )
            if status not in ("ok", "timeout"):
                raise ArtifactError(f"{path} holds no model: the run ended as {status}: {info['reason']}")
            if "scorer" in decoder:
                return cls(_scorer(artifact, Path(data), path), serving, info, None)
            users, items = _vectors(artifact, decoder, serving)
        except ModuleNotFoundError as error:
            raise ArtifactError(f"{path} cannot be served here: {error}; install what {info['uses']} needs") from None
        except (*DAMAGES, MemoryError) as error:
            if _out_of_memory(error):
                raise ArtifactError(
                    f"{path} needs more memory than there is; serve a smaller model, or raise the limit"
                ) from None
            raise ArtifactError(
                f"{path} does not hold what its method needs ({type(error).__name__}: {error}); train the run again"
            ) from None
        return cls(lambda chosen: users[chosen] @ items.T, serving, info, (users, items))

    def recommend(self, user: int, k: int = 20, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return the k items (k,) of the highest scores (k,), best first, equal ones by id; all, where there are fewer.

        exclude_seen: leave out what is masked at test (the user's training items, and with some recipes the validation
        items). Raises ConfigError for a user or k that there is not.
        """
        if not isinstance(user, Integral) or not 0 <= user < self.data.num_users:
            raise ConfigError(f"there is no user {user!r}: they are 0 to {self.data.num_users - 1}")
        return next(self.recommend_all(np.array([user]), k, exclude_seen))

    def recommend_all(self, users: np.ndarray, k: int = 20, exclude_seen: bool = True):
        """Yield what `recommend` returns for each of the users, whose scores are computed in blocks."""
        if not 1 <= k <= self.data.num_items:
            raise ConfigError(f"k = {k} is out of range: write 1 to {self.data.num_items}, the number of items")
        rows = max(1, SCORES_AT_ONCE // self.data.num_items)
        for first in range(0, len(users), rows):
            block = users[first : first + rows]
            for user, scores in zip(block, self.scores(block), strict=True):
                if exclude_seen:
                    for pairs in self.data.masked:
                        scores[pairs.of_user(user)] = -np.inf
                yield top(scores, k)


def _out_of_memory(error: Exception) -> bool:
    """Return whether memory is what lacks; a library that a decoder imports says so in words of its own."""
    of_library = isinstance(error, ImportError) and ("map segment" in str(error) or "allocate memory" in str(error))
    return of_library or isinstance(error, MemoryError)


def top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k items of the highest scores (I,), best first, equal ones by id, and their scores; none of -inf."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        items = np.flatnonzero(scores >= least)  # all that tie at the cut
    else:
        items = np.arange(len(scores))
    items = items[np.argsort(-scores[items], kind="stable")][:k]
    items = items[scores[items] > -np.inf]
    return items, scores[items]


def _vectors(artifact: Artifact, decoder: dict, serving: ServingData) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of users (U, d') and items (I, d'); an item bias is one more coordinate."""
    if strange := [name for name, array in artifact.arrays.items() if array.dtype.kind not in "fiub"]:
        raise TypeError(f"{strange[0]} holds no numbers")
    ((hook, name),) = decoder.items()
    function, params = _imported(name), SimpleNamespace(**artifact.info["params"])
    graph = ServingGraph(serving.train, serving.num_users, serving.num_items)
    if hook == "decode":
        final = propagate(function(artifact.arrays, params), graph.adjacency, params.num_layers)
    else:
        final = function(artifact.arrays, params, graph)
    final = np.asarray(final, dtype=np.float32)
    bias = artifact.arrays.get("item_bias", np.zeros(graph.num_items, dtype=np.float32))
    if final.ndim != 2 or len(final) != graph.num_nodes or bias.shape != (graph.num_items,):
        raise ValueError(f"vectors {final.shape} and biases {bias.shape} for {graph.num_nodes} users and items")
    if not (np.isfinite(final).all() and np.isfinite(bias).all()):
        raise ValueError("not all of its vectors are finite")
    users, items = final[: graph.num_users], final[graph.num_users :]
    if "item_bias" not in artifact.arrays:
        return users, items
    ones = np.ones((graph.num_users, 1), dtype=np.float32)
    columns = [users, ones], [items, bias[:, None].astype(np.float32)]
    users, items = (np.concatenate(column, axis=1) for column in columns)
    return users, items


def _scorer(artifact: Artifact, data: Path, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the scores of a method that has no vectors: as its own library computes them, with torch."""
    from c2f.run import load_scorer

    scorer = load_scorer(artifact, data, path)
    return lambda users: scorer.scores(users).numpy()


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found
