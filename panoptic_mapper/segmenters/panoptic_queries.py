"""From the queries of a mask classification network (MaskFormer and what came after it) to panoptic labels.

Each query has a class with a score and a mask. A pixel goes to the query with the highest score times mask probability,
if that query's mask covers it (probability >= 0.5); queries that lose most of their mask to others are dropped. Stuff
of one class is one segment. The families' own functions agree on this rule but not on ids, on void, or on padding, and
fetch numbers from the GPU query by query; this one does it for all families, in one transfer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from panoptic_mapper.frame import Segmentation

MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class MaskGrid:
    """Which part of the mask logits is the image."""

    input_size: tuple[int, int]  # (H, W) of the network's input, padding included
    content_size: tuple[int, int]  # (H, W) of the image in it, from the top left
    output_size: tuple[int, int]  # (H, W) of the labels


def panoptic_from_queries(
    class_logits: Tensor,  # [Q, C + 1], the last class is "nothing"
    mask_logits: Tensor,  # [Q, h, w]
    index_of_class: np.ndarray,  # [C] int: the index in the label space of each of the network's classes, 0 = none
    is_thing: np.ndarray,  # [L] bool: whether a class of the label space is a thing
    grid: MaskGrid,
    min_score: float,
    min_visible_share: float,
) -> Segmentation:
    """Panoptic labels of one image: instances are numbered 1..K, 0 is stuff and void; void has confidence 0.

    A segment's confidence is its class score times the mean probability of its mask.
    """
    scores, classes = class_logits.float().softmax(-1).max(-1)
    kept = (classes < class_logits.shape[1] - 1) & (scores > min_score)
    scores, classes = scores[kept], classes[kept]
    if len(scores) == 0:
        empty = np.zeros(grid.output_size, np.int32)
        return Segmentation(empty, empty.copy(), empty.astype(np.float32))
    probabilities = _resized(mask_logits[kept].float(), grid).sigmoid()  # [K, H, W]
    winner = (scores[:, None, None] * probabilities).argmax(0)  # [H, W]
    probability = probabilities.gather(0, winner[None])[0]
    solid = probability >= MASK_THRESHOLD

    num = len(scores)
    won = torch.bincount(winner.flatten(), minlength=num)
    own = (probabilities >= MASK_THRESHOLD).flatten(1).sum(1)
    visible = torch.bincount(winner[solid], minlength=num)
    mass = torch.bincount(winner[solid], weights=probability[solid], minlength=num)
    alive = (visible > 0) & (won > min_visible_share * own)
    confidence = scores * mass / visible.clamp(min=1)
    query = torch.where(solid & alive[winner], winner + 1, 0)  # [H, W], 0 = void

    index = np.concatenate([[0], index_of_class[classes.cpu().numpy()]]).astype(np.int32)
    index[1:][~alive.cpu().numpy()] = 0
    is_instance = is_thing[index]
    instance = np.where(is_instance, np.cumsum(is_instance), 0).astype(np.int32)
    confidence_of = np.concatenate([[0.0], confidence.cpu().numpy()]).astype(np.float32) * (index > 0)
    query_image = query.to(torch.int32).cpu().numpy()
    return Segmentation(index[query_image], instance[query_image], confidence_of[query_image])


def _resized(logits: Tensor, grid: MaskGrid) -> Tensor:
    """Logits [K, h, w] of the input's masks at the size of the labels, without the padding."""
    rows, columns = grid.content_size
    if grid.content_size != grid.input_size:
        logits = F.interpolate(logits[None], grid.input_size, mode="bilinear")[0, :, :rows, :columns]
    if logits.shape[1:] != grid.output_size:
        logits = F.interpolate(logits[None], grid.output_size, mode="bilinear")[0]
    return logits
