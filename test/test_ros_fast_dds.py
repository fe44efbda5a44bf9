"""The profile for images is used where the user has not chosen one."""

import xml.etree.ElementTree as ET

import pytest

from panoptic_mapper.ros import fast_dds

IMAGE_BYTES = 1920 * 1080 * 3


@pytest.mark.parametrize(
    ("version", "variable"),
    [("9.1.2", "FASTDDS_DEFAULT_PROFILES_FILE"), ("7.1.6", "FASTRTPS_DEFAULT_PROFILES_FILE")],
)
def test_the_profile_is_named_by_the_variable_that_this_ros_reads(monkeypatch, version, variable):
    for name in fast_dds.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fast_dds.metadata, "version", lambda distribution: version)
    fast_dds.use_shared_memory_profile()
    set_by_it = {name: fast_dds.os.environ[name] for name in fast_dds.VARIABLES if name in fast_dds.os.environ}
    for name in fast_dds.VARIABLES:  # what the function set itself is not undone by monkeypatch
        fast_dds.os.environ.pop(name, None)
    assert list(set_by_it) == [variable]
    segment = ET.parse(set_by_it[variable]).find(".//{*}segment_size")
    assert int(segment.text) > 4 * IMAGE_BYTES


def test_a_profile_of_the_user_is_left_alone(monkeypatch):
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/mine.xml")
    monkeypatch.delenv("FASTDDS_DEFAULT_PROFILES_FILE", raising=False)
    fast_dds.use_shared_memory_profile()
    assert fast_dds.os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] == "/mine.xml"
    assert "FASTDDS_DEFAULT_PROFILES_FILE" not in fast_dds.os.environ
