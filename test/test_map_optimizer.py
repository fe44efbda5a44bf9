"""Optimisation: targets by hand, losses go down, and labels never move geometry."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_room import (
    CHAIR,
    FLOOR,
    SPACE,
    TABLE,
    WALL,
    PassOn,
    gaussian_columns,
    mapped,
    opaque_wall,
    wall_frame,
    without_labels,
)

from panoptic_mapper.frame import Segmentation
from panoptic_mapper.gaussian_map import WIDTHS
from panoptic_mapper.label_targets import LabelTargets
from panoptic_mapper.mapper import PanopticMapper

GEOMETRY = ("means", "quats", "log_scales", "opacity_logits", "colors")
NO_GEOMETRY = tuple(f"losses.{name}=0" for name in ("color", "depth", "opacity", "scale"))
NO_LABELS = tuple(f"losses.{name}=0" for name in ("semantic", "panoptic", "dice", "repulsion"))
# Panoptic columns: unlabeled, wall, floor | unassigned | queries. The table is query 1, the chair query 2.
FLOOR_COLUMN, TABLE_COLUMN, CHAIR_COLUMN = 2, 4, 5


def wall_mapper(*settings: str, labels: bool = True) -> PanopticMapper:
    frame = wall_frame() if labels else without_labels(wall_frame())
    return mapped([frame], "optimizer.steps_per_keyframe=0", *settings, segmenter=PassOn(SPACE))


def columns(mapper: PanopticMapper, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    return {name: mapper.map.gaussians[name].clone() for name in names}


def targets_of(mapper: PanopticMapper) -> LabelTargets:
    keyframe = mapper.keyframes.all[0]
    return LabelTargets.of(keyframe, mapper.map.view(keyframe.camera, keyframe.T_map_camera))


def semantic_columns(mapper: PanopticMapper, classes: torch.Tensor) -> torch.Tensor:
    return mapper.map.head.columns.semantic_of_classes[classes]


def losses_after(mapper: PanopticMapper, num_steps: int) -> dict[str, float]:
    for _ in range(num_steps):
        mapper.optimizer.step(mapper.keyframes.all[0])
    return mapper.stats().losses


def test_panoptic_targets_by_hand() -> None:
    mapper = wall_mapper()
    keyframe = mapper.keyframes.all[0]
    keyframe.semantic[0, :3] = torch.tensor([0, WALL, CHAIR])
    keyframe.mask_index[0, :3] = 0  # a chair that no mask holds is no target
    expected = torch.full((30, 40), CHAIR_COLUMN)
    expected[:, 20:] = TABLE_COLUMN
    expected[24:] = FLOOR_COLUMN
    expected[0, :3] = torch.tensor([-1, 1, -1])
    assert torch.equal(targets_of(mapper).panoptic, expected)
    keyframe.mask_ids[1] = 0  # the table's mask was matched to nothing
    expected[expected == TABLE_COLUMN] = -1
    assert torch.equal(targets_of(mapper).panoptic, expected)


def test_targets_of_queries_that_are_not_in_view_are_left_out() -> None:
    mapper = wall_mapper()
    keyframe = mapper.keyframes.all[0]
    view = mapper.map.view(keyframe.camera, keyframe.T_map_camera)
    mapper.map.queries.table["centers"][0] += 100  # the table is elsewhere now
    assert view.queries.ids.tolist() == [1]
    targets = LabelTargets.of(keyframe, view).panoptic
    assert (targets[:24, :20] == 4).all()  # now the first query column
    assert (targets[:24, 20:] == -1).all()


def test_the_class_in_a_mask_is_that_of_its_object_by_all_evidence() -> None:
    mapper = wall_mapper()
    keyframe = mapper.keyframes.all[0]
    keyframe.semantic[0, :3] = torch.tensor([0, WALL, CHAIR])
    keyframe.mask_index[0, :3] = 0  # outside of masks the labels say it
    expected = torch.full((30, 40), CHAIR)
    expected[:, 20:], expected[24:] = TABLE, FLOOR
    expected[0, :3] = torch.tensor([0, WALL, CHAIR])
    assert torch.equal(targets_of(mapper).semantic, semantic_columns(mapper, expected))
    # This image calls the chair a table, and all others call it a chair.
    keyframe.semantic[keyframe.mask_index == 2], keyframe.mask_classes[2] = TABLE, TABLE
    assert torch.equal(targets_of(mapper).semantic, semantic_columns(mapper, expected))
    mapper.map.queries.evidence[1] = torch.tensor([0.0, 1.0, 0, 1.1, 0])  # or it is a table after all
    expected[expected == CHAIR] = TABLE
    expected[0, 2] = CHAIR
    assert torch.equal(targets_of(mapper).semantic, semantic_columns(mapper, expected))
    keyframe.mask_ids[2], keyframe.mask_classes[2] = 0, WALL  # of no object: what the mask says
    expected[:24, :20][keyframe.mask_index[:24, :20] == 2] = WALL
    assert torch.equal(targets_of(mapper).semantic, semantic_columns(mapper, expected))


def test_disputed_pixels_are_no_target() -> None:
    mapper = wall_mapper()
    keyframe = mapper.keyframes.all[0]
    before = targets_of(mapper)
    keyframe.disputed = torch.zeros(30, 40, dtype=torch.bool)
    assert torch.equal(targets_of(mapper).semantic, before.semantic)
    keyframe.disputed[5:10, 5:30] = True
    before.semantic[5:10, 5:30] = before.panoptic[5:10, 5:30] = -1
    assert torch.equal(targets_of(mapper).semantic, before.semantic)
    assert torch.equal(targets_of(mapper).panoptic, before.panoptic)


def test_objects_that_are_often_missed_weigh_more_where_they_are_seen() -> None:
    mapper = wall_mapper()
    keyframe, queries = mapper.keyframes.all[0], mapper.map.queries
    keyframe.confidence[:] = 0.5
    queries.column("observations")[:] = torch.tensor([8, 3])
    queries.column("visible")[:] = torch.tensor([8, 8])  # the chair has a mask in less than half of its images
    expected = torch.full((30, 40), 0.5)
    expected[:24, :20] /= queries.recall[1].float()
    assert queries.recall[1] < 0.6
    torch.testing.assert_close(targets_of(mapper).weights, expected)
    keyframe.mask_ids[2] = 0
    torch.testing.assert_close(targets_of(mapper).weights, torch.full((30, 40), 0.5))


def test_a_flipped_class_in_one_image_changes_nothing() -> None:
    mapper = wall_mapper("optimizer.label_every=1")
    keyframe, gaussians = mapper.keyframes.all[0], mapper.map.gaussians
    mapper.map.queries.evidence[1, CHAIR] += 2  # by other images
    chair = gaussians["class_index"] == CHAIR
    keyframe.semantic[keyframe.semantic == CHAIR] = TABLE
    keyframe.mask_classes[2] = TABLE
    losses_after(mapper, 60)
    assert chair.sum() > 80
    assert (gaussians["class_index"][chair] == CHAIR).float().mean() > 0.95


def taken_by_the_table(votes_for_two: float) -> tuple[float, torch.Tensor]:
    """Share of the chair's Gaussians that become the table's by one image in which both are one table.

    Args:
        votes_for_two: how often other images showed the two apart.
    """
    mapper = wall_mapper("optimizer.label_every=1")
    gaussians, queries = mapper.map.gaussians, mapper.map.queries
    chair = gaussians["instance_id"] == 2
    queries.column("observations")[:] = 5
    queries.votes[:] = -votes_for_two * (1 - torch.eye(2))
    frame = wall_frame(stamp_ns=1)
    one = np.where(frame.labels.instance > 0, 3, 0).astype(np.int32)
    semantic = np.where(one > 0, TABLE, frame.labels.semantic).astype(np.int32)
    keyframe = mapper.keyframes.add(frame, Segmentation(semantic, one), mapper.device)
    for _ in range(60):
        mapper.optimizer.step(keyframe)
    assert keyframe.mask_ids == [0, 1]
    return float((gaussians["instance_id"][chair] == 1).float().mean()), keyframe.disputed


def test_a_mask_over_two_objects_does_not_make_one_of_them() -> None:
    share, disputed = taken_by_the_table(votes_for_two=8)
    assert share < 0.5  # along the border
    assert disputed[2:22, 2:18].all()
    assert not disputed[:, 22:].any()
    share, disputed = taken_by_the_table(votes_for_two=-1)  # unless nothing says that they are two
    assert share > 0.9
    assert disputed is None


def test_semantic_images_are_those_of_the_classes() -> None:
    mapper = wall_mapper()
    keyframe = mapper.keyframes.all[0]
    labels = mapper.map.view(keyframe.camera, keyframe.T_map_camera).blend_labels()
    assert labels.semantic.shape == (30, 40, len(SPACE))
    # The initial labels are right already.
    targets = labels.columns.semantic_of_classes[keyframe.semantic.long()]
    assert (labels.semantic.gather(-1, targets[..., None])[..., 0] > 0.5).float().mean() > 0.9


def test_steps_lower_the_losses() -> None:
    mapper = wall_mapper("optimizer.label_every=1")
    before = losses_after(mapper, 1)
    after = losses_after(mapper, 60)
    assert set(after) == {"color", "depth", "opacity", "scale", "semantic", "panoptic", "dice", "repulsion"}
    assert after["color"] < 0.8 * before["color"]
    assert after["semantic"] < 0.9 * before["semantic"]
    assert after["panoptic"] < 0.9 * before["panoptic"]
    assert after["dice"] < before["dice"]


def test_wrong_labels_are_learned_away() -> None:
    mapper = wall_mapper("optimizer.label_every=1")
    gaussians = mapper.map.gaussians
    rows = (gaussians["class_index"] == CHAIR).nonzero()[:, 0]
    wrong = mapper.map.head.semantic_features(torch.full((len(rows),), TABLE), torch.ones(len(rows)))
    gaussians.set_rows(rows, semantics=wrong)
    losses_after(mapper, 1)
    assert (gaussians["class_index"][rows] == TABLE).any()
    losses_after(mapper, 80)
    assert (gaussians["class_index"][rows] == CHAIR).float().mean() > 0.95


def test_gaussians_remember_the_labels_that_they_were_seen_with() -> None:
    mapper = wall_mapper("optimizer.label_every=1")
    gaussians = mapper.map.gaussians
    expected_class, expected_id = gaussians["class_index"].clone(), gaussians["instance_id"].clone()
    assert set(expected_class.tolist()) == {CHAIR, TABLE, FLOOR}
    for name in ("class_index", "instance_id", "confidence_permille"):
        gaussians[name][:] = 0
    losses_after(mapper, 1)
    assert (gaussians["class_index"] == expected_class).float().mean() > 0.95
    assert (gaussians["instance_id"] == expected_id).float().mean() > 0.95
    confidence = gaussians["confidence_permille"]
    assert (confidence > 400).float().mean() > 0.95
    assert confidence.max() <= 1000


def test_labels_never_move_geometry() -> None:
    mapper = wall_mapper(*NO_GEOMETRY, "optimizer.label_every=1")
    before = columns(mapper, (*GEOMETRY, "semantics", "instances"))
    losses_after(mapper, 5)
    after = columns(mapper, (*GEOMETRY, "semantics", "instances"))
    for name in GEOMETRY:
        assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["semantics"], before["semantics"])
    assert not torch.equal(after["instances"], before["instances"])


def test_geometry_never_moves_labels() -> None:
    mapper = wall_mapper(*NO_LABELS)
    before = columns(mapper, ("semantics", "instances"))
    queries, means = mapper.map.queries.table["embeddings"].clone(), mapper.map.gaussians["means"].clone()
    losses_after(mapper, 5)
    for name, values in before.items():
        assert torch.equal(mapper.map.gaussians[name], values)
    assert torch.equal(mapper.map.queries.table["embeddings"], queries)
    assert not torch.equal(mapper.map.gaussians["means"], means)


def test_only_what_a_keyframe_sees_is_touched() -> None:
    mapper = wall_mapper()
    gaussians = mapper.map.gaussians
    gaussians.append(gaussian_columns(torch.tensor([[0.0, 0, -3], [9.0, 0, 1]])), anchor=0)
    before = columns(mapper, (*GEOMETRY, "semantics", "instances", "class_index"))
    losses_after(mapper, 3)
    for name, values in before.items():
        assert torch.equal(gaussians[name][-2:], values[-2:]), name
    assert (gaussians["means"][:-2] != before["means"][:-2]).any(1).float().mean() > 0.9


def test_a_room_behind_a_wall_stays_as_it_is() -> None:
    mapper = wall_mapper("optimizer.label_every=1")
    gaussians = mapper.map.gaussians
    gaussians.append(opaque_wall(), anchor=0)
    rng = torch.Generator().manual_seed(0)
    behind = torch.rand(200, 3, generator=rng) * torch.tensor([1.0, 0.8, 2.0]) + torch.tensor([-0.5, -0.4, 2.5])
    gaussians.append(gaussian_columns(behind, semantics=torch.randn(200, 16, generator=rng)), anchor=0)
    before = columns(mapper, tuple(WIDTHS))
    losses_after(mapper, 3)
    for name, values in before.items():
        assert torch.equal(gaussians[name][-200:], values[-200:]), name
    assert (gaussians["means"][:-200] != before["means"][:-200]).any(1).float().mean() > 0.5
    # With nothing before it, the same room moves.
    gaussians.keep(torch.arange(len(gaussians)) >= len(gaussians) - 200)
    losses_after(mapper, 3)
    assert (gaussians["means"] != before["means"][-200:]).any(1).float().mean() > 0.5


def test_what_is_hidden_can_be_left_out_of_steps_and_association() -> None:
    behind = gaussian_columns(torch.tensor([[0.0, 0, 2.2], [0.0, 0, 2.6]]))
    for skips, num_left_out in ((False, 0), (True, 1)):  # of the two, one might be a part of the surface
        mapper = wall_mapper(f"optimizer.skip_hidden={skips}")
        mapper.map.gaussians.append(behind, anchor=0)
        candidates = []
        mapper.optimizer.on_gradients = lambda keyframe, view, seen, found=candidates: found.extend(view.gaussians.ids)
        mapper.optimizer.step(mapper.keyframes.all[0])
        assert len(candidates) == len(mapper.map.gaussians) - num_left_out
        seen, _, _ = mapper._associate(mapper.keyframes.all[0])
        assert len(seen) == len(candidates)


def test_relaxed_colours_need_few_steps() -> None:
    losses = {}
    for share in (0.0, 0.5):
        mapper = wall_mapper(*NO_LABELS, f"optimizer.color_relaxation={share}", "learning_rates.colors=0")
        mapper.map.gaussians["colors"][:] = 0.5
        losses[share] = losses_after(mapper, 8)["color"]
    assert losses[0.5] < 0.85 * losses[0.0]


def test_depth_pulls_the_surface() -> None:
    mapper = wall_mapper(*NO_LABELS, "losses.color=0", "losses.opacity=0")
    mapper.map.gaussians["means"][:, 2] += 0.04
    first = losses_after(mapper, 1)["depth"]
    assert first == pytest.approx(0.04, abs=0.01)
    assert losses_after(mapper, 60)["depth"] < 0.6 * first


def test_unlabeled_keyframes_teach_geometry_only() -> None:
    mapper = wall_mapper(labels=False)
    losses = losses_after(mapper, 2)
    assert set(losses) == {"color", "depth", "opacity", "scale"}
    assert (mapper.map.gaussians["class_index"] == 0).all()


def test_labels_are_optimised_every_so_many_steps() -> None:
    mapper = wall_mapper("optimizer.label_every=3")
    codes = [mapper.map.head.codes.detach().clone()]
    for _ in range(6):
        losses_after(mapper, 1)
        codes.append(mapper.map.head.codes.detach().clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(codes)]
    assert changed == [True, False, False, True, False, False]


def test_a_view_of_nothing_is_no_step() -> None:
    mapper = wall_mapper()
    away = np.diag([-1.0, 1, -1, 1])  # turned around
    keyframe = replace(mapper.keyframes.all[0], T_map_camera=away)
    before = columns(mapper, GEOMETRY)
    mapper.optimizer.step(keyframe)
    assert mapper.stats().losses == {}
    assert torch.equal(mapper.map.gaussians["means"], before["means"])


def test_dice_leaves_out_disputed_pixels() -> None:
    """Half of the table's mask is disputed: its Gaussians there are no error of the table's mask."""
    mapper = wall_mapper("losses.repulsion=0", *NO_GEOMETRY)
    keyframe = mapper.keyframes.all[0]
    told = losses_after(mapper, 1)["dice"]
    mapper = wall_mapper("losses.repulsion=0", *NO_GEOMETRY)
    keyframe = mapper.keyframes.all[0]
    keyframe.disputed = keyframe.mask_index == keyframe.mask_index[10, 30]
    keyframe.disputed[:, :30] = False
    keyframe.revision = mapper.map.queries.revision  # not matched again
    assert losses_after(mapper, 1)["dice"] == pytest.approx(told, abs=0.02)


def test_steps_that_were_prepared_see_gaussians_that_came_since() -> None:
    mapper, prepared = wall_mapper(), wall_mapper()
    keyframe = prepared.keyframes.all[0]
    prepared.optimizer.prepare([keyframe])
    before = len(prepared.map.gaussians)
    for m in (mapper, prepared):
        m.map.gaussians.append(gaussian_columns(torch.tensor([[0.0, 0.0, 1.5]])), anchor=0)
        m.optimizer.step(m.keyframes.all[0])
    assert len(prepared.optimizer.view_of(keyframe).gaussians) == before + 1
    assert torch.equal(prepared.map.gaussians["colors"], mapper.map.gaussians["colors"])


def test_preparing_steps_changes_nothing() -> None:
    one_by_one, prepared = wall_mapper(), wall_mapper()
    prepared.optimizer.prepare(prepared.keyframes.all)
    for m in (one_by_one, prepared):
        for _ in range(3):
            m.optimizer.step(m.keyframes.all[0])
    for name in WIDTHS:
        assert torch.equal(prepared.map.gaussians[name], one_by_one.map.gaussians[name])
