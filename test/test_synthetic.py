"""The synthetic world: exact geometry and labels, determinism, noise of the asked-for size."""

import numpy as np
import pytest

from panoptic_mapper.datasets.lighting import Light
from panoptic_mapper.datasets.primitives import Material, Primitive, cast_rays, surface_normals
from panoptic_mapper.datasets.synthetic import LABEL_SPACE, SyntheticConfig, SyntheticRoom
from panoptic_mapper.frame import PinholeCamera

SMALL = {"width": 80, "height": 60, "num_frames": 12}


def make(**settings) -> SyntheticRoom:
    return SyntheticRoom(SyntheticConfig(**(SMALL | settings)))


def back_project(frame) -> np.ndarray:  # [H, W, 3] map frame, m
    v, u = np.indices(frame.depth.shape)
    c = frame.camera
    z = frame.depth.astype(np.float64)
    points = np.stack([(u - c.cx) / c.fx * z, (v - c.cy) / c.fy * z, z], -1)
    return points @ frame.T_map_camera[:3, :3].T + frame.T_map_camera[:3, 3]


@pytest.fixture(scope="module")
def room() -> SyntheticRoom:
    return make()


@pytest.mark.parametrize("shape", ["box", "cylinder", "ellipsoid"])
def test_ray_casting_agrees_with_marching(shape):
    """Just before the hit a ray is outside the solid, just behind it inside; a ray that misses never enters."""
    rng = np.random.default_rng(5)
    R, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    R *= np.sign(np.linalg.det(R))
    half = np.array([0.3, 0.3, 0.5])
    solid = Primitive(shape, np.array([0.1, -0.1, 2.0]), half, R, Material("plain", (1, 1, 1)), 1, 0)
    camera = PinholeCamera(40, 40, 19.5, 14.5, 40, 30)
    depth = cast_rays([solid], np.eye(4), camera).depth
    v, u = np.indices(depth.shape)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1).reshape(-1, 3)
    z = depth.reshape(-1)
    hit = np.isfinite(z)
    assert 50 < hit.sum() < hit.size
    # Rays that graze an edge or a silhouette are cut by less than the step, or lose digits in float32.
    assert solid.contains(rays[hit] * (z[hit] - 1e-4)[:, None]).mean() < 0.01
    assert solid.contains(rays[hit] * (z[hit] + 1e-4)[:, None]).mean() > 0.99
    for t in np.linspace(0.5, 3.5, 200):
        assert not solid.contains(rays[~hit] * t).any()


def test_normals_are_those_of_the_surface():
    solids = [
        Primitive(shape, np.zeros(3), np.array([0.4, 0.4, 0.7]), np.eye(3), Material("plain", (1, 1, 1)), 1, 0)
        for shape in ("box", "cylinder", "ellipsoid")
    ]
    points = np.array([[0.4, 0.1, 0.2], [0, -0.4, 0.3], [0.1, 0.1, 0.7], [0, 0, -0.7]])
    box, cylinder = (surface_normals(solids, points, np.full(4, k)) for k in (0, 1))
    np.testing.assert_allclose(box, [[1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], atol=1e-6)
    np.testing.assert_allclose(cylinder[1:], [[0, -1, 0], [0, 0, 1], [0, 0, -1]], atol=1e-6)
    direction = np.array([0.3, -0.5, 0.6])
    on_ellipsoid = direction / np.linalg.norm(direction / solids[2].half)
    gradient = on_ellipsoid / solids[2].half ** 2
    normal = surface_normals(solids, on_ellipsoid[None], np.array([2]))[0]
    np.testing.assert_allclose(normal, gradient / np.linalg.norm(gradient), atol=1e-6)


def test_same_seed_same_frames_in_any_order():
    a, b = make(seed=3, depth_noise=0.01), make(seed=3, depth_noise=0.01)
    later = a[5]
    _, again = b[0], b[5]
    np.testing.assert_array_equal(later.color, again.color)
    np.testing.assert_array_equal(later.depth, again.depth)
    np.testing.assert_array_equal(later.T_map_camera, again.T_map_camera)
    assert np.abs(make(seed=4)[5].color.astype(int) - later.color).mean() > 5


def test_geometry_and_labels_agree_between_frames(room):
    """A point of one frame, seen from the next, is at the depth and has the label that the next frame says."""
    a, b = room[2], room[3]
    points = (back_project(a).reshape(-1, 3) - b.T_map_camera[:3, 3]) @ b.T_map_camera[:3, :3]
    z = points[:, 2]
    front = z > 0.1
    u = np.rint(b.camera.fx * points[front, 0] / z[front] + b.camera.cx).astype(int)
    v = np.rint(b.camera.fy * points[front, 1] / z[front] + b.camera.cy).astype(int)
    inside = (u >= 0) & (u < b.camera.width) & (v >= 0) & (v < b.camera.height)
    u, v, z = u[inside], v[inside], z[front][inside]
    visible = z < b.depth[v, u] + 0.02 * z
    assert visible.mean() > 0.5
    same_depth = np.abs(z - b.depth[v, u]) < 0.05 * z
    same_label = a.labels.instance.reshape(-1)[front][inside] == b.labels.instance[v, u]
    assert same_depth[visible].mean() > 0.95
    assert same_label[visible].mean() > 0.95


def test_floor_and_things_are_where_the_ground_truth_says(room):
    objects = {o.id: o for o in room.ground_truth_objects()}
    floor = LABEL_SPACE.index_of("floor")
    seen = set()
    for index in range(0, len(room), 3):
        frame = room[index]
        points = back_project(frame)
        np.testing.assert_allclose(points[frame.labels.semantic == floor][:, 2], 0, atol=1e-4)
        for instance in np.unique(frame.labels.instance[frame.labels.instance > 0]):
            mask = frame.labels.instance == instance
            truth = objects[instance]
            assert set(frame.labels.semantic[mask]) == {truth.class_index}
            assert np.all(points[mask] > truth.aabb_min - 1e-3)
            assert np.all(points[mask] < truth.aabb_max + 1e-3)
            w, x, y, zq = truth.box.quaternion
            assert x == y == 0
            yaw = 2 * np.arctan2(zq, w)
            axes = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
            assert np.all(np.abs((points[mask] - truth.box.center) @ axes) < truth.box.size / 2 + 1e-3)
            seen.add(int(instance))
    assert len(seen) > 0.8 * len(objects)


def test_stuff_has_no_instance_and_every_pixel_a_class(room):
    labels = room[0].labels
    assert labels.semantic.min() > 0
    np.testing.assert_array_equal(labels.instance > 0, LABEL_SPACE.is_thing[labels.semantic])


def test_several_objects_of_one_class(room):
    names = [o.class_name for o in room.ground_truth_objects()]
    assert names.count("chair") >= 4
    assert names.count("table") >= 2
    assert names.count("picture") >= 3


@pytest.mark.parametrize("num_rooms", [1, 3, 4])
def test_walk_is_closed_and_meets_nothing(num_rooms):
    world = make(num_rooms=num_rooms, num_frames=300)
    at = world.true_poses[:, :3, 3]
    for solid in world._primitives:
        assert not solid.contains(at).any()
    steps = np.linalg.norm(np.diff(np.concatenate([at, at[:1]]), axis=0), axis=1)
    assert steps.max() < 4 * np.median(steps)
    down = world.true_poses[:, :3, 1]  # the image's y axis
    assert np.all(down[:, 2] < -0.5)


def test_many_rooms_have_things_in_each():
    world = make(num_rooms=3)
    assert len({round(float(o.box.center[1]) > 0) for o in world.ground_truth_objects()}) == 2
    assert len(world.ground_truth_objects()) > 30
    assert np.all(np.isfinite(world[7].depth) & (world[7].depth > 0))


def test_depth_noise_and_dropout_have_the_asked_for_size():
    exact, noisy = make(), make(depth_noise=0.01)
    z = exact[1].depth
    residual = (noisy[1].depth - z) / z**2
    assert residual.std() == pytest.approx(0.01, rel=0.05)
    holes = make(depth_dropout=0.2)[1].depth == 0
    assert holes.mean() == pytest.approx(0.2, abs=0.01)


def test_pose_noise_has_the_asked_for_size():
    size = {"num_frames": 60, "width": 16, "height": 12}
    exact, noisy = make(**size), make(**size, pose_noise_m=0.02, pose_noise_deg=1.0)
    np.testing.assert_allclose(exact[3].T_map_camera, exact.true_poses[3], atol=1e-14)
    T = np.stack([noisy[i].T_map_camera for i in range(60)])
    assert (T[:, :3, 3] - exact.true_poses[:, :3, 3]).std() == pytest.approx(0.02, rel=0.25)
    traces = np.einsum("nij,nij->n", T[:, :3, :3], exact.true_poses[:, :3, :3])
    angle = np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))
    assert np.sqrt((angle**2).mean() / 3) == pytest.approx(1.0, rel=0.25)


def test_stamps_follow_the_rate():
    world = make(fps=10)
    assert [world[i].stamp_ns for i in (0, 3)] == [0, 300_000_000]
    with pytest.raises(IndexError):
        world[len(world)]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"num_frames.*>= 1"):
        SyntheticConfig(num_frames=0)


def test_lighting_changes_colours_from_frame_to_frame_and_nothing_else(room):
    lit, again = make(lighting_variance=1.0), make(lighting_variance=1.0)
    frames = [lit[i] for i in range(len(lit))]
    np.testing.assert_array_equal(again[7].color, frames[7].color)  # without the frames before it
    np.testing.assert_array_equal(frames[7].depth, room[7].depth)
    np.testing.assert_array_equal(frames[7].labels.instance, room[7].labels.instance)
    brightness = np.array([f.color.mean() / room[i].color.mean() for i, f in enumerate(frames)])
    assert brightness.std() > 0.2
    weak = make(lighting_variance=0.1)
    assert np.std([weak[i].color.mean() / room[i].color.mean() for i in range(12)]) < 0.4 * brightness.std()


def test_light_by_hand():
    """A wall 4 m before a lamp of strength 3, at 60 degrees: 0.5 * 0.8 of the fixed light and 3 * 0.5 / (1 + 2^2)."""
    light = Light(ambient=0.5, lamp=3.0, lamp_position=np.array([0, 0, 4.0]), gains=np.array([1, 0.5, 2]))
    normal = np.array([[np.sin(np.pi / 3), 0, np.cos(np.pi / 3)]])
    on_wall = light.on(np.zeros((1, 3)), np.concatenate([normal, -normal]), np.full((2, 1), 0.8))
    np.testing.assert_allclose(on_wall, np.array([[0.7], [0.4]]) * [1, 0.5, 2])


def test_bare_walls_have_no_texture_and_things_keep_theirs(room):
    bare = make(bare_walls=True, color_noise=0)
    frame, textured = bare[0], make(color_noise=0)[0]
    thing = frame.labels.instance > 0
    np.testing.assert_array_equal(frame.color[thing], textured.color[thing])
    # The strongest change of a floor of planks from one pixel to the next is a seam.
    floor = frame.labels.semantic == LABEL_SPACE.index_of("floor")
    inside = floor[:, 1:] & floor[:, :-1]
    assert inside.sum() > 50
    steps = [np.abs(np.diff(f.color[..., 0].astype(int), axis=1))[inside] for f in (frame, textured)]
    assert np.mean(steps[0]) < 0.5 * np.mean(steps[1])
