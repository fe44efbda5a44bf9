"""The life of objects on a flat wall with two things: found, found again, merged, relabelled, retired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_room import (
    CHAIR,
    FLOOR,
    SPACE,
    TABLE,
    WALL,
    PassOn,
    gaussian_columns,
    make_mapper,
    mapped,
    wall_frame,
)

from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation
from panoptic_mapper.keyframes import Keyframe
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.object_discovery import associate, label_from, maintain_queries, open_queries, refit_queries

SETTINGS = (
    "optimizer.steps_per_keyframe=0",
    "up_axis=z",
    "instances.min_mask_px=30",
    "instances.min_gaussians=8",
    "instances.retire_after=3",
)
TABLE_ID, CHAIR_ID = 1, 2  # masks are numbered by instance id: the table is instance 3, the chair instance 5


def wall_mapper(*frames: Frame) -> PanopticMapper:
    return mapped(frames or (wall_frame(),), *SETTINGS, segmenter=PassOn(SPACE))


def relabeled(instance_of_pixels: np.ndarray, frame: Frame | None = None) -> Frame:
    frame = frame or wall_frame(stamp_ns=1)
    return replace(frame, labels=Segmentation(frame.labels.semantic, instance_of_pixels.astype(np.int32)))


def association(mapper: PanopticMapper, frame: Frame) -> tuple[list[int], list[int]]:
    """Ids of the masks 1..K of a frame, and which masks are parts, after association alone."""
    keyframe = mapper.keyframes.add(frame, frame.labels, mapper.device)
    return associate_again(mapper, keyframe)


@torch.no_grad()
def associate_again(mapper: PanopticMapper, keyframe: Keyframe) -> tuple[list[int], list[int]]:
    view, queries, config = mapper.map.view(keyframe.camera, keyframe.T_map_camera), mapper.map.queries, mapper.config
    parts = associate(keyframe, view, view.render(), view.blend_labels(), queries, config.association, config.density)
    queries.count(mapper.keyframes.observations())
    return keyframe.mask_ids[1:], parts


def associated(mapper: PanopticMapper, frame: Frame) -> list[int]:
    return association(mapper, frame)[0]


def opened(mapper: PanopticMapper, parts: Sequence[int] = ()) -> list[int]:
    """Ids of the objects that the latest keyframe's masks without a match open."""
    keyframe, config = mapper.keyframes.all[-1], mapper.config
    ids = open_queries(keyframe, list(parts), mapper.map, config.association, config.density)
    mapper.map.queries.count(mapper.keyframes.observations())
    return ids


def test_unmatched_masks_open_queries_with_the_class_of_their_mask() -> None:
    mapper = wall_mapper()
    queries = mapper.map.queries
    assert queries.ids.tolist() == [TABLE_ID, CHAIR_ID]
    assert queries.class_indices.tolist() == [TABLE, CHAIR]
    assert mapper.keyframes.all[0].mask_ids == [0, TABLE_ID, CHAIR_ID]
    # The left half of the wall at 2 m is centred half a metre to the left.
    np.testing.assert_allclose(queries.table["centers"][:, 0], [0.5, -0.5], atol=0.06)
    np.testing.assert_allclose(queries.table["centers"][:, 2], [2, 2], atol=0.01)


def test_gaussians_get_the_label_of_their_pixel_at_once() -> None:
    mapper = wall_mapper()
    gaussians = mapper.map.gaussians
    x, y, z = gaussians["means"].T
    u, v = (x / z * 40 + 19.5).round(), (y / z * 40 + 14.5).round()
    expected = torch.where(v >= 24, FLOOR, torch.where(u < 20, CHAIR, TABLE))
    assert len(gaussians) > 250
    assert torch.equal(gaussians["class_index"], expected.int())
    own_id = torch.where(v >= 24, 0, torch.where(u < 20, CHAIR_ID, TABLE_ID))
    assert torch.equal(gaussians["instance_id"], own_id.int())
    # And the features say so as well, without any optimisation.
    view = mapper.map.view(wall_frame().camera, np.eye(4))
    labels = view.blend_labels()
    ids = view.visible_ids
    assert torch.equal(labels.class_probs.argmax(1).int(), gaussians["class_index"][ids])
    thing_column = labels.distribution[:, 3:].argmax(1)  # 0 = unassigned, then the queries in view
    is_thing = own_id[ids] > 0
    assert torch.equal(thing_column[is_thing], own_id[ids][is_thing])


def test_labels_are_not_given_to_what_is_not_on_the_surface_or_has_one() -> None:
    mapper = wall_mapper()
    gaussians = mapper.map.gaussians
    gaussians["class_index"][:] = FLOOR
    means = torch.tensor([[-0.3, -0.2, 2.0], [-0.3, -0.2, 1.0], [-0.3, -0.2, 3.0], [-0.3, -0.2, -2.0]])
    gaussians.append(gaussian_columns(means), anchor=0)
    keyframe = mapper.keyframes.all[0]
    everything = torch.arange(len(gaussians))
    label_from(keyframe, [], keyframe.depth, mapper.map, everything, mapper.config.density)
    assert gaussians["class_index"][-4:].tolist() == [CHAIR, 0, 0, 0]
    assert gaussians["instance_id"][-4:].tolist() == [CHAIR_ID, 0, 0, 0]
    assert (gaussians["class_index"][:-4] == FLOOR).all()


def test_labels_go_to_lost_things_and_to_all_in_masks_that_opened_a_query() -> None:
    mapper = wall_mapper()
    gaussians, keyframe = mapper.map.gaussians, mapper.keyframes.all[0]
    right = gaussians["instance_id"] == TABLE_ID
    left = gaussians["instance_id"] == CHAIR_ID
    everything = torch.arange(len(gaussians))

    def labelled(new_ids: list[int], class_index: int, instance_id: int) -> torch.Tensor:
        """Which Gaussians are relabelled when all had this label before."""
        gaussians["class_index"][:] = class_index
        gaussians["instance_id"][:] = instance_id
        label_from(keyframe, new_ids, keyframe.depth, mapper.map, everything, mapper.config.density)
        return (gaussians["instance_id"] != instance_id) | (gaussians["class_index"] != class_index)

    assert not labelled([], TABLE, TABLE_ID).any()  # they have a label, of a living object
    assert not labelled([], WALL, 0).any()  # stuff
    assert torch.equal(labelled([], TABLE, 99), left | right)  # things of an object that is gone
    assert (gaussians["instance_id"][left] == CHAIR_ID).all()
    assert (gaussians["class_index"][left] == CHAIR).all()
    assert (gaussians["instance_id"][right] == TABLE_ID).all()
    assert (gaussians["instance_id"][~left & ~right] == 99).all()  # no mask says whose they are
    assert torch.equal(labelled([CHAIR_ID], TABLE, TABLE_ID), left)
    assert torch.equal(labelled([CHAIR_ID], WALL, 0), left)
    keyframe.mask_ids[2] = 0
    assert torch.equal(labelled([], CHAIR, 99), right)


def test_masks_find_their_objects_again_under_other_numbers() -> None:
    mapper = wall_mapper()
    labels = wall_frame().labels.instance
    swapped = np.select([labels == 5, labels == 3], [1, 8])
    assert associated(mapper, relabeled(swapped)) == [CHAIR_ID, TABLE_ID]
    queries = mapper.map.queries
    assert queries.column("observations").tolist() == [2, 2]
    assert queries.column("last_seen_ns").tolist() == [1, 1]
    assert queries.evidence[1, CHAIR] == 2
    assert queries.votes.tolist() == [[0, -2], [-2, 0]]  # two masks, two objects


def test_a_mask_of_something_new_is_not_matched() -> None:
    mapper = wall_mapper()
    frame = relabeled(np.where(np.indices((30, 40)).max(0) < 8, 9, wall_frame().labels.instance))
    nearer = np.where(frame.labels.instance == 9, np.float32(1.5), frame.depth)  # before the chair
    assert associated(mapper, replace(frame, depth=nearer)) == [TABLE_ID, CHAIR_ID, 0]
    assert opened(mapper) == [3]
    assert mapper.keyframes.all[-1].mask_ids == [0, TABLE_ID, CHAIR_ID, 3]


def cut_chair(stamp_ns: int = 1) -> Frame:
    """The chair in two masks: its upper third and the rest."""
    labels = wall_frame().labels.instance.copy()
    labels[:8][labels[:8] == 5] = 9
    return relabeled(labels, wall_frame(stamp_ns=stamp_ns))


def test_a_second_mask_on_an_object_is_a_part_on_trial() -> None:
    mapper = wall_mapper()
    ids, parts = association(mapper, cut_chair())
    assert ids == [TABLE_ID, CHAIR_ID, CHAIR_ID]
    assert parts == [3]
    queries = mapper.map.queries
    assert queries.column("observations").tolist() == [2, 2]
    np.testing.assert_allclose(queries.evidence.sum(1), [2, 2])  # the two parts count as one mask
    assert opened(mapper, parts) == [3]
    assert mapper.keyframes.all[-1].mask_ids == [0, TABLE_ID, CHAIR_ID, 3]
    assert queries.shown_rows().tolist() == [0, 1, 1]  # until more keyframes say so, it is the chair
    assert queries.column("contradictions").tolist() == [0, 0, 0]


def views_of_the_wall(*labels: Segmentation) -> list[Frame]:
    """The wall from further and further away, with these labels."""
    poses = [np.eye(4) for _ in labels]
    for i, pose in enumerate(poses):
        pose[2, 3] = -0.12 * i
    return [
        replace(wall_frame(2.0 + 0.12 * i, pose, stamp_ns=i), labels=label)
        for i, (pose, label) in enumerate(zip(poses, labels, strict=True))
    ]


def replayed(*frames: Frame) -> PanopticMapper:
    """A map of frames all of which are matched again after each of them, as optimisation would do by and by."""
    mapper = wall_mapper(frames[0])
    for frame in frames[1:]:
        mapper.integrate(frame)
        for keyframe in mapper.keyframes.all:
            associate_again(mapper, keyframe)
        maintain_queries(mapper.map, mapper.keyframes)
    return mapper


def test_masks_are_matched_again_only_when_there_are_other_queries() -> None:
    mapper = wall_mapper()
    associated(mapper, wall_frame(stamp_ns=1))
    keyframe, queries = mapper.keyframes.all[-1], mapper.map.queries
    votes, mask_ids = queries.votes.clone(), list(keyframe.mask_ids)
    keyframe.mask_ids = [0, 0, 0]
    associate_again(mapper, keyframe)
    assert keyframe.mask_ids == [0, 0, 0]  # nothing has changed, so nothing is done
    queries.revision += 1
    for _ in range(3):
        associate_again(mapper, keyframe)
    assert keyframe.mask_ids == mask_ids
    assert torch.equal(queries.votes, votes)  # what a keyframe says counts once
    assert queries.column("observations").tolist() == [2, 2]


def test_masks_of_old_keyframes_go_to_the_objects_that_came_later() -> None:
    apart, cut = wall_frame().labels, cut_chair().labels
    mapper = wall_mapper(*views_of_the_wall(apart, cut, cut))
    old = mapper.keyframes.all[1]
    assert old.mask_ids == [0, TABLE_ID, CHAIR_ID, 3]
    old.mask_ids = [0, TABLE_ID, CHAIR_ID, CHAIR_ID]  # as if it had come before the part was opened
    mapper.map.queries.count(mapper.keyframes.observations())
    before = mapper.map.queries.evidence[:, CHAIR].clone()
    mapper.map.queries.revision += 1
    associate_again(mapper, old)
    assert old.mask_ids == [0, TABLE_ID, CHAIR_ID, 3]
    after = mapper.map.queries.evidence[:, CHAIR]
    assert after[2] == before[2] + 1  # and so does its evidence


@pytest.mark.parametrize("seed", range(3))
def test_an_object_that_is_cut_at_random_in_every_fifth_image_stays_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [wall_frame().labels]
    for is_cut in rng.permutation([True] * 3 + [False] * 12):
        numbers = labels[0].instance.copy()
        if is_cut:  # in two parts, each time elsewhere
            upper = numbers[: rng.integers(6, 18)]
            upper[upper == 5] = 9
        labels.append(Segmentation(labels[0].semantic, numbers))
    mapper = replayed(*views_of_the_wall(*labels))
    queries = mapper.map.queries
    assert len(mapper.keyframes) == 16
    assert set(queries.ids[queries.shown_rows()].tolist()) == {TABLE_ID, CHAIR_ID}
    assert set(np.unique(mapper.render(wall_frame().camera, np.eye(4)).instance)) == {0, TABLE_ID, CHAIR_ID}


def test_an_object_that_is_cut_now_and_then_stays_one() -> None:
    whole, cut = wall_frame().labels, cut_chair().labels
    mapper = replayed(*views_of_the_wall(whole, whole, cut, whole, whole, whole, cut, whole, whole, whole))
    assert set(mapper.map.queries.ids[mapper.map.queries.shown_rows()].tolist()) == {TABLE_ID, CHAIR_ID}
    shown = mapper.render(wall_frame().camera, np.eye(4)).instance
    assert set(np.unique(shown)) == {0, TABLE_ID, CHAIR_ID}


def test_two_objects_that_were_first_seen_as_one_become_two() -> None:
    apart = wall_frame().labels
    one = Segmentation(apart.semantic, np.where(apart.instance > 0, 3, 0).astype(np.int32))
    mapper = replayed(*views_of_the_wall(one, apart, apart, apart, apart))
    first, last = (mapper.keyframes.all[i] for i in (0, -1))
    assert first.mask_ids == [0, 1]  # the older id stays with one of them
    assert len(set(last.mask_ids[1:])) == 2
    assert 1 in last.mask_ids
    shown = mapper.render(wall_frame().camera, np.eye(4)).instance
    left, right = shown[5:20, 3:17], shown[5:20, 23:37]
    assert np.bincount(left.ravel()).argmax() != np.bincount(right.ravel()).argmax()
    assert (left > 0).mean() > 0.9
    assert (right > 0).mean() > 0.9


def test_a_mask_over_two_objects_moves_neither() -> None:
    apart = wall_frame().labels
    one = Segmentation(apart.semantic, np.where(apart.instance > 0, 3, 0).astype(np.int32))
    mapper = replayed(*views_of_the_wall(apart, apart, apart, one))
    keyframe = mapper.keyframes.all[-1]
    assert mapper.map.queries.ids.tolist() == [TABLE_ID, CHAIR_ID]
    other = keyframe.mask_index.numpy() > 0
    own_half = np.indices(other.shape)[1] >= 20  # the table is on the right
    if keyframe.mask_ids[1] == CHAIR_ID:
        own_half = ~own_half
    disputed = keyframe.disputed.numpy()
    assert disputed[other & ~own_half].mean() > 0.8  # but for the border
    assert not disputed[other & own_half].any()


def box_frame(side: bool, class_index: int = CHAIR, in_two: bool = False) -> Frame:
    """A box before a wall: its front (half a metre square, z = 2) or its left side (a quarter deep, x = -0.25) alone.

    Both are 2 m away. `in_two` gives the upper and the lower half a mask each. Next to the front's edge, which can be
    rendered, the side is unlabeled.
    """
    camera = PinholeCamera(80, 80, 39.5, 29.5, 80, 60)
    depth, semantic = np.full((60, 80), 3, np.float32), np.full((60, 80), WALL, np.int32)
    numbers, pose = np.zeros((60, 80), np.int32), np.eye(4)
    box = (slice(20, 40), slice(30, 50))
    if side:  # the camera is at (-2.25, 0, 2.25) and looks along x: z = 2 is on the right, at column 49.5
        pose[:3, :3] = Rotation.from_euler("y", 90, degrees=True).as_matrix()
        pose[:3, 3] = -2.25, 0, 2.25
        box = (slice(20, 40), slice(40, 50))
    depth[box], semantic[box], numbers[box] = 2, class_index, 1
    if in_two:
        numbers[30:40, box[1]] = 2
    if side:
        semantic[20:40, 47:50] = numbers[20:40, 47:50] = 0
    color = np.full((60, 80, 3), 128, np.uint8)
    return Frame(int(side), color, depth, pose, camera, Segmentation(semantic, numbers))


def test_an_unseen_side_is_known_by_its_place() -> None:
    mapper = wall_mapper(box_frame(side=False))
    assert mapper.map.queries.ids.tolist() == [1]
    assert associated(mapper, box_frame(side=True)) == [0]  # nothing of it can be rendered
    assert opened(mapper) == []
    assert mapper.keyframes.all[-1].mask_ids == [0, 1]
    assert mapper.map.queries.column("observations").tolist() == [2]
    assert mapper.map.queries.column("last_seen_ns").tolist() == [1]


def test_another_class_at_the_place_of_an_object_is_another_object() -> None:
    mapper = wall_mapper(box_frame(side=False))
    assert associated(mapper, box_frame(side=True, class_index=TABLE)) == [0]
    assert opened(mapper) == [2]
    assert mapper.map.queries.class_indices.tolist() == [CHAIR, TABLE]
    assert mapper.map.queries.column("observations").tolist() == [1, 1]


def test_an_object_that_has_its_mask_takes_no_second_one() -> None:
    """Two things of one class side by side, each with its own mask."""
    mapper = wall_mapper(box_frame(side=False))
    assert associated(mapper, box_frame(side=True, in_two=True)) == [0, 0]
    assert opened(mapper) == [2]  # the first half is at the object's place, and so is the second, which comes too late
    assert mapper.keyframes.all[-1].mask_ids == [0, 1, 2]


def test_a_mask_elsewhere_opens_a_query() -> None:
    mapper = wall_mapper(box_frame(side=False))
    frame = box_frame(side=True)
    moved = replace(frame, T_map_camera=frame.T_map_camera.copy())
    moved.T_map_camera[2, 3] += 0.6  # the mask is now beside the box, further back
    assert associated(mapper, moved) == [0]
    assert opened(mapper) == [2]


def test_small_masks_masks_without_depth_and_stuff_open_nothing() -> None:
    frame = wall_frame()
    instance = np.zeros((30, 40), np.int32)
    instance[:5, :5] = 1  # 25 pixels
    instance[10:20, 22:32] = 2  # without depth
    instance[25:] = 3  # floor
    depth = frame.depth.copy()
    depth[10:20, 22:32] = 0
    mapper = wall_mapper(replace(relabeled(instance, frame), depth=depth))
    assert len(mapper.map.queries) == 0
    assert mapper.keyframes.all[0].mask_ids == [0, 0, 0]  # the floor is no mask at all
    assert (mapper.map.gaussians["instance_id"] == 0).all()
    assert set(mapper.map.gaussians["class_index"].tolist()) == {CHAIR, TABLE, FLOOR}


def merge_the_two(mapper: PanopticMapper) -> None:
    mapper.map.queries.votes += 10 * (1 - torch.eye(2))
    maintain_queries(mapper.map, mapper.keyframes)


def test_queries_that_are_one_object_merge_into_the_older() -> None:
    mapper = wall_mapper()
    chairs = mapper.map.gaussians["instance_id"] == CHAIR_ID
    merge_the_two(mapper)
    queries, gaussians = mapper.map.queries, mapper.map.gaussians
    assert queries.ids.tolist() == [TABLE_ID]
    assert queries.resolve(CHAIR_ID) == TABLE_ID
    np.testing.assert_allclose(queries.evidence[0, [CHAIR, TABLE]], [0.5, 0.5])  # halves of one mask
    assert queries.column("observations").tolist() == [1]
    assert (gaussians["instance_id"][chairs] == TABLE_ID).all()
    assert mapper.keyframes.all[0].mask_ids == [0, TABLE_ID, TABLE_ID]
    similarity = torch.sigmoid(gaussians["instances"][chairs] @ mapper.map.head.keys(queries.table["embeddings"]).T)
    assert (similarity > 0.9).all()
    # The features follow, so that the object is one in images too (once its shape is that of both).
    for _ in range(10):
        refit_queries(mapper.map)
    distribution = mapper.map.view(wall_frame().camera, np.eye(4)).blend_labels().distribution
    things = distribution[:, 3:].sum(1) > 0.5
    assert (distribution[things, 4] > distribution[things, 3]).all()


def test_votes_below_the_threshold_merge_nothing() -> None:
    mapper = wall_mapper()
    mapper.map.queries.votes += (mapper.config.instances.merge_evidence - 0.1) * (1 - torch.eye(2))
    maintain_queries(mapper.map, mapper.keyframes)
    assert mapper.map.queries.ids.tolist() == [TABLE_ID, CHAIR_ID]


def test_a_split_object_becomes_one_again() -> None:
    """First seen as two masks, then as one, again and again."""
    frame = wall_frame()
    whole = frame.labels.semantic.copy()
    whole[:24] = CHAIR
    split = Segmentation(whole, frame.labels.instance)
    one = Segmentation(whole, (whole == CHAIR).astype(np.int32))
    frames = []
    for i in range(6):
        pose = np.eye(4)
        pose[2, 3] = -0.2 * i  # backwards, away from the wall
        frames.append(replace(wall_frame(2.0 + 0.2 * i, pose, stamp_ns=i), labels=split if i == 0 else one))
    mapper = wall_mapper(*frames)
    assert len(mapper.keyframes) == 6
    assert mapper.map.queries.ids.tolist() == [1]
    assert mapper.map.queries.resolve(2) == 1
    things = mapper.map.gaussians["class_index"] == CHAIR
    assert (mapper.map.gaussians["instance_id"][things] == 1).all()


@pytest.mark.parametrize(
    ("observations", "contradictions", "retired"),
    [(1, 3, False), (1, 4, True), (5, 7, False), (5, 8, True), (90, 92, False), (90, 93, True)],
)
def test_queries_that_labels_keep_contradicting_are_retired(
    observations: int, contradictions: int, retired: bool
) -> None:
    mapper = wall_mapper()
    queries = mapper.map.queries
    queries.column("observations")[1] = observations
    queries.column("contradictions")[1] = contradictions
    maintain_queries(mapper.map, mapper.keyframes)
    assert queries.ids.tolist() == ([TABLE_ID] if retired else [TABLE_ID, CHAIR_ID])
    assert queries.resolve(CHAIR_ID) == (0 if retired else CHAIR_ID)
    assert mapper.keyframes.all[0].mask_ids == [0, TABLE_ID, 0 if retired else CHAIR_ID]


def test_an_object_whose_pixels_have_another_label_is_contradicted() -> None:
    mapper = wall_mapper()
    labels = np.where(wall_frame().labels.instance == 3, 3, 0)
    associated(mapper, relabeled(labels))
    associated(mapper, relabeled(labels))
    assert mapper.map.queries.column("contradictions").tolist() == [0, 2]
    associated(mapper, wall_frame(stamp_ns=1))
    assert mapper.map.queries.column("contradictions").tolist() == [0, 2]  # it counts against two observations now
    assert mapper.map.queries.column("observations").tolist() == [4, 2]


def test_an_object_that_a_mask_of_another_covers_is_not_contradicted() -> None:
    """The 2D model saw the chair and the table as one; nothing says that there is no chair."""
    mapper = wall_mapper()
    one = np.where(wall_frame().labels.instance > 0, 3, 0)
    for _ in range(4):
        assert associated(mapper, relabeled(one)) in ([TABLE_ID], [CHAIR_ID])
    assert mapper.map.queries.column("contradictions").tolist() == [0, 0]


def test_a_mask_that_the_2d_model_dropped_is_no_contradiction() -> None:
    mapper = wall_mapper()
    frame = wall_frame(stamp_ns=1)
    chair = frame.labels.instance == 5
    unlabeled = Segmentation(np.where(chair, 0, frame.labels.semantic), np.where(chair, 0, frame.labels.instance))
    assert associated(mapper, replace(frame, labels=unlabeled)) == [TABLE_ID]
    assert mapper.map.queries.column("contradictions").tolist() == [0, 0]


@pytest.mark.parametrize(("label", "contradictions"), [(WALL, [1, 1]), (0, [0, 0])])
def test_stuff_everywhere_contradicts_objects_and_no_labels_do_not(label: int, contradictions: list[int]) -> None:
    mapper = wall_mapper()
    frame = wall_frame(stamp_ns=1)
    stuff = np.full(frame.depth.shape, label, np.int32)
    assert associated(mapper, replace(frame, labels=Segmentation(stuff, np.zeros_like(stuff)))) == []
    assert mapper.map.queries.column("contradictions").tolist() == contradictions


def away_from_the_wall(num_frames: int, labels: Segmentation) -> list[Frame]:
    """The wall again and again, while the camera moves backwards; `labels` from the second frame on."""
    frames = [wall_frame()]
    for i in range(1, num_frames):
        pose = np.eye(4)
        pose[2, 3] = -0.12 * i
        frames.append(replace(wall_frame(2.0 + 0.12 * i, pose, stamp_ns=i), labels=labels))
    return frames


@pytest.mark.parametrize(("num_frames", "ids"), [(4, [TABLE_ID, CHAIR_ID]), (5, [TABLE_ID])])
def test_a_ghost_that_other_labels_cover_is_retired(num_frames: int, ids: list[int]) -> None:
    """Seen once, it goes when it was contradicted by more than `retire_after` keyframes."""
    semantic, instance = (image.copy() for image in (wall_frame().labels.semantic, wall_frame().labels.instance))
    semantic[instance == 5], instance[instance == 5] = WALL, 0
    mapper = wall_mapper(*away_from_the_wall(num_frames, Segmentation(semantic, instance)))
    assert len(mapper.keyframes) == num_frames
    assert mapper.map.queries.ids.tolist() == ids
    assert mapper.map.queries.column("observations")[0] == num_frames
    assert (CHAIR_ID in mapper.keyframes.all[0].mask_ids) == (CHAIR_ID in ids)


def test_no_queries_need_no_maintenance() -> None:
    mapper = make_mapper(segmenter=PassOn(SPACE))
    maintain_queries(mapper.map, mapper.keyframes)
    refit_queries(mapper.map)
    assert len(mapper.map.queries) == 0
