"""How still a point that does not move stays over a series: ``python -m benchmarks.jitter``.

Phantoms of the test set breathe, every frame in new noise; each is registered by itself to the fixed one. Of the landmarks that
truly move by less than half a pixel in the whole cycle it prints the standard deviation over time of where they are carried,
less where they are, along an axis; and of all landmarks by how much their error changes between neighbouring frames.
"""

import numpy as np

from r2n2_jax.config import PhantomConfig
from r2n2_jax.evaluation.cases import Case, phantom_patients
from r2n2_jax.io.geometry import to_px
from r2n2_jax.registration.registrar import Registrar, load

_PATIENTS, _SIZE, _STILL = 24, 256, 0.5


def main() -> None:
    """Prints the figures."""
    registrar, jitter, change = load(), [], []
    for case in phantom_patients(PhantomConfig(), _SIZE, patients=_PATIENTS):
        errors, motion, frames = _over_time(registrar, case)
        still = np.ptp(motion, axis=0).max(axis=-1) < _STILL
        jitter.append(_root_mean_square(errors.std(axis=0), axis=-1)[still])
        after = np.diff(frames) == 1
        change.append(_root_mean_square(np.diff(errors, axis=0)[after], axis=(0, 2)))
    jitter, change = np.concatenate(jitter), np.concatenate(change)
    print(
        f"{len(jitter)} still landmarks: {jitter.mean():.3f} px, median {np.median(jitter):.3f}, largest {jitter.max():.3f}, "
        f"{100 * (jitter < 0.1).mean():.0f} % below 0.1\n{len(change)} landmarks: from frame to frame {change.mean():.3f} px, "
        f"median {np.median(change):.3f}"
    )


def _over_time(registrar: Registrar, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors and true places of the landmarks ``[N, L, 2]``, pixels, and the frames' numbers ``[N]``, in order of time."""
    order, shape = np.argsort(case.frames), case.fixed.shape[1:]
    found = registrar.register_batch(case.fixed[order], case.moving[order])
    carried = np.stack([found.frame(index).points(case.fixed_landmarks[pair]) for index, pair in enumerate(order)])
    true = case.moving_landmarks[order]
    return to_px(carried - true, shape), to_px(true, shape), case.frames[order]


def _root_mean_square(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=axis))


if __name__ == "__main__":
    main()
