"""What a camera may see: the operators on points and on ellipsoids against float64 oracles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from operator_devices import captured
from scipy.spatial.transform import Rotation
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.frame import PinholeCamera
from panoptic_mapper.geometry import rotation_matrices
from panoptic_mapper.instances import CHI2_3_99
from panoptic_mapper.occlusion import TILE

CAMERA = PinholeCamera(width=70, height=45, fx=61.0, fy=57.0, cx=33.2, cy=23.1)
NEAR_M, MARGIN = 0.2, 0.15
BORDER_PX, BORDER_M = 1e-3, 1e-5  # so near to a border float32 may decide otherwise


def pose(seed: int = 0) -> Tensor:
    """T_camera_map [4, 4] of a camera that looks about along z from near the origin."""
    T = torch.eye(4)
    T[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", (7 + seed, -12, 5), degrees=True).as_matrix())
    T[:3, 3] = torch.tensor([0.1, -0.2, 0.15])
    return T


def intrinsics(camera: PinholeCamera) -> tuple[float, float, float, float, int, int]:
    return camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height


def frustum_mask(means: Tensor, T: Tensor, limits: Tensor | None = None) -> Tensor:
    args = (means, T.to(means.device), *intrinsics(CAMERA), MARGIN, NEAR_M)
    return torch.ops.panoptic_mapper.frustum_mask(*args, limits)


def frustum_oracle(means: Tensor, T: Tensor, limits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which points [N] are candidates, and which are so near to a border that it may be either way."""
    X = means.double() @ T[:3, :3].double().T + T[:3, 3].double()
    z = X[:, 2]
    before = z > NEAR_M
    near_border = (z - NEAR_M).abs() < BORDER_M
    tile = []
    for axis, focal, center, size in (
        (X[:, 0], CAMERA.fx, CAMERA.cx, CAMERA.width),
        (X[:, 1], CAMERA.fy, CAMERA.cy, CAMERA.height),
    ):
        px = axis / z * focal + center
        low, high = -MARGIN * size, (1 + MARGIN) * size
        before &= (px > low) & (px < high)
        near_border |= ((px - low).abs() < BORDER_PX) | ((px - high).abs() < BORDER_PX)
        tiles = -(-size // TILE)
        tile.append(((px + 0.5) / TILE).floor().clamp(0, tiles - 1).nan_to_num().long())
        if limits is not None:
            at = (px + 0.5) % TILE
            near_border |= (at < BORDER_PX) | (at > TILE - BORDER_PX)
    if limits is None:
        return before, near_border
    limit = limits.double()[tile[1], tile[0]]
    return before & (z < limit), near_border | ((z - limit).abs() < BORDER_M)


def points(N: int, seed: int = 0) -> Tensor:
    """Points [N, 3] in front of and behind the camera, beside its image and in it."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, 3, generator=g) * torch.tensor([1.2, 1.0, 2.0]) + torch.tensor([0.0, 0.0, 1.2])


def depth_limits(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    limits = 0.5 + 3 * torch.rand(-(-CAMERA.height // TILE), -(-CAMERA.width // TILE), generator=g)
    limits[torch.rand(limits.shape, generator=g) < 0.2] = torch.inf
    return limits


@pytest.mark.parametrize("N", [1, 5000])
@pytest.mark.parametrize("with_limits", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_candidates_are_those_of_the_oracle(seed: int, with_limits: bool, N: int, device: str) -> None:
    means, T = points(N, seed), pose(seed)
    limits = depth_limits(seed) if with_limits else None
    expected, near_border = frustum_oracle(means, T, limits)
    means, expected = means[~near_border], expected[~near_border]
    mask = frustum_mask(means.to(device), T, None if limits is None else limits.to(device))
    assert mask.dtype == torch.bool
    assert torch.equal(mask.cpu(), expected)
    if N > 1:
        assert near_border.float().mean() < 0.01
        assert 0.05 < expected.float().mean() < 0.9
    if N > 1 and with_limits:
        assert (frustum_mask(means.to(device), T) & ~mask).any()  # some are hidden


def test_candidates_by_hand(device: str) -> None:
    """The margin is a share of the image; pixels have their centre at whole coordinates."""

    def at(u: float, v: float, z: float) -> list[float]:
        return [(u - CAMERA.cx) / CAMERA.fx * z, (v - CAMERA.cy) / CAMERA.fy * z, z]

    beside, above = MARGIN * CAMERA.width, MARGIN * CAMERA.height
    inside = [
        at(CAMERA.cx, CAMERA.cy, 1),
        at(CAMERA.cx, CAMERA.cy, NEAR_M + 0.001),
        at(-beside + 0.1, 10, 2),
        at(CAMERA.width + beside - 0.1, 10, 2),
        at(10, -above + 0.1, 2),
        at(10, CAMERA.height + above - 0.1, 2),
    ]
    outside = [
        at(CAMERA.cx, CAMERA.cy, NEAR_M - 0.001),
        at(CAMERA.cx, CAMERA.cy, -1),
        at(-beside - 0.1, 10, 2),
        at(CAMERA.width + beside + 0.1, 10, 2),
        at(10, -above - 0.1, 2),
        at(10, CAMERA.height + above + 0.1, 2),
        [torch.nan, 0, 1],
        [0, 0, torch.nan],
    ]
    mask = frustum_mask(torch.tensor(inside + outside, device=device), torch.eye(4))
    assert mask.tolist() == [True] * len(inside) + [False] * len(outside)
    limits = torch.full((3, 5), 9.0, device=device)
    limits[1, 2] = 1.5  # rows 16..31, columns 32..47, from their upper left corners at -0.5
    two_deep = torch.tensor([at(u, 20, 2) for u in (31.4, 31.6, 47.4, 47.6)], device=device)
    assert frustum_mask(two_deep, torch.eye(4), limits).tolist() == [True, False, False, True]
    assert frustum_mask(0.7 * two_deep, torch.eye(4), limits).all()
    limits[0, 0] = 1.5  # the margin has the limits of the tile that it borders on
    assert not frustum_mask(torch.tensor([at(-5, -5, 2)], device=device), torch.eye(4), limits).any()


def test_layout_of_points_does_not_matter(device: str) -> None:
    means, limits = points(500).to(device), depth_limits().to(device)
    T = pose().to(device)
    expected = frustum_mask(means, T, limits)
    table = torch.full((500, 11), torch.nan, device=device)
    table[:, 4:7] = means
    assert torch.equal(frustum_mask(table[:, 4:7], T, limits), expected)
    assert torch.equal(frustum_mask(means.T.contiguous().T, T.T.contiguous().T, limits.T.contiguous().T), expected)
    assert torch.equal(frustum_mask(means.flip(0)[::2], T, limits), expected.flip(0)[::2])


def test_no_points_give_no_candidates(device: str) -> None:
    for limits in (None, depth_limits().to(device)):
        assert frustum_mask(torch.zeros(0, 3, device=device), pose(), limits).shape == (0,)


def ellipsoids(Q: int, spread: float = 1.0, seed: int = 0) -> list[Tensor]:
    """Centers, quats, which are not normalised, and log scales, around where the points are and beyond."""
    g = torch.Generator().manual_seed(50 + seed)
    centers = points(Q, seed + 7)
    quats = torch.randn(Q, 4, generator=g) * (0.5 + torch.rand(Q, 1, generator=g))
    log_scales = (spread * (0.02 + 0.1 * torch.rand(Q, 3, generator=g))).log()
    return [centers, quats, log_scales]


def holding_mask(means: Tensor, rows: Tensor, gaussians: list[Tensor], T: Tensor, chi2: float = CHI2_3_99) -> Tensor:
    args = (means, rows, *gaussians, T.to(means.device), *intrinsics(CAMERA), chi2)
    return torch.ops.panoptic_mapper.holding_mask(*args)


def holding_oracle(
    means: Tensor, rows: Tensor, gaussians: list[Tensor], T: Tensor, chi2: float = CHI2_3_99
) -> tuple[Tensor, Tensor, Tensor]:
    """Which ellipsoids [Q] hold a point, whose spheres meet the frustum, and which may be either way."""
    centers, quats, log_scales = (t.double() for t in gaussians)
    whitenings = (-log_scales).exp()[:, :, None] * rotation_matrices(quats).transpose(1, 2)
    offsets = means.double()[rows][:, None] - centers  # [V, Q, 3]
    nearest = torch.full((len(centers),), torch.inf, dtype=torch.float64)
    if len(rows):
        nearest = torch.einsum("qij,vqj->vqi", whitenings, offsets).square().sum(-1).amin(0)
    radius = chi2**0.5 * log_scales.exp().amax(-1)
    x, y, z = (centers @ T[:3, :3].double().T + T[:3, 3].double()).unbind(-1)
    distances = [z]  # inside of the planes, m
    for axis, focal, center, size in (
        (x, CAMERA.fx, CAMERA.cx, CAMERA.width),
        (y, CAMERA.fy, CAMERA.cy, CAMERA.height),
    ):
        for px, sign in ((-0.5, 1), (size - 0.5, -1)):
            ray = torch.tensor([(px - center) / focal, 1.0], dtype=torch.float64)  # of the border, in this axis and z
            distances.append(sign * (axis * ray[1] - z * ray[0]) / ray.norm())
    slack = torch.stack(distances).amin(0) + radius
    doubtful = ((nearest / chi2 - 1).abs() < 1e-4) | (slack.abs() < BORDER_M)
    return nearest < chi2, slack > 0, doubtful


@pytest.mark.parametrize(("V", "Q", "spread"), [(1, 40, 12.0), (300, 1, 5.0), (1000, 60, 1.0), (20_001, 40, 0.3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_holding_is_that_of_the_oracle(seed: int, V: int, Q: int, spread: float, device: str) -> None:
    means, T, gaussians = points(V, seed), pose(seed), ellipsoids(Q, spread, seed)
    rows = torch.arange(V)
    holds, meets, doubtful = holding_oracle(means, rows, gaussians, T)
    gaussians = [t[~doubtful] for t in gaussians]
    expected = (holds & meets)[~doubtful]
    assert doubtful.sum() <= 1
    if V >= 1000:  # each case is there
        assert all((a & b).any() for a in (holds, ~holds) for b in (meets, ~meets))
    mask = holding_mask(means.to(device), rows.to(device), [t.to(device) for t in gaussians], T)
    assert mask.dtype == torch.bool
    assert torch.equal(mask.cpu(), expected)


def test_only_the_points_of_the_rows_are_held(device: str) -> None:
    means, T, gaussians = points(2000), pose(), ellipsoids(60)
    rows = torch.randperm(2000, generator=torch.Generator().manual_seed(9))[:200]
    rows = torch.cat([rows, rows[:20]])
    holds, meets, doubtful = holding_oracle(means, rows, gaussians, T)
    of_all, _, _ = holding_oracle(means, torch.arange(2000), gaussians, T)
    assert (of_all & meets & ~holds).any()
    moved = [t.to(device) for t in gaussians]
    mask = holding_mask(means.to(device), rows.to(device), moved, T).cpu()
    assert torch.equal(mask[~doubtful], (holds & meets)[~doubtful])


def test_a_larger_radius_holds_more(device: str) -> None:
    means, T, gaussians = points(1000), pose(), ellipsoids(60)
    moved, rows = [t.to(device) for t in gaussians], torch.arange(1000)
    counts = []
    for chi2 in (1.0, 4.0, 30.0):
        holds, meets, doubtful = holding_oracle(means, rows, gaussians, T, chi2)
        mask = holding_mask(means.to(device), rows.to(device), moved, T, chi2).cpu()
        assert torch.equal(mask[~doubtful], (holds & meets)[~doubtful])
        counts.append(int(mask.sum()))
    assert counts[0] < counts[1] < counts[2]


def test_holding_by_hand(device: str) -> None:
    """An ellipsoid of 10, 20 and 30 cm, turned by a quarter about z: its long side in the image points along y."""
    center = torch.tensor([[0.0, 0.0, 2.0]])
    quat = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    gaussian = [t.to(device) for t in (center, quat, torch.tensor([[0.3, 0.1, 0.2]]).log())]

    def holds(*point: float) -> bool:
        means = torch.tensor([[5.0, 5.0, 5.0], point], device=device)
        return bool(holding_mask(means, torch.tensor([1], device=device), gaussian, torch.eye(4)))

    reach = CHI2_3_99**0.5
    assert holds(0, 0.3 * reach - 1e-3, 2)
    assert not holds(0, 0.3 * reach + 1e-3, 2)
    assert holds(0.1 * reach - 1e-3, 0, 2)
    assert not holds(0.1 * reach + 1e-3, 0, 2)
    assert holds(0, 0, 2 - 0.2 * reach + 1e-3)
    assert not holds(0, 0, 2 - 0.2 * reach - 1e-3)
    gaussian[0][0, 2] = -2
    assert not holds(0, 0, -2)  # behind the camera


def test_spheres_meet_the_frustum_by_hand(device: str) -> None:
    """Spheres of 0.3 m, each around a point, outside of a plane through the image's border by a bit less or more."""
    outwards, on_border = [[0.0, 0.0, -1.0]], [[0.0, 0.0, 0.0]]
    for axis, focal, middle, size in (
        (0, CAMERA.fx, CAMERA.cx, CAMERA.width),
        (1, CAMERA.fy, CAMERA.cy, CAMERA.height),
    ):
        for px, sign in ((-0.5, -1), (size - 0.5, 1)):
            tangent = (px - middle) / focal
            normal, point = [0.0, 0.0, -sign * tangent], [0.0, 0.0, 2.0]
            normal[axis], point[axis] = sign, 2 * tangent
            outwards.append(normal)
            on_border.append(point)
    normals = torch.nn.functional.normalize(torch.tensor(outwards), dim=-1)
    for distance, meets in ((0.299, True), (0.301, False)):
        centers = (torch.tensor(on_border) + distance * normals).to(device)
        quats = torch.tensor([1.0, 0, 0, 0], device=device).expand(5, 4)
        log_scales = torch.tensor(0.1, device=device).log().expand(5, 3)
        rows = torch.arange(5, device=device)
        mask = holding_mask(centers, rows, [centers, quats, log_scales], torch.eye(4), chi2=9.0)
        assert mask.tolist() == [meets] * 5


def test_layouts_do_not_matter(device: str) -> None:
    """Columns of wider tables, as the map and its objects hold them; columns side by side; every n-th row."""
    means, T, gaussians = points(800).to(device), pose(), [t.to(device) for t in ellipsoids(30)]
    rows = torch.arange(0, 800, 3, device=device)
    expected = holding_mask(means, rows, gaussians, T)
    assert 0 < expected.sum() < 30

    def column_of_table(t: Tensor) -> Tensor:
        table = torch.full((len(t), t.shape[1] + 9), torch.nan, device=device)
        table[:, 5 : 5 + t.shape[1]] = t
        return table[:, 5 : 5 + t.shape[1]]

    for change in (column_of_table, lambda t: t.T.contiguous().T, lambda t: t.repeat_interleave(2, dim=0)[::2]):
        assert torch.equal(holding_mask(change(means), rows, [change(t) for t in gaussians], T), expected)
    assert torch.equal(holding_mask(means, torch.arange(800, device=device)[::3], gaussians, T), expected)


def test_nothing_to_hold_and_nothing_that_holds(device: str) -> None:
    means, T, gaussians = points(30).to(device), pose(), [t.to(device) for t in ellipsoids(6, spread=30)]
    everyone, no_one = torch.arange(30, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    assert holding_mask(means, everyone, gaussians, T).any()
    assert holding_mask(means, no_one, gaussians, T).tolist() == [False] * 6
    assert holding_mask(means[:0], no_one, gaussians, T).tolist() == [False] * 6
    assert holding_mask(means, everyone, [t[:0] for t in gaussians], T).shape == (0,)


def test_runs_are_bit_identical(device: str) -> None:
    means, T, gaussians = points(20_000).to(device), pose(), [t.to(device) for t in ellipsoids(60)]
    threads, results = torch.get_num_threads(), []
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            candidates = frustum_mask(means, T)
            results.append((candidates, holding_mask(means, candidates.nonzero()[:, 0], gaussians, T)))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("row", [-1, 30, 2**40])
def test_rows_outside_of_the_means_are_index_errors(row: int, device: str) -> None:
    means, T, gaussians = points(30).to(device), pose(), [t.to(device) for t in ellipsoids(6, spread=30)]
    rows = torch.tensor([3, row, 5], device=device)
    if device == "cpu":
        with pytest.raises(IndexError, match="rows"):
            holding_mask(means, rows, gaussians, T)
        return
    mask = holding_mask(means, rows, gaussians, T)
    torch.cuda.synchronize()
    with pytest.raises(IndexError):
        ops.raise_device_errors()
    assert torch.equal(mask, holding_mask(means, rows[::2], gaussians, T))  # it counts for nothing


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("means", lambda t: t.double(), "means: expected Float"),
        ("means", lambda t: t[:, :2], "means: expected sizes"),
        ("T_camera_map", lambda t: t[:3], "T_camera_map: expected sizes"),
        ("T_camera_map", lambda t: t.double(), "T_camera_map: expected Float"),
        ("limits", lambda t: t[0], "limits: expected sizes"),
        ("limits", lambda t: t.half(), "limits: expected Float"),
        ("limits", lambda t: t[:0], "limits: expected at least one"),
    ],
)
def test_bad_arguments_of_frustum_raise(name: str, bad: Callable, message: str, device: str) -> None:
    args = {"means": points(4).to(device), "T_camera_map": pose().to(device), "limits": depth_limits().to(device)}
    args[name] = bad(args[name])
    fx, fy, cx, cy, width, height = intrinsics(CAMERA)
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.panoptic_mapper.frustum_mask(
            **args, fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height, margin=MARGIN, near_m=NEAR_M
        )


@pytest.mark.parametrize(
    ("index", "bad", "message"),
    [
        (0, lambda t: t.half(), "means: expected Float"),
        (0, lambda t: t[0], "means: expected sizes"),
        (1, lambda t: t.int(), "rows: expected Long"),
        (1, lambda t: t[None], "rows: expected sizes"),
        (2, lambda t: t[:, :2], "centers: expected sizes"),
        (3, lambda t: t[:-1], "quats: expected sizes"),
        (3, lambda t: t.double(), "quats: expected Float"),
        (4, lambda t: t[:, :2], "log_scales: expected sizes"),
        (5, lambda t: t[:3], "T_camera_map: expected sizes"),
    ],
)
def test_bad_arguments_of_holding_raise(index: int, bad: Callable, message: str, device: str) -> None:
    args = [points(4), torch.arange(4), *ellipsoids(3), pose()]
    args = [t.to(device) for t in args]
    args[index] = bad(args[index])
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.panoptic_mapper.holding_mask(*args, *intrinsics(CAMERA), CHI2_3_99)


def test_opcheck(device: str) -> None:
    means, T, gaussians = points(5).to(device), pose().to(device), [t.to(device) for t in ellipsoids(3)]
    numbers = intrinsics(CAMERA)
    for limits in (None, depth_limits().to(device)):
        args = (means, T, *numbers, MARGIN, NEAR_M, limits)
        torch.library.opcheck(torch.ops.panoptic_mapper.frustum_mask.default, args)
    args = (means, torch.arange(5, device=device), *gaussians, T, *numbers, CHI2_3_99)
    torch.library.opcheck(torch.ops.panoptic_mapper.holding_mask.default, args)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_and_no_synchronisation() -> None:
    ops.load()
    means, T, limits = points(3000).cuda(), pose().cuda(), depth_limits().cuda()
    rows, gaussians = torch.arange(0, 3000, 2, device="cuda"), [t.cuda() for t in ellipsoids(60)]

    def run() -> tuple[Tensor, Tensor]:
        return frustum_mask(means, T, limits), holding_mask(means, rows, gaussians, T)

    graph, outputs = captured(run)
    means.copy_(points(3000, seed=4))
    T.copy_(pose(3))
    graph.replay()
    for a, e in zip(outputs, run(), strict=True):
        assert torch.equal(a, e)
