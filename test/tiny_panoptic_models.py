"""Checkpoints of every supported family with random weights, small enough for tests, as a hub would serve them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from panoptic_mapper.label_spaces import load_label_space

SIZE_PX = 64  # of the input, a square
NUM_QUERIES = 12
SWIN = {
    "image_size": SIZE_PX,
    "embed_dim": 12,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
VOCABULARY = ["<|startoftext|>", "<|endoftext|>", "the</w>", "task</w>", "is</w>", "panoptic</w>"]


def class_names() -> dict[int, str]:
    return dict(enumerate(load_label_space("coco_panoptic").names[1:]))


def save_checkpoint(family: str, folder: Path, id2label: dict[int, str] | None = None) -> Path:
    """Writes config.json, model.safetensors, preprocessor_config.json, and OneFormer's tokenizer."""
    torch.manual_seed(0)
    names = id2label if id2label is not None else class_names()
    model = MAKERS[family](names)
    with torch.no_grad():
        model.get_parameter(CLASS_HEADS[family] + ".weight").mul_(400)
        model.get_parameter(CLASS_HEADS[family] + ".bias")[-1] = -1e4  # never "nothing"
        # Random queries all attend to everything alike and say nearly the same; sharper attention parts them.
        for name, parameter in model.named_parameters():
            if family in ("maskformer", "oneformer") and ("queries_embedder" in name or SHARPENED.search(name)):
                parameter.mul_(30)
            if family == "maskformer" and name.startswith("mask_embedder") and name.endswith("bias"):
                parameter.zero_()
        if family == "eomt":
            model.attn_mask_probs.zero_()  # as at the end of training
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(family)))
    if family == "oneformer":
        save_tokenizer(folder)
    return folder


def preprocessor(family: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "rescale_factor": 1 / 255,
        "resample": 2,
        "size": {"shortest_edge": SIZE_PX, "longest_edge": SIZE_PX},
    }
    if family == "eomt":
        return settings | {"do_pad": True, "image_processor_type": "EomtImageProcessorFast"}
    return settings | ({} if family == "oneformer" else {"size_divisor": 32})


def eomt(names: dict[int, str]) -> Any:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    return EomtForUniversalSegmentation(
        EomtConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIZE_PX,
            patch_size=8,
            num_blocks=1,
            num_queries=NUM_QUERIES,
            id2label=names,
        )
    )


def mask2former(names: dict[int, str]) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=SwinConfig(**SWIN),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            dim_feedforward=32,
            num_queries=NUM_QUERIES,
            id2label=names,
        )
    )


def maskformer(names: dict[int, str]) -> Any:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, SwinConfig

    layer = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    decoder = DetrConfig(
        **layer, encoder_layers=1, decoder_layers=2, d_model=32, num_queries=NUM_QUERIES, backbone_config=SwinConfig()
    )
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=SwinConfig(**SWIN),
            decoder_config=decoder,
            fpn_feature_size=32,
            mask_feature_size=32,
            id2label=names,
        )
    )


def oneformer(names: dict[int, str]) -> Any:
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, SwinConfig

    return OneFormerForUniversalSegmentation(
        OneFormerConfig(
            backbone_config=SwinConfig(**SWIN),
            conv_dim=32,
            mask_dim=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            encoder_layers=1,
            decoder_layers=3,
            query_dec_layers=1,
            num_attention_heads=2,
            dim_feedforward=32,
            num_queries=NUM_QUERIES,
            text_encoder_width=32,
            text_encoder_num_layers=1,
            text_encoder_vocab_size=len(VOCABULARY),
            text_encoder_proj_layers=1,
            is_training=False,
            id2label=names,
        )
    )


def save_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer that knows the words of the task and nothing else, letter by letter merged."""
    letters = sorted({c for word in ("the", "task", "is", "panoptic") for c in word})
    merges, tokens = [], []
    for word in ("the", "task", "is", "panoptic"):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    rest = [t for t in dict.fromkeys([*letters, *(c + "</w>" for c in letters), *tokens]) if t not in VOCABULARY]
    vocabulary = {token: i for i, token in enumerate([*VOCABULARY, *rest])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = special | {"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


MAKERS = {"eomt": eomt, "mask2former": mask2former, "maskformer": maskformer, "oneformer": oneformer}
SHARPENED = re.compile(r"decoder\.layers.*\.[qk]_proj\.weight")
CLASS_HEADS = {
    "eomt": "class_predictor",
    "mask2former": "class_predictor",
    "maskformer": "class_predictor",
    "oneformer": "model.transformer_module.decoder.class_embed",
}
