"""Frames of a video by number, decoded one after the other: forwards is cheap, backwards begins anew."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


class VideoFrames:
    """A video file that OpenCV can decode.

    Raises:
        ValueError: naming the file that is missing or no video.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        self.path = path
        self._capture: cv2.VideoCapture | None = None
        self._next = 0  # number of the frame that would be decoded next
        self._open()

    def read(self, number: int) -> np.ndarray:  # [H, W, 3] uint8 RGB
        """Frame `number`, from 0. Seeking by time is not exact in all videos, and so frames are counted.

        Raises:
            ValueError: the video ends before, or is damaged there.
        """
        if number < self._next or self._capture is None:
            self._open()
        assert self._capture is not None
        while self._next < number:
            if not self._capture.grab():
                raise ValueError(f"{self.path}: expected a frame {number}, but the video ends after {self._next}")
            self._next += 1
        ok, image = self._capture.read()
        if not ok:
            raise ValueError(f"{self.path}: frame {number}: the video ends or is damaged here")
        self._next += 1
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _open(self) -> None:
        self._capture, self._next = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG), 0
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        if not self._capture.isOpened():
            raise ValueError(f"{self.path}: cannot be decoded as a video")
