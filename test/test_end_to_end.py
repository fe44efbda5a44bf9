"""The whole system over real DDS topics: a player process, the node process, and a client that calls every service."""

import os

import numpy as np
import pytest

pytest.importorskip("panoptic_mapper.msg", reason="ROS 2 or the built messages are not installed")
from geometry_msgs.msg import PoseStamped
from panoptic_mapper.msg import PanopticObjectArray
from panoptic_mapper.srv import LoadMap, QueryObjects, RenderView, SaveMap
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import Marker, MarkerArray

from panoptic_mapper.datasets.rosbag_writer import write_rosbag
from panoptic_mapper.datasets.subset import Subset
from panoptic_mapper.datasets.synthetic import SyntheticConfig, SyntheticRoom
from panoptic_mapper.ros.client import MapperClient
from panoptic_mapper.ros.conversions import image_message, stamp_from_message
from panoptic_mapper.ros.processes import start_node, start_player

pytestmark = [pytest.mark.ros, pytest.mark.slow]

NUM_FRAMES = 12
WIDTH, HEIGHT = 80, 60
START_TIMEOUT_S = 60.0  # generous: the machine may be busy with other tests
MAP_TIMEOUT_S = 240.0
LOCAL = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_NUM_THREADS": "1"}


class System:
    """Node, client and the world that the bag shows."""

    def __init__(self, node, client, room, label_space) -> None:
        self.node, self.client, self.room, self.label_space = node, client, room, label_space


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """The node after it has mapped a bag that a player process published."""
    folder = tmp_path_factory.mktemp("end_to_end")
    # Neighbouring frames of a longer walk, so that they overlap.
    room = SyntheticRoom(SyntheticConfig(width=WIDTH, height=HEIGHT, num_frames=8 * NUM_FRAMES))
    write_rosbag(Subset(room, range(NUM_FRAMES)), folder / "bag")
    domain_id = 40 + os.getpid() % 60  # below 102, where ports collide with those that Linux gives out
    environment = {**LOCAL, "ROS_DOMAIN_ID": str(domain_id)}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with (
            start_node(
                folder / "node.log",
                {
                    "segmenter.name": "dataset",
                    "device": "cpu",
                    "queue.capacity": 100,
                    "worker.idle_refine_steps": 0,
                    "mapper.optimizer.steps_per_keyframe": 3,
                    "publish.status_rate_hz": 10.0,
                    "publish.map_rate_hz": 10.0,
                },
            ) as node,
            MapperClient(node.check_alive) as client,
        ):
            client.wait_for_status(lambda s: s.state == "waiting", START_TIMEOUT_S, "status")
            early = client.call(QueryObjects, "query_objects")
            assert not early.success
            assert "label space is not known yet" in early.message
            with start_player(folder / "bag", folder / "player.log", rate=10.0, wait_s=START_TIMEOUT_S) as player:
                client.wait_for_status(
                    lambda s: s.frames_received >= NUM_FRAMES and s.queue_size == 0, MAP_TIMEOUT_S, "mapped bag"
                )
                assert player.wait(START_TIMEOUT_S) == 0
            yield System(node, client, room, room.label_space)
            assert node.stop() == 0, node.log_tail()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def camera_info(camera) -> CameraInfo:
    info = CameraInfo(width=camera.width, height=camera.height)
    info.k = camera.matrix.reshape(-1).tolist()
    return info


def fill_pose(pose, T: np.ndarray) -> None:
    pose.position.x, pose.position.y, pose.position.z = T[:3, 3].tolist()
    q = pose.orientation
    q.x, q.y, q.z, q.w = Rotation.from_matrix(T[:3, :3]).as_quat().tolist()


def pixels(message: Image, dtype: str) -> np.ndarray:
    return np.frombuffer(bytes(message.data), dtype).reshape(message.height, message.width, -1).squeeze()


def test_every_frame_of_the_bag_is_mapped(system):
    status = system.client.wait_for_status(lambda s: True, START_TIMEOUT_S, "status")
    assert (status.frames_received, status.frames_integrated) == (NUM_FRAMES, NUM_FRAMES), system.node.log_tail()
    assert list(status.drop_reasons) == []
    assert status.state == "mapping"
    assert status.num_gaussians > 1000
    assert status.num_objects > 2
    assert status.num_keyframes >= 1
    assert 0 < status.latency_p50_ms <= status.latency_p99_ms
    assert status.map_bytes > 0
    assert len(status.loss_names) == len(status.loss_values) > 0


def test_a_late_subscriber_gets_clouds_objects_and_markers(system):
    status = system.client.wait_for_status(lambda s: True, START_TIMEOUT_S, "status")
    cloud = system.client.wait_for_message(PointCloud2, "semantic_cloud", START_TIMEOUT_S)
    assert cloud.width == status.num_gaussians
    assert [f.name for f in cloud.fields] == ["x", "y", "z", "rgb", "label", "instance", "confidence"]
    words = np.frombuffer(bytes(cloud.data), "<u4").reshape(cloud.width, 7)
    known = {0, *(c.id for c in system.label_space.classes)}
    assert set(words[:, 4].tolist()) <= known
    assert len(set(words[:, 4].tolist())) > 3
    objects = system.client.wait_for_message(PanopticObjectArray, "objects", START_TIMEOUT_S)
    ids = [o.id for o in objects.objects]
    assert ids == sorted(set(ids))
    assert objects.header.frame_id == "map"
    assert set(ids) <= set(words[:, 5].tolist())
    assert objects.header.stamp == cloud.header.stamp
    instances = system.client.wait_for_message(PointCloud2, "instance_cloud", START_TIMEOUT_S)
    assert instances.width == cloud.width
    markers = system.client.wait_for_message(MarkerArray, "markers", START_TIMEOUT_S)
    assert {m.id for m in markers.markers if m.action == Marker.ADD} == set(ids)


def test_objects_are_found_where_they_are(system):
    everything = system.client.call(QueryObjects, "query_objects")
    assert everything.success
    truth = {o.class_name for o in system.room.ground_truth_objects()}
    found = {o.class_name for o in everything.objects}
    assert found
    assert found <= truth
    some = everything.objects[0]
    request = QueryObjects.Request(class_names=[some.class_name], use_sphere=True, sphere_radius=0.01)
    request.sphere_center = some.centroid
    assert some.id in [o.id for o in system.client.call(QueryObjects, "query_objects", request).objects]
    nearest = QueryObjects.Request(nearest_k=1, nearest_to=some.centroid)
    assert [o.id for o in system.client.call(QueryObjects, "query_objects", nearest).objects] == [some.id]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (QueryObjects.Request(class_names=["unicorn"]), "unknown class 'unicorn'"),
        (QueryObjects.Request(frame_id="nowhere"), "nowhere"),
        (QueryObjects.Request(use_sphere=True, sphere_radius=-1.0), "sphere_radius"),
    ],
)
def test_bad_queries_are_answered(system, request_, words):
    answer = system.client.call(QueryObjects, "query_objects", request_)
    assert not answer.success
    assert words in answer.message


def test_a_rendered_view_shows_what_the_camera_saw(system):
    frame = system.room[NUM_FRAMES // 2]
    request = RenderView.Request(camera_info=camera_info(frame.camera))
    fill_pose(request.pose, frame.T_map_camera)
    answer = system.client.call(RenderView, "render_view", request)
    assert answer.success, answer.message
    assert pixels(answer.color, "u1").shape == (HEIGHT, WIDTH, 3)
    depth = pixels(answer.depth, "<f4")
    both = (depth > 0) & (frame.depth > 0)
    assert both.mean() > 0.9
    assert np.median(np.abs(depth - frame.depth)[both]) < 0.15  # m; 60 rows and a handful of optimisation steps
    true_ids = system.label_space.ids[frame.labels.semantic]
    assert (pixels(answer.semantic, "<u2") == true_ids).mean() > 0.8
    assert set(np.unique(pixels(answer.instance, "<i4"))) - {0}
    bad = system.client.call(RenderView, "render_view")
    assert not bad.success
    assert "intrinsics" in bad.message


def drops(status) -> dict[str, int]:
    return dict(zip(status.drop_reasons, status.drop_counts, strict=True))


def test_bad_input_is_counted_and_the_node_lives(system):
    client = system.client
    color = client.node.create_publisher(Image, "/camera/color/image_raw", 10)
    depth = client.node.create_publisher(Image, "/camera/depth/image_raw", 10)
    labels = client.node.create_publisher(Image, "/camera/labels", 10)
    pose = client.node.create_publisher(PoseStamped, "/camera/pose", 10)
    publishers = (color, depth, labels, pose)
    client.wait_until(
        lambda: all(p.get_subscription_count() for p in publishers), START_TIMEOUT_S, "subscription of the node"
    )
    before = client.wait_for_status(lambda s: True, START_TIMEOUT_S, "status")

    def send(stamp_ns: int, encoding: str = "rgb8") -> None:
        images = (
            (color, np.zeros((HEIGHT, WIDTH, 3), np.uint8), encoding),
            (depth, np.full((HEIGHT, WIDTH), 1000, np.uint16), "16UC1"),
            (labels, np.zeros((HEIGHT, WIDTH), np.int32), "32SC1"),
        )
        for publisher, array, name in images:
            message = image_message(array, name, stamp_ns)
            message.header.frame_id = "camera"
            publisher.publish(message)

    def wait_for_drop(reason: str) -> None:
        client.wait_for_status(lambda s: drops(s).get(reason), START_TIMEOUT_S, f"drop for {reason}")

    later_ns = 1000 * 10**9
    send(later_ns, "nonsense")
    wait_for_drop("bad_image")
    broken = PoseStamped()
    broken.header.frame_id = "map"
    broken.pose.orientation.w = 0.5
    pose.publish(broken)
    wait_for_drop("bad_pose")
    send(later_ns + 10**9)  # nobody knows where the camera was then
    wait_for_drop("no_pose")
    send(later_ns + 10**9 - 10**8)
    wait_for_drop("out_of_order")
    assert client.call(SetBool, "pause", SetBool.Request(data=True)).success
    client.wait_for_status(lambda s: s.state == "paused", START_TIMEOUT_S, "pause")
    send(later_ns + 2 * 10**9)
    wait_for_drop("paused")
    assert client.call(SetBool, "pause", SetBool.Request(data=False)).success
    after = client.wait_for_status(lambda s: s.state == "mapping", START_TIMEOUT_S, "resume")
    assert after.frames_integrated == before.frames_integrated
    assert after.num_gaussians == before.num_gaussians
    assert system.node.returncode is None
    for publisher in publishers:
        client.node.destroy_publisher(publisher)


def test_a_saved_map_survives_a_reset(system, tmp_path):
    client, path = system.client, str(tmp_path / "room.map")
    before = client.call(QueryObjects, "query_objects").objects
    saved = client.call(SaveMap, "save_map", SaveMap.Request(path=path))
    assert saved.success, saved.message
    assert saved.bytes == os.path.getsize(path)
    again = client.call(SaveMap, "save_map", SaveMap.Request(path=path))
    assert not again.success
    assert "overwrite" in again.message
    assert not client.call(SaveMap, "save_map", SaveMap.Request(path="/proc/nowhere/room.map")).success

    assert client.call(Trigger, "reset").success
    client.wait_for_status(lambda s: s.num_gaussians == 0 and s.frames_received == 0, START_TIMEOUT_S, "empty map")
    (tmp_path / "junk.map").write_bytes(b"junk")
    junk = client.call(LoadMap, "load_map", LoadMap.Request(path=str(tmp_path / "junk.map")))
    assert not junk.success
    assert "junk.map" in junk.message
    loaded = client.call(LoadMap, "load_map", LoadMap.Request(path=path))
    assert loaded.success, loaded.message
    assert loaded.num_objects == len(before)
    after = client.call(QueryObjects, "query_objects").objects
    assert [(o.id, o.class_id) for o in after] == [(o.id, o.class_id) for o in before]
    np.testing.assert_allclose([o.centroid.x for o in after], [o.centroid.x for o in before], atol=1e-4)


def test_answers_carry_the_time_of_the_camera(system):
    answer = system.client.call(QueryObjects, "query_objects")
    # The bag starts at one second; its last frame need not have been a keyframe.
    assert 10**9 < stamp_from_message(answer.header.stamp) <= 10**9 + system.room[NUM_FRAMES - 1].stamp_ns
