"""How the phantom moves: a breath carries tissue points of the mid position to their places in a frame, normalised units.

The motion ``y = X + u(X; breath)`` is a closed formula, so the displacement from the fixed to the moving image is exact: a
fixed pixel ``x`` shows the tissue ``X = (id + u_fixed)^-1 (x)``, which lies at ``X + u_moving(X)`` in the moving image.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.data.phantom.anatomy import Anatomy, cavity, from_axis, from_spine, heart_frame, spine_visibility
from r2n2_jax.ops.grid import components
from r2n2_jax.ops.matrix import determinant

Array = jax.Array

_APPROACH_STEPS, _NEWTON_STEPS = 12, 4


class Breath(NamedTuple):
    """The state of motion of one frame.

    Attributes:
        depth: scalar, how far the diaphragm is below its mid position (positive: inspiration), normalised units.
        pulsation: scalar, the heart's radial displacement, normalised units.
    """

    depth: Array
    pulsation: Array


def from_tissue(anatomy: Anatomy, breath: Breath, tissue: Array) -> Array:
    """Where tissue points ``[..., d]`` of the mid position lie in the frame."""
    return tissue + motion(anatomy, breath, tissue)


def to_tissue(anatomy: Anatomy, breath: Breath, points: Array) -> Array:
    """Which tissue frame points ``[..., d]`` show: the inverse of ``from_tissue``, to rounding.

    Damped fixed-point steps come near from anywhere, Newton's then converge at once.
    """
    place = functools.partial(from_tissue, anatomy, breath)

    def closer(_: int, tissue: Array) -> Array:
        placed, columns = _with_slopes(place, tissue)
        error = components(placed - points)
        # Cramer's rule.
        steps = [determinant([*columns[:i], error, *columns[i + 1 :]]) for i in range(len(error))]
        return tissue - jnp.stack(steps, axis=-1) / determinant(columns)[..., None]

    def approach(_: int, tissue: Array) -> Array:
        return tissue - 0.6 * (place(tissue) - points)

    return jax.lax.fori_loop(0, _NEWTON_STEPS, closer, jax.lax.fori_loop(0, _APPROACH_STEPS, approach, points))


def _with_slopes(function: Callable[[Array], Array], points: Array) -> tuple[Array, list[list[Array]]]:
    """A map of points ``[..., d]``, and its derivative along each axis, the components ``[...]`` one by one."""
    units = [jnp.zeros_like(points).at[..., axis].set(1.0) for axis in range(points.shape[-1])]
    value, along = jax.linearize(function, points)
    return value, [components(along(unit)) for unit in units]


def motion(anatomy: Anatomy, breath: Breath, tissue: Array) -> Array:
    """The displacement ``u`` of tissue points ``[..., d]`` from the mid position, normalised.

    Head-foot motion grows from nothing at the apex to the full depth at the diaphragm and stays in the abdomen; it vanishes
    over a thin layer at the chest wall and at a visible spine, along which the organs slide. The lungs widen a little, the
    mediastinum moves less, the heart beats. In a volume the diaphragm goes further at the back, and the front rises.
    """
    s = anatomy.shape
    x, y, *z = components(tissue)
    # The layer is as straight as the motion, also where the wall arches over to the apex: it never pulls the map into a fold.
    free = _ease((s.body_width - s.wall - from_axis(s, tissue)) / s.slip_width)
    held = jnp.exp(-((from_spine(s, tissue) / (s.spine_width + 0.04)) ** 4))
    free = free * (1.0 - spine_visibility(s, ndim=tissue.shape[-1]) * held)
    floor = s.dome_right + 0.1
    growth = _ease((y - s.motion_top) / (floor - s.motion_top))
    fade = 1.0 - (1.0 - s.motion_below) * _ease((y - floor) / (1.2 - floor))
    centre = 1.0 - (1.0 - s.motion_centre) * jnp.exp(-0.5 * ((x - s.midline) / 0.15) ** 2)
    further = 1.0 + s.motion_back * z[0] if z else 1.0
    along = breath.depth * growth * fade * centre * free * further
    # What moves ACROSS the wall must fade well before the sliding layer, or the map would fold there.
    inside = _ease(cavity(s, tissue) / 0.3)
    around = inside * jnp.exp(-0.5 * ((y - floor + 0.2) / 0.4) ** 2)
    widening = breath.depth * s.motion_lateral * around * (x - s.midline)
    rising = [-breath.depth * s.motion_front * around * _ease(0.5 - part) for part in z]
    heart = heart_frame(s, tissue)
    strength = 1.0 if z else 1.0 - s.posterior
    beat = breath.pulsation * strength * jnp.exp(-0.5 * jnp.sum(heart**2, -1)) * inside
    return jnp.stack([widening, along, *rising], axis=-1) + beat[..., None] * heart


def displacement_between(anatomy: Anatomy, fixed_breath: Breath, moving_breath: Breath, points: Array) -> Array:
    """The exact displacement ``[..., d]`` that carries points of the fixed frame to their places in the moving one."""
    return from_tissue(anatomy, moving_breath, to_tissue(anatomy, fixed_breath, points)) - points


def volume_change(anatomy: Anatomy, breath: Breath, tissue: Array) -> Array:
    """``det(I + du/dX)`` at tissue points, kept positive: what fills more space shows less signal per pixel."""
    _, columns = _with_slopes(functools.partial(from_tissue, anatomy, breath), tissue)
    return jnp.clip(determinant(columns), 0.3, 3.0)


def _ease(fraction: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    fraction = jnp.clip(fraction, 0.0, 1.0)
    return fraction * fraction * (3.0 - 2.0 * fraction)
