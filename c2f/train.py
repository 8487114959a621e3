"""The trainer: sampled triples, BPR and L2, stopping on validation, best weights back, checkpoints.

loss = mean softplus(score(u, j) - score(u, i)) + l2 / 2 * Q / batch + the method's own penalty,
with Q the sum of the squared norms of the batch's layer-0 rows (METHODS.md 1.5).
"""

import contextlib
import copy
import math
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from c2f import kernels, slots
from c2f.adam import Adam
from c2f.data import Interactions
from c2f.errors import ConfigError, DivergedError
from c2f.evaluate import DotProducts, means, score_users
from c2f.graph import Graph
from c2f.method import EmbeddingMethod, LinearForm, TrainingGraph
from c2f.ops import compiled_for, layers_in_halves
from c2f.partition import partition
from c2f.record import ZIP_ERRORS, write_atomically
from c2f.sampling import TripleSampler
from c2f.seeds import seed_for
from c2f.settings import check

VALIDATION_METRICS = ("ndcg@5", "ndcg@20", "recall@20")
MOST_BASIS_BYTES = 2**29
"""A collapsed form whose basis takes more is not used, however cheap its steps: these copy rows of it besides."""


@dataclass(frozen=True)
class TrainingSettings:
    """How every method is trained unless its entry says otherwise.

    lr: Adam's learning rate; batch_size: in triples; negatives: per positive; l2: lambda of METHODS.md 1.5 (the kappa
    of LEGCF and C2F is l2 / 2e-4); clip_value: gradients are clipped to +-this, null for never; max_epochs,
    evaluate_every (epochs) and patience (evaluations) hold for each stage; select_on: what stops and selects;
    valid_users: rank so many of the users with validation pairs, null for all (see sampled_users);
    max_seconds: wall-clock cap of the run, null for none; device: auto takes CUDA where there is one;
    precision: bfloat16 halves the bytes of what a step only reads, the layers of compiled propagation and the basis of
    the collapsed form; parameters, sums, validation and what is exported stay float32;
    deterministic: choose torch's deterministic algorithms (see pick_device).
    """

    lr: float = 1e-3
    batch_size: int = 8192
    negatives: int = 1
    l2: float = 1e-4
    clip_value: float | None = None
    max_epochs: int = 1000
    evaluate_every: int = 5
    patience: int = 5
    select_on: Literal["ndcg@5", "ndcg@20", "recall@20"] = "ndcg@20"
    valid_users: int | None = None
    max_seconds: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    deterministic: bool = False

    def __post_init__(self):
        check(self.lr > 0, "lr", self.lr, "above 0")
        check(self.l2 >= 0, "l2", self.l2, "at least 0")
        for name in ("batch_size", "negatives", "max_epochs", "evaluate_every", "patience"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("clip_value", "max_seconds"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "above 0, or null")
        some = self.valid_users is None or self.valid_users >= 2
        check(some, "valid_users", self.valid_users, "at least 2 (one has no spread), or null")


@dataclass
class StageReport:
    """What one stage did; `stopped_by` is one of patience, epochs, time, condition.

    max_epochs: where it would have ended, in this stage (the setting may change before an interrupted run goes on);
    best_value: -inf where nothing was evaluated; best_value_error: its standard error from ranking a sample of the
    users with validation pairs, 0 where all are ranked.
    """

    name: str
    metric: str
    epochs: int = 0
    best_epoch: int = 0
    best_value: float = -math.inf
    best_value_error: float = 0.0
    stopped_by: str = ""
    max_epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    seconds_per_epoch: float = 0.0
    collapsed: bool = False


class Trainer:
    """Runs the stages of one method on one training and validation set. It has no way to reach the test set."""

    checkpoint_seconds = 60.0

    def __init__(
        self,
        graph: Graph,
        valid: Interactions,
        settings: TrainingSettings,
        seed: int,
        *,
        checkpoint: Path | None = None,
        fingerprint: str = "",
        partitions: Path | None = None,
        progress: bool = False,
    ):
        self.device = pick_device(settings.device, settings.deterministic)
        self.graph = TrainingGraph(graph, self.device)
        self.valid, self.settings, self.seed = valid, settings, seed
        self._ranked = valid if settings.valid_users is None else sampled_users(valid, settings.valid_users)
        self.sampler = TripleSampler(graph.train, settings.negatives)
        self.reports: list[StageReport] = []
        self.curve: list[dict] = []
        self.timed_out = False
        self._partitions, self._progress = partitions, progress
        self._checkpoint, self._fingerprint = checkpoint, fingerprint
        self._optimizer: Adam | torch.optim.Optimizer | None = None
        self._spent = 0.0  # seconds of earlier, interrupted processes
        self._started = time.perf_counter()
        self._last_checkpoint = time.perf_counter()
        self._resume = self._read_checkpoint()

    def generator(self, *names) -> np.random.Generator:
        """Return the NumPy generator of a named random stream of this run."""
        return np.random.default_rng(seed_for(self.seed, *names))

    def partition(self, num_parts: int) -> tuple[np.ndarray, str]:
        """Return balanced graph parts (N,) and the engine that made them; see c2f.partition."""
        return partition(self.graph.graph, num_parts, 0, self._partitions)

    def seconds(self) -> float:
        """Return the seconds spent on this run, interrupted attempts included."""
        return self._spent + time.perf_counter() - self._started

    def run(
        self,
        method: EmbeddingMethod,
        stage: str,
        *,
        each_epoch: Callable[[], None] | None = None,
        keep: Literal["best", "last"] = "best",
        start_counts: bool = True,
        each_step: Callable[[], bool] | None = None,
        max_epochs: int | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        early_stopping: bool = True,
    ) -> StageReport:
        """Train the method's parameters that require gradients until validation stops improving.

        each_epoch: called in the first batch of every epoch, after its backward pass and before the weights move, so
        that batch still follows the old state (METHODS.md 3.6);
        each_step: asked after every step, ends the stage when true;
        max_epochs: of this stage, in place of the setting's;
        keep: leave the method with its best evaluated weights, or with the last;
        start_counts: False for a stage that is judged by its own epochs alone: the state that it starts from is
        evaluated, but is not its best (METHODS.md 3.6);
        optimizer: in place of Adam at the setting's learning rate, which serves all stages of the same parameters;
        early_stopping: False for a stage whose end validation does not decide.
        Raises DivergedError when a loss is not finite.
        """
        index = len(self.reports)
        if self._resume is not None and index < self._resume["stage"]:
            self.reports.append(StageReport(**self._resume["reports"][index]))
            return self.reports[-1]  # its weights are overwritten when the interrupted stage is taken up
        method.to(self.device)
        max_epochs = max_epochs or self.settings.max_epochs
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self._prepare_optimizer(parameters, optimizer)
        report, best, since_best = StageReport(stage, self.settings.select_on), None, 0
        if self._resume is not None:
            report, best, since_best = self._take_up(method)
        else:
            self._evaluate(method, report, math.nan)
            if start_counts:
                best = _copied(method) if keep == "best" else None
            else:
                report.best_value, report.best_value_error = -math.inf, 0.0
        self.reports.append(report)
        step = _Step(method, self.graph, self.settings)
        report.collapsed, report.max_epochs = step.collapsed, max_epochs
        with _deferred_interrupt() as interrupted, self._progress_bar(report, max_epochs) as bar:
            while not self._finished(report, since_best if early_stopping else 0, max_epochs):
                began = time.perf_counter()
                epoch = report.epochs + 1
                loss = self._train_epoch(method, step, stage, epoch, parameters, each_epoch, each_step, report)
                report.epochs = epoch
                report.seconds += time.perf_counter() - began
                report.seconds_per_epoch = report.seconds / epoch
                bar.update()
                if epoch % self.settings.evaluate_every == 0 or epoch == max_epochs or report.stopped_by:
                    improved = self._evaluate(method, report, loss)
                    since_best = 0 if improved else since_best + 1
                    if improved and keep == "best":
                        best = _copied(method)
                bar.set_postfix_str(f"loss {loss:.4f}, {report.metric} {self.curve[-1][report.metric]:.4f}")
                self._write_checkpoint(method, index, best, since_best, now=interrupted.is_set)
                if interrupted.is_set:
                    break
        if interrupted.is_set:
            raise KeyboardInterrupt
        if best is not None:
            method.load_state_dict(best)
            method.state_changed()
        return report

    def train_batches(
        self,
        method: EmbeddingMethod,
        stream: str,
        num_batches: int,
        optimizer: torch.optim.Optimizer,
        each_step: Callable[[], object] | None = None,
    ) -> None:
        """Take so many optimiser steps outside any stage: no validation, no record, no checkpoint.

        The method is on this trainer's device; stream: name of the random stream of the triples, an epoch of pairs at a
        time; each_step: called after every step. Out of time it ends early, at an epoch's end, and `timed_out` is true.
        Raises DivergedError when a loss is not finite.
        """
        step, report = _Step(method, self.graph, self.settings), StageReport(stream, self.settings.select_on)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

        def enough() -> bool:
            if each_step is not None:
                each_step()
            return report.steps == num_batches

        of_stages, self._optimizer = self._optimizer, optimizer
        while not self._finished(report, 0, num_batches):
            self._train_epoch(method, step, stream, report.epochs + 1, parameters, None, enough, report)
            report.epochs += 1
        self._optimizer = of_stages

    def _prepare_optimizer(self, parameters: list[torch.nn.Parameter], wanted: torch.optim.Optimizer | None) -> None:
        """Keep the optimiser and its moments from stage to stage while the trained parameters stay the same."""
        if wanted is not None:
            self._optimizer = wanted
            return
        current = self._optimizer.param_groups[0]["params"] if self._optimizer is not None else []
        if [id(parameter) for parameter in current] != [id(parameter) for parameter in parameters]:
            self._optimizer = Adam(parameters, self.settings.lr)

    def _finished(self, report: StageReport, since_best: int, max_epochs: int) -> bool:
        if report.stopped_by:
            return True
        if since_best >= self.settings.patience:
            report.stopped_by = "patience"
        elif report.epochs >= max_epochs:
            report.stopped_by = "epochs"
        elif self.settings.max_seconds is not None and self.seconds() >= self.settings.max_seconds:
            report.stopped_by, self.timed_out = "time", True
        return bool(report.stopped_by)

    def _train_epoch(self, method, step, stage, epoch, parameters, each_epoch, each_step, report) -> float:
        """Train one epoch, or up to the step after which `each_step` says so; return the mean loss of its triples."""
        user, positive, negative = (
            torch.from_numpy(ids).to(self.device)
            for ids in self.sampler.epoch(self.generator("sampling", stage, epoch))
        )
        optimizer, total, done, size = self._optimizer, 0.0, 0, self.settings.batch_size
        assert optimizer is not None
        for batch, first in enumerate(range(0, len(user), size)):
            rows = slice(first, first + size)
            optimizer.zero_grad()
            with layers_in_halves(self.settings.precision == "bfloat16"):
                loss = step.loss(user[rows], positive[rows], negative[rows])
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise DivergedError(
                        f"the loss became {value} in stage {stage!r}, epoch {epoch}, batch {batch + 1}; "
                        "lower `lr` or raise `l2`"
                    )
                loss.backward()
            if batch == 0 and each_epoch is not None:
                with torch.no_grad():
                    each_epoch()
                step.refresh()
            if self.settings.clip_value is not None:
                torch.nn.utils.clip_grad_value_(parameters, self.settings.clip_value)
            optimizer.step()
            total += value * len(user[rows])
            done += len(user[rows])
            report.steps += 1
            if each_step is not None:
                with torch.no_grad():
                    if each_step():
                        report.stopped_by = "condition"
                        break
        return total / done

    @torch.no_grad()
    def _evaluate(self, method, report: StageReport, loss: float) -> bool:
        """Add a row to the curve; return whether the method's state is strictly the stage's best so far."""
        ks = sorted({int(name.split("@")[1]) for name in VALIDATION_METRICS})
        per_user = self._rank(method, self._ranked, ks)
        scores = means(per_user)
        values = {name: scores.get(name, 0.0) for name in VALIDATION_METRICS}
        self.curve.append(
            {"stage": report.name, "epoch": report.epochs, "seconds": round(self.seconds(), 3), "loss": loss, **values}
        )
        if values[report.metric] <= report.best_value:
            return False
        report.best_value, report.best_epoch = values[report.metric], report.epochs
        if self._ranked is not self.valid:
            report.best_value_error = sampling_error(per_user[report.metric], len(np.unique(self.valid.user)))
        return True

    @torch.no_grad()
    def validate(self, method: EmbeddingMethod, ks) -> dict[str, np.ndarray]:
        """Return `user`, `held_out`, `recall@k` and `ndcg@k` per user with a validation pair; training pairs masked."""
        return self._rank(method, self.valid, ks)

    def _rank(self, method: EmbeddingMethod, held_out: Interactions, ks) -> dict[str, np.ndarray]:
        scorer = DotProducts.of_nodes(method.embed(self.graph).final, self.graph.num_users, method.item_bias)
        return score_users(scorer, self.graph.train, held_out, ks)

    def _progress_bar(self, report: StageReport, max_epochs: int):
        return tqdm(
            total=max_epochs,
            initial=report.epochs,
            desc=report.name,
            unit="epoch",
            disable=not self._progress,
            mininterval=5,
        )

    def _write_checkpoint(self, method, stage: int, best, since_best: int, now: bool) -> None:
        if self._checkpoint is None:
            return
        if not now and time.perf_counter() - self._last_checkpoint < self.checkpoint_seconds:
            return
        assert self._optimizer is not None
        state = {
            "fingerprint": self._fingerprint,
            "stage": stage,
            "reports": [asdict(report) for report in self.reports],
            "curve": self.curve,
            "seconds": self.seconds(),
            "method": method.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": best,
            "since_best": since_best,
        }
        with write_atomically(self._checkpoint) as temporary, open(temporary, "wb") as stream:
            torch.save(state, stream)  # to a stream: a full disk is an OSError then
        self._last_checkpoint = time.perf_counter()

    def _read_checkpoint(self) -> dict | None:
        if self._checkpoint is None or not self._checkpoint.exists():
            return None
        try:
            with zipfile.ZipFile(self._checkpoint) as archive:
                if archive.testzip() is not None:  # torch does not look at the checksums
                    return None
            state = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        except ZIP_ERRORS:
            return None  # damaged: start again, as without one
        if state.get("fingerprint") == self._fingerprint:
            return state
        kept = self._checkpoint.with_suffix(".old.pt")
        self._checkpoint.replace(kept)
        print(f"{kept} is of other code, settings or data: training starts again without it", file=sys.stderr)
        return None

    def _take_up(self, method) -> tuple[StageReport, dict | None, int]:
        """Put the interrupted stage's state back and forget the checkpoint."""
        state, self._resume = self._resume, None
        assert state is not None and self._optimizer is not None
        method.load_state_dict(state["method"])
        method.state_changed()
        self._optimizer.load_state_dict(state["optimizer"])
        self.curve, self._spent = state["curve"], state["seconds"]
        return StageReport(**state["reports"][-1]), state["best"], state["since_best"]


class _Step:
    """The loss of one batch: through the graph, or on the collapsed form where that is cheaper."""

    def __init__(self, method: EmbeddingMethod, graph: TrainingGraph, settings: TrainingSettings):
        self.method, self.graph, self.settings = method, graph, settings
        # On a GPU the last layer is made whole: rows would have to be copied out of it.
        self.choosing_rows = graph.device.type == "cpu"
        self.refresh()

    def refresh(self) -> None:
        """Take the method's constant state anew (after its assignment changed)."""
        form = self.method.linear_form(self.graph)
        self.collapse(form if form is not None and self._cheaper(form.num_rows) else None)

    def collapse(self, form: LinearForm | None) -> None:
        """Use the collapsed form from now on, or the graph where it is None; the loss is the same."""
        self.form, self.gram = form, None
        if form is not None:
            with torch.no_grad():
                self.basis, self.offset = form.basis()
                table_size = self.graph.num_nodes * form.rows().shape[1]
                self.basis = self.basis.to(getattr(torch, self.settings.precision))
            if self.settings.l2 and form.composition is not None and form.num_rows**2 <= table_size:
                self.gram = form.composition.gram()

    @property
    def collapsed(self) -> bool:
        return self.form is not None

    def _cheaper(self, num_rows: int) -> bool:
        # Multiply-adds per column of the table. One gathered through the graph costs about seven dense ones (Gowalla,
        # two cores: a layer of 1.6 M non-zeros x 128 takes 12 ms; a dense product runs at 226 GFLOP/s).
        if 4 * self.graph.num_nodes * num_rows > MOST_BASIS_BYTES:
            return False
        batch_rows = min(self.graph.num_nodes, 3 * self.settings.batch_size)
        return batch_rows * num_rows / 7 < self.graph.adjacency.nnz * self.method.params.num_layers

    def loss(self, user: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of a batch of triples (B,) int32."""
        nodes = torch.cat([user, positive + self.graph.num_users, negative + self.graph.num_users])  # (3B,)
        counts = torch.bincount(nodes, minlength=self.graph.num_nodes)  # of every node in the batch (N,)
        distinct = counts.nonzero()[:, 0]
        wanted = distinct if len(distinct) < 0.9 * self.graph.num_nodes else None  # else choosing costs what it saves
        if self.form is None:
            embeddings = self.method.embed(self.graph.at(wanted) if self.choosing_rows else self.graph)
            shown, final, wanted = embeddings.ego, embeddings.final, embeddings.rows
        else:
            shown = self.form.rows()
            final = self._collapsed(shown, wanted)
        places = nodes if wanted is None else (counts > 0).cumsum(0)[nodes] - 1
        margin = triple_margins(final, *places.chunk(3))
        bias = self.method.item_bias
        if bias is not None:
            margin = margin + bias[positive] - bias[negative]
        loss = torch.nn.functional.softplus(-margin).mean()
        squares = self._squares(shown, counts, distinct) if self.settings.l2 else None
        if squares is not None:
            loss = loss + self.settings.l2 / (2 * len(user)) * squares
        penalty = self.method.penalty(user, positive, negative)
        return loss if penalty is None else loss + penalty

    def _collapsed(self, rows: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
        """Return the final rows of all nodes, or of those wanted (k,), from those of the codebook."""
        basis, offset = self.basis, self.offset
        if wanted is not None:
            basis = basis.index_select(0, wanted)
            offset = None if offset is None else offset.index_select(0, wanted)
        if basis.dtype != rows.dtype:
            product = (basis @ rows.to(basis.dtype)).to(rows.dtype)
            return product if offset is None else product + offset
        return basis @ rows if offset is None else torch.addmm(offset, basis, rows)

    def _squares(self, shown: torch.Tensor | None, counts: torch.Tensor, distinct: torch.Tensor) -> torch.Tensor | None:
        """Return the sum of the squared norms of the layer-0 rows, each `counts` times; None where these are constant.

        counts: (N,), of every node; distinct: ids of those above 0; shown: the layer-0 table (N, d), or the rows M
        (m, d) of which the collapsed form composes it as S M: there the sum is tr(M^T K M), K = S^T diag(counts) S, and
        no (N, d) table is made.
        """
        if shown is None or not shown.requires_grad:
            return None
        if self.gram is not None:
            gram = (self.gram @ counts.to(shown.dtype)[:, None]).view(len(shown), len(shown))
            return (shown * (gram @ shown)).sum()
        if self.form is None:
            ego = shown
        elif self.form.composition is None:
            return None
        else:
            ego = self.form.composition @ shown
        return torch.dot(ego.index_select(0, distinct).square().sum(dim=1), counts[distinct].to(shown.dtype))


class _TripleMargins(torch.autograd.Function):
    """score(u, i) - score(u, j) per triple, without the (B, d) copies of rows that autograd would keep."""

    @staticmethod
    def forward(ctx, final, user, positive, negative):
        ctx.save_for_backward(final, user, positive, negative)
        if compiled_for(final):
            return torch.from_numpy(kernels.triple_margins(*_arrays(final, user, positive, negative)))
        return (final[user] * (final[positive] - final[negative])).sum(dim=1)

    @staticmethod
    def backward(ctx, gradient):
        final, user, positive, negative = ctx.saved_tensors
        if compiled_for(final):
            found = kernels.triple_gradient(*_arrays(gradient, final, user, positive, negative))
            return torch.from_numpy(found), None, None, None
        by = gradient[:, None]
        result = torch.zeros_like(final)
        of_user = final[user] * by
        result.index_add_(0, user, (final[positive] - final[negative]) * by)
        result.index_add_(0, positive, of_user)
        result.index_add_(0, negative, -of_user)
        return result, None, None, None


def _arrays(*tensors) -> list[np.ndarray]:
    """Return floats as they are and node ids as int32, in C order."""
    return [
        (tensor if tensor.is_floating_point() else tensor.int()).detach().contiguous().numpy() for tensor in tensors
    ]


def triple_margins(final: torch.Tensor, user, positive, negative) -> torch.Tensor:
    """Return <h_u, h_i> - <h_u, h_j> for node ids (B,) of a table (N, d): (B,)."""
    return _TripleMargins.apply(final, user, positive, negative)


def _copied(method: EmbeddingMethod) -> dict:
    return copy.deepcopy(method.state_dict())


def sampled_users(valid: Interactions, num_users: int) -> Interactions:
    """Return the pairs of so many users, drawn without replacement from those with pairs; of all where these are fewer.

    The draw depends on the pairs alone: every method and seed is judged by the same users. A larger sample holds a
    smaller one.
    """
    users = np.unique(valid.user)
    if num_users >= len(users):
        return valid
    generator = np.random.default_rng(seed_for(0, "validation users", valid.sha256()))
    chosen = np.isin(valid.user, generator.permutation(users)[:num_users])
    return Interactions(valid.user[chosen], valid.item[chosen], valid.num_users, valid.num_items)


def sampling_error(values: np.ndarray, population: int) -> float:
    """Return the standard error of the mean of values (n,) that were drawn without replacement from so many.

    sqrt(s^2 / n * (1 - n / population)), s^2 with n - 1 below: Cochran, Sampling Techniques, 3rd ed., chapter 2.
    """
    return math.sqrt(values.var(ddof=1) / len(values) * (1 - len(values) / population))


def pick_device(wanted: str, deterministic: bool = False) -> torch.device:
    """Return the device: `auto` takes CUDA where torch sees one. Raises ConfigError for a CUDA that it does not see.

    Of several GPUs that with the fewest holders is taken: see c2f.slots.
    deterministic: torch's deterministic algorithms from now on in this process. Products with CSR matrices on CUDA are
    not among them and raise nothing (torch asks cuSPARSE for CUSPARSE_SPMM_CSR_ALG2; equal bits in every run are
    promised for ALG3 alone), so c2f.ops adds up the entries instead. Never tried on a GPU.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
        torch.use_deterministic_algorithms(True)
    if wanted != "cpu":
        slots.take(torch.cuda.device_count)  # asks NVML, and so does not start CUDA; is_available does
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device = 'cuda', but torch sees no CUDA device here; write device: auto or cpu in `training`"
        )
    return torch.device(wanted)


class _deferred_interrupt:
    """Hold back SIGINT and SIGTERM until the epoch's end, so that the checkpoint is a whole epoch."""

    def __enter__(self):
        self.is_set = False
        self._old: dict = {}
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, *_):
        self.is_set = True

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
