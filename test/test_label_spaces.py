"""Label spaces as files: those of the package, what mistakes are told as, and translation by hand-made oracles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from panoptic_mapper.datasets.scannet_labels import LABEL_SETS, ScanNetClasses
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.label_space_file import parse_label_space, read_label_space
from panoptic_mapper.label_spaces import class_table, load_label_space, shipped_label_spaces
from panoptic_mapper.segmenters.tiny_models import COCO_CLASSES, MOSAIC_CLASSES

GOOD = """\
name: mine
classes:
  - {id: 7, name: floor, thing: false, color: [1, 2, 3], synonyms: [ground, rug]}
  - {id: 2, name: Seat, thing: true, synonyms: [chair]}
maps_from:
  theirs: {grass: floor}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "space.yaml"
    file.write_text(text)
    return file


def translated(source: str, target: str) -> dict[str, str]:
    """Name to name, of the classes that the target has something for."""
    a, b = load_label_space(source), load_label_space(target)
    return {a.names[i]: b.names[j] for i, j in enumerate(class_table(a, b)) if j}


def test_a_file_is_read(tmp_path: Path) -> None:
    space = load_label_space(written(tmp_path, GOOD))
    assert space == LabelSpace.from_classes([SemanticClass(7, "floor", False), SemanticClass(2, "Seat", True)])
    assert space.name == "mine"
    assert space.classes[1].synonyms == ("ground", "rug")
    assert space.colors[1].tolist() == [1, 2, 3]
    assert space.colors[2].tolist() != [0, 0, 0]  # given none: a distinct one
    assert [space.index_of(word) for word in ("seat", "CHAIR", "rug")] == [2, 2, 1]
    assert space.maps_from == {"theirs": {"grass": "floor"}}


def test_without_a_name_it_has_that_of_the_file(tmp_path: Path) -> None:
    assert read_label_space(written(tmp_path, GOOD.replace("name: mine\n", ""))).name == "space"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("id: 2", "id: 7", 4, "id 7 is already given in line 3"),
        ("id: 2", "id: 0", 4, "id: expected a whole number in 1..65535, got '0'"),
        ("id: 2", "id: two", 4, "id: expected a whole number in 1..65535, got 'two'"),
        ("id: 2", "id: true", 4, "got 'true'"),
        ("id: 2, ", "", 4, "class without id"),
        ("name: Seat", "name: FLOOR", 4, "name 'FLOOR' is already given in line 3"),
        ("[chair]", "[Ground]", 4, "name 'Ground' is already given in line 3"),
        ("[chair]", "chair", 4, "synonyms: expected a list, got 'chair'"),
        ("name: Seat", "name: no", 4, "name: expected a word, got 'no' (put it in quotes)"),
        ("thing: true", "thing: 1", 4, "thing: expected true or false, got '1'"),
        ("thing: true", "thin: true", 4, "unknown key 'thin' of a class; did you mean 'thing'?"),
        ("[1, 2, 3]", "[1, 2]", 3, "color: expected [red, green, blue], got 2 values"),
        ("[1, 2, 3]", "[1, 2, 256]", 3, "color: expected a whole number in 0..255, got '256'"),
        ("[1, 2, 3]", "red", 3, "color: expected a list, got 'red'"),
        ("{grass: floor}", "{grass: flor}", 6, "there is no class 'flor' here; did you mean 'floor'?"),
        ("{grass: floor}", "{grass: ground}", 6, "there is no class 'ground' here"),  # a synonym is no name
        ("{grass: floor}", "floor", 6, "maps_from.theirs: expected names with values, got 'floor'"),
        ("maps_from", "mapsfrom", 5, "unknown key 'mapsfrom' of a label space; did you mean 'maps_from'?"),
        ("name: mine", "name: mine\nname: yours", 2, "'name' comes twice"),
        ("synonyms: [chair]}", "synonyms: [chair]", 5, "not YAML"),
        ("  - {id: 2, name: Seat, thing: true, synonyms: [chair]}", "  - seat", 4, "a class: expected names with"),
    ],
)
def test_mistakes_are_named_by_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert GOOD.count(old) == 1
    file = written(tmp_path, GOOD.replace(old, new))
    space, mistakes = parse_label_space(file)
    assert space is None
    assert any(m.startswith(f"{file}:{line}: ") and message in m for m in mistakes), mistakes
    with pytest.raises(ValueError, match=f"{file.name}:{line}: "):
        load_label_space(file)


def test_all_mistakes_are_told_at_once_and_in_order(tmp_path: Path) -> None:
    bad = GOOD.replace("id: 7", "id: -7").replace("true", "yess").replace("grass: floor", "grass: lawn")
    _, mistakes = parse_label_space(written(tmp_path, bad))
    assert [int(m.split(":")[1]) for m in mistakes] == [3, 4, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("[]", "expected names with values"), ("name: x", "has no classes"), ("\xff", "cannot be read")],
)
def test_files_that_are_no_label_space(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f":1: .*{message}"):
        read_label_space(file)


def test_missing_files_and_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.yaml:1: cannot be read"):
        load_label_space(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"'coco': expected a file .* or one of ade20k_150, .*coco_panoptic"):
        load_label_space("coco")


def test_a_labels_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    entry = {"id": 3, "name": "mug", "isthing": True, "synonyms": ["cup"], "color": [9, 8, 7]}
    file.write_text(json.dumps({"classes": [entry]}))
    space = load_label_space(file)
    assert (space.index_of("cup"), space.colors[1].tolist(), space.to_dict()) == (1, [9, 8, 7], [entry])


@pytest.mark.parametrize(
    ("name", "num_classes", "num_things"),
    [
        ("ade20k_150", 150, 100),
        ("ade20k_31", 31, 14),
        ("coco_panoptic", 133, 80),
        ("nyu40", 40, 37),
        ("scannet20", 20, 18),
        ("home", 21, 16),
    ],
)
def test_shipped_spaces_are_whole(name: str, num_classes: int, num_things: int) -> None:
    space = load_label_space(name)
    assert (len(space) - 1, int(space.is_thing.sum()), space.name) == (num_classes, num_things, name)
    for source, pairs in space.maps_from.items():
        assert set(pairs) <= set(load_label_space(source).names), source
    if name not in ("home", "coco_panoptic"):
        assert len({tuple(c) for c in space.colors.tolist()}) == len(space), "two classes have one colour"


def test_every_shipped_file_is_tested() -> None:
    assert set(shipped_label_spaces()) == {"ade20k_150", "ade20k_31", "coco_panoptic", "nyu40", "scannet20", "home"}


def test_shipped_spaces_agree_with_the_lists_of_the_readers_and_networks() -> None:
    for name in LABEL_SETS:
        assert load_label_space(name) == ScanNetClasses.of_set(name, []).label_space
    assert load_label_space("ade20k_31").names[1:] == MOSAIC_CLASSES[1:]
    assert load_label_space("ade20k_150").names[1:32] == MOSAIC_CLASSES[1:]
    coco = load_label_space("coco_panoptic")
    assert coco.names[1:81] == COCO_CLASSES
    # COCO's ids have gaps; stuff begins at 92.
    assert coco.ids[[1, 80, 81, 133]].tolist() == [1, 90, 92, 200]
    assert coco.is_thing.tolist() == [False, *[True] * 80, *[False] * 53]


def test_translation_of_coco_to_nyu40() -> None:
    to_nyu40 = translated("coco_panoptic", "nyu40")
    expected = {
        "chair": "chair",
        "couch": "sofa",
        "tv": "television",
        "dining table": "table",
        "table-merged": "table",
        "book": "books",
        "wall-brick": "wall",
        "wall-other-merged": "wall",
        "floor-wood": "floor",
        "window-blind": "blinds",
        "door-stuff": "door",
        "backpack": "bag",
        "cup": "otherprop",
    }
    assert expected.items() <= to_nyu40.items()
    assert not {"airplane", "sky-other-merged", "zebra"} & set(to_nyu40)


def test_translation_of_ade20k_to_scannet20_and_home() -> None:
    to_scannet = translated("ade20k_150", "scannet20")
    assert {"armchair": "chair", "windowpane": "window", "painting": "picture"}.items() <= to_scannet.items()
    assert "pillow" not in to_scannet  # NYU40 has it, ScanNet's twenty do not
    to_home = translated("ade20k_150", "home")
    assert {"armchair": "seat", "wardrobe": "storage", "crt screen": "screen"}.items() <= to_home.items()


def test_translation_goes_by_map_then_name_then_synonym() -> None:
    source = LabelSpace.from_classes(
        SemanticClass(i, name, True, synonyms)
        for i, (name, synonyms) in enumerate(
            [("a", ()), ("b", ("first",)), ("FIRST", ()), ("d", ("nothing", "second")), ("e", ("first",))], start=1
        )
    )
    target = LabelSpace(
        LabelSpace.from_classes([SemanticClass(5, "first", True, ("a",)), SemanticClass(3, "second", False)]).classes,
        name="target",
        maps_from={"source": {"e": "second"}},
    )
    assert class_table(source, target).tolist() == [0, 1, 1, 1, 2, 1]
    named = LabelSpace(source.classes, name="source")
    assert class_table(named, target).tolist() == [0, 1, 1, 1, 2, 2]


def test_a_space_is_known_again_by_its_classes() -> None:
    """Saved maps carry classes without name and mappings."""
    for name in ("coco_panoptic", "nyu40"):
        bare = LabelSpace.from_dict(
            [{k: v for k, v in e.items() if k != "synonyms"} for e in load_label_space(name).to_dict()]
        )
        table = class_table(bare, LabelSpace.from_dict(load_label_space("scannet20").to_dict()))
        np.testing.assert_array_equal(table, class_table(load_label_space(name), load_label_space("scannet20")))
