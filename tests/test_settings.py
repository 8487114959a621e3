"""A mapping from the configuration becomes a frozen dataclass, or its mistake is named."""

from dataclasses import FrozenInstanceError, asdict, dataclass
from typing import Literal

import pytest

from c2f.errors import ConfigError
from c2f.settings import check, from_mapping
from c2f.train import TrainingSettings


@dataclass(frozen=True)
class Kitchen:
    """One field of every kind that settings have."""

    chefs: int = 1
    heat: float = 0.5
    open: bool = False
    name: str = "x"
    dish: Literal["soup", "cake"] = "soup"
    limit: float | None = None

    def __post_init__(self):
        check(self.chefs >= 1, "chefs", self.chefs, "at least 1")


def test_given_values_replace_defaults_and_the_others_stay():
    assert from_mapping(Kitchen, {"chefs": 3, "dish": "cake"}, "k") == Kitchen(chefs=3, dish="cake")
    assert from_mapping(Kitchen, {}, "k") == Kitchen()


def test_a_whole_number_is_taken_where_a_number_is_wanted_and_stored_as_one():
    assert repr(from_mapping(Kitchen, {"heat": 1}, "k").heat) == "1.0"
    assert from_mapping(Kitchen, {"limit": None}, "k").limit is None
    assert from_mapping(Kitchen, {"limit": 3}, "k").limit == 3


def test_settings_cannot_be_changed_later():
    with pytest.raises(FrozenInstanceError):
        from_mapping(Kitchen, {}, "k").chefs = 5


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"chef": 1}, "unknown key 'chef' in methods.x.params; did you mean 'chefs'?"),
        ({"zzz": 1}, "unknown key 'zzz' in methods.x.params; known: chefs, dish, heat, limit, name, open"),
        ({"chefs": "two"}, "methods.x.params.chefs = 'two' is not a whole number"),
        ({"chefs": 1.5}, "methods.x.params.chefs = 1.5 is not a whole number"),
        ({"chefs": True}, "methods.x.params.chefs = True is not a whole number"),
        ({"heat": "1e-3"}, "methods.x.params.heat = '1e-3' is not a number"),
        ({"heat": True}, "methods.x.params.heat = True is not a number"),
        ({"heat": float("nan")}, "methods.x.params.heat = nan is not a number"),
        ({"heat": float("inf")}, "methods.x.params.heat = inf is not a number"),
        ({"limit": float("inf")}, "methods.x.params.limit = inf is not a number or null"),
        ({"open": 1}, "methods.x.params.open = 1 is not true or false"),
        ({"name": None}, "methods.x.params.name = None is not text"),
        ({"dish": "pie"}, "methods.x.params.dish = 'pie' is not one of 'soup', 'cake'"),
        ({"limit": "none"}, "methods.x.params.limit = 'none' is not a number or null"),
        ({"chefs": 0}, "methods.x.params: chefs = 0, but it must be at least 1"),
        (["chefs"], "methods.x.params = ['chefs'] is not a mapping of keys to values"),
    ],
)
def test_a_mistake_is_named_with_value_place_and_what_is_wanted(mapping, message):
    with pytest.raises(ConfigError) as error:
        from_mapping(Kitchen, mapping, "methods.x.params")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("lr", 0.0, "above 0"),
        ("l2", -1e-9, "at least 0"),
        ("batch_size", 0, "at least 1"),
        ("negatives", 0, "at least 1"),
        ("max_epochs", 0, "at least 1"),
        ("evaluate_every", 0, "at least 1"),
        ("patience", 0, "at least 1"),
        ("clip_value", 0, "above 0, or null"),
        ("max_seconds", -1, "above 0, or null"),
        ("valid_users", 1, "at least 2 (one has no spread), or null"),
        ("select_on", "ndcg@10", "one of 'ndcg@5', 'ndcg@20', 'recall@20'"),
        ("device", "gpu", "one of 'auto', 'cpu', 'cuda'"),
    ],
)
def test_training_settings_out_of_range_are_refused(key, value, wanted):
    with pytest.raises(ConfigError) as error:
        from_mapping(TrainingSettings, {key: value}, "training")
    assert f"{key} = {value!r}" in str(error.value)
    assert wanted in str(error.value)


def test_resolved_settings_read_again_are_the_same():
    settings = from_mapping(TrainingSettings, {"lr": 0.1, "clip_value": 3}, "training")
    assert from_mapping(TrainingSettings, asdict(settings), "training") == settings
