"""Where the loop waits for the GPU, counted by source line, with torch's sync debug mode."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import panoptic_mapper
from benchmarks.gpu_parts.context import Context, markdown

WARM_UP_FRAMES, NUM_FRAMES = 20, 20
PACKAGE = Path(panoptic_mapper.__file__).parent


def measure(context: Context) -> dict[str, Any]:
    """Maps some frames and names, for each wait, the innermost lines of this package that caused it."""
    frames = context.mapped_frames
    num_before = min(WARM_UP_FRAMES, len(frames) // 2)
    mapper = context.warmed_mapper(num_before)
    steps_before = mapper.optimizer.num_steps
    waits: Counter[str] = Counter()
    keyframes = snapshot_waits = num = 0

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            waits[_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        for frame in frames[num_before : num_before + NUM_FRAMES]:
            num += 1
            _set_debug("warn")
            keyframes += mapper.integrate(frame).is_keyframe
            inside = waits.total()
            mapper.begin_snapshot()
            snapshot_waits += waits.total() - inside
            _set_debug("default")
    return {
        "frames": num,
        "keyframes": keyframes,
        "steps": mapper.optimizer.num_steps - steps_before,
        "waits": waits.total() - snapshot_waits,
        "snapshot_waits": snapshot_waits,
        "places": waits.most_common(),
    }


def _set_debug(mode: str) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode(mode)


def _place() -> str:
    """The innermost three calls within the package, innermost first, and what was called outside of it."""
    stack = [f for f in traceback.extract_stack() if "gpu_parts" not in f.filename and "warnings.py" not in f.filename]
    own = [f for f in stack if Path(f.filename).is_relative_to(PACKAGE)]
    places = [f"{Path(f.filename).relative_to(PACKAGE)}:{f.lineno} {f.name}" for f in reversed(own[-3:])]
    line = (own[-1].line or "").strip()[:90] if own else ""
    return f"`{line}` " + " < ".join(places)


def table(result: dict[str, Any]) -> str:
    words = (
        f"{result['frames']} frames, {result['keyframes']} of them keyframes, {result['steps']} steps:"
        f" {result['waits']} waits in `integrate`, {result['snapshot_waits']} in `begin_snapshot`."
    )
    return f"{words}\n\n" + markdown(["waits", "where"], [[count, place] for place, count in result["places"]])
