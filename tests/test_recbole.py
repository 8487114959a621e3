"""RecBole's models on our split: what crosses over in either direction, and a test for each shim that RecBole needs."""

import json
import logging
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import steps
import torch
import yaml
from conftest import interactions

from baselines import recbole_models
from baselines.recbole_models import (
    RecBoleModel,
    RecBoleScores,
    isolated,
    make_config,
    make_dataset,
    make_model,
    named_errors,
    train,
    trained_state,
)
from c2f.budget import Budget
from c2f.decoding import propagate
from c2f.errors import ConfigError, MethodError
from c2f.evaluate import means, score_users
from c2f.graph import Graph
from c2f.method import build
from c2f.settings import from_mapping
from c2f.train import Trainer, TrainingSettings

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
USERS, ITEMS = 30, 25  # of which user 29 and item 24 have no pair at all, and item 23 only a validation pair


def random_split(seed=0):
    """(graph, valid): about 12 training and 3 validation pairs per user."""
    part = np.random.default_rng(seed).choice(3, p=[0.4, 0.5, 0.1], size=(USERS, ITEMS))  # none, train, valid
    part[29], part[:, 23:] = 0, 0
    part[0, 23] = 2
    train_pairs, valid = (interactions(np.argwhere(part == p), USERS, ITEMS) for p in (1, 2))
    return Graph(train_pairs), valid


def params(model, **changes):
    fast = {"epochs": 3, "train_batch_size": 64, "learning_rate": 0.01}
    return RecBoleModel.Params(model=model, **(fast | changes))


def fitted(model, split, seed=1, max_seconds=None, **changes):
    """(method, trainer) after RecBole's training."""
    graph, valid = split
    trainer = Trainer(graph, valid, TrainingSettings(device="cpu", max_seconds=max_seconds), seed)
    method = build(RecBoleModel, Budget.parse("full"), graph, params(model, **changes), seed)
    method.fit(trainer)
    return method, trainer


def scores_of(arrays, model, graph, **changes):
    """The scores (U, I) from the artifact's arrays alone."""
    return RecBoleModel.scorer(arrays, params(model, **changes), graph, CPU).scores(np.arange(graph.num_users)).numpy()


# What RecBole is given ------------------------------------------------------------------------------------------------


def test_its_ids_are_ours_plus_one_and_users_and_items_without_a_pair_exist():
    graph, valid = random_split()
    with isolated():
        config = make_config(params("BPR"), CPU)
        train_data, valid_data, _ = make_dataset(config, graph.train, valid, valid).build()
        assert (train_data.user_num, train_data.item_num) == (1 + USERS, 1 + ITEMS)  # 0 is the pad row
        for theirs, ours in ((train_data, graph.train), (valid_data, valid)):
            assert theirs.inter_feat["user_id"].tolist() == (ours.user + 1).tolist()
            assert theirs.inter_feat["item_id"].tolist() == (ours.item + 1).tolist()
        assert train_data.token2id("item_id", "24") == 25


def test_it_is_handed_the_training_pairs_and_twice_the_validation_pairs(monkeypatch):
    graph, valid = split = random_split()
    handed = []
    original = recbole_models.make_dataset
    monkeypatch.setattr(
        recbole_models, "make_dataset", lambda config, *parts: handed.append(parts) or original(config, *parts)
    )
    fitted("BPR", split)
    assert handed[0] == (graph.train, valid, valid)  # in training; RecBole insists on a third part
    assert handed[1:] == [(graph.train,)]  # to rebuild the model


def test_every_key_of_its_configuration_is_one_that_it_knows():
    from importlib.util import find_spec

    folder = Path(find_spec("recbole").origin).parent / "properties"
    known = {
        key for name in ("overall", "dataset/sample") for key in yaml.safe_load((folder / f"{name}.yaml").read_text())
    }
    with isolated():
        config = make_config(params("EASE"), CPU, seed=5, select_on="ndcg@5")
        assert set(config.external_config_dict) <= known
        assert config["device"] == CPU
        found = [config[key] for key in ("seed", "epochs", "learning_rate", "valid_metric", "topk", "reg_weight")]
        assert found == [5, 3, 0.01, "ndcg@5", [5, 20], 250.0]


def test_a_validation_part_without_pairs_is_named():
    graph, _ = random_split()
    with pytest.raises(MethodError, match="this dataset has none"):
        fitted("BPR", (graph, interactions(np.empty((0, 2), dtype=int), USERS, ITEMS)))


# What may be asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "EAES"}, "model = 'EAES' is no general recommender of RecBole; did you mean 'EASE'"),
        ({"model": "Pop"}, "use the entry `popularity`"),
        ({"model": "SASRec"}, "is no general recommender"),
        (
            {"settings": {"embeding_size": 64}},
            "unknown key 'embeding_size' in the settings of RecBole's BPR; did you mean 'embedding_size'",
        ),
        (
            {"settings": {"train_neg_sample_args": {"sample_nums": 5}}},
            "unknown key 'sample_nums' in train_neg_sample_args of",
        ),
        ({"settings": {"topk": [10]}}, "unknown key 'topk'"),
        ({"settings": {"eval_step": 0}}, "eval_step = 0, but it must be at least 1"),
        ({"settings": 64}, "methods.x.params.settings = 64 is not a mapping"),
        ({"num_layers": 3}, "num_layers = 3, but it must be 0"),
        ({"item_bias": True}, "item_bias = True"),
        ({"epochs": 0}, "epochs = 0"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
    ],
    ids=str,
)
def test_what_recbole_would_ignore_or_not_know_is_refused_before_anything_runs(given, message):
    with pytest.raises(ConfigError) as error:
        from_mapping(RecBoleModel.Params, given, "methods.x.params")
    assert message in str(error.value)


def test_checking_an_entry_does_not_import_recbole():
    code = (
        "import sys, baselines.recbole_models as m; m.RecBoleModel.Params(model='EASE', settings={'reg_weight': 9.0})"
    )
    subprocess.run([sys.executable, "-c", code + "; sys.exit('recbole' in sys.modules)"], check=True, cwd=ROOT)


def test_settings_reach_the_model_and_stay_as_they_were_given():
    settings = {"train_neg_sample_args": {"sample_num": 3}}
    with isolated():
        config = make_config(params("SimpleX", settings=settings), CPU)
        assert config["train_neg_sample_args"]["sample_num"] == 3
        assert config["train_neg_sample_args"]["distribution"] == "uniform"  # filled in by RecBole, in its own copy
    assert settings == {"train_neg_sample_args": {"sample_num": 3}}


# What comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF"])
def test_our_validation_metrics_of_its_best_epoch_are_those_that_it_selected_by(model):
    graph, valid = split = random_split()
    method, _ = fitted(model, split)
    scorer = RecBoleModel.scorer(method.export(), method.params, graph, CPU)
    ours = means(score_users(scorer, graph.train, valid, [5, 20]))
    theirs = method.details["validation"]
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)
    assert method.details["epochs"] == 3
    assert 1 <= method.details["best_epoch"] <= 3


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("BPR", {}),
        ("EASE", {}),
        ("ItemKNN", {"k": 4}),
        ("ItemKNN", {"k": 4, "knn_method": "user"}),
        ("SLIMElastic", {"alpha": 0.01}),
        ("LightGCN", {"n_layers": 3}),
        ("SimpleX", {"history_len": 5}),  # of 12 items a user on average: which, is drawn
        ("MultiVAE", {}),
        ("NeuMF", {}),
    ],
)
def test_the_arrays_alone_give_its_own_scores_back(model, settings):
    graph, valid = random_split()
    given = params(model, settings=settings)
    trainer = Trainer(graph, valid, TrainingSettings(device="cpu"), 1)
    with isolated():
        config = make_config(given, CPU, seed=3)
        theirs, _ = train(config, graph.train, valid, 3, trainer)
        arrays = trained_state(theirs, 3)
    live = RecBoleScores(theirs, config, graph).scores(np.arange(USERS)).numpy()
    assert live.shape == (USERS, ITEMS)
    assert len(np.unique(live)) > 10
    np.testing.assert_allclose(scores_of(arrays, model, graph, settings=settings), live, rtol=1e-6)
    if model == "SimpleX":
        assert not np.allclose(scores_of(arrays | {"seed": arrays["seed"] + 1}, model, graph, settings=settings), live)


def test_a_run_from_the_command_line_is_evaluated_from_its_artifact(tmp_path):
    data = steps.prepared(tmp_path)
    entry = {
        "uses": "baselines.recbole_models:RecBoleModel",
        "params": {"model": "EASE", "settings": {"reg_weight": 9.0}},
    }
    record = steps.trained(data, steps.resolved(tmp_path, "recbole-ease", entry), tmp_path / "run")
    assert (record["status"], record["details"]["recbole"]) == ("ok", "1.2.1")
    assert record["footprint"]["numbers"] <= (48 + 1) ** 2
    assert record["footprint"]["stored"] == 4 * (48 + 1) ** 2 + 4  # the seed
    assert record["footprint"]["serving"] > record["footprint"]["stored"]  # the user's own items
    assert steps.step("evaluate", run=tmp_path / "run", data=data, output=tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["means"]["recall@20"] > 0.4  # a block has 12 of the 48 items


def test_ease_is_its_closed_form():
    # B = I - P diag(1 / diag P) with P = (X^T X + 250 I)^-1, and 0 on the diagonal; scores X B.
    graph, _ = split = random_split()
    method, _ = fitted("EASE", split)
    x = graph.train.csr().toarray()
    inverse = np.linalg.inv(x.T @ x + 250 * np.eye(ITEMS))
    similarity = -inverse / np.diag(inverse)
    np.fill_diagonal(similarity, 0)
    np.testing.assert_allclose(scores_of(method.export(), "EASE", graph), x @ similarity, atol=1e-6)
    assert method.export()["item_similarity"].nbytes == 4 * (ITEMS + 1) ** 2  # with the pad row and column


def test_itemknn_stores_its_neighbours_weights_and_not_the_scores_of_all_pairs():
    graph, _ = split = random_split()
    method, _ = fitted("ItemKNN", split, settings={"k": 4})
    arrays, x = method.export(), graph.train.csr().toarray()
    norms = np.sqrt(x.sum(axis=0))
    cosine = x.T @ x / (np.outer(norms, norms) + 1e-6)
    np.fill_diagonal(cosine, 0)
    best = np.sort(cosine, axis=0)[-4:].sum()
    assert arrays["w.data"].sum() == pytest.approx(best, rel=1e-5)  # the four nearest of each item
    assert arrays["w.indices"].dtype == np.uint8
    assert method.counted == ("w.data",)
    assert set(arrays) == {"seed", "w.data", "w.indices", "w.indptr", "w.shape"}


def test_its_lightgcn_scores_as_ours_does_from_the_same_table():
    graph, _ = split = random_split()
    method, _ = fitted("LightGCN", split, settings={"n_layers": 3})
    users, items = (method.export()[f"{side}_embedding.weight"][1:] for side in ("user", "item"))
    final = propagate(np.vstack([users, items]), graph.adjacency, 3)
    ours = final[:USERS] @ final[USERS:].T
    np.testing.assert_allclose(scores_of(method.export(), "LightGCN", graph, settings={"n_layers": 3}), ours, atol=1e-5)


def test_require_pow_makes_its_regulariser_half_the_mean_of_the_squared_norms():
    with isolated():
        from recbole.model.loss import EmbLoss

        rows = [torch.randn(7, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
        squares = sum(row.square().sum() for row in rows)
        assert EmbLoss()(*rows, require_pow=True).item() == pytest.approx(squares.item() / (2 * 7), rel=1e-6)
        norms = sum(row.norm() for row in rows)
        assert EmbLoss()(*rows).item() == pytest.approx(norms.item() / 7, rel=1e-6)


def test_only_a_model_that_scores_by_its_weights_alone_is_spared_the_training_graph():
    graph, _ = split = random_split()
    other, _ = random_split(seed=1)
    for model, needs_graph in (("BPR", False), ("ENMF", False), ("LINE", False), ("NeuMF", False), ("LightGCN", True)):
        method, _ = fitted(model, split, epochs=1)
        same = np.array_equal(scores_of(method.export(), model, graph), scores_of(method.export(), model, other))
        assert (method.needs_graph, same) == (needs_graph, not needs_graph)


def test_a_model_that_scores_only_given_pairs_is_asked_for_all_of_them():
    class Pairs(torch.nn.Module):
        def full_sort_predict(self, interaction):
            raise NotImplementedError

        def predict(self, interaction):
            return interaction["user_id"] * 100.0 + interaction["item_id"]

    graph, _ = random_split()
    with isolated():
        scorer = RecBoleScores(Pairs(), make_config(params("NeuMF"), CPU), graph)
    expected = [[100 * (user + 1) + item + 1 for item in range(ITEMS)] for user in (4, 2)]
    assert scorer.scores(np.array([4, 2])).tolist() == expected


def test_scores_come_in_blocks_and_may_be_overwritten(monkeypatch):
    graph, _ = split = random_split()
    method, _ = fitted("LightGCN", split)
    whole = scores_of(method.export(), "LightGCN", graph)
    monkeypatch.setattr(recbole_models, "PAIRS_AT_ONCE", 7 * ITEMS)
    np.testing.assert_allclose(scores_of(method.export(), "LightGCN", graph), whole, rtol=1e-5)
    scorer = RecBoleModel.scorer(method.export(), method.params, graph, CPU)
    scorer.scores(np.arange(3)).fill_(-torch.inf)
    np.testing.assert_allclose(scorer.scores(np.arange(3)), whole[:3], rtol=1e-5)


def test_another_seed_gives_other_weights_and_the_same_seed_the_same():
    split = random_split()
    one, again, other = (fitted("BPR", split, seed=seed)[0].export()["user_embedding.weight"] for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)


def test_the_seed_of_its_construction_decides_all_three_generators():
    graph, _ = random_split()
    after = []
    with isolated():
        config = make_config(params("BPR"), CPU)
        pairs = make_dataset(config, graph.train).build()[0]
        for _ in range(2):
            make_model(config, pairs, seed=3)
            after.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
    assert after[0] == after[1]


def test_a_model_whose_saved_weights_do_not_give_its_scores_back_is_not_kept(monkeypatch):
    monkeypatch.setattr(recbole_models, "trained_state", lambda model, seed: damaged(trained_state(model, seed)))
    with pytest.raises(MethodError, match="what RecBole saves of BPR does not give its scores back"):
        fitted("BPR", random_split())


def damaged(arrays):
    return arrays | {"user_embedding.weight": arrays["user_embedding.weight"] * 1.001}


def test_out_of_time_it_keeps_the_best_epoch_so_far():
    method, trainer = fitted("BPR", random_split(), max_seconds=1e-6, epochs=50)
    assert trainer.timed_out
    assert (method.details["epochs"], method.details["best_epoch"]) == (1, 1)
    assert not fitted("EASE", random_split(), max_seconds=1e-6)[1].timed_out  # it is what it is at once


def test_what_goes_wrong_inside_recbole_is_named_and_out_of_memory_stays_what_it_is():
    with pytest.raises(MethodError, match=r"RecBole's SimpleX failed: ValueError: aggregator must be mean"):
        fitted("SimpleX", random_split(), settings={"aggregator": "median"})
    with pytest.raises(MemoryError), named_errors("EASE"):
        raise MemoryError


# Shims: what RecBole 1.2.1 needs on this stack, and what it would leave behind ----------------------------------------


def test_names_of_older_numpy_and_scipy_are_there_inside_and_gone_outside():
    before = {name: vars(np).get(name) for name in ("float", "float_", "bool", "long", "unicode_", "object")}
    with isolated():
        make_config(params("EASE"), CPU)  # sets some of them itself
        assert vars(np)["float_"] is np.float64
        assert vars(np)["unicode_"] is np.str_
        matrix = sp.dok_matrix((2, 2))
        matrix._update({(0, 1): 3.0})
        assert matrix.toarray().tolist() == [[0, 3], [0, 0]]
    assert {name: vars(np).get(name) for name in before} == before
    assert not hasattr(sp.dok_matrix, "_update")


def test_the_command_line_of_this_process_is_not_read_as_settings(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--epochs=7", "--reg_weight=1"])
    with isolated():
        config = make_config(params("EASE"), CPU)
        assert (config["epochs"], config["reg_weight"]) == (3, 250.0)
    assert sys.argv[1] == "--epochs=7"


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    with isolated():
        assert make_config(params("BPR"), torch.device("cuda"))["gpu_id"] == "3"
        make_config(params("BPR"), CPU)  # RecBole hides every device then
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"  # for its own checkpoints
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


def test_pyyaml_reads_numbers_as_before():
    with isolated():
        make_config(params("EASE"), CPU)
        assert yaml.load("1e-5", yaml.FullLoader) == 1e-5  # RecBole's addition
    assert yaml.load("1e-5", yaml.FullLoader) == "1e-5"


def test_the_global_generators_go_on_where_they_were():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    before = state()
    with isolated():
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        assert all(one != other for one, other in zip(state(), before, strict=True))
    fitted("SimpleX", random_split())  # draws from all three
    assert state() == before


def test_it_is_quiet_and_leaves_logging_and_warnings_as_they_were(capfd, caplog, recwarn):
    logging.disable(logging.NOTSET)
    filters, handlers = list(warnings.filters), list(logging.root.handlers)
    for model in ("LightGCN", "SimpleX"):  # one calls what torch is about to drop, the other warns of long histories
        fitted(model, random_split(), epochs=1)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert [warning for warning in recwarn if "recbole" in str(warning.filename)] == []
    assert (logging.root.manager.disable, warnings.filters, logging.root.handlers) == (0, filters, handlers)


def test_it_writes_into_a_temporary_folder_that_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with isolated():
        inside = Path.cwd()
        Path("log_tensorboard").mkdir()
    assert not inside.exists()
    assert Path.cwd() == tmp_path
    fitted("BPR", random_split())
    assert list(tmp_path.iterdir()) == []


def test_the_state_is_put_back_after_an_error_too():
    folder, argv = Path.cwd(), sys.argv
    with pytest.raises(ZeroDivisionError), isolated():
        raise ZeroDivisionError
    assert (Path.cwd(), sys.argv) == (folder, argv)
    assert not hasattr(sp.dok_matrix, "_update")


def test_what_imports_ray_is_never_imported():
    fitted("BPR", random_split())
    assert not {"ray", "recbole.quick_start"} & set(sys.modules)
