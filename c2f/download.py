"""Fetch the published files of a dataset: from the mirror or else from each URL, resumed, retried and verified."""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from c2f.data import DatasetSpec, RawFile, generate_blocks
from c2f.errors import DataError
from c2f.record import disk_errors

CHUNK_BYTES = 1 << 18


class SourceError(Exception):
    """Why one place did not give the file; `again` where another try may."""

    def __init__(self, reason: str, *, again: bool = False):
        super().__init__(reason)
        self.again = again


@dataclass(frozen=True)
class Patience:
    """How long to wait for an answer, how often to try, and the pause before the second try (then doubled)."""

    tries: int = 4
    first_delay: float = 0.5
    timeout: float = 20.0
    sleep: Callable[[float], None] = time.sleep


def download(name: str, spec: Mapping, output: Path, patience: Patience | None = None) -> None:
    """Write the raw files of dataset `name` into the folder `output`; made-up data is generated there.

    Datasets that are `like:` another share its files: the workflow asks for them under that other's name.

    Each file is looked for in `output` itself, below C2F_DATA_MIRROR (a folder or URL that holds <dataset>/<file>)
    and at its URLs, in this order; what arrived before an interruption (`<file>.part`) is continued. A file counts
    only if its checksum is right. Raises DataError that names every file that could not be had, and where to put it.
    """
    dataset = DatasetSpec.parse(name, spec)
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    if dataset.generate is not None:
        write_generated(dataset, output)
        return
    missing = []
    for file in dataset.files:
        failures = obtain(file, name, output / file.name, patience or Patience())
        if failures:
            missing.append(_missing(file, name, output / file.name, failures))
    if missing:
        raise DataError("\n".join(missing))


def obtain(file: RawFile, dataset: str, target: Path, patience: Patience) -> list[str]:
    """Put the verified file at `target`; return an empty list, or where it was looked for and why each place failed."""
    part = target.with_name(target.name + ".part")
    with disk_errors(target):
        if target.exists():
            problem = file.problem(target)
            if problem is None:
                return []
            target.unlink()
            failures = [f"{target}: {problem}; removed"]
        else:
            failures = [f"{target}: not there"]
        if part.exists() and file.problem(part) is None:  # whole, only the last step was interrupted
            os.replace(part, target)
            return []
    mirror = os.environ.get("C2F_DATA_MIRROR")
    if not mirror:
        failures.append("C2F_DATA_MIRROR: not set")
    in_mirror = f"{mirror.rstrip('/')}/{dataset}/{file.name}" if mirror else ""
    for place in (in_mirror, *file.urls) if mirror else file.urls:
        try:
            if "://" in place:
                fetch_patiently(file, place, part, f"{dataset}/{file.name}", patience)
            else:
                copy(file, Path(place), part)
        except SourceError as error:
            failures.append(f"{place}{' (C2F_DATA_MIRROR)' if place == in_mirror else ''}: {error}")
            continue
        with disk_errors(target):
            os.replace(part, target)
        return []
    return failures


def copy(file: RawFile, source: Path, part: Path) -> None:
    """Copy `source` to `part`; raises SourceError if it is absent, unreadable or not the published file."""
    try:
        problem = file.problem(source)
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from error
    if problem:
        raise SourceError(problem)
    with disk_errors(part):
        shutil.copyfile(source, part)
        problem = file.problem(part)
        if problem:
            part.unlink()
            raise SourceError(f"the copy has {problem}")


def fetch_patiently(file: RawFile, url: str, part: Path, label: str, patience: Patience) -> None:
    """Fetch `url` to `part`, trying again after a growing pause where that may help; raises SourceError."""
    for attempt in range(1, patience.tries + 1):
        try:
            fetch(file, url, part, label, patience.timeout)
            return
        except SourceError as error:
            if not error.again or attempt == patience.tries:
                raise SourceError(f"{error} (tries: {attempt})") from error
        patience.sleep(patience.first_delay * 2 ** (attempt - 1))


def fetch(file: RawFile, url: str, part: Path, label: str, timeout: float) -> None:
    """Fetch `url` to `part` once, after the bytes that `part` already has, and verify it; raises SourceError.

    The server may ignore the range (then from the start). A continued file of the wrong checksum is given up, since
    its beginning may be of another version: `again` then means from the start.
    """
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "c2f-bench", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            part.unlink()
            raise SourceError(f"shorter than the {start:,} bytes of {part.name}", again=True) from error
        raise SourceError(
            f"HTTP {error.code} {error.reason}", again=error.code in (408, 429) or error.code >= 500
        ) from error
    except urllib.error.URLError as error:
        raise SourceError(str(error.reason), again=isinstance(error.reason, OSError)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SourceError(f"{type(error).__name__}: {error}", again=not isinstance(error, ValueError)) from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise SourceError("answered with another range than asked for", again=True)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        bar = tqdm(desc=label, total=total, initial=start, unit="B", unit_scale=True)
        with bar, disk_errors(part), open(part, "ab" if start else "wb") as out:
            for chunk in chunks(response):
                out.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size < total:
        raise SourceError(f"the connection closed after {size:,} of {total:,} bytes", again=True)
    problem = file.problem(part)
    if problem:
        part.unlink()
        raise SourceError(f"{problem}; refused", again=start > 0)


def chunks(response) -> Iterator[bytes]:
    """Yield what arrives; a connection that breaks is a SourceError, so that it is not taken for a full disk."""
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)  # what is there: a silent server costs nothing that arrived
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"the connection broke: {error}", again=True) from error
        if not chunk:
            return
        yield chunk


def _missing(file: RawFile, dataset: str, target: Path, failures: list[str]) -> str:
    looked = "".join(f"\n  {failure}" for failure in failures)
    return (
        f"{dataset}: file {file.name} is missing. Looked at:{looked}\n"
        f"Put it (with {file.checksum()}) at FOLDER/{dataset}/{file.name} and set C2F_DATA_MIRROR=FOLDER, "
        f"or put it at {target}; or mend the network and run the same command again."
    )


def write_generated(dataset: DatasetSpec, output: Path) -> None:
    """Write the made-up pairs as lists: three files, whatever the recipe."""
    for name, pairs in generate_blocks(**(dataset.generate or {})).items():
        target = output / f"{name}.txt"
        part = target.with_name(target.name + ".part")
        items_of = np.split(pairs.item, np.flatnonzero(np.diff(pairs.user)) + 1)
        lines = (
            f"{user} {' '.join(map(str, items))}\n" for user, items in zip(np.unique(pairs.user), items_of, strict=True)
        )
        with disk_errors(target):
            part.write_text("".join(lines))
            os.replace(part, target)
