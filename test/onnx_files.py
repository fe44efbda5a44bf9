"""ONNX files whose networks give fixed outputs, whatever image they are fed, but feed on it: written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_constant_network(
    file: Path,
    outputs: dict[str, np.ndarray],  # with the batch in front
    input_shape: tuple[int | str, ...],  # e.g. (1, 3, 64, 64) or ("batch", "height", "width", 3)
    metadata: dict[str, str] | None = None,
    input_type: int = TensorProto.FLOAT,
) -> Path:
    """A network that adds zero times the mean of its input to each of the outputs."""
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants = [numpy_helper.from_array(np.float32(0), "zero")]
    infos = []
    for name, value in outputs.items():
        is_float = value.dtype.kind == "f"
        constants.append(numpy_helper.from_array(value.astype(np.float32), f"{name}_value"))
        nodes.append(helper.make_node("Add", [f"{name}_value", "nothing"], [f"{name}_sum"]))
        kind = TensorProto.FLOAT if is_float else TensorProto.INT64
        nodes.append(helper.make_node("Cast", [f"{name}_sum"], [name], to=kind))
        infos.append(helper.make_tensor_value_info(name, kind, value.shape))
    images = helper.make_tensor_value_info("images", input_type, input_shape)
    model = helper.make_model(
        helper.make_graph(nodes, "constant", [images], infos, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    for key, value in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file


def save_mean_network(file: Path, size_px: int) -> Path:
    """A semantic network of two classes: 1 where the input's first channel is above 0.5, else 0. NCHW, 0..1."""
    shape = (1, 1, size_px, size_px)
    nodes = [
        helper.make_node("Slice", ["images", "start", "end", "axis"], ["red"]),
        helper.make_node("Sub", ["red", "half"], ["above"]),
        helper.make_node("Neg", ["above"], ["below"]),
        helper.make_node("Concat", ["below", "above"], ["logits"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([0]), "start"),
        numpy_helper.from_array(np.array([1]), "end"),
        numpy_helper.from_array(np.array([1]), "axis"),
        numpy_helper.from_array(np.full(shape, 0.5, np.float32), "half"),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, size_px, size_px))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 2, size_px, size_px))],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file
