"""The download step against a server on this machine that can be slow, forgetful or wrong."""

import errno
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from c2f import download as module
from c2f.data import DatasetSpec, load_stats, prepare, read_lists
from c2f.download import Patience, download
from c2f.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
TRAIN = b"".join(b"%d %d %d\n" % (user, user % 7, 7 + user % 5) for user in range(20_000))  # about 200 kB
TEST = b"0 20 21\n1 22 23\n"


@dataclass
class Server:
    """Serves `files`; the faults hold for the first `faulty` requests only."""

    files: dict[str, bytes]
    ranges: bool = True  # answers Range with 206
    faulty: int = 0
    status: int = 200  # fault: this status instead of the file
    cut_after: int | None = None  # fault: the connection closes after so many bytes
    stall: bool = False  # fault: after the cut, the connection stays open and silent
    length: bool = True  # tells Content-Length
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of each
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        fault = len(self.requests) <= self.faulty
        content = self.files.get(handler.path)
        if content is None or (fault and self.status != 200):
            handler.send_error(404 if content is None else self.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.length:
            handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        cut = self.cut_after if fault and self.cut_after is not None else len(content)
        handler.wfile.write(content[start : start + cut])
        handler.wfile.flush()
        if fault and self.stall:
            time.sleep(20)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("C2F_DATA_MIRROR", raising=False)
    serving = Server({"/toy/train.txt": TRAIN, "/toy/test.txt": TEST})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            serving.answer(self)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    serving.url = f"http://127.0.0.1:{http.server_port}"
    yield serving
    http.shutdown()
    http.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def spec_of(server: Server) -> dict:
    return {
        "files": {
            "train.txt": {"urls": [f"{server.url}/toy/train.txt"], "sha256": sha256(TRAIN)},
            "test.txt": {"urls": [f"{server.url}/toy/test.txt"], "sha256": sha256(TEST)},
        },
        "recipe": "legcf",
    }


class Clock:
    """Stands in for time.sleep and keeps the pauses."""

    def __init__(self):
        self.pauses = []

    def patience(self, tries: int = 4) -> Patience:
        return Patience(tries=tries, first_delay=0.5, timeout=5.0, sleep=self.pauses.append)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What works ------------------------------------------------------------------


def test_files_are_fetched_verified_and_nothing_else_is_left(server, tmp_path):
    download("toy", spec_of(server), tmp_path / "raw")
    assert names(tmp_path / "raw") == ["test.txt", "train.txt"]
    assert (tmp_path / "raw" / "train.txt").read_bytes() == TRAIN


def test_a_right_file_is_kept_without_asking_again(server, tmp_path):
    download("toy", spec_of(server), tmp_path)
    server.requests.clear()
    download("toy", spec_of(server), tmp_path)
    assert server.requests == []


def test_the_next_url_is_asked_where_one_fails(server, tmp_path):
    spec = spec_of(server)
    spec["files"]["train.txt"]["urls"].insert(0, f"{server.url}/moved/train.txt")
    download("toy", spec, tmp_path)
    assert [path for path, _ in server.requests] == ["/moved/train.txt", "/toy/train.txt", "/toy/test.txt"]


def test_a_git_blob_id_is_verified_too(server, tmp_path):
    spec = spec_of(server)
    blob = hashlib.sha1(b"blob %d\0" % len(TEST) + TEST).hexdigest()  # what `git hash-object test.txt` prints
    spec["files"]["test.txt"] = {"urls": spec["files"]["test.txt"]["urls"], "git_blob": blob}
    download("toy", spec, tmp_path)
    assert (tmp_path / "test.txt").read_bytes() == TEST
    server.files["/toy/test.txt"] = TEST + b"\n"
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError, match=f"instead of git blob id {blob}; refused"):
        download("toy", spec, tmp_path)


def test_a_busy_server_is_tried_again_after_growing_pauses(server, tmp_path):
    server.status, server.faulty = 503, 3
    clock = Clock()
    download("toy", spec_of(server), tmp_path, clock.patience())
    assert clock.pauses == [0.5, 1.0, 2.0]
    assert names(tmp_path) == ["test.txt", "train.txt"]


def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    server.cut_after, server.faulty = 50_000, 2
    download("toy", spec_of(server), tmp_path, Clock().patience())
    assert server.requests[:3] == [
        ("/toy/train.txt", None),
        ("/toy/train.txt", "bytes=50000-"),
        ("/toy/train.txt", "bytes=100000-"),
    ]
    assert (tmp_path / "train.txt").read_bytes() == TRAIN


def test_the_part_of_an_earlier_run_is_resumed(server, tmp_path):
    (tmp_path / "train.txt.part").write_bytes(TRAIN[:123_456])
    download("toy", spec_of(server), tmp_path)
    assert server.requests[0] == ("/toy/train.txt", "bytes=123456-")
    assert (tmp_path / "train.txt").read_bytes() == TRAIN


def test_a_server_without_range_sends_the_whole_file_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "train.txt.part").write_bytes(TRAIN[:1000])
    download("toy", spec_of(server), tmp_path)
    assert [path for path, _ in server.requests] == ["/toy/train.txt", "/toy/test.txt"]
    assert (tmp_path / "train.txt").read_bytes() == TRAIN


@pytest.mark.parametrize("part", [b"another version" * 100, TRAIN + b"longer than the file"])
def test_a_part_that_does_not_belong_to_the_file_is_given_up(server, tmp_path, part):
    (tmp_path / "train.txt.part").write_bytes(part)
    download("toy", spec_of(server), tmp_path, Clock().patience())
    assert server.requests[:2] == [("/toy/train.txt", f"bytes={len(part)}-"), ("/toy/train.txt", None)]
    assert (tmp_path / "train.txt").read_bytes() == TRAIN


def test_a_whole_part_needs_no_server(server, tmp_path):
    (tmp_path / "train.txt.part").write_bytes(TRAIN)
    (tmp_path / "test.txt.part").write_bytes(TEST)
    download("toy", spec_of(server), tmp_path)
    assert server.requests == [] and names(tmp_path) == ["test.txt", "train.txt"]


# The mirror ------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "mirror"
    (folder / "toy").mkdir(parents=True)
    (folder / "toy" / "train.txt").write_bytes(TRAIN)
    (folder / "toy" / "test.txt").write_bytes(TEST)
    return folder


def test_a_mirror_folder_comes_before_the_urls(server, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("C2F_DATA_MIRROR", str(mirror))
    download("toy", spec_of(server), tmp_path / "raw")
    assert server.requests == [] and names(tmp_path / "raw") == ["test.txt", "train.txt"]


def test_a_mirror_may_be_a_url(server, tmp_path, monkeypatch):
    monkeypatch.setenv("C2F_DATA_MIRROR", server.url + "/")
    spec = spec_of(server)
    for entry in spec["files"].values():
        del entry["urls"]
    download("toy", spec, tmp_path)
    assert names(tmp_path) == ["test.txt", "train.txt"]


def test_what_the_mirror_lacks_or_has_wrong_comes_from_the_urls(server, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("C2F_DATA_MIRROR", str(mirror))
    (mirror / "toy" / "train.txt").write_bytes(TRAIN[:-1])
    (mirror / "toy" / "test.txt").unlink()
    download("toy", spec_of(server), tmp_path / "raw")
    assert [path for path, _ in server.requests] == ["/toy/train.txt", "/toy/test.txt"]


def test_a_copy_that_arrives_damaged_is_refused(server, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("C2F_DATA_MIRROR", str(mirror))
    monkeypatch.setattr(shutil, "copyfile", lambda source, target: Path(target).write_bytes(b"damaged"))
    server.files.clear()
    with pytest.raises(DataError, match=r"C2F_DATA_MIRROR\): the copy has 7 bytes with sha256"):
        download("toy", spec_of(server), tmp_path / "raw")
    assert names(tmp_path / "raw") == []


# What does not work ----------------------------------------------------------


def test_a_missing_file_is_named_with_every_place_and_where_to_put_it(server, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("C2F_DATA_MIRROR", str(mirror))
    (mirror / "toy" / "train.txt").unlink()
    server.files.clear()
    spec = spec_of(server)
    spec["files"]["train.txt"]["urls"].append("http://127.0.0.1:9/train.txt")
    clock = Clock()
    with pytest.raises(DataError) as error:
        download("toy", spec, tmp_path / "raw", clock.patience(tries=2))
    for piece in [
        "toy: file train.txt is missing",
        f"{tmp_path}/raw/train.txt: not there",
        f"{mirror}/toy/train.txt (C2F_DATA_MIRROR): No such file",
        f"{server.url}/toy/train.txt: HTTP 404 Not Found (tries: 1)",
        "http://127.0.0.1:9/train.txt: [Errno 111] Connection refused (tries: 2)",
        f"FOLDER/toy/train.txt and set C2F_DATA_MIRROR=FOLDER, or put it at {tmp_path}/raw/train.txt",
        sha256(TRAIN),
    ]:
        assert piece in str(error.value)
    assert names(tmp_path / "raw") == ["test.txt"]  # what could be had was fetched


def test_offline_every_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("C2F_DATA_MIRROR", raising=False)
    entry = {"urls": ["nonsense"], "sha256": "0" * 64}
    with pytest.raises(DataError) as error:
        download("toy", {"files": {"train.txt": entry, "test.txt": entry}, "recipe": "legcf"}, tmp_path)
    for piece in ["file train.txt is missing", "file test.txt is missing", "C2F_DATA_MIRROR: not set"]:
        assert piece in str(error.value)


def test_a_wrong_file_is_refused_removed_and_named(server, tmp_path):
    server.files["/toy/train.txt"] = b"<html>Sign in to the network</html>"
    with pytest.raises(DataError, match=r"toy/train\.txt: 35 bytes with sha256 .* instead of sha256 .*; refused"):
        download("toy", spec_of(server), tmp_path)
    assert names(tmp_path) == ["test.txt"]


def test_a_wrong_file_already_there_is_removed_and_fetched_anew(server, tmp_path):
    (tmp_path / "train.txt").write_bytes(TRAIN[:-1])
    download("toy", spec_of(server), tmp_path)
    assert (tmp_path / "train.txt").read_bytes() == TRAIN
    (tmp_path / "train.txt").write_bytes(TRAIN[:-1])
    server.files.clear()
    with pytest.raises(DataError, match=rf"{tmp_path}/train\.txt: .* instead of sha256 .*; removed"):
        download("toy", spec_of(server), tmp_path)
    assert names(tmp_path) == ["test.txt"]


def test_a_truncated_download_is_named_and_its_part_kept_for_the_next_run(server, tmp_path):
    server.cut_after, server.faulty = 1000, 2
    with pytest.raises(DataError, match=r"the connection closed after 2,000 of [\d,]+ bytes \(tries: 2\)"):
        download("toy", spec_of(server), tmp_path, Clock().patience(tries=2))
    assert (tmp_path / "train.txt.part").read_bytes() == TRAIN[:2000]
    download("toy", spec_of(server), tmp_path)
    assert server.requests[-1] == ("/toy/train.txt", "bytes=2000-")
    assert names(tmp_path) == ["test.txt", "train.txt"]


def test_a_truncated_download_of_unknown_length_is_found_by_its_checksum(server, tmp_path):
    server.length, server.cut_after, server.faulty = False, 1000, 1
    with pytest.raises(DataError, match=r"1,000 bytes with sha256"):
        download("toy", spec_of(server), tmp_path, Clock().patience())


def test_a_silent_server_is_given_up_and_tried_again(server, tmp_path):
    server.cut_after, server.stall, server.faulty = 1000, True, 1
    download("toy", spec_of(server), tmp_path, Patience(timeout=0.2, sleep=lambda seconds: None))
    assert server.requests[1] == ("/toy/train.txt", "bytes=1000-")


@pytest.mark.parametrize("when", ["write", "replace"])
def test_a_full_disk_is_named_and_the_file_never_appears_half_written(server, tmp_path, monkeypatch, when):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullDisk(io.FileIO):
        write = full

    if when == "write":
        monkeypatch.setattr(module, "open", lambda path, mode: FullDisk(path, mode), raising=False)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"cannot write .*train\.txt.*: No space left on device; free some space"):
        download("toy", spec_of(server), tmp_path)
    assert names(tmp_path) == ["train.txt.part"]
    monkeypatch.undo()
    download("toy", spec_of(server), tmp_path)
    assert names(tmp_path) == ["test.txt", "train.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_an_unwritable_folder_is_named(server, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(DataError, match=r"cannot write .*: Permission denied; make the folder writable"):
        download("toy", spec_of(server), tmp_path)


def test_a_file_where_the_folder_should_be_is_named(server, tmp_path):
    (tmp_path / "raw").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*raw: "):
        download("toy", spec_of(server), tmp_path / "raw")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_goes_on_where_it_was(server, tmp_path, how):
    server.cut_after, server.stall, server.faulty = 100_000, True, 1
    heeding = "from signal import *; signal(SIGINT, default_int_handler)"  # a shell's background jobs ignore it
    code = f"{heeding}; from c2f.download import *; download('toy', {spec_of(server)!r}, Path({str(tmp_path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    part = tmp_path / "train.txt.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(timeout=20) != 0
    got = part.stat().st_size
    assert 0 < got <= 100_000 and names(tmp_path) == ["train.txt.part"]
    download("toy", spec_of(server), tmp_path)
    assert server.requests[1] == ("/toy/train.txt", f"bytes={got}-")
    assert (tmp_path / "train.txt").read_bytes() == TRAIN


def test_settings_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'recipe'"):
        download("toy", {"files": {}, "recipes": "legcf"}, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


# Made-up data ----------------------------------------------------------------

SMALL = {"num_users": 60, "num_items": 80, "num_blocks": 4, "pairs_per_user": 12}


@pytest.mark.parametrize("recipe", ["given", "legcf", "holdout"])
def test_made_up_data_are_written_as_lists_that_prepare_reads(tmp_path, recipe):
    spec = {"generate": SMALL, "recipe": recipe}
    download("blocks", {"generate": SMALL, "recipe": "given"}, tmp_path / "raw")  # the files are those of every recipe
    assert names(tmp_path / "raw") == [f"{file.name}" for file in sorted(DatasetSpec.parse("b", spec).files, key=str)]
    prepare("blocks", spec, tmp_path / "raw", tmp_path)
    stats = load_stats(tmp_path / "stats.json")
    total = sum(len(read_lists(path)) for path in (tmp_path / "raw").iterdir())
    assert stats["num_train"] + stats["num_valid"] + stats["num_test"] == total
    assert (stats["num_users"], len(stats["source"])) == (60, 3)


def test_made_up_data_are_the_same_bytes_again(tmp_path):
    for folder in ("a", "b"):
        download("blocks", {"generate": SMALL, "recipe": "given"}, tmp_path / folder)
    assert names(tmp_path / "a") == ["test.txt", "train.txt", "valid.txt"]
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
