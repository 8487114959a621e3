"""What a run leaves behind: the artifact (npz, no pickle) and the record (json), each written whole or not at all."""

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import os
import platform
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from c2f.errors import ArtifactError, DataError


@contextlib.contextmanager
def disk_errors(path: Path):
    """Turn a full disk or an unwritable folder met in the block into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "free some space" if full else "make the folder writable"
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; {way_out} or choose another folder, "
            "then run the same command again"
        ) from error


@contextlib.contextmanager
def write_atomically(path: Path):
    """Yield a temporary path in the same folder, moved to `path` if the block succeeds and removed if it does not.

    What a killed process left of the same file is removed. Raises DataError where the folder cannot be written or the
    disk is full.
    """
    path = Path(path)
    stem = f".{path.name}.{platform.node()}."  # other machines may be writing the same file: their processes are theirs
    temporary = path.with_name(f"{stem}{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(stem)}[0-9]*.tmp"):
            if not _runs(int(left.name.removeprefix(stem).removesuffix(".tmp"))):
                left.unlink(missing_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 is not sent, only checked
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_json(path: Path, value: dict) -> None:
    """Write readable JSON with keys in the given order; NaN is refused."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read JSON. Raises DataError naming the file and what is wrong."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise _unreadable(path, error) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); delete it and run the step that writes it") from None


ZIP_ERRORS = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile)
"""What reading a damaged npz (or another zip file) may raise."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name; pickled objects are refused. Raises one of ZIP_ERRORS."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


@dataclass(frozen=True)
class Artifact:
    """arrays: everything needed to answer a query; info: uses, params, dataset hash and sizes, budget, seed."""

    arrays: dict
    info: dict

    def save(self, path: Path) -> None:
        """Write an npz that holds the arrays, and `info` and their names as JSON; equal content gives equal bytes."""
        with write_atomically(path) as temporary, open(temporary, "wb") as stream:
            info = {"arrays": sorted(self.arrays), **self.info}
            text = json.dumps(info, sort_keys=True, allow_nan=False).encode()
            np.savez(stream, __info__=np.frombuffer(text, dtype=np.uint8), **self.arrays)

    @classmethod
    def load(cls, path: Path) -> "Artifact":
        """Read an artifact. Raises ArtifactError if it is missing, truncated or altered."""
        try:
            arrays = read_npz(path)
            info = json.loads(arrays.pop("__info__").tobytes())
            names = info.pop("arrays", sorted(arrays))
            if names != sorted(arrays):
                raise ValueError(f"it should hold {', '.join(names)}")
        except FileNotFoundError:
            raise ArtifactError(f"there is no artifact at {path}; train the run first") from None
        except ZIP_ERRORS as error:
            raise ArtifactError(f"{path} is damaged ({error}); delete it and train the run again") from None
        return cls(arrays, info)


@dataclass(frozen=True)
class RunRecord:
    """Everything that says how a run was made and how it ended; the fields of run.json."""

    status: str
    reason: str | None
    dataset: str
    protocol: str
    method: str
    budget: str
    seed: int
    uses: str
    params: dict
    training: dict
    starts_from: str | None
    footprint: dict | None
    stages: list
    seconds: float
    peak_rss_bytes: int
    device: str
    threads: int
    versions: dict
    machine: str
    commit: str
    inputs_sha256: dict
    command: str
    details: dict

    def write(self, path: Path) -> None:
        """Write run.json."""
        write_json(path, dataclasses.asdict(self))


def peak_rss_bytes() -> int:
    """Return this process's resident high-water mark (VmHWM on Linux, ru_maxrss elsewhere)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    names = ["torch", "numba", "numpy", "scipy", "scikit-learn", "pymetis", "recbole"]
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {"python": platform.python_version(), **found}


def machine() -> str:
    """Return processor, cores and memory in words."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return f"{processor}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()}"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def commit() -> str:
    """Return the git commit of this code, with `+` if files were changed since; `unknown` outside a checkout."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=folder, capture_output=True, text=True)
        if head.returncode != 0:
            return "unknown"
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=folder, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file. Raises DataError where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return DataError(f"{path} {problem}; run the step that writes it")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
