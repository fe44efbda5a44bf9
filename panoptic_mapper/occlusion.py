"""What a depth image says about what its camera cannot have seen: it keeps a view's cost local in a large building."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16  # pixels; cuda/visibility.h has the same
OPEN_SHARE = 0.25  # of a tile's pixels without depth, from which on there may be anything at any distance
MARGIN_M, MARGIN = 0.3, 0.1  # a Gaussian so far behind the surface, in m or as a share of its depth, is hidden


def depth_limits(depth: Tensor) -> Tensor:
    """The depth [h, w] m in tiles of TILE pixels beyond which a camera sees nothing; infinite where that is not known.

    It is the largest of the tile and its neighbours, as a Gaussian's footprint is larger than its centre, with a margin
    for the errors of depth and pose.

    Args:
        depth: [H, W] m, 0 = not measured.
    """
    measured = (depth > 0).float()[None, None]
    farthest = F.max_pool2d(depth[None, None], TILE, ceil_mode=True)
    is_open = 1 - F.avg_pool2d(measured, TILE, ceil_mode=True) > OPEN_SHARE
    farthest = F.max_pool2d(torch.where(is_open, torch.inf, farthest), 3, stride=1, padding=1)
    return (farthest + (MARGIN * farthest).clamp_min(MARGIN_M))[0, 0]
