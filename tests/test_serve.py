"""Serving: NumPy alone, the evaluator's ranking, clear errors, and what a damaged file does."""

import csv
import importlib
import json
import math
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from steps import ROOT, prepared, resolved, step, trained

from c2f.decoding import CsrArray, normalised_adjacency
from c2f.errors import ArtifactError, C2FError, ConfigError, DataError
from c2f.graph import Graph
from c2f.method import EmbeddingMethod, decoder_of
from c2f.record import Artifact, write_npz
from c2f.serve import Pairs, Reader, ServingData, ServingGraph, top

LEGCF = {"uses": "baselines.legcf:LEGCF", "params": {"dim": 4, "num_codes": 6, "item_bias": True}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def run(data):
    folder = data.parents[1] / "legcf"
    assert trained(data, resolved(data.parents[1], "legcf", LEGCF), folder)["status"] == "ok"
    return folder


@pytest.fixture
def reader(run, data):
    return Reader.open(run, data)


# Sparse products and the graph in NumPy alone --------------------------------


@pytest.mark.parametrize(("num_rows", "num_columns", "width"), [(1, 1, 1), (7, 5, 3), (40, 30, 8)])
def test_a_product_in_numpy_alone_is_scipys(num_rows, num_columns, width, monkeypatch):
    generator = np.random.default_rng(num_rows)
    dense = generator.random((num_rows, num_columns)) * (generator.random((num_rows, num_columns)) < 0.3)
    rows, columns = dense.nonzero()
    matrix = CsrArray((dense[rows, columns], (rows, columns)), dense.shape)
    x = generator.random((num_columns, width), dtype=np.float32)
    for at_once in (1, 10, 2**20):  # one row at a time, few, all
        monkeypatch.setattr("c2f.decoding.VALUES_AT_ONCE", at_once)
        np.testing.assert_allclose(matrix @ x, dense @ x, atol=1e-6)
        np.testing.assert_allclose(matrix.T @ (dense @ x).astype(np.float32), dense.T @ (dense @ x), atol=1e-5)


def test_a_product_of_shapes_that_do_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) cannot multiply \(2, 1\)"):
        CsrArray((np.ones(1), ([0], [2])), (2, 3)) @ np.ones((2, 1), dtype=np.float32)


def test_the_graph_of_a_server_is_the_trainers(blocks):
    train = blocks[0].train
    ours = normalised_adjacency(CsrArray, train.user, train.item, train.num_users, train.num_items)
    theirs = Graph(train).adjacency
    np.testing.assert_array_equal(ours.indptr, theirs.indptr)
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_array_equal(ours.data, theirs.data)


def test_what_serving_charges_for_the_training_graph_is_what_lies_in_the_file(data):
    arrays = Artifact.load(data / "serving.npz").arrays
    pairs = Pairs(arrays["train_starts"], arrays["train_items"])
    graph = ServingGraph(pairs, 60, 48)
    assert graph.num_nodes == 108
    assert len(pairs.user) == len(pairs.item) == len(arrays["train_items"])
    assert arrays["train_starts"].nbytes + arrays["train_items"].nbytes == 4 * 61 + len(
        pairs.item
    )  # 48 items: a byte each


@pytest.mark.parametrize("path", sorted((ROOT / "baselines").glob("*.py")), ids=lambda path: path.stem)
def test_no_method_of_ours_needs_torch_to_be_served_but_recboles(path):
    module = importlib.import_module(f"baselines.{path.stem}")
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    methods = [each for each in classes if issubclass(each, EmbeddingMethod) and not each.__name__.startswith("_")]
    for cls in methods:
        if cls.decode is EmbeddingMethod.decode and path.stem in ("hashing", "pruning"):  # a base class
            continue
        (place,) = decoder_of(cls).values()
        assert place.split(":")[0] in ("baselines.decoders", "c2f.decoding") or path.stem == "recbole_models"


# Recommending ----------------------------------------------------------------


def test_the_top_are_the_highest_scores_and_equal_ones_stand_by_id():
    scores = np.array([1, 3, 2, 3, -np.inf, 2, 2], dtype=np.float32)
    assert [top(scores, k)[0].tolist() for k in (1, 3, 4)] == [[1], [1, 3, 2], [1, 3, 2, 5]]
    assert top(scores, 7)[0].tolist() == [1, 3, 2, 5, 6, 0]  # nothing of -inf
    assert top(scores, 2)[1].tolist() == [3, 3]


def test_seen_items_are_left_out_unless_one_asks_for_them(reader, data):
    seen = ServingData.open(data)
    for user in range(60):
        own = {int(item) for pairs in seen.masked for item in pairs.of_user(user)}
        assert own
        items, scores = reader.recommend(user, 48)
        assert set(items.tolist()) == set(range(48)) - own
        assert (np.diff(scores) <= 0).all()
        assert len(reader.recommend(user, 48, exclude_seen=False)[0]) == 48


def test_blocks_of_users_and_single_ones_get_the_same(reader, monkeypatch):
    users = np.array([5, 3, 59, 0])
    one_by_one = [reader.recommend(int(user), 7)[0].tolist() for user in users]
    for at_once in (48, 96, 2**22):
        monkeypatch.setattr("c2f.serve.SCORES_AT_ONCE", at_once)
        assert [items.tolist() for items, _ in reader.recommend_all(users, 7)] == one_by_one


@pytest.mark.parametrize("user", [-1, 60])
def test_a_user_that_there_is_not_is_refused(reader, user):
    with pytest.raises(ConfigError, match=f"there is no user {user}: they are 0 to 59"):
        reader.recommend(user)


@pytest.mark.parametrize("k", [0, -3, 49])
def test_k_out_of_range_is_refused(reader, k):
    with pytest.raises(ConfigError, match=f"k = {k} is out of range: write 1 to 48"):
        reader.recommend(0, k)


def test_a_reader_imports_numpy_and_nothing_heavier(run, data):
    code = (
        "import sys; from c2f.serve import Reader\n"
        f"Reader.open({str(run)!r}, {str(data)!r}).recommend(3)\n"
        "print(*{'torch', 'scipy', 'sklearn', 'pandas', 'pyarrow', 'numba', 'recbole'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_arrays_lie_in_the_file_and_are_aligned(run):
    arrays = Artifact.load(run / "artifact.npz", mapped=True).arrays
    for array in arrays.values():
        assert not array.flags.owndata and not array.flags.writeable and array.flags.aligned


# The command line ------------------------------------------------------------


def recommended(capsys, **options) -> list[list[str]]:
    assert step("recommend", **options) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_recommend_prints_published_ids(run, data, reader, capsys):
    names = reader.data.names()
    head, columns, *rows = recommended(capsys, artifact=run, data=data, user=names["user"][7], k=5)
    assert " ".join(head) == f"legcf on toy, user {names['user'][7]}"
    assert columns == ["rank", "item", "score"]
    items, scores = reader.recommend(7, 5)
    assert [row[1] for row in rows] == [names["item"][item] for item in items]
    assert [float(row[2]) for row in rows] == pytest.approx(scores.tolist(), abs=1e-4)


def refused(capsys, *phrases, **options):
    assert step("recommend", **options) == 2
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ")
    for phrase in phrases:
        assert phrase in error


def test_mistakes_of_recommend_are_named(run, data, tmp_path, capsys):
    good = {"artifact": run, "data": data, "user": "3"}
    refused(capsys, "there is no user 'nobody'", "ids.csv", **good | {"user": "nobody"})
    refused(capsys, "k = 1000 is out of range: write 1 to 48", k=1000, **good)
    refused(capsys, "there is no artifact at", **good | {"artifact": tmp_path / "gone"})
    refused(capsys, "serving.npz; prepare the dataset", **good | {"data": tmp_path})
    other = prepared(tmp_path, "other", seed=1)
    refused(capsys, "was trained on toy pairs that are not those of", "(other)", **good | {"data": other})
    content = (run / "artifact.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-100])
    refused(capsys, "cut.npz is damaged", **good | {"artifact": tmp_path / "cut.npz"})


def test_a_run_without_a_model_says_how_it_ended(data, tmp_path, capsys):
    entry = {"uses": "baselines.short_vectors:ShortVectors"}
    assert trained(data, resolved(tmp_path, "short", entry), tmp_path / "run", "numbers-3")["status"] == "infeasible"
    refused(capsys, "holds no model: the run ended as infeasible", artifact=tmp_path / "run", data=data, user="3")


# Export ----------------------------------------------------------------------


def exported(run, data, path, kind):
    assert step("export", artifact=run, data=data, output=path, format=kind) == 0
    return path


def expected_scores(reader) -> np.ndarray:
    return reader.scores(np.arange(reader.data.num_users))


def test_vectors_in_npz_give_the_scores_back(run, data, reader, tmp_path):
    with np.load(exported(run, data, tmp_path / "vectors.npz", "npz")) as stored:
        np.testing.assert_allclose(stored["users"] @ stored["items"].T, expected_scores(reader), rtol=1e-6)
        assert stored["user_names"].tolist() == reader.data.names()["user"]
        assert stored["item_names"].tolist() == reader.data.names()["item"]


def test_vectors_in_parquet_give_the_scores_back(run, data, reader, tmp_path):
    import pandas as pd

    table = pd.read_parquet(exported(run, data, tmp_path / "vectors.parquet", "parquet"))
    users, items = (np.stack(table.vector[table.kind == kind]) for kind in ("user", "item"))
    np.testing.assert_allclose(users @ items.T, expected_scores(reader), rtol=1e-6)
    assert table.name[table.kind == "item"].tolist() == reader.data.names()["item"]
    assert table.id[table.kind == "user"].tolist() == list(range(60))


def test_the_onnx_model_scores_as_the_reader_and_gives_the_same_top_20(run, data, reader, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, an optional package")
    path = exported(run, data, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"users": np.arange(60)})
    np.testing.assert_allclose(scores, expected_scores(reader), rtol=1e-5)
    for user in range(60):
        ours, best = reader.recommend(user, 20, exclude_seen=False)
        theirs, _ = top(scores[user], 20)
        swapped = ours != theirs
        np.testing.assert_allclose(scores[user][theirs][swapped], best[swapped], rtol=1e-5)  # equal to rounding


def test_an_unknown_format_is_refused_with_those_that_there_are(run, data, tmp_path, capsys):
    assert step("export", artifact=run, data=data, output=tmp_path / "x", format="onx") == 2
    assert "--format 'onx' is unknown; did you mean 'onnx'?" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# Damage ----------------------------------------------------------------------


def outcome(run, data) -> str:
    """Whether a reader opens and answers, or refuses with a clean error; anything else is raised."""
    try:
        items, scores = Reader.open(run, data).recommend(3, 5)
    except C2FError:
        return "refused"
    assert len(items) == 5 and np.isfinite(scores).all()
    return "answers"


def damaged_copy(run, folder):
    folder.mkdir()
    shutil.copy(run / "artifact.npz", folder)
    return folder / "artifact.npz"


def test_a_thousand_flipped_bytes_are_refused_or_change_nothing(run, data, reader, tmp_path):
    expected = reader.recommend(3, 5)[0].tolist()
    path = damaged_copy(run, tmp_path / "run")
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    refusals = 0
    for position in generator.choice(len(content), 1000):
        flipped = bytearray(content)
        flipped[position] ^= generator.integers(1, 256)
        path.write_bytes(flipped)
        if outcome(path, data) == "refused":
            refusals += 1
        else:
            assert Reader.open(path, data).recommend(3, 5)[0].tolist() == expected
    assert refusals > 500


def test_five_hundred_truncations_are_refused(run, data, tmp_path):
    path = damaged_copy(run, tmp_path / "run")
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 500).astype(int):
        path.write_bytes(content[:length])
        assert outcome(path, data) == "refused", length


def forged(path, arrays, info):
    """Write an artifact whose checksums and description fit its arrays, whatever they are."""
    Artifact(arrays, info).save(path)


def wrong_shapes(array, generator):
    yield array[:-1]
    yield array[:0]
    yield np.concatenate([array, array])
    yield array.ravel()
    yield array[None]
    yield array[..., :0]
    yield array.T.copy()
    yield np.zeros(tuple(generator.integers(0, 9, size=generator.integers(0, 4))), array.dtype)


def wrong_types(array):
    for dtype in ("f8", "f2", "i8", "i1", "u8", "u1", "b1", "U3", "S2", "c8", "M8[s]", ">f4"):
        yield np.zeros(array.shape, dtype)
        yield (
            np.resize(np.frombuffer(array.tobytes(), "u1"), array.size).reshape(array.shape).astype("u1").astype(dtype)
        )


def test_wrong_shapes_and_types_are_refused_or_still_answer(run, data, tmp_path):
    artifact = Artifact.load(run / "artifact.npz")
    path, generator, cases, refusals = tmp_path / "forged.npz", np.random.default_rng(1), 0, 0
    for name, array in artifact.arrays.items():
        for other in [*wrong_shapes(array, generator), *wrong_types(array)]:
            forged(path, artifact.arrays | {name: other}, artifact.info)
            refusals += outcome(path, data) == "refused"
            cases += 1
    for name in artifact.arrays:
        forged(path, {key: array for key, array in artifact.arrays.items() if key != name}, artifact.info)
        refusals += outcome(path, data) == "refused"
        cases += 1
    assert cases > 100
    assert refusals > cases / 3  # what is as large and of numbers is another model, and answers


def test_an_array_in_place_of_the_one_that_was_written_is_refused(run, data, tmp_path):
    artifact = Artifact.load(run / "artifact.npz", mapped=True)
    info = json.dumps(
        artifact.info | {"arrays": {name: [a.dtype.str, *a.shape] for name, a in artifact.arrays.items()}}
    )
    with open(tmp_path / "a.npz", "wb") as stream:
        text = np.frombuffer(info.encode(), dtype=np.uint8)
        write_npz(stream, {"__info__": text, **artifact.arrays, "weights": artifact.arrays["weights"][:, :1]})
    with pytest.raises(ArtifactError, match="its arrays are not those that were written"):
        Reader.open(tmp_path / "a.npz", data)


@pytest.mark.parametrize("key", ["status", "decoder", "train_sha256", "params", "dataset"])
@pytest.mark.parametrize(
    "value", [None, 7, "x", [], {}, {"decode": "nowhere:nothing"}, {"decode": "c2f.decoding:gone"}]
)
def test_a_description_that_is_not_one_is_refused(run, data, tmp_path, key, value):
    artifact = Artifact.load(run / "artifact.npz")
    forged(tmp_path / "a.npz", artifact.arrays, artifact.info | {key: value})
    if key != "dataset":  # only named in errors
        assert outcome(tmp_path / "a.npz", data) == "refused"


def test_a_damaged_serving_file_is_refused_or_changes_nothing(run, data, reader, tmp_path):
    expected = reader.recommend(3, 5)[0].tolist()
    folder = tmp_path / "data"
    folder.mkdir()
    content = (data / "serving.npz").read_bytes()
    generator = np.random.default_rng(2)
    for case in range(400):
        flipped = bytearray(content)
        if case % 2:
            flipped[generator.integers(len(content))] ^= generator.integers(1, 256)
        else:
            flipped = flipped[: generator.integers(len(content))]
        (folder / "serving.npz").write_bytes(flipped)
        if outcome(run, folder) == "answers":
            assert Reader.open(run, folder).recommend(3, 5)[0].tolist() == expected


def test_serving_files_that_contradict_themselves_are_refused(run, data, tmp_path):
    stored = Artifact.load(data / "serving.npz")
    starts = stored.arrays["train_starts"]
    wrong = [
        {"train_starts": starts[:-1]},
        {"train_starts": starts[::-1].copy()},
        {"train_starts": starts + 1},
        {"train_items": np.full_like(stored.arrays["train_items"], 200)},
        {"train_items": stored.arrays["train_items"][:-1]},
    ]
    for change in wrong:
        Artifact(stored.arrays | change, stored.info).save(tmp_path / "serving.npz")
        with pytest.raises(DataError, match=r"is no dataset's serving\.npz"):
            Reader.open(run, tmp_path)


def test_an_archive_that_says_an_array_is_huge_is_refused(run, data, tmp_path):
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }".ljust(
        117
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("codebook.npy", header + b"\n")
    with pytest.raises(ArtifactError, match="another number of bytes than it says"):
        Reader.open(tmp_path / "a.npz", data)


# Measuring -------------------------------------------------------------------


def test_serving_is_measured_in_a_process_with_64_mb_beyond_pythons_own(run, data, tmp_path):
    words = {"runs": [run], "data": data, "output": tmp_path / "i.csv", "num_users": 20, "memory_limit": "64MB"}
    assert step("inference", **words) == 0
    with open(tmp_path / "i.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["status"] == "ok", row["reason"]
    assert int(row["file_bytes"]) == (run / "artifact.npz").stat().st_size
    assert 0 < float(row["latency_p50_ms"]) <= float(row["latency_p95_ms"])
    assert float(row["users_per_second"]) > 0
    assert 1e6 < float(row["resident_bytes"]) < 2e8
    assert 0 < float(row["load_seconds"]) < 60


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_a_model_beyond_the_memory_limit_is_marked_and_the_others_are_measured(run, data, tmp_path):
    from c2f.inference import _in_its_own_process

    assert _in_its_own_process(run, data, 5, 10**4)["status"] == "oom"
    assert math.isfinite(_in_its_own_process(run, data, 5, 10**8)["latency_p50_ms"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
def test_a_decoder_that_imports_torch_takes_more_memory_than_a_model_is_given_and_the_others_are_measured(
    run, data, tmp_path, monkeypatch
):
    from c2f.inference import measure_runs

    (tmp_path / "with_torch.py").write_text("import torch\n\n\ndef decode(arrays, params, graph):\n    return arrays\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    artifact = Artifact.load(run / "artifact.npz")
    needy = Artifact(artifact.arrays, {**artifact.info, "decoder": {"restore": "with_torch:decode"}})
    needy.save(tmp_path / "needy" / "artifact.npz")
    rows = tmp_path / "i.csv"
    measure_runs([tmp_path / "needy", run], data, rows, num_users=5, memory_limit=64 * 10**6)
    with open(rows, newline="") as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["oom", "ok"]
