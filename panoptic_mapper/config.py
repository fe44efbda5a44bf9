"""Configuration as frozen dataclasses: the one place of a default, its meaning and its range.

A component declares `class FooConfig(Config)` with `param(...)` fields. YAML files, `key=value` words of the
command line and ROS parameters are all read through `config_from_dict`; an unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

ConfigT = TypeVar("ConfigT", bound="Config")
EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # a number for everybody but YAML 1.1, which wants a point in it


def param(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with its description and its range (`ge`, `gt`, `le` bounds; `choices` for words)."""
    metadata = {"help": help, "ge": ge, "gt": gt, "le": le, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def section(config_type: type[ConfigT]) -> Any:
    """A dataclass field that is itself a `Config`, with that config's defaults."""
    return dataclasses.field(default_factory=config_type)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of every component's configuration: checks types and ranges when it is made.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _coerced(getattr(self, field.name), types[field.name], f"{type(self).__name__}.{field.name}")
            object.__setattr__(self, field.name, value)
            _check_range(value, field.metadata, f"{type(self).__name__}.{field.name}")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One leaf of a configuration tree, as ROS parameters and the documentation need it."""

    name: str  # dotted, e.g. "keyframes.translation_m"
    default: Any
    help: str
    minimum: float | None  # inclusive; None = unbounded
    maximum: float | None
    choices: tuple[str, ...] | None


def iter_parameters(config_type: type[Config], prefix: str = "") -> Iterator[Parameter]:
    """All leaves of a configuration type, depth first, in the order of declaration."""
    types = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        name = f"{prefix}{field.name}"
        if _is_config(types[field.name]):
            yield from iter_parameters(types[field.name], f"{name}.")
            continue
        meta = field.metadata
        minimum = meta.get("ge") if meta.get("ge") is not None else meta.get("gt")
        yield Parameter(name, field.default, meta.get("help", ""), minimum, meta.get("le"), meta.get("choices"))


def config_from_dict(config_type: type[ConfigT], values: Mapping[str, Any], where: str = "config") -> ConfigT:
    """Builds a config from nested mappings; what is left out keeps its default.

    Raises:
        ValueError: an unknown key (the closest known one is named), a wrong type, or a value out of range.
    """
    types = typing.get_type_hints(config_type)
    names = [field.name for field in dataclasses.fields(config_type)]
    kwargs: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known keys: {', '.join(names)}"
            raise ValueError(f"{where}: unknown key '{key}'{hint}")
        if _is_config(types[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}.{key}: expected a group of settings, got {value!r}")
            value = config_from_dict(types[key], value, f"{where}.{key}")
        kwargs[key] = value
    try:
        return config_type(**kwargs)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def load_config(config_type: type[ConfigT], file: Path | None = None, overrides: Iterable[str] = ()) -> ConfigT:
    """Reads a YAML file, then `key=value` words such as `keyframes.translation_m=0.2` over it.

    Raises:
        ValueError: the file or a word cannot be read, or what it says does not fit `config_type`.
    """
    values: dict[str, Any] = {}
    where = "config"
    if file is not None:
        where = str(file)
        try:
            values = yaml.safe_load(Path(file).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"cannot read the configuration file {file}: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{file}: expected settings by name, got {type(values).__name__}")
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ValueError(f"expected key=value, got '{word}'")
        try:
            set_dotted(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ValueError(f"cannot read the value of '{word}': {error}") from error
    return config_from_dict(config_type, values, where)


def set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets `values["a"]["b"]` for the key "a.b", making the groups on the way."""
    *groups, leaf = key.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise ValueError(f"'{key}': '{group}' is a setting, not a group")
    values[leaf] = value


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested plain dictionaries, for JSON and YAML."""
    return dataclasses.asdict(config)


def _is_config(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, Config)


def _coerced(value: Any, type_: Any, where: str) -> Any:
    """Ints and texts like 1e-3 pass for floats and lists for tuples, as YAML reads them; nothing else is converted."""
    if _is_config(type_):
        return value
    origin = typing.get_origin(type_)
    if origin is tuple:
        args = typing.get_args(type_)
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        items = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(items) != len(value):
            raise ValueError(f"{where}: expected {len(items)} values, got {value!r}")
        return tuple(_coerced(v, t, where) for v, t in zip(value, items, strict=True))
    if origin is typing.Literal:
        return value
    if type_ is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type_ is float and isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    if type_ is float and isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-3 as a word
        except ValueError:
            pass
    if not isinstance(value, type_) or (type_ is not bool and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {getattr(type_, '__name__', type_)}, got {value!r}")
    return value


def _check_range(value: Any, meta: Mapping[str, Any], where: str) -> None:
    if meta.get("choices") and value not in meta["choices"]:
        raise ValueError(f"{where}: expected one of {', '.join(meta['choices'])}, got {value!r}")
    bad = (
        (meta.get("ge") is not None and not value >= meta["ge"] and f">= {meta['ge']}")
        or (meta.get("gt") is not None and not value > meta["gt"] and f"> {meta['gt']}")
        or (meta.get("le") is not None and not value <= meta["le"] and f"<= {meta['le']}")
    )
    if bad:
        raise ValueError(f"{where}: expected a value {bad}, got {value!r}")
