"""Labels translated to another space: against images made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.label_spaces import load_label_space
from panoptic_mapper.segmenters import SegmenterConfig, check_segmentation, create_segmenter
from panoptic_mapper.segmenters.components import with_components
from panoptic_mapper.segmenters.translated import TranslatedSegmenter

COCO, NYU40 = load_label_space("coco_panoptic"), load_label_space("nyu40")


def frame(labels: Segmentation | None) -> Frame:
    height, width = (3, 8) if labels is None else labels.semantic.shape
    color = np.zeros((height, width, 3), np.uint8)
    camera = PinholeCamera(50, 50, width / 2, height / 2, width, height)
    return Frame(1, color, np.ones((height, width), np.float32), np.eye(4), camera, labels)


def named(space: LabelSpace, *rows: str) -> np.ndarray:
    return np.array([[space.index_of(word) if word != "-" else 0 for word in row.split()] for row in rows], np.int32)


@pytest.mark.parametrize("name", ["dataset", "topic"])
def test_coco_labels_as_nyu40(name: str) -> None:
    """One line of config; couches become sofas, cabinets (stuff at COCO) instances, a zebra nothing."""
    cabinet, wall = "cabinet-merged", "wall-brick"
    semantic = named(
        COCO,
        f"couch couch {cabinet} {cabinet} {wall} {cabinet} zebra floor-wood",
        f"couch couch {cabinet} {cabinet} {wall} {cabinet} zebra wall-other-merged",
        f"couch couch {cabinet} {wall} {wall} {wall} {cabinet} ceiling-merged",
    )
    instance = np.zeros((3, 8), np.int32)
    instance[:, :2], instance[:2, 6] = 3, 7
    confidence = np.linspace(0, 1, 24, dtype=np.float32).reshape(3, 8)
    made = create_segmenter(SegmenterConfig(name=name, output_space="nyu40"), COCO)
    image = frame(Segmentation(semantic, instance, confidence))
    result = made.segment(image)
    check_segmentation(result, image, NYU40)
    assert made.label_space is NYU40
    expected = named(
        NYU40,
        "sofa sofa cabinet cabinet wall cabinet - floor",
        "sofa sofa cabinet cabinet wall cabinet - wall",
        "sofa sofa cabinet wall wall wall cabinet ceiling",
    )
    np.testing.assert_array_equal(result.semantic, expected)
    np.testing.assert_array_equal(result.confidence, confidence)
    # One sofa; two cabinets, of which the second touches its last pixel by a corner.
    sofa, left, right = (result.instance[0, x] for x in (0, 2, 5))
    assert len({0, sofa, left, right}) == 4
    of_cabinets = np.where(np.arange(8) < 4, left, right) * (expected == NYU40.index_of("cabinet"))
    np.testing.assert_array_equal(result.instance, np.where(instance == 3, sofa, of_cabinets))


def test_instances_of_what_becomes_stuff_are_dropped() -> None:
    ade = load_label_space("ade20k_150")
    made = TranslatedSegmenter(
        create_segmenter(SegmenterConfig(name="topic"), ade), load_label_space("home"), min_area_px=1
    )
    instance = np.array([[1, 2, 3]], np.int32)
    result = made.segment(frame(Segmentation(named(ade, "curtain mirror armchair"), instance)))
    assert [made.label_space.names[i] for i in result.semantic[0]] == ["window", "window", "seat"]
    assert result.instance[0].tolist() == [0, 0, 3]


def test_no_labels_stay_none() -> None:
    class Silent:
        label_space = COCO

        def segment(self, frame: Frame) -> None:
            return None

    assert TranslatedSegmenter(Silent(), NYU40, 1).segment(frame(None)) is None


def test_a_space_that_has_nothing_is_refused() -> None:
    strange = LabelSpace.from_classes([SemanticClass(1, "gizmo", True)])
    with pytest.raises(ValueError, match=r"output_space 'nyu40' has nothing for the segmenter's classes \(gizmo"):
        create_segmenter(SegmenterConfig(name="topic", output_space="nyu40"), strange)
    with pytest.raises(ValueError, match=r"label space 'nyu': expected a file"):
        create_segmenter(SegmenterConfig(name="topic", output_space="nyu"), COCO)


def test_components_get_numbers_after_those_that_are_there() -> None:
    semantic = np.array([[1, 1, 0, 1, 2, 2], [1, 1, 0, 0, 0, 2]], np.int32)
    instance = np.array([[5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], np.int32)
    result = with_components(semantic, instance, np.array([1, 2]), min_area_px=2)
    assert result.tolist() == [[5, 6, 0, 0, 7, 7], [6, 6, 0, 0, 0, 7]]
    assert with_components(semantic, instance, np.array([2]), 4).tolist() == instance.tolist()
    assert with_components(semantic, np.zeros_like(instance), np.array([3]), 1).max() == 0
