"""Losses of images as CUDA graphs: one launch for the many small kernels of a loss and of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loss = Callable[..., tuple[Tensor, ...]]  # a scalar, and tensors that are reported beside it

NUM_WARM_UPS = 3  # runs before the capture, in which libraries allocate what they keep


class CapturedLoss:
    """A loss of images of fixed sizes, and its gradients, as one CUDA graph.

    The graph computes the gradients together with the loss; the backward pass only hands them on. So a loss must have
    been differentiated before the next call, which overwrites them.

    Args:
        loss: makes a scalar, and tensors of what is reported, of images. No value in it may depend on the device's
            answer, and all that it reads beside its arguments must stay where it is.
        images: of the sizes and types that all calls will have.
        num_differentiable: gradients reach so many of the first images.
    """

    def __init__(self, loss: Loss, images: tuple[Tensor, ...], num_differentiable: int):
        self._images = [image.detach().clone().contiguous() for image in images]
        for image in self._images[:num_differentiable]:
            image.requires_grad_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(NUM_WARM_UPS):
                self._run(loss, num_differentiable)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that makes snapshots, go on allocating meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs, self.gradients = self._run(loss, num_differentiable)

    def __call__(self, *images: Tensor) -> tuple[Tensor, ...]:
        """The loss [] of images, differentiable in the first ones of them, and what it reports."""
        return _Replay.apply(self, *images)

    @torch.no_grad()
    def replay(self, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for own, image in zip(self._images, images, strict=True):
            own.copy_(image)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)

    @torch.enable_grad()
    def _run(self, loss: Loss, num_differentiable: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        outputs = loss(*self._images)
        gradients = torch.autograd.grad(outputs[0], self._images[:num_differentiable])
        return tuple(output.detach() for output in outputs), gradients


class CapturedLosses:
    """A loss, captured for each size of images that it is asked for; for the arguments see `CapturedLoss`."""

    def __init__(self, loss: Loss, num_differentiable: int):
        self._loss, self._num_differentiable = loss, num_differentiable
        self._by_size: dict[torch.Size, CapturedLoss] = {}  # of the first image

    def of(self, images: tuple[Tensor, ...]) -> CapturedLoss:
        size = images[0].shape
        if size not in self._by_size:
            self._by_size[size] = CapturedLoss(self._loss, images, self._num_differentiable)
        return self._by_size[size]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: CapturedLoss, *images: Tensor) -> tuple[Tensor, ...]:
        ctx.captured, ctx.num_images = captured, len(images)
        total, *reports = captured.replay(images)
        ctx.mark_non_differentiable(*reports)
        return total, *reports

    @staticmethod
    def backward(ctx: Any, v_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [v_total * gradient for gradient in ctx.captured.gradients]
        return None, *gradients, *[None] * (ctx.num_images - len(gradients))
