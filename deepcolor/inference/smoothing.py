"""Smooths the predicted colors of a video over time, within each shot."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

RADIUS = 5  # frames on each side whose colors are averaged
_TRIANGLE = 1 - np.abs(np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)) / (RADIUS + 1)
# Difference of L*/100 at which a weight falls to 1/e: a pixel whose L* changes belongs to another object, which moved.
_SAME_OBJECT = 0.1
# Two frames belong to different shots if the correlation of their blocks is below _CORRELATION. Of 2415 pairs of
# different photographs, 99.9 % are below 0.66; pans by up to 1/32 of the width per frame are above 0.75.
_BLOCK = 8  # pixels
_CORRELATION = 0.7
_NOISE = 0.02  # smaller mean differences of L*/100 are noise, whose correlation means nothing


class Frame(NamedTuple):
    """A frame of a video, as the network sees it."""

    source: object  # is passed on
    lightness: np.ndarray  # (H,W) float32: L*/100
    ab: np.ndarray  # (2,H,W) float32, in Lab units


def smooth_colors(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yields the frames in order, with colors averaged over the neighboring frames of the same shot.

    The average is over RADIUS frames on each side, weighted by their distance in time and by how similar L* is, as in
    a bilateral filter. It is symmetric, so that colors do not lag behind motion. Holds 2 * RADIUS + 1 frames.
    """
    shot: deque[Frame] = deque()  # the last frame that was yielded is at most RADIUS frames after the first one here
    position = 0  # in `shot`, of the next frame to yield
    for frame in frames:
        if shot and is_cut(shot[-1].lightness, frame.lightness):
            yield from (_average(shot, index) for index in range(position, len(shot)))
            shot.clear()
            position = 0
        shot.append(frame)
        if len(shot) - position > RADIUS:
            yield _average(shot, position)
            shot[position] = shot[position]._replace(source=None)  # frees its pixels
            position += 1
        if position > RADIUS:
            shot.popleft()
            position -= 1
    yield from (_average(shot, index) for index in range(position, len(shot)))


def _average(shot: deque[Frame], position: int) -> Frame:
    """Returns the frame at `position` with the weighted mean of the colors around it."""
    frame = shot[position]
    total, weights = np.zeros_like(frame.ab), np.zeros_like(frame.lightness)
    for offset, weight in enumerate(_TRIANGLE, -RADIUS):
        if 0 <= position + offset < len(shot):
            other = shot[position + offset]
            similarity = weight * np.exp(-np.square((other.lightness - frame.lightness) / _SAME_OBJECT))
            total += similarity * other.ab
            weights += similarity
    return frame._replace(ab=total / weights)


def is_cut(before: np.ndarray, after: np.ndarray) -> bool:
    """Returns whether a new shot begins between two frames, from their L*/100 (H,W). H and W are multiples of 8."""
    before, after = (_blocks(lightness) for lightness in (before, after))
    if np.abs(after - before).mean() < _NOISE:
        return False
    deviation = before.std() * after.std()
    covariance = ((before - before.mean()) * (after - after.mean())).mean()
    return bool(covariance < _CORRELATION * deviation)


def _blocks(lightness: np.ndarray) -> np.ndarray:
    """Returns the means of blocks of pixels."""
    height, width = lightness.shape
    return lightness.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean(axis=(1, 3))
