"""Readers, cleaning, split recipes, the prepare step and made-up data, each on an example small enough to check."""

import csv
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse.linalg

from c2f import data
from c2f.data import DatasetSpec, Interactions, draw_per_user, generate_blocks, load_pairs, load_stats, prepare
from c2f.download import download
from c2f.errors import ConfigError, DataError
from c2f.seeds import seed_for

REAL = Path(__file__).parents[1] / ".." / "shared" / "datasets"


def entry(text: str) -> dict:
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def prepare_texts(folder: Path, files: dict[str, str], **spec) -> Path:
    """Write raw files, prepare them (as dataset `toy`, recipe legcf unless told) and return the output folder."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    for name, text in files.items():
        (raw / name).write_text(text)
    prepare("toy", {"files": {n: entry(t) for n, t in files.items()}, "recipe": "legcf", **spec}, raw, folder / "out")
    return folder / "out"


def loaded(output: Path, part: str) -> Interactions:
    return load_pairs(output / f"{part}.parquet", load_stats(output / "stats.json"))


def published_ids(output: Path) -> dict[str, list]:
    """Return kind -> the published id (int) or name (str) of every id, from ids.csv."""
    ids: dict[str, list] = {"user": [], "item": []}
    with open(output / "ids.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["id"]) == len(ids[row["kind"]])  # 0, 1, ... without gaps
            ids[row["kind"]].append(int(row["name"]) if row["name"].isdigit() else row["name"])
    return ids


def pairs_of(output: Path, part: str) -> list[tuple]:
    """Return the (user, item) pairs in published ids, sorted."""
    ids, pairs = published_ids(output), loaded(output, part)
    return sorted((ids["user"][u], ids["item"][i]) for u, i in zip(pairs.user, pairs.item, strict=True))


# Readers ---------------------------------------------------------------------


def written(path: Path, text: str) -> Path:
    path.write_text(text, newline="")
    return path


def listed(raw: data.RawPairs) -> list[tuple]:
    return list(zip(raw.user.tolist(), raw.item.tolist(), raw.line.tolist(), strict=True))


def test_lists_tolerate_trailing_blanks_blank_lines_and_users_without_items(tmp_path):
    raw = data.read_lists(written(tmp_path / "train.txt", "0 3 1  \n1\n\n2 \t5\r\n0 7"))
    assert listed(raw) == [(0, 3, 1), (0, 1, 1), (2, 5, 4), (0, 7, 5)]  # user, item, line
    assert raw.empty.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("0 1\n1 -2 3\n", ["line 2", "'-2'", "'1 -2 3'", "whole numbers from 0"]),
        ("0 1\n1 2.5\n", ["line 2", "'2.5'", "remap: true"]),
        ("0 1\n\n1 two\n", ["line 3", "'two'"]),
        ("0,1,2\n", ["line 1", "'0,1,2'"]),
        ("0 1\n1 1_0\n", ["line 2", "'1_0'"]),
        ("0 1\n1 99999999999999999999999\n", ["line 2", "largest possible"]),
        ("0 1\n1 2147483647\n", ["line 2", "2,147,483,646"]),
    ],
)
def test_a_bad_id_in_lists_is_refused_by_file_line_and_text(tmp_path, text, pieces):
    path = written(tmp_path / "train.txt", text)
    with pytest.raises(DataError) as error:
        data.read_lists(path)
    for piece in [str(path), *pieces]:
        assert piece in str(error.value)


def test_recbole_inter_columns_are_found_by_name_whatever_their_type_and_place(tmp_path):
    text = "rating:float\titem_id:token\tuser_id:token\n4.5\t7\t0\n1.0\t8\t1\n"
    raw = data.read_table(written(tmp_path / "train.inter", text), ("user_id", "item_id"))
    assert listed(raw) == [(0, 7, 2), (1, 8, 3)]


def test_csv_fields_may_be_quoted_and_other_columns_are_ignored(tmp_path):
    text = 'user,title,item\r\n0,"one, two",3\r\n\r\n1,x,4\r\n'
    raw = data.read_table(written(tmp_path / "train.csv", text), ("user", "item"))
    assert listed(raw) == [(0, 3, 2), (1, 4, 4)]


def test_a_table_without_header_is_read_by_position_and_separator(tmp_path):
    raw = data.read_table(written(tmp_path / "train.dat", "0::3::5\n1::4::1\n"), (0, 1), "::")
    assert listed(raw) == [(0, 3, 1), (1, 4, 2)]


@pytest.mark.parametrize(
    ("name", "text", "columns", "pieces"),
    [
        ("a.tsv", "user\titem\n0\t1\n1\n", ("user", "item"), ["line 3", "1 fields instead of 2", "'1'"]),
        ("a.tsv", "user\titem\n0\t\n", ("user", "item"), ["line 2", "an id is missing"]),
        ("a.tsv", "user\titem\n0\t-1\n", ("user", "item"), ["line 2", "'-1'", "whole numbers"]),
        ("a.tsv", "user\titem\nu7\t1\n", ("user", "item"), ["line 2", "'u7'", "remap: true"]),
        ("a.tsv", "user\titem\n1\t" + "9" * 5000, ("user", "item"), ["line 2", "largest possible"]),
        ("a.tsv", "usr\titem\n0\t1\n", ("user", "item"), ["line 1", "no column 'user'", "did you mean 'usr'"]),
        ("a.tsv", "0\t1\n", (0, 2), ["line 1", "none at position 2"]),
        ("a.csv", 'user,item\n0,"1\n', ("user", "item"), ["line 2", "unexpected end"]),
        ("a.csv", "", ("user", "item"), ["is empty"]),
    ],
)
def test_a_bad_table_is_refused_by_file_line_and_text(tmp_path, name, text, columns, pieces):
    path = written(tmp_path / name, text)
    with pytest.raises(DataError) as error:
        data.read_table(path, columns)
    for piece in [str(path), *pieces]:
        assert piece in str(error.value)


def test_a_table_of_unknown_ending_needs_a_separator(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.dat.*set `separator`"):
        data.read_table(written(tmp_path / "train.dat", "0|1\n"), (0, 1))


def test_a_file_that_is_no_text_is_refused_by_line(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"user\titem\n0\t\xff\xfe\n")
    with pytest.raises(DataError, match=r"train\.tsv line 2: not UTF-8"):
        data.read_table(path, ("user", "item"))


# Cleaning --------------------------------------------------------------------


def test_duplicates_are_dropped_and_counted(tmp_path):
    output = prepare_texts(tmp_path, {"train.txt": "0 1 2 1\n1 0\n0 2\n", "test.txt": "0 3 4 3\n1 1 2\n"})
    assert pairs_of(output, "train") == [(0, 1), (0, 2), (1, 0)]
    first, second, _ = load_stats(output / "stats.json")["warnings"]
    assert first.startswith("train.txt: 2 duplicate pairs dropped") and "line 1: user 0, item 1" in first
    assert second.startswith("test.txt: 1 duplicate pairs dropped")


def test_counts_are_one_plus_the_largest_id_and_gaps_are_reported(tmp_path):
    # users 0, 1 and 3 (the last without items); items 0, 1, 2, 9, of which 9 is only in test
    output = prepare_texts(tmp_path, {"train.txt": "0 0 1\n1 2\n3\n", "test.txt": "0 9 2\n1 0 1\n"})
    stats = load_stats(output / "stats.json")
    assert (stats["num_users"], stats["num_items"]) == (4, 10)
    assert stats["warnings"] == [
        "user ids: 1 of 4 occur in no file",
        "item ids: 6 of 10 occur in no file",
        "train.txt: 1 users without items",
        "items: 7 of 10 have no training pair (isolated nodes)",
    ]


def test_one_huge_id_is_refused_before_it_fills_the_memory(tmp_path):
    with pytest.raises(DataError, match=r"item ids reach 1,999,999,999 but only 4 occur.*remap: true"):
        prepare_texts(tmp_path, {"train.txt": "0 0 1\n", "test.txt": "0 2 1999999999\n"})


def test_a_pair_in_train_and_test_is_refused_with_both_lines(tmp_path):
    with pytest.raises(DataError) as error:
        prepare_texts(tmp_path, {"train.txt": "0 1 2\n1 5\n", "test.txt": "0 3 4\n1 6 5\n"})
    for piece in ["test.txt line 2: user 1, item 5", "train.txt has this pair too, on line 2", "`overlap: drop`"]:
        assert piece in str(error.value)


def test_overlap_drop_takes_the_pair_out_of_test_and_counts_it(tmp_path):
    files = {"train.txt": "0 0\n", "valid.txt": "0 0 1 2\n", "test.txt": "0 0 2 3\n"}
    output = prepare_texts(tmp_path, files, recipe="given", overlap="drop")
    assert pairs_of(output, "valid") == [(0, 1)]  # 0 is in train, 2 is in test
    assert pairs_of(output, "test") == [(0, 2), (0, 3)]
    assert load_stats(output / "stats.json")["warnings"][:3] == [
        "test.txt: 1 pairs dropped that train.txt has too",
        "valid.txt: 1 pairs dropped that train.txt has too",
        "valid.txt: 1 pairs dropped that test.txt has too",
    ]


UNKNOWN = {"train.txt": "0 1 2\n2\n", "test.txt": "0 3 4\n2 3\n5 1 2\n"}  # train lists user 2 without items, lacks 5


def test_users_of_test_whom_train_lacks_are_refused_by_name_and_line(tmp_path):
    with pytest.raises(DataError) as error:
        prepare_texts(tmp_path, UNKNOWN)
    for piece in ["test.txt line 2: user 2", "(2 such users: 2, 5)", "`unknown_users: drop`", "`unknown_users: keep`"]:
        assert piece in str(error.value)


@pytest.mark.parametrize(("rule", "held_out"), [("drop", 2), ("keep", 5)])
def test_unknown_users_may_be_dropped_or_kept(tmp_path, rule, held_out):
    stats = load_stats(prepare_texts(tmp_path, UNKNOWN, unknown_users=rule) / "stats.json")
    assert stats["num_valid"] + stats["num_test"] == held_out
    assert any(note.startswith("test.txt: 3 pairs of 2 users without training pairs") for note in stats["warnings"])


def test_names_are_numbered_over_all_files_and_come_back(tmp_path):
    files = {"train.csv": "user,item\nzoe,tea\nann,ham\nzoe,egg\n", "test.csv": "user,item\nann,tea\nann,jam\n"}
    output = prepare_texts(tmp_path, files, format="table", columns=["user", "item"], remap=True)
    assert pairs_of(output, "train") == [("ann", "ham"), ("zoe", "egg"), ("zoe", "tea")]
    assert sorted(pairs_of(output, "valid") + pairs_of(output, "test")) == [("ann", "jam"), ("ann", "tea")]
    header, *rows = (output / "ids.csv").read_text().replace('"', "").split()
    assert header == "kind,id,name"
    assert [row.rsplit(",", 1)[0] for row in rows] == ["user,0", "user,1", "item,0", "item,1", "item,2", "item,3"]
    ids = published_ids(output)
    assert sorted(ids["user"]) == ["ann", "zoe"] and sorted(ids["item"]) == ["egg", "ham", "jam", "tea"]


def test_messages_name_the_published_ids_also_after_numbering(tmp_path):
    with pytest.raises(DataError, match=r"test\.txt line 1: user bob, item tea.*1 such users: bob"):
        prepare_texts(tmp_path, {"train.txt": "zoe tea\n", "test.txt": "bob tea\n"}, remap=True)


def test_k_core_removes_again_until_all_have_k_and_renumbers(tmp_path):
    # Item 9 has a single user, so it goes; then user 3 has a single item left and goes too.
    files = {"train.txt": "1 4 6\n3 6 9\n5 4 6 8\n7 6 8\n", "test.txt": "1 8\n3 4\n5 9\n7 4\n"}
    output = prepare_texts(tmp_path, files, recipe="holdout", k_core=2)
    core = [(1, 4), (1, 6), (5, 4), (5, 6), (5, 8), (7, 6), (7, 8)]
    assert sorted(pairs_of(output, "train") + pairs_of(output, "valid")) == core
    assert pairs_of(output, "test") == [(1, 8), (7, 4)]  # user 3 and item 9 are gone
    assert {kind: sorted(ids) for kind, ids in published_ids(output).items()} == {"user": [1, 5, 7], "item": [4, 6, 8]}
    stats = load_stats(output / "stats.json")
    assert (stats["num_users"], stats["num_items"], stats["k_core"]) == (3, 3, 2)
    assert "2-core: 3 of 8 users and 3 of 10 items" in stats["warnings"]


def test_k_core_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="k_core 3 leaves no training pair"):
        prepare_texts(tmp_path, {"train.txt": "0 1 2\n1 1 2\n", "test.txt": "0 3 4\n"}, k_core=3)


# Split recipes ---------------------------------------------------------------


def toy(num_items_of: list[int], first_item: int = 0) -> Interactions:
    """User u has num_items_of[u] items, numbered from first_item."""
    user = np.repeat(np.arange(len(num_items_of)), num_items_of)
    item = np.concatenate([np.arange(n) for n in num_items_of]) + first_item
    return Interactions.from_pairs(user, item, len(num_items_of), first_item + max(num_items_of))


def per_user(pairs: Interactions) -> list[int]:
    return np.bincount(pairs.user, minlength=pairs.num_users).tolist()


def test_legcf_takes_a_third_rounded_up_of_the_test_items_for_validation():
    #        n:  1  2  3  4  5  6  7  8  9 10
    expected = [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    published = {"train": toy([5] * 10), "test": toy(list(range(1, 11)), first_item=5)}
    parts = data.split(published, "legcf", np.random.default_rng(0))
    assert per_user(parts["valid"]) == expected
    assert per_user(parts["test"]) == [n - e for n, e in zip(range(1, 11), expected, strict=True)]
    assert parts["train"] is published["train"]


def test_holdout_takes_a_tenth_of_the_training_items_and_leaves_every_user_some():
    #         n: 1  2  9 10 19 20 35
    train = toy([1, 2, 9, 10, 19, 20, 35])
    test = toy([1] * 7, first_item=35)
    parts = data.split({"train": train, "test": test}, "holdout", np.random.default_rng(0))
    assert per_user(parts["valid"]) == [0, 1, 1, 1, 1, 2, 3]
    assert min(per_user(parts["train"])) == 1
    assert parts["test"] is test


@pytest.mark.parametrize(
    ("recipe", "train", "valid", "test"),
    [("given", 10, 2, 6), ("legcf", 12, 2, 4), ("holdout", 11, 1, 6)],  # ceil(6 / 3) = 2 of test; 12 // 10 = 1 of train
)
def test_published_validation_pairs_are_training_pairs_where_a_recipe_draws_its_own(
    tmp_path, recipe, train, valid, test
):
    """A user with 10 training, 2 validation and 6 test items: 18 pairs under every recipe."""
    files = {"train.txt": "0 0 1 2 3 4 5 6 7 8 9\n", "valid.txt": "0 10 11\n", "test.txt": "0 12 13 14 15 16 17\n"}
    output = prepare_texts(tmp_path, files, recipe=recipe)
    counts = {"train": train, "valid": valid, "test": test}
    assert {part: len(pairs_of(output, part)) for part in counts} == counts
    assert sorted(item for part in counts for _, item in pairs_of(output, part)) == list(range(18))
    held_out = {item for _, item in pairs_of(output, "test")}
    assert held_out <= set(range(12, 18))  # no recipe tests on what was published for training or validation


def test_k_core_keeps_the_same_pairs_under_every_recipe(tmp_path):
    """By published training pairs alone: user 2 and item 3 go, though each has one more in valid.txt."""
    files = {"train.txt": "0 0 1\n1 0 1 3\n2 0\n3 2 4 5\n4 2 4 5\n"}
    files |= {"valid.txt": "0 3\n1 2\n2 1\n", "test.txt": "0 2 4 5\n1 4\n2 3\n"}
    train = [(0, 0), (0, 1), (1, 0), (1, 1), *((user, item) for user in (3, 4) for item in (2, 4, 5))]
    for recipe in data.RECIPE_FILES:
        output = prepare_texts(tmp_path, files, recipe=recipe, k_core=2)
        kept = sorted(pair for part in data.ROLES for pair in pairs_of(output, part))
        assert kept == sorted([*train, (1, 2), (0, 2), (0, 4), (0, 5), (1, 4)])


@pytest.mark.parametrize(("recipe", "source"), [("legcf", "test"), ("holdout", "train")])
def test_valid_and_rest_are_disjoint_sorted_and_together_what_was_published(recipe, source):
    rng = np.random.default_rng(3)
    published = {"train": toy(rng.integers(1, 30, 50).tolist()), "test": toy(rng.integers(1, 30, 50).tolist(), 30)}
    parts = data.split(published, recipe, rng)
    valid, rest = (
        {(int(u), int(i)) for u, i in zip(p.user, p.item, strict=True)} for p in (parts["valid"], parts[source])
    )
    assert not valid & rest
    union = sorted(valid | rest)
    assert union == list(zip(published[source].user.tolist(), published[source].item.tolist(), strict=True))
    for part in parts.values():
        order = part.user.astype(np.int64) * part.num_items + part.item
        assert (np.diff(order) > 0).all()


def test_draw_per_user_draws_every_pair_equally_often():
    user = np.array([0, 0, 0, 0, 1, 1])
    drawn = sum(draw_per_user(user, np.array([2, 1]), np.random.default_rng(s)).astype(int) for s in range(4000))
    assert np.allclose(drawn / 4000, 0.5, atol=0.04)  # 2 of 4, 1 of 2; the standard error is 0.008


LISTS = {"train.txt": "0 0 1 2\n1 3 4\n", "test.txt": "0 3 4 5 6 7 8 9\n1 0 1 2 5 6 7 8 9\n"}


def test_split_seed_alone_moves_the_split(tmp_path):
    def valid(split_seed: int) -> list:
        return pairs_of(prepare_texts(tmp_path, LISTS, split_seed=split_seed), "valid")

    np.random.seed(1)  # noqa: NPY002 - a global generator must not matter
    first = valid(0)
    np.random.seed(2)  # noqa: NPY002
    assert valid(0) == first
    assert valid(1) != first


# Numbering -------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["legcf", "holdout", "given"])
def test_the_split_is_that_of_the_published_ids(tmp_path, recipe):
    users, items = np.repeat(np.arange(30), 40), np.tile(np.arange(40), 30)
    of_file = np.random.default_rng(0).permuted(np.tile(np.arange(40) % 4, (30, 1)), axis=1).ravel()
    published = {
        name: Interactions.from_pairs(users[of_file == n], items[of_file == n], 30, 40)
        for n, name in enumerate(data.RECIPE_FILES[recipe])
    }
    files = {
        f"{name}.txt": "".join(f"{u} {' '.join(map(str, p.item[p.user == u]))}\n" for u in range(30))
        for name, p in published.items()
    }
    output = prepare_texts(tmp_path, files, recipe=recipe, split_seed=7)
    rng = np.random.default_rng(seed_for(7, "toy", "split", recipe))  # as if nothing were renumbered
    for part, pairs in data.split(published, recipe, rng).items():
        assert pairs_of(output, part) == list(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True))
        assert loaded(output, part).sha256() != pairs.sha256()


def test_every_published_id_comes_back_also_those_without_a_pair(tmp_path):
    # users 0, 1 and 3 (the last without items); items 0, 1, 2, 9, of which 9 is only in test
    output = prepare_texts(tmp_path, {"train.txt": "0 0 1\n1 2\n3\n", "test.txt": "0 9 2\n1 0 1\n"})
    assert {kind: sorted(ids) for kind, ids in published_ids(output).items()} == {
        "user": list(range(4)),
        "item": list(range(10)),
    }
    assert pairs_of(output, "train") == [(0, 0), (0, 1), (1, 2)]
    assert sorted(pairs_of(output, "valid") + pairs_of(output, "test")) == [(0, 2), (0, 9), (1, 0), (1, 1)]


def test_shuffled_pairs_are_sorted_and_old_numbers_are_those_of_the_new():
    pairs = {"train": toy([3, 1, 4, 1, 5]), "test": toy([2, 6, 5, 3, 5])}
    pairs = {part: Interactions(p.user, p.item, 5, 6) for part, p in pairs.items()}
    shuffled, old = data.shuffle_ids(pairs, np.random.default_rng(0))
    for part, p in pairs.items():
        new = shuffled[part]
        assert (np.diff(new.user.astype(np.int64) * 6 + new.item) > 0).all()
        assert (new.user.dtype, new.item.dtype) == (np.int32, np.int32)
        back = Interactions.from_pairs(old["user"][new.user], old["item"][new.item], 5, 6)
        assert back.sha256() == p.sha256()


def test_the_numbering_depends_on_split_seed_and_name_and_not_on_the_recipe(tmp_path):
    def ids(name: str = "toy", **spec) -> dict:
        files = {file: entry(text) for file, text in LISTS.items()}
        prepare(name, {"files": files, "recipe": "legcf", **spec}, tmp_path / "raw", tmp_path / "out")
        return published_ids(tmp_path / "out")

    prepare_texts(tmp_path, LISTS)  # writes the raw files
    assert ids() == ids(recipe="holdout")
    assert ids()["item"] != ids(split_seed=1)["item"]
    assert ids()["item"] != ids("other")["item"]


def test_ids_tell_nothing_of_the_graph(tmp_path):
    spec = {"generate": {}, "recipe": "given"}  # entry e of the raw files belongs to block e mod 8
    download("blocks", spec, tmp_path / "raw")
    prepare("blocks", spec, tmp_path / "raw", tmp_path / "out")
    raw, train = data.read_lists(tmp_path / "raw" / "train.txt"), loaded(tmp_path / "out", "train")
    block = np.array(published_ids(tmp_path / "out")["item"]) % 8

    def largest_share(block: np.ndarray) -> float:
        """How much of the items that share id mod 8, as quotient-remainder lets them share rows, is of one block."""
        return float(np.mean([np.bincount(block[r::8]).max() / len(block[r::8]) for r in range(8)]))

    assert largest_share(np.arange(400) % 8) == 1.0
    assert largest_share(block) < 0.3  # 50 items in 8 blocks; the largest of equal chances is about 0.22
    assert np.mean(raw.user % 8 == raw.item % 8) > 0.85
    assert abs(np.mean(train.user % 8 == train.item % 8) - 1 / 8) < 0.04


def test_ids_by_first_appearance_do_not_keep_their_order(tmp_path):
    def lines(first: int, last: int) -> str:  # user u has the items 30 u to 30 u + 29
        return "".join(f"{u} {' '.join(str(30 * u + n) for n in range(first, last))}\n" for u in range(200))

    files = {"train.txt": lines(0, 20), "test.txt": lines(20, 30)}
    train = loaded(prepare_texts(tmp_path, files), "train")
    assert abs(np.corrcoef(train.user, train.item)[0, 1]) < 0.1  # published: 1.0


# The prepare step ------------------------------------------------------------


def test_stats_tell_counts_masks_checksums_and_sources(tmp_path):
    output = prepare_texts(tmp_path, LISTS)
    stats = load_stats(output / "stats.json")
    user, item = published_ids(output).values()
    train = sorted((user.index(u), item.index(i)) for u, i in [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4)])
    columns = np.array(train, dtype="<i4").T  # users, then items
    assert stats["sha256"]["train"] == hashlib.sha256(columns.tobytes()).hexdigest()
    assert stats["source"] == {name: entry(text)["sha256"] for name, text in LISTS.items()}
    del stats["sha256"], stats["source"]
    assert stats == {
        "name": "toy", "recipe": "legcf", "split_seed": 0, "num_users": 2, "num_items": 10, "num_train": 5,
        "num_valid": 6, "num_test": 9, "mask_at_test": ["train"], "k_core": 0,
        "ids": "renumbered at random; ids.csv has the published ones",
        "warnings": ["items: 5 of 10 have no training pair (isolated nodes)"],
    }  # fmt: skip


def test_holdout_and_given_mask_train_and_valid_at_test(tmp_path):
    assert load_stats(prepare_texts(tmp_path, LISTS, recipe="holdout") / "stats.json")["mask_at_test"] == [
        "train",
        "valid",
    ]
    files = {**LISTS, "valid.txt": "0 10\n"}
    output = prepare_texts(tmp_path, files, recipe="given")
    assert load_stats(output / "stats.json")["mask_at_test"] == ["train", "valid"]
    assert pairs_of(output, "valid") == [(0, 10)]


def test_prepare_writes_the_same_bytes_again_and_nothing_else(tmp_path):
    def contents() -> dict:
        return {p.name: p.read_bytes() for p in prepare_texts(tmp_path, LISTS).iterdir()}

    first = contents()
    named = ["ids.csv", "serving.npz", "stats.json", "test.parquet", "train.parquet", "valid.parquet"]
    assert sorted(first) == named
    assert contents() == first


def test_a_missing_raw_file_is_named_with_the_way_to_get_it(tmp_path):
    spec = {"files": {name: entry(text) for name, text in LISTS.items()}, "recipe": "legcf"}
    with pytest.raises(DataError, match=r"raw/train\.txt is missing; fetch it with `python -m c2f download`"):
        prepare("toy", spec, tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_raw_file_changed_after_the_download_is_refused(tmp_path):
    prepare_texts(tmp_path, LISTS)
    (tmp_path / "raw" / "test.txt").write_text(LISTS["test.txt"][:-5])
    spec = {"files": {name: entry(text) for name, text in LISTS.items()}, "recipe": "legcf"}
    with pytest.raises(DataError, match=r"raw/test\.txt is truncated or changed: .* bytes with sha256 .* instead of"):
        prepare("toy", spec, tmp_path / "raw", tmp_path / "out")


def test_an_empty_raw_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"test\.txt holds no pairs"):
        prepare_texts(tmp_path, {"train.txt": "0 1\n", "test.txt": "0\n\n"})


@pytest.mark.parametrize("step", ["write_table", "replace"])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, monkeypatch, step):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((data.pq, "write_table") if step == "write_table" else (os, "replace")), full)
    with pytest.raises(DataError, match=r"cannot write .*out: No space left on device; free some space or choose"):
        prepare_texts(tmp_path, LISTS)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_prepare_leaves_no_stats_that_vouch_for_mixed_files(tmp_path, monkeypatch):
    output = prepare_texts(tmp_path, LISTS)
    replace, moved = os.replace, []

    def killed(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_texts(tmp_path, LISTS, split_seed=1)
    with pytest.raises(DataError, match="`python -m c2f prepare`"):
        load_stats(output / "stats.json")
    monkeypatch.undo()
    assert prepare_texts(tmp_path, LISTS, split_seed=1) and load_stats(output / "stats.json")["split_seed"] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    with pytest.raises(DataError, match=r"cannot write .*out: Permission denied; make the folder writable"):
        prepare_texts(tmp_path, LISTS)


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*out: "):
        prepare_texts(tmp_path, LISTS)


COUNT_THREADS = """
import os, sys
from pathlib import Path
from c2f.data import load_pairs, load_stats, read_parquet

data = Path(sys.argv[1])
before = os.listdir("/proc/self/task")
load_pairs(data / "train.parquet", load_stats(data / "stats.json"))
read_parquet(data / "train.parquet")
assert os.listdir("/proc/self/task") == before
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in Linux's /proc")
def test_reading_pairs_leaves_no_thread_behind(tmp_path):
    """One that still holds what it read when the interpreter ends aborts the process: seen in 7 of 100 short runs."""
    output = prepare_texts(tmp_path, LISTS)
    subprocess.run([sys.executable, "-c", COUNT_THREADS, output], check=True, cwd=Path(__file__).parents[1])


def test_damaged_pairs_are_refused(tmp_path):
    output = prepare_texts(tmp_path, LISTS)
    stats = load_stats(output / "stats.json")
    os.replace(output / "valid.parquet", output / "train.parquet")  # a whole file, but another
    with pytest.raises(DataError, match=r"train\.parquet is truncated or changed.*`python -m c2f prepare` again"):
        load_pairs(output / "train.parquet", stats)
    (output / "test.parquet").write_bytes((output / "test.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"test\.parquet is truncated or changed"):
        load_pairs(output / "test.parquet", stats)
    with pytest.raises(DataError, match=r"cannot read .*valid\.parquet"):
        load_pairs(output / "valid.parquet", stats)
    (output / "stats.json").write_text("{")
    with pytest.raises(DataError, match=r"stats\.json is truncated or changed"):
        load_stats(output / "stats.json")
    (output / "stats.json").write_text(json.dumps({"num_users": 3}))
    with pytest.raises(DataError, match=r"not a stats\.json of this version"):
        load_stats(output / "stats.json")


# Settings --------------------------------------------------------------------

FILES = {"train.txt": {"sha256": "0" * 64}, "test.txt": {"git_blob": "0" * 40, "urls": ["http://x/test.txt"]}}


@pytest.mark.parametrize(
    ("spec", "pieces"),
    [
        ({"files": FILES, "recipe": "legfc"}, ["recipe 'legfc'", "did you mean 'legcf'?"]),
        ({"files": FILES, "recipe": "legcf", "kcore": 5}, ["unknown key 'kcore'", "did you mean 'k_core'?"]),
        ({"files": FILES, "recipe": "legcf", "format": "tabel"}, ["format 'tabel'", "did you mean 'table'?"]),
        ({"files": FILES}, ["no `recipe`", "legcf, holdout, given"]),
        ({"recipe": "legcf"}, ["either `files` (published) or `generate` (made up)"]),
        ({"files": FILES, "recipe": "given"}, ["recipe given reads", "train, valid, test", "train.txt, test.txt"]),
        ({"files": {**FILES, "all.txt": FILES["train.txt"]}, "recipe": "holdout"}, ["train, test", "and a valid file"]),
        ({"files": FILES, "recipe": "legcf", "k_core": -1}, ["k_core is -1", "whole number of at least 0"]),
        ({"files": FILES, "recipe": "legcf", "split_seed": "a"}, ["split_seed is 'a'"]),
        ({"files": FILES, "recipe": "legcf", "remap": "yes"}, ["remap is 'yes'"]),
        ({"files": FILES, "recipe": "legcf", "overlap": "ignore"}, ["overlap 'ignore'", "drop, refuse"]),
        ({"files": FILES, "recipe": "legcf", "unknown_users": "keeep"}, ["did you mean 'keep'?"]),
        ({"files": FILES, "recipe": "legcf", "columns": ["user", "user"]}, ["columns", "two different"]),
        ({"files": FILES, "recipe": "legcf", "separator": ""}, ["separator is ''"]),
        ({"files": {**FILES, "train.txt": {"urls": []}}, "recipe": "legcf"}, ["train.txt", "`sha256` or `git_blob`"]),
        ({"files": {**FILES, "train.txt": {"sha256": "12"}}, "recipe": "legcf"}, ["sha256 '12'", "64 hex digits"]),
        ({"files": {**FILES, "train.txt": {"url": ""}}, "recipe": "legcf"}, ["'url'", "did you mean 'urls'?"]),
        ({"files": {**FILES, "../train.txt": FILES["train.txt"]}, "recipe": "legcf"}, ["plain file name"]),
        ({"files": ["train.txt"], "recipe": "legcf"}, ["give a mapping from file name"]),
        ({"generate": {"users": 5}, "recipe": "given"}, ["unknown key 'users'", "did you mean 'num_users'?"]),
        ({"generate": {"noise": 2}, "recipe": "given"}, ["noise up to 1"]),
        ({"generate": {"skew": "x"}, "recipe": "given"}, ["skew is 'x'"]),
        ({"generate": {"num_blocks": 50}, "recipe": "given"}, ["30 items", "the 8 of a block", "lower pairs_per_user"]),
        ({"generate": {}, "recipe": "given", "format": "table"}, ["made-up data is written as lists"]),
    ],
)
def test_settings_that_cannot_be_used_are_refused_with_the_way_out(spec, pieces):
    with pytest.raises(ConfigError) as error:
        DatasetSpec.parse("toy", spec)
    for piece in ["datasets: toy", *pieces]:
        assert piece in str(error.value)


# Made-up data ----------------------------------------------------------------


def test_generated_parts_are_disjoint_and_every_user_is_in_each():
    parts = generate_blocks(num_users=90, num_items=120, num_blocks=4, pairs_per_user=12)
    together = sum(part.csr() for part in parts.values())
    assert together.max() == 1
    for part in parts.values():
        assert min(per_user(part)) >= 1
    assert 0.8 * 12 < together.sum() / 90 < 1.2 * 12


def test_generated_pairs_stay_in_the_block_but_for_the_noise():
    def share_inside(noise: float) -> float:
        train = generate_blocks(num_users=300, noise=noise)["train"]
        return float((train.user % 8 == train.item % 8).mean())

    assert share_inside(0.0) == 1.0
    assert abs(share_inside(0.2) - (0.8 + 0.2 / 8)) < 0.08  # an eighth of "any block" is the user's own


def test_generated_popularity_follows_the_skew():
    def top_share(skew: float) -> float:
        counts = np.sort(np.bincount(generate_blocks(skew=skew)["train"].item, minlength=400))[::-1]
        return counts[:40].sum() / counts.sum()

    assert top_share(0.0) < 0.2 < 0.25 < top_share(1.0)


def test_generated_data_depend_on_their_seed_alone():
    first, again, other = (generate_blocks(num_users=50, seed=seed)["train"] for seed in (0, 0, 1))
    assert first.sha256() == again.sha256() != other.sha256()


def test_on_generated_blocks_a_model_that_learns_blocks_beats_popularity_clearly():
    parts = generate_blocks()
    train, test = parts["train"].csr(), parts["test"].csr()
    seen = train.toarray() > 0

    def recall_at_20(scores: np.ndarray) -> float:
        top = np.argsort(np.where(seen, -np.inf, scores), axis=1)[:, -20:]
        return float((np.take_along_axis(test.toarray(), top, 1).sum(1) / test.sum(axis=1)).mean())

    popularity = np.broadcast_to(np.asarray(train.sum(axis=0)), train.shape)
    u, s, vt = scipy.sparse.linalg.svds(train, k=8, rng=np.random.default_rng(0))
    assert recall_at_20((u * s) @ vt) > 2 * recall_at_20(popularity)


# Promises to the rest of the house -------------------------------------------


def test_data_steps_need_no_torch():
    code = "import sys, c2f.data, c2f.download; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def real_spec(name: str, files: list[str], recipe: str) -> dict:
    rows = [line.split("|") for line in (REAL / "README.md").read_text().splitlines() if line.startswith(f"| {name}/")]
    sums = {row[1].strip().split("/")[1]: row[3].strip() for row in rows}
    return {"files": {file: {"sha256": sums[file]} for file in files}, "recipe": recipe}


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real datasets in ../shared/datasets")
@pytest.mark.parametrize(
    ("name", "recipe", "counts", "valid"),
    [
        ("gowalla", "legcf", (29_858, 40_981, 810_128, 80_990, 136_252), "13b4022dbfdb"),
        ("gowalla", "holdout", (29_858, 40_981, 737_091, 73_037, 217_242), "022cfd74fcbd"),
        ("ml-1m", "given", (6_039, 3_628, 590_733, 80_897, 164_848), "45c77b44e69d"),
        ("ml-1m", "legcf", (6_039, 3_628, 671_630, 57_015, 107_833), "286ab57100aa"),
        ("ml-1m", "holdout", (6_039, 3_628, 607_174, 64_456, 164_848), "154ee1d795cd"),
        ("lastfm", "given", (1_885, 17_388, 64_315, 9_143, 18_321), "a8c2e5046809"),
        ("lastfm", "legcf", (1_885, 17_388, 73_458, 7_325, 10_996), "8bb7d4f06379"),
        ("lastfm", "holdout", (1_885, 17_388, 66_130, 7_328, 18_321), "d739a0e11013"),
    ],
)
def test_real_datasets_have_their_published_counts_and_one_split_in_published_ids(
    tmp_path, name, recipe, counts, valid
):
    """valid: how the checksum of the validation pairs in published ids begins; it must never change."""
    files = ["train.txt", "test.txt"] if name == "gowalla" else ["train.txt", "valid.txt", "test.txt"]
    prepare(name, real_spec(name, files, recipe), REAL / name, tmp_path)
    stats = load_stats(tmp_path / "stats.json")
    assert tuple(stats[f"num_{what}"] for what in ("users", "items", "train", "valid", "test")) == counts
    assert len(load_pairs(tmp_path / "train.parquet", stats)) == counts[2]
    assert Interactions.from_pairs(*np.array(pairs_of(tmp_path, "valid")).T, *counts[:2]).sha256().startswith(valid)
    assert not [note for note in stats["warnings"] if "no training pair" not in note]


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real datasets in ../shared/datasets")
def test_yelp2020_test_file_gives_the_published_legcf_split():
    raw = data.read_lists(REAL / "yelp2020" / "test.txt")
    test = Interactions.from_pairs(raw.user, raw.item, 71_135, 45_063)
    parts = data.split({"train": test, "test": test}, "legcf", np.random.default_rng(0))
    assert (len(test), len(parts["valid"]), len(parts["test"])) == (384_561, 146_485, 238_076)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real datasets in ../shared/datasets")
def test_gowalla_is_read_in_well_under_two_seconds():
    start = time.perf_counter()
    data.read_lists(REAL / "gowalla" / "train.txt")
    assert time.perf_counter() - start < 1.0
