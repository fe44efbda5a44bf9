"""Grounding DINO and SAM through `transformers`, which is an optional requirement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.hub_models import find_checkpoint
from panoptic_mapper.model_files import check_weights
from panoptic_mapper.segmenters.grounded_sam import Boxes, GroundedSamConfig, GroundedSamSegmenter
from panoptic_mapper.vocabulary import label_space_of_words

MASK_BATCH = 16  # boxes that are decoded at once: bounds the memory
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # with which SAM 2 was trained
# Classes of transformers by the kind of model in a checkpoint's config: the model, and what prepares its inputs.
Classes = Mapping[str, tuple[str, str | None]]
DINO: tuple[str, str | None] = ("AutoModelForZeroShotObjectDetection", "AutoProcessor")
DETECTORS: Classes = {"grounding-dino": DINO, "mm-grounding-dino": DINO}
SAMS = {"sam": ("SamModel", "SamProcessor"), "sam2": ("Sam2Model", None)}
SAMS["sam2_video"] = SAMS["sam2"]  # the published checkpoints of SAM 2 say that they are for videos


def create_grounded_sam(config: GroundedSamConfig, min_area_px: int) -> GroundedSamSegmenter:
    """Loads both models, from safetensors only.

    Raises:
        ValueError: transformers is not installed, a model cannot be loaded or is of another kind, or a word is wrong.
    """
    label_space_of_words(config.things, config.stuff)  # a wrong word is told before models are fetched for minutes
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    precision = config.precision if config.precision != "auto" else "bf16" if device == "cuda" else "fp32"
    detector = _loaded(config.detector, config.offline, DETECTORS)
    sam = _loaded(config.masker, config.offline, SAMS)
    masker = (Sam if sam[1] is not None else Sam2)(*sam, device, precision)
    return GroundedSamSegmenter(GroundingDino(*detector, device, precision), masker, config, min_area_px)


def _loaded(name: str, offline: bool, classes: Classes) -> tuple[Any, Any]:
    """Model and processor (or None) of a checkpoint, by the kind of model that its config names."""
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "segmenter 'grounded_sam': transformers is missing; pip install 'panoptic_mapper[huggingface]'"
        ) from None
    folder = find_checkpoint(name, offline)
    try:
        check_weights(folder)
        kind = transformers.AutoConfig.from_pretrained(folder).model_type
        if kind not in classes:
            raise ValueError(f"expected a model of the kind {' or '.join(classes)}, got {kind}")
        model_class, processor_class = classes[kind]
        model = getattr(transformers, model_class).from_pretrained(folder, use_safetensors=True, local_files_only=True)
        if processor_class is None:
            return model, None
        return model, getattr(transformers, processor_class).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"segmenter 'grounded_sam': cannot load {name}: {error}") from error


class _Model:
    """A model on its device, called without gradients and in its precision."""

    def __init__(self, model: Any, processor: Any, device: str, precision: str) -> None:
        self.model = model.to(device).eval()
        self.processor, self.device = processor, device
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def autocast(self) -> AbstractContextManager[Any]:
        """In which the model is called: its weights stay as they are, most of its work is done in its precision."""
        return nullcontext() if self._dtype is None else torch.autocast(self.device, self._dtype)

    @torch.inference_mode()
    def __call__(self, **inputs: Any) -> Any:
        with self.autocast():
            return self.model(**{n: v.to(self.device) if isinstance(v, Tensor) else v for n, v in inputs.items()})


class GroundingDino(_Model):
    """Finds phrases in images."""

    def detect(self, color: np.ndarray, phrases: Sequence[str], threshold: float) -> Boxes:
        """Boxes whose likeliest phrase has at least that score, in px of the image [H, W, 3]."""
        height, width = color.shape[:2]
        image = self.processor.image_processor(images=np.ascontiguousarray(color), return_tensors="pt")
        found = []
        for first, chunk in self._chunks(phrases):
            text, tokens = self._text(chunk)
            output = self(**image, **text)
            probs = output.logits[0].float().sigmoid()  # [num boxes, max_text_len]
            own = tokens.to(probs)  # [P, max_text_len] 1 where a token is part of a phrase
            mean = torch.where(probs.isfinite(), probs, 0) @ (own / own.sum(1, keepdim=True)).T
            phrase = mean.argmax(1)
            score = (probs * own[phrase]).amax(1)
            cx, cy, w, h = output.pred_boxes[0].float().unbind(1)
            corners = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=1)
            keep = (score >= threshold) & corners.isfinite().all(1)
            boxes = corners[keep] * corners.new_tensor([width, height, width, height])
            found.append(Boxes(boxes.cpu().numpy(), score[keep].cpu().numpy(), first + phrase[keep].cpu().numpy()))
        return Boxes(*(np.concatenate([getattr(f, name) for f in found]) for name in vars(found[0])))

    def _chunks(self, phrases: Sequence[str]) -> list[tuple[int, Sequence[str]]]:
        """The phrases in runs that fit into the model's text, each with the number of its first phrase."""
        longest = self.model.config.max_text_len - 2  # CLS and SEP
        lengths = [len(self.processor.tokenizer(f"{p}.", add_special_tokens=False)["input_ids"]) for p in phrases]
        starts, used = [0], 0
        for number, length in enumerate(lengths):
            if used + length > longest and number > starts[-1]:
                starts.append(number)
                used = 0
            used += length
        return [(a, phrases[a:b]) for a, b in zip(starts, [*starts[1:], len(phrases)], strict=True)]

    def _text(self, phrases: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's text input "chair. coffee cup.", and which tokens [P, max_text_len] bool are of which phrase."""
        longest = self.model.config.max_text_len
        text = ". ".join(phrases) + "."
        inputs = dict(
            self.processor.tokenizer(
                text, return_tensors="pt", return_offsets_mapping=True, truncation=True, max_length=longest
            )
        )
        offsets = inputs.pop("offset_mapping")[0]  # [T, 2] first and last character + 1 of each token
        starts = np.cumsum([0, *(len(p) + 2 for p in phrases[:-1])])
        tokens = torch.zeros(len(phrases), longest, dtype=torch.bool)
        for row, (start, phrase) in enumerate(zip(starts.tolist(), phrases, strict=True)):
            inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= start + len(phrase)) & (offsets[:, 1] > offsets[:, 0])
            tokens[row, : len(offsets)] = inside
        return inputs, tokens


class Sam2(_Model):
    """Makes masks of boxes by SAM 2.

    The library's preparation of images needs torchvision; this is all that there is to it.
    """

    @torch.inference_mode()
    def masks(self, color: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Masks [K, H, W] bool of boxes [K, 4] px in an image [H, W, 3]; the image is encoded once."""
        size = self.model.config.prompt_encoder_config.image_size  # of the square that the model sees
        image = torch.from_numpy(color.copy()).to(self.device).permute(2, 0, 1)[None].float() / 255
        image = F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (image.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        with self.autocast():
            embeddings = self.model.get_image_embeddings((image - mean) / std)
        height, width = color.shape[:2]
        scale = np.array([size / width, size / height] * 2)
        prompts = torch.from_numpy(boxes * scale).float()
        masks = [
            self(input_boxes=part[None], image_embeddings=embeddings, multimask_output=False).pred_masks[0].float()
            for part in prompts.split(MASK_BATCH)
        ]  # each [k, 1, size / 4, size / 4] logits
        logits = F.interpolate(torch.cat(masks), (height, width), mode="bilinear", align_corners=False)
        return (logits[:, 0] > 0).cpu().numpy()


class Sam(_Model):
    """Makes masks of boxes by SAM."""

    @torch.inference_mode()
    def masks(self, color: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Masks [K, H, W] bool of boxes [K, 4] px in an image [H, W, 3]; the image is encoded once."""
        inputs = self.processor(images=np.ascontiguousarray(color), input_boxes=[boxes.tolist()], return_tensors="pt")
        with self.autocast():
            embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device))
        masks = [
            self(input_boxes=part, image_embeddings=embeddings, multimask_output=False).pred_masks.float().cpu()
            for part in inputs["input_boxes"].float().split(MASK_BATCH, dim=1)
        ]  # each [1, k, 1, size / 4, size / 4] logits
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        return self.processor.image_processor.post_process_masks(torch.cat(masks, dim=1), *sizes)[0][:, 0].numpy()
