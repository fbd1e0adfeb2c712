"""How the phantom moves: a breath carries tissue points of the mid position to their places in a frame, normalised units.

The motion ``y = X + u(X; breath)`` is a closed formula, so the displacement from the fixed to the moving image is exact: a
fixed pixel ``x`` shows the tissue ``X = (id + u_fixed)^-1 (x)``, which lies at ``X + u_moving(X)`` in the moving image.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.data.phantom.anatomy import Anatomy, cavity, heart_frame, spine_visibility

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
    """Where tissue points ``[..., 2]`` of the mid position lie in the frame."""
    return tissue + motion(anatomy, breath, tissue)


def to_tissue(anatomy: Anatomy, breath: Breath, points: Array) -> Array:
    """Which tissue frame points ``[..., 2]`` show: the inverse of ``from_tissue``, to rounding.

    Damped fixed-point steps come near from anywhere, Newton's then converge at once.
    """
    place = functools.partial(from_tissue, anatomy, breath)
    basis = [jnp.broadcast_to(unit.reshape((1,) * (points.ndim - 1) + (2,)), points.shape) for unit in jnp.eye(2)]

    def closer(_: int, tissue: Array) -> Array:
        placed, along = jax.linearize(place, tissue)
        error, by_x, by_y = placed - points, along(basis[0]), along(basis[1])
        step = jnp.stack([_cross(error, by_y), _cross(by_x, error)], axis=-1)
        return tissue - step / _cross(by_x, by_y)[..., None]

    def approach(_: int, tissue: Array) -> Array:
        return tissue - 0.6 * (place(tissue) - points)

    return jax.lax.fori_loop(0, _NEWTON_STEPS, closer, jax.lax.fori_loop(0, _APPROACH_STEPS, approach, points))


def _cross(a: Array, b: Array) -> Array:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def motion(anatomy: Anatomy, breath: Breath, tissue: Array) -> Array:
    """The displacement ``u`` of tissue points ``[..., 2]`` from the mid position, normalised.

    Head-foot motion grows from nothing at the apex to the full depth at the diaphragm and stays in the abdomen; it vanishes
    over a thin layer at the chest wall and at a visible spine, along which the organs slide. The lungs widen a little, the
    mediastinum moves less, the heart beats.
    """
    s = anatomy.shape
    x, y = tissue[..., 0], tissue[..., 1]
    # The layer is as straight as the motion, also where the wall arches over to the apex: it never pulls the map into a fold.
    free = _ease((s.body_width - s.wall - jnp.abs(x)) / s.slip_width)
    free = free * (1.0 - spine_visibility(s) * jnp.exp(-(((x - s.midline) / (s.spine_width + 0.04)) ** 4)))
    floor = s.dome_right + 0.1
    growth = _ease((y - s.motion_top) / (floor - s.motion_top))
    fade = 1.0 - (1.0 - s.motion_below) * _ease((y - floor) / (1.2 - floor))
    centre = 1.0 - (1.0 - s.motion_centre) * jnp.exp(-0.5 * ((x - s.midline) / 0.15) ** 2)
    along = breath.depth * growth * fade * centre * free
    # What moves ACROSS the wall must fade well before the sliding layer, or the map would fold there.
    inside = _ease(cavity(s, tissue) / 0.3)
    widening = breath.depth * s.motion_lateral * inside * (x - s.midline) * jnp.exp(-0.5 * ((y - floor + 0.2) / 0.4) ** 2)
    heart = heart_frame(s, tissue)
    beat = breath.pulsation * (1.0 - s.posterior) * jnp.exp(-0.5 * jnp.sum(heart**2, -1)) * inside
    beat = beat[..., None] * heart
    return jnp.stack([widening, along], axis=-1) + beat


def displacement_between(anatomy: Anatomy, fixed_breath: Breath, moving_breath: Breath, points: Array) -> Array:
    """The exact displacement ``[..., 2]`` that carries points of the fixed frame to their places in the moving one."""
    return from_tissue(anatomy, moving_breath, to_tissue(anatomy, fixed_breath, points)) - points


def volume_change(anatomy: Anatomy, breath: Breath, tissue: Array) -> Array:
    """``det(I + du/dX)`` at tissue points, kept positive: what fills more space shows less signal per pixel."""
    jacobian = jax.vmap(jax.jacfwd(functools.partial(motion, anatomy, breath)))(tissue.reshape(-1, 2))
    determinant = jnp.linalg.det(jnp.eye(2)[None] + jacobian).reshape(tissue.shape[:-1])
    return jnp.clip(determinant, 0.3, 3.0)


def _ease(fraction: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    fraction = jnp.clip(fraction, 0.0, 1.0)
    return fraction * fraction * (3.0 - 2.0 * fraction)
