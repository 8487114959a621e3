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

    # Membership is asked of a table of bits first, at two places by two hashes; the few that pass are searched exactly.
    _slots_per_pair = 8
    _multipliers = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
    _draws_at_once = 2**15  # so that what is computed of them stays in the processor's cache

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
        maybe = np.zeros(max(8, 2**self._filter_bits), dtype=bool)
        for multiplier in self._multipliers:
            maybe[self._slot(self._pairs, multiplier)] = True
        self._maybe = np.packbits(maybe, bitorder="little")

    def epoch(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return users, positive items and negative items, each (pairs * negatives,) int32, in random order."""
        user = self._users[generator.integers(len(self._users), size=len(self._pairs))]
        position = (generator.random(len(user)) * self._counts[user]).astype(np.int64)
        positive = self._items[self._starts[user] + position]
        negative = self._draw_negatives(user, generator)  # (pairs, negatives)
        order = generator.permutation(negative.size)
        draw = order // self.negatives
        return user.astype(np.int32)[draw], positive[draw], negative.ravel()[order]

    def _draw_negatives(self, user: np.ndarray, generator) -> np.ndarray:
        negative = generator.integers(self.num_items, size=(len(user), self.negatives)).astype(np.int32)
        rows, wrong = np.arange(len(user)), self._wrong(user, negative)
        while (redo := wrong.any(axis=1)).any():
            rows, wrong = rows[redo], wrong[redo]
            drawn = negative[rows]
            drawn[wrong] = generator.integers(self.num_items, size=int(wrong.sum()))
            negative[rows] = drawn
            wrong = self._wrong(user[rows], drawn)
        return negative

    def _wrong(self, user: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Return which of the drawn (n, negatives) are training items of their user (n,), or repeat an earlier one."""
        wrong = np.empty(drawn.shape, dtype=bool)
        for first in range(0, len(user), self._draws_at_once):
            some = slice(first, first + self._draws_at_once)
            wrong[some] = self.is_training_pair(user[some, None], drawn[some])
            for column in range(1, self.negatives):
                for earlier in range(column):
                    wrong[some, column] |= drawn[some, column] == drawn[some, earlier]
        return wrong

    def is_training_pair(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return whether each (user, item) is a training pair; shapes broadcast."""
        pairs = user.astype(np.int64) * self.num_items + item
        found = np.ones(pairs.shape, dtype=bool)
        for multiplier in self._multipliers:
            slot = self._slot(pairs[found], multiplier)
            found[found] = self._maybe[slot >> np.uint64(3)] & (1 << (slot & np.uint64(7)).astype(np.uint8))
        check = pairs[found]
        place = np.minimum(np.searchsorted(self._pairs, check), len(self._pairs) - 1)
        found[found] = self._pairs[place] == check
        return found

    def _slot(self, pairs: np.ndarray, multiplier: int) -> np.ndarray:
        return (pairs.astype(np.uint64) * np.uint64(multiplier)) >> np.uint64(64 - self._filter_bits)
