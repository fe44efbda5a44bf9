"""Gradients and shapes of the rasteriser's compiled operators (cuda/rasterize.h states their contract)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 16  # pixels


class Lists(NamedTuple):
    """A view sorted into tiles, as the operator `list_gaussians` returns it (letters as in cuda/rasterize.h)."""

    tile_offsets: Tensor  # [T + 1] int64
    isect_gaussians: Tensor  # [M] int32
    slot_offsets: Tensor  # [V + 1] int64
    slot_isects: Tensor  # [M] int32
    pair_offsets: Tensor  # [M + 1] int64
    pair_pixels: Tensor  # [P] uint8
    pair_weights: Tensor  # [P]
    transmittance: Tensor  # [H, W]
    last: Tensor  # [H, W] int32


@functools.cache
def register() -> None:
    """Registers fakes and autograd. The operators must have been loaded."""
    fakes: dict[str, Callable[..., Any]] = {
        "project_gaussians": _project_fake,
        "project_gaussians_backward": _project_backward_fake,
        "list_gaussians": _list_fake,
        "blend": _blend_fake,
        "blend_backward": _blend_backward_fake,
        "list_tiles": _list_tiles_fake,
        "tally_pairs": _tally_pairs_fake,
        "tally_tiles": _tally_tiles_fake,
        "splat": _splat_fake,
        "splat_geometry_backward": _splat_geometry_backward_fake,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"panoptic_mapper::{name}", fake)
    autograd = torch.library.register_autograd
    autograd("panoptic_mapper::project_gaussians", _project_backward, setup_context=_project_context)
    autograd("panoptic_mapper::blend", _blend_backward, setup_context=_blend_context)
    autograd("panoptic_mapper::splat", _splat_backward, setup_context=_splat_context)


# Fakes: shapes and dtypes only.


def _project_fake(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, *camera: Any) -> tuple[Tensor, ...]:
    V = torch.library.get_ctx().new_dynamic_size()
    visible = means.new_empty(V, dtype=torch.int64)
    return means.new_empty(V, 2), means.new_empty(V), means.new_empty(V, 3), means.new_empty(V, 2), visible


def _project_backward_fake(means: Tensor, quats: Tensor, scales: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(means), torch.empty_like(quats), torch.empty_like(scales)


def _list_fake(
    means2d: Tensor, depths: Tensor, conics: Tensor, extents: Tensor, opacities: Tensor, width: int, height: int
) -> Lists:
    ctx = torch.library.get_ctx()
    V, M, P = means2d.shape[0], ctx.new_dynamic_size(), ctx.new_dynamic_size()
    T = ((width + TILE - 1) // TILE) * ((height + TILE - 1) // TILE)

    def empty(*shape: int | torch.SymInt, dtype: torch.dtype) -> Tensor:
        return means2d.new_empty(shape, dtype=dtype)

    return Lists(
        empty(T + 1, dtype=torch.int64),
        empty(M, dtype=torch.int32),
        empty(V + 1, dtype=torch.int64),
        empty(M, dtype=torch.int32),
        empty(M + 1, dtype=torch.int64),
        empty(P, dtype=torch.uint8),
        empty(P, dtype=torch.float32),
        empty(height, width, dtype=torch.float32),
        empty(height, width, dtype=torch.int32),
    )


def _blend_fake(features: Tensor, *rest: Any) -> Tensor:
    width, height = rest[-2:]
    return features.new_empty(height, width, features.shape[1])


def _blend_backward_fake(v_image: Tensor, tile_offsets: Tensor, isects: Tensor, slots: Tensor, *rest: Any) -> Tensor:
    return v_image.new_empty(slots.shape[0] - 1, v_image.shape[2])


def _list_tiles_fake(
    means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    offsets = radii.new_empty(1, -(-height // TILE) + 1, -(-width // TILE))
    return offsets, radii.new_empty(capacity), radii.new_empty(1, dtype=torch.int64)


def _tally_pairs_fake(tile_offsets: Tensor, isect_gaussians: Tensor, slot_offsets: Tensor, *rest: Any) -> Tensor:
    *_, weights, num_a, num_b = rest
    return weights.new_empty(slot_offsets.shape[0], num_a + 2 * num_b + 1)


def _tally_tiles_fake(means2d: Tensor, *rest: Any) -> Tensor:
    return means2d.new_empty(means2d.shape[0] + 1, rest[-2] + 2 * rest[-1] + 1)


def _splat_fake(
    means2d: Tensor, conics: Tensor, extents: Tensor, opacities: Tensor, features: Tensor, *lists: Tensor
) -> tuple[Tensor, Tensor]:
    transmittance = Lists(*lists).transmittance
    return features.new_empty(*transmittance.shape, features.shape[1]), torch.empty_like(transmittance)


def _splat_geometry_backward_fake(
    v_image: Tensor, v_alpha: Tensor, means2d: Tensor, conics: Tensor, extents: Tensor, opacities: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(means2d), torch.empty_like(conics), torch.empty_like(opacities)


# Autograd. An output that got no gradient arrives as zeros.


def _project_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    means, quats, scales, _, T_camera_map, *ctx.camera = inputs
    *_, extents, visible = output
    ctx.mark_non_differentiable(visible, extents)
    ctx.save_for_backward(means, quats, scales, T_camera_map, visible)


def _project_backward(ctx: Any, v_means2d: Tensor, v_depths: Tensor, v_conics: Tensor, *_: Any) -> tuple:
    means, quats, scales, T_camera_map, visible = ctx.saved_tensors
    grads = torch.ops.panoptic_mapper.project_gaussians_backward(
        means,
        quats,
        scales,
        T_camera_map,
        *ctx.camera,
        visible,
        v_means2d.contiguous(),
        v_depths.contiguous(),
        v_conics.contiguous(),
    )
    return (*grads, *[None] * (2 + len(ctx.camera)))


def _blend_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:-2])


def _blend_backward(ctx: Any, v_image: Tensor) -> tuple:
    v_features = torch.ops.panoptic_mapper.blend_backward(v_image.contiguous(), *ctx.saved_tensors)
    return (v_features, *[None] * (len(ctx.saved_tensors) + 2))


def _splat_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _splat_backward(ctx: Any, v_image: Tensor, v_alpha: Tensor) -> tuple:
    means2d, conics, extents, opacities, features, *rest = ctx.saved_tensors
    lists = Lists(*rest)
    v_image, v_alpha = v_image.contiguous(), v_alpha.contiguous()
    v_means2d = v_conics = v_opacities = v_features = None
    if any(ctx.needs_input_grad[i] for i in (0, 1, 3)):
        v_means2d, v_conics, v_opacities = torch.ops.panoptic_mapper.splat_geometry_backward(
            v_image,
            v_alpha,
            means2d,
            conics,
            extents,
            opacities,
            features,
            *lists[:4],
            lists.transmittance,
            lists.last,
        )
    if ctx.needs_input_grad[4]:
        v_features = torch.ops.panoptic_mapper.blend_backward(v_image, *lists[:7])
    return (v_means2d, v_conics, None, v_opacities, v_features, *[None] * len(lists))
