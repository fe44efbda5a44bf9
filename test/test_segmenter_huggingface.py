"""The segmenter 'huggingface': tiny random checkpoints of each family through the whole path from folder to labels."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

from tiny_panoptic_models import MAKERS, NUM_QUERIES, SIZE_PX, class_names, save_checkpoint  # noqa: E402

from panoptic_mapper.build import BuildConfig, create_mapper  # noqa: E402
from panoptic_mapper.config import load_config  # noqa: E402
from panoptic_mapper.datasets import open_dataset  # noqa: E402
from panoptic_mapper.frame import Frame, PinholeCamera  # noqa: E402
from panoptic_mapper.label_spaces import load_label_space  # noqa: E402
from panoptic_mapper.segmenters import (  # noqa: E402
    SegmenterConfig,
    check_segmentation,
    checkpoint,
    create_segmenter,
    huggingface,
)
from panoptic_mapper.segmenters.huggingface import HuggingfaceConfig, panoptic_task  # noqa: E402
from panoptic_mapper.segmenters.network_input import NetworkInput  # noqa: E402

COCO = load_label_space("coco_panoptic")
FAMILIES = tuple(MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for family in FAMILIES:
        (root / family).mkdir()
        made[family] = save_checkpoint(family, root / family)
    return made


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Blocks of random colours: smooth inside, so that resizing matters at the edges only."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((-(-height // 6), -(-width // 8), 1), np.uint8))[:height, :width]


def frame(color: np.ndarray) -> Frame:
    height, width = color.shape[:2]
    camera = PinholeCamera(50, 50, width / 2, height / 2, width, height)
    return Frame(1, color, np.ones((height, width), np.float32), np.eye(4), camera)


def segmenter(folder: Path | str, **settings):
    settings = {"min_visible_share": 0.0, "device": "cpu"} | settings  # random masks hide each other
    return create_segmenter(
        SegmenterConfig(name="huggingface", huggingface=HuggingfaceConfig(model=str(folder), **settings))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_panoptic_labels(folders: dict[str, Path], family: str) -> None:
    made = segmenter(folders[family])
    assert made.label_space is COCO
    noise = (np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8) for seed in range(20))
    # Random networks may call everything stuff; which images they do so with, depends on the library's version.
    image, result = next(
        (image, result) for image in map(frame, noise) if (result := made.segment(image)).instance.max() >= 2
    )
    check_segmentation(result, image, made.label_space)
    is_thing = COCO.is_thing[result.semantic]
    np.testing.assert_array_equal(result.instance > 0, is_thing)
    numbers = np.unique(result.instance[is_thing])
    assert numbers.tolist() == list(range(1, len(numbers) + 1))
    for number in numbers:
        mask = result.instance == number
        assert len(np.unique(result.semantic[mask])) == 1
        assert len(np.unique(result.confidence[mask])) == 1
    np.testing.assert_array_equal(result.confidence > 0, result.semantic > 0)
    assert result.confidence.max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_its_images_give(folders: dict[str, Path], family: str) -> None:
    made = segmenter(folders[family])
    images = [picture(seed=seed) for seed in range(3)]
    for alone, together in zip(map(frame, images), made.segment_images(images), strict=True):
        result = made.segment(alone)
        np.testing.assert_array_equal(result.instance, together.instance)
        np.testing.assert_array_equal(result.semantic, together.semantic)
        np.testing.assert_allclose(result.confidence, together.confidence, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected one size, got \[\(48, 64\), \(64, 48\)\]"):
        made.segment_images([picture(), picture(64, 48)])


def library_processor(folder: Path):
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder)
    except ImportError as error:  # ours needs no torchvision; older versions of the library's do
        pytest.skip(f"the library's image processors do not load here: {error}")


def library_labels(made, folder: Path, color: np.ndarray, first_id: int, void: int, **fused) -> tuple:
    """Class indices and instance ids (0 = stuff and void) by transformers' own post-processing."""
    processor = library_processor(folder)
    inputs = processor(color, return_tensors="pt")
    with torch.no_grad():
        outputs = made._model(pixel_values=inputs["pixel_values"])
    (found,) = processor.post_process_panoptic_segmentation(
        outputs, threshold=0.5, overlap_mask_area_threshold=0.0, target_sizes=[color.shape[:2]], **fused
    )
    ids = found["segmentation"].numpy().astype(int)
    index_of = {segment["id"]: segment["label_id"] + 1 for segment in found["segments_info"]} | {void: 0}
    assert min(index_of.keys() - {void}) == first_id
    semantic = np.vectorize(index_of.__getitem__)(ids)
    return semantic, np.where(COCO.is_thing[semantic], ids + 1 - first_id, 0)


def test_eomt_as_the_library_reads_it(folders: dict[str, Path]) -> None:
    """Its ids start at 0, and void is -1."""
    made = segmenter(folders["eomt"])
    color = picture(48, 64)
    stuff = np.flatnonzero(~COCO.is_thing[1:]).tolist()
    semantic, ids = library_labels(made, folders["eomt"], color, 0, -1, stuff_classes=stuff)
    result = made.segment(frame(color))
    assert (semantic == 0).any()
    np.testing.assert_array_equal(result.semantic, semantic)
    assert_same_partition(result.instance, ids)


def test_mask2former_as_the_library_reads_it(folders: dict[str, Path]) -> None:
    """Its ids start at 1, and void is 0. The library leaves no pixel void: what is labelled here is compared."""
    made = segmenter(folders["mask2former"])
    color = picture(64, 64)
    semantic, _ = library_labels(made, folders["mask2former"], color, 1, 0, label_ids_to_fuse=set())
    result = made.segment(frame(color))
    both = (result.semantic > 0) & (semantic > 0)
    assert both.mean() > 0.5
    assert (result.semantic[both] == semantic[both]).mean() > 0.98  # the library resizes by way of 384x384


def assert_same_partition(a: np.ndarray, b: np.ndarray) -> None:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).T
    assert len(pairs) == len(np.unique(a)) == len(np.unique(b))
    assert ((pairs[:, 0] == 0) == (pairs[:, 1] == 0)).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(48, 64), (60, 80), (97, 61)])
def test_images_are_prepared_as_the_library_does(folders: dict[str, Path], family: str, size: tuple[int, int]) -> None:
    color = picture(*size)
    image_size = SIZE_PX if family == "eomt" else None
    ours = NetworkInput.from_checkpoint(folders[family], image_size)([color], torch.device("cpu"), torch.float32)
    processor = library_processor(folders[family])
    extra = {"task_inputs": ["panoptic"]} if family == "oneformer" else {}
    theirs = processor(color, return_tensors="pt", **extra)["pixel_values"]
    assert ours.shape == theirs.shape
    # Resampling rounds differently by one in 255, which is 0.018 after normalisation.
    assert (ours - theirs).abs().max() < 0.04


def test_other_forms_of_size_settings(tmp_path: Path) -> None:
    def content(settings: dict, size: tuple[int, int], image_size: int | None = None) -> tuple[int, int]:
        common = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(common | settings))
        return NetworkInput.from_checkpoint(tmp_path, image_size).content_size(*size)

    assert content({"size": {"height": 384, "width": 384}}, (480, 640)) == (384, 384)
    assert content({"size": 320, "max_size": 400}, (480, 640)) == (300, 400)
    assert content({"size": {"shortest_edge": 240, "longest_edge": 9999}, "size_divisor": 32}, (480, 640)) == (256, 320)
    assert content({"do_resize": False, "size": {}}, (480, 640), 640) == (640, 640)
    for broken in ({"size": {"width": 3}}, {}, {"size": {"height": 3, "width": 3}, "image_std": None}):
        with pytest.raises(ValueError, match=r"preprocessor_config.json: not understood"):
            content(broken, (480, 640))
    with pytest.raises(ValueError, match="do_split_image is set: the checkpoint is for semantic"):
        content({"size": 3, "do_split_image": True}, (480, 640))


def test_settings_of_images_in_the_newer_file(folders: dict[str, Path], tmp_path: Path) -> None:
    old = json.loads((folders["eomt"] / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": old}))
    assert NetworkInput.from_checkpoint(tmp_path, 64) == NetworkInput.from_checkpoint(folders["eomt"], 64)
    with pytest.raises(ValueError, match=r"has no preprocessor_config.json"):
        NetworkInput.from_checkpoint(tmp_path / "nowhere")


def copied(folder: Path, target: Path, **config) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    settings = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(settings))
    return target


def test_large_frames_get_labels_at_the_resolution_of_the_network(folders: dict[str, Path]) -> None:
    made = segmenter(folders["eomt"])
    result = made.segment(frame(picture(240, 320)))
    assert result.semantic.shape == (240, 320)
    np.testing.assert_array_equal(result.semantic[::5, ::5], result.semantic[4::5, 4::5])  # 48x64, each 5x5 times


def test_eomt_without_its_annealed_shares_of_masked_attention(folders: dict[str, Path], tmp_path: Path) -> None:
    """Some checkpoints lack them; they are 0 after training, where the library would fill in 1."""
    folder = copied(folders["eomt"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    assert weights.pop("attn_mask_probs").tolist() == [0.0]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected = segmenter(folders["eomt"]).logits([picture()])
    found = segmenter(folder).logits([picture()])
    torch.testing.assert_close(found[1], expected[1])


def test_a_checkpoint_without_its_head_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["mask2former"], tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["class_predictor.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the network's weights \(class_predictor.weight"):
        segmenter(folder)


def test_unsupported_families_and_folders_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    other = copied(folders["eomt"], tmp_path / "segformer", model_type="segformer")
    with pytest.raises(ValueError, match=r"is a 'segformer' model; supported are eomt, .*oneformer"):
        segmenter(other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty/config.json: not the configuration of a transformers model"):
        segmenter(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"model '/no/such/folder': expected the folder of a checkpoint, a hub id"):
        segmenter("/no/such/folder")


def test_pickles_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["eomt"], tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"weights only as pytorch_model.bin: a pickle can run any code"):
        segmenter(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))  # a pickle under another name
    with pytest.raises(ValueError, match="cannot be loaded"):
        segmenter(folder)
    with pytest.raises(ValueError, match=r"pytorch_model.bin: a pickle can run any code"):
        segmenter(folder / "pytorch_model.bin")


def test_unnamed_classes_are_known_by_their_number(folders: dict[str, Path], tmp_path: Path) -> None:
    unnamed = {i: f"LABEL_{i}" for i in range(133)}
    folder = copied(folders["eomt"], tmp_path / "model", id2label=unnamed)
    made = segmenter(folder)
    assert made.label_space is COCO
    result, expected = made.segment(frame(picture())), segmenter(folders["eomt"]).segment(frame(picture()))
    np.testing.assert_array_equal(result.semantic, expected.semantic)
    with pytest.raises(ValueError, match=r"label space 'nyu40' has 40 classes, the model has 133"):
        segmenter(folder, label_space="nyu40")
    (tmp_path / "seven").mkdir()
    seven = save_checkpoint("eomt", tmp_path / "seven", {i: f"LABEL_{i}" for i in range(7)})
    with pytest.raises(ValueError, match=r"the model's 7 classes have no names; write a label space file"):
        segmenter(seven)


def test_classes_of_ones_own(tmp_path: Path, caplog) -> None:
    (tmp_path / "model").mkdir()
    folder = save_checkpoint("eomt", tmp_path / "model", {0: "Crate, box", 1: "ground", 2: "ghost"})
    with pytest.raises(ValueError, match=r"no shipped label space has all of the model's classes \(Crate, box, ground"):
        segmenter(folder)
    space = tmp_path / "mine.yaml"
    space.write_text(
        "classes:\n  - {id: 5, name: floor, thing: false, synonyms: [ground]}\n  - {id: 6, name: crate, thing: true}\n"
    )
    with caplog.at_level(logging.INFO):
        made = segmenter(folder, label_space=str(space))
    assert made._index_of_class.tolist() == [2, 1, 0]
    assert "stay unlabeled: ghost" in caplog.text
    with pytest.raises(ValueError, match=r"label space 'nyu40' has none of the model's classes"):
        segmenter(copied(folder, tmp_path / "other", id2label={0: "x", 1: "y", 2: "z"}), label_space="nyu40")


def test_published_names_of_ade20k_are_known() -> None:
    """As OneFormer's checkpoints have them: several words, and other ones than the semantic models'."""
    space = load_label_space("ade20k_150")
    names = [f"{name}, other word" for name in space.names[1:]]
    names[8], names[37], names[92], names[138] = "window ", "tub", "clothes", "trash can"
    found, indices = checkpoint.resolve_classes(tuple(names), "")
    assert found is space
    assert indices.tolist() == list(range(1, 151))


@pytest.mark.parametrize("family", ["eomt", "maskformer"])
def test_bfloat16_gives_nearly_the_same(folders: dict[str, Path], family: str) -> None:
    color = picture()
    exact = segmenter(folders[family]).logits([color])
    rough = segmenter(folders[family], dtype="bfloat16").logits([color])
    for a, b in zip(exact[:2], rough[:2], strict=True):
        assert (a - b.float()).abs().mean() < 0.05 * a.abs().mean()
    assert rough[1].dtype == torch.bfloat16


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gpu_gives_nearly_the_same_in_half_precision(folders: dict[str, Path], family: str) -> None:
    color = picture()
    exact = segmenter(folders[family])
    for dtype, tolerance in (("float32", 0.01), ("float16", 0.1)):
        made = segmenter(folders[family], device="cuda", dtype=dtype)
        _, masks, _ = made.logits([color])
        assert masks.device.type == "cuda"
        expected = exact.logits([color])[1]
        # Masked attention of random networks may turn over at a threshold: in most queries it does not.
        close = (masks.float().cpu() - expected).abs().mean((2, 3)) < tolerance * expected.abs().mean((2, 3))
        assert close.float().mean() > 0.5
        check_segmentation(made.segment(frame(color)), frame(color), COCO)


def test_the_task_of_oneformer_in_tokens(folders: dict[str, Path], tmp_path: Path) -> None:
    tokens = panoptic_task(folders["oneformer"])
    # Start, the, task, is, panoptic, end: numbers 0, 2, 3, 4, 5, 1 of the test's vocabulary; then zeros.
    assert tokens.tolist() == [[0, 2, 3, 4, 5, 1] + [0] * 71]
    folder = copied(folders["oneformer"], tmp_path / "model")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="OneFormer needs its tokenizer"):
        segmenter(folder)


def test_compiling_happens_once_and_before_the_first_frame(folders: dict[str, Path], monkeypatch) -> None:
    compiled = []

    def compile_(model, **options):
        compiled.append((options, calls := []))
        return lambda **inputs: calls.append(inputs["pixel_values"].shape) or model(**inputs)

    monkeypatch.setattr(huggingface.torch, "compile", compile_)
    made = segmenter(folders["eomt"], compile=True)
    ((options, calls),) = compiled
    assert options == {"dynamic": False}
    assert calls == [(1, 3, SIZE_PX, SIZE_PX)] * huggingface.WARM_UP_RUNS
    made.segment(frame(picture()))
    assert len(calls) == huggingface.WARM_UP_RUNS + 1


def test_what_is_missing_is_told(folders: dict[str, Path], monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"huggingface.device 'cuda': torch finds no NVIDIA GPU"):
        segmenter(folders["eomt"], device="cuda")
    monkeypatch.setitem(checkpoint.FAMILIES, "eomt", "EomtForTheFuture")
    with pytest.raises(ValueError, match=r"transformers [\d.]+ has no EomtForTheFuture"):
        segmenter(folders["eomt"])
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers .*pip install 'panoptic_mapper\[huggingface\]'"):
        segmenter(folders["eomt"])


def test_one_line_of_config_maps_with_it(folders: dict[str, Path]) -> None:
    """The synthetic room, once with COCO's classes and once translated."""
    dataset = open_dataset("synthetic:width=64,height=48,num_frames=60")
    for output_space, expected in (("", COCO), ("home", load_label_space("home"))):
        words = [f"segmenter.huggingface.model={folders['eomt']}", "segmenter.huggingface.min_visible_share=0.0"]
        words += ["segmenter.name=huggingface", f"segmenter.output_space='{output_space}'"]
        config = load_config(BuildConfig, None, [*words, "mapper.optimizer.steps_per_keyframe=1"])
        mapper = create_mapper(config.mapper, config.segmenter, dataset.label_space, "cpu")
        assert mapper.label_space is expected
        for index in (0, 8):
            mapper.integrate(dataset[index])
        snapshot = mapper.snapshot()
        assert (snapshot.class_indices > 0).mean() > 0.1
        assert snapshot.label_space is expected


def test_checkpoints_are_small(folders: dict[str, Path]) -> None:
    assert all((folder / "model.safetensors").stat().st_size < 4 * 0.8e6 for folder in folders.values())
    assert len(class_names()) == 133
    assert NUM_QUERIES == 12
