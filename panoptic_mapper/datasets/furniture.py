"""Pieces of furniture as lists of parts, in their own frame: x to the right, front towards +y, z up from the floor.

Pieces that stand or hang at a wall have their back at y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from panoptic_mapper.datasets.primitives import Material, Shape

Color = tuple[float, float, float]

WHITE: Color = (0.93, 0.92, 0.89)
DARK: Color = (0.17, 0.16, 0.17)
METAL: Color = (0.55, 0.56, 0.58)


@dataclass(frozen=True)
class Part:
    """One solid of a piece."""

    shape: Shape
    center: tuple[float, float, float]  # m, in the piece's frame
    size: tuple[float, float, float]  # full extents, m
    material: Material
    tilt: float = 0.0  # about the piece's x axis, rad

    @property
    def rotation(self) -> np.ndarray:  # [3, 3] part to piece
        return Rotation.from_euler("x", self.tilt).as_matrix()


def plain(color: Color, scale_m: float = 0.3) -> Material:
    darker = (color[0] * 0.6, color[1] * 0.6, color[2] * 0.6)
    return Material("plain", color, darker, scale_m)


def fabric(color: Color) -> Material:
    darker = (color[0] * 0.55, color[1] * 0.55, color[2] * 0.55)
    return Material("fabric", color, darker, 0.12)


def wood(color: Color) -> Material:
    return Material("wood", color, (color[0] * 0.62, color[1] * 0.56, color[2] * 0.5), 0.09)


def _legs(width: float, depth: float, height: float, thickness: float, material: Material) -> list[Part]:
    x, y = width / 2 - thickness, depth / 2 - thickness
    return [
        Part("box", (sx * x, sy * y, height / 2), (thickness, thickness, height), material)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def chair(frame: Color, seat: Color) -> list[Part]:
    """A dining chair, 0.9 m high; whoever sits on it looks along +y."""
    w = wood(frame)
    posts = [Part("box", (sx * 0.19, -0.215, 0.68), (0.035, 0.035, 0.5), w, 0.12) for sx in (-1, 1)]
    return [
        *_legs(0.44, 0.44, 0.44, 0.04, w),
        Part("box", (0, 0, 0.455), (0.45, 0.45, 0.04), w),
        Part("box", (0, 0.01, 0.49), (0.4, 0.4, 0.04), fabric(seat)),
        *posts,
        Part("box", (0, -0.225, 0.8), (0.42, 0.03, 0.22), fabric(seat), 0.12),
    ]


def table(width: float, depth: float, height: float, color: Color) -> list[Part]:
    w = wood(color)
    return [
        *_legs(width - 0.06, depth - 0.06, height - 0.04, 0.06, w),
        Part("box", (0, 0, height - 0.09), (width - 0.16, depth - 0.16, 0.07), w),
        Part("box", (0, 0, height - 0.02), (width, depth, 0.04), w),
    ]


def round_table(diameter: float, height: float, color: Color) -> list[Part]:
    return [
        Part("cylinder", (0, 0, 0.015), (diameter * 0.55, diameter * 0.55, 0.03), plain(DARK)),
        Part("cylinder", (0, 0, height / 2 - 0.01), (0.08, 0.08, height - 0.02), plain(DARK)),
        Part("cylinder", (0, 0, height - 0.015), (diameter, diameter, 0.03), wood(color)),
    ]


def sofa(width: float, color: Color, pillow: Color) -> list[Part]:
    """A sofa with its back at y = 0."""
    cloth = fabric(color)
    seat = (width - 0.36) / 2
    parts = [
        Part("box", (0, 0.45, 0.22), (width, 0.86, 0.28), cloth),
        Part("box", (0, 0.12, 0.5), (width, 0.22, 0.62), cloth),
        *(Part("box", (sx * (width / 2 - 0.09), 0.45, 0.34), (0.18, 0.88, 0.52), cloth) for sx in (-1, 1)),
        *(Part("box", (sx * seat / 2, 0.53, 0.41), (seat - 0.02, 0.66, 0.13), cloth) for sx in (-1, 1)),
        *(Part("box", (sx * seat / 2, 0.29, 0.62), (seat - 0.03, 0.16, 0.38), cloth, 0.15) for sx in (-1, 1)),
        *(
            Part("box", (sx * (width / 2 - 0.36), 0.43, 0.6), (0.38, 0.13, 0.34), fabric(pillow), 0.35)
            for sx in (-1, 1)
        ),
    ]
    feet = [
        Part("cylinder", (sx * (width / 2 - 0.1), y, 0.04), (0.05, 0.05, 0.08), plain(DARK))
        for sx in (-1, 1)
        for y in (0.12, 0.8)
    ]
    return parts + feet


def bed(width: float, color: Color, blanket: Color) -> list[Part]:
    """A bed, 2.05 m long, with its head at y = 0."""
    w = wood(color)
    return [
        Part("box", (0, 0.03, 0.52), (width + 0.1, 0.06, 1.04), w),
        Part("box", (0, 1.03, 0.2), (width + 0.06, 2.0, 0.2), w),
        *(Part("box", (sx * (width / 2 - 0.05), y, 0.05), (0.07, 0.07, 0.1), w) for sx in (-1, 1) for y in (0.1, 1.95)),
        Part("box", (0, 1.03, 0.4), (width, 1.94, 0.2), fabric(WHITE)),
        Part("box", (0, 1.35, 0.46), (width + 0.05, 1.36, 0.16), Material("stripes", blanket, WHITE, 0.12)),
        *(Part("ellipsoid", (sx * width / 4, 0.33, 0.56), (width * 0.42, 0.4, 0.2), fabric(WHITE)) for sx in (-1, 1)),
    ]


def cabinet(width: float, depth: float, height: float, color: Color, doors: int) -> list[Part]:
    """A closed cabinet with `doors` doors beside each other."""
    w = wood(color)
    front = width / doors
    parts = [
        Part("box", (0, depth / 2 + 0.01, 0.03), (width - 0.06, depth - 0.06, 0.06), plain(DARK)),
        Part("box", (0, depth / 2, height / 2 + 0.03), (width, depth, height - 0.06), w),
    ]
    for k in range(doors):
        x = -width / 2 + front * (k + 0.5)
        parts.append(Part("box", (x, depth + 0.008, height / 2 + 0.03), (front - 0.02, 0.016, height - 0.1), w))
        handle = x + (front / 2 - 0.06) * (1 if k % 2 == 0 else -1)
        parts.append(Part("box", (handle, depth + 0.028, height * 0.55), (0.018, 0.024, 0.14), plain(METAL)))
    return parts


def bookshelf(width: float, height: float, color: Color) -> list[Part]:
    depth, board = 0.3, 0.025
    w = wood(color)
    shelves = max(3, round(height / 0.36))
    parts = [
        *(Part("box", (sx * (width - board) / 2, depth / 2, height / 2), (board, depth, height), w) for sx in (-1, 1)),
        Part("box", (0, 0.008, height / 2), (width, 0.016, height), w),
    ]
    step = (height - board) / shelves
    for k in range(shelves + 1):
        parts.append(Part("box", (0, depth / 2, board / 2 + k * step), (width - 2 * board, depth, board), w))
    for k in range(shelves):
        share = (0.95, 0.62, 0.8, 0.9, 0.7, 0.85)[k % 6]
        x = (width / 2 - board) * (1 - share) * (1 if k % 2 else -1)
        size = (share * (width - 2 * board), 0.2, step * 0.78)
        z = board + k * step + size[2] / 2
        parts.append(Part("box", (x, 0.13, z), size, Material("books", WHITE, DARK, 0.045)))
    return parts


def floor_lamp(shade: Color) -> list[Part]:
    return [
        Part("cylinder", (0, 0, 0.015), (0.3, 0.3, 0.03), plain(DARK)),
        Part("cylinder", (0, 0, 0.75), (0.03, 0.03, 1.5), plain(METAL)),
        Part("cylinder", (0, 0, 1.52), (0.4, 0.4, 0.3), fabric(shade)),
    ]


def table_lamp(shade: Color) -> list[Part]:
    return [
        Part("ellipsoid", (0, 0, 0.1), (0.15, 0.15, 0.2), plain(shade)),
        Part("cylinder", (0, 0, 0.22), (0.02, 0.02, 0.1), plain(METAL)),
        Part("cylinder", (0, 0, 0.34), (0.26, 0.26, 0.18), fabric((0.96, 0.9, 0.76))),
    ]


def ceiling_lamp() -> list[Part]:
    """Hangs from z = 0."""
    return [
        Part("cylinder", (0, 0, -0.15), (0.02, 0.02, 0.3), plain(DARK)),
        Part("ellipsoid", (0, 0, -0.4), (0.42, 0.42, 0.26), plain((1.0, 0.96, 0.85))),
    ]


def plant(height: float, pot: Color, rng: np.random.Generator) -> list[Part]:
    parts = [
        Part("cylinder", (0, 0, 0.15), (0.32, 0.32, 0.3), plain(pot)),
        Part("cylinder", (0, 0, 0.31), (0.28, 0.28, 0.02), plain((0.25, 0.18, 0.12))),
        Part("cylinder", (0, 0, 0.3 + height * 0.25), (0.035, 0.035, height * 0.5), plain((0.42, 0.32, 0.2))),
    ]
    for k in range(9):
        angle, level = 2.4 * k, (k + 0.5) / 9
        radius = 0.2 * np.sqrt(1 - (level - 0.4) ** 2)
        center = (radius * np.cos(angle), radius * np.sin(angle), 0.42 + level * (height - 0.5))
        size = rng.uniform(0.2, 0.32, 3) * (1, 1, 0.8)
        green = (0.2 + 0.14 * rng.random(), 0.45 + 0.16 * rng.random(), 0.2)
        parts.append(Part("ellipsoid", center, tuple(size), Material("plain", green, (0.1, 0.24, 0.1), 0.04)))
    return parts


def picture(width: float, height: float, frame: Color) -> list[Part]:
    """Centred at z = 0."""
    return [
        Part("box", (0, 0.015, 0), (width, 0.03, height), plain(frame)),
        Part("box", (0, 0.032, 0), (width - 0.06, 0.012, height - 0.06), Material("picture", WHITE)),
    ]


def window(width: float, height: float) -> list[Part]:
    """Centred at z = 0; the pane is opaque and shows a sky."""
    white = plain(WHITE)
    return [
        Part("box", (0, 0.012, 0), (width, 0.024, height), Material("sky", WHITE)),
        *(Part("box", (sx * width / 2, 0.03, 0), (0.07, 0.06, height + 0.07), white) for sx in (-1, 0, 1)),
        *(Part("box", (0, 0.03, sz * height / 2), (width, 0.06, 0.07), white) for sz in (-1, 1)),
        Part("box", (0, 0.07, -height / 2 - 0.03), (width + 0.14, 0.16, 0.03), white),
    ]


def door(color: Color) -> list[Part]:
    return [
        *(Part("box", (sx * 0.47, 0.02, 1.02), (0.07, 0.05, 2.1), plain(WHITE)) for sx in (-1, 1)),
        Part("box", (0, 0.02, 2.07), (1.0, 0.05, 0.07), plain(WHITE)),
        Part("box", (0, 0.015, 1.0), (0.88, 0.03, 2.0), wood(color)),
        *(Part("box", (0, 0.034, z), (0.6, 0.012, 0.7), wood(color)) for z in (0.5, 1.45)),
        Part("ellipsoid", (0.36, 0.06, 1.0), (0.06, 0.06, 0.06), plain(METAL)),
    ]


def rug(width: float, depth: float, color: Color, color2: Color) -> list[Part]:
    return [Part("box", (0, 0, 0.008), (width, depth, 0.016), Material("rug", color, color2, 0.28))]


def television(width: float) -> list[Part]:
    height = width * 0.58
    return [
        Part("box", (0, 0, 0.012), (width * 0.4, 0.2, 0.024), plain(DARK)),
        Part("box", (0, 0, 0.06), (0.08, 0.04, 0.1), plain(DARK)),
        Part("box", (0, 0, 0.08 + height / 2), (width, 0.04, height), plain(DARK)),
        Part("box", (0, 0.021, 0.08 + height / 2), (width - 0.05, 0.006, height - 0.05), Material("screen", DARK)),
    ]
