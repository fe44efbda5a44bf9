"""The services' answers, right and wrong, with a stand-in for the mapper and no DDS in between."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from fake_mapper import FakeMapper
from panoptic_mapper.srv import LoadMap, QueryObjects, RenderView, SaveMap, SetVocabulary
from sensor_msgs.msg import CameraInfo
from std_srvs.srv import SetBool, Trigger

from panoptic_mapper.config import config_from_dict
from panoptic_mapper.frame_queue import FrameQueue
from panoptic_mapper.map_io import load_map, save_map
from panoptic_mapper.map_server import MapServer
from panoptic_mapper.map_service import MapperFailure
from panoptic_mapper.mapper import MapperConfig
from panoptic_mapper.pose_buffer import PoseBuffer
from panoptic_mapper.ros.pose_source import FrameTransforms
from panoptic_mapper.ros.services import MapServices

pytestmark = pytest.mark.ros
TIMEOUT_S = 10.0


class Rig:
    """A running mapper and the services around it, called directly."""

    def __init__(self, timeout_s: float = TIMEOUT_S, encoder=None) -> None:
        self.mapper = FakeMapper()
        self.frames = FrameQueue(PoseBuffer())
        self.server = MapServer(self.mapper, self.frames, timeout_s=timeout_s)
        self.worker = self.server.worker
        self.callbacks = {}
        self.num_resets = 0
        node = SimpleNamespace(create_service=self._create_service)
        transforms = FrameTransforms("map", None)
        MapServices(node, lambda: self.server, transforms, "map", self._on_reset, encoder=encoder)
        self.server.start()

    def _create_service(self, type_, name, callback, callback_group):
        self.callbacks[name] = (type_, callback)

    def _on_reset(self) -> None:
        self.num_resets += 1

    def call(self, name: str, request=None):
        type_, callback = self.callbacks[f"~/{name}"]
        return callback(request or type_.Request(), type_.Response())


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.worker.stop(TIMEOUT_S)


def camera_info(size=(8, 6)) -> CameraInfo:
    info = CameraInfo(width=size[0], height=size[1])
    info.k = [5.0, 0.0, 3.5, 0.0, 5.0, 2.5, 0.0, 0.0, 1.0]
    return info


def test_query_answers_with_objects_in_the_map_frame(rig):
    everything = rig.call("query_objects")
    assert everything.success
    assert [o.id for o in everything.objects] == [1, 4]
    assert everything.header.frame_id == "map"
    request = QueryObjects.Request(class_names=["Chair"], use_sphere=True, sphere_radius=1.0)
    request.sphere_center.x = 2.5
    assert [o.id for o in rig.call("query_objects", request).objects] == [4]
    request = QueryObjects.Request(use_box=True)
    request.box_size.x = request.box_size.y = request.box_size.z = 1.0
    assert request.box_pose.orientation.w == 1.0
    assert [o.id for o in rig.call("query_objects", request).objects] == [1]
    request.box_pose.orientation.w = 0.0
    assert [o.id for o in rig.call("query_objects", request).objects] == [1]
    nothing = rig.call("query_objects", QueryObjects.Request(class_names=["wall"]))
    assert nothing.success
    assert list(nothing.objects) == []


def test_queries_by_free_text(rig):
    answer = rig.call("query_objects", QueryObjects.Request(text="two wooden chairs, please"))
    assert answer.success, answer.message
    assert [o.id for o in answer.objects] == [1, 4]
    assert (answer.text_classes, list(answer.text_similarities)) == (["chair"], [1.0])
    both = rig.call("query_objects", QueryObjects.Request(text="chair", class_names=["wall"]))
    assert both.success
    assert list(both.objects) == []
    refused = rig.call("query_objects", QueryObjects.Request(text="something to sit on"))
    assert not refused.success
    assert "there is no text encoder" in refused.message
    assert "known: wall, chair" in refused.message


def test_queries_by_meaning_where_there_is_an_encoder():
    vectors = {"something to sit on": (1.0, 0.0), "chair": (0.8, 0.6), "wall": (0.0, 1.0)}
    rig = Rig(encoder=lambda texts: np.array([vectors[text] for text in texts]))
    try:
        answer = rig.call("query_objects", QueryObjects.Request(text="Something to sit on"))
    finally:
        rig.worker.stop(TIMEOUT_S)
    assert answer.success, answer.message
    assert answer.text_classes == ["chair"]
    assert answer.text_similarities == pytest.approx([0.8])
    assert [o.id for o in answer.objects] == [1, 4]


def test_the_vocabulary_is_set_and_wrong_words_are_refused(rig):
    answer = rig.call("set_vocabulary", SetVocabulary.Request(things=["lamp", "chair"], stuff=["wall"]))
    assert answer.success, answer.message
    assert answer.class_names == ["wall", "chair", "lamp"]
    assert list(answer.class_ids) == [40, 5, 1]
    refused = rig.call("set_vocabulary", SetVocabulary.Request(things=["wall"]))
    assert not refused.success
    assert "'wall' is stuff already" in refused.message
    assert list(refused.class_names) == []
    assert not rig.call("set_vocabulary").success


def bad_box_pose() -> QueryObjects.Request:
    request = QueryObjects.Request(use_box=True)
    request.box_pose.orientation.x = 5.0
    return request


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (QueryObjects.Request(class_names=["unicorn"]), "unknown class 'unicorn'; known: wall, chair"),
        (QueryObjects.Request(frame_id="base"), "'base' is not the map frame 'map', and tf2_ros"),
        (QueryObjects.Request(use_sphere=True), "sphere_radius: expected"),
        (QueryObjects.Request(use_box=True), "box_size: expected"),
        (bad_box_pose(), "unit quaternion"),
        (QueryObjects.Request(min_score=2.0), "min_score: expected"),
    ],
)
def test_bad_queries_are_refused_with_a_reason(rig, request_, message):
    answer = rig.call("query_objects", request_)
    assert not answer.success
    assert message in answer.message
    assert list(answer.objects) == []


def test_render_view_gives_four_images_with_public_ids(rig):
    request = RenderView.Request(camera_info=camera_info())
    request.pose.position.x = 2.0
    answer = rig.call("render_view", request)
    assert answer.success, answer.message
    sizes = {(i.height, i.width) for i in (answer.color, answer.depth, answer.semantic, answer.instance)}
    assert sizes == {(6, 8)}
    assert answer.color.encoding == "rgb8"
    assert set(np.frombuffer(bytes(answer.depth.data), "<f4")) == {2.0}
    assert set(np.frombuffer(bytes(answer.semantic.data), "<u2")) == {5}
    assert set(np.frombuffer(bytes(answer.instance.data), "<i4")) == {70000}


def test_bad_views_are_refused(rig):
    assert "fx, fy > 0" in rig.call("render_view").message
    request = RenderView.Request(camera_info=camera_info())
    request.pose.orientation.w = float("nan")
    assert "not finite" in rig.call("render_view", request).message
    huge = RenderView.Request(camera_info=camera_info(size=(10**5, 10**5)))
    answer = rig.call("render_view", huge)
    assert not answer.success
    assert "100000x100000" in answer.message


def test_save_and_load_go_round(rig, tmp_path):
    path = tmp_path / "new" / "room.map"
    answer = rig.call("save_map", SaveMap.Request(path=str(path)))
    assert answer.success, answer.message
    assert (answer.path, answer.bytes) == (str(path), path.stat().st_size)
    tensors, meta = load_map(path)
    np.testing.assert_array_equal(tensors["means"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert meta["num_objects"] == 2
    assert config_from_dict(MapperConfig, meta["config"]) == rig.mapper.config
    rig.mapper.all_objects = ()
    answer = rig.call("load_map", LoadMap.Request(path=str(path)))
    assert answer.success, answer.message
    assert (answer.num_objects, answer.num_gaussians, answer.num_keyframes) == (2, 2, 1)
    assert len(rig.mapper.all_objects) == 2


def test_an_existing_file_is_replaced_only_when_asked(rig, tmp_path):
    path = tmp_path / "room.map"
    path.write_text("precious")
    answer = rig.call("save_map", SaveMap.Request(path=str(path)))
    assert not answer.success
    assert "exists" in answer.message
    assert path.read_text() == "precious"
    assert rig.call("save_map", SaveMap.Request(path=str(path), overwrite=True)).success
    load_map(path)


def test_unwritable_places_are_named(rig, tmp_path):
    (tmp_path / "file").write_text("")
    answer = rig.call("save_map", SaveMap.Request(path=str(tmp_path / "file" / "room.map")))
    assert not answer.success
    assert "room.map" in answer.message
    assert "expected a file, got ''" in rig.call("save_map").message


def test_a_bad_map_file_leaves_the_map(rig, tmp_path):
    missing = rig.call("load_map", LoadMap.Request(path=str(tmp_path / "missing.map")))
    (tmp_path / "junk.map").write_bytes(b"not a map")
    junk = rig.call("load_map", LoadMap.Request(path=str(tmp_path / "junk.map")))
    save_map(tmp_path / "other.map", {"wrong": np.zeros(3, np.float32)}, {"num_objects": 5})
    other = rig.call("load_map", LoadMap.Request(path=str(tmp_path / "other.map")))
    for answer, word in ((missing, "missing.map"), (junk, "junk.map"), (other, "'means' is missing")):
        assert not answer.success
        assert word in answer.message
        assert answer.num_gaussians == 0
    assert len(rig.mapper.all_objects) == 2  # although restoring failed halfway


def test_reset_and_pause(rig):
    assert rig.call("pause", SetBool.Request(data=True)).success
    assert rig.worker.is_paused
    assert rig.call("pause", SetBool.Request(data=False)).success
    assert not rig.worker.is_paused
    rig.frames.reject("bad_image", "x")
    version = rig.worker.version
    answer = rig.call("reset", Trigger.Request())
    assert answer.success
    assert rig.mapper.all_objects == ()
    assert rig.frames.drops == {}
    assert rig.num_resets == 1
    assert rig.worker.version > version


def test_a_busy_mapper_is_answered_with_failure_and_the_request_called_back():
    rig, started, release = Rig(timeout_s=0.05), threading.Event(), threading.Event()
    try:
        rig.worker.submit(lambda mapper: (started.set(), release.wait(TIMEOUT_S)))
        assert started.wait(TIMEOUT_S)
        answer = rig.call("reset")
        assert not answer.success
        assert "busy for more than 0.05 s; the request was called back" in answer.message
        release.set()
        assert len(rig.worker.submit(lambda mapper: mapper.objects()).result(TIMEOUT_S)) == 2
    finally:
        release.set()
        rig.worker.stop(TIMEOUT_S)


def test_a_crash_inside_a_service_is_an_answer(rig, caplog):
    rig.mapper.objects = lambda: 1 / 0
    answer = rig.call("query_objects")
    assert not answer.success
    assert "ZeroDivisionError" in answer.message
    assert "Traceback" in caplog.text
    assert rig.worker.is_alive


def test_before_the_mapper_is_up_services_say_why(rig):
    running, rig.server = rig.server, None
    answer = rig.call("query_objects")
    assert not answer.success
    assert "label space is not known yet" in answer.message
    rig.server = running


def test_a_mapper_that_is_lost_is_an_answer_without_a_traceback(rig, caplog):
    def objects():
        raise MapperFailure("the mapper's process was ended by SIGKILL")

    rig.server.objects = objects
    answer = rig.call("query_objects")
    assert not answer.success
    assert answer.message == "the mapper's process was ended by SIGKILL"
    assert caplog.text == ""
