"""Procedural surface colours and soft light for the synthetic world."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from panoptic_mapper.datasets.lighting import Light
from panoptic_mapper.datasets.primitives import Hits, Primitive, surface_normals
from panoptic_mapper.frame import PinholeCamera

NOISE_CELLS = 64  # side of the periodic noise volume
OCCLUSION_CELL_M = 0.06
KEY_LIGHT = np.array([0.35, 0.45, 0.82]) / np.linalg.norm([0.35, 0.45, 0.82])  # towards the light, world
FILL_LIGHT = np.array([-0.75, -0.5, 0.4]) / np.linalg.norm([-0.75, -0.5, 0.4])

Noise = Callable[[np.ndarray], np.ndarray]  # points [M, 3] in cells to [M] about -1..1


class Shader:
    """Colours the hits of a fixed list of solids: texture times light times ambient occlusion.

    The fixed light does not depend on the view: under it alone a point has one colour in all frames.
    """

    def __init__(self, primitives: list[Primitive], seed: int) -> None:
        self._primitives = primitives
        volume = np.random.default_rng(seed).standard_normal((NOISE_CELLS,) * 3).astype(np.float32)
        volume = ndimage.gaussian_filter(volume, 0.8, mode="wrap")
        self._noise_volume = np.clip(volume / (2 * volume.std()), -1, 1)
        self._rotations = np.stack([p.rotation for p in primitives]).astype(np.float32)
        self._centers = np.stack([p.center for p in primitives]).astype(np.float32)
        self._colors = np.array([p.material.color for p in primitives], np.float32)
        self._colors2 = np.array([p.material.color2 for p in primitives], np.float32)
        self._scales = np.array([p.material.scale_m for p in primitives], np.float32)
        self._texture_ids = np.array([list(TEXTURES).index(p.material.texture) for p in primitives])
        self._halves = np.stack([p.half for p in primitives]).astype(np.float32)
        self._occlusion, self._occlusion_origin = _occlusion_volume(primitives)

    def shade(
        self, hits: Hits, T_world_camera: np.ndarray, camera: PinholeCamera, light: Light | None = None
    ) -> np.ndarray:
        """Colours [H, W, 3] float32 0..1; black where nothing was hit. `light` changes the fixed light, if given."""
        rows, cols = np.nonzero(hits.primitive >= 0)
        index = hits.primitive[rows, cols]
        z = hits.depth[rows, cols]
        rays = np.stack([(cols - camera.cx) / camera.fx * z, (rows - camera.cy) / camera.fy * z, z], 1)
        points = (rays @ T_world_camera[:3, :3].T + T_world_camera[:3, 3]).astype(np.float32)  # [M, 3] world
        R = self._rotations[index]
        local = np.einsum("mi,mij->mj", points - self._centers[index], R)
        normals_local = surface_normals(self._primitives, local, index)
        normals = np.einsum("mij,mj->mi", R, normals_local)
        lightness = self._light(points, normals)[:, None]
        if light is not None:
            lightness = light.on(points, normals, lightness)
        color = self._albedo(local, normals_local, index) * lightness
        image = np.zeros((*hits.depth.shape, 3), np.float32)
        image[rows, cols] = np.clip(color, 0, 1)
        return image

    def _albedo(self, local: np.ndarray, normals: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Texture colours [M, 3] at points in the solids' axes."""
        color = np.empty_like(local)
        textures = self._texture_ids[index]
        for texture_id, texture in enumerate(TEXTURES.values()):
            m = np.nonzero(textures == texture_id)[0]
            if not len(m):
                continue
            k = index[m]
            uv = _face_coordinates(local[m], normals[m])
            # Each solid reads another part of the noise, so that equal pieces do not look the same.
            seeds = (k[:, None] * np.array([7.31, 3.77, 5.13], np.float32)) % NOISE_CELLS
            mix = texture(local[m], uv, self._scales[k], seeds, self._noise, self._halves[k])
            if mix.ndim == 2:  # the texture gives colours of its own
                color[m] = mix
            else:
                color[m] = self._colors[k] + (self._colors2[k] - self._colors[k]) * mix[:, None]
        return color * (1 + 0.03 * self._noise(local * 60 + index[:, None]))[:, None]

    def _light(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        key = np.clip(normals @ KEY_LIGHT, 0, None)
        fill = np.clip(normals @ FILL_LIGHT, 0, None)
        light = 0.7 + 0.06 * np.abs(normals[:, 2]) + 0.36 * key + 0.18 * fill
        at = (points + normals * (1.5 * OCCLUSION_CELL_M) - self._occlusion_origin) / OCCLUSION_CELL_M
        occlusion = ndimage.map_coordinates(self._occlusion, at.T, order=1, mode="nearest")
        return light * (1 - 0.75 * np.clip(occlusion, 0, 1))

    def _noise(self, cells: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(self._noise_volume, cells.T, order=1, mode="grid-wrap")


def _occlusion_volume(primitives: list[Primitive]) -> tuple[np.ndarray, np.ndarray]:
    """How filled the surroundings of each cell are, 0..1, and the world position of cell (0, 0, 0).

    A blurred occupancy grid is a cheap ambient occlusion: corners, and the floor under a table, get darker.
    """
    corners = np.concatenate([p.corners() for p in primitives])
    origin = corners.min(axis=0)
    shape = np.ceil((corners.max(axis=0) - origin) / OCCLUSION_CELL_M).astype(int) + 1
    filled = np.zeros(shape, np.float32)
    for solid in primitives:
        low = np.floor((solid.corners().min(axis=0) - origin) / OCCLUSION_CELL_M).astype(int)
        high = np.ceil((solid.corners().max(axis=0) - origin) / OCCLUSION_CELL_M).astype(int) + 1
        low, high = np.maximum(low, 0), np.minimum(high, shape)
        cells = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
        inside = solid.contains(cells.reshape(-1, 3) * OCCLUSION_CELL_M + origin).reshape(cells.shape[:3])
        filled[low[0] : high[0], low[1] : high[1], low[2] : high[2]][inside] = 1
    near = ndimage.gaussian_filter(filled, 1.6, mode="nearest")
    wide = ndimage.gaussian_filter(filled, 4.0, mode="nearest")
    # Half of the space around a point of a flat wall is filled; only what is beyond that darkens.
    return np.clip(1.1 * (near - 0.18), 0, 1) * 0.7 + np.clip(1.2 * (wide - 0.3), 0, 1) * 0.8, origin


def _face_coordinates(local: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Two coordinates [M, 2] (m) along the face that a point lies on: x along the solid's x (or y), then the other."""
    axis = np.argmax(np.abs(normals), axis=1)
    u = np.where(axis == 0, local[:, 1], local[:, 0])
    v = np.where(axis == 2, local[:, 1], local[:, 2])
    return np.stack([u, v], 1)


def _hash(*keys: np.ndarray) -> np.ndarray:
    """A pseudo-random number in 0..1 for each tuple of keys."""
    dot = sum(key * factor for key, factor in zip(keys, (12.9898, 78.233, 37.719), strict=False))
    return np.modf(np.abs(np.sin(dot) * 43758.5453))[0]


# A texture maps (local [M, 3] m, face coordinates [M, 2] m, scale [M] m, noise offset [M, 3], noise, half [M, 3])
# to a mix [M] of the material's two colours, or to colours [M, 3].


def _plain(local, uv, scale, seed, noise, half):
    return 0.12 + 0.12 * noise(local / scale[:, None] + seed)


def _fabric(local, uv, scale, seed, noise, half):
    weave = np.sin(uv[:, 0] * 420) * np.sin(uv[:, 1] * 420)
    return 0.3 + 0.25 * noise(local / scale[:, None] + seed) + 0.12 * noise(local * 45) + 0.06 * weave


def _wood(local, uv, scale, seed, noise, half):
    """Grain along the longest side of the solid."""
    along = np.arange(3) == np.argmax(half, axis=1)[:, None]
    cells = local / scale[:, None] * np.where(along, 0.15, 1.6)
    across = np.where(along, 0, cells).sum(axis=1)
    rings = np.sin(4 * across + 5 * noise(cells * 0.5 + seed))
    return 0.35 + 0.16 * rings + 0.28 * noise(cells * 3 + seed)


def _planks(local, uv, scale, seed, noise, half):
    row = np.floor(uv[:, 1] / scale)
    along = uv[:, 0] / (scale * 8) + _hash(row)
    tone = _hash(row, np.floor(along))
    seam = (np.abs(np.modf(uv[:, 1] / scale)[0]) < 0.035) | (np.abs(np.modf(along)[0]) < 0.004)
    grain = noise(np.stack([uv[:, 0] * 4, uv[:, 1] * 40, tone * 60], 1))
    return np.clip(0.15 + 0.55 * tone + 0.2 * grain + 0.5 * seam, 0, 1)


def _checker(local, uv, scale, seed, noise, half):
    cell = np.floor(uv[:, 0] / scale) + np.floor(uv[:, 1] / scale)
    return 0.85 * (cell % 2) + 0.1 * noise(local * 30 + seed)


def _stripes(local, uv, scale, seed, noise, half):
    wave = np.sin(np.pi * uv[:, 0] / scale)
    return np.clip(0.5 + 3 * wave, 0, 1) * 0.85 + 0.08 * noise(local * 40 + seed)


def _rug(local, uv, scale, seed, noise, half):
    edge = np.minimum(half[:, 0] - np.abs(local[:, 0]), half[:, 1] - np.abs(local[:, 1]))
    border = (edge > 0.07) & (edge < 0.13)
    diamond = np.abs(((local[:, 0] / scale) % 2) - 1) + np.abs(((local[:, 1] / scale) % 2) - 1)
    pattern = np.where(edge > 0.16, (diamond < 0.62) * 0.75 + ((diamond > 0.9) & (diamond < 1.05)) * 0.5, 0)
    return np.clip(pattern + 0.8 * border + 0.1 * noise(local * 50 + seed), 0, 1)


def _picture(local, uv, scale, seed, noise, half):
    """An abstract landscape: sky, sun, and hills that differ from one picture to the next."""
    u, v = uv[:, 0] / half[:, 0], uv[:, 1] / half[:, 2]
    k = seed[:, 0]
    hue = 2 * np.pi * np.stack([_hash(k), _hash(k) + 0.33, _hash(k) + 0.67], 1)
    color = 0.78 + 0.1 * np.cos(hue) + 0.12 * v[:, None]
    sun = (u - 1.2 * _hash(k, k) + 0.6) ** 2 + (v - 0.45) ** 2 < 0.06
    color[sun] = (0.98, 0.86, 0.5)
    for layer in range(3):
        ridge = 0.25 - 0.4 * layer + 0.3 * np.sin(u * (2.0 + layer) + 9 * _hash(k, k + layer))
        ground = v < ridge
        color[ground] = (0.52 - 0.1 * layer + 0.14 * np.cos(hue + 1.4 * layer + 1.8))[ground]
    return color * (1 + 0.06 * noise(local * 40 + seed))[:, None]


def _books(local, uv, scale, seed, noise, half):
    """Spines side by side, of several widths, heights and colours; dark gaps above."""
    wobble = local[:, 0] / scale + 0.35 * np.sin(3.1 * local[:, 0] / scale)
    book = np.floor(wobble)
    hue = 2 * np.pi * (_hash(book, seed[:, 0])[:, None] + np.array([0, 0.33, 0.67], np.float32))
    bright = 0.3 + 0.35 * _hash(book, seed[:, 1])
    color = bright[:, None] * (1.1 + 0.35 * np.cos(hue)) * (1.1, 1.0, 0.9)
    band = np.abs(local[:, 2] / half[:, 2] - 0.4) < 0.08
    color = np.where((band & (_hash(book, seed[:, 2]) > 0.5))[:, None], 0.85, color)
    top = local[:, 2] / half[:, 2] > 1 - 0.5 * _hash(book, seed[:, 2] + 1)
    gap = (wobble - book < 0.07) | top
    return np.where(gap[:, None], 0.13 * np.ones_like(color), color)


def _sky(local, uv, scale, seed, noise, half):
    """Daylight with trees, as seen through a window pane."""
    v = local[:, 2] / half[:, 2]
    cloud = np.clip(noise(local * np.array([3, 3, 6], np.float32) + seed), 0, 1)
    color = np.array([0.66, 0.82, 0.97], np.float32) + (0.12 * v + 0.25 * cloud)[:, None]
    trees = v + 0.35 * noise(local * 7 + seed) < -0.45
    green = np.array([0.38, 0.55, 0.3], np.float32) * (1 + 0.3 * noise(local * 22 + seed))[:, None]
    return np.where(trees[:, None], green, color) * 1.1


def _screen(local, uv, scale, seed, noise, half):
    u, v = uv[:, 0] / half[:, 0], uv[:, 1] / half[:, 2]
    bars = np.floor((u + 1) * 4)
    glow = 0.10 + 0.08 * _hash(bars) + 0.05 * v
    return np.stack([glow, glow * 1.15, glow * 1.5], 1)


TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "plain": _plain,
    "fabric": _fabric,
    "wood": _wood,
    "planks": _planks,
    "checker": _checker,
    "stripes": _stripes,
    "rug": _rug,
    "picture": _picture,
    "books": _books,
    "sky": _sky,
    "screen": _screen,
}
