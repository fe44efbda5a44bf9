"""The node's services. Each is a task of the worker between two frames; none of them can harm the map by failing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from panoptic_mapper.config import to_dict
from panoptic_mapper.label_space import LabelSpace
from panoptic_mapper.map_io import load_map, save_map
from panoptic_mapper.mapper import PanopticMapper
from panoptic_mapper.query import BoxRegion, ObjectQuery, SphereRegion, select_objects
from panoptic_mapper.ros.conversions import camera_from_message, image_message, object_message, stamp_message
from panoptic_mapper.ros.pose_source import FrameTransforms, matrix_from_pose
from panoptic_mapper.srv import LoadMap, QueryObjects, RenderView, SaveMap, SetVocabulary
from panoptic_mapper.text_query import TextEncoder, TextQueryConfig, match_text
from panoptic_mapper.worker import MappingWorker

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
MAX_RENDER_PIXELS = 4096 * 4096


class Refused(ValueError):
    """A request that cannot be fulfilled; the text is the answer's `message`."""


class MapServices:
    """Creates the services on `node`. `get_worker` gives None until the mapper is up."""

    def __init__(
        self,
        node: Node,
        get_worker: Callable[[], MappingWorker[PanopticMapper] | None],
        transforms: FrameTransforms,
        map_frame: str,
        timeout_s: float,
        on_reset: Callable[[], None] = lambda: None,
        text_config: TextQueryConfig | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        self._get_worker = get_worker
        self._transforms = transforms
        self._map_frame = map_frame
        self._timeout_s = timeout_s
        self._on_reset = on_reset
        self._text_config = text_config
        self._encoder = encoder
        for type_, name, handler in (
            (QueryObjects, "~/query_objects", self.query_objects),
            (RenderView, "~/render_view", self.render_view),
            (SaveMap, "~/save_map", self.save_map),
            (LoadMap, "~/load_map", self.load_map),
            (Trigger, "~/reset", self.reset),
            (SetVocabulary, "~/set_vocabulary", self.set_vocabulary),
            (SetBool, "~/pause", self.pause),
        ):
            group = MutuallyExclusiveCallbackGroup()  # its own, so that a long one does not hold up the others
            node.create_service(type_, name, _answering(handler), callback_group=group)

    def query_objects(self, request: QueryObjects.Request, response: QueryObjects.Response) -> str:
        query = self._object_query(request)
        worker = self._worker()
        objects, label_space = self._run(lambda m: (m.objects(), m.label_space))
        if request.text:
            matches = match_text(request.text, label_space, self._encoder, self._text_config)
            query = replace(query, class_indices=[m.class_index for m in matches])
            response.text_classes = [label_space.names[m.class_index] for m in matches]
            response.text_similarities = [m.similarity for m in matches]
        found = select_objects(objects, query, label_space)
        response.header = Header(stamp=stamp_message(worker.last_stamp_ns), frame_id=self._map_frame)
        response.objects = [object_message(o, label_space) for o in found]
        return f"{len(found)} of {len(objects)} objects"

    def render_view(self, request: RenderView.Request, response: RenderView.Response) -> str:
        camera = camera_from_message(request.camera_info)
        if camera.width * camera.height > MAX_RENDER_PIXELS:
            raise Refused(f"camera_info: {camera.width}x{camera.height} is more than {MAX_RENDER_PIXELS} pixels")
        T_map_camera = self._transforms.T_map_frame(request.frame_id) @ matrix_from_pose(request.pose)
        worker = self._worker()
        view, label_space = self._run(lambda m: (m.render(camera, T_map_camera), m.label_space))
        stamp_ns = worker.last_stamp_ns
        response.color = image_message(view.color, "rgb8", stamp_ns)
        response.depth = image_message(view.depth.astype(np.float32), "32FC1", stamp_ns)
        response.semantic = image_message(label_space.ids[view.semantic].astype(np.uint16), "16UC1", stamp_ns)
        response.instance = image_message(view.instance.astype(np.int32), "32SC1", stamp_ns)
        return f"{camera.width}x{camera.height}, {(view.alpha > 0.5).mean():.0%} of it filled"

    def save_map(self, request: SaveMap.Request, response: SaveMap.Response) -> str:
        path = _path(request.path)
        if path.exists() and not request.overwrite:
            raise Refused(f"path: {path} exists; set overwrite to replace it")
        tensors, meta = self._run(_copied_state)
        save_map(path, tensors, meta)  # here, not in the worker: mapping goes on while the disk works
        response.path, response.bytes = str(path), path.stat().st_size
        return f"wrote {path}"

    def load_map(self, request: LoadMap.Request, response: LoadMap.Response) -> str:
        path = _path(request.path)
        tensors, meta = load_map(path)
        worker = self._worker()

        def task(mapper: PanopticMapper) -> Any:
            before = _copied_state(mapper)
            try:
                mapper.restore_state(tensors, meta)
            except BaseException:
                mapper.restore_state(*before)
                raise
            worker.version += 1
            return mapper.stats(), len(mapper.objects())

        stats, num_objects = self._run(task)
        response.num_gaussians = stats.num_gaussians
        response.num_objects = num_objects
        response.num_keyframes = stats.num_keyframes
        return f"loaded {path}: {stats.num_gaussians} Gaussians, {num_objects} objects"

    def reset(self, request: Trigger.Request, response: Trigger.Response) -> str:
        worker = self._worker()

        def task(mapper: PanopticMapper) -> None:
            mapper.reset()
            worker.frames.clear()
            worker.reset_counters()
            self._on_reset()
            worker.version += 1

        self._run(task)
        return "the map is empty"

    def set_vocabulary(self, request: SetVocabulary.Request, response: SetVocabulary.Response) -> str:
        def task(mapper: PanopticMapper) -> LabelSpace:
            mapper.set_vocabulary(request.things, request.stuff)
            return mapper.label_space

        label_space = self._run(task)
        response.class_names = list(label_space.names[1:])
        response.class_ids = label_space.ids[1:].tolist()
        return f"{len(request.things)} things and {len(request.stuff)} stuff words; the map has {len(label_space) - 1}"

    def pause(self, request: SetBool.Request, response: SetBool.Response) -> str:
        worker = self._worker()
        if request.data:
            worker.pause()
            return "paused: frames are dropped until pause is called with false"
        worker.resume()
        return "mapping"

    def _worker(self) -> MappingWorker[PanopticMapper]:
        worker = self._get_worker()
        if worker is None:
            raise Refused("the mapper has not started: the label space is not known yet (labels_file or its topic)")
        return worker

    def _run(self, task: Callable[[PanopticMapper], ResultT]) -> ResultT:
        future = self._worker().submit(task)
        try:
            return future.result(self._timeout_s)
        except FutureTimeoutError:
            # A task that has started cannot be called back; it then ends without anybody waiting for it.
            state = "was called back" if future.cancel() else "goes on and its result is lost"
            raise Refused(f"the mapper was busy for more than {self._timeout_s:g} s; the request {state}") from None

    def _object_query(self, request: QueryObjects.Request) -> ObjectQuery:
        T = self._transforms.T_map_frame(request.frame_id)

        def in_map(point: Any) -> np.ndarray:
            return T[:3, :3] @ (point.x, point.y, point.z) + T[:3, 3]

        box = sphere = None
        if request.use_box:
            q, size = request.box_pose.orientation, request.box_size
            if (q.x, q.y, q.z, q.w) == (0, 0, 0, 0):
                q.w = 1.0
            box = BoxRegion(T @ matrix_from_pose(request.box_pose), np.array([size.x, size.y, size.z]))
        if request.use_sphere:
            sphere = SphereRegion(in_map(request.sphere_center), request.sphere_radius)
        return ObjectQuery(
            class_names=request.class_names,
            ids=tuple(request.ids),
            box=box,
            sphere=sphere,
            min_score=request.min_score,
            nearest_k=request.nearest_k,
            nearest_to=in_map(request.nearest_to),
        )


def _answering(handler: Callable[[Any, Any], str]) -> Callable[[Any, Any], Any]:
    """A service callback: what the handler returns is the message of a success, what it raises that of a failure."""

    def callback(request: Any, response: Any) -> Any:
        try:
            response.message = handler(request, response)
            response.success = True
        except (ValueError, OSError) as error:
            response = type(response)(success=False, message=str(error))
        except Exception as error:
            logger.exception("the service failed")
            response = type(response)(success=False, message=f"internal error: {error!r}")
        return response

    return callback


def _copied_state(mapper: PanopticMapper) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors, meta = mapper.export_state()
    meta = copy.deepcopy(meta) | {"config": to_dict(mapper.config)}
    return {name: np.array(values) for name, values in tensors.items()}, meta


def _path(text: str) -> Path:
    if not text:
        raise Refused("path: expected a file, got ''")
    return Path(text).expanduser().absolute()
