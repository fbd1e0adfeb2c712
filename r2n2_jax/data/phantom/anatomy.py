"""The phantom's patient: a thorax in its mid-respiratory position, every border a formula of the tissue point.

Tissue points are ``[..., 2]`` in ``(x, y)`` order, of a coronal slice, or ``[..., 3]`` in ``(x, y, z)`` order, of the volume;
normalised units, x to the image's right, y towards the feet, z towards the back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2n2_jax.data.phantom.texture import waves
from r2n2_jax.data.phantom.vessels import segments, tree
from r2n2_jax.ops.grid import components

Array = jax.Array


class Shape(NamedTuple):
    """Scalars of one patient: lengths in normalised units (the field of view is 2 along every axis), intensities, and shares.

    The module's ``_RANGES`` holds, field by field, the range each is drawn from. ``posterior`` is where a coronal slice is cut;
    from ``depth`` on they say how the body goes on from front to back, and are of volumes alone.
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
    depth: Array | tuple[float, float]
    roundness: Array | tuple[float, float]
    spine_depth: Array | tuple[float, float]
    heart_depth: Array | tuple[float, float]
    heart_thickness: Array | tuple[float, float]
    dome_depth: Array | tuple[float, float]
    dome_fall: Array | tuple[float, float]
    rib_slope: Array | tuple[float, float]
    motion_back: Array | tuple[float, float]
    motion_front: Array | tuple[float, float]


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
    depth=(0.8, 0.94),
    roundness=(2.2, 2.8),
    spine_depth=(0.5, 0.6),
    heart_depth=(-0.35, -0.15),
    heart_thickness=(0.25, 0.35),
    dome_depth=(-0.2, 0.0),
    dome_fall=(0.15, 0.4),
    rib_slope=(0.1, 0.35),
    motion_back=(0.0, 0.25),
    motion_front=(0.02, 0.12),
)

_OF_A_SLICE = Shape._fields.index("depth")


class Anatomy(NamedTuple):
    """One patient, in ``d`` dimensions.

    Attributes:
        shape: the scalars.
        lung_vessels: ``[S, 2 d + 1]``: start, end, radius of every segment of the two lungs' trees.
        liver_vessels: ``[S, 2 d + 1]``, the same for the liver.
        landmarks: ``[N, d]``: branchings and tips of the vessels, points of the diaphragm.
        waves: ``[K, d + 2]``: wave vector, phase and amplitude of the tissue's texture.
    """

    shape: Shape
    lung_vessels: Array
    liver_vessels: Array
    landmarks: Array
    waves: Array


def sample_anatomy(key: Array, *, ndim: int = 2, body: Shape | None = None) -> Anatomy:
    """A random patient, as a coronal slice or as a volume; or, of the given ``body``, random vessels and texture."""
    key_shape, key_right, key_left, key_liver, key_waves = jax.random.split(key, 5)
    s = _sample_shape(key_shape) if body is None else body
    trees = [tree(k, ndim) for k in (key_right, key_left, key_liver)]
    placed = [_in_lung(s, trees[0], -1.0), _in_lung(s, trees[1], 1.0), _in_liver(s, trees[2])]
    vessels = [segments(nodes) for nodes in placed]
    dome_x = s.midline + jnp.array([-0.5, -0.4, -0.3, 0.3, 0.4, 0.5])
    # In a volume some in front and some behind the domes' tops.
    dome_z = [] if ndim == 2 else [jnp.array([-0.3, 0.1, 0.3, -0.2, 0.0, 0.3])]
    dome = jnp.stack([dome_x, diaphragm(s, dome_x, *dome_z), *dome_z], axis=-1)
    return Anatomy(
        shape=s,
        lung_vessels=jnp.concatenate(vessels[:2]),
        liver_vessels=vessels[2],
        landmarks=jnp.concatenate([*(nodes[1:] for nodes in placed), dome]),
        waves=waves(key_waves, ndim),
    )


def _sample_shape(key: Array) -> Shape:
    low, high = jnp.array(_RANGES).T
    # Slices were there first: a patient's numbers of a slice do not depend on those of the volume.
    parts = [(key, slice(_OF_A_SLICE)), (jax.random.fold_in(key, 1), slice(_OF_A_SLICE, None))]
    drawn = [jax.random.uniform(k, low[part].shape, minval=low[part], maxval=high[part]) for k, part in parts]
    return Shape(*jnp.concatenate(drawn))


def from_axis(s: Shape, points: Array) -> Array:
    """How far points lie from the body's axis: ``|x|`` in a slice, in a volume along its rounded cross-section: ``[...]``."""
    x, _, *z = components(points)
    if not z:
        return jnp.abs(x)
    # The small constant keeps the root's derivative finite in the centre.
    depth = jnp.abs(z[0]) * s.body_width / s.depth
    return (jnp.abs(x) ** s.roundness + depth**s.roundness + 1e-6) ** (1.0 / s.roundness)


def outline(s: Shape, points: Array) -> Array:
    """Signed distance (about) to the body's outline, positive inside: ``[...]``."""
    narrowing = (s.body_width - s.neck) * jax.nn.sigmoid((s.shoulder - points[..., 1]) / 0.05)
    return s.body_width - narrowing - from_axis(s, points)


def cavity(s: Shape, points: Array) -> Array:
    """Signed distance (about) to the inner chest wall, positive inside; the cavity is open towards the feet: ``[...]``."""
    half_width = s.body_width - s.wall
    rise = jnp.clip((s.vault - points[..., 1]) / (s.vault - s.apex), 0.0, None)
    across = from_axis(s, points) / half_width
    # The small constant keeps the root's derivative finite in the centre.
    radius = (across**s.vault_exponent + rise**s.vault_exponent + 1e-6) ** (1.0 / s.vault_exponent)
    return half_width * (1.0 - radius)


def diaphragm(s: Shape, x: Array, z: Array | None = None) -> Array:
    """The height ``y`` of the diaphragm at ``x``, in a volume at ``x`` and ``z``: two domes, the left one lower."""
    offset = x - s.midline
    right = s.dome_right + s.dome_curvature * (offset + s.dome_centre) ** 2
    left = s.dome_right + s.dome_left_lower + s.dome_curvature * (offset - s.dome_centre) ** 2
    height = -0.04 * jnp.logaddexp(-right / 0.04, -left / 0.04)
    return height if z is None else height + s.dome_fall * (z - s.dome_depth) ** 2


def below_diaphragm(s: Shape, points: Array) -> Array:
    """How far below the diaphragm points lie: ``[...]``."""
    x, y, *z = components(points)
    return y - diaphragm(s, x, *z)


def heart_frame(s: Shape, points: Array) -> Array:
    """Points in the heart's own frame, where it is the unit disc or ball: ``[..., d]``."""
    x, y, *z = components(points)
    centre_x = s.midline + s.heart_x
    right, down = x - centre_x, y - (diaphragm(s, centre_x) - s.heart_above_dome)
    cos, sin = jnp.cos(s.heart_tilt), jnp.sin(s.heart_tilt)
    along, across = cos * right + sin * down, -sin * right + cos * down
    deep = [(part - s.heart_depth) / s.heart_thickness for part in z]
    return jnp.stack([along / s.heart_width, across / s.heart_height, *deep], axis=-1)


def heart_distance(s: Shape, points: Array) -> Array:
    """Positive inside the heart, which is smaller in posterior slices."""
    radius = jnp.linalg.norm(heart_frame(s, points) + 1e-6, axis=-1)
    size = 1.0 if points.shape[-1] == 3 else jnp.minimum(1.0, 1.6 * (1.0 - s.posterior))
    return (size - radius) * s.heart_height


def beside_mediastinum(s: Shape, points: Array) -> Array:
    """Positive to both sides of what lies between the lungs."""
    return jnp.abs(points[..., 0] - s.midline) - s.mediastinum * (1.0 + 0.3 * points[..., 1])


def liver_distance(s: Shape, points: Array) -> Array:
    """Positive inside the liver's lower and left borders; its dome is the diaphragm."""
    x, y, *z = components(points)
    # Its lower border rises towards the back.
    rise = 0.2 * z[0] if z else 0.0
    return smooth_min(s.liver_edge - x - 0.4 * y, s.liver_bottom - 0.15 * x - y - rise)


def rib_distance(s: Shape, points: Array) -> Array:
    """Positive inside a rib: discs in a slice's wall, at regular heights on both sides, which fall to the front."""
    _, y, *z = components(points)
    slope = -s.rib_slope * z[0] if z else 0.0
    height = ((y - slope) / s.rib_spacing + s.rib_phase) % 1.0 - 0.5
    depth = cavity(s, points) + 0.4 * s.wall
    return s.rib_radius - jnp.sqrt((height * s.rib_spacing) ** 2 + depth**2 + 1e-12)


def from_spine(s: Shape, points: Array) -> Array:
    """How far points lie from the spine's axis: ``[...]``."""
    x, _, *z = components(points)
    if not z:
        return jnp.abs(x - s.midline)
    return jnp.sqrt((x - s.midline) ** 2 + (z[0] - s.spine_depth) ** 2 + 1e-12)


def spine_visibility(s: Shape, *, ndim: int = 2) -> Array | float:
    """1 in posterior slices, where the static spine shows, 0 in anterior ones; a volume has it."""
    return 1.0 if ndim == 3 else jnp.clip(3.0 * (s.posterior - 0.5), 0.0, 1.0)


def smooth_min(a: Array, b: Array) -> Array:
    """The smaller of two distances, without a kink."""
    return -0.03 * jnp.logaddexp(-a / 0.03, -b / 0.03)


def _in_lung(s: Shape, nodes: Array, side: float) -> Array:
    """The unit square or cube laid into one lung: from the mediastinum to the wall, from the apex to the diaphragm."""
    z = [0.7 * s.depth * (2.0 * part - 1.0) for part in components(nodes)[2:]]
    # Front and back of the body are narrower than its middle.
    rounded = (1.0 - jnp.abs(z[0] / s.depth) ** s.roundness) ** (1.0 / s.roundness) if z else 1.0
    inner, outer = s.mediastinum + 0.04, 0.9 * (s.body_width - s.wall)
    x = s.midline + side * (inner + nodes[:, 0] * (outer - inner) * 0.88) * rounded
    top, bottom = s.apex + 0.18, diaphragm(s, x, *z) - 0.05
    y = top + nodes[:, 1] * (bottom - top)
    # The vault narrows the cavity towards the apex: draw the upper nodes in with it.
    rise = jnp.clip((s.vault - y) / (s.vault - s.apex), 0.0, 0.97)
    narrow = (1.0 - rise**s.vault_exponent) ** (1.0 / s.vault_exponent)
    x = s.midline + (x - s.midline) * jnp.clip(narrow, 0.3, 1.0)
    return jnp.stack([x, y, *(part * jnp.clip(narrow, 0.3, 1.0) for part in z)], axis=-1)


def _in_liver(s: Shape, nodes: Array) -> Array:
    """The unit square or cube laid into the liver: from near the midline to the right wall, under the dome."""
    z = [0.6 * s.depth * (2.0 * part - 1.0) for part in components(nodes)[2:]]
    right = -0.85 * (s.body_width - s.wall)
    inner = s.liver_edge - 0.35
    x = inner + nodes[:, 0] * (right - inner) * 0.9
    top = diaphragm(s, x, *z) + 0.06
    return jnp.stack([x, top + nodes[:, 1] * (s.liver_bottom - 0.1 - top), *z], axis=-1)
