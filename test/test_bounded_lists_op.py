"""Lists of Gaussians by tiles in memory of a given size: against lists that are made one by one."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.rasterizers.gsplat import ROOM, ROOM_STEP, ListRoom

WIDTH, HEIGHT = 70, 41  # 5 x 3 tiles


def splats(V: int, device: str, seed: int = 0) -> list[Tensor]:
    """Centres, some of them beside the image, radii, some of them 0, and depths, some of them equal."""
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(V, 2, generator=g) * torch.tensor([WIDTH + 40, HEIGHT + 40]) - 20
    radii = torch.randint(0, 20, (V, 2), generator=g, dtype=torch.int32)
    depths = torch.randint(1, 30, (V,), generator=g) / 10
    return [t.to(device) for t in (means, radii, depths)]


def lists_one_by_one(means: Tensor, radii: Tensor, depths: Tensor) -> list[list[int]]:
    """As gsplat finds them: the Gaussians of each tile by depth, then by row."""
    tiles: list[list[tuple[float, int]]] = [[] for _ in range(15)]
    for g, ((x, y), (rx, ry), z) in enumerate(zip(means.tolist(), radii.tolist(), depths.tolist(), strict=True)):
        if rx <= 0 or ry <= 0:
            continue
        spans = [
            range(min(max(math.floor((c - r) / 16), 0), n), min(max(math.ceil((c + r) / 16), 0), n))
            for c, r, n in ((x, rx, 5), (y, ry, 3))
        ]
        for tile_y in spans[1]:
            for tile_x in spans[0]:
                tiles[5 * tile_y + tile_x].append((z, g))
    return [[g for _, g in sorted(tile)] for tile in tiles]


def listed(args: list[Tensor], capacity: int) -> tuple[list[list[int]], int]:
    offsets, gaussians, count = torch.ops.panoptic_mapper.list_tiles(*args, WIDTH, HEIGHT, capacity)
    assert offsets.shape == (1, 4, 5)
    assert gaussians.shape == (capacity,)
    bounds = [*offsets.flatten().tolist(), capacity]
    assert bounds == sorted(bounds)
    rows = gaussians.tolist()
    return [rows[begin:end] for begin, end in pairwise(bounds[:16])], int(count)


@pytest.mark.parametrize("V", [0, 1, 300])
def test_lists_are_those_that_are_made_one_by_one(V: int, device: str) -> None:
    args = splats(V, device)
    expected = lists_one_by_one(*(t.cpu() for t in args))
    total = sum(map(len, expected))
    assert V < 300 or total > 300
    for capacity in (max(total, 1), total + 1, 3 * total + 64):
        assert listed(args, capacity) == (expected, total)


def test_lists_that_are_too_long_say_so(device: str) -> None:
    args = splats(300, device)
    complete = lists_one_by_one(*(t.cpu() for t in args))
    total = sum(map(len, complete))
    tiles, count = listed(args, total - 40)
    assert count == total
    assert sum(map(len, tiles)) == total - 40
    for tile, whole in zip(tiles, complete, strict=True):
        assert set(tile) <= set(whole)


def test_layouts_do_not_matter(device: str) -> None:
    args = splats(300, device)
    spread = [torch.stack([t, t], dim=-1)[..., 0] for t in args]
    assert listed(spread, 5000) == listed(args, 5000)


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.double(), "means2d: expected Float"),
        (1, lambda t: t.long(), "radii: expected Int"),
        (1, lambda t: t[1:], "radii: expected sizes"),
        (2, lambda t: t[1:], "depths: expected sizes"),
        (3, lambda n: 0, "width, height: expected at least 1"),
        (5, lambda n: 0, "capacity: expected 1"),
        (5, lambda n: 2**31, "capacity: expected 1"),
    ],
)
def test_bad_arguments_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = [*splats(9, device), WIDTH, HEIGHT, 100]
    args[index] = bad(args[index])
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.panoptic_mapper.list_tiles(*args)


def test_opcheck(device: str) -> None:
    torch.library.opcheck(torch.ops.panoptic_mapper.list_tiles.default, (*splats(9, device), WIDTH, HEIGHT, 200))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_host_does_not_wait() -> None:
    ops.load()
    args = splats(300, "cuda")
    listed(args, 5000)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.ops.panoptic_mapper.list_tiles(*args, WIDTH, HEIGHT, 5000)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("gsplat") is None, reason="no GPU with gsplat"
)
def test_lists_are_those_of_gsplat() -> None:
    import gsplat

    means, radii, depths = splats(20_000, "cuda")
    _, ids, expected = gsplat.isect_tiles(means[None], radii[None], depths[None], 16, 5, 3)
    offsets, gaussians, count = torch.ops.panoptic_mapper.list_tiles(means, radii, depths, WIDTH, HEIGHT, 1 << 20)
    assert int(count) == len(expected)
    assert torch.equal(gaussians[: len(expected)], expected)
    assert torch.equal(offsets[:, :3], gsplat.isect_offset_encode(ids, 1, 5, 3))


def test_room_follows_the_longest_of_the_last_lists() -> None:
    room = ListRoom()
    assert room.capacity() == 0
    room.note(torch.tensor([100_000]))
    capacity = room.capacity()
    assert ROOM * 100_000 <= capacity <= ROOM * 100_000 + 2 * ROOM_STEP
    room.note(torch.tensor([50_000]))
    assert room.capacity() == capacity
    room.note(torch.tensor([1_000_000]))
    assert room.capacity() >= ROOM * 1_000_000
    for _ in range(100):
        room.note(torch.tensor([1]))
    assert room.capacity() <= 2 * ROOM_STEP
