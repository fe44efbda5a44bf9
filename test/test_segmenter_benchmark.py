"""The measures of benchmarks/segmenters.py on labels whose quality is known."""

import numpy as np
import pytest

from benchmarks.segmenters import common_classes, measure
from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.label_space import LabelSpace, SemanticClass

CAMERA = PinholeCamera(100.0, 100.0, 49.5, 39.5, 100, 80)
TRUE_SPACE = LabelSpace.from_classes(
    [SemanticClass(1, "floor", False), SemanticClass(5, "bookshelf", True), SemanticClass(9, "piano", True)]
)
PREDICTED_SPACE = LabelSpace.from_classes([SemanticClass(1, "shelf", True), SemanticClass(2, "floor", False)])


class Fixed:
    """Gives the same labels for every frame."""

    label_space = PREDICTED_SPACE

    def __init__(self, labels):
        self.labels = labels

    def segment(self, frame):
        return self.labels


def frame():
    """Floor, a bookshelf of 20 x 20 px and a piano of 20 x 20 px."""
    semantic, instance = np.full((80, 100), 1, np.int32), np.zeros((80, 100), np.int32)
    semantic[10:30, 10:30], instance[10:30, 10:30] = 2, 7
    semantic[10:30, 50:70], instance[10:30, 50:70] = 3, 8
    depth = np.ones((80, 100), np.float32)
    return Frame(0, np.zeros((80, 100, 3), np.uint8), depth, np.eye(4), CAMERA, Segmentation(semantic, instance))


def prediction():
    """The upper 15 rows of the shelf, the piano called a shelf, and a shelf of 10 x 20 px where there is floor."""
    semantic, instance = np.full((80, 100), 2, np.int32), np.zeros((80, 100), np.int32)
    for number, (rows, columns) in enumerate(
        [(slice(10, 25), slice(10, 30)), (slice(10, 30), slice(50, 70)), (slice(60, 70), slice(10, 30))]
    ):
        semantic[rows, columns], instance[rows, columns] = 1, number + 1
    return Segmentation(semantic, instance)


def test_classes_translate_by_name_and_synonym():
    np.testing.assert_array_equal(common_classes(TRUE_SPACE, PREDICTED_SPACE), [0, 2, 1, 0])


def test_bare_instances_are_matched_whatever_their_class():
    result = measure(Fixed(prediction()), [frame(), frame()], TRUE_SPACE)
    assert (result["found"], result["spurious"], result["missed"]) == (4, 2, 0)  # of two frames
    assert result["sq_things"] == pytest.approx(100 * (0.75 + 1) / 2)
    assert result["pq_things"] == pytest.approx(100 * (0.75 + 1) / 2.5)
    assert result["cov_things"] == pytest.approx(100 * (0.75 + 1) / 2)


def test_classes_of_one_side_alone_are_void():
    result = measure(Fixed(prediction()), [frame()], TRUE_SPACE)
    floor_iou = (8000 - 800 - 200) / (8000 - 800 + 100)  # 200 px lost to the false shelf, 100 won from the true one
    shelf_pq = 0.75 / 1.5  # the piano is void, the false shelf is an error
    assert result["num_classes"] == 2
    assert result["pq_classes"] == pytest.approx(100 * (floor_iou + shelf_pq) / 2)


def test_no_labels_miss_everything():
    result = measure(Fixed(None), [frame()], TRUE_SPACE)
    assert (result["pq_things"], result["missed"], result["pq_classes"]) == (0, 2, 0)
