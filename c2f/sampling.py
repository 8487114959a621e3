"""Training triples (user, positive, negative), drawn afresh every epoch: METHODS.md 1.4, scheme S-user."""

import numpy as np

from c2f.data import Interactions
from c2f.errors import DataError


class TripleSampler:
    """Draws as many users as there are training pairs, uniformly from the users with training items, with replacement.

    For each draw: one positive uniformly from the user's items, and `negatives` distinct items that the user does not
    have in training; each negative makes its own triple. The triples of an epoch are shuffled.
    Raises DataError where a user has too few items left to draw negatives from.
    """

    # Membership is asked of a hashed table first; the few that it lets through are searched exactly.
    _slots_per_pair = 8

    def __init__(self, train: Interactions, negatives: int):
        self.num_users, self.num_items, self.negatives = train.num_users, train.num_items, negatives
        counts = np.bincount(train.user, minlength=train.num_users)
        most = int(counts.max(initial=0))
        if train.num_items - most < negatives:
            raise DataError(
                f"user {int(counts.argmax())} has {most} of the {train.num_items} items in training, so {negatives} "
                "distinct negatives cannot be drawn; lower `negatives`"
            )
        self._users = np.flatnonzero(counts)
        self._counts = counts
        self._starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
        self._items = train.item
        self._pairs = train.user.astype(np.int64) * train.num_items + train.item  # sorted, as Interactions are
        self._filter_bits = max(1, int(self._slots_per_pair * len(self._pairs)).bit_length())
        self._maybe = np.zeros(2**self._filter_bits, dtype=bool)
        self._maybe[self._slot(self._pairs)] = True

    def epoch(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return users, positive items and negative items, each (pairs * negatives,) int32, in random order."""
        user = self._users[generator.integers(len(self._users), size=len(self._pairs))]
        position = (generator.random(len(user)) * self._counts[user]).astype(np.int64)
        positive = self._items[self._starts[user] + position]
        negative = self._draw_negatives(user, generator)  # (pairs, negatives)
        order = generator.permutation(negative.size)
        draw = order // self.negatives
        return user[draw].astype(np.int32), positive[draw], negative.ravel()[order].astype(np.int32)

    def _draw_negatives(self, user: np.ndarray, generator) -> np.ndarray:
        negative = generator.integers(self.num_items, size=(len(user), self.negatives))
        rows = np.arange(len(user))  # draws that still may hold a training item or a repetition
        while len(rows):
            drawn = negative[rows]
            wrong = self.is_training_pair(user[rows][:, None], drawn)
            for column in range(1, self.negatives):
                for earlier in range(column):
                    wrong[:, column] |= drawn[:, column] == drawn[:, earlier]
            redo = wrong.any(axis=1)
            rows, wrong, drawn = rows[redo], wrong[redo], drawn[redo]
            drawn[wrong] = generator.integers(self.num_items, size=int(wrong.sum()))
            negative[rows] = drawn
        return negative

    def is_training_pair(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return whether each (user, item) is a training pair; shapes broadcast."""
        pairs = user.astype(np.int64) * self.num_items + item
        found = self._maybe[self._slot(pairs)]
        check = pairs[found]
        place = np.minimum(np.searchsorted(self._pairs, check), len(self._pairs) - 1)
        found[found] = self._pairs[place] == check
        return found

    def _slot(self, pairs: np.ndarray) -> np.ndarray:
        return (pairs.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - self._filter_bits)
