"""Models of the library RecBole as reference rows: trained by RecBole on our split, ranked by our evaluator.

Xu et al., "Towards a More User-Friendly and Easy-to-Use Benchmark Library for Recommender Systems", SIGIR 2023,
https://arxiv.org/abs/2211.15148; release 1.2.1. https://recbole.io/model_list.html names the paper of each model.

    to RecBole      the training pairs; the validation pairs as its validation part, and as its test part
    from RecBole    the weights of its best epoch, or the matrix that a model such as EASE is (`trained_state`)
    scores          RecBole's `full_sort_predict`, on its model rebuilt around the training pairs with these arrays

Deviations from RecBole, with reasons:
* ids: RecBole numbers users and items as they appear; here its id is ours + 1, so that all of ours exist in its tables
  and a rebuilt model needs no dictionary. 0 is its pad row: stored and charged as it is, never recommended;
* it stops and selects by the metric of `training: select_on`, unrounded (RecBole: MRR@10, rounded to 4 digits);
* of ItemKNN the neighbours' weights are stored, not RecBole's (U, I) product of the training pairs with them;
* scores are asked for in blocks of 2^20 pairs (RecBole: 4,096): faster, and no score depends on it.

Of `training:` only device, select_on and max_seconds (looked at after each evaluation) reach RecBole's trainer. What it
has no place for: an interrupted run starts again, and there is no curve. `details` has epochs, seconds, the validation
metrics and the number of parameters as RecBole counts them: pad rows included, and 1 for EASE and ItemKNN (a dummy).

Entry `recbole-lightgcn` is `lightgcn` as RecBole trains it: the same d, L, learning rate, batch, evaluations, patience
and L2. With `require_pow` RecBole's regulariser is reg_weight * Q / (2 batch), which is METHODS.md 1.5 with lambda =
reg_weight; without it, a sum of norms that are not squared. What still differs: each training pair is a positive once
an epoch (S-inter of METHODS.md 1.4; ours draws users: 1 % better on ml-1m, results/published), weights start
Xavier-uniform (ours N(0, 0.1^2)), degrees have 1e-7 added, the loss is -log(1e-10 + sigmoid), and an evaluation as good
as the best replaces it.
"""

import contextlib
import copy
import logging
import os
import random
import re
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.sparse as sp
import torch
import yaml

from c2f.api import ConfigError, EmbeddingMethod, Float, MethodError, check, did_you_mean, id_array

TRAINING_KEYS = ("learner", "weight_decay", "clip_grad_norm", "train_neg_sample_args", "eval_step", "require_pow")
"""RecBole's keys outside a model's own that `settings` may hold; all others are the benchmark's or fields of Params."""
REFUSED = {
    "Pop": "it counts batches and sampled negatives (RecBole issue 1844); use the entry `popularity`",
    "ADMMSLIM": "its trained matrix is in nothing that RecBole saves, and noise is added to its scores",
    "NCEPLRec": "its trained vectors are in nothing that RecBole saves",
    "AsymKNN": "what RecBole saves gives its scores back only as the whole (U, I) matrix of them; use ItemKNN",
    "RaCT": "it is trained by three runs that hand each other files",
}
WEIGHTS_ALONE = ("BPR", "ConvNCF", "ENMF", "LINE", "NeuMF")
"""The models that score with their weights alone; all others need the training pairs."""
REMADE = ("interaction_matrix", "pred_mat", "restore_user_e", "restore_item_e", "i_embedding")
"""What RecBole saves beside the weights and is made anew from them and the training pairs."""
PAIRS_AT_ONCE = 2**20


class RecBoleModel(EmbeddingMethod):
    """RecBole's weights of one model as they are (float32, pad rows with them), and the seed of its construction.

    For ItemKNN, EASE and SLIMElastic the item similarity, sparse as csr parts with small ids. A budget is only compared
    with that size: raises BudgetError below it.
    """

    search_space = {"num_layers": None, "learning_rate": Float(5e-4, 1e-2, log=True)}

    @dataclass(frozen=True)
    class Params(EmbeddingMethod.Params):
        """model: a general recommender of RecBole by its name there; settings: its hyperparameters by RecBole's names.

        epochs, stopping_step (evaluations without a better one), train_batch_size (pairs, negatives included) and
        learning_rate: RecBole's, with RecBole's defaults. A model's layers are among its settings; no item bias.
        """

        num_layers: int = 0
        model: str = "BPR"
        settings: dict = field(default_factory=dict)
        epochs: int = 300
        stopping_step: int = 10
        train_batch_size: int = 2048
        learning_rate: float = 1e-3

        def __post_init__(self):
            super().__post_init__()
            check(self.num_layers == 0, "num_layers", self.num_layers, "0: give the layers in `settings`")
            check(not self.item_bias, "item_bias", self.item_bias, "false: RecBole's models have their own")
            for name in ("epochs", "train_batch_size"):
                check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
            check(self.stopping_step >= 0, "stopping_step", self.stopping_step, "at least 0")
            check(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
            known = known_settings(self.model)
            check_keys(self.settings, known, f"the settings of RecBole's {self.model}")
            eval_step = self.settings.get("eval_step", 1)
            check(eval_step >= 1, "eval_step", eval_step, "at least 1: RecBole chooses the epoch by its evaluations")

    @classmethod
    def from_budget(cls, budget, graph, params):
        method = cls(params)
        if budget.kind != "full":  # else the first model would only be made to be thrown away
            with isolated(), named_errors(params.model):
                config = make_config(params, torch.device("cpu"))
                pairs = make_dataset(config, graph.train).build()[0]
                method.hold(trained_state(make_model(config, pairs, seed=0), seed=0))
            sizes = {name: array.size for name, array in method.arrays.items()}
            numbers = sum(sizes[name] for name in counted_names(method.arrays))
            budget.require(numbers=numbers, nbytes=sum(array.nbytes for array in method.arrays.values()))
        return method

    def __init__(self, params):
        super().__init__(params)
        self.needs_graph = params.model not in WEIGHTS_ALONE

    def hold(self, arrays):
        """Keep what `export` returns."""
        self.arrays, self.counted = arrays, counted_names(arrays)
        self.kinds = {name: "other" for name in arrays if name == "seed" or name.endswith(".shape")}

    def fit(self, trainer, start=None):
        if not len(trainer.valid):
            raise MethodError("RecBole chooses the epoch by validation pairs, and this dataset has none")
        seed, graph = int(trainer.generator("recbole").integers(2**31)), trainer.graph.graph
        with isolated(), named_errors(self.params.model):
            config = make_config(self.params, trainer.device, seed, trainer.settings.select_on)
            model, self.details = train(config, graph.train, trainer.valid, seed, trainer)
            self.hold(trained_state(model, seed))
            trained = RecBoleScores(model, config, graph)
        users = np.arange(min(graph.num_users, 256))
        restored = self.scorer(self.arrays, self.params, graph, trainer.device)
        expected = trained.scores(users)
        if not (restored.scores(users) - expected).abs().max() <= 1e-4 * (expected.max() - expected.min()):
            raise MethodError(
                f"what RecBole saves of {self.params.model} does not give its scores back (they depend on chance, or "
                "on something beside its weights), so it cannot be ranked from its artifact; choose another model"
            )

    def export(self):
        return self.arrays

    @classmethod
    def scorer(cls, arrays, params, graph, device):
        with isolated():
            config = make_config(params, device)
            pairs = make_dataset(config, graph.train).build()[0]
            return RecBoleScores(restored_model(config, pairs, arrays), config, graph)


class RecBoleScores:
    """A trained model of RecBole as a scorer of our user and item ids."""

    def __init__(self, model, config, graph):
        self.model, self.config = model.eval(), config
        self.num_users, self.num_items = graph.num_users, graph.num_items

    @property
    def cached_bytes(self):
        """A score for every pair: in general nothing smaller answers without the training pairs."""
        return 4 * self.num_users * self.num_items

    @torch.no_grad()
    def scores(self, users):
        with isolated():
            rows_at_once = max(1, PAIRS_AT_ONCE // self.num_items)
            blocks = torch.from_numpy(users.astype(np.int64) + 1).to(self.config["device"]).split(rows_at_once)
            return torch.cat([self._block(block) for block in blocks])

    def _block(self, users):
        """Return scores (rows, I) for RecBole's user ids (rows,)."""
        from recbole.data.interaction import Interaction

        uid, iid = self.config["USER_ID_FIELD"], self.config["ITEM_ID_FIELD"]
        try:
            flat = self.model.full_sort_predict(Interaction({uid: users}))
        except NotImplementedError:  # NeuMF and others score only given pairs
            every = torch.arange(self.num_items + 1, device=users.device)
            pairs = [Interaction({uid: user.expand(len(every)), iid: every}) for user in users]
            flat = torch.cat([self.model.predict(one).view(-1) for one in pairs])
        return flat.view(len(users), -1)[:, 1:].float()


# What crosses over ----------------------------------------------------------------------------------------------------


def make_dataset(config, *parts):
    """Return RecBole's dataset of each part (Interactions), read from benchmark files; its ids are ours + 1."""
    from recbole.data.dataset import Dataset

    sizes = {config["USER_ID_FIELD"]: parts[0].num_users, config["ITEM_ID_FIELD"]: parts[0].num_items}

    class OwnIds(Dataset):
        def _remap(self, remap_list):
            for features, name, _ in remap_list:
                features[name] = features[name].astype(np.int64) + 1
                tokens = ["[PAD]", *map(str, range(sizes[name]))]
                self.field2id_token[name] = np.array(tokens)
                self.field2token_id[name] = {token: number for number, token in enumerate(tokens)}

    folder = Path(config["data_path"])
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(place) for place in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        header = "\t".join(f"{column}:token" for column in sizes)
        path = folder / f"{config['dataset']}.{name}.inter"
        np.savetxt(path, np.column_stack([part.user, part.item]), "%d", delimiter="\t", header=header, comments="")
    config["benchmark_filename"] = names
    return OwnIds(config)


def make_config(params, device, seed=0, select_on="ndcg@20"):
    """Return RecBole's configuration, every key of it checked or written here. The working directory is `isolated`."""
    from recbole.config import Config

    values = {
        "data_path": os.getcwd(),
        "checkpoint_dir": os.path.join(os.getcwd(), "checkpoints"),
        "benchmark_filename": [],
        "gpu_id": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if device.type == "cuda" else "",
        "use_gpu": device.type == "cuda",
        "seed": seed,
        "show_progress": False,
        "epochs": params.epochs,
        "stopping_step": params.stopping_step,
        "train_batch_size": params.train_batch_size,
        "learning_rate": params.learning_rate,
        "eval_args": {"mode": "full"},
        "eval_batch_size": PAIRS_AT_ONCE,
        "metrics": ["NDCG", "Recall"],
        "topk": [5, 20],
        "valid_metric": select_on,
        "metric_decimal_place": 12,
        **copy.deepcopy(params.settings),  # Config fills in what a mapping leaves out
    }
    with mock.patch.dict(os.environ):  # Config sets CUDA_VISIBLE_DEVICES, also for the processor
        return Config(model=params.model, dataset="pairs", config_dict=values)


def make_model(config, pairs, seed):
    """Return the untrained model; what its constructor draws (SimpleX: items of long histories) is the seed's."""
    from recbole.utils import get_model

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (RecBole draws from the global generators)
    torch.manual_seed(seed)
    return get_model(config["model"])(config, pairs).to(config["device"])


def train(config, train_pairs, valid_pairs, seed, trainer):
    """Return the model with the weights of its best epoch, and what there is to say of its training."""
    from recbole.data import data_preparation
    from recbole.utils import ModelType, get_trainer

    began = time.perf_counter()
    parts = data_preparation(config, make_dataset(config, train_pairs, valid_pairs, valid_pairs))
    model = make_model(config, parts[0].dataset, seed)
    theirs = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trains_itself = model.type == ModelType.TRADITIONAL  # in its constructor: one epoch of nothing, weights as they are

    def stop_when_out_of_time(*_):
        limit = trainer.settings.max_seconds
        trainer.timed_out = limit is not None and trainer.seconds() >= limit
        if trainer.timed_out:
            raise TimeoutError

    with contextlib.closing(theirs.tensorboard), contextlib.suppress(TimeoutError):
        if trains_itself:
            theirs.fit(*parts[:2], verbose=False, saved=False)
        else:
            theirs.fit(*parts[:2], verbose=False, callback_fn=stop_when_out_of_time)
    best_epoch = 1
    if not trains_itself:
        best = torch.load(theirs.saved_model_file, map_location=config["device"])
        model.load_state_dict(best["state_dict"])
        model.load_other_parameter(best["other_parameter"])
        best_epoch = best["epoch"] + 1
    return model, {
        "recbole": version("recbole"),
        "epochs": len(theirs.train_loss_dict),
        "best_epoch": best_epoch,
        "validation": {name: float(value) for name, value in theirs.best_valid_result.items()},
        "parameters_with_pad_rows": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(time.perf_counter() - began, 3),
    }


def trained_state(model, seed):
    """Return the arrays of what RecBole saves of a model: weights, or the matrices of a model that has none."""
    from recbole.utils import ModelType

    arrays = {"seed": np.array([seed], dtype=np.uint32)}
    if model.type != ModelType.TRADITIONAL:  # such a model has one weight, for the sake of the optimiser
        arrays |= {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    for name, value in model.other_parameter().items():
        if name in REMADE:
            continue
        if sp.issparse(value):
            matrix = value.tocsr()
            arrays |= {
                f"{name}.data": matrix.data,
                f"{name}.indices": id_array(matrix.indices, matrix.shape[1]),
                f"{name}.indptr": id_array(matrix.indptr, matrix.nnz + 1),
                f"{name}.shape": np.array(matrix.shape, dtype=np.uint32),
            }
        else:
            arrays[name] = np.asarray(value)
    return arrays


def counted_names(arrays):
    """Return the arrays that hold numbers of the model: no ids, no shapes, no seed."""
    return tuple(name for name in arrays if not re.search(r"(^seed|\.indices|\.indptr|\.shape)$", name))


def restored_model(config, pairs, arrays):
    """Return the model of `trained_state` around the training pairs (RecBole's dataset). Raises KeyError."""
    from recbole.model.abstract_recommender import GeneralRecommender
    from recbole.utils import ModelType, get_model

    kind = get_model(config["model"])
    if kind.type != ModelType.TRADITIONAL:
        model = make_model(config, pairs, int(arrays["seed"][0]))
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in model.state_dict()})
        return model
    model = kind.__new__(kind)  # its own constructor would train it again
    GeneralRecommender.__init__(model, config, pairs)
    model.interaction_matrix = pairs.inter_matrix(form="csr").astype(np.float32)
    if config["model"] == "ItemKNN":
        by_user = config["knn_method"] == "user"
        weights = sparse_matrix("w", arrays)
        model.pred_mat = weights @ model.interaction_matrix if by_user else model.interaction_matrix @ weights
    elif "item_similarity" in arrays:
        model.item_similarity = arrays["item_similarity"]
    else:
        model.item_similarity = sparse_matrix("item_similarity", arrays)
    return model


def sparse_matrix(name, arrays):
    parts = arrays[f"{name}.data"], arrays[f"{name}.indices"].astype(np.int32), arrays[f"{name}.indptr"].astype(int)
    return sp.csr_matrix(parts, shape=tuple(arrays[f"{name}.shape"]))


# What may be asked for, without importing RecBole (three seconds) -----------------------------------------------------


@cache
def known_settings(model):
    """Return the keys that `settings` of this model may hold, with RecBole's defaults. Raises ConfigError."""
    spec = find_spec("recbole")
    if spec is None or spec.origin is None:
        raise ConfigError("RecBole is not installed; `pip install recbole==1.2.1`, or take its entries out of the grid")
    folder = Path(spec.origin).parent
    general = {path.stem for path in (folder / "model/general_recommender").glob("*.py")}
    files = {path.stem: path for path in (folder / "properties/model").glob("*.yaml") if path.stem.lower() in general}
    if model in REFUSED:
        raise ConfigError(f"model = {model!r}, which RecBole has, but {REFUSED[model]}")
    if model not in files:
        known = set(files) - set(REFUSED)
        raise ConfigError(f"model = {model!r} is no general recommender of RecBole; {did_you_mean(model, known)}")
    training = yaml.safe_load((folder / "properties/overall.yaml").read_text())
    return {key: training[key] for key in TRAINING_KEYS} | yaml.safe_load(files[model].read_text())


def check_keys(given, known, place):
    """Raise ConfigError for a key that RecBole would silently ignore."""
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {place}; {did_you_mean(key, known)}")
        if isinstance(value, dict) and isinstance(known[key], dict):
            check_keys(value, known[key], f"{key} of {place}")


# What RecBole 1.2.1 needs here, and what it changes in the process: one test each in tests/test_recbole.py ------------


@contextlib.contextmanager
def isolated():
    """Run RecBole in a temporary working directory with what it misses; put back what it changes in the process."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(old_names())
        stack.enter_context(mock.patch.object(sys, "argv", ["recbole"]))  # Config reads the command line
        stack.enter_context(mock.patch.dict(os.environ, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1"))  # its own checkpoints
        stack.enter_context(mock.patch.object(yaml.FullLoader, "yaml_implicit_resolvers", own_resolvers(), create=True))
        stack.enter_context(same_generators())
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recbole-"))  # log_tensorboard/, checkpoints
        stack.enter_context(contextlib.chdir(folder))
        yield


def old_names():
    """Return a context with the names of NumPy 1 and SciPy 1.12 that RecBole calls, or sets on the modules itself."""
    types = {"bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128, "object": np.object_}
    types |= {"str": np.str_, "unicode": np.str_, "long": np.int_}
    types |= {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    stack = contextlib.ExitStack()
    for name, kind in types.items():
        stack.enter_context(mock.patch.object(np, name, kind, create=True))
    update = lambda matrix, values: matrix._dict.update(values)  # noqa: E731
    stack.enter_context(mock.patch.object(sp.dok_matrix, "_update", update, create=True))
    return stack


def own_resolvers():
    """Return a copy of PyYAML's rules for scalars: RecBole adds its own to the shared ones."""
    return {first: list(rules) for first, rules in yaml.FullLoader.yaml_implicit_resolvers.items()}


@contextlib.contextmanager
def same_generators():
    """Put the global random generators back at the end: RecBole draws from all of them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def named_errors(model):
    """Raise MethodError with the model's name for what goes wrong inside RecBole; out of memory stays what it is."""
    try:
        yield
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise MethodError(f"RecBole's {model} failed: {type(error).__name__}: {error}") from error
