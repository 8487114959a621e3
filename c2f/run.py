"""One run: a method, a budget and a seed on prepared data -> artifact, record and curve; and its evaluation."""

import csv
import dataclasses
import hashlib
import json
import math
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from c2f import diagnostics, evaluate, record
from c2f.budget import Budget, Footprint
from c2f.captions import METRICS
from c2f.data import load_pairs, load_stats, write_parquet
from c2f.errors import ArtifactError, BudgetError, ConfigError, DivergedError, MethodError
from c2f.graph import Graph
from c2f.method import EmbeddingMethod, build, decoder_of, export_arrays, load_class
from c2f.ops import keep_freed_memory
from c2f.record import Artifact, RunRecord, read_json, sha256_file, write_atomically, write_json
from c2f.seeds import seed_for
from c2f.settings import from_mapping
from c2f.train import VALIDATION_METRICS, StageReport, Trainer, TrainingSettings, pick_device

CURVE_COLUMNS = ["stage", "epoch", "seconds", "loss", *VALIDATION_METRICS]
SCORED = ("ok", "timeout")
"""The statuses whose artifact holds a trained model."""
LIMITS = ("max_epochs", "max_seconds", "patience")
"""Settings that only say when to stop: they may change before an interrupted run is taken up again."""
WELL_USED = 0.98
"""The share of its budget that a run should use; below it the record says what keeps it from that."""
ARTIFACT_INFO = ("status", "reason", "method", "uses", "params", "device", "dataset", "train_sha256", "valid_sha256")
"""What is read of an artifact's info."""
NO_SHAPE_SHOWS = {"num_layers", "activation"}
"""Parameters that a run must share with the one it starts from; others show in the shapes of its arrays."""
NOT_TRAINING = {"__init__", "__main__", "captions", "choose", "compare", "data", "diagnostics", "download"}
NOT_TRAINING |= {"evidence_figures", "explain", "export", "figures", "findings", "grid", "inference", "memory_figures"}
NOT_TRAINING |= {"page", "report", "serve", "slots", "stats", "tuning"}
"""Modules of this package that cannot change a trained model; an interrupted run is taken up again by the others'."""


@dataclass(frozen=True)
class ResolvedMethod:
    """A method's entry with every default filled in, as <output>/methods/{name}.json holds it."""

    name: str
    uses: str
    params: dict
    training: dict
    starts_from: dict | None
    source_sha256: str

    @property
    def method_class(self) -> type[EmbeddingMethod]:
        """The class that `uses` names."""
        return load_class(self.uses)


def resolve(name: str, entry: dict, training: dict, output: Path) -> None:
    """Check a method's entry against its class and write it with all defaults. Raises ConfigError."""
    write_json(output, dataclasses.asdict(resolved_method(name, entry, training)))


def resolved_method(name: str, entry: dict, training: dict) -> ResolvedMethod:
    """Return a method's entry with all defaults, checked against its class. Raises ConfigError."""
    allowed = ("uses", "params", "training", "starts_from")
    for key in entry:
        if key not in allowed:
            raise ConfigError(f"unknown key {key!r} in methods.{name}; known: {', '.join(allowed)}")
    if "uses" not in entry:
        raise ConfigError(f"methods.{name} has no `uses`; write `uses: package.module:Class`")
    cls = load_class(entry["uses"])
    params = from_mapping(cls.Params, entry.get("params") or {}, f"methods.{name}.params")
    from_mapping(TrainingSettings, training, "training")
    changes = entry.get("training") or {}
    from_mapping(TrainingSettings, changes, f"methods.{name}.training")
    settings = from_mapping(TrainingSettings, training | changes, f"methods.{name}.training")
    source = Path(sys.modules[cls.__module__].__file__ or "")
    return ResolvedMethod(
        name=name,
        uses=entry["uses"],
        params=dataclasses.asdict(params),
        training=dataclasses.asdict(settings),
        starts_from=entry.get("starts_from"),
        source_sha256=sha256_file(source),
    )


def load_method(path: Path) -> ResolvedMethod:
    """Return what `resolve` wrote. Raises DataError or ConfigError where the file is missing or something else."""
    try:
        return ResolvedMethod(**read_json(path))
    except TypeError:
        raise ConfigError(f"{path} holds no resolved method; write it with `python -m c2f resolve`") from None


def train(
    train_file: Path,
    valid_file: Path,
    stats_file: Path,
    method_file: Path,
    budget_name: str,
    seed: int,
    output: Path,
    start: Path | None = None,
    training: dict | None = None,
    progress: bool = True,
) -> str:
    """Train one run and write artifact.npz, run.json and curve.csv; return its status.

    What cannot be done (budget, divergence, memory, time) is a status with a reason, not an error. An interrupted run
    continues from its checkpoint when it is called again with the same inputs.
    """
    keep_freed_memory()
    versions, commit = record.versions(), record.commit()  # now: hours later the files may be others
    budget = Budget.parse(budget_name)
    resolved = load_method(method_file)
    cls = resolved.method_class
    params = from_mapping(cls.Params, resolved.params, f"{method_file}: params")
    from_mapping(TrainingSettings, training or {}, "--training")
    settings = from_mapping(TrainingSettings, resolved.training | (training or {}), f"{method_file}: training")
    stats = load_stats(stats_file)
    graph = Graph(load_pairs(train_file, stats))
    valid = load_pairs(valid_file, stats)
    inputs = {"train": stats["sha256"]["train"], "valid": stats["sha256"]["valid"], "method": sha256_file(method_file)}
    if start is not None:
        inputs["start"] = sha256_file(start / "artifact.npz")
    decides = {key: value for key, value in dataclasses.asdict(settings).items() if key not in LIMITS}
    given = {name: checksum for name, checksum in inputs.items() if name != "method"}
    sources = [_engine_sha256(), resolved.source_sha256, _decoder_sha256(cls)]
    trained = [given, resolved.uses, resolved.params, sources, decides, budget.name, seed]
    fingerprint = hashlib.sha256(json.dumps(trained).encode()).hexdigest()
    begun = _load_start(start, resolved, stats) if start is not None else None
    run_seed = seed_for(seed, stats["name"], resolved.name)
    checkpoint = output / "checkpoint.pt"
    with record.disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)

    began, method, trainer, arrays = time.perf_counter(), None, None, {}
    status, reason = "ok", None
    try:
        method = build(cls, budget, graph, params, run_seed)
        started = _start_arrays(begun, start)
        trainer = Trainer(
            graph,
            valid,
            settings,
            run_seed,
            checkpoint=checkpoint,
            fingerprint=fingerprint,
            partitions=train_file.parent,
            progress=progress,
        )
        method.fit(trainer, started)
        arrays = export_arrays(method)
        if trainer.timed_out:
            status, reason = "timeout", f"stopped after max_seconds = {settings.max_seconds:g}; best weights so far"
    except BudgetError as error:
        status, reason = "infeasible", str(error)
    except DivergedError as error:
        status, reason = "diverged", str(error)
    except MethodError as error:
        status, reason = "failed", str(error)
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        status, reason = "oom", f"out of memory: {error}"
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        status, reason = "oom", f"out of memory: {str(error).splitlines()[0]}"

    footprint, leftover = None, None
    if arrays:
        assert method is not None
        footprint = _footprint(method, arrays, graph)
        if budget.kind != "full" and footprint.spent(budget) < WELL_USED * budget.amount:
            leftover = method.leftover(budget)
        if footprint.spent(budget) > budget.amount:
            status, reason = "over_budget", f"the artifact takes {footprint.spent(budget):,} of the budget {budget}"
            arrays = {}
    info = {
        "status": status,
        "reason": reason,
        "method": resolved.name,
        "uses": resolved.uses,
        "decoder": decoder_of(cls),
        "params": resolved.params,
        "device": settings.device,
        "dataset": stats["name"],
        "train_sha256": stats["sha256"]["train"],
        "valid_sha256": stats["sha256"]["valid"],
        "num_users": graph.num_users,
        "num_items": graph.num_items,
        "budget": budget.name,
        "seed": seed,
    }
    Artifact(arrays, info).save(output / "artifact.npz")
    _write_curve(output / "curve.csv", trainer.curve if trainer else [])
    RunRecord(
        status=status,
        reason=reason,
        dataset=stats["name"],
        protocol=stats["recipe"],
        method=resolved.name,
        budget=budget.name,
        seed=seed,
        uses=resolved.uses,
        params=resolved.params,
        training=dataclasses.asdict(settings),
        starts_from=str(start) if start else None,
        footprint=dataclasses.asdict(footprint) if footprint else None,
        leftover=leftover,
        stages=[_stage(report) for report in trainer.reports] if trainer else [],
        seconds=round(trainer.seconds() if trainer else time.perf_counter() - began, 3),
        peak_rss_bytes=record.peak_rss_bytes(),
        peak_cuda_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None,
        device=str(trainer.device if trainer else pick_device(settings.device)),
        threads=torch.get_num_threads(),
        versions=versions,
        machine=record.machine(),
        commit=commit,
        inputs_sha256=inputs,
        command=shlex.join(["python", "-m", "c2f", *sys.argv[1:]]),
        details=method.details if method is not None else {},
    ).write(output / "run.json")
    checkpoint.unlink(missing_ok=True)
    return status


def evaluate_run(run: Path, data: Path, ks: list[int], output: Path) -> dict:
    """Score a finished run on the test pairs from its artifact alone, and write what comes of it.

    per_user.parquet, metrics.json (their means, which it returns) and diagnostics.json. A run without a trained model
    gives no rows, no means, and as diagnostics only the reason.
    """
    keep_freed_memory()
    artifact = load_artifact(run / "artifact.npz")
    per_user: dict = {name: [] for name in ["user", "held_out", *(f"{name}@{k}" for k in ks for name in METRICS)]}
    stats = load_stats(data / "stats.json")
    test_sha256 = stats["sha256"]["test"]
    found: dict = {"reason": artifact.info["reason"]}
    if artifact.info["status"] in SCORED:
        scorer = load_scorer(artifact, data, place=run / "artifact.npz")
        parts = {"train", "test", *stats["mask_at_test"]}
        pairs = {part: load_pairs(data / f"{part}.parquet", stats) for part in parts}
        masked = evaluate.union([pairs[part] for part in stats["mask_at_test"]])
        lists = evaluate.top_lists(scorer, masked, pairs["test"], max(ks))
        per_user = evaluate.user_metrics(lists, ks)
        cls = load_class(artifact.info["uses"])
        codes = cls.code_arrays(artifact.arrays, cls.Params(**artifact.info["params"]))
        found = diagnostics.of_run(lists, per_user, pairs["train"], pairs["test"], ks, codes)
    columns = {
        name: np.ascontiguousarray(values, dtype=np.float32 if "@" in name else np.int32)
        for name, values in per_user.items()
    }
    means = evaluate.means(per_user)
    with write_atomically(output / "per_user.parquet") as temporary:
        write_parquet(columns, temporary)
    write_json(output / "diagnostics.json", found)
    write_json(output / "metrics.json", {"users": len(columns["user"]), "means": means, "test_sha256": test_sha256})
    return means


def load_artifact(path: Path) -> Artifact:
    """Return a run's artifact. Raises ArtifactError where it is damaged or no run's."""
    artifact = Artifact.load(path)
    missing = [key for key in ARTIFACT_INFO if key not in artifact.info]
    if missing:
        raise ArtifactError(f"{path} does not say its {', '.join(missing)}; train the run again")
    return artifact


def load_scorer(artifact: Artifact, data: Path, place: Path) -> evaluate.Scorer:
    """Return the scorer of a trained artifact on its own dataset; `place` names it in errors. Raises ArtifactError."""
    info, stats = artifact.info, load_stats(data / "stats.json")
    _check_same_pairs(info, stats, place)
    graph = Graph(load_pairs(data / "train.parquet", stats))
    device = pick_device("cpu" if info["device"] == "cpu" else "auto")
    cls = load_class(info["uses"])
    try:
        return cls.scorer(artifact.arrays, cls.Params(**info["params"]), graph, device)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ArtifactError(f"{place} does not hold what {info['uses']} needs ({error}); train it again") from error


def _check_same_pairs(info: dict, stats: dict, place: Path) -> None:
    """Raise ArtifactError where a run saw other training pairs, or was selected on other validation pairs."""
    for part, words in [("train", "trained on {} with other training"), ("valid", "selected on other {} validation")]:
        if info[f"{part}_sha256"] != stats["sha256"][part]:
            raise ArtifactError(
                f"{place} was {words.format(info['dataset'])} pairs than {stats['name']} has here; "
                "use the data it was trained on, or train it again"
            )


def _load_start(folder: Path, resolved: ResolvedMethod, stats: dict) -> Artifact:
    """Return the artifact to start from. Raises ArtifactError or ConfigError where it is not what the entry names."""
    place, artifact = folder / "artifact.npz", load_artifact(folder / "artifact.npz")
    info, wanted = artifact.info, resolved.starts_from
    if wanted is None or info["method"] != wanted["method"]:
        raise ConfigError(
            f"--start {folder} is a run of {info['method']!r}, but {resolved.name!r} starts from "
            f"{wanted['method'] if wanted else 'nothing'}; give that run, or change `starts_from` in the configuration"
        )
    _check_same_pairs(info, stats, place)
    for name in NO_SHAPE_SHOWS & info["params"].keys() & resolved.params.keys():
        if info["params"][name] != resolved.params[name]:
            raise ConfigError(
                f"{resolved.name!r} has {name} = {resolved.params[name]!r}, but {info['method']!r}, from which it "
                f"starts, {info['params'][name]!r}; give both entries the same in `params`"
            )
    return artifact


def _engine_sha256() -> str:
    modules = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_TRAINING)
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()


def _decoder_sha256(cls: type[EmbeddingMethod]) -> str:
    (place,) = decoder_of(cls).values()
    return sha256_file(Path(sys.modules[place.partition(":")[0]].__file__ or ""))


def _start_arrays(artifact: Artifact | None, folder: Path | None) -> dict | None:
    if artifact is None:
        return None
    if artifact.info["status"] not in SCORED:
        raise MethodError(
            f"it starts from {folder}, which ended as {artifact.info['status']}: {artifact.info['reason']}"
        )
    return artifact.arrays


def _footprint(method: EmbeddingMethod, arrays: dict, graph: Graph) -> Footprint:
    scorer = method.scorer(arrays, method.params, graph, torch.device("cpu"))
    return Footprint.measure(
        arrays,
        method.counted,
        graph_bytes=graph.stored_bytes,
        table_bytes=scorer.cached_bytes,
        needs_graph=method.needs_graph,
        numbers=method.packed_numbers(),
        kinds=method.kinds,
    )


def _stage(report: StageReport) -> dict:
    values = dataclasses.asdict(report)
    if not math.isfinite(report.best_value):  # out of time before its first evaluation
        values["best_value"] = None
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


def _write_curve(path: Path, curve: list[dict]) -> None:
    with write_atomically(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, CURVE_COLUMNS)
        writer.writeheader()
        for row in curve:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})  # NaN: no loss yet
