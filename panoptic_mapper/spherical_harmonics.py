"""Colours that depend on the direction of view: real spherical harmonics up to degree 3 (Kerbl et al. 2023).

A colour is rgb(d) = rgb_0 + sum over l >= 1 and m of c_lm Y_lm(d), d the unit direction from the camera to the Gaussian
in the map frame. The constant band is the column `colors` of the map, so that a map of degree 0 has no more columns.
Coefficients lie in one row [3 K] as K triples (r, g, b), in the order (l, m) = (1, -1), (1, 0), (1, 1), (2, -2), ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_DEGREE = 3


def width_of_degree(degree: int) -> int:
    """Number of coefficients of the bands 1..degree, for three channels: 0, 9, 24, 45."""
    return 3 * ((degree + 1) ** 2 - 1)


def degree_of_width(width: int) -> int:
    """The degree whose coefficients are so many.

    Raises:
        ValueError: there is none.
    """
    for degree in range(MAX_DEGREE + 1):
        if width_of_degree(degree) == width:
            return degree
    raise ValueError(f"spherical harmonics: expected 0, 9, 24 or 45 coefficients, got {width}")


def basis(directions: Tensor, degree: int) -> Tensor:
    """The real spherical harmonics Y_lm [V, (degree + 1)^2 - 1] of the bands 1..degree at unit directions [V, 3].

    With the Condon-Shortley phase, as 3DGS and its viewers have them.
    """
    x, y, z = directions.unbind(-1)
    terms = [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        terms += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * z * z - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ]
    if degree >= 3:
        terms += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * z * z - 1),
            0.3731763325901154 * z * (5 * z * z - 3),
            -0.4570457994644658 * x * (5 * z * z - 1),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(terms, dim=-1)


def seen_colors(colors: Tensor, harmonics: Tensor, means: Tensor, camera_center: Tensor) -> Tensor:
    """Colours [V, 3] of Gaussians as a camera sees them.

    Gradients reach both kinds of coefficients. The directions are detached: a highlight is a reason to change a
    colour, not to move a surface.

    Args:
        colors: [V, 3] RGB of the constant band.
        harmonics: [V, 3 K] coefficients of the higher bands.
        means: [V, 3] map frame, m.
        camera_center: [3] map frame, m.
    """
    directions = F.normalize(means.detach() - camera_center, dim=-1)
    values = basis(directions, degree_of_width(harmonics.shape[1]))  # [V, K]
    return colors + (values[:, :, None] * harmonics.unflatten(1, (-1, 3))).sum(1)
