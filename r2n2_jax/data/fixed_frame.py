"""Which frame of a series ``[T, *spatial]`` stays, and where in its motion every frame is."""

import numpy as np

_VALUES_AT_ONCE = 1_000_000


def position_curve(frames: np.ndarray) -> np.ndarray:
    """Where in its motion each frame is: its score on the first principal component of the frames over time.

    That component follows the largest motion, breathing or the heart's cycle.

    Args:
        frames: ``[T, *spatial]``.

    Returns:
        ``[T]`` float64 of mean 0 and variance 1, the farthest frame positive; zero where nothing moves.
    """
    flat = frames.reshape(len(frames), -1)
    # The T x T Gram matrix has the same scores as the pixels' covariance, and is small; it is summed up over the pixels.
    gram, width = np.zeros((len(frames), len(frames))), max(_VALUES_AT_ONCE // len(frames), 1)
    for start in range(0, flat.shape[1], width):
        some = flat[:, start : start + width].astype(np.float64)
        some -= some.mean(axis=0)
        gram += some @ some.T
    values, vectors = np.linalg.eigh(gram)
    if values[-1] <= 0:
        return np.zeros(len(frames))
    scores = vectors[:, -1] * np.sqrt(len(frames))
    return scores * np.sign(scores[np.argmax(np.abs(scores))])


def mean_position_frame(frames: np.ndarray) -> int:
    """The frame ``[T, *spatial]`` nearest the mean position of the motion."""
    return int(np.argmin(np.abs(position_curve(frames))))


def mean_intensity_frame(frames: np.ndarray) -> int:
    """The frame ``[T, *spatial]`` whose mean intensity is nearest the series', as the paper's authors choose it."""
    means = frames.mean(axis=tuple(range(1, frames.ndim)), dtype=np.float64)
    return int(np.argmin(np.abs(means - means.mean())))
