"""Diagnostics against sums written out by hand and naive loops; then those of whole runs on made-up data."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import interactions
from steps import prepared, resolved, step, trained

from baselines.hashing import DoubleHashing, QuotientRemainder
from baselines.legcf import LEGCF
from baselines.quantised import QuantisedTable
from c2f.data import load_pairs, load_stats
from c2f.diagnostics import (
    Codes,
    by_item_popularity,
    by_user_activity,
    collision_rate,
    evenness,
    gini,
    num_duplicates,
    num_with_twin,
    of_codes,
    of_run,
    recommended,
)
from c2f.evaluate import DotProducts, TopLists, rank, top_lists, union, user_metrics
from c2f.method import load_class
from c2f.record import Artifact
from c2f.run import load_scorer

# Lists -----------------------------------------------------------------------


def test_an_item_in_no_list_is_never_recommended():
    lists = np.array([[0, 3], [3, 0], [0, 1]])  # items 2 and 4 are nobody's
    found = recommended(lists, 5, [1, 2])
    assert found["never_recommended@1"] == 3 / 5  # firsts: 0, 3, 0
    assert found["never_recommended@2"] == 2 / 5


def test_the_places_of_a_user_who_has_no_item_left_recommend_nothing():
    assert recommended(np.array([[1, -1], [1, 0]]), 4, [2])["never_recommended@2"] == 2 / 4


def test_gini_is_the_mean_difference_of_two_items_over_twice_the_mean():
    assert gini(np.array([3, 3, 3])) == 0
    assert gini(np.array([0, 0, 0, 8])) == 3 / 4
    counts = np.random.default_rng(0).integers(9, size=12)
    differences = sum(abs(int(one) - int(other)) for one in counts for other in counts) / 12**2
    assert gini(counts) == pytest.approx(differences / (2 * counts.mean()))
    assert gini(np.zeros(3)) is None


def test_users_are_grouped_by_activity_with_ties_in_the_order_of_their_ids():
    pairs = np.array([5, 1, 1, 9, 2, 7, 7, 7, 3, 4, 8, 6])  # 12 users: groups of 2, 2, and eight of 1
    metrics = {"user": np.arange(12), "held_out": np.ones(12), "recall@20": np.arange(12) / 10}
    rows = by_user_activity(pairs, metrics)
    members = [[1, 2], [4, 8], [9], [0], [11], [5], [6], [7], [10], [3]]
    assert [row["users"] for row in rows] == [len(group) for group in members]
    assert [(row["least_pairs"], row["most_pairs"]) for row in rows[:3]] == [(1, 1), (2, 3), (4, 4)]
    for row, group in zip(rows, members, strict=True):
        assert row["recall@20"] == pytest.approx(sum(user / 10 for user in group) / len(group))
        assert list(row) == ["users", "least_pairs", "most_pairs", "recall@20"]


def test_fewer_users_than_groups_leave_the_last_groups_empty():
    rows = by_user_activity(np.array([4, 2]), {"recall@5": np.array([0.5, 1.0])})
    assert [row["recall@5"] for row in rows] == [1.0, 0.5] + [None] * 8
    assert rows[2] == {"users": 0, "least_pairs": None, "most_pairs": None, "recall@5": None}


def test_items_are_grouped_so_that_every_group_has_a_tenth_of_the_training_pairs():
    pairs = np.array([10, 5, 10, 1, 10, 10, 4, 20, 10, 10, 10, 0])  # 100 pairs
    held_out, hits = np.arange(1, 13), {20: np.arange(12) // 2, 5: np.zeros(12, dtype=int)}
    rows = by_item_popularity(pairs, held_out, hits)
    # 0, 1, 4 and 5 pairs make the first tenth; 20 pairs lie from 80 to 100, their middle in the last tenth.
    members = [[11, 3, 6, 1], [0], [2], [4], [5], [8], [9], [10], [], [7]]
    assert [row["items"] for row in rows] == [len(group) for group in members]
    assert (rows[0]["least_pairs"], rows[0]["most_pairs"]) == (0, 5)
    for row, group in zip(rows, members, strict=True):
        pairs_there = sum(item + 1 for item in group)
        assert row["held_out"] == pairs_there
        assert row["recall@20"] == (sum(item // 2 for item in group) / pairs_there if group else None)
        assert row["recall@5"] == (0 if group else None)


def test_a_popularity_group_without_a_held_out_pair_has_no_recall():
    rows = by_item_popularity(np.ones(10, dtype=int), np.eye(10, dtype=int)[4], {5: np.eye(10, dtype=int)[4]})
    assert [row["recall@5"] for row in rows] == [None] * 4 + [1.0] + [None] * 5


def random_run(seed, num_users=45, num_items=60):
    """Random scores, and disjoint train and test pairs of unequally active users and unequally popular items."""
    generator = np.random.default_rng(seed)
    chance = generator.random((num_users, 1)) ** 2 * generator.random(num_items) ** 2
    part = np.where(generator.random(chance.shape) < chance, 1, 2 * (generator.random(chance.shape) < 0.1))
    scores = generator.standard_normal((num_users, num_items)).astype(np.float32)
    train, test = (interactions(np.argwhere(part == p), num_users, num_items) for p in (1, 2))
    return scores, train, test


@pytest.mark.parametrize("seed", range(3))
def test_the_diagnostics_of_lists_equal_a_naive_loop(seed):
    scores, train, test = random_run(seed)
    ks, num_items = [5, 20], 60
    scorer = DotProducts(torch.from_numpy(scores), torch.eye(num_items))
    lists = top_lists(scorer, train, test, max(ks))
    found = of_run(lists, user_metrics(lists, ks), train, test, ks, {})

    seen, relevant = ({u: set(p.item[p.user == u].tolist()) for u in range(45)} for p in (train, test))
    users = [user for user in range(45) if relevant[user]]
    by_activity = sorted(users, key=lambda user: (len(seen[user]), user))
    popularity = Counter(train.item.tolist())
    by_popularity = sorted(range(num_items), key=lambda item: (popularity[item], item))
    group_of, before = {}, 0
    for item in by_popularity:
        group_of[item] = int(10 * (before + popularity[item] / 2) / len(train.item))
        before += popularity[item]
    for k in ks:
        shown = {u: sorted(set(range(num_items)) - seen[u], key=lambda i, u=u: -scores[u, i])[:k] for u in users}
        times = Counter(item for items in shown.values() for item in items)
        assert found["items"][f"never_recommended@{k}"] == sum(times[item] == 0 for item in range(num_items)) / 60
        size, more = divmod(len(users), 10)
        left = by_activity
        for place, row in enumerate(found["by_user_activity"]):
            group, left = left[: size + (place < more)], left[size + (place < more) :]
            recalls = [len(set(shown[user]) & relevant[user]) / len(relevant[user]) for user in group]
            assert row["users"] == len(group)
            assert row["least_pairs"] == len(seen[group[0]]) and row["most_pairs"] == len(seen[group[-1]])
            assert row[f"recall@{k}"] == pytest.approx(np.mean(recalls))
        for place, row in enumerate(found["by_item_popularity"]):
            group = {item for item in range(num_items) if group_of[item] == place}
            pairs = [(user, item) for user in users for item in relevant[user] & group]
            assert (row["items"], row["held_out"]) == (len(group), len(pairs))
            hits = sum(item in shown[user] for user, item in pairs)
            assert row[f"recall@{k}"] == (pytest.approx(hits / len(pairs)) if pairs else None)
    assert "codes" not in found


def test_lists_hold_what_is_ranked_and_nothing_that_is_masked():
    scores, train, test = random_run(4)
    train = union(
        [train, interactions([(3, i) for i in range(60) if i not in (*train.item[train.user == 3], 7)], 45, 60)]
    )
    test = interactions([(3, 7), (8, 1)], 45, 60)
    scorer = DotProducts(torch.from_numpy(scores), torch.eye(60))
    lists = top_lists(scorer, train, test, 100)
    assert lists.items.shape == (2, 60)
    assert lists.items[0].tolist() == [7] + [-1] * 59  # all else is masked
    (_, ranked), *_ = rank(scorer, train, np.array([8]), 60)
    left = 60 - (train.user == 8).sum()
    assert lists.items[1].tolist() == ranked[0, :left].tolist() + [-1] * (60 - left)
    assert lists.hits.sum() == lists.held_out.sum() == 2


def test_without_a_held_out_pair_nothing_is_recommended_and_nothing_divided_by_zero():
    nobody = TopLists(np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, 5), np.int32), np.empty((0, 5), bool))
    train, test = interactions([(0, 0), (1, 2)], 2, 3), interactions(np.empty((0, 2), dtype=int), 2, 3)
    found = of_run(nobody, user_metrics(nobody, [5]), train, test, [5], {})
    assert found["items"] == {"never_recommended@5": 1.0, "gini@5": None}
    assert {row["recall@5"] for part in ("by_user_activity", "by_item_popularity") for row in found[part]} == {None}


# Codes -----------------------------------------------------------------------

ROWS = np.array([[1, 0], [0, 1], [3, 3], [5, 1]], dtype=np.float32)


def test_every_number_on_codes_written_out():
    # Code 3 is used with weight 0 only. Rows 0 and 2 are alike, in another order; rows 1 and 4 differ in weights.
    codes = np.array([[0, 1], [0, 2], [1, 0], [3, 2], [0, 2]], dtype=np.uint8)
    weights = np.array([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 0], [1, 0.25]], dtype=np.float32)
    found = of_codes([Codes(ROWS, codes, weights)])
    usage = [0.75 + 0.5 + 0.75 + 1, 0.25 + 0.25, 0.5 + 0.25]
    entropy = -sum(used / 4.25 * math.log(used / 4.25) for used in usage)
    own = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2) for p in (0.75, 0.5, 0.75, 0.8)]
    assert found == {
        "rows": 5,
        "codebooks": 1,
        "codes": 4,
        "dead": 1,
        "duplicate": 0,
        "usage_entropy": pytest.approx(entropy / math.log(4)),
        "weight_entropy": pytest.approx(sum(own) / 4, abs=1e-6),  # row 3 has nothing to share
        "without_code": 1,
        "collision_rate": 2 / 5,
    }


def test_one_code_for_all_has_entropy_0_and_an_equal_share_for_each_1():
    assert evenness(np.array([[0.0, 7.0, 0.0]])) == 0
    assert evenness(np.array([[2.0, 2.0, 2.0], [0.1, 0.1, 0.1]])) == pytest.approx(1)
    assert evenness(np.array([[3.0], [1.0]])) is None
    assert evenness(np.zeros((2, 4))) is None


def test_weighted_codes_of_one_direction_are_duplicates_and_opposite_or_nearby_ones_are_not():
    angle = math.acos(0.9985)
    rows = np.array([[1, 0], [7, 0], [-1, 0], [math.cos(angle), math.sin(angle)]], dtype=np.float32)
    anything = np.zeros((1, 1), dtype=int), np.ones((1, 1))
    assert num_duplicates(Codes(rows, *anything)) == 2  # the first two; the cosine with the last is 0.9985
    rows[3] = [0.9995, math.sqrt(1 - 0.9995**2)]
    assert num_duplicates(Codes(rows, *anything)) == 3
    assert num_duplicates(Codes(np.array([[0, 0], [0, 0], [1, 0]]), *anything)) == 2
    assert num_duplicates(Codes(np.array([[0, 0], [1, 0]]), *anything)) == 0


def test_codes_used_as_they_are_are_duplicates_only_where_they_are_equal():
    rows = np.array([[1, 0], [7, 0], [1, 0], [1, -0.0]], dtype=np.float16)
    assert num_duplicates(Codes(rows, np.zeros((1, 1), dtype=int))) == 3


def test_duplicates_equal_a_naive_loop_whatever_the_size_of_the_blocks():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((50, 3)).astype(np.float32)
    part = Codes(rows, np.zeros((1, 1), dtype=int), np.ones((1, 1)))
    cosine = [[float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for b in rows] for a in rows]
    expected = sum(any(cosine[a][b] > 0.999 for b in range(50) if b != a) for a in range(50))
    assert 0 < expected < 50
    for block_bytes in (1, 4 * 50 * 7, 2**26):
        assert num_duplicates(part, block_bytes) == expected


@pytest.mark.parametrize("weighted", [True, False])
def test_collisions_equal_a_naive_loop_over_the_pairs_of_rows(weighted):
    generator = np.random.default_rng(1)
    parts, own = [], [[] for _ in range(40)]
    for size in (2, 3) if weighted else (4, 5):
        codes = np.array([generator.permutation(size)[:2] for _ in range(40)])
        weights = generator.integers(3, size=codes.shape) / 2 if weighted else None
        parts.append(Codes(np.zeros((size, 3)), codes, weights))
        for row in range(40):
            pairs = zip(codes[row], weights[row] if weighted else (1, 1), strict=True)
            own[row].append({code: weight for code, weight in pairs if weight})
    expected = sum(any(own[a] == own[b] for b in range(40) if b != a) for a in range(40)) / 40
    assert 0 < expected < 1
    assert collision_rate(parts) == expected


def test_rows_are_equal_where_all_their_columns_are():
    assert num_with_twin([np.array([[1], [2], [1], [1]]), np.array([[0.5, 1], [0.5, 1], [0.5, 1], [0.25, 1]])]) == 2


def test_several_codebooks_are_counted_together_and_their_entropies_averaged():
    first = Codes(ROWS[:2], np.array([[0], [1], [0]]))  # used twice and once
    second = Codes(ROWS, np.array([[3], [3], [3]]))
    found = of_codes([first, second])
    uneven = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(2)
    assert (found["codebooks"], found["codes"], found["dead"]) == (2, 6, 3)
    assert found["usage_entropy"] == pytest.approx((uneven + 0) / 2)
    assert (found["weight_entropy"], found["without_code"]) == (None, 0)
    assert found["collision_rate"] == 2 / 3


# What methods call codes -----------------------------------------------------


def legcf_codes(codebook, codes):
    arrays = {"codebook": codebook, "codes": codes, "weights": np.full(codes.shape, 0.5, dtype=np.float32)}
    return of_codes(LEGCF.code_arrays(arrays, LEGCF.Params(dim=codebook.shape[1]))["nodes"])


def test_a_code_of_legcf_that_nobody_uses_is_dead_and_two_equal_rows_are_duplicates():
    generator = np.random.default_rng(0)
    codebook = generator.standard_normal((6, 8)).astype(np.float32)
    codes = np.array([[node % 5, (node + 1) % 5] for node in range(20)], dtype=np.uint8)
    assert (legcf_codes(codebook, codes)["dead"], legcf_codes(codebook, codes)["duplicate"]) == (1, 0)
    codebook[4] = codebook[1]
    codes[3, 0] = 5
    assert (legcf_codes(codebook, codes)["dead"], legcf_codes(codebook, codes)["duplicate"]) == (0, 2)


def test_each_table_of_two_has_its_own_codes():
    codebook = np.arange(7, dtype=np.float32)[:, None]  # rows 0 to 3, and 4 to 6
    double = {"hash_constants": [[1, 0], [1, 1]], "num_nodes": [9]}
    quotients = {"divisor": [4], "num_nodes": [12]}
    for cls, address in ((DoubleHashing, double), (QuotientRemainder, quotients)):
        parts = cls.code_arrays({"codebook": codebook, **address}, None)["nodes"]
        assert [part.codebook[:, 0].tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6]]
        rows = np.hstack([part.codebook[part.codes[:, 0]] for part in parts])
        np.testing.assert_array_equal(rows, codebook[cls.codes_of(address, 7)][:, :, 0])
    assert of_codes(parts)["collision_rate"] == 0
    assert of_codes(parts)["usage_entropy"] == pytest.approx(1)  # 12 = 4 * 3: every remainder and quotient alike often


def test_product_quantisation_has_a_codebook_for_each_subspace_and_rounding_has_none():
    codebook, codes = np.arange(15, dtype=np.float16).reshape(3, 5), np.array([[0, 2], [2, 2]], dtype=np.uint8)
    arrays = {"codebook": codebook, "codes": codes}
    parts = QuantisedTable.code_arrays(arrays, QuantisedTable.Params(dim=5, scheme="pq"))["nodes"]
    assert [part.codebook.shape for part in parts] == [(3, 3), (3, 2)]  # dimensions 0, 1, 2 and 3, 4
    assert of_codes(parts)["dead"] == 1 + 2
    table = np.hstack([part.codebook[part.codes[:, 0]] for part in parts])
    np.testing.assert_array_equal(table, QuantisedTable.decode(arrays, QuantisedTable.Params(dim=5, scheme="pq")))
    assert QuantisedTable.code_arrays(arrays, QuantisedTable.Params(scheme="int8")) == {}


# Whole runs ------------------------------------------------------------------

TOY = {"dim": 4, "num_layers": 2}
COARSE = {"uses": "baselines.legcf:LEGCF", "params": {**TOY, "num_codes": 6}}
FINE = {"params": {**TOY, "num_codes": 6, "fine_codes": 3, "components": 3, "threshold": 0.1}}
PQ = {"uses": "baselines.quantised:QuantisedTable", "params": {**TOY, "scheme": "pq"}}
LIGHTGCN = {"uses": "baselines.lightgcn:LightGCN", "params": TOY}
HASHING = {"uses": "baselines.hashing:Hashing", "params": TOY}
RUNS = {  # entry, budget, the run it starts from
    "lightgcn": (LIGHTGCN, "full", None),
    "coarse": (COARSE, "full", None),
    "c2f": ({"uses": "c2f.metaembed:C2FMetaEmbed", "starts_from": {"method": "coarse"}, **FINE}, "full", "coarse"),
    "hashing": (HASHING, "numbers-80", None),
    "pq": (PQ | {"starts_from": {"method": "lightgcn"}}, "bytes-400", "lightgcn"),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The data and the folders of trained and evaluated runs."""
    folder = tmp_path_factory.mktemp("diagnostics")
    data = prepared(folder)
    for name, (entry, budget, start) in RUNS.items():
        more = {"start": folder / start} if start else {}
        record = trained(data, resolved(folder, name, entry), folder / name, budget, **more)
        assert record["status"] == "ok", record["reason"]
        assert step("evaluate", run=folder / name, data=data, ks="5,20", output=folder / name) == 0
    return SimpleNamespace(data=data, runs=folder)


def diagnostics(run) -> dict:
    return json.loads((run / "diagnostics.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_the_groups_of_a_run_make_up_its_metrics(toy, name):
    found = diagnostics(toy.runs / name)
    assert list(found)[:3] == ["items", "by_user_activity", "by_item_popularity"]
    means = json.loads((toy.runs / name / "metrics.json").read_text())["means"]
    frame = pd.read_parquet(toy.runs / name / "per_user.parquet")
    users, items = found["by_user_activity"], found["by_item_popularity"]
    assert sum(row["users"] for row in users) == len(frame)
    assert sum(row["items"] for row in items) == 48
    for metric, mean in means.items():
        assert sum(row["users"] * row[metric] for row in users) / len(frame) == pytest.approx(mean)
    for k in (5, 20):
        hits = sum(row["held_out"] * row[f"recall@{k}"] for row in items if row["held_out"])
        assert hits == pytest.approx((frame["held_out"] * frame[f"recall@{k}"]).sum(), rel=1e-5)
        assert 0 <= found["items"][f"never_recommended@{k}"] < 1
        assert 0 <= found["items"][f"gini@{k}"] < 1


def test_the_share_never_recommended_is_that_of_the_lists_of_the_artifact(toy):
    run, stats = toy.runs / "lightgcn", load_stats(toy.data / "stats.json")
    scorer = load_scorer(Artifact.load(run / "artifact.npz"), toy.data, run)
    train, valid, test = (load_pairs(toy.data / f"{part}.parquet", stats) for part in ("train", "valid", "test"))
    for k in (5, 20):
        blocks = rank(scorer, union([train, valid]), np.unique(test.user), k)
        shown = {int(item) for _, top in blocks for item in top.ravel()}
        assert diagnostics(run)["items"][f"never_recommended@{k}"] == (48 - len(shown)) / 48


def test_a_run_has_the_codes_that_its_method_names_and_no_others(toy):
    codes = {name: diagnostics(toy.runs / name).get("codes") for name in RUNS}
    assert codes["lightgcn"] is None
    sizes = {
        name: {level: (of["rows"], of["codes"]) for level, of in found.items()}
        for name, found in codes.items()
        if found
    }
    assert sizes["coarse"] == {"nodes": (108, 6)}
    assert sizes["c2f"] == {"nodes": (108, 6), "bridge": (6, 3)}
    assert sizes["hashing"] == {"nodes": (108, 20)}
    assert codes["c2f"]["nodes"] == codes["coarse"]["nodes"]  # frozen in the fine stage
    arrays = Artifact.load(toy.runs / "coarse" / "artifact.npz").arrays
    used = set(arrays["codes"][arrays["weights"] > 0].tolist())
    assert codes["coarse"]["nodes"]["dead"] == 6 - len(used)
    assert codes["pq"]["nodes"]["codes"] == codes["pq"]["nodes"]["codebooks"] * len(
        Artifact.load(toy.runs / "pq" / "artifact.npz").arrays["codebook"]
    )


@pytest.mark.parametrize("name", ["hashing", "pq"])
def test_nodes_that_collide_are_those_with_equal_vectors(toy, name):
    artifact = Artifact.load(toy.runs / name / "artifact.npz")
    cls = load_class(artifact.info["uses"])
    table = [tuple(row) for row in cls.decode(artifact.arrays, cls.Params(**artifact.info["params"])).tolist()]
    expected = sum(table.count(row) > 1 for row in table) / 108
    assert expected > 0
    assert diagnostics(toy.runs / name)["codes"]["nodes"]["collision_rate"] == expected


def test_a_run_without_a_trained_model_has_the_reason_and_nothing_else(toy, tmp_path):
    record = trained(toy.data, resolved(tmp_path, "hashing", HASHING), tmp_path / "run", "numbers-1")
    assert step("evaluate", run=tmp_path / "run", data=toy.data, output=tmp_path / "run") == 0
    assert diagnostics(tmp_path / "run") == {"reason": record["reason"]}
    assert record["reason"]
