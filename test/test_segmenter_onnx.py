"""The segmenter 'onnx' on files with known outputs: heads, placement, classes, merging and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx_files import save_constant_network, save_mean_network  # noqa: E402

from panoptic_mapper.frame import Frame, PinholeCamera, Segmentation  # noqa: E402
from panoptic_mapper.label_space import LabelSpace, SemanticClass  # noqa: E402
from panoptic_mapper.label_spaces import load_label_space  # noqa: E402
from panoptic_mapper.segmenters import SegmenterConfig, check_segmentation, create_segmenter  # noqa: E402
from panoptic_mapper.segmenters.onnx import (  # noqa: E402
    OnnxConfig,
    joined_spaces,
    looked_up,
    numbered_classes,
    with_instances,
)
from panoptic_mapper.segmenters.onnx_heads import Instances, recognized_head  # noqa: E402
from panoptic_mapper.segmenters.onnx_session import chosen_providers, letterboxed, stretched  # noqa: E402

SIZE = (48, 64)  # (H, W) of the frame
COCO = load_label_space("coco_panoptic")
PERSON = np.zeros(SIZE, bool)
PERSON[24:40, 32:64] = True
PERSON[[24, 39], 32] = False  # where the mask, enlarged linearly, is cut at its corners
NAMES = {"names": "{0: 'chair', 1: 'couch', 2: 'person'}"}


def frame(color: np.ndarray | None = None) -> Frame:
    color = np.zeros((*SIZE, 3), np.uint8) if color is None else color
    height, width = color.shape[:2]
    camera = PinholeCamera(50, 50, width / 2, height / 2, width, height)
    return Frame(1, color, np.ones((height, width), np.float32), np.eye(4), camera)


def segmenter(min_area_px: int = 1, **settings):
    return create_segmenter(SegmenterConfig(name="onnx", onnx=OnnxConfig(**settings), min_area_px=min_area_px))


def rectangle_logits(size: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    logits = np.full((size, size), -10, np.float32)
    logits[y0:y1, x0:x1] = 10
    return logits


def yolo_outputs(end_to_end: bool) -> dict[str, np.ndarray]:
    """On a 64x64 input, in which a 48x64 image lies at rows 8..56, with prototypes of a quarter of the size.

    A chair (0.9) at rows 16..32, columns 0..32 whose box ends at column 24, a second box of it (0.6) to be suppressed,
    a person (0.8) in rows 32..48, columns 32..64, and a couch (0.2) under the threshold.
    """
    chair, person = rectangle_logits(16, 4, 8, 0, 8), rectangle_logits(16, 8, 12, 8, 16)
    boxes = np.array([[12, 24, 24, 16], [12, 24, 24, 17], [48, 40, 32, 16], [20, 20, 20, 20]], np.float32)
    scores = np.array([[0.9, 0, 0], [0.6, 0, 0], [0, 0, 0.8], [0, 0.2, 0]], np.float32)
    coefficients = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    prototypes = np.stack([chair, person])[None]
    if not end_to_end:
        return {"output0": np.concatenate([boxes, scores, coefficients], 1).T[None], "output1": prototypes}
    kept = [0, 2, 3]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    best = np.stack([scores.max(1), scores.argmax(1)], 1)
    rows = np.concatenate([corners, best, coefficients], 1)[kept].astype(np.float32)
    return {"output0": rows[None], "output1": prototypes}


@pytest.mark.parametrize("end_to_end", [False, True])
@pytest.mark.parametrize("input_shape", [(1, 3, 64, 64), (1, 64, 64, 3)])
def test_yolo(tmp_path: Path, end_to_end: bool, input_shape: tuple[int, ...]) -> None:
    file = save_constant_network(tmp_path / "y.onnx", yolo_outputs(end_to_end), input_shape, NAMES)
    made = segmenter(model=str(file))
    result = made.segment(frame())
    check_segmentation(result, frame(), made.label_space)
    assert made.label_space is COCO
    semantic = np.zeros(SIZE, int)
    semantic[8:24, 0:24] = COCO.index_of("chair")  # the mask goes on to column 32, the box does not
    semantic[PERSON] = COCO.index_of("person")
    instance = np.zeros(SIZE, int)
    instance[8:24, 0:24], instance[PERSON] = 1, 2
    np.testing.assert_array_equal(result.semantic, semantic)
    np.testing.assert_array_equal(result.instance, instance)
    np.testing.assert_allclose(result.confidence, np.choose(instance, [0, 0.9, 0.8]), atol=1e-6)


def test_yolo_in_an_image_of_another_size(tmp_path: Path) -> None:
    file = save_constant_network(tmp_path / "y.onnx", yolo_outputs(False), (1, 3, 64, 64), NAMES)
    result = segmenter(model=str(file)).segment(frame(np.zeros((96, 128, 3), np.uint8)))
    expected = np.zeros((96, 128), bool)
    expected[16:48, 0:48] = True
    np.testing.assert_array_equal(result.instance == 1, expected)


def test_free_input_sizes_are_640(tmp_path: Path) -> None:
    shape = ("batch", 3, "height", "width")
    file = save_constant_network(tmp_path / "y.onnx", yolo_outputs(True), shape, NAMES)
    assert segmenter(model=str(file))._instances.input_size == (640, 640)


def test_unnamed_yolo_classes_are_cocos_in_order(tmp_path: Path) -> None:
    outputs = yolo_outputs(False)
    rows = outputs["output0"][0]
    wide = np.zeros((4 + 80 + 2, 4), np.float32)
    wide[:4], wide[4 + 56], wide[4 + 62], wide[-2:] = rows[:4], rows[4], rows[6], rows[-2:]
    file = save_constant_network(tmp_path / "y.onnx", outputs | {"output0": wide[None]}, (1, 3, 64, 64))
    result = segmenter(model=str(file)).segment(frame())
    assert {COCO.names[i] for i in np.unique(result.semantic)} == {"unlabeled", "chair", "tv"}


def rfdetr_outputs(num_classes: int, classes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Two queries of three say something: the first (0.88) on the left half, the second (0.73) in the middle."""
    logits = np.full((1, 3, num_classes), -10, np.float32)
    logits[0, 0, classes[0]], logits[0, 1, classes[1]] = 2, 1
    masks = np.stack([rectangle_logits(16, *r) for r in ((0, 16, 0, 8), (0, 16, 4, 12), (0, 16, 0, 16))])[None]
    return {"dets": np.full((1, 3, 4), 0.5, np.float32), "labels": logits, "masks": masks}


def test_rfdetr_has_the_ids_of_coco(tmp_path: Path) -> None:
    file = save_constant_network(tmp_path / "r.onnx", rfdetr_outputs(91, (62, 1)), (1, 3, 32, 32))
    made = segmenter(model=str(file))
    result = made.segment(frame())
    # Stretched: a half of the input is a half of the image. The second keeps what the first, surer one leaves.
    instance = np.zeros(SIZE, int)
    instance[:, :32], instance[:, 32:48] = 1, 2
    np.testing.assert_array_equal(result.instance, instance)
    assert [COCO.names[i] for i in result.semantic[0, [0, 40, 60]]] == ["chair", "person", "unlabeled"]
    np.testing.assert_allclose(result.confidence[0, [0, 40, 60]], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1)), 0])


def test_rfdetr_of_ones_own_classes(tmp_path: Path) -> None:
    space = tmp_path / "mine.yaml"
    space.write_text("classes:\n  - {id: 1, name: crate, thing: true}\n  - {id: 2, name: pallet, thing: true}\n")
    outputs = rfdetr_outputs(3, (2, 1))
    file = save_constant_network(tmp_path / "r.onnx", outputs, (1, 3, 32, 32))
    made = segmenter(model=str(file), label_space=str(space))
    result = made.segment(frame())
    assert [made.label_space.names[i] for i in result.semantic[0, [0, 40]]] == ["pallet", "crate"]
    with pytest.raises(ValueError, match="does not say what its classes are called; give the setting label_space"):
        segmenter(model=str(file))


def red_right(path: Path) -> tuple[Path, Frame]:
    """A semantic network that calls red pixels the second class, and an image whose right half is red."""
    color = np.zeros((*SIZE, 3), np.uint8)
    color[:, 32:, 0] = 255
    return save_mean_network(path / "s.onnx", 32), frame(color)


def semantic_space(path: Path) -> str:
    file = path / "semantic.yaml"
    file.write_text(
        "classes:\n  - {id: 1, name: wall, thing: false}\n  - {id: 2, name: chair, thing: true, synonyms: [seat]}\n"
    )
    return str(file)


def test_semantic_alone(tmp_path: Path) -> None:
    file, image = red_right(tmp_path)
    made = segmenter(semantic_model=str(file), semantic_label_space=semantic_space(tmp_path), semantic_numbers="unit")
    result = made.segment(image)
    right = np.zeros(SIZE, int)
    right[:, 32:] = 1
    np.testing.assert_array_equal(result.semantic, 1 + right)
    np.testing.assert_array_equal(result.instance, right)  # the chair's pixels are one component
    # Logits of +-0.5 are a probability of 0.73.
    np.testing.assert_allclose(result.confidence[:, [0, 63]], 1 / (1 + np.exp(-1)), atol=1e-6)


def test_instances_are_laid_over_the_semantic_labels(tmp_path: Path) -> None:
    semantic_file, image = red_right(tmp_path)
    file = save_constant_network(tmp_path / "y.onnx", yolo_outputs(False), (1, 3, 64, 64), NAMES)
    made = segmenter(
        model=str(file),
        semantic_model=str(semantic_file),
        semantic_label_space=semantic_space(tmp_path),
        semantic_numbers="unit",
    )
    result = made.segment(image)
    names = made.label_space.names
    assert names[:3] == ("unlabeled", "wall", "chair")
    assert {"couch", "person"} <= set(names)
    assert "sky-other-merged" not in names  # stuff comes from the semantic network alone
    expected = np.full(SIZE, names.index("wall"))
    expected[:, 32:] = names.index("chair")
    expected[8:24, 0:24] = names.index("chair")
    expected[PERSON] = names.index("person")
    np.testing.assert_array_equal(result.semantic, expected)
    # The chairs above and below the person, which no instance covers, are components.
    assert [result.instance[y, x] for y, x in ((0, 0), (10, 10), (30, 50), (0, 50), (47, 50))] == [0, 1, 2, 3, 4]
    large = segmenter(
        min_area_px=round(0.2 * 640 * 480),
        semantic_model=str(semantic_file),
        model=str(file),
        semantic_label_space=semantic_space(tmp_path),
        semantic_numbers="unit",
    ).segment(image)
    assert large.instance.max() == 1  # the upper chair; everything else is smaller than a fifth of the image


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 1, 4, 4)])
def test_semantic_ids(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ids = np.zeros((4, 4), np.int64)
    ids[:, 2:] = 2
    ids[0, 0] = 99
    file = save_constant_network(
        tmp_path / "s.onnx", {"ids": ids.reshape(shape)}, (1, 3, 32, 32), input_type=onnx.TensorProto.UINT8
    )
    result = segmenter(semantic_model=str(file), semantic_label_space=semantic_space(tmp_path)).segment(frame())
    assert result.semantic[47, [0, 63]].tolist() == [0, 2]
    assert result.semantic[0, 0] == 0  # no class of the space
    assert result.confidence[47, [0, 63]].tolist() == [0, 0.5]


def test_hidden_and_small_instances_are_dropped() -> None:
    labels = Segmentation(np.full((4, 10), 1, np.int32), np.zeros((4, 10), np.int32))
    masks = np.zeros((4, 4, 10), bool)
    masks[0, :, :5] = True  # sure
    masks[1, :, 1:7] = True  # 16 of its 24 pixels are hidden
    masks[2, :2, 7:9] = True  # 4 pixels
    masks[3, :, 3:10] = True  # stuff
    found = Instances(np.array([2, 2, 2, 1]), np.array([0.9, 0.8, 0.7, 0.6], np.float32), masks)
    result = with_instances(labels, found, np.array([False, False, True]), min_area_px=5)
    np.testing.assert_array_equal(result.instance, masks[0])
    np.testing.assert_array_equal(result.semantic, 1 + masks[0])
    np.testing.assert_allclose(result.confidence, np.where(masks[0], np.float32(0.9), 1))
    assert (labels.semantic == 1).all()  # what was given stays


def test_spaces_of_two_networks_are_joined() -> None:
    semantic = LabelSpace.from_classes(
        [SemanticClass(9, "plant", False), SemanticClass(4, "sofa", True, ("couch",)), SemanticClass(1, "wall", False)]
    )
    instances = LabelSpace.from_classes(
        [
            SemanticClass(1, "couch", True),
            SemanticClass(2, "Plant", True),
            SemanticClass(3, "sky", False),
            SemanticClass(4, "cup", True),
        ]
    )
    joined, of_instance, of_semantic = joined_spaces(instances, semantic)
    assert joined.names == ("unlabeled", "plant", "sofa", "wall", "Plant (instance)", "cup")
    assert joined.ids.tolist() == [0, 9, 4, 1, 10, 11]
    assert of_instance.tolist() == [0, 2, 4, 0, 5]
    assert of_semantic.tolist() == [0, 1, 2, 3]
    assert joined_spaces(semantic, semantic)[0] is semantic


@pytest.mark.parametrize(
    ("num_classes", "space", "in_order", "expected"),
    [
        (80, "", True, {0: "person", 79: "toothbrush"}),
        (80, "", False, {0: "person", 79: "toothbrush"}),
        (91, "", False, {0: "unlabeled", 1: "person", 12: "unlabeled", 90: "toothbrush"}),
        (150, "", False, {0: "wall", 149: "flag"}),
        (151, "ade20k_150", False, {0: "unlabeled", 1: "wall"}),
        (0, "nyu40", False, {0: "unlabeled", 1: "wall", 40: "otherprop"}),
        (0, "scannet20", False, {3: "cabinet", 13: "unlabeled", 39: "otherfurniture"}),
        (0, "scannet20", True, {0: "wall", 19: "otherfurniture"}),
    ],
)
def test_numbers_of_networks(num_classes: int, space: str, in_order: bool, expected: dict[int, str]) -> None:
    found, table = numbered_classes((), num_classes, space, in_order)
    assert {n: found.names[i] for n, i in zip(expected, looked_up(table, np.array(list(expected))), strict=True)} == (
        expected
    )


def test_numbers_that_fit_no_class_are_told() -> None:
    with pytest.raises(ValueError, match="'nyu40' has 40 classes, ids up to 40; the network has 12"):
        numbered_classes((), 12, "nyu40")
    assert looked_up(np.array([3, 4]), np.array([-1, 0, 1, 2])).tolist() == [0, 3, 4, 0]


def test_letterboxing_keeps_proportions_and_centres() -> None:
    image = np.full((10, 40, 3), 7, np.uint8)
    boxed, placement = letterboxed(image, (64, 80))
    assert (placement.top_left, placement.content_size) == ((22, 0), (20, 80))
    assert (boxed[22:42] == 7).all()
    assert (np.delete(boxed, np.s_[22:42], axis=0) == 114).all()
    assert stretched(image, (64, 80))[0].shape == (64, 80, 3)


def test_providers() -> None:
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert chosen_providers("auto", everything)[0] == "CUDAExecutionProvider"  # TensorRT builds for minutes
    assert chosen_providers("auto", everything[2:]) == ("CPUExecutionProvider",)
    assert chosen_providers("tensorrt", everything) == tuple(everything)
    with pytest.raises(ValueError, match=r"provider 'cuda': this onnxruntime has CPUExecutionProvider; pip install"):
        chosen_providers("cuda", everything[2:])


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name your ONNX file in segmenter.onnx.model"):
        segmenter()
    with pytest.raises(ValueError, match=r"none.onnx: no such ONNX file"):
        segmenter(model=str(tmp_path / "none.onnx"))
    with pytest.raises(ValueError, match=r"yolo.pt: a pickle can run any code.* only ONNX files are read; export it"):
        segmenter(model=str(tmp_path / "yolo.pt"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"broken.onnx: onnxruntime cannot load it"):
        segmenter(model=str(broken))
    boxes_only = save_constant_network(
        tmp_path / "boxes.onnx", {"output0": np.zeros((1, 84, 9), np.float32)}, (1, 3, 64, 64)
    )
    with pytest.raises(ValueError, match=r"outputs with \[3\] dimensions are neither"):
        segmenter(model=str(boxes_only))
    vectors = save_constant_network(tmp_path / "vector.onnx", yolo_outputs(True), (1, 7))
    with pytest.raises(ValueError, match=r"expected one input, a batch of RGB images, got images \[1, 7\]"):
        segmenter(model=str(vectors))


def test_heads_are_told_apart() -> None:
    assert recognized_head([3, 4]) == recognized_head([4, 3]) == "yolo"
    assert recognized_head([3, 3, 4]) == "rfdetr"
