"""Configuration: what is read equals what was written, and everything else is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from panoptic_mapper.build import BuildConfig
from panoptic_mapper.config import Config, config_from_dict, iter_parameters, load_config, param, section, to_dict


@dataclass(frozen=True)
class Inner(Config):
    share: float = param(0.5, "a share", ge=0, le=1)
    size: float = param(1.0, "a size", gt=0)


@dataclass(frozen=True)
class Outer(Config):
    count: int = param(3, "how many", ge=1)
    on: bool = param(False, "whether")
    word: str = param("red", "a colour", choices=("red", "blue"))
    point: tuple[float, float] = param((0.0, 1.0), "two numbers")
    inner: Inner = section(Inner)


def test_defaults_and_overrides_meet() -> None:
    config = config_from_dict(Outer, {"count": 7, "inner": {"size": 2}, "point": [3, 4.5]})
    assert config == Outer(7, False, "red", (3.0, 4.5), Inner(0.5, 2.0))
    assert isinstance(config.inner.size, float)
    assert isinstance(config.point, tuple)


def test_to_dict_and_back() -> None:
    config = Outer(count=2, inner=Inner(share=0.25))
    assert to_dict(config) == {
        "count": 2,
        "on": False,
        "word": "red",
        "point": (0.0, 1.0),
        "inner": {"share": 0.25, "size": 1.0},
    }
    assert config_from_dict(Outer, to_dict(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coumt": 1}, r"config: unknown key 'coumt'; did you mean 'count'\?"),
        ({"zzz": 1}, "config: unknown key 'zzz'; known keys: count, on, word, point, inner"),
        ({"inner": {"shar": 1}}, r"config\.inner: unknown key 'shar'; did you mean 'share'\?"),
        ({"inner": 3}, r"config\.inner: expected a group of settings, got 3"),
        ({"count": 0}, r"Outer\.count: expected a value >= 1, got 0"),
        ({"count": 1.5}, r"Outer\.count: expected int, got 1\.5"),
        ({"count": True}, r"Outer\.count: expected int, got True"),
        ({"on": 1}, r"Outer\.on: expected bool, got 1"),
        ({"word": "green"}, r"Outer\.word: expected one of red, blue, got 'green'"),
        ({"point": [1]}, r"Outer\.point: expected 2 values, got \[1\]"),
        ({"point": 1}, r"Outer\.point: expected a list, got 1"),
        ({"inner": {"share": 1.1}}, r"config\.inner: Inner\.share: expected a value <= 1, got 1\.1"),
        ({"inner": {"size": 0}}, r"Inner\.size: expected a value > 0, got 0"),
        ({"inner": {"share": float("nan")}}, r"Inner\.share: expected a value >= 0, got nan"),
    ],
)
def test_wrong_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_dict(Outer, values)


def test_words_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("count: 5\ninner: {share: 0.125}\n")
    config = load_config(Outer, file, ["inner.size=4", "count=6", "word=blue", "on=true", "point=[1, 2]"])
    assert config == Outer(6, True, "blue", (1.0, 2.0), Inner(0.125, 4.0))


def test_exponents_without_a_point_are_numbers() -> None:
    assert load_config(Outer, None, ["inner.size=1e-3"]).inner.size == 1e-3  # text in YAML 1.1
    with pytest.raises(ValueError, match=r"Inner\.size: expected float, got 'big'"):
        load_config(Outer, None, ["inner.size=big"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("count", "expected key=value, got 'count'"),
        ("=3", "expected key=value, got '=3'"),
        ("count.x=3", r"config\.count|Outer\.count"),
        ("point=[1", r"point=\[1"),
    ],
)
def test_unreadable_words_are_named(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Outer, None, [word])


def test_a_setting_is_no_group() -> None:
    with pytest.raises(ValueError, match=r"'count\.x': 'count' is a setting"):
        load_config(Outer, None, ["count=3", "count.x=3"])


@pytest.mark.parametrize("text", ["count: [1", "- 1\n- 2", None])
def test_unreadable_files_are_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "settings.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"settings\.yaml"):
        load_config(Outer, file)


def test_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("cuont: 1")
    with pytest.raises(ValueError, match=r"settings\.yaml: unknown key 'cuont'; did you mean 'count'"):
        load_config(Outer, file)


def test_parameters_are_the_leaves_in_order() -> None:
    parameters = list(iter_parameters(Outer))
    assert [p.name for p in parameters] == ["count", "on", "word", "point", "inner.share", "inner.size"]
    share, size = parameters[4:]
    assert (share.default, share.help, share.minimum, share.maximum) == (0.5, "a share", 0, 1)
    assert (size.minimum, size.maximum) == (0, None)
    assert parameters[2].choices == ("red", "blue")


def test_every_setting_of_the_package_has_a_description_and_a_default_that_is_allowed() -> None:
    BuildConfig()
    parameters = list(iter_parameters(BuildConfig))
    assert len(parameters) > 40
    assert [p.name for p in parameters if len(p.help) < 5] == []
    assert len({p.name for p in parameters}) == len(parameters)
