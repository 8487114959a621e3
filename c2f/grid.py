"""Which runs a configuration asks for: names checked, `like:` entries merged, the runs that figures need added."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from c2f.budget import Budget, parse_bytes
from c2f.captions import (
    AT_ONE_BUDGET,
    CURVE_METRICS,
    FIGURES,
    METRICS,
    NEEDED_KEYS,
    OTHER_KEYS,
    POINT_KEYS,
    SIZE_KEYS,
    TABLE_METRICS,
    figure_caption,
)
from c2f.data import DatasetSpec
from c2f.errors import ConfigError, did_you_mean
from c2f.tuning import read_space

WAY_OUT = "config/README.md describes every key"


@dataclass(frozen=True, order=True)
class Run:
    """One cell of the grid: a method trained on a dataset within a budget, from one seed."""

    dataset: str
    method: str
    budget: str
    seed: int


@dataclass(frozen=True)
class Entry:
    """One entry under `methods:` with everything it inherits filled in.

    lineage: the entry's own name, then the name it is like, and so on; budgets: None where the grid's budgets apply;
    starts_from: {"method": ..., "budget": ...} of the run whose artifact it starts from, or None.
    """

    lineage: tuple[str, ...]
    uses: str
    params: dict
    training: dict
    starts_from: dict | None
    budgets: tuple[str, ...] | None

    @property
    def name(self) -> str:
        return self.lineage[0]

    def to_json(self) -> str:
        """Return what the resolve step reads: everything that changes the trained model, and nothing else."""
        content = {"uses": self.uses, "params": self.params, "training": self.training, "starts_from": self.starts_from}
        return json.dumps(content, sort_keys=True)


class Grid:
    """The checked configuration. Raises ConfigError for what would only fail later, after hours of training.

    order: names of methods, which colours follow; Snakemake puts what --configfile names before the rest.
    """

    def __init__(self, config: dict, schema: Path, order: Iterable[str] = ()):
        _check_schema(config, schema)
        self.config = config
        self.output: str = config["output"]
        self.ks: list[int] = config["evaluation"]["ks"]
        self.serving: dict = config["evaluation"]["serving"]
        parse_bytes(self.serving["memory_limit"], "evaluation.serving.memory_limit")
        self.datasets: list[str] = config["grid"]["datasets"]
        self.methods: list[str] = config["grid"]["methods"]
        self.budgets = _check_budgets(config["grid"]["budgets"], "grid.budgets")
        self.seeds: list[int] = config["grid"]["seeds"]
        self.figures: list[str] = config["grid"]["figures"]
        self.references: dict[str, str] = config["references"]
        self.training = json.dumps(config["training"], sort_keys=True)
        self.tuning: dict = config["tuning"]
        read_space(self.tuning["space"], "tuning.space")
        _check_names(self.datasets, config["datasets"], "dataset", "grid.datasets")
        _check_names(self.methods, config["methods"], "method", "grid.methods")
        _check_names(self.references.values(), config["methods"], "method", "references")
        _check_names(self.figures, config["figures"], "figure", "grid.figures")
        found = {name: _inherit(config["datasets"], name, "dataset") for name in config["datasets"]}
        self.data = {name: entry for name, (_, entry) in found.items()}
        self.roots = {name: _root(config["datasets"], lineage) for name, (lineage, _) in found.items()}
        for dataset in dict.fromkeys([*self.datasets, *(self.roots[dataset] for dataset in self.datasets)]):
            DatasetSpec.parse(dataset, self._data_entry(dataset))
        self._check_metrics(TABLE_METRICS, "the tables")
        ordered = [name for name in order if name in config["methods"]]
        self.entries = {name: _entry(config["methods"], name) for name in dict.fromkeys([*ordered, *config["methods"]])}
        for name in self.figures:
            self._check_figure(name)
        for run in self.trained:
            self.source(run.method)

    @cached_property
    def asked(self) -> list[Run]:
        """Every run that is evaluated and stands in the tables: the grid's, and those that its figures need."""
        runs = self._runs(self.methods, self.seeds)
        for name in self.figures:
            runs += self._figure_runs(name)
        return list(dict.fromkeys(runs))

    @cached_property
    def trained(self) -> list[Run]:
        """Every run that is trained: those asked for, and those that they start from."""
        runs = dict.fromkeys(self.asked)
        for run in self.asked:
            seen = {run.method}
            start = self.start(run)
            while start is not None:
                if start.method in seen:
                    raise ConfigError(f"methods.{run.method} starts from itself, by way of {start.method!r}; {WAY_OUT}")
                seen.add(start.method)
                runs[start] = None
                start = self.start(start)
        return list(runs)

    def studies(self, dataset: str) -> list[Run]:
        """Return what is tuned on a dataset: the grid's methods, each at its budgets, at the seed of all trials."""
        return [run for run in self._runs(self.methods, [self.tuning["seed"]]) if run.dataset == dataset]

    def tuned_spec(self, dataset: str) -> str:
        """Return what the freeze step is told, as JSON; runs with the settings found have an `output` of their own."""
        made_up = "generate" in self.data[dataset]
        return json.dumps({"output": f"{self.output}/{dataset}", "made_up": made_up, "families": self.families})

    def start(self, run: Run) -> Run | None:
        """Return the run whose artifact `run` starts from, if any: same dataset and seed, by default same budget."""
        source = self.entries[run.method].starts_from
        if source is None:
            return None
        method, budget = source["method"], source.get("budget", run.budget)
        _check_names([method], self.entries, "method", f"methods.{run.method}.starts_from")
        offered = self.entries[method].budgets
        if offered is not None and budget not in offered:
            raise ConfigError(
                f"methods.{run.method} at budget {budget!r} starts from {method!r}, which is only run at "
                f"{', '.join(offered)}; write `starts_from: {{method: {method}, budget: {offered[0]}}}`"
            )
        return Run(run.dataset, method, budget, run.seed)

    def folder(self, run: Run) -> str:
        """Return the folder of a run, where no other configuration's `output` has it replaced."""
        return f"{self.output}/runs/{run.dataset}/{run.method}/{run.budget}/{run.seed}"

    def folders(self, dataset: str) -> list[str]:
        """Return the folders of a dataset's runs that stand in the tables."""
        return [self.folder(run) for run in self.asked if run.dataset == dataset]

    def data_spec(self, dataset: str, *, urls: bool) -> str:
        """Return what the data steps read, as JSON: nothing on training, and no URLs where the checksums say enough."""
        spec = self._data_entry(dataset)
        if "files" in spec and not urls:
            sums = {name: {key: file[key] for key in file if key != "urls"} for name, file in spec["files"].items()}
            spec["files"] = sums
        return json.dumps(spec, sort_keys=True)

    @cached_property
    def several_protocols(self) -> bool:
        """Whether one dataset is run under more than one recipe: entries that differ in recipe and split seed alone."""
        recipes: dict[str, set[str]] = {}
        for dataset in self.datasets:
            spec = json.loads(self.data_spec(dataset, urls=False))
            recipe, _ = spec.pop("recipe"), spec.pop("split_seed", None)
            recipes.setdefault(json.dumps(spec, sort_keys=True), set()).add(recipe)
        return any(len(found) > 1 for found in recipes.values())

    def data_training(self, dataset: str) -> str | None:
        """Return the training settings that hold for every method on this dataset, as JSON, or None."""
        changes = self.data[dataset].get("training")
        return json.dumps(changes, sort_keys=True) if changes else None

    def threads(self, dataset: str) -> int:
        return self.data[dataset].get("threads", 1)

    def gpus(self, dataset: str, method: str) -> int:
        """Return 0 where a method is told to work on the processor, else 1 (it may find a GPU)."""
        changes = self.data[dataset].get("training", {})
        training = {**self.config["training"], **self.entries[method].training, **changes}
        return int(training.get("device") != "cpu")

    def source(self, method: str) -> str:
        """Return the source file of a method's class."""
        uses = self.entries[method].uses
        path = module_file(uses.partition(":")[0])
        if path is None:
            raise ConfigError(
                f"methods.{method}.uses = {uses!r}, but there is no such module; "
                "write `uses: package.module:Class`, and install the package if it lives elsewhere"
            )
        return path

    def training_of(self, method: str) -> str:
        """Return what of `training:` holds for a method, as JSON: the keys that its entry does not set itself."""
        own = self.entries[method].training
        return json.dumps({k: v for k, v in self.config["training"].items() if k not in own}, sort_keys=True)

    def check_entries(self, checked: Path) -> None:
        """Let every method that is trained check its own entry, before anything runs. Raises ConfigError.

        A mistake that only a job finds is dear: Snakemake drops the job's output, and once the mistake is mended all
        that depends on it is made again. Methods import torch, which takes seconds: the check has a process of its own,
        and an empty file in the folder `checked`, named after the content, says that it went well.
        """
        names = dict.fromkeys(run.method for run in self.trained)
        entries = json.dumps({name: json.loads(self.entries[name].to_json()) for name in names})
        code = [*sorted(map(str, Path(__file__).parent.glob("*.py"))), *(self.source(name) for name in names)]
        content = hashlib.sha256(entries.encode() + self.training.encode())
        for file in code:
            content.update(Path(file).read_bytes())
        if (checked / content.hexdigest()).exists():
            return
        words = ["check", "--entries", entries, "--training", self.training]
        done = subprocess.run([sys.executable, "-m", "c2f", *words], capture_output=True, text=True)
        if done.returncode:
            message = done.stderr.strip()
            known = message.startswith("ERROR: ")
            raise ConfigError(message.removeprefix("ERROR: ") if known else f"a method cannot be loaded\n{message}")
        checked.mkdir(parents=True, exist_ok=True)
        (checked / content.hexdigest()).touch()

    @cached_property
    def families(self) -> list[list[str]]:
        """Every entry without `like` with all that are like it, in the order of `methods:`: figures colour by it."""
        families: dict[str, list[str]] = {entry.lineage[-1]: [entry.lineage[-1]] for entry in self.entries.values()}
        for name, entry in self.entries.items():
            if name not in families:
                families[entry.lineage[-1]].append(name)
        return list(families.values())

    def figure_spec(self, name: str) -> str:
        """Return what the figure step is told, as JSON: the figure's own keys, seeds, caption, and what colours follow.

        `lines` (for figures with points) names the method whose colour each line takes: the entry that its last point's
        method is like, or that method itself where another line has that entry's. What is drawn at one size is told the
        middle budget where its entry names none.
        """
        spec = self.config["figures"][name]
        draw = spec.get("draw", name)
        told = {
            **spec,
            **{key: self._size(name, key, kind) for key, kind in SIZE_KEYS.get(draw, {}).items()},
            "draw": draw,
            "seeds": self._seeds(name),
            "families": self.families,
            "caption": self.caption(name),
        }
        if "points" in spec:
            told["points"] = [self._with_line(point) for point in spec["points"]]
            told["lines"] = self._lines(told["points"])
        else:
            told["methods"] = self._drawn(name)
        return json.dumps(told, sort_keys=True)

    def figure_files(self, name: str) -> list[str]:
        """Return the files beside the runs tables that a figure is drawn from."""
        spec = self.config["figures"][name]
        return [spec["literature"]] if "literature" in spec else []

    def caption(self, name: str) -> str:
        """Return a figure's caption."""
        data = [(name, self.data[name]["recipe"], "generate" in self.data[name]) for name in self.datasets]
        return figure_caption(self.config["figures"][name].get("draw", name), data, self._seeds(name))

    def _data_entry(self, dataset: str) -> dict:
        """Return a dataset's entry without what is none of the data steps' business."""
        return {key: value for key, value in self.data[dataset].items() if key not in ("threads", "training")}

    def _drawn(self, name: str) -> list[str]:
        spec = self.config["figures"][name]
        if "points" in spec:
            named = [point[side] for point in spec["points"] for side in ("before", "after", "method") if side in point]
            return list(dict.fromkeys([spec["base"], *named] if "base" in spec else named))
        return spec.get("methods", self.methods)

    def _with_line(self, point: dict) -> dict:
        """Return a figure's point with the name of its line, by default the entry that its method is like."""
        if "method" not in point:
            return point
        return {"line": self.entries[point["method"]].lineage[-1], **point}

    def _lines(self, points: list[dict]) -> dict[str, str]:
        if "before" in points[-1]:
            return {side: self.entries[points[-1][side]].lineage[-1] for side in ("before", "after")}
        lines: dict[str, str] = {}
        for line, method in {point["line"]: point["method"] for point in points}.items():
            root = self.entries[method].lineage[-1]
            lines[line] = method if root in lines.values() else root
        return lines

    def _figure_runs(self, name: str) -> list[Run]:
        """Return the runs that a figure needs; where it is drawn at one budget, those alone and those without one."""
        draw = self.config["figures"][name].get("draw", name)
        if draw not in AT_ONE_BUDGET:
            return self._runs(self._drawn(name), self._seeds(name))
        budget = self._size(name, "budget", SIZE_KEYS[draw]["budget"])
        runs = self._runs(self._drawn(name), self._seeds(name), [budget])
        return [run for run in runs if run.budget in (budget, "full")]

    def _budgets(self, names: Iterable[str]) -> list[str]:
        """Return every budget at which any of these methods is run."""
        return list(dict.fromkeys(budget for name in names for budget in self.entries[name].budgets or self.budgets))

    def _size(self, name: str, key: str, kind: str) -> str:
        """Return a figure's `budget` or `size`, by default the middle one of the grid's budgets of a kind.

        `full` is the default budget where none of the methods drawn has another.
        """
        if (own := self.config["figures"][name].get(key)) is not None:
            return str(own)
        if key == "budget" and self._budgets(self._drawn(name)) == ["full"]:
            return "full"
        budgets = [budget for budget in map(Budget.parse, self.budgets) if budget.kind == kind]
        if not budgets:
            offered = "one such as 1MB" if key == "size" else f"one of {', '.join(self._budgets(self._drawn(name)))}"
            raise ConfigError(
                f"figures.{name} has no `{key}`, and grid.budgets has no {kind}-N, whose middle it would take; "
                f"give it {offered}"
            )
        middle = sorted(budgets, key=lambda budget: budget.amount)[len(budgets) // 2].name
        return middle if key == "budget" else middle.removeprefix(f"{kind}-")

    def _seeds(self, name: str) -> list[int]:
        return self.config["figures"][name].get("seeds", self.seeds)

    def _runs(self, methods: Iterable[str], seeds: Iterable[int], budgets: list[str] | None = None) -> list[Run]:
        return [
            Run(dataset, method, budget, seed)
            for dataset in self.datasets
            for method in methods
            for budget in self.entries[method].budgets or budgets or self.budgets
            for seed in seeds
        ]

    def _check_metrics(self, metrics: Iterable[str], place: str) -> None:
        known = [f"{kind}@{k}" for kind in METRICS for k in self.ks]
        for metric in metrics:
            kind, _, k = metric.partition("@")
            if metric not in known and kind in METRICS and k.isdecimal():
                raise ConfigError(
                    f"{metric!r} in {place} needs {k}, which evaluation.ks = {self.ks} has not; add it there"
                )
        _check_names(metrics, known, "metric", place)

    def _check_figure(self, name: str) -> None:
        spec, place = self.config["figures"][name], f"figures.{name}"
        draw = spec.get("draw", name)
        kind = "drawing (a function in c2f/figures.py or c2f/memory_figures.py with a caption in c2f/captions.py)"
        _check_names([draw], FIGURES, kind, f"{place}.draw")
        needed, sizes = NEEDED_KEYS[draw], SIZE_KEYS.get(draw, {})
        taken = [*needed, *sizes, *OTHER_KEYS.get(draw, []), *["methods"] * ("points" not in needed), "seeds"]
        if missing := [key for key in needed if key not in spec]:
            raise ConfigError(f"{place} needs `{missing[0]}`, as its drawing is {draw!r}; {WAY_OUT}")
        if more := [key for key in spec if key not in [*taken, "draw"]]:
            raise ConfigError(
                f"{place} takes no `{more[0]}`, as its drawing is {draw!r}, which takes {', '.join(taken)}; {WAY_OUT}"
            )
        self._check_points(name, draw)
        _check_names(self._drawn(name), self.entries, "method", place)
        for key in {"metrics", "metric"}.intersection(needed):
            self._check_metrics([spec[key]] if key == "metric" else spec[key], f"{place}.{key}")
        if "budget" in sizes:
            budget = Budget.parse(self._size(name, "budget", sizes["budget"])).name
            _check_budgets(list(dict.fromkeys([*self.budgets, budget])), f"grid.budgets and {place}.budget together")
            if draw not in AT_ONE_BUDGET:  # those add the runs at theirs
                _check_names([budget], self._budgets(self._drawn(name)), "budget", f"{place}.budget")
        if "size" in sizes:
            parse_bytes(self._size(name, "size", sizes["size"]), f"{place}.size")
        if seeds := [seed for seed in self._seeds(name) if seed not in self.seeds]:
            raise ConfigError(
                f"{place}.seeds has {seeds[0]}, which grid.seeds has not; add it there or take it out here"
            )
        if "literature" in spec and not Path(spec["literature"]).is_file():
            raise ConfigError(f"{place}.literature = {spec['literature']!r}, but there is no such file; {WAY_OUT}")
        for method in self._drawn(name) if draw == "ablation" else []:
            if len(self.entries[method].budgets or self.budgets) != 1:
                raise ConfigError(
                    f"{place}.points has {method!r}, which is run at several budgets; "
                    f"give methods.{method} one of its own, such as `budgets: [full]`"
                )

    def _check_points(self, name: str, draw: str) -> None:
        spec, place = self.config["figures"][name], f"figures.{name}"
        for point in spec.get("points", []):
            needed, others = POINT_KEYS[draw]
            wrong = [key for key in needed if key not in point] + [key for key in point if key not in needed + others]
            if wrong:
                raise ConfigError(
                    f"a point of {place} has {', '.join(point)}, but the drawing {draw!r} takes "
                    f"{', '.join(needed + others)}; {WAY_OUT}"
                )
        values = [point["x"] for point in spec.get("points", [])]
        if draw == "ablation" and any(isinstance(x, str) for x in values):
            raise ConfigError(f"a point of {place} has a word as x, but the drawing {draw!r} takes numbers; {WAY_OUT}")
        if "default" in spec and spec["default"] not in values:
            raise ConfigError(
                f"{place}.default = {spec['default']!r} is no x of its points, which have {', '.join(map(str, values))}"
            )
        if draw == "training_curves" and spec.get("x") not in (None, "epochs", "seconds"):
            raise ConfigError(f"{place}.x = {spec['x']!r} is unknown; write epochs or seconds")
        if draw == "training_curves" and spec["metric"] not in CURVE_METRICS:
            known = ", ".join(CURVE_METRICS)
            raise ConfigError(f"{place}.metric = {spec['metric']!r} is not in curve.csv; write one of {known}")


def read_config(path: Path) -> dict:
    """Return one configuration file. Raises ConfigError if a mapping has a key twice: YAML silently keeps the last."""
    try:
        root = yaml.compose(Path(path).read_text(), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    nodes = [(root, "the configuration")]
    for node, place in nodes:  # grows
        if isinstance(node, yaml.SequenceNode):
            nodes += [(item, place) for item in node.value]
        if not isinstance(node, yaml.MappingNode):
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"{path}, line {line}: the key {key.value!r} stands in {place} already, "
                    f"in line {lines[key.value]}; keep one of them"
                )
            lines[key.value] = line
            nodes.append((value, key.value if node is root else f"{place}.{key.value}"))
    return yaml.safe_load(Path(path).read_text()) or {}


def module_file(module: str) -> str | None:
    """Return the source file of a module, relative to the working directory where it lies below it; None if unknown."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if found is None or found.origin is None:
        return None
    path = Path(found.origin)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _inherit(entries: dict, name: str, kind: str) -> tuple[list[str], dict]:
    """Return an entry's own name, the name it is `like`, and so on; and the entry with all that it inherits."""
    lineage = [name]
    while (parent := entries[lineage[-1]].get("like")) is not None:
        _check_names([parent], entries, kind, f"{kind}s.{lineage[-1]}.like")
        if parent in lineage:
            raise ConfigError(f"{kind}s.{name} is like itself, by way of {parent!r}; {WAY_OUT}")
        lineage.append(parent)
    merged: dict = {}
    for ancestor in reversed(lineage):
        merged = _merge(merged, entries[ancestor])
    return lineage, {key: value for key, value in merged.items() if key != "like"}


def _root(datasets: dict, lineage: list[str]) -> str:
    """Return the nearest entry that has `files` or `generate` itself: they are downloaded once, under its name."""
    return next((name for name in lineage if "files" in datasets[name] or "generate" in datasets[name]), lineage[-1])


def _entry(methods: dict, name: str) -> Entry:
    lineage, merged = _inherit(methods, name, "method")
    if "uses" not in merged:
        known = sorted(other for other, entry in methods.items() if "uses" in entry or "like" in entry)
        raise ConfigError(
            f"methods.{name} names no class; give it `uses: package.module:Class`, or `like:` another entry; "
            f"or is it one that is there: {did_you_mean(name, known)}"
        )
    starts_from = merged.get("starts_from")
    budgets = merged.get("budgets")
    return Entry(
        lineage=tuple(lineage),
        uses=merged["uses"],
        params=merged.get("params", {}),
        training=merged.get("training", {}),
        starts_from={"method": starts_from} if isinstance(starts_from, str) else starts_from,
        budgets=None if budgets is None else tuple(_check_budgets(budgets, f"methods.{name}.budgets")),
    )


def _merge(base: dict, over: dict) -> dict:
    """Return `base` overridden by `over`: mappings key by key, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _check_schema(config: dict, schema: Path) -> None:
    error = best_match(Draft202012Validator(yaml.safe_load(schema.read_text())).iter_errors(config))
    if error is not None:
        raise ConfigError(_describe(error))


def _describe(error: ValidationError) -> str:
    """Say in one line which value stands where, and what would be right there."""
    place = ".".join(map(str, error.absolute_path)) or "the configuration"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        return f"unknown key {unknown!r} in {place}; {did_you_mean(unknown, known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"key {missing!r} is missing in {place}; {WAY_OUT}"
    if error.validator == "enum":
        return f"{place} = {error.instance!r} is unknown; {did_you_mean(error.instance, error.validator_value)}"
    hint = ""
    if isinstance(error.instance, str) and "e" in error.instance and error.validator == "type":
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
    return f"{place} = {error.instance!r}: {error.message}{hint}; {WAY_OUT}"


def _check_names(names: Iterable[str], known: Iterable[str], kind: str, place: str) -> None:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            new = f"its entry goes under `{kind}s:`; " if place.startswith("grid.") and hint.startswith("known") else ""
            raise ConfigError(f"unknown {kind} {name!r} in {place}; {new}{hint}")


def _check_budgets(budgets: list[str], place: str) -> list[str]:
    parsed: dict[tuple, str] = {}
    for text in budgets:
        budget = Budget.parse(text)
        twin = parsed.setdefault((budget.kind, budget.amount), text)
        if twin != text:
            raise ConfigError(f"{place} has {twin!r} and {text!r}, which are the same budget; keep one of them")
    return budgets
