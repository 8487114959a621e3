"""Tuning: as many trials for every method and budget, proposed by Optuna's TPE, judged on the validation pairs alone.

A trial is a training run in a process of its own. The first has the entry's own settings. What is found is frozen as
entries of a configuration, and every trial of it is drawn.
"""

import dataclasses
import hashlib
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from c2f import record
from c2f.errors import ConfigError, DataError
from c2f.record import read_json, sha256_file, write_atomically, write_json
from c2f.seeds import seed_for

if TYPE_CHECKING:
    from c2f.run import ResolvedMethod

STARTUP = 5
"""Trials with a value before TPE follows them; until then settings are drawn at random. Not a share of all trials, so
that a study that is given more trials later is the one that had them from the start."""
DIGITS = 3
"""Significant digits of a tuned number: what is run is what the frozen file says."""
GRACE_SECONDS = 60.0
"""How long an interrupted trial may take to write its checkpoint."""


@dataclass(frozen=True)
class Float:
    """Numbers from low to high, log: evenly in their logarithm. Raises ConfigError where that cannot be."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        if not (self.low < self.high and (self.low > 0 or not self.log)):
            raise ConfigError(f"{self} is no range; write low < high, and low above 0 where `log` is true")

    @property
    def ends(self) -> tuple:
        return self.low, self.high

    def holds(self, value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def distribution(self):
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def used(self, value):
        """Return what is run where `value` was proposed."""
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Int(Float):
    """Whole numbers from low to high, both included."""

    low: int
    high: int

    def holds(self, value) -> bool:
        return isinstance(value, int) and super().holds(value)

    def distribution(self):
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log)

    def used(self, value):
        return int(value)


@dataclass(frozen=True)
class Choice:
    """One of some values, which have no order."""

    options: tuple

    def __post_init__(self):
        if not self.options:
            raise ConfigError("a choice needs options; write `choices: [...]`")

    @property
    def ends(self) -> tuple:
        return self.options

    def holds(self, value) -> bool:
        return value in self.options

    def distribution(self):
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.options)

    def used(self, value):
        return value


Dimension = Float | Int | Choice


def read_space(mapping: Mapping[str, Mapping], place: str) -> dict[str, Dimension]:
    """Return `tuning: space` as dimensions: {low, high, log} or {choices}. Raises ConfigError; `place` names it there.

    Two whole numbers as ends make whole numbers.
    """
    space: dict[str, Dimension] = {}
    for name, words in mapping.items():
        try:
            if "choices" in words:
                space[name] = Choice(tuple(words["choices"]))
            else:
                whole = isinstance(words["low"], int) and isinstance(words["high"], int)
                space[name] = (Int if whole else Float)(**words)
        except ConfigError as error:
            raise ConfigError(f"{place}.{name}: {error}") from None
        except (KeyError, TypeError):
            raise ConfigError(
                f"{place}.{name} = {words!r} is no range; write {{low: 1, high: 4}}, with `log: true` where they are "
                "orders of magnitude, or {choices: [1, 3]}"
            ) from None
    return space


def space_of(cls, common: Mapping[str, Dimension], starts: bool) -> dict[str, Dimension]:
    """Return what is searched for a method's class: of the common space what it has, and its own; sorted by name.

    starts: whether it starts from another run. Then the common ones among its `params` stay as they are, as it must
    share them with that run.
    """
    from c2f.train import TrainingSettings

    params, training = _fields(cls.Params), _fields(TrainingSettings)
    unused = {name for name, dimension in cls.search_space.items() if dimension is None}
    space = {
        name: dimension
        for name, dimension in common.items()
        if name not in unused and (name in training or (name in params and not starts))
    }
    space |= {name: dimension for name, dimension in cls.search_space.items() if dimension is not None}
    return dict(sorted(space.items()))


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: its value, or the reason why it has none; seconds; whether anything was trained."""

    value: float | None
    reason: str | None = None
    seconds: float = 0.0
    trains: bool = True


def search(
    folder: Path,
    fingerprint: str,
    seed: int,
    trials: int,
    own: Mapping[str, Any],
    space: Mapping[str, Dimension],
    of_training: set[str],
    run: Callable[[int, dict], Outcome],
) -> list[dict]:
    """Run trials until there are so many finished ones in `folder`/study.sqlite; return these as mappings, in order.

    own: the entry's own settings by the names of the space, the first trial; of_training: names that have no effect
    where nothing is trained, which the first trial shows; run: takes a trial's number and settings. What is proposed
    depends on the seed and the finished trials alone, so an interrupted study goes on as if it had not been. A trial
    that an interruption left running is marked failed and repeated. Where nothing is left to search there is one trial.
    A study of another fingerprint is begun anew.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _open_study(folder, fingerprint)
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(left.number, state=TrialState.FAIL)
    while True:
        done = _finished(study)
        searched = {name: space[name] for name in space if not done or done[0]["trains"] or name not in of_training}
        if len(done) >= (trials if searched else 1):
            return done
        number, trial = len(done), None
        if number == 0:
            settings = dict(own)
        else:
            # independent draws, and a seed for each trial: what is proposed does not depend on who was interrupted
            study.sampler = optuna.samplers.TPESampler(
                seed=seed_for(seed, "trial", number) % 2**32,
                n_startup_trials=STARTUP,
                multivariate=False,
                constant_liar=False,
            )
            trial = study.ask({name: dimension.distribution() for name, dimension in searched.items()})
            settings = {name: searched[name].used(value) for name, value in trial.params.items()}
        outcome = run(number, settings)
        notes = {"settings": settings, "reason": outcome.reason, "seconds": outcome.seconds, "trains": outcome.trains}
        state = TrialState.COMPLETE if outcome.value is not None else TrialState.FAIL
        if trial is None:
            inside = {name: own[name] for name in space if space[name].holds(own[name])}
            distributions = {name: space[name].distribution() for name in inside}
            study.add_trial(
                optuna.trial.create_trial(
                    state=state, value=outcome.value, params=inside, distributions=distributions, user_attrs=notes
                )
            )
            continue
        for key, value in notes.items():
            trial.set_user_attr(key, value)
        study.tell(trial, outcome.value, state=state)


def _open_study(folder: Path, fingerprint: str):
    """Return the study in `folder`, a new one where there is none of this fingerprint. Raises DataError."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    file = folder / "study.sqlite"
    with record.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file.resolve()}")
        study = optuna.create_study(storage=storage, study_name="tuning", direction="maximize", load_if_exists=True)
        if study.user_attrs.get("fingerprint") != fingerprint:
            if study.trials:
                print(f"{folder}: settings or data are others than those of its trials; the study begins anew")
            optuna.delete_study(study_name="tuning", storage=storage)
            shutil.rmtree(folder / "trials", ignore_errors=True)
            study = optuna.create_study(storage=storage, study_name="tuning", direction="maximize")
            study.set_user_attr("fingerprint", fingerprint)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise DataError(f"{file} cannot be read ({str(error).splitlines()[0]}); delete it and tune again") from None
    return study


def _finished(study) -> list[dict]:
    """Return the study's finished trials; not those that an interruption left."""
    trials: list[dict] = []
    for trial in study.get_trials(deepcopy=False):
        if (notes := trial.user_attrs).get("trains") is None or not trial.state.is_finished():
            continue  # it has no outcome
        ok = notes["reason"] is None
        status, value = ("ok", trial.value) if ok else ("failed", None)
        trials.append({"trial": len(trials), "status": status, "value": value, **notes})
    return trials


def tune(
    train_file: Path,
    valid_file: Path,
    stats_file: Path,
    method_file: Path,
    budget: str,
    trials: int,
    seed: int,
    space: Mapping[str, Mapping],
    folder: Path,
    output: Path,
    start: Path | None = None,
    training: dict | None = None,
) -> dict:
    """Search a method's settings at one budget on one dataset; write the study as JSON, and return it.

    space: `tuning: space` of the configuration; folder: for study.sqlite, from which an interrupted study is taken up,
    and a folder per trial (method.json, run.json, curve.csv, train.log; no artifact). Every trial is trained from the
    same seed. Its value is the metric that the entry stops on, of its artifact, on the validation pairs; a trial that
    does not end as `ok` has none. The test pairs are no input.
    """
    from c2f.data import load_pairs, load_stats
    from c2f.graph import Graph
    from c2f.run import load_method
    from c2f.train import TrainingSettings

    began = time.perf_counter()
    if trials < 1:
        raise ConfigError(f"--trials {trials} is no number of trials; write 1 or more")
    resolved, training = load_method(method_file), training or {}
    searched = space_of(resolved.method_class, read_space(space, "tuning.space"), starts=start is not None)
    if fixed := sorted(searched.keys() & training.keys()):
        raise ConfigError(
            f"{fixed[0]!r} is searched (tuning.space), and stands in this dataset's own `training`, which wins over "
            "every trial; take it out of one of them"
        )
    stats = load_stats(stats_file)
    graph, valid = Graph(load_pairs(train_file, stats)), load_pairs(valid_file, stats)
    if not len(valid):
        raise DataError(f"{valid_file} has no pairs, and nothing else may choose settings; use another recipe")
    of_training = _fields(TrainingSettings) & searched.keys()
    values = resolved.training | training | resolved.params
    sums = {"train": stats["sha256"]["train"], "valid": stats["sha256"]["valid"], "method": sha256_file(method_file)}
    if start is not None:
        sums["start"] = sha256_file(start / "artifact.npz")
    ranges = {name: _words(dimension) for name, dimension in searched.items()}
    identity = [sums, budget, seed, ranges, training]
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    metric = (resolved.training | training)["select_on"]
    words = ["--train", train_file, "--valid", valid_file, "--stats", stats_file, "--budget", budget, "--seed", seed]
    words += ["--training", json.dumps(training), *(["--start", start] if start is not None else [])]

    def run(number: int, settings: dict) -> Outcome:
        outcome = _train(resolved, settings, of_training, words, folder / "trials" / f"{number:03d}", number == 0)
        if outcome.reason is None:
            artifact = folder / "trials" / f"{number:03d}" / "artifact.npz"
            value = validation(artifact, graph, valid, metric)
            artifact.unlink()
            better = math.isfinite(value)
            outcome = dataclasses.replace(outcome, value=value if better else None)
            outcome = outcome if better else dataclasses.replace(outcome, reason=f"its {metric} is {value}")
        told = ", ".join(f"{name} {value}" for name, value in settings.items()) or "nothing to choose"
        ended = f"{metric} {outcome.value:.5f}" if outcome.value is not None else f"failed: {outcome.reason}"
        print(f"trial {number + 1} of {trials}: {ended} ({told}; {outcome.seconds:.0f} s)", flush=True)
        return outcome

    with _interrupted_by_sigterm():
        own = {name: values[name] for name in searched}
        done = search(folder, fingerprint, seed, trials, own, searched, of_training, run)
    if not done[0]["trains"]:
        ranges = {name: words for name, words in ranges.items() if name not in of_training}
    best = max((trial for trial in done if trial["value"] is not None), key=lambda trial: trial["value"], default=None)
    found = {name: best["settings"][name] for name in ranges} if best else {}
    study = {
        "dataset": stats["name"],
        "protocol": stats["recipe"],
        "method": resolved.name,
        "budget": budget,
        "seed": seed,
        "metric": metric,
        "space": ranges,
        "trials_run": len(done),
        "trials_failed": sum(trial["status"] == "failed" for trial in done),
        "own_value": done[0]["value"],
        "best_value": best["value"] if best else None,
        "best_trial": best["trial"] if best else None,
        "params": {name: value for name, value in found.items() if name not in of_training},
        "training": {name: value for name, value in found.items() if name in of_training},
        "starts_from": str(start) if start is not None else None,
        "entry": {"uses": resolved.uses, "params": resolved.params, "training": resolved.training | training},
        "seconds": round(sum(trial["seconds"] for trial in done), 3),
        "seconds_of_last_call": round(time.perf_counter() - began, 3),
        "commit": record.commit(),
        "versions": record.versions() | {"optuna": metadata.version("optuna")},
        "machine": record.machine(),
        "inputs_sha256": sums,
        "command": shlex.join(["python", "-m", "c2f", *sys.argv[1:]]),
        "trials": [{key: value for key, value in trial.items() if key != "trains"} for trial in done],
    }
    write_json(output, study)
    return study


def _train(resolved: "ResolvedMethod", settings: dict, of_training: set[str], words: list, folder: Path, first: bool):
    """Train one trial in a process of its own; return its outcome without a value. Its artifact lies in `folder`.

    Raises ConfigError where the first trial is refused: then not its settings are at fault.
    """
    from c2f.settings import from_mapping

    params = {name: value for name, value in settings.items() if name not in of_training}
    changes = {name: value for name, value in settings.items() if name in of_training}
    trial = dataclasses.replace(resolved, params=resolved.params | params, training=resolved.training | changes)
    try:
        from_mapping(trial.method_class.Params, trial.params, "params")
    except ConfigError as error:  # settings that do not go together
        return Outcome(None, str(error))
    for name in ("run.json", "artifact.npz"):  # of an interrupted attempt; never read as this one's
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "method.json", dataclasses.asdict(trial))
    command = [sys.executable, "-m", "c2f", "train", *words, "--method", folder / "method.json", "--output", folder]
    began = time.perf_counter()
    code, log = _call([str(word) for word in command], folder / "train.log")
    seconds = round(time.perf_counter() - began, 3)
    last = (log.strip().splitlines() or ["it printed nothing"])[-1]
    if code == 2 and first:
        raise ConfigError(last.removeprefix("ERROR: "))
    if code == 130:
        raise KeyboardInterrupt
    if code or not (folder / "run.json").exists():
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome(None, f"crashed with {ended}: {last}", seconds)
    run = read_json(folder / "run.json")
    if run["status"] != "ok":
        (folder / "artifact.npz").unlink(missing_ok=True)
        return Outcome(None, f"{run['status']}: {run['reason']}", seconds)
    return Outcome(None, None, seconds, trains=bool(run["stages"]))


def _call(command: list[str], log: Path) -> tuple[int, str]:
    """Run a command with its output in a file; return its exit code (below 0: the signal that ended it) and output."""
    with open(log, "w") as stream, subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT) as process:
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)  # it writes its checkpoint at the end of the epoch
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return code, log.read_text(errors="replace")


@contextmanager
def _interrupted_by_sigterm():
    """Let SIGTERM interrupt as Ctrl-C does, so that no trial outlives the step that started it."""

    def interrupt(*_):
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def validation(artifact_file: Path, graph, valid, metric: str) -> float:
    """Return the mean metric of a run's artifact on the validation pairs, training pairs masked, as training has it."""
    from c2f.evaluate import means, score_users
    from c2f.method import load_class
    from c2f.run import load_artifact
    from c2f.train import pick_device

    artifact = load_artifact(artifact_file)
    cls, info = load_class(artifact.info["uses"]), artifact.info
    device = pick_device("cpu" if info["device"] == "cpu" else "auto")
    scorer = cls.scorer(artifact.arrays, cls.Params(**info["params"]), graph, device)
    return float(means(score_users(scorer, graph.train, valid, [int(metric.partition("@")[2])]))[metric])


def freeze(files: Sequence[Path], spec: Mapping, output: Path, made_by: str = "") -> None:
    """Write one dataset's studies as a configuration, OUTPUT.yaml, and draw them: OUTPUT.pdf, .png, .csv and .txt.

    The configuration has an entry `METHOD-tuned-BUDGET` for every study with a value: `like` the method, at that
    budget, with the settings found there; and it runs each beside its method. spec: `output` of that configuration,
    `made_up` (whether the data are), and `families`, which colours follow.
    """
    from c2f.figures import write_tuning

    if missing := [key for key in ("output", "made_up", "families") if key not in spec]:
        raise ConfigError(f"the spec of the frozen settings has no {missing[0]!r}; c2f.grid writes it")
    studies = [read_json(file) for file in files]
    if others := sorted({study["dataset"] for study in studies[1:]} - {studies[0]["dataset"]}):
        raise ConfigError(f"--studies are of {studies[0]['dataset']!r} and {others[0]!r}; freeze one dataset at a time")
    with write_atomically(Path(f"{output}.yaml")) as temporary:
        temporary.write_text(frozen(studies, spec["output"], made_by))
    write_tuning(studies, spec, output)


def frozen(studies: Sequence[dict], output: str, made_by: str) -> str:
    """Return one dataset's studies as the text of a configuration; see `freeze`."""
    lines = ["# Settings found by tuning, as entries of a configuration: each at the budget where it was found."]
    if made_by:
        lines.append(f"#   {made_by}")
    lines.append("# Give this file after the configuration that they were found with, as `--configfile THAT THIS`.")
    methods: list[str] = []
    entries = {}
    for study in studies:
        place, ran = f"{study['method']} at {study['budget']}", f"{study['trials_run']} trials"
        ran += f", {study['trials_failed']} failed" * bool(study["trials_failed"])
        methods.append(study["method"])
        if study["best_value"] is None:
            lines.append(f"# {place}: {ran}; none has a value, first: {study['trials'][0]['reason']}")
            continue
        own = "none" if study["own_value"] is None else f"{study['own_value']:.5f}"
        lines.append(
            f"# {place}: validation {study['metric']} {study['best_value']:.5f}, with its own settings {own}; "
            f"{ran}, the best was number {study['best_trial'] + 1}; seed {study['seed']}, commit {study['commit']}"
        )
        found = {key: study[key] for key in ("params", "training") if study[key]}
        name = f"{study['method']}-tuned-{study['budget']}"
        entries[name] = {"like": study["method"], "budgets": [study["budget"]], **found}
        methods.append(name)
    grid = {"datasets": [studies[0]["dataset"]], "methods": list(dict.fromkeys(methods))}
    content = {"output": output, "grid": grid, "methods": entries}
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, width=120)


def _words(dimension: Dimension) -> dict:
    """Return a dimension as `read_space` reads it."""
    if isinstance(dimension, Choice):
        return {"choices": list(dimension.options)}
    return dataclasses.asdict(dimension)


def _fields(cls) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}
