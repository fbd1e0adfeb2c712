r"""Where ONE pair's further local transformations go: where the images match better if a place moves as another one does.

Small steps from where the images are now do not find what is still far away: tissue beyond a wall that is dragged along by ten
pixels, or that lags behind by as many. But somewhere else in the image the right motion has been found, and tissue that is
dragged along stands still. So at every place the field is compared with every motion :math:`u` that it has at its own centres,
and with none: with the residuals :math:`r` of local contrast and what they cost, :math:`\phi^2`, a Gaussian :math:`g` there
that carries its centre to :math:`u` is expected to gain

.. math:: \sum_x g(x) \Big(\phi^2\big(r_f(x)\big) - \phi^2\big(r_u(x)\big)\Big)

The best of all places, widths and motions are tried one after the other. One that lowers the objective by more than its seven
numbers would by chance stays (after Akaike, IEEE Transactions on Automatic Control 19(6), 1974).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.ops.gaussian import FreeGaussians, Gaussians, displacement, from_free, to_free
from r2n2_jax.ops.grid import coordinates
from r2n2_jax.ops.local_contrast import local_contrast, noise_of_pair, quiet
from r2n2_jax.ops.warp import inside, sample
from r2n2_jax.registration.contrast import contrast_problem
from r2n2_jax.registration.least_squares import bounded, objective
from r2n2_jax.registration.levenberg_marquardt import LEAST_DETERMINANT

Array = jax.Array

_DEVIATIONS = (0.3, 0.19, 0.12, 0.075, 0.05)
_PIXELS, _PLACES = 64, 32  # per axis: at which motions are compared, and where Gaussians are proposed
_FRACTION = 0.7  # of the motion that is missing: its neighbours give some
_NEAR = 0.1  # where one was refused, no other is tried
_MOST_REFUSED = 4


class _Proposals(NamedTuple):
    """Of Gaussians of every width at every place: ``gain [S, places]``, ``motion [S, places, d]`` that is missing there.

    ``pixels`` is the number of those that were compared.
    """

    gain: Array
    motion: Array
    pixels: Array


class _Growing(NamedTuple):
    gain: Array
    free: FreeGaussians
    taken: Array
    loss: Array
    least: Array
    refused: Array


@jax.jit
def grow(
    fixed: Array,
    moving: Array,
    gaussians: Gaussians,
    taken: Array,
    *,
    mask: Array | None = None,
    outlier: float,
    tv_weight: float = 0.1,
) -> tuple[Gaussians, Array]:
    """Gives each slot that is not taken a Gaussian, as long as one earns its place.

    Args:
        fixed: ``[*spatial, 1]``, standardised.
        moving: the same shape.
        gaussians: fields ``[T, ...]``; those of free slots have no weight.
        taken: ``[T]`` bool, the slots in use.
        mask: ``[*spatial]`` bool, the fixed image's pixels that count; by default all.
        outlier: as in ``refine``.
        tv_weight: as in ``refine``.

    Returns:
        as many Gaussians, and the slots in use.
    """
    d = fixed.ndim - 1
    contrast = contrast_problem(fixed, moving, mask, outlier=outlier)
    places = coordinates((_PLACES,) * d).reshape(-1, d)
    widths = jnp.asarray(_DEVIATIONS)
    free = to_free(gaussians)
    loss, determinants = objective(contrast(free), free, tv_weight)
    proposals = _proposals(fixed, moving, gaussians, mask, outlier)

    numbers = 3 * d + d * (d - 1) // 2
    pixels = proposals.pixels
    least_fall = 2 * numbers / pixels

    def goes_on(state: _Growing) -> Array:
        return ~jnp.all(state.taken) & (state.refused < _MOST_REFUSED) & (jnp.max(state.gain) > least_fall * state.loss)

    def look(state: _Growing) -> _Growing:
        best = jnp.argmax(state.gain)
        width, place = jnp.unravel_index(best, state.gain.shape)
        shape = jnp.full(d, 2.0 * jnp.log(widths[width])), jnp.zeros(d * (d - 1) // 2)
        new = FreeGaussians(places[place], *shape, _FRACTION * proposals.motion[width, place])
        slot = jnp.argmin(state.taken)
        trial = jax.tree.map(lambda every, one: every.at[slot].set(one), state.free, new)
        loss, determinants = objective(contrast(trial), trial, tv_weight)
        least = jnp.min(determinants)
        earned = (loss < (1.0 - least_fall) * state.loss) & (least > jnp.minimum(state.least, LEAST_DETERMINANT))
        reach = jnp.where(earned, jnp.maximum(widths, widths[width]), _NEAR)
        near = jnp.linalg.norm(places - places[place][None], axis=-1)[None] < reach[:, None]
        rest = jnp.where(near, 0.0, state.gain)
        grown = _Growing(rest, trial, state.taken.at[slot].set(True), loss, least, state.refused)
        refused = state._replace(gain=rest, refused=state.refused + 1)
        return jax.tree.map(lambda new, old: jnp.where(earned, new, old), grown, refused)

    first = _Growing(proposals.gain, free, taken, loss, jnp.min(determinants), jnp.zeros((), int))
    last = jax.lax.while_loop(goes_on, look, first)
    return from_free(last.free), last.taken


def _proposals(fixed: Array, moving: Array, gaussians: Gaussians, mask: Array | None, outlier: float) -> _Proposals:
    d = fixed.ndim - 1
    points, places = coordinates((_PIXELS,) * d), coordinates((_PLACES,) * d).reshape(-1, d)
    noise = noise_of_pair(fixed, moving, mask)
    fixed, moving = (quiet(image, noise) for image in (fixed, moving))
    target = sample(local_contrast(fixed, noise, mask), points)[..., 0]
    there = points + displacement(gaussians, points)
    counted = inside(there)
    if mask is not None:
        counted &= sample(mask[..., None].astype(jnp.float32), points)[..., 0] > 0.5
    # Beyond the border the border's pixels go on, so that nothing ends there which would be taken for an edge.
    warped = local_contrast(sample(moving, jnp.clip(there, -1.0, 1.0)), noise)[..., 0]
    still = local_contrast(moving, noise)
    pixels = jnp.maximum(jnp.sum(counted), 2)

    def cost(shown: Array) -> Array:
        return bounded(shown - target, outlier) ** 2

    def gains(motion: Array) -> Array:
        """Of a motion, for every width and place."""
        moved = points + jnp.broadcast_to(motion, points.shape)
        shown = sample(still, jnp.clip(moved, -1.0, 1.0))[..., 0]
        gained = jnp.where(counted & inside(moved), cost(warped) - cost(shown), 0.0) / pixels
        return jnp.stack([_around(gained, width).ravel() for width in _DEVIATIONS])

    motions = jnp.concatenate([jnp.zeros((1, d)), displacement(gaussians, gaussians.position)])
    found = jax.lax.map(gains, motions)
    missing = motions[jnp.argmax(found, axis=0)] - displacement(gaussians, places)[None]
    return _Proposals(jnp.max(found, axis=0), missing, pixels)


def _around(image: Array, width: float) -> Array:
    """The sum of an image's pixels ``[*spatial]`` under a Gaussian at every place, ``[*places]``."""
    for axis, n in enumerate(image.shape):
        apart = jnp.linspace(-1.0, 1.0, _PLACES)[:, None] - jnp.linspace(-1.0, 1.0, n)[None]
        image = jnp.moveaxis(jnp.tensordot(jnp.exp(-0.5 * (apart / width) ** 2), image, (1, axis)), 0, axis)
    return image
