"""GPUs shared among real processes; the devices are faked, no GPU is needed."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from c2f import slots, train
from c2f.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import os, sys
from pathlib import Path
from c2f import slots
slots.take(lambda: int(sys.argv[1]), Path(sys.argv[2]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()  # holds it until its input ends
"""


@pytest.fixture
def hold(tmp_path):
    """hold(visible devices, CUDA_VISIBLE_DEVICES) starts a process that takes a GPU; returns it and what it took."""
    started = []

    def start(count: int = 2, visible: str | None = None):
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(count), str(tmp_path / "slots")],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.communicate()


def taken(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_four_processes_on_two_gpus_take_two_each_also_when_they_start_at_once(hold):
    assert Counter(map(taken, [hold() for _ in range(4)])) == {"0": 2, "1": 2}


def test_a_killed_process_frees_its_place_by_itself(hold):
    holders = [hold() for _ in range(4)]
    of = {process: taken(process) for process in holders}
    killed = [process for process in holders if of[process] == "1"]
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert [taken(hold()), taken(hold())] == ["1", "1"]  # two are on 0 still


def test_a_choice_that_is_there_is_kept_to(hold):
    assert [taken(hold(2, "5, 3")) for _ in range(2)] == ["5", "3"]
    assert taken(hold(2, "3,7")) == "7"  # 3 has a holder, by the same name
    assert taken(hold(1, "3")) == "3"  # nothing to choose
    assert taken(hold(2, "0,1,9")) in "01"  # CUDA sees two of the three: there is no device 9


def test_with_one_gpu_or_none_nothing_is_set_and_nothing_written(hold, tmp_path):
    assert [taken(hold(count)) for count in (0, 1)] == ["None", "None"]
    assert not (tmp_path / "slots").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "_held", None)
    (tmp_path / "slots").write_text("a file")
    with pytest.raises(DataError, match=r"cannot write .*slots: File exists; make the folder writable"):
        slots.take(lambda: 2, tmp_path / "slots")


def test_the_slot_is_taken_before_torch_is_asked_for_cuda_and_not_at_all_for_a_processor(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: calls.append("cuda starts") or True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(slots, "take", lambda count: calls.append(f"slot of {count()}"))
    assert train.pick_device("auto") == torch.device("cuda")
    assert calls[:2] == ["slot of 2", "cuda starts"]
    calls.clear()
    assert train.pick_device("cpu") == torch.device("cpu")
    assert calls == []
