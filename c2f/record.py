"""What a run leaves behind: the artifact (npz, no pickle) and the record (json), each written whole or not at all."""

import contextlib
import dataclasses
import errno
import glob
import hashlib
import io
import json
import math
import mmap
import os
import platform
import struct
import subprocess
import sys
import zipfile
import zlib
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


ZIP_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError)
ZIP_ERRORS += (OverflowError, MemoryError, zipfile.BadZipFile, struct.error)
"""What reading a damaged npz (or another zip file) may raise."""
ALIGNMENT = 64
"""Where in the file an array may start: at multiples of so many bytes, so that it can be used where it lies."""


def write_npz(stream, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as NumPy's npz, uncompressed and aligned; equal content gives equal bytes."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # of 1980: no time of day in the file
            filler = -(stream.tell() + LOCAL_HEADER + len(member.filename.encode()) + 4) % ALIGNMENT
            member.extra = struct.pack("<HH", ALIGNED_EXTRA, filler) + bytes(filler)
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(member, content.getbuffer())


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an uncompressed npz by name: read-only, mapped into memory, their checksums verified.

    Pickled objects are refused. Raises one of ZIP_ERRORS.
    """
    with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        return {member.filename.removesuffix(".npy"): _array(content, member) for member in archive.infolist()}


LOCAL_HEADER = 30  # bytes, then the name and the extra field, whose lengths are the last two of its fields
ALIGNED_EXTRA = 0xD935  # the extra field of Android's zipalign: bytes that only fill


def _array(content: memoryview, member: zipfile.ZipInfo) -> np.ndarray:
    name_bytes, extra_bytes = struct.unpack_from("<HH", content, member.header_offset + LOCAL_HEADER - 4)
    start = member.header_offset + LOCAL_HEADER + name_bytes + extra_bytes
    stored = content[start : start + member.file_size]
    if member.compress_type != zipfile.ZIP_STORED or zlib.crc32(stored) != member.CRC:
        raise ValueError(f"{member.filename} is compressed or fails its checksum")
    header = io.BytesIO(stored[:MOST_HEADER_BYTES])
    version = np.lib.format.read_magic(header)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(header)
    if dtype.hasobject or header.tell() + math.prod(shape) * dtype.itemsize != len(stored):
        raise ValueError(f"{member.filename} holds objects, or another number of bytes than it says")
    values = np.frombuffer(stored[header.tell() :], dtype) if math.prod(shape) else np.empty(0, dtype)
    return values.reshape(shape, order="F" if by_columns else "C")


MOST_HEADER_BYTES = 10_100
"""More than the header of an array can be: NumPy reads no more than 10,000."""


@dataclass(frozen=True)
class Artifact:
    """arrays: everything needed to answer a query; info: uses, params, dataset hash and sizes, budget, seed."""

    arrays: dict
    info: dict

    def save(self, path: Path) -> None:
        """Write an npz that holds the arrays, and as JSON `info` and what they are; equal content gives equal bytes."""
        with write_atomically(path) as temporary, open(temporary, "wb") as stream:
            self.write(stream)

    def write(self, stream) -> None:
        """Write what `save` does into an open file."""
        info = {"arrays": _kinds(self.arrays), **self.info}
        text = json.dumps(info, sort_keys=True, allow_nan=False).encode()
        write_npz(stream, {"__info__": np.frombuffer(text, dtype=np.uint8), **self.arrays})

    @classmethod
    def load(cls, path: Path, mapped: bool = False) -> "Artifact":
        """Read an artifact. Raises ArtifactError if it is missing, truncated or altered, MemoryError.

        mapped: leave the arrays in the file, mapped into memory and read-only.
        """
        try:
            arrays = read_npz(path)
            info = json.loads(arrays.pop("__info__").tobytes())
            if info.pop("arrays") != _kinds(arrays):
                raise ValueError("its arrays are not those that were written")
            arrays = arrays if mapped else {name: array.copy() for name, array in arrays.items()}
        except FileNotFoundError:
            raise ArtifactError(f"there is no artifact at {path}; train the run first") from None
        except ZIP_ERRORS as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise MemoryError(f"no memory to map {path}") from None
            raise ArtifactError(f"{path} is damaged ({error}); delete it and run the step that writes it") from None
        return cls(arrays, info)


def _kinds(arrays: dict[str, np.ndarray]) -> dict[str, list]:
    return {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}


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
    leftover: str | None
    stages: list
    seconds: float
    peak_rss_bytes: int
    peak_cuda_bytes: int | None
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
