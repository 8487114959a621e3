"""Files are written whole or not at all, and a damaged artifact is refused."""

import errno
import json
import os
import platform
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from c2f import record
from c2f.errors import ArtifactError, DataError
from c2f.record import Artifact, read_json, sha256_file, write_atomically, write_json
from c2f.seeds import seed_for

ARRAYS = {"codebook": np.arange(6, dtype=np.float32).reshape(3, 2), "codes": np.array([2, 0, 1], dtype=np.uint8)}
INFO = {"uses": "baselines.x:X", "params": {"dim": 2}, "seed": 1}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "artifact.npz"
    Artifact(ARRAYS, INFO).save(path)
    return path


def same(arrays) -> bool:
    return arrays.keys() == ARRAYS.keys() and all(
        arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array) for name, array in ARRAYS.items()
    )


# Artifacts -------------------------------------------------------------------


def test_an_artifact_comes_back_with_types_shapes_and_info(saved):
    artifact = Artifact.load(saved)
    assert same(artifact.arrays)
    assert artifact.info == INFO


def test_an_artifact_of_a_run_without_a_model_holds_only_info(tmp_path):
    Artifact({}, INFO).save(tmp_path / "a.npz")
    assert Artifact.load(tmp_path / "a.npz") == Artifact({}, INFO)


def test_equal_content_gives_equal_bytes_whenever_and_in_whatever_order_info_was_made(saved, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((2033, 5, 18, 0, 0, 0, 0, 0, 0)))
    other = saved.with_name("other.npz")
    Artifact(ARRAYS, dict(reversed(INFO.items()))).save(other)
    assert other.read_bytes() == saved.read_bytes()
    Artifact(ARRAYS, INFO | {"seed": 2}).save(other)
    assert other.read_bytes() != saved.read_bytes()


def test_a_missing_artifact_says_to_train_first(tmp_path):
    with pytest.raises(ArtifactError, match=r"there is no artifact at .*gone\.npz; train the run first"):
        Artifact.load(tmp_path / "gone.npz")


def test_an_artifact_cut_off_anywhere_is_refused(saved):
    content = saved.read_bytes()
    for length in [*range(0, len(content), 23), len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(
            ArtifactError, match=r"artifact\.npz is damaged \(.*\); delete it and run the step that writes it"
        ):
            Artifact.load(saved)


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(saved):
    content = saved.read_bytes()
    refused = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        saved.write_bytes(flipped)
        try:  # dates and other zip fields mean nothing
            artifact = Artifact.load(saved)
            assert same(artifact.arrays), position
            assert artifact.info == INFO, position
        except ArtifactError:
            refused += 1
    assert refused > len(content) / 2


@pytest.mark.parametrize("content", [b"", b"not a zip file at all", b"PK\x03\x04 but no more"])
def test_what_is_no_npz_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        Artifact.load(saved)


def test_a_single_array_a_foreign_zip_and_an_npz_without_info_are_refused(saved):
    with open(saved, "wb") as stream:
        np.save(stream, np.arange(3))
    with pytest.raises(ArtifactError, match="is damaged"):
        Artifact.load(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ArtifactError, match="is damaged"):
        Artifact.load(saved)
    np.savez(saved, codebook=np.arange(3))
    with pytest.raises(ArtifactError, match="is damaged"):
        Artifact.load(saved)


class Bomb:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_inside_an_npz_is_refused_and_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = np.frombuffer(json.dumps(INFO).encode(), dtype=np.uint8)
    np.savez(saved, __info__=info, codebook=np.array([Bomb()], dtype=object))
    with pytest.raises(ArtifactError, match="holds objects"):
        Artifact.load(saved)
    assert not (tmp_path / "exploded").exists()


# Whole or not at all ---------------------------------------------------------


def test_an_exception_while_writing_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]
    assert path.read_text() == "old"


def test_ctrl_c_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_atomically(tmp_path / "new" / "out.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_the_temporary_file_lies_in_the_same_folder_and_disappears(tmp_path):
    with write_atomically(tmp_path / "deep" / "out.txt") as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path / "deep"
        assert not (tmp_path / "deep" / "out.txt").exists()
    assert [file.read_text() for file in (tmp_path / "deep").iterdir()] == ["whole"]


def test_what_a_killed_process_left_is_removed_when_the_file_is_written_again(tmp_path):
    killed = (
        "import os, signal, sys; from c2f.record import write_atomically\n"
        "with write_atomically(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "run [1].json"  # brackets mean something where names are matched
    subprocess.run([sys.executable, "-c", killed, path], cwd=Path(record.__file__).parents[1])
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".tmp")
    write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


def test_what_another_process_or_machine_is_writing_stays(tmp_path):
    path = tmp_path / "out.txt"
    alive = path.with_name(f".out.txt.{platform.node()}.{os.getppid()}.tmp")
    elsewhere = path.with_name(f".out.txt.another-{platform.node()}.999999999.tmp")
    other = path.with_name(f".out.txt.gz.{platform.node()}.999999999.tmp")
    for file in (alive, elsewhere, other):
        file.write_text("half")
    with write_atomically(path) as temporary:
        temporary.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, alive, elsewhere, other])


def test_a_full_disk_is_named_with_the_file_and_the_way_out(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(DataError) as error:
        Artifact(ARRAYS, INFO).save(saved)
    for piece in (str(saved), "No space left on device", "free some space", "run the same command again"):
        assert piece in str(error.value)
    assert [file.name for file in saved.parent.iterdir()] == ["artifact.npz"]
    assert saved.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(record.os, "replace", refused)
    with pytest.raises(DataError, match=r"cannot write .*out\.json: Permission denied; make the folder writable"):
        write_json(tmp_path / "out.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*out\.json"):
        write_json(tmp_path / "results" / "out.json", {})


# JSON and the rest -----------------------------------------------------------


def test_json_keeps_the_order_of_its_keys_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [None, 0.5]})
    assert list(read_json(path).items()) == [("b", 1), ("a", [None, 0.5])]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"b": float("nan")})
    assert read_json(path)["b"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; run the step that writes it"),
        (b'{"a": ', r"is not valid JSON \(.*\); delete it and run the step that writes it"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.json {message}"):
        read_json(path)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    for read in (read_json, sha256_file):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path)


def test_peak_memory_versions_machine_and_commit_are_there():
    assert record.peak_rss_bytes() > 10**7
    assert {"python", "torch", "numpy", "scipy", "scikit-learn"} <= record.versions().keys()
    assert "cores" in record.machine()
    assert record.commit()


def test_a_seed_depends_on_every_name_and_its_place():
    seeds = [seed_for(1, "a", "b"), seed_for(1, "b", "a"), seed_for(2, "a", "b"), seed_for(1, "ab"), seed_for(1, "a")]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[0] == 1585635615258537040  # another value here would change every published number
