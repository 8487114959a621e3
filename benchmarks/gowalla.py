"""C2F's published setting on Gowalla, exact (tanh), to convergence on a GPU: one command, and what it moved.

    python benchmarks/gowalla.py --bandwidth 4800 --partition partition-300-0-*.npz partition-100-0-*.npz

It needs torch, NumPy, SciPy, pandas with pyarrow (which writes its parquet) and this repository. Without scikit-learn
the fine codes cannot start as published, and it says so before it trains: `--fine_init random` starts them otherwise.
numba, tqdm and PyYAML, which the engine imports, are replaced by nothing where they are missing: on a GPU no kernel of
numba's is used, on a processor torch's own products take its place, and no progress is shown. METIS is not needed where
`--partition` gives the files that `python -m c2f partition` wrote on another machine (283 kB each).

The steps are those of the workflow (download, prepare, resolve, train, evaluate), a process each. What is finished is
not done again; an interrupted run goes on from its checkpoint. Tried on a processor only, with made-up data: never run
on a GPU.

The report, printed and in OUTPUT/report.md, has for each stage epochs, seconds, peak memory, and the bytes that a step
moves to and from the device's memory; at `--bandwidth` GB/s these take the floor. Bytes are counted operation by
operation, as the engine asks torch for them on CUDA: every operand read once, every result written once. What a sparse
product or a gather reads again is taken to come from a cache; vectors without d, what acts on codebooks alone and the
updates once an epoch are left out. So these operations move no less; a program that fused them would. See exact_bytes
and collapsed_bytes.
"""

import argparse
import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package is not installed

from c2f.data import load_pairs, load_stats
from c2f.errors import C2FError, ConfigError
from c2f.record import Artifact, read_json, sha256_file, write_atomically
from c2f.sampling import TripleSampler

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "https://raw.githubusercontent.com/xurong-liang/LEGCF/68d63cba3f1e38a9441fc1cbcfd5da4210dab840/data/gowalla/"
SUMS = {
    "train.txt": "7244696fdeb23911319cf7b689f2e15a3c4c92549c873a5677b44e3f13cc3e62",
    "test.txt": "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3",
}
DATASETS = {
    "gowalla": {
        "files": {name: {"urls": [SOURCE + name], "sha256": checksum} for name, checksum in SUMS.items()},
        "format": "lists",
        "recipe": "legcf",
    },
    "tiny": {"generate": {"num_users": 60, "num_items": 48, "num_blocks": 4, "pairs_per_user": 8}, "recipe": "legcf"},
}
"""As in config/config.yaml, which only PyYAML reads; a test compares the two. `tiny` is what --quick takes."""
METHODS = {
    "c2f-coarse": {
        "uses": "baselines.legcf:LEGCF",
        "params": {"codebook_share": 0.75, "item_bias": True},
        "training": {"l2": 1e-3, "clip_value": 3, "negatives": 5},
    },
    "c2f": {
        "uses": "c2f.metaembed:C2FMetaEmbed",
        "starts_from": {"method": "c2f-coarse"},
        "params": {"item_bias": True},
        "training": {"lr": 3e-3, "batch_size": 32768, "negatives": 5, "clip_value": 3},
    },
}
"""The entries of config/config.yaml, as released (METHODS.md 3.5 and 4.6): batch 8,192 at 1e-3, then 32,768 at 3e-3."""
BUDGET, PARTS = "numbers-51200", (300, 100)
ENDED = ("ok", "timeout")
"""How a run with a result ends."""
QUICK = {"dim": 8, "num_codes": 12}, {"dim": 8, "num_codes": 12, "fine_codes": 6, "components": 4}
STAND_INS = ("numba", "tqdm", "yaml")


# A step in a process of its own ---------------------------------------------------------------------------------------


class Nothing(types.ModuleType):
    """In the place of a missing package: whatever is asked of it is itself, called, entered or taken from it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_, **__):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def step(words: list[str]) -> int:
    """Run one step of the command line, without the packages that are missing; return its exit code."""
    missing = [name for name in STAND_INS if importlib.util.find_spec(name) is None]
    if "numba" in missing:
        missing += ["numba.extending", "llvmlite"]
    sys.modules.update({name: Nothing(name) for name in missing})
    if "numba" in missing:
        from c2f import ops

        ops.compiled_for = lambda x: False
    from c2f.__main__ import main as steps

    return steps(words)


def run_step(name: str, /, **options) -> None:
    """Run a step in a process of its own. Raises C2FError where it fails."""
    words = [name]
    for option, value in options.items():
        words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    print(f"python -m c2f {shlex.join(words)}", flush=True)
    here = str(Path(__file__).resolve().parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import gowalla; sys.exit(gowalla.step(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", code, *words])
    if ended.returncode == 130:
        raise KeyboardInterrupt
    if ended.returncode:
        raise C2FError(f"the step `{name}` ended with exit code {ended.returncode}; its message is above")


# Bytes ----------------------------------------------------------------------------------------------------------------


def exact_bytes(nodes: int, pairs: int, codes: int, per_node: int, dim: int, layers: int, batch: int, distinct: int):
    """Return the bytes of a step of the coarse stage: codebook M (codes, dim), S with `per_node` entries a row.

    batch: triples, B; distinct: nodes among them, R. In rows of `dim` floats, with N nodes, n = N + codes:
      forward   S M: N; tanh: 2 N; [X; M]: 2 n; each layer: product 2 n, sum with X 3 n; mean: 2 n
      loss      three gathers 6 B, difference 3 B, product 3 B, sum B; squares of the batch's layer-0 rows 5 R
      backward  triples: zeros N, seven gathers, products and differences 15 B, three sums into the table 9 B;
                rows of nodes among all: n + 2 N; each layer 5 n; mean 2 n; squares 6 R into zeros N;
                the two gradients of X: 3 N; tanh: 3 N; S^T: N
    Beside these the matrices: 8 bytes for each of their entries and 4 for each row; G has 2 pairs + 2 per_node N.
    """
    size, row, entries = nodes + codes, 4 * dim, per_node * nodes
    graph = 8 * (2 * pairs + 2 * entries) + 4 * size
    rows = 14 * nodes + (10 * layers + 7) * size + 37 * batch + 11 * distinct
    return row * rows + 2 * layers * graph + 2 * 8 * entries + 4 * size


def collapsed_bytes(nodes: int, columns: int, dim: int, batch: int, distinct: int) -> int:
    """Return the bytes of a step of the fine stage: basis (N, columns) and offset (N, dim) times 2 f codebook rows.

    B and R as in exact_bytes. The batch's rows of basis and offset are copied, 2 R of each, where they are below 0.9 N;
    the product reads both and writes R rows, its backward reads the basis and R rows; the triples as in exact_bytes.
    """
    copied = distinct < 0.9 * nodes
    read = distinct if copied else nodes
    basis = 4 * columns * (2 * read + 2 * read * copied)
    return basis + 4 * dim * (2 * read * copied + 4 * read + 37 * batch)


def step_bytes(record: dict, arrays: dict, train) -> int:
    """Return the bytes of a step of a run: a coarse one, or a fine one where its arrays have fine codes."""
    batch, params = record["training"]["batch_size"], record["params"]
    user, positive, negative = TripleSampler(train, record["training"]["negatives"]).epoch(np.random.default_rng(0))
    nodes = train.num_users + train.num_items
    triples = user[:batch], positive[:batch] + train.num_users, negative[:batch] + train.num_users
    size = {"dim": params["dim"], "batch": len(user[:batch]), "distinct": len(np.unique(np.concatenate(triples)))}
    if "bridge_codes" in arrays:
        fine = params["fine_codes"] or PARTS[1]
        return collapsed_bytes(nodes, 2 * fine, **size)
    codes, per_node = len(arrays["codebook"]), params["codes_per_node"]
    return exact_bytes(nodes, len(train), codes, per_node, layers=params["num_layers"], **size)


# The whole ------------------------------------------------------------------------------------------------------------


def put_partitions(given: list[Path], data: Path, parts: tuple[int, ...]) -> None:
    """Copy given partition files beside the data. Raises ConfigError where one is of no use or one is missing."""
    pairs = load_stats(data / "stats.json")["sha256"]["train"][:12]
    wanted = {f"partition-{count}-0-{pairs}.npz": count for count in parts}
    for file in given:
        if file.name not in wanted or not file.is_file():
            raise ConfigError(f"--partition {file} is none of {', '.join(wanted)}, the files that these data need")
        if file.resolve() != (data / file.name).resolve():
            with write_atomically(data / file.name) as temporary:
                shutil.copyfile(file, temporary)
    for name, count in wanted.items():
        if not (data / name).exists() and importlib.util.find_spec("pymetis") is None:
            raise ConfigError(
                f"{data / name} is missing and pymetis is not installed; run `python -m c2f partition --data {data} "
                f"--parts {count}` where it is, and give the file with --partition"
            )


def is_done(run: Path, method: Path, start: Path | None, data: Path, seed: int) -> bool:
    """Return whether a run has a result with these settings, from this start, of these data and this seed."""
    if not (run / "run.json").exists():
        return False
    record = read_json(run / "run.json")
    made_from = {"method": sha256_file(method)} | ({"start": sha256_file(start / "artifact.npz")} if start else {})
    made_from |= {part: load_stats(data / "stats.json")["sha256"][part] for part in ("train", "valid")}
    same = made_from.items() <= record["inputs_sha256"].items() and record["seed"] == seed
    return same and record["status"] in ENDED


def run_all(options: argparse.Namespace) -> str:
    """Do what is not done yet; return the report."""
    if options.fine_init == "sparse_pca" and importlib.util.find_spec("sklearn") is None:
        raise ConfigError(
            "the published start of the fine codes is scikit-learn's SparsePCA, which is not installed; install it, or "
            "give --fine_init random, which is another start and is recorded as such"
        )
    name = "tiny" if options.quick else "gowalla"
    data = options.data or (options.output / "data" if options.quick else ROOT / "results/data" / name)
    if not (data / "stats.json").exists():
        run_step("download", name=name, spec=DATASETS[name], output=data / "raw")
        run_step("prepare", name=name, spec=DATASETS[name], raw=data / "raw", output=data)
    put_partitions(options.partition, data, (12, 6) if options.quick else PARTS)
    training = {"select_on": "ndcg@5", "device": options.device, "max_epochs": options.max_epochs}
    start: Path | None = None
    for (method, entry), small in zip(METHODS.items(), QUICK, strict=True):
        run, resolved = options.output / method, options.output / f"{method}.json"
        params = entry["params"] | (small if options.quick else {})
        params |= {"init": options.fine_init} if method == "c2f" else {}
        run_step("resolve", name=method, entry=entry | {"params": params}, training=training, output=resolved)
        if not is_done(run, resolved, start, data, options.seed):
            (run / "metrics.json").unlink(missing_ok=True)
            files = {part: data / f"{part}.parquet" for part in ("train", "valid")} | {"stats": data / "stats.json"}
            more = {"start": start} if start else {}
            budget = "full" if options.quick else BUDGET
            run_step("train", **files, method=resolved, budget=budget, seed=options.seed, output=run, **more)
        record = read_json(run / "run.json")
        if record["status"] not in ENDED:
            raise C2FError(f"{run} ended as {record['status']}: {record['reason']}")
        if not (run / "metrics.json").exists():
            run_step("evaluate", run=run, data=data, output=run)
        start = run
    return report(options, data)


def report(options: argparse.Namespace, data: Path) -> str:
    """Return what the runs took and gave, as markdown."""
    stats = load_stats(data / "stats.json")
    train = load_pairs(data / "train.parquet", stats)
    head = "| run | stage | epochs | steps | s per epoch | s | MB per step | floor, s per epoch | times the floor |"
    lines, notes = [head, "|" + "---|" * 9], []
    for method in METHODS:
        record = read_json(options.output / method / "run.json")
        arrays = Artifact.load(options.output / method / "artifact.npz").arrays
        moved = step_bytes(record, arrays, train)
        for stage in record["stages"]:
            floor = stage["steps"] / max(stage["epochs"], 1) * moved / (options.bandwidth * 1e9)
            times = stage["seconds_per_epoch"] / floor if floor else float("nan")
            cells = [method, stage["name"], stage["epochs"], stage["steps"], f"{stage['seconds_per_epoch']:.3f}"]
            cells += [f"{stage['seconds']:.1f}", f"{moved / 1e6:.1f}", f"{floor:.4f}", f"{times:.1f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        cuda = record["peak_cuda_bytes"]
        quality = read_json(options.output / method / "metrics.json")["means"]
        notes.append(
            f"* {method} on {record['device']}: {record['seconds']:.0f} s with validation and its updates, peak memory "
            f"{record['peak_rss_bytes'] / 1e9:.2f} GB, on the GPU {'-' if cuda is None else f'{cuda / 1e9:.2f} GB'}; "
            f"parts by {record['details']['partition']}; test Recall@20 {quality['recall@20']:.4f}, NDCG@20 "
            f"{quality['ndcg@20']:.4f}"
        )
    first = read_json(options.output / "c2f-coarse" / "run.json")
    made = f"{stats['name']}, seed {options.seed}, fine codes from {options.fine_init}, {options.bandwidth:g} GB/s, "
    made += f"commit {first['commit']}, torch {first['versions']['torch']}, {first['machine']}"
    return "\n".join([made, "", *lines, "", *notes]) + "\n"


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    described = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    top = argparse.ArgumentParser(prog="python benchmarks/gowalla.py", **described)
    top.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    top.add_argument("--partition", type=Path, nargs="*", default=[], help="files of `python -m c2f partition`")
    top.add_argument("--fine_init", choices=["sparse_pca", "random"], default="sparse_pca")
    top.add_argument("--bandwidth", type=float, required=True, help="of the device's memory, in GB/s")
    top.add_argument("--data", type=Path, help="prepared data (default: results/data/gowalla, made where it is not)")
    top.add_argument("--output", type=Path, default=ROOT / "results/gowalla-gpu")
    top.add_argument("--seed", type=int, default=2024)
    top.add_argument("--max_epochs", type=int, default=1000, help="of each stage; else validation ends it")
    top.add_argument("--quick", action="store_true", help="tiny made-up data: does the command work?")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run what is left to do and print the report. Returns 0, 2 for a mistake, 130 when interrupted."""
    options = parser().parse_args(arguments)
    try:
        if not options.bandwidth > 0:
            raise ConfigError(f"--bandwidth {options.bandwidth:g} is no bandwidth; write it in GB/s, above 0")
        text = run_all(options)
        with write_atomically(options.output / "report.md") as temporary:
            temporary.write_text(text)
    except C2FError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
