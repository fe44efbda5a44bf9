"""Times panoptic networks through the segmenter 'huggingface': ms per frame and memory, by precision and compilation.

    python -m benchmarks.segmenters_gpu [--models eomt_base mask2former_swin_tiny] [--frames 50] [--out FILE.json]

The networks have the architecture of the published checkpoints and random weights, so nothing is fetched: speed and
memory do not depend on the weights, except through the number of segments, which is set to NUM_SEGMENTS. Each is saved
as a checkpoint and loaded as a user's would be. `forward` is the network, from an image in numpy to logits on the
device; `segment` is all that a frame costs, labels in numpy included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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


def measure(folder: Path, case: Case, num_frames: int, device: str) -> dict[str, Any]:
    """Times and memory of one case."""
    images = [picture(seed) for seed in range(8)]
    started = time.perf_counter()
    segmenter = HuggingfaceSegmenter(_config(folder, case, device))
    ready_s = time.perf_counter() - started
    # The highest scores are the segments: what is kept decides what reading the masks costs.
    class_logits, _, _ = segmenter.logits(images[:1])
    scores = class_logits[0].float().softmax(-1)[:, :-1].max(-1).values
    threshold = float(scores.sort().values[-NUM_SEGMENTS - 1])
    segmenter.config = dataclasses.replace(segmenter.config, min_score=threshold)
    on_gpu = segmenter._device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    forward = timed(lambda i: segmenter.logits([images[i % 8]]), num_frames, on_gpu)
    segment = timed(lambda i: segmenter.segment(frame(images[i % 8])), num_frames, on_gpu)
    memory_mb = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None
    batch = []
    if not case.compile:  # it would be compiled once more
        batch = timed(lambda i: segmenter.segment_images(images[:BATCH]), max(3, num_frames // BATCH), on_gpu)
    found = segmenter.segment(frame(images[0]))
    return {
        "forward_ms": statistics.median(forward),
        "segment_ms": statistics.median(segment),
        "segment_p95_ms": float(np.quantile(segment, 0.95)),
        f"batch{BATCH}_ms_per_frame": statistics.median(batch) / BATCH if batch else None,
        "memory_mb": memory_mb,
        "ready_s": ready_s,
        "segments": len(np.unique(found.confidence)) - 1,
    }


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


def run_cases(wanted: list[Case], num_frames: int, device: str) -> list[dict[str, Any]]:
    """A row for each case; what fails is told in its row."""
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for case in wanted:
            folder = Path(root) / case.model
            if not folder.is_dir():
                folder.mkdir()
                millions = save_random(MAKERS[case.model], folder) / 1e6
                print(f"{case.model}: {millions:.1f} M parameters", flush=True)
            try:
                row = dataclasses.asdict(case) | measure(folder, case, num_frames, device)
            except Exception as error:  # one that cannot be compiled must not hide the others
                row = dataclasses.asdict(case) | {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            torch._dynamo.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(described(row), flush=True)
            rows.append(row)
    return rows


def described(row: dict[str, Any]) -> str:
    values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    return ", ".join(values)


def _config(folder: Path, case: Case, device: str) -> HuggingfaceConfig:
    return HuggingfaceConfig(
        model=str(folder),
        device=device,
        dtype=case.dtype,
        compile=case.compile,
        min_score=0.0,
        min_visible_share=0.0,  # random masks hide each other
    )


def _names() -> dict[int, str]:
    return dict(enumerate(load_label_space("coco_panoptic").names[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MAKERS), choices=list(MAKERS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
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
    compile = (False,) if arguments.no_compile else (False, True)
    rows = run_cases(cases(arguments.models, arguments.dtypes, compile), arguments.frames, arguments.device)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
