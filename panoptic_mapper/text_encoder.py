"""A text encoder through `transformers`: CLIP's text tower, or a sentence encoder (the mean over a BERT's tokens)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from panoptic_mapper.hub_models import find_checkpoint
from panoptic_mapper.model_files import check_weights
from panoptic_mapper.text_query import TextQueryConfig


class TransformersEncoder:
    """Loads its model when it is first asked, from safetensors only. Runs on the CPU: texts are short.

    Calls raise ValueError where transformers is missing or the model cannot be loaded.
    """

    def __init__(self, config: TextQueryConfig) -> None:
        self._config = config
        self._loaded: tuple[Any, Any] | None = None  # tokenizer, model

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [n, D] float32."""
        if self._loaded is None:
            self._loaded = _load(self._config)
        tokenizer, model = self._loaded
        tokens = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        output = model(**tokens)
        if hasattr(output, "text_embeds"):
            vectors = output.text_embeds
        else:
            mask = tokens["attention_mask"][..., None]
            vectors = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        return F.normalize(vectors.float(), dim=1).numpy()


def _load(config: TextQueryConfig) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError:
        raise ValueError("text encoder: transformers is missing; pip install 'panoptic_mapper[huggingface]'") from None
    folder = find_checkpoint(config.encoder, config.offline)
    try:
        check_weights(folder)
        kind = transformers.AutoConfig.from_pretrained(folder).model_type
        model_class = transformers.CLIPTextModelWithProjection if kind.startswith("clip") else transformers.AutoModel
        model = model_class.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True), model
    except (OSError, ValueError) as error:
        raise ValueError(f"text encoder: cannot load {config.encoder}: {error}") from error
