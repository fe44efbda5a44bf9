"""Times the CUDA kernels against dense torch and against the least memory traffic, and measures peak memory.

    python -m benchmarks.kernels_gpu [--repeats 30] [--quick]

Prints one JSON object per line. A time is that of a captured CUDA graph: the launches cost nothing. The floor is the
bytes of all inputs that are read and all outputs that are written, each once, over the bandwidth that a large copy
reaches in the same run. Inputs change from call to call, so that none stays in the cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from panoptic_mapper import ops
from panoptic_mapper.attention import UNASSIGNED_SCORE, query_scores
from panoptic_mapper.label_warping import warped_cross_entropy

NUM_SETS = 3  # of inputs
CLASSES, STUFF = 21, 12
Run = Callable[[], object]


def report(**figures: object) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


def elapsed_ms(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def graph_ms(runs: Sequence[Run], repeats: int) -> float:
    """Median time of one of `runs`, which are captured one after the other."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    graph.replay()
    times = [elapsed_ms(graph.replay) for _ in range(repeats)]
    graph.reset()
    return statistics.median(times) / len(runs)


def copy_bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of a copy on the device."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2e3 * source.nbytes / graph_ms([lambda: target.copy_(source)], repeats)


def bytes_of(*tensors: Tensor) -> int:
    return sum(t.nbytes for t in tensors)


def attention_inputs(N: int, V: int, Q: int, storage: torch.dtype = torch.float32) -> list:
    """Gaussians in a room of 8 m and queries of about half a metre: arguments of the operator."""
    is_thing = torch.arange(CLASSES, device="cuda") >= STUFF
    return [
        torch.randn(N, 32, device="cuda").to(storage),
        8 * torch.rand(N, 3, device="cuda"),
        torch.randperm(N, device="cuda")[:V].sort().values,
        torch.randn(Q, 32, device="cuda"),
        8 * torch.rand(Q, 3, device="cuda"),
        2 * torch.randn(Q, 3, 3, device="cuda"),
        torch.randn(V, CLASSES, device="cuda").softmax(1).to(storage),
        is_thing,
        STUFF,
    ]


def dense_attention(
    features: Tensor, means: Tensor, keys: Tensor, centers: Tensor, whitenings: Tensor, class_probs: Tensor
) -> Tensor:
    """The twin; the classes are in order, so that no mask has to be read by the host."""
    scores = query_scores(features, means, keys, centers, whitenings)
    scores = torch.cat([scores.new_full((len(scores), 1), UNASSIGNED_SCORE), scores], dim=1)
    things = class_probs[:, STUFF:].sum(-1, keepdim=True)
    return torch.cat([class_probs[:, :STUFF], things * scores / scores.sum(-1, keepdim=True)], dim=1)


def leaves_of(args: list) -> list[Tensor]:
    return [args[i].detach().requires_grad_() for i in (0, 3, 4, 5, 6)]


def dense_step(args: list, upstream: Tensor, is_global: bool = False) -> list[Tensor]:
    """Gradients by dense torch, of the visible Gaussians or through the scores of all."""
    features, keys, centers, whitenings, class_probs = leaves = leaves_of(args)
    visible = args[2]
    if is_global:
        everything = class_probs.new_zeros(len(features), CLASSES).index_copy(0, visible, class_probs)
        output = dense_attention(features, args[1], keys, centers, whitenings, everything)[visible]
    else:
        output = dense_attention(features[visible], args[1][visible], keys, centers, whitenings, class_probs)
    return [output, *torch.autograd.grad(output, leaves, upstream)]


def fused_step(args: list, upstream: Tensor) -> list[Tensor]:
    op = torch.ops.panoptic_mapper
    return [op.local_cross_attention(*args), *op.local_cross_attention_backward(upstream, *args)]


def attention_times(V: int, Q: int, storage: torch.dtype, bandwidth: float, repeats: int) -> None:
    op = torch.ops.panoptic_mapper
    N = 3 * V // 2
    sets = [attention_inputs(N, V, Q, storage) for _ in range(NUM_SETS)]
    upstreams = [torch.randn(V, STUFF + 1 + Q, device="cuda").to(storage) for _ in sets]
    pairs = list(zip(sets, upstreams, strict=True))

    features, means, visible, keys, centers, whitenings, class_probs, *_ = sets[0]
    per_row = V * (features[0].nbytes + means[0].nbytes) + bytes_of(visible, class_probs)
    queries = bytes_of(keys, centers, whitenings)
    forward_bytes = per_row + queries + bytes_of(upstreams[0])
    backward_bytes = forward_bytes + bytes_of(features, class_probs) + queries
    forward = graph_ms([lambda a=a: op.local_cross_attention(*a) for a in sets], repeats)
    backward = graph_ms([lambda a=a, u=u: op.local_cross_attention_backward(u, *a) for a, u in pairs], repeats)
    both = graph_ms([lambda a=a, u=u: fused_step(a, u) for a, u in pairs], repeats)
    figures: dict[str, object] = {}
    if storage == torch.float32:
        dense = graph_ms([lambda a=a, u=u: dense_step(a, u) for a, u in pairs], repeats)
        figures = {"dense_ms": dense, "dense_over_fused": dense / both}
        expected, actual = dense_step(*pairs[0]), fused_step(*pairs[0])
        errors = [((a - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]
        figures["largest_relative_error"] = f"{max(errors):.1e}"
    floor = 1e3 * (forward_bytes + backward_bytes) / bandwidth
    report(
        kernel="local_cross_attention",
        storage=str(storage).removeprefix("torch."),
        N=N,
        V=V,
        Q=Q,
        forward_ms=forward,
        backward_ms=backward,
        both_ms=both,
        forward_floor_ms=1e3 * forward_bytes / bandwidth,
        backward_floor_ms=1e3 * backward_bytes / bandwidth,
        over_floor=both / floor,
        **figures,
    )


def peak_mb(run: Run) -> float | None:
    """What a run allocates at most beside what is there; None if memory does not suffice."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        run()
    except torch.OutOfMemoryError:
        return None
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def attention_memory(N: int, Q: int) -> None:
    """A view shows a fifth of the Gaussians and 64 of the queries at most, as a part of a building does."""
    V, Q_view = N // 5, min(Q, 64)
    everything = attention_inputs(N, V, Q)
    view = [t[:Q_view] if i in (3, 4, 5) else t for i, t in enumerate(everything)]
    upstream, upstream_view = (torch.randn(V, STUFF + 1 + n, device="cuda") for n in (Q, Q_view))
    kept = bytes_of(*(t for t in everything if isinstance(t, Tensor))) / 1e6
    peaks = {
        "global_dense": peak_mb(lambda: dense_step(everything, upstream, is_global=True)),
        "local_dense": peak_mb(lambda: dense_step(view, upstream_view)),
        "local_fused": peak_mb(lambda: fused_step(view, upstream_view)),
    }
    dense, fused = peaks["global_dense"], peaks["local_fused"]
    ratio = (fused + kept) / (dense + kept) if dense is not None and fused is not None else None
    report(memory="attention", N=N, V=V, Q=Q, Q_view=Q_view, inputs_mb=kept, **peaks, fused_over_global=ratio)


def warp_inputs(height: int, width: int, K: int) -> list[Tensor]:
    """Two views of a wall, a few centimetres apart; nearly all pixels are seen in both."""
    intrinsics = torch.tensor([width, width, width / 2, height / 2], device="cuda", dtype=torch.float32)
    T = torch.eye(4, device="cuda")
    T[0, 3] = 0.02
    depth, target_depth = (2 + 0.01 * torch.rand(height, width, device="cuda") for _ in range(2))
    p, q = (torch.randn(height, width, K, device="cuda").softmax(-1) for _ in range(2))
    return [p, depth, intrinsics, q, target_depth, intrinsics, T]


def fused_warp(args: list[Tensor], v_loss: Tensor) -> list[Tensor]:
    loss, mass = torch.ops.panoptic_mapper.label_warp(*args)
    return [loss, torch.ops.panoptic_mapper.label_warp_backward(v_loss, mass, *args)]


def dense_warp(args: list[Tensor], v_loss: Tensor) -> list[Tensor]:
    p = args[0].detach().requires_grad_()
    loss = warped_cross_entropy(p, *args[1:])
    return [loss, *torch.autograd.grad(loss, p, v_loss)]


def warp_times(height: int, width: int, K: int, bandwidth: float, repeats: int) -> None:
    op = torch.ops.panoptic_mapper
    sets = [warp_inputs(height, width, K) for _ in range(NUM_SETS)]
    v_loss = torch.ones((), device="cuda")
    mass = op.label_warp(*sets[0])[1]
    forward = graph_ms([lambda a=a: op.label_warp(*a) for a in sets], repeats)
    backward = graph_ms([lambda a=a: op.label_warp_backward(v_loss, mass, *a) for a in sets], repeats)
    both = graph_ms([lambda a=a: fused_warp(a, v_loss) for a in sets], repeats)
    dense = graph_ms([lambda a=a: dense_warp(a, v_loss) for a in sets], repeats)
    p, depth, *_ = sets[0]
    floor = 1e3 * (5 * p.nbytes + 4 * depth.nbytes) / bandwidth  # both distributions twice, the gradient, depths
    (loss, gradient), (dense_loss, dense_gradient) = fused_warp(sets[0], v_loss), dense_warp(sets[0], v_loss)
    report(
        kernel="label_warp",
        size=f"{width}x{height}x{K}",
        kept=round((gradient != 0).any(-1).float().mean().item(), 3),
        forward_ms=forward,
        backward_ms=backward,
        both_ms=both,
        floor_ms=floor,
        over_floor=both / floor,
        dense_ms=dense,
        dense_over_fused=dense / both,
        fused_peak_mb=peak_mb(lambda: fused_warp(sets[0], v_loss)),
        dense_peak_mb=peak_mb(lambda: dense_warp(sets[0], v_loss)),
        loss_relative_error=f"{(loss / dense_loss - 1).abs().item():.1e}",
        gradient_relative_error=f"{((gradient - dense_gradient).norm() / dense_gradient.norm()).item():.1e}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="the stated sizes only")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    ops.load()
    torch.manual_seed(0)
    repeats = arguments.repeats
    bandwidth = copy_bandwidth(repeats)
    report(device=torch.cuda.get_device_name(), torch=torch.__version__, copy_gb_per_s=bandwidth / 1e9)
    sizes = [(100_000, 64)] if arguments.quick else [(20_000, 20), (100_000, 64), (100_000, 150), (500_000, 64)]
    for V, Q in sizes:
        for storage in (torch.float32, torch.bfloat16, torch.float16):
            attention_times(V, Q, storage, bandwidth, repeats)
    for height, width, K in [(480, 640, 64)] if arguments.quick else [(480, 640, 64), (480, 640, 50), (240, 320, 64)]:
        warp_times(height, width, K, bandwidth, repeats)
    memory = [(500_000, 150)]
    if not arguments.quick:
        memory = [(N, Q) for N in (100_000, 500_000, 1_000_000, 3_000_000) for Q in (50, 150, 300)]
    for N, Q in memory:
        attention_memory(N, Q)


if __name__ == "__main__":
    main()
