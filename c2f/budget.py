"""A budget is what a method may keep: everything stored (bytes), or only what its paper counts (numbers)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from c2f.errors import BudgetError, ConfigError, did_you_mean

KINDS = ("vectors", "codebook", "network", "assignment", "indices", "masks", "scales", "hashes", "biases", "other")
"""What stored bytes may be, in the order of the ledger."""
_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Budget:
    """kind: `bytes`, `numbers` or `full` (no limit); amount: in that unit, infinite for `full`; name: as written."""

    kind: str
    amount: float
    name: str

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `full`, `numbers-25600`, `bytes-500000` or `bytes-0.5MB` (decimal units). Raises ConfigError."""
        if text == "full":
            return cls("full", math.inf, text)
        match = re.fullmatch(r"([a-zA-Z]+)-([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", str(text))
        if match is None:
            raise ConfigError(f"budget {text!r} is not a budget; write `full`, `numbers-25600` or `bytes-0.5MB`")
        kind, number, unit = match.groups()
        if kind not in ("bytes", "numbers"):
            hint = did_you_mean(kind, ["bytes", "numbers", "full"])
            raise ConfigError(f"budget {text!r} has the unknown kind {kind!r}; {hint}")
        if unit not in (_UNITS if kind == "bytes" else [""]):
            raise ConfigError(f"budget {text!r} has the unknown unit {unit!r}; bytes take kB, MB, GB, numbers none")
        exact = Fraction(number) * _UNITS[unit]
        amount = int(exact)
        if amount != exact:
            raise ConfigError(
                f"budget {text!r} is not a whole number of {kind}; write for instance {kind}-{amount + 1}"
            )
        if amount < 1:
            raise ConfigError(f"budget {text!r} is empty; write a positive amount")
        return cls(kind, amount, str(text))

    def __str__(self) -> str:
        return self.name

    def measure(self, *, numbers: int, nbytes: int) -> int:
        """Return the cost of something on this budget's own scale: what the paper counts, or bytes."""
        return numbers if self.kind == "numbers" else nbytes

    def require(self, *, numbers: int, nbytes: int) -> None:
        """Raise BudgetError unless something of this size fits."""
        needs = self.measure(numbers=numbers, nbytes=nbytes)
        if needs > self.amount:
            raise BudgetError(needs=needs, budget=self)

    def require_size(self) -> None:
        """Raise BudgetError for `full`, from which a method that fills its budget can take no size."""
        if self.kind == "full":
            raise BudgetError(needs=None, budget=self)

    def values(self) -> int:
        """Return how many float32 values fit. Raises BudgetError for `full`."""
        self.require_size()
        return int(self.amount) // self.measure(numbers=1, nbytes=4)

    def price(self, what: str, *, numbers: int, nbytes: int) -> str:
        """Say what a larger model would take, on this budget's own scale."""
        return f"{what} takes {self.measure(numbers=numbers, nbytes=nbytes):,} {self.kind} more"

    def less(self, nbytes: int) -> "Budget":
        """Return this budget after setting aside stored bytes that no paper counts (an item bias). May be negative."""
        return Budget(self.kind, self.amount - self.measure(numbers=0, nbytes=nbytes), self.name)


def parse_bytes(text: str, place: str) -> int:
    """Read `64MB` and the like (decimal units); place: where it stands, for the error. Raises ConfigError."""
    try:
        return int(Budget.parse(f"bytes-{text}").amount)
    except ConfigError:
        raise ConfigError(f"{place} = {text!r} is no amount of memory; write for instance 64MB") from None


@dataclass(frozen=True)
class Footprint:
    """What an artifact really holds.

    parts: per array its shape, dtype, bytes, kind (of KINDS) and whether the method's paper counts it; numbers: values
    the paper counts (of floating-point arrays those that are not 0);
    stored: bytes of all arrays; serving: stored plus the cheaper of {training graph, cached (N, d) table} where scoring
    needs one of them.
    """

    parts: dict
    numbers: int
    stored: int
    serving: int

    @classmethod
    def measure(
        cls,
        arrays,
        counted,
        graph_bytes: int,
        table_bytes: int,
        needs_graph: bool,
        numbers: int | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> "Footprint":
        """Measure arrays by name.

        counted: names of those that the paper counts (None: all but the item bias); numbers: how many values these
        hold, where several are packed into one element (None: one each); kinds: of the arrays whose name and type do
        not tell it (see kind_of).
        """
        parts = {
            name: {
                "shape": list(array.shape),
                "dtype": array.dtype.str,
                "bytes": int(array.nbytes),
                "kind": kind_of(name, array, kinds or {}),
                "counted": name != "item_bias" if counted is None else name in counted,
            }
            for name, array in arrays.items()
        }
        stored = sum(part["bytes"] for part in parts.values())
        if numbers is None:
            numbers = sum(_values(arrays[name]) for name, part in parts.items() if part["counted"])
        serving = stored + (min(graph_bytes, table_bytes) if needs_graph else 0)
        return cls(parts, numbers, stored, serving)

    def spent(self, budget: Budget) -> int:
        """Return what of `budget` this artifact uses, in the budget's unit."""
        return budget.measure(numbers=self.numbers, nbytes=self.stored)

    def by_kind(self) -> dict[str, int]:
        """Return the stored bytes of each kind that there is, in the order of KINDS."""
        held = {kind: [part["bytes"] for part in self.parts.values() if part["kind"] == kind] for kind in KINDS}
        return {kind: sum(sizes) for kind, sizes in held.items() if sizes}


def kind_of(name: str, array, kinds: Mapping[str, str]) -> str:
    """Return what an array is in the ledger: as `kinds` says, or by its name's ending, or by its type."""
    endings = {"item_bias": "biases", "_mask": "masks", "scales": "scales"}
    by_name = (kind for ending, kind in endings.items() if name.endswith(ending))
    by_type = "vectors" if np.issubdtype(array.dtype, np.floating) else "indices"
    return kinds.get(name) or next(by_name, by_type)


def _values(array) -> int:
    return int(np.count_nonzero(array) if np.issubdtype(array.dtype, np.floating) else array.size)
