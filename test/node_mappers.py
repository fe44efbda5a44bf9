"""Mappers for nodes under test: the node's mapper is made in a process of its own, which imports them from here."""

from __future__ import annotations

import pickle
import sys
from functools import partial
from pathlib import Path

from fake_mapper import FakeMapper
from fake_segmenters import Misbehaving
from small_room import SPACE, make_mapper

from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.ros.node_config import NodeConfig
from panoptic_mapper.segmenters.background import BackgroundConfig, BackgroundSegmenter


def fake(record: Path, config: NodeConfig, label_space: LabelSpace | None) -> FakeMapper:
    """Writes down with what it is made, and whether ROS is there."""
    record.write_bytes(pickle.dumps((config, label_space, "rclpy" in sys.modules)))
    return FakeMapper()


def with_a_model_that_crashes(config: NodeConfig, label_space: LabelSpace | None) -> PanopticMapper:
    """The room, with a 2D model that crashes on the frame of stamp 2, and is not started again."""
    settings = BackgroundConfig(retry_s=1e6, max_retry_s=1e6)
    return make_mapper(
        segmenter=BackgroundSegmenter(partial(Misbehaving, {2: "segfault"}, label_space=SPACE), settings)
    )
