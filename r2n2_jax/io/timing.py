"""Whether the slices of a DICOM series show an object at the same times."""

import numpy as np

from r2n2_jax.io.dicom import OrderBy
from r2n2_jax.io.dicom_series import DicomSlice

_ASKED: tuple[OrderBy, ...] = ("trigger-time", "acquisition-time", "temporal-position")
_MOST_FRAMES_APART = 0.5


def share_times(slices: list[DicomSlice]) -> bool:
    """Whether the frames of one number show all slices at one time, or at one phase of the heart.

    The first of trigger time, acquisition time and temporal position that every frame has, and that grows from frame to frame,
    decides: no frame may be farther than half a frame's interval from the mean of the frames with its number. Trigger times are
    counted in the intervals of their own slice, for a heart that beats faster passes through the same phases. Slices that none
    of them compares do not share their times.
    """
    for key in _ASKED:
        times = np.array([[frame.keys.get(key, np.nan) for frame in one.frames] for one in slices])
        steps = np.diff(times, axis=1)
        if (steps > 0).all():
            intervals = np.median(steps, axis=1, keepdims=True)
            counted = times / (intervals if key == "trigger-time" else intervals.mean())
            return bool((np.abs(counted - counted.mean(axis=0)) <= _MOST_FRAMES_APART).all())
    return len(slices) == 1
