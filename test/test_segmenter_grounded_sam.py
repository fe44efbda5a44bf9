"""The segmenter "grounded_sam": its logic with detectors that are known, and the real models with random weights."""

from __future__ import annotations

from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from test_segmenter_process import frame_of

from panoptic_mapper.config import load_config
from panoptic_mapper.frame import Frame
from panoptic_mapper.segmenters import SegmenterConfig, create_background_segmenter, create_segmenter
from panoptic_mapper.segmenters.base import check_segmentation
from panoptic_mapper.segmenters.grounded_sam import Boxes, GroundedSamConfig, GroundedSamSegmenter

HEIGHT, WIDTH = 48, 64
WORDS = {"things": ("chair", "couch|sofa", "coffee cup", "potted plants"), "stuff": ("floor", "wall")}
PHRASES = ("chair", "couch", "sofa", "coffee cup", "potted plants", "floor", "wall")


class KnownBoxes:
    """Finds what it is told; remembers what it was asked for."""

    def __init__(self, *found: tuple[tuple[int, int, int, int], float, int]) -> None:
        self.found = found
        self.phrases: list[str] = []

    def detect(self, color: np.ndarray, phrases: Any, threshold: float) -> Boxes:
        self.phrases = list(phrases)
        boxes = np.array([box for box, _, _ in self.found], np.float32).reshape(-1, 4)
        scores = np.array([score for _, score, _ in self.found], np.float32)
        return Boxes(boxes, scores, np.array([phrase for _, _, phrase in self.found], np.int64))


class Rectangles:
    """The mask of a box is the box."""

    def __init__(self) -> None:
        self.boxes = np.zeros((0, 4))

    def masks(self, color: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        self.boxes = boxes
        masks = np.zeros((len(boxes), *color.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        return masks


def frame() -> Frame:
    return frame_of(1, HEIGHT, WIDTH)


def made(*found: Any, min_area_px: int = 1, **settings: Any) -> GroundedSamSegmenter:
    config = GroundedSamConfig(**{**WORDS, **settings})
    return GroundedSamSegmenter(KnownBoxes(*found), Rectangles(), config, min_area_px)


def test_boxes_become_things_and_stuff_with_their_scores() -> None:
    segmenter = made(((0, 24, 64, 48), 0.36, 5), ((10, 20, 20, 40), 0.49, 0), ((40, 20, 50, 40), 0.64, 2))
    labels = segmenter.segment(frame())
    check_segmentation(labels, frame(), segmenter.label_space)
    assert tuple(segmenter._detector.phrases) == PHRASES
    names = np.array(segmenter.label_space.names)[labels.semantic]
    assert (names[30, 15], names[30, 45], names[45, 2], names[2, 2]) == ("chair", "couch", "floor", "unlabeled")
    assert labels.instance[30, 15] != labels.instance[30, 45] > 0
    assert labels.instance[45, 2] == 0
    np.testing.assert_allclose(labels.confidence[30, [15, 45, 2]], [0.7, 0.8, 0.6], rtol=1e-5)


def test_oversize_things_go_and_oversize_stuff_stays() -> None:
    labels = made(((0, 0, 64, 48), 0.9, 0), ((0, 0, 64, 48), 0.5, 6), max_box_share=0.8).segment(frame())
    assert (labels.semantic == 6).all()  # the wall


def test_boxes_are_cut_at_the_border_and_double_or_empty_ones_go() -> None:
    segmenter = made(
        ((-10, -10, 20, 20), 0.5, 0), ((-9, -9, 20, 20), 0.4, 1), ((30, 30, 30, 40), 0.9, 0), ((70, 0, 90, 9), 0.9, 0)
    )
    labels = segmenter.segment(frame())
    assert segmenter._masker.boxes.tolist() == [[0, 0, 20, 20]]
    assert labels.instance.max() == 1


def test_only_the_surest_boxes_get_masks() -> None:
    found = [((8 * i, 0, 8 * i + 6, 6), 0.3 + 0.05 * i, 0) for i in range(5)]
    segmenter = made(*found, max_boxes=2)
    segmenter.segment(frame())
    assert segmenter._masker.boxes[:, 0].tolist() == [32, 24]


def test_where_nothing_is_found_there_are_no_labels() -> None:
    segmenter = made()
    segmenter._masker = None  # it is not asked
    labels = segmenter.segment(frame())
    assert labels.semantic.max() == labels.instance.max() == 0
    assert labels.semantic.shape == (HEIGHT, WIDTH)


def test_small_segments_are_measured_in_pixels_of_vga() -> None:
    for size, is_kept in (((3, 1), False), ((2, 2), True)):  # 400 px of 640x480 are 4 of 64x48
        labels = made(((0, 0, *size), 0.5, 0), min_area_px=400).segment(frame())
        assert (labels.instance.max() == 1) == is_kept


def test_other_words_give_other_classes() -> None:
    segmenter = made(((0, 0, 20, 20), 0.5, 1))
    segmenter.set_vocabulary(["lamp|light", "vase"], [])
    labels = segmenter.segment(frame())
    assert segmenter._detector.phrases == ["lamp", "light", "vase"]
    assert segmenter.label_space.names[labels.semantic[5, 5]] == "lamp"
    with pytest.raises(ValueError, match="at least one word"):
        segmenter.set_vocabulary([], [])
    assert segmenter.label_space.names == ("unlabeled", "lamp", "vase")


def test_the_default_words_are_a_vocabulary() -> None:
    space = GroundedSamSegmenter(KnownBoxes(), Rectangles(), GroundedSamConfig(), 1).label_space
    assert {"chair", "floor", "refrigerator"} <= set(space.names)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers", reason="the optional transformers is not installed")
    from tiny_grounded_sam import save_grounding_dino, save_sam, save_sam2

    folder = tmp_path_factory.mktemp("checkpoints")
    savers = {"dino": save_grounding_dino, "sam": save_sam, "sam2": save_sam2}
    return {name: save(folder / name) for name, save in savers.items()}


def grounded_sam_config(checkpoints: dict[str, Path], masker: str = "sam2", **settings: Any) -> SegmenterConfig:
    words = [f"grounded_sam.detector={checkpoints['dino']}", f"grounded_sam.masker={checkpoints[masker]}"]
    words += [f"grounded_sam.{name}={list(values)}" for name, values in WORDS.items()]
    words += [f"grounded_sam.{name}={value}" for name, value in ({"device": "cpu"} | settings).items()]
    patient = ["background.start_wait_s=300", "background.timeout_s=300"]  # on a busy machine
    return load_config(SegmenterConfig, None, ["name=grounded_sam", "min_area_px=1", *patient, *words])


def loaded(checkpoints: dict[str, Path], masker: str = "sam2", **settings: Any) -> GroundedSamSegmenter:
    return create_segmenter(grounded_sam_config(checkpoints, masker, **settings))


@pytest.mark.parametrize("masker", ["sam", "sam2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_random_weights_give_labels_that_fit(checkpoints, masker, precision) -> None:
    segmenter = loaded(checkpoints, masker, box_threshold=0.0, precision=precision)
    labels = segmenter.segment(frame())
    check_segmentation(labels, frame(), segmenter.label_space)
    assert (labels.semantic > 0).mean() > 0.05
    again = segmenter.segment(frame())
    np.testing.assert_array_equal(again.semantic, labels.semantic)
    assert segmenter.label_space.names == (
        "unlabeled",
        "chair",
        "couch",
        "coffee cup",
        "potted plants",
        "floor",
        "wall",
    )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("masker", ["sam", "sam2"])
def test_the_gpu_finds_nearly_the_same(checkpoints, masker) -> None:
    here = loaded(checkpoints, masker, box_threshold=0.0)
    boxes = here._detector.detect(frame().color, PHRASES, 0.0)
    for precision, tolerance_px in (("fp32", 0.1), ("bf16", 2.0)):
        there = loaded(checkpoints, masker, box_threshold=0.0, device="cuda", precision=precision)
        found = there._detector.detect(frame().color, PHRASES, 0.0)
        assert there._detector.model.device.type == "cuda"
        assert len(found.boxes) == len(boxes.boxes)
        # The proposals are the surest of all places: in random networks a few of them change with the last digits.
        close = np.abs(found.boxes[:, None] - boxes.boxes[None]).max(-1).min(1) < tolerance_px
        assert close.mean() > 0.5
        if precision == "fp32":  # the sign of a random network's logits is a matter of the last digits
            masks = there._masker.masks(frame().color, boxes.boxes[:20])
            assert (masks == here._masker.masks(frame().color, boxes.boxes[:20])).mean() > 0.99
        labels = there.segment(frame())
        check_segmentation(labels, frame(), there.label_space)
        assert (labels.semantic > 0).mean() > 0.05


def test_phrases_are_cut_into_texts_that_the_detector_can_read(checkpoints) -> None:
    detector = loaded(checkpoints)._detector
    chunks = detector._chunks(PHRASES)
    assert [first for first, _ in chunks] == [0, 5]  # 12 tokens and CLS, SEP; the sixth phrase would make 16
    assert [p for _, chunk in chunks for p in chunk] == list(PHRASES)
    inputs, tokens = detector._text(chunks[0][1])
    words = detector.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    of_phrases = [[words[i] for i in row.nonzero()[:, 0].tolist()] for row in tokens]
    assert of_phrases == [["chair"], ["couch"], ["sofa"], ["coffee", "cup"], ["potted", "plant", "##s"]]
    long = " ".join(["chair"] * 40)  # longer than any text may be
    assert detector._chunks([long, "cup"]) == [(0, [long]), (1, ["cup"])]
    assert detector._text([long])[1].sum() == detector.model.config.max_text_len - 2


def test_boxes_and_scores_are_those_of_the_library(checkpoints) -> None:
    """For one-word phrases, whose scores are the tokens' scores; the library's text for them is decoded tokens."""
    detector = loaded(checkpoints)._detector
    phrases, threshold = ["chair", "sofa", "floor"], 0.5
    found = detector.detect(frame().color, phrases, threshold)
    inputs = detector.processor(images=frame().color, text="chair. sofa. floor.", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = detector.model(**inputs)
    allowed = torch.isin(inputs["input_ids"][0], torch.tensor([200, 202, 206]))  # not the full stops
    output.logits[..., : len(allowed)][..., ~allowed] = -1e4
    (expected,) = detector.processor.post_process_grounded_object_detection(
        output, inputs["input_ids"], threshold, threshold, target_sizes=[(HEIGHT, WIDTH)]
    )
    assert len(found.boxes) == len(expected["boxes"]) > 3
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=1e-2)
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-4)
    for phrase, text in zip(found.phrases, expected["text_labels"], strict=True):
        assert phrases[phrase] in text.split()


def test_sam2_masks_are_those_of_the_model_in_any_batch(checkpoints) -> None:
    masker = loaded(checkpoints)._masker
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (20, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 18, (20, 2))], axis=1).astype(np.float32)
    masks = masker.masks(frame().color, boxes)
    assert masks.shape == (20, HEIGHT, WIDTH)
    assert 0 < masks.mean() < 1
    for k in (0, 17):  # more than one batch
        np.testing.assert_array_equal(masker.masks(frame().color, boxes[k : k + 1])[0], masks[k])
    # An image that has the model's size needs no resampling: its masks come from the model as it is.
    square = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(square) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = masker.model(
            pixel_values=pixels, input_boxes=torch.from_numpy(boxes)[None], multimask_output=False
        ).pred_masks[0]
    expected = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear")[:, 0] > 0
    assert (torch.from_numpy(masker.masks(square, boxes)) == expected).float().mean() > 0.999


def test_in_a_process_of_its_own_it_takes_new_words(checkpoints) -> None:
    config = grounded_sam_config(checkpoints, box_threshold=0.0)
    here, labels = create_segmenter(config), Queue()
    segmenter = create_background_segmenter(config)
    try:
        segmenter.on_labels = labels.put
        assert segmenter.label_space.names == here.label_space.names
        segmenter.segment(frame())
        np.testing.assert_array_equal(labels.get(timeout=60).segmentation.semantic, here.segment(frame()).semantic)
        for takes_words in (segmenter, here):
            takes_words.set_vocabulary(["table"], ["wall"])
        segmenter.segment(frame())
        late = labels.get(timeout=60)
        assert late.label_space.names == ("unlabeled", "table", "wall")
        np.testing.assert_array_equal(late.segmentation.semantic, here.segment(frame()).semantic)
    finally:
        segmenter.close()


def test_what_cannot_be_loaded_is_told(checkpoints, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for changed, words in (
        ({"detector": "nobody/nothing", "offline": "true"}, "nobody/nothing: is not in"),
        ({"detector": checkpoints["sam"]}, "expected a model of the kind grounding-dino or mm-grounding-dino, got sam"),
        ({"masker": "dino"}, "expected a model of the kind sam or sam2 or sam2_video, got grounding-dino"),
    ):
        with pytest.raises(ValueError, match=words):
            loaded(checkpoints, **changed)


def test_a_wrong_word_is_told_before_models_are_looked_for() -> None:
    words = ["grounded_sam.detector=/nowhere", "grounded_sam.things=[chair, Chair]"]
    with pytest.raises(ValueError, match="vocabulary: 'chair' comes 2 times"):
        create_segmenter(load_config(SegmenterConfig, None, ["name=grounded_sam", *words]))


def test_pickled_weights_are_refused(checkpoints, tmp_path) -> None:
    from tiny_grounded_sam import save_sam2
    from transformers import Sam2Model

    folder = save_sam2(tmp_path / "pickled")
    state = Sam2Model.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle can run any code"):
        loaded({**checkpoints, "sam2": folder})


def test_without_transformers_the_way_to_it_is_told(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'panoptic_mapper\[huggingface\]'"):
        create_segmenter(SegmenterConfig(name="grounded_sam"))
