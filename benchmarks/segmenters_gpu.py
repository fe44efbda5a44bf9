"""Times panoptic networks through the segmenter 'huggingface': ms per frame and memory, by precision and compilation.

    python -m benchmarks.segmenters_gpu [--models eomt_base mask2former_swin_tiny] [--frames 50] [--out FILE.json]
    python -m benchmarks.segmenters_gpu --models eomt_base --dtypes float16 --compile yes --limit-s 300 --out FILE.json

The networks have the architecture of the published checkpoints and random weights, so nothing is fetched: speed and
memory do not depend on the weights, except through the number of segments, which is set to NUM_SEGMENTS. Each is saved
as a checkpoint and loaded as a user's would be. `forward` is the network, from an image in numpy to logits on the
device; `segment` is all that a frame costs, labels in numpy included. `first_s` is the first image, for which a network
is compiled.

Each case runs in a process of its own, which is ended after --limit-s. What it has measured by then is printed and is
in FILE: compiling may take minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from panoptic_mapper.frame import Frame, PinholeCamera
from panoptic_mapper.label_spaces import load_label_space
from panoptic_mapper.segmenters.huggingface import HuggingfaceConfig, HuggingfaceSegmenter

FRAME_SIZE = (480, 640)  # (H, W)
INPUT_PX = 640  # of a square that frames are stretched to
NUM_SEGMENTS = 20  # of the queries, so many have a class; what rooms show
BATCH = 4
START_S = 120.0  # for a process to import what it needs, before its time is taken
STARTED = {"doing": "loading"}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    model: str
    dtype: str
    compile: bool


def eomt_base() -> Any:
    """EoMT-B: a ViT-B/16 with registers, 200 queries in its last three blocks."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=INPUT_PX,
        patch_size=16,
        num_blocks=3,
        num_queries=200,
        layerscale_value=1e-5,
        id2label=_names(),
    )
    model = EomtForUniversalSegmentation(config)
    torch.nn.init.zeros_(model.attn_mask_probs)  # as at the end of training
    return model


def mask2former_swin_tiny() -> Any:
    """Mask2Former with Swin-T, 100 queries, six layers of deformable attention and nine of the decoder."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=backbone, id2label=_names()))


MAKERS: dict[str, Callable[[], Any]] = {"eomt_base": eomt_base, "mask2former_swin_tiny": mask2former_swin_tiny}


def save_random(make: Callable[[], Any], folder: Path, seed: int = 0) -> int:
    """Saves a network with random weights as a checkpoint; returns the number of its parameters."""
    torch.manual_seed(seed)
    model = make()
    model.save_pretrained(folder)
    settings = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "size": {"height": INPUT_PX, "width": INPUT_PX},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return sum(parameter.numel() for parameter in model.parameters())


Row = dict[str, Any]
Measure = Callable[[Path, Case, int, str], Iterable[Row]]


def measure(folder: Path, case: Case, num_frames: int, device: str) -> Iterator[Row]:
    """Times and memory of one case, part by part; "doing" names what follows, for the row of a case that is ended."""
    images = [picture(seed) for seed in range(8)]
    started = time.perf_counter()
    segmenter = HuggingfaceSegmenter(_config(folder, case, device))
    on_gpu = segmenter._device.type == "cuda"
    yield {"load_s": time.perf_counter() - started, "doing": "compiling" if case.compile else "first image"}
    (first_ms,) = timed(lambda i: segmenter.logits(images[:1]), 1, on_gpu, warm_up=0)
    yield {"first_s": 1e-3 * first_ms, "doing": "forward"}
    # The highest scores are the segments: what is kept decides what reading the masks costs.
    class_logits, _, _ = segmenter.logits(images[:1])
    scores = class_logits[0].float().softmax(-1)[:, :-1].max(-1).values.sort(descending=True).values
    threshold = float(scores[min(NUM_SEGMENTS, len(scores) - 1)])
    segmenter.config = dataclasses.replace(segmenter.config, min_score=threshold)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    forward = timed(lambda i: segmenter.logits([images[i % 8]]), num_frames, on_gpu)
    yield {"forward_ms": statistics.median(forward), "doing": "segment"}
    segment = timed(lambda i: segmenter.segment(frame(images[i % 8])), num_frames, on_gpu)
    found = segmenter.segment(frame(images[0]))
    yield {
        "segment_ms": statistics.median(segment),
        "segment_p95_ms": float(np.quantile(segment, 0.95)),
        "memory_mb": torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None,
        "segments": len(np.unique(found.confidence)) - 1,
        "doing": "batch",
    }
    if not case.compile:  # it would be compiled once more
        batch = timed(lambda i: segmenter.segment_images(images[:BATCH]), max(3, num_frames // BATCH), on_gpu)
        yield {f"batch{BATCH}_ms_per_frame": statistics.median(batch) / BATCH}


def timed(run: Callable[[int], object], repeats: int, on_gpu: bool, warm_up: int = 3) -> list[float]:
    """Wall times in ms, each until the GPU is done."""
    times = []
    for i in range(warm_up + repeats):
        start = time.perf_counter()
        run(i)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times[warm_up:]


def picture(seed: int) -> np.ndarray:
    """Smooth colours [H, W, 3] uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: FRAME_SIZE[0], : FRAME_SIZE[1]]
    phases, waves = rng.uniform(0, 6, 3), rng.uniform(0.01, 0.05, (3, 2))
    return np.stack(
        [(127 + 127 * np.sin(a * y + b * x + p)).astype(np.uint8) for (a, b), p in zip(waves, phases, strict=True)], -1
    )


def frame(color: np.ndarray) -> Frame:
    height, width = FRAME_SIZE
    camera = PinholeCamera(525.0, 525.0, width / 2, height / 2, width, height)
    return Frame(0, color, np.ones(FRAME_SIZE, np.float32), np.eye(4), camera)


def cases(models: Iterable[str], dtypes: Iterable[str], compile: Iterable[bool]) -> list[Case]:
    return [Case(model, dtype, is_compiled) for model in models for dtype in dtypes for is_compiled in compile]


def run_cases(
    wanted: list[Case],
    num_frames: int,
    device: str,
    limit_s: float,
    on_change: Callable[[list[Row]], None] = lambda rows: None,
    measure: Measure = measure,
) -> list[Row]:
    """A row for each case; what fails or takes longer than `limit_s` is told in its row, beside what was measured.

    Args:
        on_change: called with all rows whenever there is more in them.
        measure: of a module, so that another process finds it.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as root:
        for case in wanted:
            folder = Path(root) / case.model
            if not folder.is_dir():
                folder.mkdir()
                millions = save_random(MAKERS[case.model], folder) / 1e6
                print(f"{case.model}: {millions:.1f} M parameters", flush=True)
            rows.append(dataclasses.asdict(case))
            for part in in_process(measure, (folder, case, num_frames, device), limit_s):
                rows[-1] |= part
                print(described(rows[-1]), flush=True)
                on_change(rows)
            if "error" not in rows[-1]:
                rows[-1].pop("doing", None)
            on_change(rows)
    return rows


def in_process(measure: Measure, arguments: tuple[Any, ...], limit_s: float) -> Iterator[Row]:
    """The parts that `measure` gives, and an "error", from a process that is ended `limit_s` after its start."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_parts, args=(sender, measure, arguments), daemon=False)
    process.start()
    sender.close()
    allowed_s, begin_s = START_S, time.monotonic()
    try:
        while receiver.poll(max(0.0, begin_s + allowed_s - time.monotonic())):
            part = receiver.recv()
            if part is None:
                return
            if part == STARTED:
                allowed_s, begin_s = limit_s, time.monotonic()
            yield part
        yield {"error": f"ended after {allowed_s:g} s"}
    except EOFError:
        process.join()
        yield {"error": f"its process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _send_parts(sender: Connection, measure: Measure, arguments: tuple[Any, ...]) -> None:
    sender.send(STARTED)
    try:
        for part in measure(*arguments):
            sender.send(part)
    except Exception as error:  # one that cannot be compiled must not hide the others
        first_line = next(iter(str(error).splitlines()), "")
        sender.send({"error": f"{type(error).__name__}: {first_line}"})
    sender.send(None)


def described(row: Row) -> str:
    values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    return ", ".join(values)


def _config(folder: Path, case: Case, device: str) -> HuggingfaceConfig:
    return HuggingfaceConfig(
        model=str(folder),
        device=device,
        dtype=case.dtype,
        compile=case.compile,
        warm_up=False,  # the first image is measured
        min_score=0.0,
        min_visible_share=0.0,  # random masks hide each other
    )


def _names() -> dict[int, str]:
    return dict(enumerate(load_label_space("coco_panoptic").names[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--compile", choices=["no", "yes", "both"], default="both", help="by torch.compile")
    parser.add_argument("--limit-s", type=float, default=600.0, help="a case that takes longer is ended, s")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    import transformers

    on_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    machine = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "input": f"{FRAME_SIZE[1]}x{FRAME_SIZE[0]} in {INPUT_PX}x{INPUT_PX}",
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    print(described(machine), flush=True)
    compile = {"no": [False], "yes": [True], "both": [False, True]}[arguments.compile]

    def save(rows: list[Row]) -> None:
        if arguments.out is not None:
            arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")

    wanted = cases(arguments.models, arguments.dtypes, compile)
    run_cases(wanted, arguments.frames, arguments.device, arguments.limit_s, save)


if __name__ == "__main__":
    from benchmarks import segmenters_gpu  # other processes find `measure` there, not in "__main__"

    segmenters_gpu.main()
