"""The offline phase: what it improves, in which order it goes through the keyframes, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_room import SPACE, PassOn, make_mapper, mapped, room_frames, wall_frame

from panoptic_mapper.config import load_config
from panoptic_mapper.densification import DensificationConfig, ScreenGradients, densify
from panoptic_mapper.gaussian_map import BOOK
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.offline import OfflineConfig, associate_all, needed, optimize_globally, scheduled_degree

SHORT = OfflineConfig(iterations=24, associate_every=12, sh_share=0.2)
REFINE = ("densification.every=8", "densification.gradient=1e-4")


def mapped_room(*settings: str) -> PanopticMapper:
    return mapped(room_frames()[:4], *settings)


def state(mapper: PanopticMapper) -> dict[str, torch.Tensor]:
    gaussians = mapper.map.gaussians
    return {name: gaussians[name].clone() for name in (*gaussians.widths, *BOOK)}


def color_error(mapper: PanopticMapper) -> float:
    """Mean squared error of the mapped frames' colours, 0..1."""
    errors = []
    for keyframe in mapper.keyframes.all:
        rendered = mapper.render(keyframe.camera, keyframe.T_map_camera).color / 255
        errors.append(np.square(rendered - keyframe.color.numpy() / 255).mean())
    return float(np.mean(errors))


@pytest.fixture(scope="module")
def finished() -> tuple[PanopticMapper, PanopticMapper]:
    """The same map before and after the offline phase."""
    mapper = mapped_room(*REFINE)
    optimize_globally(mapper, SHORT)
    return mapped_room(*REFINE), mapper


def test_the_whole_map_becomes_better_and_finer(finished: tuple[PanopticMapper, PanopticMapper]) -> None:
    online, offline = finished
    assert color_error(offline) < 0.7 * color_error(online)
    assert len(offline.map.gaussians) > len(online.map.gaussians)
    assert offline.map.gaussians.sh_degree == 3
    assert offline.map.gaussians["harmonics"].abs().max() > 0
    assert {o.class_name for o in offline.objects()} >= {o.class_name for o in online.objects()}


def test_the_map_looks_nearly_the_same_when_every_gaussian_was_split() -> None:
    mapper = mapped_room("optimizer.steps_per_keyframe=30")
    error = color_error(mapper)
    gradients = ScreenGradients(mapper.map.gaussians)
    gradients.total[:], gradients.views[:] = 1.0, 1
    num = len(mapper.map.gaussians)
    assert densify(mapper.map.gaussians, gradients, DensificationConfig(gradient=0.5)) == num
    assert color_error(mapper) < 1.5 * error


def test_the_same_seed_gives_the_same_map_bit_for_bit(finished: tuple[PanopticMapper, PanopticMapper]) -> None:
    again = mapped_room(*REFINE)
    optimize_globally(again, SHORT)
    expected = state(finished[1])
    for name, values in state(again).items():
        assert torch.equal(values, expected[name]), name


def test_a_saved_offline_map_comes_back(finished: tuple[PanopticMapper, PanopticMapper]) -> None:
    source, copy = finished[1], make_mapper()
    copy.restore_state(*source.export_state())
    assert copy.map.gaussians.sh_degree == 3
    keyframe = source.keyframes.all[1]
    views = [m.render(keyframe.camera, keyframe.T_map_camera) for m in (source, copy)]
    for name in ("color", "depth", "semantic", "instance"):
        np.testing.assert_array_equal(getattr(views[1], name), getattr(views[0], name))
    copy.integrate(room_frames()[6])  # new Gaussians have all columns too
    assert len(copy.map.gaussians["harmonics"]) == len(copy.map.gaussians)


def test_every_keyframe_comes_once_before_any_comes_again() -> None:
    mapper = mapped_room("optimizer.steps_per_keyframe=0", "densification.every=0")
    visited, done = [], []
    mapper.optimizer.step = lambda keyframe, neighbours: visited.append(keyframe.id)  # type: ignore[method-assign]
    num = len(mapper.keyframes)
    optimize_globally(mapper, replace(SHORT, iterations=3 * num), lambda step, total: done.append((step, total)))
    epochs = [visited[start : start + num] for start in range(0, 3 * num, num)]
    assert num > 2
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert done == [(step, 3 * num) for step in range(1, 3 * num + 1)]


def test_rates_fall_and_are_restored() -> None:
    mapper = mapped([wall_frame()], "optimizer.steps_per_keyframe=0", "densification.every=0", segmenter=PassOn(SPACE))
    table, config = mapper.map.gaussians.appearance, mapper.config.learning_rates
    seen = []
    mapper.optimizer.step = lambda keyframe, neighbours: seen.append(table.rates.clone())  # type: ignore[method-assign]
    optimize_globally(mapper, OfflineConfig(iterations=101, means_rate_end=0.01, rate_end=0.1, sh_share=0))
    means, scales, colors, harmonics = (table._span(n) for n in ("means", "log_scales", "colors", "harmonics"))
    torch.testing.assert_close(seen[100][means], torch.full((3,), config.means * 0.01 ** (100 / 101)))
    torch.testing.assert_close(seen[100][scales], torch.full((3,), config.log_scales * 0.1 ** (100 / 101)))
    torch.testing.assert_close(seen[0][harmonics], torch.full((45,), config.colors / 20))
    assert (seen[0][means] == config.means).all()
    assert (table.rates[means] == config.means).all()
    assert (table.rates[colors] == config.colors).all()


def test_colours_get_their_bands_one_after_the_other() -> None:
    config = OfflineConfig(sh_degree=3, sh_share=0.1)
    assert [scheduled_degree(p, config) for p in (0, 0.09, 0.11, 0.21, 0.31, 0.99)] == [0, 0, 1, 2, 3, 3]
    assert scheduled_degree(0.0, OfflineConfig(sh_degree=2, sh_share=0)) == 2


def test_an_empty_map_and_no_steps_are_left_alone() -> None:
    mapper = make_mapper()
    optimize_globally(mapper, SHORT, lambda step, total: pytest.fail("a step was taken"))
    assert len(mapper.map.gaussians) == 0
    mapper = mapped_room("optimizer.steps_per_keyframe=0")
    before = state(mapper)
    optimize_globally(mapper, replace(SHORT, iterations=0))
    assert torch.equal(mapper.map.gaussians["means"], before["means"])


def test_what_floats_in_seen_empty_space_goes() -> None:
    mapper = mapped_room("optimizer.steps_per_keyframe=0", "density.free_space_hits=2")
    camera = mapper.keyframes.all[0]
    before = len(mapper.map.gaussians)
    mapper.map.gaussians.duplicate(torch.tensor([0]), {})
    T = camera.T_map_camera
    mapper.map.gaussians["means"][-1] = torch.from_numpy(T[:3, 3] + 0.4 * T[:3, 2]).float()
    keep = needed(mapper)
    assert not keep[-1]
    assert keep[:before].float().mean() > 0.95


def test_associating_again_changes_nothing_where_all_was_right() -> None:
    mapper = mapped_room("optimizer.steps_per_keyframe=6")
    queries = mapper.map.queries
    associate_all(mapper)
    ids, evidence = queries.ids.clone(), queries.evidence.clone()
    mask_ids = [list(k.mask_ids) for k in mapper.keyframes.all]
    associate_all(mapper)  # the evidence is that of the masks, however often they are asked
    assert torch.equal(queries.ids, ids)
    assert [k.mask_ids for k in mapper.keyframes.all] == mask_ids
    torch.testing.assert_close(queries.evidence, evidence)
    matched = sum(id > 0 for ids in mask_ids for id in ids)
    assert queries.column("observations").sum() == matched


def test_masks_that_were_given_to_the_wrong_object_find_theirs() -> None:
    mapper = mapped_room("optimizer.steps_per_keyframe=6")
    associate_all(mapper)
    keyframes = mapper.keyframes.all
    right = [list(k.mask_ids) for k in keyframes]
    keyframes[2].mask_ids = [0, *reversed(keyframes[2].mask_ids[1:])]
    assert keyframes[2].mask_ids != right[2]
    associate_all(mapper)
    for keyframe, ids in zip(keyframes, right, strict=True):  # too small masks have no object that they could find
        assert [now for now, then in zip(keyframe.mask_ids, ids, strict=True) if then] == [id for id in ids if id]


def test_objects_that_no_mask_shows_are_retired() -> None:
    mapper = mapped_room("optimizer.steps_per_keyframe=6")
    queries = mapper.map.queries
    points = torch.tensor([[50.0, 50, 50]]) + 0.1 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    ghost = queries.add(points, 0)
    associate_all(mapper)
    assert ghost not in queries.ids.tolist()
    assert queries.resolve(ghost) == 0
    assert len(queries) > 0


def test_settings_have_ranges() -> None:
    with pytest.raises(ValueError, match="means_rate_end: expected a value > 0"):
        load_config(OfflineConfig, overrides=["means_rate_end=0"])
