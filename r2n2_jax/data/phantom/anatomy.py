"""The phantom's patient: a coronal thorax in its mid-respiratory position, every structure a formula of the tissue point.

Tissue points are ``[..., 2]`` in ``(x, y)`` order, normalised units (x to the image's right, y towards the feet); intensities
are relative to the brightest tissue.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

_WAVES = 32
_TREE_LEVELS = 3


class Shape(NamedTuple):
    """Scalars of one patient: lengths in normalised units (the field of view is 2 x 2), intensities, and shares.

    The module's ``_RANGES`` holds, field by field, the range each is drawn from.
    """

    body_width: Array | tuple[float, float]
    shoulder: Array | tuple[float, float]
    neck: Array | tuple[float, float]
    wall: Array | tuple[float, float]
    apex: Array | tuple[float, float]
    vault: Array | tuple[float, float]
    vault_exponent: Array | tuple[float, float]
    midline: Array | tuple[float, float]
    mediastinum: Array | tuple[float, float]
    dome_right: Array | tuple[float, float]
    dome_left_lower: Array | tuple[float, float]
    dome_centre: Array | tuple[float, float]
    dome_curvature: Array | tuple[float, float]
    liver_edge: Array | tuple[float, float]
    liver_bottom: Array | tuple[float, float]
    heart_x: Array | tuple[float, float]
    heart_above_dome: Array | tuple[float, float]
    heart_width: Array | tuple[float, float]
    heart_height: Array | tuple[float, float]
    heart_tilt: Array | tuple[float, float]
    rib_spacing: Array | tuple[float, float]
    rib_phase: Array | tuple[float, float]
    rib_radius: Array | tuple[float, float]
    spine_width: Array | tuple[float, float]
    posterior: Array | tuple[float, float]
    slip_width: Array | tuple[float, float]
    motion_top: Array | tuple[float, float]
    motion_below: Array | tuple[float, float]
    motion_lateral: Array | tuple[float, float]
    motion_centre: Array | tuple[float, float]
    fat: Array | tuple[float, float]
    muscle: Array | tuple[float, float]
    lung: Array | tuple[float, float]
    liver: Array | tuple[float, float]
    left_abdomen: Array | tuple[float, float]
    abdomen: Array | tuple[float, float]
    heart: Array | tuple[float, float]
    vessel: Array | tuple[float, float]
    liver_vessel: Array | tuple[float, float]
    rib: Array | tuple[float, float]
    spine: Array | tuple[float, float]
    texture: Array | tuple[float, float]


_RANGES = Shape(
    body_width=(0.82, 0.96),
    shoulder=(-0.86, -0.7),
    neck=(0.25, 0.4),
    wall=(0.13, 0.22),
    apex=(-0.78, -0.6),
    vault=(-0.3, 0.0),
    vault_exponent=(2.2, 2.8),
    midline=(-0.05, 0.05),
    mediastinum=(0.08, 0.2),
    dome_right=(0.0, 0.2),
    dome_left_lower=(0.0, 0.12),
    dome_centre=(0.34, 0.46),
    dome_curvature=(0.7, 1.5),
    liver_edge=(0.0, 0.3),
    liver_bottom=(0.55, 0.9),
    heart_x=(0.08, 0.24),
    heart_above_dome=(0.1, 0.22),
    heart_width=(0.2, 0.3),
    heart_height=(0.16, 0.24),
    heart_tilt=(0.2, 0.9),
    rib_spacing=(0.15, 0.2),
    rib_phase=(0.0, 1.0),
    rib_radius=(0.022, 0.035),
    spine_width=(0.07, 0.11),
    posterior=(0.0, 1.0),
    slip_width=(0.04, 0.1),
    motion_top=(-0.7, -0.5),
    motion_below=(0.5, 0.9),
    motion_lateral=(0.0, 0.12),
    motion_centre=(0.5, 0.85),
    fat=(0.7, 1.0),
    muscle=(0.3, 0.6),
    lung=(0.06, 0.22),
    liver=(0.4, 0.75),
    left_abdomen=(0.35, 0.8),
    abdomen=(0.3, 0.65),
    heart=(0.5, 0.9),
    vessel=(0.45, 0.85),
    liver_vessel=(-0.3, 0.35),
    rib=(0.1, 0.5),
    spine=(0.35, 0.75),
    texture=(0.05, 0.18),
)


class Anatomy(NamedTuple):
    """One patient.

    Attributes:
        shape: the scalars.
        lung_vessels: ``[S, 5]``: x0, y0, x1, y1, radius of every segment of the two lungs' trees.
        liver_vessels: ``[S, 5]``, the same for the liver.
        landmarks: ``[N, 2]``: branchings and tips of the vessels, points of the diaphragm.
        waves: ``[K, 4]``: wave vector x, y, phase and amplitude of the tissue's texture.
    """

    shape: Shape
    lung_vessels: Array
    liver_vessels: Array
    landmarks: Array
    waves: Array


def sample_anatomy(key: Array, *, body: Shape | None = None) -> Anatomy:
    """A random patient; or, of the given ``body``, random vessels and texture."""
    key_shape, key_right, key_left, key_liver, key_waves = jax.random.split(key, 5)
    low, high = jnp.array(_RANGES).T
    s = Shape(*jax.random.uniform(key_shape, low.shape, minval=low, maxval=high)) if body is None else body
    trees = [_tree(key_right), _tree(key_left), _tree(key_liver)]
    placed = [_in_lung(s, trees[0], -1.0), _in_lung(s, trees[1], 1.0), _in_liver(s, trees[2])]
    segments = [_segments(nodes) for nodes in placed]
    dome_x = s.midline + jnp.array([-0.5, -0.4, -0.3, 0.3, 0.4, 0.5])
    dome = jnp.stack([dome_x, diaphragm(s, dome_x)], axis=-1)
    return Anatomy(
        shape=s,
        lung_vessels=jnp.concatenate(segments[:2]),
        liver_vessels=segments[2],
        landmarks=jnp.concatenate([*(nodes[1:] for nodes in placed), dome]),
        waves=_waves(key_waves),
    )


def outline(s: Shape, points: Array) -> Array:
    """Signed distance (about) to the body's outline, positive inside: ``[...]``."""
    x, y = points[..., 0], points[..., 1]
    narrowing = (s.body_width - s.neck) * jax.nn.sigmoid((s.shoulder - y) / 0.05)
    return s.body_width - narrowing - jnp.abs(x)


def cavity(s: Shape, points: Array) -> Array:
    """Signed distance (about) to the inner chest wall, positive inside; the cavity is open towards the feet: ``[...]``."""
    x, y = points[..., 0], points[..., 1]
    half_width = s.body_width - s.wall
    rise = jnp.clip((s.vault - y) / (s.vault - s.apex), 0.0, None)
    across = jnp.abs(x) / half_width
    # The small constant keeps the root's derivative finite in the centre.
    radius = (across**s.vault_exponent + rise**s.vault_exponent + 1e-6) ** (1.0 / s.vault_exponent)
    return half_width * (1.0 - radius)


def diaphragm(s: Shape, x: Array) -> Array:
    """The height ``y`` of the diaphragm above ``x``: two domes, the left one lower."""
    offset = x - s.midline
    right = s.dome_right + s.dome_curvature * (offset + s.dome_centre) ** 2
    left = s.dome_right + s.dome_left_lower + s.dome_curvature * (offset - s.dome_centre) ** 2
    return -0.04 * jnp.logaddexp(-right / 0.04, -left / 0.04)


def heart_frame(s: Shape, points: Array) -> Array:
    """Points in the heart's own frame, where it is the unit disc: ``[..., 2]``."""
    centre_x = s.midline + s.heart_x
    centre = jnp.stack([centre_x, diaphragm(s, centre_x) - s.heart_above_dome])
    offset = points - centre.reshape((1,) * (points.ndim - 1) + (2,))
    cos, sin = jnp.cos(s.heart_tilt), jnp.sin(s.heart_tilt)
    along, across = cos * offset[..., 0] + sin * offset[..., 1], -sin * offset[..., 0] + cos * offset[..., 1]
    return jnp.stack([along / s.heart_width, across / s.heart_height], axis=-1)


def intensity(anatomy: Anatomy, tissue: Array, *, edge: float, lung_density: Array | float = 1.0) -> Array:
    """The noise-free signal of tissue points.

    Args:
        anatomy: the patient.
        tissue: ``[..., 2]``.
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
    lung = over(lung, jnp.full_like(x, s.vessel), _vessel_distance(anatomy.lung_vessels, tissue))
    liver_vessel = jnp.full_like(x, s.liver * (1.0 + s.liver_vessel))
    liver = over(jnp.full_like(x, s.liver), liver_vessel, _vessel_distance(anatomy.liver_vessels, tissue))
    below = over(jnp.full_like(x, s.abdomen), liver, _liver_distance(s, tissue))
    left_organ = _smooth_min(x - s.midline - 0.22, 0.62 - y)
    below = over(below, jnp.full_like(x, s.left_abdomen), left_organ)
    middle = jnp.full_like(x, 0.8 * s.muscle + 0.2 * s.heart)
    chest = over(middle, lung, _beside_mediastinum(s, tissue))
    radius = jnp.linalg.norm(heart_frame(s, tissue) + 1e-6, axis=-1)
    heart = jnp.where(radius < 0.6, s.heart, 0.75 * s.heart)
    chest = over(chest, heart, _heart_distance(s, tissue))
    inner = over(chest, below, y - diaphragm(s, x))
    wall = over(jnp.full_like(x, s.muscle), jnp.full_like(x, s.fat), 0.06 - outline(s, tissue))
    wall = over(wall, jnp.full_like(x, s.rib), _rib_distance(s, tissue))
    image = over(wall, inner, cavity(s, tissue))
    vertebra = s.spine * (1.0 - 0.35 * (jnp.cos(2.0 * jnp.pi * (y / (0.75 * s.rib_spacing) + s.rib_phase)) > 0.75))
    image = image + spine_visibility(s) * (over(image, vertebra, s.spine_width - jnp.abs(x - s.midline)) - image)
    image = image * (1.0 + s.texture * _texture(anatomy.waves, tissue))
    return image * jax.nn.sigmoid(4.0 * outline(s, tissue) / edge)


def organs(s: Shape, tissue: Array) -> dict[str, Array]:
    """Which tissue points ``[..., 2]`` belong to the body, the lungs and the liver: ``[...]`` bool."""
    visible_spine = (spine_visibility(s) > 0.5) & (jnp.abs(tissue[..., 0] - s.midline) < s.spine_width)
    chest = (cavity(s, tissue) > 0) & (outline(s, tissue) > 0) & ~visible_spine
    above = tissue[..., 1] < diaphragm(s, tissue[..., 0])
    return {
        "body": outline(s, tissue) > 0,
        "lungs": chest & above & (_beside_mediastinum(s, tissue) > 0) & (_heart_distance(s, tissue) < 0),
        "liver": chest & ~above & (_liver_distance(s, tissue) > 0),
    }


def spine_visibility(s: Shape) -> Array:
    """1 in posterior slices, where the static spine shows, 0 in anterior ones."""
    return jnp.clip(3.0 * (s.posterior - 0.5), 0.0, 1.0)


def _beside_mediastinum(s: Shape, points: Array) -> Array:
    return jnp.abs(points[..., 0] - s.midline) - s.mediastinum * (1.0 + 0.3 * points[..., 1])


def _heart_distance(s: Shape, points: Array) -> Array:
    """Positive inside the heart, which is smaller in posterior slices."""
    radius = jnp.linalg.norm(heart_frame(s, points) + 1e-6, axis=-1)
    return (jnp.minimum(1.0, 1.6 * (1.0 - s.posterior)) - radius) * s.heart_height


def _liver_distance(s: Shape, points: Array) -> Array:
    """Positive inside the liver's lower and left borders; its dome is the diaphragm."""
    x, y = points[..., 0], points[..., 1]
    return _smooth_min(s.liver_edge - x - 0.4 * y, s.liver_bottom - 0.15 * x - y)


def _smooth_min(a: Array, b: Array) -> Array:
    return -0.03 * jnp.logaddexp(-a / 0.03, -b / 0.03)


def _rib_distance(s: Shape, points: Array) -> Array:
    """Positive inside a rib: discs in the wall, cut through at regular heights on both sides."""
    height = (points[..., 1] / s.rib_spacing + s.rib_phase) % 1.0 - 0.5
    depth = cavity(s, points) + 0.4 * s.wall
    return s.rib_radius - jnp.sqrt((height * s.rib_spacing) ** 2 + depth**2 + 1e-12)


def _vessel_distance(segments: Array, points: Array) -> Array:
    """Positive inside the thickest vessel near: ``[...]``."""

    def nearest(best: Array, segment: Array) -> tuple[Array, None]:
        start, end, radius = segment[:2], segment[2:4], segment[4]
        shape = (1,) * (points.ndim - 1) + (2,)
        along, offset = (end - start).reshape(shape), points - start.reshape(shape)
        along_it = jnp.clip(jnp.sum(offset * along, -1) / (jnp.sum(along**2) + 1e-9), 0.0, 1.0)
        distance = jnp.linalg.norm(offset - along_it[..., None] * along, axis=-1)
        return jnp.maximum(best, radius - distance), None

    return jax.lax.scan(nearest, jnp.full(points.shape[:-1], -1.0), segments)[0]


def _texture(waves: Array, points: Array) -> Array:
    def add(total: Array, wave: Array) -> tuple[Array, None]:
        phase = wave[0] * points[..., 0] + wave[1] * points[..., 1] + wave[2]
        return total + wave[3] * jnp.sin(phase), None

    return jax.lax.scan(add, jnp.zeros(points.shape[:-1]), waves)[0]


def _waves(key: Array) -> Array:
    """Texture from coarse to fine: wavelengths 1 down to 0.12, the amplitude falling with the frequency."""
    key_angle, key_phase = jax.random.split(key)
    angle = jax.random.uniform(key_angle, (_WAVES,), maxval=2.0 * jnp.pi)
    frequency = 2.0 * jnp.pi * jnp.geomspace(1.0, 8.0, _WAVES)
    phase = jax.random.uniform(key_phase, (_WAVES,), maxval=2.0 * jnp.pi)
    amplitude = frequency**-0.5 / jnp.sqrt(0.5 * jnp.sum(1.0 / frequency))
    return jnp.stack([frequency * jnp.cos(angle), frequency * jnp.sin(angle), phase, amplitude], axis=-1)


def _tree(key: Array) -> Array:
    """Nodes of a binary tree, level by level, in an organ's unit square: ``[2^(L+1) - 1, 2]``, the root first."""
    levels = [jnp.array([[0.0, 0.5]])]
    for level in range(1, _TREE_LEVELS + 1):
        key, one = jax.random.split(key)
        count = 2**level
        even = jnp.stack([jnp.full(count, 0.3 * level - 0.05), (jnp.arange(count) + 0.5) / count], axis=-1)
        spread = jnp.array([[0.12, 0.28 / count]])
        levels.append(even + spread * jax.random.uniform(one, (count, 2), minval=-1.0, maxval=1.0))
    return jnp.concatenate(levels)


def _in_lung(s: Shape, tree: Array, side: float) -> Array:
    """The unit square laid into one lung: from the mediastinum to the wall, from the apex to the diaphragm."""
    inner, outer = s.mediastinum + 0.04, 0.9 * (s.body_width - s.wall)
    x = s.midline + side * (inner + tree[:, 0] * (outer - inner) * 0.88)
    top, bottom = s.apex + 0.18, diaphragm(s, x) - 0.05
    y = top + tree[:, 1] * (bottom - top)
    # The vault narrows the cavity towards the apex: draw the upper nodes in with it.
    rise = jnp.clip((s.vault - y) / (s.vault - s.apex), 0.0, 0.97)
    narrow = (1.0 - rise**s.vault_exponent) ** (1.0 / s.vault_exponent)
    x = s.midline + (x - s.midline) * jnp.clip(narrow, 0.3, 1.0)
    return jnp.stack([x, y], axis=-1)


def _in_liver(s: Shape, tree: Array) -> Array:
    """The unit square laid into the liver: from near the midline to the right wall, under the dome."""
    right = -0.85 * (s.body_width - s.wall)
    inner = s.liver_edge - 0.35
    x = inner + tree[:, 0] * (right - inner) * 0.9
    top = diaphragm(s, x) + 0.06
    return jnp.stack([x, top + tree[:, 1] * (s.liver_bottom - 0.1 - top)], axis=-1)


def _segments(nodes: Array) -> Array:
    """The tree's edges with their radii, thinner level by level: ``[2^(L+1) - 2, 5]``."""
    child = jnp.arange(1, nodes.shape[0])
    level = jnp.floor(jnp.log2(child + 1.5))
    radius = 0.03 * 0.72**level
    return jnp.concatenate([nodes[(child - 1) // 2], nodes[child], radius[:, None]], axis=-1)
