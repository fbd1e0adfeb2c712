"""How true the stated uncertainty is: ``python -m benchmarks.uncertainty``.

Phantoms are registered by default: those of validation to find the factor by which a deviation is to be taken, those of the
test set to see whether it holds. Prints, for three ways to say how sure a displacement is, the rank correlation with the true
error by landmark and by pair, the factor, and how many of the test landmarks lie in regions that should hold so many. The first
way is the package's: its factor is to be 1, or ``registration.posterior._FACTOR`` times that.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chi2, spearmanr

from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.data.splits import Split
from r2n2_jax.io.geometry import to_px
from r2n2_jax.ops.affine import Affine
from r2n2_jax.ops.gaussian import Gaussians, to_free
from r2n2_jax.ops.outliers import OUTLIER
from r2n2_jax.registration import sequence
from r2n2_jax.registration.contrast import contrast_problem
from r2n2_jax.registration.least_squares import linearised, total_variation
from r2n2_jax.registration.posterior import spread
from r2n2_jax.registration.registrar import REFINE, Registrar, load
from r2n2_jax.registration.result import Registration

_PAIRS, _SIZE, _HELD = 60, 256, 0.9
WAYS = ("residuals by tiles", "equal residuals", "forward and backward")


def main() -> None:
    """Prints the table."""
    registrar = load()
    (known, stated), (unseen, claimed) = (_judged(registrar, split) for split in ("validation", "test"))
    print(
        "| way | rank correlation by landmark | by pair | factor | within 50 % | 90 % | 95 % |\n|---|---|---|---|---|---|---|"
    )
    for way in WAYS:
        factor = np.sqrt(np.quantile(_distances(known, stated[way]), _HELD) / chi2.ppf(_HELD, 2))
        far = _distances(unseen, claimed[way]) / factor**2
        held = " | ".join(f"{100 * np.mean(far <= chi2.ppf(part, 2)):.0f} %" for part in (0.5, _HELD, 0.95))
        lengths, deviations = _lengths(unseen), np.sqrt(np.trace(claimed[way], axis1=-2, axis2=-1))
        ranks = [_rank(deviations, lengths), _rank(deviations.mean(axis=1), lengths.mean(axis=1))]
        print(f"| {way} | {ranks[0]:.2f} | {ranks[1]:.2f} | {factor:.2f} | {held} |", flush=True)
    deviations = np.sqrt(np.trace(claimed[WAYS[0]], axis1=-2, axis2=-1)).ravel()
    parts = np.array_split(np.argsort(deviations), 5)
    print("\nfifths of the first, stated and true, px: ", end="")
    print(", ".join(f"{deviations[part].mean():.2f} {_lengths(unseen).ravel()[part].mean():.2f}" for part in parts))


def _judged(registrar: Registrar, split: Split) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The landmarks' errors ``[N, L, 2]``, and what each way says is their covariance ``[N, L, 2, 2]``; pixels."""
    pairs = held_out_phantoms(registrar.config.phantom, (_SIZE, _SIZE), split, _PAIRS)
    fixed, moving = np.asarray(pairs.fixed[..., 0]), np.asarray(pairs.moving[..., 0])
    landmarks, true = np.asarray(pairs.fixed_landmarks), np.asarray(pairs.moving_landmarks)
    found, back = registrar.register_batch(fixed, moving, start="none"), registrar.register_batch(moving, fixed, start="none")
    carried = _each(found, landmarks)
    returned = to_px(_each(back, carried) - landmarks, (_SIZE, _SIZE))
    equal = _of_equal_residuals(registrar, fixed, moving, found, landmarks)
    covariances = (
        np.stack([found.frame(index).covariance(points) for index, points in enumerate(landmarks)]),
        equal * ((_SIZE - 1) / 2) ** 2,
        0.5 * np.sum(returned**2, axis=-1)[..., None, None] * np.eye(2) + 1e-6 * np.eye(2),
    )
    return to_px(carried - true, (_SIZE, _SIZE)), dict(zip(WAYS, covariances, strict=True))


def _each(found: Registration, points: np.ndarray) -> np.ndarray:
    """Every pair's own points carried."""
    return np.stack([found.frame(index).points(one) for index, one in enumerate(points)])


def _of_equal_residuals(
    registrar: Registrar, fixed: np.ndarray, moving: np.ndarray, found: Registration, points: np.ndarray
) -> np.ndarray:
    """The covariance of least squares whose residuals have one variance and do not depend on each other."""
    seen = sequence.views(registrar.config.model, fixed, moving, refine=REFINE)[-1]

    def of_pair(pair: tuple[jax.Array, jax.Array, Gaussians, Affine, jax.Array]) -> jax.Array:
        fixed, moving, gaussians, affine, points = pair
        free = to_free(gaussians)
        residuals, rows, counted = linearised(contrast_problem(fixed, moving, outlier=OUTLIER / 2)(free), free)
        count = jnp.sum(counted)
        used = jnp.any(gaussians.weight != 0, axis=-1)
        used = jnp.tile(used, len(rows) // len(used)).astype(jnp.float32)
        both = jnp.outer(used, used)
        curvature = both * (rows @ rows.T / count + 0.1 * total_variation(free)[1]) + 1e-3 * jnp.eye(len(rows))
        equal = residuals @ residuals / count**2 * both * jnp.linalg.inv(curvature)
        return spread(gaussians, equal, affine, points)

    return np.asarray(jax.lax.map(of_pair, (seen.fixed, seen.moving, found.parameters, found.affine, points)))


def _distances(errors: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances of all landmarks, ``[N L]``."""
    weighed = np.linalg.solve(covariances + 1e-8 * np.eye(2), errors[..., None])[..., 0]
    return np.sum(errors * weighed, axis=-1).ravel()


def _lengths(errors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(errors, axis=-1)


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    return spearmanr(a.ravel(), b.ravel()).statistic


if __name__ == "__main__":
    main()
