"""What is painted before a scene: text that is burnt in, the dark ground around an aperture, in ONE pair ``[*spatial]``.

It stays where it is, whatever the scene behind it does, and would hold the field there. Noise and interpolation change the
values of tissue from image to image; what is painted has one value, bit for bit, at the same pixels of both.
"""

import numpy as np
from scipy import ndimage

_MOST_VALUES = 8  # that are looked at: those of the most pairs of neighbours
_LEAST_PIXELS = 12  # of a region
_MOST_CHANGED = 0.15  # of the pixels around a region, that have its value in one of the images
_LEAST_DIFFERENT = 0.2  # of the pixels around a region, the others may be painted as well
_LEAST_CONTRAST = 0.5  # to the pixels around a region, in standard deviations of the image
_REACH = 1 / 32  # of the shortest axis: what is nearer is seen against what is painted
_MOST_LOST = 0.5  # of the pixels that differ


def painted(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The pixels that are painted, and those near them; none where that would leave too little of the scene.

    A painted region has one value, the same pixels in both images, and a scene around it that differs.

    Args:
        fixed: ``[*spatial]``, as it was read.
        moving: the same shape.

    Returns:
        ``[*spatial]`` bool.
    """
    differs, found = fixed != moving, np.zeros(fixed.shape, bool)
    for value in _values(fixed, ~differs):
        found |= _regions(value, fixed, moving)
    if not found.any():
        return found
    near = ndimage.distance_transform_edt(~found) <= max(1.0, _REACH * min(fixed.shape))
    lost = np.sum(near & differs) > _MOST_LOST * np.sum(differs)
    return np.zeros_like(found) if lost else near


def _values(fixed: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The values that most pairs of neighbours share, in both images."""
    shared = []
    for axis in range(fixed.ndim):
        first, second = (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)
        shared.append(fixed[first][same[first] & same[second] & (fixed[first] == fixed[second])])
    values, counts = np.unique(np.concatenate(shared), return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_MOST_VALUES]
    return values[most[counts[most] >= _LEAST_PIXELS]]


def _regions(value: np.ndarray, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Of the connected regions of a value those that are painted: ``[*spatial]`` bool."""
    in_fixed, in_moving = fixed == value, moving == value
    ever = in_fixed | in_moving
    labels, count = ndimage.label(ever, np.ones((3,) * fixed.ndim))
    around = np.where(ever, 0, ndimage.maximum_filter(labels, 3))

    def total(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(labels.ravel(), weights, minlength=count + 1)

    ring = total(around)
    is_painted = total(labels[in_fixed != in_moving]) <= _MOST_CHANGED * ring
    is_painted &= total(around[fixed != moving]) > _LEAST_DIFFERENT * ring
    is_painted &= total(around, np.abs(fixed - value).ravel()) > _LEAST_CONTRAST * fixed.std() * ring
    is_painted &= total(labels) >= _LEAST_PIXELS
    is_painted[0] = False
    return is_painted[labels]
