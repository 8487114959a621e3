"""Reading a mapping from the configuration into a frozen dataclass, with the mistakes named."""

import dataclasses
import math
import types
import typing

from c2f.errors import ConfigError, did_you_mean


def from_mapping(cls, mapping: dict, place: str):
    """Return cls(**mapping) after checking keys and types; `place` names it in messages. Raises ConfigError."""
    if not isinstance(mapping, dict):
        raise ConfigError(f"{place} = {mapping!r} is not a mapping of keys to values")
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    for key, value in mapping.items():
        if key not in fields:
            raise ConfigError(f"unknown key {key!r} in {place}; {did_you_mean(key, fields)}")
        if not _fits(value, hints[key]):
            raise ConfigError(f"{place}.{key} = {value!r} is not {_describe(hints[key])}")
    values = {key: float(value) if hints[key] is float else value for key, value in mapping.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def check(condition: bool, key: str, value, wanted: str) -> None:
    """Raise ConfigError unless the condition holds; for the range checks in a dataclass's __post_init__."""
    if not condition:
        raise ConfigError(f"{key} = {value!r}, but it must be {wanted}")


def _fits(value, hint) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    return "null" if hint is type(None) else names.get(hint, str(hint))
