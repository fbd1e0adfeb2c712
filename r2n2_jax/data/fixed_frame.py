"""Which frame of a series stays, and where in its motion every frame is; of one slice or of several that share their times."""

import numpy as np

_VALUES_AT_ONCE = 1_000_000


def position_curve(*slices: np.ndarray) -> np.ndarray:
    """Where in its motion each frame is: its score on the first principal component of the frames over time.

    That component follows the largest motion, breathing or the heart's cycle, of all slices together.

    Args:
        slices: ``[T, *spatial]`` each.

    Returns:
        ``[T]`` float64 of mean 0 and variance 1, the farthest frame positive; zero where nothing moves.
    """
    # The T x T Gram matrix has the same scores as the pixels' covariance, and is small.
    values, vectors = np.linalg.eigh(sum(_gram(frames) for frames in slices))
    if values[-1] <= 0:
        return np.zeros(len(vectors))
    scores = vectors[:, -1] * np.sqrt(len(vectors))
    return scores * np.sign(scores[np.argmax(np.abs(scores))])


def mean_position_frame(*slices: np.ndarray) -> int:
    """The frame nearest the mean position of the motion of all slices, ``[T, *spatial]`` each."""
    return int(np.argmin(np.abs(position_curve(*slices))))


def mean_intensity_frame(*slices: np.ndarray) -> int:
    """The frame whose mean intensity is nearest that of all of them, as the paper's authors choose it.

    Args:
        slices: ``[T, *spatial]`` each.
    """
    totals = sum(frames.sum(axis=tuple(range(1, frames.ndim)), dtype=np.float64) for frames in slices)
    return int(np.argmin(np.abs(totals - totals.mean())))


def _gram(frames: np.ndarray) -> np.ndarray:
    """The products of frames ``[T, *spatial]`` with each other, less their mean over time, summed up over the pixels."""
    flat = frames.reshape(len(frames), -1)
    gram, width = np.zeros((len(frames), len(frames))), max(_VALUES_AT_ONCE // len(frames), 1)
    for start in range(0, flat.shape[1], width):
        some = flat[:, start : start + width].astype(np.float64)
        some -= some.mean(axis=0)
        gram += some @ some.T
    return gram
