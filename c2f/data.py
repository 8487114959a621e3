"""From published files to train, valid and test pairs: dataset settings, readers, split recipes, made-up data.

Published ids often follow first appearance, so that neighbours are items of one user. So `prepare` renumbers users and
items at random, after the split is drawn on the published ids; ids.csv has the published id or name of every id.
"""

import csv
import hashlib
import inspect
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import scipy.sparse as sp

from c2f.decoding import id_array
from c2f.errors import ConfigError, DataError, did_you_mean
from c2f.record import Artifact, disk_errors
from c2f.seeds import seed_for

ROLES = ("train", "valid", "test")
RECIPE_FILES = {  # that a recipe needs; legcf and holdout take a valid file too
    "legcf": ("train", "test"),
    "holdout": ("train", "test"),
    "given": ("train", "valid", "test"),
}
MASK_AT_TEST = {"legcf": ["train"], "holdout": ["train", "valid"], "given": ["train", "valid"]}
MAX_NODES = 2**31 - 1
ID_BYTES = b"0123456789 \t\r\n"
NOT_AN_ID = "ids must be whole numbers from 0 (or set `remap: true`)"


@dataclass(frozen=True, eq=False)
class Interactions:
    """Unique (user, item) pairs, sorted by user and then item.

    user, item: (E,) int32, with 0 <= user < num_users and 0 <= item < num_items.
    """

    user: np.ndarray
    item: np.ndarray
    num_users: int
    num_items: int

    @classmethod
    def from_pairs(cls, user: np.ndarray, item: np.ndarray, num_users: int, num_items: int) -> "Interactions":
        """Return the pairs sorted and without duplicates."""
        key = np.unique(user.astype(np.int64) * num_items + item)
        return cls((key // num_items).astype(np.int32), (key % num_items).astype(np.int32), num_users, num_items)

    def __len__(self) -> int:
        return len(self.user)

    def csr(self) -> sp.csr_array:
        """Return the (num_users, num_items) 0/1 matrix, float32, int32 indices."""
        indptr = np.zeros(self.num_users + 1, dtype=np.int32)
        np.cumsum(np.bincount(self.user, minlength=self.num_users), out=indptr[1:])
        values = np.ones(len(self), dtype=np.float32)
        return sp.csr_array((values, self.item, indptr), shape=(self.num_users, self.num_items))

    def sha256(self) -> str:
        """Return the checksum of the pairs: int32 little-endian, all users and then all items."""
        return hashlib.sha256(self.user.astype("<i4").tobytes() + self.item.astype("<i4").tobytes()).hexdigest()


# Settings of a dataset ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawFile:
    """One published file: where it can be fetched and the checksum that it must have (sha256 or git blob id)."""

    name: str
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    git_blob: str | None = None

    @property
    def role(self) -> str:
        """Which part it holds: train, valid or test."""
        return Path(self.name).stem

    def checksum(self) -> str:
        return f"sha256 {self.sha256}" if self.sha256 else f"git blob id {self.git_blob}"

    def problem(self, path: Path) -> str | None:
        """Return what is wrong with the file at `path`, or None if it is the published one."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if self.sha256:
                found = f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
            else:
                blob = hashlib.sha1(b"blob %d\0" % size)
                while chunk := file.read(1 << 20):
                    blob.update(chunk)
                found = f"git blob id {blob.hexdigest()}"
        return None if found == self.checksum() else f"{size:,} bytes with {found} instead of {self.checksum()}"


@dataclass(frozen=True)
class DatasetSpec:
    """One entry of `datasets:` in config/config.yaml, checked; the defaults of every key live here.

    files         train, test, valid (legcf and holdout do without it, see split), any ending:
                  {train.txt: {urls: [...], sha256 | git_blob: ...}}
    generate      instead of files: arguments of generate_blocks, which makes all three
    format        lists (`user item item ...`) or table (two columns of a csv, tsv or RecBole .inter file)
    columns       table: names of the user and item column (a `:type` behind a name is ignored), or two positions
                  counted from 0, in a file without header
    separator     table: between columns; by default a comma in .csv, a tab in .tsv and .inter
    recipe        legcf, holdout or given (see split)
    split_seed    of the recipe, and of the numbering of users and items; the seeds of runs never move either
    k_core        keep users and items with at least so many training pairs; 0 keeps all
    remap         take ids as names and number them without gaps: needed for names, good for sparse numbers
    overlap       a valid or test pair that train (or test) holds too: refuse, or drop it
    unknown_users a user of valid or test without training pairs: refuse, drop their pairs, or keep them
    """

    name: str
    recipe: str
    files: tuple[RawFile, ...] = ()
    generate: dict | None = None
    format: str = "lists"
    columns: tuple[str, str] | tuple[int, int] = ("user_id", "item_id")
    separator: str | None = None
    split_seed: int = 0
    k_core: int = 0
    remap: bool = False
    overlap: str = "refuse"
    unknown_users: str = "refuse"

    @classmethod
    def parse(cls, name: str, spec: Mapping) -> "DatasetSpec":
        """Return the checked settings; raises ConfigError for what is unknown, missing or of the wrong kind."""
        where = f"datasets: {name}"
        _check_keys(spec, [field.name for field in fields(cls) if field.name != "name"], where)
        if "recipe" not in spec:
            raise ConfigError(f"{where} has no `recipe`; give one of {', '.join(RECIPE_FILES)}")
        if ("files" in spec) == ("generate" in spec):
            raise ConfigError(f"{where} needs either `files` (published) or `generate` (made up), not both")
        _check_choice(spec["recipe"], RECIPE_FILES, f"{where}: recipe")
        _check_choice(spec.get("format", "lists"), ("lists", "table"), f"{where}: format")
        _check_choice(spec.get("overlap", "refuse"), ("refuse", "drop"), f"{where}: overlap")
        _check_choice(spec.get("unknown_users", "refuse"), ("refuse", "drop", "keep"), f"{where}: unknown_users")
        for key, least in {"split_seed": 0, "k_core": 0}.items():
            if key in spec and (type(spec[key]) is not int or spec[key] < least):
                raise ConfigError(f"{where}: {key} is {spec[key]!r}; it must be a whole number of at least {least}")
        if not isinstance(spec.get("remap", False), bool):
            raise ConfigError(f"{where}: remap is {spec['remap']!r}; it must be true or false")
        if "separator" in spec and not (isinstance(spec["separator"], str) and spec["separator"]):
            raise ConfigError(f'{where}: separator is {spec["separator"]!r}; it must be text such as "," or "\\t"')
        given = dict(spec)
        if "generate" in spec:
            given["generate"] = generated_arguments(spec["generate"], where)
            if spec.get("format", "lists") != "lists":
                raise ConfigError(f"{where}: made-up data is written as lists; leave `format` out")
            given["files"] = tuple(RawFile(f"{role}.txt") for role in ROLES)
        else:
            given["files"] = _parse_files(spec["files"], spec["recipe"], where)
        if "columns" in spec:
            given["columns"] = _parse_columns(spec["columns"], where)
        return cls(name=name, **given)


def _parse_files(files: Mapping, recipe: str, where: str) -> tuple[RawFile, ...]:
    if not isinstance(files, Mapping):
        raise ConfigError(f"{where}: files is {files!r}; give a mapping from file name to urls and checksum")
    parsed = []
    for name, entry in files.items():
        place = f"{where}: files: {name}"
        if Path(name).name != name:
            raise ConfigError(f"{place} must be a plain file name, without folders")
        _check_keys(entry, ["urls", "sha256", "git_blob"], place)
        sums = {key: str(entry[key]).lower() for key in ("sha256", "git_blob") if key in entry}
        if len(sums) != 1:
            raise ConfigError(f"{place} needs a checksum: either `sha256` or `git_blob`")
        for key, value in sums.items():
            if not re.fullmatch(r"[0-9a-f]{64}" if key == "sha256" else r"[0-9a-f]{40}", value):
                raise ConfigError(f"{place}: {key} {value!r} is not one (64 hex digits for sha256, 40 for git_blob)")
        urls = entry.get("urls", [])
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise ConfigError(f"{place}: urls must be a list of addresses")
        parsed.append(RawFile(name, tuple(urls), **sums))
    wanted = RECIPE_FILES[recipe]
    if sorted(file.role for file in parsed) not in (sorted(wanted), sorted(ROLES)):
        more = "" if wanted == ROLES else ", and a valid file where there is one"
        raise ConfigError(
            f"{where}: recipe {recipe} reads one file each of {', '.join(wanted)} (with any ending){more}, "
            f"but files lists {', '.join(files) or 'none'}; rename the keys or choose another recipe"
        )
    return tuple(sorted(parsed, key=lambda file: ROLES.index(file.role)))


def _parse_columns(columns: list, where: str) -> tuple:
    two = isinstance(columns, list) and len(columns) == 2 and columns[0] != columns[1]
    if not two or [type(c) for c in columns] not in ([str, str], [int, int]):
        raise ConfigError(f"{where}: columns is {columns!r}; give two different names, or two positions from 0")
    return tuple(columns)


def _check_keys(entry: Mapping, known: Iterable[str], where: str) -> None:
    known = list(known)
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is {entry!r}; it must be a mapping with keys {', '.join(known)}")
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(key, known)}")


def _check_choice(value: object, known: Iterable[str], where: str) -> None:
    known = list(known)
    if value not in known:
        raise ConfigError(f"{where} {value!r} is unknown; {did_you_mean(str(value), known)}")


# Readers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawPairs:
    """The pairs of one file in its own order, each with its line number (from 1) for messages.

    user, item: int64 ids, or str objects where the file was read with `names`. empty: users listed without items.
    """

    path: Path
    user: np.ndarray
    item: np.ndarray
    line: np.ndarray
    empty: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, keep: np.ndarray) -> "RawPairs":
        return replace(self, user=self.user[keep], item=self.item[keep], line=self.line[keep])


def read_lists(path: Path, *, names: bool = False) -> RawPairs:
    """Read `user item item ...` lines; blanks at the end, blank lines and users without items are accepted.

    names: take the ids as text. Raises DataError for a missing file and for ids that are no whole numbers from 0.
    """
    text = _read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    lines = text.splitlines()
    if not names and text.translate(None, ID_BYTES):
        bad, line = next((n, line) for n, line in enumerate(lines, start=1) if line.translate(None, ID_BYTES))
        token = next((token for token in line.split() if not token.isdigit()), line)
        raise DataError(f"{path} line {bad}: {_short(token)} in {_short(line)}: {NOT_AN_ID}")
    tokens = np.array([len(line.split()) for line in lines], dtype=np.int64)  # per line
    number = np.arange(1, len(lines) + 1)[tokens > 0]
    tokens = tokens[tokens > 0]
    if names:
        _decode(path, text)
        ids = np.array([token.decode() for token in text.split()], dtype=object)
    else:
        ids = np.fromstring(text, dtype=np.int64, sep=" ") if len(tokens) else np.empty(0, np.int64)
        _check_range(path, ids, np.repeat(number, tokens))
    first = np.cumsum(tokens) - tokens
    is_item = np.ones(len(ids), dtype=bool)
    is_item[first] = False
    user = ids[first]
    return RawPairs(
        path, np.repeat(user, tokens - 1), ids[is_item], np.repeat(number, tokens - 1), empty=user[tokens == 1]
    )


def read_table(path: Path, columns: Sequence, separator: str | None = None, *, names: bool = False) -> RawPairs:
    """Read two columns of a table (csv, tsv, RecBole .inter), by header name or by position from 0 (no header).

    separator: by default a comma in .csv, a tab in .tsv and .inter. A comma-separated file may quote its fields.
    names: take the ids as text. Raises DataError for a missing file or column, rows of another length, bad ids.
    """
    separator = separator or {".csv": ",", ".tsv": "\t", ".inter": "\t"}.get(path.suffix)
    if separator is None:
        raise ConfigError(f"{path.name}: the ending does not tell what is between the columns; set `separator`")
    rows = _table_rows(path, separator)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path} is empty")
    number, cells = header
    if isinstance(columns[0], str):
        titles = [cell.split(":")[0].strip() for cell in cells]
        for column in columns:
            if column not in titles:
                raise DataError(f"{path} line {number}: no column {column!r}; {did_you_mean(column, titles)}")
        positions = [titles.index(column) for column in columns]
    else:
        positions = list(columns)
        for position in positions:
            if not 0 <= position < len(cells):
                raise DataError(f"{path} line {number}: {len(cells)} columns, none at position {position} (from 0)")
        rows = itertools.chain([header], rows)
    width = len(cells)
    pairs: tuple[list[str], list[str]] = ([], [])
    line: list[int] = []
    for number, cells in rows:
        text = separator.join(cells)
        if len(cells) != width:
            raise DataError(f"{path} line {number}: {len(cells)} fields instead of {width} in {_short(text)}")
        for column, position in zip(pairs, positions, strict=True):
            value = cells[position].strip()
            if not value or not (names or (value.isascii() and value.isdigit())):
                way_out = NOT_AN_ID if value else "an id is missing"
                raise DataError(f"{path} line {number}: {value!r} in {_short(text)}: {way_out}")
            column.append(value)
        line.append(number)
    lines = np.array(line, dtype=np.int64)
    if names:
        user, item = (np.array(column, dtype=object) for column in pairs)
    else:
        # 19 digits and more may not fit an int64; _check_range refuses them like every id above int32
        numbers = ([int(value) if len(value) < 19 else 2**62 for value in column] for column in pairs)
        user, item = (np.array(column, dtype=np.int64) for column in numbers)
        for ids in (user, item):
            _check_range(path, ids, lines)
    return RawPairs(path, user, item, lines, empty=user[:0])


def _table_rows(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line that is not blank."""
    text = _decode(path, _read_bytes(path))
    lines = io.StringIO(text, newline=None)
    if separator != ",":
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line.rstrip("\n").split(separator)
        return
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}") from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; fetch it with `python -m c2f download`, or put the published file there"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; make it a readable file") from error


def _decode(path: Path, text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = text.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {number}: not UTF-8 text; is this the published file?") from error


def _check_range(path: Path, ids: np.ndarray, line: np.ndarray) -> None:
    if len(ids) and ids.max() >= MAX_NODES:
        row = int(ids.argmax())
        raise DataError(
            f"{path} line {line[row]}: an id above {MAX_NODES - 1:,}, the largest possible; set `remap: true`"
        )


def _short(text: str | bytes) -> str:
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")


# Cleaning -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The parts of a dataset on their way to a split, what they count, and what was noticed (`warnings`).

    Numbers are those that the split is drawn on; shuffle_ids changes them afterwards.
    names: kind (user, item) -> the published name of every number, where numbers are not the published ids.
    """

    tables: dict[str, RawPairs]
    num_users: int
    num_items: int
    names: dict[str, np.ndarray]
    warnings: tuple[str, ...]

    def keys(self, part: str) -> np.ndarray:
        """Return one int64 per pair that identifies it."""
        return self.tables[part].user * self.num_items + self.tables[part].item

    def published(self, kind: str, numbers: np.ndarray) -> list:
        """Return the ids as the files give them."""
        return (self.names[kind][numbers] if self.names else numbers).tolist()

    def where(self, part: str, row: int) -> str:
        """Return file, line, user and item of a pair, as the file gives them."""
        table = self.tables[part]
        [user], [item] = self.published("user", table.user[[row]]), self.published("item", table.item[[row]])
        return f"{table.path} line {table.line[row]}: user {user}, item {item}"

    def changed(self, part: str, table: RawPairs, note: str) -> "Parts":
        """Return the parts with another table for `part`, and why."""
        return replace(self, tables={**self.tables, part: table}, warnings=(*self.warnings, note))


def number_ids(tables: dict[str, RawPairs], *, remap: bool) -> Parts:
    """Return the parts with the counts of users and items: 1 + the largest id over all files.

    remap: number the ids 0, 1, ... in the order of their first appearance, file by file.
    """
    names: dict[str, np.ndarray] = {}
    warnings = []
    if remap:
        names, tables = _renumber(tables)
    counts = {}
    for kind in ("user", "item"):
        ids = [getattr(table, kind) for table in tables.values()]
        if kind == "user":
            ids += [table.empty for table in tables.values()]
        seen = np.unique(np.concatenate(ids))
        counts[kind] = int(seen[-1]) + 1 if len(seen) else 0
        gaps = counts[kind] - len(seen)
        if counts[kind] > max(1_000_000, 100 * len(seen)):
            raise DataError(
                f"{tables['train'].path.parent}: {kind} ids reach {counts[kind] - 1:,} but only {len(seen):,} occur; "
                "an embedding for every unused id would fill the memory: set `remap: true`"
            )
        if gaps:
            warnings.append(f"{kind} ids: {gaps:,} of {counts[kind]:,} occur in no file")
    if counts["user"] + counts["item"] > MAX_NODES:
        raise DataError(f"{counts['user']:,} users and {counts['item']:,} items are more than {MAX_NODES:,} together")
    for table in tables.values():
        if len(table.empty):
            warnings.append(f"{table.path.name}: {len(table.empty):,} users without items")
    return Parts(tables, counts["user"], counts["item"], names, tuple(warnings))


def _renumber(tables: dict[str, RawPairs]) -> tuple[dict[str, np.ndarray], dict[str, RawPairs]]:
    names = {}
    for kind, columns in {"user": ("user", "empty"), "item": ("item",)}.items():
        seen = [getattr(table, column).tolist() for column in columns for table in tables.values()]
        number = {name: n for n, name in enumerate(dict.fromkeys(itertools.chain.from_iterable(seen)))}
        names[kind] = np.array(list(number), dtype=object)
        for part, table in tables.items():
            new: dict[str, Any] = {
                c: np.array([number[name] for name in getattr(table, c)], dtype=np.int64) for c in columns
            }
            tables = {**tables, part: replace(table, **new)}
    return names, tables


def drop_duplicates(parts: Parts) -> Parts:
    """Return the parts with every pair once per file, the first of each, and a warning that counts the others."""
    for part, table in parts.tables.items():
        first = np.unique(parts.keys(part), return_index=True)[1]
        if len(first) < len(table):
            again = np.setdiff1d(np.arange(len(table)), first)
            note = f"{table.path.name}: {len(again):,} duplicate pairs dropped (first: {parts.where(part, again[0])})"
            parts = parts.changed(part, table.take(np.sort(first)), note)
    return parts


def check_unknown_users(parts: Parts, rule: str) -> Parts:
    """Refuse (or drop, or keep) the valid and test pairs of users that train has no pair of."""
    known = np.bincount(parts.tables["train"].user, minlength=parts.num_users) > 0
    for part, table in parts.tables.items():
        unknown = ~known[table.user]
        if not unknown.any():
            continue
        users = np.unique(table.user[unknown])
        if rule == "refuse":
            shown = ", ".join(map(str, parts.published("user", users[:5]))) + (", ..." if len(users) > 5 else "")
            raise DataError(
                f"{parts.where(part, int(unknown.argmax()))}: {parts.tables['train'].path.name} has no pair of this "
                f"user ({len(users):,} such users: {shown}); nothing can be learnt about them. Mend the files, "
                "or set `unknown_users: drop` (without their pairs) or `unknown_users: keep` (scored untrained)"
            )
        what = "dropped" if rule == "drop" else "kept"
        note = f"{table.path.name}: {unknown.sum():,} pairs of {len(users):,} users without training pairs {what}"
        parts = parts.changed(part, table.take(~unknown) if rule == "drop" else table, note)
    return parts


def check_overlap(parts: Parts, rule: str) -> Parts:
    """Refuse pairs that two parts share, or drop them: from valid and test if train has them, from valid if test."""
    for part, other in (("test", "train"), ("valid", "train"), ("valid", "test")):
        if part not in parts.tables:
            continue
        table, also = parts.tables[part], parts.tables[other]
        shared = np.isin(parts.keys(part), parts.keys(other))
        if not shared.any():
            continue
        if rule == "refuse":
            row = int(shared.argmax())
            there = int(np.flatnonzero(parts.keys(other) == parts.keys(part)[row])[0])
            raise DataError(
                f"{parts.where(part, row)}: {also.path.name} has this pair too, on line {also.line[there]} "
                f"({shared.sum():,} such pairs). Mend the files, or set `overlap: drop` to drop them from {part}"
            )
        note = f"{table.path.name}: {shared.sum():,} pairs dropped that {also.path.name} has too"
        parts = parts.changed(part, table.take(~shared), note)
    return parts


def k_core(parts: Parts, k: int) -> Parts:
    """Remove, again and again, users and items with fewer than k training pairs, and their valid and test pairs.

    The others are renumbered without gaps in the order of their ids, so that no method pays for what was removed;
    `names` keeps their published ids.
    """
    train = parts.tables["train"]
    keep = np.ones(len(train), dtype=bool)
    while True:
        users = np.bincount(train.user[keep], minlength=parts.num_users) >= k
        items = np.bincount(train.item[keep], minlength=parts.num_items) >= k
        kept_before = keep.sum()
        keep &= users[train.user] & items[train.item]
        if keep.sum() == kept_before:
            break
    if not keep.any():
        raise DataError(f"{train.path}: k_core {k} leaves no training pair; choose a smaller one")
    new_user, new_item = np.cumsum(users) - 1, np.cumsum(items) - 1
    tables = {}
    for part, table in parts.tables.items():
        stay = users[table.user] & items[table.item]
        tables[part] = RawPairs(
            table.path, new_user[table.user[stay]], new_item[table.item[stay]], table.line[stay], table.empty[:0]
        )
    names = parts.names or {"user": np.arange(parts.num_users), "item": np.arange(parts.num_items)}
    names = {"user": names["user"][users], "item": names["item"][items]}
    note = f"{k}-core: {users.sum():,} of {parts.num_users:,} users and {items.sum():,} of {parts.num_items:,} items"
    return Parts(tables, int(users.sum()), int(items.sum()), names, (*parts.warnings, note))


# Split recipes --------------------------------------------------------------------------------------------------------


def draw_per_user(user: np.ndarray, num_drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a mask (E,) that marks num_drawn[u] of the pairs of every user u, drawn without replacement."""
    order = np.lexsort((rng.random(len(user)), user))  # by user, shuffled within
    ordered = user[order]
    rank = np.arange(len(user)) - np.searchsorted(ordered, ordered)
    drawn = np.zeros(len(user), dtype=bool)
    drawn[order] = rank < num_drawn[ordered]
    return drawn


def split(published: dict[str, Interactions], recipe: str, rng: np.random.Generator) -> dict[str, Interactions]:
    """Return train, valid and test pairs.

    legcf    valid: max(1, ceil(n/3)) of each user's n published test items; test: the others; train as published
    holdout  valid: n/10 of each user's n training items, rounded down but at least 1, and none of a user who has
             only one (no user is left without training items); train: the others; test as published
    given    as published

    Published validation pairs are training pairs under legcf and holdout, so that all three recipes use the same pairs.
    """
    if recipe == "given":
        return published
    train, test = published["train"], published["test"]
    if "valid" in published:
        both = (train, published["valid"])
        user, item = (np.concatenate([getattr(pairs, kind) for pairs in both]) for kind in ("user", "item"))
        train = Interactions.from_pairs(user, item, train.num_users, train.num_items)
    source = test if recipe == "legcf" else train
    n = np.bincount(source.user, minlength=source.num_users)
    num_valid = (n + 2) // 3 if recipe == "legcf" else np.where(n >= 2, np.maximum(1, n // 10), 0)
    drawn = draw_per_user(source.user, num_valid, rng)
    valid, rest = _select(source, drawn), _select(source, ~drawn)
    if recipe == "legcf":
        return {"train": train, "valid": valid, "test": rest}
    return {"train": rest, "valid": valid, "test": test}


def _select(pairs: Interactions, keep: np.ndarray) -> Interactions:
    return Interactions(pairs.user[keep], pairs.item[keep], pairs.num_users, pairs.num_items)


# Numbering ------------------------------------------------------------------------------------------------------------


def shuffle_ids(
    pairs: dict[str, Interactions], rng: np.random.Generator
) -> tuple[dict[str, Interactions], dict[str, np.ndarray]]:
    """Return the parts with users and items renumbered at random, and kind -> the old number of each new one.

    The old numbers are (num_users,) and (num_items,) int64, those without a pair included. Were the ids to tell of the
    graph, methods that compute on them (quotient-remainder, tensor-train, CERP) would get a clustering that others do
    not, and equal scores, ranked by id, would favour the items that appear early.
    """
    train = pairs["train"]
    old = {"user": rng.permutation(train.num_users), "item": rng.permutation(train.num_items)}
    new = {kind: np.argsort(numbers) for kind, numbers in old.items()}  # the inverse: the new number of each old one
    shuffled = {
        part: Interactions.from_pairs(new["user"][p.user], new["item"][p.item], p.num_users, p.num_items)
        for part, p in pairs.items()
    }
    return shuffled, old


# The step, and what other steps read ----------------------------------------------------------------------------------


def prepare(name: str, spec: Mapping, raw: Path, output: Path) -> None:
    """Write train, valid and test pairs, their stats and ids.csv, all or nothing.

    The pairs have ids of their own, drawn from split_seed and the dataset's name (see shuffle_ids); ids.csv has a row
    kind,id,name for every user and item: the published id or name of each.

    Raises ConfigError for settings that cannot be used, DataError for files that are missing, changed or malformed.
    """
    dataset = DatasetSpec.parse(name, spec)
    source = {}
    tables = {}
    for file in dataset.files:
        path = raw / file.name
        source[file.name] = hashlib.sha256(_read_bytes(path)).hexdigest()
        if dataset.generate is None and (problem := file.problem(path)):
            raise DataError(f"{path} is truncated or changed: {problem}; run `python -m c2f download` again")
        if dataset.format == "lists":
            tables[file.role] = read_lists(path, names=dataset.remap)
        else:
            tables[file.role] = read_table(path, dataset.columns, dataset.separator, names=dataset.remap)
        if not len(tables[file.role]):
            raise DataError(f"{path} holds no pairs; is this the published file?")

    parts = drop_duplicates(number_ids(tables, remap=dataset.remap))
    parts = check_unknown_users(parts, dataset.unknown_users)
    parts = check_overlap(parts, dataset.overlap)
    if dataset.k_core:
        parts = k_core(parts, dataset.k_core)
    published = {
        part: Interactions.from_pairs(table.user, table.item, parts.num_users, parts.num_items)
        for part, table in parts.tables.items()
    }
    rng = np.random.default_rng(seed_for(dataset.split_seed, name, "split", dataset.recipe))
    pairs = split(published, dataset.recipe, rng)
    for part, table in pairs.items():
        if not len(table):
            raise DataError(f"{name}: recipe {dataset.recipe} leaves no {part} pairs; choose another recipe or data")
    warnings = list(parts.warnings)
    unseen = parts.num_items - len(np.unique(pairs["train"].item))
    if unseen:
        warnings.append(f"items: {unseen:,} of {parts.num_items:,} have no training pair (isolated nodes)")
    pairs, old = shuffle_ids(pairs, np.random.default_rng(seed_for(dataset.split_seed, name, "ids")))
    stats = {
        "name": name,
        "recipe": dataset.recipe,
        "split_seed": dataset.split_seed,
        "num_users": parts.num_users,
        "num_items": parts.num_items,
        **{f"num_{part}": len(pairs[part]) for part in ("train", "valid", "test")},
        "mask_at_test": MASK_AT_TEST[dataset.recipe],
        "k_core": dataset.k_core,
        "ids": "renumbered at random; ids.csv has the published ones",
        "sha256": {part: pairs[part].sha256() for part in ("train", "valid", "test")},
        "source": source,
        "warnings": warnings,
    }
    _write(output, pairs, stats, {kind: parts.published(kind, numbers) for kind, numbers in old.items()})


def _write(output: Path, pairs: dict[str, Interactions], stats: dict, names: dict[str, list]) -> None:
    """Write every file beside its place first, then move them there; stats.json goes first and comes back last."""
    new = output / ".prepare"
    with disk_errors(output):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            for part, table in pairs.items():
                write_parquet({"user": table.user, "item": table.item}, new / f"{part}.parquet")
            kinds = [kind for kind, values in names.items() for _ in values]
            numbers = np.concatenate([np.arange(len(values)) for values in names.values()])
            published = [str(value) for values in names.values() for value in values]
            pyarrow.csv.write_csv(pa.table({"kind": kinds, "id": numbers, "name": published}), new / "ids.csv")
            with open(new / "serving.npz", "wb") as stream:
                serving_data(pairs, stats).write(stream)
            (new / "stats.json").write_text(json.dumps(stats, indent=2) + "\n")
            (output / "stats.json").unlink(missing_ok=True)
            for file in sorted(new.iterdir(), key=lambda file: file.name == "stats.json"):
                os.replace(file, output / file.name)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def serving_data(pairs: Mapping[str, Interactions], stats: Mapping) -> Artifact:
    """Return what a server needs beside an artifact: the training pairs, and all that is masked at test.

    Of each such part `<part>_starts` (U + 1,) and `<part>_items`, the items of all users in turn.
    """
    arrays = {}
    for part in stats["mask_at_test"]:
        starts = np.searchsorted(pairs[part].user, np.arange(stats["num_users"] + 1))
        arrays[f"{part}_starts"] = starts.astype(np.uint32)
        arrays[f"{part}_items"] = id_array(pairs[part].item, stats["num_items"])
    keys = ("name", "num_users", "num_items", "mask_at_test")
    info = {key: stats[key] for key in keys} | {"train_sha256": stats["sha256"]["train"]}
    return Artifact(arrays, info)


def load_stats(path: Path) -> dict:
    """Return the stats.json that `prepare` wrote."""
    try:
        stats = json.loads(_read_prepared(path))
    except ValueError as error:
        raise DataError(f"{path} is truncated or changed: {error}; run `python -m c2f prepare` again") from error
    if not isinstance(stats, dict) or not {"num_users", "num_items", "sha256", "mask_at_test"} <= stats.keys():
        raise DataError(f"{path} is not a stats.json of this version; run `python -m c2f prepare` again")
    return stats


def load_pairs(path: Path, stats: Mapping) -> Interactions:
    """Return the pairs of train.parquet, valid.parquet or test.parquet, verified against the checksum in stats.json."""
    again = "run `python -m c2f prepare` again"
    expected = stats["sha256"].get(path.stem)
    if expected is None:
        hint = did_you_mean(path.stem, stats["sha256"])
        raise DataError(f"{path}: stats.json has no checksum for {path.stem!r}; {hint}")
    try:
        table = read_parquet(pa.BufferReader(_read_prepared(path)), ["user", "item"])
        user, item = (np.from_dlpack(table[column].combine_chunks()) for column in ("user", "item"))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path} is truncated or changed: {error}; {again}") from error
    pairs = Interactions(user, item, stats["num_users"], stats["num_items"])
    if pairs.sha256() != expected:
        raise DataError(f"{path} is truncated or changed: it does not match the checksum in stats.json; {again}")
    return pairs


def read_parquet(source, columns: list[str] | None = None) -> pa.Table:
    """Return a Parquet file's table, read without Arrow's threads.

    They may still hold what they read when the interpreter ends, and abort the process (apache/arrow#33975).
    """
    return pq.ParquetFile(source, pre_buffer=False).read(columns, use_threads=False)


def write_parquet(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Write numeric columns (n,) of equal length. Arrow's own conversions import pandas: 0.3 s of a process."""
    arrays = {
        name: pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path)


def _read_prepared(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; write it with `python -m c2f prepare`") from error


# Made-up data ---------------------------------------------------------------------------------------------------------


def generate_blocks(
    num_users: int = 600,
    num_items: int = 400,
    num_blocks: int = 8,
    pairs_per_user: int = 20,
    skew: float = 0.8,
    noise: float = 0.1,
    seed: int = 0,
) -> dict[str, Interactions]:
    """Return train, valid and test pairs of users who like the items of their own block.

    Entity e belongs to block e mod num_blocks. A user has pairs_per_user items on average (half to one and a half
    times as many), drawn without replacement. About 1 - noise of them are of the user's block, the others of any
    block; within these, the r-th most popular item of a block is drawn in proportion to r ** -skew.
    A fifth of each user's items are test, a tenth valid (at least one each).
    """
    rng = np.random.default_rng(seed_for(seed, "generate_blocks"))
    block = np.arange(num_items) % num_blocks
    popularity = np.empty(num_items)
    for members in (np.flatnonzero(block == b) for b in range(num_blocks)):
        popularity[members] = (1.0 + rng.permutation(len(members))) ** -skew
    anywhere = popularity / popularity.sum()
    inside = popularity / np.bincount(block, weights=popularity)[block]
    num_pairs = rng.integers(pairs_per_user // 2, pairs_per_user + pairs_per_user // 2 + 1, size=num_users)
    users, items = [], []
    for user in np.array_split(np.arange(num_users), 1 + num_users * num_items // 10_000_000):  # bounds the memory
        same = (user[:, None] % num_blocks) == block
        chance = noise * anywhere + (1 - noise) * np.where(same, inside, 0.0)  # (users, items)
        with np.errstate(divide="ignore"):
            order = np.argsort(-(np.log(chance) + rng.gumbel(size=chance.shape)), axis=1)  # the Gumbel top-k trick
        taken = np.arange(num_items) < num_pairs[user][:, None]
        users.append(np.repeat(user, num_pairs[user]))
        items.append(order[taken])
    pairs = Interactions.from_pairs(np.concatenate(users), np.concatenate(items), num_users, num_items)
    in_test = draw_per_user(pairs.user, np.maximum(1, num_pairs // 5), rng)
    rest = _select(pairs, ~in_test)
    in_valid = draw_per_user(rest.user, np.maximum(1, num_pairs // 10), rng)
    return {"train": _select(rest, ~in_valid), "valid": _select(rest, in_valid), "test": _select(pairs, in_test)}


def generated_arguments(arguments: Mapping, where: str) -> dict:
    """Return the arguments of generate_blocks after checking them; raises ConfigError."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(generate_blocks).parameters.items()}
    _check_keys(arguments, defaults, f"{where}: generate")
    full = {**defaults, **arguments}
    for key, value in full.items():
        kinds = (int, float) if key in ("skew", "noise") else (int,)
        if type(value) not in kinds or value < 0:
            raise ConfigError(f"{where}: generate: {key} is {value!r}; it must be a number of at least 0")
    block_size = full["num_items"] // max(1, full["num_blocks"])
    most = full["pairs_per_user"] + full["pairs_per_user"] // 2
    if not 1 <= full["num_blocks"] <= full["num_users"] or full["pairs_per_user"] < 6 or full["noise"] > 1:
        raise ConfigError(
            f"{where}: generate needs num_blocks from 1 to num_users, pairs_per_user of at least 6 and noise up to 1"
        )
    if most > block_size:
        raise ConfigError(
            f"{where}: generate: users may have {most} items (1.5 x pairs_per_user), more than the {block_size} "
            "of a block; lower pairs_per_user or num_blocks, or raise num_items"
        )
    return full
