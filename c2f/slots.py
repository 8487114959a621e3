"""Which GPU a process takes on a machine with several: the one with the fewest holders.

A holder keeps a lock (flock) on a file that names its GPU until it ends, so a killed process frees its place by itself.
Holders of one user on one machine see each other through a shared folder; containers with a /tmp of their own do not.
Only tried with faked devices: it has not run on a machine with a GPU.
"""

import fcntl
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

from c2f.record import disk_errors

_held: IO | None = None
"""The locked file of this process, open for as long as it lives."""


def take(count_devices: Callable[[], int], folder: Path | None = None) -> None:
    """Let CUDA see one GPU only, the one with the fewest holders, where it would see several; hold it from then on.

    Call it before CUDA starts in this process: CUDA reads CUDA_VISIBLE_DEVICES once. A choice that stands there already
    is kept to: one of its entries is taken. count_devices: how many GPUs are visible, found without starting CUDA;
    folder: of the holders' files, by default one for this user and machine. Raises DataError where it is not writable.
    """
    global _held
    if _held is not None:
        return
    count = count_devices()
    if count < 2:
        return
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = (given.split(",") if given else list(map(str, range(count))))[:count]
    folder = folder or Path(tempfile.gettempdir()) / f"c2f-slots-{os.getuid()}-{platform.node()}"
    with disk_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        with open(folder / "choosing", "w") as choosing:
            fcntl.flock(choosing, fcntl.LOCK_EX)  # one chooses at a time
            holders = Counter(_held_devices(folder))
            device = min(devices, key=lambda name: holders[name.strip()]).strip()
            _held = open(folder / f"{os.getpid()}.holder", "w")  # noqa: SIM115  (open until the process ends)
            fcntl.flock(_held, fcntl.LOCK_EX)
            _held.write(device)
            _held.flush()
    os.environ["CUDA_VISIBLE_DEVICES"] = device


def _held_devices(folder: Path) -> list[str]:
    """Return the device of every living holder; what a dead one left is removed."""
    devices = []
    for path in folder.glob("*.holder"):
        with open(path) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                devices.append(stream.read())
            else:
                path.unlink()
    return devices
