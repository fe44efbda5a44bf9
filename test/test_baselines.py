"""The baselines of the accuracy report: warping, voxels and votes against brute force, and both on a small walk."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from small_room import CAMERA, CHAIR, FLOOR, ROOM_SPACE, SPACE, TABLE, WALL, room_frames, wall_frame

from benchmarks.baselines.instance_votes import SLOTS, InstanceVotes
from benchmarks.baselines.tracker import Tracker, TrackerConfig
from benchmarks.baselines.true_association import TrueAssociation
from benchmarks.baselines.voxel_hash import FusedSurface, VoxelHash
from benchmarks.baselines.voxel_voting import VoxelConfig, VoxelVoting
from benchmarks.baselines.warping import filled_from_nearest, map_points, seen_pixels, splatted
from panoptic_mapper.datasets.noise import NoiseConfig
from panoptic_mapper.evaluation import evaluate
from panoptic_mapper.frame import Segmentation
from panoptic_mapper.segmenters.dataset import DatasetSegmenter


def moved(x_m, y_m=0.0, z_m=0.0):
    pose = np.eye(4)
    pose[:3, 3] = (x_m, y_m, z_m)
    return pose


def relabeled(frame, semantic, instance, confidence=None):
    return replace(frame, labels=Segmentation(semantic.astype(np.int32), instance.astype(np.int32), confidence))


def observed(frames, noise=None, seed=0):
    segmenter = DatasetSegmenter(ROOM_SPACE, seed, noise)
    return [replace(frame, labels=segmenter.segment(frame)) for frame in frames]


def fed(baseline, frames):
    for frame in frames:
        baseline.integrate(frame)
    return baseline


def make_tracker(space=ROOM_SPACE, **settings):
    return Tracker(space, TrackerConfig(**({"min_hits": 1} | settings)))


def make_voxels(space=ROOM_SPACE, **settings):
    return VoxelVoting(space, VoxelConfig(**({"min_hits": 1} | settings)))


MAKERS = pytest.mark.parametrize("make", [make_tracker, make_voxels])


def test_points_lie_where_the_camera_measured_them():
    points = map_points(np.full((30, 40), 2.0, np.float32), CAMERA, moved(1, 2, 3))
    assert points[14, 19] == pytest.approx([1 + 2 * (19 - 19.5) / 40, 2 + 2 * (14 - 14.5) / 40, 5])


def test_a_wall_is_seen_shifted_by_the_cameras_motion():
    frame = wall_frame(2.0)
    there = wall_frame(2.0, moved(0.25))  # 0.25 m * 40 px / 2 m = 5 px
    pixels = seen_pixels(map_points(frame.depth, CAMERA, np.eye(4)).reshape(-1, 3), there.depth, CAMERA, moved(0.25))
    expected = np.arange(1200).reshape(30, 40) - 5
    expected[:, :5] = -1
    assert np.array_equal(pixels.reshape(30, 40), expected)


def test_what_is_hidden_in_the_other_view_is_not_seen():
    points = map_points(np.full((30, 40), 2.0, np.float32), CAMERA, np.eye(4)).reshape(-1, 3)
    depth = np.full((30, 40), 2.0, np.float32)
    depth[:, 20:] = 1.0  # something stands before it
    depth[0] = 0  # and here nothing was measured
    seen = seen_pixels(points, depth, CAMERA, np.eye(4)).reshape(30, 40) >= 0
    assert seen[1:, :20].all()
    assert not seen[:, 20:].any()
    assert not seen[0].any()


def test_the_nearest_of_the_splatted_points_is_shown():
    rng = np.random.default_rng(0)
    points = rng.uniform((-1, -1, 0.5), (1, 1, 4), (300, 3)).astype(np.float32)
    radii = rng.uniform(0, 0.12, 300)
    index, depth = splatted(points, radii, CAMERA, np.eye(4), max_radius_px=4)
    expected = np.full((30, 40), np.inf)
    owner = np.full((30, 40), -1)
    for i, ((x, y, z), radius) in enumerate(zip(points, radii, strict=True)):
        u, v = round(float(40 * x / z + 19.5)), round(float(40 * y / z + 14.5))
        r = min(int(np.ceil(40 * radius / z - 0.5)), 4)
        if not (0 <= u < 40 and 0 <= v < 30):
            continue
        area = np.s_[max(v - r, 0) : v + r + 1, max(u - r, 0) : u + r + 1]
        owner[area] = np.where(z < expected[area], i, owner[area])
        expected[area] = np.minimum(expected[area], z)
    assert (owner >= 0).mean() > 0.1
    assert np.array_equal(index, owner)
    assert np.array_equal(depth, np.where(owner >= 0, expected, 0).astype(np.float32))


def test_holes_take_the_nearest_pixels_value():
    image = np.array([[1, 0, 0, 7, 0]])
    assert filled_from_nearest(image, image > 0).tolist() == [[1, 1, 7, 7, 7]]
    assert filled_from_nearest(image, np.zeros((1, 5), bool)).tolist() == image.tolist()


def test_the_hash_finds_each_voxel_as_a_dictionary_does():
    rng = np.random.default_rng(0)
    grid, rows_of = VoxelHash(0.1), {}
    for _ in range(4):
        points = rng.uniform(-1, 1, (200, 3))
        keys = np.unique(grid.keys(points))
        for key, row in zip(keys.tolist(), grid.insert(keys).tolist(), strict=True):
            assert rows_of.setdefault(key, row) == row
    assert len(grid) == len(rows_of)
    assert sorted(rows_of.values()) == list(range(len(grid)))
    assert grid.find(grid.keys(np.array([[5.0, 5, 5]]))).tolist() == [-1]
    one_voxel = np.array([[-0.05, 0.01, 0.3001], [-0.01, 0.09, 0.3999]])
    assert len(set(grid.keys(one_voxel).tolist())) == 1
    assert len(set(grid.keys(one_voxel * [[1, 1, 1], [-1, 1, 1]]).tolist())) == 2


def test_the_surface_is_the_mean_of_what_was_measured():
    surface = FusedSurface(1.0)
    points, colors = np.array([[0.2, 0.2, 0.2], [5.5, 0, 0]], np.float32), np.array([[10, 0, 0], [1, 2, 3]], np.uint8)
    surface.fuse(points, colors, px_per_m=np.array([0.25, 0.1]))
    surface.fuse(np.array([[0.6, 0.2, 0.4]], np.float32), np.array([[30, 0, 100]], np.uint8), np.array([5.0]))
    assert surface.points == pytest.approx(np.array([[0.4, 0.2, 0.3], [5.5, 0, 0]]))
    assert surface.spacing_m == pytest.approx([1, 10])  # at least a voxel, where pixels were nearer to each other
    at = np.array([[0.9, 0.9, 0.9], [5.1, 0.1, 0], [9, 9, 9]], np.float32)
    assert surface.colors_at(at).tolist() == [[20, 0, 50], [1, 2, 3], [0, 0, 0]]


def test_votes_are_counted_as_a_counter_does():
    rng = np.random.default_rng(0)
    votes, expected = InstanceVotes(), defaultdict(Counter)
    votes.grow(20)
    for _ in range(50):
        rows = np.flatnonzero(rng.random(20) < 0.5)
        ids, weights = rng.integers(1, SLOTS + 1, len(rows)), rng.random(len(rows)).astype(np.float32)
        votes.add(rows, ids, weights)
        for row, id, weight in zip(rows.tolist(), ids.tolist(), weights.tolist(), strict=True):
            expected[row][id] += weight
    assert votes.best(np.arange(20)).tolist() == [expected[row].most_common(1)[0][0] for row in range(20)]
    votes.rename(3, 1)
    for counter in expected.values():
        counter[1] += counter.pop(3, 0)
    assert votes.best(np.arange(20)).tolist() == [expected[row].most_common(1)[0][0] for row in range(20)]


def test_a_full_voxel_forgets_the_instance_with_the_fewest_votes():
    votes = InstanceVotes()
    votes.grow(1)
    for id in range(1, SLOTS + 1):
        votes.add(np.array([0]), np.array([id]), np.array([float(id)]))
    votes.add(np.array([0]), np.array([99]), np.array([100.0]))
    assert votes.best(np.array([0])).tolist() == [99]
    votes.add(np.array([0]), np.array([1]), np.array([99.5]))  # id 1 had made room, and begins again
    assert votes.best(np.array([0])).tolist() == [99]


@MAKERS
def test_a_walk_with_clean_labels_is_nearly_right(make):
    frames = room_frames()
    metrics = evaluate(fed(make(), observed(frames[::2])), frames[1::2])
    assert metrics["pq"] > 70
    assert metrics["miou"] > 70
    assert metrics["id_switches"] == 0
    assert metrics["depth_l1_m"] < 0.1


@MAKERS
def test_the_ids_of_the_2d_labels_play_no_part(make):
    frames = observed(room_frames()[:4])
    rng = np.random.default_rng(0)
    permuted = []
    for frame in frames:
        new = np.append(0, 1 + rng.permutation(int(frame.labels.instance.max())))
        permuted.append(relabeled(frame, frame.labels.semantic, new[frame.labels.instance]))
    one, other = (fed(make(), given).render(frames[1].camera, frames[1].T_map_camera) for given in (frames, permuted))
    assert np.array_equal(one.semantic, other.semantic)
    pairs = np.unique(np.stack([one.instance.ravel(), other.instance.ravel()]), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1])) > 2


@MAKERS
def test_most_masks_decide_about_an_objects_class(make):
    frame = wall_frame()
    flipped = np.where(frame.labels.semantic == CHAIR, TABLE, frame.labels.semantic)
    frames = [frame, relabeled(frame, flipped, frame.labels.instance), frame]
    view = fed(make(SPACE), frames).render(CAMERA, np.eye(4), frame.depth)
    assert (view.semantic == frame.labels.semantic).all()
    assert len(np.unique(view.instance[:24, :20])) == 1


@MAKERS
def test_unlabeled_pixels_say_nothing(make):
    frame = wall_frame()
    is_chair = frame.labels.semantic == CHAIR
    dropped = relabeled(frame, np.where(is_chair, 0, frame.labels.semantic), frame.labels.instance * ~is_chair)
    view = fed(make(SPACE), [frame, dropped, dropped]).render(CAMERA, np.eye(4), frame.depth)
    assert (view.semantic == frame.labels.semantic).mean() > 0.99
    again = fed(make(SPACE), [frame, dropped, frame]).render(CAMERA, np.eye(4), frame.depth)
    assert len(np.unique(again.instance[:24, :20])) == 1


@MAKERS
def test_objects_with_few_masks_are_not_shown(make):
    frame = wall_frame()
    assert (fed(make(SPACE, min_hits=2), [frame]).render(CAMERA, np.eye(4)).instance == 0).all()
    assert len(np.unique(fed(make(SPACE, min_hits=2), [frame] * 2).render(CAMERA, np.eye(4)).instance)) == 3


@MAKERS
def test_the_views_depth_is_that_of_the_surface(make):
    view = fed(make(SPACE), [wall_frame(2.0)]).render(CAMERA, moved(0, 0, 0.5))
    assert (view.alpha > 0).mean() > 0.3
    assert view.depth == pytest.approx(1.5, abs=1e-3)


def test_a_forgotten_track_gets_a_new_id():
    near, away = wall_frame(), wall_frame(T_map_camera=moved(50))
    for memory_frames, expected in ((0, 4), (2, 6)):
        tracker = fed(make_tracker(SPACE, memory_frames=memory_frames), [near, away, away, near])
        assert tracker.num_tracks == expected


def test_a_mask_of_two_instances_merges_them_only_where_it_comes_again_and_again():
    frame = wall_frame()
    things = np.isin(frame.labels.semantic, (CHAIR, TABLE))
    joined = relabeled(frame, np.where(things, CHAIR, FLOOR), things)
    for frames, expected in (
        ([frame] + 2 * [joined], 1),
        ([frame] + [joined, frame] * 3, 2),
    ):
        voxels = fed(make_voxels(SPACE, merge_evidence=2.0, min_mask_voxels=5), frames)
        assert voxels.num_instances == expected


def told(frames, truths, **settings):
    """Voxel voting that is told the true objects."""
    voxels = TrueAssociation(SPACE, VoxelConfig(**({"min_hits": 1} | settings)))
    for frame, truth in zip(frames, truths, strict=True):
        voxels.integrate(frame, truth.labels)
    return voxels


def test_parts_that_are_never_seen_together_are_one_object_only_to_true_association():
    frame = wall_frame()
    u = np.arange(40)
    parts = [
        relabeled(frame, np.where(shown, frame.labels.semantic, 0), frame.labels.instance * shown)
        for shown in np.broadcast_to([u < 10, u >= 10], (30, 2, 40)).swapaxes(0, 1)
    ]
    left, right = (24 // 2, 4), (24 // 2, 14)  # pixels of the chair
    by_overlap = fed(make_voxels(SPACE), parts * 3).render(CAMERA, np.eye(4), frame.depth)
    assert by_overlap.instance[left] != by_overlap.instance[right]
    view = told(parts * 3, [frame] * 6).render(CAMERA, np.eye(4), frame.depth)
    for thing in (CHAIR, TABLE):
        assert len(np.unique(view.instance[frame.labels.semantic == thing])) == 1
    assert len(np.unique(view.instance)) == 3
    assert (view.instance > 0).mean() == (frame.labels.instance > 0).mean()


@pytest.mark.parametrize(("first_table_column", "larger"), [(26, CHAIR), (14, TABLE)])
def test_a_mask_is_given_to_the_true_object_that_most_of_its_pixels_show(first_table_column, larger):
    frame = wall_frame()
    things = np.isin(frame.labels.semantic, (CHAIR, TABLE))
    semantic = np.where(things, np.where(np.arange(40) < first_table_column, CHAIR, TABLE), FLOOR)
    apart = relabeled(frame, semantic, np.choose(semantic, [0, 2**31 - 1, 0, 7, 0]))
    joined = relabeled(frame, np.where(things, CHAIR, FLOOR), things)
    voxels = told([apart], [apart])
    before = voxels.render(CAMERA, np.eye(4), frame.depth).instance
    for _ in range(2):
        voxels.integrate(joined, apart.labels)
    after = voxels.render(CAMERA, np.eye(4), frame.depth).instance
    assert len(np.unique(before[things])) == 2
    assert set(after[things]) == set(before[semantic == larger])  # what most masks said, which merged nothing:
    for _ in range(2):
        voxels.integrate(apart, apart.labels)
    assert np.array_equal(voxels.render(CAMERA, np.eye(4), frame.depth).instance, before)


def test_a_mask_of_no_true_thing_is_no_instance():
    frame = wall_frame()
    invented = relabeled(frame, np.full((30, 40), TABLE), np.where(np.arange(30)[:, None] < 24, 0, 9).repeat(40, 1))
    view = told([invented], [frame]).render(CAMERA, np.eye(4), frame.depth)
    assert (view.instance == 0).all()
    assert (view.semantic == TABLE).all()


def test_noise_costs_accuracy():
    frames = room_frames()
    hard = NoiseConfig(flip=0.4, drop=0.4)
    pq = [evaluate(fed(make_voxels(), observed(frames[::2], n)), frames[1::2])["pq"] for n in (None, hard)]
    assert pq[1] < pq[0] - 5


def test_stuff_has_no_instance():
    view = fed(make_voxels(SPACE), [wall_frame()]).render(CAMERA, np.eye(4))
    assert (view.instance[view.semantic == FLOOR] == 0).all()
    assert (view.semantic == FLOOR).any()
    assert not (view.semantic == WALL).any()
