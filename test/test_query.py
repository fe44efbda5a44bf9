"""Object queries against a small hand-made map."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from panoptic_mapper.label_space import LabelSpace, SemanticClass
from panoptic_mapper.query import BoxRegion, ObjectQuery, SphereRegion, select_objects, unknown_ids
from panoptic_mapper.snapshot import Box, MapObject

SPACE = LabelSpace.from_classes([SemanticClass(5, "chair", True), SemanticClass(7, "table", True)])


def thing(id: int, class_index: int, x: float, y: float, score: float = 0.9) -> MapObject:
    center = np.array([x, y, 0.5])
    box = Box(center, np.ones(3), np.array([1.0, 0, 0, 0]))
    name = SPACE.names[class_index]
    return MapObject(id, class_index, name, score, 3, center, box, center - 0.5, center + 0.5, 100, 0, 1)


OBJECTS = [thing(4, 1, 0, 0), thing(1, 1, 3, 0, 0.4), thing(2, 2, 3, 1), thing(9, 2, -2, -2)]


def found(**conditions) -> list[int]:
    return [o.id for o in select_objects(OBJECTS, ObjectQuery(**conditions), SPACE)]


def box(center: tuple, size: tuple, yaw_deg: float = 0) -> BoxRegion:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix()
    T[:3, 3] = center
    return BoxRegion(T, np.array(size))


def test_no_condition_returns_all_by_id() -> None:
    assert found() == [1, 2, 4, 9]


def test_each_condition() -> None:
    assert found(class_names=["Chair"]) == [1, 4]
    assert found(class_names=["chair", "table"]) == [1, 2, 4, 9]
    assert found(ids=[9, 4, 77]) == [4, 9]
    assert found(min_score=0.5) == [2, 4, 9]
    assert found(sphere=SphereRegion(np.array([3, 0, 0.5]), 1.0)) == [1, 2]  # the surface belongs to the ball
    assert found(box=box((3, 0.5, 0.5), (0.2, 1.2, 1))) == [1, 2]


def test_a_turned_box_is_tested_along_its_own_axes() -> None:
    """2.9 m along the diagonal reach (-2, -2) only after a turn by 45 degrees."""
    assert found(box=box((0, 0, 0.5), (5.8, 0.4, 1))) == [4]
    assert found(box=box((0, 0, 0.5), (5.8, 0.4, 1), yaw_deg=45)) == [4, 9]


def test_conditions_hold_together() -> None:
    near = SphereRegion(np.array([3, 0, 0.5]), 1.5)
    assert found(class_names=["chair"], sphere=near) == [1]
    assert found(class_names=["chair"], sphere=near, min_score=0.5) == []


def test_nearest_come_in_order_of_distance() -> None:
    assert found(nearest_k=3, nearest_to=np.array([3, 1, 0.5])) == [2, 1, 4]
    assert found(nearest_k=1, class_names=["table"]) == [9]  # from the origin
    assert found(nearest_k=10, nearest_to=[-2, -2, 0]) == [9, 4, 1, 2]


def test_unknown_ids_are_stated_and_unknown_classes_are_errors() -> None:
    assert unknown_ids(OBJECTS, ObjectQuery(ids=[99, 4, 77])) == [77, 99]
    with pytest.raises(ValueError, match="unknown class 'sofa'; known: chair, table"):
        found(class_names=["sofa"])


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("box_size", lambda: box((0, 0, 0), (1, 0, 1))),
        ("box_size", lambda: box((0, 0, 0), (1, np.nan, 1))),
        ("pose", lambda: box((0, np.nan, 0), (1, 1, 1))),
        ("sphere_center", lambda: SphereRegion(np.array([0, np.inf, 0]), 1.0)),
        ("sphere_center", lambda: SphereRegion(np.zeros(2), 1.0)),
        ("sphere_radius", lambda: SphereRegion(np.zeros(3), 0.0)),
        ("sphere_radius", lambda: SphereRegion(np.zeros(3), np.nan)),
        ("min_score", lambda: ObjectQuery(min_score=1.5)),
        ("min_score", lambda: ObjectQuery(min_score=float("nan"))),
        ("nearest_k", lambda: ObjectQuery(nearest_k=-1)),
        ("nearest_to", lambda: ObjectQuery(nearest_to=np.array([0, np.nan, 0]))),
    ],
)
def test_wrong_numbers_are_named(name: str, make) -> None:
    with pytest.raises(ValueError, match=name):
        make()
