"""The way of labels that come later than their keyframe: from the segmenter's thread to the one that owns the map."""

from __future__ import annotations

import logging
from concurrent.futures import Future

from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.segmenters.background import BackgroundSegmenter, LateLabels
from panoptic_mapper.worker import MappingWorker

logger = logging.getLogger(__name__)


def take_late_labels(segmenter: BackgroundSegmenter, worker: MappingWorker[PanopticMapper]) -> None:
    """Gives labels to their keyframes as they become ready, between two frames.

    What the mapper refuses is logged and becomes the worker's last error; the keyframe stays without labels.
    """

    def on_labels(late: LateLabels) -> None:
        def task(mapper: PanopticMapper) -> None:
            if mapper.label(late.stamp_ns, late.segmentation, late.label_space):
                worker.note_change()

        if not worker.is_stopping:
            worker.submit(task).add_done_callback(note)

    def note(future: Future[None]) -> None:
        if future.cancelled() or future.exception() is None:
            return
        worker.last_error = f"late labels were refused: {future.exception()}"
        logger.error(worker.last_error)

    segmenter.on_labels = on_labels
