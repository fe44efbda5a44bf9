"""No baseline but a measure of the 2D labels: voxel voting that is told which true object each mask shows.

It reads the ground truth of every frame that it fuses. What it reaches is about what votes with these labels can reach
where no mask is ever given to a wrong object.
"""

from __future__ import annotations

import numpy as np

from benchmarks.baselines.voxel_voting import VoxelConfig, VoxelVoting
from panoptic_mapper.frame import Frame, Segmentation
from panoptic_mapper.label_space import LabelSpace


class TrueAssociation(VoxelVoting):
    """Fuses the frames given to `integrate`; classes, and which voxels a mask covers, are still what the masks say."""

    def __init__(self, label_space: LabelSpace, config: VoxelConfig | None = None) -> None:
        # Without false instances to hide, objects that few masks show can be shown sooner.
        super().__init__(label_space, config or VoxelConfig(min_hits=2))
        self._instance_of: dict[int, int] = {}  # by true id

    # It takes more than a frame on purpose: where a method is expected that has labels alone, it does not fit.
    def integrate(self, frame: Frame, truth: Segmentation) -> None:  # type: ignore[override]
        """Takes a frame in: surface and votes, each mask's for the true object that most of its pixels show.

        Args:
            truth: the frame's true labels [H, W], whose ids are those of the same objects in all frames.
        """
        self._final = None
        observation = self._observe(frame)
        true_ids = truth.instance * self.label_space.is_thing[truth.semantic]
        self._vote(observation, self._true_instances(observation.mask_image, observation.num_masks, true_ids))

    def _true_instances(
        self,
        mask_image: np.ndarray,  # [H, W] index of each pixel's mask, 0 = none
        num_masks: int,
        true_ids: np.ndarray,  # [H, W] true id of each pixel's thing, 0 = none
    ) -> np.ndarray:
        """The instance of each mask, int64 [K + 1], 0 = none: it overlaps no true thing."""
        both = (mask_image > 0) & (true_ids > 0)
        pairs, sizes = np.unique(np.stack([mask_image[both], true_ids[both]]), axis=1, return_counts=True)
        instance_of = np.zeros(num_masks + 1, np.int64)
        for mask, true_id in pairs[:, np.argsort(sizes, kind="stable")].T.tolist():  # the largest overlap comes last
            instance_of[mask] = self._instance_of.setdefault(true_id, len(self._instance_of) + 1)
        self._hits.grow(len(self._instance_of) + 1)
        return instance_of
