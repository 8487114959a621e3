"""What each stage of the engine costs beside a plain reference on the same data in the same run, and how it grows.

Both must give the same result first; then they are timed in turn (engine, reference, engine, ...), and ratios are of
neighbours in time: a machine that is slow for a while is slow for both. Every size is measured in a process of its own.
See README.md beside this file.
"""

import argparse
import ctypes
import dataclasses
import datetime
import functools
import gc
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the package is not installed: conda users

import reference

from baselines.legcf import LEGCF
from baselines.lightgcn import LightGCN
from c2f import record
from c2f.budget import Budget
from c2f.codebook import anchored_assignment
from c2f.data import Interactions, draw_per_user, load_pairs, load_stats, prepare
from c2f.download import download
from c2f.errors import C2FError, ConfigError, DataError, did_you_mean
from c2f.evaluate import DotProducts, score_users
from c2f.graph import Graph
from c2f.metaembed import C2FMetaEmbed
from c2f.method import build
from c2f.ops import keep_freed_memory, layers_in_halves
from c2f.partition import partition
from c2f.sampling import TripleSampler
from c2f.seeds import seed_for
from c2f.train import StageReport, Trainer, TrainingSettings, _Step

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "lastfm": (1_885, 17_388, 64_315),
    "ml-1m": (6_039, 3_628, 590_733),
    "gowalla": (29_858, 40_981, 810_128),
    "tiny": (300, 240, 4_000),
}
"""Users, items and training pairs: of made-up data in the place of a dataset that cannot be had."""
KS = (5, 10, 20, 50)
KINDS = {
    "sparse products": r"_Propagation|_Product",
    "dense products": r"aten::(add)?mm$|aten::dot",
    "gathers and copies": r"aten::(index|gather|scatter|cat$|copy_|bincount|nonzero|cumsum|_index_put)",
    "tanh": r"aten::tanh",
    "scores of triples": r"_TripleMargins",
    "other operations": r"",
}
"""What a training step spends time on: names of torch's operations, the first pattern that begins one."""
TOLERANCE = 1e-4
HALF_TOLERANCE = 3e-2
"""How far results may differ, relative to their largest entry; the second where a step's inside is of bfloat16."""


@dataclass(frozen=True)
class Scale:
    """What is measured: sizes of the models and of what a slow reference does of its work."""

    dim: int = 128
    num_layers: int = 3
    coarse: int = 300
    fine: int = 100
    batch_size: int = 8192
    negatives: int = 5
    pairs: int = 100_000  # of an adjacency
    draws: int = 50_000  # of an epoch
    users: int = 200  # of a ranking
    growth: str = "gowalla"  # what x1 is as large as


FULL = Scale()
QUICK = Scale(coarse=12, fine=6, batch_size=256, pairs=2_000, draws=2_000, users=50, growth="tiny")


class Disagreement(Exception):
    """The engine and the reference give different results: no times are of any worth."""


@dataclass(frozen=True)
class Stage:
    """One thing that the engine does, and the same done plainly.

    check: compares the results and says how close they are, or raises Disagreement. times: that a repeat does it over
    (short ones need it). scale, part: what the reference's time is multiplied with, as it does only `part` of the work.
    floor: what no implementation of this shape could go without, `floor_name` in words. note: on what was measured.
    profiled: whether torch's operations are what it spends its time on, so that `shares` of them are of interest.
    """

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    check: Callable[[], str]
    times: int = 1
    scale: float = 1.0
    part: str = ""
    floor: Callable[[], Any] | None = None
    floor_name: str = ""
    note: str = ""
    profiled: bool = False


# Comparing ------------------------------------------------------------------------------------------------------------


def difference(ours, plain, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference relative to the largest entry. Raises Disagreement where it is above tolerance."""
    ours, plain = (np.asarray(values, dtype=np.float64) for values in (ours, plain))
    if ours.shape != plain.shape:
        raise Disagreement(f"{ours.shape} is not {plain.shape}")
    found = float(np.abs(ours - plain).max(initial=0) / max(np.abs(plain).max(initial=0), 1e-30))
    if not found <= tolerance:
        raise Disagreement(f"results differ by {found:.1e} of their largest entry")
    return found


def same_matrix(ours, plain) -> str:
    """Compare two sparse matrices."""
    if (abs(ours - plain) > TOLERANCE * abs(plain).max()).nnz:
        raise Disagreement(f"matrices differ by {abs(ours - plain).max():.1e}")
    return f"entries to {abs(ours - plain).max():.0e}"


def valid_triples(train: Interactions, negatives: int, triples) -> None:
    """Raise Disagreement unless positives are training pairs, negatives are not, and each draw has its negatives."""
    user, positive, negative = (ids.astype(np.int64) for ids in triples)
    known = train.user.astype(np.int64) * train.num_items + train.item
    if not np.isin(user * train.num_items + positive, known).all():
        raise Disagreement("a positive is no training pair")
    if (
        np.isin(user * train.num_items + negative, known).any()
        or negative.min() < 0
        or negative.max() >= train.num_items
    ):
        raise Disagreement("a negative is a training pair, or no item")
    _, counts = np.unique(user * train.num_items + positive, return_counts=True)
    if (counts % negatives).any():
        raise Disagreement(f"a draw has not {negatives} triples")


# The stages -----------------------------------------------------------------------------------------------------------


class Workbench:
    """The data of one size, and what several stages need of it; the method of a stage's name makes that stage."""

    def __init__(self, folder: Path, scratch: Path, scale: Scale):
        self.folder, self.scratch, self.scale = folder, scratch, scale
        self.stats = load_stats(folder / "stats.json")
        self.train, self.valid = (load_pairs(folder / f"{part}.parquet", self.stats) for part in ("train", "valid"))
        self.graph = Graph(self.train)
        self.sampler = TripleSampler(self.train, scale.negatives)
        self.num_users, self.num_items = self.train.num_users, self.train.num_items

    @functools.cached_property
    def batch(self) -> tuple[np.ndarray, ...]:
        """The triples of every training step."""
        epoch = self.sampler.epoch(np.random.default_rng(0))
        return tuple(ids[: self.scale.batch_size].copy() for ids in epoch)

    @functools.cached_property
    def trainer(self) -> Trainer:
        return drawn_trainer(self.graph, self.valid, self.batch)

    @functools.cached_property
    def legcf(self) -> LEGCF:
        return self.coarse("tanh")

    def coarse(self, activation: str) -> LEGCF:
        """Return the untrained coarse stage, its first assignment at random: METIS is measured apart."""
        return coarse_stage(self.trainer, self.scale, activation)

    def loading(self) -> Stage:
        text = self.scratch / "train.txt"
        write_lists(text, self.train)

        def check():
            pairs = Interactions.from_pairs(*reference.read_lists(text), self.num_users, self.num_items)
            if pairs.sha256() != load_pairs(self.folder / "train.parquet", self.stats).sha256():
                raise Disagreement("other pairs")
            return "the same pairs"

        ours = functools.partial(load_pairs, self.folder / "train.parquet", self.stats)
        return Stage(ours, lambda: reference.read_lists(text), check, note="ours verifies a checksum too")

    def adjacency(self) -> Stage:
        part = min(len(self.train), self.scale.pairs)
        few = Interactions(self.train.user[:part], self.train.item[:part], self.num_users, self.num_items)

        def plain():
            return reference.adjacency(few.user, few.item, self.num_users, self.num_items)

        return Stage(
            ours=lambda: Graph(self.train).adjacency,
            plain=plain,
            check=lambda: same_matrix(Graph(few).adjacency, plain()),
            scale=len(self.train) / part,
            part=f"{part:,} pairs",
        )

    def expanded(self) -> Stage:
        method = self.legcf
        codes, weights = method.codes.numpy().copy(), method.weights.numpy().copy()

        def plain():
            dense = reference.dense_assignment(codes, weights, self.scale.coarse)
            return reference.expanded(self.graph.adjacency, dense)

        def check():
            x = torch.randn(self.graph.num_nodes + self.scale.coarse, self.scale.dim)
            return f"a product to {difference(method.expanded @ x, plain() @ x.numpy()):.0e}"

        return Stage(method.state_changed, plain, check, note="without METIS")

    def metis(self) -> Stage:
        def ours():
            return partition(self.graph, self.scale.coarse, 0)

        def plain():
            return reference.partition(self.graph.adjacency, self.scale.coarse, seed=2)

        def check():
            parts, engine = ours()
            if not engine.startswith("pymetis "):
                return f"not compared: {engine}"
            if (parts != plain()).any():
                raise Disagreement("other parts")
            return "the same parts"

        return Stage(ours, plain, check, note=f"{self.scale.coarse} parts")

    def sampling(self) -> Stage:
        draws = min(len(self.train), self.scale.draws)
        items = reference.items_of_users(self.train.user, self.train.item, self.num_users)
        known = [set(liked) for liked in items]
        generator = np.random.default_rng(1)

        def plain():
            return reference.sample(items, known, self.num_items, draws, self.scale.negatives, seed=1)

        def check():
            for triples in (self.sampler.epoch(generator), plain()):
                valid_triples(self.train, self.scale.negatives, triples)
            return "all triples valid"

        count = len(self.train) * self.scale.negatives
        return Stage(
            ours=lambda: self.sampler.epoch(generator),
            plain=plain,
            check=check,
            scale=len(self.train) / draws,
            part=f"{draws:,} draws",
            note=f"{count:,} triples",
        )

    def lightgcn_step(self) -> Stage:
        params = LightGCN.Params(dim=self.scale.dim, num_layers=self.scale.num_layers)
        method = build(LightGCN, Budget.parse("full"), self.graph, params, seed=0)
        graph = reference.coo(self.graph.adjacency)
        vectors = torch.nn.Parameter(method.vectors.detach().clone())

        def forward():
            return vectors, reference.propagate(vectors, graph, self.scale.num_layers)

        return self._step(method, TrainingSettings(), forward, {"vectors": vectors})

    def coarse_step(self, precision: str = "float32") -> Stage:
        return self._coarse_step("tanh", TrainingSettings(l2=1e-3, clip_value=3, precision=precision))

    def coarse_step_bfloat16(self) -> Stage:
        return self.coarse_step("bfloat16")

    def linear_step(self, precision: str = "float32") -> Stage:
        return self._coarse_step("linear", TrainingSettings(l2=1e-2, clip_value=3, precision=precision))

    def linear_step_bfloat16(self) -> Stage:
        return self.linear_step("bfloat16")

    def _coarse_step(self, activation: str, settings: TrainingSettings) -> Stage:
        method, num_layers = self.coarse(activation), self.scale.num_layers
        dense = reference.dense_assignment(method.codes.numpy(), method.weights.numpy(), self.scale.coarse)
        graph, assignment = (reference.coo(m) for m in (reference.expanded(self.graph.adjacency, dense), dense))
        codebook = torch.nn.Parameter(method.codebook.detach().clone())

        def forward():
            return reference.composed(codebook, assignment, graph, num_layers, activation)[:2]

        return self._step(method, settings, forward, {"codebook": codebook})

    def fine_step_bfloat16(self) -> Stage:
        return self.fine_step("bfloat16")

    def fine_step(self, precision: str = "float32") -> Stage:
        method, scale = fine_stage(self.trainer, self.scale), self.scale
        codes = ((method.codes, method.weights, scale.coarse), (method.bridge_codes, method.bridge_weights, scale.fine))
        dense = [reference.dense_assignment(ids.numpy(), weights.numpy(), count) for ids, weights, count in codes]
        graph = reference.coo(reference.expanded(self.graph.adjacency, *dense))
        assignment, bridge = map(reference.coo, dense)
        fine, params = torch.nn.Parameter(method.fine.detach().clone()), method.params

        def forward():
            constants = (method.codebook, assignment, bridge, graph)
            return None, reference.coarse_to_fine(fine, *constants, params.num_layers, params.gate, params.threshold)

        settings = TrainingSettings(lr=3e-3, clip_value=3, precision=precision)
        return self._step(method, settings, forward, {"fine": fine})

    def _step(self, method, settings: TrainingSettings, forward, copies: dict[str, torch.nn.Parameter]) -> Stage:
        """Return the stage of one training step: loss, gradients, Adam. copies: the reference's parameters by name."""
        if method.item_bias is not None:
            copies["item_bias"] = torch.nn.Parameter(method.item_bias.detach().clone())
        batch = tuple(map(torch.from_numpy, self.batch))
        step, take = engine_step(self.trainer, method, settings)
        optimizer = torch.optim.Adam(copies.values(), lr=settings.lr)

        def plain_loss():
            return reference.loss(*forward(), copies.get("item_bias"), batch, self.num_users, settings.l2)

        def plain():
            optimizer.zero_grad()
            value = plain_loss()
            value.backward()
            if settings.clip_value is not None:
                torch.nn.utils.clip_grad_value_(copies.values(), settings.clip_value)
            optimizer.step()
            return value.item()

        def check():
            halved = settings.precision == "bfloat16"
            with layers_in_halves(halved):
                ours, wanted = step.loss(*batch), plain_loss()
                ours.backward()
            wanted.backward()
            named, tolerance = dict(method.named_parameters()), HALF_TOLERANCE if halved else TOLERANCE
            of_loss = difference(ours.item(), wanted.item(), tolerance)
            of_gradients = max(difference(named[name].grad, copy.grad, tolerance) for name, copy in copies.items())
            return f"loss to {of_loss:.0e}, gradients to {of_gradients:.0e}"

        how = "collapsed" if step.collapsed else "through the graph"
        note = f"{len(batch[0]):,} triples, {how}"
        floor, name = self._bare_products(step)
        times = 3 if step.collapsed else 1
        return Stage(take, plain, check, times=times, floor=floor, floor_name=name, note=note, profiled=True)

    def _bare_products(self, step: _Step) -> tuple[Callable[[], torch.Tensor], str]:
        """Return the products of one step and nothing else, forward and backward, in float32."""
        if step.form is not None:
            nodes = np.unique(np.concatenate([self.batch[0], *(part + self.num_users for part in self.batch[1:])]))
            rows, basis = step.form.rows().detach(), step.basis.float()[nodes]
            return lambda: basis.T @ (basis @ rows), "two bare products of its rows"
        matrix, layers = getattr(step.method, "expanded", self.trainer.graph.operator), 2 * self.scale.num_layers
        x = torch.randn(matrix.shape[1], self.scale.dim)

        def floor() -> torch.Tensor:
            y = x
            for _ in range(layers):
                y = matrix @ y
            return y

        return floor, f"{layers} bare products with the graph"

    def update(self) -> Stage:
        method, per_node = self.legcf, self.legcf.params.codes_per_node
        ours = update_from_here(method)
        dense = reference.dense_assignment(method.codes.numpy(), method.weights.numpy(), self.scale.coarse)
        graph, assignment = (reference.coo(m) for m in (reference.expanded(self.graph.adjacency, dense), dense))

        def estimated():
            with torch.no_grad():
                found = reference.composed(method.codebook, assignment, graph, self.scale.num_layers, "tanh")
            nodes, codebook = (tensor.numpy() for tensor in found[1:])
            return reference.updated_assignment(nodes, codebook, per_node)

        def check():
            ours()
            codes, weights = method.codes.numpy(), method.weights.numpy()
            wanted = estimated()
            largest = np.sort(wanted, axis=1)[:, ::-1][:, :per_node]
            of_weights = difference(np.sort(weights, axis=1)[:, ::-1], largest)
            # Where two codes are equally good to rounding, either may be taken.
            same = np.isclose(np.take_along_axis(wanted, codes, axis=1), weights, atol=TOLERANCE * largest.max())
            if same.mean() < 0.999:
                raise Disagreement(f"only {same.mean():.2%} of the codes are the same")
            return f"weights to {of_weights:.0e}, {same.mean():.2%} of codes"

        def plain():
            return reference.expanded(self.graph.adjacency, estimated())

        return Stage(ours, plain, check, note="with its graph rebuilt")

    def ranking(self) -> Stage:
        final = torch.randn(self.graph.num_nodes, self.scale.dim, generator=torch.Generator().manual_seed(0))
        hints = self.valid.csr() @ final[self.num_users :].numpy()  # so that some held-out items are found
        final[: self.num_users] += 0.3 * torch.from_numpy(hints)
        scorer = DotProducts.of_nodes(final, self.num_users)
        users, items = scorer.users.numpy(), scorer.items.numpy()
        seen = reference.items_of_users(self.train.user, self.train.item, self.num_users)
        held_out = reference.items_of_users(self.valid.user, self.valid.item, self.num_users)
        scored = np.unique(self.valid.user)
        few = np.random.default_rng(2).permutation(scored)[: self.scale.users]
        ks = [k for k in KS if k <= self.num_items]

        def ours():
            return score_users(scorer, self.train, self.valid, ks)

        def plain():
            return [reference.user_metrics(user, users, items, seen[user], held_out[user], ks) for user in few]

        def products():
            rows = max(1, 2**26 // (4 * self.num_items))
            for first in range(0, len(scored), rows):
                scorer.users[first : first + rows] @ scorer.items.T

        def check():
            table, wanted = ours(), plain()
            places = np.searchsorted(table["user"], few)
            found = [difference(table[name][places], [values[name] for values in wanted]) for name in wanted[0]]
            return f"{len(found)} metrics of {len(few)} users to {max(found):.0e}"

        return Stage(
            ours, plain, check,
            scale=len(scored) / len(few), part=f"{len(few):,} users",
            floor=products, floor_name="bare matrix products", note=f"{len(scored):,} users",
        )  # fmt: skip


STAGES = {
    "loading": "load the prepared training pairs",
    "adjacency": "normalised adjacency",
    "expanded": "expanded graph",
    "metis": "METIS partition",
    "sampling": "sample one epoch",
    "coarse_step": "coarse step, exact (tanh)",
    "coarse_step_bfloat16": "coarse step, exact, bfloat16 inside",
    "linear_step": "coarse step, linear variant",
    "linear_step_bfloat16": "coarse step, linear, bfloat16 inside",
    "fine_step": "fine step of C2F",
    "fine_step_bfloat16": "fine step of C2F, bfloat16 inside",
    "lightgcn_step": "LightGCN step",
    "update": "assignment update",
    "ranking": "rank all users",
}


class Drawn:
    """A sampler whose epoch is one batch, drawn before."""

    def __init__(self, batch):
        self.batch = batch

    def epoch(self, generator):
        return self.batch


def drawn_trainer(graph: Graph, valid: Interactions, batch) -> Trainer:
    """Return a trainer on the processor, whose epochs are that one batch."""
    trainer = Trainer(graph, valid, TrainingSettings(device="cpu"), seed=0)
    trainer.sampler = Drawn(batch)
    return trainer


def engine_step(trainer: Trainer, method, settings: TrainingSettings) -> tuple[_Step, Callable[[], float]]:
    """Return the engine's loss of a batch, and a function that trains once on the trainer's one batch."""
    settings = dataclasses.replace(settings, batch_size=len(trainer.sampler.batch[0]))
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    trainer._optimizer = None
    trainer.settings = settings
    trainer._prepare_optimizer(parameters, None)
    step, optimizer = _Step(method, trainer.graph, settings), trainer._optimizer

    def take() -> float:
        trainer.settings, trainer._optimizer = settings, optimizer
        report = StageReport("bench", settings.select_on)
        return trainer._train_epoch(method, step, "bench", 1, parameters, None, None, report)

    return step, take


def coarse_stage(trainer: Trainer, scale: Scale, activation: str) -> LEGCF:
    """Return the untrained coarse stage, its first assignment drawn at random: METIS is measured apart."""
    params = LEGCF.Params(
        dim=scale.dim, num_layers=scale.num_layers, num_codes=scale.coarse, activation=activation, item_bias=True
    )
    method = build(LEGCF, Budget.parse("full"), trainer.graph.graph, params, seed=0)
    method.graph = trainer.graph
    method.assign(*random_assignment(trainer.graph.num_nodes, scale.coarse, params.codes_per_node))
    return method


def update_from_here(method: LEGCF) -> Callable[[], None]:
    """Return a function that updates the assignment, each time from the one that the method has now."""
    start = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    products = method.assignment, method.expanded

    @torch.no_grad()  # as in training
    def update() -> None:
        method.load_state_dict(start)
        method.assignment, method.expanded = products
        method.update_assignment()

    return update


def fine_stage(trainer: Trainer, scale: Scale) -> C2FMetaEmbed:
    """Return the untrained fine stage on random coarse codes; its start by sparse PCA is left out."""
    params = C2FMetaEmbed.Params(
        dim=scale.dim, num_layers=scale.num_layers, num_codes=scale.coarse, fine_codes=scale.fine, item_bias=True
    )
    method = build(C2FMetaEmbed, Budget.parse("full"), trainer.graph.graph, params, seed=0)
    method.graph = trainer.graph
    generator = torch.Generator().manual_seed(0)
    codes, weights = random_assignment(trainer.graph.num_nodes, scale.coarse, params.codes_per_node)
    method.codes.copy_(codes)
    method.weights.copy_(weights)
    method.codebook.copy_(torch.randn(method.codebook.shape, generator=generator))
    with torch.no_grad():
        method.fine.copy_(1.5 * torch.randn(method.fine.shape, generator=generator))
    method.bridge_to(*random_assignment(scale.coarse, scale.fine, method.bridge_codes.shape[1]))
    return method


def random_assignment(num_rows: int, num_codes: int, per_row: int) -> Iterable[torch.Tensor]:
    """Return codes and weights (num_rows, per_row)."""
    generator = np.random.default_rng(3)
    anchors = generator.integers(num_codes, size=num_rows)
    return map(torch.from_numpy, anchored_assignment(anchors, num_codes, per_row, 0.5, generator))


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(name: str, stage: Stage, repeats: int) -> dict:
    """Return a stage's row: whether the results agree, seconds, their ratios, and memory."""
    row: dict[str, Any] = {"stage": name, "part": stage.part if stage.scale > 1 else "", "note": stage.note}
    try:
        row["agreement"] = stage.check()
    except Disagreement as error:
        return row | {"agrees": False, "agreement": str(error)}
    row |= {"agrees": True, "ours_bytes": extra_bytes(stage.ours), "plain_bytes": extra_bytes(stage.plain)}
    sides = {"ours": (stage.ours, stage.times), "plain": (stage.plain, 1)}
    if stage.floor is not None:
        sides["floor"] = (stage.floor, 1)
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (call, times) in sides.items():
            taken[side].append(seconds(call, times))
    taken["plain"] = [stage.scale * value for value in taken["plain"]]
    row |= {side: statistics.median(values) for side, values in taken.items()}
    row["ratio"] = spread(taken["plain"], taken["ours"])
    if stage.floor is not None:
        row |= {"floor_name": stage.floor_name, "floor_ratio": spread(taken["ours"], taken["floor"])}
    if stage.profiled:
        row["shares"] = shares(stage.ours)
    return row | {"seconds": taken}


def shares(call: Callable[[], Any], repeats: int = 10) -> dict[str, float]:
    """Return the share of each of KINDS in the time of a call, and that of what torch does not see: Python."""
    call()
    began = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            call()
        whole = 1e6 * (time.perf_counter() - began)  # microseconds, as torch has them
    found = dict.fromkeys(KINDS, 0.0)
    for operation in profiler.key_averages():
        kind = next(kind for kind, pattern in KINDS.items() if re.match(pattern, operation.key))
        found[kind] += operation.self_cpu_time_total / whole
    return found | {"Python and the rest": max(0.0, 1 - sum(found.values()))}


def seconds(call: Callable[[], Any], times: int = 1) -> float:
    """Return the seconds of one call, as the mean of so many."""
    gc.collect()
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def spread(above: list[float], below: list[float]) -> list[float]:
    """Return median, least and largest of the ratios of paired times."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def extra_bytes(call: Callable[[], Any]) -> int | None:
    """Return by how much a call raises the resident memory at its peak; None where the kernel does not tell."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would hide what the call takes
    before = reset_peak()
    if before is None:
        return None
    call()
    return record.peak_rss_bytes() - before


def reset_peak() -> int | None:
    """Make the resident peak (VmHWM) start again from what is resident now, and return that; Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return record.peak_rss_bytes()


def measured_stages(folder: Path, scale: Scale, stages: list[str], repeats: int) -> list[dict]:
    """Return the rows of one prepared dataset."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Workbench(folder, Path(scratch), scale)
        for name in stages:
            print(f"  {STAGES[name]}", file=sys.stderr, flush=True)
            rows.append(measure(name, getattr(bench, name)(), repeats))
    return rows


# Growth ---------------------------------------------------------------------------------------------------------------


def grown(times: int, kind: str, scale: Scale, repeats: int) -> dict:
    """Return seconds and memory of an epoch of the coarse stage on a made-up graph of so many times the size.

    kind: exact, with a batch that grows with the graph, so that an epoch always has the same number of steps; or
    collapsed (the linear variant), with the same batch at every size.
    """
    num_users, num_items, num_pairs = (times * count for count in SIZES[scale.growth])
    train = made_up(num_users, num_items, num_pairs, seed=times)
    before = reset_peak()
    generator, taken = np.random.default_rng(0), {}

    def timed(part: str, call: Callable[[], Any]) -> None:
        call()
        taken[part] = statistics.median(seconds(call) for _ in range(repeats))

    graph = Graph(train)
    timed("adjacency", lambda: Graph(train).adjacency)
    sampler = TripleSampler(train, scale.negatives)
    size = scale.batch_size * (times if kind == "exact" else 1)
    trainer = drawn_trainer(graph, train, tuple(ids[:size].copy() for ids in sampler.epoch(generator)))
    method = coarse_stage(trainer, scale, "tanh" if kind == "exact" else "linear")
    timed("sampling", lambda: sampler.epoch(generator))
    timed("update", update_from_here(method))
    step, take = engine_step(trainer, method, TrainingSettings(l2=1e-3, clip_value=3))
    if kind == "collapsed":
        form = method.linear_form(trainer.graph)
        assert form is not None
        timed("basis", lambda: step.collapse(form))
    timed("step", take)
    steps = math.ceil(len(train) * scale.negatives / size)
    taken["epoch"] = sum(taken.get(part, 0) for part in ("sampling", "update", "basis")) + steps * taken["step"]
    peak = record.peak_rss_bytes()
    row = {"times": times, "kind": kind, "nodes": graph.num_nodes, "pairs": len(train), "codes": scale.coarse}
    row |= {"batch_size": size, "steps": steps, "seconds": taken, "peak_bytes": peak}
    return row | {"own_bytes": None if before is None else peak - before}


def fitted_exponent(sizes: Iterable[float], values: Iterable[float]) -> float:
    """Return b of the least-squares line log(value) = a + b log(size)."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(values)), 1)[0])


def fits(growth: list[dict]) -> list[dict]:
    """Return the exponents of every kind of epoch, in the number of pairs."""
    found = []
    for kind in dict.fromkeys(row["kind"] for row in growth):
        rows = [row for row in growth if row["kind"] == kind]
        if len({row["pairs"] for row in rows}) < 2:
            continue
        pairs = [row["pairs"] for row in rows]
        exponents = {
            part: fitted_exponent(pairs, [row["seconds"][part] for row in rows]) for part in rows[0]["seconds"]
        }
        if all(row["own_bytes"] for row in rows):
            exponents["memory"] = fitted_exponent(pairs, [row["own_bytes"] for row in rows])
        found.append({"kind": kind, "exponents": exponents})
    return found


# Data -----------------------------------------------------------------------------------------------------------------


def made_up(num_users: int, num_items: int, num_pairs: int, seed: int) -> Interactions:
    """Return so many pairs of users of very different activity and items of very different popularity, no structure.

    generate_blocks would take hours and (N, I) random numbers at these sizes. Ids are in random order.
    """
    generator = np.random.default_rng(seed_for(seed, "bench"))

    def shares(count: int, offset: float, power: float) -> np.ndarray:
        return np.cumsum(generator.permutation((offset + np.arange(count)) ** -power))

    def drawn(share: np.ndarray, size: int) -> np.ndarray:
        return np.searchsorted(share, share[-1] * generator.random(size))

    of_users, of_items = shares(num_users, 20, 0.5), shares(num_items, 10, 0.7)  # most: about 500 and 2,000 at x1
    keys = np.arange(num_users) * num_items + generator.integers(num_items, size=num_users)  # everyone has a pair
    while len(keys) < num_pairs:
        size = int(1.2 * (num_pairs - len(keys))) + 16
        keys = np.unique(np.concatenate([keys, drawn(of_users, size) * num_items + drawn(of_items, size)]))
    keys = generator.permutation(keys)[:num_pairs]
    return Interactions.from_pairs(keys // num_items, keys % num_items, num_users, num_items)


def write_lists(path: Path, pairs: Interactions) -> None:
    """Write pairs as `user item item ...` lines."""
    first = np.flatnonzero(np.diff(pairs.user, prepend=-1))
    items = np.split(pairs.item.astype(str), first[1:])
    path.write_text("".join(f"{u} {' '.join(i)}\n" for u, i in zip(pairs.user[first], items, strict=True)))


def prepared(name: str, data: Path, output: Path) -> tuple[Path, str]:
    """Return the folder of a prepared dataset, and what is to be said of it: found, made, or made up in its place."""
    if (data / name / "stats.json").exists():
        return data / name, ""
    place = output / "data" / name
    if (place / "stats.json").exists():
        return place, ""
    if name == "tiny":
        return _made_up_in(place, name), "made up"
    entry = yaml.safe_load((ROOT / "config/config.yaml").read_text())["datasets"][name]
    spec = {key: value for key, value in entry.items() if key not in ("threads", "training")}  # of its runs
    try:
        download(name, spec, place / "raw")
        prepare(name, spec, place / "raw", place)
    except DataError as error:
        print(f"{error}\n{name}: made-up data of its size are measured instead", file=sys.stderr)
        return _made_up_in(output / "data" / f"made-up-{name}", name), "made up: the data could not be had"
    return place, ""


def _made_up_in(place: Path, name: str) -> Path:
    """Write and prepare made-up data of the size of a dataset."""
    users, items, pairs = SIZES[name]
    table = made_up(users, items, round(pairs / 0.8), seed=0)
    counts = np.bincount(table.user, minlength=users)
    held_out = draw_per_user(table.user, counts // 5, np.random.default_rng(0))
    parts = {"train": ~held_out, "test": held_out}
    files = {}
    (place / "raw").mkdir(parents=True, exist_ok=True)
    for part, chosen in parts.items():
        path = place / "raw" / f"{part}.txt"
        write_lists(path, Interactions(table.user[chosen], table.item[chosen], users, items))
        files[path.name] = {"sha256": record.sha256_file(path)}
    prepare(name, {"files": files, "recipe": "legcf"}, place / "raw", place)
    return place


# The command ----------------------------------------------------------------------------------------------------------


def in_own_process(task: dict, threads: int) -> Any:
    """Return what `task_result` gives in a fresh process with so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    command = [sys.executable, str(Path(__file__).resolve()), "--task", json.dumps(task | {"threads": threads})]
    done = subprocess.run(command, env=os.environ | dict.fromkeys(names, str(threads)), stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise C2FError(f"measuring {task} ended with exit code {done.returncode}; its messages stand above")
    return json.loads(done.stdout)


def task_result(task: dict) -> Any:
    """Measure a dataset's stages, or one size of the growth, in this process."""
    torch.set_num_threads(task["threads"])
    keep_freed_memory()  # as training does
    scale = QUICK if task["quick"] else FULL
    if "times" in task:
        return grown(task["times"], task["kind"], scale, task["repeats"])
    return measured_stages(Path(task["folder"]), scale, task["stages"], task["repeats"])


def run(options: argparse.Namespace, command: str) -> dict:
    """Measure everything asked for and return the content of bench.json."""
    kept = {"quick": options.quick, "repeats": options.repeats}
    started, load = datetime.datetime.now(datetime.UTC), os.getloadavg()
    rows, growth = [], []
    for size in options.sizes:
        print(size, file=sys.stderr, flush=True)
        if grows(size):
            for kind in ("exact", "collapsed"):
                growth.append(in_own_process(kept | {"times": int(size[1:]), "kind": kind}, options.threads))
            continue
        folder, note = prepared(size, options.data, options.output)
        task = kept | {"folder": str(folder), "stages": options.stages}
        rows += [{"size": size, "data": note} | row for row in in_own_process(task, options.threads)]
    return {
        "command": command,
        "commit": record.commit(),
        "machine": record.machine(),
        "threads": options.threads,
        "repeats": options.repeats,
        "date": f"{started:%Y-%m-%d %H:%M} UTC",
        "minutes": round((datetime.datetime.now(datetime.UTC) - started).total_seconds() / 60, 1),
        "load": [round(value, 2) for value in (load[0], os.getloadavg()[0])],
        "versions": record.versions(),
        "quick": options.quick,
        "stages": rows,
        "growth": growth,
        "exponents": fits(growth),
    }


def grows(size: str) -> bool:
    """Return whether a size is one of made-up growth: x1, x2 and so on."""
    return re.fullmatch(r"x[1-9]\d*", size) is not None


def as_markdown(result: dict, before: dict | None = None) -> str:
    """Return bench.md. before: an earlier bench.json, whose ratios are shown beside these."""
    lines = ["# Each stage beside a plain reference, and how the engine grows", ""]
    if result["quick"]:
        lines += ["**A quick run on tiny made-up data: it shows that the benchmark works, and no speed.**", ""]
    versions = ", ".join(f"{name} {result['versions'].get(name, '')}" for name in ("torch", "numba", "numpy", "scipy"))
    lines += [
        f"    {result['command']}",
        "",
        f"Commit {result['commit']}, {result['date']}, {result['minutes']} minutes. {result['machine']}; "
        f"{result['threads']} threads; {versions}. Load average at the start and at the end, this run itself included: "
        f"{result['load'][0]} and {result['load'][1]}.",
        "",
    ]
    if result["stages"]:
        lines += _stage_table(result, before)
    if profiled := [row for row in result["stages"] if row.get("shares")]:
        lines += _shares_table(profiled)
    if result["growth"]:
        lines += _growth_table(result)
    return "\n".join(lines)


def _stage_table(result: dict, before: dict | None) -> list[str]:
    earlier = {(row["size"], row["stage"]): row for row in before["stages"]} if before else {}
    title = f" before ({before['commit']}) |" if before else ""
    lines = [
        f"Medians of {result['repeats']} repeats, engine and reference in turn; ratio: reference / engine, median "
        "(least to most). MB: what the call adds to the resident memory at its peak. Where the reference did a part, "
        "its time is scaled to the whole, its memory is not.",
        "",
        f"| data | stage | engine, s | reference, s | ratio |{title} engine, MB | reference, MB | same | remarks |",
        f"|---|---|---|---|---|{'---|' if before else ''}---|---|---|---|",
    ]
    for row in result["stages"]:
        remarks = [row["data"], row["note"], f"reference on {row['part']}, scaled" if row["part"] else ""]
        cells = [row["size"], STAGES[row["stage"]]]
        if not row["agrees"]:
            lines.append(f"| {' | '.join(cells)} | not timed: the results differ, {row['agreement']} |")
            continue
        if "floor" in row:
            ratio, least, most = row["floor_ratio"]
            floor = f"{row['floor_name']} {row['floor']:.3g} s, engine / that {ratio:.2f} ({least:.2f} to {most:.2f})"
            remarks.append(floor)
        ratio, least, most = row["ratio"]
        cells += [f"{row['ours']:.3g}", f"{row['plain']:.3g}", f"{ratio:.3g} ({least:.3g} to {most:.3g})"]
        if before:
            old = earlier.get((row["size"], row["stage"]))
            cells.append(f"{old['ratio'][0]:.3g}" if old and old["agrees"] else "")
        cells += [_megabytes(row["ours_bytes"]), _megabytes(row["plain_bytes"]), row["agreement"]]
        lines.append(f"| {' | '.join([*cells, '; '.join(filter(None, remarks))])} |")
    return [*lines, ""]


def _shares_table(rows: list[dict]) -> list[str]:
    """Return what the engine's training steps spend their time on."""
    kinds = list(rows[0]["shares"])
    lines = ["What the engine's steps spend their time on (torch's profiler, ten steps):", ""]
    lines += [f"| data | step | {' | '.join(kinds)} |", f"|---|---|{'---|' * len(kinds)}"]
    for row in rows:
        cells = [row["size"], STAGES[row["stage"]], *(f"{100 * row['shares'][kind]:.0f} %" for kind in kinds)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _growth_table(result: dict) -> list[str]:
    lines = [
        f"An epoch of the coarse stage, {result['growth'][0]['codes']} codes, on made-up graphs: sampling, assignment "
        "update with its graph rebuilt (collapsed: and the basis made anew), and all steps, of which some were timed. "
        "Exact: the batch grows with the graph, as many steps at every size. Collapsed: the linear variant, the same "
        "batch at every size. Without METIS and validation. Peak: VmHWM of the process; own: without what was there "
        "before (Python, torch, the pairs).",
        "",
        "| size | epoch | nodes | pairs | batch | steps | adjacency, s | sampling, s | update, s | basis, s | step, s "
        "| epoch, s | peak, MB | own, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    parts = ("adjacency", "sampling", "update", "basis", "step", "epoch")
    for row in sorted(result["growth"], key=lambda row: row["kind"], reverse=True):
        cells = [f"x{row['times']}", row["kind"], f"{row['nodes']:,}", f"{row['pairs']:,}"]
        cells += [f"{row['batch_size']:,}", f"{row['steps']:,}"]
        cells += [f"{row['seconds'][part]:.3g}" if part in row["seconds"] else "" for part in parts]
        lines.append(f"| {' | '.join([*cells, _megabytes(row['peak_bytes']), _megabytes(row['own_bytes'])])} |")
    lines.append("")
    for fit in result["exponents"]:
        words = ", ".join(f"{part} {exponent:.2f}" for part, exponent in fit["exponents"].items())
        lines.append(f"Fitted exponents in the number of pairs, {fit['kind']}: {words}.")
    return [*lines, ""]


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = top.add_argument
    add(
        "--sizes",
        nargs="+",
        metavar="SIZE",
        help="gowalla, ml-1m, lastfm; x1, x2 ...: made-up data of so many gowallas",
    )
    add("--stages", nargs="+", metavar="STAGE", default=list(STAGES), help=f"of datasets: {', '.join(STAGES)}")
    add("--repeats", type=int, default=5, metavar="N", help="timed calls of each (default: 5)")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="of each process (default: all cores)")
    add("--data", type=Path, default=ROOT / "results/data", metavar="PATH", help="folder that holds prepared datasets")
    add(
        "--output", type=Path, default=ROOT / "results/bench", metavar="PATH", help="folder for bench.json and bench.md"
    )
    add("--before", type=Path, metavar="PATH", help="an earlier bench.json, to show its ratios beside these")
    add("--quick", action="store_true", help="tiny made-up data, in seconds: shows that the benchmark works")
    add("--task", type=json.loads, help=argparse.SUPPRESS)  # what a process of its own is to measure
    return top


def check_options(options: argparse.Namespace) -> None:
    """Fill in the sizes and refuse what cannot be measured."""
    if options.sizes is None:
        options.sizes = ["tiny", "x1", "x2"] if options.quick else ["gowalla", "x1", "x2", "x4", "x8"]
    if options.quick and not all(grows(size) or size == "tiny" for size in options.sizes):
        raise ConfigError(
            f"--sizes {' '.join(options.sizes)} with --quick, which has `tiny` and x1, x2 ...; leave one out"
        )
    for known, given, option in ((STAGES, options.stages, "--stages"), (SIZES, options.sizes, "--sizes")):
        for name in given:
            if name not in known and not (option == "--sizes" and grows(name)):
                raise ConfigError(f"{option} {name!r} is unknown; {did_you_mean(name, known)}")
    for option in ("repeats", "threads"):
        if getattr(options, option) < 1:
            raise ConfigError(f"--{option} {getattr(options, option)} must be at least 1")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark. Returns 0, or 2 where something cannot be measured or is not the same."""
    options = parser().parse_args(arguments)
    if options.task is not None:
        print(json.dumps(task_result(options.task)))
        return 0
    try:
        check_options(options)
        before = record.read_json(options.before) if options.before else None
        command = shlex.join(["python", "benchmarks/bench.py", *(sys.argv[1:] if arguments is None else arguments)])
        result = run(options, command)
        record.write_json(options.output / "bench.json", result)
        with record.write_atomically(options.output / "bench.md") as temporary:
            temporary.write_text(as_markdown(result, before))
        print(f"{options.output / 'bench.md'}, in {result['minutes']} minutes")
        wrong = [f"{row['stage']} on {row['size']}" for row in result["stages"] if not row["agrees"]]
        if wrong:
            raise C2FError(
                f"{', '.join(wrong)}: the engine and the reference differ; {options.output / 'bench.md'} says how"
            )
    except C2FError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
