r"""Where ONE pair's further local transformations go: where the images match better if a place moves as another one does.

Small steps from where the images are now do not find what is still far away: tissue beyond a wall that is dragged along by ten
pixels, or that lags behind by as many. But somewhere else in the image the right motion has been found, and tissue that is
dragged along stands still. So at every place the field is compared with every motion :math:`u` that it has at its own centres,
and with none: with the residuals :math:`r` of local contrast and what they cost, :math:`\phi^2`, a Gaussian :math:`g` there
that carries its centre to :math:`u` is expected to gain

.. math:: \sum_x g(x) \Big(\phi^2\big(r_f(x)\big) - \phi^2\big(r_u(x)\big)\Big)

The best of all places, widths and motions are tried one after the other. One that lowers the objective by more than its numbers
would by chance stays (after Akaike, IEEE Transactions on Automatic Control 19(6), 1974).

Where no network has found a motion anywhere, the warped image is shifted as well, by whole pixels, near and far: of a shift
:math:`s` the motion at :math:`x` is :math:`s + f(x + s)`.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r2n2_jax.ops.gaussian import FreeGaussians, Gaussians, displacement, from_free, to_free
from r2n2_jax.ops.grid import coordinates, half_extent
from r2n2_jax.ops.local_contrast import local_contrast, noise_of_pair, quiet
from r2n2_jax.ops.outliers import bounded
from r2n2_jax.ops.warp import inside, sample
from r2n2_jax.registration.contrast import contrast_problem
from r2n2_jax.registration.least_squares import objective
from r2n2_jax.registration.levenberg_marquardt import LEAST_DETERMINANT

Array = jax.Array

_DEVIATIONS = {2: (0.3, 0.19, 0.12, 0.075, 0.05), 3: (0.45, 0.3, 0.19, 0.12)}
_PIXELS = 64  # per axis, at most, at which motions are compared
_PLACES = {2: 32, 3: 16}  # per axis, where Gaussians are proposed
_FRACTION = 0.7  # of the motion that is missing: its neighbours give some
_NEAR = 0.1  # where one was refused, no other is tried
_MOST_REFUSED = {2: 4, 3: 12}


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


@functools.partial(jax.jit, static_argnames="reach")
def grow(
    fixed: Array,
    moving: Array,
    gaussians: Gaussians,
    taken: Array,
    *,
    mask: Array | None = None,
    outlier: float,
    tv_weight: float = 0.1,
    reach: int = 0,
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
        reach: the largest shift that is tried, in pixels, of at most 64 per axis; 0: none.

    Returns:
        as many Gaussians, and the slots in use.
    """
    d = fixed.ndim - 1
    contrast = contrast_problem(fixed, moving, mask, outlier=outlier)
    places = _places(d)
    widths = jnp.asarray(_DEVIATIONS[d])
    free = to_free(gaussians)
    loss, determinants = objective(contrast(free), free, tv_weight)
    proposals = _proposals(fixed, moving, gaussians, mask, outlier, reach)

    numbers = 3 * d + d * (d - 1) // 2
    pixels = proposals.pixels
    least_fall = 2 * numbers / pixels

    def goes_on(state: _Growing) -> Array:
        return ~jnp.all(state.taken) & (state.refused < _MOST_REFUSED[d]) & (jnp.max(state.gain) > least_fall * state.loss)

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


def _proposals(fixed: Array, moving: Array, gaussians: Gaussians, mask: Array | None, outlier: float, reach: int) -> _Proposals:
    d = fixed.ndim - 1
    shape = tuple(min(n, _PIXELS) for n in fixed.shape[:-1])
    points, places = coordinates(shape), _places(d)
    noise = noise_of_pair(fixed, moving, mask)
    fixed, moving = (quiet(image, noise, mask) for image in (fixed, moving))
    target = sample(local_contrast(fixed, noise, mask), points)[..., 0]
    there = points + displacement(gaussians, points)
    seen = inside(there)
    counted = seen if mask is None else seen & (sample(mask[..., None].astype(jnp.float32), points)[..., 0] > 0.5)
    # Beyond the border the border's pixels go on, so that nothing ends there which would be taken for an edge.
    warped = local_contrast(sample(moving, jnp.clip(there, -1.0, 1.0)), noise)[..., 0]
    still = local_contrast(moving, noise)
    pixels = jnp.maximum(jnp.sum(counted), 2)

    def cost(shown: Array) -> Array:
        return bounded(shown - target, outlier) ** 2

    def gained(shown: Array, compared: Array) -> Array:
        """Of what is shown instead, for every width and place."""
        gained = jnp.where(counted & compared, cost(warped) - cost(shown), 0.0) / pixels
        return jnp.stack([_around(gained, width).ravel() for width in _DEVIATIONS[d]])

    def by_motion(motion: Array) -> Array:
        moved = points + jnp.broadcast_to(motion, points.shape)
        return gained(sample(still, jnp.clip(moved, -1.0, 1.0))[..., 0], inside(moved))

    now = displacement(gaussians, places)[None]
    motions = jnp.concatenate([jnp.zeros((1, d)), displacement(gaussians, gaussians.position)])
    found = jax.lax.map(by_motion, motions)
    gain, missing = jnp.max(found, axis=0), motions[jnp.argmax(found, axis=0)] - now
    if reach:
        beyond = jnp.pad(warped, reach, mode="edge"), jnp.pad(seen, reach)

        def by_shift(shift: Array) -> Array:
            return gained(*(jax.lax.dynamic_slice(image, shift + reach, shape) for image in beyond))

        shifts = np.array(list(itertools.product(range(-reach, reach + 1), repeat=d)))
        found = jax.lax.map(by_shift, jnp.asarray(shifts))
        step = jnp.asarray(shifts[:, ::-1] / half_extent(shape), jnp.float32)[jnp.argmax(found, axis=0)]
        motion = step + displacement(gaussians, places[None] + step)
        better = jnp.max(found, axis=0) > gain
        gain, missing = jnp.maximum(gain, jnp.max(found, axis=0)), jnp.where(better[..., None], motion - now, missing)
    return _Proposals(gain, missing, pixels)


def _places(d: int) -> Array:
    """Where Gaussians are proposed, ``[places, d]``."""
    return coordinates((_PLACES[d],) * d).reshape(-1, d)


def _around(image: Array, width: float) -> Array:
    """The sum of an image's pixels ``[*spatial]`` under a Gaussian at every place, ``[*places]``."""
    for axis, n in enumerate(image.shape):
        apart = jnp.linspace(-1.0, 1.0, _PLACES[image.ndim])[:, None] - jnp.linspace(-1.0, 1.0, n)[None]
        image = jnp.moveaxis(jnp.tensordot(jnp.exp(-0.5 * (apart / width) ** 2), image, (1, axis)), 0, axis)
    return image
