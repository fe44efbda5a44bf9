"""Light and camera response that change from frame to frame, as with a carried lamp and automatic exposure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CYCLES = np.array([3.0, 7.0, 13.0])  # slow changes: waves per loop of the walk
LAMP_REACH_M = 2.0  # distance at which the lamp has half its strength
LAMP_OFFSET_M = 0.7  # of the lamp from the camera


@dataclass(frozen=True)
class Light:
    """The light of one frame."""

    ambient: float  # factor of the fixed light
    lamp: float  # strength of a lamp right before a surface that faces it
    lamp_position: np.ndarray  # [3] m, world
    gains: np.ndarray  # [3] factor of each colour channel: exposure and white balance

    def on(self, points: np.ndarray, normals: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        """What the camera makes [M, 3] of white points [M, 3] with unit normals [M, 3] in a fixed light `fixed` [M, 1].

        The lamp throws no shadows.
        """
        rays = self.lamp_position - points
        distance = np.linalg.norm(rays, axis=1, keepdims=True)
        cosine = np.clip((rays * normals).sum(1, keepdims=True) / np.maximum(distance, 1e-3), 0, None)
        return self.gains * (self.ambient * fixed + self.lamp * cosine / (1 + (distance / LAMP_REACH_M) ** 2))


def light_of_frame(index: int, num_frames: int, camera_position: np.ndarray, strength: float, seed: int) -> Light:
    """The light of frame `index`, the same whatever the order in which frames are asked for.

    Args:
        index: of `num_frames` frames of a loop.
        camera_position: [3] m, world.
        strength: 1 is strong: exposure varies by 0.7 stops (standard deviation) slowly and by 0.35 from one frame to
            the next, white balance by 10 % per channel, and a lamp that circles the camera gives at 2 m as
            much as the fixed light has left, which is 60 %.
        seed: of the sequence.
    """
    phases = np.random.default_rng([seed, 2]).uniform(0, 2 * np.pi, (6, len(CYCLES)))
    waves = np.sin(2 * np.pi * CYCLES * index / num_frames + phases).mean(1) * np.sqrt(2 * len(CYCLES))  # [6] std 1
    jitter = np.random.default_rng([seed, 3, index]).standard_normal(4)
    exposure = 0.7 * waves[0] + 0.35 * jitter[0]  # stops
    balance = 0.1 * (0.8 * waves[1:4] + 0.6 * jitter[1:])
    toward = np.array([np.cos(3 * waves[4]), np.sin(3 * waves[4]), 0.6 * waves[5]])
    return Light(
        ambient=1 - 0.4 * min(strength, 1.0),
        lamp=1.2 * strength,
        lamp_position=camera_position + LAMP_OFFSET_M * toward / np.linalg.norm(toward),
        gains=2 ** (strength * exposure) * np.exp(strength * balance),
    )
