"""Measures the mapper on a GPU, part by part, and prints tables: markdown on the screen, JSON in a file.

    python -m benchmarks.gpu --data FOLDER [--only sequence,syncs] [--width 640] [--out out/gpu]

Parts: kernels (our operators against dense torch), stages (a frame's stages one by one), sequence (frames per second,
latencies and quality over a whole sequence, with the latency preset and with the slow preset), building (the rate in a
local view of a map of a million Gaussians), renders (panoptic images of any pose), syncs (where the loop waits for the
GPU, by source line), profile (kernels, launches, and how much of the time the GPU is idle). Needs no network. Without a
GPU it runs on the CPU, where --width and --frames keep it short.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import building, kernels, profile, renders, sequence, stages, syncs
from benchmarks.gpu_parts.context import Context, hardware

PARTS = {
    "kernels": kernels,
    "stages": stages,
    "sequence": sequence,
    "building": building,
    "renders": renders,
    "syncs": syncs,
    "profile": profile,
}
CONFIG = Path(__file__).resolve().parents[1] / "config"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:num_rooms=3,num_frames=200,width=640,height=480",
                        help="a sequence: a folder, or synthetic:key=value,...")  # fmt: skip
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--width", type=int, default=640, help="images are mapped at this width, px")
    parser.add_argument("--frames", type=int, default=0, help="at most so many frames, 0 = all")
    parser.add_argument("--config", type=Path, default=CONFIG / "latency.yaml", help="the preset that is measured")
    parser.add_argument("--slow-config", type=Path, default=CONFIG / "quality.yaml",
                        help="the preset that its quality is compared with")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the mapper")
    parser.add_argument("--no-slow", action="store_true", help="leave the slow run of `sequence` out")
    parser.add_argument("--only-slow", action="store_true", help="leave the fast run of `sequence` out")
    parser.add_argument("--gaussians", type=int, default=1_000_000, help="size of the map of `building`")
    parser.add_argument("--repeats", type=int, default=20, help="repetitions of `stages` and `renders`")
    parser.add_argument("--sync-debug", action="store_true", help="the same as --only syncs")
    parser.add_argument("--profile", action="store_true", help="the same as --only profile")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the JSON and markdown files")
    args = parser.parse_args(arguments)
    chosen = [name for name, is_on in (("syncs", args.sync_debug), ("profile", args.profile)) if is_on]
    args.parts = chosen or args.only.split(",")
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    return args


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the parts; what is done is on the disk even if a later part fails."""
    args = parse(arguments)
    context = Context.of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"hardware": hardware(context.device), "arguments": " ".join(arguments or sys.argv[1:])}
    print(results["hardware"], flush=True)
    for name in args.parts:
        start = time.perf_counter()
        results[name] = PARTS[name].measure(context)
        seconds = time.perf_counter() - start
        text = f"\n## {name} ({seconds:.0f} s)\n\n{PARTS[name].table(results[name])}\n"
        print(text, flush=True)
        (args.out / f"{name}.md").write_text(text)
        (args.out / "gpu.json").write_text(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main()
