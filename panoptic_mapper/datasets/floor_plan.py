"""Where things stand in the synthetic world: rooms, their walls, and the furniture of each kind of room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panoptic_mapper.datasets import furniture as f
from panoptic_mapper.datasets.furniture import Part
from panoptic_mapper.datasets.primitives import Material

WALL_HEIGHT_M = 2.6
WALL_THICKNESS_M = 0.12
DOORWAY_WIDTH_M, DOORWAY_HEIGHT_M = 1.1, 2.1
ROOM_M = (5.2, 4.8)  # width along the corridor, depth
STUDIO_M = (7.0, 5.6)
CORRIDOR_WIDTH_M = 1.9

FABRICS: tuple[f.Color, ...] = (
    (0.29, 0.47, 0.58), (0.72, 0.42, 0.33), (0.42, 0.55, 0.42), (0.62, 0.5, 0.66), (0.8, 0.63, 0.32), (0.5, 0.52, 0.57),
)  # fmt: skip
WOODS: tuple[f.Color, ...] = ((0.76, 0.58, 0.4), (0.55, 0.37, 0.24), (0.86, 0.77, 0.63), (0.44, 0.31, 0.24))
PAINTS: tuple[f.Color, ...] = ((0.92, 0.87, 0.77), (0.76, 0.84, 0.83), (0.9, 0.81, 0.73), (0.86, 0.88, 0.76))


@dataclass(frozen=True)
class Piece:
    """A piece of furniture, or a part of the building, placed in a room or in the world."""

    class_name: str
    parts: list[Part]
    x: float
    y: float
    yaw: float = 0.0  # rad, about z
    z: float = 0.0


@dataclass(frozen=True)
class Room:
    """A rectangle of floor. Its frame has the origin at the centre; rooms at a corridor have it behind -y."""

    x: float
    y: float
    yaw: float  # 0 or pi
    size: tuple[float, float]  # m
    kind: str

    def to_world(self, points: np.ndarray) -> np.ndarray:  # [..., 2] room to world
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.asarray(points) @ np.array([[c, s], [-s, c]]) + (self.x, self.y)


def plan_rooms(num_rooms: int) -> list[Room]:
    """One studio, or rooms that alternate between the north and the south side of a corridor along x."""
    if num_rooms == 1:
        return [Room(0, 0, 0, STUDIO_M, "studio")]
    kinds = ("living", "bedroom", "dining", "study")
    y = (CORRIDOR_WIDTH_M + ROOM_M[1]) / 2 + WALL_THICKNESS_M
    return [
        Room(
            (k // 2) * (ROOM_M[0] + WALL_THICKNESS_M),
            y if k % 2 == 0 else -y,
            0 if k % 2 == 0 else np.pi,
            ROOM_M,
            kinds[k % len(kinds)],
        )
        for k in range(num_rooms)
    ]


def furnish(room: Room, rng: np.random.Generator) -> list[Piece]:
    """The furniture of a room in the world's frame; mirrored and varied at random."""
    pieces = _KINDS[room.kind](_Style(rng))
    mirror = -1 if rng.random() < 0.5 else 1
    placed = []
    for piece in pieces:
        # Mirroring the room left to right turns the pieces; they are symmetric themselves.
        x, yaw = mirror * piece.x, mirror * piece.yaw
        wx, wy = room.to_world(np.array([x, piece.y]))
        placed.append(Piece(piece.class_name, piece.parts, wx, wy, yaw + room.yaw, piece.z))
    return placed


def build_shell(rooms: list[Room], rng: np.random.Generator) -> list[Piece]:
    """Walls, floors and ceilings of the rooms and of the corridor between them."""
    planks = Material("planks", *_two_tones(WOODS[rng.integers(2)], 0.72), 0.13)
    if len(rooms) == 1:
        return _room_shell(rooms[0], planks, f.plain(PAINTS[rng.integers(len(PAINTS))], 0.8), None)
    shell = []
    for room in rooms:
        paint = f.plain(PAINTS[rng.integers(len(PAINTS))], 0.8)
        floor = planks if room.kind != "dining" else Material("checker", (0.86, 0.83, 0.77), (0.6, 0.55, 0.5), 0.45)
        shell += _room_shell(room, floor, paint, DOORWAY_WIDTH_M)
    return shell + _corridor_shell(rooms, planks)


def _two_tones(color: f.Color, share: float) -> tuple[f.Color, f.Color]:
    return color, (color[0] * share, color[1] * share, color[2] * share)


def _slab(
    class_name: str, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], material: Material
) -> Piece:
    center = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, (z[0] + z[1]) / 2)
    size = (x[1] - x[0], y[1] - y[0], z[1] - z[0])
    return Piece(class_name, [Part("box", center, size, material)], 0, 0)


def _room_shell(room: Room, floor: Material, paint: Material, doorway_m: float | None) -> list[Piece]:
    """Floor, ceiling and four walls, the one at -y with a doorway in its middle where asked for."""
    w, d = room.size[0] / 2, room.size[1] / 2
    t, h = WALL_THICKNESS_M, WALL_HEIGHT_M
    pieces = [
        _slab("floor", (-w - t, w + t), (-d - t, d + t), (-0.1, 0), floor),
        _slab("ceiling", (-w - t, w + t), (-d - t, d + t), (h, h + 0.1), f.plain(f.WHITE, 1.0)),
        _slab("wall", (-w - t, -w), (-d - t, d + t), (0, h), paint),
        _slab("wall", (w, w + t), (-d - t, d + t), (0, h), paint),
        _slab("wall", (-w, w), (d, d + t), (0, h), paint),
    ]
    if doorway_m is None:
        pieces.append(_slab("wall", (-w, w), (-d - t, -d), (0, h), paint))
    else:
        gap = doorway_m / 2
        pieces.append(_slab("wall", (-w, -gap), (-d - t, -d), (0, h), paint))
        pieces.append(_slab("wall", (gap, w), (-d - t, -d), (0, h), paint))
        pieces.append(_slab("wall", (-gap, gap), (-d - t, -d), (DOORWAY_HEIGHT_M, h), paint))
    return [Piece(p.class_name, p.parts, room.x, room.y, room.yaw) for p in pieces]


def _corridor_shell(rooms: list[Room], floor: Material) -> list[Piece]:
    """The corridor's floor, ceiling and ends, and its side where the last room has nothing opposite."""
    t, h, half = WALL_THICKNESS_M, WALL_HEIGHT_M, CORRIDOR_WIDTH_M / 2
    left, right = rooms[0].x - ROOM_M[0] / 2, rooms[-1].x + ROOM_M[0] / 2
    paint = f.plain(PAINTS[0], 0.8)
    pieces = [
        _slab("floor", (left - t, right + t), (-half, half), (-0.1, 0), floor),
        _slab("ceiling", (left - t, right + t), (-half, half), (h, h + 0.1), f.plain(f.WHITE, 1.0)),
        _slab("wall", (left - t, left), (-half, half), (0, h), paint),
        _slab("wall", (right, right + t), (-half, half), (0, h), paint),
    ]
    if len(rooms) % 2:
        pieces.append(_slab("wall", (right - ROOM_M[0] - t, right + t), (-half - t, -half), (0, h), paint))
    frames = [Piece("picture", f.picture(0.6, 0.45, f.DARK), left, 0, -np.pi / 2, 1.5)]
    frames.append(Piece("picture", f.picture(0.6, 0.45, f.DARK), right, 0, np.pi / 2, 1.5))
    return pieces + frames


class _Style:
    """Random choices of colours and small displacements for the pieces of one room."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.wood = WOODS[rng.integers(len(WOODS))]
        self.wood2 = WOODS[rng.integers(len(WOODS))]
        self.cloth, self.accent, self.cloth2 = (FABRICS[i] for i in rng.permutation(len(FABRICS))[:3])

    def shift(self, amount: float = 0.04) -> float:
        return float(self.rng.uniform(-amount, amount))

    def plant(self, x: float, y: float, height: float = 1.1) -> Piece:
        pot = FABRICS[self.rng.integers(len(FABRICS))]
        return Piece("plant", f.plant(height * self.rng.uniform(0.9, 1.1), pot, self.rng), x, y)

    def picture(self, x: float, y: float, yaw: float, width: float = 0.6, height: float = 0.5) -> Piece:
        frame = (f.DARK, f.WHITE, self.wood)[self.rng.integers(3)]
        return Piece("picture", f.picture(width, height, frame), x + self.shift() * abs(np.cos(yaw)), y, yaw, 1.55)

    def chair(self, x: float, y: float, yaw: float) -> Piece:
        return Piece(
            "chair", f.chair(self.wood, self.accent), x + self.shift(), y + self.shift(), yaw + self.shift(0.2)
        )

    def dining_set(self, x: float, y: float) -> list[Piece]:
        return [
            Piece("table", f.table(1.4, 0.85, 0.74, self.wood), x, y, self.shift()),
            self.chair(x - 0.35, y - 0.68, 0),
            self.chair(x + 0.38, y - 0.68, 0),
            self.chair(x - 0.35, y + 0.68, np.pi),
            self.chair(x + 0.38, y + 0.68, np.pi),
        ]

    def sofa_set(self, x: float, wall_y: float) -> list[Piece]:
        """A sofa at the wall y = wall_y, facing +y, with what belongs in front of and above it."""
        return [
            Piece("sofa", f.sofa(2.0, self.cloth, self.accent), x, wall_y + 0.05),
            Piece("rug", f.rug(2.3, 1.5, self.cloth2, f.WHITE), x, wall_y + 1.55, self.shift()),
            Piece("table", f.round_table(0.85, 0.42, self.wood2), x + self.shift(), wall_y + 1.5, 0, 0.016),
            Piece("lamp", f.floor_lamp((0.95, 0.86, 0.68)), x - 1.3, wall_y + 0.35),
            self.picture(x - 0.45, wall_y, 0, 0.62, 0.5),
            self.picture(x + 0.45, wall_y, 0, 0.62, 0.5),
        ]

    def tv_set(self, x: float, wall_y: float) -> list[Piece]:
        """A low cabinet with a television at the wall y = wall_y, facing -y."""
        return [
            Piece("cabinet", f.cabinet(1.7, 0.42, 0.5, self.wood2, 3), x, wall_y, np.pi),
            Piece("television", f.television(1.1), x, wall_y - 0.2, np.pi, 0.5),
        ]

    def bed_set(self, x: float, y: float, yaw: float) -> list[Piece]:
        """A bed with its head at (x, y), a night cabinet and a lamp beside it, a picture above."""
        side = np.array([np.cos(yaw), np.sin(yaw)]) * 1.12
        front = np.array([-np.sin(yaw), np.cos(yaw)])
        at = side + front * 0.22
        return [
            Piece("bed", f.bed(1.5, self.wood, self.cloth), x, y, yaw),
            Piece("cabinet", f.cabinet(0.48, 0.4, 0.52, self.wood, 1), x + side[0], y + side[1], yaw),
            Piece("lamp", f.table_lamp(self.accent), x + at[0], y + at[1], 0, 0.52),
            self.picture(x, y, yaw, 0.9, 0.5),
        ]

    def desk_set(self, x: float, wall_y: float) -> list[Piece]:
        """A desk at the wall y = wall_y, facing -y, with a chair, a lamp and a picture."""
        return [
            Piece("table", f.table(1.3, 0.65, 0.74, self.wood2), x, wall_y - 0.36),
            self.chair(x + 0.1, wall_y - 0.92, 0),
            Piece("lamp", f.table_lamp(self.cloth), x - 0.48, wall_y - 0.25, 0, 0.74),
            self.picture(x + 0.15, wall_y, np.pi, 0.7, 0.5),
        ]

    def bookshelf(self, x: float, y: float, yaw: float, width: float = 1.0) -> Piece:
        return Piece("bookshelf", f.bookshelf(width, 1.9, self.wood2), x, y, yaw)

    def window(self, x: float, y: float, yaw: float) -> Piece:
        return Piece("window", f.window(1.4, 1.2), x, y, yaw, 1.5)

    def ceiling_lamp(self, x: float, y: float) -> Piece:
        return Piece("lamp", f.ceiling_lamp(), x, y, 0, WALL_HEIGHT_M)


EAST, WEST, NORTH, SOUTH = np.pi / 2, -np.pi / 2, np.pi, 0.0  # yaw of what has its back at that wall


def _studio(s: _Style) -> list[Piece]:
    w, d = STUDIO_M[0] / 2, STUDIO_M[1] / 2
    return [
        *s.sofa_set(-1.5, -d),
        *s.tv_set(-1.7, d),
        s.bookshelf(-0.15, d, NORTH),
        *s.desk_set(2.2, d),
        *s.dining_set(0.95, 0.3),
        *s.bed_set(w, -1.75, EAST),
        Piece("cabinet", f.cabinet(1.1, 0.55, 1.95, s.wood, 2), 0.75, -d, SOUTH),
        Piece("door", f.door(s.wood), -w, 1.5, WEST),
        s.window(-w, -0.7, WEST),
        s.window(w, 1.0, EAST),
        s.plant(-3.1, 2.35),
        s.plant(3.1, 2.35, 1.3),
        s.ceiling_lamp(0.95, 0.3),
    ]


def _living(s: _Style) -> list[Piece]:
    w, d = ROOM_M[0] / 2, ROOM_M[1] / 2
    turned = [
        Piece(p.class_name, p.parts, -p.x, -p.y, p.yaw + np.pi, p.z) for p in s.sofa_set(0.2, -d)
    ]  # the sofa stands at the far wall
    return [
        *turned,
        s.bookshelf(-w, 1.0, WEST),
        Piece("cabinet", f.cabinet(1.5, 0.42, 0.5, s.wood2, 3), 1.7, -d, SOUTH),
        Piece("television", f.television(1.0), 1.7, -d + 0.2, 0, 0.5),
        s.window(w, 0.6, EAST),
        s.plant(-2.2, 2.0, 1.3),
        s.picture(-w, -1.0, WEST),
        s.ceiling_lamp(0, 0),
    ]


def _bedroom(s: _Style) -> list[Piece]:
    w, d = ROOM_M[0] / 2, ROOM_M[1] / 2
    return [
        *s.bed_set(w, 0.5, EAST),
        Piece("rug", f.rug(1.6, 1.1, s.cloth2, f.WHITE), -0.6, 0.4, 0.1),
        Piece("cabinet", f.cabinet(1.6, 0.58, 2.0, s.wood, 3), -w, 0.6, WEST),
        s.window(0.1, d, NORTH),
        s.chair(-2.0, -1.7, -0.6),
        s.plant(-2.1, 2.0),
        s.ceiling_lamp(0, 0.2),
    ]


def _dining(s: _Style) -> list[Piece]:
    w, d = ROOM_M[0] / 2, ROOM_M[1] / 2
    return [
        *s.dining_set(0.1, 0.5),
        Piece("cabinet", f.cabinet(1.8, 0.5, 0.9, s.wood2, 4), 0.2, d, NORTH),
        s.picture(-0.3, d, NORTH),
        s.picture(0.75, d, NORTH),
        s.window(w, 0.5, EAST),
        s.bookshelf(-w, 1.1, WEST),
        s.plant(2.1, -1.9),
        s.ceiling_lamp(0.1, 0.5),
    ]


def _study(s: _Style) -> list[Piece]:
    w, d = ROOM_M[0] / 2, ROOM_M[1] / 2
    return [
        *s.desk_set(-1.2, d),
        *s.desk_set(1.2, d),
        s.bookshelf(-w, 0.6, WEST, 1.2),
        s.bookshelf(-w, -0.8, WEST),
        s.window(w, 0.4, EAST),
        Piece("rug", f.rug(2.0, 1.4, s.cloth2, f.WHITE), 0.2, 0.1, -0.05),
        s.plant(2.2, -1.9, 1.3),
        s.ceiling_lamp(0, 0),
    ]


_KINDS = {"studio": _studio, "living": _living, "bedroom": _bedroom, "dining": _dining, "study": _study}
