"""Gowalla on a GPU in one command: tried on made-up data and a processor, where only a few packages can be imported."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gowalla
import numpy as np
import pytest
import torch
import yaml
from conftest import interactions
from steps import step
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.legcf import LEGCF
from c2f.budget import Budget
from c2f.data import DatasetSpec
from c2f.graph import Graph
from c2f.grid import Grid
from c2f.metaembed import C2FMetaEmbed
from c2f.method import build
from c2f.run import resolved_method
from c2f.train import Trainer, TrainingSettings, _Step

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "scipy", "pandas", "pyarrow")
ONLY = """
import json, sys
from importlib.machinery import PathFinder

class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[:] = [Only if finder is PathFinder else finder for finder in sys.meta_path]
"""


def hidden_modules() -> list[str]:
    """The installed modules that are no part of NEEDED, nor of what these require."""
    kept, queue = set(), list(NEEDED)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name not in kept:
            kept.add(name)
            try:
                requires = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:  # for another platform
                continue
            queue += [re.match(r"[\w.-]+", text)[0] for text in requires if "extra ==" not in text]
    modules = importlib.metadata.packages_distributions().items()
    names = [module for module, owners in modules if not kept & {re.sub(r"[-_.]+", "-", o).lower() for o in owners}]
    return [name for name in names if name not in ("c2f", "baselines")]


@pytest.fixture
def alone(tmp_path):
    """alone(words) runs the command where nothing but NEEDED can be imported; returns the finished process."""
    hidden = hidden_modules()
    assert {"numba", "tqdm", "yaml", "sklearn", "pymetis", "snakemake", "jsonschema"} <= {*hidden}
    (tmp_path / "sitecustomize.py").write_text(f"HIDDEN = {set(hidden)!r}\n{ONLY}")

    def run(*words) -> subprocess.CompletedProcess:
        command = [sys.executable, "benchmarks/gowalla.py", "--quick", "--bandwidth", "10", "--device", "cpu"]
        command += ["--max_epochs", "2", "--output", str(tmp_path / "out"), *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_it_runs_with_nothing_but_torch_numpy_scipy_and_pandas_and_a_second_call_trains_nothing(alone, tmp_path):
    ended = alone()
    assert ended.returncode == 2
    assert "SparsePCA, which is not installed; install it, or give --fine_init random" in ended.stderr
    random = ("--fine_init", "random")
    ended = alone(*random)
    assert ended.returncode == 2
    assert "is missing and pymetis is not installed; run `python -m c2f partition --data" in ended.stderr
    data = tmp_path / "out" / "data"
    for parts in (12, 6):  # as on another machine
        assert step("partition", data=data, parts=parts) == 0
    files = [file.rename(tmp_path / file.name) for file in data.glob("partition-*")]
    ended = alone(*random, "--partition", *files)
    assert ended.returncode == 0, ended.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert ended.stdout.endswith(text + "\n")
    rows = re.findall(r"^\| (c2f\S*) \| (\w+ \w+) \| 2 \| 2 \|", text, re.MULTILINE)
    assert rows == [
        ("c2f-coarse", "fixed assignment"), ("c2f-coarse", "updated assignment"),
        ("c2f", "fixed bridge"), ("c2f", "updated bridge"),
    ]  # fmt: skip
    coarse = json.loads((tmp_path / "out/c2f-coarse/run.json").read_text())
    assert coarse["details"]["partition"].startswith("pymetis") and coarse["peak_cuda_bytes"] is None
    assert coarse["command"].startswith("python -m c2f train --train")
    again = alone(*random)
    assert (again.returncode, again.stdout.endswith(text + "\n")) == (0, True)
    assert set(re.findall(r"^python -m c2f (\w+)", again.stdout, re.MULTILINE)) == {"resolve"}


def test_a_partition_of_other_data_is_refused_by_name(tmp_path):
    (tmp_path / "stats.json").write_text(
        json.dumps({"num_users": 1, "num_items": 1, "mask_at_test": [], "sha256": {"train": "ab" * 32}})
    )
    (tmp_path / "partition-300-0-123456789abc.npz").touch()
    with pytest.raises(gowalla.ConfigError, match=r"is none of partition-300-0-abababababab\.npz, partition-100-0-"):
        gowalla.put_partitions([tmp_path / "partition-300-0-123456789abc.npz"], tmp_path, gowalla.PARTS)


def test_a_run_of_another_seed_of_other_data_or_without_a_result_is_not_taken_for_this_one(tmp_path):
    method, sums = tmp_path / "c2f.json", {"train": "ab" * 32, "valid": "cd" * 32, "test": "ef" * 32}
    method.write_text("{}")
    made_from = {part: sums[part] for part in ("train", "valid")} | {"method": gowalla.sha256_file(method)}

    def done(seed=1, status="ok", sha256=sums) -> bool:
        record = {"seed": seed, "status": status, "inputs_sha256": made_from}
        (tmp_path / "run.json").write_text(json.dumps(record))
        stats = {"num_users": 1, "num_items": 1, "mask_at_test": [], "sha256": sha256}
        (tmp_path / "stats.json").write_text(json.dumps(stats))
        return gowalla.is_done(tmp_path, method, None, tmp_path, seed=1)

    assert done() and done(status="timeout")
    assert not done(seed=2) and not done(status="oom") and not done(sha256=sums | {"train": "12" * 32})
    method.write_text("{ }")
    assert not done()


def test_its_settings_and_its_data_are_those_of_the_configuration():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    grid = Grid(config, ROOT / "workflow/schemas/config.schema.yaml")
    for name, entry in gowalla.METHODS.items():
        theirs = resolved_method(name, json.loads(grid.entries[name].to_json()), config["training"])
        assert resolved_method(name, entry, {}) == theirs
    theirs = DatasetSpec.parse("gowalla", json.loads(grid.data_spec("gowalla", urls=True)))
    assert DatasetSpec.parse("gowalla", gowalla.DATASETS["gowalla"]) == theirs
    assert gowalla.BUDGET == "numbers-51200" and gowalla.PARTS == (300, 51200 // 128 - 300)


# Bytes -----------------------------------------------------------------------


class Bytes(TorchDispatchMode):
    """Adds up what torch's operations read and write: operands and results, but of a table only the rows concerned."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        lists = [x for value in arguments for x in (value if isinstance(value, list | tuple) else [value])]
        read = [x for x in lists if isinstance(x, torch.Tensor)]
        written = [result] if isinstance(result, torch.Tensor) else list(result)
        if name in ("index", "index_select"):
            read = written
        elif name in ("index_add", "index_add_"):  # the rows added, and those of the table before and after
            rows = arguments[3]
            read, written = [rows], [rows, rows] + [result] * (name == "index_add")  # without _: into a copy
        elif name in ("zeros_like", "new_zeros"):
            read = []
        if not function.is_view:
            self.total += sum(map(self.of, [*read, *written]))
        return result

    @staticmethod
    def of(tensor):
        if tensor.layout == torch.sparse_csr:
            return 8 * tensor.values().numel() + 4 * tensor.crow_indices().numel()
        return tensor.numel() * tensor.element_size()


def test_the_bytes_of_a_step_are_those_of_the_operations_that_torch_does():
    generator = np.random.default_rng(0)
    num_users, num_items, dim, codes, fine = 2000, 3000, 32, 30, 10  # no compiled product has 32 columns
    pairs = np.column_stack([generator.integers(num_users, size=40_000), generator.integers(num_items, size=40_000)])
    graph = Graph(interactions(pairs, num_users, num_items))
    valid = interactions([(0, 0)], num_users, num_items)
    settings = TrainingSettings(l2=1e-3, batch_size=1500, max_epochs=1, device="cpu")
    trainer = Trainer(graph, valid, settings, 1)
    coarse = build(LEGCF, Budget.parse("full"), graph, LEGCF.Params(dim=dim, num_codes=codes, anchors="random"), 1)
    coarse.fit(trainer)
    params = C2FMetaEmbed.Params(dim=dim, num_codes=codes, fine_codes=fine, anchors="random", init="random")
    refined = build(C2FMetaEmbed, Budget.parse("full"), graph, params, 1)
    refined.fit(trainer, coarse.export())
    ids = [torch.from_numpy(part[:1500]) for part in trainer.sampler.epoch(generator)]
    nodes = np.concatenate([ids[0], ids[1] + num_users, ids[2] + num_users])
    size = {"dim": dim, "batch": 1500, "distinct": len(np.unique(nodes))}
    for method, expected in (
        (coarse, gowalla.exact_bytes(5000, len(graph.train), codes, 2, layers=3, **size)),
        (refined, gowalla.collapsed_bytes(5000, 2 * fine, **size)),
    ):
        stage = _Step(method, trainer.graph, settings)
        stage.choosing_rows = False  # as on a GPU
        assert stage.collapsed == (method is refined)
        with Bytes() as found:
            stage.loss(*ids).backward()
        assert 1 <= found.total / expected < 1.08  # the vectors without d, and the codebooks, are left out
