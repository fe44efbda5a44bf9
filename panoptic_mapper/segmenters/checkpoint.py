"""Checkpoints of mask classification networks in a folder: which family, which classes, and the network itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_mapper.label_space import UNLABELED, LabelSpace
from panoptic_mapper.label_spaces import load_label_space, shipped_label_spaces
from panoptic_mapper.model_files import check_weights

logger = logging.getLogger(__name__)

# Classes of the transformers library by the model_type of a checkpoint's config.json.
FAMILIES = {
    "eomt": "EomtForUniversalSegmentation",
    "eomt_dinov3": "EomtDinov3ForUniversalSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "maskformer": "MaskFormerForInstanceSegmentation",
    "oneformer": "OneFormerForUniversalSegmentation",
}
INSTALL_HINT = "pip install 'panoptic_mapper[huggingface]'"
UNNAMED = "LABEL_"  # how transformers calls the classes of a checkpoint that does not name them
SPACE_BY_NUMBER = {133: "coco_panoptic", 150: "ade20k_150"}  # of classes, where they have no names
# EoMT's share of masked attention per block, annealed to 0 in training and left out of some checkpoints; and what only
# training needs.
NOT_IN_CHECKPOINTS = ("attn_mask_probs", "criterion.empty_weight", "position_ids")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder's config.json says."""

    folder: Path
    family: str  # a key of FAMILIES
    class_names: tuple[str, ...]  # [C]
    image_size: Any  # the only size of the input, None = any

    @staticmethod
    def from_folder(folder: Path) -> Checkpoint:
        """Reads config.json and looks for weights.

        Raises:
            ValueError: no config.json, weights only as pickle, or a family that is not supported.
        """
        file = folder / "config.json"
        try:
            config = json.loads(file.read_text())
            family = config["model_type"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}: not the configuration of a transformers model ({error!r})") from error
        if family not in FAMILIES:
            raise ValueError(
                f"{folder}: is a '{family}' model; supported are {', '.join(FAMILIES)} (panoptic checkpoints)."
                " For another model use the segmenter 'onnx', or 'topic' with a node of your own"
            )
        check_weights(folder)
        names = config.get("id2label") or {i: f"{UNNAMED}{i}" for i in range(config.get("num_labels", 2))}
        is_fixed = family.startswith("eomt")  # a plain ViT with learned positions
        return Checkpoint(folder, family, _ordered(names, file), config.get("image_size", 640) if is_fixed else None)

    def load(self) -> Any:
        """The network, in float32 on the CPU, ready for inference.

        Raises:
            ValueError: transformers is not installed or lacks the family, or the weights are not those of the network.
        """
        try:
            import transformers
        except ImportError as error:
            raise ValueError(f"segmenter 'huggingface' needs transformers ({error}); {INSTALL_HINT}") from error
        model_class = getattr(transformers, FAMILIES[self.family], None)
        if model_class is None:
            raise ValueError(f"transformers {transformers.__version__} has no {FAMILIES[self.family]}; {INSTALL_HINT}")
        try:
            model, report = model_class.from_pretrained(
                self.folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # the library's errors have no common base
            raise ValueError(f"{self.folder}: cannot be loaded ({type(error).__name__}: {error})") from error
        missing = [key for key in report["missing_keys"] if not key.endswith(NOT_IN_CHECKPOINTS)]
        if missing:
            raise ValueError(
                f"{self.folder}: lacks {len(missing)} of the network's weights ({', '.join(sorted(missing)[:3])}, ...);"
                " they would be random. Is it a backbone without its segmentation head?"
            )
        if hasattr(model, "attn_mask_probs"):
            _settle_masked_attention(model, was_saved=not any("attn_mask_probs" in k for k in report["missing_keys"]))
        return model.eval().requires_grad_(False)


def _settle_masked_attention(model: Any, was_saved: bool) -> None:
    """Makes EoMT's shares of masked attention plain numbers: asking a tensor stalls the GPU and breaks its graph."""
    shares = model.attn_mask_probs.tolist() if was_saved else [0.0] * len(model.attn_mask_probs)
    del model.attn_mask_probs
    model.attn_mask_probs = shares


def resolve_classes(names: tuple[str, ...], label_space: str) -> tuple[LabelSpace, np.ndarray]:
    """The label space of a network, and the index in it of each of its classes (int32 [C]; UNLABELED = none).

    Args:
        names: of the network's classes.
        label_space: name or file of their space; empty = the shipped one that has them all, each as a class of its own.

    Raises:
        ValueError: the space has none of the classes, or none was given and no shipped one has them all.
    """
    is_unnamed = all(name.startswith(UNNAMED) for name in names)
    if is_unnamed:
        label_space = label_space or SPACE_BY_NUMBER.get(len(names), "")
        if not label_space:
            raise ValueError(f"the model's {len(names)} classes have no names; {_HOW_TO_NAME}")
        space = load_label_space(label_space)
        if len(space) - 1 != len(names):
            raise ValueError(f"label space '{label_space}' has {len(space) - 1} classes, the model has {len(names)}")
        return space, np.arange(1, len(space), dtype=np.int32)
    if label_space:
        space = load_label_space(label_space)
        indices = _indices(names, space)
        unknown = [name for name, index in zip(names, indices, strict=True) if index == UNLABELED]
        if len(unknown) == len(names):
            raise ValueError(f"label space '{label_space}' has none of the model's classes ({', '.join(names[:5])}...)")
        if unknown:
            logger.info("classes of the model that '%s' lacks stay unlabeled: %s", label_space, ", ".join(unknown))
        return space, indices
    spaces = [load_label_space(name) for name in shipped_label_spaces()]
    whole = [space for space in spaces if len(set(_indices(names, space).tolist()) - {UNLABELED}) == len(names)]
    if not whole:
        raise ValueError(
            f"no shipped label space has all of the model's classes ({', '.join(names[:5])}...); {_HOW_TO_NAME}"
        )
    # Names count more than synonyms; of equals the smallest: ADE20K's first 31 are also among its 150.
    best = max(whole, key=lambda space: (len({n.lower() for n in names} & set(space.names)), -len(space)))
    return best, _indices(names, best)


_HOW_TO_NAME = "write a label space file with them and name it in the setting `label_space` (docs/segmenters.md)"


def _indices(names: tuple[str, ...], space: LabelSpace) -> np.ndarray:
    """Of each name, or of the first of several that commas part ("road, route"), its index in the space."""
    words = (name.split(",")[0].strip().lower() for name in names)
    return np.array([space.index_of_word.get(word, UNLABELED) for word in words], np.int32)


def _ordered(names: Mapping[Any, str], file: Path) -> tuple[str, ...]:
    by_number = {int(k): str(v) for k, v in names.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError(f"{file}: id2label: expected numbers 0..{len(by_number) - 1}, got {sorted(by_number)[:5]}...")
    return tuple(by_number[i] for i in range(len(by_number)))
