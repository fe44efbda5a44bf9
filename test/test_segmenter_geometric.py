"""The geometric segmenter and its surface tools on rooms whose depth is computed exactly."""

import numpy as np
import pytest

from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.segmenters import surface
from panoptic_mapper.segmenters.geometric import CEILING, FLOOR, OBJECT, WALL, GeometricSegmenter, lowest_level
from panoptic_mapper.segmenters.up_direction import UpDirection

CAMERA = PinholeCamera(250.0, 250.0, 159.5, 119.5, 320, 240)
# A camera 1.2 m above the floor that looks along +y of a z-up map and 20 degrees down.
TILT = np.radians(20)
T_MAP_CAMERA = np.array(
    [[1, 0, 0, 0], [0, -np.sin(TILT), np.cos(TILT), 0], [0, -np.cos(TILT), -np.sin(TILT), 1.2], [0, 0, 0, 1]]
)
FLOOR_PLANE = ((0, 0, 1), 0.0)
WALL_PLANE = ((0, -1, 0), -3.5)  # the wall at y = 3.5 m
CEILING_PLANE = ((0, 0, -1), -2.0)
BOX = ((-0.4, 1.9, 0.0), (0.3, 2.4, 0.5))  # min and max corner, map frame, m
ON_BOX = ((-0.15, 2.0, 0.5), (0.05, 2.2, 0.75))


def render(planes, boxes, T=T_MAP_CAMERA):
    """Depth [H, W] m and the index [H, W] of what each ray hits: planes first, then boxes; -1 = nothing."""
    rays = surface.viewing_rays(CAMERA).astype(float) @ T[:3, :3].T
    origin = T[:3, 3]
    depth = np.full(rays.shape[:2], np.inf)
    hit = np.full(depth.shape, -1)

    def take(distance, index):
        nearer = (distance > 0) & (distance < depth)
        depth[nearer], hit[nearer] = distance[nearer], index

    for i, (normal, offset) in enumerate(planes):
        with np.errstate(divide="ignore"):
            take((offset - origin @ np.array(normal)) / (rays @ np.array(normal, float)), i)
    for i, (low, high) in enumerate(boxes):
        with np.errstate(divide="ignore"):
            t1, t2 = (np.array(low) - origin) / rays, (np.array(high) - origin) / rays
        enter, leave = np.minimum(t1, t2).max(-1), np.maximum(t1, t2).min(-1)
        take(np.where(enter < leave, enter, np.inf), len(planes) + i)
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32), hit


def frame_of(depth, T=T_MAP_CAMERA, camera=CAMERA):
    return Frame(0, np.zeros((*depth.shape, 3), np.uint8), depth, T, camera)


def kinect_noise(depth, seed=0):
    """Noise that grows with the square of depth, and 5 % missing pixels."""
    rng = np.random.default_rng(seed)
    noisy = depth + rng.normal(0, 0.0015, depth.shape).astype(np.float32) * depth**2
    return np.where(rng.random(depth.shape) < 0.05, 0, noisy)


@pytest.mark.parametrize("noise", [lambda depth: depth, kinect_noise])
def test_box_on_a_floor_before_a_wall(noise):
    depth, hit = render([FLOOR_PLANE, WALL_PLANE], [BOX])
    depth = noise(depth)
    labels = GeometricSegmenter((0, 0, 1)).segment(frame_of(depth))
    expected = np.where(depth > 0, np.array([FLOOR, WALL, OBJECT])[hit], 0)
    assert (labels.semantic == expected).mean() > 0.985
    # Exactly one object, which is the box.
    ids = np.unique(labels.instance[labels.instance > 0])
    assert len(ids) == 1
    mask, truth = labels.instance == ids[0], (hit == 2) & (depth > 0)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95
    assert (labels.semantic[mask] == OBJECT).all()
    assert labels.confidence[depth > 0].min() >= 0


def test_thing_on_a_table_is_cut_off_at_the_concave_edge():
    depth, hit = render([FLOOR_PLANE, WALL_PLANE], [BOX, ON_BOX])
    labels = GeometricSegmenter((0, 0, 1)).segment(frame_of(depth))
    ids = np.unique(labels.instance[labels.instance > 0])
    assert len(ids) == 2
    for index in (2, 3):
        truth = hit == index
        best = max(((labels.instance == i) & truth).sum() / ((labels.instance == i) | truth).sum() for i in ids)
        assert best > 0.85


def test_ceiling_is_above_and_needs_no_object():
    up_tilt = T_MAP_CAMERA.copy()
    up_tilt[:3, 1:3] = [[0, 0], [np.sin(TILT), np.cos(TILT)], [-np.cos(TILT), np.sin(TILT)]]
    depth, hit = render([CEILING_PLANE, WALL_PLANE], [], up_tilt)
    labels = GeometricSegmenter((0, 0, 1)).segment(frame_of(depth, up_tilt))
    assert (labels.semantic == np.array([CEILING, WALL])[hit]).mean() > 0.98
    assert labels.instance.max() == 0


def test_cabinet_front_with_the_wall_behind_is_an_object():
    cabinet = ((-1.2, 2.5, 0.0), (0.8, 3.0, 1.0))
    depth, hit = render([FLOOR_PLANE, WALL_PLANE], [cabinet])
    labels = GeometricSegmenter((0, 0, 1)).segment(frame_of(depth))
    front = labels.semantic[hit == 2]
    assert (front == OBJECT).mean() > 0.95
    assert (labels.semantic[hit == 1] == WALL).mean() > 0.95


def test_large_wall_with_an_open_door_stays_a_wall():
    opening = (slice(0, 200), slice(80, 220))  # much of the next room is seen through it
    depth, hit = render([FLOOR_PLANE, ((0, -1, 0), -5.0)], [])
    beyond, _ = render([FLOOR_PLANE, ((0, -1, 0), -8.0)], [])
    in_door = np.zeros_like(hit, bool)
    in_door[opening] = hit[opening] == 1
    depth = np.where(in_door, beyond, depth)
    assert in_door.mean() > 0.15  # more than a wall may have behind it
    labels = GeometricSegmenter((0, 0, 1)).segment(frame_of(depth))
    assert (labels.semantic[(hit == 1) & ~in_door] == WALL).mean() > 0.95


def test_table_is_no_floor_once_the_floor_was_seen():
    segmenter = GeometricSegmenter((0, 0, 1))
    segmenter.segment(frame_of(render([FLOOR_PLANE], [])[0]))
    table, _ = render([((0, 0, 1), 0.75)], [])
    labels = segmenter.segment(frame_of(table))
    assert not (labels.semantic == FLOOR).any()
    assert (labels.semantic[table > 0] == OBJECT).mean() > 0.9


def test_up_is_estimated_where_it_is_not_given():
    roll = np.radians(15)  # a map whose z axis is not up
    R = np.array([[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]])
    T = T_MAP_CAMERA.copy()
    depth, hit = render([FLOOR_PLANE, WALL_PLANE], [BOX])
    T[:3] = R @ T[:3]
    labels = GeometricSegmenter().segment(frame_of(depth, T))
    assert (labels.semantic == np.array([FLOOR, WALL, OBJECT])[hit]).mean() > 0.97


def test_no_depth_gives_no_labels():
    empty = np.zeros((240, 320), np.float32)
    labels = GeometricSegmenter((0, 0, 1)).segment(frame_of(empty))
    assert labels.semantic.max() == 0
    assert labels.instance.max() == 0
    assert GeometricSegmenter().segment(frame_of(empty)) is None  # nothing to estimate up from


def test_larger_images_give_the_same_labels_at_their_own_size():
    depth, hit = render([FLOOR_PLANE, WALL_PLANE], [BOX])
    double = np.kron(depth, np.ones((2, 2), np.float32))
    labels = GeometricSegmenter((0, 0, 1)).segment(frame_of(double, camera=CAMERA.resized(640, 480)))
    assert labels.semantic.shape == (480, 640)
    assert (labels.semantic[::2, ::2] == np.array([FLOOR, WALL, OBJECT])[hit]).mean() > 0.98


def test_normals_of_planes_are_exact():
    depth, hit = render([FLOOR_PLANE, WALL_PLANE], [])
    w = surface.inverse_depth(depth)
    normals = surface.surface_normals(w, CAMERA) @ T_MAP_CAMERA[:3, :3].T
    inner = np.zeros_like(hit, bool)
    inner[12:-12, 12:-12] = True
    horizon = np.flatnonzero(np.diff(hit[:, 160]))[0]  # the rows where wall and floor meet
    inner[horizon - 12 : horizon + 12] = False
    for index, normal in enumerate(([0, 0, 1], [0, -1, 0])):
        cosine = normals[inner & (hit == index)] @ normal
        assert cosine.min() > np.cos(np.radians(1))


def test_jumps_are_found_at_steps_and_not_on_slanted_planes():
    depth, hit = render([FLOOR_PLANE, WALL_PLANE], [BOX])
    edges = surface.jump_edges(surface.inverse_depth(depth))
    top_of_box = np.flatnonzero(hit[:, 150] == 2)[0]
    assert edges[top_of_box - 1 : top_of_box + 1, 150].all()
    slanted, _ = render([FLOOR_PLANE], [])
    slanted[:60] = 0
    assert not surface.jump_edges(surface.inverse_depth(slanted))[64:-2, 2:-2].any()


def test_segments_are_numbered_without_gaps_and_specks_dropped():
    mask = np.zeros((20, 30), bool)
    mask[1:6, 1:6] = mask[1:3, 10:12] = mask[10:18, 20:29] = True
    segments = surface.connected_segments(mask, min_area_px=5)
    assert [(segments == i).sum() for i in (1, 2)] == [25, 72]
    assert segments.max() == 2
    assert surface.connected_segments(np.zeros((4, 4), bool), 1).max() == 0


def test_labels_grow_over_smooth_depth_and_stop_at_steps_and_borders():
    depth = np.ones((5, 12), np.float32)
    depth[:, 6:] = 2
    labels = np.zeros((5, 12), np.int32)
    labels[:, 3], labels[0, 11] = 4, 9
    grown = surface.grow_labels(labels, depth, iterations=4)
    assert (grown[:, :6] == 4).all()
    assert grown[4, 6] == 0  # behind the step, and out of reach of label 9
    assert grown[0, 7] == 9


def test_lowest_level_ignores_specks_below_it():
    rng = np.random.default_rng(0)
    heights = np.concatenate([rng.normal(0.02, 0.01, 500), rng.normal(0.75, 0.01, 2000), [-1.0, -0.9]])
    assert lowest_level(heights, min_count=50) == pytest.approx(0.02, abs=0.01)
    assert lowest_level(heights[:0], min_count=50) is None
    assert lowest_level(heights[:10], min_count=50) is None


def test_up_direction_is_normalised_estimated_and_snapped():
    depth, _ = render([FLOOR_PLANE, WALL_PLANE], [BOX])
    frame = frame_of(depth)
    np.testing.assert_allclose(UpDirection((0, 3, 4)).in_map(frame), [0, 0.6, 0.8])
    up = UpDirection()
    assert up.in_map(frame_of(np.zeros_like(depth))) is None
    np.testing.assert_array_equal(up.in_map(frame), [0, 0, 1])  # snapped: exactly z
    for _ in range(4):
        up.in_map(frame)
    upside_down = T_MAP_CAMERA @ np.diag([-1.0, -1.0, 1.0, 1.0])
    for _ in range(12):  # more than the frames before: they would turn an estimate that is not final
        np.testing.assert_array_equal(up.in_map(frame_of(depth, upside_down)), [0, 0, 1])
