"""Measures 2D segmenters frame by frame against the labels of a sequence, without a map.

    python -m benchmarks.segmenters SEQUENCE... [--segmenters flat,tiny,geometric,dataset] [--every 8]

`flat` is what `tiny` would be without depth: its networks' outputs, merged by box and class alone. Matches
(IoU > 0.5, one to one) are made in each frame and counted over all frames. "things": bare instances of any class.
"classes": the mean over the classes that both label spaces have; what the sequence calls something else is void.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from panoptic_mapper.datasets.scannet_folder import ScanNetFolder
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.matching import MatchingRule, PanopticQuality, match_segments, mean_percent
from panoptic_mapper.metrics import MIN_PIXELS, instance_coverage
from panoptic_mapper.segment_pairs import (
    SegmentPairs,
    count_pairs,
    instance_segments,
    label_keys,
    panoptic_segments,
)
from panoptic_mapper.segmenters import Segmenter, SegmenterConfig, create_segmenter
from panoptic_mapper.segmenters.tiny import TinySegmenter
from panoptic_mapper.segmenters.tiny_classes import FROM_MOSAIC
from panoptic_mapper.segmenters.tiny_merge import claim_boxes, compose, thing_components
from panoptic_mapper.segmenters.tiny_patches import DepthPatches

RULE = MatchingRule(0.5, one_to_one=True, min_size=MIN_PIXELS)
STUFF, THING = 1, 2  # the classes of class-agnostic labels
AGNOSTIC_IS_THING = np.array([False, False, True])
# Names of NYU40 and of the simulated sequences, as the segmenters call the same things.
SYNONYMS = {
    "bookshelf": "shelf",
    "shelves": "shelf",
    "desk": "table",
    "night_stand": "cabinet",
    "dresser": "cabinet",
    "wardrobe": "cabinet",
    "television": "tv",
    "floor_mat": "rug",
    "stool": "chair",
    "stove": "oven",
}


class FlatSegmenter(TinySegmenter):
    """The networks of `tiny` merged without depth."""

    def segment(self, frame: Frame) -> Segmentation:
        """Labels of the frame, from colour."""
        mosaic, detections = self.predict(frame)
        shape = mosaic.shape
        semantic = FROM_MOSAIC[cv2.medianBlur(mosaic, 5)]
        nowhere = np.zeros(1, bool)
        patches = DepthPatches(
            np.zeros(shape, np.int32), np.zeros(shape, bool), nowhere, np.zeros(1, int), np.zeros(1), nowhere
        )
        min_area_px = max(1, round(self._min_area_px * mosaic.size / (640 * 480)))
        segments = claim_boxes(detections, mosaic, semantic, patches, np.zeros(shape, np.float32), min_area_px // 4)
        for segment in segments:
            semantic = np.where(segment.mask, 0, semantic)
        segments += thing_components(semantic, patches.is_split, min_area_px // 4)
        return compose(semantic, segments, np.ones(shape, bool), min_area_px)


def measure(segmenter: Segmenter, frames: Iterable[Frame], label_space: LabelSpace) -> dict[str, float | None]:
    """Quality in percent and the mean time of a frame.

    Args:
        frames: with labels in `label_space`.
    """
    translation = common_classes(label_space, segmenter.label_space)
    is_common = np.zeros(len(segmenter.label_space), bool)
    is_common[translation[translation > 0]] = True
    things, classes, coverage, seconds = [], [], [], []
    for frame in frames:
        start = time.perf_counter()
        result = segmenter.segment(frame)
        seconds.append(time.perf_counter() - start)
        assert frame.labels is not None
        if result is None:
            result = Segmentation(np.zeros_like(frame.labels.semantic), np.zeros_like(frame.labels.instance))
        pairs = class_agnostic_pairs(frame.labels, result, label_space.is_thing)
        bare = instance_segments(pairs, AGNOSTIC_IS_THING)
        things.append(PanopticQuality.of(match_segments(bare, RULE), len(AGNOSTIC_IS_THING)))
        coverage.append(instance_coverage(pairs, AGNOSTIC_IS_THING, MIN_PIXELS)[0])
        true = label_keys(translation[frame.labels.semantic], frame.labels.instance)
        predicted = label_keys(np.where(is_common[result.semantic], result.semantic, 0), result.instance)
        pairs = panoptic_segments(count_pairs(true, predicted), segmenter.label_space.is_thing)
        classes.append(PanopticQuality.of(match_segments(pairs, RULE), len(is_common)))
    thing, of_class = _summed(things), _summed(classes)
    return {
        "pq_things": 100 * float(thing.pq[0]),
        "sq_things": 100 * float(thing.sq[0]),
        "rq_things": 100 * float(thing.rq[0]),
        "cov_things": mean_percent(np.concatenate(coverage)),
        "found": float(thing.num_matched[0]),
        "spurious": float(thing.num_spurious[0]),
        "missed": float(thing.num_missed[0]),
        "pq_classes": mean_percent(of_class.pq[of_class.has_truth]),
        "num_classes": float(np.count_nonzero(of_class.has_truth)),
        "ms": 1000 * float(np.median(seconds)),
    }


def common_classes(source: LabelSpace, target: LabelSpace) -> np.ndarray:
    """The class of `target` that means the same as each of `source`'s: [C_source] int32, 0 = none."""
    known = {name: index for index, name in enumerate(target.names) if index}
    return np.array([known.get(name, known.get(SYNONYMS.get(name, ""), 0)) for name in source.names], np.int32)


def class_agnostic_pairs(truth: Segmentation, result: Segmentation, is_thing: np.ndarray) -> SegmentPairs:
    """Overlaps of labels with the classes 0 = void, STUFF and THING; predicted stuff is void."""
    true_class = np.where(truth.semantic == 0, 0, np.where(is_thing[truth.semantic], THING, STUFF))
    predicted_class = np.where(result.instance > 0, THING, 0)
    return count_pairs(label_keys(true_class, truth.instance), label_keys(predicted_class, result.instance))


def _summed(frames: list[PanopticQuality]) -> PanopticQuality:
    return PanopticQuality(
        *(
            np.sum([getattr(frame, name) for frame in frames], axis=0)
            for name in ("iou_sum", "num_matched", "num_spurious", "num_missed")
        )
    )


def create(name: str, label_space: LabelSpace, num_threads: int) -> Segmenter:
    """A segmenter by name; `flat` is known here only."""
    if name == "flat":
        return FlatSegmenter(num_threads=num_threads)
    return create_segmenter(SegmenterConfig(name=name, num_threads=num_threads), label_space)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", nargs="+", type=Path, help="folders in ScanNet style, with labels")
    parser.add_argument("--segmenters", default="flat,tiny,geometric,dataset")
    parser.add_argument("--every", type=int, default=8, help="use every N-th frame only")
    parser.add_argument("--first", type=int, default=0, help="index of the first frame")
    parser.add_argument("--width", type=int, default=320, help="pixels that frames are reduced to")
    parser.add_argument("--threads", type=int, default=1, help="of the semantic network")
    arguments = parser.parse_args()
    cv2.setNumThreads(arguments.threads)
    print("| sequence | segmenter | frames | PQ things | SQ | RQ | best IoU | found | spurious | missed", end="")
    print(" | PQ classes | classes | median ms |\n" + "|---" * 13 + "|")
    for path in arguments.sequences:
        dataset = ScanNetFolder(path)
        if dataset.label_space is None:
            parser.error(f"{path}: has no labels")
        width = arguments.width
        indices = range(arguments.first, len(dataset), arguments.every)
        for name in arguments.segmenters.split(","):
            frames = (dataset[i] for i in indices)
            small = (f.resized(width, round(width * f.camera.height / f.camera.width)) for f in frames)
            result = measure(create(name, dataset.label_space, arguments.threads), small, dataset.label_space)
            quality = [f"{result[key] or 0:.1f}" for key in ("pq_things", "sq_things", "rq_things", "cov_things")]
            counts = [f"{result[key]:.0f}" for key in ("found", "spurious", "missed")]
            last = [f"{result['pq_classes'] or 0:.1f}", f"{result['num_classes']:.0f}", f"{result['ms']:.0f}"]
            print(
                "| " + " | ".join([dataset.name, name, str(len(indices)), *quality, *counts, *last]) + " |", flush=True
            )


if __name__ == "__main__":
    main()
