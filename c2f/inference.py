"""What it costs to serve a model: bytes, seconds to load, memory and time per query, each in a process of its own.

    python -m c2f.inference RUN DATA NUM_USERS MEMORY_LIMIT      one measurement, as JSON

The process imports NumPy and c2f.serve, uses one core, and may take MEMORY_LIMIT bytes of address space beyond what
Python and NumPy take themselves (on Linux; elsewhere there is no limit).
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from c2f.errors import C2FError, DataError
from c2f.record import machine, peak_rss_bytes, write_atomically

COLUMNS = ["file_bytes", "load_seconds", "resident_bytes", "latency_p50_ms", "latency_p95_ms", "users_per_second"]
"""What is measured of each run; empty where its `status` is not ok."""
NO_MODEL, NOT_ALONE = "no model", "needs its library"
K = 20
SECONDS = 600
"""After so long a measurement is given up."""
KILLED = -9  # by the kernel, out of memory
ONE_CORE = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"], "1")


def measure_runs(runs: Sequence[Path], data: Path, output: Path, num_users: int, memory_limit: int) -> None:
    """Measure runs on one dataset one after the other; write a row for each (csv)."""
    rows = [{"run": str(run), **_in_its_own_process(run, data, num_users, memory_limit)} for run in runs]
    names = ["run", "status", "reason", *COLUMNS, "num_users", "memory_limit", "machine"]
    shared = {"num_users": num_users, "memory_limit": memory_limit, "machine": machine()}
    with write_atomically(output) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, names, restval="")
        writer.writeheader()
        writer.writerows(row | shared for row in rows)


def _in_its_own_process(run: Path, data: Path, num_users: int, memory_limit: int) -> dict:
    words = [sys.executable, "-m", "c2f.inference", str(run), str(data), str(num_users), str(memory_limit)]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    alone = os.environ | ONE_CORE | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=alone)
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "reason": f"more than {SECONDS} seconds"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    if "MemoryError" in done.stderr or "needs more memory" in done.stderr or done.returncode == KILLED:
        return {"status": "oom", "reason": f"more than {memory_limit:,} bytes beyond Python's own"}
    if done.returncode < 0:
        reason = f"ended by signal {-done.returncode}, with {memory_limit:,} bytes beyond Python's own"
        return {"status": "failed", "reason": reason}
    raise DataError(f"{run} could not be measured: {done.stderr.strip()[-2000:]}")


def measure(run: Path, data: Path, num_users: int, memory_limit: int) -> dict:
    """Return `status` and the numbers of COLUMNS for one run, served in this process."""
    import numpy as np

    from c2f.record import Artifact
    from c2f.serve import Reader

    one = np.ones((8, 8), dtype=np.float32)
    one @ one  # the library's own buffers
    generator = np.random.default_rng(0)  # a library of its own, loaded now
    info = Artifact.load(run / "artifact.npz", mapped=True).info
    if info["status"] not in ("ok", "timeout"):
        return {"status": NO_MODEL, "reason": f"the run ended as {info['status']}"}
    if "scorer" in info["decoder"]:
        return {"status": NOT_ALONE, "reason": f"{info['uses']} scores with a library of its own"}
    _limit_memory(memory_limit)
    began = time.perf_counter()
    reader = Reader.open(run, data)
    load_seconds = time.perf_counter() - began
    users = generator.permutation(reader.data.num_users)[:num_users]
    k = min(K, reader.data.num_items)
    for user in users[:10]:  # warm up
        reader.recommend(int(user), k)
    latencies = []
    for user in users:
        began = time.perf_counter()
        reader.recommend(int(user), k)
        latencies.append(time.perf_counter() - began)
    began = time.perf_counter()
    served = sum(1 for _ in reader.recommend_all(users, k))
    together = time.perf_counter() - began
    p50, p95 = np.percentile(latencies, [50, 95]) * 1000
    return {
        "status": "ok",
        "reason": "",
        "file_bytes": (run / "artifact.npz").stat().st_size,
        "load_seconds": round(load_seconds, 4),
        "resident_bytes": peak_rss_bytes(),
        "latency_p50_ms": round(p50, 4),
        "latency_p95_ms": round(p95, 4),
        "users_per_second": round(served / together, 1),
    }


def _limit_memory(beyond: int) -> None:
    """Allow this process `beyond` bytes of address space more than it has now. Only Linux counts and limits them."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + beyond,) * 2)
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    try:
        print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    except (C2FError, MemoryError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
