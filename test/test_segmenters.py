"""Segmenters that pass labels on, and the check of any segmenter's output."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.segmenters import SegmenterConfig, check_segmentation, create_segmenter
from panoptic_mapper.segmenters.topic import TopicSegmenter

SPACE = LabelSpace.from_classes(
    [SemanticClass(1, "wall", False), SemanticClass(5, "chair", True), SemanticClass(40000, "lamp", True)]
)


def make_frame(labels: Segmentation | None = None, stamp_ns: int = 7, height: int = 24, width: int = 32) -> Frame:
    return Frame(
        stamp_ns=stamp_ns,
        color=np.zeros((height, width, 3), np.uint8),
        depth=np.ones((height, width), np.float32),
        T_map_camera=np.eye(4),
        camera=PinholeCamera(30.0, 30.0, width / 2, height / 2, width, height),
        labels=labels,
    )


def four_chairs() -> Segmentation:
    instance = np.zeros((24, 32), np.int32)
    for k in range(4):
        instance[3 : 10 + k, 8 * k + 1 : 8 * k + 6] = k + 1
    return Segmentation(np.where(instance > 0, 2, 1).astype(np.int32), instance)


def renumbered(labels: Segmentation, ids: list[int]) -> Segmentation:
    return replace(labels, instance=np.array([0, *ids], np.int32)[labels.instance])


def dataset_segmenter(**settings):
    return create_segmenter(SegmenterConfig(name="dataset", **settings), SPACE)


@pytest.mark.parametrize("noise", ["clean", "moderate", "hard"])
def test_dataset_output_does_not_depend_on_the_input_ids(noise):
    for stamp_ns in range(5):
        expected = dataset_segmenter(noise=noise).segment(make_frame(four_chairs(), stamp_ns))
        for ids in ([4, 3, 2, 1], [2, 1, 4, 3], [900, 17, 65535, 3]):
            result = dataset_segmenter(noise=noise).segment(make_frame(renumbered(four_chairs(), ids), stamp_ns))
            np.testing.assert_array_equal(result.instance, expected.instance)
            np.testing.assert_array_equal(result.semantic, expected.semantic)
            np.testing.assert_array_equal(result.confidence, expected.confidence)


def test_dataset_noise_grows_with_its_level():
    def agreement(noise):
        segmenter = dataset_segmenter(noise=noise)
        results = [segmenter.segment(make_frame(four_chairs(), stamp_ns)) for stamp_ns in range(20)]
        for result in results:
            check_segmentation(result, make_frame(), SPACE)
        return np.mean([(r.semantic == four_chairs().semantic).mean() for r in results])

    clean, moderate, hard = (agreement(level) for level in ("clean", "moderate", "hard"))
    assert clean == 1
    assert 0.99 > moderate > hard > 0.3


def test_dataset_keeps_the_masks_and_classes():
    labels = four_chairs()
    result = dataset_segmenter().segment(make_frame(labels))
    np.testing.assert_array_equal(result.semantic, labels.semantic)
    pairs = set(zip(labels.instance.ravel().tolist(), result.instance.ravel().tolist(), strict=True))
    assert len(pairs) == 5  # a bijection: every old id has exactly one new id
    assert {new for _, new in pairs} == {0, 1, 2, 3, 4}
    assert (0, 0) in pairs


def test_dataset_ids_change_from_frame_to_frame_and_repeat_with_the_seed():
    def numbering(seed, stamp_ns):
        return tuple(dataset_segmenter(seed=seed).segment(make_frame(four_chairs(), stamp_ns)).instance[4, 2::8])

    by_stamp = {numbering(0, stamp) for stamp in range(30)}
    assert len(by_stamp) > 12  # of 24 permutations
    assert numbering(3, 5) == numbering(3, 5)
    assert any(numbering(0, stamp) != numbering(1, stamp) for stamp in range(5))


@pytest.mark.parametrize("name", ["dataset", "topic"])
def test_missing_labels_and_label_space_are_named(name):
    with pytest.raises(ValueError, match=f"'{name}'.*label space"):
        create_segmenter(SegmenterConfig(name=name), None)
    with pytest.raises(ValueError, match="frame at 7 ns has no labels"):
        create_segmenter(SegmenterConfig(name=name), SPACE).segment(make_frame())


def test_none_gives_no_labels_and_knows_no_class():
    segmenter = create_segmenter(SegmenterConfig(name="none"))
    assert segmenter.segment(make_frame(four_chairs())) is None
    assert segmenter.label_space.names == ("unlabeled",)


def test_topic_passes_the_labels_on():
    labels = four_chairs()
    assert create_segmenter(SegmenterConfig(name="topic"), SPACE).segment(make_frame(labels)) is labels


def pack(class_id: int, number: int) -> int:
    return (class_id << 16) | number


def test_topic_decodes_class_and_instance():
    image = np.array(
        [[pack(1, 0), pack(5, 1), pack(5, 65535)], [pack(40000, 1), pack(1, 9), pack(0, 3)]], np.uint32
    ).view(np.int32)
    labels = TopicSegmenter(SPACE).decode(image, (2, 3))
    np.testing.assert_array_equal(labels.semantic, [[1, 2, 2], [3, 1, 0]])
    instance = labels.instance
    # Instance 1 of the chairs and instance 1 of the lamps are two objects; stuff and unlabeled have none.
    assert len({instance[0, 1], instance[0, 2], instance[1, 0]} - {0}) == 3
    assert instance[0, 0] == instance[1, 1] == instance[1, 2] == 0


@pytest.mark.parametrize("longest_run_px", [1, 40, 5000])
def test_topic_decodes_every_pixel_by_itself(longest_run_px):
    rng = np.random.default_rng(0)
    pairs = [(1, 0), (1, 4), (5, 1), (5, 2), (40000, 1), (77, 3), (0, 0)]
    colors = np.array([pack(*pair) for pair in pairs], np.uint32)
    runs = rng.integers(1, longest_run_px + 1, 24 * 32)
    image = np.repeat(colors[rng.integers(0, len(colors), len(runs))], runs)[: 24 * 32].reshape(24, 32).view(np.int32)
    labels = TopicSegmenter(SPACE).decode(image[:, ::-1], (24, 32))
    ids = {}  # of the instances, by what was packed
    for y, x in np.ndindex(24, 32):
        packed = int(image.view(np.uint32)[y, 31 - x])
        semantic = {1: 1, 5: 2, 40000: 3}.get(packed >> 16, 0)
        assert labels.semantic[y, x] == semantic
        is_instance = semantic > 0 and SPACE.is_thing[semantic]
        assert (labels.instance[y, x] > 0) == is_instance
        assert ids.setdefault(packed if is_instance else 0, labels.instance[y, x]) == labels.instance[y, x]
    assert len(set(ids.values())) == len(ids)


def test_topic_takes_unknown_ids_as_unlabeled_and_warns_once(caplog):
    segmenter = TopicSegmenter(SPACE)
    image = np.array([[pack(77, 1), pack(5, 1), pack(78, 0)]], np.int32)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            labels = segmenter.decode(image, (1, 3))
    np.testing.assert_array_equal(labels.semantic, [[0, 2, 0]])
    assert labels.instance[0, 0] == 0
    assert [r.getMessage() for r in caplog.records] == [
        "label image: class ids [77, 78] are not in the label space; taken as unlabeled"
    ]


def test_topic_refuses_other_sizes_and_types():
    with pytest.raises(ValueError, match=r"expected \(24, 32\) as the colour image, got \(12, 16\)"):
        TopicSegmenter(SPACE).decode(np.zeros((12, 16), np.int32), (24, 32))
    with pytest.raises(ValueError, match=r"32SC1.*uint8"):
        TopicSegmenter(SPACE).decode(np.zeros((24, 32), np.uint8), (24, 32))


def segmentation(height=24, width=32, semantic=0, confidence=None, dtype=np.int32):
    shape = (height, width)
    conf = None if confidence is None else np.full(shape, confidence, np.float32)
    return Segmentation(np.full(shape, semantic, dtype), np.zeros(shape, np.int32), conf)


@pytest.mark.parametrize("good", [segmentation(), segmentation(semantic=3, confidence=1.0)])
def test_check_accepts_good_labels(good):
    check_segmentation(good, make_frame(), SPACE)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (segmentation(height=12), r"size \(24, 32\), got \(12, 32\)"),
        (segmentation(semantic=4), "class index 4.*0..3"),
        (segmentation(dtype=np.float32), "integer semantic ids, got float32"),
        (segmentation(confidence=np.nan), "768 NaN"),
        (segmentation(confidence=1.5), "1.5"),
        (segmentation(confidence=-0.1), "-0.1"),
    ],
)
def test_check_names_what_is_wrong(bad, message):
    with pytest.raises(ValueError, match=message):
        check_segmentation(bad, make_frame(), SPACE)
