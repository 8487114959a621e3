"""Toy data with a known answer, and the folder of shared reference data where there is one."""

from pathlib import Path

import numpy as np
import pytest

from c2f.data import Interactions
from c2f.graph import Graph

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared beside this repository; tests that need it are skipped elsewhere."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"needs reference data in {SHARED}, which this machine does not have")
    return SHARED


def interactions(pairs, num_users: int, num_items: int) -> Interactions:
    """Interactions from a list of (user, item)."""
    user, item = np.asarray(pairs).reshape(-1, 2).T
    return Interactions.from_pairs(user, item, num_users, num_items)


@pytest.fixture(scope="session")
def blocks():
    """(graph, valid, test): even users like even items, odd users odd items; the diagonal pairs are held out.

    40 users x 40 items; user u likes every item of its parity, but for items u and u + 2 (mod 40), which are the
    validation and the test item. A model that sees the parity ranks exactly those two above everything else.
    """
    size = 40
    liked = [(u, i) for u in range(size) for i in range(size) if (u - i) % 2 == 0 and (i - u) % size not in (0, 2)]
    train = interactions(liked, size, size)
    valid = interactions([(u, u) for u in range(size)], size, size)
    test = interactions([(u, (u + 2) % size) for u in range(size)], size, size)
    return Graph(train), valid, test
