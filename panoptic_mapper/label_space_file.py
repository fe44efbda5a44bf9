"""Label spaces as YAML files, read with every mistake named by its line.

name: my_space        # by which other files and settings speak of it; the file's name where it is left out
classes:
  - {id: 1, name: floor, thing: false, color: [146, 120, 94], synonyms: [ground]}
  - {id: 2, name: seat, thing: true, synonyms: [chair, couch, sofa, bench]}
maps_from:            # which classes of other spaces are which of these, where names and synonyms do not say so
  coco_panoptic: {rug-merged: floor}
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml

from panoptic_mapper.label_space import MAX_CLASS_ID, LabelSpace, SemanticClass

KEYS = ("name", "classes", "maps_from")
REQUIRED_CLASS_KEYS = ("id", "name", "thing")
CLASS_KEYS = (*REQUIRED_CLASS_KEYS, "color", "synonyms")


def read_label_space(file: Path) -> LabelSpace:
    """The label space of a YAML file.

    Raises:
        ValueError: all mistakes of the file, each as "file:line: what is wrong".
    """
    space, mistakes = parse_label_space(file)
    if space is None:
        raise ValueError("\n".join(mistakes))
    return space


def parse_label_space(file: Path) -> tuple[LabelSpace | None, list[str]]:
    """The label space of a YAML file, None if it has mistakes, and the mistakes in the order of their lines."""
    parser = _Parser()
    space = parser.space(Path(file))
    mistakes = [f"{file}:{line}: {what}" for line, what in sorted(parser.mistakes)]
    return (None if mistakes else space), mistakes


class _Parser:
    """Goes through the nodes of a file and collects what is wrong with them."""

    def __init__(self) -> None:
        self.mistakes: list[tuple[int, str]] = []  # line, from 1, and what is wrong there
        self._names: list[yaml.Node] = []
        self._synonyms: list[yaml.Node] = []
        self._ids: list[yaml.Node] = []

    def space(self, file: Path) -> LabelSpace | None:
        root = self._composed(file)
        if root is None:
            return None
        entries = self._entries(root, KEYS, "a label space")
        name = self._word(entries["name"], "name") if "name" in entries else file.stem
        classes = [self._class(node) for node in self._items(entries.get("classes"), "classes")]
        self._check_unique(self._ids, "id")
        self._check_unique([*self._names, *self._synonyms], "name")
        maps_from = self._maps_from(entries["maps_from"]) if "maps_from" in entries else {}
        if not classes and not self.mistakes:
            self._mistake(root, "has no classes")
        if self.mistakes:
            return None
        made = LabelSpace.from_classes(c for c in classes if c is not None)
        return dataclasses.replace(made, name=name or "", maps_from=maps_from)

    def _composed(self, file: Path) -> yaml.Node | None:
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.mistakes.append((mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}"))
            return None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.mistakes.append((1, f"cannot be read ({error})"))
            return None
        if root is None:
            self.mistakes.append((1, "is empty"))
        return root

    def _class(self, node: yaml.Node) -> SemanticClass | None:
        entries = self._entries(node, CLASS_KEYS, "a class")
        missing = [key for key in REQUIRED_CLASS_KEYS if key not in entries]
        if missing:
            if isinstance(node, yaml.MappingNode):
                self._mistake(node, f"class without {', '.join(missing)}")
            return None
        id = self._integer(entries["id"], "id", 1, MAX_CLASS_ID)
        name = self._word(entries["name"], "name")
        is_thing = _value(entries["thing"])
        if not isinstance(is_thing, bool):
            self._mistake(entries["thing"], f"thing: expected true or false, got {_shown(entries['thing'])}")
        synonym_nodes = self._items(entries.get("synonyms"), "synonyms")
        synonyms = [self._word(n, "synonym") for n in synonym_nodes]
        color = self._color(entries["color"]) if "color" in entries else None
        self._ids.append(entries["id"])
        self._names.append(entries["name"])
        self._synonyms += synonym_nodes
        if id is None or name is None:
            return None
        return SemanticClass(id, name, is_thing, tuple(s for s in synonyms if s is not None), color)

    def _color(self, node: yaml.Node) -> tuple[int, int, int] | None:
        values = [self._integer(n, "color", 0, 255) for n in self._items(node, "color")]
        if len(values) != 3:
            self._mistake(node, f"color: expected [red, green, blue], got {len(values)} values")
            return None
        r, g, b = (value or 0 for value in values)
        return r, g, b

    def _maps_from(self, node: yaml.Node) -> dict[str, dict[str, str]]:
        names = {str(_value(n)) for n in self._names}
        maps: dict[str, dict[str, str]] = {}
        for space, pairs in self._pairs(node, "maps_from"):
            maps[str(_value(space))] = table = {}
            for theirs, ours in self._pairs(pairs, f"maps_from.{_value(space)}"):
                word = str(_value(ours))
                if word not in names:
                    self._mistake(ours, f"maps_from: there is no class '{word}' here{_did_you_mean(word, names)}")
                table[str(_value(theirs))] = word
        return maps

    def _check_unique(self, nodes: list[yaml.Node], what: str) -> None:
        lines: dict[Any, int] = {}
        for node in nodes:
            value = _value(node)
            key = value.lower() if isinstance(value, str) else value
            if isinstance(key, (str, int)) and lines.setdefault(key, _line(node)) != _line(node):
                self._mistake(node, f"{what} {value!r} is already given in line {lines[key]}")

    def _entries(self, node: yaml.Node, known: tuple[str, ...], what: str) -> dict[str, yaml.Node]:
        entries: dict[str, yaml.Node] = {}
        for key, value in self._pairs(node, what):
            word = str(_value(key))
            if word not in known:
                self._mistake(key, f"unknown key '{word}' of {what}{_did_you_mean(word, known)}")
            entries[word] = value
        return entries

    def _pairs(self, node: yaml.Node, what: str) -> list[tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._mistake(node, f"{what}: expected names with values, got {_shown(node)}")
            return []
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                self._mistake(key, f"{what}: '{key.value}' comes twice")
            seen.add(str(key.value))
        return node.value

    def _items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._mistake(node, f"{what}: expected a list, got {_shown(node)}")
            return []
        return node.value

    def _word(self, node: yaml.Node, what: str) -> str | None:
        value = _value(node)
        if isinstance(value, str) and value.strip():
            return value
        hint = " (put it in quotes)" if isinstance(value, (bool, int, float)) else ""
        self._mistake(node, f"{what}: expected a word, got {_shown(node)}{hint}")
        return None

    def _integer(self, node: yaml.Node, what: str, low: int, high: int) -> int | None:
        value = _value(node)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self._mistake(node, f"{what}: expected a whole number in {low}..{high}, got {_shown(node)}")
        return None

    def _mistake(self, node: yaml.Node, what: str) -> None:
        self.mistakes.append((_line(node), what))


def _value(node: yaml.Node) -> Any:
    """A scalar as YAML means it (12, true, "word"); of anything else None."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    return yaml.constructor.SafeConstructor().construct_object(node)


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "names with values"


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
