"""What a view of the map really shows."""

from __future__ import annotations

import numpy as np
import torch
from small_room import CAMERA, SPACE, PassOn, gaussian_columns, make_mapper, opaque_wall

from panoptic_mapper.panoptic_map import MapView


def view_of(means: torch.Tensor, T_map_camera: np.ndarray | None = None, **columns: torch.Tensor) -> MapView:
    """A view from the map's origin along z, onto an opaque wall at z = 2 and Gaussians at `means` after it."""
    mapper = make_mapper(segmenter=PassOn(SPACE))
    mapper.map.gaussians.append(opaque_wall(), anchor=0)
    mapper.map.gaussians.append(gaussian_columns(means, **columns), anchor=0)
    return mapper.map.view(CAMERA, np.eye(4) if T_map_camera is None else T_map_camera)


def test_what_is_behind_a_wall_is_projected_but_not_seen() -> None:
    view = view_of(torch.tensor([[0.1, 0.1, 1.0], [0.1, 0.1, 3.0], [-0.5, 0.2, 5.0], [0.3, 0.0, 1.9]]))
    num_candidates = len(view.gaussians)
    assert set(range(num_candidates - 4, num_candidates)) <= set(view.projection.visible.tolist())
    assert view.seen()[-4:].tolist() == [True, False, False, True]
    wall = view.seen()[:-4]
    assert wall.float().mean() > 0.5  # the wall itself is


def test_what_is_not_projected_and_what_is_transparent_is_not_seen() -> None:
    just_outside = [1.2 * 19.5 / 40, 0.0, 1.0]  # a candidate, for its centre is near the image
    means = torch.tensor([just_outside, [0.0, 0, 1], [0.0, 0.2, 1]])
    small = torch.full((3, 3), 1e-4).log()
    view = view_of(means, log_scales=small, opacity_logits=torch.tensor([[3.0], [-4.0], [3.0]]))
    assert view.seen()[-3:].tolist() == [False, False, True]


def test_a_view_of_nothing_sees_nothing() -> None:
    view = view_of(torch.zeros(0, 3), np.diag([-1.0, 1, -1, 1]))  # turned around
    assert view.seen().tolist() == []


def test_looking_at_what_is_seen_leaves_no_gradients() -> None:
    view = view_of(torch.tensor([[0.0, 0.0, 1.0]]))
    with torch.no_grad():
        assert view.seen()[-1]
    assert view.gaussians.leaf.grad is None
