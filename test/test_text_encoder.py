"""Text encoders of random weights, through the code that loads the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="the optional transformers is not installed")
from tiny_grounded_sam import DOT, tokenizer
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection

from panoptic_mapper.text_encoder import TransformersEncoder
from panoptic_mapper.text_query import TextQueryConfig, match_text
from panoptic_mapper.vocabulary import label_space_of_words

TEXTS = ["chair", "coffee cup", "green sofa chairs"]


def saved_model(kind: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": DOT + 1, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "bert":
        model = BertModel(BertConfig(**sizes, intermediate_size=32))
    else:
        ends = {"bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0}
        model = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **ends, intermediate_size=32, projection_dim=16))
    model.eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_vectors_are_those_of_the_model_for_each_text_alone(kind, tmp_path) -> None:
    model = saved_model(kind, tmp_path)
    vectors = TransformersEncoder(TextQueryConfig(encoder=str(tmp_path)))(TEXTS)
    assert vectors.shape == (3, 32 if kind == "bert" else 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with torch.no_grad():
        for text, vector in zip(TEXTS, vectors, strict=True):  # without the padding of the batch
            output = model(**tokenizer()(text, return_tensors="pt"))
            expected = output.last_hidden_state[0].mean(0) if kind == "bert" else output.text_embeds[0]
            np.testing.assert_allclose(vector, expected / expected.norm(), atol=1e-5)
    assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 0.999  # texts differ


def test_a_query_through_a_real_encoder(tmp_path) -> None:
    saved_model("bert", tmp_path)
    encoder = TransformersEncoder(TextQueryConfig(encoder=str(tmp_path)))
    space = label_space_of_words(["chair", "coffee cup"], ["floor"])
    config = TextQueryConfig(min_similarity=-1, max_classes=3)
    matches = match_text("green", space, encoder, config)
    vectors = encoder(["green", "chair", "coffee cup", "floor"])
    order = np.argsort(-(vectors[1:] @ vectors[0])) + 1
    assert [m.class_index for m in matches] == order.tolist()


@pytest.mark.parametrize(("name", "words"), [("nobody/nothing", "is not in"), ("pickled", "a pickle can run any code")])
def test_what_cannot_be_loaded_is_told(name, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if name == "pickled":
        model = saved_model("bert", tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        name = str(tmp_path)
    encoder = TransformersEncoder(TextQueryConfig(encoder=name, offline=True))
    with pytest.raises(ValueError, match=words):
        encoder(["chair"])
