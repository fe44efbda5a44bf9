"""What a depth image hides."""

from __future__ import annotations

import torch
from small_room import gaussian_columns, mapped, room_frames

from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.gaussian_map import GaussianMap, LearningRates
from panoptic_mapper.occlusion import depth_limits

CAMERA = PinholeCamera(60.0, 60.0, 47.5, 31.5, 96, 64)


def depth_image() -> torch.Tensor:
    """A wall at 2 m, on the left one at 5 m, and nothing measured in the lower right corner."""
    depth = torch.full((64, 96), 2.0)
    depth[:, :16] = 5
    depth[48:, 80:] = 0
    return depth


def test_limits_are_those_of_the_farthest_neighbour_with_a_margin() -> None:
    limits = depth_limits(depth_image())
    expected = torch.full((4, 6), 2.3)
    expected[:, :2] = 5.5
    expected[2:, 4:] = torch.inf
    torch.testing.assert_close(limits, expected)


def test_a_few_missing_pixels_do_not_open_a_tile() -> None:
    depth = torch.full((40, 50), 3.0)  # no whole number of tiles
    depth[::3, ::3] = 0
    torch.testing.assert_close(depth_limits(depth), torch.full((3, 4), 3.3))


def test_points_are_compared_with_the_limit_of_their_pixel() -> None:
    pixels = torch.tensor([[47.0, 20.0], [3.0, 20.0], [90.0, 60.0], [-10.0, 5.0], [110.0, 5.0]])
    points = []
    for z in (2.2, 2.5, 5.4, 5.6):
        rays = torch.stack([(pixels[:, 0] - 47.5) / 60, (pixels[:, 1] - 31.5) / 60, torch.ones(5)], dim=1)
        points.append(z * rays)
    expected = [[True] * 5, [False, True, True, True, False], [False, True, True, True, False]]
    expected += [[False, False, True, False, False]]
    limits = depth_limits(depth_image())
    gaussians = GaussianMap(LearningRates(), torch.device("cpu"))
    gaussians.append(gaussian_columns(torch.cat(points)), anchor=0)
    ids = gaussians.ids_in_frustum(torch.eye(4), CAMERA, limits)
    assert ids.tolist() == torch.tensor(expected).flatten().nonzero()[:, 0].tolist()


def test_what_is_behind_a_room_leaves_its_images_as_they_are() -> None:
    mapper = mapped(room_frames())
    gaussians = mapper.map.gaussians
    num = len(gaussians)
    forward = torch.from_numpy(mapper.keyframes.all[0].T_map_camera[:3, 2]).float()
    gaussians.duplicate(torch.arange(num), {"means": gaussians["means"] + 12 * forward})
    num_hidden = 0
    for keyframe in mapper.keyframes.all:
        whole = mapper.map.view(keyframe.camera, keyframe.T_map_camera)
        local = mapper.map.view(keyframe.camera, keyframe.T_map_camera, keyframe.depth_limits)
        assert (local.gaussians.ids < num).all()
        num_hidden += int((whole.gaussians.ids >= num).sum())
        assert int((local.gaussians.ids < num).sum()) > 0.98 * int((whole.gaussians.ids < num).sum())
        difference = (whole.render().color - local.render().color).abs()
        assert difference.mean() < 1e-2  # what shines through surfaces that are not yet quite opaque
    assert num_hidden > 1000
