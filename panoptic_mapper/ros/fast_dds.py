"""A shared memory segment for Fast DDS that images fit into; its default of 512 KB loses them."""

from __future__ import annotations

import os
from importlib import metadata

from panoptic_mapper.resources import resource_path

VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")  # new and old name
FIRST_RCLPY_WITH_NEW_NAME = 9  # Kilted; Jazzy (7) reads the old name only, later ones warn of it


def use_shared_memory_profile() -> None:
    """Names config/fastdds_shm.xml to Fast DDS, unless the environment names a profile. Call before `rclpy.init`.

    It is the publisher's segment that counts, so whoever publishes images needs it too.
    """
    if any(name in os.environ for name in VARIABLES):
        return
    os.environ[VARIABLES[0] if _knows_new_name() else VARIABLES[1]] = str(resource_path("config/fastdds_shm.xml"))


def _knows_new_name() -> bool:
    for distribution in ("rclpy", "ros-rclpy"):
        try:
            return int(metadata.version(distribution).split(".")[0]) >= FIRST_RCLPY_WITH_NEW_NAME
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return False
