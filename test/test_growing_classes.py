"""Classes that are added while the map is built: they start empty, and what the map knew stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_segmenters import Words
from small_room import CHAIR, FLOOR, SPACE, TABLE, WALL, PassOn, make_mapper, mapped, room_frames, wall_frame

from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.panoptic_head import PanopticHead
from panoptic_mapper.vocabulary import label_space_of_words

LAMP_SPACE = label_space_of_words(["lamp", "chair"], ["floor", "carpet"])  # other indices and ids than SPACE
LAMP, CARPET = 5, 6  # of the map, behind chair, wall, table and floor


def lamp_labels(frame: Frame) -> Segmentation:
    """What a model of LAMP_SPACE says about the wall: what was a table is a lamp; the floor is in its own words."""
    semantic = np.array([0, 2, 0, 1, 3], np.int32)[frame.labels.semantic]
    return Segmentation(semantic, frame.labels.instance * (semantic < 3))


def with_lamp(*settings: str) -> PanopticMapper:
    """The wall from two places, of which the second sees a lamp where the first saw a table."""
    pose = np.eye(4)
    pose[0, 3] = 0.1
    frame = wall_frame(T_map_camera=pose, stamp_ns=2)
    mapper = mapped([wall_frame(stamp_ns=1)], *settings, segmenter=PassOn(SPACE))
    mapper.segmenter.label_space = LAMP_SPACE
    mapper.integrate(replace(frame, labels=lamp_labels(frame)))
    return mapper


def test_the_extended_space_keeps_indices_and_gives_free_ids() -> None:
    extended = SPACE.extended(LAMP_SPACE)
    assert extended.names == ("unlabeled", "chair", "wall", "table", "floor", "lamp", "carpet")
    assert extended.ids.tolist() == [0, 10, 20, 30, 40, 1, 4]
    assert extended.is_thing[[LAMP, CARPET]].tolist() == [True, False]
    assert extended.extended(LAMP_SPACE) is extended
    clash = LabelSpace.from_classes([SemanticClass(10, "lamp", True)])
    assert SPACE.extended(clash).ids.tolist() == [0, 10, 20, 30, 40, 1]
    couches = label_space_of_words(["couch|sofa"], [])
    for word in ("sofa", "settee|Couch"):  # other words for what it has
        assert couches.extended(label_space_of_words([word], [])) is couches
        assert couches.indices_of(label_space_of_words([word], [])).tolist() == [0, 1]
    assert extended.indices_of(LAMP_SPACE).tolist() == [0, LAMP, CHAIR, FLOOR, CARPET]
    assert SPACE.indices_of(LAMP_SPACE).tolist() == [0, 0, CHAIR, FLOOR, 0]


def test_a_class_cannot_be_a_thing_and_stuff() -> None:
    with pytest.raises(ValueError, match="class 'wall' is stuff already"):
        SPACE.extended(label_space_of_words(["wall"], []))
    with pytest.raises(ValueError, match="class 'chair' is a thing already"):
        SPACE.extended(label_space_of_words([], ["chair"]))


def test_a_new_class_starts_empty() -> None:
    mapper = mapped(room_frames()[:3])
    frame = room_frames()[1]
    objects, snapshot = mapper.objects(), mapper.snapshot()
    view = mapper.render(frame.camera, frame.T_map_camera)
    before = mapper.map.head.class_probabilities(mapper.map.gaussians["semantics"])
    words = label_space_of_words(["samovar", "vase"], ["carpet"])
    num_before = len(mapper.label_space)
    mapper.extend_label_space(words)
    assert mapper.label_space.names[num_before:] == ("samovar", "vase", "carpet")
    after = mapper.map.head.class_probabilities(mapper.map.gaussians["semantics"])
    assert snapshot.class_indices.max() > 0
    assert torch.equal(after[:, :num_before].argmax(1), before.argmax(1))
    assert (after.argmax(1) < num_before).all()
    assert after[:, num_before:].max() < 0.1
    assert (mapper.map.queries.evidence[:, num_before:] == 0).all()
    for old, new in zip(objects, mapper.objects(), strict=True):
        assert (old.id, old.class_name, old.score, old.num_gaussians) == (
            new.id, new.class_name, new.score, new.num_gaussians
        )  # fmt: skip
    np.testing.assert_array_equal(mapper.snapshot().class_indices, snapshot.class_indices)
    same = mapper.render(frame.camera, frame.T_map_camera)
    assert (same.semantic == view.semantic).mean() > 0.995
    assert (same.instance == view.instance).mean() > 0.995


def test_a_class_that_is_new_is_learned_from_then_on() -> None:
    mapper = with_lamp("optimizer.steps_per_keyframe=20")
    assert mapper.label_space.names == ("unlabeled", "chair", "wall", "table", "floor", "lamp", "carpet")
    keyframe = mapper.keyframes.all[1]
    assert set(keyframe.semantic.unique().tolist()) == {CHAIR, FLOOR, LAMP}
    evidence = mapper.map.queries.evidence
    assert evidence.shape[1] == 7
    table = int(mapper.map.queries.class_indices.tolist().index(CHAIR) == 0)  # the other of the two objects
    assert evidence[table, TABLE] > 0
    assert evidence[table, LAMP] > 0  # it was called both
    assert evidence[1 - table, CHAIR] == pytest.approx(2)
    for _ in range(5):  # the head's optimiser follows
        mapper.refine(3)
    assert torch.isfinite(mapper.map.head.codes).all()
    assert mapper.map.head.codes.shape[0] == 7


def test_a_map_that_began_without_classes_gets_them() -> None:
    """As with a model that was not ready when the first frames came."""
    frames = [replace(wall_frame(2.0 - 0.3 * i, stamp_ns=i), labels=wall_frame().labels) for i in range(3)]
    segmenter = PassOn(LabelSpace.from_classes((), is_open=True))
    mapper = make_mapper(segmenter=segmenter)
    mapper.integrate(replace(frames[0], labels=None))
    assert mapper.label(0, frames[0].labels, SPACE)
    assert mapper.label_space == SPACE
    assert {o.class_name for o in mapper.objects()} == {"table", "chair"}
    segmenter.label_space = SPACE
    for frame in frames[1:]:
        assert mapper.integrate(frame).num_matched_masks == 2
    assert [o.class_name for o in mapper.objects()][:2] == ["table", "chair"]


def test_codes_of_new_classes_are_unlike_all_others() -> None:
    words = label_space_of_words([f"thing {i}" for i in range(30)], ["floor"])
    head = PanopticHead(SPACE, torch.Generator().manual_seed(0), torch.device("cpu"))
    old, parameter = head.codes.detach().clone(), head.codes
    head.grow(SPACE.extended(words))
    assert head.codes is parameter
    assert torch.equal(head.codes[: len(SPACE)], old)
    assert head.num_classes == len(SPACE) + 30
    codes = torch.nn.functional.normalize(head.codes.detach()[1:], dim=1)
    likeness = (codes @ codes.T).fill_diagonal_(0)
    assert likeness.max() < 0.6  # 34 codes in 16 dimensions
    features = head.semantic_features(torch.arange(1, head.num_classes), torch.ones(head.num_classes - 1))
    assert head.class_probabilities(features).argmax(1).tolist() == list(range(1, head.num_classes))
    assert head.columns.stuff_classes.tolist() == [0, WALL, FLOOR]


def test_a_model_with_many_classes_may_come_late() -> None:
    many = label_space_of_words([f"thing {i}" for i in range(132)], ["floor"])  # as many as COCO's
    head = PanopticHead(LabelSpace.from_classes(()), torch.Generator().manual_seed(0), torch.device("cpu"))
    head.grow(many)
    at_once = PanopticHead(many, torch.Generator().manual_seed(0), torch.device("cpu"))
    classes = torch.arange(1, len(many))
    for confidence in (0.6, 1.0):
        own = [
            h.class_probabilities(h.semantic_features(classes, torch.full((133,), confidence)))[classes - 1, classes]
            for h in (head, at_once)
        ]
        assert own[0].min() > 0.8 * own[1].min()
    assert (head.class_probabilities(head.semantic_features(classes, torch.ones(133))).argmax(1) == classes).all()


def test_the_vocabulary_is_changed_at_run_time() -> None:
    mapper = make_mapper("optimizer.steps_per_keyframe=0", segmenter=Words(["chair"], ["floor"]))
    mapper.integrate(wall_frame(stamp_ns=1))
    mapper.set_vocabulary(["lamp"], ["floor"])
    assert mapper.label_space.names == ("unlabeled", "chair", "floor", "lamp")
    assert mapper.label_space.ids.tolist() == [0, 1, 2, 3]
    mapper.integrate(wall_frame(1.0, stamp_ns=2))
    assert mapper.keyframes.all[0].semantic.unique().tolist() == [1]
    assert mapper.keyframes.all[1].semantic.unique().tolist() == [3]
    for things, stuff, words in (
        (["lamp.shade"], [], "none of"),
        ([], [], "at least one word"),
        (["floor"], [], "'floor' is stuff already"),
    ):
        with pytest.raises(ValueError, match=words):
            mapper.set_vocabulary(things, stuff)
        assert mapper.segmenter.label_space.names == ("unlabeled", "lamp", "floor")
    with pytest.raises(ValueError, match="fixed set of classes"):
        make_mapper(segmenter=PassOn(SPACE)).set_vocabulary(["lamp"], [])


def test_a_saved_map_goes_on_with_other_words() -> None:
    first = make_mapper("optimizer.steps_per_keyframe=0", segmenter=Words(["chair"], ["floor"]))
    first.integrate(wall_frame(stamp_ns=1))
    first.set_vocabulary(["chair", "lamp"], [])
    second = make_mapper("optimizer.steps_per_keyframe=0", segmenter=Words(["vase", "chair"], []))
    second.restore_state(*first.export_state())
    assert second.label_space.names == ("unlabeled", "chair", "floor", "lamp", "vase")
    assert second.map.head.num_classes == second.map.queries.evidence.shape[1] == 5
    assert [o.class_name for o in second.objects()] == ["chair"]
    torch.testing.assert_close(second.map.head.codes[:4], first.map.head.codes)
    second.integrate(wall_frame(1.0, stamp_ns=2))
    assert second.keyframes.all[1].semantic.unique().tolist() == [4]
    third = make_mapper(segmenter=Words([], ["chair"]))  # here it is no thing
    before = third.label_space
    with pytest.raises(ValueError, match="'chair' is a thing already"):
        third.restore_state(*first.export_state())
    assert third.label_space is before


@pytest.mark.parametrize(
    ("things", "stuff", "words"),
    [
        (["chair", "Chair "], [], "'chair' comes 2 times"),
        (["couch|sofa"], ["sofa"], "'sofa' comes 2 times"),
        (["a|"], [], "got ''"),
        (["x" * 61], [], "1..60 letters"),
        (["what?"], [], r"none of '\.\?'"),
    ],
)
def test_wrong_words_are_refused(things, stuff, words) -> None:
    with pytest.raises(ValueError, match=words):
        label_space_of_words(things, stuff)


def test_words_become_classes_with_synonyms() -> None:
    space = label_space_of_words(["Coffee  Cup|mug"], ["floor"])
    assert space.is_open
    assert [(c.id, c.name, c.is_thing, c.synonyms) for c in space.classes[1:]] == [
        (1, "coffee cup", True, ("mug",)),
        (2, "floor", False, ()),
    ]
    back = LabelSpace.from_dict(space.to_dict())
    assert [c.synonyms for c in back.classes] == [(), ("mug",), ()]
