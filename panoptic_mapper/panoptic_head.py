"""The learned maps from features to labels, shared by all Gaussians and queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panoptic_mapper.gaussian_map import INSTANCE_DIM, SEMANTIC_DIM
from panoptic_mapper.label_space import UNLABELED, LabelSpace

CODE_GAIN = 8.0  # logit of a class for the feature that is its own unit code
NUM_CANDIDATES = 1024  # random codes of which a new class gets the one that is most unlike the others
MANY_CLASSES = 64  # beyond so many, their codes crowd the sphere
UNLABELED_LOGIT = 2.0  # of "unlabeled", where labels were seen
UNSEEN_LOGIT = 6.0  # of "unlabeled" where none were (feature 0): all classes of things together do not outweigh it
SEEN_NORM = UNLABELED_LOGIT / CODE_GAIN  # of a feature for which its class is as likely as "unlabeled"
FEATURE_LOGIT = 4.0  # similarity logit that a newly labelled Gaussian gets for its own query, and minus that for others
OWN_WEIGHT = 30.0  # how much more the logit of the own query counts than that of another one


@dataclass(frozen=True)
class PanopticColumns:
    """The columns of panoptic distributions and images: [stuff classes (S) | unassigned thing | queries in view (Q)].

    "unlabeled" is the first of the stuff classes. Semantic images are [stuff classes (S) | thing classes (T)].
    """

    stuff_classes: Tensor  # [S] class index of each stuff column
    thing_classes: Tensor  # [T] class index of each thing column of semantic images

    @staticmethod
    def of(is_thing: Tensor) -> PanopticColumns:
        """The columns for classes of which `is_thing` [C] are things."""
        return PanopticColumns((~is_thing).nonzero()[:, 0], is_thing.nonzero()[:, 0])

    @property
    def num_stuff(self) -> int:
        return len(self.stuff_classes)

    @property
    def first_query(self) -> int:
        return self.num_stuff + 1

    @cached_property
    def semantic_of_classes(self) -> Tensor:
        """The column [C] of each class in semantic images; -1 for "unlabeled", which is no target."""
        columns = torch.cat([self.stuff_classes, self.thing_classes]).argsort()
        columns[UNLABELED].fill_(-1)
        return columns

    @cached_property
    def stuff_of_classes(self) -> Tensor:
        """The panoptic column [C] of each stuff class; -1 for things and for "unlabeled"."""
        return self.semantic_of_classes.index_fill(0, self.thing_classes, -1)

    def things_of(self, class_probs: Tensor) -> Tensor:
        """The probabilities of the thing classes [..., T] among those of all [..., C]."""
        return class_probs.index_select(
            -1, self.thing_classes
        )  # whose gradient a GPU adds up faster than that of [...]

    def queries_of(self, columns: Tensor) -> Tensor:
        """The queries in view of columns (any shape, number within the view); -1 = none."""
        return (columns - self.first_query).clamp_min(-1)

    def classes_of(self, columns: Tensor, thing_probs: Tensor) -> Tensor:
        """Class indices of columns [...]: of unassigned things and queries the likeliest of `thing_probs` [..., T]."""
        stuff = self.stuff_classes[columns.clamp_max(self.num_stuff - 1)]
        if len(self.thing_classes) == 0:
            return stuff
        return torch.where(columns < self.num_stuff, stuff, self.thing_classes[thing_probs.argmax(-1)])


def spread_codes(num_classes: int, generator: torch.Generator) -> Tensor:
    """Unit vectors [C, SEMANTIC_DIM] far from each other, so that no two classes start alike."""
    codes = F.normalize(torch.randn(num_classes, SEMANTIC_DIM, generator=generator), dim=1)
    # Each is pushed away from those on its side of the sphere. Of many, only the near ones may push: all together they
    # would drive the codes into one point.
    step, power = (0.1, 1) if num_classes <= MANY_CLASSES else (0.2, 3)
    for _ in range(200):
        gram = codes @ codes.T
        gram.fill_diagonal_(0)
        codes = F.normalize(codes - step * gram.clamp_min(0) ** power @ codes, dim=1)
    return codes


def code_gain(num_classes: int) -> float:
    """Length of the codes: with more classes more of them share what the own one does not have."""
    return CODE_GAIN + 2 * max(0.0, math.log(num_classes / MANY_CLASSES))


class PanopticHead(nn.Module):
    """Class codes (semantic feature to class logits) and the key projection of query embeddings."""

    is_thing: Tensor

    def __init__(self, label_space: LabelSpace, generator: torch.Generator, device: torch.device):
        super().__init__()
        num_classes = len(label_space)
        self.codes = nn.Parameter(code_gain(num_classes) * spread_codes(num_classes, generator))
        self.key_projection = nn.Parameter(torch.eye(INSTANCE_DIM))
        self.register_buffer("is_thing", torch.from_numpy(label_space.is_thing))
        self.to(device)
        self.columns = PanopticColumns.of(self.is_thing)

    @property
    def num_classes(self) -> int:
        return len(self.codes)

    @torch.no_grad()
    def grow(self, label_space: LabelSpace) -> None:
        """Adds the classes that a space has behind those of now.

        Each gets the code that is least like any other: features that were learned for other classes say next to
        nothing for it. Where there is no class yet, nothing was learned, and all codes are spread as at the start. The
        parameter stays the same object, of another shape.
        """
        generator = torch.Generator().manual_seed(self.num_classes)
        codes, gain = self.codes.detach().cpu(), code_gain(len(label_space))
        if self.num_classes == 1:
            codes = gain * spread_codes(len(label_space), generator)
        while len(codes) < len(label_space):
            candidates = F.normalize(torch.randn(NUM_CANDIDATES, SEMANTIC_DIM, generator=generator), dim=1)
            likeness = (candidates @ F.normalize(codes[UNLABELED + 1 :], dim=1).T).amax(1)
            codes = torch.cat([codes, gain * candidates[likeness.argmin()][None]])
        self.codes.data = codes.to(self.codes.device)
        self.is_thing = torch.from_numpy(label_space.is_thing).to(self.codes.device)
        self.columns = PanopticColumns.of(self.is_thing)

    def class_probabilities(self, semantics: Tensor) -> Tensor:
        """p_g [V, C] of semantic features [V, SEMANTIC_DIM].

        A feature begins at 0 and grows with the labels that reach it. Where none did, nearly all is "unlabeled".
        """
        logits = semantics @ self.codes.T
        fall = (UNSEEN_LOGIT - UNLABELED_LOGIT) / SEEN_NORM**2
        unlabeled = torch.rsub(semantics.square().sum(1, keepdim=True), UNSEEN_LOGIT, alpha=fall)
        unlabeled = unlabeled.clamp_min(UNLABELED_LOGIT)
        return torch.cat([unlabeled, logits[:, UNLABELED + 1 :]], dim=1).softmax(-1)

    def keys(self, embeddings: Tensor) -> Tensor:
        """LN(W e_q) [Q, INSTANCE_DIM] of query embeddings."""
        return F.layer_norm(embeddings @ self.key_projection.T, (INSTANCE_DIM,))

    @torch.no_grad()
    def semantic_features(self, class_indices: Tensor, confidence: Tensor) -> Tensor:
        """Features [n, SEMANTIC_DIM] for which `class_indices` [n] win; unlabeled gives 0."""
        confidence = confidence * (class_indices != UNLABELED)
        return F.normalize(self.codes, dim=1)[class_indices] * confidence[:, None]

    @torch.no_grad()
    def instance_features(self, keys: Tensor, own: Tensor) -> Tensor:
        """Features [n, INSTANCE_DIM] that score high with their own query and low with the others.

        The least-squares solution of F keys^T = +FEATURE_LOGIT for `own` [n] (index into keys [Q, E]), minus that
        for all others; own = -1 (no query) gives 0. The own query counts OWN_WEIGHT times: more queries than feature
        dimensions cannot all be told apart by their keys, and the others are mostly far away.
        """
        if len(keys) == 0:
            return keys.new_zeros(len(own), INSTANCE_DIM)
        left = torch.addmm(_ridge(keys.device), keys.T, keys)
        left = torch.baddbmm(left.expand(len(keys), -1, -1), keys[:, :, None], keys[:, None, :], alpha=OWN_WEIGHT - 1)
        right = torch.sub(FEATURE_LOGIT * (OWN_WEIGHT + 1) * keys, keys.sum(0), alpha=FEATURE_LOGIT)  # [Q, E]
        # The ridge makes `left` regular; asking whether it is would make the host wait for a GPU.
        solutions = torch.linalg.solve_ex(left, right).result  # [Q, E]
        return F.pad(solutions, (0, 0, 0, 1))[own]  # -1 reads the last, which is 0


@lru_cache
def _ridge(device: torch.device) -> Tensor:
    """[E, E]"""
    return 1e-2 * INSTANCE_DIM * torch.eye(INSTANCE_DIM, device=device)
