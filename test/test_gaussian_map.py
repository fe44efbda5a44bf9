"""Gaussians and their bookkeeping: rows stay aligned, and a view's candidates are those in its frustum."""

from __future__ import annotations

import numpy as np
import torch
from small_room import CAMERA, CPU, gaussian_columns

from panoptic_mapper.gaussian_map import (
    BOOK,
    FRUSTUM_MARGIN,
    NEAR_M,
    WIDTHS,
    GaussianConfig,
    GaussianMap,
    LearningRates,
    splat_inputs,
)


def numbered_map(n: int = 5) -> GaussianMap:
    """Each Gaussian has its row number in all of its columns."""
    gaussians = GaussianMap(LearningRates(), CPU)
    rows = torch.arange(float(n))[:, None]
    gaussians.append({name: rows.expand(n, width) for name, width in WIDTHS.items()}, anchor=7)
    for name in BOOK[1:]:
        gaussians[name][:] = rows[:, 0].int()
    return gaussians


def test_new_gaussians_are_unlabeled_and_anchored() -> None:
    gaussians = numbered_map(3)
    gaussians.append(gaussian_columns(torch.ones(2, 3)), anchor=9)
    assert len(gaussians) == 5
    assert gaussians["anchor"].tolist() == [7, 7, 7, 9, 9]
    for name in BOOK[1:]:
        assert gaussians[name].tolist() == [0, 1, 2, 0, 0]
    assert gaussians["means"][3:].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_rows_stay_aligned() -> None:
    gaussians = numbered_map(6)
    gaussians.keep(torch.tensor([True, False, True, True, False, True]))
    gaussians.append(gaussian_columns(torch.full((1, 3), 50.0)), anchor=1)
    gaussians.keep(torch.tensor([False, True, True, True, True]))
    for name in ("means", "instances", *BOOK[1:]):
        column = gaussians[name][:3]
        assert (column if column.ndim == 1 else column[:, -1]).tolist() == [2, 3, 5]
    assert gaussians["means"][3].tolist() == [50, 50, 50]
    assert gaussians["anchor"].tolist() == [7, 7, 7, 1]
    gaussians.keep(torch.zeros(4, dtype=torch.bool))
    assert len(gaussians) == len(gaussians["class_index"]) == 0


def test_columns_are_views_of_the_map() -> None:
    gaussians = numbered_map()
    gaussians["confidence_permille"][2] = 77
    gaussians["colors"][3] = 0.25
    assert gaussians["confidence_permille"].tolist() == [0, 1, 77, 3, 4]
    assert gaussians["colors"][3].tolist() == [0.25] * 3


def test_restore_fills_an_empty_map() -> None:
    source, copy = numbered_map(), GaussianMap(LearningRates(), CPU)
    copy.restore({name: source[name] for name in WIDTHS}, {name: source[name] for name in BOOK})
    for name in (*WIDTHS, *BOOK):
        assert torch.equal(copy[name], source[name])


def test_candidates_of_a_view_are_those_near_its_image() -> None:
    g = torch.Generator().manual_seed(0)
    gaussians = GaussianMap(LearningRates(), CPU)
    gaussians.append(gaussian_columns(6 * torch.rand(500, 3, generator=g) - 3), anchor=0)
    T = torch.eye(4)
    T[:3, 3] = torch.tensor([0.1, 0.2, 0.5])
    expected = []
    for row, mean in enumerate(gaussians["means"].double().numpy()):
        x, y, z = mean + T[:3, 3].double().numpy()
        if z <= NEAR_M:
            continue
        u, v = CAMERA.fx * x / z + CAMERA.cx, CAMERA.fy * y / z + CAMERA.cy
        margin_u, margin_v = FRUSTUM_MARGIN * CAMERA.width, FRUSTUM_MARGIN * CAMERA.height
        if -margin_u < u < CAMERA.width + margin_u and -margin_v < v < CAMERA.height + margin_v:
            expected.append(row)
    assert 20 < len(expected) < 300
    assert gaussians.ids_in_frustum(T, CAMERA).tolist() == expected
    backwards = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    several = gaussians.ids_in_frustums([(backwards, CAMERA, None), (T, CAMERA, None), (T.roll(1, 0), CAMERA, None)])
    assert [ids.tolist() for ids in several] == [
        gaussians.ids_in_frustum(pose, CAMERA).tolist() for pose in (backwards, T, T.roll(1, 0))
    ]
    nothing = GaussianMap(LearningRates(), CPU).ids_in_frustums([(T, CAMERA, None)] * 2)
    assert [ids.shape for ids in nothing] == [(0,), (0,)]


def test_revisions_count_the_changes_of_which_rows_there_are() -> None:
    gaussians = numbered_map()
    first, ids = gaussians.revision, torch.tensor([1])
    gaussians.set_rows(ids, means=torch.ones(1, 3))
    gaussians.keep(torch.ones(len(gaussians), dtype=torch.bool))
    assert gaussians.revision == first
    gaussians.duplicate(ids, {})
    second = gaussians.revision
    gaussians.keep(torch.arange(len(gaussians)) > 0)
    assert first < second < gaussians.revision


def test_splat_inputs_are_in_units_of_the_rasteriser() -> None:
    gaussians = GaussianMap(LearningRates(), CPU)
    columns = gaussian_columns(torch.ones(1, 3), log_scales=torch.tensor([[0.1, 0.2, 0.4]]).log())
    gaussians.append(columns | {"opacity_logits": torch.tensor([[0.0]])}, anchor=0)
    means, quats, scales, opacities = (t.detach() for t in splat_inputs(gaussians.appearance.gather(torch.tensor([0]))))
    assert means.tolist() == [[1, 1, 1]]
    assert quats.tolist() == [[1, 0, 0, 0]]
    np.testing.assert_allclose(scales, [[0.1, 0.2, 0.4]], rtol=1e-6)
    assert opacities.tolist() == [0.5]


def test_copies_have_the_label_and_the_anchor() -> None:
    gaussians = numbered_map(4)
    gaussians.raise_sh_degree(1)
    gaussians["harmonics"][2] = 5
    gaussians.duplicate(torch.tensor([2, 0]), {"means": torch.tensor([[9.0, 9, 9], [8, 8, 8]])})
    assert gaussians["means"][4:].tolist() == [[9, 9, 9], [8, 8, 8]]
    assert gaussians["means"][2].tolist() == [2, 2, 2]
    assert gaussians["instances"][4:, 0].tolist() == [2, 0]
    assert gaussians["harmonics"][4:, 0].tolist() == [5, 0]
    assert gaussians["anchor"].tolist() == [7] * 6
    for name in BOOK[1:]:
        assert gaussians[name].tolist() == [0, 1, 2, 3, 2, 0]


def test_colours_get_more_bands_and_never_fewer() -> None:
    gaussians = numbered_map(3)
    assert gaussians.sh_degree == 0
    gaussians.raise_sh_degree(1)
    gaussians["harmonics"][:] = torch.arange(9.0)
    gaussians.raise_sh_degree(3)
    gaussians.raise_sh_degree(2)
    assert gaussians.sh_degree == 3
    assert gaussians["harmonics"][1].tolist() == [*range(9), *[0] * 36]
    gaussians.append(gaussian_columns(torch.ones(1, 3)), anchor=0)  # without bands: grey from all sides
    assert gaussians["harmonics"][3].tolist() == [0] * 45
    assert gaussians["instances"][:3, 0].tolist() == [0, 1, 2]


def test_a_saved_map_of_lower_degree_is_taken() -> None:
    copy = GaussianMap(LearningRates(), CPU, GaussianConfig(sh_degree=2))
    columns = gaussian_columns(torch.ones(2, 3), harmonics=torch.ones(2, 9))
    copy.restore(columns, {name: torch.zeros(2) for name in BOOK})
    assert copy.sh_degree == 2
    assert copy["harmonics"][0].tolist() == [1] * 9 + [0] * 15


def test_memory_counts_bookkeeping() -> None:
    gaussians = numbered_map()
    assert gaussians.nbytes == gaussians.appearance.nbytes + gaussians.labels.nbytes + 5 * 4 * len(BOOK)
