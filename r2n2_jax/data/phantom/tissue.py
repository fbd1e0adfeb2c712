"""What the phantom's tissue shows and belongs to, at points ``[..., d]``; intensities relative to the brightest tissue."""

import jax
import jax.numpy as jnp

from r2n2_jax.data.phantom.anatomy import (
    Anatomy,
    Shape,
    below_diaphragm,
    beside_mediastinum,
    cavity,
    from_spine,
    heart_distance,
    heart_frame,
    liver_distance,
    outline,
    rib_distance,
    smooth_min,
    spine_visibility,
)
from r2n2_jax.data.phantom.texture import texture
from r2n2_jax.data.phantom.vessels import vessel_distance

Array = jax.Array


def intensity(anatomy: Anatomy, tissue: Array, *, edge: float, lung_density: Array | float = 1.0) -> Array:
    """The noise-free signal of tissue points.

    Args:
        anatomy: the patient.
        tissue: ``[..., d]``.
        edge: the width over which one tissue gives way to the next, normalised.
        lung_density: factor on the lung's signal, a scalar or ``[...]``.

    Returns:
        ``[...]``, zero outside the body.
    """
    s = anatomy.shape
    x, y = tissue[..., 0], tissue[..., 1]

    def over(below: Array, above: Array, distance: Array) -> Array:
        return below + (above - below) * jax.nn.sigmoid(4.0 * distance / edge)

    lung = s.lung * lung_density
    lung = over(lung, jnp.full_like(x, s.vessel), vessel_distance(anatomy.lung_vessels, tissue))
    liver_vessel = jnp.full_like(x, s.liver * (1.0 + s.liver_vessel))
    liver = over(jnp.full_like(x, s.liver), liver_vessel, vessel_distance(anatomy.liver_vessels, tissue))
    below = over(jnp.full_like(x, s.abdomen), liver, liver_distance(s, tissue))
    left_organ = smooth_min(x - s.midline - 0.22, 0.62 - y)
    below = over(below, jnp.full_like(x, s.left_abdomen), left_organ)
    middle = jnp.full_like(x, 0.8 * s.muscle + 0.2 * s.heart)
    chest = over(middle, lung, beside_mediastinum(s, tissue))
    radius = jnp.linalg.norm(heart_frame(s, tissue) + 1e-6, axis=-1)
    heart = jnp.where(radius < 0.6, s.heart, 0.75 * s.heart)
    chest = over(chest, heart, heart_distance(s, tissue))
    inner = over(chest, below, below_diaphragm(s, tissue))
    wall = over(jnp.full_like(x, s.muscle), jnp.full_like(x, s.fat), 0.06 - outline(s, tissue))
    wall = over(wall, jnp.full_like(x, s.rib), rib_distance(s, tissue))
    image = over(wall, inner, cavity(s, tissue))
    vertebra = s.spine * (1.0 - 0.35 * (jnp.cos(2.0 * jnp.pi * (y / (0.75 * s.rib_spacing) + s.rib_phase)) > 0.75))
    shown = spine_visibility(s, ndim=tissue.shape[-1])
    image = image + shown * (over(image, vertebra, s.spine_width - from_spine(s, tissue)) - image)
    image = image * (1.0 + s.texture * texture(anatomy.waves, tissue))
    return image * jax.nn.sigmoid(4.0 * outline(s, tissue) / edge)


def organs(s: Shape, tissue: Array) -> dict[str, Array]:
    """Which tissue points ``[..., d]`` belong to the body, the lungs and the liver: ``[...]`` bool."""
    visible_spine = (spine_visibility(s, ndim=tissue.shape[-1]) > 0.5) & (from_spine(s, tissue) < s.spine_width)
    chest = (cavity(s, tissue) > 0) & (outline(s, tissue) > 0) & ~visible_spine
    above = below_diaphragm(s, tissue) < 0
    return {
        "body": outline(s, tissue) > 0,
        "lungs": chest & above & (beside_mediastinum(s, tissue) > 0) & (heart_distance(s, tissue) < 0),
        "liver": chest & ~above & (liver_distance(s, tissue) > 0),
    }
