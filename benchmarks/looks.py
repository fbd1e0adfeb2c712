"""Where the network looks, and what more looks are worth: ``python -m benchmarks.looks`` prints two Markdown tables.

On held-out phantoms at the model's resolution, without refinement: the error by the number of looks; and how far the first
local transformation lies from the place of largest motion, how the sizes fall, how far the places lie apart.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.data.dataset import held_out_phantoms
from r2n2_jax.data.phantom.frame import Pair
from r2n2_jax.ops.gaussian import Gaussians, displacement
from r2n2_jax.ops.grid import coordinates, half_extent
from r2n2_jax.ops.intensity import standardise
from r2n2_jax.pretrained import package
from r2n2_jax.registration.course import View
from r2n2_jax.registration.registrar import load
from r2n2_jax.registration.sequence import propose

_NEAR = 0.25  # normalised units


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default=package.NAME)
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--looks", type=int, nargs="+", default=(12, 24, 36))
    arguments = parser.parse_args()
    registrar = load(arguments.checkpoint)
    model = registrar.config.model
    phantoms = held_out_phantoms(registrar.config.phantom, model.shape, arguments.split, arguments.pairs)
    seen = View(*(jax.vmap(standardise)(images) for images in (phantoms.fixed, phantoms.moving)), None)

    print(f"{arguments.pairs} {arguments.split} phantoms of {' x '.join(map(str, model.shape))}, the network alone\n")
    print("| looks | TRE mean, px | median | 90 % | largest |\n|---|---|---|---|---|")
    for looks in arguments.looks:
        errors = tre(propose(registrar.params, model, seen, steps=looks), phantoms)
        middle, most = np.quantile(errors, (0.5, 0.9))
        print(f"| {looks} | {errors.mean():.3f} | {middle:.3f} | {most:.3f} | {errors.max():.2f} |")

    placed = propose(registrar.params, model, seen, steps=model.steps)
    apart = np.linalg.norm(np.asarray(placed.position[:, 0]) - largest_motion(phantoms), axis=-1)
    sizes = np.sqrt(np.asarray(placed.variance)).mean(axis=(0, 2))
    quarter = max(1, model.steps // 4)
    spread = np.asarray(placed.position).std(axis=1).mean(axis=-1)
    print("\n| what | |\n|---|---|")
    near = 100 * (apart < _NEAR).mean()
    print(f"| pairs whose first local transformation lies within {_NEAR} of the largest motion | {near:.0f} % |")
    print(f"| its distance, median | {np.median(apart):.2f} |")
    print(f"| deviations of the first quarter, of the last | {sizes[:quarter].mean():.3f}, {sizes[-quarter:].mean():.3f} |")
    print(f"| standard deviation of a pair's places, mean over the pairs | {spread.mean():.2f} |")


def tre(gaussians: Gaussians, phantoms: Pair) -> np.ndarray:
    """Every pair's mean landmark error, pixels."""
    carried = phantoms.fixed_landmarks + jax.vmap(displacement)(gaussians, phantoms.fixed_landmarks)
    extent = jnp.array(half_extent(phantoms.fixed.shape[1:-1]))
    missed = (carried - phantoms.moving_landmarks) * extent[None, None]
    return np.asarray(jnp.linalg.norm(missed, axis=-1).mean(axis=1))


def largest_motion(phantoms: Pair) -> np.ndarray:
    """``[pairs, d]``: where in the body the exact displacement is largest, normalised."""
    length = np.where(phantoms.body, np.linalg.norm(phantoms.displacement, axis=-1), 0.0)
    points = np.asarray(coordinates(phantoms.body.shape[1:])).reshape(-1, phantoms.body.ndim - 1)
    return points[length.reshape(len(length), -1).argmax(axis=1)]


if __name__ == "__main__":
    main()
